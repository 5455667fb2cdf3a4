//! Faults of the machine: system calls that fail or never return, two programs that write to one place, and damage on the disk.
//! `make soak` tries many more of each; `LORAINE_SOAK` is the factor.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::cli::{Shell, copy_files, edit, random_lines, texts, train_on};
use crate::common::{fixture, soak};
use loraine::lora::adapter_file;
use loraine::model::config::ModelConfig;
use loraine::network::moments::MomentStorage;
use loraine::random::{Stream, bits};
use loraine::train::checkpoint::{self, Trainable};

fn shell() -> Shell {
    let shell = Shell::new();
    copy_files(&fixture("llama_tied"), &shell.path("model"));
    shell.write("data.jsonl", random_lines(11, 96, 1));
    shell
}

/// The files of a directory with their bytes; none where it is absent.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_file());
    entries.map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap())).collect()
}

/// The system calls that change files. strace puts the faults into them.
const CALLS: [&str; 10] =
    ["write", "fsync", "rename", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "ftruncate", "openat"];
const MODES: [&str; 3] = ["signal=KILL", "error=ENOSPC", "error=EIO"];

/// `loraine ARGS` below strace, which does `inject` to one system call.
fn with_fault(shell: &Shell, args: &str, trace: &str, inject: &str) -> Command {
    let plain = shell.command(args);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "calls.log", "-e", &format!("trace={trace}")]);
    if !inject.is_empty() {
        command.args(["-e", &format!("inject={inject}")]);
    }
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(shell.path(".")).stdin(Stdio::null());
    command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command
}

/// How often `loraine ARGS` makes each of [`CALLS`]; None where strace cannot be used.
fn count_calls(shell: &Shell, args: &str) -> Option<Vec<(&'static str, u64)>> {
    let output = with_fault(shell, args, &CALLS.join(","), "").output().ok().filter(|output| output.status.success());
    let Some(_) = output else {
        eprintln!("skipped: strace is not there, or may not watch other programs");
        return None;
    };
    let log = String::from_utf8_lossy(&shell.read("calls.log")).into_owned();
    std::fs::remove_file(shell.path("calls.log")).unwrap();
    let count = |call: &str| log.lines().filter(|line| line.contains(&format!(" {call}("))).count() as u64;
    Some(CALLS.into_iter().map(|call| (call, count(call))).filter(|(_, count)| *count > 0).collect())
}

