//! The kernels that measure an adapter's ceilings and do nothing else: multiply-adds in registers, matrix products, and copies.

use crate::gpu::{Cooperative, Kernel, Recorder, View, params};

const COPY_WG_SIZE: u32 = 64;
/// Steps of a chain in one turn of the loop.
const UNROLLED: u32 = 8;

params! {
    struct FmaParams {
        turns: u32,
        factor: f32,
        term: f32,
    }
}

/// A variant of the multiply-add kernel. The fastest one depends on the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FmaVariant {
    /// Invocations of a workgroup.
    pub wg_size: u32,
    /// Independent chains of vec4.
    pub accumulators: u32,
    /// True for `fma(a, b, c)`, false for `a * b + c`. Some drivers fuse only the first, others only the second.
    pub fused: bool,
}

impl FmaVariant {
    /// Every variant.
    pub(super) const ALL: [Self; 7] = [
        Self { wg_size: 8, accumulators: 8, fused: true },
        Self { wg_size: 8, accumulators: 4, fused: false },
        Self { wg_size: 64, accumulators: 4, fused: true },
        Self { wg_size: 64, accumulators: 8, fused: true },
        Self { wg_size: 64, accumulators: 8, fused: false },
        Self { wg_size: 64, accumulators: 12, fused: true },
        Self { wg_size: 256, accumulators: 8, fused: true },
    ];
}

fn fma_kernel(variant: FmaVariant) -> Kernel {
    Kernel::new::<FmaParams>("bench_fma", shader!("bench_fma.wgsl"))
        .constant("WG_SIZE", variant.wg_size)
        .constant("ACCUMULATORS", variant.accumulators)
        .constant("FUSED", variant.fused)
        .constant("UNROLLED", UNROLLED)
}

/// Chains of products by each subgroup.
const MATRIX_ACCUMULATORS: u32 = 8;

params! {
    struct MatrixParams {
        turns: u32,
        factor: f32,
    }
}

/// Workgroups of four of the smallest subgroups, or of one of the largest.
fn matrix_wg_size(cooperative: Cooperative) -> u32 {
    let [smallest, largest] = cooperative.subgroups;
    (4 * smallest).max(largest)
}

fn matrix_kernel(cooperative: Cooperative) -> Kernel {
    let kernel = Kernel::new::<MatrixParams>("bench_matrices", shader!("bench_matrices.wgsl"))
        .constant("SIDE", cooperative.side)
        .constant("WG_SIZE", matrix_wg_size(cooperative))
        .constant("MOST_SUBGROUPS", matrix_wg_size(cooperative) / cooperative.subgroups[0])
        .constant("ACCUMULATORS", MATRIX_ACCUMULATORS);
    cooperative.join(kernel)
}

/// The count of f32 sums that [`matrices`] writes in `groups` workgroups.
pub(super) fn matrix_sums(cooperative: Cooperative, groups: u32) -> u64 {
    let most = u64::from(matrix_wg_size(cooperative) / cooperative.subgroups[0]);
    u64::from(groups) * most * u64::from(cooperative.side * cooperative.side)
}

/// `groups` workgroups of chains of `turns` products of matrices whose elements all are `factor`; y takes [`matrix_sums`] values.
/// Returns the floating-point operations, two a multiply-add.
pub(super) fn matrices(
    rec: &mut Recorder,
    cooperative: Cooperative,
    groups: u32,
    turns: u32,
    factor: f32,
    y: View,
) -> f64 {
    assert!(y.bytes >= 4 * matrix_sums(cooperative, groups), "{groups} workgroups into {y:?}");
    let work = u64::from(groups * MATRIX_ACCUMULATORS) * u64::from(turns) * u64::from(cooperative.side).pow(3);
    let params = MatrixParams { turns, factor };
    rec.dispatch("bench_matrices", matrix_kernel(cooperative), &[y], &params, [groups, 1, 1], work);
    2.0 * work as f64
}

params! {
    struct CopyParams {
        count: u32,
    }
}

fn copy_kernel() -> Kernel {
    Kernel::new::<CopyParams>("bench_copy", shader!("bench_copy.wgsl")).constant("WG_SIZE", COPY_WG_SIZE)
}

/// Every kernel of the bench, for the tests that validate their texts.
pub fn kernels() -> Vec<Kernel> {
    let matrices = Cooperative::KNOWN.map(matrix_kernel);
    FmaVariant::ALL.map(fma_kernel).into_iter().chain([copy_kernel()]).chain(matrices).collect()
}

