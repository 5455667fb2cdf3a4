//! Model directories as they are found in the field, against those that they are made from.

use std::path::Path;

use crate::common::cli::{Shell, copy_files, random_lines, token_lines};
use crate::common::{fixture, shared};
use loraine::quant::format::Code4;
use loraine::quant::{self, Scales};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

/// A tensor by name: its type, shape and bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn read(path: &Path) -> Vec<Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<Tensor> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

fn write(path: &Path, tensors: &[Tensor]) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// Changes an object of JSON in a file.
fn change(path: &Path, with: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let mut object: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    with(object.as_object_mut().unwrap());
    std::fs::write(path, object.to_string()).unwrap();
}

/// A shell with data of 96 tokens and the fixture `llama_untied` in one file, in `model`.
fn shell() -> Shell {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(12, 96, 7));
    let from = fixture("llama_untied");
    std::fs::create_dir(shell.path("model")).unwrap();
    std::fs::copy(from.join("config.json"), shell.path("model/config.json")).unwrap();
    let mut tensors: Vec<Tensor> =
        [1, 2].iter().flat_map(|i| read(&from.join(format!("model-0000{i}-of-00002.safetensors")))).collect();
    tensors.sort();
    write(&shell.path("model/model.safetensors"), &tensors);
    shell
}

fn loss(shell: &Shell, model: &str) -> f64 {
    let text = shell.succeed(&format!("eval --model {model} --data data.jsonl --json"));
    serde_json::from_str::<Value>(&text).unwrap()["loss"].as_f64().unwrap()
}

/// Copies `model` to `name` and changes its tensors.
fn copy(shell: &Shell, name: &str, with: impl FnOnce(&mut Vec<Tensor>)) {
    copy_files(&shell.path("model"), &shell.path(name));
    let path = shell.path(&format!("{name}/model.safetensors"));
    let mut tensors = read(&path);
    with(&mut tensors);
    write(&path, &tensors);
}

/// Replaces a matrix by its values in 4 bits, decoded, and gives the parts in which bitsandbytes stores them.
fn quantized(tensor: &mut Tensor, code: Code4, double: bool) -> Vec<Tensor> {
    let (name, _, shape, bytes) = tensor;
    let values = floats(bytes);
    let packed = quant::quantize(&values, code, double);
    *bytes = bytemuck::cast_slice(&quant::dequantize(&packed, code, values.len())).to_vec();
    let mut state = json!({ "quant_type": code.name(), "blocksize": 64, "dtype": "float32", "shape": shape });
    let part = |suffix: &str, dtype, bytes: &[u8], count: usize| {
        (format!("{name}{suffix}"), dtype, vec![count], bytes.to_vec())
    };
    let mut parts = vec![(name.clone(), Dtype::U8, vec![packed.packed.len(), 1], packed.packed.clone())];
    let table = quant::code_table(code);
    parts.push(part(".quant_map", Dtype::F32, bytemuck::cast_slice(&table.values), table.values.len()));
    match &packed.scales {
        Scales::Plain(absmax) => parts.push(part(".absmax", Dtype::F32, bytemuck::cast_slice(absmax), absmax.len())),
        Scales::Nested { codes, absmax, offset } => {
            parts.push(part(".absmax", Dtype::U8, codes, codes.len()));
            parts.push(part(".nested_absmax", Dtype::F32, bytemuck::cast_slice(absmax), absmax.len()));
            let map = quant::dynamic_map();
            parts.push(part(".nested_quant_map", Dtype::F32, bytemuck::cast_slice(map), map.len()));
            state["nested_blocksize"] = 256.into();
            state["nested_offset"] = f64::from(*offset).into();
        }
    }
    let state = state.to_string().into_bytes();
    parts.push(part(&format!(".quant_state.bitsandbytes__{code}"), Dtype::U8, &state, state.len()));
    parts
}

