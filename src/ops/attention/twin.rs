//! The formulas in plain loops, in f64; the reference of every variant.

use super::Shape;

/// The operands of one attention, rows without padding; ranges are (first, one past the last).
pub(crate) struct Operands<'a> {
    pub shape: Shape,
    pub scale: f64,
    pub cap: Option<f64>,
    /// The sink of each head, or empty.
    pub sinks: &'a [f64],
    pub q: &'a [f64],
    pub k: &'a [f64],
    pub v: &'a [f64],
    pub key_ranges: &'a [[u32; 2]],
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Operands<'_> {
    /// Where the head of one row lies in `[rows, heads * head_dim]`.
    fn query(&self, row: usize, head: usize) -> std::ops::Range<usize> {
        let d = self.shape.head_dim as usize;
        let at = (row * self.shape.heads as usize + head) * d;
        at..at + d
    }

    /// Where the head of k and v that query head `head` reads lies.
    fn key(&self, key: usize, head: usize) -> std::ops::Range<usize> {
        let (d, kv_heads) = (self.shape.head_dim as usize, self.shape.kv_heads as usize);
        let at = (key * kv_heads + head * kv_heads / self.shape.heads as usize) * d;
        at..at + d
    }

    fn bounded(&self, score: f64) -> f64 {
        self.cap.map_or(score, |cap| cap * (score / cap).tanh())
    }

    /// The derivative of a bounded score by the score.
    fn slope(&self, bounded: f64) -> f64 {
        self.cap.map_or(1.0, |cap| 1.0 - (bounded / cap).powi(2))
    }

    /// (key, probability) of each key that the query sees, and the log-sum-exp of its scores.
    fn probabilities(&self, row: usize, head: usize) -> (Vec<(usize, f64)>, f64) {
        let [from, to] = self.key_ranges[row];
        let q = &self.q[self.query(row, head)];
        let score = |j: usize| self.bounded(self.scale * dot(q, &self.k[self.key(j, head)]));
        let scores: Vec<(usize, f64)> = (from as usize..to as usize).map(|j| (j, score(j))).collect();
        let all = || scores.iter().map(|s| s.1).chain(self.sinks.get(head).copied());
        let highest = all().fold(f64::NEG_INFINITY, f64::max);
        let lse = highest + all().map(|s| (s - highest).exp()).sum::<f64>().ln();
        (scores.into_iter().map(|(j, s)| (j, (s - lse).exp())).collect(), lse)
    }

    /// (out, lse as `[heads][rows]`).
    pub(crate) fn forward(&self) -> (Vec<f64>, Vec<f64>) {
        let (rows, heads) = (self.key_ranges.len(), self.shape.heads as usize);
        let (mut out, mut lse) = (vec![0.0; self.q.len()], vec![-1e30; heads * rows]);
        let has_scores = |row: &usize| !self.sinks.is_empty() || self.key_ranges[*row][0] < self.key_ranges[*row][1];
        for row in (0..rows).filter(has_scores) {
            for head in 0..heads {
                let (probabilities, row_lse) = self.probabilities(row, head);
                lse[head * rows + row] = row_lse;
                for (j, p) in probabilities {
                    let value = &self.v[self.key(j, head)];
                    out[self.query(row, head)].iter_mut().zip(value).for_each(|(o, v)| *o += p * v);
                }
            }
        }
        (out, lse)
    }

    /// (dq, dk, dv).
    pub(crate) fn backward(&self, dout: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mut dq, mut dk, mut dv) = (vec![0.0; self.q.len()], vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        for row in 0..self.key_ranges.len() {
            for head in 0..self.shape.heads as usize {
                let query = self.query(row, head);
                let (probabilities, _) = self.probabilities(row, head);
                let dp: Vec<f64> =
                    probabilities.iter().map(|(j, _)| dot(&dout[query.clone()], &self.v[self.key(*j, head)])).collect();
                let mean: f64 = probabilities.iter().zip(&dp).map(|((_, p), dp)| p * dp).sum();
                for ((j, p), dp) in probabilities.into_iter().zip(dp) {
                    let key = self.key(j, head);
                    let score = self.bounded(self.scale * dot(&self.q[query.clone()], &self.k[key.clone()]));
                    let ds = self.scale * self.slope(score) * p * (dp - mean);
                    for (a, b) in query.clone().zip(key) {
                        dq[a] += ds * self.k[b];
                        dk[b] += ds * self.q[a];
                        dv[b] += p * dout[a];
                    }
                }
            }
        }
        (dq, dk, dv)
    }
}
