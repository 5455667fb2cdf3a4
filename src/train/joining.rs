//! The check that the ranks of a group train or evaluate the same.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::group::Group;
use super::prepare::PreparedRun;
use super::provenance::Provenance;
use crate::{Error, Result};

/// Compares what this rank is going to train with that of the first rank, which waits for all.
///
/// # Errors
/// A rank that has another model, other data or other settings, with what differs.
pub(super) fn check_same(group: &mut Group, prepared: &PreparedRun) -> Result<()> {
    let own = (prepared.provenance()?, prepared.held_out_fingerprint());
    let first: (Provenance, String) = of_first(group, &own, "run")?;
    first.0.check_joins(&own.0, [&first.1, &own.1]).map_err(|problem| refused(group, "run", &problem))?;
    group.gather(&[]).map(|_| ())
}

/// Compares the parts of this rank's evaluation with those of the first rank, which waits for all. Each has its name, the words of its
/// rank, and a fingerprint.
///
/// # Errors
/// A rank that evaluates something else, with the first part that differs.
pub(super) fn check_same_evaluation(group: &mut Group, own: &[[String; 3]]) -> Result<()> {
    let first: Vec<[String; 3]> = of_first(group, &own, "evaluation")?;
    if let Some((_, [name, here, _])) = first.iter().zip(own).find(|(first, own)| first[2] != own[2]) {
        let problem = format!("{name} ({here}) is not that of the first rank; give every rank the same");
        return Err(refused(group, "evaluation", &problem));
    }
    group.gather(&[]).map(|_| ())
}

fn refused(group: &Group, what: &str, problem: &str) -> Error {
    Error::Group(format!("rank {} cannot join the {what}: {problem}", group.rank()))
}

/// The value of the first rank, which gives `own` to all.
fn of_first<T: DeserializeOwned>(group: &mut Group, own: &impl Serialize, what: &str) -> Result<T> {
    let text = serde_json::to_vec(own).map_err(|error| Error::Argument(error.to_string()))?;
    let mut length = [text.len() as u64];
    group.broadcast(bytemuck::cast_slice_mut(&mut length), 0)?;
    let mut first = text;
    first.resize(length[0] as usize, 0);
    group.broadcast(&mut first, 0)?;
    serde_json::from_slice(&first).map_err(|_| refused(group, what, "it is another version of loraine"))
}
