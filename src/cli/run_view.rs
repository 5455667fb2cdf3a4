//! Shows a run: lines and a moving line for people, or one JSON object per line for programs.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use loraine::data::read::DataReport;
use loraine::gpu::{Ledger, Profile};
use loraine::setting::{as_flag, counted, written};
use loraine::train::diagnosis::{Warning, nothing_held_out};
use loraine::train::event::{Event, Outcome, Phase};
use loraine::train::group::GroupUsage;
use loraine::train::output::StepMetrics;
use loraine::train::prepare::{PreparedRun, Validation};
use serde_json::{Value, json};

use super::show::{bytes, duration, print_labeled, profile_table, shell_word};
use super::status::{Count, StatusLine, Training};

pub struct RunView {
    json: bool,
    status: StatusLine,
    /// True if each step is a line: where no terminal shows the moving line, or where the lines go into a file.
    step_lines: bool,
    /// The name of the last phase in JSON.
    phase: &'static str,
    smoothed: Option<f64>,
    steps: usize,
    /// Steps that were done before this program started.
    resumed_after: usize,
    /// When the first step of this program started, and the last results.
    started: Option<Instant>,
    last: Option<Training>,
}

impl RunView {
    pub fn new(json: bool) -> Self {
        let status = StatusLine::new(json);
        let moving_line_alone = status.is_terminal() && std::io::stdout().is_terminal();
        let step_lines = !json && !moving_line_alone;
        Self {
            json,
            status,
            step_lines,
            phase: "",
            smoothed: None,
            steps: 0,
            resumed_after: 0,
            started: None,
            last: None,
        }
    }

    /// Shows what the program does before and after the run itself; `name` is for programs.
    pub fn phase(&mut self, name: &'static str, text: &str) {
        self.announce(name);
        self.status.phase(text, None);
    }

    fn announce(&mut self, name: &'static str) {
        if self.json && self.phase != name {
            self.object("phase", json!({ "phase": name }));
        }
        self.phase = name;
    }

    /// Shows what training reads, what is held out of it, and hints at settings that seldom work.
    pub fn prepared(&self, prepared: &PreparedRun) {
        if let Some(wrapper) = prepared.source.config.wrapper {
            let parts = "its other parts are neither trained nor used";
            self.labeled("model", &format!("the text decoder of a {} model is trained; {parts}", wrapper.model_type));
        }
        self.data("data", &prepared.data, prepared.validation);
        if let Some(eval) = &prepared.eval {
            self.data("eval", eval, Validation::Given);
        }
        let held_out = match prepared.validation {
            Validation::HeldOut { examples, of } => {
                let are = if examples == 1 { "is" } else { "are" };
                Some(format!(
                    "{examples} of {of} examples {are} held out for validation (--eval-fraction 0 trains on all)"
                ))
            }
            Validation::TooFew { examples, needed } => Some(written(&nothing_held_out(examples, needed), as_flag)),
            Validation::Given | Validation::Off => None,
        };
        if let Some(held_out) = held_out {
            self.labeled("eval", &held_out);
        }
        prepared.hints().iter().for_each(|hint| self.warning("hint", hint));
    }

    fn data(&self, label: &str, report: &DataReport, validation: Validation) {
        if !self.json {
            return self
                .status
                .above(|| out!("{label:<7} {}", written(&report.to_string(), as_flag).replace("\n  ", "\n        ")));
        }
        let mut fields = json!(report);
        if let Validation::HeldOut { examples, .. } = validation {
            fields["held_out"] = json!(examples);
        }
        self.object(label, fields);
    }

    /// Prints a line with a label for people; nothing with `--json`.
    fn labeled(&self, label: &str, text: &str) {
        if !self.json {
            self.status.above(|| print_labeled(label, text));
        }
    }

    fn warning(&self, label: &str, warning: &Warning) {
        let message = written(&warning.message, as_flag);
        match self.json {
            true => self.object("warning", json!({ "kind": warning.kind, "message": message })),
            false => self.labeled(label, &message),
        }
    }

    pub fn plan(&self, ledger: &Ledger, kept_layers: usize, layers: usize, trained_parameters: u64, steps: usize) {
        if self.json {
            let plan = json!({
                "gpu_bytes": ledger.total(), "categories": ledger, "trained_parameters": trained_parameters,
                "layers": layers, "kept_layers": kept_layers, "steps": steps,
            });
            return self.object("plan", plan);
        }
        self.labeled("memory", &format!("{} on the device", bytes(ledger.total())));
        for (category, count) in ledger.entries() {
            self.say(format!("        {:<22} {:>9}", category.name(), bytes(count)));
        }
        if kept_layers < layers {
            let recomputed = layers - kept_layers;
            let sentence = format!("{recomputed} of {layers} layers recompute their activations, which takes time;");
            self.labeled("", &format!("{sentence} --gpu-memory SIZE or --recompute none keeps more of them"));
        }
    }

