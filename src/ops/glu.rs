//! Gated linear units (Shazeer 2020): `act = f(gate) * up` with an activation `f`; with SiLU this is SwiGLU, with GELU it is GEGLU.
//!
//! In gpt-oss gate and up are bounded first: `act = f(min(gate, 7)) * (1 + clamp(up, -7, 7))`.
//!
//! With `D` the gradient of `act`: `d_up = D f(gate)` and `d_gate = D up f'(gate)`.

use super::elementwise;
use crate::gpu::{Kernel, Matrix, Recorder};

/// The activation `f` of a gated linear unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// `f(e) = e / (1 + exp(-e))`.
    Silu,
    /// `f(e) = e (1 + tanh(sqrt(2 / pi) (e + 0.044715 e^3))) / 2`, the approximation of GELU by Hendrycks and Gimpel 2016.
    GeluTanh,
    /// `f(e) = e / (1 + exp(-1.702 e))` of bounded inputs, in the experts of gpt-oss.
    Clamped,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Self; 3] = [Self::Silu, Self::GeluTanh, Self::Clamped];

    /// The names that `hidden_act` has for it in a `config.json`; none for an activation that belongs to a family.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Silu => &["silu"],
            Self::GeluTanh => &["gelu_pytorch_tanh", "gelu_new"],
            Self::Clamped => &[],
        }
    }

    /// The activation that `hidden_act` names.
    ///
    /// # Errors
    /// The problem, with the supported names, for a name that no activation has.
    pub fn parse(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|f| f.names().contains(&name)).ok_or_else(|| {
            let supported = Self::ALL.map(Self::names).concat().join("`, `");
            format!("is `{name}`, but only `{supported}` are supported")
        })
    }

    fn part(self) -> &'static str {
        match self {
            Self::Silu => shader!("lib/activation_silu.wgsl"),
            Self::GeluTanh => shader!("lib/activation_gelu_tanh.wgsl"),
            Self::Clamped => shader!("lib/activation_clamped.wgsl"),
        }
    }

    /// Joins the parts of a gated linear unit.
    pub(super) fn join(self, kernel: Kernel) -> Kernel {
        let inputs = match self {
            Self::Clamped => shader!("lib/glu_inputs_clamped.wgsl"),
            Self::Silu | Self::GeluTanh => shader!("lib/glu_inputs_plain.wgsl"),
        };
        kernel.part(shader!("lib/sigmoid.wgsl")).part(self.part()).part(inputs)
    }
}

fn kernel(name: &'static str, source: &'static str, activation: Activation) -> Kernel {
    activation.join(elementwise::kernel::<elementwise::Params>(name, source))
}

fn forward_kernel(activation: Activation) -> Kernel {
    kernel("glu", shader!("glu.wgsl"), activation)
}

fn backward_kernel(activation: Activation) -> Kernel {
    kernel("glu_backward", shader!("glu_backward.wgsl"), activation)
}

pub(super) fn kernels() -> Vec<Kernel> {
    Activation::ALL.into_iter().flat_map(|f| [forward_kernel(f), backward_kernel(f)]).collect()
}

/// `act = f(gate) * up`; all are `[rows, cols]`.
pub fn forward(rec: &mut Recorder, activation: Activation, gate: Matrix, up: Matrix, act: Matrix) {
    elementwise::assert_alike(&[gate, up, act]);
    let (params, groups) = (elementwise::params(gate), elementwise::workgroups(rec, gate));
    let views = [gate.view, up.view, act.view];
    rec.dispatch("glu", forward_kernel(activation), &views, &params, groups, 4 * elementwise::elements(gate));
}

