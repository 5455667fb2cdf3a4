//! `loraine eval`.

use std::path::PathBuf;

use clap::Args;
use loraine::hub::fetch::Extent;
use loraine::setting::{as_flag, written};
use loraine::train::evaluate::{self, EvalSettings, StudentSettings};
use loraine::train::event::Event;
use loraine::train::settings::RunSettings;

use super::args::adapter::adapter_directory;
use super::args::base::BaseArgs;
use super::args::data::{DataArgs, SPLITS_OF_EVALUATION, data_sources};
use super::args::device::DeviceArgs;
use super::args::objective::ObjectiveArgs;
use super::ranks::Ranks;
use super::status::StatusLine;

/// Compute loss and perplexity of a model on a data set, with or without an adapter
#[derive(Args)]
#[command(after_help = "Examples:
  loraine eval --model models/SmolLM2-135M --data data/
  loraine eval --model models/SmolLM2-135M --adapter runs/a --data held_out.jsonl --json
  loraine eval --model models/SmolLM2-135M --data held_out.jsonl --gpu 0,1")]
pub struct EvalArgs {
    /// Model directory, or owner/name on the hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter directory, a zip file of one, or owner/name on the hub
    #[arg(long, value_name = "DIR|ZIP")]
    adapter: Option<PathBuf>,
    /// Data: .jsonl, .json, .csv, .tsv, .parquet or .txt, also as .gz or .zst, a directory (test.*, else validation.*), or owner/name
    /// on the hub; may be given several times
    #[arg(long, value_name = "FILE|DIR|NAME", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    base: BaseArgs,
    /// Examples per batch
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Longest sequence in tokens [default: 512, or the model's limit]
    #[arg(long)]
    max_seq_len: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    objective: ObjectiveArgs,
    #[command(flatten)]
    data_format: DataArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(mut args: EvalArgs) -> anyhow::Result<()> {
    let ranks = Ranks::of(&args.device.gpu)?;
    // The other processes of several are silent.
    let mut status = StatusLine::new(!ranks.is_first());
    args.model = super::args::model::model_directory(&args.model, Extent::Everything)?;
    let adapter = args.adapter.as_deref().map(adapter_directory).transpose()?;
    let mut as_run = RunSettings { batch_size: args.batch_size, ..RunSettings::default() };
    args.objective.apply(&mut as_run);
    as_run.check()?;
    let settings = EvalSettings {
        model: args.model,
        adapter: adapter.as_ref().map(|adapter| adapter.dir.clone()),
        data: data_sources(&args.data, SPLITS_OF_EVALUATION)?.into(),
        base: args.base.storage()?,
        batch_size: args.batch_size,
        max_seq_len: args.max_seq_len,
        objective: as_run.objective,
        preference: as_run.objective().preference(),
        student: as_run.teacher.clone().map(|teacher| StudentSettings {
            teacher,
            temperature: as_run.temperature.unwrap_or(1.0),
            hard_label_share: as_run.hard_label_share.unwrap_or(0.0),
        }),
        data_format: args.data_format.settings(0),
    };
    status.phase("reading the model's files and the data", None);
    let mut prepared = evaluate::prepare(settings)?;
    args.device.cache.apply(&mut prepared.source);
    let report = prepared.report.clone();
    if !args.json && ranks.is_first() {
        status.above(|| out!("{}", written(&report.to_string(), as_flag)));
    }
    status.phase(if ranks.count() > 1 { "opening the GPUs" } else { "opening the GPU" }, None);
    let gpus = ranks.open(args.device.tuning())?;
    let listen = |event: Event<'_>| match event {
        Event::Loading { done, total } => status.loading(done, total),
        Event::Phase(phase) => status.work(phase),
        _ => {}
    };
    let result = ranks.evaluate(prepared, gpus, listen)?;
    drop(status);
    ranks.finish();
    let Some(result) = result else { return Ok(()) };
    if args.json {
        let mut result = serde_json::to_value(result)?;
        result["data"] = serde_json::to_value(report)?;
        out!("{result}");
    } else {
        let value = |(name, value): (&String, &f64)| format!("  {name} {value:.3}");
        let values: String = result.values.iter().map(value).collect();
        out!("loss {:.4}{values}  tokens {}", result.loss, result.tokens);
    }
    Ok(())
}
