//! The formulas in plain loops, in f64.

use super::Choice;
use crate::ops::glu::{self, Activation};

pub(crate) fn softmax(logits: &[f64], experts: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let highest = row.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = row.iter().map(|z| (z - highest).exp()).sum();
        row.iter().map(|z| (z - highest).exp() / total).collect()
    };
    logits.chunks(experts).flat_map(row).collect()
}

/// The experts of each row and their weights, the largest first.
pub(crate) fn choose(probabilities: &[f64], choice: Choice) -> (Vec<usize>, Vec<f64>) {
    let (mut chosen, mut weights) = (Vec::new(), Vec::new());
    for row in probabilities.chunks(choice.experts as usize) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        order.truncate(choice.top as usize);
        let sum: f64 = if choice.normalized { order.iter().map(|e| row[*e]).sum() } else { 1.0 };
        weights.extend(order.iter().map(|e| row[*e] / sum));
        chosen.extend(order);
    }
    (chosen, weights)
}

/// The gradient of the router's logits from the share of each pair.
pub(crate) fn route_backward(probabilities: &[f64], shares: &[f64], choice: Choice) -> Vec<f64> {
    let (chosen, weights) = choose(probabilities, choice);
    let (experts, top) = (choice.experts as usize, choice.top as usize);
    let mut gradient = vec![0.0; probabilities.len()];
    for (row, d) in gradient.chunks_mut(experts).enumerate() {
        let pairs = row * top..(row + 1) * top;
        let mean: f64 = pairs.clone().map(|i| weights[i] * shares[i]).sum();
        if !choice.normalized {
            for (e, d) in d.iter_mut().enumerate() {
                *d = -probabilities[row * experts + e] * mean;
            }
        }
        for i in pairs {
            d[chosen[i]] = weights[i] * (shares[i] - mean);
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
    pub hidden: usize,
    pub weights: Vec<[Vec<f64>; 3]>,
}

impl Layer {
    /// Gate, up and their gated product of one row in one expert.
    fn inner(&self, x: &[f64], expert: usize) -> [Vec<f64>; 3] {
        let [gate, up, _] = &self.weights[expert];
        let (gate, up) = (product(x, gate), product(x, up));
        let act = glu::twin::forward(Activation::Silu, &gate, &up);
        [gate, up, act]
    }

    /// The sum of each row's experts.
    pub(crate) fn forward(&self, x: &[f64], logits: &[f64]) -> Vec<f64> {
        let top = self.choice.top as usize;
        let (chosen, weights) = choose(&softmax(logits, self.choice.experts as usize), self.choice);
        let mut y = vec![0.0; x.len()];
        for (row, x) in x.chunks(self.hidden).enumerate() {
            for pair in row * top..(row + 1) * top {
                let [.., act] = self.inner(x, chosen[pair]);
                let out = product(&act, &self.weights[chosen[pair]][2]);
                let y = &mut y[row * self.hidden..(row + 1) * self.hidden];
                y.iter_mut().zip(out).for_each(|(y, out)| *y += weights[pair] * out);
            }
        }
        y
    }

    /// The gradients of x, through the experts alone, and of the logits.
    pub(crate) fn backward(&self, x: &[f64], logits: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let top = self.choice.top as usize;
        let probabilities = softmax(logits, self.choice.experts as usize);
        let (chosen, weights) = choose(&probabilities, self.choice);
        let (mut dx, mut shares) = (vec![0.0; x.len()], Vec::new());
        for (row, x) in x.chunks(self.hidden).enumerate() {
            let of_row = row * self.hidden..(row + 1) * self.hidden;
            for pair in row * top..(row + 1) * top {
                let [gate, up, act] = self.inner(x, chosen[pair]);
                let [w_gate, w_up, w_down] = &self.weights[chosen[pair]];
                let dact = transposed(&dy[of_row.clone()], w_down);
                shares.push(act.iter().zip(&dact).map(|(a, d)| a * d).sum());
                let weighted: Vec<f64> = dact.iter().map(|d| weights[pair] * d).collect();
                let (dgate, dup) = glu::twin::backward(Activation::Silu, &gate, &up, &weighted);
                let sum = transposed(&dgate, w_gate).into_iter().zip(transposed(&dup, w_up));
                dx[of_row.clone()].iter_mut().zip(sum).for_each(|(dx, (a, b))| *dx += a + b);
            }
        }
        (dx, route_backward(&probabilities, &shares, self.choice))
    }
}
