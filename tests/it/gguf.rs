//! GGUF files: llama.cpp's quantizations of a model, its tokenizers, and adapters for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::cli::Shell;
use crate::common::*;
use loraine::data::batches::MicroBatch;
use loraine::data::tokenizer::Tokenizer;
use loraine::export::gguf_adapter::{self, AdapterSettings};
use loraine::export::gguf_merge::{self, GgufFloat, GgufMergeSettings};
use loraine::export::merge::{self, MergeSettings};
use loraine::lora::adapter_file;
use loraine::lora::config::{LoraConfig, LoraInit};
use loraine::lora::factors::{AdapterTensors, init};
use loraine::lora::targets::{LoraModule, resolve};
use loraine::model::config::ModelConfig;
use loraine::model::source::Source;
use loraine::model::tensors::{EMBEDDING, HEAD, tensors};
use loraine::network::base::BaseStorage;
use loraine::quant::format::Float;

/// A file of the references, or None with a note where they are not there.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new("../shared/reference/gguf").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn a_gguf_file_has_the_configuration_the_names_and_the_order_of_rows_of_its_directory() {
    let (Some(gguf), Some(dir)) = (shared("models/kq-Q8_0.gguf"), shared("models/kq_hf")) else { return };
    let (ours, theirs) = (Source::open(&gguf).unwrap(), Source::open(&dir).unwrap());
    let (mut config, mut expected) = (ours.config.clone(), theirs.config.clone());
    for config in [&mut config, &mut expected] {
        config.eos_token_ids.clear();
    }
    assert_eq!(config, expected);
    for spec in tensors(&ours.config) {
        let read = |source: &Source| source.tensors.require(&spec.name, &spec.shape).unwrap().read_f32().unwrap();
        let (ours, theirs) = (read(&ours), read(&theirs));
        let norm: f32 = theirs.iter().map(|v| v * v).sum();
        let distance: f32 = ours.iter().zip(&theirs).map(|(a, b)| (a - b) * (a - b)).sum();
        // Eight bits of a normal distribution: 0.53 %.
        assert!((distance / norm).sqrt() < 0.01, "{}: {}", spec.name, (distance / norm).sqrt());
    }
    // A range of bytes that begins and ends within rows, of a tensor whose rows have changed places.
    let q = ours.tensors.get("model.layers.1.self_attn.q_proj.weight").unwrap();
    let whole: Vec<u8> = q.read_f32().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
    for (start, length) in [(0, 4), (1021, 2050), (70_001, 90_003), (whole.len() - 5, 5)] {
        let mut piece = vec![0; length];
        q.read(start as u64, &mut piece).unwrap();
        assert!(piece == whole[start..start + length], "{length} bytes from {start}");
    }
    assert!(ours.tensors.has(HEAD) && ours.tensors.has(EMBEDDING));
}

/// Logits over the decoded weights, which PyTorch and llama.cpp agree on to 6e-7.
#[test]
fn logits_over_a_gguf_file_equal_llama_cpp() {
    let (Some(logits), Some(_)) = (shared("kq_logits.safetensors"), shared("models")) else { return };
    let expected = Reference::read(&logits);
    for name in ["kq-Q4_K_M", "kq-Q8_0"] {
        let gguf = shared(&format!("models/{name}.gguf")).unwrap();
        let config = ModelConfig::from_dir(&gguf).unwrap();
        let ids = Tokenizer::from_dir(&gguf, &config).unwrap().encode("Once upon a time", true).unwrap();
        let (modules, tensors) = (Vec::new(), AdapterTensors { modules: Vec::new() });
        let mut kept = Source::open(&gguf).unwrap();
        kept.keep_blocks().unwrap();
        for source in [Source::open(&gguf).unwrap(), kept] {
            let mut engine = open_source(&source, BaseStorage::AsStored, &modules, &tensors, 64, 0);
            let got = pollster::block_on(engine.logits(&whole_sequence(&ids))).unwrap();
            assert_close(name, &got, expected.find(&format!("{name}.f32.0")).unwrap(), 2e-5);
        }
    }
}

