//! Generation: the cache against whole sequences and PyTorch, adapters side by side, and `loraine generate` as a user types it.

use std::ops::ControlFlow;
use std::path::Path;

use crate::common::cli::{Shell, random_lines};
use crate::common::*;
use loraine::infer::end_tokens;
use loraine::infer::generator::{GenerationSettings, Generator, Stop};
use loraine::infer::plan::PlanSettings;
use loraine::infer::sampler::{SamplingSettings, next_token};
use loraine::lora::adapter_file;
use loraine::model::config::ModelConfig;
use loraine::model::source::Source;
use loraine::network::base::BaseStorage;
use loraine::quant::format::Code4;

const NF4_DOUBLE: BaseStorage = BaseStorage::Quantized(Code4::Nf4.storage(true));
const WHOLE_NF4: BaseStorage = BaseStorage::QuantizedWhole(Code4::Nf4.storage(true));

fn open(model: &Path, base: BaseStorage, adapters: &[&str], max_positions: usize, rows_per_pass: usize) -> Generator {
    let settings = PlanSettings { base, max_positions, rows_per_pass, caches: 1 };
    open_planned(model, adapters, settings)
}

fn open_planned(model: &Path, adapters: &[&str], settings: PlanSettings) -> Generator {
    let source = Source::open(model).unwrap();
    let load = |dir: &&str| adapter_file::load(&model.join(dir), &source.config).expect("an adapter");
    let adapters: Vec<_> = adapters.iter().map(load).collect();
    let generator = pollster::block_on(Generator::open(gpu(), &source, &adapters, &settings, |_, _| {})).unwrap();
    assert_eq!(generator.plan.ledger(), *generator.buffers.ledger(), "planned and allocated bytes");
    generator
}

fn logits(generator: &mut Generator, text: &[u32], adapter: Option<usize>) -> Vec<f32> {
    pollster::block_on(generator.logits_after(text, adapter)).unwrap()
}

fn greedy(generator: &mut Generator, prompt: &[u32], adapter: Option<usize>, max_tokens: usize) -> Vec<u32> {
    let settings = GenerationSettings { max_tokens, ..GenerationSettings::default() };
    let go_on = |_| ControlFlow::Continue(());
    pollster::block_on(generator.generate(prompt, adapter, &settings, go_on)).unwrap().tokens
}

/// The logits of every position, by the training engine's pass over the whole sequence.
fn whole(model: &Path, base: BaseStorage, adapter_dir: &str, with_adapter: bool, ids: &[u32]) -> Vec<f32> {
    let config = ModelConfig::from_file(&model.join("config.json")).unwrap();
    let (modules, tensors) = adapter(&model.join(adapter_dir), &config);
    let tensors = if with_adapter { tensors } else { without_effect(&tensors) };
    let mut engine = open_engine(model, base, &modules, &tensors, 64, usize::MAX);
    pollster::block_on(engine.logits(&whole_sequence(ids))).unwrap()
}

/// The first `prompt` tokens in pieces of 5 rows, the others one by one.
fn check_incremental(name: &str, base: BaseStorage) {
    const PROMPT: usize = 13;
    let model = fixture(name);
    let reference = Reference::read(&model.join("reference.safetensors"));
    let ids = reference.ids("input_ids.0");
    let mut generator = open(&model, base, &["adapter"], ids.len(), 5);
    let vocabulary = generator.plan.shared.network.config.vocab_size;
    for (adapter, tensor) in [(None, "logits.0"), (Some(0), "lora_logits.0")] {
        let expected = whole(&model, base, "adapter", adapter.is_some(), &ids);
        for length in PROMPT..=ids.len() {
            let got = logits(&mut generator, &ids[..length], adapter);
            let row = (length - 1) * vocabulary..length * vocabulary;
            let what = format!("{name}, adapter {adapter:?}, position {}", length - 1);
            assert_close(&format!("{what} against the whole sequence"), &got, &expected[row.clone()], 1e-5);
            if base == BaseStorage::AsStored {
                assert_close(&format!("{what} against PyTorch"), &got, &reference.get(tensor)[row], 1e-4);
            }
        }
    }
}