/// Each matrix is read in the form that the files hold it in: 4 bits with one or two levels of scales, or floats.
#[test]
fn storage_is_chosen_matrix_by_matrix() {
    let shell = shell();
    let mut packed = Vec::new();
    copy(&shell, "decoded", |tensors| {
        for tensor in
            tensors.iter_mut().filter(|tensor| tensor.0.ends_with("proj.weight") || tensor.0.starts_with("lm_head"))
        {
            // The queries stay as they are.
            if !tensor.0.contains("q_proj") {
                let name = tensor.0.clone();
                packed.push((name.clone(), quantized(tensor, Code4::Nf4, name.contains("mlp"))));
            }
        }
    });
    copy(&shell, "packed", |tensors| {
        tensors.retain(|tensor| packed.iter().all(|(name, _)| *name != tensor.0));
        tensors.extend(packed.iter().flat_map(|(_, parts)| parts.clone()));
    });
    let want = loss(&shell, "decoded");
    assert!((want - loss(&shell, "model")).abs() > 1e-4, "quantization shows in the loss");
    // As transformers writes it, with the head among the quantized modules; and as it was written of old, without a method.
    for form in [
        json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["q_proj"] }),
        json!({ "load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": null }),
        json!({ "load_in_4bit": true }),
    ] {
        change(&shell.path("packed/config.json"), |config| {
            _ = config.insert("quantization_config".to_owned(), form.clone())
        });
        let got = loss(&shell, "packed");
        assert!((got / want - 1.0).abs() < 1e-5, "{got} instead of {want} with {form}");
    }
    // Trained on as it is: the floats that were left so stay floats, and the adapter merges into the decoded matrices.
    let info: Value = serde_json::from_str(&shell.succeed("info --model packed --json")).unwrap();
    assert_eq!(info["model"]["dtypes"], json!(["f32", "nf4"]));
    shell.fail("train --model packed --data data.jsonl --steps 2 --out x --method lora", &["choose --method qlora"]);
    shell.fail(
        "train --model packed --data data.jsonl --steps 2 --out x --quant fp4",
        &["in another form", "--quant nf4"],
    );
    shell.succeed("train --model packed --data data.jsonl --steps 2 --rank 2 --out run");
    shell.succeed("merge --model packed --adapter run --out merged");
}

#[test]
fn a_checkpoint_of_transformers_with_skipped_modules_has_its_loss() {
    let Some(case) = shared("cases/bnb-4bit-with-skipped-modules") else { return };
    let shell = Shell::new();
    let data = case.join("one.jsonl");
    let text =
        shell.succeed(&format!("eval --model {} --data {} --json", case.join("model").display(), data.display()));
    let loss = serde_json::from_str::<Value>(&text).unwrap()["loss"].as_f64().unwrap();
    // Computed with bitsandbytes' own functions.
    assert!((loss - 1.7385).abs() < 1e-4, "{loss}");
}

#[test]
fn names_without_the_models_prefix_are_read() {
    let shell = shell();
    let want = loss(&shell, "model");
    copy(&shell, "bare", |tensors| {
        for (name, ..) in tensors.iter_mut() {
            *name = name.strip_prefix("model.").unwrap_or(name).to_owned();
        }
    });
    assert_eq!(loss(&shell, "bare"), want);
    shell.succeed("quantize --model bare --out bare-nf4");
    shell.succeed("quantize --model model --out nf4");
    assert!(shell.read("bare-nf4/model.safetensors") == shell.read("nf4/model.safetensors"));
}

/// A head of its own beside `tie_word_embeddings` is used unless it equals the embedding, as transformers does.
#[test]
fn the_files_decide_about_a_tied_head() {
    let shell = shell();
    let tie = |name: &str, tied: bool| {
        change(&shell.path(&format!("{name}/config.json")), |config| {
            _ = config.insert("tie_word_embeddings".to_owned(), tied.into())
        });
    };
    let untied = loss(&shell, "model");
    copy(&shell, "own-head", |_| ());
    tie("own-head", true);
    assert_eq!(loss(&shell, "own-head"), untied);
    let head_is_embedding = |tensors: &mut Vec<Tensor>| {
        let embedding = tensors.iter().find(|t| t.0.starts_with("model.embed_tokens")).unwrap().3.clone();
        tensors.iter_mut().find(|t| t.0.starts_with("lm_head")).unwrap().3 = embedding;
    };
    copy(&shell, "equal", head_is_embedding);
    let tied = loss(&shell, "equal");
    assert_ne!(tied, untied);
    tie("equal", true);
    assert_eq!(loss(&shell, "equal"), tied);
    copy(&shell, "head-alone", |tensors| {
        head_is_embedding(tensors);
        tensors.retain(|tensor| !tensor.0.starts_with("model.embed_tokens"));
    });
    tie("head-alone", true);
    assert_eq!(loss(&shell, "head-alone"), tied);
    // What is made of such a model says how it is.
    shell.succeed("quantize --model own-head --out nf4");
    let config: Value = serde_json::from_slice(&shell.read("nf4/config.json")).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    shell.succeed("quantize --model equal --out nf4-tied");
    let names: Vec<String> =
        read(&shell.path("nf4-tied/model.safetensors")).into_iter().map(|tensor| tensor.0).collect();
    assert!(!names.iter().any(|name| name.starts_with("lm_head")));
}

