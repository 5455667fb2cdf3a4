//! The bias of a layer whose B has one (PEFT's `lora_bias`): `sum = b + s b_B`, so that `W x + s (B A x + b_B) + b` is one product with
//! one bias. The gradient of `b_B` is that of the sum times s.

use super::elementwise::WG_SIZE;
use crate::gpu::{Kernel, Recorder, View, params};

params! {
    struct Params {
        outputs: u32,
        scale: f32,
    }
}

fn kernel(biased: bool) -> Kernel {
    Kernel::new::<Params>("bias_sum", shader!("bias_sum.wgsl")).constant("WG_SIZE", WG_SIZE).constant("BIASED", biased)
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(false), kernel(true)]
}

/// `sum = bias + scale * addend`, f32 `[outputs]` each.
pub fn bias_sum(rec: &mut Recorder, outputs: u32, bias: Option<View>, (addend, scale): (View, f32), sum: View) {
    let fits = |view: View| view.bytes >= 4 * u64::from(outputs);
    assert!(fits(addend) && fits(sum) && bias.is_none_or(fits), "{outputs} outputs of {bias:?}, {addend:?}, {sum:?}");
    let groups = rec.fold(u64::from(outputs.div_ceil(WG_SIZE)));
    let views = [bias.unwrap_or(rec.unused), addend, sum];
    rec.dispatch("bias_sum", kernel(bias.is_some()), &views, &Params { outputs, scale }, groups, u64::from(outputs));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close};

    #[test]
    fn the_sum_is_that_of_the_formula() {
        for outputs in [1, 7, 64, 301] {
            let mut lab = Lab::new();
            let [bias, addend] = [(); 2].map(|()| lab.normal(outputs));
            let [gb, ga] = [&bias, &addend].map(|values| lab.vector(values));
            let [alone, both] = [(); 2].map(|()| lab.vector(&vec![f64::NAN; outputs]));
            let mut rec = lab.recorder();
            bias_sum(&mut rec, outputs as u32, None, (ga, 0.5), alone);
            bias_sum(&mut rec, outputs as u32, Some(gb), (ga, 0.5), both);
            lab.run(&rec);
            let want: Vec<f64> = addend.iter().map(|v| 0.5 * v).collect();
            assert_close("alone", &lab.read_vector(alone)[..outputs], &want, 1e-6);
            let want: Vec<f64> = want.iter().zip(&bias).map(|(a, b)| a + b).collect();
            assert_close("both", &lab.read_vector(both)[..outputs], &want, 1e-6);
        }
    }
}