#[test]
fn incremental_logits_equal_whole_sequences() {
    let recurrent = ["lfm2", "lfm2_old_keys", "lfm2_moe", "qwen3_5", "qwen3_5_vision"];
    for name in ["llama_tied", "mistral_window", "qwen3", "qwen3_moe", "gpt_oss", "grouped8", "gemma4"]
        .into_iter()
        .chain(recurrent)
    {
        check_incremental(name, BaseStorage::AsStored);
    }
}

/// Texts of several lengths, in caches that are not neighbors, with the base and with an adapter.
#[test]
fn texts_that_grow_together_have_the_bits_that_they_have_alone() {
    let of = [
        ("llama_tied", BaseStorage::AsStored),
        ("mistral_window", BaseStorage::AsStored),
        ("gemma2", BaseStorage::AsStored),
        ("gemma4", BaseStorage::AsStored),
        ("qwen3_moe", BaseStorage::AsStored),
        ("gpt_oss", BaseStorage::AsStored),
        ("odd_sizes", NF4_DOUBLE),
    ];
    for (name, base) in of {
        let model = fixture(name);
        let reference = Reference::read(&model.join("reference.safetensors"));
        let ids = reference.ids("input_ids.0");
        let settings = PlanSettings { base, max_positions: ids.len(), rows_per_pass: 5, caches: 5 };
        let mut generator = open_planned(&model, &["adapter"], settings);
        assert_eq!(generator.plan.together, 4);
        for (adapter, lengths) in [(None, [3usize, 17, 8, 12]), (Some(0), [9, 4, 14, 6])] {
            // Each text begins elsewhere in the tokens.
            let text = |at: usize, length: usize| -> Vec<u32> {
                ids.iter().cycle().skip(3 * at).take(length).copied().collect()
            };
            let mut grown = |cache: usize, text: &[u32]| loop {
                let logits = pollster::block_on(generator.advance(cache, text, adapter)).unwrap();
                if let Some(logits) = logits {
                    break logits;
                }
            };
            let mut alone = |at: usize| -> Vec<Vec<f32>> {
                grown(3, &text(at, lengths[at]));
                (1..4).map(|more| grown(3, &text(at, lengths[at] + more))).collect()
            };
            let alone: Vec<Vec<Vec<f32>>> = (0..4).map(&mut alone).collect();
            let caches = [4, 1, 0, 2];
            for (at, cache) in caches.into_iter().enumerate() {
                grown(cache, &text(at, lengths[at]));
            }
            for (more, members) in [(1, vec![0, 1, 2, 3]), (2, vec![3, 1, 0]), (3, vec![1, 0])] {
                let texts: Vec<Vec<u32>> = members.iter().map(|at| text(*at, lengths[*at] + more)).collect();
                let asked: Vec<(usize, &[u32])> =
                    members.iter().zip(&texts).map(|(at, text)| (caches[*at], text.as_slice())).collect();
                let got = pollster::block_on(generator.advance_together(&asked, adapter)).unwrap();
                for (at, got) in members.into_iter().zip(got) {
                    assert_eq!(got, alone[at][more - 1], "{name}, adapter {adapter:?}, text {at} and {more} more");
                }
            }
        }
    }
}

