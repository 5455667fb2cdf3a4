//! The first minute of a new user: the demo on the built-in model, then a conversation with what it left.

use std::io::Write;
use std::process::Stdio;

use crate::common::cli::{Shell, texts};

#[test]
fn the_demo_leaves_an_adapter_to_talk_to() {
    let shell = Shell::new();
    let shown = shell.succeed("demo --out demo --steps 30");
    for part in ["before", "after", "loss over 30 steps"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // The commands that it prints work as they stand; training is cut short.
    let printed: Vec<&str> =
        shown.lines().filter_map(|line| line.split_once(": loraine ")).map(|(_, line)| line).collect();
    let next = "chat --model demo/model --quant nf4 --adapter demo/adapter";
    assert_eq!(printed.last(), Some(&next), "{shown}");
    assert!(shown.trim_end().ends_with(next), "{shown}");
    for line in &printed {
        shell.succeed(&format!("{line}{}", if line.starts_with("train ") { " --steps 1" } else { "" }));
    }
    assert_eq!(printed.len(), 3, "{shown}");
    let lines = shell.succeed("demo --out json --steps 2 --json");
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
    assert_eq!(["answer", "plan", "step", "end"].map(count), [8, 1, 2, 1], "{lines:?}");
    let losses = shell.losses("demo/adapter");
    assert!(losses.last() < losses.first(), "{losses:?}");

    let chat = |adapter: &str, lines: &str| {
        let mut command = shell.command(&format!("chat --model demo/model {adapter} --temperature 0 --max-tokens 40"));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("is read");
        let output = child.wait_with_output().expect("ends");
        let (shown, problems) = texts(&output);
        assert!(output.status.success(), "{shown}{problems}");
        shown
    };
    let pirate = "--adapter pirate=demo/adapter";
    let question = "What does a dog eat?\n";
    let learned = chat(pirate, question);
    let base = chat("", question);
    assert!(!base.trim().is_empty());
    assert_ne!(learned, base);
    let both = chat(pirate, &format!("/base\n{question}/reset\n/adapter pirate\n{question}"));
    assert!(both.contains(base.trim()) && both.contains(learned.trim()), "{both}\n{base}\n{learned}");

    let commands = chat(pirate, "/adapter\n/adapter nobody\n/sing\n/quit\nnever asked\n");
    for part in ["* pirate", "there is no adapter `nobody`", "/sing is no command"] {
        assert!(commands.contains(part), "{part}: {commands}");
    }
    assert!(!commands.contains("never"), "{commands}");
    shell.fail("chat --model demo/model --adapter absent=nowhere", &["nowhere"]);
}
