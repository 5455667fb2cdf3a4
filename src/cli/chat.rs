//! `loraine chat`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use clap::Args;
use loraine::data::template::ChatTemplate;
use loraine::data::tokenizer::{StreamDecoder, Tokenizer};
use loraine::hub::fetch::Extent;
use loraine::infer::conversation::{Conversation, end_of_turn};
use loraine::infer::end_tokens;
use loraine::infer::generator::{GenerationSettings, Generator, Stop};
use loraine::infer::plan::{DEFAULT_ROWS_PER_PASS, PlanSettings};
use loraine::infer::sampler::SamplingSettings;
use loraine::model::config::ModelConfig;
use loraine::model::source::Source;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::args::base::BaseArgs;
use super::args::cache::CacheArgs;
use super::args::gpu::GpuArgs;
use super::args::tune::TuneArgs;
use super::generate::{BASE, adapter_names, load_adapter};
use super::show::bytes;

const COMMANDS: &str = "  /adapter NAME   let this adapter answer; without a name, list them
  /base           let the model without an adapter answer
  /reset          forget the conversation
  /help           these lines
  /quit           leave (or Ctrl-D)
  Ctrl-C          stop an answer";

/// Positions of the cache where neither the user nor the model says less.
const DEFAULT_CONTEXT: usize = 4096;

/// Talk with a model, and switch between its adapters as you go
#[derive(Args)]
#[command(after_help = "In the chat:
  /adapter NAME   let this adapter answer; without a name, list them
  /base           let the model without an adapter answer
  /reset          forget the conversation
  /quit           leave

Examples:
  loraine chat --model DIR
  loraine chat --model DIR --adapter pirate=run1 --adapter poet=run2
  echo 'Who are you?' | loraine chat --model DIR --temperature 0")]