    /// Prints a line for people; nothing with `--json`.
    pub fn say(&self, line: String) {
        if !self.json {
            self.status.above(|| out!("{line}"));
        }
    }

    /// Prints one line of JSON: the name of the event, then its fields.
    fn object(&self, event: &str, fields: Value) {
        let mut object = serde_json::Map::from_iter([("event".to_owned(), json!(event))]);
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        out!("{}", Value::Object(object));
    }

    pub fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Planned { ledger, kept_layers, layers, trained_parameters, steps } => {
                self.plan(ledger, kept_layers, layers, trained_parameters, steps);
                self.say(format!(
                    "train   {}, {}",
                    counted(trained_parameters, "parameter"),
                    counted(steps as u64, "step")
                ));
                self.steps = steps;
            }
            Event::Resumed { step, from, passed_over, changed } => {
                self.resumed_after = step;
                let changed: Vec<_> = changed.iter().map(|sentence| written(sentence, as_flag)).collect();
                if self.json {
                    let fields = json!({ "step": step, "from": from, "passed_over": passed_over, "changed": changed });
                    return self.object("resumed", fields);
                }
                for sentence in passed_over {
                    self.say(sentence.clone());
                }
                self.say(format!("resumed after step {step} from {}", from.display()));
                if !changed.is_empty() {
                    self.say(format!("        not as one uninterrupted run: {} before", changed.join(", ")));
                }
            }
            Event::Loading { done, total } => {
                self.announce("loading");
                self.status.loading(done, total);
            }
            Event::Phase(phase) => self.show_phase(phase),
            Event::Step { metrics, steps } => self.show_step(metrics, steps),
            Event::Skipped { step } if self.json => self.object("skipped", json!({ "step": step })),
            Event::Skipped { step } => {
                self.say(format!("step {step}: loss or gradient were not finite; the step was skipped"));
            }
            Event::DeviceLost { step, reason, checkpoint } if self.json => {
                let fields = json!({ "step": step, "reason": reason, "checkpoint": checkpoint });
                self.object("device_lost", fields);
            }
            Event::DeviceLost { step, reason, checkpoint } => {
                let from = checkpoint.map_or("the start".to_owned(), |dir| dir.display().to_string());
                self.say(format!("the GPU device was lost after step {step} ({reason}); going on from {from}"));
            }
            Event::Evaluated(metrics) if self.json => self.object("evaluation", json!(metrics)),
            Event::Evaluated(metrics) => {
                let values = metrics.named_values().map(|(name, value)| format!(", {name} {value:.2}"));
                let (step, loss, tokens) = (metrics.step, metrics.eval_loss, metrics.eval_tokens);
                let values: String = values.collect();
                self.say(format!(
                    "eval    step {step}: loss {loss:.4}{values} over {}",
                    counted(tokens as u64, "token")
                ));
            }
            Event::Warning(warning) => self.warning("warning", warning),
            Event::Saved(path) if self.json => self.object("saved", json!({ "path": path })),
            Event::Saved(path) => self.say(format!("saved   {}", path.display())),
        }
    }

    fn show_phase(&mut self, phase: Phase) {
        self.announce(phase.name());
        let Phase::Step { step, done, total } = phase else { return self.status.work(phase) };
        self.started.get_or_insert_with(Instant::now);
        let count = Some(Count::Items(done, total));
        match self.last {
            Some(training) => self.status.training(training, count),
            None => self.status.phase(&format!("step {step} of {}", self.steps), count),
        }
    }

    fn show_step(&mut self, metrics: &StepMetrics, steps: usize) {
        let smoothed = self.smoothed.map_or(metrics.loss, |s| s + 0.1 * (metrics.loss - s));
        self.smoothed = Some(smoothed);
        let StepMetrics { step, loss, tokens_per_s, .. } = *metrics;
        let left = time_left(metrics, steps);
        if self.json {
            let mut fields = json!(metrics);
            fields["steps"] = json!(steps);
            fields["elapsed_seconds"] = json!(self.elapsed().as_secs_f64());
            fields["eta_seconds"] = json!(left.as_secs_f64());
            return self.object("step", fields);
        }
        if self.step_lines {
            let (lr, grad_norm) = (metrics.lr, metrics.grad_norm);
            let shown = ["rewards/accuracies", "rewards/margins"].into_iter();
            let value = |name| metrics.values.get(name).map(|value| format!("  {name} {value:.3}"));
            let values: String = shown.filter_map(value).collect();
            self.say(format!(
                "step {step}/{steps}  loss {loss:.4}{values}  smoothed {smoothed:.4}  lr {lr:.2e}  grad norm {grad_norm:.3}  \
                 {tokens_per_s:.0} tokens/s"
            ));
        }
        let training = Training { step, steps, loss, smoothed, tokens_per_s, left };
        self.last = Some(training);
        self.status.training(training, None);
    }

    fn elapsed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// Takes the moving line away.
    pub fn finish(&mut self) {
        self.status.clear();
    }

    /// Prints the memory plan for programs.
    pub fn answer(&self, when: &str, question: &str, answer: &str) {
        if self.json {
            self.object("answer", json!({ "when": when, "question": question, "answer": answer }));
        }
    }

    /// Says which share of held-out questions is answered as it should be preferred.
    pub fn preferred(&self, before: f64, after: f64) {
        if self.json {
            return self.object("preferred", json!({ "before": before, "after": after }));
        }
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let (before, after) = (percent(before), percent(after));
        self.say(format!("preferred answers to held-out questions: {before} before, {after} after"));
    }

    pub fn profile(&self, profile: &Profile) {
        if !self.json {
            out!("{}", profile_table(&profile.shares()));
            return;
        }
        let operation =
            |(op, (seconds, calls)): (&_, &(f64, _))| json!({ "operation": op, "seconds": seconds, "calls": calls });
        let operations: Vec<Value> = profile.ops.iter().map(operation).collect();
        self.object("profile", json!({ "operations": operations }));
    }

    /// Prints the speed, the losses before and after, and the signs that the run went wrong.
    pub fn results(&self, outcome: &Outcome) {
        if let Some(Training { tokens_per_s, .. }) = self.last {
            let (steps, time) = (counted((outcome.step - self.resumed_after) as u64, "step"), duration(self.elapsed()));
            out!("trained {steps} in {time}, {tokens_per_s:.0} tokens/s");
        }
        if let (Some(first), Some(last)) = (&outcome.first_eval, &outcome.last_eval) {
            out!("validation loss {:.4} before, {:.4} after", first.eval_loss, last.eval_loss);
        }
        outcome.warnings.iter().for_each(|warning| self.warning("warning", warning));
    }

    /// Prints the result and the command that tries it.
    pub fn summary(&self, outcome: &Outcome, out: &Path, full: bool, next: &str) {
        if self.json {
            let end = json!({
                "out": out, "step": outcome.step, "interrupted": outcome.interrupted, "loss_svg": outcome.loss_svg,
                "first_eval": outcome.first_eval, "last_eval": outcome.last_eval, "best": outcome.best,
                "stopped_early": outcome.stopped_early, "warnings": warnings(outcome),
                "group": outcome.group.as_ref().map(group_object), "next": next,
            });
            return self.object("end", end);
        }
        self.results(outcome);
        if outcome.stopped_early {
            out!("stopped early after step {}: the validation loss had not become lower", outcome.step);
        }
        if let Some(best) = &outcome.best {
            out!("best    step {}: validation loss {:.4}; the result is of this step", best.step, best.eval_loss);
        }
        if outcome.interrupted {
            let settings = shell_word(&out.join("run.toml"));
            out!("stopped after step {}; go on: loraine train --config {settings} --resume", outcome.step);
        }
        if let Some(group) = outcome.group.as_ref().filter(|group| group.ranks.len() > 1) {
            show_group(group);
        }
        let what = if full { "model  " } else { "adapter" };
        out!("{what} {}   curve {}", out.display(), outcome.loss_svg.display());
        if !outcome.warnings.is_empty() {
            return print_labeled("", "It was saved all the same. Read the warnings before you use it.");
        }
        out!("try it: {next}");
    }
}

