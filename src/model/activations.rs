//! The buffers of a decoder's forward and backward pass, planned for the most rows that a pass may have.

use std::collections::BTreeSet;

use super::network::Network;
use crate::gpu::{Category, Matrix, MemoryPlan, View};
use crate::lora::device::DeviceAdapter;
use crate::model::config::{ModelConfig, Projection};
use crate::ops::attention::Shape;
use crate::ops::linear;
use crate::ops::lora_gradient;

/// What the host uploads for each pass, u32 per row.
#[derive(Clone, Debug)]
pub struct Inputs {
    pub tokens: View,
    pub positions: View,
    /// One for each length of window among the layers, unlimited attention included.
    pub windows: Vec<WindowRanges>,
}

/// Which rows attend to which, two u32 per row.
#[derive(Clone, Copy, Debug)]
pub struct WindowRanges {
    pub window: Option<usize>,
    /// First key and one past the last that a row attends to.
    pub keys: View,
    /// First row and one past the last that attend to a key.
    pub queries: View,
}

impl Inputs {
    pub fn plan(plan: &mut MemoryPlan, config: &ModelConfig, rows: u32) -> Self {
        let mut words = |label: &str, per_row: u64| plan.alloc(Category::Uploads, label, 4 * per_row * u64::from(rows));
        let (tokens, positions) = (words("tokens", 1), words("positions", 1));
        let lengths: BTreeSet<_> = config.sliding_windows.iter().copied().collect();
        let ranges = |window| WindowRanges { window, keys: words("key ranges", 2), queries: words("query ranges", 2) };
        Self { tokens, positions, windows: lengths.into_iter().map(ranges).collect() }
    }

    /// The ranges of the layer's window.
    pub fn ranges(&self, window: Option<usize>) -> &WindowRanges {
        let found = self.windows.iter().find(|ranges| ranges.window == window);
        found.expect("ranges are planned for every window of the config")
    }
}

/// What one layer's backward pass reads beside the layer's input: kept from the forward pass, or made again.
#[derive(Clone, Debug)]
pub struct LayerActivations {
    /// After the per-head norm and RoPE.
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    /// Before the per-head norm, where there is one.
    pub raw_qk: Option<[Matrix; 2]>,
    pub attention: Matrix,
    /// Log-sum-exp of each row's scores, `[heads][rows]`.
    pub lse: View,
    /// The residual stream between attention and feed-forward.
    pub middle: Matrix,
    pub gate: Matrix,
    pub up: Matrix,
    /// `x A^T` of each adapted projection, in the order of [`Projection::ALL`].
    pub low: Vec<Option<Matrix>>,
}

impl LayerActivations {
    fn plan(
        plan: &mut MemoryPlan,
        category: Category,
        network: &Network,
        ranks: &[u32; Projection::ALL.len()],
        rows: u32,
    ) -> Self {
        let config = &network.config;
        let width = |projection| config.projection_shape(projection).0 as u32;
        let mut matrix = |label: &str, cols: u32| plan.matrix(category, label, rows, cols);
        let (q, k) = (matrix("q", width(Projection::Q)), matrix("k", width(Projection::K)));
        let v = matrix("v", width(Projection::V));
        let raw_qk = config.qk_norm.then(|| [matrix("q before norm", q.cols), matrix("k before norm", k.cols)]);
        let attention = matrix("attention", width(Projection::Q));
        let middle = matrix("middle residual", config.hidden_size as u32);
        let (gate, up) = (matrix("gate", width(Projection::Gate)), matrix("up", width(Projection::Up)));
        let low = ranks.iter().map(|rank| (*rank > 0).then(|| matrix("x A^T", *rank))).collect();
        let lse = plan.alloc(category, "log-sum-exp", 4 * u64::from(rows) * config.num_heads as u64);
        Self { q, k, v, raw_qk, attention, lse, middle, gate, up, low }
    }