#[test]
fn texts_that_cannot_grow_together_are_refused() {
    let settings = PlanSettings { base: BaseStorage::AsStored, max_positions: 32, rows_per_pass: 5, caches: 3 };
    let mut generator = open_planned(&fixture("llama_tied"), &[], settings);
    let (begun, more): (&[u32], &[u32]) = (&[1, 2, 3], &[1, 2, 3, 4]);
    pollster::block_on(generator.advance(0, begun, None)).unwrap();
    let mut refused = |texts: &[(usize, &[u32])], problem: &str| {
        let error = pollster::block_on(generator.advance_together(texts, None)).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    };
    refused(&[], "0 texts");
    refused(&[(0, more); 4], "4 texts");
    refused(&[(0, more), (0, more)], "cache 0");
    refused(&[(0, more), (1, more)], "cache 1");
    refused(&[(0, more), (7, more)], "cache 7");
    let settings = PlanSettings { base: BaseStorage::AsStored, max_positions: 32, rows_per_pass: 5, caches: 3 };
    for name in ["lfm2", "qwen3_5"] {
        assert_eq!(open_planned(&fixture(name), &[], settings).plan.together, 1);
    }
}

/// A convolution keeps its last rows alone, and a gated delta rule its last state: a text that does not go on from the cached one is
/// computed from its start.
#[test]
fn other_texts_of_a_model_with_a_state_begin_anew() {
    for name in ["lfm2", "qwen3_5"] {
        let model = fixture(name);
        let mut generator = open(&model, BaseStorage::AsStored, &["adapter"], 32, 5);
        let reference = Reference::read(&model.join("reference.safetensors"));
        let ids = reference.ids("input_ids.0");
        let vocabulary = generator.plan.shared.network.config.vocab_size;
        for length in [20, 24, 23, 23, 12, 1, 3] {
            let row = (length - 1) * vocabulary..length * vocabulary;
            let got = logits(&mut generator, &ids[..length], Some(0));
            assert_close(&format!("{name}: {length} tokens"), &got, &reference.get("lora_logits.0")[row], 1e-4);
        }
    }
}

#[test]
fn incremental_logits_equal_whole_sequences_on_an_nf4_base() {
    check_incremental("odd_sizes", NF4_DOUBLE);
}

#[test]
fn incremental_logits_equal_whole_sequences_with_embedding_and_head_in_nf4() {
    for name in ["odd_sizes", "llama_tied", "llama_untied"] {
        check_incremental(name, WHOLE_NF4);
    }
}

/// What was trained with `--quantize-embedding` is evaluated and goes on with the trainer's own numbers.
#[test]
fn an_adapter_answers_on_the_base_that_it_was_trained_on() {
    let model = model_with_tokenizer();
    let dir = model.path().display().to_string();
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(12, 96, 1));
    let trained = "--rank 4 --lr 0.02 --steps 8 --eval-data data.jsonl --quantize-embedding";
    shell.succeed(&format!("train --model {dir} --data data.jsonl --out run {trained}"));
    let evaluated = shell.metrics("run").iter().rev().find_map(|line| line.get("eval_loss")?.as_f64()).unwrap();
    let loss = |flags: &str| {
        let shown = shell.succeed(&format!("eval --model {dir} --adapter run --data data.jsonl --json {flags}"));
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["loss"].as_f64().unwrap()
    };
    let (same, other) = (loss("--quant nf4 --quantize-embedding"), loss("--quant nf4"));
    assert!((same / evaluated - 1.0).abs() < 1e-6, "{same} instead of {evaluated}");
    assert!((other / evaluated - 1.0).abs() > 1e-4, "{other} and {evaluated}");

    let run = shell.path("run");
    let flags = ["--quant", "nf4", "--quantize-embedding", "--json", "--logits", "--max-tokens", "1"];
    let command = [&["--prompt", "w7 w8 w9", "--adapter", run.to_str().unwrap()], &flags[..]].concat();
    let answer = &answers(&loraine(model.path(), &command))[0];
    let ids: Vec<u32> = numbers(&answer["prompt_ids"]).iter().map(|id| *id as u32).collect();
    let got: Vec<f32> = numbers(&answer["logits"]).iter().map(|v| *v as f32).collect();
    let config = ModelConfig::from_file(&model.path().join("config.json")).unwrap();
    let (modules, tensors) = adapter(&run, &config);
    let mut engine = open_engine(model.path(), WHOLE_NF4, &modules, &tensors, 64, usize::MAX);
    let all = pollster::block_on(engine.logits(&whole_sequence(&ids))).unwrap();
    assert_close("logits", &got, &all[all.len() - config.vocab_size..], 1e-5);
}

