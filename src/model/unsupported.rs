//! Models that people bring and that are not supported: what sets each apart, and the nearest model that is supported.

const MAMBA: &str = "has Mamba layers, which are not attention";
const LATENT: &str = "has multi-head latent attention (MLA)";
const ENCODER: &str = "is an encoder: its attention looks both ways, and it writes no text";
const ENCODER_DECODER: &str = "has an encoder beside its decoder";
const EXPERTS: &str = "is a mixture of experts";
const OTHER_EXPERTS: &str = "is a mixture of experts of another kind than Qwen3-MoE";
const LAYER_NORM: &str = "has LayerNorm in place of RMSNorm";

/// Model types, what sets them apart, and the nearest supported model.
const KNOWN: [(&[&str], &str, &str); 30] = [
    (&["mamba", "mamba2", "falcon_mamba"], MAMBA, "SmolLM2 or Llama 3.2"),
    (&["falcon_h1"], MAMBA, "Falcon 3"),
    (&["nemotron_h"], MAMBA, "Llama 3.1 8B"),
    (&["jamba", "bamba", "zamba", "zamba2", "plamo2"], MAMBA, "Llama 3.2"),
    (&["deepseek_v2", "deepseek_v3", "deepseek_v4", "kimi_k2"], LATENT, "DeepSeek-R1-Distill-Qwen or -Llama"),
    (&["glm4_moe_lite"], LATENT, "GLM-4-9B-0414"),
    (&["minicpm3"], LATENT, "Qwen3 4B"),
    (&["gemma3n", "gemma3n_text"], "keeps four streams beside each other (AltUp)", "Gemma 3 4B"),
    (&["gemma4_unified"], "has one decoder for text, images and sound", "Gemma 4 E2B or E4B"),
    (&["paligemma", "t5gemma"], "attends to its prompt in both directions", "Gemma 3 4B"),
    (
        &["bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "deberta-v2", "electra", "mpnet"],
        ENCODER,
        "SmolLM2",
    ),
    (&["t5", "mt5", "bart", "mbart", "pegasus", "marian", "m2m_100"], ENCODER_DECODER, "Gemma 3 270M or Qwen3 0.6B"),
    (&["whisper"], ENCODER_DECODER, "none that hears; Qwen3 0.6B for text"),
    (&["mixtral"], EXPERTS, "Mistral 7B"),
    (
        &["qwen2_moe", "qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"],
        OTHER_EXPERTS,
        "Qwen3-30B-A3B, or Qwen3 8B",
    ),
    (&["llama4", "llama4_text"], EXPERTS, "Qwen3 8B or Llama 3.1 8B"),
    (&["olmoe"], EXPERTS, "OLMo 2 1B"),
    (&["phimoe"], EXPERTS, "Phi-3.5-mini"),
    (&["granitemoe", "granitemoeshared"], EXPERTS, "Granite 3.3 2B"),
    (&["ernie4_5_moe", "glm4_moe", "hunyuan_v1_moe"], EXPERTS, "the dense models of other sizes, such as Qwen3 8B"),
    (&["lfm3"], "has norms around its convolutions and gates on its attention", "LFM2"),
    (&["olmo_hybrid"], "has a gated delta rule of another form than Qwen3.5's", "OLMo 2 or Qwen3.5"),
    (&["gpt2", "opt", "gpt_neo"], LAYER_NORM, "SmolLM2 135M"),
    (&["gpt_neox", "gptj", "bloom", "mpt", "stablelm", "nemotron"], LAYER_NORM, "Llama 3.2 1B"),
    (&["falcon"], LAYER_NORM, "Falcon 3"),
    (&["starcoder2"], LAYER_NORM, "Qwen2.5-Coder"),
    (&["phi"], LAYER_NORM, "Phi-3.5-mini"),
    (&["cohere", "cohere2"], LAYER_NORM, "Qwen3 8B"),
    (&["olmo"], LAYER_NORM, "OLMo 2 1B"),
    (&["mllama", "mllama_text_model"], "has layers that attend to images", "Llama 3.1 8B or Llama 3.2 3B"),
];

/// The reason against a model type that is not supported, and the nearest type that is; None where it is not known.
pub(super) fn reason(model_type: &str) -> Option<String> {
    let (_, what, nearest) = KNOWN.iter().find(|(types, ..)| types.contains(&model_type))?;
    Some(format!("it {what}; the nearest supported model is {nearest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::FAMILIES;

    #[test]
    fn no_supported_type_is_listed_and_none_twice() {
        let all: Vec<&str> = KNOWN.iter().flat_map(|(types, ..)| types.iter().copied()).collect();
        for (i, name) in all.iter().enumerate() {
            assert!(!all[..i].contains(name), "{name} stands there twice");
            let supported = FAMILIES.iter().any(|family| family.model_type == *name);
            assert!(!supported, "{name} is supported");
        }
        assert!(
            reason("deepseek_v3")
                .unwrap()
                .contains("latent attention (MLA); the nearest supported model is DeepSeek-R1")
        );
        assert_eq!(reason("llama"), None);
    }
}
