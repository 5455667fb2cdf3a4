//! `loraine info`.

use std::path::{Path, PathBuf};

use clap::Args;
use loraine::gpu::{AdapterSummary, adapters, preferred};
use loraine::hub::fetch::Extent;
use loraine::memory::summary::{ModelSummary, describe};
use serde::Serialize;

use super::show::bytes;

/// List the GPUs of this machine, or describe a model
#[derive(Args)]
#[command(after_help = "Examples:
  loraine info
  loraine info --model models/SmolLM2-135M --json")]
pub struct InfoArgs {
    /// Model to describe: a directory, or owner/name on the hub
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Info {
    gpus: Vec<AdapterSummary>,
    /// Index of the default GPU.
    default_gpu: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<Cache>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelSummary>,
}

/// The cache of 4-bit copies of large models.
#[derive(Serialize)]
struct Cache {
    dir: PathBuf,
    bytes: u64,
    copies: usize,
}

pub fn run(args: InfoArgs) -> anyhow::Result<()> {
    let describe = |model: &Path| {
        Ok::<_, anyhow::Error>(describe(&super::args::model::model_directory(model, Extent::Everything)?)?)
    };
    let model = args.model.as_deref().map(describe).transpose()?;
    let gpus = pollster::block_on(adapters());
    let default_gpu = preferred(&gpus);
    let cache = super::cache::summary().map(|(dir, bytes, copies)| Cache { dir, bytes, copies });
    let info = Info { gpus, default_gpu, cache, model };
    if args.json {
        out!("{}", serde_json::to_string_pretty(&info)?);
        return Ok(());
    }
    if info.gpus.is_empty() {
        out!(
            "no GPU was found: install a Vulkan, Metal or DX12 driver (`scripts/setup vulkan` for a software adapter)"
        );
    }
    for gpu in &info.gpus {
        print_gpu(gpu, info.default_gpu == Some(gpu.index));
    }
    if let Some(Cache { dir, bytes: size, copies }) = &info.cache {
        out!("cache: {}, {} in {copies} 4-bit copies (loraine cache)", dir.display(), bytes(*size));
    }
    if let Some(model) = &info.model {
        print_model(model);
    }
    Ok(())
}

pub fn print_gpu(gpu: &AdapterSummary, default: bool) {
    let mark = if default { "  (default)" } else { "" };
    out!("{}: {}{mark}", gpu.index, gpu.name);
    out!("   type        {} on {}", gpu.kind, gpu.backend);
    out!("   driver      {} {}", gpu.driver, gpu.driver_info);
    out!(
        "   limits      {} a binding, {} a buffer, {} workgroup memory, {} invocations",
        bytes(gpu.max_binding_bytes),
        bytes(gpu.max_buffer_bytes),
        bytes(u64::from(gpu.workgroup_memory_bytes)),
        gpu.max_invocations
    );
    let features = [
        (gpu.subgroups, format!("subgroups of {} to {}", gpu.subgroup_sizes[0], gpu.subgroup_sizes[1])),
        (gpu.shader_f16, "f16".to_owned()),
        (gpu.timestamps, "timestamps".to_owned()),
        (
            gpu.cooperative_matrix.is_some(),
            format!("cooperative matrices of {}", gpu.cooperative_matrix.map_or(0, |matrix| matrix.side)),
        ),
    ];
    let present: Vec<String> = features.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
    out!("   features    {}", if present.is_empty() { "none".to_owned() } else { present.join(", ") });
}

fn print_model(model: &ModelSummary) {
    out!("model: {}", model.path.display());
    out!(
        "   family      {} ({} layers, hidden {}, feed-forward {})",
        model.family,
        model.layers,
        model.hidden_size,
        model.intermediate_size
    );
    out!("   attention   {} heads of {}, {} for keys and values", model.heads, model.head_dim, model.kv_heads);
    out!("   vocabulary  {}{}", model.vocabulary, if model.tied_head { ", head tied to the embedding" } else { "" });
    out!("   context     {} tokens", model.context);
    out!("   parameters  {}", model.parameters);
    out!(
        "   base        {} as stored ({}), {} in NF4",
        bytes(model.stored_bytes),
        model.dtypes.join(", "),
        bytes(model.nf4_bytes)
    );
}