#[test]
fn the_tokenizer_of_a_gguf_file_equals_that_of_its_directory() {
    let (Some(gguf), Some(dir)) = (shared("models/kq-Q4_K_M.gguf"), shared("models/kq_hf")) else { return };
    let open = |path: &Path| Tokenizer::from_dir(path, &ModelConfig::from_dir(path).unwrap()).unwrap();
    let (ours, theirs) = (open(&gguf), open(&dir));
    assert_eq!((ours.bos(), ours.eos()), (theirs.bos(), theirs.eos()));
    for text in ["Once upon a time", "", " two  spaces\nand a line", "Äpfel, \u{1f34e} and 日本", "x</s>"] {
        let ids = theirs.encode(text, true).unwrap();
        assert_eq!(ours.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(ours.decode(&ids).unwrap(), theirs.decode(&ids).unwrap());
    }
}

fn merge_gguf(model: &Path, adapter: &Path, out: &Path, float: GgufFloat) -> gguf_merge::GgufMerge {
    let (model, adapter, out) = (model.to_owned(), adapter.to_owned(), out.to_owned());
    let settings = GgufMergeSettings { model, adapter, out, float, overwrite: false };
    pollster::block_on(gguf_merge::merge(&settings, &gpu(), |_, _| ())).unwrap()
}

/// Every tensor of a model by its name, in f32.
fn values(source: &Source) -> Vec<(String, Vec<f32>)> {
    let read = |name: &str, shape: &[usize]| source.tensors.require(name, shape).unwrap().read_f32().unwrap();
    tensors(&source.config).into_iter().map(|spec| (spec.name.clone(), read(&spec.name, &spec.shape))).collect()
}

/// A merged GGUF file holds what the merged directory holds, and reading it gives back the configuration. What llama.cpp makes of such
/// files is compared in `llama_cpp_computes_what_was_merged`.
#[test]
fn a_merged_gguf_file_is_the_merged_directory() {
    let place = tempfile::tempdir().unwrap();
    let names = [
        "llama_tied",
        "llama_untied",
        "llama3_rope",
        "linear_rope",
        "qwen2",
        "qwen3",
        "gemma",
        "granite",
        "olmo2",
        "glm4",
        "phi3",
        "hunyuan",
        "ministral3",
        "lfm2",
        "lfm2_old_keys",
    ];
    for name in names {
        let (model, adapter) = (fixture(name), fixture(name).join("adapter"));
        let out = place.path().join(format!("{name}.gguf"));
        let merged = merge_gguf(&model, &adapter, &out, GgufFloat::F32);
        assert!(merged.matrices > 0 && merged.copied == 0 && merged.modelfile.is_none());
        let settings = MergeSettings {
            model,
            adapter,
            out: place.path().join(name),
            float: Some(Float::F32),
            overwrite: false,
            shard_bytes: 1 << 30,
        };
        pollster::block_on(merge::merge(&settings, &gpu(), |_, _| ())).unwrap();
        let (ours, theirs) = (Source::open(&out).unwrap(), Source::open(&settings.out).unwrap());
        // What Gemma's gains lose where 1 is added and taken away again.
        let bound = if name == "gemma" { 1e-6 } else { f64::MIN_POSITIVE };
        for ((tensor, ours), (_, theirs)) in values(&ours).iter().zip(&values(&theirs)) {
            assert_close(&format!("{name}: {tensor}"), ours, theirs, bound);
        }
        let (ours, theirs) = (&ours.config, &theirs.config);
        assert_eq!((ours.family, ours.tie_word_embeddings), (theirs.family, theirs.tie_word_embeddings), "{name}");
        assert_eq!((ours.head_dim, ours.layer_ropes.clone()), (theirs.head_dim, theirs.layer_ropes.clone()), "{name}");
        assert_eq!((&ours.convolutions, ours.rms_norm_eps), (&theirs.convolutions, theirs.rms_norm_eps), "{name}");
        assert_eq!((ours.attention_scale, ours.logit_scale), (theirs.attention_scale, theirs.logit_scale), "{name}");
    }
}

#[test]
fn what_llama_cpp_has_no_key_for_is_refused() {
    let place = tempfile::tempdir().unwrap();
    for (name, says) in [
        ("llama_gelu", "another activation than its family's"),
        ("gemma2", "a query_pre_attn_scalar other than the size of a head"),
        ("exaone4", "windows of attention in other layers"),
        ("ernie", "biases in the feed-forward block"),
        ("smollm3", "other layers without rotation"),
        ("yarn_rope", "beta_fast"),
        ("granite4", "`granitemoehybrid`, which is not written as GGUF yet"),
    ] {
        let (model, adapter, out) = (fixture(name), fixture(name).join("adapter"), place.path().join("out.gguf"));
        let settings = GgufMergeSettings { model, adapter, out, float: GgufFloat::F16, overwrite: false };
        let message = pollster::block_on(gguf_merge::merge(&settings, &gpu(), |_, _| ())).unwrap_err().to_string();
        assert!(message.contains(says) && message.contains(name), "{message}");
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

/// Kept blocks have the values that the file is decoded to elsewhere: logits and gradients over both are the same but for the order of
/// sums.
fn compare_kept(gguf: &Path, kept: &Source, modules: &[LoraModule], tensors: &AdapterTensors, ids: &[u32]) {
    let what = gguf.display();
    let decoded = Source::open(gguf).unwrap();
    let batch = MicroBatch::from_examples(&[example(ids.to_vec())]);
    let [(logits, gradients, bytes), (kept_logits, kept_gradients, kept_bytes)] = [&decoded, kept].map(|source| {
        let mut engine = open_source(source, BaseStorage::AsStored, modules, tensors, 64, 0);
        let logits = pollster::block_on(engine.logits(&whole_sequence(ids))).unwrap();
        pollster::block_on(engine.accumulate(std::slice::from_ref(&batch), 0)).unwrap();
        (logits, pollster::block_on(engine.read_gradients()).unwrap(), engine.plan.ledger().total())
    });
    assert_close(&format!("{what}: logits"), &kept_logits, &logits, 2e-5);
    let file = |gradients| adapter_file::file_tensors(modules, gradients);
    for ((name, _, got), (_, _, want)) in file(&kept_gradients).into_iter().zip(file(&gradients)) {
        assert_close(&format!("{what}: {name}"), &got, &want, 2e-4);
    }
    assert!(kept_bytes < bytes, "{what}: {kept_bytes} and {bytes} bytes");
}

/// Rows of queries and keys change places in such a file.
#[test]
fn blocks_kept_packed_give_the_logits_and_gradients_of_decoded_ones() {
    let place = tempfile::tempdir().unwrap();
    let model = fixture("llama_untied");
    for float in [GgufFloat::Q4_0, GgufFloat::Q8_0] {
        let gguf = place.path().join(format!("{float:?}.gguf"));
        merge_gguf(&model, &model.join("adapter"), &gguf, float);
        let mut kept = Source::open(&gguf).unwrap();
        kept.keep_blocks().unwrap();
        assert!([EMBEDDING, HEAD].iter().all(|name| kept.config.quantized.contains_key(*name)));
        assert!(kept.config.quantized.contains_key("model.layers.0.self_attn.q_proj.weight"));
        // As in files whose values have another type than queries and keys.
        kept.config.quantized.remove("model.layers.0.self_attn.v_proj.weight").unwrap();
        let (modules, tensors) = adapter(&model.join("adapter"), &kept.config);
        let ids = Reference::read(&model.join("reference.safetensors")).ids("input_ids.0");
        compare_kept(&gguf, &kept, &modules, &tensors, &ids);
    }
    let message = Source::open(&model).unwrap().keep_blocks().unwrap_err().to_string();
    assert!(message.contains("holds no weights in blocks to keep") && message.contains("quant=nf4"), "{message}");
}

/// Q4_K and Q6_K in one file, and Q8_0 in the other.
#[test]
fn kept_blocks_of_llama_cpp_have_the_gradients_of_decoded_ones() {
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}"#;
    for (name, types) in [("kq-Q4_K_M", vec!["q4_k", "q6_k"]), ("kq-Q8_0", vec!["q8_0"])] {
        let Some(gguf) = shared(&format!("models/{name}.gguf")) else { return };
        let mut kept = Source::open(&gguf).unwrap();
        kept.keep_blocks().unwrap();
        let found: BTreeSet<&str> = kept.config.quantized.values().map(|storage| storage.name()).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), types, "{name}");
        let config = LoraConfig::from_json(Path::new("adapter_config.json"), config).unwrap();
        let modules = resolve(&config, &kept.config).unwrap();
        let mut adapter = init(&modules, 3, LoraInit::KaimingUniform);
        adapter.modules.iter_mut().for_each(|module| module.0[1].iter_mut().for_each(|v| *v = 0.01));
        let tokenizer = Tokenizer::from_dir(&gguf, &kept.config).unwrap();
        let ids = tokenizer.encode("Once upon a time there was a little girl", true).unwrap();
        compare_kept(&gguf, &kept, &modules, &adapter, &ids);
    }
}

