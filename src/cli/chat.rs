//! `loraine chat`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::{Context, Result, ensure};
use clap::Args;
use loraine::data::template::built_in_names;
use loraine::infer::adapter_names::BASE;
use loraine::infer::conversation::Conversation;
use loraine::infer::generator::{GenerationSettings, Stop};
use loraine::infer::sampler::SamplingSettings;
use loraine::infer::session::Session;
use loraine::infer::text_format::TemplateChoice;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::args::device::DeviceArgs;
use super::args::session::{self, SessionArgs};
use super::interrupt::{Asking, Interrupt};
use super::show::{bytes, printable};
use super::terminal::Silence;

const COMMANDS: &str = "  /adapter NAME   let this adapter answer; without a name, list them
  /base           let the model without an adapter answer
  /reset          start a new conversation
  /help           these lines
  /quit           leave (or Ctrl-D)
  Ctrl-C          stop an answer; a second one leaves";

/// Default number of positions of the cache, unless the model has fewer.
const DEFAULT_CONTEXT: usize = 4096;

/// Chat with a model and switch between its adapters
#[derive(Args)]
#[command(after_help = "In the chat:
  /adapter NAME   let this adapter answer; without a name, list them
  /base           let the model without an adapter answer
  /reset          start a new conversation
  /quit           leave
  Ctrl-C          stop an answer; a second one leaves

The first adapter answers until /adapter or /base chooses another.

Examples:
  loraine chat --model DIR
  loraine chat --model DIR --adapter pirate=run1 --adapter poet=run2
  echo 'Who are you?' | loraine chat --model DIR --temperature 0")]
pub struct ChatArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Chat template: a .jinja or .json file, or a name such as chatml [default: the model's own]
    #[arg(long, value_name = "FILE|NAME")]
    chat_template: Option<String>,
    /// System prompt of the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Text that ends an answer and is not part of it; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Maximum new tokens of one answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Context: maximum tokens of the whole conversation [default: 4096, or the model's limit]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.7, help_heading = "Sampling")]
    temperature: f32,
    /// Sample from the K most likely tokens (0 = off)
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    top_k: usize,
    /// Sample from the most likely tokens that together reach probability P (1 = off)
    #[arg(long, value_name = "P", default_value_t = 0.95, help_heading = "Sampling")]
    top_p: f32,
    /// Make repeated tokens less likely (1 = off, 1.1 is mild)
    #[arg(long, value_name = "R", default_value_t = 1.0, help_heading = "Sampling")]
    repetition_penalty: f32,
    /// Seed of the sampling; the same seed repeats the answers
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: ChatArgs) -> Result<()> {
    let sampling = SamplingSettings {
        temperature: args.temperature,
        top_k: if args.temperature > 0.0 { args.top_k } else { 0 },
        top_p: if args.temperature > 0.0 { args.top_p } else { 1.0 },
        min_p: 0.0,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    sampling.check()?;
    let template = args.chat_template.map_or(TemplateChoice::Own, TemplateChoice::Named);
    let prepared = args.session.prepare(template, &args.device)?;
    ensure!(
        prepared.format.template.is_some(),
        "{}: has no chat template; name one with --chat-template ({}, or a .jinja file), or continue a text with `loraine generate`",
        prepared.source.dir.display(),
        built_in_names()
    );
    let given = session::checked_context(args.max_context, prepared.config())?;
    let context = given.unwrap_or(DEFAULT_CONTEXT.min(prepared.config().max_position_embeddings));
    let conversation = Conversation::new(args.system);
    // Refused here, not only at the first question.
    conversation.ask(&prepared.format, "")?;
    let end_tokens = prepared.format.end_tokens.clone();
    let settings = GenerationSettings { sampling, max_tokens: args.max_tokens, end_tokens, stop_strings: args.stop };
    let mut session = session::open(prepared, context, &args.device)?;
    let adapter = (!session.names.is_empty()).then_some(0);
    let interrupt = Interrupt::watch(Asking::CtrlC, None)?;
    session.generator.cancel = interrupt.flag();
    Chat { session, conversation, settings, adapter, interrupt }.talk()
}

struct Chat {
    session: Session,
    conversation: Conversation,
    settings: GenerationSettings,
    /// Index of the adapter that answers; `None` means the base.
    adapter: Option<usize>,
    interrupt: Interrupt,
}

impl Chat {
    /// Chats until the user leaves or the input ends.
    fn talk(&mut self) -> Result<()> {
        if !io::stdin().is_terminal() {
            for line in io::stdin().lock().lines() {
                if self.take(&line.context("standard input cannot be read")?)?.is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let generator = &self.session.generator;
        let (gpu, used) = (&generator.gpu.adapter.name, bytes(generator.plan.ledger().total()));
        eprintln!("{gpu}: {used} for a context of {} tokens", self.session.context());
        eprintln!("{COMMANDS}");
        let mut editor = DefaultEditor::new().context("the terminal cannot be read")?;
        let _silence = Silence::begin();
        // True after a Ctrl-C that nothing was typed after.
        let mut leaving = false;
        loop {
            match editor.readline(&format!("{}> ", printable(self.speaker()))) {
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    if self.take(&line)?.is_break() {
                        return Ok(());
                    }
                    leaving = self.interrupt.asked();
                    self.interrupt.clear();
                }
                Err(ReadlineError::Interrupted) if leaving => return Ok(()),
                Err(ReadlineError::Interrupted) => {
                    leaving = true;
                    eprintln!("(Ctrl-C again, or Ctrl-D, leaves)");
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(e).context("the terminal cannot be read"),
            }
        }
    }

    fn speaker(&self) -> &str {
        self.session.names.name(self.adapter)
    }

    /// Handles one line of input.
    fn take(&mut self, line: &str) -> Result<ControlFlow<()>> {
        let line = line.trim();
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "" => {}
            "/quit" | "/exit" => return Ok(ControlFlow::Break(())),
            "/help" => out!("{COMMANDS}"),
            "/reset" => {
                self.conversation.reset();
                out!("new conversation");
            }
            "/base" => self.switch(BASE),
            "/adapter" if argument.is_empty() => {
                for name in self.session.names.with_base() {
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
        match self.session.names.index(name) {
            Ok(adapter) => {
                self.adapter = adapter;
                out!("{} answers now", self.speaker());
            }
            Err(problem) => out!("{problem}"),
        }
    }

    fn answer(&mut self, question: &str) -> Result<()> {
        let ids = self.conversation.ask(&self.session.format, question)?;
        let context = self.session.context();
        if ids.len() >= context {
            out!(
                "with this the conversation has {} tokens, but the context holds {context}; /reset starts a new one",
                ids.len()
            );
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let to_terminal = out.is_terminal();
        self.interrupt.clear();
        let on_text = |piece: &str| {
            let piece = if to_terminal { printable(piece) } else { piece.into() };
            let written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            if written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let answered = self.session.answer(&ids, self.adapter, &self.settings, on_text);
        let answer = pollster::block_on(answered)?;
        let _ = writeln!(out);
        match answer.generation.stop {
            Stop::Context => eprintln!("[the context of {context} tokens is full; /reset starts a new conversation]"),
            Stop::MaxTokens => eprintln!("[ended after --max-tokens {}]", self.settings.max_tokens),
            Stop::Caller => eprintln!("[stopped]"),
            Stop::EndToken(_) | Stop::StopString => {}
        }
        if answer.generation.stop != Stop::Caller || !answer.text.trim().is_empty() {
            self.conversation.answered(question, answer.text.trim());
        }
        Ok(())
    }
}
