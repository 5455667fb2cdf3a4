//! What an adapter can do at best, measured by kernels that do nothing else: multiply-adds in registers, and copies.

use bytemuck::{Pod, Zeroable};

use crate::gpu::{Kernel, Recorder, View};

const COPY_WG_SIZE: u32 = 64;
/// Steps of a chain in one turn of the loop.
const UNROLLED: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FmaParams {
    turns: u32,
    factor: f32,
    term: f32,
}

/// A form of the multiply-add kernel; which is fastest depends on the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FmaForm {
    pub wg_size: u32,
    /// Independent chains of vec4.
    pub accumulators: u32,
    /// Says `fma(a, b, c)`, not `a * b + c`: some drivers join the two of the second but not of the first, others the reverse.
    pub fused: bool,
}

impl FmaForm {
    pub const ALL: [Self; 7] = [
        Self { wg_size: 8, accumulators: 8, fused: true },
        Self { wg_size: 8, accumulators: 4, fused: false },
        Self { wg_size: 64, accumulators: 4, fused: true },
        Self { wg_size: 64, accumulators: 8, fused: true },
        Self { wg_size: 64, accumulators: 8, fused: false },
        Self { wg_size: 64, accumulators: 12, fused: true },
        Self { wg_size: 256, accumulators: 8, fused: true },
    ];
}

fn fma_kernel(form: FmaForm) -> Kernel {
    Kernel::new("bench_fma", include_str!("../../shaders/bench_fma.wgsl"))
        .constant("WG_SIZE", form.wg_size)
        .constant("ACCUMULATORS", form.accumulators)
        .constant("FUSED", form.fused)
        .constant("UNROLLED", UNROLLED)
}

fn copy_kernel() -> Kernel {
    Kernel::new("bench_copy", include_str!("../../shaders/bench_copy.wgsl")).constant("WG_SIZE", COPY_WG_SIZE)
}

pub(super) fn kernels() -> Vec<Kernel> {
    FmaForm::ALL.map(fma_kernel).into_iter().chain([copy_kernel()]).collect()
}

/// `invocations` (a multiple of 256) chains of `steps` times (a multiple of 8) `a = a factor + term`; y takes four sums of each invocation.
/// Returns the floating-point operations, two a multiply-add.
pub fn fma(rec: &mut Recorder, form: FmaForm, invocations: u32, steps: u32, factor: f32, term: f32, y: View) -> f64 {
    assert!(
        invocations.is_multiple_of(256) && steps.is_multiple_of(UNROLLED) && y.bytes >= 16 * u64::from(invocations),
        "{invocations} into {y:?}"
    );
    let work = 4 * u64::from(invocations) * u64::from(steps) * u64::from(form.accumulators);
    let groups = [invocations / form.wg_size, 1, 1];
    rec.dispatch(
        "bench_fma",
        fma_kernel(form),
        &[y],
        &FmaParams { turns: steps / UNROLLED, factor, term },
        groups,
        work,
    );
    2.0 * work as f64
}

/// Copies x over y, which lie in different buffers. Returns the bytes read and written.
pub fn copy(rec: &mut Recorder, x: View, y: View) -> f64 {
    assert_eq!(x.bytes, y.bytes, "copy between views of unlike size");
    let count = (x.bytes / 16) as u32;
    let groups = rec.fold(u64::from(count.div_ceil(COPY_WG_SIZE)));
    rec.dispatch("bench_copy", copy_kernel(), &[x, y], &count, groups, u64::from(count));
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
    fn every_form_computes_its_chains() {
        for form in FmaForm::ALL {
            let mut lab = Lab::new();
            let y = lab.vector(&[f64::NAN; 4 * 256]);
            let mut rec = lab.recorder();
            let flops = fma(&mut rec, form, 256, 40, 0.9, 0.25, y);
            lab.run(&rec);
            let want: Vec<f64> = (0..256).flat_map(|_| twin(form.accumulators, 40, 0.9, 0.25)).collect();
            assert_close("chains", &lab.read_vector(y), &want, 1e-6);
            assert_eq!(flops, f64::from(256 * 40 * form.accumulators * 8));
        }
    }

    #[test]
    fn copies_are_whole() {
        let mut lab = Lab::new();
        let values = lab.normal(4 * 1003);
        let (x, y) = (lab.vector(&values), lab.vector(&[f64::NAN; 4 * 1003]));
        let mut rec = lab.recorder();
        rec.target.max_workgroups = 5;
        assert_eq!(copy(&mut rec, x, y), 2.0 * 4.0 * 4.0 * 1003.0);
        lab.run(&rec);
        assert_close("copy", &lab.read_vector(y), &values, 1e-9);
    }
}
