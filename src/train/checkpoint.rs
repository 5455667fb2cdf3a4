//! Checkpoints: everything that a run needs to go on bit for bit. `step-N/` holds the adapter as PEFT has it,
//! `optimizer.safetensors` with AdamW's moments, and `state.json`. A directory is written beside its place, synced, then
//! renamed, so that a checkpoint that has its name is whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;
use crate::lora::adapter_file::{self, AdapterTensors};
use crate::lora::config::LoraConfig;
use crate::lora::targets::LoraModule;
use crate::model::config::ModelConfig;
use crate::{Error, Result};

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Where a run stands. The order of the data and every random draw follow from the seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimiser steps done.
    pub step: usize,
    pub steps: usize,
    pub seed: u64,
    /// Rows computed so far.
    pub tokens: u64,
    /// Losses of steps since the last logged line.
    pub unlogged: Vec<f64>,
}

/// AdamW's moments, each shaped as the adapter's factors.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub first: AdapterTensors,
    pub second: AdapterTensors,
}

pub struct Checkpoint {
    pub state: RunState,
    pub adapter: AdapterTensors,
    pub moments: Moments,
}

fn directory(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

/// Writes `checkpoints/step-N` and removes all but the newest `keep`.
pub fn save(
    out: &Path,
    config: &LoraConfig,
    modules: &[LoraModule],
    checkpoint: &Checkpoint,
    keep: usize,
) -> Result<PathBuf> {
    let parent = directory(out);
    let place = parent.join(format!("step-{}", checkpoint.state.step));
    let beside = parent.join(format!(".step-{}.part", checkpoint.state.step));
    let failed = |e: std::io::Error| Error::file(&place, format!("cannot be written: {e}"));
    remove_if_there(&beside).map_err(failed)?;
    fs::create_dir_all(&beside).map_err(failed)?;
    let write = || -> Result<()> {
        adapter_file::save(&beside, config, modules, &checkpoint.adapter)?;
        write_atomically(&beside.join(OPTIMIZER), &serialize_moments(&beside, modules, &checkpoint.moments)?)?;
        let state = serde_json::to_string_pretty(&checkpoint.state).map_err(|e| Error::file(&place, e))?;
        write_atomically(&beside.join(STATE), state.as_bytes())?;
        remove_if_there(&place).map_err(failed)?;
        fs::rename(&beside, &place).map_err(failed)?;
        sync_directory(&parent).map_err(failed)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_dir_all(&beside);
    })?;
    let mut steps = steps_in(out);
    steps.reverse();
    for step in steps.into_iter().skip(keep.max(1)) {
        let old = parent.join(format!("step-{step}"));
        // Renamed first: a checkpoint that has its name is whole, also where its removal is cut short.
        let leaving = parent.join(format!(".step-{step}.part"));
        let removed = remove_if_there(&leaving)
            .and_then(|()| fs::rename(&old, &leaving))
            .and_then(|()| fs::remove_dir_all(&leaving));
        removed.map_err(|e| Error::file(&old, format!("cannot be removed: {e}")))?;
    }
    Ok(place)
}

/// Removes what saves and removals that were cut short have left.
pub fn remove_parts(out: &Path) -> Result<()> {
    for entry in fs::read_dir(directory(out)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(".step-") && name.ends_with(".part")) {
            let path = entry.path();
            remove_if_there(&path).map_err(|e| Error::file(&path, format!("cannot be removed: {e}")))?;
        }
    }
    Ok(())
}

fn remove_if_there(dir: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A rename is on disk once its directory is; Windows has no such call and needs none.
fn sync_directory(dir: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

fn serialize_moments(path: &Path, modules: &[LoraModule], moments: &Moments) -> Result<Vec<u8>> {
    let mut views = Vec::new();
    for (moment, tensors) in [("exp_avg", &moments.first), ("exp_avg_sq", &moments.second)] {
        for (module, (a, b)) in modules.iter().zip(&tensors.tensors) {
            for (factor, values) in [("lora_A", a), ("lora_B", b)] {
                let name = format!("{}.{factor}.{moment}", module.name());
                let view = TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values));
                views.push((name, view.map_err(|e| Error::file(path, e))?));
            }
        }
    }
    serialize(views, None).map_err(|e| Error::file(path, e))
}

/// The steps of the whole checkpoints below `out`, ascending.
fn steps_in(out: &Path) -> Vec<usize> {
    let entries = fs::read_dir(directory(out)).into_iter().flatten().flatten();
    let step = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<usize> = entries.filter_map(step).collect();
    steps.sort_unstable();
    steps
}

/// The newest checkpoint below `out`, if there is one.
pub fn newest(out: &Path) -> Option<PathBuf> {
    steps_in(out).last().map(|step| directory(out).join(format!("step-{step}")))
}

/// Reads a checkpoint directory, whose modules must be `modules`.
pub fn load(dir: &Path, model: &ModelConfig, modules: &[LoraModule]) -> Result<Checkpoint> {
    let (_, found, adapter) = adapter_file::load(dir, model)?;
    if found != modules {
        let problem = "adapts other modules, or with other ranks, than the settings of this run";
        return Err(Error::file(dir, problem));
    }
    let path = dir.join(STATE);
    let text = fs::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    let state = serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("is damaged: {e}")))?;
    let path = dir.join(OPTIMIZER);
    let bytes = fs::read(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    let file =
        safetensors::SafeTensors::deserialize(&bytes).map_err(|e| Error::file(&path, format!("is damaged: {e}")))?;
    let read = |moment: &str| -> Result<AdapterTensors> {
        let factor = |module: &LoraModule, factor: &str, length: usize| -> Result<Vec<f32>> {
            let name = format!("{}.{factor}.{moment}", module.name());
            let tensor = file.tensor(&name).map_err(|_| Error::field(&path, &name, "is missing"))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [length] {
                let problem = format!("is {:?} {:?}, not F32 [{length}]", tensor.dtype(), tensor.shape());
                return Err(Error::field(&path, &name, problem));
            }
            Ok(bytemuck::pod_collect_to_vec(tensor.data()))
        };
        let pair = |(module, (a, b)): (&LoraModule, &(Vec<f32>, Vec<f32>))| {
            Ok((factor(module, "lora_A", a.len())?, factor(module, "lora_B", b.len())?))
        };
        Ok(AdapterTensors { tensors: modules.iter().zip(&adapter.tensors).map(pair).collect::<Result<_>>()? })
    };
    let moments = Moments { first: read("exp_avg")?, second: read("exp_avg_sq")? };
    Ok(Checkpoint { state, adapter, moments })
}
