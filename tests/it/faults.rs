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

/// The files of a directory with their bytes, or a file as the only one; none where there is nothing.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    if dir.is_file() {
        return BTreeMap::from([(String::new(), std::fs::read(dir).unwrap())]);
    }
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

/// Gives `count` faults to an export: with `--overwrite` where `old` has written another model before, and to an empty place.
fn export_with_faults(shell: &Shell, place: &str, old: &str, new: &str, count: u64) {
    let (old, new) = (format!("{old} --out {place}"), format!("{new} --out {place} --overwrite"));
    shell.succeed(&old);
    let before = contents(&shell.path(place));
    let Some(calls) = count_calls(shell, &new) else { return };
    let after = contents(&shell.path(place));
    assert!(before != after && !after.is_empty());
    let others = shell.names(".");
    for overwrite in [true, false] {
        let (mut broken, mut given) = (0, 0);
        for (call, inject) in faults(&calls, count) {
            remove(&shell.path(place));
            if overwrite {
                shell.succeed(&old);
            }
            let output = with_fault(shell, &new, &call, &inject).output().unwrap();
            let (shown, problems) = texts(&output);
            assert!(!problems.contains("panicked"), "{inject}: {problems}");
            let found = contents(&shell.path(place));
            let allowed = if overwrite { &before } else { &BTreeMap::new() };
            assert!(
                found == after || found == *allowed,
                "{inject}: {:?}\n{shown}{problems}",
                found.keys().collect::<Vec<_>>()
            );
            assert!(!output.status.success() || found == after, "{inject}: said to be written\n{shown}");
            (broken, given) = (broken + u64::from(!output.status.success()), given + 1);
            shell.succeed(&new);
            assert!(contents(&shell.path(place)) == after, "{inject}: the next export differs");
            let left: Vec<String> = shell.names(".").into_iter().filter(|name| name != "calls.log").collect();
            assert_eq!(left, others, "{inject}");
        }
        println!("{new}, {}: {given} faults, {broken} stopped it", if overwrite { "replacing" } else { "new" });
        assert!(broken > given / 8, "only {broken} of {given} faults stopped the program");
    }
    remove(&shell.path(place));
}

fn remove(place: &Path) {
    if place.is_dir() { std::fs::remove_dir_all(place) } else { std::fs::remove_file(place) }.unwrap();
}

#[test]
fn an_export_with_a_fault_leaves_the_old_model_or_the_new_one() {
    let shell = shell();
    let quantize = "quantize --model model";
    export_with_faults(&shell, "made", &format!("{quantize} --quant fp4"), quantize, 36 * soak());
}

#[test]
fn a_merge_with_a_fault_leaves_the_old_model_or_the_new_one() {
    let shell = shell();
    copy_files(&fixture("llama_tied/adapter"), &shell.path("adapter"));
    let merge = "merge --model model --adapter adapter";
    export_with_faults(&shell, "made", &format!("{merge} --dtype bf16"), merge, 8 * soak());
}

#[test]
fn a_gguf_file_with_a_fault_is_the_old_one_or_the_new_one() {
    let shell = shell();
    for adapter in ["adapter", "adapter_regex"] {
        copy_files(&fixture("llama_tied").join(adapter), &shell.path(adapter));
    }
    let merge = "merge --model model --adapter adapter --gguf";
    export_with_faults(&shell, "made.gguf", &format!("{merge} --dtype bf16"), merge, 8 * soak());
    let export = |adapter: &str| format!("export --gguf --model model --adapter {adapter}");
    export_with_faults(&shell, "lora.gguf", &export("adapter_regex"), &export("adapter"), 8 * soak());
}

/// A run of four steps with checkpoints.
fn train(out: &str, more: &str) -> String {
    format!("train --model model --data data.jsonl --steps 4 --save-every 1 --rank 2 --batch-size 2 --out {out} {more}")
}

/// Gives a fault to `line`, which trains into `run`, and goes on with the run, which must then be as `whole`.
fn train_with_fault(shell: &Shell, line: &str, call: &str, inject: &str) {
    let output = with_fault(shell, line, call, inject).output().unwrap();
    let (_, problems) = texts(&output);
    assert!(!problems.contains("panicked"), "{inject}: {problems}");
    let checkpoints = shell.names("run/checkpoints").iter().any(|name| name.starts_with("step-"));
    shell.succeed(&train("run", if checkpoints { "--resume" } else { "--overwrite" }));
    shell.assert_same_adapter(inject, ["whole", "run"]);
    assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("run"), "{inject}");
    for dir in [".", "run", "run/checkpoints"] {
        let left: Vec<String> = shell.names(dir).into_iter().filter(|name| name.starts_with('.')).collect();
        assert!(left.is_empty(), "{inject}: {dir} holds {left:?}");
    }
    assert_eq!(shell.names("run/checkpoints").len(), 2, "{inject}");
}

