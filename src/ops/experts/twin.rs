//! The formulas in plain loops, in f64.

use super::{Choice, Scores};
use crate::ops::glu::{self, Activation};

/// The scores of the router's logits.
pub(crate) fn scores(logits: &[f64], choice: Choice) -> Vec<f64> {
    if choice.scores == Scores::Sigmoid {
        return logits.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
    }
    let row = |row: &[f64]| -> Vec<f64> {
        let highest = row.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = row.iter().map(|z| (z - highest).exp()).sum();
        row.iter().map(|z| (z - highest).exp() / total).collect()
    };
    logits.chunks(choice.experts as usize).flat_map(row).collect()
}

/// The experts of each row and their weights, the largest first. `bias` is that of the choice, or empty.
pub(crate) fn choose(scores: &[f64], choice: Choice, bias: &[f64]) -> (Vec<usize>, Vec<f64>) {
    let offset = if choice.scores == Scores::Sigmoid { 1e-6 } else { 0.0 };
    let (mut chosen, mut weights) = (Vec::new(), Vec::new());
    for row in scores.chunks(choice.experts as usize) {
        let key = |e: usize| row[e] + bias.get(e).unwrap_or(&0.0);
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| key(*b).total_cmp(&key(*a)).then(a.cmp(b)));
        order.truncate(choice.top as usize);
        let sum: f64 = if choice.normalized { offset + order.iter().map(|e| row[*e]).sum::<f64>() } else { 1.0 };
        weights.extend(order.iter().map(|e| f64::from(choice.scale) * row[*e] / sum));
        chosen.extend(order);
    }
    (chosen, weights)
}

/// The gradient of the router's logits from the share of each pair.
pub(crate) fn route_backward(scores: &[f64], shares: &[f64], choice: Choice, bias: &[f64]) -> Vec<f64> {
    let (chosen, weights) = choose(scores, choice, bias);
    let (experts, top) = (choice.experts as usize, choice.top as usize);
    let mut gradient = vec![0.0; scores.len()];
    for (row, d) in gradient.chunks_mut(experts).enumerate() {
        let pairs = row * top..(row + 1) * top;
        let mean: f64 = pairs.clone().map(|i| weights[i] * shares[i]).sum();
        let sigmoid = choice.scores == Scores::Sigmoid;
        if !choice.normalized && !sigmoid {
            for (e, d) in d.iter_mut().enumerate() {
                *d = -scores[row * experts + e] * mean;
            }
        }
        for i in pairs {
            let shift = if sigmoid && !choice.normalized { 0.0 } else { mean / f64::from(choice.scale) };
            let slope = if sigmoid { 1.0 - scores[row * experts + chosen[i]] } else { 1.0 };
            d[chosen[i]] = slope * weights[i] * (shares[i] - shift);
        }
    }
    gradient
}

/// `x W^T` of one row.
pub(crate) fn product(x: &[f64], w: &[f64]) -> Vec<f64> {
    w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

/// `dy W` of one row.
pub(crate) fn transposed(dy: &[f64], w: &[f64]) -> Vec<f64> {
    let inputs = w.len() / dy.len();
    (0..inputs).map(|k| dy.iter().enumerate().map(|(o, d)| d * w[o * inputs + k]).sum()).collect()
}

/// The weights of a layer's experts, in the order gate, up, down.
pub(crate) struct Layer {
    pub choice: Choice,
    /// The bias of the choice of experts, or empty.
    pub bias: Vec<f64>,
    /// The biases of gate, up and down, `[experts][outputs]` each, or empty.
    pub biases: [Vec<f64>; 3],
    pub activation: Activation,
    pub hidden: usize,
    pub weights: Vec<[Vec<f64>; 3]>,
}

impl Layer {
    /// The product of a row with a matrix of an expert, and its bias.
    fn product(&self, x: &[f64], expert: usize, matrix: usize) -> Vec<f64> {
        let mut y = product(x, &self.weights[expert][matrix]);
        let biases = self.biases[matrix].iter().skip(expert * y.len());
        y.iter_mut().zip(biases).for_each(|(y, bias)| *y += bias);
        y
    }

    /// Gate, up and their gated product of one row in one expert.
    fn inner(&self, x: &[f64], expert: usize) -> [Vec<f64>; 3] {
        let (gate, up) = (self.product(x, expert, 0), self.product(x, expert, 1));
        let act = glu::twin::forward(self.activation, &gate, &up);
        [gate, up, act]
    }

    /// The sum of each row's experts.
    pub(crate) fn forward(&self, x: &[f64], logits: &[f64]) -> Vec<f64> {
        let top = self.choice.top as usize;
        let (chosen, weights) = choose(&scores(logits, self.choice), self.choice, &self.bias);
        let mut y = vec![0.0; x.len()];
        for (row, x) in x.chunks(self.hidden).enumerate() {
            for pair in row * top..(row + 1) * top {
                let [.., act] = self.inner(x, chosen[pair]);
                let out = self.product(&act, chosen[pair], 2);
                let y = &mut y[row * self.hidden..(row + 1) * self.hidden];
                y.iter_mut().zip(out).for_each(|(y, out)| *y += weights[pair] * out);
            }
        }
        y
    }

    /// The gradients of x, through the experts alone, and of the logits.
    pub(crate) fn backward(&self, x: &[f64], logits: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let top = self.choice.top as usize;
        let scores = scores(logits, self.choice);
        let (chosen, weights) = choose(&scores, self.choice, &self.bias);
        let (mut dx, mut shares) = (vec![0.0; x.len()], Vec::new());
        for (row, x) in x.chunks(self.hidden).enumerate() {
            let of_row = row * self.hidden..(row + 1) * self.hidden;
            for pair in row * top..(row + 1) * top {
                let [gate, up, act] = self.inner(x, chosen[pair]);
                let [w_gate, w_up, w_down] = &self.weights[chosen[pair]];
                let dact = transposed(&dy[of_row.clone()], w_down);
                let of_bias = self.biases[2].iter().skip(chosen[pair] * self.hidden).zip(&dy[of_row.clone()]);
                let of_bias: f64 = of_bias.map(|(b, d)| b * d).sum();
                shares.push(of_bias + act.iter().zip(&dact).map(|(a, d)| a * d).sum::<f64>());
                let weighted: Vec<f64> = dact.iter().map(|d| weights[pair] * d).collect();
                let (dgate, dup) = glu::twin::backward(self.activation, &gate, &up, &weighted);
                let sum = transposed(&dgate, w_gate).into_iter().zip(transposed(&dup, w_up));
                dx[of_row.clone()].iter_mut().zip(sum).for_each(|(dx, (a, b))| *dx += a + b);
            }
        }
        (dx, route_backward(&scores, &shares, self.choice, &self.bias))
    }
}
