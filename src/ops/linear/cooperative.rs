//! The form for GPUs with cooperative matrices: f16 factors, f32 sums, see `shaders/linear_cooperative.wgsl`.
//!
//! Rows of x and of the LoRA term's `low`, the weight and the LoRA factor are each scaled by a power of two that brings their largest
//! element just under 2^15, and the sums are scaled back: exact, save that f16 keeps 11 bits of each factor. An output is off by at
//! most 2^-10 (sum |x| |w| + s sum |low| |other|), and by what is left of elements 2^29 times smaller than the largest of their row
//! or matrix. A row that holds a value that is not finite, or meets one in the weight, becomes NaN.
//!
//! The weight has one power for all of it, since it is read both along its rows and across them. Its largest magnitude is found anew at
//! each use: weights may be in training, and one more reading of the scales, or of a float weight, is little beside the product.

use bytemuck::{Pod, Zeroable};

use super::{Contraction, Direction};
use crate::gpu::{Cooperative, Kernel, Problem, Recorder, Scratch, Target, View};
use crate::ops::lib_parts::KEEP;
use crate::ops::weight::{BLOCK, Float, Storage};

/// With fewer rows or columns most of a tile would be empty; a shorter contraction does not win back the scaling of its rows. LoRA's
/// own products keep to f32 by this rule.
const MIN_ROWS: u32 = 16;
const MIN_COLS: u32 = 64;
const MIN_DEPTH: u32 = 64;

/// The product's kernel.
pub(super) const NAME: &str = "linear_cooperative";

/// Workgroups that look for the largest magnitudes at most, and their partial results.
const PARTIALS: u32 = 256;
const MAGNITUDE_WG_SIZE: u32 = 256;
const HALVES_WG_SIZE: u32 = 64;
const QUAD_BYTES: u64 = 8;

/// Outputs of a workgroup, and the units in which its subgroups share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    pub name: &'static str,
    rows: u32,
    cols: u32,
    /// Contracted indices staged at a time.
    depth: u32,
    /// Elements between rows in workgroup memory, so that lanes that walk down a column meet other banks.
    gap: u32,
    unit_rows: u32,
    unit_cols: u32,
}

const fn tile(name: &'static str, [rows, cols, depth]: [u32; 3], gap: u32, [unit_rows, unit_cols]: [u32; 2]) -> Tile {
    Tile { name, rows, cols, depth, gap, unit_rows, unit_cols }
}

impl Tile {
    pub const SMALL: Self = tile("cooperative 64x64x32", [64, 64, 32], 8, [2, 2]);
    /// All of 16 KiB with matrices of 16.
    pub const LARGE: Self = tile("cooperative 128x128x16", [128, 128, 16], 0, [2, 4]);
    pub const ALL: [Self; 2] = [Self::SMALL, Self::LARGE];
    /// For matrices in plain f32, whose texts software adapters take long to compile.
    #[cfg(test)]
    pub const TINY: Self = tile("32x32x16", [32, 32, 16], 8, [2, 2]);
    #[cfg(test)]
    pub const TINY_WIDE: Self = tile("32x64x16", [32, 64, 16], 0, [2, 4]);

    fn units(self) -> u32 {
        self.unit_rows * self.unit_cols
    }

    /// A unit for each of the smallest subgroups.
    fn wg_size(self, subgroups: [u32; 2]) -> u32 {
        self.units() * subgroups[0]
    }

    /// Whether workgroups of the baseline's size hold whole subgroups, and none without a unit.
    pub fn suits(self, subgroups: [u32; 2]) -> bool {
        let size = self.wg_size(subgroups);
        size <= 256 && subgroups[1] <= size
    }
}

/// What multiplies the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrices {
    Hardware,
    /// Plain f32 with rounded factors; this many lanes take the part of a subgroup.
    #[cfg(test)]
    Emulated {
        lanes: u32,
    },
}

/// One way to run the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub cooperative: Cooperative,
    pub tile: Tile,
    pub matrices: Matrices,
}

