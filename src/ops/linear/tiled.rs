//! The GPU form: 64 x 64 outputs per workgroup, 8 x 4 per invocation, see `shaders/linear_tiled.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::{Direction, LowRank, op_name, weight_views};
use crate::gpu::{Kernel, Matrix, Recorder};
use crate::ops::weight::{Panel, Storage, Weight};

const TILE: u32 = 64;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    depth: u32,
    in_features: u32,
    x_ld4: u32,
    x_col4: u32,
    y_ld4: u32,
    y_col4: u32,
    rank: u32,
    low_ld4: u32,
    other_first: u32,
    scale: f32,
}

fn kernel(direction: Direction, storage: Storage, in_features: u32, bias: bool, accumulate: bool) -> Kernel {
    let kernel = Kernel::new("linear_tiled", include_str!("../../../shaders/linear_tiled.wgsl"))
        .constant("FORWARD", direction == Direction::Forward)
        .constant("BIAS", bias)
        .constant("ACCUMULATE", accumulate);
    storage.join(kernel, in_features)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all = Vec::new();
    for storage in Storage::ALL {
        for in_features in [64, 63] {
            for accumulate in [false, true] {
                all.push(kernel(Direction::Forward, storage, in_features, true, accumulate));
                all.push(kernel(Direction::Forward, storage, in_features, false, accumulate));
                all.push(kernel(Direction::InputGradient, storage, in_features, false, accumulate));
            }
        }
    }
    all
}

#[allow(clippy::too_many_arguments)]
pub(super) fn record(
    rec: &mut Recorder,
    direction: Direction,
    x: Matrix,
    weight: &Weight,
    panel: &Panel,
    low: Option<LowRank>,
    y: Matrix,
    accumulate: bool,
) {
    let forward = direction == Direction::Forward;
    let (cols, depth) = if forward { (panel.rows, weight.in_features) } else { (weight.in_features, panel.rows) };
    let bias = weight.bias.filter(|_| forward);
    let params = Params {
        rows: x.rows,
        cols,
        depth,
        in_features: weight.in_features,
        x_ld4: x.ld / 4,
        x_col4: if forward { 0 } else { panel.first_row / 4 },
        y_ld4: y.ld / 4,
        y_col4: if forward { panel.first_row / 4 } else { 0 },
        rank: low.map_or(0, |l| l.low.cols),
        low_ld4: low.map_or(0, |l| l.low.ld / 4),
        other_first: panel.first_row,
        scale: low.map_or(0.0, |l| l.scale),
    };
    let [data, absmax, nested] = weight_views(rec, panel);
    let low_view = low.map_or(rec.unused, |l| l.low.view);
    let other = low.map_or(rec.unused, |l| l.other);
    let views = [x.view, data, absmax, nested, bias.unwrap_or(rec.unused), low_view, other, y.view];
    let kernel = kernel(direction, weight.storage, weight.in_features, bias.is_some(), accumulate);
    let groups = [cols.div_ceil(TILE), x.rows.div_ceil(TILE), 1];
    let work = u64::from(x.rows) * u64::from(cols) * u64::from(depth + params.rank);
    rec.dispatch(op_name(direction, weight.storage), kernel, &views, &params, groups, work);
}
