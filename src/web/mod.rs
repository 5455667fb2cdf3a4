//! The interface for browser pages, as thin as the command line: it mounts files, calls the library and passes events on. It runs in
//! one worker and blocks only for reads of mounted files.

mod errors;
mod generator;
mod lesson;
mod report;
mod run;

use std::cell::Cell;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use js_sys::{Function, Uint8Array};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wasm_bindgen::prelude::*;

use crate::data::inspect;
use crate::data::settings::DataSettings;
use crate::data::tokenizer::Tokenizer;
use crate::export::gguf_adapter::{self, AdapterSettings};
use crate::export::gguf_merge::{self, GgufFloat, GgufMergeSettings};
use crate::files::{self, File, mounted};
use crate::gpu::{self, Capabilities, Gpu, GpuOptions, MatrixUnits, Tune, TuneOptions};
use crate::memory;
use crate::memory::summary;
use crate::model::config::ModelConfig;
use crate::model::source::stored_embedding;
use crate::quant::format::Float;
use crate::train::prepare::{prepare, seq_len_within};
use crate::train::settings::RunSettings;
use crate::{Error, Result};

thread_local! {
    /// Capabilities of the adapter that [`adapter`] found; plans before that assume a common GPU.
    static TARGET: Cell<Capabilities> = const { Cell::new(memory::ASSUMED_CAPABILITIES) };
}

#[wasm_bindgen(start)]
fn start() {
    console_error_panic_hook::set_once();
    mounted::set_keeper(Rc::new(|bytes: &[u8]| {
        let kept = Uint8Array::from(bytes);
        Rc::new(move |at: u64, buffer: &mut [u8]| {
            kept.subarray(at as u32, at as u32 + buffer.len() as u32).copy_to(buffer);
            Ok(())
        })
    }));
}

/// Directory for files that the next start can use. A page may store these files and mount them again.
const CACHE: &str = "/cache";

/// Bytes of a file that are on their way to the page at a time.
const READ_BYTES: usize = 1 << 20;

async fn open_gpu() -> Result<Gpu> {
    let tuning = TuneOptions { tune: Tune::Auto, cache: Some(CACHE.into()) };
    Ok(Gpu::open(&GpuOptions { tuning, ..Default::default() }).await?)
}

fn to_js(value: &impl Serialize) -> Result<JsValue, JsValue> {
    value.serialize(&serde_wasm_bindgen::Serializer::new().serialize_maps_as_objects(true)).map_err(JsValue::from)
}

/// Converts a JavaScript value through JSON, which reports unknown keys. `what` names the value in messages.
fn from_js<T: DeserializeOwned>(value: &JsValue, what: &str) -> Result<T> {
    let text = js_sys::JSON::stringify(value).map(String::from).map_err(|e| Error::Argument(errors::text(&e)))?;
    serde_json::from_str(&text).map_err(|e| Error::Argument(format!("{what}: {e}")))
}

/// Stores bytes at an absolute path of the engine's file system and replaces an existing file.
#[wasm_bindgen(js_name = mountBytes)]
pub fn mount_bytes(path: &str, bytes: Vec<u8>) {
    mounted::mount_bytes(Path::new(path), bytes);
}

/// Mounts a file at `path`. `read(offset, length)` provides its bytes on demand and must return synchronously.
#[wasm_bindgen(js_name = mountReader)]
pub fn mount_reader(
    path: &str,
    size: f64,
    #[wasm_bindgen(unchecked_param_type = "(offset: number, length: number) => Uint8Array")] read: Function,
) {
    let range = move |at: u64, buffer: &mut [u8]| {
        let (offset, length) = (JsValue::from(at as f64), JsValue::from(buffer.len() as f64));
        let bytes =
            read.call2(&JsValue::NULL, &offset, &length).map_err(|e| std::io::Error::other(errors::text(&e)))?;
        let bytes: Uint8Array = bytes.dyn_into().map_err(|_| std::io::Error::other("the page gave no bytes"))?;
        if bytes.length() as usize != buffer.len() {
            let problem = format!("the page gave {} bytes instead of {}", bytes.length(), buffer.len());
            return Err(std::io::Error::other(problem));
        }
        bytes.copy_to(buffer);
        Ok(())
    };
    mounted::mount_reader(Path::new(path), size as u64, Rc::new(range));
}