#[test]
fn adapters_of_unlike_rank_and_targets_work_side_by_side() {
    let model = fixture("llama_tied");
    let dirs = ["adapter", "adapter_rank_pattern", "adapter_layers"];
    let files = ["reference", "reference_rank_pattern", "reference_layers"];
    let ids = Reference::read(&model.join("reference.safetensors")).ids("input_ids.0");
    let mut generator = open(&model, BaseStorage::AsStored, &dirs, 32, 8);
    let vocabulary = generator.plan.shared.network.config.vocab_size;
    let last = (ids.len() - 1) * vocabulary;
    let base = Reference::read(&model.join("reference.safetensors"));
    for _ in 0..2 {
        for (adapter, file) in files.iter().enumerate() {
            let expected = Reference::read(&model.join(format!("{file}.safetensors")));
            let got = logits(&mut generator, &ids, Some(adapter));
            assert_close(file, &got, &expected.get("lora_logits.0")[last..], 1e-4);
            assert!(relative_error(&got, &base.get("logits.0")[last..]) > 1e-3, "{file} changes nothing");
            let got = logits(&mut generator, &ids, None);
            assert_close("base", &got, &base.get("logits.0")[last..], 1e-4);
        }
    }
}

#[test]
fn a_cache_that_was_used_before_changes_nothing() {
    let model = fixture("mistral_window");
    let reference = Reference::read(&model.join("reference.safetensors"));
    let [first, second] = ["input_ids.0", "input_ids.1"].map(|name| reference.ids(name));
    let mut fresh = open(&model, BaseStorage::AsStored, &["adapter"], 40, 40);
    let want = greedy(&mut fresh, &second, Some(0), 12);
    let mut used = open(&model, BaseStorage::AsStored, &["adapter"], 40, 40);
    greedy(&mut used, &first, Some(0), 16);
    greedy(&mut used, &second, None, 3);
    assert_eq!(greedy(&mut used, &second, Some(0), 12), want);
    // Going on from a text in the cache, and back to a shorter one.
    let longer = [&second[..], &want[..6]].concat();
    assert_eq!(greedy(&mut used, &longer, Some(0), 6), want[6..]);
    assert_eq!(greedy(&mut used, &second, Some(0), 12), want);
}

#[test]
fn what_the_cache_holds_is_not_computed_again() {
    let model = fixture("llama_tied");
    let ids = Reference::read(&model.join("reference.safetensors")).ids("input_ids.0");
    let mut generator = open(&model, BaseStorage::AsStored, &["adapter"], 32, 8);
    let settings = GenerationSettings { max_tokens: 2, ..GenerationSettings::default() };
    let mut computed = |text: &[u32], adapter| {
        let run = generator.generate(text, adapter, &settings, |_| ControlFlow::Continue(()));
        pollster::block_on(run).unwrap().prompt_computed
    };
    assert_eq!(computed(&ids[..20], None), 20);
    assert_eq!(computed(&ids[..20], None), 1);
    assert_eq!(computed(&ids[..10], None), 1);
    assert_eq!(computed(&ids[..10], Some(0)), 10);
}

