//! The decoder families, one file each. A family whose formulas are there is added by a file beside this one and its entry in
//! [`FAMILIES`].

mod ernie;
mod exaone4;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod gpt_oss;
mod granite;
mod hunyuan;
mod lfm2;
mod llama;
mod ministral3;
mod mistral;
mod olmo;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod smollm3;

use super::family::Family;
use super::wrapper;

/// Every supported family, in the order of messages.
pub static FAMILIES: [&Family; 25] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &ministral3::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &qwen3_5::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gemma4::FAMILY,
    &smollm3::FAMILY,
    &phi3::FAMILY,
    &glm4::GLM,
    &glm4::GLM4,
    &granite::FAMILY,
    &granite::DENSE,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &exaone4::FAMILY,
    &hunyuan::FAMILY,
    &ernie::FAMILY,
    &lfm2::FAMILY,
    &lfm2::WITH_EXPERTS,
    &gpt_oss::FAMILY,
];

/// The supported families as a part of a sentence.
pub(super) fn supported() -> String {
    let describe = |family: &&Family| match family.members {
        [] => format!("{} ({})", family.architecture, family.model_type),
        members => {
            format!("{} ({}; {} among them)", family.architecture, family.model_type, members.join(" and "))
        }
    };
    let described: Vec<String> = FAMILIES.iter().map(describe).collect();
    match described.split_last() {
        Some((last, rest)) if !rest.is_empty() => {
            format!("supported are {} and {last}, {}", rest.join(", "), wrapper::supported())
        }
        _ => format!("supported is {}", described.concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_and_differ() {
        for (i, family) in FAMILIES.iter().enumerate() {
            assert!(!family.model_type.is_empty() && family.architecture.ends_with("ForCausalLM"), "{family:?}");
            let same =
                |other: &&Family| other.model_type == family.model_type || other.architecture == family.architecture;
            assert!(!FAMILIES[..i].iter().any(same), "{family:?}");
        }
        let text = supported();
        assert!(text.contains("LlamaForCausalLM (llama; SmolLM2 and TinyLlama among them), Mistral"), "{text}");
        assert!(FAMILIES.iter().all(|family| text.contains(family.architecture)), "{text}");
    }
}