#[test]
fn a_run_with_a_fault_goes_on_as_if_nothing_had_been() {
    let shell = shell();
    let Some(calls) = count_calls(&shell, &train("whole", "")) else { return };
    for (call, inject) in faults(&calls, 18 * soak()) {
        train_with_fault(&shell, &train("run", "--overwrite"), &call, &inject);
    }
}

#[test]
fn a_resumed_run_with_a_fault_goes_on_as_if_nothing_had_been() {
    let shell = shell();
    shell.succeed(&train("whole", ""));
    shell.succeed(&train("long", "--keep 9"));
    // As a kill after the second step leaves it.
    let begin = || {
        let _ = std::fs::remove_dir_all(shell.path("run"));
        for step in ["step-1", "step-2"] {
            let dir = format!("checkpoints/{step}");
            copy_files(&shell.path("long").join(&dir), &shell.path("run").join(&dir));
        }
        for file in ["metrics.jsonl", "run.toml"] {
            shell.write(&format!("run/{file}"), shell.read(&format!("long/{file}")));
        }
    };
    begin();
    let Some(calls) = count_calls(&shell, &train("run", "--resume")) else { return };
    for (call, inject) in faults(&calls, 9 * soak()) {
        begin();
        train_with_fault(&shell, &train("run", "--resume"), &call, &inject);
        assert!(shell.names("run/checkpoints").contains(&"step-4".to_owned()), "{inject}");
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
    for pair in 0..8 * soak() {
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

/// One damage of a checkpoint's file, or None where it is removed. `other` is the file of another checkpoint.
fn damaged(bytes: &[u8], other: &[u8], draw: impl Fn(u64) -> u64) -> Option<Vec<u8>> {
    let mut changed = bytes.to_vec();
    let at = draw(1) as usize % changed.len();
    let length = 1 + draw(3) as usize % (changed.len() - at).min(64);
    match draw(2) % 10 {
        0 => changed.truncate(at),
        1 => changed[at] ^= 1 << (draw(4) % 8),
        2 => changed[at] = draw(4) as u8,
        3 => changed.insert(at, draw(4) as u8),
        4 => changed[at..at + length].fill(0),
        5 => drop(changed.drain(at..at + length)),
        6 => changed.extend_from_slice(&bytes[at..at + length]),
        7 => return Some(other.to_vec()),
        8 => {
            // A number of a file of JSON, or of a header of weights.
            let digit = (at..changed.len()).chain(0..at).find(|i| changed[*i].is_ascii_digit())?;
            changed[digit] = b'0' + (changed[digit] - b'0' + 1 + (draw(4) % 9) as u8) % 10;
        }
        _ => return None,
    }
    Some(changed)
}

#[test]
fn no_damaged_checkpoint_is_loaded() {
    let shell = shell();
    let run = "train --model model --data data.jsonl --steps 3 --save-every 1 --keep 9 --batch-size 2";
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
        let (mutations, mut refused) = (300 * soak(), 0);
        for mutation in 0..mutations {
            let draw = |index| bits(5, Stream::Sampling, mutation, index);
            let (name, bytes) = &files[draw(0) as usize % files.len()];
            let other = shell.read(&format!("{kind}/checkpoints/step-{}/{name}", 1 + draw(5) % 2));
            let changed = damaged(bytes, &other, draw);
            match &changed {
                Some(changed) => std::fs::write(dir.join(name), changed).unwrap(),
                None => std::fs::remove_file(dir.join(name)).unwrap(),
            }
            match load() {
                Ok(loaded) => {
                    let same = loaded.state == whole.state
                        && loaded.values == whole.values
                        && loaded.moments == whole.moments
                        && (name == "state.json" || changed.as_ref() == Some(bytes));
                    assert!(same, "mutation {mutation} of {name}");
                }
                Err(problem) => {
                    let problem = problem.to_string();
                    // The state of another checkpoint is at odds with every file.
                    let named = problem.contains(name.as_str()) || name == "state.json";
                    assert!(named && problem.contains("step-3"), "{mutation}: {problem}");
                    refused += 1;
                }
            }
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        println!("{kind}: {mutations} damaged files, {refused} refused, the others are the files that were saved");
        assert!(refused > mutations * 7 / 10, "only {refused} of {mutations} refused");
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
