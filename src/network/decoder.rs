//! The decoder, hand-written: read top to bottom it is the network, and its backward pass follows the forward pass in reverse.
//!
//! A pass records dispatches over a stream of rows; nothing runs here. Shapes are `[rows, width]` throughout. LoRA factors add their
//! gradients to the adapter's flat buffers; the base's own tensors have gradients where they are trained themselves.

use super::activations::{Activations, BackwardWorkspace, Inputs, LayerActivations, WindowRanges, attention_shape};
use super::base::Network;
use super::trained::Trained;
use crate::gpu::{Matrix, Recorder, View};
use crate::lora::factors::Factor;
use crate::model::modules::{Norm, Projection};
use crate::network::adapter::{DeviceAdapter, DeviceModule};
use crate::ops::attention::{self, Shape};
use crate::ops::linear::{self, GradientTerm, LowRank};
use crate::ops::{
    bf16, column_gradient, dropout, embedding, glu, kv_cache, lora_gradient, rms_norm, rope, weight_gradient,
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
    /// `dy B`, `[rows, rank]`, where the projection is adapted.
    dyb: Option<Matrix>,
}

/// The operands of one layer's backward pass.
#[derive(Clone, Copy)]
struct LayerBackward<'a> {
    index: usize,
    acts: &'a LayerActivations,
    ws: &'a BackwardWorkspace,
}

/// Keys and values of past positions, per layer `[max_positions, kv width]`.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Keys and values of each layer.
    pub layers: Vec<[Matrix; 2]>,
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
    /// Keys and values of past positions, which attention reads in generation in place of the pass's own.
    pub cache: Option<&'a KvCache>,
}

