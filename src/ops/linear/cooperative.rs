//! Variants for GPUs with cooperative matrices: f16 factors, f32 sums, see `shaders/linear_cooperative.wgsl`.
//!
//! Each row of x and of the LoRA term's product, the weight, and the LoRA factor are scaled by a power of two that brings their largest
//! element just under 2^15. The sums are scaled back. All of this is exact, except that f16 keeps 11 bits of each factor. The error of
//! an output is at most 2^-10 (sum |x| |w| + s sum |product| |factor|), and the part of elements that are 2^29 times smaller than the
//! largest of their row or matrix. A row that holds a value that is not finite, or meets one in the weight, becomes NaN.
//!
//! The whole weight has one power, since it is read both along its rows and across them. Each use searches for its largest magnitude
//! again: the weight may be in training, and another reading of the scales, or of a float weight, takes little time beside the product.

use super::contraction::{Contraction, Direction, GroupedContraction, MAX_TERMS};
use crate::gpu::{Capabilities, Cooperative, Kernel, Matrix, ProblemSize, Recorder, Scratch, View, params};
use crate::ops::lib_parts::MASK_TAIL;
use crate::ops::weight::Origin;
use crate::quant::format::{Float, Storage};

/// The smallest product that takes cooperative matrices. With fewer rows or columns most of a tile would be empty, and a shorter
/// contraction does not win back the scaling of its rows. By this rule LoRA's own products stay in f32.
const MIN_ROWS: u32 = 16;
const MIN_COLS: u32 = 64;
const MIN_DEPTH: u32 = 64;

/// The product's kernel.
pub(super) const NAME: &str = "linear_cooperative";

/// The most workgroups that search for the largest magnitudes, each with one partial result.
const PARTIALS: u32 = 256;
const MAGNITUDE_WG_SIZE: u32 = 256;
const ROWS_F16_WG_SIZE: u32 = 64;
const QUAD_BYTES: u64 = 8;

/// The outputs of a workgroup, and the units in which its subgroups share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// The name in the autotune table.
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
    /// The tile of small workgroup memory.
    pub const SMALL: Self = tile("cooperative 64x64x32", [64, 64, 32], 8, [2, 2]);
    /// All of 16 KiB with matrices of 16.
    pub const LARGE: Self = tile("cooperative 128x128x16", [128, 128, 16], 0, [2, 4]);
    /// Every tile.
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

    /// True if workgroups of the baseline's size hold whole subgroups, each with a unit.
    pub fn suits(self, subgroups: [u32; 2]) -> bool {
        let size = self.wg_size(subgroups);
        size <= 256 && subgroups[1] <= size
    }
}

/// The implementation of the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrices {
    /// The device's own matrices.
    Hardware,
    /// Plain f32 with rounded factors. `lanes` invocations act as a subgroup.
    #[cfg(test)]
    Emulated { lanes: u32 },
}

/// One variant of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The device's matrices.
    pub cooperative: Cooperative,
    /// The tile.
    pub tile: Tile,
    /// The implementation of the matrices.
    pub matrices: Matrices,
}

impl Variant {
    /// All variants on a device with matrices. The first one is taken where none was measured.
    pub(super) fn all(capabilities: &Capabilities) -> impl Iterator<Item = Self> {
        capabilities.cooperative.into_iter().flat_map(|cooperative| {
            let tiles = Tile::ALL.into_iter().filter(move |tile| tile.suits(cooperative.subgroups));
            tiles.map(move |tile| Self { cooperative, tile, matrices: Matrices::Hardware })
        })
    }
}

params! {
    struct MagnitudeParams {
        elements: u32,
        factors: u32,
    }

    /// One of the contractions that are added up: its rows, and their place among the converted rows.
    struct RowsF16Term {
        depth: u32,
        x_first4: u32,
        x_ld4: u32,
        rank: u32,
        product_first4: u32,
        product_ld4: u32,
        first_quad: u32,
        partials: u32,
        scale: f32,
        padding: [u32; 3],
    }

    struct RowsF16Params {
        rows: u32,
        row_quads: u32,
        weight_scaled: u32,
        count: u32,
        terms: [RowsF16Term; MAX_TERMS],
    }

    struct Term {
        depth: u32,
        first_quad: u32,
        rank: u32,
        factor_first: u32,
        weight_first: u32,
        absmax_first: u32,
        nested_first: u32,
        padding: u32,
    }

    struct Params {
        rows: u32,
        cols: u32,
        in_features: u32,
        row_quads: u32,
        y_ld4: u32,
        y_col4: u32,
        bias_first: u32,
        bias: u32,
        accumulate: u32,
        count: u32,
        padding: [u32; 2],
        terms: [Term; MAX_TERMS],
    }
}

fn magnitude_kernel(storage: Storage) -> Kernel {
    let kernel = Kernel::new::<MagnitudeParams>("linear_magnitude", shader!("linear_magnitude.wgsl"))
        .part(shader!("lib/reduce_bits.wgsl"))
        .constant("WG_SIZE", MAGNITUDE_WG_SIZE)
        .constant("PARTIALS", PARTIALS)
        .constant("BLOCKS", matches!(storage, Storage::Quantized { .. }));
    storage.join(kernel, 4)
}

