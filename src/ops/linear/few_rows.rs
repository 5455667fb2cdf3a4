//! Variants of the forward pass for few rows, as in generation. They read the packed weight once, and their time is that of reading
//! it: a GPU's tile would be mostly empty, and a software adapter would decode a panel for too few products. See
//! `shaders/linear_few_rows_shared.wgsl` for GPUs, `shaders/linear_few_rows.wgsl` for software adapters.

use super::contraction::Contraction;
use crate::gpu::{Kernel, Recorder, params};
use crate::ops::VariantFamily;
use crate::ops::lib_parts::MASK_TAIL;
use crate::quant::format::Storage;

/// The most rows of these variants, which give a row the bits that it has alone. With more, the accumulators leave the registers.
pub const MAX_ROWS: u32 = 4;
/// Lanes of a workgroup, which is one vector of a software adapter. Each lane makes one output.
const LANES: u32 = VariantFamily::LANES;
/// Lanes of a workgroup on a GPU, which share its outputs.
const SHARING: u32 = 64;
const SHARED_OUTPUTS: u32 = 4;

params! {
    struct Params {
        rows: u32,
        cols: u32,
        in_features: u32,
        rank: u32,
        x_ld4: u32,
        y_ld: u32,
        product_ld4: u32,
        first: u32,
        scale: f32,
    }
}

fn kernel(
    family: VariantFamily,
    storage: Storage,
    in_features: u32,
    rows: u32,
    bias: bool,
    accumulate: bool,
) -> Kernel {
    let kernel = match family {
        VariantFamily::Tiles => Kernel::new::<Params>("linear_few_rows_shared", shader!("linear_few_rows_shared.wgsl"))
            .part(MASK_TAIL)
            .constant("WG_SIZE", SHARING),
        VariantFamily::Lanes | VariantFamily::Broadcast => {
            Kernel::new::<Params>("linear_few_rows", shader!("linear_few_rows.wgsl")).constant("WG_SIZE", LANES)
        }
    };
    let kernel = kernel
        .part(shader!("lib/few_rows.wgsl"))
        .constant("ROWS", if rows == 1 { 1 } else { MAX_ROWS })
        .constant("BIAS", bias)
        .constant("ACCUMULATE", accumulate);
    storage.join(kernel, in_features)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all = Vec::new();
    for family in [VariantFamily::Tiles, VariantFamily::Lanes] {
        for storage in Storage::ALL {
            for in_features in [64, 63] {
                for rows in [1, MAX_ROWS] {
                    for (bias, accumulate) in [(false, false), (true, true)] {
                        all.push(kernel(family, storage, in_features, rows, bias, accumulate));
                    }
                }
            }
        }
    }
    all
}

pub(super) fn record(rec: &mut Recorder, contraction: Contraction) {
    let Contraction { x, weight, panel, y, accumulate, .. } = contraction;
    let params = Params {
        rows: x.rows,
        cols: panel.rows,
        in_features: weight.in_features,
        rank: contraction.rank(),
        x_ld4: x.ld / 4,
        y_ld: y.ld,
        product_ld4: contraction.product_ld4(),
        first: panel.first_row,
        scale: contraction.scale(),
    };
    let [data, absmax, nested] = contraction.weight_views(rec);
    let [bias, product, factor] = contraction.term_views(rec);
    let views = [x.view, data, absmax, nested, bias, product, factor, y.view];
    let family = VariantFamily::of(&rec.capabilities);
    let kernel = kernel(family, weight.storage, weight.in_features, x.rows, weight.bias.is_some(), accumulate);
    let outputs = if family == VariantFamily::Tiles { SHARED_OUTPUTS } else { LANES };
    let groups = rec.fold(u64::from(panel.rows.div_ceil(outputs)));
    rec.dispatch(contraction.op_name(), kernel, &views, &params, groups, contraction.work());
}
