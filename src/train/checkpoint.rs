//! Checkpoints: everything that a run needs to go on bit for bit. `step-N/` holds the adapter as PEFT has it (or of full training the
//! model in f32), `optimizer.safetensors` with AdamW's moments, and `state.json`. A directory is written beside its place, synced, then
//! renamed, so that a checkpoint that has its name is whole.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::objective::Report;
use super::provenance::Provenance;
use super::values::{TrainedValues, deserialize_moments, serialize_moments};
use crate::files::{self, remove_if_there, write_atomically};
use crate::lora::adapter_file;
use crate::lora::config::LoraConfig;
use crate::lora::targets::LoraModule;
use crate::model::config::ModelConfig;
use crate::model::model_directory;
use crate::network::moments::{HostMoment, MomentStorage};
use crate::quant::format::Float;
use crate::{Error, Result};

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// The place of a run: the order of the data and every random draw follow from the seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: usize,
    /// Rows computed so far.
    pub tokens: u64,
    /// Reports of the steps since the last logged line.
    pub unlogged: Vec<Report>,
    /// The data, the base and the settings that the run's numbers follow from.
    pub origin: Provenance,
}

/// Everything that a run needs to go on bit for bit.
pub struct Checkpoint {
    /// The place of the run, `state.json`.
    pub state: RunState,
    /// The trained values, `adapter_model.safetensors` or `model.safetensors`.
    pub values: TrainedValues,
    /// Both moments of each tensor of `values`, `optimizer.safetensors`.
    pub moments: Vec<[HostMoment; 2]>,
}

/// The trained part of a model, as the files of a run need it.
#[derive(Clone, Copy)]
pub enum Trainable<'a> {
    /// An adapter.
    Adapter {
        /// The contents of its `adapter_config.json`.
        config: &'a LoraConfig,
        /// Its modules, in the order of its values.
        modules: &'a [LoraModule],
    },
    /// The whole model.
    Base {
        /// Directory of the original model, which the tokenizer and the configuration are copied from.
        base: &'a Path,
    },
}

impl Trainable<'_> {
    fn modules(&self) -> &[LoraModule] {
        match self {
            Self::Adapter { modules, .. } => modules,
            Self::Base { .. } => &[],
        }
    }

    /// Writes what was trained into `dir`: a PEFT adapter, or a Hugging Face model with weights in `float`.
    ///
    /// # Errors
    /// A value that is not finite, or a file that cannot be written.
    pub fn save(&self, dir: &Path, values: &TrainedValues, float: Float) -> Result<()> {
        match (self, values) {
            (Self::Adapter { config, modules }, TrainedValues::Adapter(adapter)) => {
                adapter_file::save(dir, config, modules, adapter)
            }
            (Self::Base { base }, TrainedValues::Base(tensors)) => model_directory::save(dir, base, tensors, float),
            _ => unreachable!("a run reads what it trains"),
        }
    }
}

