//! The cooperative form against the formula with f16 factors, and within its bound of the exact one: on the adapter's own matrices
//! where it has them, and everywhere with matrices in plain f32 that the same text is joined with.

use super::cooperative::{self, Matrices, Tile, record, rows_f16_bytes};
use super::tests::{SHARED_INPUTS, SharedInput, weight_of};
use super::twin;
use super::*;
use crate::gpu::Cooperative;
use crate::ops::testing::{Lab, assert_close, gpu};
use crate::quant::format::{Code4, Float};

fn emulated(side: u32, subgroups: [u32; 2], lanes: u32, tile: Tile) -> cooperative::Variant {
    cooperative::Variant { cooperative: Cooperative { side, subgroups }, tile, matrices: Matrices::Emulated { lanes } }
}

/// Sides of 8 and 16, one subgroup size, several of which either runs, and both tiles.
fn emulated_variants() -> Vec<cooperative::Variant> {
    vec![
        emulated(8, [8, 8], 8, Tile::TINY),
        emulated(16, [32, 64], 32, Tile::TINY),
        emulated(16, [32, 64], 64, Tile::TINY),
        emulated(16, [32, 32], 32, Tile::TINY_WIDE),
    ]
}

/// With this adapter's own matrices, the small tile of the tests first.
fn hardware_variants() -> Vec<cooperative::Variant> {
    let variants: Vec<cooperative::Variant> = cooperative::Variant::all(&gpu().capabilities).collect();
    let Some(first) = variants.first() else {
        eprintln!("skipped: the adapter's own matrices, since it has none of f16 with sums in f32");
        return Vec::new();
    };
    [vec![cooperative::Variant { tile: Tile::TINY, ..*first }], variants].concat()
}

fn variants() -> Vec<cooperative::Variant> {
    [emulated_variants(), hardware_variants()].concat()
}

/// The numbers of one layer in one direction: `x [rows, depth]` times `b [depth, cols]` plus the low-rank term.
struct Layer {
    direction: Direction,
    storage: Storage,
    rows: usize,
    out: usize,
    inp: usize,
    rank: usize,
    scale: f32,
    x: Vec<f64>,
    w: Vec<f32>,
    product: Vec<f64>,
    factor: Vec<f64>,
    bias: bool,
    y0: Option<Vec<f64>>,
}

impl Layer {
    fn normal(lab: &mut Lab, direction: Direction, storage: Storage, [rows, out, inp, rank]: [usize; 4]) -> Self {
        let (depth, cols) = if direction == Direction::Forward { (inp, out) } else { (out, inp) };
        Self {
            direction,
            storage,
            rows,
            out,
            inp,
            rank,
            scale: 0.75,
            x: lab.normal(rows * depth),
            w: lab.normal(out * inp).iter().map(|v| *v as f32 * 0.3).collect(),
            product: lab.normal(rows * rank),
            factor: lab.normal(rank * cols),
            bias: direction == Direction::Forward && rank % 2 == 1,
            y0: rank.is_multiple_of(4).then(|| lab.normal(rows * cols)),
        }
    }

    fn forward(&self) -> bool {
        self.direction == Direction::Forward
    }

    fn depth(&self) -> usize {
        if self.forward() { self.inp } else { self.out }
    }

    fn cols(&self) -> usize {
        if self.forward() { self.out } else { self.inp }
    }

    fn factor_at(&self, j: usize, col: usize) -> f64 {
        self.factor[if self.forward() { col * self.rank + j } else { j * self.inp + col }]
    }

    /// The kernel's outputs beside those of the formula with f16 factors, and those of the exact one with its bound.
    fn compare(&self, variant: cooperative::Variant) -> Outputs {
        let (got, weight, w, bias) = self.execute(variant);
        let (rounded, exact, bound) = self.twin(&weight, &w, &bias);
        Outputs { got, rounded, exact, bound }
    }

    fn run(&self, variant: cooperative::Variant) -> Vec<f32> {
        self.execute(variant).0
    }

    /// Outputs, the weight and the values that it and its bias hold.
    fn execute(&self, variant: cooperative::Variant) -> (Vec<f32>, Weight, Vec<f64>, Vec<f64>) {
        let mut lab = Lab::new();
        lab.reserve_panel(rows_f16_bytes(self.rows as u32, self.depth() as u32, self.rank as u32));
        let (weight, w, bias) = weight_of(&mut lab, self.storage, self.out, self.inp, self.bias, &self.w);
        let x = lab.matrix(self.rows, self.depth(), &self.x);
        let y = match &self.y0 {
            Some(values) => lab.matrix(self.rows, self.cols(), values),
            None => lab.empty(self.rows, self.cols()),
        };
        let low_rank = (self.rank > 0).then(|| LowRank {
            product: lab.matrix(self.rows, self.rank, &self.product),
            factor: lab.vector(&self.factor),
            scale: self.scale,
        });
        let mut rec = lab.recorder();
        for contraction in Contraction::of_panels(self.direction, x, &weight, low_rank, y, self.y0.is_some()) {
            record(&mut rec, variant, &GroupedContraction::one(contraction));
        }
        lab.run(&rec);
        (lab.read(y), weight, w, bias)
    }