#[test]
fn texts_end_where_they_should() {
    let model = fixture("llama_tied");
    let ids = Reference::read(&model.join("reference.safetensors")).ids("input_ids.2");
    let mut generator = open(&model, BaseStorage::AsStored, &[], ids.len() + 5, 128);
    let mut run = |prompt: &[u32], max_tokens, end_tokens: Vec<u32>, break_after: usize| {
        let settings = GenerationSettings { max_tokens, end_tokens, ..GenerationSettings::default() };
        let mut seen = Vec::new();
        let result = pollster::block_on(generator.generate(prompt, None, &settings, |token| {
            seen.push(token);
            if seen.len() == break_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }));
        result.inspect(|generation| assert_eq!(generation.tokens, seen))
    };
    let all = run(&ids, 5, vec![], 0).unwrap();
    assert_eq!((all.tokens.len(), all.stop), (5, Stop::MaxTokens));
    let none = run(&ids, 0, vec![], 0).unwrap();
    assert_eq!((none.tokens.len(), none.stop), (0, Stop::MaxTokens));
    // The token after the last position is known too: it needs no position of its own.
    let full = run(&ids, 100, vec![], 0).unwrap();
    assert_eq!((full.tokens.len(), full.stop), (6, Stop::Context));
    assert_eq!(full.tokens[..5], all.tokens);
    assert_eq!(run(&ids, 100, vec![], 2).unwrap().stop, Stop::Caller);
    let end = all.tokens[2];
    let before_end = all.tokens.iter().position(|token| *token == end).unwrap();
    let ended = run(&ids, 5, vec![end], 0).unwrap();
    assert_eq!((ended.tokens, ended.stop), (all.tokens[..before_end].to_vec(), Stop::EndToken(end)));

    let long = vec![1; ids.len() + 6];
    for (prompt, message) in [(&[][..], "no token"), (&[9999], "vocabulary"), (&long, "the context holds")] {
        let error = run(prompt, 5, vec![], 0).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let error = pollster::block_on(generator.logits_after(&ids, Some(0))).unwrap_err().to_string();
    assert!(error.contains("adapter 0") && error.contains("0 are loaded"), "{error}");
}

#[test]
fn a_seed_repeats_the_text() {
    let model = fixture("qwen3");
    let ids = Reference::read(&model.join("reference.safetensors")).ids("input_ids.1");
    let mut generator = open(&model, BaseStorage::AsStored, &[], 64, 128);
    let mut run = |seed| {
        let sampling = SamplingSettings { temperature: 1.0, seed, ..SamplingSettings::default() };
        let settings = GenerationSettings { sampling, max_tokens: 40, ..GenerationSettings::default() };
        let go_on = |_| ControlFlow::Continue(());
        pollster::block_on(generator.generate(&ids, None, &settings, go_on)).unwrap().tokens
    };
    let text = run(1);
    assert_ne!(run(2), text);
    assert_eq!(run(1), text);
}

#[test]
fn stories260k_greedy_equals_transformers() {
    let Some(model) = shared("models/stories260K") else { return };
    let expected = json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stories260K_greedy.json"));
    let ids = |key: &str| -> Vec<u32> { numbers(&expected[key]).into_iter().map(|id| id as u32).collect() };
    let (prompt, want) = (ids("prompt_ids"), ids("ids"));
    assert!(want.len() >= 200 && expected["smallest_logit_gap"].as_f64().unwrap() > 1e-3);
    let config = ModelConfig::from_file(&model.join("config.json")).unwrap();
    let end_tokens = end_tokens::from_dir(&model, &config).unwrap();
    assert_eq!(end_tokens, [1, 2]);
    let mut generator = open(&model, BaseStorage::AsStored, &[], 512, 128);
    let settings = GenerationSettings { max_tokens: 400, end_tokens, ..GenerationSettings::default() };
    let go_on = |_| ControlFlow::Continue(());
    let got = pollster::block_on(generator.generate(&prompt, None, &settings, go_on)).unwrap();
    assert_eq!(got.tokens, want);
    let end = expected["ended_by"].as_u64().map_or(Stop::MaxTokens, |id| Stop::EndToken(id as u32));
    assert_eq!(got.stop, end);
}

/// A copy of a fixture with a tokenizer of the words `w0 w1 ...`; a text of them has one token per word.
fn model_with_tokenizer() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("llama_tied");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    let config = ModelConfig::from_file(&source.join("config.json")).unwrap();
    let words: serde_json::Map<String, serde_json::Value> =
        (0..config.vocab_size).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "truncation": null, "padding": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    });
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

