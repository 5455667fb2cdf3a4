//! The buffers of layers that have a gated delta rule in place of attention. [`super::activations`] plans them, and [`super::decoder`]
//! has their passes.

use crate::gpu::{Matrix, View};
use crate::model::linear_attention::LinearAttention;
use crate::ops::delta_rule::Shape;

/// The activations of a layer's gated delta rule that its backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct LinearActivations {
    /// Queries, keys and values before their convolution, `[rows, 2 key width + value width]`.
    pub qkv: Matrix,
    /// Gates on the result, `[rows, value width]`.
    pub gate: Matrix,
    /// The shares of values that are written, before their sigmoid, `[rows, value heads]`.
    pub beta: Matrix,
    /// The inputs of the decay, `[rows, value heads]`.
    pub decay: Matrix,
    /// Result of the rule, `[rows, value width]`.
    pub out: Matrix,
}

impl LinearActivations {
    /// The first `rows` rows of everything.
    pub fn first_rows(self, rows: u32) -> Self {
        let [qkv, gate, beta, decay, out] =
            [self.qkv, self.gate, self.beta, self.decay, self.out].map(|m| m.first_rows(rows));
        Self { qkv, gate, beta, decay, out }
    }

    /// The activations that may be stored in bf16.
    pub fn compressible(&self) -> [Matrix; 3] {
        [self.qkv, self.gate, self.out]
    }
}

/// Buffers of a gated delta rule within one layer, which all layers share.
#[derive(Clone, Copy, Debug)]
pub struct LinearWorkspace {
    /// Queries, keys and values after their convolution, `[rows, 2 key width + value width]`.
    pub mixed: Matrix,
    /// The normed and gated result, which the output projection reads, `[rows, value width]`.
    pub normed: Matrix,
    /// The factors that the rule computes of beta and decay first, `[rows, 4 * value heads]`.
    pub factors: Matrix,
    /// Scratch of the rule in chunks.
    pub pairs: View,
}

impl LinearWorkspace {
    /// The first `rows` rows of everything.
    pub fn first_rows(self, rows: u32) -> Self {
        let [mixed, normed, factors] = [self.mixed, self.normed, self.factors].map(|m| m.first_rows(rows));
        Self { mixed, normed, factors, ..self }
    }
}

/// Gradients of a gated delta rule within one layer, which all layers share.
#[derive(Clone, Copy, Debug)]
pub struct LinearGradients {
    /// That of the normed and gated result, `[rows, value width]`.
    pub normed: Matrix,
    /// That of the rule's result, `[rows, value width]`.
    pub out: Matrix,
    /// That of queries, keys and values after their convolution, `[rows, 2 key width + value width]`.
    pub mixed: Matrix,
    /// Gradients of the projections' outputs for queries, keys and values, and for gates.
    pub values: [Matrix; 2],
    /// Gradients of the projections' outputs for beta and decay, `[rows, value heads]`.
    pub heads: [Matrix; 2],
    /// The part of the input's gradient that goes through beta and decay, `[rows, hidden]`.
    pub input: Matrix,
    /// Scratch of the rule's backward pass.
    pub scratch: View,
}

impl LinearGradients {
    /// The first `rows` rows of everything.
    pub fn first_rows(self, rows: u32) -> Self {
        let first = |m: Matrix| m.first_rows(rows);
        Self {
            normed: first(self.normed),
            out: first(self.out),
            mixed: first(self.mixed),
            values: self.values.map(first),
            heads: self.heads.map(first),
            input: first(self.input),
            scratch: self.scratch,
        }
    }
}

/// The heads of a model's gated delta rule.
pub fn shape(of: &LinearAttention) -> Shape {
    Shape {
        key_heads: of.key_heads as u32,
        value_heads: of.value_heads as u32,
        key_dim: of.key_head_dim as u32,
        value_dim: of.value_head_dim as u32,
    }
}
