//! AdamW (Loshchilov and Hutter 2019) with clipping by the global norm, as PyTorch computes both:
//!
//! `g = g * min(1, max_norm / (norm + 1e-6))`, `m += (g - m) (1 - b1)`, `v += (g^2 - v) (1 - b2)`,
//! `p = p (1 - lr * decay) - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
//!
//! Everything stays on the device: a gradient that is not finite leaves parameters and moments as they are, and the host may learn of
//! it steps later. The norm counts all elements of a range, so that padding inside a range must hold zeros.

use super::elementwise::WG_SIZE;
use super::lib_parts::REDUCE;
use crate::gpu::{Kernel, Param, Recorder, View, params};

const QUADS_PER_GROUP: u32 = 1024;
const CLIP_WG_SIZE: u32 = 256;

/// The optimizer's settings of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, from 0 to below 1.
    pub beta1: f64,
    /// Decay of the second moment, from 0 to below 1.
    pub beta2: f64,
    /// The constant that is added to the square root of the second moment.
    pub eps: f64,
    /// Weight decay, which acts on the parameters and not on the gradients; 0 is off.
    pub weight_decay: f64,
    /// The norm above which gradients are scaled down; 0 or less leaves them alone.
    pub max_norm: f64,
    /// Factor of the learning rate of the parameters that LoRA+ raises; 1 without it.
    pub loraplus_lr_ratio: f64,
}

impl Default for AdamW {
    /// PyTorch's coefficients, without weight decay, clipped at 1 as the Hugging Face trainers do.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_norm: 1.0, loraplus_lr_ratio: 1.0 }
    }
}

params! {
    /// The values of one step, as they lie in the `hyper` view. A beta is stored as its distance from 1, which is far more exact in
    /// f32 than a difference from an f32 beta.
    pub struct Hyper {
        /// Learning rate of the step, after warm-up and schedule.
        pub learning_rate: f32,
        /// `1 - beta1`
        pub one_minus_beta1: f32,
        /// `1 - beta2`
        pub one_minus_beta2: f32,
        /// [`AdamW::eps`]
        pub eps: f32,
        /// [`AdamW::weight_decay`]
        pub weight_decay: f32,
        /// `1 - beta1^t`
        pub first_correction: f32,
        /// `sqrt(1 - beta2^t)`
        pub second_correction_root: f32,
        /// The norm above which gradients are scaled down, or 0.
        pub max_norm: f32,
    }

    /// The result of [`grad_norm`] in the `state` view.
    pub struct State {
        /// The global norm before clipping; not finite where the gradient is not.
        pub norm: f32,
        /// The factor by which the step multiplies gradients.
        pub clip: f32,
        /// 1 when norm and gradients are finite, else 0: the step is skipped.
        pub finite: f32,
        /// Fills the struct up to 16 bytes.
        pub spare: f32,
    }
}

impl AdamW {
    /// The values of step `t`, counted from 1.
    pub fn hyper(&self, learning_rate: f64, t: u32) -> Hyper {
        let t = f64::from(t);
        Hyper {
            learning_rate: learning_rate as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            eps: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            first_correction: (1.0 - self.beta1.powf(t)) as f32,
            second_correction_root: (1.0 - self.beta2.powf(t)).sqrt() as f32,
            max_norm: self.max_norm as f32,
        }
    }
}

params! {
    struct NormParams {
        quads: u32,
        groups: u32,
        first_partial: u32,
    }

    /// Number of groups of four elements.
    pub(super) struct Count {
        pub(super) count: u32,
    }
}

/// A kernel with the common part of the optimizers.
pub(super) fn kernel<P: Param>(name: &'static str, source: &'static str, wg_size: u32) -> Kernel {
    Kernel::new::<P>(name, source).part(shader!("lib/optimizer.wgsl")).constant("WG_SIZE", wg_size)
}

fn norm_kernel() -> Kernel {
    kernel::<NormParams>("grad_norm", shader!("grad_norm.wgsl"), WG_SIZE)
        .part(REDUCE)
        .constant("QUADS_PER_GROUP", QUADS_PER_GROUP)
}

fn clip_kernel() -> Kernel {
    kernel::<Count>("clip", shader!("clip.wgsl"), CLIP_WG_SIZE).part(REDUCE)
}

fn step_kernel() -> Kernel {
    kernel::<Count>("adamw", shader!("adamw.wgsl"), WG_SIZE).part(shader!("lib/adamw.wgsl"))
}

/// Every kernel of this operation.
pub fn kernels() -> Vec<Kernel> {
    vec![norm_kernel(), clip_kernel(), step_kernel()]
}

