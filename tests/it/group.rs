//! Several GPUs that train one model: threads (`--gpu 0,1`), and processes where the program is built with `--features mpi`.

#[cfg(feature = "mpi")]
use std::process::Command;

use serde_json::Value;

use crate::common::assert_close;
#[cfg(not(feature = "mpi"))]
use crate::common::cli::assert_fails;
#[cfg(feature = "mpi")]
use crate::common::cli::texts;
use crate::common::cli::{Shell, random_lines, train_on};

const METHODS: [&str; 3] = ["--method qlora", "--method lora --dropout 0.1", "--method full"];

fn shell() -> Shell {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(17, 96, 1));
    shell.write("held_out.jsonl", random_lines(7, 96, 2));
    shell
}

fn train(out: &str, options: &str) -> String {
    format!(
        "{} --data data.jsonl --eval-data held_out.jsonl --batch-size 1 --eval-every 5 --lr 0.003 --out {out} {options}",
        train_on("llama_tied")
    )
}

/// The same adapter so many times, as `--gpu` takes it.
pub fn gpus(shell: &Shell, count: usize) -> String {
    let info: Value = serde_json::from_str(&shell.succeed("info --json")).unwrap();
    let index = info["default_gpu"].to_string();
    format!("--gpu {}", vec![index; count].join(","))
}

/// The command under `mpirun`, for each part of `parts` a process of its own.
#[cfg(feature = "mpi")]
fn under_mpi(shell: &Shell, parts: &[String]) -> Command {
    let own = shell.command("");
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none"]);
    for (at, part) in parts.iter().enumerate() {
        if at > 0 {
            command.arg(":");
        }
        command.args(["-n", "1"]).arg(own.get_program()).args(part.split_whitespace());
    }
    command.current_dir(shell.path(".")).stdin(std::process::Stdio::null());
    for (key, value) in own.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    // Containers often have no other user.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

#[cfg(feature = "mpi")]
fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let (shown, problems) = texts(&output);
    assert!(output.status.success(), "{command:?}\n{shown}{problems}");
    shown
}

/// Trains with `count` ranks that are threads, and once more with as many processes.
fn train_together(shell: &Shell, count: usize, out: &str, options: &str) -> Vec<String> {
    let threads = format!("{out}-threads");
    shell.succeed(&train(&threads, &format!("{options} {}", gpus(shell, count))));
    #[cfg_attr(not(feature = "mpi"), expect(unused_mut, reason = "threads are all that there is without MPI"))]
    let mut runs = vec![threads];
    #[cfg(feature = "mpi")]
    {
        let processes = format!("{out}-processes");
        succeed(&mut under_mpi(shell, &vec![train(&processes, options); count]));
        runs.push(processes);
    }
    runs
}

fn values(shell: &Shell, run: &str, full: bool) -> crate::common::Reference {
    match full {
        true => crate::common::Reference::read(&shell.path(run).join("model.safetensors")),
        false => shell.adapter(run),
    }
}

/// Every number of the metrics is that of the other run within `bound`.
pub fn assert_same_numbers(shell: &Shell, [one, other]: [&str; 2], bound: f64) {
    let [a, b] = [one, other].map(|run| shell.timeless_metrics(run));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        for (name, value) in a.as_object().unwrap() {
            let (Some(x), Some(y)) = (value.as_f64(), b[name].as_f64()) else { continue };
            let is_memory = name == "gpu_bytes";
            assert!(is_memory || (x - y).abs() <= bound * x.abs().max(y.abs()), "{other}: {name} is {y}, not {x}\n{a}");
        }
    }
}

#[test]
fn ranks_are_one_gpu_with_as_many_micro_batches() {
    let shell = shell();
    for method in METHODS {
        let full = method.ends_with("full");
        shell.succeed(&train("one", &format!("{method} --steps 20 --grad-accum 4 --overwrite")));
        for count in [2, 4] {
            let options = format!("{method} --steps 20 --grad-accum {} --overwrite", 4 / count);
            for run in train_together(&shell, count, "group", &options) {
                assert_same_numbers(&shell, ["one", &run], 1e-6);
                let (alone, together) = (values(&shell, "one", full), values(&shell, &run, full));
                for name in alone.names() {
                    assert_close(name, together.get(name), alone.get(name), 1e-5);
                }
            }
        }
    }
}

