//! Models by name, from a local server that plays the hub: whole, interrupted, damaged and refused.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::cli::{Shell, assert_fails, copy_files, random_lines, texts};
use crate::common::{fixture, soak};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does with `model.safetensors` (or an index's shards).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    /// Closes the connection after this many bytes of a body, the first times.
    Breaks {
        after: usize,
        times: usize,
    },
    /// Answers a request for a part with the whole.
    IgnoresRanges,
    /// Announces one byte more than there is.
    WrongSize,
    /// Sends other bytes than the tag says.
    Damaged,
    /// Wants `Bearer secret`.
    Private,
    Gated,
    /// Describes the model to everybody, and gives its files to those who have accepted its terms.
    GatedFiles,
    /// Takes a request and never answers.
    Silent,
    /// Sends the headers byte by byte, without end.
    Trickles,
    /// Sends a large file byte by byte.
    TricklesBodies,
    /// Sends the list of files byte by byte.
    TricklesLists,
    /// Sends a list of files without end.
    EndlessLists,
    /// Is too busy for the first requests, and wants to be asked again after some seconds.
    Busy {
        times: usize,
        seconds: u64,
    },
    Missing,
    /// Leads to the server at this port of another host name for what is large, as hubs do.
    LeadsTo(u16),
    /// Leads to itself without end.
    LeadsInCircles,
    /// A page of HTML for everything, as hotels do.
    Html,
    /// A `config.json` of no bytes.
    Empty,
}

struct Hub {
    endpoint: String,
    /// Lines `PATH RANGE`, and `with token` where one came.
    requests: Arc<Mutex<Vec<String>>>,
    port: u16,
}

impl Hub {
    /// Serves a fixture as `tiny/llama`.
    fn open(model: &str, mood: Mood) -> Self {
        Self::serve(fixture(model), mood)
    }

    /// Serves a directory as `tiny/llama`, or as any other name that begins with `tiny/`.
    fn serve(dir: std::path::PathBuf, mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let endpoint = format!("http://127.0.0.1:{port}");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, broken) = (requests.clone(), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (dir, seen, broken) = (dir.clone(), seen.clone(), broken.clone());
                std::thread::spawn(move || {
                    let _ = answer(stream, &dir, mood, &seen, &broken);
                });
            }
        });
        Self { endpoint, requests, port }
    }

    fn asked_for(&self, part: &str) -> Vec<String> {
        self.requests.lock().unwrap().iter().filter(|line| line.contains(part)).cloned().collect()
    }

    fn command(&self, shell: &Shell, args: &str) -> Command {
        let mut command = shell.command(args);
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", shell.path("hf"));
        for name in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HF_HUB_CACHE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "SSL_CERT_DIR",
            "SSL_CERT_FILE",
        ] {
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

    fn fail(&self, shell: &Shell, args: &str, says: &[&str]) {
        assert_fails(&mut self.command(shell, args), args, says);
    }
}

/// What a request asks for.
struct Asked {
    path: String,
    range: Option<String>,
    token: String,
}

impl Asked {
    fn read(stream: &TcpStream) -> std::io::Result<Self> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut asked = Self { path, range: None, token: String::new() };
        for line in lines {
            let line = line?;
            let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
            match name.to_ascii_lowercase().as_str() {
                "range" => asked.range = Some(value.trim_start_matches("bytes=").to_owned()),
                "authorization" => asked.token = value.to_owned(),
                "" => break,
                _ => {}
            }
        }
        Ok(asked)
    }
}