/// Each command takes `--quant keep`, and its values are those of the decoded file.
#[test]
fn commands_keep_the_blocks_of_a_file() {
    let shell = Shell::new();
    let model = fixture("llama_untied");
    merge_gguf(&model, &model.join("adapter"), &shell.path("q8_0.gguf"), GgufFloat::Q8_0);
    let ids: Vec<u32> = (1..=32).collect();
    shell.write("data.jsonl", format!("{{\"input_ids\": {ids:?}}}\n").repeat(4));
    let json = |args: &str| serde_json::from_str::<serde_json::Value>(&shell.succeed(args)).expect("JSON");
    let estimate = "estimate --gpu 0 --model q8_0.gguf --max-seq-len 32 --json --method";
    let [kept, whole] = ["qlora --quant keep", "lora"].map(|method| json(&format!("{estimate} {method}")));
    assert!(kept[0]["gpu_bytes"].as_u64() < whole[0]["gpu_bytes"].as_u64(), "{kept} {whole}");
    let train = "train --gpu 0 --model q8_0.gguf --data data.jsonl --steps 3 --lr 0.01 --out run --quant keep";
    let shown = shell.succeed(train);
    assert!(shown.contains("--quant keep --adapter run"), "{shown}");
    assert_eq!(shell.metrics("run")[0]["gpu_bytes"], kept[0]["gpu_bytes"]);
    let eval = "eval --model q8_0.gguf --data data.jsonl --adapter run --json --quant";
    let [kept, decoded] = ["keep", "none"].map(|quant| json(&format!("{eval} {quant}"))["loss"].as_f64().unwrap());
    assert!((kept / decoded - 1.0).abs() < 1e-5, "{kept} and {decoded}");
    let says = ["llama_untied", "holds no weights in blocks to keep", "--quant nf4"];
    let (model, data) = (model.display(), "--data data.jsonl");
    shell.fail(&format!("train --model {model} {data} --out other --quant keep"), &says);
    shell.fail(&format!("eval --model {model} {data} --quant keep"), &says);
    shell.fail(&format!("estimate --model {model} --quant keep"), &["--quant keep is for a GGUF file"]);
    shell.fail("estimate --quant keep", &["--quant keep is for a GGUF file"]);
    shell.fail("estimate --model q8_0.gguf --quant keep --method lora", &["--quant keep is for --method qlora"]);
    shell.fail(&format!("{eval} keep --quantize-embedding"), &["--quantize-embedding is for --quant nf4 or fp4"]);
}