fn directory(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

/// Writes `checkpoints/step-N` and removes all but the newest `keep`.
///
/// # Errors
/// A value that is not finite, or a file that cannot be written; earlier checkpoints then stay.
pub fn save(out: &Path, trainable: Trainable, checkpoint: &Checkpoint, keep: usize) -> Result<PathBuf> {
    let parent = directory(out);
    let place = parent.join(format!("step-{}", checkpoint.state.step));
    let beside = parent.join(format!(".step-{}.part", checkpoint.state.step));
    let failed = |e: std::io::Error| Error::file(&place, format!("cannot be written: {e}"));
    remove_if_there(&beside).map_err(failed)?;
    files::create_dir_all(&beside).map_err(failed)?;
    let write = || -> Result<()> {
        trainable.save(&beside, &checkpoint.values, Float::F32)?;
        let Checkpoint { values, moments, .. } = checkpoint;
        let moments = serialize_moments(&beside, values, moments, trainable.modules())?;
        write_atomically(&beside.join(OPTIMIZER), &moments)?;
        let state = serde_json::to_string_pretty(&checkpoint.state).map_err(|e| Error::file(&place, e))?;
        write_atomically(&beside.join(STATE), state.as_bytes())?;
        remove_if_there(&place).map_err(failed)?;
        files::rename(&beside, &place).map_err(failed)?;
        files::sync_directory(&parent).map_err(failed)
    };
    write().inspect_err(|_| {
        let _ = files::remove_dir_all(&beside);
    })?;
    let mut steps = steps_in(out);
    steps.reverse();
    for step in steps.into_iter().skip(keep.max(1)) {
        remove(out, step)?;
    }
    Ok(place)
}

/// Removes the checkpoints of steps after `step`, which a run that goes on from there makes again.
///
/// # Errors
/// A checkpoint that cannot be removed.
pub fn remove_after(out: &Path, step: usize) -> Result<()> {
    steps_in(out).into_iter().filter(|later| *later > step).try_for_each(|later| remove(out, later))
}

/// Removes one checkpoint. It is renamed first, so that a checkpoint that has its name is whole, also where the
/// removal is cut short.
fn remove(out: &Path, step: usize) -> Result<()> {
    let parent = directory(out);
    let (old, leaving) = (parent.join(format!("step-{step}")), parent.join(format!(".step-{step}.part")));
    let removed = remove_if_there(&leaving)
        .and_then(|()| files::rename(&old, &leaving))
        .and_then(|()| files::remove_dir_all(&leaving));
    removed.map_err(|e| Error::file(&old, format!("cannot be removed: {e}")))
}

/// The run that `dir` belongs to, and whether `dir` is one of its checkpoints rather than the run itself.
///
/// # Errors
/// A directory that is neither.
pub fn run_of(dir: &Path) -> Result<(PathBuf, bool)> {
    if files::is_file(&dir.join(STATE)) {
        let whole = files::canonicalize(dir).map_err(|e| Error::file(dir, format!("cannot be read: {e}")))?;
        let run = whole.parent().filter(|parent| parent.ends_with("checkpoints")).and_then(Path::parent);
        return match run {
            Some(run) => Ok((run.to_owned(), true)),
            None => Err(Error::file(dir, "is a checkpoint outside its run; checkpoints lie in RUN/checkpoints/step-N")),
        };
    }
    if files::is_dir(&directory(dir)) {
        return Ok((dir.to_owned(), false));
    }
    Err(Error::file(
        dir,
        "is neither a run with checkpoints/ nor one of its checkpoints, so nothing can be resumed from it",
    ))
}

/// Removes incomplete checkpoints, which saves and removals that were cut short have left.
///
/// # Errors
/// A directory that cannot be removed.
pub fn remove_parts(out: &Path) -> Result<()> {
    let parent = directory(out);
    for name in files::names(&parent).unwrap_or_default() {
        if name.starts_with(".step-") && name.ends_with(".part") {
            let path = parent.join(name);
            remove_if_there(&path).map_err(|e| Error::file(&path, format!("cannot be removed: {e}")))?;
        }
    }
    Ok(())
}

/// The steps of the whole checkpoints below `out`, ascending.
fn steps_in(out: &Path) -> Vec<usize> {
    let names = files::names(&directory(out)).unwrap_or_default();
    let mut steps: Vec<usize> = names.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// The newest checkpoint below `out`, if there is one.
pub fn newest(out: &Path) -> Option<PathBuf> {
    steps_in(out).last().map(|step| directory(out).join(format!("step-{step}")))
}

/// Reads a checkpoint directory, which must be of `trainable`, with moments that are kept in `storage`.
///
/// # Errors
/// Files that are missing or damaged, or that hold other modules, ranks or moments than the run has.
pub fn load(dir: &Path, model: &ModelConfig, trainable: Trainable, storage: MomentStorage) -> Result<Checkpoint> {
    let values = match trainable {
        Trainable::Adapter { modules, .. } => {
            let adapter = adapter_file::load(dir, model)?;
            if adapter.modules != modules {
                let problem = "adapts other modules, or with other ranks, than the settings of this run";
                return Err(Error::file(dir, problem));
            }
            TrainedValues::Adapter(adapter.tensors)
        }
        Trainable::Base { .. } => TrainedValues::Base(model_directory::load(dir, model)?),
    };
    let path = dir.join(STATE);
    let text = files::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    let state = serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("is damaged: {e}")))?;
    let path = dir.join(OPTIMIZER);
    let bytes = files::read(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    let moments = deserialize_moments(&path, &bytes, &values, trainable.modules(), storage)?;
    Ok(Checkpoint { state, values, moments })
}
