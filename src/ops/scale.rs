//! Multiplication by a constant: `y = factor x`.

use super::elementwise;
use crate::gpu::{Kernel, Matrix, Recorder, params};

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld: u32,
        factor: f32,
    }
}

fn kernel() -> Kernel {
    elementwise::kernel::<Params>("scale", shader!("scale.wgsl"))
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel()]
}

/// `y = factor * x`; both are `[rows, cols]`.
pub fn scale(rec: &mut Recorder, x: Matrix, factor: f32, y: Matrix) {
    elementwise::assert_alike(&[x, y]);
    let groups = elementwise::workgroups(rec, x);
    let params = Params { rows: x.rows, cols: x.cols, ld: x.ld, factor };
    rec.dispatch("scale", kernel(), &[x.view, y.view], &params, groups, elementwise::elements(x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, shapes};

    #[test]
    fn y_holds_the_product() {
        for (rows, cols) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 129)]) {
            let mut lab = Lab::new();
            let x = lab.normal(rows * cols);
            let (gx, gy) = (lab.matrix(rows, cols, &x), lab.empty(rows, cols));
            let mut rec = lab.recorder();
            scale(&mut rec, gx, 0.22, gy);
            lab.run(&rec);
            let want: Vec<f64> = x.iter().map(|v| f64::from(0.22f32) * v).collect();
            assert_close("y", &lab.read(gy), &want, 1e-6);
        }
    }
}
