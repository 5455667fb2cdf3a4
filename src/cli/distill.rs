//! `loraine distill`.

use std::path::PathBuf;

use clap::Args;
use loraine::hub::fetch::Extent;
use loraine::ops::distillation::DEFAULT_TOP_K;
use loraine::setting::{as_flag, counted, written};
use loraine::train::distill::{self, AnswerSettings, DistillSettings, Written};
use loraine::train::evaluate::EvalSettings;
use loraine::train::event::Event;
use loraine::train::settings::ObjectiveChoice;

use super::args::adapter::adapter_directory;
use super::args::base::BaseArgs;
use super::args::data::{DataArgs, SPLITS_OF_RUN, data_sources};
use super::args::device::DeviceArgs;
use super::show::bytes;
use super::status::StatusLine;

/// Write a teacher's log-probabilities of a data set, for a student to learn from
#[derive(Args)]
#[command(after_help = "Examples:
  loraine distill --model models/Qwen2.5-7B-Instruct --data data/ --out teacher.safetensors --quant nf4
  loraine train --model models/Qwen2.5-0.5B-Instruct --data data/ --objective distill --teacher teacher.safetensors --out runs/student")]
pub struct DistillArgs {
    /// The teacher: model directory, GGUF file, or owner/name on the hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter of the teacher: a directory, a zip file of one, or owner/name on the hub
    #[arg(long, value_name = "DIR|ZIP")]
    adapter: Option<PathBuf>,
    /// The student's data: .jsonl, .json, .csv, .tsv, .parquet or .txt, also as .gz or .zst, a directory (train.* and validation.*), or
    /// owner/name on the hub; may be given several times
    #[arg(long, value_name = "FILE|DIR|NAME", required = true)]
    data: Vec<PathBuf>,
    /// The file to write, such as teacher.safetensors
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
    /// Likeliest tokens to keep for each trained token
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_TOP_K)]
    top_k: usize,
    #[command(flatten)]
    base: BaseArgs,
    /// Examples per batch
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Longest sequence in tokens, as the student's run has it [default: 512, or the model's limit]
    #[arg(long)]
    max_seq_len: Option<usize>,
    /// Take the log-probabilities from the field `logprobs` of each record, as a server returned them; --model then names the student, of
    /// which only tokenizer and chat template are needed
    #[arg(long, conflicts_with_all = ["adapter", "quant", "no_double_quant", "quantize_embedding"])]
    from_logprobs: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data_format: DataArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(mut args: DistillArgs) -> anyhow::Result<()> {
    if args.from_logprobs {
        return from_logprobs(args);
    }
    let mut status = StatusLine::new(false);
    args.model = super::args::model::model_directory(&args.model, Extent::Everything)?;
    let adapter = args.adapter.as_deref().map(adapter_directory).transpose()?;
    let settings = DistillSettings {
        teacher: EvalSettings {
            model: args.model,
            adapter: adapter.as_ref().map(|adapter| adapter.dir.clone()),
            data: data_sources(&args.data, SPLITS_OF_RUN)?.into(),
            base: args.base.storage()?,
            batch_size: args.batch_size,
            max_seq_len: args.max_seq_len,
            objective: ObjectiveChoice::Sft,
            preference: None,
            student: None,
            data_format: args.data_format.settings(0),
        },
        out: args.out,
        overwrite: args.overwrite,
        top_k: args.top_k,
    };
    status.phase("reading the model's files and the data", None);
    let mut prepared = distill::prepare(settings)?;
    args.device.cache.apply(&mut prepared.teacher.source);
    if !args.json {
        let report = prepared.teacher.report.to_string();
        status.above(|| out!("{}", written(&report, as_flag)));
    }
    status.phase("opening the GPU", None);
    let gpu = args.device.open()?;
    let listen = |event: Event<'_>| match event {
        Event::Loading { done, total } => status.loading(done, total),
        Event::Phase(phase) => status.work(phase),
        _ => {}
    };
    let result = pollster::block_on(prepared.run(gpu, listen))?;
    drop(status);
    show(&result, args.json)
}

fn from_logprobs(args: DistillArgs) -> anyhow::Result<()> {
    let settings = AnswerSettings {
        model: super::args::model::model_directory(&args.model, Extent::Tokenizer)?,
        data: args.data.into(),
        data_format: args.data_format.settings(0),
        out: args.out,
        overwrite: args.overwrite,
        top_k: args.top_k,
    };
    show(&distill::from_answers(&settings)?, args.json)
}

fn show(result: &Written, json: bool) -> anyhow::Result<()> {
    if json {
        out!("{}", serde_json::to_string(result)?);
        return Ok(());
    }
    let (examples, tokens) =
        (counted(result.examples as u64, "example"), counted(result.tokens as u64, "trained token"));
    out!("{tokens} of {examples}, {} likeliest each: {}", result.top_k, bytes(result.bytes));
    let file = result.out.display();
    out!("teacher {file}");
    out!("train a student: loraine train --objective distill --teacher {file} --model STUDENT --data DATA --out RUN");
    Ok(())
}