#[test]
fn ranks_that_share_out_moments_repeat_to_the_bit() {
    let shell = shell();
    for optim in ["adamw", "adamw8bit"] {
        let options = format!("--method full --optim {optim} --steps 6 --grad-accum 1 --overwrite");
        let mut runs = train_together(&shell, 3, "first", &options);
        runs.extend(train_together(&shell, 3, "second", &options));
        let model = |run: &str| std::fs::read(shell.path(run).join("model.safetensors")).unwrap();
        for run in &runs[1..] {
            assert!(model(&runs[0]) == model(run), "{optim}: {run} differs");
            assert_eq!(shell.timeless_metrics(&runs[0]), shell.timeless_metrics(run));
        }
    }
}

#[test]
fn the_memory_of_shared_out_moments_is_the_estimate() {
    let shell = Shell::new();
    shell.write("data.jsonl", format!("{{\"input_ids\": {:?}}}\n", (1..=32).collect::<Vec<u32>>()).repeat(16));
    let sizes = |optim: &str| format!("--method full --optim {optim}");
    for optim in ["adamw", "adamw8bit"] {
        let mut last = u64::MAX;
        for count in [1, 2, 4] {
            let index = gpus(&shell, 1);
            let command = train_on("llama_tied").replacen("train", "estimate", 1);
            let args = format!("{command} {} --json --max-seq-len 32 --world-size {count} {index}", sizes(optim));
            let estimate: Value = serde_json::from_str(&shell.succeed(&args)).unwrap();
            let options = format!("{} --steps 1 --overwrite --out run {}", sizes(optim), gpus(&shell, count));
            shell.succeed(&format!("{} --data data.jsonl {options}", train_on("llama_tied")));
            let bytes = shell.metrics("run")[0]["gpu_bytes"].as_u64().unwrap();
            assert_eq!(estimate[0]["gpu_bytes"].as_u64(), Some(bytes), "{optim} on {count}");
            assert!(bytes < last, "{optim}: {bytes} on {count}, {last} on fewer");
            last = bytes;
        }
    }
}

#[test]
fn a_group_repeats_to_the_bit() {
    let shell = shell();
    let options = "--method lora --dropout 0.1 --steps 6 --grad-accum 2";
    let mut runs = train_together(&shell, 3, "first", options);
    runs.extend(train_together(&shell, 3, "second", options));
    for run in &runs[1..] {
        shell.assert_same_adapter("ranks", [&runs[0], run]);
        assert_eq!(shell.timeless_metrics(&runs[0]), shell.timeless_metrics(run));
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    for method in ["--method qlora", "--method full", "--method full --optim adamw8bit"] {
        let shell = shell();
        let full = !method.ends_with("qlora");
        let options = format!("{method} --grad-accum 1 --world-size 4 --schedule constant --save-every 4");
        shell.succeed(&train("whole", &format!("{options} --steps 12")));
        shell.succeed(&train("parts", &format!("{options} --steps 4 {}", gpus(&shell, 4))));
        shell.succeed(&format!("train --resume parts --steps 8 {}", gpus(&shell, 2)));
        shell.succeed("train --resume parts --steps 12");
        let [one, other] = ["whole", "parts"].map(|run| shell.losses(run));
        assert_eq!(one.len(), 12);
        for (x, y) in one.iter().zip(&other) {
            assert!((x - y).abs() <= 1e-6 * x, "{method}: {one:?}\n{other:?}");
        }
        let [one, other] = ["whole", "parts"].map(|run| values(&shell, run, full));
        for name in one.names() {
            assert_close(name, other.get(name), one.get(name), 1e-5);
        }
    }
}

#[test]
fn preferences_are_shared_out_too() {
    let shell = Shell::new();
    crate::preferences::demo_model(&shell);
    let train = |out: &str, options: &str| {
        format!(
            "train --model demo/model --data pairs.jsonl --eval-fraction 0.2 --eval-every 3 --batch-size 2 --max-seq-len 96 --lr 0.001 \
             --out {out} {options}"
        )
    };
    for objective in ["dpo", "orpo"] {
        let options = format!("--objective {objective} --steps 6 --overwrite --grad-accum");
        shell.succeed(&train("one", &format!("{options} 2")));
        shell.succeed(&train("two", &format!("{options} 1 {}", gpus(&shell, 2))));
        assert_same_numbers(&shell, ["one", "two"], 1e-5);
    }
}

fn evaluate(data: &str, options: &str) -> String {
    format!("{} --data {data} --json {options}", train_on("llama_tied").replacen("train", "eval", 1))
}

/// The results of an evaluation on one GPU, on `count` threads, and on as many processes.
fn evaluate_together(shell: &Shell, args: &str, count: usize) -> Vec<Value> {
    let result = |shown: String| serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}"));
    let mut results = vec![result(shell.succeed(args))];
    results.push(result(shell.succeed(&format!("{args} {}", gpus(shell, count)))));
    #[cfg(feature = "mpi")]
    results.push(result(succeed(&mut under_mpi(shell, &vec![args.to_owned(); count]))));
    results
}

