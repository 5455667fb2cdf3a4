//! The depthwise causal convolution with SiLU in front of a linear attention (transformers' `Qwen3_5GatedDeltaNet`): channel by channel
//! `out = y sigmoid(y)` with `y_t = sum over j of w_j x_(t - L + 1 + j)`. Rows before the start of a sequence count as 0.
//!
//! With D the gradient of the result, that of the sum is `dy = D s (1 + y (1 - s))` with `s = sigmoid(y)`, y computed again. Then
//! `dx_t = sum over j of w_j dy_(t + L - 1 - j)` within the sequence, and the gradient of `w_j` is the sum of
//! `dy_t x_(t - L + 1 + j)` over all rows t.
//!
//! The kernels are those of [`short_conv`](super::short_conv). In generation, the state holds x of the last L - 1 positions: position p
//! at row `p mod (L - 1)`.

pub use super::short_conv::Convolution;
use super::short_conv::Form;
use crate::gpu::{Matrix, Recorder, View};

/// `out`, `[rows, channels]`, of inputs `[rows, channels]`. `state` is that of [`keep`], `[taps - 1, channels]`; None where every
/// sequence of the pass starts in it.
pub fn forward(rec: &mut Recorder, of: &Convolution, state: Option<Matrix>, out: Matrix) {
    of.forward(rec, Form::Silu, state, out);
}

/// The gradient of the inputs, `[rows, channels]`. `dout`, `[rows, channels]`, is the gradient of the result of [`forward`], and becomes
/// that of the sum y, which [`weight_gradient`] reads. Every sequence starts in the pass.
pub fn backward(rec: &mut Recorder, of: &Convolution, dout: Matrix, dinputs: Matrix) {
    of.slope(rec, dout);
    of.backward(rec, Form::Silu, dout, dinputs);
}

/// Adds the gradient of the weights, f32 `[channels][taps]`. `dsum`, `[rows, channels]`, is what [`backward`] leaves of `dout`, and
/// `terms`, `[rows, channels * taps]`, is scratch. Every sequence starts in the pass.
pub fn weight_gradient(rec: &mut Recorder, of: &Convolution, dsum: Matrix, terms: Matrix, gradient: View) {
    of.weight_gradient(rec, Form::Silu, dsum, terms, gradient);
}

