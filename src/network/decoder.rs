//! The decoder, hand-written: read top to bottom it is the network, and its backward pass follows the forward pass in reverse.
//!
//! A pass records dispatches over a stream of rows; nothing runs here. Shapes are `[rows, width]` throughout. LoRA factors add their
//! gradients to the adapter's flat buffers; the base's own tensors have gradients where they are trained themselves.

mod gates;
mod layer_end;
mod linear_attention;

use std::borrow::Cow;
use std::ops::Range;

use super::activations::{
    Activations, AttentionActivations, BackwardWorkspace, Inputs, LayerActivations, WindowRanges, attention_shape,
};
use super::base::Network;
use super::dora::columns;
use super::experts::Mixture;
use super::narrow;
use super::trained::Trained;
use crate::gpu::{Matrix, Recorder, View};
use crate::lora::factors::Factor;
use crate::model::config::ModelConfig;
use crate::model::modules::{Norm, Projection};
use crate::network::adapter::{DeviceAdapter, DeviceFactor, DeviceModule, RowOrder};
use crate::ops::attention::{self, Shape};
use crate::ops::linear::{self, GradientTerm, LowRank};
use crate::ops::rms_norm::{NormConstants, NormGradient, Residual};
use crate::ops::rope::RotatedHeads;
use crate::ops::weight::Weight;
use crate::ops::{
    add, bf16, column_gradient, dora, dropout, embedding, glu, kv_cache, lora_gradient, noise, rms_norm, rope, scale,
    short_conv, weight_gradient,
};

/// LoRA dropout of one pass: masks come from a seed on the device, the module and the element.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability that an element becomes 0, from 0 to below 1.
    pub p: f32,
    /// A u32, new for each micro-batch.
    pub seed: View,
}

impl Dropout {
    fn mask(self, module: &DeviceModule) -> dropout::Mask {
        dropout::Mask { site: module.site, p: self.p, seed: self.seed }
    }
}

/// A projection seen from the gradient of its output.
#[derive(Clone, Copy)]
struct ProjectionGradient {
    projection: Projection,
    dy: Matrix,
    /// The gradient of what DoRA scales: dy times the factors of the outputs, or dy itself.
    du: Matrix,
    /// `du B`, `[rows, rank]`, where the projection is adapted.
    dyb: Option<Matrix>,
}

/// The operands of one layer's backward pass.
#[derive(Clone, Copy)]
struct LayerBackward<'a> {
    index: usize,
    acts: &'a LayerActivations,
    ws: &'a BackwardWorkspace,
}

/// What generation keeps of past positions.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// That of each layer.
    pub layers: Vec<LayerCache>,
}

/// What a layer keeps of past positions.
#[derive(Clone, Copy, Debug)]
pub enum LayerCache {
    /// Keys and values of all of them, `[max_positions, kv width]`.
    Attention([Matrix; 2]),
    /// The state of a short convolution, `[taps - 1, hidden]`, as [`short_conv::keep`] writes it.
    Convolution(Matrix),
    /// Both states of a gated delta rule.
    Linear {
        /// That of its convolution, `[taps - 1, 2 key width + value width]`, as [`crate::ops::causal_conv::keep`] writes it.
        convolution: Matrix,
        /// That of the rule, as [`crate::ops::delta_rule::forward`] leaves it.
        rule: View,
    },
}

/// Rows of a pass that continue a text.
#[derive(Clone, Debug)]
pub struct CachedRows<'a> {
    /// The past positions of the text, to which those of the rows are added.
    pub cache: &'a KvCache,
    /// The rows of the pass.
    pub rows: Range<u32>,
    /// The row of the cache for each row of the pass, u32; past the end of the cache for rows of other texts.
    pub places: View,
}

/// A pass through the network, forward and backward, for `rows` rows.
pub struct Pass<'a> {
    /// The base.
    pub network: &'a Network,
    /// The adapter; `None` runs the base alone.
    pub adapter: Option<&'a DeviceAdapter>,
    /// The base's own gradients, where it is trained.
    pub trained: Option<&'a Trained>,
    /// Tokens, positions and attention ranges of the rows.
    pub inputs: &'a Inputs,
    /// Buffers of the pass.
    pub activations: &'a Activations,
    /// Rows of this pass, at most as many as `activations` was planned for.
    pub rows: u32,
    /// Dropout of the inputs of A; `None` applies none.
    pub dropout: Option<Dropout>,
    /// Seed and size of the noise on embeddings, as [`noise::add`] reads them; `None` adds none.
    pub noise: Option<View>,
    /// The texts of the rows with their past positions, which attention reads in generation in place of the pass's own; empty in
    /// training.
    pub texts: &'a [CachedRows<'a>],
}

