//! Runs whose device is lost or hangs. `driver.c` is a Vulkan driver that stands in front of Mesa's software driver and loses the
//! device at a given submit, or finishes nothing from there on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::cli::{Shell, random_lines, train_on};
use crate::common::soak;

const SOFTWARE_DRIVER: &str = "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json";

/// The built driver, as a file that the Vulkan loader reads, and the driver behind it.
struct Lossy {
    manifest: PathBuf,
    real: String,
}

impl Lossy {
    /// Builds the driver in the folder of `shell`; None, with a printed reason, where that cannot be done.
    fn build(shell: &Shell) -> Option<Self> {
        let Ok(text) = std::fs::read_to_string(SOFTWARE_DRIVER) else {
            eprintln!("skipped: no driver at {SOFTWARE_DRIVER}");
            return None;
        };
        let manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let real = manifest["ICD"]["library_path"].as_str().expect("a path").to_owned();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/lossy/driver.c");
        let library = shell.path("liblossy.so");
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").output();
        match built {
            Ok(built) => assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr)),
            Err(problem) => {
                eprintln!("skipped: cc cannot be run: {problem}");
                return None;
            }
        }
        let icd = serde_json::json!({ "library_path": library, "api_version": "1.3.230" });
        let manifest = serde_json::json!({ "file_format_version": "1.0.1", "ICD": icd });
        shell.write("lossy.json", manifest.to_string());
        Some(Self { manifest: shell.path("lossy.json"), real })
    }

    /// A command on this driver, and what the driver does.
    fn command(&self, shell: &Shell, line: &str, does: &[(&str, usize)]) -> Command {
        let mut command = shell.command(line);
        command.env("VK_DRIVER_FILES", &self.manifest).env("REAL_DRIVER", &self.real).env_remove("LORAINE_GPU");
        command.env("COUNT_FILE", shell.path("submits"));
        command.envs(does.iter().map(|(name, value)| (name, value.to_string())));
        command
    }

    /// Runs a command on this driver. 0 loses no device.
    fn run(&self, shell: &Shell, line: &str, lose_at: usize) -> Output {
        self.command(shell, line, &[("LOSE_AT", lose_at)]).output().expect("the program runs")
    }

    /// The submits of the last run.
    fn submits(shell: &Shell) -> usize {
        let count = String::from_utf8(shell.read("submits")).expect("a count");
        count.parse().expect("a number")
    }
}

fn train(shell: &Shell, out: &str) -> String {
    shell.write("data.jsonl", random_lines(11, 96, 1));
    shell.write("held_out.jsonl", random_lines(2, 96, 2));
    format!(
        "{} --data data.jsonl --eval-data held_out.jsonl --eval-every 5 --steps 12 --lr 0.01 --dropout 0.1 --batch-size 2 \
         --rank 2 --target-modules q_proj,v_proj --tune off --out {out}",
        train_on("llama_tied")
    )
}

#[test]
fn a_run_goes_on_after_a_lost_device() {
    let shell = Shell::new();
    let Some(driver) = Lossy::build(&shell) else { return };
    let whole = driver.run(&shell, &train(&shell, "whole"), 0);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let submits = Lossy::submits(&shell);
    assert!(submits > 20, "{submits} submits");
    let times = 8 * soak() as usize;
    for i in 0..times {
        let lose_at = 1 + i * (submits - 1) / (times - 1);
        let save = ["", " --save-every 3"][i % 2];
        let output = driver.run(&shell, &format!("{}{save} --overwrite", train(&shell, "lost")), lose_at);
        let problems = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !problems.contains("panicked"), "at submit {lose_at}: {problems}");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("device was lost after step"), "at submit {lose_at}: {shown}");
        shell.assert_same_adapter(&format!("lost at submit {lose_at}"), ["whole", "lost"]);
        assert_eq!(shell.timeless_metrics("lost"), shell.timeless_metrics("whole"), "at submit {lose_at}");
    }
}

/// A GPU that hangs, whose driver waits for it without end where it has no limit.
#[test]
fn a_run_goes_on_after_a_gpu_that_hangs() {
    let shell = Shell::new();
    let Some(driver) = Lossy::build(&shell) else { return };
    let run = |out: &str, save: &str, hang_at| {
        let line = format!("{}{save} --overwrite", train(&shell, out));
        let mut command = driver.command(&shell, &line, &[("AS_GPU", 1), ("HANG_AT", hang_at)]);
        command.output().expect("the program runs")
    };
    let whole = run("whole", "", 0);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let submits = Lossy::submits(&shell);
    let times = 3 * soak() as usize;
    for i in 0..times {
        let hang_at = 1 + i * (submits - 1) / (times - 1);
        let output = run("hung", ["", " --save-every 3"][i % 2], hang_at);
        let problems = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !problems.contains("panicked"), "at submit {hang_at}: {problems}");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("it finished nothing for 120 seconds"), "at submit {hang_at}: {shown}");
        shell.assert_same_adapter(&format!("hung at submit {hang_at}"), ["whole", "hung"]);
        assert_eq!(shell.timeless_metrics("hung"), shell.timeless_metrics("whole"), "at submit {hang_at}");
    }
}

/// A device that stays lost ends the run with what there is to go on from.
#[test]
fn a_device_that_is_lost_again_and_again_ends_the_run() {
    let shell = Shell::new();
    let Some(driver) = Lossy::build(&shell) else { return };
    // Late enough for a checkpoint.
    assert!(driver.run(&shell, &train(&shell, "whole"), 0).status.success());
    let lose_at = Lossy::submits(&shell) - 10;
    let line = format!("{} --save-every 2", train(&shell, "lost"));
    let output = driver.command(&shell, &line, &[("LOSE_AT", lose_at), ("LOSE_NEXT", 5)]).output();
    let output = output.expect("the program runs");
    let problems = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{problems}");
    assert!(!problems.contains("panicked"), "{problems}");
    let newest = shell.names("lost/checkpoints").into_iter().max().expect("a checkpoint");
    let wanted = format!("lost/checkpoints/{newest}");
    assert!(problems.contains("was lost 4 times") && problems.contains(&format!("--resume {wanted}")), "{problems}");
}
