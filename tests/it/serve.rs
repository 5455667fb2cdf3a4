//! `loraine serve`, as clients use it over HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::cli::Shell;

const QUESTION: &str = "What does a dog eat?";

fn model() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model").display().to_string()
}

/// Two adapters of a few steps, which answer unlike each other.
fn adapters(shell: &Shell) -> String {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/data").display().to_string();
    for (name, seed) in [("pirate", 1), ("poet", 2)] {
        shell.succeed(&format!(
            "train --model {} --data {data} --out {name} --seed {seed} --steps 6 --lr 2e-2 --batch-size 2 \
             --eval-fraction 0 --tune off",
            model()
        ));
    }
    "--adapter pirate=pirate --adapter poet=poet".to_owned()
}

/// A server on a free port, until it is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(shell: &Shell, arguments: &str) -> Self {
        let mut command = shell.command(&format!("serve --model {} --tune off --port 0 {arguments}", model()));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, address }
    }

    /// Status and body of an answer.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = agent.run(request.body(body.to_owned()).unwrap()).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.send("POST", path, &[], &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    fn get(&self, path: &str) -> Value {
        let (status, text) = self.send("GET", path, &[], "");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn answer(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v1/chat/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The chunks of a streamed answer.
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let (status, text) = self.send("POST", path, &[], &body.to_string());
        assert_eq!(status, 200, "{text}");
        let mut lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(lines.pop(), Some("[DONE]"), "{text}");
        lines.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Checks that a request is refused with a status, and with words in its message.
    fn refuses(&self, path: &str, body: &str, status: u16, says: &str) -> Value {
        let (got, text) = self.send("POST", path, &[], body);
        assert_eq!(got, status, "{body}: {text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(says), "{body}: {says:?} is not in {text}");
        assert_eq!(answer["error"]["code"], status, "{text}");
        answer
    }

    /// Begins a request that is not read to its end.
    fn begin(&self, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost";
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream
    }
}

fn asked(model: &str, more: Value) -> Value {
    let mut body = json!({ "model": model, "messages": [{ "role": "user", "content": QUESTION }], "max_tokens": 30 });
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn joined(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

/// What `loraine generate` answers.
fn generated(shell: &Shell, adapters: &str, name: &str, more: &str) -> Value {
    shell.write("question.txt", QUESTION);
    let shown = shell.succeed(&format!(
        "generate --model {} --tune off {adapters} --use {name} --prompt-file question.txt --max-tokens 30 --json {more}",
        model()
    ));
    serde_json::from_str::<Value>(&shown).unwrap()["answers"][0].clone()
}

#[test]
fn clients_at_once_get_the_answers_of_generate() {
    let shell = Shell::new();
    let adapters = adapters(&shell);
    let wanted = ["pirate", "poet", "base"].map(|name| generated(&shell, &adapters, name, ""));
    let texts = wanted.each_ref().map(|answer| answer["text"].as_str().unwrap());
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    let server = &Server::start(&shell, &adapters);
    thread::scope(|scope| {
        for (name, wanted) in ["pirate", "poet", "base"].into_iter().zip(&wanted) {
            scope.spawn(move || {
                let body = asked(name, json!({ "temperature": 0, "stream_options": { "include_usage": true } }));
                let whole = server.answer(&body);
                assert_eq!(whole["choices"][0]["message"]["content"], wanted["text"], "{name}");
                let reason = if wanted["stop"] == "max_tokens" { "length" } else { "stop" };
                assert_eq!(whole["choices"][0]["finish_reason"], reason);
                assert_eq!(whole["usage"]["prompt_tokens"], wanted["prompt_tokens"]);
                assert_eq!(whole["usage"]["completion_tokens"], wanted["tokens"]);
                assert_eq!(whole["model"], if name == "base" { "model" } else { name });
                let chunks = server.stream("/v1/chat/completions", &body);
                assert_eq!(joined(&chunks), wanted["text"].as_str().unwrap(), "{name}");
                assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
                let [.., end, usage] = &chunks[..] else { panic!("{chunks:?}") };
                assert_eq!(end["choices"][0]["finish_reason"], reason);
                assert_eq!(usage["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
                assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
            });
        }
    });
    // What the same client asked before is in its cache.
    let again = server.answer(&asked("poet", json!({ "temperature": 0 })));
    let prompt = again["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], prompt - 1, "{again}");
    assert_eq!(text(&again), texts[1]);

    let sampled = generated(&shell, &adapters, "pirate", "--temperature 0.9 --top-p 0.95 --seed 7");
    let body = asked("pirate", json!({ "temperature": 0.9, "top_p": 0.95, "seed": 7 }));
    assert_eq!(text(&server.answer(&body)), sampled["text"].as_str().unwrap());
    let (cut, stop) = (texts[0].len() / 2, &texts[0][texts[0].len() / 2..texts[0].len() / 2 + 3]);
    let body = asked("pirate", json!({ "temperature": 0, "stop": [stop, "@@@"] }));
    let ended = server.answer(&body);
    assert_eq!(text(&ended), &texts[0][..texts[0].find(stop).unwrap().min(cut)]);
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    assert_eq!(joined(&server.stream("/v1/chat/completions", &body)), text(&ended));
}

#[test]
fn models_tokens_and_log_probabilities_are_shown() {
    let shell = Shell::new();
    let adapters = adapters(&shell);
    let server = Server::start(&shell, &adapters);
    let models = server.get("/v1/models");
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["model", "pirate", "poet"]);
    assert_eq!(models["data"][2]["parent"], "model");
    assert_eq!(server.get("/v1/models/poet")["id"], "poet");
    assert_eq!(server.get("/health")["status"], "ok");

    let (_, tokens) = server.post("/tokenize", &json!({ "content": "A dog eats. \u{e9}" }));
    let (_, back) = server.post("/detokenize", &tokens);
    assert_eq!(back["content"], "A dog eats. \u{e9}");

    let body = json!({ "prompt": "One day", "max_tokens": 4, "temperature": 0, "logprobs": 2, "model": "base" });
    let (_, answer) = server.post("/v1/completions", &body);
    let logprobs = &answer["choices"][0]["logprobs"];
    let tokens: String = logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(answer["choices"][0]["text"].as_str().unwrap().trim_start(), tokens.trim_start());
    for (chosen, likeliest) in
        std::iter::zip(logprobs["token_logprobs"].as_array().unwrap(), logprobs["top_logprobs"].as_array().unwrap())
    {
        let values: Vec<f64> = likeliest.as_object().unwrap().values().map(|value| value.as_f64().unwrap()).collect();
        assert!(values.len() == 2 && values[0] >= values[1] && Some(values[0]) == chosen.as_f64(), "{logprobs}");
    }
    let chunks = server.stream("/v1/completions", &body);
    let streamed: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(answer["choices"][0]["text"], streamed);
    let first = tokens.chars().next().unwrap();
    let (_, ids) = server.post("/tokenize", &json!({ "content": logprobs["tokens"][0], "with_pieces": true }));
    let id =
        ids["tokens"].as_array().unwrap().iter().find(|t| t["piece"] == logprobs["tokens"][0]).unwrap()["id"].clone();
    let mut banned = body.clone();
    banned["logit_bias"] = json!({ id.to_string(): -100 });
    let (_, other) = server.post("/v1/completions", &banned);
    assert_ne!(other["choices"][0]["logprobs"]["tokens"][0], logprobs["tokens"][0], "{first}");

    // Without a name, the chosen adapter answers: the first one until a client of llama.cpp's kind chooses.
    let unnamed = asked("", json!({ "temperature": 0 }));
    assert_eq!(server.answer(&unnamed)["model"], "pirate");
    assert_eq!(server.post("/lora-adapters", &json!([{ "id": 0, "scale": 0.0 }, { "id": 1, "scale": 1.0 }])).0, 200);
    assert_eq!(server.answer(&unnamed)["model"], "poet");
    assert_eq!(server.get("/lora-adapters")[1]["scale"], 1.0);
    let of_request = asked("model", json!({ "lora": [{ "id": 0, "scale": 1.0 }] }));
    assert_eq!(server.answer(&of_request)["model"], "pirate");
    assert_eq!(server.post("/lora-adapters", &json!([])).0, 200);
    assert_eq!(server.answer(&unnamed)["model"], "model");
    server.refuses("/lora-adapters", r#"[{"id": 0, "scale": 0.5}]"#, 400, "a scale is 0 or 1");
    server.refuses("/lora-adapters", r#"[{"id": 7, "scale": 1}]"#, 400, "there are 2 adapters");
}

#[test]
fn wrong_requests_are_answered_by_what_is_wrong() {
    let shell = Shell::new();
    let server =
        Server::start(&shell, "--max-body 1 --api-key sesame --cors http://page.example:3000 --max-context 64");
    let key = ("authorization", "Bearer sesame");
    let send = |path: &str, body: &str, status: u16, says: &str| {
        let (got, text) = server.send("POST", path, &[key], body);
        assert_eq!(got, status, "{body:.200}: {text}");
        assert!(text.contains(says), "{body:.200}: {says:?} is not in {text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(answer["error"]["message"].is_string() && answer["error"]["type"].is_string(), "{text}");
    };
    let chat = |more: Value, status, says: &str| {
        send("/v1/chat/completions", &asked("", more).to_string(), status, says);
    };
    chat(json!({ "model": "cook" }), 404, "there is no model `cook`; there are: model");
    chat(json!({ "messages": [] }), 400, "`messages` is empty");
    chat(json!({ "messages": null }), 400, "`messages` is missing");
    chat(json!({ "messages": [{ "role": "user" }] }), 400, "no `content`");
    let picture = json!([{ "type": "image_url", "image_url": { "url": "x" } }]);
    chat(json!({ "messages": [{ "role": "user", "content": picture }] }), 400, "a part of type image_url");
    chat(json!({ "temperature": "hot" }), 400, "`temperature` is \\\"hot\\\", but must be a number");
    chat(json!({ "temperature": -1 }), 400, "`temperature` is -1");
    chat(json!({ "top_p": 0 }), 400, "`top_p` is 0");
    chat(json!({ "n": 2 }), 400, "`n` is 2");
    chat(json!({ "max_tokens": -5 }), 400, "`max_tokens` is -5");
    chat(json!({ "stop": [1] }), 400, "`stop` is [1]");
    chat(json!({ "logit_bias": { "a": 1 } }), 400, "`logit_bias`");
    chat(json!({ "top_logprobs": 3 }), 400, "needs `logprobs`");
    chat(json!({ "response_format": { "type": "json_object" } }), 400, "plain text");
    chat(json!({ "stream": "yes" }), 400, "`stream`");
    chat(json!({ "messages": [{ "role": "user", "content": "word ".repeat(200) }] }), 400, "exceed_context_size_error");
    send("/v1/completions", r#"{"prompt": [999999]}"#, 400, "the vocabulary");
    send("/v1/completions", r#"{"prompt": ["a", "b"]}"#, 400, "one prompt");
    send("/v1/completions", "{}", 400, "`prompt` is missing");
    send("/v1/completions", "[1]", 400, "must be a JSON object");
    send("/v1/completions", "{\"prompt\": ", 400, "not JSON");
    send("/v1/completions", &"x".repeat(1 << 20 | 1), 413, "larger than 1 MiB");
    send("/tokenize", "{}", 400, "`content` is missing");
    send("/v1/embeddings", "{}", 404, "there is no /v1/embeddings");
    let status = |method: &str, path: &str, headers: &[(&str, &str)]| server.send(method, path, headers, "").0;
    assert_eq!(status("GET", "/v1/completions", &[key]), 405);
    assert_eq!(status("GET", "/v1/models", &[]), 401);
    assert_eq!(status("GET", "/v1/models", &[("authorization", "Bearer open")]), 401);
    assert_eq!(status("GET", "/v1/models", &[("x-api-key", "sesame")]), 200);
    assert_eq!(status("GET", "/health", &[]), 200);
    assert_eq!(status("GET", "/v1/models", &[key, ("host", "evil.example")]), 403);
    assert_eq!(status("GET", "/v1/models", &[key, ("origin", "http://evil.example")]), 403);
    assert_eq!(status("GET", "/v1/models", &[key, ("origin", "http://page.example:3000")]), 200);
    assert_eq!(status("OPTIONS", "/v1/chat/completions", &[("origin", "http://page.example:3000")]), 200);
    // After all of that it still answers, and fields that nobody knows are no error.
    let body = asked("model", json!({ "user": "me", "store": true })).to_string();
    assert_eq!(server.send("POST", "/v1/chat/completions", &[key], &body).0, 200);
    shell.fail(&format!("serve --model {} --tune off --port {}", model(), port(&server)), &["cannot listen on"]);
    shell.fail(&format!("serve --model {} --cors here", model()), &["--cors here is no origin"]);
}

fn port(server: &Server) -> &str {
    server.address.rsplit_once(':').unwrap().1
}

/// A request whose answer takes long: hundreds of tokens without an end.
fn long() -> Value {
    asked("", json!({ "max_tokens": 480, "ignore_eos": true, "stream": true }))
}

#[test]
fn a_full_queue_refuses_and_a_client_that_hangs_up_makes_room() {
    let shell = Shell::new();
    let server = Server::start(&shell, "--parallel 1 --max-queue 0");
    let mut busy = server.begin(&long());
    busy.read_exact(&mut [0; 400]).unwrap();
    let short = asked("", json!({ "max_tokens": 2 }));
    server.refuses("/v1/chat/completions", &short.to_string(), 429, "wait already");
    drop(busy);
    let until = Instant::now() + Duration::from_secs(5);
    while server.post("/v1/chat/completions", &short).0 != 200 {
        assert!(Instant::now() < until, "the place is not free");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Open descriptors, and resident memory in KB.
#[cfg(target_os = "linux")]
fn held(server: &Server) -> (usize, u64) {
    let of = Path::new("/proc").join(server.child.id().to_string());
    let status = std::fs::read_to_string(of.join("status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes = resident.trim().trim_end_matches(" kB").parse().unwrap();
    (std::fs::read_dir(of.join("fd")).unwrap().count(), kilobytes)
}

#[cfg(target_os = "linux")]
#[test]
fn cut_off_clients_leave_nothing_behind() {
    let requests: usize = std::env::var("LORAINE_SERVE_REQUESTS").map_or(40, |text| text.parse().unwrap());
    let shell = Shell::new();
    let server = Server::start(&shell, "--parallel 2");
    let short = asked("", json!({ "max_tokens": 8 }));
    // Each cache has lists of commands of its own, which are prepared once.
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(server.begin(&short));
    }
    unread.iter_mut().for_each(|stream| assert!(stream.read(&mut [0; 9]).unwrap() > 0));
    drop(unread);
    for _ in 0..6 {
        server.answer(&short);
    }
    let before = held(&server);
    for at in 0..requests {
        if at % 2 == 0 {
            server.answer(&short);
            continue;
        }
        let mut body = long();
        body["stream"] = (at % 4 == 1).into();
        let mut stream = server.begin(&body);
        if at % 4 == 1 {
            stream.read_exact(&mut [0; 300]).unwrap();
        } else {
            thread::sleep(Duration::from_millis(20));
        }
    }
    // Both places are free: nobody works for those who left.
    let started = Instant::now();
    server.answer(&short);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    thread::sleep(Duration::from_millis(200));
    let after = held(&server);
    eprintln!("{requests} requests: (descriptors, KB) {before:?} before, {after:?} after");
    assert!(after.0 <= before.0 + 1, "{before:?} {after:?}");
    assert!(after.1 <= before.1 + 8000, "{before:?} {after:?}");
}

#[cfg(unix)]
#[test]
fn a_signal_lets_answers_in_work_end() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let shell = Shell::new();
    let mut server = Server::start(&shell, "--parallel 1");
    let mut busy = server.begin(&asked("", json!({ "max_tokens": 60, "ignore_eos": true, "stream": true })));
    let mut shown = vec![0; 300];
    busy.read_exact(&mut shown).unwrap();
    let mut waiting = server.begin(&asked("", json!({})));
    thread::sleep(Duration::from_millis(50));
    kill(Pid::from_raw(server.child.id() as i32), Signal::SIGTERM).unwrap();
    busy.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("\"finish_reason\":\"length\"") && shown.contains("[DONE]"), "{shown}");
    let mut refused = String::new();
    waiting.read_to_string(&mut refused).unwrap();
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("stopping"), "{refused}");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect(&server.address).is_err());
}
