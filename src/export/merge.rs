//! An adapter merged into its base: `W + s B A` (Hu et al. 2021) of every adapted matrix, computed on the GPU in f32.

use std::path::{Path, PathBuf};

use super::OutputDirectory;
use super::others::OtherParts;
use super::writer::{ModelWriter, Planned};
use crate::data::settings::home_of_adapter;
use crate::data::template::{ChatTemplate, OWN_FILE};
use crate::data::tokenizer::Tokenizer;
use crate::gpu::{Buffers, Category, Gpu, Matrix, MemoryPlan, Recorder, Scratch, params_bytes};
use crate::infer::generator::Generator;
use crate::infer::plan::{DEFAULT_ROWS_PER_PASS, PlanSettings};
use crate::infer::text_format;
use crate::lora::adapter_file::{self, LoadedAdapter};
use crate::lora::factor::{Factor, transposed};
use crate::lora::factors::AdapterTensors;
use crate::lora::targets::{LoraModule, Place};
use crate::model::config::ModelConfig;
use crate::model::model_directory::{copy_companions, copy_tokenizer, float_bytes, refuse_links, write_config};
use crate::model::source::Source;
use crate::model::tensors::{self, TensorKind, TensorSpec, tensors};
use crate::network::base::BaseStorage;
use crate::ops::weight::Weight;
use crate::ops::weight_gradient;
use crate::quant::format::{Float, Storage};
use crate::setting::DTYPE;
use crate::{Error, Result, files};

/// Settings of a merge.
#[derive(Clone, Debug)]
pub struct MergeSettings {
    /// Directory of the base model.
    pub model: PathBuf,
    /// Directory of the PEFT adapter.
    pub adapter: PathBuf,
    /// Directory to write the merged model to.
    pub out: PathBuf,
    /// Type of the merged weights; by default the type of the base's embedding.
    pub float: Option<Float>,
    /// True to replace a model that `out` holds already.
    pub overwrite: bool,
    /// Largest number of tensor bytes in one file; larger models are split into shards.
    pub shard_bytes: u64,
}

/// Result of a merge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merge {
    /// Number of matrices that the adapter changed.
    pub matrices: usize,
    /// Type of the written weights.
    pub float: Float,
    /// True if the base was stored in 4 bits and was decoded first.
    pub dequantized: bool,
}

/// A base and an adapter that is to be merged into it.
pub(super) struct Merger {
    pub source: Source,
    modules: Vec<LoraModule>,
    adapter: AdapterTensors,
}

impl Merger {
    /// Reads the files of both.
    pub(super) fn open(model: &Path, adapter: &Path) -> Result<Self> {
        let mut source = Source::open(model)?;
        adapter_file::follow_vocabulary(adapter, &mut source)?;
        let LoadedAdapter { modules, tensors, .. } = adapter_file::load_for(adapter, &source)?;
        refuse_new_biases(adapter, &modules, &source.config)?;
        Ok(Self { source, modules, adapter: tensors })
    }

    /// The number of tokens, where the adapter brings more than the base has.
    pub(super) fn grown_vocabulary(&self) -> Option<usize> {
        let config = &self.source.config;
        Some(config.vocab_size).filter(|size| *size > config.vocab_rows)
    }

    /// Number of modules that the adapter changes.
    pub(super) fn matrices(&self) -> usize {
        self.modules.len()
    }

    /// True if embedding and head of the merged model are one matrix.
    pub(super) fn is_tied(&self) -> bool {
        self.source.config.tie_word_embeddings && !unties(&self.modules)
    }

    /// The tensors of the merged model.
    pub(super) fn expected(&self) -> Vec<TensorSpec> {
        let (tie_word_embeddings, vocab_rows) = (self.is_tied(), self.source.config.vocab_size);
        tensors(&ModelConfig { tie_word_embeddings, vocab_rows, ..self.source.config.clone() })
    }

    /// True for a tensor that the adapter changes, or that the base does not have.
    pub(super) fn changes(&self, spec: &TensorSpec) -> bool {
        let has = |place: Place, fits: &dyn Fn(&LoraModule) -> bool| {
            self.modules.iter().any(|module| module.place == place && fits(module))
        };
        let is_bias = |factor: &Factor| matches!(factor, Factor::Bias | Factor::LoraBias);
        let of_weight = |module: &LoraModule| !module.factors.iter().all(is_bias);
        match (spec.kind, spec.layer) {
            (TensorKind::Embedding, _) => has(Place::Embedding, &of_weight),
            (TensorKind::Head, _) => {
                has(Place::Head, &of_weight) || self.is_tied() != self.source.config.tie_word_embeddings
            }
            (TensorKind::Projection(projection), Some(layer)) => has(Place::Layer(layer, projection), &of_weight),
            (TensorKind::Bias(projection), Some(layer)) => {
                has(Place::Layer(layer, projection), &|module| module.factors.iter().any(is_bias))
            }
            _ => false,
        }
    }

