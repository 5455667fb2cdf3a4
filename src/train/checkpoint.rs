//! Checkpoints: everything that a run needs to go on bit for bit. `step-N/` holds the adapter as PEFT has it (or of full training the
//! model in f32), `optimizer.safetensors` with AdamW's moments, and `state.json`. A directory is written beside its place, synced, then
//! renamed, so that a checkpoint that has its name is whole. Length and checksum of each file show damage that came later.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::objective::Report;
use super::provenance::Provenance;
use super::values::{TrainedValues, deserialize_moments, serialize_moments};
use crate::files::{self, File, remove_if_there, write_atomically, write_owned_atomically};
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
/// Keys of `state.json` beside the run's state: length and checksum of every other file, and the state's own checksum.
const FILES: &str = "files";
const OWN_SUM: &str = "crc32c";

/// The place of a run: the order of the data and every random draw follow from the seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: usize,
    /// Rows computed so far.
    pub tokens: u64,
    /// Reports of the steps since the last logged line.
    pub unlogged: Vec<Report>,
    /// The best evaluation, where the run keeps the values of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestEvaluation>,
    /// The data, the base and the settings that the run's numbers follow from.
    pub origin: Provenance,
}

/// The evaluation with the lowest loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestEvaluation {
    /// Optimizer steps before it.
    pub step: usize,
    /// Mean loss over the held-out tokens.
    pub eval_loss: f64,
    /// Evaluations since, none of them better.
    pub waited: usize,
}

impl BestEvaluation {
    /// The best one after a further evaluation, which starts the wait anew if its loss is lower by more than `threshold`.
    pub(super) fn after(best: Option<Self>, step: usize, eval_loss: f64, threshold: f64) -> Self {
        match best {
            None => Self { step, eval_loss, waited: 0 },
            Some(best) if eval_loss < best.eval_loss => {
                let waited = if best.eval_loss - eval_loss > threshold { 0 } else { best.waited + 1 };
                Self { step, eval_loss, waited }
            }
            Some(best) => Self { waited: best.waited + 1, ..best },
        }
    }
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

/// The checkpoint of a step.
pub fn at(out: &Path, step: usize) -> PathBuf {
    directory(out).join(format!("step-{step}"))
}

/// Writes `checkpoints/step-N` and removes all but the newest `keep` and that of the best evaluation.
///
/// # Errors
/// A value that is not finite, or a file that cannot be written; earlier checkpoints then stay.
pub fn save(out: &Path, trainable: Trainable, checkpoint: Checkpoint, keep: usize) -> Result<PathBuf> {
    let Checkpoint { state, values, moments } = checkpoint;
    let (parent, place) = (directory(out), at(out, state.step));
    let beside = parent.join(format!(".step-{}.part", state.step));
    let failed = |e: std::io::Error| Error::file(&place, format!("cannot be written: {e}"));
    remove_if_there(&beside).map_err(failed)?;
    files::create_dir_all(&beside).map_err(failed)?;
    let write = || -> Result<()> {
        trainable.save(&beside, &values, Float::F32)?;
        let bytes = serialize_moments(&beside, &values, &moments, trainable.modules())?;
        // A browser's memory is small: what is written is freed at once.
        drop((values, moments));
        write_owned_atomically(&beside.join(OPTIMIZER), bytes)?;
        write_state(&beside, &state)?;
        remove_if_there(&place).map_err(failed)?;
        files::rename(&beside, &place).map_err(failed)?;
        files::sync_directory(&parent).and_then(|()| files::sync_directory(out)).map_err(failed)
    };
    write().inspect_err(|_| {
        let _ = files::remove_dir_all(&beside);
    })?;
    remove_beyond(out, keep, state.best)?;
    Ok(place)
}

/// Removes all checkpoints but the newest `keep` and that of the best evaluation.
///
/// # Errors
/// A checkpoint that cannot be removed.
pub fn remove_beyond(out: &Path, keep: usize, best: Option<BestEvaluation>) -> Result<()> {
    let old = steps_in(out).into_iter().rev().skip(keep.max(1));
    old.filter(|step| best.is_none_or(|best| best.step != *step)).try_for_each(|step| remove(out, step))
}

/// Copies the checkpoint of a step from one run to another.
///
/// # Errors
/// A file that cannot be read or written.
pub fn copy(from: &Path, to: &Path, step: usize) -> Result<()> {
    let (from, place) = (at(from, step), at(to, step));
    let beside = directory(to).join(format!(".step-{step}.part"));
    let copied = || -> std::io::Result<()> {
        remove_if_there(&beside)?;
        files::create_dir_all(&beside)?;
        for name in files::names(&from)? {
            let mut file = File::create(beside.join(&name))?;
            file.write_all(&files::read(from.join(&name))?)?;
            file.sync_all()?;
        }
        remove_if_there(&place)?;
        files::rename(&beside, &place)
    };
    copied().map_err(|e| Error::file(&from, format!("cannot be copied to {}: {e}", place.display())))
}

/// Writes `state.json` with length and CRC-32C of every other file of the checkpoint, and a CRC-32C of its own.
fn write_state(dir: &Path, state: &RunState) -> Result<()> {
    let path = dir.join(STATE);
    let Ok(Value::Object(mut object)) = serde_json::to_value(state) else { unreachable!("a state is an object") };
    let mut names = files::names(dir).map_err(|e| Error::file(dir, format!("cannot be read: {e}")))?;
    names.sort_unstable();
    let sums = names.into_iter().map(|name| {
        let (bytes, crc32c) = sum_of(&dir.join(&name))?;
        Ok((name, json!({ "bytes": bytes, "crc32c": crc32c })))
    });
    object.insert(FILES.to_owned(), Value::Object(sums.collect::<Result<_>>()?));
    object.insert(OWN_SUM.to_owned(), sum_of_state(&object).into());
    write_atomically(&path, format!("{:#}\n", Value::Object(object)).as_bytes())
}

/// Checksum of a state's content, however it is laid out.
fn sum_of_state(object: &Map<String, Value>) -> u32 {
    crc32c::crc32c(Value::Object(object.clone()).to_string().as_bytes())
}

/// Length and CRC-32C of a file.
fn sum_of(path: &Path) -> Result<(u64, u32)> {
    let read = || -> std::io::Result<(u64, u32)> {
        let mut file = File::open(path)?;
        let (mut bytes, mut sum, mut piece) = (0, 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut piece)? {
                0 => return Ok((bytes, sum)),
                read => (bytes, sum) = (bytes + read as u64, crc32c::crc32c_append(sum, &piece[..read])),
            }
        }
    };
    read().map_err(|e| Error::file(path, format!("cannot be read: {e}")))
}

