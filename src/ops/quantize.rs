//! 4-bit quantization on the device, with the bytes of bitsandbytes. [`crate::quant`] has the rules and is the twin.

use super::weight::{Origin, Panel};
use crate::gpu::{Kernel, Recorder, View, params};
use crate::quant::format::{Code4, Float, NESTED_BLOCK};
use crate::quant::{MIN_ABSMAX, code_table, dynamic_map, first_steps};

const WG_SIZE: u32 = 64;

params! {
    struct BlockParams {
        blocks: u32,
        elements: u32,
        first_block: u32,
        min_absmax_bits: u32,
    }

    struct MeanParams {
        count: u32,
        step_log2: u32,
    }

    struct AbsmaxParams {
        count: u32,
        nested_blocks: u32,
    }
}

/// The words of the `code_table` buffer that [`blocks`] takes.
pub fn code_words(code: Code4) -> Vec<u32> {
    let table = code_table(code);
    table.bounds.iter().map(|b| b.to_bits()).chain(table.order).collect()
}

/// The words of the `code_map` buffer that [`absmax`] takes.
pub fn map_words() -> Vec<u32> {
    dynamic_map().iter().map(|v| v.to_bits()).chain(*first_steps()).collect()
}

fn blocks_kernel(from: Float, code: Code4) -> Kernel {
    let kernel = Kernel::new::<BlockParams>("quantize_blocks", shader!("quantize_blocks.wgsl"));
    code.join_block(Origin::Fixed.join(kernel)).part(from.part()).constant("WG_SIZE", WG_SIZE)
}

fn mean_kernel() -> Kernel {
    Kernel::new::<MeanParams>("quantize_absmax_mean", shader!("quantize_absmax_mean.wgsl"))
}

fn absmax_kernel() -> Kernel {
    Kernel::new::<AbsmaxParams>("quantize_absmax", shader!("quantize_absmax.wgsl")).constant("WG_SIZE", WG_SIZE)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all = vec![mean_kernel(), absmax_kernel()];
    for kernel in Float::ALL.into_iter().flat_map(|from| Code4::ALL.map(|code| blocks_kernel(from, code))) {
        // Codes of one block size share a text.
        if !all.contains(&kernel) {
            all.push(kernel);
        }
    }
    all
}

/// Elements of a float matrix that are quantized in one dispatch.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The elements, as a file stores them.
    pub source: View,
    /// The type of the elements.
    pub from: Float,
    /// Number of elements.
    pub elements: u32,
    /// The block of the matrix with which the piece begins. Pieces of one matrix begin at whole blocks.
    pub first_block: u32,
}

/// Quantizes `piece` into the codes `packed` and the scales `absmax` (f32, one for each block) of the whole matrix. `code_table` has
/// the [`code_words`] of `code`.
pub fn blocks(rec: &mut Recorder, piece: Piece, code: Code4, code_table: View, packed: View, absmax: View) {
    let Piece { source, from, elements, first_block } = piece;
    let blocks = elements.div_ceil(code.block() as u32);
    let params = BlockParams { blocks, elements, first_block, min_absmax_bits: MIN_ABSMAX.to_bits() };
    let groups = rec.fold(u64::from(blocks.div_ceil(WG_SIZE)));
    let views = [source, code_table, packed, absmax];
    rec.dispatch("quantize_blocks", blocks_kernel(from, code), &views, &params, groups, 40 * u64::from(elements));
}