    /// The values of a tensor of the merged model.
    pub(super) async fn values(&self, gpu: &Gpu, spec: &TensorSpec) -> Result<Vec<f32>> {
        merged(&self.source, spec, (&self.modules, &self.adapter), gpu).await
    }
}

/// Writes the merged model. `progress` receives the number of tensors done and the total.
///
/// # Errors
/// The model or the adapter cannot be read or they do not fit together, the output directory exists, the disk is full, or the device
/// fails.
pub async fn merge(settings: &MergeSettings, gpu: &Gpu, mut progress: impl FnMut(usize, usize)) -> Result<Merge> {
    let merger = Merger::open(&settings.model, &settings.adapter)?;
    let source = &merger.source;
    refuse_links(&source.dir, false)?;
    let float = settings.float.unwrap_or_else(|| source.stored(tensors::EMBEDDING));
    let out = OutputDirectory::create(&settings.out, &settings.model, settings.overwrite)?;
    let mut expected = merger.expected();
    // The tensors that they are a part of are written as they are.
    expected.retain(|spec| !source.tensors.is_gathered(&spec.name));
    let others = OtherParts::of(source, &expected)?;
    if !source.config.quantized.is_empty() && others.quantized() {
        let problem = "holds parts beside the text decoder in 4 bits, and a merged model is written in full precision; take the \
                       original model in 16 or 32 bits";
        return Err(Error::file(&settings.model, problem));
    }
    let planned = expected.iter().filter_map(|spec| source.tensors.begun_by(&spec.name, &spec.shape));
    let planned =
        planned.map(|(name, shape)| Planned { name: name.to_owned(), dtype: float.dtype(), shape: shape.to_vec() });
    let planned = planned.chain(others.planned()).collect();
    let mut writer = ModelWriter::create(out.path(), planned, settings.shard_bytes)?;
    // The rows of a fused tensor that are done.
    let mut fused = Vec::new();
    for (done, spec) in expected.iter().enumerate() {
        let name = &spec.name;
        let values = merger.values(gpu, spec).await?;
        if float == Float::F16 && values.iter().any(|v| !half::f16::from_f32(*v).is_finite()) {
            let problem = format!("does not fit into f16; save with {} or f32", DTYPE.is("bf16"));
            return Err(Error::field(&settings.model, name, problem));
        }
        let bytes = float_bytes(&values, float);
        match source.tensors.fusion(name) {
            None => writer.write(source.tensors.name_in_files(name), &bytes)?,
            Some(fusion) => {
                fused.extend(bytes);
                if fusion.part + 1 == fusion.parts {
                    writer.write(&fusion.name, &std::mem::take(&mut fused))?;
                }
            }
        }
        progress(done + 1, expected.len());
    }
    others.write(&mut writer)?;
    writer.finish()?;
    copy_companions(&source.dir, out.path())?;
    let texts = text_format::tokenizer_dir(&source.dir, &source.config, std::slice::from_ref(&settings.adapter));
    if texts != source.dir {
        copy_tokenizer(&texts, out.path())?;
    }
    follow_adapter(&settings.adapter, source, out.path())?;
    write_config(&source.dir, out.path(), float, merger.is_tied(), merger.grown_vocabulary())?;
    out.finish()?;
    Ok(Merge { matrices: merger.matrices(), float, dequantized: !source.config.quantized.is_empty() })
}

/// Writes the chat template and the end tokens that the adapter was trained with into the merged model.
fn follow_adapter(adapter: &Path, source: &Source, out: &Path) -> Result<()> {
    let home = home_of_adapter(adapter);
    if !source.has_tokenizer() || !files::is_file(&home.join(OWN_FILE)) {
        return Ok(());
    }
    let texts = text_format::tokenizer_dir(&source.dir, &source.config, &[adapter.to_owned()]);
    let tokenizer = Tokenizer::from_dir(&texts, &source.config)?;
    let template = ChatTemplate::load(&home, None, tokenizer.special_tokens()?)?;
    let ends = text_format::trained_ends(&tokenizer, template.as_ref())?;
    text_format::save(out, &texts, template.as_ref(), &ends)
}

