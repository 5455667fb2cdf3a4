//! `loraine demo`: trains and tries the built-in model in about a minute.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use loraine::demo;
use loraine::gpu::{Gpu, Ledger};
use loraine::infer::conversation::Conversation;
use loraine::infer::generator::GenerationSettings;
use loraine::infer::sampler::SamplingSettings;
use loraine::infer::session::{self, NamedAdapter, SessionSettings};
use loraine::infer::text_format::TemplateChoice;
use loraine::lora::adapter_file;
use loraine::setting::counted;
use loraine::train::prepare::prepare;
use loraine::train::run::Start;
use loraine::train::settings::{ObjectiveChoice, RunSettings};
use loraine::train::{output, plot};

use super::args::gpu::GpuArgs;
use super::memory_bar;
use super::next_command::after_training;
use super::run_view::RunView;
use super::show::{bytes, shell_word};

/// Train QLoRA on a tiny built-in model and show answers before and after, loss curve and memory
#[derive(Args)]
#[command(after_help = "Examples:
  loraine demo
  loraine demo --out /tmp/demo --steps 100
  loraine demo --preferences
  loraine chat --model loraine-demo/model --quant nf4 --adapter pirate=loraine-demo/adapter")]
pub struct DemoArgs {
    /// Directory for the model, the data and the adapter; replaces an earlier demo
    #[arg(long, value_name = "DIR", default_value = "loraine-demo")]
    out: PathBuf,
    /// Optimizer steps [default: enough to hear the difference]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Teach a preference instead: pairs of a pirate's answer and the same in plain words
    #[arg(long)]
    preferences: bool,
    /// Print one JSON object per line: answers, plan, steps, evaluations, the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gpu: GpuArgs,
}

pub fn run(args: DemoArgs) -> Result<()> {
    let dir = &args.out;
    let _lock = loraine::files::lock_directory(dir)?;
    let mut settings = match args.preferences {
        true => demo::preference_settings(dir),
        false => demo::settings(dir),
    };
    if args.preferences {
        demo::write_preferences(dir)?
    } else {
        demo::write(dir)?
    }
    settings.steps = args.steps.or(settings.steps);
    settings.check()?;
    let mut view = RunView::new(args.json);
    view.phase("answering", "asking the model before training");
    let learns = if args.preferences { "prefer a pirate's answers to plain ones" } else { "talk like a pirate" };
    view.say(format!("A tiny model that knows little stories learns to {learns}.\n"));
    let before = preferred(&args, &settings, false)?;
    show(&view, "before", &answers(&settings, args.gpu.open()?, false)?);

    view.phase("reading", "reading the model's files and the data");
    let prepared = prepare(settings.clone())?;
    let gpu = args.gpu.open()?;
    view.say(format!("gpu     {} ({}, {})", gpu.adapter.name, gpu.adapter.kind, gpu.adapter.backend));
    let ledger = prepared.plan(gpu.capabilities)?.ledger();
    let start = Start { overwrite: true, ..Start::default() };
    let next = after_training(&prepared, &settings.model);
    let (outcome, ended) = super::ranks::run_shown(prepared, gpu, None, &start, &mut view)?;
    adapter_file::add_command(&settings.out, &next)?;
    if let Some(ended) = ended {
        view.say(format!("stopped after step {}", outcome.step));
        return Err(ended.into());
    }
    let losses = output::read_curves(&settings.out)?.steps;
    view.say(format!("\nloss over {}\n{}", counted(outcome.step as u64, "step"), plot::loss_text(&losses, 64, 8)));
    view.say(memory_lines(&ledger));
    view.phase("answering", "asking the model after training");
    show(&view, "after", &answers(&settings, args.gpu.open()?, true)?);
    if let (Some(before), Some(after)) = (before, preferred(&args, &settings, true)?) {
        view.preferred(before, after);
    }
    view.finish();
    if args.json {
        view.summary(&outcome, &settings.out, false, &next);
        return Ok(());
    }
    view.results(&outcome);
    let model = shell_word(&settings.model);
    out!("adapter {}   curve {}", settings.out.display(), outcome.loss_svg.display());
    out!("look at the data: loraine inspect --model {model} --data {}", shell_word(&dir.join("data")));
    let yours = shell_word(&dir.join("yours"));
    let objective = match settings.objective {
        ObjectiveChoice::Sft => String::new(),
        other => format!(" --objective {}", other.name()),
    };
    out!(
        "train with data you edit: loraine train --model {model} --data {} --out {yours}{objective}",
        shell_word(&dir.join("data"))
    );
    out!("try it: {next}");
    Ok(())
}

fn memory_lines(ledger: &Ledger) -> String {
    let categories: Vec<_> = ledger.entries().collect();
    let share =
        |(category, count): &_| format!("{} {} {}", memory_bar::letter(*category), category.name(), bytes(*count));
    let shares: Vec<String> = categories.iter().map(share).collect();
    let bar = memory_bar::drawn(&categories, ledger.total());
    format!("memory  {} on the device\n{bar}\n{}\n", bytes(ledger.total()), shares.join(", "))
}

fn show(view: &RunView, when: &str, answers: &[String]) {
    for (question, answer) in demo::QUESTIONS.iter().zip(answers) {
        view.say(format!("you     {question}\n{when:<7} {answer}\n"));
        view.answer(when, question, answer);
    }
}

/// With `--preferences` the share of held-out questions that the model answers as it should prefer to.
fn preferred(args: &DemoArgs, settings: &RunSettings, adapted: bool) -> Result<Option<f64>> {
    if !args.preferences {
        return Ok(None);
    }
    // The first words of an answer tell.
    let questions = demo::held_out_questions();
    let answers = answers_to(&questions, 8, settings, args.gpu.open()?, adapted)?;
    let count = answers.iter().filter(|answer| demo::is_preferred(answer)).count();
    Ok(Some(count as f64 / answers.len() as f64))
}

/// Returns the model's answers to [`demo::QUESTIONS`], with greedy sampling.
fn answers(settings: &RunSettings, gpu: Gpu, adapted: bool) -> Result<Vec<String>> {
    answers_to(&demo::QUESTIONS.map(str::to_owned), 96, settings, gpu, adapted)
}

fn answers_to(
    questions: &[String],
    max_tokens: usize,
    settings: &RunSettings,
    gpu: Gpu,
    adapted: bool,
) -> Result<Vec<String>> {
    let adapter = || NamedAdapter { name: "demo".to_owned(), dir: settings.out.clone() };
    let prepared = session::prepare(&SessionSettings {
        model: settings.model.clone(),
        adapters: adapted.then(adapter).into_iter().collect(),
        base: settings.base_storage(),
        template: TemplateChoice::Own,
        template_arg: Vec::new(),
    })?;
    let generation = GenerationSettings {
        sampling: SamplingSettings { temperature: 0.0, ..SamplingSettings::default() },
        max_tokens,
        end_tokens: prepared.format.end_tokens.clone(),
        ..GenerationSettings::default()
    };
    let context = prepared.config().max_position_embeddings;
    let mut session = pollster::block_on(prepared.open(gpu, context, |_, _| ()))?;
    let mut answers = Vec::new();
    for question in questions {
        let ids = Conversation::new(None).ask(&session.format, question)?;
        let answer = session.answer(&ids, adapted.then_some(0), &generation, |_| ControlFlow::Continue(()));
        answers.push(pollster::block_on(answer)?.text.trim().to_owned());
    }
    Ok(answers)
}