impl Pass<'_> {
    fn shape(&self, layer: usize) -> Shape {
        attention_shape(&self.network.config, layer)
    }

    /// The activations of a layer, as wide as its own matrices where layers differ.
    fn layer(&self, layer: usize) -> LayerActivations {
        let mut acts = self.activations.layer(layer).0.first_rows(self.rows);
        if let Some(low) = self.activations.workspace.layer_embedding_low {
            acts.low[Projection::LayerEmbedding as usize] = Some(low.first_rows(self.rows));
        }
        narrow::narrowed(self.network, self.activations, layer, acts)
    }

    fn ranges(&self, layer: usize) -> &WindowRanges {
        self.inputs.ranges(self.network.config.sliding_windows[layer])
    }

    fn norm(&self) -> NormConstants {
        let ModelConfig { rms_norm_eps, gain_offset, .. } = self.network.config;
        NormConstants { eps: rms_norm_eps, gain_offset }
    }

    fn hidden(&self, layer: usize) -> Matrix {
        self.activations.hidden[layer].first_rows(self.rows)
    }

    fn module(&self, layer: usize, projection: Projection) -> Option<&DeviceModule> {
        self.adapter?.module(layer, projection).filter(|module| module.is_adapted())
    }

    /// The bias of a projection that the adapter has in place of the base's.
    fn bias(&self, layer: usize, projection: Projection) -> Option<&DeviceFactor> {
        self.adapter?.module(layer, projection)?.factor(Factor::Bias)
    }

    /// A projection's weight with the bias that it has in this pass.
    fn weight(&self, layer: usize, projection: Projection) -> Cow<'_, Weight> {
        let weight = self.network.layers[layer].projection(projection);
        let sum = self.module(layer, projection).and_then(|module| module.bias_sum);
        match sum.or(self.bias(layer, projection).map(|bias| bias.values)) {
            Some(bias) => Cow::Owned(Weight { bias: Some(bias), ..weight.clone() }),
            None => Cow::Borrowed(weight),
        }
    }

    fn gain(&self, layer: usize, norm: Norm) -> Option<View> {
        self.network.layers[layer].norm(norm)
    }

    /// The gains of the norm that reads the residual stream before `layer`; after the last layer, the final norm's.
    fn input_gain(&self, layer: usize) -> Option<View> {
        match self.network.layers.get(layer) {
            Some(layer) => layer.norm(Norm::Input),
            None => Some(self.network.final_norm),
        }
    }

    /// The matrix that a block's projections read: the normed residual stream in `workspace.norm`, or the stream itself.
    fn block_input(&self, gain: Option<View>, stream: Matrix) -> Matrix {
        if gain.is_some() { self.activations.workspace.norm.first_rows(self.rows) } else { stream }
    }

    /// Computes [`Self::block_input`] from the residual stream.
    fn norm_input(&self, rec: &mut Recorder, gain: Option<View>, stream: Matrix) -> Matrix {
        let input = self.block_input(gain, stream);
        if let Some(gain) = gain {
            rms_norm::forward(rec, stream, gain, self.norm(), input);
        }
        input
    }

    /// Adds the output of a block to the residual stream `x`, and computes the norm that reads the sum. `place` is that of the norm on
    /// the output.
    fn add_output(
        &self,
        rec: &mut Recorder,
        layer: usize,
        place: Norm,
        [x, delta, sum]: [Matrix; 3],
        next: Option<View>,
    ) {
        let (delta_gain, delta_scale) = (self.gain(layer, place), self.network.config.residual_scale);
        let next = next.map(|gain| (gain, self.activations.workspace.norm.first_rows(self.rows)));
        rms_norm::forward_add(rec, Residual { x, delta, delta_gain, delta_scale, sum }, next, self.norm());
    }

    /// Records the whole network up to the final norm, whose result `[rows, hidden]` is returned.
    pub fn forward(&self, rec: &mut Recorder) -> Matrix {
        let scale = self.network.config.embedding_scale;
        self.embed(rec, scale);
        if let Some(draws) = self.noise {
            noise::add(rec, draws, self.hidden(0));
        }
        self.project_embeddings(rec);
        self.norm_input(rec, self.input_gain(0), self.hidden(0));
        for layer in 0..self.network.layers.len() {
            let acts = self.layer(layer);
            self.layer_forward(rec, layer, &acts);
            self.compress(rec, layer, &acts);
            if self.network.layers[layer].scalar.is_some() {
                self.norm_input(rec, self.input_gain(layer + 1), self.hidden(layer + 1));
                continue;
            }
            // One kernel adds down's output to the residual stream and computes the next norm.
            let stream = [acts.middle, self.output(&acts, 1), self.hidden(layer + 1)];
            self.add_output(rec, layer, Norm::FeedForwardOutput, stream, self.input_gain(layer + 1));
        }
        self.activations.workspace.norm.first_rows(self.rows)
    }

    /// The embeddings of the tokens into the first residual stream, from the base's table, the adapter's own, or both.
    fn embed(&self, rec: &mut Recorder, scale: f32) {
        let (tokens, out) = (self.inputs.tokens, self.hidden(0));
        let module = self.adapter.and_then(DeviceAdapter::embedding);
        let factor = |factor| module.and_then(|module| module.factor(factor));
        let table = factor(Factor::Whole).map_or(&self.network.embedding, |whole| &whole.weight);
        embedding::forward(rec, tokens, table, scale, out);
        // Tokens that have no row of their own keep theirs.
        if let Some((rows, of)) = factor(Factor::Rows).zip(self.adapter.and_then(DeviceAdapter::token_rows)) {
            embedding::forward(rec, of.tokens, &rows.weight, scale, out);
        }
        let low = self.activations.workspace.embedding_low;
        if let (Some(module), Some(a), Some(b), Some(low)) =
            (module, factor(Factor::EmbeddingA), factor(Factor::EmbeddingB), low)
        {
            let low = columns(low.first_rows(self.rows), module.rank);
            embedding::forward(rec, tokens, &a.weight, scale * module.scale, low);
            linear::forward(rec, low, &b.weight, None, out, true);
        }
    }

    /// Adds the gradients of what the adapter has of the embedding, from that of the first residual stream.
    fn embed_backward(&self, rec: &mut Recorder, d_hidden: Matrix) {
        let scale = self.network.config.embedding_scale;
        let Some((adapter, module)) = self.adapter.and_then(|adapter| Some((adapter, adapter.embedding()?))) else {
            return;
        };
        let tokens = self.inputs.tokens;
        if let Some((whole, order)) = module.factor(Factor::Whole).zip(adapter.row_order()) {
            let gradient_of = |data| whole.gradient_of(data);
            embedding::backward(rec, tokens, order, (d_hidden, scale), &whole.weight.panels, gradient_of);
        }
        if let Some((rows, RowOrder { tokens, order: Some(order) })) =
            module.factor(Factor::Rows).zip(adapter.token_rows())
        {
            let gradient_of = |data| rows.gradient_of(data);
            embedding::backward(rec, tokens, order, (d_hidden, scale), &rows.weight.panels, gradient_of);
        }
        let factors = module.factor(Factor::EmbeddingA).zip(module.factor(Factor::EmbeddingB));
        let buffers = self.activations.workspace.embedding_low.zip(adapter.row_order());
        if let (Some((a, b)), Some((low, order))) = (factors, buffers) {
            let (low, scale) = (columns(low.first_rows(self.rows), module.rank), scale * module.scale);
            linear::input_gradient(rec, d_hidden, &b.weight, None, low, false);
            embedding::backward(rec, tokens, order, (low, scale), &a.weight.panels, |data| a.gradient_of(data));
            embedding::forward(rec, tokens, &a.weight, scale, low);
            if let Some(db) = b.gradient {
                lora_gradient::lora_b(rec, low, d_hidden, 1.0, db);
            }
        }
    }

    /// The output of attention (0) or of the feed-forward block (1), which its backward pass reads where it goes through a norm.
    fn output(&self, acts: &LayerActivations, block: usize) -> Matrix {
        acts.outputs.map_or_else(|| self.activations.workspace.out.first_rows(self.rows), |outputs| outputs[block])
    }

    /// Stores the layer's input and activations in bf16, where the plan says so.
    fn compress(&self, rec: &mut Recorder, layer: usize, acts: &LayerActivations) {
        let Some(compressed) = self.activations.compressed.get(layer) else { return };
        bf16::pack(rec, self.hidden(layer), compressed.input);
        let matrices = acts.compressible(&self.network.config, layer);
        for (to, matrix) in compressed.kept.iter().flatten().zip(matrices) {
            bf16::pack(rec, matrix, *to);
        }
    }

    fn decompress(&self, rec: &mut Recorder, layer: usize, acts: &LayerActivations) {
        let Some(compressed) = self.activations.compressed.get(layer) else { return };
        bf16::unpack(rec, compressed.input, self.hidden(layer));
        let matrices = acts.compressible(&self.network.config, layer);
        for (from, matrix) in compressed.kept.iter().flatten().zip(matrices) {
            bf16::unpack(rec, *from, matrix);
        }
    }

    /// The experts of a layer that has them in place of the feed-forward block.
    fn mixture(&self, layer: usize, acts: &LayerActivations) -> Option<Mixture<'_>> {
        let config = &self.network.config;
        let weights = self.network.layers[layer].experts.as_ref()?;
        let choice = config.experts_of(layer)?.choice();
        let buffers = acts.experts.zip(self.activations.workspace.experts)?;
        Some(Mixture::new(weights, config, choice, self.rows, buffers))
    }

    /// Outputs of gate and up and their product, of a layer with a feed-forward block.
    fn feed_forward(&self, acts: &LayerActivations) -> Option<[Matrix; 3]> {
        let [gate, up] = acts.gate_up?;
        Some([gate, up, columns(self.activations.workspace.act?.first_rows(self.rows), gate.cols)])
    }

    /// Records a layer, from its input to down's output.
    fn layer_forward(&self, rec: &mut Recorder, index: usize, acts: &LayerActivations) {
        self.layer_activations(rec, index, acts);
        let out = self.output(acts, 1);
        if let Some(mixture) = self.mixture(index, acts) {
            mixture.forward_output(rec, out);
        } else if let Some([.., act]) = self.feed_forward(acts) {
            self.project(rec, index, Projection::Down, act, acts, out);
        }
        self.layer_end(rec, index, acts);
    }

    /// Records a layer up to down's input: everything that its backward pass reads, except down's output and its `x A^T`. The norm
    /// before attention is computed already.
    fn layer_activations(&self, rec: &mut Recorder, index: usize, acts: &LayerActivations) {
        let hidden = self.hidden(index);
        let (input, out) = (self.block_input(self.input_gain(index), hidden), self.output(acts, 0));
        if let Some((convolution, convolved)) = self.convolution(index, acts) {
            self.project(rec, index, Projection::ConvIn, input, acts, convolution.inputs);
            self.convolve(rec, index, &convolution, convolved);
            self.project(rec, index, Projection::ConvOut, convolved, acts, out);
        } else if let Some(linear) = self.linear(index, acts) {
            self.linear_forward(rec, index, input, (acts, &linear), out);
        } else if let Some(attention) = &acts.attention {
            self.attention_forward(rec, index, input, acts, attention);
            let result = self.gated_attention(rec, attention);
            self.project(rec, index, Projection::O, result, acts, out);
        }
        let gain = self.gain(index, Norm::FeedForwardInput);
        self.add_output(rec, index, Norm::AttentionOutput, [hidden, out, acts.middle], gain);

        let input = self.block_input(gain, acts.middle);
        if let Some(mixture) = self.mixture(index, acts) {
            mixture.forward_activations(rec, input);
        } else if let Some([gate, up, act]) = self.feed_forward(acts) {
            self.project(rec, index, Projection::Gate, input, acts, gate);
            self.project(rec, index, Projection::Up, input, acts, up);
            glu::forward(rec, self.network.config.activation, gate, up, act);
        }
    }

    /// The short convolution of a layer that has one in place of attention, and the place of its result.
    fn convolution(&self, layer: usize, acts: &LayerActivations) -> Option<(short_conv::Convolution, Matrix)> {
        let weights = self.network.layers[layer].convolution?;
        let taps = self.network.config.convolutions.as_ref()?.taps as u32;
        let convolved = self.activations.workspace.convolved?.first_rows(self.rows);
        let positions = self.inputs.positions;
        Some((short_conv::Convolution { positions, weights, taps, inputs: acts.convolution? }, convolved))
    }

    /// Computes the result of a short convolution; in generation from the rows of earlier passes too.
    fn convolve(&self, rec: &mut Recorder, layer: usize, of: &short_conv::Convolution, out: Matrix) {
        // A pass of several texts has no convolutions.
        let cached = self.texts.first().map(|text| text.cache.layers[layer]);
        match cached {
            Some(LayerCache::Convolution(state)) => {
                short_conv::forward(rec, of, Some(state), out);
                short_conv::keep(rec, of, state);
            }
            _ => short_conv::forward(rec, of, None, out),
        }
    }

    /// The heads of queries or keys as rotation sees them, and the table of the angles; `None` where the layer has no rotation.
    fn rotation(&self, layer: usize, queries: bool) -> Option<(RotatedHeads, View)> {
        let config = &self.network.config;
        let place = config.layer_ropes[layer]?;
        let (rope, tables) = (&config.ropes[place], self.network.rope_tables[place]);
        let Shape { heads, kv_heads, head_dim } = self.shape(layer);
        let (heads, table) = if queries { (heads, tables.queries) } else { (kv_heads, tables.keys) };
        let (rotated, interleaved) = (rope.rotated as u32, rope.interleaved);
        Some((RotatedHeads { heads, head_dim, rotated, interleaved }, table))
    }

    fn rotate(&self, rec: &mut Recorder, layer: usize, [q, k]: [Matrix; 2]) {
        for (x, queries) in [(q, true), (k, false)] {
            if !queries && !self.has_keys(layer) {
                continue;
            }
            if let Some((heads, table)) = self.rotation(layer, queries) {
                rope::forward(rec, x, heads, self.inputs.positions, table);
            }
        }
    }

    /// Queries or keys as their norm sees them: a row for each head, or one for all.
    fn norm_rows(&self, x: Matrix, heads: u32) -> Matrix {
        x.split_heads(if self.network.config.head_norms.whole_row { 1 } else { heads })
    }

    fn attention_forward(
        &self,
        rec: &mut Recorder,
        index: usize,
        input: Matrix,
        layer: &LayerActivations,
        acts: &AttentionActivations,
    ) {
        let shape = self.shape(index);
        let own_keys = self.has_keys(index);
        let [raw_q, raw_k] = acts.raw_qk.unwrap_or([acts.q, acts.k]);
        self.project_queries(rec, index, input, (layer, acts), raw_q);
        if own_keys {
            self.project(rec, index, Projection::K, input, layer, raw_k);
            self.project(rec, index, Projection::V, input, layer, acts.raw_v.unwrap_or(acts.v));
        }
        let after_rope = self.network.config.head_norms.after_rope;
        if after_rope {
            self.rotate(rec, index, [raw_q, raw_k]);
        }
        let heads = [(raw_q, acts.q, Norm::Query, shape.heads), (raw_k, acts.k, Norm::Key, shape.kv_heads)];
        for (raw, normed, norm, heads) in heads {
            let Some(gain) = self.gain(index, norm) else { continue };
            rms_norm::forward(rec, self.norm_rows(raw, heads), gain, self.norm(), self.norm_rows(normed, heads));
        }
        if let Some((raw_v, ones)) = acts.raw_v.zip(self.ones(index)).filter(|_| own_keys) {
            let [raw, normed] = [raw_v, acts.v].map(|v| v.split_heads(shape.kv_heads));
            rms_norm::forward(rec, raw, ones, self.norm(), normed);
        }
        if !after_rope {
            self.rotate(rec, index, [acts.q, acts.k]);
        }
        let operands = self.attention(index, acts);
        if self.texts.is_empty() {
            attention::forward(rec, &operands);
        }
        for CachedRows { cache, rows, places } in self.texts {
            let LayerCache::Attention([k, v]) = cache.layers[index] else { continue };
            if own_keys {
                kv_cache::kv_append(rec, acts.k, *places, k);
                kv_cache::kv_append(rec, acts.v, *places, v);
            }
            attention::forward_rows(rec, &attention::Operands { k, v, ..operands }, rows.clone());
        }
    }

    /// The operands of a layer's attention over the pass's own keys and values.
    fn attention(&self, index: usize, acts: &AttentionActivations) -> attention::Operands {
        attention::Operands {
            shape: self.shape(index),
            scale: self.network.config.attention_scale,
            cap: self.network.config.attention_softcap,
            sinks: self.network.layers[index].sinks,
            q: acts.q,
            k: acts.k,
            v: acts.v,
            key_ranges: self.ranges(index).keys,
            out: acts.out,
            lse: acts.lse,
        }
    }

    /// `y = x W^T + b + s dropout(x) A^T B^T`, under DoRA with its magnitudes; `x A^T` stays in the layer's activations.
    fn project(
        &self,
        rec: &mut Recorder,
        layer: usize,
        projection: Projection,
        x: Matrix,
        acts: &LayerActivations,
        y: Matrix,
    ) {
        let low = self.low_rank(rec, layer, projection, x, acts);
        self.project_with(rec, layer, projection, x, low, y);
    }

    /// [`Self::project`], after `low` is computed.
    fn project_with(
        &self,
        rec: &mut Recorder,
        layer: usize,
        projection: Projection,
        x: Matrix,
        low: Option<LowRank>,
        y: Matrix,
    ) {
        let weight = self.weight(layer, projection);
        linear::forward(rec, x, &weight, low, y, false);
        let Some((outputs, _)) = self.module(layer, projection).and_then(DeviceModule::dora) else { return };
        match (self.dropout.zip(self.activations.workspace.dropped), self.activations.workspace.scaled) {
            (Some((_, dropped)), Some([scaled, ..])) => {
                // As PEFT does it, the base's part of the direction sees the dropped input too: y += (m/n - 1) u.
                let x = columns(dropped.first_rows(self.rows), x.cols);
                let u = columns(scaled.first_rows(self.rows), y.cols);
                linear::forward(rec, x, &weight.without_bias(), low, u, false);
                dora::add_rest(rec, u, outputs.factors, y);
            }
            _ => dora::rescale(rec, y, outputs.factors, weight.bias),
        }
    }

    /// `dropout(x) A^T` into the layer's activations, where the projection is adapted.
    fn low_rank(
        &self,
        rec: &mut Recorder,
        layer: usize,
        projection: Projection,
        x: Matrix,
        acts: &LayerActivations,
    ) -> Option<LowRank> {
        let module = self.module(layer, projection)?;
        let product = low_columns(acts.low[projection as usize], module);
        let x = self.dropped(rec, module, x);
        linear::forward(rec, x, &module[Factor::A].weight, None, product, false);
        Some(LowRank { product, factor: module[Factor::B].values, scale: module.scale })
    }

    /// The input of A: x itself, or x with dropout applied in the workspace.
    fn dropped(&self, rec: &mut Recorder, module: &DeviceModule, x: Matrix) -> Matrix {
        let Some((dropout, workspace)) = self.dropout.zip(self.activations.workspace.dropped) else { return x };
        let dropped = columns(workspace.first_rows(self.rows), x.cols);
        dropout::forward(rec, x, dropped, dropout.mask(module));
        dropped
    }

    /// Records the backward pass, from the gradient of the final norm's output in `workspace.d_norm` to the gradients
    /// of everything that is trained.
    pub fn backward(&self, rec: &mut Recorder) {
        let Some((adapter, ws)) = self.adapter.zip(self.activations.workspace.backward) else { return };
        let ws = first_rows(ws, self.rows);
        let layers = self.network.layers.len();
        let final_norm = self.network.final_norm;
        self.norm_backward(rec, self.hidden(layers), final_norm, [ws.d_norm, ws.d_hidden], false);
        let to_embedding = self.trained.is_some() || adapter.embedding().is_some();
        let lowest = if to_embedding { 0 } else { adapter.lowest_layer() };
        for layer in (lowest..layers).rev() {
            let (acts, shared) = (self.layer(layer), self.activations.layer(layer).1);
            let ws = narrow::narrowed_gradients(&self.network.config, layer, ws);
            // The topmost layer's activations are still in the buffers that layers share.
            if layer + 1 < layers {
                self.decompress(rec, layer, &acts);
            }
            if shared && layer + 1 < layers {
                self.norm_input(rec, self.input_gain(layer), self.hidden(layer));
                if acts.outputs.is_some() {
                    self.layer_forward(rec, layer, &acts);
                } else {
                    self.layer_activations(rec, layer, &acts);
                    if let Some([.., act]) = self.feed_forward(&acts).filter(|_| self.mixture(layer, &acts).is_none()) {
                        self.low_rank(rec, layer, Projection::Down, act, &acts);
                    }
                }
            }
            let lowest = layer == lowest && !to_embedding;
            self.layer_backward(rec, LayerBackward { index: layer, acts: &acts, ws: &ws }, lowest);
        }
        if let Some(trained) = self.trained {
            let (tokens, panels) = (self.inputs.tokens, &self.network.embedding.panels);
            let dy = (ws.d_hidden, self.network.config.embedding_scale);
            embedding::backward(rec, tokens, trained.row_order, dy, panels, |data| trained.gradient(data));
        }
        self.project_embeddings_backward(rec, &ws);
        self.embed_backward(rec, ws.d_hidden);
    }

    /// Records a layer's backward pass: the gradient of its output in `d_hidden` becomes that of its input. The
    /// lowest trained layer stops where nothing below needs a gradient.
    fn layer_backward(&self, rec: &mut Recorder, pass: LayerBackward, lowest: bool) {
        let LayerBackward { index, acts, ws } = pass;
        use Projection::{ConvIn, ConvOut, K, O, Q, V};
        let middle_gain = self.gain(index, Norm::FeedForwardInput);
        let trained = |projections: &[Projection]| self.trains(index, projections);

        self.layer_end_backward(rec, pass);
        self.feed_forward_backward(rec, pass, lowest);
        if lowest && !trained(&Projection::OF_MIXER) {
            return;
        }
        self.block_input_backward(rec, middle_gain, acts.middle, ws);

        let d_output = self.output_gradient(rec, pass, Norm::AttentionOutput, 0);
        if let (Some((convolution, convolved)), Some([d_convolved, d_inputs])) =
            (self.convolution(index, acts), ws.convolution)
        {
            let out = self.projection_gradient(rec, pass, ConvOut, d_output, 0);
            self.input_gradient(rec, index, &[out], d_convolved);
            if trained(&[ConvOut]) {
                // The result is not kept.
                short_conv::forward(rec, &convolution, None, convolved);
            }
            self.parameter_gradients(rec, pass, convolved, out);
            if let Some((trained, terms)) = self.trained.and_then(|own| Some((own, own.convolution_terms?))) {
                let (terms, gradient) = (terms.first_rows(self.rows), trained.gradient(convolution.weights));
                short_conv::weight_gradient(rec, &convolution, d_convolved, terms, gradient);
            }
            if lowest && !trained(&[ConvIn]) {
                return;
            }
            short_conv::backward(rec, &convolution, d_convolved, d_inputs);
            self.mixer_input_backward(rec, pass, [(ConvIn, d_inputs)], lowest);
        } else if let Some(linear) = self.linear(index, acts) {
            self.linear_backward(rec, pass, &linear, d_output, lowest);
        } else if let Some(attention) = &acts.attention {
            let out = self.projection_gradient(rec, pass, O, d_output, 0);
            self.input_gradient(rec, index, &[out], ws.d_attention);
            // The gated result is not kept.
            let result = if trained(&[O]) { self.gated_attention(rec, attention) } else { attention.out };
            self.parameter_gradients(rec, pass, result, out);
            if lowest && !trained(&[Q, K, V]) {
                return;
            }
            let [d_q, d_k, d_v] = self.attention_backward(rec, pass, attention);
            if self.has_keys(index) {
                self.mixer_input_backward(rec, pass, [(Q, d_q), (K, d_k), (V, d_v)], lowest);
            } else {
                self.mixer_input_backward(rec, pass, [(Q, d_q)], lowest);
            }
        }
    }

    /// The backward pass of the projections that read a layer's input, and of the norm before them.
    fn mixer_input_backward<const N: usize>(
        &self,
        rec: &mut Recorder,
        pass: LayerBackward,
        outputs: [(Projection, Matrix); N],
        lowest: bool,
    ) {
        let LayerBackward { index, ws, .. } = pass;
        let (input_gain, hidden) = (self.input_gain(index), self.hidden(index));
        let mut input = self.block_input(input_gain, hidden);
        if self.trains(index, &outputs.map(|(projection, _)| projection)) {
            input = self.norm_input(rec, input_gain, hidden);
        }
        let d_norm = (!lowest).then_some(ws.d_norm);
        self.projections_backward(rec, pass, outputs, input, d_norm);
        if !lowest {
            self.block_input_backward(rec, input_gain, hidden, ws);
        }
    }

    /// True if one of a layer's projections is trained.
    fn trains(&self, layer: usize, projections: &[Projection]) -> bool {
        let has = |p: &Projection| self.module(layer, *p).is_some() || self.bias(layer, *p).is_some();
        self.trained.is_some() || projections.iter().any(has)
    }

    /// The backward pass of the feed-forward block or of the experts: the gradient of its input in `d_norm`, if something below needs
    /// it.
    fn feed_forward_backward(&self, rec: &mut Recorder, pass: LayerBackward, lowest: bool) {
        use Projection::{Down, Gate, Up};
        let LayerBackward { index, acts, ws } = pass;
        let middle_gain = self.gain(index, Norm::FeedForwardInput);
        let d_output = self.output_gradient(rec, pass, Norm::FeedForwardOutput, 1);
        if let Some(mixture) = self.mixture(index, acts) {
            mixture.backward(rec, d_output, ws.d_norm);
            return;
        }
        let Some([gate, up, act]) = self.feed_forward(acts) else { return };
        // The buffers of gate and up take their gradients; `act` holds its gradient, and then its value again.
        let down = self.projection_gradient(rec, pass, Down, d_output, 0);
        self.input_gradient(rec, index, &[down], act);
        glu::backward_in_place(rec, self.network.config.activation, gate, up, act);
        self.parameter_gradients(rec, pass, act, down);
        if lowest && !self.trains(index, &Projection::OF_MIXER) && !self.trains(index, &[Gate, Up]) {
            return;
        }
        let mut input = self.block_input(middle_gain, acts.middle);
        if self.trains(index, &[Gate, Up]) {
            input = self.norm_input(rec, middle_gain, acts.middle);
        }
        self.projections_backward(rec, pass, [(Gate, gate), (Up, up)], input, Some(ws.d_norm));
    }

    /// The gradient of a block's output from that of the residual stream: through the norm at `place`, and times the residual factor.
    fn output_gradient(&self, rec: &mut Recorder, pass: LayerBackward, place: Norm, block: usize) -> Matrix {
        let LayerBackward { index, acts, ws } = pass;
        let dy_scale = self.network.config.residual_scale;
        match (self.gain(index, place).zip(acts.outputs), ws.d_output) {
            (Some((gain, outputs)), Some(dx)) => {
                let x = outputs[block];
                self.gain_gradient(rec, x, gain, ws.d_hidden);
                let gradient = NormGradient { x, gain, dy: ws.d_hidden, dy_scale, dx, accumulate: false };
                rms_norm::backward(rec, gradient, self.norm());
                dx
            }
            (None, Some(dx)) => {
                scale::scale(rec, ws.d_hidden, dy_scale, dx);
                dx
            }
            (_, None) => ws.d_hidden,
        }
    }

    /// Adds the gradient of a block's input in `d_norm` to that of the residual stream, through the norm before the block if there is
    /// one.
    fn block_input_backward(&self, rec: &mut Recorder, gain: Option<View>, stream: Matrix, ws: &BackwardWorkspace) {
        match gain {
            Some(gain) => self.norm_backward(rec, stream, gain, [ws.d_norm, ws.d_hidden], true),
            None => add::add(rec, ws.d_norm, ws.d_hidden),
        }
    }

    /// The gradients of a norm's gain, where the base is trained, and of its input x.
    fn norm_backward(&self, rec: &mut Recorder, x: Matrix, gain: View, [dy, dx]: [Matrix; 2], accumulate: bool) {
        self.gain_gradient(rec, x, gain, dy);
        rms_norm::backward(rec, NormGradient { x, gain, dy, dy_scale: 1.0, dx, accumulate }, self.norm());
    }

    /// Gradients of the outputs of the projections for queries, keys and values.
    fn attention_backward(&self, rec: &mut Recorder, pass: LayerBackward, acts: &AttentionActivations) -> [Matrix; 3] {
        let LayerBackward { index, ws, .. } = pass;
        let shape = self.shape(index);
        self.gates_backward(rec, acts, ws);
        let [dk, dv] = self.place_of_key_gradients(index, ws);
        let gradients = attention::Gradients {
            query_ranges: self.ranges(index).queries,
            dout: ws.d_attention,
            scratch: ws.attention_scratch,
            dq: ws.d_q,
            dk,
            dv,
        };
        attention::backward(rec, &self.attention(index, acts), &gradients);
        self.sum_key_gradients(rec, index, ws);
        let after_rope = self.network.config.head_norms.after_rope;
        if !after_rope {
            self.rotate_back(rec, index, [ws.d_q, ws.d_k]);
        }
        let d_v = self.value_norm_backward(rec, index, acts, ws);
        let (Some(raw), Some(d_raw)) = (acts.raw_qk, ws.d_raw_qk) else {
            return [self.queries_gradient(rec, index, ws.d_q, (acts, ws)), ws.d_k, d_v];
        };
        let of_heads = [(ws.d_q, Norm::Query, shape.heads), (ws.d_k, Norm::Key, shape.kv_heads)];
        for (i, (d_normed, norm, heads)) in of_heads.into_iter().enumerate() {
            let Some(gain) = self.gain(index, norm) else { continue };
            let [raw, d_normed, d_raw] = [raw[i], d_normed, d_raw[i]].map(|m| self.norm_rows(m, heads));
            self.norm_backward(rec, raw, gain, [d_normed, d_raw], false);
        }
        if after_rope {
            self.rotate_back(rec, index, d_raw);
        }
        [self.queries_gradient(rec, index, d_raw[0], (acts, ws)), d_raw[1], d_v]
    }

    fn rotate_back(&self, rec: &mut Recorder, layer: usize, [d_q, d_k]: [Matrix; 2]) {
        for (dx, queries) in [(d_q, true), (d_k, false)] {
            if !queries && !self.has_keys(layer) {
                continue;
            }
            if let Some((heads, table)) = self.rotation(layer, queries) {
                rope::backward(rec, dx, heads, self.inputs.positions, table);
            }
        }
    }

    /// The backward pass of projections that read the same input x, from their outputs' gradients: `dx`, where it is wanted, and
    /// the gradients of what is trained.
    fn projections_backward<const N: usize>(
        &self,
        rec: &mut Recorder,
        pass: LayerBackward,
        outputs: [(Projection, Matrix); N],
        x: Matrix,
        dx: Option<Matrix>,
    ) {
        let gradients: [_; N] = std::array::from_fn(|i| {
            let (projection, dy) = outputs[i];
            self.projection_gradient(rec, pass, projection, dy, i)
        });
        if let Some(dx) = dx {
            self.input_gradient(rec, pass.index, &gradients, dx);
        }
        for gradient in gradients {
            self.parameter_gradients(rec, pass, x, gradient);
        }
    }

    /// Computes `du` and `du B` where the projection is adapted, which is number `place` of those that read one input.
    fn projection_gradient(
        &self,
        rec: &mut Recorder,
        pass: LayerBackward,
        projection: Projection,
        dy: Matrix,
        place: usize,
    ) -> ProjectionGradient {
        let module = self.module(pass.index, projection);
        let scaled = self.activations.workspace.scaled.map(|scaled| scaled[place]);
        let du = match module.and_then(DeviceModule::dora).zip(scaled) {
            Some(((outputs, _), scaled)) => {
                let du = columns(scaled.first_rows(self.rows), dy.cols);
                dora::scaled(rec, dy, outputs.factors, 0.0, du);
                du
            }
            None => dy,
        };
        let dyb = module.map(|module| {
            let dyb = low_columns(Some(pass.ws.low[place]), module);
            linear::input_gradient(rec, du, &module[Factor::B].weight, None, dyb, false);
            dyb
        });
        ProjectionGradient { projection, dy, du, dyb }
    }

    /// The gradient of an input from those of its projections' outputs, `dx = sum of du W + s dropout(du B A)`; with dropout under DoRA
    /// `dx = sum of dy W + dropout((du - dy) W + s du B A)`.
    fn input_gradient(&self, rec: &mut Recorder, layer: usize, gradients: &[ProjectionGradient], dx: Matrix) {
        let dropout = self.dropout.zip(self.activations.workspace.dropped);
        let adapted = |gradient: &ProjectionGradient| self.module(layer, gradient.projection).zip(gradient.dyb);
        let term = |gradient: &ProjectionGradient| GradientTerm {
            dy: if dropout.is_none() { gradient.du } else { gradient.dy },
            weight: self.network.layers[layer].projection(gradient.projection),
            low_rank: adapted(gradient).filter(|_| dropout.is_none()).map(|(module, dyb)| LowRank {
                product: dyb,
                factor: module[Factor::A].values,
                scale: module.scale,
            }),
        };
        let terms: Vec<_> = gradients.iter().map(term).collect();
        linear::sum_of_input_gradients(rec, &terms, dx);
        let Some((dropout, workspace)) = dropout else { return };
        let term = columns(workspace.first_rows(self.rows), dx.cols);
        for gradient in gradients {
            let Some((module, dyb)) = adapted(gradient) else { continue };
            if let Some((outputs, _)) = module.dora() {
                // du is computed again for the gradient of B.
                dora::scaled(rec, gradient.dy, outputs.factors, -1.0, gradient.du);
                let weight = self.network.layers[layer].projection(gradient.projection);
                let low = LowRank { product: dyb, factor: module[Factor::A].values, scale: module.scale };
                linear::input_gradient(rec, gradient.du, weight, Some(low), term, false);
                dropout::backward_add(rec, term, dx, dropout.mask(module), 1.0);
            } else {
                linear::input_gradient(rec, dyb, &module[Factor::A].weight, None, term, false);
                dropout::backward_add(rec, term, dx, dropout.mask(module), module.scale);
            }
        }
    }

    /// The gradient of a norm's gain, where the base is trained; x is what the norm read.
    fn gain_gradient(&self, rec: &mut Recorder, x: Matrix, gain: View, dy: Matrix) {
        if let Some(trained) = self.trained {
            column_gradient::gain(
                rec,
                x,
                self.network.config.rms_norm_eps,
                dy,
                trained.row_scales,
                trained.gradient(gain),
            );
        }
    }

    /// `dA += s (du B)^T x`, `dB += s du^T (x A^T)`, and the gradient of magnitudes; of a trained base `dW += dy^T x` and the sums of dy.
    fn parameter_gradients(
        &self,
        rec: &mut Recorder,
        LayerBackward { index, acts, .. }: LayerBackward,
        x: Matrix,
        ProjectionGradient { projection, dy, du, dyb }: ProjectionGradient,
    ) {
        if let Some(trained) = self.trained {
            let weight = self.network.layers[index].projection(projection);
            weight_gradient::add(rec, dy, x, weight, |data| trained.gradient(data));
            if let Some(bias) = weight.bias {
                column_gradient::bias(rec, dy, trained.gradient(bias));
            }
        }
        if let Some(gradient) = self.bias(index, projection).and_then(|bias| bias.gradient) {
            column_gradient::bias(rec, dy, gradient);
        }
        let Some((module, dyb)) = self.module(index, projection).zip(dyb) else { return };
        let x = self.dropped(rec, module, x);
        let xa = low_columns(acts.low[projection as usize], module);
        let dora = module.dora();
        if let Some((outputs, _)) = dora.filter(|_| self.dropout.is_some()) {
            dora::scaled(rec, dy, outputs.factors, 0.0, du);
        }
        if let (Some(da), Some(db)) = (module[Factor::A].gradient, module[Factor::B].gradient) {
            lora_gradient::lora_a(rec, dyb, x, module.scale, da);
            lora_gradient::lora_b(rec, xa, du, module.scale, db);
        }
        if let Some(gradient) = module.factor(Factor::LoraBias).and_then(|bias| bias.gradient) {
            column_gradient::scaled_bias(rec, dy, module.scale, gradient);
        }
        if let Some((outputs, Some(dm))) = dora.map(|(outputs, magnitude)| (outputs, magnitude.gradient)) {
            // The direction is computed again, in the place of du.
            let weight = self.network.layers[index].projection(projection).without_bias();
            let low = LowRank { product: xa, factor: module[Factor::B].values, scale: module.scale };
            linear::forward(rec, x, &weight, Some(low), du, false);
            dora::magnitude_gradient(rec, dy, du, outputs.inverses, dm);
        }
    }
}