/// Reads `state.json` and holds the checkpoint against it: its own checksum, those of the other files, and the step of its name.
/// Checkpoints of loraine 0.1 have no checksums.
fn read_state(dir: &Path) -> Result<RunState> {
    let path = dir.join(STATE);
    let damaged = |problem: &dyn std::fmt::Display| Error::file(&path, format!("is damaged: {problem}"));
    let text = files::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    let mut object: Map<String, Value> = serde_json::from_str(&text).map_err(|e| damaged(&e))?;
    let own_sum = object.remove(OWN_SUM);
    if own_sum.as_ref().is_some_and(|sum| *sum != sum_of_state(&object)) {
        return Err(damaged(&"its checksum is another"));
    }
    let sums = object.remove(FILES);
    if sums.is_some() != own_sum.is_some() {
        return Err(damaged(&"one of its checksums is missing"));
    }
    let state: RunState = serde_json::from_value(Value::Object(object)).map_err(|e| damaged(&e))?;
    for (name, expected) in sums.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let (bytes, crc32c) = sum_of(&dir.join(name))?;
        let problem = match (expected["bytes"].as_u64(), expected["crc32c"].as_u64()) {
            (Some(was), _) if was != bytes => format!("it has {bytes} bytes instead of {was}"),
            (_, sum) if sum != Some(crc32c.into()) => "its checksum is another than when it was saved".to_owned(),
            _ => continue,
        };
        return Err(Error::file(dir.join(name), format!("is damaged: {problem}")));
    }
    let named = dir.file_name().and_then(|name| name.to_str()).and_then(step_of);
    match named {
        Some(named) if named != state.step => {
            Err(damaged(&format!("it is of step {}, but the directory of step {named}", state.step)))
        }
        _ => Ok(state),
    }
}

/// Holds a checkpoint against its checksums.
///
/// # Errors
/// A file of it that is damaged or missing.
pub fn check(dir: &Path) -> Result<()> {
    read_state(dir).map(|_| ())
}

/// The newest checkpoint below `out`, if there is one.
pub fn newest(out: &Path) -> Option<PathBuf> {
    steps_in(out).last().map(|step| at(out, *step))
}