#[test]
fn over_a_gguf_base_only_adapted_matrices_change() {
    let (Some(base), Some(_)) = (shared("models/kq-Q4_K_M.gguf"), shared("models/kq_hf")) else { return };
    let place = tempfile::tempdir().unwrap();
    let (run, out) = (place.path().join("run"), place.path().join("merged.gguf"));
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}"#;
    let source = Source::open(&base).unwrap();
    let config = LoraConfig::from_json(Path::new("adapter_config.json"), config).unwrap();
    let modules = resolve(&config, &source.config).unwrap();
    let mut adapter = init(&modules, 3, LoraInit::KaimingUniform);
    adapter.modules.iter_mut().for_each(|module| module.0[1].iter_mut().for_each(|v| *v = 0.01));
    adapter_file::save(&run, &config, &modules, &adapter).unwrap();
    let merged = merge_gguf(&base, &run, &out, GgufFloat::Q8_0);
    assert_eq!((merged.matrices, merged.copied), (6, 24));
    let written = Source::open(&out).unwrap();
    for ((name, before), (_, after)) in values(&source).iter().zip(&values(&written)) {
        let adapted = name.contains("q_proj") || name.contains("down_proj");
        assert_eq!(before == after, !adapted, "{name}");
    }
    let tokens = |path: &Path| {
        let tokenizer = Tokenizer::from_dir(path, &ModelConfig::from_dir(path).unwrap()).unwrap();
        tokenizer.encode("Once upon a time, in Äpfel", true).unwrap()
    };
    assert_eq!(tokens(&base), tokens(&out));
    let modelfile = std::fs::read_to_string(merged.modelfile.unwrap()).unwrap();
    assert_eq!(modelfile, "FROM ./merged.gguf\nPARAMETER stop \"</s>\"\n");
}

