//! Every form against the formula, in every storage, direction and odd size.

use super::*;
use crate::gpu::{AutotuneTable, Command};
use crate::ops::testing::{Lab, Stored, assert_close, assert_gradient, families};
use crate::ops::weight::Rows;
use crate::quant::format::{Code4, Float};

/// A planned and uploaded weight, and the values that it holds.
fn weight(lab: &mut Lab, storage: Storage, out: usize, inp: usize, bias: bool) -> (Weight, Vec<f64>, Vec<f64>) {
    let values: Vec<f32> = lab.normal(out * inp).iter().map(|v| *v as f32 * 0.3).collect();
    weight_of(lab, storage, out, inp, bias, &values)
}

/// A lab matrix with these values.
pub(super) fn weight_of(
    lab: &mut Lab,
    storage: Storage,
    out: usize,
    inp: usize,
    bias: bool,
    values: &[f32],
) -> (Weight, Vec<f64>, Vec<f64>) {
    let bias_values = if bias { lab.normal(out) } else { vec![0.0; out] };
    // Float weights and blocks come in panels; those in 4 bits whole, as the scales are over the whole matrix.
    let panels = match storage {
        Storage::Float(float) => out.div_ceil(256 / float.bytes() as usize),
        Storage::Quantized { .. } => 1,
        Storage::Blocks(_) => out.div_ceil(64),
    };
    let values: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    let (mut weight, held) = lab.weight(storage, [out, inp], &values, panels);
    weight.bias = bias.then(|| lab.vector(&bias_values));
    (weight, held, bias_values)
}

#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    out: usize,
    inp: usize,
    rank: usize,
    bias: bool,
}

fn case(rows: usize, out: usize, inp: usize, rank: usize, bias: bool) -> Case {
    Case { rows, out, inp, rank, bias }
}

/// The families that this adapter can run, with the names of the variants in each; an empty name where there is no choice.
fn variants() -> Vec<(VariantFamily, &'static str)> {
    let problem = |cols| ProblemSize { op: "", storage: "", rows: 128, cols, depth: 64 };
    let of_family = |family| {
        let of_width = |cols| Variant::all(&Lab::for_family(family).capabilities, &problem(cols));
        let mut names: Vec<_> = [128, 16].into_iter().flat_map(of_width).map(Variant::name).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() { vec![(family, "")] } else { names.into_iter().map(|name| (family, name)).collect() }
    };
    families().into_iter().flat_map(of_family).collect()
}

/// Records with `variant` as the measured choice for every problem size.
fn recorded(lab: &Lab, variant: &str, record: impl Fn(&mut Recorder)) -> Recorder {
    let mut rec = lab.recorder();
    record(&mut rec);
    let mut autotune = AutotuneTable::default();
    rec.problem_sizes.iter().for_each(|problem| autotune.insert(problem.class(), variant));
    let mut rec = lab.recorder().with_autotune(&autotune);
    record(&mut rec);
    rec
}

