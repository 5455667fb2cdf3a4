//! `loraine generate`.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use loraine::data::tokenizer::Tokenizer;
use loraine::gpu::Profile;
use loraine::hub::base_name;
use loraine::infer::conversation::Conversation;
use loraine::infer::generator::{Generation, GenerationSettings, Stop};
use loraine::infer::sampler::SamplingSettings;
use loraine::infer::session::{Answer, PreparedSession, Session};
use loraine::infer::text_format::TemplateChoice;
use loraine::model::config::ModelConfig;
use serde_json::json;

use super::args::device::DeviceArgs;
use super::args::session::{self, SessionArgs};
use super::interrupt::{Asking, Interrupt};
use super::show::{bytes, printable, profile_table};

const EXAMPLES: &str = "\
Which adapter answers:
  Without --use, every loaded adapter answers every prompt; with no adapter, the base does.
  One --use holds for all prompts. As many --use as prompts are taken in pairs, in order.
  One prompt with several --use is answered by each in turn.

Examples:
  loraine generate --model DIR --prompt 'Who are you?'
  loraine generate --model DIR --raw --prompt 'Once upon a time' --temperature 0.8 --top-p 0.95
  loraine generate --model DIR --quant nf4 --adapter out/run1 --prompt 'Who are you?' --max-tokens 100
  loraine generate --model DIR --quant nf4 --adapter poet=out/a --adapter clerk=out/b \\
      --prompt 'Dear Sir' --use base --use poet --use clerk
  loraine generate --model DIR --adapter poet=out/a --adapter clerk=out/b \\
      --prompt 'A rose' --use poet --prompt 'An invoice' --use clerk";

/// Answer prompts, or continue texts, with or without adapters
///
/// A model with a chat template answers: the template is applied to each prompt. With --raw, and with a model that has no template,
/// the prompt is continued as it is.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
#[group(id = "prompts", required = true, multiple = true, args = ["prompt", "prompt_file"])]
pub struct GenerateArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Adapter for the answers, or `base`; see below
    #[arg(long = "use", value_name = "NAME")]
    uses: Vec<String>,
    /// Prompt; may be given several times
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    prompt: Vec<String>,
    /// Continue the prompts as they are, without the chat template
    #[arg(long, conflicts_with_all = ["chat_template", "system"], help_heading = "Text")]
    raw: bool,
    /// Chat template: a .jinja or .json file, or a name such as chatml [default: the model's own]
    #[arg(long, value_name = "FILE|NAME", help_heading = "Text")]
    chat_template: Option<String>,
    /// System prompt
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    system: Option<String>,
    /// File with a prompt (without its last line break), `-` for standard input; comes after any --prompt
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    prompt_file: Vec<PathBuf>,
    /// Maximum new tokens of one answer
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Text")]
    max_tokens: usize,
    /// Context: maximum tokens of prompt and answer together [default: enough for the longest, up to the model's limit]
    #[arg(long, value_name = "N", help_heading = "Text")]
    max_context: Option<usize>,
    /// Text that ends an answer and is not part of it; may be given several times
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    stop: Vec<String>,
    /// Continue after the model's end token
    #[arg(long, help_heading = "Text")]
    ignore_eos: bool,
    /// Sampling temperature; 0 always takes the most likely token, so that a command repeats its text
    #[arg(long, value_name = "T", default_value_t = 0.0, help_heading = "Sampling")]
    temperature: f32,
    /// Sample from the K most likely tokens (0 = off)
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    top_k: usize,
    /// Sample from the most likely tokens that together reach probability P (1 = off)
    #[arg(long, value_name = "P", default_value_t = 1.0, help_heading = "Sampling")]
    top_p: f32,
    /// Make repeated tokens less likely (1 = off, 1.1 is mild)
    #[arg(long, value_name = "R", default_value_t = 1.0, help_heading = "Sampling")]
    repetition_penalty: f32,
    /// Seed of the sampling; the same seed repeats the text
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,
    /// Print the answers without the prompts
    #[arg(long, help_heading = "Output")]
    no_echo: bool,
    /// Print one JSON object at the end: texts, token ids, counts and times
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// With --json: also print the logits of the token after each prompt
    #[arg(long, requires = "json", help_heading = "Output")]
    logits: bool,
    /// Print GPU time per operation at the end; slows generation down
    #[arg(long, help_heading = "Output")]
    profile: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// One answer to generate.