    /// The first `rows` rows of everything.
    pub fn top(&self, rows: u32) -> Self {
        Self {
            q: self.q.top(rows),
            k: self.k.top(rows),
            v: self.v.top(rows),
            raw_qk: self.raw_qk.map(|raw| raw.map(|m| m.top(rows))),
            attention: self.attention.top(rows),
            lse: self.lse,
            middle: self.middle.top(rows),
            gate: self.gate.top(rows),
            up: self.up.top(rows),
            low: self.low.iter().map(|m| m.map(|m| m.top(rows))).collect(),
        }
    }
}

pub fn attention_shape(config: &ModelConfig) -> Shape {
    Shape { heads: config.num_heads as u32, kv_heads: config.num_kv_heads as u32, head_dim: config.head_dim as u32 }
}

/// What lives within one layer's forward or backward pass, shared by all layers.
#[derive(Clone, Copy, Debug)]
pub struct Workspace {
    /// The normed input of a block, then the gradient of it.
    pub norm: Matrix,
    /// Output of the block's last projection, before it is added to the residual stream.
    pub out: Matrix,
    /// The SwiGLU product, then its gradient.
    pub act: Matrix,
    pub backward: Option<BackwardWorkspace>,
    /// An input with dropout applied; as wide as the widest input.
    pub dropped: Option<Matrix>,
}

#[derive(Clone, Copy, Debug)]
pub struct BackwardWorkspace {
    /// Gradient of the residual stream.
    pub d_hidden: Matrix,
    /// Gradient of a block's normed input.
    pub d_norm: Matrix,
    pub d_attention: Matrix,
    pub d_q: Matrix,
    pub d_k: Matrix,
    pub d_v: Matrix,
    /// Gradients of queries and keys before their norm, where there is one.
    pub d_raw_qk: Option<[Matrix; 2]>,
    pub attention_scratch: View,
    /// `dy B` of the projection at hand; its width is the largest rank.
    pub low: Matrix,
}

/// Which layers keep their activations and which make them again in the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recompute {
    /// Layers counted from the top that keep everything.
    pub kept_layers: usize,
}

/// All buffers of a pass.
#[derive(Clone, Debug)]
pub struct Activations {
    pub rows: u32,
    /// The residual stream before each layer and after the last.
    pub hidden: Vec<Matrix>,
    layers: Vec<LayerActivations>,
    kept_from: usize,
    pub workspace: Workspace,
}

impl Activations {
    /// For training: what the backward pass needs is kept, by layer or by input alone.
    pub fn plan_training(
        plan: &mut MemoryPlan,
        network: &Network,
        adapter: &DeviceAdapter,
        rows: u32,
        recompute: Recompute,
        dropout: bool,
    ) -> Self {
        let config = &network.config;
        let ranks = ranks(network, Some(adapter));
        let hidden = (0..=config.num_layers)
            .map(|_| plan.matrix(Category::KeptActivations, "layer input", rows, config.hidden_size as u32))
            .collect();
        let kept_from = config.num_layers - recompute.kept_layers.min(config.num_layers);
        let mut layers = Vec::new();
        if kept_from > 0 {
            layers.push(LayerActivations::plan(plan, Category::Workspace, network, &ranks, rows));
        }
        for _ in kept_from..config.num_layers {
            layers.push(LayerActivations::plan(plan, Category::KeptActivations, network, &ranks, rows));
        }
        let widest = Projection::ALL.map(|p| config.projection_shape(p).1).into_iter().max().unwrap_or(0) as u32;
        let mut matrix = |label: &str, cols: usize| plan.matrix(Category::Workspace, label, rows, cols as u32);
        let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let backward = BackwardWorkspace {
            d_hidden: matrix("residual gradient", config.hidden_size),
            d_norm: matrix("norm gradient", config.hidden_size),
            d_attention: matrix("attention gradient", q),
            d_q: matrix("q gradient", q),
            d_k: matrix("k gradient", kv),
            d_v: matrix("v gradient", kv),
            d_raw_qk: config.qk_norm.then(|| [matrix("raw q gradient", q), matrix("raw k gradient", kv)]),
            low: matrix("dy B", adapter.largest_rank() as usize),
            attention_scratch: plan.alloc(
                Category::Workspace,
                "attention scratch",
                attention_shape(config).scratch_bytes(rows),
            ),
        };
        let workspace = Workspace {
            backward: Some(backward),
            dropped: dropout.then(|| plan.matrix(Category::Workspace, "dropped input", rows, widest)),
            ..Workspace::plan_forward(plan, network, rows)
        };
        Self { rows, hidden, layers, kept_from, workspace }
    }