/// Compares with the twin, and gives the bits of all results.
fn check((family, variant): (VariantFamily, &str), storage: Storage, case: Case) -> Vec<u32> {
    let Case { rows, out, inp, rank, bias } = case;
    let mut lab = Lab::for_family(family);
    let what = format!("{family:?} {variant}, {storage:?}, {rows} x {out} x {inp}, rank {rank}");
    let (weight, w, b) = weight(&mut lab, storage, out, inp, bias);
    let (x, dy) = (lab.normal(rows * inp), lab.normal(rows * out));
    let (xa, dyb) = (lab.normal(rows * rank), lab.normal(rows * rank));
    let (lora_a, lora_b) = (lab.normal(rank * inp), lab.normal(out * rank));
    let (y0, dx0) = (lab.normal(rows * out), lab.normal(rows * inp));
    let scale = 0.75;
    let (gx, gdy) = (lab.matrix(rows, inp, &x), lab.matrix(rows, out, &dy));
    let (y, y_added) = (lab.empty(rows, out), lab.matrix(rows, out, &y0));
    let (dx, dx_added) = (lab.empty(rows, inp), lab.matrix(rows, inp, &dx0));
    let (mut term_forward, mut term_gradient) = (None, None);
    if rank > 0 {
        term_forward = Some(LowRank { product: lab.matrix(rows, rank, &xa), factor: lab.vector(&lora_b), scale });
        term_gradient = Some(LowRank { product: lab.matrix(rows, rank, &dyb), factor: lab.vector(&lora_a), scale });
    }
    let rec = recorded(&lab, variant, |rec| {
        forward(rec, gx, &weight, term_forward, y, false);
        forward(rec, gx, &weight, term_forward, y_added, true);
        input_gradient(rec, gdy, &weight, term_gradient, dx, false);
        input_gradient(rec, gdy, &weight, term_gradient, dx_added, true);
    });
    lab.run(&rec);

    let base = twin::multiply(&x, rows, inp, out, |k, n| w[n * inp + k]);
    let lora = twin::multiply(&xa, rows, rank, out, |j, n| lora_b[n * rank + j]);
    let scale = f64::from(scale);
    let want: Vec<f64> = (0..rows * out).map(|i| base[i] + scale * lora[i] + b[i % out]).collect();
    assert_close(&format!("y: {what}"), &lab.read(y), &want, 1e-5);
    let want: Vec<f64> = want.iter().zip(&y0).map(|(a, b)| a + b).collect();
    assert_close(&format!("y added: {what}"), &lab.read(y_added), &want, 1e-5);
    let base = twin::multiply(&dy, rows, out, inp, |n, k| w[n * inp + k]);
    let lora = twin::multiply(&dyb, rows, rank, inp, |j, k| lora_a[j * inp + k]);
    let want: Vec<f64> = base.iter().zip(&lora).map(|(a, l)| a + scale * l).collect();
    assert_close(&format!("dx: {what}"), &lab.read(dx), &want, 1e-5);
    let want: Vec<f64> = want.iter().zip(&dx0).map(|(a, b)| a + b).collect();
    assert_close(&format!("dx added: {what}"), &lab.read(dx_added), &want, 1e-5);
    [y, y_added, dx, dx_added].iter().flat_map(|result| lab.read(*result)).map(f32::to_bits).collect()
}

/// Every variant of every form equals the formula, and those among which a device chooses equal each other to the bit.
fn check_all(storage: Storage, case: Case) {
    let mut of_tiles: Option<Vec<u32>> = None;
    for variant in variants() {
        let bits = check(variant, storage, case);
        if variant.0 == VariantFamily::Tiles {
            assert!(*of_tiles.get_or_insert_with(|| bits.clone()) == bits, "bits of {variant:?}, {storage:?}");
        }
    }
}

#[test]
fn every_form_equals_the_formula_in_every_storage() {
    for storage in Storage::ALL {
        check_all(storage, case(33, 70, 128, 8, true));
        for case in [
            case(5, 130, 37, 3, false),
            case(3, 131, 37, 3, true),
            case(1, 70, 128, 8, true),
            case(2, 9, 36, 0, false),
            // As narrow as the factors of LoRA, which are contracted as weights too.
            case(37, 19, 8, 6, true),
            case(130, 40, 24, 12, false),
            case(130, 43, 16, 5, true),
        ] {
            for family in families() {
                check((family, ""), storage, case);
            }
        }
    }
}

#[test]
fn odd_and_random_sizes_equal_the_formula() {
    let mut lab = Lab::new();
    let mut cases = vec![
        case(1, 1, 1, 1, true),
        case(1, 300, 100, 0, true),
        case(4, 64, 64, 16, false),
        case(129, 65, 17, 5, true),
        case(131, 67, 72, 5, true),
        case(130, 24, 136, 9, false),
        case(150, 200, 192, 20, true),
        // As wide as a rank.
        case(133, 16, 128, 5, true),
        case(70, 131, 16, 3, false),
    ];
    for _ in 0..6 {
        let mut draw = |below| 1 + lab.index(below);
        cases.push(case(draw(150), draw(200), draw(200), draw(20), true));
    }
    for case in cases {
        check_all(Storage::Float(Float::F32), case);
        check_all(Code4::Nf4.storage(true), case);
    }
}

