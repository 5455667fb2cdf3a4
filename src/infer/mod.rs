//! Text from a model: sampling, and generation over a cache of keys and values with adapters chosen per prompt.

pub mod conversation;
pub mod end_tokens;
pub mod generator;
pub mod plan;
pub mod sampler;