/// `count` faults, spread evenly over all calls and modes.
fn faults(calls: &[(&'static str, u64)], count: u64) -> Vec<(String, String)> {
    // Most files are opened for reading by the loader and the driver, and most writes are of a line for the terminal.
    let all: Vec<(String, String)> = calls
        .iter()
        .flat_map(|(call, times)| (1..=*times).map(move |at| (*call, at)))
        .flat_map(|(call, at)| MODES.map(|mode| (call.to_owned(), format!("{call}:{mode}:when={at}"))))
        .collect();
    let step = (all.len() as u64).div_ceil(count).max(1) as usize;
    // An odd step visits every mode.
    all.into_iter().step_by(if step.is_multiple_of(3) { step + 1 } else { step }).collect()
}

#[test]
fn an_export_with_a_fault_leaves_the_old_model_or_the_new_one() {
    let shell = shell();
    let old = "quantize --model model --out made --quant fp4";
    let new = "quantize --model model --out made --overwrite";
    shell.succeed(old);
    let before = contents(&shell.path("made"));
    let Some(calls) = count_calls(&shell, new) else { return };
    let after = contents(&shell.path("made"));
    assert!(before != after && !after.is_empty());
    let others = shell.names(".");
    for overwrite in [true, false] {
        let mut broken = 0;
        for (call, inject) in faults(&calls, 36 * soak()) {
            std::fs::remove_dir_all(shell.path("made")).unwrap();
            if overwrite {
                shell.succeed(old);
            }
            let output = with_fault(&shell, new, &call, &inject).output().unwrap();
            let (shown, problems) = texts(&output);
            assert!(!problems.contains("panicked"), "{inject}: {problems}");
            let found = contents(&shell.path("made"));
            let allowed = if overwrite { &before } else { &BTreeMap::new() };
            assert!(
                found == after || found == *allowed,
                "{inject}: {:?}\n{shown}{problems}",
                found.keys().collect::<Vec<_>>()
            );
            assert!(!output.status.success() || found == after, "{inject}: said to be written\n{shown}");
            broken += u64::from(!output.status.success());
            shell.succeed(new);
            assert!(contents(&shell.path("made")) == after, "{inject}: the next export differs");
            let left: Vec<String> = shell.names(".").into_iter().filter(|name| name != "calls.log").collect();
            assert_eq!(left, others, "{inject}");
        }
        assert!(broken > 5, "only {broken} faults stopped the program");
    }
}

#[test]
fn a_run_with_a_fault_goes_on_as_if_nothing_had_been() {
    let shell = shell();
    let train = |out: &str, start: &str| {
        format!(
            "train --model model --data data.jsonl --steps 4 --save-every 1 --rank 2 --batch-size 2 --out {out} {start}"
        )
    };
    let Some(calls) = count_calls(&shell, &train("whole", "")) else { return };
    for (call, inject) in faults(&calls, 18 * soak()) {
        let output = with_fault(&shell, &train("run", "--overwrite"), &call, &inject).output().unwrap();
        let (_, problems) = texts(&output);
        assert!(!problems.contains("panicked"), "{inject}: {problems}");
        let checkpoints = shell.names("run/checkpoints").iter().any(|name| name.starts_with("step-"));
        shell.succeed(&train("run", if checkpoints { "--resume" } else { "--overwrite" }));
        shell.assert_same_adapter(&inject, ["whole", "run"]);
        assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("run"), "{inject}");
        for dir in [".", "run", "run/checkpoints"] {
            let left: Vec<String> = shell.names(dir).into_iter().filter(|name| name.starts_with('.')).collect();
            assert!(left.is_empty(), "{inject}: {dir} holds {left:?}");
        }
        assert_eq!(shell.names("run/checkpoints").len(), 2, "{inject}");
    }
}

/// Starts two commands at once; whether each succeeded, and what it printed as its error.
fn at_once(shell: &Shell, commands: [&str; 2]) -> [(bool, String); 2] {
    let children = commands.map(|args| {
        shell.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts")
    });
    children.map(|child| {
        let output = child.wait_with_output().unwrap();
        (output.status.success(), texts(&output).1)
    })
}

#[test]
fn of_two_programs_that_write_to_one_place_one_wins() {
    let shell = shell();
    let [fp4, nf4] = ["fp4", "nf4"].map(|code| {
        shell.succeed(&format!("quantize --model model --out {code} --quant {code}"));
        contents(&shell.path(code))
    });
    for pair in 0..4 * soak() {
        let overwrite = if pair % 2 == 0 { "" } else { "--overwrite" };
        let commands =
            ["fp4", "nf4"].map(|code| format!("quantize --model model --out made --quant {code} {overwrite}"));
        let ended = at_once(&shell, [&commands[0], &commands[1]]);
        let winners = ended.iter().filter(|(succeeded, _)| *succeeded).count();
        assert!(winners == 1 || (winners == 2 && pair % 2 == 1), "{ended:?}");
        for (_, problem) in ended.iter().filter(|(succeeded, _)| !succeeded) {
            let taken = problem.contains("is writing to it") && problem.contains("process ");
            assert!(taken || problem.contains("exists already"), "{problem}");
        }
        let made = contents(&shell.path("made"));
        let whole = if winners == 2 {
            made == fp4 || made == nf4
        } else {
            made == if ended[0].0 { &fp4 } else { &nf4 }.clone()
        };
        assert!(whole, "a mixed model: {ended:?}");
        std::fs::remove_dir_all(shell.path("made")).unwrap();
    }
    let train = |rank, out: &str| {
        let sizes = format!("--rank {rank} --steps 30 --batch-size 2 --save-every 10");
        format!("train --model model --data data.jsonl {sizes} --out {out}")
    };
    for rank in [2, 3] {
        shell.succeed(&train(rank, &format!("rank-{rank}")));
    }
    for _ in 0..2 * soak() {
        let ended = at_once(&shell, [&train(2, "run"), &train(3, "run")]);
        let winner = match [ended[0].0, ended[1].0] {
            [true, false] => 2,
            [false, true] => 3,
            _ => panic!("not one winner: {ended:?}"),
        };
        let problem = &ended[usize::from(winner == 2)].1;
        assert!(problem.contains("is writing to it") || problem.contains("holds another run"), "{problem}");
        shell.assert_same_adapter("the winner", [&format!("rank-{winner}"), "run"]);
        assert_eq!(shell.timeless_metrics(&format!("rank-{winner}")), shell.timeless_metrics("run"));
        assert!(shell.names("run").iter().all(|name| !name.starts_with('.')), "{:?}", shell.names("run"));
        std::fs::remove_dir_all(shell.path("run")).unwrap();
    }
}

#[test]
fn no_damaged_checkpoint_is_loaded() {
    let shell = shell();
    let run = "train --model model --data data.jsonl --steps 3 --save-every 3 --batch-size 2";
    for (kind, options) in [("f32", "--rank 2"), ("8bit", "--optim adamw8bit --rank 8")] {
        shell.succeed(&format!("{run} {options} --out {kind}"));
        let dir = shell.path(&format!("{kind}/checkpoints/step-3"));
        let config = ModelConfig::from_file(&shell.path("model/config.json")).unwrap();
        let adapter = adapter_file::load(&dir, &config).unwrap();
        let trainable = Trainable::Adapter { config: &adapter.config, modules: &adapter.modules };
        let storage = if kind == "f32" { MomentStorage::F32 } else { MomentStorage::EightBit };
        let load = || checkpoint::load(&dir, &config, trainable, storage);
        let whole = load().unwrap();
        let files: Vec<(String, Vec<u8>)> = contents(&dir).into_iter().collect();
        for mutation in 0..300 * soak() {
            let draw = |index| bits(5, Stream::Sampling, mutation, index);
            let (name, bytes) = &files[draw(0) as usize % files.len()];
            let mut changed = bytes.clone();
            let at = draw(1) as usize % changed.len();
            match draw(2) % 4 {
                0 => changed.truncate(at),
                1 => changed[at] ^= 1 << (draw(3) % 8),
                2 => changed[at] = draw(3) as u8,
                _ => changed.insert(at, draw(3) as u8),
            }
            std::fs::write(dir.join(name), &changed).unwrap();
            if let Ok(loaded) = load() {
                let same = loaded.state == whole.state
                    && loaded.values == whole.values
                    && loaded.moments == whole.moments
                    && (name == "state.json" || changed == *bytes);
                assert!(same, "mutation {mutation} of {name} at {at}");
            }
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_only_passed_over_with_a_word() {
    let shell = shell();
    let run = format!("{} --data data.jsonl --rank 2 --batch-size 2 --save-every 2 --keep 9", train_on("llama_tied"));
    shell.succeed(&format!("{run} --steps 8 --out whole"));
    shell.succeed(&format!("{run} --steps 8 --out run"));
    let flip = |file: &str| {
        edit(&shell.path(&format!("run/checkpoints/{file}")), |bytes| {
            let at = bytes.len() - 9;
            bytes[at] ^= 1;
        });
    };
    flip("step-8/optimizer.safetensors");
    let resume = "train --resume run/checkpoints/step-8 --steps 10";
    shell.fail(resume, &["step-8/optimizer.safetensors", "is damaged", "checksum"]);
    flip("step-8/optimizer.safetensors");
    flip("step-8/adapter_model.safetensors");
    shell.fail(resume, &["step-8/adapter_model.safetensors", "is damaged"]);
    let shown = shell.succeed("train --resume run");
    assert!(
        shown.contains("the checkpoint of step 8 is passed over") && shown.contains("resumed after step 6"),
        "{shown}"
    );
    shell.assert_same_adapter("resumed", ["whole", "run"]);

    std::fs::rename(shell.path("run/checkpoints/step-8"), shell.path("run/checkpoints/step-9")).unwrap();
    shell.fail("train --resume run/checkpoints/step-9", &["step-9/state.json", "is of step 8"]);
    std::fs::remove_dir_all(shell.path("run/checkpoints/step-9")).unwrap();
    for step in [2, 4, 6] {
        edit(&shell.path(&format!("run/checkpoints/step-{step}/state.json")), |bytes| bytes.truncate(40));
    }
    shell.fail("train --resume run", &["step-6/state.json", "is damaged"]);

    // A checkpoint of loraine 0.1 has no checksums.
    let state = "whole/checkpoints/step-6/state.json";
    let mut old: serde_json::Value = serde_json::from_slice(&shell.read(state)).unwrap();
    for key in ["files", "crc32c"] {
        assert!(old.as_object_mut().unwrap().remove(key).is_some(), "{key}");
    }
    shell.write(state, old.to_string());
    shell.succeed("train --resume whole/checkpoints/step-6");
    shell.assert_same_adapter("of a checkpoint without checksums", ["whole", "run"]);
}