    fn twin(&self, weight: &Weight, w: &[f64], bias: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (rows, cols, depth) = (self.rows, self.cols(), self.depth());
        let added = |at: usize| {
            let bias = if self.forward() { bias[at % cols] } else { 0.0 };
            bias + self.y0.as_ref().map_or(0.0, |y0| y0[at])
        };
        let mut rounded: Vec<f64> = (0..rows * cols).map(added).collect();
        let (mut exact, mut bound) = (rounded.clone(), vec![0.0; rows * cols]);
        let product: Vec<f64> = self.product.iter().map(|v| f64::from(self.scale * *v as f32)).collect();
        for (i, panel) in weight.panels.iter().enumerate() {
            let of_panel = panel.first_row as usize..(panel.first_row + panel.rows) as usize;
            let elements = &w[of_panel.start * self.inp..of_panel.end * self.inp];
            let exponent_w = if self.storage == Storage::Float(Float::F16) { 0 } else { exponent(elements) };
            let rank = if i == 0 || self.forward() { self.rank } else { 0 };
            let exponent_o = exponent(if rank > 0 { &self.factor } else { &[] });
            let (from, inner, outer) = match self.direction {
                Direction::Forward => (0, 0..depth, of_panel),
                Direction::InputGradient => (of_panel.start, of_panel, 0..cols),
            };
            for row in 0..rows {
                let x = &self.x[row * depth..][inner.clone()];
                let product = &product[row * self.rank..][..rank];
                let exponent_r = exponent(x).min(exponent(product) + exponent_o - exponent_w);
                let back = power(-(exponent_r + exponent_w));
                let rounded_to_f16 =
                    |values: &[f64], by: i32| values.iter().map(|v| half(*v, by)).collect::<Vec<f64>>();
                let (x16, product16) =
                    (rounded_to_f16(x, exponent_r), rounded_to_f16(product, exponent_r + exponent_w - exponent_o));
                for col in outer.clone() {
                    let at = row * cols + col;
                    for k in 0..x.len() {
                        let w = if self.forward() { w[col * self.inp + k] } else { w[(from + k) * self.inp + col] };
                        rounded[at] += x16[k] * half(w, exponent_w) * back;
                        exact[at] += x[k] * w;
                        bound[at] += (x[k] * w).abs();
                    }
                    for j in 0..rank {
                        let factor = self.factor_at(j, col);
                        rounded[at] += product16[j] * half(factor, exponent_o) * back;
                        exact[at] += product[j] * factor;
                        bound[at] += (product[j] * factor).abs();
                    }
                }
            }
        }
        (rounded, exact, bound.iter().map(|sum| sum / 1024.0).collect())
    }
}

struct Outputs {
    got: Vec<f32>,
    rounded: Vec<f64>,
    exact: Vec<f64>,
    bound: Vec<f64>,
}

impl Outputs {
    /// Rows are compared each by itself: a large one must not hide a small one.
    fn check(&self, what: &str, cols: usize) {
        for (row, (got, want)) in self.got.chunks(cols).zip(self.rounded.chunks(cols)).enumerate() {
            assert_close(&format!("{what}, row {row}"), got, want, 1e-5);
        }
        for (at, got) in self.got.iter().enumerate() {
            let error = (f64::from(*got) - self.exact[at]).abs();
            // Beside the factors' rounding: that of sums in f32, and what is too small for f16 beside its row.
            let allowed = 1.01 * self.bound[at] + 1e-6 * self.exact[at].abs() + 1e-37;
            assert!(error <= allowed, "{what}: element {at} is {got}, {} beyond {allowed:.2e}", self.exact[at]);
        }
    }
}

fn power(exponent: i32) -> f64 {
    2f64.powi(exponent)
}

/// Brings the largest magnitude into 2^14 .. 2^15.
fn exponent(values: &[f64]) -> i32 {
    let largest = values.iter().fold(0f64, |largest, v| largest.max(v.abs()));
    if largest == 0.0 { 126 } else { (14 - largest.log2().floor() as i32).min(126) }
}

fn half(value: f64, exponent: i32) -> f64 {
    half::f16::from_f64(value * power(exponent)).to_f64()
}

const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::InputGradient];
const NF4: Storage = Code4::Nf4.storage(true);
const BF16: Storage = Storage::Float(Float::Bf16);

