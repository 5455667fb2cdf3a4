//! Phi-3, Phi-3.5 and Phi-4-mini: Llama with fused linear layers, of which a part of each head may be rotated.

use crate::model::family::{Family, PLAIN, RopeRule, SlidingWindows};
use crate::model::modules::{Fused, Projection};

/// Gate and up as one linear layer.
pub(super) const GATE_UP: Fused = Fused { path: "mlp.gate_up_proj", parts: &[Projection::Gate, Projection::Up] };

pub(super) static FAMILY: Family = Family {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    members: &["Phi-3.5-mini", "Phi-4-mini"],
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    fused: &[Fused { path: "self_attn.qkv_proj", parts: &[Projection::Q, Projection::K, Projection::V] }, GATE_UP],
    rope: RopeRule { partial: Some(1.0), ..PLAIN.rope },
    sliding_windows: SlidingWindows::EveryLayer { default: None },
    bos_token_id: Some(1),
    eos_token_id: Some(32_000),
    ..PLAIN
};