/// Ranks of which one is slower than another by more than this are shown with their speeds.
const UNEQUAL: f64 = 1.25;

fn group_object(group: &GroupUsage) -> Value {
    json!({
        "speeds": group.speeds(), "exchange_share": group.share_of(group.exchange),
        "waiting_share": group.share_of(group.waiting),
    })
}

fn show_group(group: &GroupUsage) {
    let percent = |seconds| 100.0 * group.share_of(seconds);
    out!(
        "group   {} GPUs; exchange took {:.1}% of the time, waiting for others {:.1}%",
        group.ranks.len(),
        percent(group.exchange),
        percent(group.waiting)
    );
    let speeds = group.speeds();
    let fastest = speeds.iter().copied().fold(0.0, f64::max);
    let slowest = speeds.iter().copied().filter(|speed| *speed > 0.0).fold(f64::INFINITY, f64::min);
    if fastest > UNEQUAL * slowest {
        let shown: Vec<String> = speeds.iter().map(|speed| format!("{speed:.2}")).collect();
        out!("        micro-batches per second of each: {}; --share auto divides the work by speed", shown.join(", "));
    }
}

/// The signs that a run went wrong, for programs.
fn warnings(outcome: &Outcome) -> Vec<Value> {
    let object = |w: &Warning| json!({ "kind": w.kind, "message": written(&w.message, as_flag) });
    outcome.warnings.iter().map(object).collect()
}

/// The time that the remaining steps take, if they have as many tokens and go as fast as those so far.
fn time_left(metrics: &StepMetrics, steps: usize) -> Duration {
    let per_step = metrics.tokens as f64 / metrics.step.max(1) as f64;
    let seconds = steps.saturating_sub(metrics.step) as f64 * per_step / metrics.tokens_per_s;
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