/// Removes a file, or a directory with everything below it. A missing path is not an error.
#[wasm_bindgen]
pub fn unmount(path: &str) -> Result<(), JsValue> {
    let path = Path::new(path);
    files::remove_if_there(path).map_err(|e| errors::to_js(&Error::file(path, e)))
}

/// Lists every file below `dir`, sorted by path.
#[wasm_bindgen(js_name = listFiles, unchecked_return_type = "FileEntry[]")]
pub fn list_files(dir: &str) -> Result<JsValue, JsValue> {
    let entry =
        |(path, bytes): (std::path::PathBuf, u64)| report::FileEntry { path: path.display().to_string(), bytes };
    to_js(&mounted::files_below(Path::new(dir)).into_iter().map(entry).collect::<Vec<_>>())
}

/// Reads a whole file of the engine's file system, such as a saved adapter.
#[wasm_bindgen(js_name = readFile)]
pub fn read_file(path: &str) -> Result<Uint8Array, JsValue> {
    let path = Path::new(path);
    let read = || -> std::io::Result<Uint8Array> {
        let bytes = Uint8Array::new_with_length(u32::try_from(files::len(path)?).map_err(std::io::Error::other)?);
        let (mut file, mut at, mut piece) = (File::open(path)?, 0, vec![0; READ_BYTES.min(bytes.length() as usize)]);
        while at < bytes.length() {
            let length = piece.len().min((bytes.length() - at) as usize);
            file.read_exact(&mut piece[..length])?;
            bytes.subarray(at, at + length as u32).copy_from(&piece[..length]);
            at += length as u32;
        }
        Ok(bytes)
    };
    read().map_err(|e| errors::to_js(&Error::file(path, format!("cannot be read: {e}"))))
}

/// Writes the PEFT adapter in the directory `adapter` as a GGUF file, which llama.cpp loads with `--lora`. `model` is its base.
#[wasm_bindgen(js_name = exportGguf)]
pub fn export_gguf(model: &str, adapter: &str, out: &str) -> Result<(), JsValue> {
    let settings = AdapterSettings { model: model.into(), adapter: adapter.into(), out: out.into(), overwrite: true };
    gguf_adapter::export(&settings).map(|_| ()).map_err(|e| errors::to_js(&e))
}

/// Has the bytes of the file `path` go to `write(offset, bytes)` as the engine writes them, so that a large file takes no memory here.
#[wasm_bindgen(js_name = mountWriter)]
pub fn mount_writer(
    path: &str,
    #[wasm_bindgen(unchecked_param_type = "(offset: number, bytes: Uint8Array) => void")] write: Function,
) {
    let range = move |at: u64, bytes: &[u8]| {
        let written = write.call2(&JsValue::NULL, &JsValue::from(at as f64), &Uint8Array::from(bytes));
        written.map(|_| ()).map_err(|e| std::io::Error::other(errors::text(&e)))
    };
    mounted::mount_writer(Path::new(path), Rc::new(range));
}

/// Forgets the writer of `path` and the file that it has written. A missing path is not an error.
#[wasm_bindgen(js_name = unmountWriter)]
pub fn unmount_writer(path: &str) {
    mounted::unmount_writer(Path::new(path));
}

/// Writes the GGUF file `model` with the PEFT adapter in the directory `adapter` merged into it. Matrices that the adapter changes are
/// stored in 16 bits, all others are copied. `on_progress` receives the number of tensors done and the total.
#[wasm_bindgen(js_name = mergeGguf)]
pub async fn merge_gguf(
    model: String,
    adapter: String,
    out: String,
    #[wasm_bindgen(unchecked_param_type = "(done: number, total: number) => void")] on_progress: Function,
) -> Result<(), JsValue> {
    let settings = GgufMergeSettings {
        model: model.into(),
        adapter: adapter.into(),
        out: out.into(),
        float: GgufFloat::F16,
        overwrite: true,
    };
    let merged = async {
        let gpu = open_gpu().await?;
        let progress = |done: usize, total: usize| {
            let _ = on_progress.call2(&JsValue::NULL, &(done as f64).into(), &(total as f64).into());
        };
        gguf_merge::merge(&settings, &gpu, progress).await
    };
    merged.await.map(|_| ()).map_err(|e| errors::to_js(&e))
}

