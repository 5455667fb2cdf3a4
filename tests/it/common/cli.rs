//! The real program, run as a user would type it, in a temporary directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use loraine::random::{Stream, bits};
use tempfile::TempDir;

use super::{Reference, fixture};

/// A directory to type commands in.
pub struct Shell {
    dir: TempDir,
}

impl Shell {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).expect("a file in a temporary directory");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// `loraine ARGS`, ready to run; arguments are separated by spaces.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loraine"));
        command.args(args.split_whitespace()).current_dir(self.dir.path()).stdin(Stdio::null());
        // Some drivers complain without it, or write their caches elsewhere.
        command.env("XDG_RUNTIME_DIR", self.dir.path()).env("NO_COLOR", "1").env_remove("LORAINE_GPU");
        // One for all tests, so that a GPU is measured once.
        command.env("LORAINE_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
        if let Ok(adapter) = std::env::var("LORAINE_ADAPTER") {
            command.env("LORAINE_GPU", adapter);
        }
        command
    }

    /// Runs a command that must succeed; what it printed.
    pub fn succeed(&self, args: &str) -> String {
        let output = self.command(args).output().expect("the program starts");
        let (shown, problems) = texts(&output);
        assert!(output.status.success(), "loraine {args}\n{shown}{problems}");
        shown
    }

    /// Runs a command that must end with one error line that holds each of `says`.
    pub fn fail(&self, args: &str, says: &[&str]) {
        assert_fails(&mut self.command(args), args, says);
    }

    /// The names of everything in a directory, sorted; none where it is absent.
    pub fn names(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(name)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub fn adapter(&self, run: &str) -> Reference {
        Reference::read(&self.path(run).join("adapter_model.safetensors"))
    }

    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.read(&format!("{run}/metrics.jsonl"))).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// The losses of the training steps.
    pub fn losses(&self, run: &str) -> Vec<f64> {
        self.metrics(run).iter().filter_map(|line| line.get("loss")?.as_f64()).collect()
    }

    /// The metrics without the one figure that differs between equal runs.
    pub fn timeless_metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let mut lines = self.metrics(run);
        for line in &mut lines {
            line.as_object_mut().expect("an object").remove("tokens_per_s");
        }
        lines
    }

    /// A directory with the model of a fixture in `model`, and random token ids in `data.jsonl`.
    pub fn with_model(name: &str) -> Self {
        let shell = Self::new();
        copy_files(&fixture(name), &shell.path("model"));
        shell.write("data.jsonl", random_lines(24, 96, 7));
        shell
    }

    /// LoRA with packed examples, recomputed or not, and with examples one by one. `run` has the settings of both.
    pub fn assert_packing_and_recomputation_change_nothing(&self, run: &str) {
        let train = |out: &str, options: &str| {
            self.succeed(&format!("train --model model --method lora --out {out} {run} {options}"));
        };
        train("kept", "--batch-size 4 --recompute none");
        train("again", "--batch-size 4 --recompute all");
        assert_eq!(self.losses("kept"), self.losses("again"));
        self.assert_same_adapter("recomputation", ["kept", "again"]);
        train("separate", "--recompute none --batch-size 1 --grad-accum 4");
        for (packed, separate) in self.losses("kept").iter().zip(self.losses("separate")) {
            assert!((packed / separate - 1.0).abs() < 1e-4, "{packed} {separate}");
        }
    }

    /// The adapter of `run` has the tensors of PEFT's for this fixture.
    pub fn assert_adapts_as_peft(&self, name: &str) {
        let of_peft = Reference::read(&fixture(name).join("adapter/adapter_model.safetensors"));
        let mut names: Vec<_> = self.adapter("run").names().map(str::to_owned).collect();
        let mut expected: Vec<_> = of_peft.names().map(str::to_owned).collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
    }

    /// Merges the adapter of `run`, and holds the logits of the result to those with the adapter. The files before and after.
    pub fn merged(&self) -> [Reference; 2] {
        let merge = "merge --model model --adapter run --out merged --dtype f32 --json";
        let report: serde_json::Value = serde_json::from_str(&self.succeed(merge)).unwrap();
        assert!(report["relative_logit_error"].as_f64().unwrap() < 1e-5, "{report}");
        let [before, merged] = ["model", "merged"].map(|of| Reference::read(&self.path(of).join("model.safetensors")));
        assert_eq!(before.names().count(), merged.names().count());
        for name in before.names() {
            assert_eq!(merged.shape(name), before.shape(name), "{name}");
        }
        [before, merged]
    }

    /// A 4-bit directory, which it returns the file of, trains as the model quantized while loading.
    pub fn assert_quantized_directory_trains_alike(&self, run: &str) -> Reference {
        self.succeed("quantize --model model --out nf4");
        self.succeed(&format!("train --model nf4 --out run4 {run}"));
        self.succeed(&format!("train --model model --out twin4 {run}"));
        let [run, twin] = ["run4", "twin4"].map(|of| self.read(&format!("{of}/adapter_model.safetensors")));
        assert!(run == twin, "the adapters differ");
        Reference::read(&self.path("nf4/model.safetensors"))
    }

    pub fn assert_same_adapter(&self, what: &str, runs: [&str; 2]) {
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let [a, b] = runs.map(|run| self.read(&format!("{run}/{file}")));
            assert!(a == b, "{what}: {file} of {} differs from that of {}", runs[1], runs[0]);
        }
    }
}

pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Exit code 1, one line that begins with `error:`, no panic.
pub fn assert_fails(command: &mut Command, args: &str, says: &[&str]) {
    let output = command.output().expect("the program starts");
    let (shown, problems) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "loraine {args}\n{shown}{problems}");
    assert!(!problems.contains("panicked"), "loraine {args}\n{problems}");
    assert!(!problems.contains('⟨'), "loraine {args}: a placeholder is not written as a flag:\n{problems}");
    let errors: Vec<&str> = problems.lines().filter(|line| line.starts_with("error: ")).collect();
    let [error] = errors[..] else { panic!("loraine {args}: not one error line:\n{problems}") };
    assert!(problems.trim_end().ends_with(error), "loraine {args}: the error is not the last line:\n{problems}");
    for part in says {
        assert!(error.contains(part), "loraine {args}: {part:?} is not in\n{error}");
    }
}

/// JSONL of token sequences.
pub fn token_lines<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> String {
    let line = |ids: &[u32]| format!("{}\n", serde_json::json!({ "input_ids": ids }));
    sequences.into_iter().map(line).collect()
}

/// `count` random sequences of 6 to 20 tokens below `vocabulary`.
pub fn random_lines(count: usize, vocabulary: u64, seed: u64) -> String {
    let sequences: Vec<Vec<u32>> = (0..count as u64)
        .map(|i| {
            let draw = |index| bits(seed, Stream::Sampling, i, index);
            (1..=6 + draw(0) % 15).map(|index| (draw(index) % vocabulary) as u32).collect()
        })
        .collect();
    token_lines(sequences.iter().map(Vec::as_slice))
}

/// `train --model` with a fixture's directory.
pub fn train_on(name: &str) -> String {
    format!("train --model {}", fixture(name).display())
}

/// Changes a file's bytes in place.
pub fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    change(&mut bytes);
    std::fs::write(path, bytes).expect("a file in a temporary directory");
}

/// Copies the files of a directory.
pub fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").flatten().filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}
