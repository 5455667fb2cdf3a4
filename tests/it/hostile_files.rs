//! Damaged and hostile files, each given to its reader: one clear sentence that names the file, no panic, no hang.
//! `bad_input.rs` gives some of them to the whole program, `damaged_files.rs` thousands of random damages.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::attacks::{self, Weights};
use crate::common::cli::copy_files;
use crate::common::{self, fixture};
use loraine::Result;
use loraine::data::read::read_with;
use loraine::data::settings::DataSettings;
use loraine::data::tokenizer::Tokenizer;
use loraine::lora::adapter_file;
use loraine::lora::targets;
use loraine::model::config::ModelConfig;
use loraine::model::source::{Source, check_shapes};
use loraine::model::tensor_source::TensorSource;
use loraine::network::moments::MomentStorage;
use loraine::train::checkpoint::{self, Trainable};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far more than any of them takes, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// One file of a directory that is otherwise good, and what reads it.
struct Capabilities {
    dir: TempDir,
    file: &'static str,
    read: fn(&Path) -> Result<()>,
    report: Report,
}

/// What came of the attacks on a reader.
#[derive(Default)]
struct Report {
    attacks: usize,
    problems: Vec<String>,
}

impl Report {
    fn and(mut self, other: Self) -> Self {
        self.attacks += other.attacks;
        self.problems.extend(other.problems);
        self
    }
}

impl Capabilities {
    /// `prepare` fills the directory with what the reader takes.
    fn new(file: &'static str, read: fn(&Path) -> Result<()>, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        prepare(dir.path());
        read(dir.path()).unwrap_or_else(|e| panic!("the good {file}: {e}"));
        Self { dir, file, read, report: Report::default() }
    }

    fn good(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join(self.file)).expect("the good file")
    }

    fn good_json(&self) -> Value {
        serde_json::from_slice(&self.good()).expect("JSON")
    }

    /// The reader refuses `bytes` in one sentence that holds `says` and names the file, or the directory.
    fn refuses(&mut self, what: &str, bytes: impl AsRef<[u8]>, says: &str) {
        let path = self.dir.path().join(self.file);
        let good = self.good();
        std::fs::write(&path, bytes).expect("a file in a temporary directory");
        let (send, receive) = mpsc::channel();
        let (read, dir) = (self.read, self.dir.path().to_owned());
        let reader = std::thread::spawn(move || {
            let _ = send.send(read(&dir).map_err(|e| e.to_string()));
        });
        let problem = match receive.recv_timeout(LIMIT) {
            Err(mpsc::RecvTimeoutError::Timeout) => Some(format!("no answer in {LIMIT:?}")),
            Err(mpsc::RecvTimeoutError::Disconnected) => Some(format!("a panic: {:?}", reader.join().err())),
            Ok(Ok(())) => Some("was taken".to_owned()),
            Ok(Err(message)) => self.fault_of(&message, says),
        };
        self.report.problems.extend(problem.map(|problem| format!("{}, {what}: {problem}", self.file)));
        std::fs::write(&path, good).expect("a file in a temporary directory");
        self.report.attacks += 1;
    }

    /// What a message lacks.
    fn fault_of(&self, message: &str, says: &str) -> Option<String> {
        let start: String = message.chars().take(300).collect();
        if !message.contains(says) {
            return Some(format!("{says:?} is not in {start}"));
        }
        if !message.contains(self.dir.path().to_str().unwrap()) {
            return Some(format!("names no file: {start}"));
        }
        (message.len() > 1500 || message.trim_end().contains('\n')).then(|| format!("is no sentence: {start}"))
    }

    /// The good file's JSON with one field changed.
    fn refuses_field(&mut self, key: &str, value: Value, says: &str) {
        let mut object = self.good_json();
        object[key] = value.clone();
        self.refuses(&format!("{key} = {value}"), object.to_string(), says);
    }

    fn refuses_without(&mut self, key: &str, says: &str) {
        let mut object = self.good_json();
        object.as_object_mut().expect("an object").remove(key);
        self.refuses(&format!("without {key}"), object.to_string(), says);
    }

    /// What no file of one JSON object may be.
    fn refuses_what_is_no_object(&mut self) {
        self.refuses("nothing", "", "is not valid JSON");
        self.refuses("zeros", [0; 64], "is not valid JSON");
        self.refuses("a list", "[1]", "JSON object");
        self.refuses("half an object", "{\"a\": 1", "is not valid JSON");
        self.refuses("brackets without end", "[".repeat(100_000), "is not valid JSON");
        self.refuses("another encoding", [0xff, 0xfe, b'{', 0], "cannot be read");
        self.refuses("two objects", "{}{}", "is not valid JSON");
    }
}

fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), content).expect("a file in a temporary directory");
}

fn llama() -> ModelConfig {
    ModelConfig::from_file(&fixture("llama_tied/config.json")).expect("a good config.json")
}

fn configurations() -> Report {
    fn read(dir: &Path) -> Result<()> {
        ModelConfig::from_file(&dir.join("config.json")).map(|_| ())
    }
    let mut capabilities = Capabilities::new("config.json", read, |dir| copy_files(&fixture("yarn_rope"), dir));
    capabilities.refuses_what_is_no_object();
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        capabilities.refuses_without(key, &format!("`{key}`: is missing"));
        capabilities.refuses_field(key, json!(0), &format!("`{key}`: is 0"));
        capabilities.refuses_field(key, json!(-8), &format!("`{key}`: is -8"));
        capabilities.refuses_field(key, json!(1u64 << 62), &format!("`{key}`"));
        capabilities.refuses_field(key, json!([64]), &format!("`{key}`"));
    }
    for (key, value, says) in [
        ("model_type", json!("gpt2"), "is not supported"),
        ("model_type", json!(7), "model_type"),
        ("architectures", json!(["GPT2LMHeadModel"]), "is not supported"),
        ("hidden_act", json!("relu2"), "only `silu`"),
        ("num_key_value_heads", json!(3), "does not divide"),
        ("num_key_value_heads", json!(0), "`num_key_value_heads`"),
        ("head_dim", json!(7), "head_dim"),
        ("rms_norm_eps", json!("small"), "`rms_norm_eps`"),
        ("rms_norm_eps", json!(0), "`rms_norm_eps`"),
        ("rope_theta", json!(-1), "rope_theta"),
        ("rope_theta", json!("1e4"), "rope_theta"),
        ("max_position_embeddings", json!(0), "max_position_embeddings"),
        ("max_position_embeddings", json!(1u64 << 60), "max_position_embeddings"),
        ("tie_word_embeddings", json!("yes"), "tie_word_embeddings"),
        ("attention_bias", json!(1), "attention_bias"),
        ("rope_scaling", json!("yarn"), "rope_scaling"),
        ("rope_scaling", json!({"rope_type": "linear"}), "factor"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": -4.0}), "factor"),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "rope_scaling"),
        ("rope_scaling", json!({"rope_type": "proportional", "factor": 0}), "factor"),
        ("rope_scaling", json!({"rope_type": "exponential", "factor": 8.0}), "`exponential` is not supported"),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 8.0}), "short_factor"),
        ("quantization_config", json!({"quant_method": "awq"}), "awq"),
        ("quantization_config", json!(4), "quantization_config"),
        ("eos_token_id", json!("</s>"), "eos_token_id"),
        ("eos_token_id", json!([2, -1]), "eos_token_id"),
    ] {
        capabilities.refuses_field(key, value, says);
    }
    capabilities.report
}

fn weights() -> Report {
    fn read(dir: &Path) -> Result<()> {
        check_shapes(&TensorSource::open(dir)?, &llama())
    }
    let mut capabilities = Capabilities::new("model.safetensors", read, |dir| copy_files(&fixture("llama_tied"), dir));
    for attack in attacks::on_weights(&fixture("llama_tied/model.safetensors")) {
        // Numbers are looked at on their way to the device; bad_input.rs sends these there.
        if !attack.says.iter().any(|part| part.contains("not finite")) {
            capabilities.refuses(attack.what, &attack.bytes, attack.says.last().expect("what it says"));
        }
    }
    capabilities.report
}