impl Pass<'_> {
    fn shape(&self) -> Shape {
        attention_shape(&self.network.config)
    }

    fn ranges(&self, layer: usize) -> &WindowRanges {
        self.inputs.ranges(self.network.config.sliding_windows[layer])
    }

    fn eps(&self) -> f32 {
        self.network.config.rms_norm_eps
    }

    fn hidden(&self, layer: usize) -> Matrix {
        self.activations.hidden[layer].first_rows(self.rows)
    }

    fn module(&self, layer: usize, projection: Projection) -> Option<&DeviceModule> {
        self.adapter?.module(layer, projection)
    }

    /// The gains of a norm that this network has in each layer.
    fn gain(&self, layer: usize, norm: Norm) -> View {
        let gains = self.network.layers[layer].norm(norm);
        gains.unwrap_or_else(|| unreachable!("a pass reads only the norms of its network, not {norm:?}"))
    }

    /// The gains of the norm that reads the residual stream before `layer`; after the last layer, the final norm's.
    fn input_gain(&self, layer: usize) -> View {
        if layer < self.network.layers.len() { self.gain(layer, Norm::Input) } else { self.network.final_norm }
    }

    /// Records the whole network up to the final norm, whose result `[rows, hidden]` is returned.
    pub fn forward(&self, rec: &mut Recorder) -> Matrix {
        let norm = self.activations.workspace.norm.first_rows(self.rows);
        embedding::forward(rec, self.inputs.tokens, &self.network.embedding, self.hidden(0));
        rms_norm::forward(rec, self.hidden(0), self.input_gain(0), self.eps(), norm);
        for layer in 0..self.network.layers.len() {
            let acts = self.activations.layer(layer).0.first_rows(self.rows);
            self.layer_forward(rec, layer, &acts);
            self.compress(rec, layer, &acts);
            // One kernel adds down's output to the residual stream and computes the next norm.
            let out = self.activations.workspace.out.first_rows(self.rows);
            let (gain, next) = (self.input_gain(layer + 1), self.hidden(layer + 1));
            rms_norm::forward_add(rec, acts.middle, out, gain, self.eps(), next, norm);
        }
        norm
    }

    /// Stores the layer's input and activations in bf16, where the plan says so.
    fn compress(&self, rec: &mut Recorder, layer: usize, acts: &LayerActivations) {
        let Some(compressed) = self.activations.compressed.get(layer) else { return };
        bf16::pack(rec, self.hidden(layer), compressed.input);
        for (to, matrix) in compressed.kept.into_iter().flatten().zip(acts.compressible()) {
            bf16::pack(rec, matrix, to);
        }
    }

    fn decompress(&self, rec: &mut Recorder, layer: usize, acts: &LayerActivations) {
        let Some(compressed) = self.activations.compressed.get(layer) else { return };
        bf16::unpack(rec, compressed.input, self.hidden(layer));
        for (from, matrix) in compressed.kept.into_iter().flatten().zip(acts.compressible()) {
            bf16::unpack(rec, from, matrix);
        }
    }

    /// Records a layer, from its normed input in `workspace.norm` to down's output in `workspace.out`.
    fn layer_forward(&self, rec: &mut Recorder, index: usize, acts: &LayerActivations) {
        self.layer_activations(rec, index, acts);
        let [act, out] =
            [self.activations.workspace.act, self.activations.workspace.out].map(|m| m.first_rows(self.rows));
        self.project(rec, index, Projection::Down, act, acts, out);
    }

    /// Records a layer up to down's input: everything that its backward pass reads, except `x A^T` of down.
    fn layer_activations(&self, rec: &mut Recorder, index: usize, acts: &LayerActivations) {
        let workspace = &self.activations.workspace;
        let [norm, out] = [workspace.norm, workspace.out].map(|m| m.first_rows(self.rows));
        self.attention_forward(rec, index, norm, acts);
        self.project(rec, index, Projection::O, acts.attention, acts, out);
        let hidden = self.hidden(index);
        rms_norm::forward_add(rec, hidden, out, self.gain(index, Norm::PostAttention), self.eps(), acts.middle, norm);

        self.project(rec, index, Projection::Gate, norm, acts, acts.gate);
        self.project(rec, index, Projection::Up, norm, acts, acts.up);
        let act = workspace.act.first_rows(self.rows);
        glu::forward(rec, self.network.config.activation, acts.gate, acts.up, act);
    }

    fn attention_forward(&self, rec: &mut Recorder, index: usize, norm: Matrix, acts: &LayerActivations) {
        let layer = &self.network.layers[index];
        let shape = self.shape();
        let [raw_q, raw_k] = acts.raw_qk.unwrap_or([acts.q, acts.k]);
        self.project(rec, index, Projection::Q, norm, acts, raw_q);
        self.project(rec, index, Projection::K, norm, acts, raw_k);
        self.project(rec, index, Projection::V, norm, acts, acts.v);
        if let (Some(q_gain), Some(k_gain)) = (layer.norm(Norm::Query), layer.norm(Norm::Key)) {
            let heads = [(raw_q, acts.q, q_gain, shape.heads), (raw_k, acts.k, k_gain, shape.kv_heads)];
            for (raw, normed, gain, heads) in heads {
                rms_norm::forward(rec, raw.split_heads(heads), gain, self.eps(), normed.split_heads(heads));
            }
        }
        for (x, heads) in [(acts.q, shape.heads), (acts.k, shape.kv_heads)] {
            rope::forward(rec, x, heads, shape.head_dim, self.inputs.positions, self.network.rope_table);
        }
        let [keys, values] = match self.cache {
            None => [acts.k, acts.v],
            Some(cache) => {
                let cached = cache.layers[index];
                kv_cache::kv_append(rec, acts.k, self.inputs.positions, cached[0]);
                kv_cache::kv_append(rec, acts.v, self.inputs.positions, cached[1]);
                cached
            }
        };
        attention::forward(rec, &attention::Operands { k: keys, v: values, ..self.attention(index, acts) });
    }

    /// The operands of a layer's attention over the pass's own keys and values.
    fn attention(&self, index: usize, acts: &LayerActivations) -> attention::Operands {
        attention::Operands {
            shape: self.shape(),
            scale: self.network.config.attention_scale,
            q: acts.q,
            k: acts.k,
            v: acts.v,
            key_ranges: self.ranges(index).keys,
            out: acts.attention,
            lse: acts.lse,
        }
    }

    /// `y = x W^T + b + s dropout(x) A^T B^T`; `x A^T` stays in the layer's activations.
    fn project(
        &self,
        rec: &mut Recorder,
        layer: usize,
        projection: Projection,
        x: Matrix,
        acts: &LayerActivations,
        y: Matrix,
    ) {
        let weight = self.network.layers[layer].projection(projection);
        let low = self.low_rank(rec, layer, projection, x, acts);
        linear::forward(rec, x, weight, low, y, false);
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
        self.gain_gradient(rec, self.hidden(layers), final_norm, ws.d_norm);
        rms_norm::backward(rec, self.hidden(layers), final_norm, self.eps(), ws.d_norm, ws.d_hidden, false);
        let lowest = if self.trained.is_some() { 0 } else { adapter.lowest_layer() };
        for layer in (lowest..layers).rev() {
            let (acts, shared) = self.activations.layer(layer);
            let acts = acts.first_rows(self.rows);
            // The topmost layer's activations are still in the buffers that layers share.
            if layer + 1 < layers {
                self.decompress(rec, layer, &acts);
            }
            if shared && layer + 1 < layers {
                let norm = self.activations.workspace.norm.first_rows(self.rows);
                rms_norm::forward(rec, self.hidden(layer), self.input_gain(layer), self.eps(), norm);
                self.layer_activations(rec, layer, &acts);
                let act = self.activations.workspace.act.first_rows(self.rows);
                self.low_rank(rec, layer, Projection::Down, act, &acts);
            }
            let lowest = layer == lowest && self.trained.is_none();
            self.layer_backward(rec, LayerBackward { index: layer, acts: &acts, ws: &ws }, lowest);
        }
        if let Some(trained) = self.trained {
            let (tokens, panels) = (self.inputs.tokens, &self.network.embedding.panels);
            embedding::backward(rec, tokens, trained.row_order, ws.d_hidden, panels, |data| trained.gradient(data));
        }
    }

    /// Records a layer's backward pass: the gradient of its output in `d_hidden` becomes that of its input. The
    /// lowest trained layer stops where nothing below needs a gradient.
    fn layer_backward(&self, rec: &mut Recorder, pass: LayerBackward, lowest: bool) {
        let LayerBackward { index, acts, ws } = pass;
        use Projection::{Down, Gate, K, O, Q, Up, V};
        let [input_gain, middle_gain] = [Norm::Input, Norm::PostAttention].map(|norm| self.gain(index, norm));
        let trained = |projections: &[Projection]| {
            self.trained.is_some() || projections.iter().any(|p| self.module(index, *p).is_some())
        };
        let workspace = &self.activations.workspace;
        let [norm, act] = [workspace.norm, workspace.act].map(|m| m.first_rows(self.rows));

        // Feed-forward. The buffers of gate and up take their gradients; `act` holds its gradient, and then its value again.
        let down = self.projection_gradient(rec, index, Down, ws.d_hidden, ws.low[0]);
        self.input_gradient(rec, index, &[down], act);
        glu::backward_in_place(rec, self.network.config.activation, acts.gate, acts.up, act);
        self.parameter_gradients(rec, pass, act, down);
        if lowest && !trained(&[Q, K, V, O, Gate, Up]) {
            return;
        }
        if trained(&[Gate, Up]) {
            rms_norm::forward(rec, acts.middle, middle_gain, self.eps(), norm);
        }
        self.projections_backward(rec, pass, [(Gate, acts.gate), (Up, acts.up)], norm, Some(ws.d_norm));
        if lowest && !trained(&[Q, K, V, O]) {
            return;
        }
        self.gain_gradient(rec, acts.middle, middle_gain, ws.d_norm);
        rms_norm::backward(rec, acts.middle, middle_gain, self.eps(), ws.d_norm, ws.d_hidden, true);

        // Attention.
        let out = self.projection_gradient(rec, index, O, ws.d_hidden, ws.low[0]);
        self.input_gradient(rec, index, &[out], ws.d_attention);
        self.parameter_gradients(rec, pass, acts.attention, out);
        if lowest && !trained(&[Q, K, V]) {
            return;
        }
        let [d_q, d_k] = self.attention_backward(rec, pass);
        if trained(&[Q, K, V]) {
            rms_norm::forward(rec, self.hidden(index), input_gain, self.eps(), norm);
        }
        let d_norm = (!lowest).then_some(ws.d_norm);
        self.projections_backward(rec, pass, [(Q, d_q), (K, d_k), (V, ws.d_v)], norm, d_norm);
        if !lowest {
            self.gain_gradient(rec, self.hidden(index), input_gain, ws.d_norm);
            rms_norm::backward(rec, self.hidden(index), input_gain, self.eps(), ws.d_norm, ws.d_hidden, true);
        }
    }

    /// Gradients of the projections' outputs for queries and keys; that of values lies in `d_v`.
    fn attention_backward(&self, rec: &mut Recorder, pass: LayerBackward) -> [Matrix; 2] {
        let LayerBackward { index, acts, ws } = pass;
        let shape = self.shape();
        let gradients = attention::Gradients {
            query_ranges: self.ranges(index).queries,
            dout: ws.d_attention,
            scratch: ws.attention_scratch,
            dq: ws.d_q,
            dk: ws.d_k,
            dv: ws.d_v,
        };
        attention::backward(rec, &self.attention(index, acts), &gradients);
        for (dx, heads) in [(ws.d_q, shape.heads), (ws.d_k, shape.kv_heads)] {
            rope::backward(rec, dx, heads, shape.head_dim, self.inputs.positions, self.network.rope_table);
        }
        let (Some(raw), Some(d_raw)) = (acts.raw_qk, ws.d_raw_qk) else { return [ws.d_q, ws.d_k] };
        let gains = [Norm::Query, Norm::Key].map(|norm| self.gain(index, norm));
        for (i, (d_normed, heads)) in [(ws.d_q, shape.heads), (ws.d_k, shape.kv_heads)].into_iter().enumerate() {
            let [raw, d_normed, d_raw] = [raw[i], d_normed, d_raw[i]].map(|m| m.split_heads(heads));
            self.gain_gradient(rec, raw, gains[i], d_normed);
            rms_norm::backward(rec, raw, gains[i], self.eps(), d_normed, d_raw, false);
        }
        d_raw
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
            self.projection_gradient(rec, pass.index, projection, dy, pass.ws.low[i])
        });
        if let Some(dx) = dx {
            self.input_gradient(rec, pass.index, &gradients, dx);
        }
        for gradient in gradients {
            self.parameter_gradients(rec, pass, x, gradient);
        }
    }

    /// Computes `dy B` into `place`, where the projection is adapted.
    fn projection_gradient(
        &self,
        rec: &mut Recorder,
        layer: usize,
        projection: Projection,
        dy: Matrix,
        place: Matrix,
    ) -> ProjectionGradient {
        let dyb = self.module(layer, projection).map(|module| {
            let dyb = low_columns(Some(place), module);
            linear::input_gradient(rec, dy, &module[Factor::B].weight, None, dyb, false);
            dyb
        });
        ProjectionGradient { projection, dy, dyb }
    }

    /// The gradient of an input from those of its projections' outputs, `dx = sum of dy W + s dropout(dy B A)`.
    fn input_gradient(&self, rec: &mut Recorder, layer: usize, gradients: &[ProjectionGradient], dx: Matrix) {
        let dropout = self.dropout.zip(self.activations.workspace.dropped);
        let adapted = |gradient: &ProjectionGradient| self.module(layer, gradient.projection).zip(gradient.dyb);
        let term = |gradient: &ProjectionGradient| GradientTerm {
            dy: gradient.dy,
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
        for (module, dyb) in gradients.iter().filter_map(adapted) {
            linear::input_gradient(rec, dyb, &module[Factor::A].weight, None, term, false);
            dropout::backward_add(rec, term, dx, dropout.mask(module), module.scale);
        }
    }

    /// The gradient of a norm's gain, where the base is trained; x is what the norm read.
    fn gain_gradient(&self, rec: &mut Recorder, x: Matrix, gain: View, dy: Matrix) {
        if let Some(trained) = self.trained {
            column_gradient::gain(rec, x, self.eps(), dy, trained.row_scales, trained.gradient(gain));
        }
    }

    /// `dA += s (dy B)^T x`, `dB += s dy^T (x A^T)`; of a trained base `dW += dy^T x` and the sums of dy.
    fn parameter_gradients(
        &self,
        rec: &mut Recorder,
        LayerBackward { index, acts, .. }: LayerBackward,
        x: Matrix,
        ProjectionGradient { projection, dy, dyb }: ProjectionGradient,
    ) {
        if let Some(trained) = self.trained {
            let weight = self.network.layers[index].projection(projection);
            weight_gradient::add(rec, dy, x, weight, |data| trained.gradient(data));
            if let Some(bias) = weight.bias {
                column_gradient::bias(rec, dy, trained.gradient(bias));
            }
        }
        let Some((module, dyb)) = self.module(index, projection).zip(dyb) else { return };
        let x = self.dropped(rec, module, x);
        let xa = low_columns(acts.low[projection as usize], module);
        if let (Some(da), Some(db)) = (module[Factor::A].gradient, module[Factor::B].gradient) {
            lora_gradient::lora_a(rec, dyb, x, module.scale, da);
            lora_gradient::lora_b(rec, xa, dy, module.scale, db);
        }
    }
}

/// The first `cols` columns of a buffer that was planned for more; rows move together.
fn columns(buffer: Matrix, cols: u32) -> Matrix {
    let ld = crate::gpu::round_up(cols, 4);
    let bytes = 4 * u64::from(buffer.rows) * u64::from(ld);
    Matrix { cols, ld, view: View { bytes, ..buffer.view }, ..buffer }
}

fn low_columns(buffer: Option<Matrix>, module: &DeviceModule) -> Matrix {
    columns(buffer.expect("an adapted projection has its low-rank buffer"), module.rank)
}

fn first_rows(ws: BackwardWorkspace, rows: u32) -> BackwardWorkspace {
    BackwardWorkspace {
        d_hidden: ws.d_hidden.first_rows(rows),
        d_norm: ws.d_norm.first_rows(rows),
        d_attention: ws.d_attention.first_rows(rows),
        d_q: ws.d_q.first_rows(rows),
        d_k: ws.d_k.first_rows(rows),
        d_v: ws.d_v.first_rows(rows),
        d_raw_qk: ws.d_raw_qk.map(|d| d.map(|m| m.first_rows(rows))),
        attention_scratch: ws.attention_scratch,
        low: ws.low.map(|low| low.first_rows(rows)),
    }
}