struct Job {
    prompt: String,
    ids: Vec<u32>,
    adapter: Option<usize>,
}

pub fn run(args: GenerateArgs) -> Result<()> {
    let sampling = sampling(&args)?;
    let template = match &args.chat_template {
        _ if args.raw => TemplateChoice::Without,
        Some(name) => TemplateChoice::Named(name.clone()),
        None => TemplateChoice::Own,
    };
    let prepared = args.session.prepare(template, &args.device)?;
    ensure!(
        args.system.is_none() || prepared.format.template.is_some(),
        "--system is for conversations, but {} has no chat template; name one with --chat-template",
        prepared.source.dir.display()
    );
    let jobs = jobs(&args, &prepared)?;
    let context = context(&args, prepared.config(), &jobs)?;
    let end_tokens = if args.ignore_eos { Vec::new() } else { prepared.format.end_tokens.clone() };
    let (max_tokens, stop_strings) = (args.max_tokens, args.stop.clone());
    let settings = GenerationSettings { sampling, max_tokens, end_tokens, stop_strings };
    let mut session = session::open(prepared, context, &args.device)?;
    session.generator.profile = args.profile.then(Profile::default);
    let interrupt = Interrupt::watch(Asking::Every, None)?;
    session.generator.cancel = interrupt.flag();
    let result = answer_all(&args, &mut session, &jobs, &settings);
    if let Some(profile) = &session.generator.profile {
        eprint!("{}", profile_table(&profile.shares()));
    }
    match result {
        // A closed pipe (`| head`) is not an error.
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        Ok(()) if interrupt.asked() => Err(interrupt.ended().into()),
        result => result,
    }
}

fn sampling(args: &GenerateArgs) -> Result<SamplingSettings> {
    let settings = SamplingSettings {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: 0.0,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    settings.check()?;
    ensure!(
        settings.temperature > 0.0 || (settings.top_k == 0 && settings.top_p == 1.0),
        "--top-k and --top-p choose among tokens, but the temperature is 0, which always takes the likeliest; \
         give --temperature too, 0.8 for instance"
    );
    Ok(settings)
}

/// Lists the answers to generate: every prompt with every adapter for it.
fn jobs(args: &GenerateArgs, prepared: &PreparedSession) -> Result<Vec<Job>> {
    let adapter_of = |name: &String| prepared.names.index(name).with_context(|| format!("--use {name}"));
    let uses: Vec<Option<usize>> = args.uses.iter().map(adapter_of).collect::<Result<_>>()?;
    let mut prompts = args.prompt.clone();
    for file in &args.prompt_file {
        prompts.push(read_prompt(file)?);
    }
    let all = if prepared.names.is_empty() { vec![None] } else { (0..prepared.names.len()).map(Some).collect() };
    let answering = |i: usize| match uses.len() {
        0 => Ok(all.clone()),
        1 => Ok(uses.clone()),
        _ if prompts.len() == 1 => Ok(uses.clone()),
        n if n == prompts.len() => Ok(vec![uses[i]]),
        n => bail!("{n} --use for {} prompts; give one for all, or one for each", prompts.len()),
    };
    let mut jobs = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let ids = match prepared.format.template {
            Some(_) => Conversation::new(args.system.clone()).ask(&prepared.format, prompt)?,
            None => prepared.format.continuation(prompt)?,
        };
        ensure!(
            !ids.is_empty(),
            "prompt {} is empty, and the tokenizer has no token that begins a text; give some text",
            i + 1
        );
        for adapter in answering(i)? {
            jobs.push(Job { prompt: prompt.clone(), ids: ids.clone(), adapter });
        }
    }
    Ok(jobs)
}

fn read_prompt(file: &Path) -> Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    }
    let without = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t));
    Ok(without.unwrap_or(&text).to_owned())
}

/// Returns the number of positions of the cache.
fn context(args: &GenerateArgs, config: &ModelConfig, jobs: &[Job]) -> Result<usize> {
    let limit = config.max_position_embeddings;
    let longest = jobs.iter().map(|job| job.ids.len()).max().unwrap_or(0);
    if let Some(context) = session::checked_context(args.max_context, config)? {
        ensure!(longest <= context, "a prompt has {longest} tokens, but --max-context is {context}");
        return Ok(context);
    }
    ensure!(longest <= limit, "a prompt has {longest} tokens, but the model's context holds {limit}");
    Ok(longest.saturating_add(args.max_tokens).min(limit))
}