fn rows_f16_kernel() -> Kernel {
    Kernel::new::<RowsF16Params>("linear_rows_f16", shader!("linear_rows_f16.wgsl"))
        .part(MASK_TAIL)
        .part(shader!("lib/powers.wgsl"))
        .part(shader!("lib/reduce_bits.wgsl"))
        .constant("WG_SIZE", ROWS_F16_WG_SIZE)
        .constant("PARTIALS", PARTIALS)
        .constant("TERMS", MAX_TERMS as u32)
}

impl Variant {
    /// The kernel that adds up at most `terms` contractions.
    pub(super) fn kernel(self, direction: Direction, storage: Storage, in_features: u32, terms: usize) -> Kernel {
        let Self { tile, cooperative: Cooperative { side, subgroups }, .. } = self;
        let forward = direction == Direction::Forward;
        let wg_size = tile.wg_size(subgroups);
        let x_stride = tile.depth + tile.gap;
        let (w_rows, w_stride) = if forward { (tile.cols, x_stride) } else { (tile.depth, tile.cols + tile.gap) };
        let kernel = Kernel::new::<Params>(NAME, shader!("linear_cooperative.wgsl"))
            .constant("FORWARD", forward)
            .constant("TERMS", if terms > 1 { MAX_TERMS as u32 } else { 1 })
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
            .part(shader!("lib/powers.wgsl"));
        let kernel = match self.matrices {
            Matrices::Hardware => self.cooperative.join(kernel).part(shader!("lib/matrix_hardware.wgsl")),
            #[cfg(test)]
            Matrices::Emulated { lanes } => kernel
                .constant("LANES", lanes)
                .constant("PER_LANE", side * side / lanes)
                .part(shader!("lib/matrix_emulated.wgsl")),
        };
        storage.join_at(kernel, in_features, if terms > 1 { Origin::Moving } else { Origin::Fixed })
    }
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all: Vec<Kernel> = Storage::ALL.into_iter().map(magnitude_kernel).collect();
    all.push(rows_f16_kernel());
    for cooperative in Cooperative::KNOWN {
        let capabilities = Capabilities { cooperative: Some(cooperative), ..Capabilities::BASELINE };
        for variant in Variant::all(&capabilities) {
            for storage in Storage::ALL {
                for in_features in [64, 63] {
                    all.push(variant.kernel(Direction::Forward, storage, in_features, 1));
                    for terms in [1, MAX_TERMS] {
                        all.push(variant.kernel(Direction::InputGradient, storage, in_features, terms));
                    }
                }
            }
        }
    }
    all
}

/// True if a contraction of this shape takes cooperative matrices.
pub(super) fn applies(capabilities: &Capabilities, problem: &ProblemSize) -> bool {
    problem.rows >= MIN_ROWS
        && problem.cols >= MIN_COLS
        && problem.depth >= MIN_DEPTH
        && Variant::all(capabilities).next().is_some()
}

/// The quads of a converted row for one contraction, without its powers: its part of x and of the LoRA term's product.
fn quads(depth: u32, rank: u32) -> u32 {
    depth.div_ceil(4) + rank.div_ceil(4)
}

/// Scratch for the rows of a contraction in f16.
pub(super) fn rows_f16_bytes(rows: u32, depth: u32, rank: u32) -> u64 {
    QUAD_BYTES * u64::from(rows) * u64::from(1 + quads(depth, rank))
}

/// The partial maxima of one contraction.
const MAXIMA_BYTES: u64 = 2 * 4 * PARTIALS as u64;
/// Scratch for the partial maxima of a grouped contraction.
pub(super) const ALL_MAXIMA_BYTES: u64 = MAXIMA_BYTES * MAX_TERMS as u64;

/// The layout of the converted rows of a grouped contraction: a quad of powers for each contraction, then the parts of each.
struct RowLayout {
    /// The quad at which the part of each contraction begins.
    firsts: [u32; MAX_TERMS],
    quads: u32,
}

impl RowLayout {
    fn of(grouped: &GroupedContraction) -> Self {
        let mut rows = Self { firsts: [0; MAX_TERMS], quads: grouped.terms.len() as u32 };
        for (first, term) in rows.firsts.iter_mut().zip(&grouped.terms) {
            *first = rows.quads;
            rows.quads += quads(term.depth(), term.rank());
        }
        rows
    }
}