#[test]
fn tokenizers_survive_the_way_into_gguf_and_back() {
    let place = tempfile::tempdir().unwrap();
    for name in ["qwen2.5-0.5b-instruct", "llama-3.2", "smollm2-135m-instruct", "gpt2", "tinyllama-1.1b-chat"] {
        let tokenizer = Path::new("../shared/tokenizers").join(name);
        if !tokenizer.is_dir() {
            eprintln!("skipped: {} is not there", tokenizer.display());
            return;
        }
        let Some(theirs) = Tokenizer::from_tokenizer_dir(&tokenizer).ok().filter(|t| t.vocabulary() < 60_000) else {
            // Larger ones take seconds; the rules by which they split texts are compared in a test of the library.
            continue;
        };
        let model = place.path().join(name);
        cli::copy_files(&fixture("llama_tied"), &model);
        cli::copy_files(&tokenizer, &model);
        let out = place.path().join(format!("{name}.gguf"));
        widen(&model, theirs.vocabulary());
        merge_gguf(&model, &fixture("llama_tied").join("adapter"), &out, GgufFloat::F16);
        let config = ModelConfig::from_dir(&out).unwrap();
        let ours = Tokenizer::from_dir(&out, &config).unwrap();
        for text in ["Once upon a time", "two  spaces\nand 12345 lines\n\n", "Äpfel, \u{1f34e} and 日本'll", "x</s>"]
        {
            let ids = theirs.encode(text, true).unwrap();
            assert_eq!(ours.encode(text, true).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(ours.decode(&ids).unwrap(), theirs.decode(&ids).unwrap(), "{name}: {text:?}");
        }
    }
}

/// Gives a model directory an embedding of `rows` rows of small numbers.
fn widen(model: &Path, rows: usize) {
    let path = model.join("config.json");
    let mut config = json(&path);
    config["vocab_size"] = rows.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embedding = vec![0; 4 * rows * config["hidden_size"].as_u64().unwrap() as usize];
    let shape = vec![rows, config["hidden_size"].as_u64().unwrap() as usize];
    let views = file.tensors().into_iter().map(|(name, view)| match name.as_str() {
        EMBEDDING => {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), &embedding).unwrap())
        }
        _ => (name, view),
    });
    std::fs::write(&weights, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Keys, tensors, tokenizer and template of damaged files: an error, or another model, and never a panic.
#[test]
fn damaged_files_are_refused_or_read() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/tiny.gguf");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    for file in [Some(tiny), shared("models/kq-Q4_K_M.gguf")].into_iter().flatten() {
        let bytes = std::fs::read(&file).unwrap();
        let header = 2048.min(bytes.len());
        let mut refused = 0;
        for case in 0..150u64 {
            let mut damaged = bytes.clone();
            // A step that meets every part of the header.
            let at = (case as usize * 131) % (header - 8);
            match case % 3 {
                0 => damaged[at] ^= 1 << (case % 8),
                1 => damaged[at..at + 4].fill(255),
                _ => damaged[at..at + 8].copy_from_slice(&case.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()),
            }
            std::fs::write(&path, &damaged).unwrap();
            let opened = Source::open(&path);
            if let Ok(source) = &opened {
                for spec in tensors(&source.config) {
                    let _ = source.tensors.require(&spec.name, &spec.shape).map(|tensor| tensor.read_f32());
                }
            }
            let _ = Tokenizer::from_tokenizer_dir(&path).and_then(|tokenizer| tokenizer.encode("Once upon", true));
            refused += usize::from(opened.is_err());
        }
        assert!(refused > 20, "{refused} of {}", file.display());
    }
}