#[test]
fn the_variant_that_was_measured_is_recorded() {
    let kernels = |variant: &str, rows: usize| -> Vec<_> {
        let mut lab = Lab::for_family(VariantFamily::Tiles);
        let (weight, _, _) = weight(&mut lab, Storage::Float(Float::F32), 192, 64, false);
        let (x, y) = (lab.empty(rows, 64), lab.empty(rows, 192));
        let rec = recorded(&lab, variant, |rec| forward(rec, x, &weight, None, y, false));
        let kernel = |command: &Command| match command {
            Command::Dispatch(dispatch) => dispatch.kernel.wgsl(),
            other => panic!("{other:?}"),
        };
        rec.commands.iter().map(kernel).collect()
    };
    let first = kernels("", 128);
    let fitting = Tile::fitting(128, 192);
    let mut texts: Vec<_> = fitting.iter().map(|tile| kernels(tile.name, 128)).collect();
    assert!(texts[0] == first && !first.is_empty());
    texts.sort();
    texts.dedup();
    assert_eq!((texts.len(), fitting.len()), (5, 5));
    // The narrow one is for what is narrow, and for that alone.
    assert!(Tile::fitting(128, 16)[0].name.starts_with("128x16x16"));
    // A tile that would be mostly empty is not used, whatever was measured for more rows.
    assert!(kernels("128x128x8 by 8x8", 5) == kernels("", 5));
    assert!(kernels("32x64x16 by 4x4", 5) != kernels("", 5));
}

/// Layers that read one input, on the device, and the input's gradient by the formula.
pub(super) struct SharedInput {
    weights: [Weight; 3],
    dys: [Matrix; 3],
    low_ranks: [Option<LowRank>; 3],
    pub dx: Matrix,
    pub want: Vec<f64>,
    /// The sums of the products' magnitudes.
    pub magnitudes: Vec<f64>,
}

impl SharedInput {
    /// `sizes` are the outputs and the rank of each.
    pub(super) fn new(lab: &mut Lab, storage: Storage, [rows, inp]: [usize; 2], sizes: [[usize; 2]; 3]) -> Self {
        let [outs, ranks] = [0, 1].map(|which| sizes.map(|size| size[which] as u32));
        let matrices = outs.map(|out_features| Rows { label: "w", out_features, bias: false });
        let limit = lab.capabilities.max_binding_bytes;
        let weights = Weight::plan_contiguous(&mut lab.plan, matrices, storage, inp as u32, limit);
        let dys = lab.plan.contiguous_matrices(Category::Workspace, "dy", rows as u32, outs);
        let products = lab.plan.contiguous_matrices(Category::Workspace, "dy B", rows as u32, ranks);
        let bytes = ranks.map(|rank| 4 * u64::from(rank) * inp as u64);
        let factors = lab.plan.alloc_contiguous(Category::Workspace, "lora_A", bytes);
        let (mut want, mut magnitudes) = (vec![0.0; rows * inp], vec![0.0; rows * inp]);
        let mut terms = [None; 3];
        for (i, [out, rank]) in sizes.into_iter().enumerate() {
            let stored = Stored::of(storage, &lab.normal(out * inp).iter().map(|v| 0.3 * v).collect::<Vec<_>>());
            let panel = weights[i].panels[0];
            lab.fill(panel.data, &stored.data);
            panel.absmax.iter().for_each(|view| lab.fill(*view, &stored.absmax));
            panel.nested.iter().for_each(|view| lab.fill(*view, &stored.nested));
            let (dy, dyb, lora_a) = (lab.normal(rows * out), lab.normal(rows * rank), lab.normal(rank * inp));
            lab.fill_matrix(dys[i], &dy);
            lab.fill_matrix(products[i], &dyb);
            lab.fill(factors[i], &lora_a.iter().map(|v| (*v as f32).to_bits()).collect::<Vec<_>>());
            let scale = 0.75 / (1 + i) as f32;
            for (sums, of) in [(&mut want, (|v| v) as fn(f64) -> f64), (&mut magnitudes, f64::abs)] {
                let each = |values: &[f64]| values.iter().map(|v| of(*v)).collect::<Vec<_>>();
                let base = twin::multiply(&each(&dy), rows, out, inp, |n, k| of(stored.held[n * inp + k]));
                let lora = twin::multiply(&each(&dyb), rows, rank, inp, |j, k| of(lora_a[j * inp + k]));
                sums.iter_mut().zip(base.iter().zip(&lora)).for_each(|(sum, (b, l))| *sum += b + f64::from(scale) * l);
            }
            terms[i] = (rank > 0).then_some(LowRank { product: products[i], factor: factors[i], scale });
        }
        Self { weights, dys, low_ranks: terms, dx: lab.empty(rows, inp), want, magnitudes }
    }