/// The newest undamaged checkpoint below `out`, if there is a checkpoint. A sentence about each damaged one that is newer is added to
/// `passed_over`.
///
/// # Errors
/// Every checkpoint is damaged; the newest one is named.
pub fn newest_whole(out: &Path, passed_over: &mut Vec<String>) -> Result<Option<PathBuf>> {
    let mut first = None;
    for step in steps_in(out).into_iter().rev() {
        let dir = at(out, step);
        match check(&dir) {
            Ok(()) => return Ok(Some(dir)),
            Err(problem) => {
                passed_over.push(format!("the checkpoint of step {step} is passed over: {problem}"));
                first.get_or_insert(problem);
            }
        }
    }
    first.map_or(Ok(None), Err)
}

/// Removes the checkpoints of steps after `step`, which a run that goes on from there makes again.
///
/// # Errors
/// A checkpoint that cannot be removed.
pub fn remove_after(out: &Path, step: usize) -> Result<()> {
    steps_in(out).into_iter().filter(|later| *later > step).try_for_each(|later| remove(out, later))
}

/// Removes every checkpoint below `out`, and the directory of checkpoints if nothing else is in it.
///
/// # Errors
/// A directory that cannot be removed.
pub fn remove_all(out: &Path) -> Result<()> {
    steps_in(out).into_iter().try_for_each(|step| remove(out, step))?;
    remove_parts(out)?;
    let parent = directory(out);
    match files::names(&parent) {
        Ok(names) if names.is_empty() => {
            files::remove_dir_all(&parent).map_err(|e| Error::file(&parent, format!("cannot be removed: {e}")))
        }
        _ => Ok(()),
    }
}

/// Removes one checkpoint. It is renamed first, so that a checkpoint that has its name is whole, also where the
/// removal is cut short.
fn remove(out: &Path, step: usize) -> Result<()> {
    let parent = directory(out);
    let (old, leaving) = (at(out, step), parent.join(format!(".step-{step}.part")));
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

/// The step in the name of a checkpoint, which has no zeros before it and no sign.
fn step_of(name: &str) -> Option<usize> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name == format!("step-{step}")).then_some(step)
}

/// The steps of the whole checkpoints below `out`, ascending. A directory that lacks its files is none of ours.
fn steps_in(out: &Path) -> Vec<usize> {
    let names = files::names(&directory(out)).unwrap_or_default();
    let mut steps: Vec<usize> = names.iter().filter_map(|name| step_of(name)).collect();
    steps.retain(|step| [STATE, OPTIMIZER].iter().any(|file| files::is_file(&at(out, *step).join(file))));
    steps.sort_unstable();
    steps
}

/// Reads a checkpoint directory, which must be of `trainable`, with moments that are kept in `storage`.
///
/// # Errors
/// Files that are missing or damaged, or that hold other modules, ranks or moments than the run has.
pub fn load(dir: &Path, model: &ModelConfig, trainable: Trainable, storage: MomentStorage) -> Result<Checkpoint> {
    let state = read_state(dir)?;
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
    let path = dir.join(OPTIMIZER);
    let bytes = files::read(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    let moments = deserialize_moments(&path, &bytes, &values, trainable.modules(), storage)?;
    Ok(Checkpoint { state, values, moments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_evaluation_waits_for_a_better_one() {
        let losses = [3.0, 2.0, 2.5, 1.95, 1.9, 2.0, 1.0];
        let mut best = None;
        let mut seen = Vec::new();
        for (i, loss) in losses.into_iter().enumerate() {
            let now = BestEvaluation::after(best, 10 * (i + 1), loss, 0.2);
            seen.push((now.step, now.waited));
            best = Some(now);
        }
        assert_eq!(seen, [(10, 0), (20, 0), (20, 1), (40, 2), (50, 3), (50, 4), (70, 0)]);
    }

    #[test]
    fn only_own_checkpoints_are_removed() {
        let out = tempfile::tempdir().unwrap();
        for (dir, file) in [("step-3", STATE), ("step-5", "theirs"), ("mine", "weights"), (".step-4.part", "x")] {
            let dir = directory(out.path()).join(dir);
            files::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(file), "{}").unwrap();
        }
        assert_eq!(steps_in(out.path()), [3]);
        remove_all(out.path()).unwrap();
        let mut left = files::names(&directory(out.path())).unwrap();
        left.sort();
        assert_eq!(left, ["mine", "step-5"]);
        for name in left {
            files::remove_dir_all(directory(out.path()).join(name)).unwrap();
        }
        remove_all(out.path()).unwrap();
        assert!(!files::exists(&directory(out.path())));
        remove_all(out.path()).unwrap();
    }
}