/// Describes a model directory, or a GGUF file, without reading weights.
#[wasm_bindgen(js_name = describeModel, unchecked_return_type = "ModelSummary")]
pub fn describe_model(dir: &str) -> Result<JsValue, JsValue> {
    to_js(&summary::describe(Path::new(dir)).map_err(|e| errors::to_js(&e))?)
}

/// Returns the settings of a run with the value that each has by default.
#[wasm_bindgen(js_name = defaultSettings, unchecked_return_type = "RunSettings")]
pub fn default_settings() -> Result<JsValue, JsValue> {
    to_js(&RunSettings::default())
}

/// Returns the first `count` examples token by token, and a report on the whole data set.
#[wasm_bindgen(js_name = inspectData, unchecked_return_type = "Inspection")]
pub fn inspect_data(
    #[wasm_bindgen(unchecked_param_type = "Partial<RunSettings>")] settings: JsValue,
    count: usize,
) -> Result<JsValue, JsValue> {
    let inspection = || -> Result<inspect::Inspection> {
        let settings: RunSettings = from_js(&settings, "the settings")?;
        let config = ModelConfig::from_dir(&settings.model)?;
        let tokenizer = Tokenizer::from_dir(&settings.model, &config)?;
        let max_seq_len = seq_len_within(settings.max_seq_len, &config)?;
        let format = DataSettings { max_seq_len, ..settings.data_format };
        inspect::inspect(&settings.data, &tokenizer, &format, config.vocab_size, count)
    };
    to_js(&inspection().map_err(|e| errors::to_js(&e))?)
}

/// Plans a run of these settings and reports everything that would be refused. Reads the model's headers and the data.
#[wasm_bindgen(unchecked_return_type = "PlanReport")]
pub fn plan(
    #[wasm_bindgen(unchecked_param_type = "Partial<RunSettings>")] settings: JsValue,
) -> Result<JsValue, JsValue> {
    let planned = || -> Result<report::PlanReport> {
        let prepared = prepare(from_js(&settings, "the settings")?)?;
        let plan = prepared.plan(TARGET.get())?;
        Ok(report::PlanReport {
            steps: Some(prepared.steps),
            data: Some(prepared.data.clone()),
            ..report::PlanReport::of(
                &plan.ledger(),
                prepared.trained_parameters(),
                prepared.source.config.num_layers,
                plan.recompute.kept_layers,
            )
        })
    };
    to_js(&planned().map_err(|e| errors::to_js(&e))?)
}

/// Estimates a run from `config.json` alone, for full batches of `seq_len` tokens. Fast enough to follow a slider.
#[wasm_bindgen(unchecked_return_type = "PlanReport")]
pub fn estimate(
    #[wasm_bindgen(unchecked_param_type = "Partial<RunSettings>")] settings: JsValue,
    seq_len: usize,
) -> Result<JsValue, JsValue> {
    let estimated = || -> Result<report::PlanReport> {
        let settings: RunSettings = from_js(&settings, "the settings")?;
        settings.check()?;
        let config = ModelConfig::from_dir(&settings.model)?;
        let seq_len = seq_len_within(Some(seq_len), &config)?;
        let float = stored_embedding(&settings.model).unwrap_or(Float::Bf16);
        let estimate = memory::estimate(&settings, &config, float, seq_len, TARGET.get())?;
        Ok(report::PlanReport::of_estimate(&estimate))
    };
    to_js(&estimated().map_err(|e| errors::to_js(&e))?)
}

/// Finds the adapter that runs will use; undefined if the browser has none. Later plans are made for it.
#[wasm_bindgen(unchecked_return_type = "AdapterSummary | undefined")]
pub async fn adapter() -> Result<JsValue, JsValue> {
    let adapters = gpu::adapters().await;
    let chosen = gpu::preferred(&adapters).and_then(|index| adapters.into_iter().find(|a| a.index == index));
    let Some(chosen) = chosen else { return Ok(JsValue::UNDEFINED) };
    TARGET.set(Capabilities::of(&chosen, MatrixUnits::Off));
    to_js(&chosen)
}