pub(super) fn record(rec: &mut Recorder, variant: Variant, grouped: &GroupedContraction) {
    let first = grouped.first();
    let Contraction { direction, x: Matrix { rows, .. }, weight, panel, y, accumulate, .. } = *first;
    let layout = RowLayout::of(grouped);
    let rows_f16 = scale_rows(rec, grouped, &layout);
    let mut terms = [Term::default(); MAX_TERMS];
    for ((term, contraction), first_quad) in terms.iter_mut().zip(&grouped.terms).zip(layout.firsts) {
        let offsets = grouped.offsets(contraction);
        *term = Term {
            depth: contraction.depth(),
            first_quad,
            rank: contraction.rank(),
            factor_first: offsets.factor,
            weight_first: offsets.data,
            absmax_first: offsets.absmax,
            nested_first: offsets.nested,
            padding: 0,
        };
    }
    let cols = first.cols();
    let params = Params {
        rows,
        cols,
        in_features: weight.in_features,
        row_quads: layout.quads,
        y_ld4: y.ld / 4,
        y_col4: first.first_quads()[1],
        bias_first: panel.first_row,
        bias: u32::from(first.bias().is_some()),
        accumulate: u32::from(accumulate),
        count: grouped.terms.len() as u32,
        padding: [0; 2],
        terms,
    };
    let [absmax, nested, bias, factor] =
        [grouped.absmax, grouped.nested, first.bias(), grouped.factor].map(|view| view.unwrap_or(rec.unused));
    let views = [rows_f16, grouped.data, absmax, nested, bias, factor, y.view];
    let kernel = variant.kernel(direction, weight.storage, weight.in_features, grouped.terms.len());
    let groups = [cols.div_ceil(variant.tile.cols), rows.div_ceil(variant.tile.rows), 1];
    rec.dispatch(first.op_name(), kernel, &views, &params, groups, grouped.work());
}

/// Scales the rows of x and of the LoRA terms' products, and converts them to f16.
fn scale_rows(rec: &mut Recorder, grouped: &GroupedContraction, layout: &RowLayout) -> View {
    let Contraction { x: Matrix { rows, .. }, weight, .. } = *grouped.first();
    let bytes = QUAD_BYTES * u64::from(rows) * u64::from(layout.quads);
    let Scratch { weight_panel, partials } = rec.scratch;
    assert!(bytes <= weight_panel.bytes, "scratch for {rows} rows of {} quads in f16", layout.quads);
    assert!(ALL_MAXIMA_BYTES <= partials.bytes, "scratch for the largest magnitudes");
    let (rows_f16, maxima) = (View { bytes, ..weight_panel }, View { bytes: ALL_MAXIMA_BYTES, ..partials });

    // A weight in f16 needs no scaling.
    let weight_scaled = weight.storage != Storage::Float(Float::F16);
    let mut terms = [RowsF16Term::default(); MAX_TERMS];
    for (i, (term, contraction)) in terms.iter_mut().zip(&grouped.terms).enumerate() {
        let of_term = maxima.slice(i as u64 * MAXIMA_BYTES, MAXIMA_BYTES);
        let offsets = grouped.offsets(contraction);
        *term = RowsF16Term {
            depth: contraction.depth(),
            x_first4: offsets.x4,
            x_ld4: contraction.x.ld / 4,
            rank: contraction.rank(),
            product_first4: offsets.product4,
            product_ld4: contraction.product_ld4(),
            first_quad: layout.firsts[i],
            partials: record_magnitudes(rec, contraction, weight_scaled, of_term),
            scale: contraction.scale(),
            padding: [0; 3],
        };
    }
    let params = RowsF16Params {
        rows,
        row_quads: layout.quads,
        weight_scaled: u32::from(weight_scaled),
        count: grouped.terms.len() as u32,
        terms,
    };
    let product = grouped.product.unwrap_or(rec.unused);
    let groups = rec.fold(u64::from(rows));
    let work = 4 * u64::from(rows) * u64::from(layout.quads);
    rec.dispatch("linear_rows_f16", rows_f16_kernel(), &[grouped.x, product, maxima, rows_f16], &params, groups, work);
    rows_f16
}

/// Searches for the largest magnitudes of a contraction's weight and LoRA factor. Returns the count of partial maxima.
fn record_magnitudes(rec: &mut Recorder, contraction: &Contraction, weight_scaled: bool, maxima: View) -> u32 {
    let Contraction { weight, panel, .. } = contraction;
    let factor_rows = if contraction.forward() { weight.out_features } else { weight.in_features };
    let params = MagnitudeParams {
        elements: if weight_scaled { panel.rows * weight.in_features } else { 0 },
        factors: contraction.rank() * factor_rows,
    };
    let [data, absmax, nested] = contraction.weight_views(rec);
    let [_, _, factor] = contraction.term_views(rec);
    let work = u64::from(params.elements) + u64::from(params.factors);
    let kernel = magnitude_kernel(weight.storage);
    let read = match weight.storage {
        Storage::Float(_) | Storage::Blocks(_) => params.elements / 4,
        Storage::Quantized(format) => params.elements / format.code.block() as u32,
    };
    let partials = read.max(params.factors).div_ceil(MAGNITUDE_WG_SIZE).clamp(1, PARTIALS);
    rec.dispatch("linear_magnitude", kernel, &[factor, data, absmax, nested, maxima], &params, [partials, 1, 1], work);
    partials
}
