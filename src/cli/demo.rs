//! `loraine demo`: the whole of it in a minute, with nothing but the program.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use loraine::data::template::ChatTemplate;
use loraine::data::tokenizer::Tokenizer;
use loraine::demo;
use loraine::gpu::{Gpu, Ledger};
use loraine::infer::generator::{GenerationSettings, Generator, LoadedAdapter};
use loraine::infer::plan::{DEFAULT_ROWS_PER_PASS, PlanSettings};
use loraine::infer::sampler::SamplingSettings;
use loraine::lora::adapter_file;
use loraine::model::source::Source;
use loraine::train::run::{self, Start};
use loraine::train::settings::RunSettings;
use loraine::train::{output, plot};
use serde_json::json;

use super::args::gpu::GpuArgs;
use super::memory_bar;
use super::run_view::RunView;
use super::show::{bytes, shell_word};

/// QLoRA on a built-in tiny model: its answers before and after, the loss curve, the memory, an adapter to keep
#[derive(Args)]
#[command(after_help = "Examples:
  loraine demo
  loraine demo --out /tmp/demo --steps 100
  loraine chat --model loraine-demo/model --adapter pirate=loraine-demo/adapter     talk with what came of it")]
pub struct DemoArgs {
    /// Directory for the model, the data and the adapter; an earlier demo there is replaced
    #[arg(long, value_name = "DIR", default_value = "loraine-demo")]
    out: PathBuf,
    /// Optimizer steps [default: enough to hear the difference]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Print one JSON object per line: answers, plan, steps, evaluations, the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gpu: GpuArgs,
}

pub fn run(args: DemoArgs) -> Result<()> {
    let dir = &args.out;
    demo::write(dir)?;
    let mut settings = demo::settings(dir);
    settings.steps = args.steps.or(settings.steps);
    settings.check()?;
    let mut view = RunView::new(args.json);
    view.say("A tiny model that knows little stories learns to talk like a pirate.\n".to_owned());
    show(&view, "before", &answers(&settings, args.gpu.open()?, false)?);

    let prepared = run::prepare(settings.clone())?;
    let gpu = args.gpu.open()?;
    view.say(format!("gpu     {} ({}, {})", gpu.adapter.name, gpu.adapter.kind, gpu.adapter.backend));
    let ledger = prepared.plan(gpu.capabilities)?.ledger();
    let start = Start { overwrite: true, ..Start::default() };
    let outcome = super::train::run_shown(prepared, gpu, &start, &mut view)?;
    if outcome.interrupted {
        view.say(format!("stopped after step {}", outcome.step));
        return Ok(());
    }
    let (losses, _) = output::read_curves(&settings.out)?;
    view.say(format!("\nloss over {} steps\n{}", outcome.step, plot::loss_text(&losses, 64, 8)));
    view.say(memory_lines(&ledger));
    show(&view, "after", &answers(&settings, args.gpu.open()?, true)?);
    if args.json {
        view.summary(&outcome, &settings.out, &settings.model, false);
        return Ok(());
    }
    if let (Some(first), Some(last)) = (&outcome.first_eval, &outcome.last_eval) {
        out!("held-out loss {:.4} before, {:.4} after", first.eval_loss, last.eval_loss);
    }
    let model = shell_word(&settings.model);
    out!("adapter {}   curve {}", settings.out.display(), outcome.loss_svg.display());
    out!("next    loraine inspect --model {model} --data {}", shell_word(&settings.data.join("train.jsonl")));
    out!("        loraine train --model {model} --data YOUR.jsonl --out {}", shell_word(&dir.join("yours")));
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

/// What the model says to [`demo::QUESTIONS`], the likeliest token each time.
fn answers(settings: &RunSettings, gpu: Gpu, adapted: bool) -> Result<Vec<String>> {
    let dir: &Path = &settings.model;
    let source = Source::open(dir)?;
    let config = &source.config;
    let tokenizer = Tokenizer::from_dir(dir, config)?;
    let template = ChatTemplate::load(dir, None, tokenizer.special_tokens()?)?.context("the model has a template")?;
    let adapters = match adapted {
        false => Vec::new(),
        true => {
            let (_, modules, tensors) = adapter_file::load(&settings.out, config)?;
            vec![LoadedAdapter { modules, tensors }]
        }
    };
    let plan = PlanSettings {
        base: settings.base_storage(),
        max_positions: config.max_position_embeddings,
        rows_per_pass: DEFAULT_ROWS_PER_PASS,
    };
    let mut generator = pollster::block_on(Generator::open(gpu, &source, &adapters, &plan, |_, _| ()))?;
    let generation = GenerationSettings {
        sampling: SamplingSettings { temperature: 0.0, ..SamplingSettings::default() },
        max_tokens: 96,
        end_tokens: tokenizer.eos().into_iter().collect(),
    };
    let mut answers = Vec::new();
    for question in demo::QUESTIONS {
        let message = json!({ "role": "user", "content": question });
        let prompt = template.render(&[message], None, true).map_err(anyhow::Error::msg)?;
        let ids = tokenizer.encode(&prompt, false)?;
        let index = adapted.then_some(0);
        let answer = generator.generate(&ids, index, &generation, |_| ControlFlow::Continue(()));
        answers.push(tokenizer.decode(&pollster::block_on(answer)?.tokens)?.trim().to_owned());
    }
    Ok(answers)
}