impl Way {
    /// Those of a target with matrices, first the one that is taken where none was measured.
    pub(super) fn all(target: &Target) -> impl Iterator<Item = Self> {
        target.cooperative.into_iter().flat_map(|cooperative| {
            let tiles = Tile::ALL.into_iter().filter(move |tile| tile.suits(cooperative.subgroups));
            tiles.map(move |tile| Self { cooperative, tile, matrices: Matrices::Hardware })
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MagnitudeParams {
    elements: u32,
    others: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct HalvesParams {
    rows: u32,
    cols: u32,
    x_ld4: u32,
    x_col4: u32,
    rank: u32,
    low_ld4: u32,
    row_quads: u32,
    partials: u32,
    weight_scaled: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    depth: u32,
    in_features: u32,
    row_quads: u32,
    y_ld4: u32,
    y_col4: u32,
    rank: u32,
    other_first: u32,
    bias: u32,
    accumulate: u32,
}

fn magnitude_kernel(storage: Storage) -> Kernel {
    let kernel = Kernel::new("linear_magnitude", include_str!("../../../shaders/linear_magnitude.wgsl"))
        .part(include_str!("../../../shaders/lib/reduce_bits.wgsl"))
        .constant("WG_SIZE", MAGNITUDE_WG_SIZE)
        .constant("PARTIALS", PARTIALS)
        .constant("BLOCKS", matches!(storage, Storage::Quantized { .. }));
    storage.join(kernel, 4)
}

fn halves_kernel() -> Kernel {
    Kernel::new("linear_halves", include_str!("../../../shaders/linear_halves.wgsl"))
        .part(KEEP)
        .part(include_str!("../../../shaders/lib/powers.wgsl"))
        .part(include_str!("../../../shaders/lib/reduce_bits.wgsl"))
        .constant("WG_SIZE", HALVES_WG_SIZE)
        .constant("PARTIALS", PARTIALS)
}

impl Way {
    pub(super) fn kernel(self, direction: Direction, storage: Storage, in_features: u32) -> Kernel {
        let Self { tile, cooperative: Cooperative { side, subgroups }, .. } = self;
        let forward = direction == Direction::Forward;
        let wg_size = tile.wg_size(subgroups);
        let x_stride = tile.depth + tile.gap;
        let (w_rows, w_stride) = if forward { (tile.cols, x_stride) } else { (tile.depth, tile.cols + tile.gap) };
        let kernel = Kernel::new(NAME, include_str!("../../../shaders/linear_cooperative.wgsl"))
            .constant("FORWARD", forward)
            .constant("SIDE", side)
            .constant("WG_SIZE", wg_size)
            .constant("TILE_ROWS", tile.rows)
            .constant("TILE_COLS", tile.cols)
            .constant("DEPTH", tile.depth)
            .constant("UNITS", tile.units())
            .constant("UNIT_ROWS", tile.unit_rows)
            .constant("UNIT_COLS", tile.unit_cols)
            .constant("HIGH", tile.rows / side / tile.unit_rows)
            .constant("WIDE", tile.cols / side / tile.unit_cols)
            .constant("OWNED", subgroups[1] / subgroups[0])
            .constant("VARYING", subgroups[0] != subgroups[1])
            .constant("X_STRIDE", x_stride)
            .constant("X_TILE", tile.rows * x_stride)
            .constant("W_STRIDE", w_stride)
            .constant("W_TILE", w_rows * w_stride)
            .constant("BLOCK", tile.units() * side * side)
            .constant("BLOCK_STRIDE", tile.unit_cols * side)
            .part(include_str!("../../../shaders/lib/powers.wgsl"));
        let kernel = match self.matrices {
            Matrices::Hardware => {
                self.cooperative.join(kernel).part(include_str!("../../../shaders/lib/matrix_hardware.wgsl"))
            }
            #[cfg(test)]
            Matrices::Emulated { lanes } => kernel
                .constant("LANES", lanes)
                .constant("PER_LANE", side * side / lanes)
                .part(include_str!("../../../shaders/lib/matrix_emulated.wgsl")),
        };
        storage.join(kernel, in_features)
    }
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all: Vec<Kernel> = Storage::ALL.into_iter().map(magnitude_kernel).collect();
    all.push(halves_kernel());
    for cooperative in Cooperative::KNOWN {
        let target = Target { cooperative: Some(cooperative), ..Target::BASELINE };
        for way in Way::all(&target) {
            for storage in Storage::ALL {
                for in_features in [64, 63] {
                    all.push(way.kernel(Direction::Forward, storage, in_features));
                    all.push(way.kernel(Direction::InputGradient, storage, in_features));
                }
            }
        }
    }
    all
}

/// Whether a contraction of this shape takes this form.
pub(super) fn applies(target: &Target, problem: &Problem) -> bool {
    problem.rows >= MIN_ROWS
        && problem.cols >= MIN_COLS
        && problem.depth >= MIN_DEPTH
        && Way::all(target).next().is_some()
}

fn row_quads(depth: u32, rank: u32) -> u32 {
    1 + depth.div_ceil(4) + rank.div_ceil(4)
}

/// Scratch for the rows of a contraction in f16.
pub(super) fn halves_bytes(rows: u32, depth: u32, rank: u32) -> u64 {
    QUAD_BYTES * u64::from(rows) * u64::from(row_quads(depth, rank))
}

/// Scratch for the partial maxima.
pub(super) const MAXIMA_BYTES: u64 = 2 * 4 * PARTIALS as u64;

pub(super) fn record(rec: &mut Recorder, way: Way, contraction: Contraction) {
    let Contraction { direction, x, weight, panel, y, accumulate, .. } = contraction;
    let halves = scale_rows(rec, contraction);
    let (cols, depth, rank) = (contraction.cols(), contraction.depth(), contraction.rank());
    let params = Params {
        rows: x.rows,
        cols,
        depth,
        in_features: weight.in_features,
        row_quads: row_quads(depth, rank),
        y_ld4: y.ld / 4,
        y_col4: contraction.first_quads()[1],
        rank,
        other_first: panel.first_row,
        bias: u32::from(contraction.bias().is_some()),
        accumulate: u32::from(accumulate),
    };
    let [data, absmax, nested] = contraction.weight_views(rec);
    let [bias, _, other] = contraction.term_views(rec);
    let views = [halves, data, absmax, nested, bias, other, y.view];
    let kernel = way.kernel(direction, weight.storage, weight.in_features);
    let groups = [cols.div_ceil(way.tile.cols), x.rows.div_ceil(way.tile.rows), 1];
    rec.dispatch(contraction.op_name(), kernel, &views, &params, groups, contraction.work());
}

/// The rows of x, and of the low-rank term, scaled and in f16.
fn scale_rows(rec: &mut Recorder, contraction: Contraction) -> View {
    let Contraction { x, weight, panel, .. } = contraction;
    let (depth, rank) = (contraction.depth(), contraction.rank());
    let bytes = halves_bytes(x.rows, depth, rank);
    let Scratch { weight_panel, partials } = rec.scratch;
    assert!(bytes <= weight_panel.bytes, "scratch for {} rows of {depth} in f16", x.rows);
    assert!(MAXIMA_BYTES <= partials.bytes, "scratch for the largest magnitudes");
    let (halves, maxima) = (View { bytes, ..weight_panel }, View { bytes: MAXIMA_BYTES, ..partials });

    // What is in f16 already fits into it.
    let weight_scaled = weight.storage != Storage::Float(Float::F16);
    let other_rows = if contraction.forward() { weight.out_features } else { weight.in_features };
    let params = MagnitudeParams {
        elements: if weight_scaled { panel.rows * weight.in_features } else { 0 },
        others: rank * other_rows,
    };
    let [data, absmax, nested] = contraction.weight_views(rec);
    let [_, low, other] = contraction.term_views(rec);
    let work = u64::from(params.elements) + u64::from(params.others);
    let kernel = magnitude_kernel(weight.storage);
    let read = match weight.storage {
        Storage::Float(_) => params.elements / 4,
        Storage::Quantized { .. } => params.elements / BLOCK as u32,
    };
    let partials = read.max(params.others).div_ceil(MAGNITUDE_WG_SIZE).clamp(1, PARTIALS);
    rec.dispatch("linear_magnitude", kernel, &[other, data, absmax, nested, maxima], &params, [partials, 1, 1], work);

    let params = HalvesParams {
        rows: x.rows,
        cols: depth,
        x_ld4: x.ld / 4,
        x_col4: contraction.first_quads()[0],
        rank,
        low_ld4: contraction.low_ld4(),
        row_quads: row_quads(depth, rank),
        partials,
        weight_scaled: u32::from(weight_scaled),
        scale: contraction.scale(),
    };
    let work = u64::from(x.rows) * u64::from(depth + rank);
    let groups = rec.fold(u64::from(x.rows));
    rec.dispatch("linear_halves", halves_kernel(), &[x.view, low, maxima, halves], &params, groups, work);
    halves
}