fn assert_same_evaluation(results: &[Value]) {
    let alone = results[0].as_object().unwrap();
    assert!(alone["loss"].as_f64().is_some_and(|loss| loss > 0.0) && alone["tokens"].as_u64() > Some(0), "{alone:?}");
    for together in &results[1..] {
        assert_eq!(alone.len(), together.as_object().unwrap().len(), "{together}");
        for (name, value) in alone {
            match value.as_f64() {
                Some(x) => {
                    let y = together[name].as_f64().unwrap();
                    assert!((x - y).abs() <= 1e-6 * x.abs().max(y.abs()), "{name} is {y}, not {x}");
                }
                None => assert_eq!(*value, together[name], "{name}"),
            }
        }
    }
}

#[test]
fn an_evaluation_is_that_of_one_gpu() {
    let shell = shell();
    // The last two leave a rank without a batch.
    for (count, batch_size) in [(2, 1), (3, 2), (3, 4), (2, 8)] {
        let args = evaluate("held_out.jsonl", &format!("--batch-size {batch_size}"));
        assert_same_evaluation(&evaluate_together(&shell, &args, count));
    }
}

#[test]
fn an_evaluation_of_preferences_is_that_of_one_gpu() {
    let shell = Shell::new();
    crate::preferences::demo_model(&shell);
    let of = "--model demo/model --data pairs.jsonl --batch-size 2 --max-seq-len 96 --objective dpo";
    shell.succeed(&format!("train {of} --eval-fraction 0 --steps 4 --lr 0.01 --out run"));
    let results = evaluate_together(&shell, &format!("eval {of} --adapter run --json"), 2);
    assert_same_evaluation(&results);
    // An adapter that has learned is told from its reference.
    assert!(
        results[0]["loss"].as_f64().is_some_and(|loss| (loss - std::f64::consts::LN_2).abs() > 1e-4),
        "{results:?}"
    );
}

#[test]
fn work_that_is_divided_by_speed_changes_nothing_but_roundings() {
    let shell = shell();
    shell.succeed(&train("one", "--steps 12 --grad-accum 4"));
    let options = format!("--steps 12 --grad-accum 2 --share auto {}", gpus(&shell, 2));
    let shown = shell.succeed(&train("two", &options));
    assert_same_numbers(&shell, ["one", "two"], 1e-6);
    assert!(shown.contains("group   2 GPUs; exchange took "), "{shown}");
}

