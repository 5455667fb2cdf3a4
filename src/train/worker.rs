//! A rank of a group other than the first: it computes its share of each step and of each evaluation. In full training it keeps its
//! part of the moments.

use super::engine::Engine;
use super::group::{Group, Work};
use super::joining::check_same;
use super::prepare::PreparedRun;
use super::{evaluate, run};
use crate::Result;
use crate::gpu::Gpu;

/// Works for the first rank of `group` until the run ends. `prepared` is what every rank prepared of the same model, data and settings.
///
/// # Errors
/// A rank that trains something else or has ended, out of memory, or a failing device. The other ranks are told.
pub async fn work(mut prepared: PreparedRun, gpu: Gpu, mut group: Group) -> Result<()> {
    let mut engine = open(&mut prepared, gpu, &mut group).await.inspect_err(|error| group.fail(error))?;
    engine.group = Some(group);
    let result = follow(&mut prepared, &mut engine).await;
    if let (Err(error), Some(group)) = (&result, &mut engine.group) {
        group.fail(error);
    }
    result
}

/// Joins the group and opens the engine.
async fn open(prepared: &mut PreparedRun, gpu: Gpu, group: &mut Group) -> Result<Engine> {
    check_same(group, prepared)?;
    let (mut engine, _) = run::open_engine(prepared, gpu, group.shard(), &mut |_| ()).await?;
    run::take_up(prepared, &mut engine, |_, _| ()).await?;
    Ok(engine)
}

/// Does the work that the first rank announces.
async fn follow(prepared: &mut PreparedRun, engine: &mut Engine) -> Result<()> {
    let eval_batches = prepared.eval_batches()?;
    let seed = prepared.settings.seed;
    engine.start_together(None).await?;
    loop {
        let Some(group) = &mut engine.group else { return Ok(()) };
        // A worker has nothing to announce; it hears the first rank's.
        match group.agree_on(Work::End)? {
            Work::Step(done) => engine.work_on_step(done, &prepared.micro_batches(done)?, seed).await?,
            Work::Evaluation => {
                evaluate::evaluation(engine, &eval_batches, |_| ()).await?;
            }
            Work::Moments => engine.give_moments().await?,
            Work::End => return Ok(()),
        }
    }
}
