//! The operations, one file each: the formula, the typed parameters, the functions that check shapes and record dispatches, the CPU
//! twin written from the formula, and the tests that compare the two.
//!
//! Every operation lists its kernels in all variants. `tests/it/shaders.rs` holds the list to the files of `shaders/`, and the
//! parameters of each kernel to the layout in its shader.

pub mod adamw;
pub mod adamw8bit;
pub mod add;
pub mod attention;
pub mod bf16;
pub mod bias_sum;
pub mod causal_conv;
pub mod column_gradient;
pub mod columns;
pub mod cross_entropy;
pub mod delta_rule;
pub mod distillation;
pub mod dora;
pub mod dropout;
mod elementwise;
pub mod embedding;
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod experiment;
pub mod experts;
pub mod gated_norm;
pub mod glu;
pub mod kv_cache;
pub(crate) mod lib_parts;
pub mod linear;
pub mod lion;
pub mod lora_gradient;
pub mod noise;
pub mod output_gate;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod scale;
pub mod short_conv;
#[cfg(test)]
pub(crate) mod testing;
mod variant_family;
pub mod weight;
pub mod weight_gradient;

pub(crate) use variant_family::VariantFamily;

use crate::gpu::Kernel;

/// Every kernel of the crate in every variant, for the tests that validate their texts.
pub fn kernels() -> Vec<Kernel> {
    [
        adamw::kernels(),
        adamw8bit::kernels(),
        lion::kernels(),
        add::kernels(),
        attention::kernels(),
        bf16::kernels(),
        bias_sum::kernels(),
        column_gradient::kernels(),
        columns::kernels(),
        cross_entropy::kernels(),
        delta_rule::kernels(),
        distillation::kernels(),
        dora::kernels(),
        dropout::kernels(),
        embedding::kernels(),
        experts::kernels(),
        gated_norm::kernels(),
        glu::kernels(),
        linear::kernels(),
        lora_gradient::kernels(),
        noise::kernels(),
        output_gate::kernels(),
        quantize::kernels(),
        rms_norm::kernels(),
        rope::kernels(),
        rows::kernels(),
        scale::kernels(),
        short_conv::kernels(),
        weight_gradient::kernels(),
    ]
    .concat()
}
