//! `loraine generate`.

use std::io::{self, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use loraine::data::tokenizer::{StreamDecoder, Tokenizer};
use loraine::gpu::Profile;
use loraine::hub::base_name;
use loraine::hub::fetch::Extent;
use loraine::infer::end_tokens;
use loraine::infer::generator::{Generation, GenerationSettings, Generator, LoadedAdapter, Stop};
use loraine::infer::plan::{DEFAULT_ROWS_PER_PASS, PlanSettings};
use loraine::infer::sampler::SamplingSettings;
use loraine::lora::adapter_file;
use loraine::model::config::ModelConfig;
use loraine::model::source::Source;
use serde_json::json;

use super::args::base::BaseArgs;
use super::args::cache::CacheArgs;
use super::args::gpu::GpuArgs;
use super::args::tune::TuneArgs;
use super::show::bytes;

/// What `--use` calls the model without an adapter.
pub const BASE: &str = "base";

const EXAMPLES: &str = "\
Which adapter answers:
  Without --use, every loaded adapter answers every prompt; with no adapter, the base does.
  One --use holds for all prompts. As many --use as prompts are taken in pairs, in order.
  One prompt with several --use is answered by each in turn.

Examples:
  loraine generate --model DIR --prompt 'Once upon a time'
  loraine generate --model DIR --adapter out/run1 --prompt 'Once upon a time' --temperature 0.8 --top-p 0.95
  loraine generate --model DIR --quant nf4 --adapter poet=out/a --adapter clerk=out/b \\
      --prompt 'Dear Sir' --use base --use poet --use clerk
  loraine generate --model DIR --adapter poet=out/a --adapter clerk=out/b \\
      --prompt 'A rose' --use poet --prompt 'An invoice' --use clerk";

/// Continue prompts, with or without adapters
#[derive(Args)]
#[command(after_help = EXAMPLES)]
#[group(id = "prompts", required = true, multiple = true, args = ["prompt", "prompt_file"])]
pub struct GenerateArgs {
    /// Hugging Face model directory, or owner/name on the hub (config.json, tokenizer.json, safetensors)
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter directory to load, by the name that --use knows it by [default name: the directory's]
    #[arg(long = "adapter", value_name = "[NAME=]DIR")]
    adapters: Vec<String>,
    /// Which adapter answers, or `base`; see below
    #[arg(long = "use", value_name = "NAME")]
    uses: Vec<String>,
    #[command(flatten)]
    base: BaseArgs,
    /// Text to continue; may be given several times
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    prompt: Vec<String>,
    /// File with a text to continue (its last line break is left out), `-` for standard input; after any --prompt
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    prompt_file: Vec<PathBuf>,
    /// Most tokens of one answer
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Text")]
    max_tokens: usize,
    /// Most tokens of prompt and answer together [default: what the longest needs, up to the model's own limit]
    #[arg(long, value_name = "N", help_heading = "Text")]
    max_context: Option<usize>,
    /// Go on where the model would end the text
    #[arg(long, help_heading = "Text")]
    ignore_eos: bool,
    /// Randomness of the choice; 0 always takes the likeliest token, so that the same command gives the same text
    #[arg(long, value_name = "T", default_value_t = 0.0, help_heading = "Sampling")]
    temperature: f32,
    /// Choose among the K likeliest tokens (0 = off)
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    top_k: usize,
    /// Choose among the likeliest tokens that together reach probability P (1 = off)
    #[arg(long, value_name = "P", default_value_t = 1.0, help_heading = "Sampling")]
    top_p: f32,
    /// Make tokens that occurred less likely (1 = off, 1.1 is mild)
    #[arg(long, value_name = "R", default_value_t = 1.0, help_heading = "Sampling")]
    repetition_penalty: f32,
    /// Another seed gives another text, the same one repeats it
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,
    /// Print the answers without the prompts
    #[arg(long, help_heading = "Output")]
    no_echo: bool,
    /// Print one JSON object at the end: texts, token ids, counts and times
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// With --json: also the logits of the token after each prompt, one for each of the vocabulary
    #[arg(long, requires = "json", help_heading = "Output")]
    logits: bool,
    /// Print GPU time by operation at the end; slower, since each dispatch is timed
    #[arg(long, help_heading = "Output")]
    profile: bool,
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    tune: TuneArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// One answer to be made.
struct Job {
    prompt: String,
    ids: Vec<u32>,
    adapter: Option<usize>,
}

pub fn run(mut args: GenerateArgs) -> Result<()> {
    args.model = super::args::model::model_directory(&args.model, Extent::Everything)?;
    let sampling = sampling(&args)?;
    let base = args.base.storage()?;
    let names = adapter_names(&args.adapters)?;
    if !args.model.is_dir() {
        bail!("{}: is no directory; --model wants a Hugging Face model directory", args.model.display());
    }
    let mut source = Source::open(&args.model)?;
    args.cache.apply(&mut source);
    let config = &source.config;
    let tokenizer = Tokenizer::from_dir(&args.model, config)?;
    let adapters = names.iter().map(|(_, dir)| load_adapter(dir, config)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
    let jobs = jobs(&args, &tokenizer, &names)?;
    let context = context(&args, config, &jobs)?;
    let mut end_tokens = Vec::new();
    if !args.ignore_eos {
        end_tokens = end_tokens::from_dir(&args.model, config)?;
        end_tokens.extend(tokenizer.eos());
    }
    let settings = GenerationSettings { sampling, max_tokens: args.max_tokens, end_tokens };

    let plan = PlanSettings { base, max_positions: context, rows_per_pass: DEFAULT_ROWS_PER_PASS };
    let gpu = args.gpu.open_tuned(args.tune.options(args.cache.directory()))?;
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes}")?);
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut generator = pollster::block_on(Generator::open(gpu, &source, &adapters, &plan, progress))?;
    bar.finish_and_clear();
    generator.profile = args.profile.then(Profile::default);
    let result = answer_all(&args, &mut generator, &tokenizer, &names, &jobs, &settings);
    if let Some(profile) = &generator.profile {
        print_profile(profile);
    }
    match result {
        // A reader that has seen enough (`| head`) is no failure.
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        result => result,
    }
}

fn sampling(args: &GenerateArgs) -> Result<SamplingSettings> {
    let settings = SamplingSettings {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
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

/// Names and directories of `[NAME=]DIR`; a directory that has an equals sign in its own name is taken as it stands.
pub fn adapter_names(given: &[String]) -> Result<Vec<(String, PathBuf)>> {
    let mut names: Vec<(String, PathBuf)> = Vec::new();
    for text in given {
        let (name, dir) = match text.split_once('=') {
            Some((name, dir)) if !Path::new(text).is_dir() => (Some(name.to_owned()), PathBuf::from(dir)),
            _ => (None, PathBuf::from(text)),
        };
        let last_part = || dir.canonicalize().ok()?.file_name()?.to_str().map(str::to_owned);
        let name = name.or_else(last_part).unwrap_or_else(|| text.clone());
        ensure!(!name.is_empty(), "--adapter {text}: the name before `=` is empty");
        ensure!(name != BASE, "--adapter {text}: `{BASE}` is the model without an adapter; give NAME=DIR");
        ensure!(
            names.iter().all(|(other, _)| *other != name),
            "two adapters are called `{name}`; give one of them another name: --adapter NAME=DIR"
        );
        names.push((name, dir));
    }
    Ok(names)
}

pub fn load_adapter(dir: &Path, config: &ModelConfig) -> Result<LoadedAdapter> {
    let (_, modules, tensors) = adapter_file::load(dir, config)?;
    Ok(LoadedAdapter { modules, tensors })
}

fn jobs(args: &GenerateArgs, tokenizer: &Tokenizer, names: &[String]) -> Result<Vec<Job>> {
    let adapter_of = |name: &String| -> Result<Option<usize>> {
        if name == BASE {
            return Ok(None);
        }
        let known: Vec<&str> = std::iter::once(BASE).chain(names.iter().map(String::as_str)).collect();
        let found = names.iter().position(|n| n == name);
        Ok(Some(found.with_context(|| format!("--use {name}: no such adapter; there are: {}", known.join(", ")))?))
    };
    let uses: Vec<Option<usize>> = args.uses.iter().map(adapter_of).collect::<Result<_>>()?;
    let mut prompts = args.prompt.clone();
    for file in &args.prompt_file {
        prompts.push(read_prompt(file)?);
    }
    let all = if names.is_empty() { vec![None] } else { (0..names.len()).map(Some).collect() };
    let answering = |i: usize| match uses.len() {
        0 => Ok(all.clone()),
        1 => Ok(uses.clone()),
        _ if prompts.len() == 1 => Ok(uses.clone()),
        n if n == prompts.len() => Ok(vec![uses[i]]),
        n => bail!("{n} --use for {} prompts; give one for all, or one for each", prompts.len()),
    };
    let mut jobs = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let mut ids = tokenizer.encode(prompt, true)?;
        if ids.is_empty() {
            ids.extend(tokenizer.bos());
        }
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

/// Positions of the cache.
fn context(args: &GenerateArgs, config: &ModelConfig, jobs: &[Job]) -> Result<usize> {
    let limit = config.max_position_embeddings;
    let longest = jobs.iter().map(|job| job.ids.len()).max().unwrap_or(0);
    if let Some(context) = args.max_context {
        ensure!(context <= limit, "--max-context {context} is beyond the model's own limit of {limit} positions");
        ensure!(longest <= context, "a prompt has {longest} tokens, but --max-context is {context}");
        return Ok(context);
    }
    ensure!(longest <= limit, "a prompt has {longest} tokens, but the model's context holds {limit}");
    Ok(longest.saturating_add(args.max_tokens).min(limit))
}

fn answer_all(
    args: &GenerateArgs,
    generator: &mut Generator,
    tokenizer: &Tokenizer,
    names: &[String],
    jobs: &[Job],
    settings: &GenerationSettings,
) -> Result<()> {
    let mut out = io::stdout().lock();
    let gpu_bytes = generator.plan.ledger().total();
    if !args.json {
        let (gpu, context) = (&generator.gpu.adapter.name, generator.plan.max_positions());
        eprintln!("{gpu}: {} for a context of {context} tokens", bytes(gpu_bytes));
    }
    let mut answers = Vec::new();
    for job in jobs {
        let name = job.adapter.map_or(BASE, |i| &names[i]);
        if !args.json && jobs.len() > 1 {
            writeln!(out, "--- {name} ---")?;
        }
        if !args.json && !args.no_echo {
            write!(out, "{}", job.prompt)?;
            out.flush()?;
        }
        let (generation, text) = answer(args, generator, tokenizer, job, settings, &mut out)?;
        if args.json {
            let mut answer = report(job, name, &generation, &text);
            if args.logits {
                answer["logits"] = pollster::block_on(generator.logits_after(&job.ids, job.adapter))?.into();
            }
            answers.push(answer);
        } else {
            writeln!(out)?;
            out.flush()?;
            eprintln!("{}", timing(&generation, generator.plan.max_positions(), tokenizer));
        }
    }
    if args.json {
        let object = json!({
            "model": base_name(&args.model),
            "quant": args.base.quant_name(),
            "gpu": generator.gpu.adapter.name,
            "gpu_bytes": gpu_bytes,
            "context": generator.plan.max_positions(),
            "answers": answers,
        });
        writeln!(out, "{object}")?;
    }
    Ok(())
}

/// Streams the answer to `out` unless it is to be JSON.
fn answer(
    args: &GenerateArgs,
    generator: &mut Generator,
    tokenizer: &Tokenizer,
    job: &Job,
    settings: &GenerationSettings,
    out: &mut impl Write,
) -> Result<(Generation, String)> {
    let mut stream = StreamDecoder::after(tokenizer, &job.ids)?;
    let mut text = String::new();
    let mut show = |piece: String| -> Result<()> {
        text += &piece;
        if !args.json {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    };
    let mut failure = None;
    let on_token = |token| match stream.push(token).map_err(anyhow::Error::from).and_then(&mut show) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            failure = Some(e);
            ControlFlow::Break(())
        }
    };
    let generation = pollster::block_on(generator.generate(&job.ids, job.adapter, settings, on_token))?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    show(stream.finish()?)?;
    Ok((generation, text))
}

fn print_profile(profile: &Profile) {
    let total: f64 = profile.ops.values().map(|(seconds, _)| seconds).sum();
    for (op, (seconds, dispatches)) in &profile.ops {
        let share = 100.0 * seconds / total.max(1e-9);
        eprintln!("{op:<28} {:>10.3} ms {share:>5.1} % {dispatches:>8} dispatches", seconds * 1e3);
    }
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
        Stop::MaxTokens | Stop::Caller => String::new(),
    };
    format!(
        "[prompt: {computed} tokens, {:.0} tokens/s; answer: {made} tokens, {:.1} tokens/s{end}]",
        per_second(computed, prompt),
        per_second(made, tokens)
    )
}

fn report(job: &Job, adapter: &str, generation: &Generation, text: &str) -> serde_json::Value {
    let (prompt, tokens) = (generation.prompt_time.as_secs_f64(), generation.token_time.as_secs_f64());
    let stop = match generation.stop {
        Stop::EndToken(_) => "end_token",
        Stop::MaxTokens => "max_tokens",
        Stop::Context => "context",
        Stop::Caller => "interrupted",
    };
    json!({
        "adapter": adapter,
        "prompt": job.prompt,
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