/// A tensor of the merged model: that of the base with what the adapter changes of it.
async fn merged(
    source: &Source,
    spec: &TensorSpec,
    (modules, adapter): (&[LoraModule], &AdapterTensors),
    gpu: &Gpu,
) -> Result<Vec<f32>> {
    let TensorSpec { name, shape, kind, layer } = spec;
    let config = &source.config;
    let place = match (*kind, *layer) {
        (TensorKind::Embedding, _) => Place::Embedding,
        (TensorKind::Head, _) => Place::Head,
        (TensorKind::Projection(projection) | TensorKind::Bias(projection), Some(layer)) => {
            Place::Layer(layer, projection)
        }
        _ => return source.values(name, shape),
    };
    // A tied head becomes one of its own where only one of both changes.
    let stored = if place == Place::Head && config.tie_word_embeddings { tensors::EMBEDDING } else { name };
    let find = |place| modules.iter().position(|module| module.place == place);
    // A vocabulary that grew has no such tensor in the base.
    let whole = find(place).and_then(|at| adapter.modules[at].of(&modules[at], Factor::Whole));
    if let Some(whole) = whole.filter(|_| spec.is_matrix()) {
        return Ok(whole.to_vec());
    }
    let mut values = match *kind {
        // Rows of tokens that the base does not have come from the adapter.
        TensorKind::Embedding | TensorKind::Head => source.values(stored, &[config.vocab_rows, shape[1]])?,
        _ => source.values(stored, shape)?,
    };
    values.resize(shape.iter().product(), 0.0);
    let rows_of = |at: usize| {
        let module = &modules[at];
        adapter.modules[at].of(module, Factor::Rows).map(|rows| (module.tokens.as_slice(), rows))
    };
    // The rows of tokens of a tied embedding are the head's too.
    let shared = || find(Place::Embedding).filter(|_| place == Place::Head && config.tie_word_embeddings);
    let Some(at) = find(place).or_else(|| shared().filter(|at| rows_of(*at).is_some())) else { return Ok(values) };
    let (module, factors) = (&modules[at], &adapter.modules[at]);
    if matches!(kind, TensorKind::Bias(_)) {
        let mut values = factors.of(module, Factor::Bias).map_or(values, <[f32]>::to_vec);
        for (value, of_b) in values.iter_mut().zip(factors.of(module, Factor::LoraBias).unwrap_or_default()) {
            *value += module.scale * of_b;
        }
        return Ok(values);
    }
    if let Some((tokens, rows)) = rows_of(at) {
        for (token, row) in tokens.iter().zip(rows.chunks_exact(shape[1])) {
            values[*token as usize * shape[1]..][..shape[1]].copy_from_slice(row);
        }
    }
    let shape = [shape[0], shape[1]];
    if let (Some(a), Some(b)) = (factors.of(module, Factor::EmbeddingA), factors.of(module, Factor::EmbeddingB)) {
        let b = transposed(b, module.rank);
        return add_product(gpu, &values, shape, module, [&b, a]).await;
    }
    if let Some(b) = factors.of(module, Factor::B) {
        values = add_product(gpu, &values, shape, module, [adapter.a(modules, at), b]).await?;
    }
    if let Some(magnitudes) = factors.of(module, Factor::Magnitude) {
        scale_rows(&mut values, shape[1], magnitudes);
    }
    Ok(values)
}

/// Refuses biases that the merged model would have no tensor for, as PEFT does.
fn refuse_new_biases(adapter: &Path, modules: &[LoraModule], config: &ModelConfig) -> Result<()> {
    let has_bias = |module: &LoraModule| match module.place {
        Place::Layer(_, projection) => config.projection_has_bias(projection),
        Place::Embedding | Place::Head => false,
    };
    let added = modules.iter().find(|module| module.factors.contains(&Factor::LoraBias) && !has_bias(module));
    match added {
        None => Ok(()),
        Some(module) => {
            let problem = format!(
                "has a bias of B (`lora_bias`) at {}, which has no bias in the model to merge it into; use base and adapter side by side",
                module.name()
            );
            Err(Error::file(adapter, problem))
        }
    }
}

/// True if embedding and head of a tied model are no longer one matrix.
fn unties(modules: &[LoraModule]) -> bool {
    let of_vocabulary = |module: &&LoraModule| !matches!(module.place, Place::Layer(..));
    modules.iter().filter(of_vocabulary).any(|module| module.tokens.is_empty() || module.place == Place::Head)
}