fn indices() -> Report {
    fn read(dir: &Path) -> Result<()> {
        Source::open(dir).map(|_| ())
    }
    let file = "model.safetensors.index.json";
    let mut capabilities = Capabilities::new(file, read, |dir| copy_files(&fixture("llama_untied"), dir));
    capabilities.refuses_what_is_no_object();
    capabilities.refuses("an empty object", "{}", "`weight_map`: is missing");
    for map in [json!([]), json!("model.safetensors"), json!(null), json!({}), json!({"a": 3})] {
        capabilities.refuses(&format!("weight_map = {map}"), json!({ "weight_map": map }).to_string(), "");
    }
    for shard in ["../x.safetensors", "/etc/passwd", "C:\\x.safetensors", "a/b.safetensors", "", ".", "x\0.safetensors"]
    {
        let mut index = capabilities.good_json();
        index["weight_map"][attacks::VICTIM] = json!(shard);
        capabilities.refuses(&format!("shard {shard:?}"), index.to_string(), attacks::VICTIM);
    }
    capabilities.report
}

const TINY_TOKENS: usize = 12;

fn write_tokenizer(dir: &Path) {
    write(dir, "tokenizer.json", attacks::tokenizer(TINY_TOKENS));
    write(dir, "tokenizer_config.json", r#"{"bos_token": {"content": "w0"}, "eos_token": "w1"}"#);
}

fn read_tokenizer(dir: &Path) -> Result<()> {
    let mut config = llama();
    config.vocab_size = TINY_TOKENS;
    let tokenizer = Tokenizer::from_dir(dir, &config)?;
    tokenizer.special_tokens()?;
    tokenizer.encode("w3 w4", true).map(|_| ())
}

fn tokenizers() -> Report {
    let mut capabilities = Capabilities::new("tokenizer.json", read_tokenizer, write_tokenizer);
    let unread = "is not a tokenizer that can be read";
    for (what, text) in [
        ("nothing", String::new()),
        ("a list", "[1]".to_owned()),
        ("an empty object", "{}".to_owned()),
        ("half an object", "{\"model\": {".to_owned()),
        ("brackets without end", "[".repeat(100_000)),
        ("objects without end", "{\"a\":".repeat(100_000)),
        ("a page of HTML", "<!DOCTYPE html>".to_owned()),
    ] {
        capabilities.refuses(what, text, unread);
    }
    capabilities.refuses("another encoding", [0xff; 40], "cannot be read");
    for (key, value) in [
        ("model", json!(3)),
        ("model", json!({"type": "Oracle"})),
        ("model", json!({"type": "WordLevel", "vocab": {"w0": -1}, "unk_token": "w0"})),
        ("model", json!({"type": "WordLevel", "vocab": {"w0": 1u64 << 40}, "unk_token": "w0"})),
        ("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]})),
        ("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [3]})),
        ("added_tokens", json!([{"id": "x"}])),
        ("pre_tokenizer", json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false})),
        ("post_processor", json!({"type": "Nothing"})),
    ] {
        capabilities.refuses_field(key, value, unread);
    }
    // Such a tokenizer is read, and a text that has a token beyond the embedding is refused.
    let far = json!({"type": "WordLevel", "vocab": {"w0": 0, "w1": 1, "w3": 4_000_000_000u32}, "unk_token": "w0"});
    capabilities.refuses_field("model", far, "but the embedding of config.json has 12 rows");

    let mut settings = Capabilities::new("tokenizer_config.json", read_tokenizer, write_tokenizer);
    settings.refuses_what_is_no_object();
    for (key, value, says) in [
        ("eos_token", json!("</s>"), "which tokenizer.json does not have"),
        ("bos_token", json!({"content": "nobody"}), "which tokenizer.json does not have"),
        ("eos_token", json!(2), "must be a token's text"),
        ("eos_token", json!({"text": "w1"}), "must be a token's text"),
        ("bos_token", json!(["w0"]), "must be a token's text"),
    ] {
        settings.refuses_field(key, value, says);
    }
    capabilities.report.and(settings.report)
}

/// Data for a model with the tiny tokenizer and the template of `chat_template.jinja`.
fn read_data(dir: &Path, name: &str) -> Result<()> {
    let tokenizer = Tokenizer::from_tokenizer_dir(dir)?;
    let settings = DataSettings { max_seq_len: 64, ..DataSettings::default() };
    read_with(&dir.join(name), Some(&tokenizer), &settings, TINY_TOKENS).map(|_| ())
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }} {{ m.content }} w1 {% endfor %}";
const CHAT: &str = r#"{"messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]}"#;