#[test]
fn every_storage_equals_the_formula_with_f16_factors() {
    let mut lab = Lab::new();
    for variant in [emulated_variants()[0]].into_iter().chain(hardware_variants().into_iter().take(1)) {
        for storage in Storage::ALL {
            for direction in DIRECTIONS {
                for sizes in [[33, 70, 128, 8], [5, 130, 37, 3]] {
                    let layer = Layer::normal(&mut lab, direction, storage, sizes);
                    layer
                        .compare(variant)
                        .check(&format!("{variant:?}, {storage:?}, {direction:?}, {sizes:?}"), layer.cols());
                }
            }
        }
    }
}

#[test]
fn odd_and_random_sizes_equal_the_formula_with_f16_factors() {
    let mut lab = Lab::new();
    let variants = [emulated_variants(), hardware_variants().into_iter().take(2).collect()].concat();
    // Few texts, since software adapters take long to compile each: lengths are odd, ranks too.
    let mut cases = vec![[1, 1, 1, 1], [65, 33, 17, 5], [131, 67, 73, 17]];
    for _ in 0..2 {
        let mut draw = |below| 1 + 2 * lab.index(below);
        cases.push([draw(75), draw(75), draw(75), draw(20)]);
    }
    for variant in variants {
        for sizes in &cases {
            for (direction, storage) in [(Direction::Forward, NF4), (Direction::InputGradient, BF16)] {
                let layer = Layer::normal(&mut lab, direction, storage, *sizes);
                layer
                    .compare(variant)
                    .check(&format!("{variant:?}, {storage:?}, {direction:?}, {sizes:?}"), layer.cols());
            }
        }
    }
}

/// Values beyond f16's range either variant, alone and side by side.
#[test]
fn sizes_of_values_cost_no_precision() {
    let mut lab = Lab::new();
    let sizes = [20, 66, 65, 4];
    for variant in [emulated_variants()[0]].into_iter().chain(hardware_variants().into_iter().take(1)) {
        for direction in DIRECTIONS {
            let mut check = |what: &str, storage: Storage, change: &dyn Fn(&mut Layer)| {
                let mut layer = Layer::normal(&mut lab, direction, storage, sizes);
                change(&mut layer);
                layer.compare(variant).check(&format!("{what}: {variant:?}, {direction:?}"), layer.cols());
            };
            let by =
                |values: &mut [f64], factor: f64| values.iter_mut().for_each(|v| *v = f64::from((*v * factor) as f32));
            let no_start = |layer: &mut Layer| layer.y0 = None;
            for factor in [1e6, 1e-6, 1e30, 1e-30] {
                check("activations", NF4, &|layer| {
                    by(&mut layer.x, factor);
                    by(&mut layer.product, factor);
                    no_start(layer);
                });
                check("weight", BF16, &|layer| {
                    layer.w.iter_mut().for_each(|v| *v *= factor as f32);
                    no_start(layer);
                });
                check("LoRA alone", BF16, &|layer| {
                    by(&mut layer.product, factor);
                    no_start(layer);
                });
                check("LoRA factor alone", NF4, &|layer| {
                    by(&mut layer.factor, factor);
                    no_start(layer);
                });
            }
            check("rows unlike each other", NF4, &|layer| {
                let depth = layer.depth();
                for (row, values) in layer.x.chunks_mut(depth).enumerate() {
                    by(values, 10f64.powi(row as i32 * 3 - 30));
                }
                for (row, values) in layer.product.chunks_mut(4).enumerate() {
                    by(values, 10f64.powi(30 - row as i32 * 3));
                }
                no_start(layer);
            });
            check("zeros", BF16, &|layer| {
                let depth = layer.depth();
                layer.x[..2 * depth].fill(0.0);
                layer.product[4..12].fill(0.0);
            });
            check("a LoRA factor of zeros, as at the start", NF4, &|layer| layer.factor.fill(0.0));
            check("a weight of zeros", BF16, &|layer| layer.w.fill(0.0));
            check("an unused layer", BF16, &|layer| {
                layer.w.fill(0.0);
                layer.factor.fill(0.0);
                layer.x.fill(0.0);
            });
        }
    }
}

