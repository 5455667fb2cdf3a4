//! The published sizes of models that people ask about by name, for estimates before anything is downloaded.

use std::path::Path;

use super::config::ModelConfig;
use crate::setting::MODEL;
use crate::{Error, Result};

/// Name, model type, [hidden, feed-forward, layers], [heads, key-value heads, head size], vocabulary, context, tied head.
type Shape = (&'static str, &'static str, [usize; 3], [usize; 3], usize, usize, bool);

const SHAPES: [Shape; 44] = [
    ("llama-2-7b", "llama", [4096, 11008, 32], [32, 32, 128], 32_000, 4096, false),
    ("llama-2-13b", "llama", [5120, 13824, 40], [40, 40, 128], 32_000, 4096, false),
    ("llama-3.2-1b", "llama", [2048, 8192, 16], [32, 8, 64], 128_256, 131_072, true),
    ("llama-3.2-3b", "llama", [3072, 8192, 28], [24, 8, 128], 128_256, 131_072, true),
    ("llama-3.1-8b", "llama", [4096, 14336, 32], [32, 8, 128], 128_256, 131_072, false),
    ("qwen2.5-0.5b", "qwen2", [896, 4864, 24], [14, 2, 64], 151_936, 32_768, true),
    ("qwen2.5-1.5b", "qwen2", [1536, 8960, 28], [12, 2, 128], 151_936, 32_768, true),
    ("qwen2.5-3b", "qwen2", [2048, 11008, 36], [16, 2, 128], 151_936, 32_768, true),
    ("qwen2.5-7b", "qwen2", [3584, 18944, 28], [28, 4, 128], 152_064, 32_768, false),
    ("qwen3-0.6b", "qwen3", [1024, 3072, 28], [16, 8, 128], 151_936, 40_960, true),
    ("qwen3-1.7b", "qwen3", [2048, 6144, 28], [16, 8, 128], 151_936, 40_960, true),
    ("qwen3-4b", "qwen3", [2560, 9728, 36], [32, 8, 128], 151_936, 40_960, true),
    ("qwen3-8b", "qwen3", [4096, 12288, 36], [32, 8, 128], 151_936, 40_960, false),
    ("qwen3-30b-a3b", "qwen3_moe", [2048, 6144, 48], [32, 4, 128], 151_936, 40_960, false),
    ("qwen3.5-0.8b", "qwen3_5_text", [1024, 3584, 24], [8, 2, 256], 248_320, 262_144, true),
    ("qwen3.5-2b", "qwen3_5_text", [2048, 6144, 24], [8, 2, 256], 248_320, 262_144, true),
    ("qwen3.5-9b", "qwen3_5_text", [4096, 12288, 32], [16, 4, 256], 248_320, 262_144, false),
    ("smollm2-135m", "llama", [576, 1536, 30], [9, 3, 64], 49_152, 8192, true),
    ("smollm2-360m", "llama", [960, 2560, 32], [15, 5, 64], 49_152, 8192, true),
    ("smollm2-1.7b", "llama", [2048, 8192, 24], [32, 32, 64], 49_152, 8192, true),
    ("mistral-7b", "mistral", [4096, 14336, 32], [32, 8, 128], 32_000, 32_768, false),
    ("tinyllama-1.1b", "llama", [2048, 5632, 22], [32, 4, 64], 32_000, 2048, false),
    ("gemma-2-2b", "gemma2", [2304, 9216, 26], [8, 4, 256], 256_000, 8192, true),
    ("gemma-2-9b", "gemma2", [3584, 14336, 42], [16, 8, 256], 256_000, 8192, true),
    ("gemma-3-270m", "gemma3_text", [640, 2048, 18], [4, 1, 256], 262_144, 32_768, true),
    ("gemma-3-1b", "gemma3_text", [1152, 6912, 26], [4, 1, 256], 262_144, 32_768, true),
    ("gemma-3-4b", "gemma3_text", [2560, 10240, 34], [8, 4, 256], 262_208, 131_072, true),
    ("gemma-4-e2b", "gemma4_text", [1536, 6144, 35], [8, 1, 256], 262_144, 131_072, true),
    ("gemma-4-e4b", "gemma4_text", [2560, 10240, 42], [8, 2, 256], 262_144, 131_072, true),
    ("ministral-3-3b", "ministral3", [3072, 9216, 26], [32, 8, 128], 131_072, 262_144, true),
    ("phi-3.5-mini", "phi3", [3072, 8192, 32], [32, 32, 96], 32_064, 131_072, false),
    ("phi-4-mini", "phi3", [3072, 8192, 32], [24, 8, 128], 200_064, 131_072, true),
    ("smollm3-3b", "smollm3", [2048, 11008, 36], [16, 4, 128], 128_256, 65_536, true),
    ("granite-3.3-2b", "granite", [2048, 8192, 40], [32, 8, 64], 49_159, 131_072, true),
    ("granite-3.3-8b", "granite", [4096, 12800, 40], [32, 8, 128], 49_159, 131_072, true),
    ("olmo-2-1b", "olmo2", [2048, 8192, 16], [16, 16, 128], 100_352, 4096, false),
    ("olmo-2-7b", "olmo2", [4096, 11008, 32], [32, 32, 128], 100_352, 4096, false),
    ("lfm2-350m", "lfm2", [1024, 4608, 16], [16, 8, 64], 65_536, 128_000, true),
    ("lfm2-700m", "lfm2", [1536, 6912, 16], [24, 8, 64], 65_536, 128_000, true),
    ("lfm2-1.2b", "lfm2", [2048, 8192, 16], [32, 8, 64], 65_536, 128_000, true),
    ("lfm2-2.6b", "lfm2", [2048, 10752, 30], [32, 8, 64], 65_536, 128_000, true),
    ("lfm2-8b-a1b", "lfm2_moe", [2048, 7168, 24], [32, 8, 64], 65_536, 128_000, true),
    ("gpt-oss-20b", "gpt_oss", [2880, 2880, 24], [64, 8, 64], 201_088, 131_072, false),
    ("exaone-4.0-1.2b", "exaone4", [2048, 4096, 30], [32, 8, 64], 102_400, 65_536, true),
];

