//! The gated short convolution of LFM2 (Liquid AI 2025; transformers' `Lfm2ShortConv`): a row holds B, C and X, a third each, and
//! `out = C y` with `y_t = sum over j of w_j u_(t - L + 1 + j)`, `u = B X`, channel by channel. Rows before the start of a sequence
//! count as 0.
//!
//! With D the gradient of the result: `dC = D y`, `du_t = sum over j of w_j (D C)_(t + L - 1 - j)` within the sequence, `dB = du X` and
//! `dX = du B`; the gradient of `w_j` is the sum of `(D C)_t u_(t - L + 1 + j)` over all rows t.
//!
//! [`causal_conv`](super::causal_conv) is the same sum without gates, by the same kernels.
//!
//! In generation, the state holds u of the last L - 1 positions: position p at row `p mod (L - 1)`.

use super::column_gradient;
use super::elementwise::{WG_SIZE, elements};
use crate::gpu::{Constant, Kernel, Matrix, Param, Recorder, View, params};

params! {
    struct Params {
        rows: u32,
        channels: u32,
        ld: u32,
        ld_out: u32,
        taps: u32,
    }
}

params! {
    struct TermParams {
        rows: u32,
        channels: u32,
        ld: u32,
        ld_out: u32,
        taps: u32,
        ld_terms: u32,
    }
}

/// The convolution of a layer over the rows of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// The position of each row in its sequence, u32. Sequences lie one after the other.
    pub positions: View,
    /// The weights w, f32 `[channels][taps]`: the last one is that of the row itself.
    pub weights: View,
    /// L, the rows that a result reads, its own included.
    pub taps: u32,
    /// B, C and X, `[rows, 3 channels]`; those of [`causal_conv`](super::causal_conv) are `[rows, channels]`.
    pub inputs: Matrix,
}

/// The result that a convolution makes of its sum y.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// `C y`, of the sum over `B X`.
    Gated,
    /// `y sigmoid(y)`, of the sum over the inputs.
    Silu,
}

impl Form {
    const ALL: [Self; 2] = [Self::Gated, Self::Silu];

    /// The names of the operations in profiles: forward, backward, the weights' gradient, the state.
    fn ops(self) -> [&'static str; 4] {
        match self {
            Self::Gated => ["short_conv", "short_conv_backward", "short_conv_terms", "short_conv_state"],
            Self::Silu => ["causal_conv", "causal_conv_backward", "causal_conv_terms", "causal_conv_state"],
        }
    }

    /// Matrices `[rows, channels]` that lie side by side in the inputs.
    fn parts(self) -> u32 {
        match self {
            Self::Gated => 3,
            Self::Silu => 1,
        }
    }
}

/// With `quads` an invocation has four channels, and their number must be a multiple of four.
fn kernel<P: Param>(name: &'static str, source: &'static str, form: Form, quads: bool) -> Kernel {
    Kernel::new::<P>(name, source)
        .part(shader!("lib/short_conv.wgsl"))
        .constant("WG_SIZE", WG_SIZE)
        .constant("GATED", form == Form::Gated)
        .constant("QUADS", quads)
        .constant("LANES", if quads { 4 } else { 1 })
        .constant("Value", Constant::Type(if quads { "vec4<f32>" } else { "f32" }))
}

fn forward_kernel(form: Form, quads: bool) -> Kernel {
    kernel::<Params>("short_conv", shader!("short_conv.wgsl"), form, quads)
}

fn backward_kernel(form: Form, quads: bool) -> Kernel {
    kernel::<Params>("short_conv_backward", shader!("short_conv_backward.wgsl"), form, quads)
}

fn slope_kernel(quads: bool) -> Kernel {
    kernel::<Params>("short_conv_slope", shader!("short_conv_slope.wgsl"), Form::Silu, quads)
}

fn state_kernel(form: Form, quads: bool) -> Kernel {
    kernel::<Params>("short_conv_state", shader!("short_conv_state.wgsl"), form, quads)
}

fn terms_kernel(form: Form) -> Kernel {
    kernel::<TermParams>("short_conv_terms", shader!("short_conv_terms.wgsl"), form, false)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![slope_kernel(false), slope_kernel(true)];
    for form in Form::ALL {
        kernels.push(terms_kernel(form));
        for quads in [false, true] {
            kernels.extend([forward_kernel(form, quads), backward_kernel(form, quads), state_kernel(form, quads)]);
        }
    }
    kernels
}

