//! Shows a run: lines and a progress bar for people, or one JSON object per line for programs.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use loraine::data::read::DataReport;
use loraine::gpu::{Ledger, Profile};
use loraine::setting::{as_flag, written};
use loraine::train::event::{Event, Outcome};
use loraine::train::output::StepMetrics;
use serde_json::{Value, json};

use super::show::{bytes, profile_table, shell_word};

pub struct RunView {
    json: bool,
    bar: Option<ProgressBar>,
    /// True if a terminal can show a progress bar.
    interactive: bool,
    smoothed: Option<f64>,
    loading: bool,
}

impl RunView {
    pub fn new(json: bool) -> Self {
        let interactive = !json && std::io::stderr().is_terminal();
        Self { json, bar: None, interactive, smoothed: None, loading: false }
    }

    pub fn data(&self, label: &str, report: &DataReport) {
        match self.json {
            true => self.object(label, json!(report)),
            false => out!("{label:<7} {}", written(&report.to_string(), as_flag).replace("\n  ", "\n        ")),
        }
    }

    pub fn plan(&self, ledger: &Ledger, kept_layers: usize, layers: usize, steps: usize) {
        if self.json {
            let categories: serde_json::Map<_, _> =
                ledger.entries().map(|(category, count)| (category.name().to_owned(), json!(count))).collect();
            let plan = json!({
                "gpu_bytes": ledger.total(), "categories": categories, "kept_layers": kept_layers, "layers": layers,
                "steps": steps,
            });
            return self.object("plan", plan);
        }
        out!("memory  {} on the device", bytes(ledger.total()));
        for (category, count) in ledger.entries() {
            out!("        {:<22} {:>9}  ({count} bytes)", category.name(), bytes(count));
        }
        if kept_layers < layers {
            out!("        {} of {layers} layers recompute their activations, which takes time;", layers - kept_layers);
            out!("        --gpu-memory SIZE or --recompute none keeps more of them");
        }
    }

    /// Prints a line for people; nothing with `--json`.
    pub fn say(&self, line: String) {
        match &self.bar {
            _ if self.json => {}
            Some(bar) => bar.suspend(|| out!("{line}")),
            None => out!("{line}"),
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
                self.plan(ledger, kept_layers, layers, steps);
                self.say(format!("train   {trained_parameters} parameters, {steps} steps"));
            }
            Event::Resumed { step, from, passed_over, changed } => {
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
            Event::Loading { done, total } => self.show_loading(done, total),
            Event::Step { metrics, .. } if self.json => self.object("step", json!(metrics)),
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
                self.say(format!("eval    step {step}: loss {loss:.4}{values} over {tokens} tokens"));
            }
            Event::Saved(path) if self.json => self.object("saved", json!({ "path": path })),
            Event::Saved(path) => self.say(format!("saved   {}", path.display())),
        }
    }

    fn show_loading(&mut self, done: u64, total: u64) {
        if !self.interactive {
            return;
        }
        if !self.loading {
            self.loading = true;
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template("load    {bar:30} {bytes}/{total_bytes}") {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if done == total {
                bar.finish_and_clear();
                self.bar = None;
            }
        }
    }

    fn show_step(&mut self, metrics: &StepMetrics, steps: usize) {
        let smoothed = self.smoothed.map_or(metrics.loss, |s| s + 0.1 * (metrics.loss - s));
        self.smoothed = Some(smoothed);
        if !self.interactive {
            out!(
                "step {}/{steps}  loss {:.4}  smoothed {smoothed:.4}  lr {:.2e}  grad norm {:.3}  {:.0} tokens/s",
                metrics.step,
                metrics.loss,
                metrics.lr,
                metrics.grad_norm,
                metrics.tokens_per_s
            );
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(steps as u64);
            let template = "{bar:24} {pos}/{len}  {msg}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        bar.set_position(metrics.step as u64);
        bar.set_message(format!(
            "loss {:.4} (smoothed {smoothed:.4})  {:.0} tokens/s  {}",
            metrics.loss,
            metrics.tokens_per_s,
            bytes(metrics.gpu_bytes)
        ));
    }

    /// Ends the progress bar and leaves it on the screen.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }

    /// Prints the memory plan for programs.
    pub fn answer(&self, when: &str, question: &str, answer: &str) {
        if self.json {
            self.object("answer", json!({ "when": when, "question": question, "answer": answer }));
        }
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

    /// Prints the result and the command that tries it.
    pub fn summary(&self, outcome: &Outcome, out: &Path, full: bool, next: &str) {
        if self.json {
            let end = json!({
                "out": out, "step": outcome.step, "interrupted": outcome.interrupted, "loss_svg": outcome.loss_svg,
                "first_eval": outcome.first_eval, "last_eval": outcome.last_eval, "best": outcome.best,
                "stopped_early": outcome.stopped_early,
                "next": next,
            });
            return self.object("end", end);
        }
        if let (Some(first), Some(last)) = (&outcome.first_eval, &outcome.last_eval) {
            out!("held-out loss {:.4} before, {:.4} after", first.eval_loss, last.eval_loss);
        }
        if outcome.stopped_early {
            out!("stopped early after step {}: the held-out loss had not become lower", outcome.step);
        }
        if let Some(best) = &outcome.best {
            out!("best    step {}: held-out loss {:.4}; the result is of this step", best.step, best.eval_loss);
        }
        if outcome.interrupted {
            let settings = shell_word(&out.join("run.toml"));
            out!("stopped after step {}; go on: loraine train --config {settings} --resume", outcome.step);
        }
        let what = if full { "model  " } else { "adapter" };
        out!("{what} {}   curve {}", out.display(), outcome.loss_svg.display());
        out!("try it: {next}");
    }
}
