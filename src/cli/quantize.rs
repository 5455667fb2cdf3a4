//! `loraine quantize`.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use loraine::export::DEFAULT_SHARD_BYTES;
use loraine::export::quantize::{QuantizeSettings, quantize};
use loraine::hub::fetch::Extent;
use loraine::quant::format::Code4;
use serde_json::json;

use super::next_command::after_export;
use super::show::bytes;

/// Write a model in bitsandbytes' 4-bit format, which transformers and loraine load
#[derive(Args)]
#[command(after_help = "Example:
  loraine quantize --model models/SmolLM2-135M --out models/SmolLM2-135M-nf4")]
pub struct QuantizeArgs {
    /// Hugging Face model directory, GGUF file, or owner/name on the hub (config.json, tokenizer.json, safetensors)
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Directory for the quantized model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// 4-bit code
    #[arg(long, value_enum, default_value_t)]
    quant: Code4,
    /// Keep the block scales in f32 instead of quantizing them too
    #[arg(long)]
    no_double_quant: bool,
    /// Replace an existing model in the output directory
    #[arg(long)]
    overwrite: bool,
    /// Largest weights file; larger models are split into shards [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = super::show::parse_bytes)]
    max_shard_size: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(mut args: QuantizeArgs) -> anyhow::Result<()> {
    args.model = super::args::model::model_directory(&args.model, Extent::Everything)?;
    let settings = QuantizeSettings {
        model: args.model,
        out: args.out,
        format: args.quant.format(!args.no_double_quant),
        overwrite: args.overwrite,
        shard_bytes: args.max_shard_size.unwrap_or(DEFAULT_SHARD_BYTES),
    };
    let bar = ProgressBar::new(0);
    let made = quantize(&settings, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let made = made?;
    if args.json {
        let report = json!({
            "out": settings.out, "matrices": made.matrices, "bytes_before": made.before, "bytes_after": made.after,
        });
        out!("{report}");
        return Ok(());
    }
    out!("{} matrices in 4 bits: {} instead of {}", made.matrices, bytes(made.after), bytes(made.before));
    out!("model   {}", settings.out.display());
    out!("try it: {}", after_export(&settings.out));
    Ok(())
}
