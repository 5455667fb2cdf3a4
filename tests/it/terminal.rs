//! Answers on a real terminal: a pseudo-terminal with the keys that a person presses.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::common::cli::Shell;
use crate::common::fixture;
use nix::pty::{ForkptyResult, Winsize, forkpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, execve};

const PATIENCE: Duration = Duration::from_secs(60);

/// A program on a terminal of 80 by 24.
struct Terminal {
    child: Pid,
    keys: File,
    screen: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    fn start(command: &Command) -> Self {
        let text = |text: &std::ffi::OsStr| CString::new(text.as_bytes()).unwrap();
        let program = text(command.get_program());
        let args: Vec<CString> = [program.clone()].into_iter().chain(command.get_args().map(text)).collect();
        let directory = command.get_current_dir().unwrap().to_owned();
        let mut variables: std::collections::BTreeMap<_, _> = std::env::vars_os().collect();
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => variables.insert(name.to_owned(), value.to_owned()),
                None => variables.remove(name),
            };
        }
        variables.insert("TERM".into(), "xterm".into());
        let variable = |(name, value): (&std::ffi::OsString, &std::ffi::OsString)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).unwrap()
        };
        let environment: Vec<CString> = variables.iter().map(variable).collect();
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        #[expect(unsafe_code, reason = "a terminal of its own belongs to a process from its fork on")]
        // SAFETY: between fork and exec the child only changes its directory; everything else was made before.
        let forked = unsafe { forkpty(&size, None) }.unwrap();
        let ForkptyResult::Parent { child, master } = forked else {
            let _ = chdir(&directory);
            let _ = execve(&program, &args, &environment);
            std::process::abort();
        };
        let (mut reader, keys) = (File::from(master.try_clone().unwrap()), File::from(master));
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The end of the program ends the terminal, which Linux reports as an error.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keys, screen, shown: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads the screen until `part` was shown after the byte `from`; gives the place after it.
    fn wait_for(&mut self, part: &str, from: usize) -> usize {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.shown[from..].find(part) {
                return from + at + part.len();
            }
            assert!(begun.elapsed() < PATIENCE, "{part:?} did not come:\n{}", self.shown);
            if let Ok(bytes) = self.screen.recv_timeout(Duration::from_millis(100)) {
                self.shown += &String::from_utf8_lossy(&bytes);
            }
        }
    }

    /// Reads what comes within a time.
    fn read_for(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            if let Ok(bytes) = self.screen.recv_timeout(Duration::from_millis(20)) {
                self.shown += &String::from_utf8_lossy(&bytes);
            }
        }
    }

    /// Exit status of the program.
    fn end(&mut self) -> i32 {
        let begun = Instant::now();
        loop {
            match waitpid(self.child, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::Exited(_, status) => return status,
                WaitStatus::StillAlive => {}
                other => panic!("{other:?}\n{}", self.shown),
            }
            assert!(begun.elapsed() < PATIENCE, "the program does not end:\n{}", self.shown);
            self.read_for(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if waitpid(self.child, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
            let _ = kill(self.child, Signal::SIGKILL);
            let _ = waitpid(self.child, None);
        }
    }
}

/// A model that chats and never ends an answer. Its words are `NAME0 NAME1 ...`.
fn endless_model(shell: &Shell, word: &str) {
    let dir = shell.path("model");
    std::fs::create_dir(&dir).unwrap();
    let source = fixture("llama_tied");
    std::fs::copy(source.join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    let config = std::fs::read(source.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["max_position_embeddings"] = 4096.into();
    config["eos_token_id"] = serde_json::Value::Null;
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let size = config["vocab_size"].as_u64().unwrap();
    let words: serde_json::Map<String, serde_json::Value> =
        (0..size).map(|id| (format!("{word}{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "truncation": null, "padding": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": format!("{word}0")}
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}";
    std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
}

#[test]
fn ctrl_c_stops_an_answer_keeps_the_conversation_and_a_second_one_leaves() {
    let shell = Shell::new();
    endless_model(&shell, "w");
    let mut terminal = Terminal::start(&shell.command("chat --model model --temperature 0 --max-tokens 4000"));
    let begun = terminal.wait_for("base> ", 0);
    terminal.press("w7 w8\r");
    // Five words of an answer.
    let mut at = terminal.wait_for("w7 w8", begun);
    for _ in 0..5 {
        at = terminal.wait_for(" w", at);
    }
    terminal.press("zebra");
    terminal.read_for(Duration::from_millis(200));
    terminal.press("\x03");
    let stopped = terminal.wait_for("[stopped]", at);
    let again = terminal.wait_for("base> ", stopped);
    terminal.read_for(Duration::from_millis(300));
    assert!(!terminal.shown.contains("zebra"), "typed during an answer and shown in it:\n{}", terminal.shown);
    assert!(!terminal.shown[again..].contains(" w"), "the answer goes on:\n{}", terminal.shown);

    terminal.press("w9\r");
    let mut at = terminal.wait_for("w9", again);
    for _ in 0..3 {
        at = terminal.wait_for(" w", at);
    }
    terminal.press("\x03");
    let stopped = terminal.wait_for("[stopped]", at);
    terminal.wait_for("base> ", stopped);
    terminal.press("\x03");
    assert_eq!(terminal.end(), 0, "{}", terminal.shown);
}

#[test]
fn what_is_typed_during_an_answer_is_the_next_question() {
    let shell = Shell::new();
    endless_model(&shell, "w");
    let mut terminal = Terminal::start(&shell.command("chat --model model --temperature 0 --max-tokens 300"));
    let begun = terminal.wait_for("base> ", 0);
    terminal.press("w7\r");
    let asked = terminal.wait_for("w7", begun);
    let at = terminal.wait_for(" w", asked);
    terminal.press("w9 zebra\r");
    let ended = terminal.wait_for("[ended after --max-tokens 300]", at);
    assert!(!terminal.shown[..ended].contains("zebra"), "shown in the answer:\n{}", terminal.shown);
    let second = terminal.wait_for("zebra", ended);
    let ended = terminal.wait_for("[ended after --max-tokens 300]", second);
    let prompt = terminal.wait_for("base> ", ended);
    terminal.press("\x03");
    let asked_again = terminal.wait_for("(Ctrl-C again", prompt);
    // The prompt reads keys itself from here on.
    terminal.wait_for("base> ", asked_again);
    terminal.press("\x03");
    assert_eq!(terminal.end(), 0, "{}", terminal.shown);
}

#[test]
fn ctrl_c_ends_generate_with_the_text_so_far() {
    let shell = Shell::new();
    endless_model(&shell, "w");
    let mut terminal = Terminal::start(&shell.command("generate --model model --prompt w7 --max-tokens 4000"));
    let mut at = terminal.wait_for("w7", 0);
    for _ in 0..5 {
        at = terminal.wait_for(" w", at);
    }
    terminal.press("\x03");
    assert_eq!(terminal.end(), 130, "{}", terminal.shown);
    assert!(terminal.shown.contains("; stopped]"), "{}", terminal.shown);
}

#[test]
fn a_models_text_cannot_control_the_terminal() {
    let shell = Shell::new();
    endless_model(&shell, "\x1b]0;title\x07");
    let mut terminal =
        Terminal::start(&shell.command("generate --model model --prompt \x1b]0;title\x071 --max-tokens 5"));
    assert_eq!(terminal.end(), 0, "{}", terminal.shown);
    terminal.wait_for("answer: 5 tokens", 0);
    assert!(!terminal.shown.contains("\x1b]0;"), "{:?}", terminal.shown);
    assert_eq!(terminal.shown.matches(r"\u{1b}]0;title\u{7}").count(), 6, "{:?}", terminal.shown);
    // A file keeps the text as the model gives it.
    let piped = shell.succeed("generate --model model --prompt \x1b]0;title\x071 --max-tokens 5");
    assert_eq!(piped.matches("\x1b]0;title\x07").count(), 6, "{piped:?}");
    // An error may quote a file.
    let config = shell.path("model/config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("silu", r"\u001b[2J");
    std::fs::write(&config, text).unwrap();
    shell.fail("generate --model model --prompt a", &[r"\u{1b}[2J"]);
}
