//! The memory of full training, LoRA and QLoRA side by side.

use super::{ASSUMED_CAPABILITIES, Estimate, estimate};
use crate::Result;
use crate::model::config::ModelConfig;
use crate::quant::format::Float;
use crate::train::settings::{Method, RunSettings};

/// Tokens of the one sequence of a micro-batch.
pub const SEQ_LEN: usize = 512;

/// The estimates of full training, LoRA and QLoRA of a model in bf16: the default settings with micro-batches of one sequence of
/// [`SEQ_LEN`] tokens, on a common GPU.
///
/// # Errors
/// As [`estimate`].
pub fn methods(config: &ModelConfig) -> Result<[Estimate; 3]> {
    let of = |method| {
        let settings = RunSettings { method, batch_size: 1, ..RunSettings::default() };
        estimate(&settings, config, Float::Bf16, SEQ_LEN, ASSUMED_CAPABILITIES)
    };
    Ok([of(Method::Full)?, of(Method::Lora)?, of(Method::Qlora)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    #[test]
    fn each_method_takes_less_than_the_one_before() {
        // The sizes that the page shows, which has their configurations too: web/src/worker/lesson.ts.
        for (name, parameters) in
            [("llama-3.2-3b", 3_212_749_824), ("llama-2-7b", 6_738_415_616), ("llama-2-13b", 13_015_864_320)]
        {
            let [full, lora, qlora] = methods(&shapes::by_name(name).unwrap()).unwrap();
            assert_eq!(full.trained_parameters, parameters, "{name}");
            // Weights, gradients and two moments in f32; weights in bf16; and 4 bits with a scale for each block.
            assert!(full.total > 16 * parameters, "{name}: {full:?}");
            assert!((2 * parameters..3 * parameters).contains(&lora.total), "{name}: {lora:?}");
            assert!((parameters / 2..lora.total / 2).contains(&qlora.total), "{name}: {qlora:?}");
            assert!(name != "llama-2-7b" || qlora.total < 6_000_000_000, "{qlora:?}");
        }
    }
}
