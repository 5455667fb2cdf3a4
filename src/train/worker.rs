//! A rank of a group other than the first: it computes its share of each step and of each evaluation, and keeps nothing.

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
    if let Err(error) = check_same(&mut group, &prepared) {
        group.fail(&error);
        return Err(error);
    }
    let opened = run::open_engine(&prepared, gpu, &mut |_| ()).await;
    let (mut engine, _) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            group.fail(&error);
            return Err(error);
        }
    };
    engine.objective = prepared.settings.objective();
    engine.write_adapter(&prepared.initial);
    if let Err(error) = prepared.add_references(&mut engine, |_, _| ()).await {
        group.fail(&error);
        return Err(error);
    }
    engine.group = Some(group);
    let result = follow(&mut prepared, &mut engine).await;
    if let (Err(error), Some(group)) = (&result, &mut engine.group) {
        group.fail(error);
    }
    result
}

/// Does the work that the first rank announces.
async fn follow(prepared: &mut PreparedRun, engine: &mut super::engine::Engine) -> Result<()> {
    let eval_batches = prepared.eval_batches();
    let seed = prepared.settings.seed;
    loop {
        let Some(group) = &mut engine.group else { return Ok(()) };
        // A worker has nothing to announce; it hears the first rank's.
        match group.agree_on(Work::End)? {
            Work::Step(done) => engine.work_on_step(done, &prepared.micro_batches(done), seed).await?,
            Work::Evaluation => {
                engine.receive_values().await?;
                evaluate::evaluation(engine, &eval_batches, |_| ()).await?;
            }
            Work::End => return Ok(()),
        }
    }
}
