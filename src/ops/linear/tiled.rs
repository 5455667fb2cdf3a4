//! Variants for GPUs: tiles of the output fed from workgroup memory, in several sizes, see `shaders/linear_tiled.wgsl`.
//!
//! The fastest size depends on the adapter and on the shape. All sizes sum each output over k in the same order, with one
//! accumulator, and so give the same bits: the results of a run do not depend on the choice.

use super::contraction::{Contraction, Direction, GroupedContraction, MAX_TERMS};
use crate::gpu::{Kernel, Matrix, Recorder, params};
use crate::ops::lib_parts::MASK_TAIL;
use crate::ops::weight::Origin;
use crate::quant::format::Storage;

/// The sizes in which a contraction is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The name in the autotune table.
    pub name: &'static str,
    /// Outputs of a workgroup.
    rows: u32,
    cols: u32,
    /// Contracted values in workgroup memory at a time.
    depth: u32,
    /// Outputs of an invocation, in quads of rows and of columns.
    row_quads: u32,
    col_quads: u32,
}

const fn tile(name: &'static str, [rows, cols, depth]: [u32; 3], [row_quads, col_quads]: [u32; 2]) -> Tile {
    Tile { name, rows, cols, depth, row_quads, col_quads }
}

impl Tile {
    /// Every size.
    pub const ALL: [Self; 6] = [
        tile("64x64x16 by 8x4", [64, 64, 16], [2, 1]),
        tile("64x128x8 by 8x4", [64, 128, 8], [2, 1]),
        tile("128x128x8 by 8x8", [128, 128, 8], [2, 2]),
        tile("32x64x16 by 4x4", [32, 64, 16], [1, 1]),
        tile("16x32x16 by 4x4", [16, 32, 16], [1, 1]),
        // For products with LoRA's factors, which are as narrow as its rank.
        tile("128x16x16 by 4x4", [128, 16, 16], [1, 1]),
    ];

    /// The tiles that are not mostly empty for `rows` x `cols` outputs. The first one is taken where none was measured.
    pub fn fitting(rows: u32, cols: u32) -> Vec<Self> {
        let room = |n: u32, least: u32| n.clamp(least, 1 << 16).next_power_of_two() * 2;
        let holds_enough = |tile: &Self| cols <= 32 || tile.cols >= 32;
        let fits = |tile: &Self| tile.rows <= room(rows, 16) && tile.cols <= room(cols, 32) && holds_enough(tile);
        let first = Self::ALL[match (rows, cols) {
            (0..=16, _) => 4,
            (17..=32, _) => 3,
            (_, 0..=16) => 5,
            _ => 0,
        }];
        let others = Self::ALL.into_iter().filter(fits).filter(|tile| *tile != first);
        std::iter::once(first).chain(others).collect()
    }

    fn lies_in_blocks(self, block: u64, in_features: u32) -> bool {
        u64::from(in_features).is_multiple_of(block) && block.is_multiple_of(u64::from(self.depth))
    }

    /// The kernel that adds up at most `terms` contractions.
    pub(super) fn kernel(self, direction: Direction, storage: Storage, in_features: u32, terms: usize) -> Kernel {
        // A row of the weight then begins with a block of its own, and a turn of a tile lies within one.
        let scaled =
            matches!(storage, Storage::Quantized(format) if self.lies_in_blocks(format.code.block(), in_features));
        let mut kernel = Kernel::new::<Params>("linear_tiled", shader!("linear_tiled.wgsl"))
            .part(MASK_TAIL)
            .constant("FORWARD", direction == Direction::Forward)
            .constant("TERMS", if terms > 1 { MAX_TERMS as u32 } else { 1 })
            .constant("SCALED", scaled)
            .constant("ROWS", self.rows)
            .constant("COLS", self.cols)
            .constant("DEPTH", self.depth)
            .constant("OWN_ROWS", 4 * self.row_quads)
            .constant("COL_QUADS", self.col_quads)
            // Wider threads have no registers to spare.
            .constant("PREFETCH", self.col_quads == 1);
        let lanes = self.rows * self.cols / (16 * self.row_quads * self.col_quads);
        // The lanes take this much to workgroup memory a turn: quads of x, and words or quads of the weight.
        let x = self.rows * self.depth / 4;
        let weight = self.cols * self.depth / if scaled { 8 } else { 4 };
        kernel = kernel
            .constant("X_ELEMENTS", x)
            .constant("X_PER", x.div_ceil(lanes))
            .constant("X_WHOLE", x.is_multiple_of(lanes))
            .constant("W_ELEMENTS", weight)
            .constant("W_PER", weight.div_ceil(lanes))
            .constant("W_WHOLE", weight.is_multiple_of(lanes));
        if scaled {
            kernel = kernel.part(shader!("lib/octet_table.wgsl"));
        }
        storage.join_at(kernel, in_features, if terms > 1 { Origin::Moving } else { Origin::Fixed })
    }
}