struct Output {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn loraine(model: &Path, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_loraine"));
    command.args(["generate", "--model"]).arg(model).args(arguments).stdin(std::process::Stdio::null());
    if let Ok(adapter) = std::env::var("LORAINE_ADAPTER") {
        command.env("LORAINE_GPU", adapter);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn answers(output: &Output) -> Vec<serde_json::Value> {
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    report["answers"].as_array().unwrap().clone()
}

fn words(ids: &[u32]) -> String {
    ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_command_prints_text_and_json() {
    const PROMPT: [u32; 3] = [5, 9, 11];
    let model = model_with_tokenizer();
    let expected = greedy(&mut open(&fixture("llama_tied"), BaseStorage::AsStored, &[], 16, 128), &PROMPT, None, 8);
    let common = ["--prompt", "w5 w9 w11", "--max-tokens", "8", "--ignore-eos"];
    let plain = loraine(model.path(), &common);
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    assert_eq!(plain.stdout, format!("w5 w9 w11 {}\n", words(&expected)));
    assert!(plain.stderr.contains("prompt: 3 tokens") && plain.stderr.contains("answer: 8 tokens"), "{}", plain.stderr);
    let bare = loraine(model.path(), &[&common[..], &["--no-echo"]].concat());
    assert_eq!(bare.stdout.trim(), words(&expected));

    let found = answers(&loraine(model.path(), &[&common[..], &["--json"]].concat()));
    let [answer] = &found[..] else { panic!("{found:?}") };
    assert_eq!(answer["ids"], serde_json::json!(expected));
    assert_eq!(answer["prompt_ids"], serde_json::json!(PROMPT));
    assert_eq!((&answer["tokens"], &answer["prompt_tokens"]), (&8.into(), &3.into()));
    assert_eq!((&answer["adapter"], &answer["stop"]), (&"base".into(), &"max_tokens".into()));
    assert_eq!(answer["text"].as_str().unwrap().trim(), words(&expected));
    assert!(answer["seconds"].as_f64().unwrap() > 0.0 && answer["tokens_per_s"].as_f64().unwrap() > 0.0);

    let file = model.path().join("prompt.txt");
    std::fs::write(&file, "w5 w9 w11\n").unwrap();
    let from_file = ["--prompt-file", file.to_str().unwrap(), "--max-tokens", "8", "--ignore-eos"];
    assert_eq!(loraine(model.path(), &from_file).stdout, plain.stdout);
    // The model's own end token ends the text, unless it is to be ignored.
    std::fs::write(model.path().join("generation_config.json"), format!(r#"{{"eos_token_id": [{}]}}"#, expected[0]))
        .unwrap();
    let ended = answers(&loraine(model.path(), &["--prompt", "w5 w9 w11", "--json"]));
    assert_eq!((&ended[0]["stop"], &ended[0]["tokens"]), (&"end_token".into(), &0.into()));
    let full =
        answers(&loraine(model.path(), &["--prompt", "w5 w9 w11", "--max-context", "6", "--ignore-eos", "--json"]));
    assert_eq!((&full[0]["stop"], &full[0]["tokens"]), (&"context".into(), &4.into()));
}

#[test]
fn the_command_chooses_adapters_per_prompt() {
    let model = model_with_tokenizer();
    let source = fixture("llama_tied");
    let first = source.join("adapter").display().to_string();
    let second = format!("ranks={}", source.join("adapter_rank_pattern").display());
    let mut generator = open(&source, BaseStorage::AsStored, &["adapter", "adapter_rank_pattern"], 16, 128);
    let run = |more: &[&str]| {
        let common = ["--adapter", &first, "--adapter", &second, "--max-tokens", "6", "--ignore-eos", "--json"];
        let found = answers(&loraine(model.path(), &[&common[..], more].concat()));
        let fields = |a: &serde_json::Value| {
            let ids = numbers(&a["ids"]).into_iter().map(|id| id as u32).collect::<Vec<_>>();
            (a["adapter"].as_str().unwrap().to_owned(), ids)
        };
        found.iter().map(fields).collect::<Vec<_>>()
    };
    let mut want = |names: &[(&str, Option<usize>, u32)]| {
        let answer = |(name, adapter, prompt): &(&str, Option<usize>, u32)| {
            ((*name).to_owned(), greedy(&mut generator, &[*prompt], *adapter, 6))
        };
        names.iter().map(answer).collect::<Vec<_>>()
    };
    let all = want(&[("adapter", Some(0), 7), ("ranks", Some(1), 7)]);
    assert_eq!(run(&["--prompt", "w7"]), all);
    let three = want(&[("base", None, 7), ("ranks", Some(1), 7), ("adapter", Some(0), 7)]);
    assert_eq!(run(&["--prompt", "w7", "--use", "base", "--use", "ranks", "--use", "adapter"]), three);
    assert!(three[0].1 != three[1].1 && three[1].1 != three[2].1, "the adapters change nothing: {three:?}");
    let pairs = want(&[("ranks", Some(1), 7), ("base", None, 8)]);
    assert_eq!(run(&["--prompt", "w7", "--use", "ranks", "--prompt", "w8", "--use", "base"]), pairs);
    let one_for_all = want(&[("ranks", Some(1), 7), ("ranks", Some(1), 8)]);
    assert_eq!(run(&["--prompt", "w7", "--prompt", "w8", "--use", "ranks"]), one_for_all);
}

#[test]
fn bad_requests_are_one_clear_error() {
    let model = model_with_tokenizer();
    let adapter = format!("tuned={}", fixture("llama_tied").join("adapter").display());
    let base = format!("base={}", fixture("llama_tied").join("adapter").display());
    let other = format!("other={}", fixture("qwen3").join("adapter").display());
    let long = vec!["w1"; 5000].join(" ");
    let cases: [(&[&str], &[&str]); 14] = [
        (&["--prompt", "w1", "--adapter", &adapter, "--use", "tunned"], &["--use tunned", "base, tuned"]),
        (&["--prompt", "w1", "--use", "tuned"], &["--use tuned", "there are: base"]),
        (&["--prompt", "w1", "--adapter", "/no/such"], &["/no/such", "does not exist"]),
        (&["--prompt", "w1", "--adapter", &adapter, "--adapter", &adapter], &["two adapters", "tuned"]),
        (&["--prompt", "w1", "--adapter", &base], &["`base` is the model without an adapter"]),
        (&["--prompt", "w1", "--adapter", &other], &["adapter_model.safetensors", "shape"]),
        (&["--prompt", &long], &["5000 tokens", "context"]),
        (&["--prompt", "w1 w2 w3", "--max-context", "2"], &["3 tokens", "--max-context is 2"]),
        (&["--prompt", "w1", "--max-context", "100000000"], &["the model's own limit"]),
        (&["--prompt-file", "/no/such.txt"], &["/no/such.txt", "cannot be read"]),
        (&["--prompt", "w1", "--top-p", "0.5"], &["--temperature"]),
        (&["--prompt", "w1", "--quantize-embedding"], &["--quantize-embedding is for --quant nf4 or fp4"]),
        (&["--prompt", "w1", "--no-double-quant"], &["--no-double-quant is for --quant nf4 or fp4"]),
        (&["--prompt", "w1", "--use", "base", "--use", "base", "--prompt", "w2", "--prompt", "w3"], &["2 --use for 3"]),
    ];
    let check = |model: &Path, arguments: &[&str], parts: &[&str]| {
        let output = loraine(model, arguments);
        let errors: Vec<&str> = output.stderr.lines().filter(|l| !l.contains("XDG_RUNTIME_DIR")).collect();
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{arguments:?}: {}", output.stderr);
        let [error] = &errors[..] else { panic!("{arguments:?}: {errors:?}") };
        assert!(error.starts_with("error: ") && parts.iter().all(|p| error.contains(p)), "{arguments:?}: {error}");
    };
    for (arguments, parts) in cases {
        check(model.path(), arguments, parts);
    }
    check(Path::new("/no/such/model"), &["--prompt", "w1"], &["/no/such/model", "does not exist"]);
    let config = model.path().join("config.json");
    let without_begin =
        std::fs::read_to_string(&config).unwrap().replace(r#""bos_token_id": 1"#, r#""bos_token_id": null"#);
    let begun = answers(&loraine(model.path(), &["--prompt", "", "--json", "--max-tokens", "1"]));
    assert_eq!(begun[0]["prompt_ids"], serde_json::json!([1]));
    std::fs::write(&config, without_begin).unwrap();
    check(model.path(), &["--prompt", ""], &["empty", "begins a text"]);
    std::fs::write(model.path().join("generation_config.json"), "[1]").unwrap();
    check(model.path(), &["--prompt", "w1"], &["generation_config.json", "JSON object"]);
    std::fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    check(model.path(), &["--prompt", "w1"], &["tokenizer.json", "cannot be read"]);
}

#[test]
fn the_command_tells_transformers_story() {
    let Some(model) = shared("models/stories260K") else { return };
    let expected = json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stories260K_greedy.json"));
    let output = loraine(&model, &["--prompt", "Once upon a time", "--max-tokens", "400"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(output.stdout, format!("{}\n", expected["full_text"].as_str().unwrap()));
}

#[test]
fn texts_that_grow_by_turns_equal_those_that_grow_alone() {
    let model = fixture("qwen3");
    let reference = Reference::read(&model.join("reference.safetensors"));
    let source = Source::open(&model).unwrap();
    let adapters = [adapter_file::load(&model.join("adapter"), &source.config).unwrap()];
    let settings = PlanSettings { base: BaseStorage::AsStored, max_positions: 64, rows_per_pass: 5, caches: 2 };
    let open = || pollster::block_on(Generator::open(gpu(), &source, &adapters, &settings, |_, _| {})).unwrap();
    let texts = [(reference.ids("input_ids.0"), None), (reference.ids("input_ids.1"), Some(0))];
    let step = |generator: &mut Generator, cache: usize, text: &mut Vec<u32>, adapter| {
        if let Some(logits) = pollster::block_on(generator.advance(cache, text, adapter)).unwrap() {
            text.push(next_token(&logits, text, &SamplingSettings::default()).unwrap());
        }
    };
    let alone = texts.clone().map(|(mut text, adapter)| {
        let (mut generator, start) = (open(), text.len());
        while text.len() < start + 12 {
            step(&mut generator, 0, &mut text, adapter);
        }
        text
    });
    let mut generator = open();
    let mut by_turns = texts.clone();
    for _ in 0..30 {
        for (cache, (text, adapter)) in by_turns.iter_mut().enumerate() {
            if text.len() < alone[cache].len() {
                step(&mut generator, cache, text, *adapter);
            }
        }
    }
    for cache in 0..2 {
        assert_eq!(by_turns[cache].0, alone[cache]);
        assert_eq!(generator.cache_length(cache), alone[cache].len() - 1);
        assert_eq!(generator.cached_tokens(cache, &alone[cache][..9], texts[cache].1), 8);
        assert_eq!(generator.cached_tokens(cache, &alone[cache][..9], texts[1 - cache].1), 0);
    }
    let error = pollster::block_on(generator.advance(2, &[1], None)).unwrap_err().to_string();
    assert!(error.contains("cache 2") && error.contains("there are 2"), "{error}");
}