/// From the forward inputs and the gradient of `act`, all `[rows, cols]`: `gate` and `up` become their gradients, and `dact`
/// becomes `act` again, which the gradient of the weights behind it needs.
pub fn backward_in_place(rec: &mut Recorder, activation: Activation, gate: Matrix, up: Matrix, dact: Matrix) {
    elementwise::assert_alike(&[gate, up, dact]);
    let (params, groups) = (elementwise::params(gate), elementwise::workgroups(rec, gate));
    let views = [gate.view, up.view, dact.view];
    let flops = 8 * elementwise::elements(gate);
    rec.dispatch("glu_backward", backward_kernel(activation), &views, &params, groups, flops);
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    use crate::ops::glu::Activation;

    /// The inputs of the unit, and the slopes of both.
    fn inputs(activation: Activation, e: f64, g: f64) -> [(f64, f64); 2] {
        let slope = |passes: bool| if passes { 1.0 } else { 0.0 };
        match activation {
            Activation::Clamped => {
                [(e.min(7.0), slope(e <= 7.0)), (1.0 + g.clamp(-7.0, 7.0), slope((-7.0..=7.0).contains(&g)))]
            }
            _ => [(e, 1.0), (g, 1.0)],
        }
    }

    /// `f(e)` and `f'(e)`.
    fn value_and_slope(activation: Activation, e: f64) -> (f64, f64) {
        match activation {
            Activation::Silu => {
                let s = 1.0 / (1.0 + (-e).exp());
                (e * s, s * (1.0 + e * (1.0 - s)))
            }
            Activation::Clamped => {
                let s = 1.0 / (1.0 + (-1.702 * e).exp());
                (e * s, s * (1.0 + 1.702 * e * (1.0 - s)))
            }
            Activation::GeluTanh => {
                let scale = (2.0 / std::f64::consts::PI).sqrt();
                let t = (scale * (e + 0.044715 * e.powi(3))).tanh();
                // 1 - t^2 is 0 from here on, and the square of e need not be finite.
                let bounded = e.clamp(-1e3, 1e3);
                let slope_of_t = (1.0 - t * t) * scale * (1.0 + 3.0 * 0.044715 * bounded * bounded);
                (0.5 * e * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * bounded * slope_of_t)
            }
        }
    }

    pub(crate) fn forward(activation: Activation, gate: &[f64], up: &[f64]) -> Vec<f64> {
        let of = |(e, g): (&f64, &f64)| {
            let [(e, _), (g, _)] = inputs(activation, *e, *g);
            value_and_slope(activation, e).0 * g
        };
        gate.iter().zip(up).map(of).collect()
    }

    /// The gradients of gate and up.
    pub(crate) fn backward(activation: Activation, gate: &[f64], up: &[f64], dact: &[f64]) -> (Vec<f64>, Vec<f64>) {
        gate.iter()
            .zip(up)
            .zip(dact)
            .map(|((e, g), d)| {
                let [(e, of_gate), (g, of_up)] = inputs(activation, *e, *g);
                let (value, slope) = value_and_slope(activation, e);
                (d * g * slope * of_gate, d * value * of_up)
            })
            .unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};

    #[test]
    fn both_directions_equal_the_twin() {
        for activation in Activation::ALL {
            for (rows, cols) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 129)]) {
                let mut lab = Lab::new();
                let [gate, up, dact] = [(); 3].map(|()| lab.normal(rows * cols));
                // Wide enough for the tails of the activation, and beyond the bounds of inputs.
                let [gate, up] = [(gate, 3.0), (up, 4.0)]
                    .map(|(values, size)| values.iter().map(|e| f64::from((size * e) as f32)).collect::<Vec<f64>>());
                let [dgate, dup, again] = [&gate, &up, &dact].map(|values| lab.matrix(rows, cols, values));
                let [device_gate, device_up] = [&gate, &up].map(|values| lab.matrix(rows, cols, values));
                let act = lab.empty(rows, cols);
                let mut rec = lab.recorder();
                forward(&mut rec, activation, device_gate, device_up, act);
                backward_in_place(&mut rec, activation, dgate, dup, again);
                lab.run(&rec);
                let want = twin::forward(activation, &gate, &up);
                let (want_dgate, want_dup) = twin::backward(activation, &gate, &up, &dact);
                let check = |name: &str, found: &[f32], want: &[f64]| {
                    assert_close(&format!("{activation:?} {name}"), found, want, 1e-5);
                };
                check("act", &lab.read(act), &want);
                check("dgate", &lab.read(dgate), &want_dgate);
                check("dup", &lab.read(dup), &want_dup);
                check("act again", &lab.read(again), &want);
            }
        }
    }

    #[test]
    fn large_inputs_of_the_clamped_unit_are_bounded() {
        let mut lab = Lab::new();
        let (gate, up) = ([-1e30, -100.0, 7.0, 7.5, 1000.0, 1e30], [1e30, -8.0, 7.0, -7.0, 7.25, -1e30]);
        let [dgate, dup, act] = [&gate, &up, &[1.0; 6]].map(|values| lab.matrix(1, 6, values));
        let mut rec = lab.recorder();
        backward_in_place(&mut rec, Activation::Clamped, dgate, dup, act);
        lab.run(&rec);
        let (want_dgate, want_dup) = twin::backward(Activation::Clamped, &gate, &up, &[1.0; 6]);
        assert_close("act", &lab.read(act), &twin::forward(Activation::Clamped, &gate, &up), 1e-6);
        assert_close("dgate", &lab.read(dgate), &want_dgate, 1e-6);
        assert_close("dup", &lab.read(dup), &want_dup, 1e-6);
        assert_eq!(want_dgate[3..], [0.0; 3]);
        assert_eq!([want_dup[0], want_dup[1], want_dup[4], want_dup[5]], [0.0; 4]);
    }

    #[test]
    fn large_gates_stay_finite() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut lab = Lab::new();
            let gate = [-1e30, -1000.0, -88.0, 88.0, 1000.0, 1e30];
            let ones = [1.0; 6];
            let [dgate, dup, act] = [&gate, &ones, &ones].map(|values| lab.matrix(1, 6, values));
            let mut rec = lab.recorder();
            backward_in_place(&mut rec, activation, dgate, dup, act);
            lab.run(&rec);
            let relu: Vec<f64> = gate.iter().map(|e| e.max(0.0)).collect();
            assert_close("act", &lab.read(act), &relu, 1e-6);
            assert_close("dup", &lab.read(dup), &relu, 1e-6);
            assert_close("dgate", &lab.read(dgate), &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 1e-6);
        }
    }

    #[test]
    fn the_twins_gradients_are_the_slopes_of_its_forward() {
        for activation in Activation::ALL {
            let mut lab = Lab::new();
            let [gate, up, dact] = [(); 3].map(|()| lab.normal(12));
            let (dgate, dup) = twin::backward(activation, &gate, &up, &dact);
            let objective = |act: Vec<f64>| act.iter().zip(&dact).map(|(y, d)| y * d).sum();
            assert_gradient(&gate, &dgate, |gate| objective(twin::forward(activation, gate, &up)));
            assert_gradient(&up, &dup, |up| objective(twin::forward(activation, &gate, up)));
        }
    }

    #[test]
    fn names_are_those_of_transformers() {
        assert_eq!(Activation::parse("silu"), Ok(Activation::Silu));
        assert_eq!(Activation::parse("gelu_pytorch_tanh"), Ok(Activation::GeluTanh));
        assert_eq!(Activation::parse("gelu_new"), Ok(Activation::GeluTanh));
        let problem = Activation::parse("relu2").unwrap_err();
        assert_eq!(problem, "is `relu2`, but only `silu`, `gelu_pytorch_tanh`, `gelu_new` are supported");
    }
}
