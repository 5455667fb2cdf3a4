//! The additions of Gemma 4's layers: keys and values of an earlier layer, a norm over values, and at their end an embedding of their
//! own and a factor.
//!
//! With `p` a layer's embeddings of the tokens: `s = x + norm(down)`, `h = f(s Wg^T) * p`, `y = scalar (s + norm(h Wo^T))`. From the
//! embeddings `e` in the table and the scaled embedding `x0`: `p = (norm(x0 Wm^T / sqrt(hidden)) + sqrt(width) e) / sqrt(2)`. Gradients
//! of keys and values that several layers read are summed from the last layer down, the layer that computes them at the end.

use std::f32::consts::FRAC_1_SQRT_2;

use super::{LayerBackward, Pass};
use crate::gpu::{Matrix, Recorder, View};
use crate::lora::factors::Factor;
use crate::model::config::ModelConfig;
use crate::model::modules::{Norm, Projection};
use crate::network::activations::{AttentionActivations, BackwardWorkspace, LayerActivations};
use crate::network::narrow::shared_keys;
use crate::ops::linear::LowRank;
use crate::ops::rms_norm::{NormConstants, NormGradient, Residual};
use crate::ops::{add, dora, glu, rms_norm};

impl Pass<'_> {
    /// True if a layer computes its keys and values itself.
    pub(super) fn has_keys(&self, layer: usize) -> bool {
        self.network.config.kv_source(layer) == layer
    }

    /// Gains of 1 for each feature of a layer's head, where values go through a norm.
    pub(super) fn ones(&self, layer: usize) -> Option<View> {
        let bytes = 4 * self.network.config.layer_head_dim(layer) as u64;
        self.network.ones.map(|ones| View { bytes, ..ones })
    }

    /// Computes the embeddings of every layer from the first residual stream and those of the tokens.
    pub(super) fn project_embeddings(&self, rec: &mut Recorder) {
        let Some((projected, gain)) = self.projected_embedding() else { return };
        let low = self.low_of_embeddings(rec);
        for (layer, of_tokens) in self.inputs.layer_embeddings.iter().enumerate() {
            self.project_embedding(rec, layer, low, projected);
            let residual = Residual {
                x: of_tokens.first_rows(self.rows),
                delta: projected,
                delta_gain: Some(gain),
                delta_scale: FRAC_1_SQRT_2,
                sum: self.embedding_of(layer),
            };
            rms_norm::forward_add(rec, residual, None, self.norm_of_embeddings());
        }
    }

    /// Adds the gradients of the adapter of the projection to layers' embeddings. The backward pass of the layers has left the gradients
    /// of the embeddings in their place.
    pub(super) fn project_embeddings_backward(&self, rec: &mut Recorder, ws: &BackwardWorkspace) {
        let Some(((x, gain), dx)) = self.projected_embedding().zip(ws.d_layer_embedding) else { return };
        let low = self.low_of_embeddings(rec);
        for index in 0..self.network.layers.len() {
            let acts = &self.layer(index);
            // It is not kept.
            self.project_embedding(rec, index, low, x);
            let (dy, dy_scale) = (self.embedding_of(index), FRAC_1_SQRT_2);
            let gradient = NormGradient { x, gain, dy, dy_scale, dx, accumulate: false };
            rms_norm::backward(rec, gradient, self.norm_of_embeddings());
            let pass = LayerBackward { index, acts, ws };
            let gradient = self.projection_gradient(rec, pass, Projection::LayerEmbedding, dx, 0);
            self.parameter_gradients(rec, pass, self.hidden(0), gradient);
        }
    }

    /// `dropout(x) A^T` of the adapter of the projection to layers' embeddings, whose A is one for all layers.
    fn low_of_embeddings(&self, rec: &mut Recorder) -> Option<LowRank> {
        self.low_rank(rec, 0, Projection::LayerEmbedding, self.hidden(0), &self.layer(0))
    }

    /// The projection to a layer's embeddings, with the part of B that is the layer's own.
    fn project_embedding(&self, rec: &mut Recorder, layer: usize, low: Option<LowRank>, out: Matrix) {
        let own = low.zip(self.module(layer, Projection::LayerEmbedding));
        let low = own.map(|(low, module)| LowRank { factor: module[Factor::B].values, ..low });
        self.project_with(rec, layer, Projection::LayerEmbedding, self.hidden(0), low, out);
    }

    /// The place of a layer's projected embeddings, and the gains of the norm over them.
    fn projected_embedding(&self) -> Option<(Matrix, View)> {
        let [projected, _] = self.activations.workspace.embedding?;
        Some((projected.first_rows(self.rows), self.network.layer_embedding_norm?))
    }

    /// The norm over projected embeddings. The factor on the projection, 1 / sqrt(hidden), is in its constant.
    fn norm_of_embeddings(&self) -> NormConstants {
        let ModelConfig { rms_norm_eps, hidden_size, .. } = self.network.config;
        NormConstants { eps: rms_norm_eps * hidden_size as f32, ..self.norm() }
    }

    /// Records the end of a layer that has a factor: the sum with down's output, the layer's embedding, and the factor.
    pub(super) fn layer_end(&self, rec: &mut Recorder, layer: usize, acts: &LayerActivations) {
        let Some(scalar) = self.network.layers[layer].scalar else { return };
        let (out, down) = (self.hidden(layer + 1), self.output(acts, 1));
        if let Some(([gate, output], [product, stream])) = self.embedding_buffers(acts) {
            self.add_output(rec, layer, Norm::FeedForwardOutput, [acts.middle, down, stream], None);
            self.project(rec, layer, Projection::LayerGate, stream, acts, gate);
            glu::forward(rec, self.network.config.activation, gate, self.embedding_of(layer), product);
            self.project(rec, layer, Projection::LayerOut, product, acts, output);
            self.add_output(rec, layer, Norm::LayerEmbedding, [stream, output, out], None);
        } else {
            self.add_output(rec, layer, Norm::FeedForwardOutput, [acts.middle, down, out], None);
        }
        dora::rescale(rec, out, scalar, None);
    }

    /// The activations of a layer's embedding, and its buffers in the workspace.
    fn embedding_buffers(&self, acts: &LayerActivations) -> Option<([Matrix; 2], [Matrix; 2])> {
        let workspace = self.activations.workspace.embedding?;
        Some((acts.embedding?, workspace.map(|m| m.first_rows(self.rows))))
    }

    fn embedding_of(&self, layer: usize) -> Matrix {
        self.activations.embeddings[layer].first_rows(self.rows)
    }

    /// Records the backward pass of [`Self::layer_end`]: the gradient of the layer's output in `d_hidden` becomes that of the sum with
    /// down's output.
    pub(super) fn layer_end_backward(&self, rec: &mut Recorder, pass: LayerBackward) {
        let LayerBackward { index, acts, ws } = pass;
        let Some(scalar) = self.network.layers[index].scalar else { return };
        dora::rescale(rec, ws.d_hidden, scalar, None);
        let buffers = self.embedding_buffers(acts).zip(self.gain(index, Norm::LayerEmbedding)).zip(ws.d_output);
        let Some(((([gate, output], [product, stream]), gain), dx)) = buffers else { return };
        let gradient = NormGradient { x: output, gain, dy: ws.d_hidden, dy_scale: 1.0, dx, accumulate: false };
        rms_norm::backward(rec, gradient, self.norm());
        let out = self.projection_gradient(rec, pass, Projection::LayerOut, dx, 0);
        self.input_gradient(rec, index, &[out], product);
        glu::backward_in_place(rec, self.network.config.activation, gate, self.embedding_of(index), product);
        self.parameter_gradients(rec, pass, product, out);
        let of_gate = self.projection_gradient(rec, pass, Projection::LayerGate, gate, 0);
        self.input_gradient(rec, index, &[of_gate], dx);
        if self.trains(index, &[Projection::LayerGate]) {
            // The sum is not kept.
            let sum = [acts.middle, self.output(acts, 1), stream];
            self.add_output(rec, index, Norm::FeedForwardOutput, sum, None);
        }
        self.parameter_gradients(rec, pass, stream, of_gate);
        add::add(rec, dx, ws.d_hidden);
    }

    /// The sums of the gradients of shared keys and values.
    fn shared_gradients(&self, layer: usize) -> Option<[Matrix; 2]> {
        let shared = shared_keys(&self.network.config, self.activations, layer)?;
        Some(shared.gradients?.map(|m| m.first_rows(self.rows)))
    }

    /// True for the last of the layers that read the same keys and values, with which their gradients begin.
    fn is_last_reader(&self, layer: usize) -> bool {
        let config = &self.network.config;
        (layer + 1..config.num_layers).all(|other| config.kv_source(other) != config.kv_source(layer))
    }

    /// The buffers that a layer's attention writes the gradients of keys and values to.
    pub(super) fn place_of_key_gradients(&self, layer: usize, ws: &BackwardWorkspace) -> [Matrix; 2] {
        let sums = self.shared_gradients(layer).filter(|_| self.is_last_reader(layer));
        sums.unwrap_or([ws.d_k, ws.d_v])
    }

    /// Adds a layer's gradients of shared keys and values to their sums; in the layer that computes these, the sums to its own.
    pub(super) fn sum_key_gradients(&self, rec: &mut Recorder, layer: usize, ws: &BackwardWorkspace) {
        let Some(sums) = self.shared_gradients(layer).filter(|_| !self.is_last_reader(layer)) else { return };
        for (own, sum) in [ws.d_k, ws.d_v].into_iter().zip(sums) {
            if self.has_keys(layer) {
                add::add(rec, sum, own);
            } else {
                add::add(rec, own, sum);
            }
        }
    }

    /// The gradient of the projection's output for values, through the norm over values if there is one.
    pub(super) fn value_norm_backward(
        &self,
        rec: &mut Recorder,
        layer: usize,
        acts: &AttentionActivations,
        ws: &BackwardWorkspace,
    ) -> Matrix {
        let buffers = acts.raw_v.zip(ws.d_raw_v).zip(self.ones(layer)).filter(|_| self.has_keys(layer));
        let Some(((raw, d_raw), gain)) = buffers else { return ws.d_v };
        let [x, dy, dx] = [raw, ws.d_v, d_raw].map(|m| m.split_heads(self.network.config.num_kv_heads as u32));
        rms_norm::backward(rec, NormGradient { x, gain, dy, dy_scale: 1.0, dx, accumulate: false }, self.norm());
        d_raw
    }
}
