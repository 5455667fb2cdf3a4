//! Runs that go wrong say so: in the terminal, in the picture, and to programs.

use crate::common::cli::{Shell, random_lines, train_on};
use crate::common::shared;

fn events(shown: &str) -> Vec<serde_json::Value> {
    shown.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn a_learning_rate_of_1_is_warned_about_everywhere() {
    let Some(model) = shared("models/stories260K") else { return };
    let shell = Shell::new();
    let text =
        |i: usize| format!("{{\"text\": \"Once upon a time there was a cat. It saw {i} birds and was happy.\"}}\n");
    shell.write("data.jsonl", (0..40).map(text).collect::<String>());
    let train = format!("train --model {} --data data.jsonl --steps 8", model.display());
    let shown = shell.succeed(&format!("{train} --lr 1 --out ruined"));
    for part in [
        "hint    --lr is 1; values above 0.01 often ruin the model",
        "warning the training loss rose from ",
        "warning the validation loss rose from ",
        "lower --lr (now 1, 0.0002 is usual)",
        "Read the warnings",
    ] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    assert!(!shown.contains("try it"), "{shown}");
    let picture = String::from_utf8(shell.read("ruined/loss.svg")).unwrap();
    assert!(picture.contains("the validation loss rose from") && picture.contains("`lr`"), "{picture}");

    let events = events(&shell.succeed(&format!("{train} --lr 1 --eval-fraction 0 --out again --json")));
    let warnings = events.last().expect("an end")["warnings"].as_array().expect("a list").clone();
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(warning["kind"], "training-loss-rose");
    assert!(warning["message"].as_str().is_some_and(|text| text.contains("lower --lr")), "{warning}");
    let kinds =
        |event: &str| events.iter().filter(|e| e["event"] == event).map(|e| e["kind"].clone()).collect::<Vec<_>>();
    assert_eq!(
        kinds("warning"),
        ["high-learning-rate", "training-loss-rose"],
        "before the first step, and during the run"
    );

    let good = shell.succeed(&format!("{train} --lr 1e-3 --out good"));
    assert!(!good.contains("warning") && !good.contains("hint") && good.contains("validation loss "), "{good}");
}

#[test]
fn a_part_of_the_data_is_held_out_and_recorded() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(40, 96, 1));
    let train = format!("{} --data data.jsonl --steps 4 --save-every 2", train_on("llama_tied"));
    let shown = shell.succeed(&format!("{train} --out run"));
    assert!(shown.contains("2 of 40 examples are held out for validation"), "{shown}");
    assert!(String::from_utf8(shell.read("run/run.toml")).unwrap().contains("eval-fraction = 0.05\n"));
    let evaluated = |run: &str| shell.metrics(run).iter().filter(|line| line.get("eval_loss").is_some()).count();
    assert_eq!(evaluated("run"), 2);
    // The share is that of the record or, with the flags alone, the same as before.
    for resume in ["train --resume run/checkpoints/step-2", &format!("{train} --out run --resume")] {
        let shown = shell.succeed(resume);
        assert!(shown.contains("resumed after step "), "{shown}");
    }
    // A run that held out nothing, as versions before did, names the setting.
    shell.succeed(&format!("{train} --out whole --eval-fraction 0"));
    assert_eq!(evaluated("whole"), 0);
    shell.fail(&format!("{train} --out whole --resume"), &["other training examples", "(--eval-fraction 0)"]);
    shell.succeed(&format!("{train} --out whole --resume --eval-fraction 0"));

    shell.write("few.jsonl", random_lines(19, 96, 1));
    let shown = shell.succeed(&format!("{} --data few.jsonl --steps 2 --out few", train_on("llama_tied")));
    assert!(
        shown.contains("19 examples are too few to hold a part out for validation (20 or more are needed)"),
        "{shown}"
    );
    assert!(!shown.contains("hint"), "{shown}");
    shell.write("one.jsonl", random_lines(1, 96, 1));
    let shown = shell.succeed(&format!("{} --data one.jsonl --out one", train_on("llama_tied")));
    for part in [
        "1 example from 1 record",
        "1 example is too few",
        "hint    there is 1 example",
        "1 step\n",
        "the run has 1 step",
    ] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    let picture = String::from_utf8(shell.read("one/loss.svg")).unwrap();
    assert_eq!(picture.matches("<circle").count(), 1, "{picture}");
}

#[test]
fn every_missing_flag_is_named_at_once() {
    let shell = Shell::new();
    shell.fail("train", &["--model, --data and --out are missing"]);
    shell.fail("train --data x", &["--model and --out are missing"]);
    shell.fail("train --data x --model y", &["--out is missing"]);
}
