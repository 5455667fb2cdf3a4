//! `loraine export`.

use std::path::PathBuf;

use clap::Args;
use loraine::export::gguf_adapter::{AdapterSettings, export};
use loraine::hub::fetch::Extent;
use serde_json::json;

use super::args::adapter::adapter_directory;
use super::show::shell_word;

/// Write an adapter as a GGUF file, which llama.cpp loads with --lora
#[derive(Args)]
#[command(after_help = "Example:
  loraine export --model models/SmolLM2-135M --adapter run --out run.gguf --gguf")]
pub struct ExportArgs {
    /// The base that the adapter was trained on: a directory, a GGUF file, or owner/name on the hub
    #[arg(long, value_name = "DIR|GGUF")]
    model: PathBuf,
    /// PEFT adapter directory, a zip file of one, or owner/name on the hub
    #[arg(long, value_name = "DIR|ZIP")]
    adapter: PathBuf,
    /// File to write, whose name ends in .gguf
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write a GGUF file, the one format so far
    #[arg(long, required = true)]
    gguf: bool,
    /// Replace an existing file
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: ExportArgs) -> anyhow::Result<()> {
    debug_assert!(args.gguf, "clap requires the flag");
    let model = super::args::model::model_directory(&args.model, Extent::Everything)?;
    let adapter = adapter_directory(&args.adapter)?;
    let settings = AdapterSettings { model, adapter: adapter.dir.clone(), out: args.out, overwrite: args.overwrite };
    let made = export(&settings)?;
    if args.json {
        let report = json!({
            "out": settings.out, "matrices": made.matrices, "alpha": made.alpha, "folded": made.folded,
        });
        out!("{report}");
        return Ok(());
    }
    out!("{} matrices, alpha {}", made.matrices, made.alpha);
    if made.folded > 0 {
        out!("{} of them have another scale than alpha / rank, which is in their B", made.folded);
    }
    out!("adapter {}", settings.out.display());
    out!("try it: llama-cli -m BASE.gguf --lora {}", shell_word(&settings.out));
    Ok(())
}