/// Double quantization: `absmax` (f32, `count` values) becomes the 8-bit codes and nested scales of `panel`.
pub fn absmax(rec: &mut Recorder, absmax: View, count: u32, code_map: View, panel: &Panel) {
    let (Some(codes), Some(nested)) = (panel.absmax, panel.nested) else { return };
    let streams = u64::from(count) / if count < 8 { 4 } else { 32 };
    let log2 = if streams <= 1 { 0 } else { u64::BITS - (streams - 1).leading_zeros() };
    let params = MeanParams { count, step_log2: (log2 / 4).max(4) };
    rec.dispatch("quantize_absmax", mean_kernel(), &[absmax, code_map, nested], &params, [1, 1, 1], u64::from(count));
    let nested_blocks = count.div_ceil(NESTED_BLOCK as u32);
    let params = AbsmaxParams { count, nested_blocks };
    let groups = rec.fold(u64::from(nested_blocks.div_ceil(WG_SIZE)));
    let views = [absmax, code_map, nested, codes];
    rec.dispatch("quantize_absmax", absmax_kernel(), &views, &params, groups, 20 * u64::from(count));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Category;
    use crate::ops::testing::Lab;
    use crate::ops::weight::Weight;
    use crate::quant::{Scales, quantize};

    /// The device's bytes of `values`, quantized in pieces of `piece` elements.
    fn on_device(values: &[f32], from: Float, code: Code4, double: bool, piece: usize) -> crate::quant::Quantized {
        let mut lab = Lab::new();
        let storage = code.storage(double);
        let weight = Weight::plan(&mut lab.plan, "w", storage, [1, values.len() as u32], false, u64::MAX);
        let panel = weight.panels[0];
        let count = values.len().div_ceil(64);
        let scales = lab.plan.alloc(Category::Workspace, "absmax", 4 * count as u64);
        let scales = if double { scales } else { panel.absmax.unwrap() };
        let table = lab.words(&code_words(code));
        let map = lab.words(&map_words());
        let mut rec = lab.recorder();
        for (i, part) in values.chunks(piece).enumerate() {
            let source = match from {
                Float::F32 => lab.words(&part.iter().map(|v| v.to_bits()).collect::<Vec<_>>()),
                Float::F16 => lab.halves(part.iter().map(|v| half::f16::from_f32(*v).to_bits())),
                Float::Bf16 => lab.halves(part.iter().map(|v| half::bf16::from_f32(*v).to_bits())),
            };
            let piece = Piece { source, from, elements: part.len() as u32, first_block: (i * piece / 64) as u32 };
            blocks(&mut rec, piece, code, table, panel.data, scales);
        }
        if double {
            absmax(&mut rec, scales, count as u32, map, &panel);
        }
        lab.run(&rec);
        let bytes = |view| -> Vec<u8> { lab.read_words(view).iter().flat_map(|w| w.to_le_bytes()).collect() };
        let packed = bytes(panel.data)[..values.len().div_ceil(2)].to_vec();
        let scales = if double {
            let nested = lab.read_vector(panel.nested.unwrap());
            let codes = bytes(panel.absmax.unwrap())[..count].to_vec();
            Scales::Nested { codes, absmax: nested[257..257 + count.div_ceil(256)].to_vec(), offset: nested[256] }
        } else {
            Scales::Plain(lab.read_vector(panel.absmax.unwrap())[..count].to_vec())
        };
        crate::quant::Quantized { packed, scales }
    }

    #[test]
    fn the_device_writes_the_twins_bytes() {
        for (count, piece) in [(64, 64), (1000, 192), (4097, 4097), (64 * 700 + 5, 64 * 100)] {
            let values: Vec<f32> = Lab::new().normal(count).iter().map(|v| *v as f32 * 0.02).collect();
            for code in Code4::ALL {
                for double in [false, true] {
                    assert_eq!(
                        on_device(&values, Float::F32, code, double, piece),
                        quantize(&values, code, double),
                        "{count} elements, {code:?}, double {double}"
                    );
                }
            }
        }
    }

    #[test]
    fn half_precision_sources_are_read_as_their_values() {
        let values: Vec<f32> = Lab::new().normal(777).iter().map(|v| half::bf16::from_f64(*v).to_f32()).collect();
        let want = quantize(&values, Code4::Nf4, true);
        assert_eq!(on_device(&values, Float::Bf16, Code4::Nf4, true, 320), want);
        let values: Vec<f32> = Lab::new().normal(777).iter().map(|v| half::f16::from_f64(*v).to_f32()).collect();
        let want = quantize(&values, Code4::Nf4, true);
        assert_eq!(on_device(&values, Float::F16, Code4::Nf4, true, 320), want);
    }

    #[test]
    fn zero_blocks_are_kept() {
        let mut values = vec![0.0f32; 300];
        values[130] = -2.5;
        for double in [false, true] {
            assert_eq!(on_device(&values, Float::F32, Code4::Nf4, double, 300), quantize(&values, Code4::Nf4, double));
        }
    }
}
