//! Addition in place: `y += x`.

use super::elementwise;
use crate::gpu::{Kernel, Matrix, Recorder};

fn kernel() -> Kernel {
    elementwise::kernel::<elementwise::Params>("add", shader!("add.wgsl"))
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel()]
}

/// `y += x`; both are `[rows, cols]`.
pub fn add(rec: &mut Recorder, x: Matrix, y: Matrix) {
    elementwise::assert_alike(&[x, y]);
    let groups = elementwise::workgroups(rec, x);
    rec.dispatch("add", kernel(), &[x.view, y.view], &elementwise::params(x), groups, elementwise::elements(x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, shapes};

    #[test]
    fn y_holds_the_sum() {
        for (rows, cols) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 129)]) {
            let mut lab = Lab::new();
            let (x, y) = (lab.normal(rows * cols), lab.normal(rows * cols));
            let (gx, gy) = (lab.matrix(rows, cols, &x), lab.matrix(rows, cols, &y));
            let mut rec = lab.recorder();
            add(&mut rec, gx, gy);
            lab.run(&rec);
            let want: Vec<f64> = x.iter().zip(&y).map(|(a, b)| a + b).collect();
            assert_close("y", &lab.read(gy), &want, 1e-6);
        }
    }
}