/// `invocations` (a multiple of 256) chains of `steps` times (a multiple of 8) `a = a factor + term`; y takes four sums of each invocation.
/// Returns the floating-point operations, two a multiply-add.
pub(super) fn fma(
    rec: &mut Recorder,
    variant: FmaVariant,
    invocations: u32,
    steps: u32,
    factor: f32,
    term: f32,
    y: View,
) -> f64 {
    assert!(
        invocations.is_multiple_of(256) && steps.is_multiple_of(UNROLLED) && y.bytes >= 16 * u64::from(invocations),
        "{invocations} into {y:?}"
    );
    let work = 4 * u64::from(invocations) * u64::from(steps) * u64::from(variant.accumulators);
    let groups = [invocations / variant.wg_size, 1, 1];
    rec.dispatch(
        "bench_fma",
        fma_kernel(variant),
        &[y],
        &FmaParams { turns: steps / UNROLLED, factor, term },
        groups,
        work,
    );
    2.0 * work as f64
}

/// Copies x over y, which lie in different buffers. Returns the bytes read and written.
pub(super) fn copy(rec: &mut Recorder, x: View, y: View) -> f64 {
    assert_eq!(x.bytes, y.bytes, "copy between views of unlike size");
    let count = (x.bytes / 16) as u32;
    let groups = rec.fold(u64::from(count.div_ceil(COPY_WG_SIZE)));
    rec.dispatch("bench_copy", copy_kernel(), &[x, y], &CopyParams { count }, groups, u64::from(count));
    2.0 * x.bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close};

    /// The chains in plain loops.
    fn twin(accumulators: u32, turns: u32, factor: f64, term: f64) -> [f64; 4] {
        std::array::from_fn(|lane| {
            let chain = |i: u32| (0..turns).fold(f64::from(i) + lane as f64, |a, _| a * factor + term);
            (0..accumulators).map(chain).sum()
        })
    }

    #[test]
    fn every_variant_computes_its_chains() {
        for variant in FmaVariant::ALL {
            let mut lab = Lab::new();
            let y = lab.vector(&[f64::NAN; 4 * 256]);
            let mut rec = lab.recorder();
            let flops = fma(&mut rec, variant, 256, 40, 0.9, 0.25, y);
            lab.run(&rec);
            let want: Vec<f64> = (0..256).flat_map(|_| twin(variant.accumulators, 40, 0.9, 0.25)).collect();
            assert_close("chains", &lab.read_vector(y), &want, 1e-6);
            assert_eq!(flops, f64::from(256 * 40 * variant.accumulators * 8));
        }
    }

    #[test]
    fn matrices_compute_their_chains() {
        let mut lab = Lab::new();
        let Some(cooperative) = lab.capabilities.cooperative else {
            eprintln!("skipped: the ceiling of matrices, since this adapter has none of f16 with sums in f32");
            return;
        };
        let count = matrix_sums(cooperative, 3) as usize;
        let y = lab.vector(&vec![0.0; count]);
        let mut rec = lab.recorder();
        let flops = matrices(&mut rec, cooperative, 3, 40, 0.5, y);
        lab.run(&rec);
        // Each chain begins at its number and grows by side / 4 a turn; subgroups share the turns.
        let starts: u32 = (0..MATRIX_ACCUMULATORS).sum();
        let side = f64::from(cooperative.side);
        let elements = (cooperative.side * cooperative.side) as usize;
        let got = lab.read_vector(y);
        for group in got.chunks(count / 3) {
            let of_subgroups = group.chunks(elements).filter(|sums| sums[0] != 0.0).collect::<Vec<_>>();
            let grown = f64::from(MATRIX_ACCUMULATORS) * 40.0 * side / 4.0;
            let want = of_subgroups.len() as f64 * f64::from(starts) + grown;
            let totals: Vec<f32> = (0..elements).map(|i| of_subgroups.iter().map(|sums| sums[i]).sum()).collect();
            assert_close("chains", &totals, &vec![want; elements], 1e-6);
        }
        assert_eq!(flops, 2.0 * 3.0 * f64::from(MATRIX_ACCUMULATORS) * 40.0 * side.powi(3));
    }

    #[test]
    fn copies_are_whole() {
        let mut lab = Lab::new();
        let values = lab.normal(4 * 1003);
        let (x, y) = (lab.vector(&values), lab.vector(&[f64::NAN; 4 * 1003]));
        let mut rec = lab.recorder();
        rec.capabilities.max_workgroups = 5;
        assert_eq!(copy(&mut rec, x, y), 2.0 * 4.0 * 4.0 * 1003.0);
        lab.run(&rec);
        assert_close("copy", &lab.read_vector(y), &values, 1e-9);
    }
}
