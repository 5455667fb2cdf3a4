//! Runs that are killed or stopped: what lies on the disk afterwards is whole, and the run goes on as if nothing had been.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::cli::{Shell, random_lines, train_on};
use crate::common::fixture;
use loraine::lora::adapter_file;
use loraine::model::config::ModelConfig;
use loraine::network::moments::MomentStorage;
use loraine::random::{Stream, uniform};
use loraine::train::checkpoint::{self, Trainable};

/// A small run with everything that a checkpoint must carry: dropout, losses not yet logged, evaluations.
fn train(shell: &Shell, out: &str, steps: usize) -> String {
    train_with(shell, "llama_tied", "--rank 2 --target-modules q_proj,v_proj", out, steps)
}

fn train_with(shell: &Shell, model: &str, options: &str, out: &str, steps: usize) -> String {
    shell.write("data.jsonl", random_lines(11, 96, 1));
    shell.write("held_out.jsonl", random_lines(2, 96, 2));
    format!(
        "{} --data data.jsonl --eval-data held_out.jsonl --eval-every 5 --steps {steps} --lr 0.01 --schedule constant \
         --dropout 0.1 --batch-size 2 --log-every 3 {options} --out {out}",
        train_on(model)
    )
}

/// The newest checkpoint's step, 0 where there is none; every checkpoint that has its name must be whole.
fn newest_whole_step(shell: &Shell, config: &ModelConfig, storage: MomentStorage) -> usize {
    let mut newest = 0;
    for name in shell.names("killed/checkpoints").iter().filter(|name| !name.starts_with('.')) {
        let dir = shell.path(&format!("killed/checkpoints/{name}"));
        let adapter = adapter_file::load(&dir, config).expect("a whole adapter");
        let trainable = Trainable::Adapter { config: &adapter.config, modules: &adapter.modules };
        let found = checkpoint::load(&dir, config, trainable, storage).expect("a whole checkpoint");
        assert_eq!(*name, format!("step-{}", found.state.step));
        newest = newest.max(found.state.step);
    }
    newest
}

#[test]
fn a_run_killed_fifty_times_ends_as_if_it_had_never_been() {
    let options = "--rank 2 --target-modules q_proj,v_proj";
    kill_and_compare("llama_tied", options, MomentStorage::F32, 50);
}

#[test]
fn a_killed_run_with_moments_in_8_bits_ends_as_if_it_had_never_been() {
    // Of these factors some have moments in 8 bits, and some are too small for it.
    kill_and_compare("odd_sizes", "--optim adamw8bit --rank 64", MomentStorage::EightBit, 12);
}

fn kill_and_compare(model: &str, options: &str, storage: MomentStorage, kills: u64) {
    let shell = Shell::new();
    let train = |shell: &Shell, out: &str, steps| train_with(shell, model, options, out, steps);
    let config = ModelConfig::from_file(&fixture(model).join("config.json")).unwrap();
    let started = Instant::now();
    shell.succeed(&format!("{} --save-every 1", train(&shell, "measured", 10)));
    let whole = started.elapsed();

    let (mut reached, mut runs_with_steps) = (0, 0);
    for kill in 0..kills {
        let start = if reached > 0 { "--resume" } else { "--overwrite" };
        let mut command = shell.command(&format!("{} --save-every 1 {start}", train(&shell, "killed", 1_000_000)));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From the start of the process, over loading, into saving and steps.
        let share = f64::from(uniform(11, Stream::Sampling, 0, kill));
        std::thread::sleep(Duration::from_secs_f64(1.5 * share * whole.as_secs_f64()));
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        let step = newest_whole_step(&shell, &config, storage);
        assert!(step >= reached, "kill {kill}: step {step} after {reached}");
        runs_with_steps += u64::from(step > reached);
        reached = step;
    }
    assert!((kills / 10..kills).contains(&runs_with_steps), "{runs_with_steps} of {kills} kills came after a step");

    let steps = reached + 7;
    let shown = shell.succeed(&format!("{} --save-every 1 --resume", train(&shell, "killed", steps)));
    assert!(shown.contains(&format!("resumed after step {reached} ")), "{shown}");
    shell.succeed(&train(&shell, "whole", steps));
    shell.assert_same_adapter("killed", ["whole", "killed"]);
    assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("killed"));
    let left: Vec<String> = shell.names("killed").into_iter().chain(shell.names("killed/checkpoints")).collect();
    assert!(!left.iter().any(|name| name.starts_with('.')), "{left:?}");
}

#[test]
fn ctrl_c_finishes_the_step_saves_and_says_how_to_go_on() {
    let shell = Shell::new();
    const STEPS: usize = 400;
    let mut command = shell.command(&train(&shell, "stopped", STEPS));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut shown = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    while !shown.contains("step 6/") {
        assert!(lines.read_line(&mut shown).unwrap() > 0, "{shown}");
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    lines.read_to_string(&mut shown).unwrap();
    let mut problems = String::new();
    child.stderr.take().unwrap().read_to_string(&mut problems).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{shown}{problems}");
    assert!(problems.contains("stopping after this step and saving"), "{problems}");

    let advice = shown.split_once("; go on: loraine ").expect("a way to go on").1.lines().next().unwrap();
    assert_eq!(advice, "train --config stopped/run.toml --resume");
    let config = ModelConfig::from_file(&fixture("llama_tied/config.json")).unwrap();
    adapter_file::load(&shell.path("stopped"), &config).expect("the adapter as it was at the stop");
    let shown = shell.succeed(advice);
    assert!(shown.contains("resumed after step ") && shown.contains(&format!("step {STEPS}/{STEPS}")), "{shown}");
    shell.succeed(&train(&shell, "whole", STEPS));
    shell.assert_same_adapter("stopped", ["whole", "stopped"]);
    assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("stopped"));
}

