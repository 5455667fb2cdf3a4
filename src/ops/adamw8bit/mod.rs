//! AdamW with both moments in 8 bits (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"): a moment is a code of
//! bitsandbytes' dynamic map, signed for `m` and unsigned for `v`, times its block's largest magnitude. A step decodes a block of 256,
//! is that of [`super::adamw`] in f32, and stores the nearest codes by the new scales.
//!
//! One rule differs from bitsandbytes: a positive `v` never takes the code of 0. Otherwise an element whose gradients are small beside
//! its block's largest would take a step of `m / eps` (the zero point problem of Li et al. 2023, "Memory Efficient Optimizers with
//! 4-bit States").

use super::VariantFamily;
use super::lib_parts::REDUCE;
use crate::gpu::{Kernel, Recorder, View, params};
use crate::quant::format::NESTED_BLOCK;
use crate::quant::{dynamic_map, unsigned_dynamic_map};

/// Elements that share the two scales.
pub const BLOCK: u64 = 256;
// The codes are those of the second quantization too, and so is the length of its blocks.
const _: () = assert!(BLOCK == NESTED_BLOCK);
const QUADS_PER_BLOCK: u32 = BLOCK as u32 / 4;
/// The codes of 0 in both maps.
pub const ZERO_CODES: [u8; 2] = [127, 0];

/// The moments of one flat range.
#[derive(Clone, Copy, Debug)]
pub struct CodedMoments {
    /// The codes of `m` and of `v`, one byte per element.
    pub codes: [View; 2],
    /// For each block the scale of `m` and the scale of `v`, in f32.
    pub scales: View,
}

params! {
    struct Params {
        quads: u32,
        blocks: u32,
    }
}

fn kernel(family: VariantFamily) -> Kernel {
    let kernel = match family {
        VariantFamily::Tiles => Kernel::new::<Params>("adamw8bit_tiles", shader!("adamw8bit_tiles.wgsl"))
            .part(REDUCE)
            .constant("WG_SIZE", QUADS_PER_BLOCK),
        VariantFamily::Lanes | VariantFamily::Broadcast => {
            Kernel::new::<Params>("adamw8bit_lanes", shader!("adamw8bit_lanes.wgsl"))
                .constant("WG_SIZE", VariantFamily::LANES)
        }
    };
    kernel
        .part(shader!("lib/adamw8bit.wgsl"))
        .part(shader!("lib/optimizer.wgsl"))
        .part(shader!("lib/adamw.wgsl"))
        .part(shader!("lib/dynamic_code.wgsl"))
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(VariantFamily::Tiles), kernel(VariantFamily::Lanes)]
}

/// The contents of the `tables` view of [`step`]: the values of the signed codes and of the unsigned ones, then for each value but the
/// last of a map the middle between it and the next.
pub fn tables() -> [f32; 1024] {
    let mut tables = [0.0; 1024];
    for (at, map) in [dynamic_map(), unsigned_dynamic_map()].into_iter().enumerate() {
        tables[256 * at..256 * (at + 1)].copy_from_slice(map);
        for (bound, pair) in tables[512 + 256 * at..].iter_mut().zip(map.windows(2)) {
            *bound = 0.5 * (pair[0] + pair[1]);
        }
    }
    tables
}

/// Blocks of a range of `elements`.
pub fn blocks(elements: u64) -> u64 {
    elements.div_ceil(BLOCK)
}

/// One step over a flat range of parameters and its gradients of the same length; `state` comes from
/// [`super::adamw::grad_norm`], `hyper` holds a [`super::adamw::Hyper`], `tables` the values of [`tables`].
pub fn step(
    rec: &mut Recorder,
    params: View,
    grads: View,
    moments: CodedMoments,
    tables: View,
    state: View,
    hyper: View,
) {
    assert!(params.bytes == grads.bytes && params.bytes.is_multiple_of(16), "{params:?} and {grads:?}");
    let elements = params.bytes / 4;
    let CodedMoments { codes: [first, second], scales } = moments;
    assert!([first, second].iter().all(|codes| codes.bytes >= elements) && scales.bytes >= 8 * blocks(elements));
    let count = blocks(elements) as u32;
    let family = VariantFamily::of(&rec.capabilities);
    let per_group = if family == VariantFamily::Tiles { 1 } else { VariantFamily::LANES };
    let groups = rec.fold(u64::from(count.div_ceil(per_group)));
    let views = [grads, state, hyper, tables, params, first, second, scales];
    let params = Params { quads: (elements / 4) as u32, blocks: count };
    rec.dispatch("adamw", kernel(family), &views, &params, groups, 32 * elements);
}

/// The formulas in plain loops, in f64 where the device has f32; codes and scales are kept as the device keeps them.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    use crate::ops::adamw::{AdamW, twin as adamw};
    use crate::ops::adamw8bit::{BLOCK, tables};

    /// Parameters of one flat range, with their moments as codes and scales.
    #[derive(Clone)]
    pub(crate) struct Range {
        pub params: Vec<f64>,
        pub codes: [Vec<u8>; 2],
        pub scales: [Vec<f32>; 2],
    }

    impl Range {
        pub(crate) fn new(params: &[f64]) -> Self {
            let (count, blocks) = (params.len(), params.len().div_ceil(BLOCK as usize));
            Self {
                params: params.to_vec(),
                codes: [vec![0; count], vec![0; count]],
                scales: [vec![0.0; blocks], vec![0.0; blocks]],
            }
        }

        /// The values of a moment.
        pub(crate) fn decoded(&self, moment: usize) -> Vec<f64> {
            let map = &tables()[256 * moment..256 * (moment + 1)];
            let value = |(i, code): (usize, &u8)| {
                f64::from(map[usize::from(*code)]) * f64::from(self.scales[moment][i / BLOCK as usize])
            };
            self.codes[moment].iter().enumerate().map(value).collect()
        }

        fn encode(&mut self, moment: usize, values: &[f64]) {
            let map = &tables()[256 * moment..256 * (moment + 1)];
            for (i, block) in values.chunks(BLOCK as usize).enumerate() {
                let scale = block.iter().fold(0.0f64, |largest, v| largest.max(v.abs()));
                self.scales[moment][i] = scale as f32;
                for (code, value) in self.codes[moment][i * BLOCK as usize..].iter_mut().zip(block) {
                    *code = nearest(map, *value, scale);
                }
            }
        }
    }

    /// The nearest code by trying them all; of an unsigned map, the nearest that is not 0 for what is not 0.
    fn nearest(map: &[f32], value: f64, scale: f64) -> u8 {
        let first = usize::from(map[0] == 0.0 && value > 0.0);
        let distance = |code: usize| (f64::from(map[code]) * scale - value).abs();
        (first..256).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap_or(0) as u8
    }

    pub(crate) fn step(range: &mut Range, grads: &[f64], clip: f64, settings: &AdamW, learning_rate: f64, t: i32) {
        let (m, v) = (range.decoded(0), range.decoded(1));
        let mut exact = adamw::Range { params: std::mem::take(&mut range.params), m, v };
        adamw::step(&mut exact, grads, clip, settings, learning_rate, t);
        range.encode(0, &exact.m);
        range.encode(1, &exact.v);
        range.params = exact.params;
    }
}

#[cfg(test)]
mod tests;