#[test]
fn an_error_of_one_gpu_ends_the_run() {
    let shell = shell();
    shell.fail(&train("run", "--steps 2 --gpu 0,99"), &["99"]);
    shell.fail(&evaluate("held_out.jsonl", "--gpu 0,99"), &["99"]);
    assert!(shell.names("run").is_empty());
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_program_without_mpi_says_so() {
    let shell = shell();
    let args = train("run", "--steps 2");
    let mut command = shell.command(&args);
    command.env("OMPI_COMM_WORLD_SIZE", "2");
    assert_fails(&mut command, &args, &["--features mpi"]);
}

#[cfg(feature = "mpi")]
mod processes {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn ranks_that_would_train_something_else_are_refused() {
        let shell = shell();
        shell.write("other.jsonl", random_lines(17, 96, 3));
        let own = train("run", "--steps 3");
        for (other, says) in [
            (own.replace("data.jsonl --eval", "other.jsonl --eval"), "the training data"),
            (own.replace("llama_tied", "llama_untied"), "the base model"),
            (format!("{own} --rank 3"), "--rank 3 here, but 16"),
            (own.replace("held_out", "other"), "held-out"),
        ] {
            let output = under_mpi(&shell, &[own.clone(), other]).output().unwrap();
            let (_, problems) = texts(&output);
            let error = problems.lines().find(|line| line.starts_with("error: rank 1"));
            let error = error.unwrap_or_else(|| panic!("no error of rank 1:\n{problems}"));
            assert!(!output.status.success() && error.contains(says), "{says}:\n{problems}");
            assert!(shell.names("run").is_empty(), "{:?}", shell.names("run"));
        }
    }

    #[test]
    fn ranks_that_would_evaluate_something_else_are_refused() {
        let shell = shell();
        let own = evaluate("held_out.jsonl", "");
        for (other, says) in [
            (own.replace("held_out", "data"), "the data (--data data.jsonl)"),
            (own.replace("llama_tied", "llama_untied"), "the base model (--model "),
            (format!("{own} --batch-size 3"), "the batch size (--batch-size 3)"),
            (format!("{own} --quant nf4"), "the storage of the base (--quant)"),
        ] {
            let output = under_mpi(&shell, &[own.clone(), other]).output().unwrap();
            let (shown, problems) = texts(&output);
            let error = problems.lines().find(|line| line.starts_with("error: rank 1"));
            let error = error.unwrap_or_else(|| panic!("no error of rank 1:\n{problems}"));
            assert!(!output.status.success() && error.contains(says), "{says}:\n{problems}");
            // With --json, the error is an event too.
            assert!(!shown.contains("perplexity"), "{shown}");
        }
    }

    #[test]
    fn a_killed_rank_ends_all_and_the_run_goes_on() {
        let shell = shell();
        let options = "--world-size 2 --schedule constant --save-every 1 --log-every 1 --keep 2";
        shell.succeed(&train("whole", &format!("{options} --steps 60")));
        for kill in 0..2 * crate::common::soak() {
            let run = format!("run{kill}");
            let started = Instant::now();
            let mut command = under_mpi(&shell, &vec![train(&run, &format!("{options} --steps 1000")); 2]);
            let quiet = std::process::Stdio::null;
            let mut running = command.stdout(quiet()).stderr(quiet()).spawn().unwrap();
            let step = || shell.names(&format!("{run}/checkpoints")).iter().any(|name| name.starts_with("step-"));
            while !step() {
                assert!(started.elapsed() < Duration::from_secs(60), "no step");
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(Duration::from_millis(37 * (kill % 11)));
            let children = Command::new("pgrep").args(["-P", &running.id().to_string(), "loraine"]).output().unwrap();
            let ids = String::from_utf8(children.stdout).unwrap();
            let ids: Vec<&str> = ids.split_whitespace().collect();
            assert_eq!(ids.len(), 2, "{ids:?}");
            Command::new("kill").args(["-9", ids[kill as usize % 2]]).status().unwrap();
            let killed = Instant::now();
            let status = running.wait().unwrap();
            assert!(!status.success() && killed.elapsed() < Duration::from_secs(30), "{status}");
            let reached = shell.metrics(&run).iter().filter_map(|line| line["step"].as_u64()).max().unwrap_or(0);
            assert!(reached < 60, "step {reached}: the run was too fast to be stopped within the steps compared");
            succeed(&mut under_mpi(&shell, &vec![format!("train --resume {run} --steps 60"); 2]));
            let [one, other] = ["whole", &run].map(|run| shell.losses(run));
            assert_eq!(one.len(), other.len());
            for (x, y) in one.iter().zip(&other) {
                assert!((x - y).abs() <= 1e-6 * x, "{x} {y}");
            }
        }
    }
}