/// The names that [`by_name`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.0)
}

/// The sizes of a published model; rope scaling is left out, since it changes no size.
///
/// # Errors
/// A name that there is not, with those that there are.
pub fn by_name(name: &str) -> Result<ModelConfig> {
    let Some((_, model_type, [hidden, ffn, layers], [heads, kv_heads, head_dim], vocabulary, context, tied)) =
        SHAPES.into_iter().find(|shape| shape.0.eq_ignore_ascii_case(name))
    else {
        let problem = match nearest(name) {
            Some(near) => format!("`{name}` is neither a model directory nor a known model; did you mean `{near}`?"),
            None => {
                let known: Vec<_> = names().collect();
                format!("`{name}` is neither a model directory nor one of {}", known.join(", "))
            }
        };
        return Err(Error::setting(MODEL, problem));
    };
    // The layers of LFM2 that have attention.
    let attention = match layers {
        24 => vec![2, 6, 10, 14, 18, 21],
        30 => vec![2, 5, 9, 12, 15, 18, 21, 24],
        _ => vec![2, 5, 8, 10, 12, 14],
    };
    // The layers of Gemma 4 without a window, and those without keys and values of their own.
    let (pattern, shared) = if layers == 35 { (5, 20) } else { (6, 18) };
    let mut json = serde_json::json!({
        "block_auto_adjust_ff_dim": false, "full_attn_idxs": attention,
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocabulary,
        "max_position_embeddings": context, "tie_word_embeddings": tied, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    });
    if model_type == "gemma4_text" {
        json["sliding_window_pattern"] = pattern.into();
        json["num_kv_shared_layers"] = shared.into();
        json["use_double_wide_mlp"] = (layers == 35).into();
    }
    if model_type == "gpt_oss" {
        json["num_local_experts"] = 32.into();
        json["rope_scaling"] = serde_json::json!({"rope_type": "yarn", "factor": 32.0, "truncate": false});
    }
    if model_type == "qwen3_5_text" {
        // A head of values for each head of keys, and in larger models two.
        json["linear_num_value_heads"] = if layers == 24 { 16 } else { 32 }.into();
    }
    ModelConfig::from_json(Path::new(name), &json.to_string())
}

/// The known name that `name` is nearly, or that it holds between an owner and a suffix: `Qwen/Qwen3-4B-Instruct`.
pub fn nearest(name: &str) -> Option<&'static str> {
    let plain = |text: &str| text.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let wanted = plain(name.rsplit('/').next().unwrap_or(name));
    if let Some(within) = names().filter(|known| wanted.starts_with(&plain(known))).max_by_key(|known| known.len()) {
        return Some(within);
    }
    let distance = |known: &str| strsim::damerau_levenshtein(&plain(known), &wanted);
    let near = names().min_by_key(|known| distance(known))?;
    (distance(near) <= 2).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tensors;

    fn parameters(name: &str) -> u64 {
        tensors::parameters(&by_name(name).unwrap())
    }

    #[test]
    fn every_name_has_the_parameters_that_its_model_card_gives() {
        for (name, count) in [
            ("llama-2-7b", 6_738_415_616),
            ("llama-2-13b", 13_015_864_320),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.1-8b", 8_030_261_248),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen3-0.6b", 596_049_920),
            ("qwen3-30b-a3b", 30_532_122_624),
            ("qwen3.5-0.8b", 752_393_024),
            ("qwen3.5-2b", 1_881_825_088),
            ("qwen3.5-9b", 8_953_803_264),
            ("smollm2-135m", 134_515_008),
            ("mistral-7b", 7_241_732_096),
            ("tinyllama-1.1b", 1_100_048_384),
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-3-270m", 268_098_176),
            ("gemma-3-1b", 999_885_952),
            // With the factors of layers, which transformers counts as buffers.
            ("gemma-4-e2b", 4_628_569_344 + 35),
            ("gemma-4-e4b", 7_463_013_376 + 42),
            ("phi-3.5-mini", 3_821_079_552),
            ("phi-4-mini", 3_836_021_760),
            ("lfm2-350m", 354_483_968),
            ("lfm2-700m", 742_489_344),
            ("lfm2-1.2b", 1_170_340_608),
            ("lfm2-2.6b", 2_569_272_320),
            // With the biases of experts, which transformers counts as buffers.
            ("gpt-oss-20b", 20_914_757_184),
            ("lfm2-8b-a1b", 8_339_929_856 + 704),
        ] {
            assert_eq!(parameters(name), count, "{name}");
        }
        assert!(names().all(|name| parameters(name) > 100_000_000));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        assert!(by_name("gpt-9").unwrap_err().to_string().contains("tinyllama-1.1b"));
        assert!(by_name("qwen-3-4b").unwrap_err().to_string().contains("did you mean `qwen3-4b`?"));
        assert_eq!(nearest("Qwen/Qwen3-4B-Instruct-2507"), Some("qwen3-4b"));
        assert_eq!((nearest("lama-3.2-1b"), nearest("bert-base")), (Some("llama-3.2-1b"), None));
    }
}
