//! Lion (Chen et al. 2023, algorithm 2) with decoupled weight decay, as bitsandbytes computes it:
//!
//! `c = b1 m + (1 - b1) g`, `p = p (1 - lr * decay) - lr * sign(c)`, `m = b2 m + (1 - b2) g`.
//!
//! One momentum takes the place of AdamW's two moments. The step of each element has the size of the learning rate, so that rates are 3 to
//! 10 times lower than AdamW's. Clipping and skipped steps are as in [`super::adamw`].

use super::adamw::{Count, kernel, quads};
use super::elementwise::WG_SIZE;
use crate::gpu::{Kernel, Recorder, View};

fn step_kernel() -> Kernel {
    kernel::<Count>("lion", shader!("lion.wgsl"), WG_SIZE)
}

/// Every kernel of this operation.
pub fn kernels() -> Vec<Kernel> {
    vec![step_kernel()]
}

/// One step over a flat range of parameters, its gradients and its momentum `m`, all f32 of the same length; `state` comes from
/// [`super::adamw::grad_norm`], `hyper` holds a [`super::adamw::Hyper`].
pub fn step(rec: &mut Recorder, params: View, grads: View, m: View, state: View, hyper: View) {
    assert!([grads, m].iter().all(|range| range.bytes == params.bytes), "ranges of unlike length");
    let count = quads(params);
    let groups = rec.fold(u64::from(count.div_ceil(WG_SIZE)));
    let views = [grads, state, hyper, params, m];
    rec.dispatch("lion", step_kernel(), &views, &Count { count }, groups, 3 * params.bytes);
}

/// The formula in plain loops, in f64.
#[cfg(test)]
pub(crate) mod twin {
    use crate::ops::adamw::AdamW;

    /// Parameters and momentum of one flat range.
    #[derive(Clone)]
    pub(crate) struct Range {
        pub params: Vec<f64>,
        pub m: Vec<f64>,
        /// The values whose signs were taken last.
        pub directions: Vec<f64>,
    }

    impl Range {
        pub(crate) fn new(params: &[f64]) -> Self {
            let zeros = vec![0.0; params.len()];
            Self { params: params.to_vec(), m: zeros.clone(), directions: zeros }
        }
    }