/// Groups of four elements in a flat range of f32.
pub(super) fn quads(range: View) -> u32 {
    assert!(range.bytes.is_multiple_of(16), "a flat range of {} bytes is no multiple of 16", range.bytes);
    u32::try_from(range.bytes / 16).expect("a range that one binding covers")
}

fn norm_groups(range: View) -> u32 {
    quads(range).div_ceil(QUADS_PER_GROUP)
}

/// Bytes of the `partials` view that [`grad_norm`] needs for these ranges.
pub fn partials_bytes(grads: &[View]) -> u64 {
    grads.iter().map(|range| 8 * u64::from(norm_groups(*range))).sum()
}

/// Norm, clip coefficient and finiteness of all `grads` together into `state` (a [`State`]); sums in a fixed order.
/// `hyper` holds a [`Hyper`], `partials` at least [`partials_bytes`]; `state`, `hyper` and `partials` lie in different
/// buffers.
pub fn grad_norm(rec: &mut Recorder, grads: &[View], hyper: View, partials: View, state: View) {
    (0..grads.len()).for_each(|at| norm_sums(rec, grads, at, partials));
    clip(rec, grads, hyper, partials, state);
}

/// The part of [`grad_norm`] that adds up the range `at` of `grads`, into its place of `partials`.
pub fn norm_sums(rec: &mut Recorder, grads: &[View], at: usize, partials: View) {
    assert!(partials.bytes >= partials_bytes(grads), "{partials:?} for the sums of {grads:?}");
    let (range, first_partial) = (grads[at], (partials_bytes(&grads[..at]) / 8) as u32);
    let params = NormParams { quads: quads(range), groups: norm_groups(range), first_partial };
    let groups = rec.fold(u64::from(params.groups));
    rec.dispatch("grad_norm", norm_kernel(), &[range, partials], &params, groups, range.bytes / 4);
}

/// The part of [`grad_norm`] that follows from the sums of all ranges.
pub fn clip(rec: &mut Recorder, grads: &[View], hyper: View, partials: View, state: View) {
    let first_partial = (partials_bytes(grads) / 8) as u32;
    let views = [partials, hyper, state];
    let work = u64::from(first_partial);
    rec.dispatch("clip", clip_kernel(), &views, &Count { count: first_partial }, [1, 1, 1], work);
}

/// One step over a flat range of parameters, its gradients and its moments `m` and `v`, all of the same length;
/// `state` comes from [`grad_norm`], `hyper` holds a [`Hyper`].
pub fn step(rec: &mut Recorder, params: View, grads: View, m: View, v: View, state: View, hyper: View) {
    assert!([grads, m, v].iter().all(|range| range.bytes == params.bytes), "ranges of unlike length");
    let count = quads(params);
    let groups = rec.fold(u64::from(count.div_ceil(WG_SIZE)));
    let views = [grads, state, hyper, params, m, v];
    rec.dispatch("adamw", step_kernel(), &views, &Count { count }, groups, 4 * params.bytes);
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    use super::AdamW;

    /// Parameters and moments of one flat range.
    #[derive(Clone)]
    pub(crate) struct Range {
        pub params: Vec<f64>,
        pub m: Vec<f64>,
        pub v: Vec<f64>,
    }

    impl Range {
        pub(crate) fn new(params: &[f64]) -> Self {
            Self { params: params.to_vec(), m: vec![0.0; params.len()], v: vec![0.0; params.len()] }
        }
    }

    pub(crate) fn norm(grads: &[f64]) -> f64 {
        grads.iter().map(|g| g * g).sum::<f64>().sqrt()
    }

    pub(crate) fn clip(settings: &AdamW, norm: f64) -> f64 {
        if settings.max_norm > 0.0 { (settings.max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }

    pub(crate) fn step(range: &mut Range, grads: &[f64], clip: f64, settings: &AdamW, learning_rate: f64, t: i32) {
        let (b1, b2) = (settings.beta1, settings.beta2);
        for (i, g) in grads.iter().enumerate() {
            let g = g * clip;
            range.m[i] = b1 * range.m[i] + (1.0 - b1) * g;
            range.v[i] = b2 * range.v[i] + (1.0 - b2) * g * g;
            let root = (range.v[i] / (1.0 - b2.powi(t))).sqrt();
            range.params[i] -= learning_rate * settings.weight_decay * range.params[i];
            range.params[i] -= learning_rate * range.m[i] / (1.0 - b1.powi(t)) / (root + settings.eps);
        }
    }
}

#[cfg(test)]
mod tests;
