//! `loraine merge`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use loraine::data::tokenizer::Tokenizer;
use loraine::export::DEFAULT_SHARD_BYTES;
use loraine::export::gguf_merge::{self, GgufFloat, GgufMergeSettings};
use loraine::export::merge::{MergeSettings, compare, merge};
use loraine::hub::fetch::Extent;
use loraine::model::companions;
use loraine::model::config::ModelConfig;
use loraine::quant::format::Float;
use serde_json::json;

use super::args::adapter::adapter_directory;
use super::args::gpu::GpuArgs;
use super::next_command::after_export;
use super::show::shell_word;

/// Merge an adapter into its base and write a model directory, or a GGUF file, that needs no adapter
#[derive(Args)]
#[command(after_help = "Example:
  loraine merge --model models/SmolLM2-135M --adapter run --out merged
  loraine merge --model models/SmolLM2-135M --adapter run --out merged.gguf --gguf --dtype q8_0")]
pub struct MergeArgs {
    /// The base that the adapter was trained on, in 16 or 32 bits or quantized by bitsandbytes: a directory, a GGUF file, or owner/name on the hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter directory, a zip file of one, or owner/name on the hub
    #[arg(long, value_name = "DIR|ZIP")]
    adapter: PathBuf,
    /// Directory for the merged model, or with --gguf a file
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,
    /// Write one GGUF file for llama.cpp, Ollama and LM Studio. Of a GGUF base, what is not merged is copied as it is
    #[arg(long, conflicts_with = "max_shard_size")]
    gguf: bool,
    /// Type of the merged weights; q8_0 and q4_0 with --gguf [default: type of the base, with --gguf f16]
    #[arg(long, value_enum)]
    dtype: Option<GgufFloat>,
    /// Prompt for comparing the logits of the merged model with those of base and adapter
    #[arg(long, value_name = "TEXT", default_value = "Once upon a time")]
    prompt: String,
    /// Replace an existing model in the output directory
    #[arg(long)]
    overwrite: bool,
    /// Largest weights file; larger models are split into shards [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = super::show::parse_bytes)]
    max_shard_size: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gpu: GpuArgs,
}

pub fn run(mut args: MergeArgs) -> anyhow::Result<()> {
    args.model = super::args::model::model_directory(&args.model, Extent::Everything)?;
    let adapter = adapter_directory(&args.adapter)?;
    if args.gguf {
        let settings = GgufMergeSettings {
            model: args.model.clone(),
            adapter: adapter.dir.clone(),
            out: args.out.clone(),
            float: args.dtype.unwrap_or_default(),
            overwrite: args.overwrite,
        };
        return into_gguf(&args, &settings);
    }
    let settings = MergeSettings {
        model: args.model,
        adapter: adapter.dir.clone(),
        out: args.out,
        float: args.dtype.map(float).transpose()?,
        overwrite: args.overwrite,
        shard_bytes: args.max_shard_size.unwrap_or(DEFAULT_SHARD_BYTES),
    };
    let prompt = prompt(&settings.model, &args.prompt)?;
    let gpu = args.gpu.open()?;
    let bar = ProgressBar::new(0);
    let merged = pollster::block_on(merge(&settings, &gpu, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    }));
    bar.finish_and_clear();
    let merged = merged?;
    let error = pollster::block_on(compare(&settings, [gpu, args.gpu.open()?], &prompt))
        .context("the merged model was written, but could not be compared")?;
    let dtype = merged.float.name();
    if args.json {
        let report = json!({
            "out": settings.out, "matrices": merged.matrices, "dtype": dtype, "dequantized": merged.dequantized,
            "relative_logit_error": error,
        });
        out!("{report}");
        return Ok(());
    }
    out!("{} matrices merged, all weights saved as {dtype}", merged.matrices);
    if merged.dequantized {
        out!(
            "the base was in 4 bits and was decoded first: the merged weights are those that the adapter was trained on, at \
             full size; merging into the original 16-bit weights gives others"
        );
    }
    out!("logits  {error:.1e} from those of base and adapter (relative)");
    out!("model   {}", settings.out.display());
    out!("try it: {}", after_export(&settings.out));
    Ok(())
}

/// The tokens of the text after which logits are compared.
fn prompt(model: &Path, text: &str) -> anyhow::Result<Vec<u32>> {
    let config = ModelConfig::from_dir(model)?;
    let prompt = match ["tokenizer.json", "tokenizer.model"].iter().any(|name| companions::is_file(&model.join(name))) {
        true => Tokenizer::from_dir(model, &config)?.encode(text, true)?,
        false => (1..9).map(|id| id % config.vocab_size as u32).collect(),
    };
    anyhow::ensure!(!prompt.is_empty(), "--prompt is empty; give some text to compare logits after");
    Ok(prompt)
}

/// The type of the weights in a model directory.
fn float(dtype: GgufFloat) -> anyhow::Result<Float> {
    Ok(match dtype {
        GgufFloat::F32 => Float::F32,
        GgufFloat::F16 => Float::F16,
        GgufFloat::Bf16 => Float::Bf16,
        GgufFloat::Q8_0 | GgufFloat::Q4_0 => {
            anyhow::bail!("--dtype {} is a type of GGUF files; give --gguf too", dtype.name().to_lowercase())
        }
    })
}

fn into_gguf(args: &MergeArgs, settings: &GgufMergeSettings) -> anyhow::Result<()> {
    let prompt = prompt(&settings.model, &args.prompt)?;
    let gpu = args.gpu.open()?;
    let bar = ProgressBar::new(0);
    let merged = pollster::block_on(gguf_merge::merge(settings, &gpu, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    }));
    bar.finish_and_clear();
    let merged = merged?;
    let written = MergeSettings {
        model: settings.model.clone(),
        adapter: settings.adapter.clone(),
        out: settings.out.clone(),
        float: None,
        overwrite: false,
        shard_bytes: DEFAULT_SHARD_BYTES,
    };
    let error = pollster::block_on(compare(&written, [gpu, args.gpu.open()?], &prompt))
        .context("the merged model was written, but could not be compared")?;
    if args.json {
        let report = json!({
            "out": settings.out, "matrices": merged.matrices, "copied": merged.copied, "dtype": settings.float.name(),
            "modelfile": merged.modelfile, "relative_logit_error": error,
        });
        out!("{report}");
        return Ok(());
    }
    match merged.copied {
        0 => out!("{} matrices merged, all matrices saved as {}", merged.matrices, settings.float.name()),
        copied => out!(
            "{} matrices merged and saved as {}, {copied} tensors copied as they are",
            merged.matrices,
            settings.float.name()
        ),
    }
    out!("logits  {error:.1e} from those of base and adapter (relative)");
    out!("model   {}", settings.out.display());
    if let Some(modelfile) = &merged.modelfile {
        out!("Ollama: ollama create NAME -f {}", shell_word(modelfile));
    }
    out!("try it: {}", after_export(&settings.out));
    Ok(())
}