/// Keeps what the next pass reads of this one in `state`, `[taps - 1, channels]`. All rows are of one sequence.
pub fn keep(rec: &mut Recorder, of: &Convolution, state: Matrix) {
    of.keep(rec, Form::Silu, state);
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    pub(crate) use crate::ops::short_conv::twin::Sizes;
    use crate::ops::short_conv::twin::pairs;

    fn sums(of: Sizes, inputs: &[f64], weights: &[f64]) -> Vec<f64> {
        let c = of.channels;
        let mut y = vec![0.0; inputs.len()];
        pairs(of, |row, read, j| {
            for i in 0..c {
                y[row * c + i] += weights[i * of.taps + j] * inputs[read * c + i];
            }
        });
        y
    }

    pub(crate) fn forward(of: Sizes, inputs: &[f64], weights: &[f64]) -> Vec<f64> {
        sums(of, inputs, weights).iter().map(|y| y / (1.0 + (-y).exp())).collect()
    }

    /// The gradients of the inputs and of the weights.
    pub(crate) fn backward(of: Sizes, inputs: &[f64], weights: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let c = of.channels;
        let slope = |y: &f64| {
            let s = 1.0 / (1.0 + (-y).exp());
            s * (1.0 + y * (1.0 - s))
        };
        let dy: Vec<f64> = sums(of, inputs, weights).iter().zip(dout).map(|(y, d)| d * slope(y)).collect();
        let (mut dinputs, mut dweights) = (vec![0.0; inputs.len()], vec![0.0; weights.len()]);
        pairs(of, |row, read, j| {
            for i in 0..c {
                dinputs[read * c + i] += weights[i * of.taps + j] * dy[row * c + i];
                dweights[i * of.taps + j] += dy[row * c + i] * inputs[read * c + i];
            }
        });
        (dinputs, dweights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};

    #[test]
    fn both_directions_equal_the_twin() {
        for (i, (rows, channels)) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 12), (40, 129)]).into_iter().enumerate() {
            let taps = [4, 1, 3, 4, 7, 2][i % 6];
            let mut lab = Lab::new();
            let at = lab.positions(rows, 9);
            let (inputs, weights) = (lab.normal(rows * channels), lab.normal(channels * taps));
            let (dout, before) = (lab.normal(rows * channels), lab.normal(channels * taps));
            let of = Convolution {
                positions: lab.words(&at),
                weights: lab.vector(&weights),
                taps: taps as u32,
                inputs: lab.matrix(rows, channels, &inputs),
            };
            let (device_dout, out) = (lab.matrix(rows, channels, &dout), lab.empty(rows, channels));
            let (dinputs, terms) = (lab.empty(rows, channels), lab.empty(rows, channels * taps));
            let of_weights = lab.vector(&before);
            let mut rec = lab.recorder();
            forward(&mut rec, &of, None, out);
            backward(&mut rec, &of, device_dout, dinputs);
            weight_gradient(&mut rec, &of, device_dout, terms, of_weights);
            lab.run(&rec);
            let sizes = twin::Sizes { positions: &at, channels, taps };
            let what = format!("{rows} rows, {channels} channels, {taps} taps");
            assert_close(&what, &lab.read(out), &twin::forward(sizes, &inputs, &weights), 1e-5);
            let (want, want_weights) = twin::backward(sizes, &inputs, &weights, &dout);
            assert_close(&format!("{what}: gradient"), &lab.read(dinputs), &want, 1e-5);
            let want: Vec<f64> = want_weights.iter().zip(&before).map(|(sum, before)| sum + before).collect();
            let got = &lab.read_vector(of_weights)[..channels * taps];
            assert_close(&format!("{what}: gradient of the weights"), got, &want, 1e-5);
        }
    }

    /// One text in passes of several lengths, each with the state that the one before left.
    #[test]
    fn passes_continue_from_the_state() {
        for (channels, taps) in [(8, 4), (5, 3), (4, 2), (3, 1)] {
            let mut lab = Lab::new();
            let lengths = [4, 1, 1, 2, 7, 1];
            let rows: usize = lengths.iter().sum();
            let at: Vec<u32> = (0..rows as u32).collect();
            let (inputs, weights) = (lab.normal(rows * channels), lab.normal(channels * taps));
            let device_weights = lab.vector(&weights);
            let state = lab.empty((taps - 1).max(1), channels);
            let mut rec = lab.recorder();
            let (mut first, mut outs) = (0, Vec::new());
            for length in lengths {
                let last = first + length;
                let of = Convolution {
                    positions: lab.words(&at[first..last]),
                    weights: device_weights,
                    taps: taps as u32,
                    inputs: lab.matrix(length, channels, &inputs[first * channels..last * channels]),
                };
                let out = lab.empty(length, channels);
                forward(&mut rec, &of, Some(state), out);
                keep(&mut rec, &of, state);
                outs.push(out);
                first = last;
            }
            lab.run(&rec);
            let got: Vec<f32> = outs.into_iter().flat_map(|out| lab.read(out)).collect();
            let sizes = twin::Sizes { positions: &at, channels, taps };
            assert_close(&format!("{taps} taps"), &got, &twin::forward(sizes, &inputs, &weights), 1e-5);
        }
    }

    #[test]
    fn large_sums_stay_finite() {
        let mut lab = Lab::new();
        let inputs = [-1e30, -1000.0, -88.0, 88.0, 1000.0, 1e30];
        let of = Convolution {
            positions: lab.words(&[0]),
            weights: lab.vector(&[1.0; 6]),
            taps: 1,
            inputs: lab.matrix(1, 6, &inputs),
        };
        let (out, dout, dinputs) = (lab.empty(1, 6), lab.matrix(1, 6, &[1.0; 6]), lab.empty(1, 6));
        let mut rec = lab.recorder();
        forward(&mut rec, &of, None, out);
        backward(&mut rec, &of, dout, dinputs);
        lab.run(&rec);
        assert_close("result", &lab.read(out), &inputs.map(|y| y.max(0.0)), 1e-6);
        assert_close("gradient", &lab.read(dinputs), &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 1e-6);
    }

    #[test]
    fn the_twins_gradients_are_the_slopes_of_its_forward() {
        let mut lab = Lab::new();
        let (positions, channels, taps) = ([0, 1, 2, 3, 0, 0, 1], 3, 4);
        let (inputs, weights, dout) = (lab.normal(7 * 3), lab.normal(12), lab.normal(7 * 3));
        let sizes = twin::Sizes { positions: &positions, channels, taps };
        let (dinputs, dweights) = twin::backward(sizes, &inputs, &weights, &dout);
        let objective = |y: Vec<f64>| y.iter().zip(&dout).map(|(y, d)| y * d).sum();
        assert_gradient(&inputs, &dinputs, |inputs| objective(twin::forward(sizes, inputs, &weights)));
        assert_gradient(&weights, &dweights, |weights| objective(twin::forward(sizes, &inputs, weights)));
    }
}
