//! GGUF files: llama.cpp's quantizations of a model, its tokenizers, and adapters for it.

use std::path::{Path, PathBuf};

use crate::common::*;
use loraine::data::tokenizer::Tokenizer;
use loraine::model::config::ModelConfig;
use loraine::model::source::Source;
use loraine::model::tensors::{EMBEDDING, HEAD, tensors};
use loraine::network::base::BaseStorage;

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
        let (modules, tensors) = (Vec::new(), loraine::lora::factors::AdapterTensors { modules: Vec::new() });
        let mut engine = open_engine(&gguf, BaseStorage::AsStored, &modules, &tensors, 64, 0);
        let got = pollster::block_on(engine.logits(&whole_sequence(&ids))).unwrap();
        assert_close(name, &got, expected.find(&format!("{name}.f32.0")).unwrap(), 2e-5);
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
