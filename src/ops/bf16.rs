//! Activations in half their bytes: f32 rounded to bf16 (the upper half of its bits) to nearest, ties to even, and back. The relative
//! error is at most 2^-9.

use super::elementwise;
use crate::gpu::{Kernel, Matrix, Recorder, View};

fn pack_kernel() -> Kernel {
    elementwise::kernel::<elementwise::Params>("bf16_pack", shader!("bf16_pack.wgsl"))
}

fn unpack_kernel() -> Kernel {
    elementwise::kernel::<elementwise::Params>("bf16_unpack", shader!("bf16_unpack.wgsl"))
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![pack_kernel(), unpack_kernel()]
}

/// Bytes of a packed matrix.
pub fn packed_bytes(x: Matrix) -> u64 {
    2 * u64::from(x.rows) * u64::from(x.ld)
}

fn record(rec: &mut Recorder, kernel: Kernel, shape: Matrix, packed: View, views: [View; 2]) {
    assert!(packed.bytes >= packed_bytes(shape), "{packed:?} for {shape:?} in bf16");
    let (params, groups) = (elementwise::params(shape), elementwise::workgroups(rec, shape));
    rec.dispatch(kernel.name, kernel, &views, &params, groups, elementwise::elements(shape));
}

/// `packed = bf16(x)`, row by row with x's distance between rows.
pub fn pack(rec: &mut Recorder, x: Matrix, packed: View) {
    record(rec, pack_kernel(), x, packed, [x.view, packed]);
}

/// `y = packed`, where [`pack`] made `packed` from a matrix of y's shape.
pub fn unpack(rec: &mut Recorder, packed: View, y: Matrix) {
    record(rec, unpack_kernel(), y, packed, [packed, y.view]);
}

/// The rule in plain words.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    use crate::ops::weight::twin::rounded;
    use crate::quant::format::Float;

    pub(crate) fn there_and_back(x: &[f64]) -> Vec<f64> {
        x.iter().map(|v| rounded(Float::Bf16, *v)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Category;
    use crate::ops::testing::{Lab, shapes};

    fn there_and_back(rows: usize, cols: usize, values: &[f64]) -> Vec<f32> {
        let mut lab = Lab::new();
        let (x, y) = (lab.matrix(rows, cols, values), lab.empty(rows, cols));
        let packed = lab.plan.alloc(Category::Workspace, "packed", packed_bytes(x));
        let mut rec = lab.recorder();
        pack(&mut rec, x, packed);
        unpack(&mut rec, packed, y);
        lab.run(&rec);
        lab.read(y)
    }

    #[test]
    fn there_and_back_is_the_twins_rounding() {
        for (rows, cols) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 129)]) {
            let values: Vec<f64> = Lab::new().normal(rows * cols);
            let got: Vec<f64> = there_and_back(rows, cols, &values).into_iter().map(f64::from).collect();
            assert_eq!(got, twin::there_and_back(&values), "{rows} x {cols}");
        }
    }

    #[test]
    fn ties_go_to_even_and_what_is_not_finite_stays_so() {
        let of = |bits: u32| f64::from(f32::from_bits(bits));
        let values =
            [of(0x3f80_8000), of(0x3f81_8000), of(0x3f80_8001), f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -0.0];
        let got = there_and_back(1, 7, &values);
        let bits: Vec<u32> = got.iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits[..5], [0x3f80_0000, 0x3f82_0000, 0x3f81_0000, 0x7f80_0000, 0xff80_0000]);
        assert!(got[5].is_nan() && bits[6] == 0x8000_0000, "{got:?}");
        // The NaN of all digits, whose rounding would leave its exponent.
        let mut lab = Lab::new();
        let words = lab.words(&[0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0]);
        let x = Matrix { view: words, rows: 1, cols: 4, ld: 4 };
        let (packed, y) = (lab.plan.alloc(Category::Workspace, "packed", 16), lab.empty(1, 4));
        let mut rec = lab.recorder();
        pack(&mut rec, x, packed);
        unpack(&mut rec, packed, y);
        lab.run(&rec);
        assert!(lab.read(y)[..3].iter().all(|v| v.is_nan()));
    }
}