#[test]
fn numbers_that_json_does_not_have_do_no_harm_where_nobody_needs_them() {
    let shell = shell();
    let path = shell.path("model/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('{', "{\"router_limit\": [Infinity, -Infinity, NaN],", 1)).unwrap();
    shell.succeed("quantize --model model --out nf4");
    let written = String::from_utf8(shell.read("nf4/config.json")).unwrap();
    assert!(written.contains("Infinity,") && written.contains("-Infinity,") && written.contains("NaN\n"), "{written}");
    std::fs::write(&path, text).unwrap();
    change(&path, |config| _ = config.insert("rms_norm_eps".to_owned(), "here".into()));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"here\"", "NaN")).unwrap();
    shell.fail("info --model model", &["`rms_norm_eps`: is \"NaN\", but must be a number above 0"]);
}

#[test]
fn directories_that_are_no_model_are_named_for_what_they_are() {
    let shell = shell();
    copy_files(&fixture("llama_tied").join("adapter"), &shell.path("adapter"));
    shell.fail("info --model adapter", &["adapter: is an adapter, not a model", "--model", "--adapter adapter"]);
    std::fs::remove_file(shell.path("model/model.safetensors")).unwrap();
    shell.write("model/pytorch_model.bin", "x");
    shell.fail(
        "eval --model model --data data.jsonl",
        &["pytorch_model.bin is not read", "python -c", "a, b = 'model', 'model-safetensors'"],
    );
    shell.write("model/model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n");
    shell.fail("eval --model model --data data.jsonl", &["is a Git LFS pointer", "--model owner/name"]);
}

#[test]
fn a_tokenizer_may_have_more_tokens_than_the_embedding_and_need_no_json() {
    let Some(stories) = shared("models/stories260K") else { return };
    let shell = Shell::new();
    shell.write(
        "plain.jsonl",
        "{\"text\": \"Once upon a time, there was a caf\u{e9}.\"}\n{\"text\": \"Two  spaces\"}\n",
    );
    let eval = |model: &str, data: &str| format!("eval --model {model} --data {data} --json");
    let want = shell.succeed(&eval(stories.to_str().unwrap(), "plain.jsonl"));
    copy_files(&stories, &shell.path("more"));
    change(&shell.path("more/tokenizer.json"), |tokenizer| {
        let pad = json!({ "id": 512, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true });
        tokenizer["added_tokens"].as_array_mut().unwrap().push(pad);
    });
    assert_eq!(shell.succeed(&eval("more", "plain.jsonl")), want);
    shell.write("pad.jsonl", "{\"text\": \"Once\"}\n{\"text\": \"upon [PAD]\"}\n");
    shell.fail(&eval("more", "pad.jsonl"), &["pad.jsonl, line 2", "the token `[PAD]` (512)", "has 512 rows"]);
    shell.fail("generate --model more --prompt [PAD] --max-tokens 1", &["the token `[PAD]` (512)"]);
    copy_files(&stories, &shell.path("sentencepiece"));
    std::fs::remove_file(shell.path("sentencepiece/tokenizer.json")).unwrap();
    assert_eq!(shell.succeed(&eval("sentencepiece", "plain.jsonl")), want);
    shell.write("ids.jsonl", token_lines([&[1u32, 2, 3][..]]));
    shell.succeed(&eval("sentencepiece", "ids.jsonl"));
}