fn write_data(dir: &Path) {
    let mut tokenizer: Value = serde_json::from_str(&attacks::tokenizer(TINY_TOKENS)).unwrap();
    let special = |id: u32| {
        json!({"id": id, "content": format!("w{id}"), "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    tokenizer["added_tokens"] = json!([special(0), special(1)]);
    write(dir, "tokenizer.json", tokenizer.to_string());
    write(dir, "tokenizer_config.json", r#"{"bos_token": "w0", "eos_token": "w1"}"#);
    write(dir, "chat_template.jinja", TEMPLATE);
    write(dir, "data.jsonl", CHAT);
    write(dir, "data.json", format!("[{CHAT}]"));
    std::fs::copy(fixture("parquet/tokens.parquet"), dir.join("data.parquet")).unwrap();
}

fn templates() -> Report {
    let mut capabilities = Capabilities::new("chat_template.jinja", |dir| read_data(dir, "data.jsonl"), write_data);
    let endless = "runs without end";
    let nested =
        |depth: usize, body: &str| "{% for a in range(9999) %}".repeat(depth) + body + &"{% endfor %}".repeat(depth);
    let filters = |count: usize| format!("{{{{ 'a'{} }}}}", "|upper".repeat(count));
    for (what, template, says) in [
        ("two loops", nested(2, "{{ a }}"), endless),
        ("five loops", nested(5, ""), endless),
        ("a loop that counts", nested(3, "{% set x = a + 1 %}"), endless),
        ("a loop inside a macro", format!("{{% macro f() %}}{}{{% endmacro %}}{{{{ f() }}}}", nested(3, "x")), endless),
        ("a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(), "recursion"),
        (
            "two macros that call each other",
            "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
            "refuses it",
        ),
        ("a recursive loop", "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(), "refuses it"),
        ("parts beyond all", "{{ [1]|batch(10 ** 15, 2) }}".to_owned(), "filter batch is unknown"),
        ("slices beyond all", "{{ [1]|slice(10 ** 15) }}".to_owned(), "filter slice is unknown"),
        ("a range beyond all", "{% for a in range(10 ** 18) %}{% endfor %}".to_owned(), "refuses it"),
        ("a text beyond all", "{{ 'x' * 10 ** 12 }}".to_owned(), "runs without end"),
        ("texts without end", nested(1, "{{ 'x' * 10 ** 7 }}"), "more than"),
        (
            "kept texts without end",
            format!("{{% set x %}}{}{{% endset %}}", nested(1, "{{ 'x' * 10 ** 7 }}")),
            "more than",
        ),
        ("an indent beyond all", "{{ 'a\\nb'|indent(10 ** 15) }}".to_owned(), "refuses it"),
        ("a refusal of its own", "{{ raise_exception('not like this') }}".to_owned(), "not like this"),
        ("division by zero", "{{ 1 // 0 }}".to_owned(), "refuses it"),
        ("an unknown filter", "{{ 'a'|launch }}".to_owned(), "launch"),
        ("an unknown function", "{{ launch() }}".to_owned(), "launch"),
        ("an unknown method", "{{ messages.launch() }}".to_owned(), "refuses it"),
        ("an unknown test", "{{ 1 is launched }}".to_owned(), "launched"),
        ("a field of nothing", "{{ nothing.at.all }}".to_owned(), "refuses it"),
        ("another file", "{% include '/etc/passwd' %}".to_owned(), "passwd"),
        ("a parent", "{% extends 'base.jinja' %}".to_owned(), "base.jinja"),
        ("a loop without end tag", "{% for a in b %}".to_owned(), "is no chat template that can be read"),
        ("an end tag too many", "{% endfor %}".to_owned(), "is no chat template that can be read"),
        ("an open expression", "{{ messages".to_owned(), "is no chat template that can be read"),
        (
            "parentheses without end",
            format!("{{{{ {} }}}}", "(".repeat(100_000)),
            "is no chat template that can be read",
        ),
        ("lists without end", format!("{{{{ {} }}}}", "[".repeat(100_000)), "is no chat template that can be read"),
        ("minus signs without end", format!("{{{{ {}1 }}}}", "-".repeat(100_000)), ""),
        ("nots without end", format!("{{{{ {}1 }}}}", "not ".repeat(30_000)), ""),
        ("ifs without end", "{% if 1 %}".repeat(10_000), "is no chat template that can be read"),
        ("filters without end", filters(20_000), ""),
        ("regions that do not pair", "{% endgeneration %}{% for m in messages %}x{% endfor %}".to_owned(), ""),
        ("a template that forgets", "{{ messages|length }} w1".to_owned(), ""),
        ("nothing", String::new(), ""),
        ("a template beyond all", " ".repeat(1 << 20), "a chat template may have"),
        ("attributes without end", format!("{{{{ messages{} }}}}", ".a".repeat(60_000)), ""),
        ("sums without end", format!("{{{{ 1{} }}}}", "+1".repeat(60_000)), ""),
        ("elifs without end", "{% if 0 %}".to_owned() + &"{% elif 0 %}".repeat(10_000) + "{% endif %}", ""),
        ("choices without end", format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(10_000)), ""),
    ] {
        capabilities.refuses(what, template, says);
    }
    capabilities.refuses("another encoding", [0xff, 0xfe, 0x7b], "cannot be read");
    capabilities.report
}

fn records() -> Report {
    let mut lines = Capabilities::new("data.jsonl", |dir| read_data(dir, "data.jsonl"), write_data);
    let message = |role: &str, content: Value| json!({"role": role, "content": content});
    let chat = |messages: Value| json!({ "messages": messages }).to_string();
    let user = message("user", json!("w3"));
    for (what, line, says) in [
        ("nothing", String::new(), "is empty"),
        ("blank lines", "\n\n \n".to_owned(), "is empty"),
        ("half an object", "{\"messages\": [".to_owned(), "line 1: is not valid JSON"),
        ("a list", "[1, 2]".to_owned(), "(records 1, 2); the first must be a JSON object"),
        ("a number", "7".to_owned(), "line 1: must hold one JSON object"),
        ("an empty object", "{}".to_owned(), "make no supported example"),
        ("brackets without end", "[".repeat(100_000), "is not valid JSON: record 1"),
        ("objects without end", "{\"a\":".repeat(100_000), "line 1: is not valid JSON"),
        ("a comma too many", "{\"text\": \"w3\",}".to_owned(), "line 1: is not valid JSON"),
        ("single quotes", "{'text': 'w3'}".to_owned(), "line 1: is a record as Python shows it, not JSON"),
        ("NaN", "{\"text\": NaN}".to_owned(), "line 1: has the fields [text]"),
        ("a lone surrogate", r#"{"text": "\ud800"}"#.to_owned(), "line 1: is not valid JSON"),
        ("a second line that is broken", format!("{CHAT}\n{{"), "line 2: is not valid JSON"),
        ("CSV", "prompt,completion\na,b".to_owned(), "(lines 1, 2); the first is not valid JSON"),
        ("a text that is a number", r#"{"text": 3}"#.to_owned(), "`text` is 3"),
        ("a text that is null", r#"{"text": null}"#.to_owned(), "make no supported example"),
        ("empty texts alone", "{\"text\": \"\"}\n".repeat(3), "leaves no example"),
        ("messages that are a text", chat(json!("w3")), "must be a list of messages"),
        ("no message", chat(json!([])), ""),
        ("a message that is a text", chat(json!(["w3"])), "message 1"),
        ("a message without role", chat(json!([{"content": "w3"}])), "has no `role`"),
        ("a message without content", chat(json!([user, {"role": "assistant"}])), "has no `content`"),
        ("a content that is a number", chat(json!([user, message("assistant", json!(4))])), "has no `content`"),
        ("a role that is a list", chat(json!([{"role": ["user"], "content": "w3"}])), "has no `role`"),
        ("no assistant", chat(json!([user])), "has no token to train on"),
        ("tools that are a number", json!({"messages": [user], "tools": 3}).to_string(), "`tools` is 3"),
        ("tools that are broken", json!({"messages": [user], "tools": "["}).to_string(), "`tools` is a string"),
        ("a prompt alone", r#"{"prompt": "w3"}"#.to_owned(), "make no supported example"),
        ("a completion that is empty", r#"{"prompt": "w3", "completion": ""}"#.to_owned(), ""),
        ("a prompt that is a list", r#"{"prompt": [], "completion": "w4"}"#.to_owned(), "must both be"),
        ("an output that is empty", r#"{"instruction": "w3", "output": ""}"#.to_owned(), "`output` is empty"),
        ("an instruction that is null", r#"{"instruction": null, "output": "w3"}"#.to_owned(), ""),
        ("ids that are a text", r#"{"input_ids": "12"}"#.to_owned(), "list of whole numbers"),
        ("ids with a fraction", r#"{"input_ids": [1.5, 2]}"#.to_owned(), "list of whole numbers"),
        ("ids beyond integers", r#"{"input_ids": [1e40, 2]}"#.to_owned(), "list of whole numbers"),
        ("ids below zero", r#"{"input_ids": [-5, 2]}"#.to_owned(), "has -5 at element 0"),
        ("ids beyond the vocabulary", r#"{"input_ids": [3, 12]}"#.to_owned(), "has 12 at element 1"),
        ("one id", r#"{"input_ids": [3]}"#.to_owned(), "has no token to train on"),
        ("no id", r#"{"input_ids": []}"#.to_owned(), "has no token to train on"),
        ("labels of another length", r#"{"input_ids": [3, 4], "labels": [3]}"#.to_owned(), "2 input_ids but 1 labels"),
        ("labels of other tokens", r#"{"input_ids": [3, 4], "labels": [3, 5]}"#.to_owned(), "or the token there"),
        ("labels that are a text", r#"{"input_ids": [3, 4], "labels": "34"}"#.to_owned(), "list of whole numbers"),
        ("two begin tokens", r#"{"text": "w0 w0 w0 w3"}"#.to_owned(), "begin token twice"),
        ("more tokens than fit", json!({"input_ids": vec![3; 65]}).to_string(), "longer than 64 tokens"),
    ] {
        lines.refuses(what, line, says);
    }
    lines.refuses("another encoding", [0xff, 0xfe, b'{', 0, b'}', 0], "line 1");
    lines.refuses("a line that is not UTF-8", b"{\"text\": \"\xc3\x28\"}", "line 1");

    let mut list = Capabilities::new("data.json", |dir| read_data(dir, "data.json"), write_data);
    for (what, text, says) in [
        ("nothing", "".to_owned(), "is empty"),
        ("an empty list", "[]".to_owned(), "is empty"),
        ("half a list", format!("[{CHAT}"), "is not valid JSON"),
        ("a list of numbers", "[1, 2]".to_owned(), "(records 1, 2); the first must be a JSON object"),
        ("a list with a number", format!("[{CHAT}, 2]"), "record 2: must be a JSON object"),
        ("lists without end", "[".repeat(100_000), "is not valid JSON"),
        ("two lists", format!("[{CHAT}][{CHAT}]"), "is not valid JSON"),
        ("a number", "3".to_owned(), "must hold one JSON object"),
    ] {
        list.refuses(what, text, says);
    }
    lines.report.and(list.report)
}

fn parquet() -> Report {
    let mut capabilities = Capabilities::new("data.parquet", |dir| read_data(dir, "data.parquet"), write_data);
    let good = capabilities.good();
    let unread = "is not a Parquet file that can be read";
    let length_at = good.len() - 8;
    let footer = u32::from_le_bytes(good[length_at..length_at + 4].try_into().unwrap()) as usize;
    let with_footer_length = |length: u32| [&good[..length_at], &length.to_le_bytes(), b"PAR1"].concat();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    capabilities.refuses("nothing", "", unread);
    capabilities.refuses("its first mark", "PAR1", unread);
    capabilities.refuses("two marks", "PAR1PAR1", unread);
    capabilities.refuses("JSON", CHAT, unread);
    capabilities.refuses("half a file", &good[..good.len() / 2], unread);
    capabilities.refuses("the last byte gone", &good[..good.len() - 1], unread);
    capabilities.refuses("another mark at its end", with(good.len() - 4, b"PARX"), unread);
    capabilities.refuses("an encrypted footer", with(good.len() - 4, b"PARE"), unread);
    capabilities.refuses("a footer of no bytes", with_footer_length(0), unread);
    capabilities.refuses("a footer of one byte", with_footer_length(1), unread);
    capabilities.refuses("a footer beyond the file", with_footer_length(u32::MAX), unread);
    capabilities.refuses("a footer of 1 GB", with_footer_length(1 << 30), unread);
    capabilities.refuses("a footer of the whole file", with_footer_length(length_at as u32), unread);
    capabilities.refuses("a footer of zeros", with(length_at - footer, &vec![0; footer]), unread);
    capabilities.refuses("a footer of ones", with(length_at - footer, &vec![0xff; footer]), unread);
    capabilities.refuses("pages of zeros", with(4, &vec![0; length_at - footer - 4]), "row 1");
    capabilities.refuses("pages of ones", with(4, &vec![0xff; length_at - footer - 4]), "row 1");
    capabilities.refuses("bytes before the file", [&[7; 100], good.as_slice()].concat(), "");
    capabilities.report
}

fn adapters() -> Report {
    fn read(dir: &Path) -> Result<()> {
        let adapter = adapter_file::load(dir, &llama())?;
        targets::resolve(&adapter.config, &llama()).map(|_| ())
    }
    let prepare = |dir: &Path| copy_files(&fixture("llama_tied/adapter"), dir);
    let mut config = Capabilities::new("adapter_config.json", read, prepare);
    config.refuses_what_is_no_object();
    config.refuses_without("peft_type", "`peft_type`: is missing");
    config.refuses_without("target_modules", "target_modules");
    for (key, value, says) in [
        ("peft_type", json!("IA3"), "must be `LORA`"),
        ("peft_type", json!(1), "peft_type"),
        ("r", json!(0), "`r`"),
        ("r", json!(-4), "`r`"),
        ("r", json!(1u64 << 50), "`r`"),
        ("r", json!(8), "has shape"),
        ("lora_alpha", json!(0), "lora_alpha"),
        ("lora_alpha", json!("16"), "lora_alpha"),
        ("lora_dropout", json!(1.5), "lora_dropout"),
        ("bias", json!("some"), "`none`, `all` or `lora_only`"),
        ("use_dora", json!(true), "lora_magnitude_vector"),
        ("target_parameters", json!(["lm_head"]), "target_parameters"),
        ("layer_replication", json!([[0, 4]]), "layer_replication"),
        ("target_modules", json!([]), "target_modules"),
        ("target_modules", json!(["c_attn"]), "matches no module"),
        ("target_modules", json!("("), "is not a regular expression"),
        ("target_modules", json!("(a{1000}){1000}"), "target_modules"),
        ("target_modules", json!([3]), "target_modules"),
        ("rank_pattern", json!({"q_proj": 0}), "rank_pattern"),
        ("rank_pattern", json!([1]), "rank_pattern"),
        ("alpha_pattern", json!({"q_proj": -1}), "alpha_pattern"),
        ("layers_to_transform", json!([99]), ""),
        ("layers_to_transform", json!(-1), "layers_to_transform"),
    ] {
        config.refuses_field(key, value, says);
    }

    let mut weights = Capabilities::new("adapter_model.safetensors", read, prepare);
    let path = fixture("llama_tied/adapter/adapter_model.safetensors");
    let name = "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight";
    let good = weights.good();
    weights.refuses("nothing", "", "cut short");
    weights.refuses("half a file", &good[..good.len() / 2], "cut short");
    weights.refuses("a header beyond all", [0xff; 64], "above the limit");
    weights.refuses("a page of HTML", "<!DOCTYPE html><html></html>", "above the limit");
    let mut changed = |what: &str, says: &str, change: &dyn Fn(&mut Weights)| {
        let mut file = Weights::read(&path);
        change(&mut file);
        weights.refuses(what, file.bytes(), says);
    };
    changed("NaN", "NaN at element 3", &|w| w.set(name, 3, f32::NAN));
    changed("infinity", "inf at element 0", &|w| w.set(name, 0, f32::INFINITY));
    changed("a tensor less", "is missing", &|w| {
        let tensor = w.header.remove(name).unwrap();
        w.header.insert("base_model.model.lm_head.lora_B.weight".to_owned(), tensor);
    });
    changed("another type", "type I32", &|w| w.header[name]["dtype"] = json!("I32"));
    changed("a turned shape", "has shape [4, 16]", &|w| w.header[name]["shape"] = json!([4, 16]));
    config.report.and(weights.report)
}

fn checkpoints() -> Report {
    fn read(dir: &Path) -> Result<()> {
        let model = llama();
        let adapter = adapter_file::load(&dir.join("checkpoints/step-1"), &model)?;
        let trainable = Trainable::Adapter { config: &adapter.config, modules: &adapter.modules };
        checkpoint::load(&dir.join("checkpoints/step-1"), &model, trainable, MomentStorage::F32).map(|_| ())
    }
    let shell = common::cli::Shell::new();
    shell.write("data.jsonl", common::cli::random_lines(4, 96, 1));
    let train = common::cli::train_on("llama_tied");
    shell.succeed(&format!("{train} --data data.jsonl --out run --steps 1 --save-every 1 --rank 2"));
    // As loraine 0.1 saved it: checksums would find every damage before the readers do.
    let prepare = |dir: &Path| {
        copy_files(&shell.path("run/checkpoints/step-1"), &dir.join("checkpoints/step-1"));
        let state = dir.join("checkpoints/step-1/state.json");
        let mut fields = common::json(&state);
        fields.as_object_mut().unwrap().retain(|key, _| !["files", "crc32c"].contains(&key.as_str()));
        std::fs::write(state, fields.to_string()).unwrap();
    };
    let mut state = Capabilities::new("checkpoints/step-1/state.json", read, prepare);
    for (what, text) in
        [("nothing", ""), ("a list", "[]"), ("an empty object", "{}"), ("half an object", "{\"step\": 1")]
    {
        state.refuses(what, text, "is damaged");
    }
    for (key, value) in [("step", json!(-1)), ("step", json!("one")), ("unlogged", json!([null])), ("origin", json!(3))]
    {
        state.refuses_field(key, value, "is damaged");
    }
    let mut moments = Capabilities::new("checkpoints/step-1/optimizer.safetensors", read, prepare);
    let good = moments.good();
    moments.refuses("nothing", "", "is damaged");
    moments.refuses("half a file", &good[..good.len() / 2], "is damaged");
    moments.refuses("a header beyond all", [0xff; 64], "is damaged");
    moments.refuses("no moments", attacks::file("{}", &[]), "is missing");
    let adapter = std::fs::read(shell.path("run/adapter_model.safetensors")).unwrap();
    moments.refuses("another file", adapter, "is missing");
    state.report.and(moments.report)
}

type Attack = fn() -> Report;

#[test]
fn every_reader_refuses_what_is_hostile() {
    let readers: [(&str, Attack); 9] = [
        ("config.json", configurations),
        ("safetensors", weights),
        ("index", indices),
        ("tokenizer", tokenizers),
        ("chat template", templates),
        ("records", records),
        ("parquet", parquet),
        ("adapter", adapters),
        ("checkpoint", checkpoints),
    ];
    let mut all = Report::default();
    for (name, attack) in readers {
        let report = attack();
        println!("{:>4} {name}", report.attacks);
        all = all.and(report);
    }
    assert!(all.problems.is_empty(), "{}", all.problems.join("\n"));
    assert!(all.attacks >= 200, "only {} files", all.attacks);
}