pub struct ChatArgs {
    /// Hugging Face model directory, or owner/name on the hub (config.json, tokenizer.json, safetensors)
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter directory, by the name that /adapter knows it by [default name: the directory's]; the first answers
    #[arg(long = "adapter", value_name = "[NAME=]DIR")]
    adapters: Vec<String>,
    #[command(flatten)]
    base: BaseArgs,
    /// Chat template: a .jinja or .json file, or a name such as chatml [default: the model's own]
    #[arg(long, value_name = "FILE|NAME")]
    chat_template: Option<String>,
    /// Message that stands before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of one answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Most tokens of the conversation [default: 4096, or what the model has]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Randomness of the choice; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.7, help_heading = "Sampling")]
    temperature: f32,
    /// Choose among the K likeliest tokens (0 = off)
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    top_k: usize,
    /// Choose among the likeliest tokens that together reach probability P (1 = off)
    #[arg(long, value_name = "P", default_value_t = 0.95, help_heading = "Sampling")]
    top_p: f32,
    /// Make tokens that occurred less likely (1 = off, 1.1 is mild)
    #[arg(long, value_name = "R", default_value_t = 1.0, help_heading = "Sampling")]
    repetition_penalty: f32,
    /// Another seed gives other answers, the same one repeats them
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    tune: TuneArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

pub fn run(mut args: ChatArgs) -> Result<()> {
    args.model = super::args::model::model_directory(&args.model, Extent::Everything)?;
    let sampling = SamplingSettings {
        temperature: args.temperature,
        top_k: if args.temperature > 0.0 { args.top_k } else { 0 },
        top_p: if args.temperature > 0.0 { args.top_p } else { 1.0 },
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    sampling.check()?;
    let base = args.base.storage()?;
    let names = adapter_names(&args.adapters)?;
    let mut source = Source::open(&args.model)?;
    args.cache.apply(&mut source);
    let config = &source.config;
    let tokenizer = Tokenizer::from_dir(&args.model, config)?;
    let special = tokenizer.special_tokens()?;
    let template = ChatTemplate::load(&args.model, args.chat_template.as_deref(), special)?.with_context(|| {
        format!(
            "{}: has no chat template; name one with --chat-template ({}, or a .jinja file)",
            args.model.display(),
            loraine::data::template::built_in_names()
        )
    })?;
    let context = context(&args, config)?;
    let mut ends = end_tokens::from_dir(&args.model, config)?;
    ends.extend(tokenizer.eos());
    ends.extend(end_of_turn(&tokenizer, &template)?);
    let conversation = Conversation::new(&tokenizer, &template, args.system.clone());
    // Refused now rather than at the first question.
    conversation.ask("")?;

    let adapters = names.iter().map(|(_, dir)| load_adapter(dir, config)).collect::<Result<Vec<_>>>()?;
    let plan = PlanSettings { base, max_positions: context, rows_per_pass: DEFAULT_ROWS_PER_PASS };
    let gpu = args.gpu.open_tuned(args.tune.options(args.cache.directory()))?;
    let generator = pollster::block_on(Generator::open(gpu, &source, &adapters, &plan, |_, _| ()))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let asked = interrupted.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("Ctrl-C cannot be watched")?;
    let settings = GenerationSettings { sampling, max_tokens: args.max_tokens, end_tokens: ends };
    let names: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
    let adapter = (!names.is_empty()).then_some(0);
    let mut chat = Chat { generator, tokenizer: &tokenizer, conversation, settings, names, adapter, interrupted };
    chat.talk()
}

/// Positions of the cache.
fn context(args: &ChatArgs, config: &ModelConfig) -> Result<usize> {
    let limit = config.max_position_embeddings;
    match args.max_context {
        Some(context) => {
            ensure!(context <= limit, "--max-context {context} is beyond the model's own limit of {limit} positions");
            Ok(context)
        }
        None => Ok(DEFAULT_CONTEXT.min(limit)),
    }
}

struct Chat<'a> {
    generator: Generator,
    tokenizer: &'a Tokenizer,
    conversation: Conversation<'a>,
    settings: GenerationSettings,
    /// Of the adapters, in the order of their loading.
    names: Vec<String>,
    /// Which of them answers; None is the base.
    adapter: Option<usize>,
    interrupted: Arc<AtomicBool>,
}

impl Chat<'_> {
    /// Until the user leaves or the input ends.
    fn talk(&mut self) -> Result<()> {
        if !io::stdin().is_terminal() {
            for line in io::stdin().lock().lines() {
                if self.take(&line.context("standard input cannot be read")?)?.is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let gpu = &self.generator.gpu.adapter.name;
        let used = bytes(self.generator.plan.ledger().total());
        eprintln!("{gpu}: {used} for a context of {} tokens", self.generator.plan.max_positions());
        eprintln!("{COMMANDS}");
        let mut editor = DefaultEditor::new().context("the terminal cannot be read")?;
        loop {
            match editor.readline(&format!("{}> ", self.speaker())) {
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    if self.take(&line)?.is_break() {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(e).context("the terminal cannot be read"),
            }
        }
    }

    fn speaker(&self) -> &str {
        self.adapter.map_or(BASE, |index| &self.names[index])
    }

    /// One line of the user's.
    fn take(&mut self, line: &str) -> Result<ControlFlow<()>> {
        let line = line.trim();
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "" => {}
            "/quit" | "/exit" => return Ok(ControlFlow::Break(())),
            "/help" => out!("{COMMANDS}"),
            "/reset" => {
                self.conversation.reset();
                out!("the conversation is forgotten");
            }
            "/base" => self.switch(BASE),
            "/adapter" if argument.is_empty() => {
                let all = std::iter::once(BASE).chain(self.names.iter().map(String::as_str));
                for name in all {
                    out!("{} {name}", if name == self.speaker() { '*' } else { ' ' });
                }
            }
            "/adapter" => self.switch(argument.trim()),
            _ if command.starts_with('/') => out!("{command} is no command; there are\n{COMMANDS}"),
            _ => self.answer(line)?,
        }
        Ok(ControlFlow::Continue(()))
    }

    fn switch(&mut self, name: &str) {
        match (name == BASE, self.names.iter().position(|known| known == name)) {
            (true, _) => self.adapter = None,
            (false, Some(index)) => self.adapter = Some(index),
            (false, None) => {
                let known: Vec<&str> = std::iter::once(BASE).chain(self.names.iter().map(String::as_str)).collect();
                out!("there is no adapter `{name}`; there are: {}", known.join(", "));
                return;
            }
        }
        out!("{} answers now", self.speaker());
    }

    fn answer(&mut self, question: &str) -> Result<()> {
        let ids = self.conversation.ask(question)?;
        let context = self.generator.plan.max_positions();
        if ids.len() >= context {
            out!(
                "with this the conversation has {} tokens, but the context holds {context}; /reset begins anew",
                ids.len()
            );
            return Ok(());
        }
        let mut stream = StreamDecoder::after(self.tokenizer, &ids)?;
        let mut text = String::new();
        let mut out = io::stdout().lock();
        self.interrupted.store(false, Ordering::Relaxed);
        let mut failure = None;
        let on_token = |token| {
            let piece = stream.push(token).unwrap_or_else(|e| {
                failure = Some(e);
                String::new()
            });
            text += &piece;
            let written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            match written.is_err() || failure.is_some() || self.interrupted.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let generation = pollster::block_on(self.generator.generate(&ids, self.adapter, &self.settings, on_token))?;
        if let Some(failure) = failure {
            return Err(failure.into());
        }
        let rest = stream.finish()?;
        text += &rest;
        let _ = writeln!(out, "{rest}");
        match generation.stop {
            Stop::Context => eprintln!("[the context of {context} tokens is full; /reset begins anew]"),
            Stop::MaxTokens => eprintln!("[ended after --max-tokens {}]", self.settings.max_tokens),
            Stop::Caller => eprintln!("[stopped]"),
            Stop::EndToken(_) => {}
        }
        self.interrupted.store(false, Ordering::Relaxed);
        self.conversation.answered(question, text.trim());
        Ok(())
    }
}
