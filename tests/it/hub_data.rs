//! Data sets by name, from a local server that plays the hub.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::common::cli::{Shell, assert_fails, texts, train_on};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves files as the data set `tiny/set`, and keeps the paths that were asked for.
struct Hub {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

type Files = Arc<BTreeMap<&'static str, Vec<u8>>>;

impl Hub {
    fn open(files: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (files, asked): (Files, Arc<Mutex<Vec<String>>>) = (Arc::new(files.into_iter().collect()), Arc::default());
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, seen) = (files.clone(), seen.clone());
                std::thread::spawn(move || answer(stream, &files, &seen));
            }
        });
        Self { endpoint, asked }
    }

    fn command(&self, shell: &Shell, args: &str) -> Command {
        let mut command = shell.command(args);
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", shell.path("hf"));
        for name in ["HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(name);
        }
        command
    }

    fn succeed(&self, shell: &Shell, args: &str) -> String {
        let output = self.command(shell, args).output().expect("the program starts");
        let (shown, problems) = texts(&output);
        assert!(output.status.success(), "loraine {args}\n{shown}{problems}");
        shown
    }

    /// How often files whose path holds `part` were asked for.
    fn count(&self, part: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|path| path.contains(part)).count()
    }
}

fn answer(mut stream: TcpStream, files: &Files, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut start = 0;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.split('-').next().and_then(|start| start.parse().ok()).unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    asked.lock().unwrap().push(path.clone());
    let head = |status: &str, length: usize, more: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")
    };
    if path.starts_with("/api/datasets/tiny/set/revision/") {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        return write!(stream, "{}{body}", head("200 OK", body.len(), ""));
    }
    let file =
        path.strip_prefix(&format!("/datasets/tiny/set/resolve/{COMMIT}/")).and_then(|name| files.get_key_value(name));
    let Some((name, body)) = file else { return write!(stream, "{}", head("404 Not Found", 0, "")) };
    let part = &body[start.min(body.len())..];
    let (end, total) = (start + part.len().max(1) - 1, body.len());
    let tag: u64 = name.bytes().map(u64::from).sum();
    let more =
        format!("Content-Range: bytes {start}-{end}/{total}\r\nETag: \"{tag:040x}\"\r\nX-Repo-Commit: {COMMIT}\r\n");
    write!(stream, "{}", head("206 Partial Content", part.len(), &more))?;
    stream.write_all(part)
}

fn lines(first: u32) -> Vec<u8> {
    (0..4).map(|at| format!("{{\"input_ids\": [{}, 5, 6, 7]}}\n", first + at)).collect::<String>().into_bytes()
}

#[test]
fn a_data_set_by_name_trains_as_from_its_files_and_is_fetched_once() {
    let parquet = std::fs::read("tests/fixtures/parquet/tokens.parquet").expect("a fixture");
    let hub = Hub::open([
        ("README.md", b"---\nconfigs: []\n---\n".to_vec()),
        ("data/train-00000-of-00002.jsonl", lines(10)),
        ("data/train-00001-of-00002.jsonl", lines(20)),
        ("data/validation-00000-of-00001.jsonl", lines(30)),
        ("data/test-00000-of-00001.parquet", parquet),
    ]);
    let shell = Shell::new();
    shell.write("train.jsonl", [lines(10), lines(20)].concat());
    shell.write("valid.jsonl", lines(30));
    let train = format!("{} --rank 2 --steps 2", train_on("llama_tied"));
    let shown = hub.succeed(&shell, &format!("{train} --data tiny/set --out run"));
    assert!(shown.contains("8 examples from 8 records") && shown.contains("4 examples from 4 records"), "{shown}");
    shell.succeed(&format!("{train} --data train.jsonl --eval-data valid.jsonl --out twin"));
    assert_eq!(shell.read("run/adapter_model.safetensors"), shell.read("twin/adapter_model.safetensors"));
    assert!((hub.count("README"), hub.count("test-")) == (0, 0), "only what the run needs is fetched");

    let settings = String::from_utf8(shell.read("run/run.toml")).unwrap();
    assert!(settings.contains(&format!("data = \"tiny/set@{COMMIT}\"")), "{settings}");
    let before = hub.count("");
    hub.succeed(&shell, "train --config run/run.toml --out again");
    let offline = format!("{train} --data tiny/set --out offline");
    assert!(hub.command(&shell, &offline).env("HF_HUB_OFFLINE", "1").status().unwrap().success());
    assert_eq!(hub.count(""), before, "neither a commit nor HF_HUB_OFFLINE asks anybody");

    let model = train_on("llama_tied").replace("train ", "");
    let shown = hub.succeed(&shell, &format!("eval {model} --data tiny/set"));
    assert!(shown.contains("2 examples from 2 records (tokens)"), "{shown}");
    let shown = hub.succeed(&shell, &format!("eval {model} --data tiny/set:validation"));
    assert!(shown.contains("4 examples from 4 records"), "{shown}");
}

#[test]
fn data_sets_that_leave_a_choice_or_are_not_there_are_refused() {
    let shell = Shell::new();
    let hub = Hub::open([("main/train.jsonl", lines(10)), ("other/train.jsonl", lines(20))]);
    let train = |data: &str| format!("{} --rank 2 --steps 1 --data {data} --out run", train_on("llama_tied"));
    for (data, says) in [
        ("tiny/set", "tiny/set: holds several data sets, main, other"),
        ("tiny/set/main:validation", "has no split validation; it has train"),
        ("tiny/nothing", "tiny/nothing: "),
    ] {
        let args = train(data);
        assert_fails(&mut hub.command(&shell, &args), &args, &[says]);
        assert!(!shell.path("run").exists());
    }
    hub.succeed(&shell, &train("tiny/set/other"));
    assert_eq!(hub.count("main/train.jsonl"), 0);
}