    pub(super) fn terms(&self) -> [GradientTerm<'_>; 3] {
        std::array::from_fn(|i| GradientTerm { dy: self.dys[i], weight: &self.weights[i], low_rank: self.low_ranks[i] })
    }
}

/// Grouped heads, as q, k and v have them; odd sizes and ranks; one that is not adapted.
pub(super) const SHARED_INPUTS: [([usize; 2], [[usize; 2]; 3]); 3] = [
    ([33, 128], [[70, 8], [24, 8], [24, 8]]),
    ([5, 37], [[9, 3], [130, 0], [1, 5]]),
    ([67, 192], [[64, 0], [65, 0], [63, 0]]),
];

#[test]
fn the_gradient_of_a_shared_input_is_one_sum() {
    for storage in Storage::ALL {
        for (input, layers) in SHARED_INPUTS {
            let mut of_tiles: Option<Vec<f32>> = None;
            for (family, variant) in variants() {
                let what = format!("{family:?} {variant}, {storage:?}, {input:?}, {layers:?}");
                let mut lab = Lab::for_family(family);
                let shared = SharedInput::new(&mut lab, storage, input, layers);
                let rec = recorded(&lab, variant, |rec| sum_of_input_gradients(rec, &shared.terms(), shared.dx));
                lab.run(&rec);
                let got = lab.read(shared.dx);
                assert_close(&what, &got, &shared.want, 1e-5);
                if family == VariantFamily::Tiles {
                    assert_eq!(rec.commands.len(), 1, "{what}");
                    assert!(*of_tiles.get_or_insert_with(|| got.clone()) == got, "bits of {what}");
                }
            }
        }
    }
}

#[test]
fn terms_that_no_binding_covers_are_added_up_one_after_another() {
    let mut lab = Lab::for_family(VariantFamily::Tiles);
    let storage = Storage::Float(Float::F32);
    let matrices = [70, 24].map(|out_features| Rows { label: "w", out_features, bias: false });
    let products = |lab: &Lab, weights: &[Weight; 2], dys: [Matrix; 2], dx| {
        let term = |i: usize| GradientTerm { dy: dys[i], weight: &weights[i], low_rank: None };
        let mut rec = lab.recorder();
        sum_of_input_gradients(&mut rec, &[term(0), term(1)], dx);
        rec.commands.len()
    };
    let dx = lab.empty(5, 64);
    let dys = lab.plan.contiguous_matrices(Category::Workspace, "dy", 5, [70, 24]);
    let apart = [lab.empty(5, 70), lab.empty(5, 24)];
    let weights = Weight::plan_contiguous(&mut lab.plan, matrices, storage, 64, u64::MAX);
    assert_eq!(products(&lab, &weights, dys, dx), 1);
    assert_eq!(products(&lab, &weights, apart, dx), 2);
    // One in panels, and what would be bound over a smaller adapter's limit.
    let in_panels = Weight::plan_contiguous(&mut lab.plan, matrices, storage, 64, 4 * 64 * 64);
    assert_eq!(in_panels.each_ref().map(|weight| weight.panels.len()), [2, 1]);
    assert_eq!(products(&lab, &in_panels, dys, dx), 3);
    lab.capabilities.max_binding_bytes = 4 * 64 * 93;
    assert_eq!(products(&lab, &weights, dys, dx), 2);
}

#[test]
fn the_twins_gradient_is_the_slope_of_its_forward() {
    let mut lab = Lab::new();
    let (w, x, dy) = (lab.normal(4 * 3), lab.normal(2 * 3), lab.normal(2 * 4));
    let dx = twin::multiply(&dy, 2, 4, 3, |n, k| w[n * 3 + k]);
    assert_gradient(&x, &dx, |x| {
        twin::multiply(x, 2, 3, 4, |k, n| w[n * 3 + k]).iter().zip(&dy).map(|(y, d)| y * d).sum()
    });
}