fn answer_all(args: &GenerateArgs, session: &mut Session, jobs: &[Job], settings: &GenerationSettings) -> Result<()> {
    let mut out = io::stdout().lock();
    let to_terminal = out.is_terminal();
    let (context, gpu_bytes) = (session.context(), session.generator.plan.ledger().total());
    let gpu = session.generator.gpu.adapter.name.clone();
    if !args.json {
        eprintln!("{gpu}: {} for a context of {context} tokens", bytes(gpu_bytes));
    }
    let mut answers = Vec::new();
    for job in jobs {
        if session.generator.cancel.load(Ordering::Relaxed) {
            break;
        }
        if !args.json && jobs.len() > 1 {
            writeln!(out, "--- {} ---", session.names.name(job.adapter))?;
        }
        if !args.json && !args.no_echo {
            let prompt = if to_terminal { printable(&job.prompt) } else { job.prompt.as_str().into() };
            // A continued text goes on where the prompt ends; an answer is a text of its own.
            write!(out, "{prompt}{}", if session.format.template.is_some() { "\n" } else { "" })?;
            out.flush()?;
        }
        let answer = answer(args, session, job, settings, &mut out)?;
        if args.json {
            let mut report = report(job, session.names.name(job.adapter), session.format.template.is_some(), &answer);
            if args.logits {
                report["logits"] = pollster::block_on(session.generator.logits_after(&job.ids, job.adapter))?.into();
            }
            answers.push(report);
        } else {
            writeln!(out)?;
            out.flush()?;
            eprintln!("{}", timing(&answer.generation, context, &session.format.tokenizer));
        }
    }
    if args.json {
        let object = json!({
            "model": base_name(&session.model),
            "quant": args.session.quant_name(),
            "gpu": gpu,
            "gpu_bytes": gpu_bytes,
            "context": context,
            "answers": answers,
        });
        writeln!(out, "{object}")?;
    }
    Ok(())
}

/// Streams the answer to `out`, except with `--json`.
fn answer(
    args: &GenerateArgs,
    session: &mut Session,
    job: &Job,
    settings: &GenerationSettings,
    out: &mut (impl Write + IsTerminal),
) -> Result<Answer> {
    let mut written = Ok(());
    let to_terminal = out.is_terminal();
    let show = |piece: &str| {
        if !args.json && written.is_ok() {
            let piece = if to_terminal { printable(piece) } else { piece.into() };
            written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let answer = pollster::block_on(session.answer(&job.ids, job.adapter, settings, show))?;
    written?;
    Ok(answer)
}

fn per_second(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}

fn timing(generation: &Generation, context: usize, tokenizer: &Tokenizer) -> String {
    let (prompt, tokens) = (generation.prompt_time.as_secs_f64(), generation.token_time.as_secs_f64());
    let (computed, made) = (generation.prompt_computed, generation.tokens.len());
    let end = match generation.stop {
        Stop::EndToken(token) => format!("; ended by {}", tokenizer.token(token).unwrap_or_else(|| token.to_string())),
        Stop::Context => format!("; the context of {context} tokens is full"),
        Stop::StopString => "; ended by --stop".to_owned(),
        Stop::MaxTokens => "; ended by --max-tokens".to_owned(),
        Stop::Caller => "; stopped".to_owned(),
    };
    format!(
        "[prompt: {computed} tokens, {:.0} tokens/s; answer: {made} tokens, {:.1} tokens/s{end}]",
        per_second(computed, prompt),
        per_second(made, tokens)
    )
}

fn report(job: &Job, adapter: &str, template: bool, Answer { text, generation }: &Answer) -> serde_json::Value {
    let (prompt, tokens) = (generation.prompt_time.as_secs_f64(), generation.token_time.as_secs_f64());
    let stop = match generation.stop {
        Stop::EndToken(_) => "end_token",
        Stop::StopString => "stop",
        Stop::MaxTokens => "max_tokens",
        Stop::Context => "context",
        Stop::Caller => "interrupted",
    };
    json!({
        "adapter": adapter,
        "prompt": job.prompt,
        "chat_template": template,
        "text": text,
        "prompt_ids": job.ids,
        "ids": generation.tokens,
        "stop": stop,
        "prompt_tokens": job.ids.len(),
        "prompt_tokens_computed": generation.prompt_computed,
        "tokens": generation.tokens.len(),
        "prompt_seconds": prompt,
        "seconds": tokens,
        "tokens_per_s": per_second(generation.tokens.len(), tokens),
    })
}