impl Convolution {
    /// Parameters with the stride of `out`, and whether invocations have four channels.
    fn params(&self, form: Form, out: Matrix) -> (Params, bool) {
        let Self { positions, weights, taps, inputs } = *self;
        let channels = out.cols;
        assert!(taps >= 1 && inputs.cols == form.parts() * channels, "{self:?} with {out:?}");
        assert!(positions.bytes >= 4 * u64::from(inputs.rows), "{positions:?} for {} rows", inputs.rows);
        assert!(weights.bytes >= 4 * u64::from(channels) * u64::from(taps), "{weights:?} for {channels} channels");
        let params = Params { rows: inputs.rows, channels, ld: inputs.ld, ld_out: out.ld, taps };
        (params, channels.is_multiple_of(4))
    }

    fn workgroups(rec: &Recorder, rows: u32, channels: u32, quads: bool) -> [u32; 3] {
        let units = if quads { channels / 4 } else { channels };
        rec.fold((u64::from(rows) * u64::from(units)).div_ceil(u64::from(WG_SIZE)))
    }

    pub(super) fn forward(&self, rec: &mut Recorder, form: Form, state: Option<Matrix>, out: Matrix) {
        let (params, quads) = self.params(form, out);
        assert_eq!(self.inputs.rows, out.rows, "{self:?} with {out:?}");
        assert!(state.is_none_or(|state| state.rows + 1 >= self.taps && state.ld == out.ld), "{state:?} for {self:?}");
        let groups = Self::workgroups(rec, out.rows, out.cols, quads);
        let state = state.map_or(rec.unused, |state| state.view);
        let views = [self.positions, self.weights, self.inputs.view, state, out.view];
        let work = 3 * u64::from(self.taps) * elements(out);
        rec.dispatch(form.ops()[0], forward_kernel(form, quads), &views, &params, groups, work);
    }

    /// From the gradient of the result, in place, that of the sum before SiLU.
    pub(super) fn slope(&self, rec: &mut Recorder, dout: Matrix) {
        let (params, quads) = self.params(Form::Silu, dout);
        let groups = Self::workgroups(rec, dout.rows, dout.cols, quads);
        let views = [self.positions, self.weights, self.inputs.view, dout.view];
        let work = 3 * u64::from(self.taps) * elements(dout);
        rec.dispatch(Form::Silu.ops()[1], slope_kernel(quads), &views, &params, groups, work);
    }

    pub(super) fn backward(&self, rec: &mut Recorder, form: Form, dout: Matrix, dinputs: Matrix) {
        let (params, quads) = self.params(form, dout);
        assert_eq!((dinputs.rows, dinputs.cols, dinputs.ld), (self.inputs.rows, self.inputs.cols, self.inputs.ld));
        let groups = Self::workgroups(rec, dout.rows, dout.cols, quads);
        let views = [self.positions, self.weights, self.inputs.view, dout.view, dinputs.view];
        let work = 6 * u64::from(self.taps) * elements(dout);
        rec.dispatch(form.ops()[1], backward_kernel(form, quads), &views, &params, groups, work);
    }

    pub(super) fn weight_gradient(&self, rec: &mut Recorder, form: Form, dout: Matrix, terms: Matrix, gradient: View) {
        let (Params { rows, channels, ld, ld_out, taps }, _) = self.params(form, dout);
        assert_eq!((terms.rows, terms.cols), (rows, channels * taps), "{terms:?} for {self:?}");
        let params = TermParams { rows, channels, ld, ld_out, taps, ld_terms: terms.ld };
        let groups = rec.fold(elements(terms).div_ceil(u64::from(WG_SIZE)));
        let views = [self.positions, self.weights, self.inputs.view, dout.view, terms.view];
        rec.dispatch(form.ops()[2], terms_kernel(form), &views, &params, groups, 3 * elements(terms));
        column_gradient::bias(rec, terms, gradient);
    }

    pub(super) fn keep(&self, rec: &mut Recorder, form: Form, state: Matrix) {
        let (params, quads) = self.params(form, state);
        let kept = self.taps - 1;
        assert!(state.rows >= kept, "{state:?} for {self:?}");
        let groups = Self::workgroups(rec, kept.min(self.inputs.rows), state.cols, quads);
        let views = [self.positions, self.weights, self.inputs.view, state.view];
        let work = u64::from(kept) * u64::from(state.cols);
        rec.dispatch(form.ops()[3], state_kernel(form, quads), &views, &params, groups, work);
    }
}

