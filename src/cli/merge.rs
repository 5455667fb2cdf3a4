//! `loraine merge`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use loraine::data::tokenizer::Tokenizer;
use loraine::export::DEFAULT_SHARD_BYTES;
use loraine::export::merge::{MergeSettings, compare, merge};
use loraine::hub::fetch::Extent;
use loraine::model::companions;
use loraine::model::config::ModelConfig;
use loraine::quant::format::Float;
use serde_json::json;

use super::args::adapter::adapter_directory;
use super::args::gpu::GpuArgs;
use super::next_command::after_export;

/// Merge an adapter into its base and write a model directory that needs no adapter
#[derive(Args)]
#[command(after_help = "Example:
  loraine merge --model models/SmolLM2-135M --adapter run --out merged")]
pub struct MergeArgs {
    /// The base that the adapter was trained on, in 16 or 32 bits or quantized by bitsandbytes: a directory, or owner/name on the hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter directory, a zip file of one, or owner/name on the hub
    #[arg(long, value_name = "DIR|ZIP")]
    adapter: PathBuf,
    /// Directory for the merged model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the merged weights [default: type of the base]
    #[arg(long, value_enum)]
    dtype: Option<Float>,
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
    let settings = MergeSettings {
        model: args.model,
        adapter: adapter.dir.clone(),
        out: args.out,
        float: args.dtype,
        overwrite: args.overwrite,
        shard_bytes: args.max_shard_size.unwrap_or(DEFAULT_SHARD_BYTES),
    };
    let config = ModelConfig::from_dir(&settings.model)?;
    let prompt = match ["tokenizer.json", "tokenizer.model"]
        .iter()
        .any(|name| companions::is_file(&settings.model.join(name)))
    {
        true => Tokenizer::from_dir(&settings.model, &config)?.encode(&args.prompt, true)?,
        false => (1..9).map(|id| id % config.vocab_size as u32).collect(),
    };
    anyhow::ensure!(!prompt.is_empty(), "--prompt is empty; give some text to compare logits after");
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
