//! `loraine estimate`.

use std::path::{Path, PathBuf};

use clap::Args;
use loraine::gpu::{Capabilities, Gpu, GpuOptions, MatrixUnits};
use loraine::hub::fetch::Extent;
use loraine::memory::{self, Estimate};
use loraine::model::companions::is_gguf;
use loraine::model::config::ModelConfig;
use loraine::model::shapes;
use loraine::model::source::{Source, stored_embedding};
use loraine::model::tensors::{TensorSpec, tensors};
use loraine::quant::format::Float;
use loraine::train::settings::{Method, ObjectiveChoice, RunSettings};

use super::args::base::Quant4;
use super::args::memory::MemoryArgs;
use super::memory_bar;
use super::show::bytes;

/// Estimate the GPU memory of a training run before anything is downloaded
#[derive(Args)]
#[command(after_help = "Examples:
  loraine estimate
  loraine estimate --model llama-2-7b --batch-size 1 --gpu-memory 12GB --svg memory.svg
  loraine estimate --model models/SmolLM2-135M --max-seq-len 2048 --json")]
pub struct EstimateArgs {
    /// Model directory, GGUF file, config.json, or the name of a published model such as llama-3.2-1b [default: a table of all]
    #[arg(long, value_name = "DIR|FILE|NAME")]
    model: Option<String>,
    /// Method [default: full, lora and qlora side by side]
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// 4-bit code of the base, or keep for the packed blocks of a GGUF file as they are
    #[arg(long, value_enum, default_value_t)]
    quant: Quant4,
    /// Keep the 4-bit block scales in f32 instead of quantizing them too
    #[arg(long)]
    no_double_quant: bool,
    /// LoRA rank
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// all-linear, names separated by commas, or a regular expression
    #[arg(long, default_value = "all-linear")]
    target_modules: String,
    /// DoRA: a magnitude of each output beside the factors
    #[arg(long)]
    use_dora: bool,
    /// Objective: examples of a preference objective are two sequences, and a teacher's are 64 tokens at each position
    #[arg(long, value_enum, default_value = "sft")]
    objective: ObjectiveChoice,
    /// Examples per micro-batch
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Longest sequence in tokens
    #[arg(long, default_value_t = 512)]
    max_seq_len: usize,
    /// GPUs that train together; --method full shares out AdamW's moments, and the estimate is that of the fullest
    #[arg(long, default_value_t = 1)]
    world_size: usize,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Use the limits of this GPU instead of those of a typical card
    #[arg(long, value_name = "NAME|INDEX")]
    gpu: Option<String>,
    /// Estimate a run with --matrix-units on, which takes more memory
    #[arg(long, value_enum, default_value = "off", env = "LORAINE_MATRIX_UNITS")]
    matrix_units: MatrixUnits,
    /// Draw the bars into this SVG file
    #[arg(long, value_name = "FILE", requires = "model")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Returns the model's configuration and the type of its files; bf16 where there are no files.
pub fn model(argument: &str) -> anyhow::Result<(ModelConfig, Float)> {
    let path = Path::new(argument);
    let path = &*match shapes::by_name(argument) {
        Ok(config) => return Ok((config, Float::Bf16)),
        // A word is a name, and a name with an owner a model of the hub.
        Err(problem) if !path.exists() && path.components().count() == 1 => return Err(problem.into()),
        Err(_) => super::args::model::model_directory(path, Extent::Config).map_err(|error| {
            match shapes::nearest(argument) {
                Some(known) => anyhow::anyhow!("{error:#}; --model {known} needs no network"),
                None => error,
            }
        })?,
    };
    if path.is_dir() || is_gguf(path) {
        return Ok((ModelConfig::from_dir(path)?, stored_embedding(path).unwrap_or(Float::Bf16)));
    }
    if path.is_file() {
        return Ok((ModelConfig::from_file(path)?, Float::Bf16));
    }
    Ok((shapes::by_name(argument)?, Float::Bf16))
}

/// Returns the configuration of a GGUF file whose blocks are kept, and the type of its other matrices.
fn kept(argument: &str) -> anyhow::Result<(ModelConfig, Float)> {
    let path = Path::new(argument);
    let is_file = is_gguf(path) && path.is_file();
    let of_files = is_file || path.is_dir() && ModelConfig::from_dir(path)?.may_be_in_blocks();
    anyhow::ensure!(of_files, "--quant keep is for a GGUF file, or a directory in MXFP4, but {argument} is neither");
    let mut source = Source::open(path)?;
    source.keep_blocks()?;
    let floats = tensors(&source.config).into_iter().filter(TensorSpec::is_matrix);
    let mut floats = floats.filter(|spec| !source.config.quantized.contains_key(&spec.name));
    let float = floats.next().map_or(Float::F32, |spec| source.stored(&spec.name));
    Ok((source.config, float))
}

pub fn run(args: EstimateArgs) -> anyhow::Result<()> {
    let matrix_units = args.matrix_units;
    let capabilities = match &args.gpu {
        None => memory::assumed_target(matrix_units),
        Some(gpu) => {
            let options = GpuOptions { adapter: Some(gpu.clone()), matrix_units, ..Default::default() };
            pollster::block_on(Gpu::open(&options))?.capabilities
        }
    };
    let keeps = matches!(args.quant, Quant4::Keep);
    let Some(name) = &args.model else {
        anyhow::ensure!(!keeps, "--quant keep is for a GGUF file, or a directory in MXFP4; give it as --model");
        return print_table(&args, capabilities);
    };
    let whole = model(name)?;
    let kept = keeps.then(|| kept(name)).transpose()?;
    let estimates = estimates(&args, &whole, kept.as_ref().unwrap_or(&whole), capabilities)?;
    if let Some(path) = &args.svg {
        let named: Vec<_> = estimates.iter().map(|estimate| (method_name(estimate.method), estimate)).collect();
        let title = format!("{name}: batch {} of {} tokens, rank {}", args.batch_size, args.max_seq_len, args.rank);
        let picture = memory::picture::svg(&title, &named, args.memory.gpu_memory);
        loraine::files::write_atomically(path, picture.as_bytes())?;
    }
    if args.json {
        out!("{}", serde_json::to_string_pretty(&estimates)?);
        return Ok(());
    }
    out!("{name}: batch {} of {} tokens, rank {}", args.batch_size, args.max_seq_len, args.rank);
    for estimate in &estimates {
        print(estimate, args.memory.gpu_memory);
    }
    Ok(())
}

/// Returns the estimate of the chosen method, or of all methods, the largest first. QLoRA's base has a configuration of its own.
fn estimates(
    args: &EstimateArgs,
    whole: &(ModelConfig, Float),
    qlora: &(ModelConfig, Float),
    capabilities: Capabilities,
) -> anyhow::Result<Vec<Estimate>> {
    let mut methods = args.method.map_or(vec![Method::Full, Method::Lora, Method::Qlora], |method| vec![method]);
    if args.method.is_none() && whole.0.frozen_parts().is_some() {
        // Experts are not trained themselves.
        methods.retain(|method| *method != Method::Full);
    }
    let estimate = |method| {
        let mut settings = RunSettings {
            method,
            objective: args.objective,
            double_quant: !args.no_double_quant,
            rank: args.rank,
            target_modules: args.target_modules.clone(),
            use_dora: args.use_dora,
            batch_size: args.batch_size,
            world_size: Some(args.world_size),
            max_seq_len: Some(args.max_seq_len),
            ..RunSettings::default()
        };
        args.memory.apply(&mut settings);
        // Side by side, each method uses the flags that apply to it.
        let applies = method == Method::Qlora || args.method.is_some();
        settings.quantize_embedding &= applies;
        if applies {
            args.quant.apply(&mut settings);
        }
        settings.check()?;
        let (config, float) = if method == Method::Qlora { qlora } else { whole };
        Ok(memory::estimate(&settings, config, *float, args.max_seq_len, capabilities)?)
    };
    methods.into_iter().map(estimate).collect()
}

/// Prints a table of all named models with the memory of each method.
fn print_table(args: &EstimateArgs, capabilities: Capabilities) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for name in shapes::names() {
        let model = (shapes::by_name(name)?, Float::Bf16);
        rows.push((name, estimates(args, &model, &model, capabilities)?));
    }
    if args.json {
        let object: serde_json::Map<_, _> = rows
            .iter()
            .map(|(name, estimates)| Ok(((*name).to_owned(), serde_json::to_value(estimates)?)))
            .collect::<serde_json::Result<_>>()?;
        out!("{}", serde_json::to_string_pretty(&object)?);
        return Ok(());
    }
    out!("batch {} of {} tokens, rank {}", args.batch_size, args.max_seq_len, args.rank);
    let Some((_, first)) = rows.first() else { return Ok(()) };
    let heads: String = first.iter().map(|estimate| format!(" {:>22}", method_name(estimate.method))).collect();
    out!("{:<16}{heads}", "model");
    for (name, estimates) in &rows {
        let cell = |estimate: &Estimate| {
            let verdict = match estimate.fits {
                Some(true) => " fits",
                Some(false) => "  -  ",
                None => "",
            };
            format!(" {:>22}", format!("{}{verdict}", bytes(estimate.total)))
        };
        // A model with experts has no figure for full training, the first column.
        let blank = " ".repeat(23 * first.len().saturating_sub(estimates.len()));
        out!("{name:<16}{blank}{}", estimates.iter().map(cell).collect::<String>());
    }
    Ok(())
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Full => "full, f32",
        Method::Lora => "LoRA, 16-bit base",
        Method::Qlora => "QLoRA",
    }
}

fn print(estimate: &Estimate, card: Option<u64>) {
    let name = method_name(estimate.method);
    out!("\n{name}: {} for {} trained parameters", bytes(estimate.total), estimate.trained_parameters);
    for (category, count) in &estimate.categories {
        out!("  {} {:<22} {:>9}", memory_bar::letter(*category), category.name(), bytes(*count));
    }
    if estimate.kept_layers < estimate.layers {
        let recomputed = estimate.layers - estimate.kept_layers;
        out!("  {recomputed} of {} layers recompute their activations", estimate.layers);
    }
    if estimate.bf16_activations {
        out!("  activations are kept in bf16");
    }
    let whole = card.unwrap_or(estimate.total).max(estimate.total);
    out!("  {}", memory_bar::drawn(&estimate.categories, whole));
    if let (Some(card), Some(fits)) = (card, estimate.fits) {
        let longest = match estimate.longest_seq_len.unwrap_or(0) {
            0 => "not even one token fits".to_owned(),
            length => format!("sequences of up to {length} tokens fit"),
        };
        out!("  {} into {}; {longest}", if fits { "fits" } else { "does not fit" }, bytes(card));
    }
}