/// As a user types it: each command takes the file in the place of a directory.
#[test]
fn every_command_takes_a_gguf_file() {
    let Some(gguf) = shared("models/kq-Q4_K_M.gguf") else { return };
    let shell = cli::Shell::new();
    std::fs::copy(&gguf, shell.path("model.gguf")).unwrap();
    shell.write("data.jsonl", "{\"text\": \"Once upon a time\"}\n{\"text\": \"there was a bird\"}\n");
    for (name, method) in [("nf4", "--quant nf4"), ("lora", "--method lora"), ("full", "--method full --dtype f32")] {
        shell.succeed(&format!("train --model model.gguf --data data.jsonl --out {name} --steps 2 {method}"));
    }
    let loss = |model: &str| shell.succeed(&format!("eval --model {model} --data data.jsonl --json"));
    assert!(loss("full").contains("\"loss\""));
    shell.succeed("quantize --model model.gguf --out packed");
    assert!(loss("packed").contains("\"loss\""));
    shell.succeed("merge --model model.gguf --adapter lora --out merged");
    let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    let of =
        |args: &str| json(&shell.succeed(&format!("eval {args} --data data.jsonl --json")))["loss"].as_f64().unwrap();
    let (apart, merged) = (of("--model model.gguf --adapter lora"), of("--model merged"));
    assert!((apart / merged - 1.0).abs() < 1e-5, "{apart} and {merged}");
    let said = shell.succeed("export --model model.gguf --adapter lora --out lora.gguf --gguf");
    assert!(said.contains("21 matrices") && said.contains("--lora lora.gguf"), "{said}");
    shell.fail("merge --model model.gguf --adapter lora --out other --dtype q8_0", &["give --gguf too"]);
    shell.fail("merge --model model.gguf --adapter lora --out other --gguf", &["must end in .gguf"]);
    shell.succeed("inspect --model model.gguf --data data.jsonl");
    shell.succeed("estimate --model model.gguf");
    let answer = shell.succeed("generate --model merged --raw --prompt Once --max-tokens 3 --temperature 0");
    assert!(answer.contains("Once"), "{answer}");
    shell.write("cut.gguf", &std::fs::read(&gguf).unwrap()[..5000]);
    shell.fail("train --model cut.gguf --data data.jsonl --out x", &["cut.gguf: is cut short"]);
}

/// Real llama.cpp over files of ours: a merged model, and an adapter over its base. docs/testing.md says how to install it.
#[test]
fn llama_cpp_computes_what_was_merged() {
    let Some(llama_cpp) = std::env::var_os("LORAINE_LLAMA_CPP") else {
        eprintln!("skipped: LORAINE_LLAMA_CPP does not name the directory with llama.cpp");
        return;
    };
    let Some(model) = crate::common::shared("models/stories260K") else { return };
    let adapter = crate::common::shared("reference/lora_stories260K_f32/adapter_final").unwrap();
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let source = Source::open(&model).unwrap();
    let loraine::lora::adapter_file::LoadedAdapter { config, modules, tensors } =
        adapter_file::load(&adapter, &source.config).unwrap();
    adapter_file::save(&path("nothing"), &config, &modules, &without_effect(&tensors)).unwrap();
    merge_gguf(&model, &path("nothing"), &path("base.gguf"), GgufFloat::F32);
    merge_gguf(&model, &adapter, &path("merged.gguf"), GgufFloat::F32);
    let settings = AdapterSettings { model: model.clone(), adapter, out: path("lora.gguf"), overwrite: false };
    gguf_adapter::export(&settings).unwrap();
    let tokenizer = Tokenizer::from_dir(&model, &source.config).unwrap();
    let ids = tokenizer.encode("Once upon a time", true).unwrap();
    let mut engine = open_engine(&model, BaseStorage::AsStored, &modules, &tensors, 64, 0);
    let ours = pollster::block_on(engine.logits(&whole_sequence(&ids))).unwrap();
    let run = |gguf: &str, lora: Option<&str>| {
        let mut command = Command::new("node");
        command.arg("tests/llama_cpp.mjs").arg(&llama_cpp).arg(path(gguf)).arg(format!("{ids:?}")).arg("16");
        let output = command.arg(path("logits")).args(lora.map(path)).output().expect("node runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let logits: Vec<f32> = bytemuck::pod_collect_to_vec(&std::fs::read(path("logits")).unwrap());
        (logits, report)
    };
    let (merged, report) = run("merged.gguf", None);
    assert_close("merged", &merged, &ours, 2e-5);
    let (over_base, of_adapter) = run("base.gguf", Some("lora.gguf"));
    assert_close("base and adapter", &over_base, &ours, 2e-5);
    assert_eq!(report["greedy"], of_adapter["greedy"]);
    let own = tokenizer.encode("Once upon a time, Äpfel", false).unwrap();
    assert_eq!(report["tokens"], serde_json::json!(own));
}