    pub(crate) fn step(range: &mut Range, grads: &[f64], clip: f64, settings: &AdamW, learning_rate: f64) {
        let (b1, b2) = (settings.beta1, settings.beta2);
        for (i, g) in grads.iter().enumerate() {
            let g = g * clip;
            let direction = b1 * range.m[i] + (1.0 - b1) * g;
            let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
            range.directions[i] = direction;
            range.params[i] = range.params[i] * (1.0 - learning_rate * settings.weight_decay) - learning_rate * sign;
            range.m[i] = b2 * range.m[i] + (1.0 - b2) * g;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::adamw::{self, AdamW, partials_bytes};
    use crate::ops::testing::{Lab, assert_close};

    const SETTINGS: AdamW =
        AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, loraplus_lr_ratio: 1.0 };

    /// Five steps of `bitsandbytes.optim.Lion32bit` (0.50, f32 on a CPU) after `clip_grad_norm_(1.0)`, with learning rates 0.02 / t:
    /// (gradients, parameters afterwards).
    const START: [f64; 6] = [0.5, -1.25, 2.0, 0.03125, -0.75, 1.5];
    const STEPS: [([f64; 6], [f64; 6]); 5] = [
        (
            [0.1, -0.2, 0.3, 0.0, 2.0, -0.5],
            [0.479000002, -1.227500081, 1.976000071, 0.031187501, -0.76849997, 1.51699996],
        ),
        (
            [-0.4, 0.1, 0.25, 1e-4, 1.0, 0.5],
            [0.48852101, -1.236272573, 1.964024067, 0.021156315, -0.777731478, 1.505483031],
        ),
        (
            [0.05, 0.05, -0.6, -1e-4, -3.0, 0.25],
            [0.49486199, -1.242115021, 1.969381332, 0.027808879, -0.770546317, 1.497812748],
        ),
        (
            [0.2, -0.9, 0.1, 0.0, 0.5, 0.125],
            [0.489614546, -1.236493945, 1.963396549, 0.022794973, -0.775161028, 1.492063761],
        ),
        (
            [1.5, 0.3, -0.2, 2e-4, -0.25, -1.0],
            [0.485418677, -1.239999294, 1.966611147, 0.018785855, -0.770850956, 1.495466828],
        ),
    ];
    const MOMENTUM: [f64; 6] = [7.3812e-3, -6.7416e-3, 1.3076e-3, 1.5556e-6, 1.0880e-2, -1.7331e-3];

    #[test]
    fn the_twin_is_the_lion_of_bitsandbytes() {
        let mut range = twin::Range::new(&START);
        for (t, (grads, params)) in (1..).zip(STEPS) {
            let clip = adamw::twin::clip(&SETTINGS, adamw::twin::norm(&grads));
            twin::step(&mut range, &grads, clip, &SETTINGS, 0.02 / f64::from(t));
            let same = range.params.iter().zip(&params).all(|(a, b)| (a - b).abs() < 5e-7);
            assert!(same, "step {t}: {:?}", range.params);
        }
        assert!(range.m.iter().zip(&MOMENTUM).all(|(a, b)| (a - b).abs() < 5e-7), "{:?}", range.m);
    }

    fn hyper(lab: &mut Lab, learning_rate: f64, t: u32) -> View {
        let words: [u32; 8] = bytemuck::cast(SETTINGS.hyper(learning_rate, t));
        lab.words(&words)
    }

    fn partials(lab: &mut Lab, grads: View) -> View {
        lab.vector(&vec![f64::NAN; (partials_bytes(&[grads]) / 4) as usize])
    }

    #[test]
    fn five_steps_on_the_device_are_those_of_bitsandbytes() {
        let mut lab = Lab::new();
        let start = [START.as_slice(), &[0.0; 2]].concat();
        let (params, m, state) = (lab.vector(&start), lab.vector(&[0.0; 8]), lab.vector(&[f64::NAN; 4]));
        let grads = STEPS.map(|(grads, _)| lab.vector(&[grads.as_slice(), &[0.0; 2]].concat()));
        let partials = partials(&mut lab, grads[0]);
        let mut rec = lab.recorder();
        for (t, grads) in (1..).zip(grads) {
            let hyper = hyper(&mut lab, 0.02 / f64::from(t), t);
            adamw::grad_norm(&mut rec, &[grads], hyper, partials, state);
            step(&mut rec, params, grads, m, state, hyper);
        }
        lab.run(&rec);
        assert_close("parameters", &lab.read_vector(params)[..6], &STEPS[4].1, 1e-6);
        assert_close("momentum", &lab.read_vector(m)[..6], &MOMENTUM, 1e-4);
        assert_eq!(lab.read_vector(params)[6..], [0.0; 2], "padding stays zero");
    }

    #[test]
    fn long_ranges_equal_the_twin() {
        for count in [4, 252, 1028, 12_340, 40_000] {
            let mut lab = Lab::new();
            // More workgroups than one dispatch row holds here.
            lab.capabilities.max_workgroups = 50;
            let (start, momentum, values) = (lab.normal(count), lab.normal(count), lab.normal(count));
            let (params, m, grads) = (lab.vector(&start), lab.vector(&momentum), lab.vector(&values));
            let (partials, state) = (partials(&mut lab, grads), lab.vector(&[f64::NAN; 4]));
            let hyper = hyper(&mut lab, 0.01, 1);
            let mut rec = lab.recorder();
            adamw::grad_norm(&mut rec, &[grads], hyper, partials, state);
            step(&mut rec, params, grads, m, state, hyper);
            lab.run(&rec);
            let mut range = twin::Range { m: momentum, ..twin::Range::new(&start) };
            let clip = adamw::twin::clip(&SETTINGS, adamw::twin::norm(&values));
            twin::step(&mut range, &values, clip, &SETTINGS, 0.01);
            // A direction within rounding of zero has either sign.
            for (i, moved) in
                lab.read_vector(params).iter().enumerate().filter(|(i, _)| range.directions[*i].abs() > 1e-6)
            {
                let want = range.params[i];
                assert!((f64::from(*moved) - want).abs() < 1e-6, "{count}: {moved} instead of {want} at {i}");
            }
            assert_close("momentum", &lab.read_vector(m), &range.m, 1e-6);
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_moves_nothing() {
        let mut lab = Lab::new();
        let (params, m) = (lab.vector(&[1.0, 2.0, 3.0, 4.0]), lab.vector(&[0.5; 4]));
        let grads = lab.vector(&[1.0, f64::INFINITY, 0.0, 0.0]);
        let (partials, state, hyper) = (partials(&mut lab, grads), lab.vector(&[f64::NAN; 4]), hyper(&mut lab, 0.1, 1));
        let mut rec = lab.recorder();
        adamw::grad_norm(&mut rec, &[grads], hyper, partials, state);
        step(&mut rec, params, grads, m, state, hyper);
        lab.run(&rec);
        assert_eq!((lab.read_vector(params), lab.read_vector(m)), (vec![1.0, 2.0, 3.0, 4.0], vec![0.5; 4]));
    }
}
