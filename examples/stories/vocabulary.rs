//! The tokenizer, trained on the corpus, and the shape of the model.

use std::error::Error;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{Tokenizer, TokenizerBuilder};

const SIZE: usize = 768;
pub const BOS: u32 = 0;
pub const END: u32 = 1;
const SPECIAL: [&str; 4] = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"];
const TEMPLATE: &str = "{{- bos_token }}
{%- for message in messages %}
    {{- '<|' + message.role + '|>' + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}";

/// Byte-level BPE over the words of the chat records.
pub fn train(corpus: &[String]) -> Result<Tokenizer, Box<dyn Error + Send + Sync>> {
    let bytes = ByteLevel::new(false, true, true);
    let builder: TokenizerBuilder<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper> =
        TokenizerBuilder::new();
    let mut tokenizer = builder
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(bytes.into()))
        .with_post_processor(None)
        .with_decoder(Some(ByteLevel::default().into()))
        .build()?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(SIZE)
        .show_progress(false)
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, corpus.iter().map(|line| contents(line)))?;
    Ok(tokenizer.into())
}

/// What a record says, without its JSON.
fn contents(line: &str) -> String {
    let record: Value = serde_json::from_str(line).unwrap_or_default();
    let messages = record["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    messages.iter().filter_map(|message| message["content"].as_str()).collect::<Vec<_>>().join("\n")
}

pub fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "add_bos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 512,
        "chat_template": TEMPLATE,
    })
}

pub fn model_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": SIZE,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
        "bos_token_id": BOS,
        "eos_token_id": END,
        "torch_dtype": "bfloat16",
    })
}