#[test]
fn what_is_not_finite_stays_so_and_touches_no_other_row() {
    let mut lab = Lab::new();
    for variant in [emulated_variants()[0]].into_iter().chain(hardware_variants().into_iter().take(1)) {
        for direction in DIRECTIONS {
            let clean = Layer::normal(&mut lab, direction, BF16, [20, 66, 65, 3]);
            let (cols, depth) = (clean.cols(), clean.depth());
            let want = clean.run(variant);
            let mut layer = clean;
            layer.x[3 * depth + 7] = f64::NAN;
            layer.x[5 * depth] = f64::INFINITY;
            layer.x[7 * depth + depth - 1] = f64::NEG_INFINITY;
            layer.product[9 * 3 + 2] = f64::NAN;
            let got = layer.run(variant);
            for (row, (got, want)) in got.chunks(cols).zip(want.chunks(cols)).enumerate() {
                if [3, 5, 7, 9].contains(&row) {
                    assert!(got.iter().all(|v| !v.is_finite()), "{variant:?} {direction:?} row {row}: {got:?}");
                } else {
                    assert_eq!(got, want, "{variant:?} {direction:?} row {row}");
                }
            }
            layer.w[70] = f32::INFINITY;
            assert!(layer.run(variant).iter().all(|v| !v.is_finite()), "{variant:?} {direction:?}, weight");
        }
    }
}

#[test]
fn the_gradient_of_a_shared_input_is_one_sum_within_the_bound() {
    let variants =
        [emulated_variants()[0], emulated_variants()[3]].into_iter().chain(hardware_variants().into_iter().take(1));
    for variant in variants {
        for (sizes, layers) in SHARED_INPUTS {
            for storage in [NF4, BF16] {
                let mut lab = Lab::new();
                (lab.capabilities.cpu, lab.capabilities.cooperative) = (false, Some(variant.cooperative));
                lab.reserve_panel(rows_f16_bytes(sizes[0] as u32, 256, 32));
                let shared = SharedInput::new(&mut lab, storage, sizes, layers);
                let terms = shared.terms();
                let grouped = GroupedContraction::of_gradients(lab.capabilities.max_binding_bytes, &terms, shared.dx)
                    .expect("one binding covers each operand");
                let mut rec = lab.recorder();
                record(&mut rec, variant, &grouped);
                // The magnitudes of each, the rows of all, and their products.
                assert_eq!(rec.commands.len(), 5);
                drop(grouped);
                lab.run(&rec);
                let what = format!("{variant:?}, {storage:?}, {sizes:?}");
                for (at, (got, want)) in lab.read(shared.dx).iter().zip(&shared.want).enumerate() {
                    let allowed = 1.01 * shared.magnitudes[at] / 1024.0 + 1e-6 * want.abs();
                    assert!((f64::from(*got) - want).abs() <= allowed, "{what}: element {at} is {got}, not {want}");
                }
            }
        }
    }
}

/// Sums run in the same order whatever the tile and however lanes are grouped: a choice by time changes no bit.
#[test]
fn tiles_and_subgroups_give_equal_bits() {
    let mut lab = Lab::new();
    for direction in DIRECTIONS {
        let layer = Layer::normal(&mut lab, direction, NF4, [131, 150, 200, 20]);
        let bits = |variant: cooperative::Variant| layer.run(variant).iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        let variants = variants();
        for side in [8, 16] {
            let same: Vec<cooperative::Variant> =
                variants.iter().copied().filter(|variant| variant.cooperative.side == side).collect();
            for emulated in [true, false] {
                let is_emulated = |variant: &&cooperative::Variant| variant.matrices != Matrices::Hardware;
                let mut alike = same.iter().filter(|variant| is_emulated(variant) == emulated);
                if let Some(first) = alike.next() {
                    let want = bits(*first);
                    assert_eq!(bits(*first), want, "{first:?} twice");
                    for variant in alike {
                        assert_eq!(bits(*variant), want, "{variant:?} against {first:?}");
                    }
                }
            }
        }
    }
}

/// Large contractions take this variant, and a whole layer goes through it.
#[test]
fn large_layers_take_this_variant_where_the_device_has_matrices() {
    let Some(matrices) = gpu().capabilities.cooperative else {
        eprintln!("skipped: whole layers, since this adapter has no matrices of f16 with sums in f32");
        return;
    };
    let mut lab = Lab::new();
    lab.reserve_panel(rows_f16_bytes(40, 130, 8));
    let values: Vec<f32> = lab.normal(130 * 128).iter().map(|v| *v as f32).collect();
    let (weight, w, _) = weight_of(&mut lab, NF4, 130, 128, false, &values);
    let x = lab.normal(40 * 128);
    let (gx, y) = (lab.matrix(40, 128, &x), lab.empty(40, 130));
    let mut rec = lab.recorder();
    rec.capabilities.cooperative = Some(matrices);
    forward(&mut rec, gx, &weight, None, y, false);
    assert_eq!(rec.commands.len(), 3);
    forward(&mut rec, gx.first_rows(1), &weight, None, y.first_rows(1), false);
    lab.run(&rec);
    let want = twin::multiply(&x, 40, 128, 130, |k, n| w[n * 128 + k]);
    assert_close("rows by f16", &lab.read(y)[130..], &want[130..], 1e-3);
    assert_close("a row by f32", &lab.read(y)[..130], &want[..130], 1e-5);
}