fn refuse(stream: &mut TcpStream, status: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn answer(
    stream: TcpStream,
    dir: &std::path::Path,
    mood: Mood,
    seen: &Mutex<Vec<String>>,
    broken: &AtomicUsize,
) -> std::io::Result<()> {
    let Asked { path, range, token } = Asked::read(&stream)?;
    let mut stream = stream;
    let with_token = if token.is_empty() { "" } else { " with token" };
    seen.lock().unwrap().push(format!("{path} {}{with_token}", range.as_deref().unwrap_or("all")));
    let is_file = path.contains("/resolve/");
    match mood {
        Mood::GatedFiles if is_file && token.is_empty() => {
            return gated(&mut stream, "401 Unauthorized", "Please log in.");
        }
        Mood::GatedFiles if is_file && token != "Bearer granted" => {
            return gated(&mut stream, "403 Forbidden", "You are not in the authorized list.");
        }
        Mood::Silent => {
            std::thread::sleep(Duration::from_secs(60));
            return Ok(());
        }
        Mood::Trickles => {
            write!(stream, "HTTP/1.1 200 OK\r\nX-Long: ")?;
            return trickle(&mut stream, &[b'x'; 600]);
        }
        Mood::Busy { times, seconds } if broken.fetch_add(1, Ordering::SeqCst) < times => {
            return refuse(&mut stream, &format!("429 Too Many Requests\r\nRetry-After: {seconds}"));
        }
        Mood::EndlessLists => {
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{{\"siblings\": [")?;
            loop {
                stream.write_all(&b"{\"rfilename\": \"a\"}, ".repeat(1 << 12))?;
            }
        }
        Mood::Missing => return refuse(&mut stream, "404 Not Found"),
        Mood::Gated => return refuse(&mut stream, "403 Forbidden"),
        Mood::LeadsInCircles => {
            return write!(
                stream,
                "HTTP/1.1 307 Away\r\nLocation: {path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        Mood::Html => {
            let page = "<!DOCTYPE html><title>Welcome to our hotel</title>";
            let length = page.len();
            return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}");
        }
        Mood::Private if token != "Bearer secret" => return refuse(&mut stream, "401 Unauthorized"),
        _ => {}
    }
    if path.starts_with("/api/models/tiny/") {
        let body = description(dir)?;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
        return if mood == Mood::TricklesLists {
            trickle(&mut stream, body.as_bytes())
        } else {
            stream.write_all(body.as_bytes())
        };
    }
    send_file(stream, dir, mood, &path, range.as_deref(), broken)
}

/// Sends a file of the model, or what the mood makes of it.
fn send_file(
    mut stream: TcpStream,
    dir: &std::path::Path,
    mood: Mood,
    path: &str,
    range: Option<&str>,
    broken: &AtomicUsize,
) -> std::io::Result<()> {
    let name = path.split_once(&format!("/resolve/{COMMIT}/")).map(|(_, name)| name).unwrap_or_default();
    let Ok(mut body) = std::fs::read(dir.join(name)) else { return refuse(&mut stream, "404 Not Found") };
    let large = name.ends_with(".safetensors");
    if let (Mood::LeadsTo(port), true) = (mood, large) {
        let (tag, size) = (sha256(&body), body.len());
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: http://localhost:{port}{path}\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-ETag: \"{tag}\"\r\n\
             X-Linked-Size: {size}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if mood == Mood::Empty && name == "config.json" {
        body.clear();
    }
    let tag = match large {
        true => sha256(&body),
        // As git names a file: by its content.
        false => sha256(&body)[..40].to_owned(),
    };
    let total = body.len() + usize::from(large && mood == Mood::WrongSize);
    if large && mood == Mood::Damaged {
        let middle = body.len() / 2;
        body[middle] ^= 1;
    }
    let (start, end) = range.and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
    let is_probe = end == "0";
    let mut start: usize = start.parse().unwrap_or(0);
    if start > 0 && mood == Mood::IgnoresRanges {
        start = 0;
    }
    let part = &body[start.min(body.len())..if is_probe { 1.min(body.len()) } else { body.len() }];
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{total}\r\nETag: \"{tag}\"\r\n\
         X-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        part.len(),
        start + part.len().max(1) - 1
    )?;
    match mood {
        Mood::Breaks { after, times } if large && !is_probe && broken.fetch_add(1, Ordering::SeqCst) < times => {
            stream.write_all(&part[..after.min(part.len())])
        }
        Mood::TricklesBodies if large && !is_probe => trickle(&mut stream, part),
        _ => stream.write_all(part),
    }
}

fn gated(stream: &mut TcpStream, status: &str, words: &str) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nX-Error-Code: GatedRepo\r\nX-Error-Message: {words}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

/// Sends ten bytes a second.
fn trickle(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    for byte in bytes {
        stream.write_all(&[*byte])?;
        stream.flush()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The description of a model with the files of a directory.
fn description(dir: &std::path::Path) -> std::io::Result<String> {
    let mut names = vec!["../../outside.safetensors".to_owned()];
    list(dir, "", &mut names)?;
    let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
    Ok(serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string())
}

/// The files below a directory by their paths in it.
fn list(dir: &std::path::Path, before: &str, names: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = format!("{before}{}", entry.file_name().to_string_lossy());
        match entry.path().is_dir() {
            true => list(&entry.path(), &format!("{name}/"), names)?,
            false => names.push(name),
        }
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shell() -> Shell {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(8, 96, 1));
    shell
}

const TRAIN: &str = "train --model tiny/llama --data data.jsonl --steps 2 --rank 2";

#[test]
fn a_model_by_name_trains_as_from_its_directory_and_is_fetched_once() {
    let (hub, shell) = (Hub::open("llama_tied", Mood::Well), shell());
    hub.succeed(&shell, &format!("{TRAIN} --out run"));
    let local = fixture("llama_tied");
    shell.succeed(&format!("train --model {} --data data.jsonl --steps 2 --rank 2 --out twin", local.display()));
    assert_eq!(shell.read("run/adapter_model.safetensors"), shell.read("twin/adapter_model.safetensors"));

    // The layout that huggingface_hub reads and writes.
    let cache = "hf/hub/models--tiny--llama";
    assert_eq!(shell.read(&format!("{cache}/refs/main")), COMMIT.as_bytes());
    let snapshot = format!("{cache}/snapshots/{COMMIT}");
    assert_eq!(shell.names(&snapshot), ["config.json", "model.safetensors"]);
    let weights = std::fs::read(local.join("model.safetensors")).unwrap();
    assert_eq!(shell.read(&format!("{cache}/blobs/{}", sha256(&weights))), weights);

    // What the run wrote names the model, not this machine's cache.
    let config: serde_json::Value = serde_json::from_slice(&shell.read("run/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "tiny/llama");
    let settings = String::from_utf8(shell.read("run/run.toml")).unwrap();
    assert!(settings.contains(&format!("model = \"tiny/llama@{COMMIT}\"")), "{settings}");

    let asked = hub.asked_for("model.safetensors").len();
    hub.succeed(&shell, &format!("{TRAIN} --out again"));
    assert_eq!(hub.asked_for("model.safetensors").len(), asked, "the cache has it");
    let all = hub.asked_for("").len();
    hub.succeed(&shell, "train --config run/run.toml --out by-commit");
    let mut offline = hub.command(&shell, &format!("{TRAIN} --out offline"));
    assert!(offline.env("HF_HUB_OFFLINE", "1").status().unwrap().success());
    assert_eq!(hub.asked_for("").len(), all, "neither a commit nor HF_HUB_OFFLINE asks anybody");
    assert_eq!(shell.read("offline/adapter_model.safetensors"), shell.read("by-commit/adapter_model.safetensors"));
}

#[test]
fn shards_come_with_their_index_and_estimates_fetch_no_weights() {
    let (hub, shell) = (Hub::open("llama_untied", Mood::Well), shell());
    let shown = hub.succeed(&shell, "estimate --model tiny/llama --max-seq-len 32");
    assert!(shown.contains("tiny/llama"), "{shown}");
    assert!(hub.asked_for(".safetensors").is_empty());
    hub.succeed(&shell, &format!("{TRAIN} --out run"));
    let names = shell.names(&format!("hf/hub/models--tiny--llama/snapshots/{COMMIT}"));
    assert!(names.iter().filter(|name| name.ends_with(".safetensors")).count() > 1, "{names:?}");
    assert!(!shell.path("hf/outside.safetensors").exists());
}

#[test]
fn a_gguf_file_of_a_repository_is_named_beside_it() {
    let shell = shell();
    let model = fixture("llama_tied");
    let merge = format!("merge --gguf --model {} --adapter {} --out", model.display(), model.join("adapter").display());
    for name in ["tiny-F32.gguf", "tiny-F16.gguf"] {
        let float = if name.contains("F32") { "f32" } else { "f16" };
        shell.succeed(&format!("{merge} repo/{name} --dtype {float}"));
    }
    let hub = Hub::serve(shell.path("repo"), Mood::Well);
    let eval = |model: &str| format!("eval --model {model} --data data.jsonl --json");
    let local = shell.succeed(&eval("repo/tiny-F16.gguf"));
    for name in ["tiny/ggufs:f16", "tiny/ggufs@main:tiny-F16.gguf"] {
        assert_eq!(hub.succeed(&shell, &eval(name)), local, "{name}");
    }
    assert!(hub.asked_for("F32").is_empty());
    let mut offline = hub.command(&shell, &eval("tiny/ggufs:F16"));
    assert_eq!(texts(&offline.env("HF_HUB_OFFLINE", "1").output().unwrap()).0, local, "the cache has it");
    hub.succeed(&shell, "train --model tiny/ggufs:F16 --data data.jsonl --steps 1 --out run");
    let settings = String::from_utf8(shell.read("run/run.toml")).unwrap();
    assert!(settings.contains(&format!("model = \"tiny/ggufs@{COMMIT}:tiny-F16.gguf\"")), "{settings}");
    let there = ["tiny/ggufs: has no GGUF file `Q4_K_M`; there are tiny-F16.gguf, tiny-F32.gguf"];
    hub.fail(&shell, &eval("tiny/ggufs:Q4_K_M"), &there);
    hub.fail(
        &shell,
        &eval("tiny/ggufs"),
        &["tiny/ggufs: has GGUF files alone: name one of them, such as tiny/ggufs:tiny-F"],
    );
    hub.fail(&shell, "estimate --model tiny/ggufs:F16", &["not known before it is downloaded"]);
}

#[test]
fn broken_connections_are_gone_on_with() {
    let (hub, shell) = (Hub::open("llama_tied", Mood::Breaks { after: 1000, times: 3 }), shell());
    hub.succeed(&shell, &format!("{TRAIN} --out run"));
    let parts = hub.asked_for("model.safetensors");
    for start in [0, 1000, 2000, 3000] {
        assert!(parts.iter().any(|line| line.ends_with(&format!(" {start}-"))), "{start}: {parts:?}");
    }

    // Given up on, and gone on with by the next command.
    let shell = self::shell();
    let hub = Hub::open("llama_tied", Mood::Breaks { after: 500, times: 6 });
    hub.fail(
        &shell,
        &format!("{TRAIN} --out run"),
        &["tiny/llama: model.safetensors:", "run the command again to go on"],
    );
    assert!(!shell.path("run").exists());
    hub.succeed(&shell, &format!("{TRAIN} --out run"));
    assert!(hub.asked_for("model.safetensors").iter().any(|line| line.ends_with(" 3000-")));
}

#[test]
fn a_server_without_ranges_still_gives_a_whole_file() {
    let shell = shell();
    let hub = Hub::open("llama_tied", Mood::Breaks { after: 700, times: 5 });
    hub.fail(&shell, &format!("{TRAIN} --out run"), &["model.safetensors"]);
    let hub = Hub::open("llama_tied", Mood::IgnoresRanges);
    hub.succeed(&shell, &format!("{TRAIN} --out run"));
}

#[test]
fn what_does_not_arrive_whole_is_refused_and_not_kept() {
    for (mood, says) in [(Mood::WrongSize, "bytes instead of"), (Mood::Damaged, "its SHA-256 is")] {
        let (hub, shell) = (Hub::open("llama_tied", mood), shell());
        hub.fail(&shell, &format!("{TRAIN} --out run"), &["tiny/llama: model.safetensors: arrives damaged", says]);
        let snapshot = shell.names(&format!("hf/hub/models--tiny--llama/snapshots/{COMMIT}"));
        assert_eq!(snapshot, ["config.json"], "{mood:?}");
        assert!(!shell.path("run").exists());
    }
}

#[test]
fn refusals_say_what_would_help() {
    let shell = shell();
    let train = format!("{TRAIN} --out run");
    Hub::open("llama_tied", Mood::Missing).fail(&shell, &train, &["tiny/llama: is no directory here, and no model"]);
    Hub::open("llama_tied", Mood::Gated).fail(&shell, &train, &["accept its terms", "set HF_TOKEN"]);
    let private = Hub::open("llama_tied", Mood::Private);
    private.fail(&shell, &train, &["is not open", "set HF_TOKEN"]);
    assert_fails(
        private.command(&shell, &train).env("HF_TOKEN", "wrong"),
        &train,
        &["the token in use does not open it"],
    );
    assert_fails(private.command(&shell, &train).env("HF_HUB_OFFLINE", "1"), &train, &["is not in the cache"]);
    assert!(private.command(&shell, &train).env("HF_TOKEN", "secret").status().unwrap().success());
    // Nobody listens there; what is whole in the cache serves, what is not cannot be had.
    let away = |args: &str| {
        let mut command = private.command(&shell, args);
        command.env("HF_ENDPOINT", "http://127.0.0.1:9");
        command
    };
    assert!(away(&format!("{TRAIN} --out cached")).status().unwrap().success());
    assert_fails(&mut away("info --model tiny/llama2"), "info", &["tiny/llama2"]);
    assert_fails(
        &mut away("eval --model tiny/other --data data.jsonl"),
        "eval",
        &["tiny/other", "cannot be asked for it"],
    );
}

#[test]
fn the_token_stays_with_the_hub_when_it_leads_to_another_host() {
    let shell = shell();
    let store = Hub::open("llama_tied", Mood::Well);
    let hub = Hub::open("llama_tied", Mood::LeadsTo(store.port));
    let train = format!("{TRAIN} --out run");
    let output = hub.command(&shell, &train).env("HF_TOKEN", "secret").output().unwrap();
    let (shown, problems) = texts(&output);
    assert!(output.status.success(), "{shown}{problems}");
    let asked = hub.asked_for("");
    assert!(asked.len() > 2 && asked.iter().all(|line| line.ends_with("with token")), "{asked:?}");
    let stored = store.asked_for("");
    assert!(stored.iter().any(|line| line.contains("model.safetensors 0-")), "{stored:?}");
    assert!(stored.iter().all(|line| !line.contains("token")), "{stored:?}");
}

#[test]
fn answers_that_no_hub_gives_are_refused() {
    for (mood, says) in [
        (Mood::Html, "its answer is not a hub's"),
        (Mood::LeadsInCircles, "leads from one place to the next"),
        (Mood::Empty, "config.json: is not valid JSON"),
    ] {
        let (hub, shell) = (Hub::open("llama_tied", mood), shell());
        hub.fail(&shell, &format!("{TRAIN} --out run"), &[says]);
        assert!(!shell.path("run").exists(), "{mood:?}");
    }
}

#[test]
fn other_commands_know_the_names_of_models_too() {
    let (hub, shell) = (Hub::open("llama_tied", Mood::Well), shell());
    let shown = hub.succeed(&shell, "info --model tiny/llama --json");
    let info: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(info["model"]["layers"], 2, "{info}");
    let shown = hub.succeed(&shell, &format!("{TRAIN} --out run"));
    assert!(shown.contains("try it: loraine eval --model tiny/llama --quant nf4 --adapter run"), "{shown}");
}

#[test]
fn gated_files_name_the_page_of_the_terms_and_the_token() {
    let (hub, shell) = (Hub::open("llama_tied", Mood::GatedFiles), shell());
    let train = format!("{TRAIN} --out run");
    let page = format!("is gated: accept its terms at {}/tiny/llama", hub.endpoint);
    hub.fail(&shell, &train, &[&page, "set HF_TOKEN", "Please log in"]);
    let mut other = hub.command(&shell, &train);
    other.env("HF_TOKEN", "other");
    assert_fails(&mut other, &train, &["is gated", "(of HF_TOKEN) has no access yet", "not in the authorized list"]);
    assert!(hub.command(&shell, &train).env("HF_TOKEN", "granted").status().unwrap().success());
}

#[test]
fn tokens_and_offline_come_from_every_place_that_huggingface_hub_reads() {
    let (hub, shell) = (Hub::open("llama_tied", Mood::Private), shell());
    let succeeds = |change: &dyn Fn(&mut Command)| {
        let _ = std::fs::remove_dir_all(shell.path("hf/hub"));
        let mut command = hub.command(&shell, "info --model tiny/llama");
        change(&mut command);
        command.output().unwrap().status.success()
    };
    assert!(succeeds(&|command| _ = command.env("HUGGING_FACE_HUB_TOKEN", "secret")));
    assert!(!succeeds(&|_| ()));
    shell.write("my-token", "secret\n");
    assert!(succeeds(&|command| _ = command.env("HF_TOKEN_PATH", shell.path("my-token"))));
    std::fs::create_dir_all(shell.path("hf")).unwrap();
    shell.write("hf/token", "secret\n");
    assert!(succeeds(&|_| ()));
    // The token stays where HF_HOME is, wherever the cache lies.
    assert!(succeeds(&|command| _ = command.env("HF_HUB_CACHE", shell.path("elsewhere"))));
    assert!(shell.path("elsewhere/models--tiny--llama").exists());
    let before = hub.asked_for("").len();
    let mut offline = hub.command(&shell, "info --model tiny/other");
    offline.env("TRANSFORMERS_OFFLINE", "1");
    assert_fails(&mut offline, "info", &["tiny/other: is not in the cache, and TRANSFORMERS_OFFLINE forbids"]);
    assert_eq!(hub.asked_for("").len(), before);
}

/// With the patience of a second; `LORAINE_SOAK` tries the default too.
#[test]
fn a_hostile_hub_is_given_up() {
    let moods: [(Mood, &[&str]); 11] = [
        (Mood::Silent, &["cannot be asked for it"]),
        (Mood::Trickles, &["cannot be asked for it"]),
        (Mood::TricklesBodies, &["bytes came in ", " seconds; run the command again"]),
        (Mood::TricklesLists, &["cannot be asked for it"]),
        (Mood::EndlessLists, &["not a hub's"]),
        (Mood::LeadsInCircles, &["from one place to the next"]),
        (Mood::WrongSize, &["bytes instead of"]),
        (Mood::Damaged, &["SHA-256"]),
        (Mood::Html, &["cannot be asked for it"]),
        (Mood::Busy { times: usize::MAX, seconds: 1 }, &["wants to be asked again after 1 s"]),
        (Mood::Busy { times: usize::MAX, seconds: 3600 }, &["wants to be asked again after 3600 s"]),
    ];
    let patience: &[Option<&str>] = if soak() > 1 { &[Some("1"), None] } else { &[Some("1")] };
    for timeout in patience {
        std::thread::scope(|scope| {
            for (mood, says) in moods {
                scope.spawn(move || {
                    let (hub, shell) = (Hub::open("llama_tied", mood), shell());
                    let train = format!("{TRAIN} --out run");
                    let mut command = hub.command(&shell, &train);
                    command.envs(timeout.map(|seconds| ("HF_HUB_DOWNLOAD_TIMEOUT", seconds)));
                    let started = Instant::now();
                    assert_fails(&mut command, &train, says);
                    let took = started.elapsed();
                    println!("{mood:?}, timeout {timeout:?}: {took:?}");
                    let most = Duration::from_secs(if timeout.is_some() { 15 } else { 120 });
                    assert!(took < most, "{mood:?} held the program for {took:?}");
                });
            }
        });
    }
}

#[test]
fn a_hub_that_is_busy_is_asked_again_when_it_wants_to_be() {
    let (hub, shell) = (Hub::open("llama_tied", Mood::Busy { times: 2, seconds: 1 }), shell());
    let started = Instant::now();
    hub.succeed(&shell, &format!("{TRAIN} --out run"));
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn certificates_that_cannot_be_read_are_named() {
    let (hub, shell) = (Hub::open("llama_tied", Mood::Well), shell());
    let info = "info --model tiny/llama";
    let bundle = shell.path("company.pem");
    let missing = "company.pem: cannot be read, and REQUESTS_CA_BUNDLE names it";
    assert_fails(hub.command(&shell, info).env("REQUESTS_CA_BUNDLE", &bundle), info, &[missing]);
    shell.write("company.pem", "none");
    let empty = "company.pem: holds no certificate in PEM, and SSL_CERT_FILE names it";
    assert_fails(hub.command(&shell, info).env("SSL_CERT_FILE", &bundle), info, &[empty]);
}

#[test]
fn licenses_templates_and_tokenizers_come_along_and_stay_with_what_is_made() {
    let shell = shell();
    copy_files(&fixture("llama_tied"), &shell.path("served"));
    for (dir, name) in [
        ("", "LICENSE"),
        ("", "NOTICE.txt"),
        ("", "README.md"),
        ("", "notes.txt"),
        ("additional_chat_templates/", "tools.jinja"),
        ("original/", "LICENSE"),
    ] {
        std::fs::create_dir_all(shell.path(&format!("served/{dir}"))).unwrap();
        shell.write(&format!("served/{dir}{name}"), format!("{dir}{name}"));
    }
    let hub = Hub::serve(shell.path("served"), Mood::Well);
    hub.succeed(&shell, &format!("{TRAIN} --out run"));
    let snapshot = format!("hf/hub/models--tiny--llama/snapshots/{COMMIT}");
    let names = ["LICENSE", "NOTICE.txt", "additional_chat_templates", "config.json", "model.safetensors"];
    assert_eq!(shell.names(&snapshot), names);
    let template = shell.read(&format!("{snapshot}/additional_chat_templates/tools.jinja"));
    assert_eq!(template, b"additional_chat_templates/tools.jinja");
    hub.succeed(&shell, "merge --model tiny/llama --adapter run --out merged");
    hub.succeed(&shell, "quantize --model tiny/llama --out nf4");
    for made in ["merged", "nf4"] {
        assert_eq!(shell.read(&format!("{made}/LICENSE")), b"LICENSE", "{made}");
        assert!(!shell.path(&format!("{made}/README.md")).exists());
    }
}

#[test]
fn an_adapter_by_name_is_the_one_of_its_directory() {
    let shell = shell();
    let model = fixture("llama_tied");
    let with = |adapter: &str| format!("eval --model {} --adapter {adapter} --data data.jsonl --json", model.display());
    for (serve, name) in [("adapter", "tiny/poet"), ("one-down", "tiny/nested@v1")] {
        let place = shell.path(serve).join(if serve == "one-down" { "default" } else { "" });
        copy_files(&model.join("adapter"), &place);
        let hub = Hub::serve(shell.path(serve), Mood::Well);
        let local = shell.succeed(&with(place.to_str().unwrap()));
        assert_eq!(hub.succeed(&shell, &with(name)), local);
        let mut offline = hub.command(&shell, &with(name));
        offline.env("HF_HUB_OFFLINE", "1");
        assert_eq!(texts(&offline.output().unwrap()).0, local, "the cache has it");
        let train = "train --data data.jsonl --steps 1";
        hub.succeed(&shell, &format!("{train} --model {} --init-adapter {name} --out from-{serve}", model.display()));
    }
    let settings = String::from_utf8(shell.read("from-adapter/run.toml")).unwrap();
    assert!(settings.contains(&format!("init-adapter = \"tiny/poet@{COMMIT}\"")), "{settings}");
    copy_files(&model, &shell.path("model"));
    let hub = Hub::serve(shell.path("model"), Mood::Well);
    hub.fail(&shell, &with("tiny/model"), &["tiny/model: holds no adapter_config.json: it is a model"]);
    let adapter = Hub::serve(model.join("adapter"), Mood::Well);
    adapter.fail(&shell, "info --model tiny/adapter2", &["is a PEFT adapter, not a model", "--adapter tiny/adapter2"]);
}