fn low_columns(buffer: Option<Matrix>, module: &DeviceModule) -> Matrix {
    columns(buffer.expect("an adapted projection has its low-rank buffer"), module.rank)
}

fn first_rows(ws: BackwardWorkspace, rows: u32) -> BackwardWorkspace {
    BackwardWorkspace {
        d_hidden: ws.d_hidden.first_rows(rows),
        d_norm: ws.d_norm.first_rows(rows),
        d_output: ws.d_output.map(|m| m.first_rows(rows)),
        d_attention: ws.d_attention.first_rows(rows),
        d_queries_and_gates: ws.d_queries_and_gates.map(|m| m.first_rows(rows)),
        d_q: ws.d_q.first_rows(rows),
        d_k: ws.d_k.first_rows(rows),
        d_v: ws.d_v.first_rows(rows),
        d_raw_qk: ws.d_raw_qk.map(|d| d.map(|m| m.first_rows(rows))),
        d_raw_v: ws.d_raw_v.map(|m| m.first_rows(rows)),
        linear: ws.linear.map(|linear| linear.first_rows(rows)),
        convolution: ws.convolution.map(|both| both.map(|m| m.first_rows(rows))),
        d_layer_embedding: ws.d_layer_embedding.map(|m| m.first_rows(rows)),
        attention_scratch: ws.attention_scratch,
        low: ws.low.map(|low| low.first_rows(rows)),
    }
}