    /// For inference: two residual buffers in turn, one set of layer buffers.
    pub fn plan_inference(plan: &mut MemoryPlan, network: &Network, adapters: &[DeviceAdapter], rows: u32) -> Self {
        let config = &network.config;
        let mut widest = [0; Projection::ALL.len()];
        for adapter in adapters {
            widest.iter_mut().zip(ranks(network, Some(adapter))).for_each(|(w, rank)| *w = rank.max(*w));
        }
        let pair = [(); 2].map(|()| plan.matrix(Category::Workspace, "hidden", rows, config.hidden_size as u32));
        let hidden = (0..=config.num_layers).map(|i| pair[i % 2]).collect();
        let layers = vec![LayerActivations::plan(plan, Category::Workspace, network, &widest, rows)];
        let workspace = Workspace::plan_forward(plan, network, rows);
        Self { rows, hidden, layers, kept_from: config.num_layers, workspace }
    }

    /// The buffers of a layer; `true` when another layer overwrites them.
    pub fn layer(&self, layer: usize) -> (&LayerActivations, bool) {
        if layer < self.kept_from {
            (&self.layers[0], true)
        } else {
            (&self.layers[layer - self.kept_from + usize::from(self.kept_from > 0)], false)
        }
    }
}

impl Workspace {
    fn plan_forward(plan: &mut MemoryPlan, network: &Network, rows: u32) -> Self {
        let config = &network.config;
        let mut matrix = |label: &str, cols: usize| plan.matrix(Category::Workspace, label, rows, cols as u32);
        Self {
            norm: matrix("normed input", config.hidden_size),
            out: matrix("block output", config.hidden_size),
            act: matrix("SwiGLU product", config.intermediate_size),
            backward: None,
            dropped: None,
        }
    }
}

/// The largest rank of each projection over the layers.
fn ranks(network: &Network, adapter: Option<&DeviceAdapter>) -> [u32; Projection::ALL.len()] {
    Projection::ALL.map(|projection| {
        let layers = 0..network.config.num_layers;
        let rank = |layer| Some(adapter?.module(layer, projection)?.rank);
        layers.filter_map(rank).max().unwrap_or(0)
    })
}

/// Bytes of the scratch buffers that the ops share for this network, adapters and target: (decoded panel, partial sums).
pub fn scratch_bytes(network: &Network, adapters: &[DeviceAdapter], cpu: bool) -> (u64, u64) {
    let rank = adapters.iter().map(DeviceAdapter::largest_rank).max().unwrap_or(0);
    let shapes = network.weights().map(|(_, w)| [w.out_features, w.in_features, rank]);
    let factors = adapters.iter().flat_map(DeviceAdapter::modules);
    let factor_shapes = factors.flat_map(|m| [&m.a_weight, &m.b_weight]).map(|w| [w.out_features, w.in_features, 0]);
    let panel = if cpu { linear::panel_bytes(shapes.chain(factor_shapes)) } else { 16 };
    let modules = adapters.iter().flat_map(DeviceAdapter::modules);
    let partials = modules
        .map(|m| lora_gradient::partial_bytes(m.rank, m.a_weight.in_features.max(m.b_weight.out_features)))
        .max()
        .unwrap_or(16);
    (panel, partials)
}