/// `train && merge` must not merge a part of a run.
#[test]
fn a_stopped_run_saves_and_ends_with_the_status_of_its_signal() {
    let config = ModelConfig::from_file(&fixture("llama_tied/config.json")).unwrap();
    for (signal, status, ignored) in [("TERM", 143, false), ("HUP", 129, false), ("INT", 130, true)] {
        if signal == "HUP" && hangups_are_ignored() {
            eprintln!("skipped: SIGHUP is ignored here, as under nohup, and runs inherit that");
            continue;
        }
        let shell = Shell::new();
        let mut command = shell.command(&train(&shell, "stopped", 1_000_000));
        if ignored {
            // As in a background job of a script.
            command = through_shell("trap '' INT", &command);
        }
        let (shown, found) = stop_after_six_steps(command, &[signal]);
        assert_eq!(found, Some(status), "{signal}: {shown}");
        assert!(shown.contains("go on: loraine train --config stopped/run.toml --resume"), "{shown}");
        adapter_file::load(&shell.path("stopped"), &config).expect("the adapter as it was at the stop");
    }
}

/// nohup has SIGHUP ignored, so that a run outlives its terminal.
#[test]
fn a_run_under_nohup_goes_on_when_its_terminal_is_closed() {
    let shell = Shell::new();
    let command = through_shell("trap '' HUP", &shell.command(&train(&shell, "stopped", 1_000_000)));
    let (shown, found) = stop_after_six_steps(command, &["HUP", "TERM"]);
    assert_eq!(found, Some(143), "{shown}");
}

/// True where the tests themselves were started with SIGHUP ignored; false where the system does not tell.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// The command, started by a shell that has run `first`.
fn through_shell(first: &str, command: &Command) -> Command {
    let mut through = Command::new("sh");
    through.args(["-c", &format!("{first}; exec \"$0\" \"$@\"")]).arg(command.get_program()).args(command.get_args());
    through.current_dir(command.get_current_dir().unwrap()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => through.env(name, value),
            None => through.env_remove(name),
        };
    }
    through
}

/// Sends the signals to a run, each after some steps; what it printed, and its exit status.
fn stop_after_six_steps(mut command: Command, signals: &[&str]) -> (String, Option<i32>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut shown = String::new();
    for (i, signal) in signals.iter().enumerate() {
        let seen = shown.matches("\nstep ").count();
        while shown.matches("\nstep ").count() < seen + 2 {
            assert!(lines.read_line(&mut shown).unwrap() > 0, "signal {i}: {shown}");
        }
        // A closed terminal sends its signal twice, by the shell and by the system.
        for _ in 0..if *signal == "HUP" { 2 } else { 1 } {
            let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
            assert!(sent.success());
        }
    }
    lines.read_to_string(&mut shown).unwrap();
    (shown, child.wait().unwrap().code())
}

#[test]
fn a_directory_after_resume_names_the_run_or_one_of_its_checkpoints() {
    let shell = Shell::new();
    const STEPS: usize = 12;
    shell.succeed(&format!("{} --save-every 3 --keep 9", train(&shell, "whole", STEPS)));
    shell.succeed(&format!("{} --save-every 3 --keep 9", train(&shell, "again", STEPS)));
    let checkpoints = ["step-12", "step-3", "step-6", "step-9"];
    assert_eq!(shell.names("again/checkpoints"), checkpoints);
    let shown = shell.succeed("train --resume again/checkpoints/step-6 --steps 8");
    assert!(shown.contains("resumed after step 6 "), "{shown}");
    assert!(!shell.names("again/checkpoints").contains(&"step-9".to_owned()), "later checkpoints are given up");
    let last = shell.metrics("again").pop().expect("a line");
    assert_eq!(last["step"], 8, "{last}");

    shell.succeed(&format!("{} --save-every 3 --keep 9 --overwrite", train(&shell, "again", STEPS)));
    let shown = shell.succeed("train --resume again/checkpoints/step-6");
    assert!(shown.contains("resumed after step 6 ") && shown.contains("step 12/12"), "{shown}");
    assert_eq!(shell.names("again/checkpoints"), checkpoints);
    shell.assert_same_adapter("again", ["whole", "again"]);
    assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("again"));

    let shown = shell.succeed("train --resume again --steps 12");
    assert!(shown.contains("resumed after step 12 "), "{shown}");
    shell.fail("train --resume nowhere", &["nowhere", "neither a run with checkpoints/"]);
    let shown = shell.succeed("train --resume again/checkpoints/step-6 --out other");
    assert!(shown.contains("resumed after step 6 "), "{shown}");
    shell.assert_same_adapter("other", ["whole", "other"]);
    assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("other"));
}