params! {
    /// One of the contractions that are added up, with the beginnings of its operands in their bindings, in the units in which the
    /// shader reads them.
    struct Term {
        depth: u32,
        x_first4: u32,
        x_ld4: u32,
        rank: u32,
        product_first4: u32,
        product_ld4: u32,
        factor_first: u32,
        scale: f32,
        weight_first: u32,
        absmax_first: u32,
        nested_first: u32,
        padding: u32,
    }

    struct Params {
        rows: u32,
        cols: u32,
        in_features: u32,
        y_ld4: u32,
        y_col4: u32,
        bias_first: u32,
        bias: u32,
        accumulate: u32,
        count: u32,
        padding: [u32; 3],
        terms: [Term; MAX_TERMS],
    }
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all = Vec::new();
    for tile in Tile::ALL {
        for storage in Storage::ALL {
            let widths: &[u32] = if matches!(storage, Storage::Float(_)) { &[64, 63] } else { &[64, 60, 63] };
            for in_features in widths {
                all.push(tile.kernel(Direction::Forward, storage, *in_features, 1));
                for terms in [1, MAX_TERMS] {
                    all.push(tile.kernel(Direction::InputGradient, storage, *in_features, terms));
                }
            }
        }
    }
    all
}

pub(super) fn record(rec: &mut Recorder, tile: Tile, grouped: &GroupedContraction) {
    let first = grouped.first();
    let Contraction { direction, x: Matrix { rows, .. }, weight, panel, y, accumulate, .. } = *first;
    let mut terms = [Term::default(); MAX_TERMS];
    for (term, contraction) in terms.iter_mut().zip(&grouped.terms) {
        let offsets = grouped.offsets(contraction);
        *term = Term {
            depth: contraction.depth(),
            x_first4: offsets.x4,
            x_ld4: contraction.x.ld / 4,
            rank: contraction.rank(),
            product_first4: offsets.product4,
            product_ld4: contraction.product_ld4(),
            factor_first: offsets.factor,
            scale: contraction.scale(),
            weight_first: offsets.data,
            absmax_first: offsets.absmax,
            nested_first: offsets.nested,
            padding: 0,
        };
    }
    let params = Params {
        rows,
        cols: first.cols(),
        in_features: weight.in_features,
        y_ld4: y.ld / 4,
        y_col4: first.first_quads()[1],
        bias_first: panel.first_row,
        bias: u32::from(first.bias().is_some()),
        accumulate: u32::from(accumulate),
        count: grouped.terms.len() as u32,
        padding: [0; 3],
        terms,
    };
    let [absmax, nested, bias, product, factor] =
        [grouped.absmax, grouped.nested, first.bias(), grouped.product, grouped.factor]
            .map(|view| view.unwrap_or(rec.unused));
    let views = [grouped.x, grouped.data, absmax, nested, bias, product, factor, y.view];
    let kernel = tile.kernel(direction, weight.storage, weight.in_features, grouped.terms.len());
    let groups = [params.cols.div_ceil(tile.cols), rows.div_ceil(tile.rows), 1];
    rec.dispatch(first.op_name(), kernel, &views, &params, groups, grouped.work());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_keeps_to_the_baseline_and_to_what_its_loader_takes() {
        for tile in Tile::ALL {
            let Tile { name, rows, cols, depth, row_quads, col_quads } = tile;
            // Two sets of block scales, and the table of codes.
            let scales = cols.max(depth * cols.div_ceil(64));
            let bytes = 4 * ((depth + 4) * (rows + cols) + 2 * scales + 16);
            let invocations = rows * cols / (16 * row_quads * col_quads);
            assert!(bytes <= 16 << 10 && invocations <= 256, "{name}: {bytes} bytes, {invocations} invocations");
            // A thread for each block scale and each code.
            assert!(scales <= invocations && invocations >= 16, "{name}: {scales} scales, {invocations} invocations");
            // A turn lies within one block of a row, and columns begin with one or lie within one.
            assert!(64 % depth == 0 && depth % 8 == 0, "{name}");
            assert!(cols % 64 == 0 || 64 % cols == 0, "{name}");
            // Rows of an odd number of quads use different banks.
            assert!(depth / 4 % 2 == 0, "{name}");
            assert!(rows % (4 * row_quads) == 0 && (cols / 4) % col_quads == 0, "{name}");
        }
    }
}
