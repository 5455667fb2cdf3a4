//! Text from a model: sessions, conversations, sampling, and generation over a cache of keys and values with an adapter
//! chosen per prompt.

pub mod adapter_names;
pub mod answer_text;
pub mod conversation;
pub mod end_tokens;
pub mod generator;
pub mod plan;
pub mod sampler;
pub mod session;
mod stop_strings;
pub mod text_format;
