//! Variants for software adapters: decode a panel of the weight to f32, then multiply without workgroup memory, see
//! `shaders/weight_panel.wgsl` and `shaders/linear_rows.wgsl`.

use super::contraction::{Contraction, Direction};
use crate::gpu::{Kernel, Recorder, View, params, round_up};
use crate::ops::weight::Panel;
use crate::quant::format::Storage;

const DECODE_WG_SIZE: u32 = 64;
/// Lanes of a workgroup, which is one vector of a software adapter. Neighboring lanes own neighboring quads of columns.
const LANES: u32 = 8;
/// Columns that one workgroup owns; the panel is laid out in strips of these, see `shaders/lib/panel.wgsl`.
const STRIP: u32 = 4 * LANES;
/// A panel larger than this is decoded and used in parts.
const PANEL_BYTES: u64 = 16 << 20;

params! {
    struct DecodeParams {
        first: u32,
        rows: u32,
        in_features: u32,
        depth: u32,
    }

    struct FactorParams {
        first: u32,
        cols: u32,
        rank: u32,
        depth: u32,
        scale: f32,
    }

    struct Params {
        rows: u32,
        cols: u32,
        depth: u32,
        rank: u32,
        x_ld4: u32,
        x_col4: u32,
        y_ld4: u32,
        y_col4: u32,
        product_ld4: u32,
        bias_first: u32,
    }
}

fn decode_kernel(direction: Direction, storage: Storage, in_features: u32) -> Kernel {
    let kernel = Kernel::new::<DecodeParams>("weight_panel", shader!("weight_panel.wgsl"))
        .part(shader!("lib/panel.wgsl"))
        .constant("PANEL_COLS", STRIP)
        .constant("WG_SIZE", DECODE_WG_SIZE)
        .constant("FORWARD", direction == Direction::Forward);
    storage.join(kernel, in_features)
}

fn factor_kernel(direction: Direction) -> Kernel {
    Kernel::new::<FactorParams>("low_rank_panel", shader!("low_rank_panel.wgsl"))
        .part(shader!("lib/panel.wgsl"))
        .constant("PANEL_COLS", STRIP)
        .constant("WG_SIZE", DECODE_WG_SIZE)
        .constant("FORWARD", direction == Direction::Forward)
}

/// Rows of a workgroup. Few rows would waste most of a block of 16.
fn block_rows(rows: u32) -> u32 {
    match rows {
        1 => 1,
        2..=4 => 4,
        _ => 16,
    }
}

fn multiply_kernel(rows: u32, bias: bool, accumulate: bool) -> Kernel {
    Kernel::new::<Params>("linear_rows", shader!("linear_rows.wgsl"))
        .constant("WG_SIZE", LANES)
        .constant("ROWS", block_rows(rows))
        .constant("BIAS", bias)
        .constant("ACCUMULATE", accumulate)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all = vec![factor_kernel(Direction::Forward), factor_kernel(Direction::InputGradient)];
    for storage in Storage::ALL {
        for in_features in [64, 63] {
            all.push(decode_kernel(Direction::Forward, storage, in_features));
            all.push(decode_kernel(Direction::InputGradient, storage, in_features));
        }
    }
    for rows in [1, 4, 16] {
        for (bias, accumulate) in [(false, false), (false, true), (true, false), (true, true)] {
            all.push(multiply_kernel(rows, bias, accumulate));
        }
    }
    all
}

/// Bytes of a panel of `depth` rows, LoRA's included, and `cols` columns.
fn bytes(depth: u32, cols: u32) -> u64 {
    4 * u64::from(depth) * u64::from(round_up(cols, STRIP))
}

/// Rows of W that one part of a panel takes: its columns in the forward direction, its depth for the gradient.
fn part_rows(direction: Direction, in_features: u32, rank: u32, panel_bytes: u64) -> u32 {
    let (one, spent, multiple) = match direction {
        Direction::Forward => (bytes(in_features + rank, 1) / u64::from(STRIP), 0, STRIP),
        Direction::InputGradient => (bytes(1, in_features), rank, 4),
    };
    let rows = u32::try_from(panel_bytes / one).unwrap_or(u32::MAX).saturating_sub(spent);
    (rows / multiple * multiple).max(multiple)
}

pub(super) fn panel_bytes(out_features: u32, in_features: u32, rank: u32) -> u64 {
    let whole = |out: u32| bytes(in_features + rank, out).max(bytes(out + rank, in_features));
    whole(out_features).min(PANEL_BYTES.max(whole(4)))
}

pub(super) fn record(rec: &mut Recorder, contraction: Contraction) {
    let Contraction { direction, x, weight, panel, y, .. } = contraction;
    let scratch = rec.scratch.weight_panel;
    let per_part = part_rows(direction, weight.in_features, contraction.rank(), scratch.bytes);
    for first in (0..panel.rows).step_by(per_part as usize) {
        let rows = Panel { first_row: panel.first_row + first, rows: per_part.min(panel.rows - first), ..*panel };
        let part = Contraction { panel: &rows, ..contraction };
        // The parts of the gradient's contraction add up, and the first one has the LoRA term, as with panels.
        let part = if first == 0 || part.forward() { part } else { part.added() };
        let (cols, depth, rank) = (part.cols(), part.depth(), part.rank());
        let decoded = View { bytes: bytes(depth + rank, cols), ..scratch };
        assert!(decoded.bytes <= scratch.bytes, "scratch for a decoded panel");
        decode(rec, part, first, decoded);
        if let Some(term) = part.low_rank {
            let params = FactorParams { first: rows.first_row, cols, rank, depth: depth + rank, scale: term.scale };
            let count = u64::from(cols) * u64::from(rank);
            let groups = rec.fold(count.div_ceil(u64::from(DECODE_WG_SIZE)));
            rec.dispatch("low_rank_panel", factor_kernel(direction), &[decoded, term.factor], &params, groups, count);
        }
        let [x_col4, y_col4] = part.first_quads();
        let params = Params {
            rows: x.rows,
            cols,
            depth,
            rank,
            x_ld4: x.ld / 4,
            x_col4,
            y_ld4: y.ld / 4,
            y_col4,
            product_ld4: part.product_ld4(),
            bias_first: rows.first_row,
        };
        let [bias, product, _] = part.term_views(rec);
        let groups = [x.rows.div_ceil(block_rows(x.rows)), cols.div_ceil(STRIP), 1];
        let kernel = multiply_kernel(x.rows, part.bias().is_some(), part.accumulate);
        rec.dispatch(part.op_name(), kernel, &[x.view, decoded, product, bias, y.view], &params, groups, part.work());
    }
}

/// The part's rows of W, which begin at `first` in the panel, decoded; room for the LoRA rows is left below them.
fn decode(rec: &mut Recorder, part: Contraction, first: u32, decoded: View) {
    let Contraction { direction, weight, panel, .. } = part;
    let depth = part.depth() + part.rank();
    let params = DecodeParams { first, rows: panel.rows, in_features: weight.in_features, depth };
    let [data, absmax, nested] = part.weight_views(rec);
    let count = u64::from(weight.in_features.div_ceil(4)) * u64::from(panel.rows);
    let groups = rec.fold(count.div_ceil(u64::from(DECODE_WG_SIZE)));
    let kernel = decode_kernel(direction, weight.storage, weight.in_features);
    rec.dispatch("weight_panel", kernel, &[decoded, data, absmax, nested], &params, groups, 4 * count);
}