/// `out`, `[rows, channels]`. `state` is that of [`keep`], `[taps - 1, channels]`; None where every sequence of the pass starts in it.
pub fn forward(rec: &mut Recorder, of: &Convolution, state: Option<Matrix>, out: Matrix) {
    of.forward(rec, Form::Gated, state, out);
}

/// The gradients of B, C and X, `[rows, 3 channels]`, from that of the result of [`forward`], `[rows, channels]`. Every sequence starts
/// in the pass.
pub fn backward(rec: &mut Recorder, of: &Convolution, dout: Matrix, dinputs: Matrix) {
    of.backward(rec, Form::Gated, dout, dinputs);
}

/// Adds the gradient of the weights, f32 `[channels][taps]`, from that of the result of [`forward`], `[rows, channels]`. `terms`,
/// `[rows, channels * taps]`, is scratch. Every sequence starts in the pass.
pub fn weight_gradient(rec: &mut Recorder, of: &Convolution, dout: Matrix, terms: Matrix, gradient: View) {
    of.weight_gradient(rec, Form::Gated, dout, terms, gradient);
}

/// Keeps what the next pass reads of this one in `state`, `[taps - 1, channels]`. All rows are of one sequence.
pub fn keep(rec: &mut Recorder, of: &Convolution, state: Matrix) {
    of.keep(rec, Form::Gated, state);
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    /// The sizes of a convolution, with the position of each row.
    #[derive(Clone, Copy)]
    pub(crate) struct Sizes<'a> {
        pub positions: &'a [u32],
        pub channels: usize,
        pub taps: usize,
    }

    /// Calls `visit` with each pair of a row and a row that it reads, and the weight's index.
    pub(crate) fn pairs(of: Sizes, mut visit: impl FnMut(usize, usize, usize)) {
        for (row, position) in of.positions.iter().enumerate() {
            for j in 0..of.taps {
                let back = of.taps - 1 - j;
                if back <= *position as usize {
                    visit(row, row - back, j);
                }
            }
        }
    }

    fn convolved(of: Sizes, inputs: &[f64], weights: &[f64]) -> Vec<f64> {
        let c = of.channels;
        let mut y = vec![0.0; of.positions.len() * c];
        pairs(of, |row, read, j| {
            for i in 0..c {
                y[row * c + i] +=
                    weights[i * of.taps + j] * inputs[read * 3 * c + i] * inputs[read * 3 * c + 2 * c + i];
            }
        });
        y
    }

    pub(crate) fn forward(of: Sizes, inputs: &[f64], weights: &[f64]) -> Vec<f64> {
        let c = of.channels;
        let y = convolved(of, inputs, weights);
        (0..y.len()).map(|at| y[at] * inputs[at / c * 3 * c + c + at % c]).collect()
    }

    /// The gradient of the inputs.
    pub(crate) fn backward(of: Sizes, inputs: &[f64], weights: &[f64], dout: &[f64]) -> Vec<f64> {
        let c = of.channels;
        let y = convolved(of, inputs, weights);
        let mut du = vec![0.0; y.len()];
        pairs(of, |row, read, j| {
            for i in 0..c {
                du[read * c + i] += weights[i * of.taps + j] * dout[row * c + i] * inputs[row * 3 * c + c + i];
            }
        });
        let mut gradient = vec![0.0; inputs.len()];
        for at in 0..y.len() {
            let b = at / c * 3 * c + at % c;
            gradient[b] = du[at] * inputs[b + 2 * c];
            gradient[b + c] = dout[at] * y[at];
            gradient[b + 2 * c] = du[at] * inputs[b];
        }
        gradient
    }

    /// The gradient of the weights.
    pub(crate) fn weight_gradient(of: Sizes, inputs: &[f64], dout: &[f64]) -> Vec<f64> {
        let c = of.channels;
        let mut gradient = vec![0.0; c * of.taps];
        pairs(of, |row, read, j| {
            for i in 0..c {
                let u = inputs[read * 3 * c + i] * inputs[read * 3 * c + 2 * c + i];
                gradient[i * of.taps + j] += dout[row * c + i] * inputs[row * 3 * c + c + i] * u;
            }
        });
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};

    #[test]
    fn both_directions_equal_the_twin() {
        for (i, (rows, channels)) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 12), (40, 129)]).into_iter().enumerate() {
            let taps = [1, 3, 4, 7, 2][i % 5];
            let mut lab = Lab::new();
            // Among the sequences are some that are shorter than the convolution.
            let at = lab.positions(rows, 9);
            let inputs = lab.normal(rows * 3 * channels);
            let (weights, dout) = (lab.normal(channels * taps), lab.normal(rows * channels));
            let of = Convolution {
                positions: lab.words(&at),
                weights: lab.vector(&weights),
                taps: taps as u32,
                inputs: lab.matrix(rows, 3 * channels, &inputs),
            };
            let (device_dout, out) = (lab.matrix(rows, channels, &dout), lab.empty(rows, channels));
            let dinputs = lab.empty(rows, 3 * channels);
            let mut rec = lab.recorder();
            forward(&mut rec, &of, None, out);
            backward(&mut rec, &of, device_dout, dinputs);
            let (terms, before) = (lab.empty(rows, channels * taps), lab.normal(channels * taps));
            let of_weights = lab.vector(&before);
            weight_gradient(&mut rec, &of, device_dout, terms, of_weights);
            lab.run(&rec);
            let sizes = twin::Sizes { positions: &at, channels, taps };
            let what = format!("{rows} rows, {channels} channels, {taps} taps");
            assert_close(&what, &lab.read(out), &twin::forward(sizes, &inputs, &weights), 1e-5);
            let want = twin::backward(sizes, &inputs, &weights, &dout);
            assert_close(&format!("{what}: gradient"), &lab.read(dinputs), &want, 1e-5);
            let want = twin::weight_gradient(sizes, &inputs, &dout);
            let want: Vec<f64> = want.iter().zip(&before).map(|(sum, before)| sum + before).collect();
            let got = &lab.read_vector(of_weights)[..channels * taps];
            assert_close(&format!("{what}: gradient of the weights"), got, &want, 1e-5);
        }
    }

    /// One text in passes of several lengths, each with the state that the one before left.
    #[test]
    fn passes_continue_from_the_state() {
        for (channels, taps) in [(8, 3), (5, 4), (4, 2), (3, 1)] {
            let mut lab = Lab::new();
            let lengths = [4, 1, 1, 2, 7, 1];
            let rows: usize = lengths.iter().sum();
            let at: Vec<u32> = (0..rows as u32).collect();
            let (inputs, weights) = (lab.normal(rows * 3 * channels), lab.normal(channels * taps));
            let device_weights = lab.vector(&weights);
            let state = lab.empty((taps - 1).max(1), channels);
            let mut rec = lab.recorder();
            let (mut first, mut outs) = (0, Vec::new());
            for length in lengths {
                let own = &inputs[first * 3 * channels..(first + length) * 3 * channels];
                let of = Convolution {
                    positions: lab.words(&at[first..first + length]),
                    weights: device_weights,
                    taps: taps as u32,
                    inputs: lab.matrix(length, 3 * channels, own),
                };
                let out = lab.empty(length, channels);
                forward(&mut rec, &of, Some(state), out);
                keep(&mut rec, &of, state);
                outs.push(out);
                first += length;
            }
            lab.run(&rec);
            let got: Vec<f32> = outs.into_iter().flat_map(|out| lab.read(out)).collect();
            let sizes = twin::Sizes { positions: &at, channels, taps };
            assert_close(&format!("{taps} taps"), &got, &twin::forward(sizes, &inputs, &weights), 1e-5);
        }
    }

    #[test]
    fn the_twins_gradients_are_the_slopes_of_its_forward() {
        let mut lab = Lab::new();
        let (positions, channels, taps) = ([0, 1, 2, 3, 0, 0, 1], 3, 3);
        let (inputs, weights, dout) = (lab.normal(7 * 9), lab.normal(9), lab.normal(7 * 3));
        let sizes = twin::Sizes { positions: &positions, channels, taps };
        let gradient = twin::backward(sizes, &inputs, &weights, &dout);
        let objective = |y: Vec<f64>| y.iter().zip(&dout).map(|(y, d)| y * d).sum();
        assert_gradient(&inputs, &gradient, |inputs| objective(twin::forward(sizes, inputs, &weights)));
        let gradient = twin::weight_gradient(sizes, &inputs, &dout);
        assert_gradient(&weights, &gradient, |weights| objective(twin::forward(sizes, &inputs, weights)));
    }
}