/// Computes `W + s B A` on the device with the kernel for weight gradients: `s B^T` takes the place of the output gradients and A
/// that of the inputs.
async fn add_product(
    gpu: &Gpu,
    base: &[f32],
    [rows, cols]: [usize; 2],
    module: &LoraModule,
    [a, b]: [&[f32]; 2],
) -> Result<Vec<f32>> {
    let rank = module.rank;
    let mut memory = MemoryPlan::new();
    let unused = [(); 2].map(|()| memory.alloc(Category::Workspace, "unused binding", 16));
    let scratch = Scratch { weight_panel: unused[0], partials: unused[1] };
    let max_binding = gpu.capabilities.max_binding_bytes.min(gpu.capabilities.max_buffer_bytes);
    let shape = [rows as u32, cols as u32];
    let weight = Weight::plan(&mut memory, "weight", Storage::Float(Float::F32), shape, false, max_binding);
    let left = memory.matrix(Category::Adapter, "s B^T", rank as u32, rows as u32);
    let right = memory.matrix(Category::Adapter, "A", rank as u32, cols as u32);
    let mut rec = Recorder::new(gpu.capabilities, unused[0], unused[1], scratch);
    weight_gradient::add(&mut rec, left, right, &weight, |data| data);
    let uniform = memory.alloc(Category::Uploads, "dispatch parameters", params_bytes(&rec.commands));
    let mut buffers = Buffers::default();
    gpu.allocate(&memory, &mut buffers).await?;
    let transposed: Vec<f32> = (0..rank * rows).map(|i| module.scale * b[i % rows * rank + i / rows]).collect();
    write_matrix(gpu, &buffers, left, &transposed);
    write_matrix(gpu, &buffers, right, a);
    for panel in &weight.panels {
        let part = &base[panel.first_row as usize * cols..][..panel.rows as usize * cols];
        gpu.write(&buffers, panel.data, bytemuck::cast_slice(part));
    }
    let list = gpu.prepare(&rec.commands, &buffers, uniform)?;
    gpu.run(&list, &mut buffers)?;
    let mut merged = Vec::with_capacity(base.len());
    for panel in &weight.panels {
        let values = gpu.read_f32(&buffers, panel.data).await?;
        merged.extend_from_slice(&values[..panel.rows as usize * cols]);
    }
    Ok(merged)
}

/// Gives each row the length of DoRA's magnitude. A row of zeros stays one.
fn scale_rows(values: &mut [f32], cols: usize, magnitudes: &[f32]) {
    for (row, magnitude) in values.chunks_exact_mut(cols).zip(magnitudes) {
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let factor = if norm > 0.0 { f64::from(*magnitude) / norm } else { 0.0 };
        row.iter_mut().for_each(|v| *v = (factor * f64::from(*v)) as f32);
    }
}

fn write_matrix(gpu: &Gpu, buffers: &Buffers, matrix: Matrix, values: &[f32]) {
    let (cols, ld) = (matrix.cols as usize, matrix.ld as usize);
    let mut padded = vec![0.0f32; matrix.rows as usize * ld];
    for (row, values) in padded.chunks_mut(ld).zip(values.chunks(cols)) {
        row[..cols].copy_from_slice(values);
    }
    gpu.write(buffers, matrix.view, bytemuck::cast_slice(&padded));
}

/// Returns the relative difference between the logits after `prompt` of the merged model and of base with adapter: the norm of the
/// difference over the norm of the latter. Only one model is loaded at a time, each on its own device.
///
/// # Errors
/// The device is out of memory or fails.
pub async fn compare(settings: &MergeSettings, gpus: [Gpu; 2], prompt: &[u32]) -> Result<f64> {
    let [first, second] = gpus;
    let separate = logits(&settings.model, Some(&settings.adapter), first, prompt).await?;
    let merged = logits(&settings.out, None, second, prompt).await?;
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut separate.iter().zip(&merged).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    Ok((difference / square(&mut separate.iter().map(|v| f64::from(*v))).max(1e-30)).sqrt())
}

async fn logits(model: &Path, adapter: Option<&Path>, gpu: Gpu, prompt: &[u32]) -> Result<Vec<f32>> {
    let mut source = Source::open(model)?;
    if let Some(adapter) = adapter {
        adapter_file::follow_vocabulary(adapter, &mut source)?;
    }
    let adapters: Vec<LoadedAdapter> =
        adapter.map(|dir| adapter_file::load_for(dir, &source)).transpose()?.into_iter().collect();
    let plan = PlanSettings {
        base: BaseStorage::AsStored,
        max_positions: prompt.len(),
        rows_per_pass: DEFAULT_ROWS_PER_PASS,
        caches: 1,
    };
    let mut generator = Generator::open(gpu, &source, &adapters, &plan, |_, _| ()).await?;
    generator.logits_after(prompt, adapter.map(|_| 0)).await
}
