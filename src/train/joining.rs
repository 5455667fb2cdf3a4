//! The check that the ranks of a group train the same.

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
    let text = serde_json::to_vec(&own).map_err(|error| Error::Argument(error.to_string()))?;
    let mut length = [text.len() as u64];
    group.broadcast(bytemuck::cast_slice_mut(&mut length), 0)?;
    let mut first = text;
    first.resize(length[0] as usize, 0);
    group.broadcast(&mut first, 0)?;
    let rank = group.rank();
    let differs = |problem: &str| Error::Group(format!("rank {rank} cannot join the run: {problem}"));
    let first: (Provenance, String) =
        serde_json::from_slice(&first).map_err(|_| differs("it is another version of loraine"))?;
    first.0.check_joins(&own.0, [&first.1, &own.1]).map_err(|problem| differs(&problem))?;
    group.gather(&[]).map(|_| ())
}
