//! The buffers of a decoder's forward and backward pass, planned for the most rows that a pass may have.

use std::collections::BTreeSet;
use std::ops::Range;

use super::base::{Layer, Network};
use super::experts::{ExpertActivations, ExpertWorkspace};
use super::linear_attention::{LinearActivations, LinearGradients, LinearWorkspace, shape};
use crate::gpu::{Arena, Capabilities, Category, Lifetime, Matrix, MemoryPlan, View};
use crate::lora::factors::Factor;
use crate::model::config::ModelConfig;
use crate::model::gemma4::Gemma4;
use crate::model::linear_attention::LinearAttention;
use crate::model::modules::{Norm, Projection};
use crate::model::tensors::TensorKind;
use crate::network::adapter::{DeviceAdapter, DeviceFactor, DeviceModule};
use crate::network::dora::{self, RankWorkspace};
use crate::ops::attention::Shape;
use crate::ops::bf16;
use crate::ops::column_gradient;
use crate::ops::experts::Tables;
use crate::ops::linear::{self, WorkspaceQuery};
use crate::ops::lora_gradient;
use crate::ops::weight::Weight;

/// The host's uploads for each pass, u32 per row.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Token id of each row.
    pub tokens: View,
    /// Position of each row in its sequence, from 0.
    pub positions: View,
    /// Attention ranges for each length of window that a layer has, unlimited attention included.
    pub windows: Vec<WindowRanges>,
    /// The embeddings of the rows' tokens for each layer, `[rows, width]`, times their factor; empty where layers have none.
    pub layer_embeddings: Vec<Matrix>,
}

/// The rows that attend to each other under one length of window, two u32 per row.
#[derive(Clone, Copy, Debug)]
pub struct WindowRanges {
    /// Positions that a row attends to, its own included; `None` is all before it.
    pub window: Option<usize>,
    /// First key and one past the last that a row attends to.
    pub keys: View,
    /// First row and one past the last that attend to a key.
    pub queries: View,
}

impl Inputs {
    /// Plans the uploads of passes of up to `rows` rows.
    pub fn plan(plan: &mut MemoryPlan, config: &ModelConfig, rows: u32) -> Self {
        let mut words = |label: &str, per_row: u64| plan.alloc(Category::Uploads, label, 4 * per_row * u64::from(rows));
        let (tokens, positions) = (words("tokens", 1), words("positions", 1));
        let lengths: BTreeSet<_> = config.sliding_windows.iter().copied().collect();
        let ranges = |window| WindowRanges { window, keys: words("key ranges", 2), queries: words("query ranges", 2) };
        let windows = lengths.into_iter().map(ranges).collect();
        let layers = 0..config.layer_embeddings().map_or(0, |_| config.num_layers);
        let width = config.layer_embeddings().map_or(0, |of| of.width as u32);
        let mut of_layer = |_| plan.matrix(Category::Uploads, "embeddings of a layer", rows, width);
        Self { tokens, positions, windows, layer_embeddings: layers.map(&mut of_layer).collect() }
    }

    /// The ranges of the layer's window.
    pub fn ranges(&self, window: Option<usize>) -> &WindowRanges {
        let found = self.windows.iter().find(|ranges| ranges.window == window);
        found.expect("ranges are planned for every window of the config")
    }
}

/// A phase of a step, in the order of execution. A buffer that is needed only in some phases may be shared with buffers that are
/// needed in others. Every layer goes through the same phases, so its forward phases (also when they are recomputed) and its backward
/// phases appear once; the head's phases lie between them. [`super::decoder`] follows them from top to bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Loading the weights, before any step.
    Loading,
    /// Queries, keys and values of the normed input, with their norms and rotary positions.
    ProjectQkv,
    /// Attention over the rows of each sequence.
    Attention,
    /// The output projection of attention.
    ProjectO,
    /// The residual sum after attention, and the norm before the feed-forward block.
    MiddleNorm,
    /// The projections gate and up.
    ProjectGateUp,
    /// The activation of gate times up.
    Glu,
    /// The projection down.
    ProjectDown,
    /// The residual sum after the feed-forward block, and the norm that the next layer or the head reads.
    NextNorm,
    /// The head takes the rows with a label together.
    GatherLabeled,
    /// Logits, losses and their gradients, chunk by chunk.
    Logits,
    /// The gradients of the rows with a label go back to their places.
    ScatterLabeled,
    /// The gradient through the norm after the last layer.
    FinalNormBackward,
    /// The gradient of down's input.
    DownBackward,
    /// The gradients of gate and up from that of their product.
    GluBackward,
    /// The gradients of what is trained in down.
    DownGradients,
    /// The gradients of the input of gate and up, and of what is trained in them.
    GateUpBackward,
    /// The gradient through the norm before the feed-forward block.
    MiddleNormBackward,
    /// The gradients of the output projection: of its input, and of what is trained in it.
    OBackward,
    /// The gradients of queries, keys and values.
    AttentionBackward,
    /// The gradients through the norms of queries and keys, where there are any.
    HeadNormBackward,
    /// The gradients of the input of q, k and v, and of what is trained in them.
    QkvBackward,
    /// The gradient of the input of a short convolution.
    ConvolutionBackward,
    /// The gradient through the norm before attention.
    InputNormBackward,
}

/// All phases from `first` to `last`.
pub fn through(first: Phase, last: Phase) -> Lifetime {
    first as u8..=last as u8
}

/// All phases of a step.
fn whole_step() -> Lifetime {
    through(Phase::ProjectQkv, Phase::InputNormBackward)
}

/// Before and between passes, when no activation is alive.
fn between_passes() -> Lifetime {
    through(Phase::Loading, Phase::Loading)
}

/// The storage of a layer's activations: buffers of their own, or buffers that they share with the rest of the step.
enum Storage<'a> {
    Kept,
    Shared(&'a mut Arena),
}

impl Storage<'_> {
    fn alloc(&mut self, plan: &mut MemoryPlan, label: &str, bytes: u64, lifetime: Lifetime) -> View {
        match self {
            Self::Kept => plan.alloc(Category::KeptActivations, label, bytes),
            Self::Shared(arena) => arena.alloc(plan, label, bytes, &[lifetime]),
        }
    }

    fn matrix(&mut self, plan: &mut MemoryPlan, label: &str, [rows, cols]: [u32; 2], lifetime: Lifetime) -> Matrix {
        match self {
            Self::Kept => plan.matrix(Category::KeptActivations, label, rows, cols),
            Self::Shared(arena) => arena.matrix(plan, label, rows, cols, &[lifetime]),
        }
    }

    fn contiguous_matrices<const N: usize>(
        &mut self,
        plan: &mut MemoryPlan,
        label: &str,
        rows: u32,
        cols: [u32; N],
        lifetime: Lifetime,
    ) -> [Matrix; N] {
        match self {
            Self::Kept => plan.contiguous_matrices(Category::KeptActivations, label, rows, cols),
            Self::Shared(arena) => arena.contiguous_matrices(plan, label, rows, cols, &[lifetime]),
        }
    }
}

/// The activations of a layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionActivations {
    /// Queries after the per-head norm and RoPE, `[rows, heads * head_dim]`.
    pub q: Matrix,
    /// Keys after the per-head norm and RoPE, `[rows, kv_heads * head_dim]`.
    pub k: Matrix,
    /// Values, `[rows, kv_heads * head_dim]`.
    pub v: Matrix,
    /// Queries and keys before the per-head norm, where there is one.
    pub raw_qk: Option<[Matrix; 2]>,
    /// Gates on the result, `[rows, heads * head_dim]`, where there are any; the backward pass puts their gradient in their place.
    pub gate: Option<Matrix>,
    /// Values before their norm, where there is one.
    pub raw_v: Option<Matrix>,
    /// Result of attention, which the output projection reads where there are no gates, `[rows, heads * head_dim]`.
    pub out: Matrix,
    /// Log-sum-exp of each row's scores, `[heads][rows]`.
    pub lse: View,
}

/// The activations that one layer's backward pass reads beside the layer's input. They are kept from the forward pass, or
/// recomputed.
#[derive(Clone, Debug)]
pub struct LayerActivations {
    /// Activations of attention, in layers that have it.
    pub attention: Option<AttentionActivations>,
    /// The gates and the input of a short convolution, `[rows, 3 hidden]`, in layers that have one in place of attention.
    pub convolution: Option<Matrix>,
    /// Activations of a gated delta rule, in layers that have one in place of attention.
    pub linear: Option<LinearActivations>,
    /// The residual stream between attention and feed-forward, `[rows, hidden]`.
    pub middle: Matrix,
    /// Outputs of attention and of the feed-forward block before their norms, `[rows, hidden]`, where there are such norms.
    pub outputs: Option<[Matrix; 2]>,
    /// Outputs of gate and up of a feed-forward block, `[rows, intermediate]`; the backward pass puts their gradients in their place.
    pub gate_up: Option<[Matrix; 2]>,
    /// Results of the experts, where layers have them in place of the feed-forward block.
    pub experts: Option<ExpertActivations>,
    /// Of a layer's embedding, where there is one: the input of its activation, `[rows, width]`, and its output before the norm,
    /// `[rows, hidden]`.
    pub embedding: Option<[Matrix; 2]>,
    /// `x A^T` of each adapted projection, `[rows, rank]`, in the order of [`Projection::ALL`].
    pub low: Vec<Option<Matrix>>,
}

impl LayerActivations {
    fn plan(
        plan: &mut MemoryPlan,
        storage: &mut Storage,
        network: &Network,
        ranks: &[u32; Projection::ALL.len()],
        rows: u32,
        (layers, staging): (Range<usize>, Option<&Self>),
    ) -> Self {
        use Phase::*;
        let config = &network.config;
        // As wide as the widest of the layers.
        let width = |projection| {
            let widths = layers.clone().map(|layer| config.layer_shape(layer, projection).0);
            widths.max().unwrap_or(0) as u32
        };
        let hidden = config.hidden_size as u32;
        let dense = layers.clone().any(|layer| config.experts_of(layer).is_none());
        let sparse = layers.clone().any(|layer| config.experts_of(layer).is_some());
        let queries = layers.clone().map(|layer| config.query_width(layer)).max().unwrap_or(0) as u32;
        let attends = layers.clone().any(|layer| config.has_attention(layer));
        let convolves = layers.clone().any(|layer| config.is_convolution(layer));
        // The widest first, because an arena that is asked for the largest first stays small.
        let gate_up = match staging {
            Some(staging) => staging.gate_up,
            None => dense.then(|| {
                storage.contiguous_matrices(
                    plan,
                    "gate and up",
                    rows,
                    Projection::OF_FEED_FORWARD_INPUT.map(width),
                    through(ProjectGateUp, GateUpBackward),
                )
            }),
        };
        let experts = sparse.then(|| plan_experts(plan, storage, network, rows, staging)).flatten();
        let linear = config.linear_attention.as_ref().filter(|of| layers.clone().any(|layer| of.layers[layer]));
        let linear = linear.map(|of| {
            let staging = staging.and_then(|staging| staging.linear.as_ref());
            plan_linear(plan, storage, of, rows, staging)
        });
        let mut matrix = |label: &str, cols: u32, lifetime| storage.matrix(plan, label, [rows, cols], lifetime);
        let convolution = convolves.then(|| {
            staging.and_then(|staging| staging.convolution).unwrap_or_else(|| {
                matrix("input of a convolution", width(Projection::ConvIn), through(ProjectQkv, ConvolutionBackward))
            })
        });
        let out = attends.then(|| {
            staging.and_then(|staging| staging.attention).map_or_else(
                || matrix("attention", queries, through(Attention, AttentionBackward)),
                |staging| staging.out,
            )
        });
        let middle = staging.map_or_else(
            || matrix("middle residual", hidden, through(MiddleNorm, MiddleNormBackward)),
            |staging| staging.middle,
        );
        let of_attention = out.map(|out| {
            let qkv = through(ProjectQkv, AttentionBackward);
            let q = matrix("q", queries, qkv.clone());
            let k = matrix("k", width(Projection::K), qkv.clone());
            let v = matrix("v", width(Projection::V), qkv);
            let raw = through(ProjectQkv, HeadNormBackward);
            let raw_qk = config.has_norm(Norm::Query).then(|| {
                [("q before norm", q.cols), ("k before norm", k.cols)].map(|(l, cols)| matrix(l, cols, raw.clone()))
            });
            let raw_v = network.ones.map(|_| matrix("v before norm", v.cols, raw.clone()));
            let gates = through(ProjectQkv, QkvBackward);
            let gate = config.output_gate.then(|| matrix("gates of attention", q.cols, gates));
            (q, k, v, [raw_qk.map(|raw| raw[0]), raw_qk.map(|raw| raw[1]), raw_v, gate], out)
        });
        let outputs = config.norms_outputs().then(|| {
            let attention = matrix("attention output", hidden, through(ProjectO, OBackward));
            [attention, matrix("feed-forward output", hidden, through(ProjectDown, DownBackward))]
        });
        let embedding = config.layer_embeddings().map(|of| {
            let gate = matrix("gate of a layer's embedding", of.width as u32, through(ProjectDown, DownBackward));
            [gate, matrix("output of a layer's embedding", hidden, through(ProjectDown, DownBackward))]
        });
        // The columns for embeddings of layers are in the workspace.
        let has = |p: Projection| {
            p != Projection::LayerEmbedding && layers.clone().any(|layer| config.has_projection(layer, p))
        };
        let low = Projection::ALL.iter().zip(ranks);
        let low = low.map(|(p, rank)| (*rank > 0 && has(*p)).then(|| matrix("x A^T", *rank, whole_step()))).collect();
        let attention = of_attention.map(|(q, k, v, [raw_q, raw_k, raw_v, gate], out)| {
            let bytes = 4 * u64::from(rows) * config.num_heads as u64;
            let lse = storage.alloc(plan, "log-sum-exp", bytes, through(Attention, AttentionBackward));
            let raw_qk = raw_q.zip(raw_k).map(|(q, k)| [q, k]);
            AttentionActivations { q, k, v, raw_qk, raw_v, gate, out, lse }
        });
        Self { attention, convolution, linear, middle, outputs, gate_up, experts, embedding, low }
    }

    /// The activations that may be stored in bf16. Queries, keys and values may not: the backward pass computes the
    /// attention scores again from them, and these must fit the log-sum-exp that the forward pass stored.
    /// Those of `layer`, where layers of several kinds share buffers.
    pub fn compressible(&self, config: &ModelConfig, layer: usize) -> Vec<Matrix> {
        let gate_up = match (config.experts_of(layer), self.experts) {
            (Some(_), Some(ExpertActivations { gate, up, .. })) => Some([gate, up]),
            _ => self.gate_up,
        };
        let mixer = match config.is_convolution(layer) {
            true => self.convolution,
            false => self.attention.filter(|_| config.has_attention(layer)).map(|attention| attention.out),
        };
        let linear = self.linear.as_ref().filter(|_| config.is_linear_attention(layer));
        let linear = linear.into_iter().flat_map(LinearActivations::compressible);
        gate_up.into_iter().flatten().chain(mixer).chain(linear).chain([self.middle]).collect()
    }

    /// The first `rows` rows of everything.
    pub fn first_rows(&self, rows: u32) -> Self {
        Self {
            attention: self.attention.map(|of| AttentionActivations {
                q: of.q.first_rows(rows),
                k: of.k.first_rows(rows),
                v: of.v.first_rows(rows),
                raw_qk: of.raw_qk.map(|raw| raw.map(|m| m.first_rows(rows))),
                raw_v: of.raw_v.map(|m| m.first_rows(rows)),
                gate: of.gate.map(|m| m.first_rows(rows)),
                out: of.out.first_rows(rows),
                lse: of.lse,
            }),
            convolution: self.convolution.map(|m| m.first_rows(rows)),
            linear: self.linear.map(|of| of.first_rows(rows)),
            middle: self.middle.first_rows(rows),
            outputs: self.outputs.map(|outputs| outputs.map(|m| m.first_rows(rows))),
            gate_up: self.gate_up.map(|both| both.map(|m| m.first_rows(rows))),
            // As many as the passes take.
            experts: self.experts,
            embedding: self.embedding.map(|both| both.map(|m| m.first_rows(rows))),
            low: self.low.iter().map(|m| m.map(|m| m.first_rows(rows))).collect(),
        }
    }
}

/// The heads of a layer's attention.
pub fn attention_shape(config: &ModelConfig, layer: usize) -> Shape {
    let head_dim = config.layer_head_dim(layer) as u32;
    Shape { heads: config.num_heads as u32, kv_heads: config.num_kv_heads as u32, head_dim }
}

/// Buffers that are needed within one layer's forward or backward pass only, shared by all layers.
#[derive(Clone, Copy, Debug)]
pub struct Workspace {
    /// The normed input of a block, then the gradient of it.
    pub norm: Matrix,
    /// Output of the block's last projection, before it is added to the residual stream.
    pub out: Matrix,
    /// `f(gate) * up` of a feed-forward block, then its gradient; `None` where every layer has experts.
    pub act: Option<Matrix>,
    /// Buffers of experts, where layers have them.
    pub experts: Option<ExpertWorkspace>,
    /// Result of a short convolution, `[rows, hidden]`, which its output projection reads, where layers have one.
    pub convolved: Option<Matrix>,
    /// Buffers of a gated delta rule, where layers have one.
    pub linear: Option<LinearWorkspace>,
    /// Queries and gates as they are projected together, `[rows, 2 * heads * head_dim]`, where there are gates.
    pub queries_and_gates: Option<Matrix>,
    /// Result of attention times its gates, `[rows, heads * head_dim]`, which the output projection reads, where there are gates.
    pub gated: Option<Matrix>,
    /// A layer's projected embeddings, then their gated product, `[rows, width]`, and the residual stream before they are added, `[rows, hidden]`, where there are
    /// such.
    pub embedding: Option<[Matrix; 2]>,
    /// Buffers of the backward pass; `None` outside training.
    pub backward: Option<BackwardWorkspace>,
    /// An input with dropout applied; as wide as the widest input.
    pub dropped: Option<Matrix>,
    /// Columns of an embedding's A, as wide as the largest rank; `None` where no adapter has any.
    pub embedding_low: Option<Matrix>,
    /// `x A^T` of the projection to the embeddings of every layer, as wide as the largest rank; `None` where no adapter has any.
    pub layer_embedding_low: Option<Matrix>,
    /// Scratch of DoRA's norms, between passes; `None` where no module has magnitudes.
    pub ranks: Option<RankWorkspace>,
    /// Outputs of DoRA's layers under dropout, then gradients of up to three outputs times their factors. `None` where no module that is
    /// trained has magnitudes.
    pub scaled: Option<[Matrix; 3]>,
}

/// Buffers that are needed within one layer's backward pass only, shared by all layers.
#[derive(Clone, Copy, Debug)]
pub struct BackwardWorkspace {
    /// Gradient of the residual stream, `[rows, hidden]`.
    pub d_hidden: Matrix,
    /// Gradient of a block's normed input, `[rows, hidden]`.
    pub d_norm: Matrix,
    /// Gradient of a block's output, `[rows, hidden]`; `None` where that is the gradient of the residual stream.
    pub d_output: Option<Matrix>,
    /// Gradient of the result of attention, `[rows, heads * head_dim]`; where there are gates, first that of the gated result.
    pub d_attention: Matrix,
    /// Gradient of queries and gates as they are projected together, where there are gates.
    pub d_queries_and_gates: Option<Matrix>,
    /// Gradient of the queries, `[rows, heads * head_dim]`.
    pub d_q: Matrix,
    /// Gradient of the keys, `[rows, kv_heads * head_dim]`.
    pub d_k: Matrix,
    /// Gradient of the values, `[rows, kv_heads * head_dim]`.
    pub d_v: Matrix,
    /// Gradients of queries and keys before their norm, where there is one.
    pub d_raw_qk: Option<[Matrix; 2]>,
    /// Gradient of values before their norm, where there is one.
    pub d_raw_v: Option<Matrix>,
    /// Scratch of [`crate::ops::attention::backward`], of [`Shape::scratch_bytes`].
    pub attention_scratch: View,
    /// Gradients of a gated delta rule, where layers have one.
    pub linear: Option<LinearGradients>,
    /// Gradients of the result of a short convolution, `[rows, hidden]`, and of its input, `[rows, 3 hidden]`, where layers have one.
    pub convolution: Option<[Matrix; 2]>,
    /// The gradient of the projection to a layer's embeddings, `[rows, width]`, where the adapter has one.
    pub d_layer_embedding: Option<Matrix>,
    /// `dy B` of the up to three projections that read one input, as wide as the largest rank.
    pub low: [Matrix; 3],
}

/// The layers that keep their activations. The others compute them again in the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recompute {
    /// The number of layers, counted from the last, that keep everything.
    pub kept_layers: usize,
}

/// The type in which activations are stored from the forward pass to the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationFormat {
    /// As they are computed, 4 bytes a value.
    F32,
    /// Layer inputs and [`LayerActivations::compressible`] are rounded to bf16 for storage. Computation stays in f32.
    Bf16,
}

/// One layer's activations in bf16.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// The layer's input `[rows, hidden]`, 2 bytes a value.
    pub input: View,
    /// The activations that [`LayerActivations::compressible`] names, in its order; `None` where the layer keeps its
    /// input alone.
    pub kept: Option<Vec<View>>,
}

/// The sizes and choices that decide the activations of training.
#[derive(Clone, Copy, Debug)]
pub struct TrainingSizes {
    /// Rows of the largest micro-batch.
    pub rows: u32,
    /// Layers that keep their activations instead of computing them again.
    pub recompute: Recompute,
    /// Type of the activations that are kept.
    pub activation_format: ActivationFormat,
    /// True if inputs of adapted projections go through dropout.
    pub dropout: bool,
}

/// Keys and values that several layers read.
#[derive(Clone, Copy, Debug)]
pub struct SharedKeys {
    /// The layer that computes them.
    pub layer: usize,
    /// Keys and values, `[rows, kv_heads * head_dim]`.
    pub kv: [Matrix; 2],
    /// Sums of their gradients over the later layers; `None` outside training.
    pub gradients: Option<[Matrix; 2]>,
}

/// Plans the keys and values that several layers read, and the embeddings of each layer.
fn plan_for_layers(
    plan: &mut MemoryPlan,
    config: &ModelConfig,
    rows: u32,
    training: bool,
) -> (Vec<SharedKeys>, Vec<Matrix>) {
    let serving = config.gemma4.as_ref().map(Gemma4::serving).unwrap_or_default();
    let of_layer = |layer| {
        let width = config.layer_shape(layer, Projection::K).0 as u32;
        let mut both = |label: &str| [(); 2].map(|()| plan.matrix(Category::Workspace, label, rows, width));
        let kv = both("shared keys and values");
        SharedKeys { layer, kv, gradients: training.then(|| both("gradients of shared keys and values")) }
    };
    let shared = serving.into_iter().map(of_layer).collect();
    let layers = 0..config.layer_embeddings().map_or(0, |_| config.num_layers);
    let width = config.layer_embeddings().map_or(0, |of| of.width as u32);
    let embeddings = layers.map(|_| plan.matrix(Category::Workspace, "embeddings of a layer", rows, width));
    (shared, embeddings.collect())
}

/// All buffers of a pass.
#[derive(Clone, Debug)]
pub struct Activations {
    /// Rows of the largest pass.
    pub rows: u32,
    /// The residual stream before each layer and after the last.
    pub hidden: Vec<Matrix>,
    /// One entry a layer where activations are stored in bf16. All layers then compute in the same f32 buffers.
    pub compressed: Vec<Compressed>,
    layers: Vec<LayerActivations>,
    kept_from: usize,
    /// The keys and values that later layers read too, by the layer that computes them.
    pub shared: Vec<SharedKeys>,
    /// The embeddings of each layer as it reads them, `[rows, width]`; the backward pass overwrites them.
    pub embeddings: Vec<Matrix>,
    /// Buffers that all layers share.
    pub workspace: Workspace,
}

impl Activations {
    /// Plans the buffers of training. Activations that the backward pass needs are kept, either all of a layer's or its input alone;
    /// every other buffer shares `arena`.
    pub fn plan_training(
        plan: &mut MemoryPlan,
        arena: &mut Arena,
        network: &Network,
        adapter: &DeviceAdapter,
        sizes: TrainingSizes,
    ) -> Self {
        let TrainingSizes { rows, recompute, activation_format, dropout } = sizes;
        let config = &network.config;
        let ranks = ranks(network, Some(adapter));
        let kept_from = config.num_layers - recompute.kept_layers.min(config.num_layers);
        let (all, mut layers) = (0..config.num_layers, Vec::new());
        // Layers that are recomputed or stored in bf16 all compute in the f32 buffers of one layer.
        let staging = (kept_from > 0 || activation_format == ActivationFormat::Bf16).then(|| {
            LayerActivations::plan(plan, &mut Storage::Shared(arena), network, &ranks, rows, (all.clone(), None))
        });
        let compressed_from = staging.clone().filter(|_| activation_format == ActivationFormat::Bf16);
        layers.extend(staging.filter(|_| kept_from > 0));
        for layer in kept_from..config.num_layers {
            let of = (layer..layer + 1, compressed_from.as_ref());
            layers.push(LayerActivations::plan(plan, &mut Storage::Kept, network, &ranks, rows, of));
        }
        let width = config.hidden_size as u32;
        let (hidden, compressed) = match compressed_from {
            None => {
                let kept = |_| plan.matrix(Category::KeptActivations, "layer input", rows, width);
                ((0..=config.num_layers).map(kept).collect(), Vec::new())
            }
            Some(staging) => {
                let pair = [(); 2].map(|()| arena.matrix(plan, "residual stream", rows, width, &[whole_step()]));
                let mut alloc = |label, like| plan.alloc(Category::KeptActivations, label, bf16::packed_bytes(like));
                let of_layer = |layer| Compressed {
                    input: alloc("layer input in bf16", pair[0]),
                    kept: (layer >= kept_from).then(|| {
                        let like = staging.compressible(config, layer).into_iter();
                        like.map(|like| alloc("activation in bf16", like)).collect()
                    }),
                };
                let compressed = (0..config.num_layers).map(of_layer).collect();
                ((0..=config.num_layers).map(|i| pair[i % 2]).collect(), compressed)
            }
        };
        let mut workspace = Workspace::plan_forward(plan, arena, network, rows);
        workspace.backward = Some(BackwardWorkspace::plan(plan, arena, network, adapter, rows));
        let widest = config.projections().map(|p| config.projection_shape(p).1).max().unwrap_or(0) as u32;
        workspace.embedding_low = plan_embedding_low(plan, arena, std::slice::from_ref(adapter), rows);
        workspace.layer_embedding_low = plan_layer_embedding_low(plan, arena, &ranks, rows);
        workspace.scaled = plan_scaled(plan, arena, network, adapter, sizes);
        workspace.ranks = RankWorkspace::plan(plan, arena, std::slice::from_ref(adapter), &between_passes());
        workspace.dropped = dropout.then(|| arena.matrix(plan, "dropped input", rows, widest, &[whole_step()]));
        let (shared, embeddings) = plan_for_layers(plan, config, rows, true);
        Self { rows, hidden, compressed, layers, kept_from, shared, embeddings, workspace }
    }

    /// Plans the buffers of inference: two residual buffers in turn, one set of layer buffers.
    pub fn plan_inference(
        plan: &mut MemoryPlan,
        arena: &mut Arena,
        network: &Network,
        adapters: &[DeviceAdapter],
        rows: u32,
    ) -> Self {
        let config = &network.config;
        let mut widest = [0; Projection::ALL.len()];
        for adapter in adapters {
            widest.iter_mut().zip(ranks(network, Some(adapter))).for_each(|(w, rank)| *w = rank.max(*w));
        }
        let pair = [(); 2].map(|()| plan.matrix(Category::Workspace, "hidden", rows, config.hidden_size as u32));
        let hidden = (0..=config.num_layers).map(|i| pair[i % 2]).collect();
        let of = (0..config.num_layers, None);
        let layers = vec![LayerActivations::plan(plan, &mut Storage::Shared(arena), network, &widest, rows, of)];
        let mut workspace = Workspace::plan_forward(plan, arena, network, rows);
        workspace.embedding_low = plan_embedding_low(plan, arena, adapters, rows);
        workspace.layer_embedding_low = plan_layer_embedding_low(plan, arena, &widest, rows);
        workspace.ranks = RankWorkspace::plan(plan, arena, adapters, &between_passes());
        let (shared, embeddings) = plan_for_layers(plan, config, rows, false);
        let kept_from = config.num_layers;
        Self { rows, hidden, compressed: Vec::new(), layers, kept_from, shared, embeddings, workspace }
    }

    /// The buffers of a layer, and whether another layer overwrites them.
    pub fn layer(&self, layer: usize) -> (&LayerActivations, bool) {
        if layer < self.kept_from {
            (&self.layers[0], true)
        } else {
            (&self.layers[layer - self.kept_from + usize::from(self.kept_from > 0)], false)
        }
    }
}

impl Workspace {
    fn plan_forward(plan: &mut MemoryPlan, arena: &mut Arena, network: &Network, rows: u32) -> Self {
        use Phase::*;
        let config = &network.config;
        let mut matrix =
            |label: &str, cols: usize, lifetimes: &[Lifetime]| arena.matrix(plan, label, rows, cols as u32, lifetimes);
        let act = [through(Glu, ProjectDown), through(DownBackward, DownGradients)];
        let dense = (0..config.num_layers).any(|layer| config.experts_of(layer).is_none());
        let of_embedding = config.layer_embeddings().map(|of| of.width);
        let gated = config.projection_shape(Projection::Gate).0.max(of_embedding.unwrap_or(0));
        Self {
            act: dense.then(|| matrix("gated product", gated, &act)),
            norm: matrix("normed input", config.hidden_size, &[whole_step()]),
            out: matrix("block output", config.hidden_size, &[through(ProjectO, NextNorm)]),
            convolved: config.convolutions.as_ref().map(|_| {
                let lifetimes = [through(Attention, ProjectO), through(OBackward, OBackward)];
                matrix("result of a convolution", config.hidden_size, &lifetimes)
            }),
            queries_and_gates: config.output_gate.then(|| {
                let lifetimes = [through(ProjectQkv, ProjectQkv)];
                matrix("queries and gates", config.projection_shape(Projection::Q).0, &lifetimes)
            }),
            gated: config.output_gate.then(|| {
                let lifetimes = [through(Attention, ProjectO), through(OBackward, OBackward)];
                matrix("gated attention", config.query_width(0), &lifetimes)
            }),
            embedding: of_embedding.map(|width| {
                let lifetimes = [whole_step()];
                let projected = matrix("projected embeddings", width, &lifetimes);
                [projected, matrix("stream before a layer's embedding", config.hidden_size, &lifetimes)]
            }),
            experts: plan_expert_workspace(plan, arena, config, rows),
            linear: plan_linear_workspace(plan, arena, config, rows),
            backward: None,
            dropped: None,
            embedding_low: None,
            layer_embedding_low: None,
            ranks: None,
            scaled: None,
        }
    }
}

impl BackwardWorkspace {
    fn plan(plan: &mut MemoryPlan, arena: &mut Arena, network: &Network, adapter: &DeviceAdapter, rows: u32) -> Self {
        use Phase::*;
        let config = &network.config;
        let mut matrix =
            |label: &str, cols: usize, lifetimes: &[Lifetime]| arena.matrix(plan, label, rows, cols as u32, lifetimes);
        let [joint, kv] = [Projection::Q, Projection::K].map(|projection| config.projection_shape(projection).0);
        let q = if config.output_gate { joint / 2 } else { joint };
        let adapts_embeddings = adapter.module(0, Projection::LayerEmbedding).is_some();
        let d_layer_embedding = config
            .layer_embeddings()
            .filter(|_| adapts_embeddings)
            .map(|of| matrix("gradient of a layer's embedding", of.width, &[whole_step()]));
        let d_norm = [
            through(ScatterLabeled, FinalNormBackward),
            through(GateUpBackward, MiddleNormBackward),
            through(QkvBackward, InputNormBackward),
        ];
        let of_attention = [through(AttentionBackward, QkvBackward)];
        let of_convolution = [through(ConvolutionBackward, ConvolutionBackward)];
        let d_hidden = matrix("residual gradient", config.hidden_size, &[whole_step()]);
        let d_norm = matrix("norm gradient", config.hidden_size, &d_norm);
        let own_output = config.norms_outputs() || config.residual_scale != 1.0;
        let d_output = own_output
            .then(|| matrix("block output gradient", config.hidden_size, &[through(DownBackward, OBackward)]));
        let d_attention = matrix("attention gradient", q, &[through(OBackward, AttentionBackward)]);
        let convolution = config.convolutions.as_ref().map(|_| {
            let d_input = matrix("gradient of a convolution's input", 3 * config.hidden_size, &of_convolution);
            let of_result = [through(OBackward, ConvolutionBackward)];
            [matrix("gradient of a convolution's result", config.hidden_size, &of_result), d_input]
        });
        // The gradients of the projections' own outputs are contiguous.
        let through_norm = config
            .has_norm(Norm::Query)
            .then(|| [("q gradient", q), ("k gradient", kv)].map(|(l, n)| matrix(l, n, &of_attention)));
        let d_value = network.ones.map(|_| matrix("v gradient", kv, &of_attention));
        let widths = [joint, kv, kv].map(|n| n as u32);
        let of_outputs = arena.contiguous_matrices(plan, "q, k, v gradients", rows, widths, &of_attention);
        let [d_q, d_k, d_v] = of_outputs;
        let d_queries_and_gates = config.output_gate.then_some(d_q);
        let d_q =
            if config.output_gate { arena.matrix(plan, "query gradient", rows, q as u32, &of_attention) } else { d_q };
        let d_outputs = [d_q, d_k];
        let (d_v, d_raw_v) = d_value.map_or((d_v, None), |d_value| (d_value, Some(d_v)));
        let [d_q, d_k] = through_norm.unwrap_or([d_q, d_k]);
        let ranks = [adapter.largest_rank(); 3];
        Self {
            d_hidden,
            d_norm,
            d_output,
            d_attention,
            d_queries_and_gates,
            d_q,
            d_k,
            d_v,
            d_raw_qk: through_norm.map(|_| d_outputs),
            d_raw_v,
            linear: plan_linear_gradients(plan, arena, config, rows),
            convolution,
            d_layer_embedding,
            low: arena.contiguous_matrices(plan, "dy B", rows, ranks, &[whole_step()]),
            attention_scratch: arena.alloc(
                plan,
                "attention scratch",
                attention_shape(config, 0).scratch_bytes(rows),
                &[through(AttentionBackward, AttentionBackward)],
            ),
        }
    }
}

/// Plans [`Workspace::embedding_low`].
fn plan_embedding_low(
    plan: &mut MemoryPlan,
    arena: &mut Arena,
    adapters: &[DeviceAdapter],
    rows: u32,
) -> Option<Matrix> {
    let modules = adapters.iter().filter_map(DeviceAdapter::embedding);
    let rank = modules.filter(|module| module.factor(Factor::EmbeddingA).is_some()).map(|module| module.rank).max()?;
    Some(arena.matrix(plan, "columns of the embedding's A", rows, rank, &[whole_step()]))
}

/// Plans [`Workspace::layer_embedding_low`]. `ranks` has the largest of each projection.
fn plan_layer_embedding_low(
    plan: &mut MemoryPlan,
    arena: &mut Arena,
    ranks: &[u32; Projection::ALL.len()],
    rows: u32,
) -> Option<Matrix> {
    let rank = ranks[Projection::LayerEmbedding as usize];
    (rank > 0).then(|| arena.matrix(plan, "x A^T of layers' embeddings", rows, rank, &[whole_step()]))
}

/// Plans the results of a layer's experts, of which gate and up are those of `staging` where there is one.
fn plan_experts(
    plan: &mut MemoryPlan,
    storage: &mut Storage,
    network: &Network,
    rows: u32,
    staging: Option<&LayerActivations>,
) -> Option<ExpertActivations> {
    let experts = network.config.experts.as_ref()?;
    let lifetime = through(Phase::ProjectGateUp, Phase::GateUpBackward);
    let (choice, inner) = (experts.choice(), experts.intermediate_size as u32);
    let [gate, up] = match staging.and_then(|staging| staging.experts) {
        Some(ExpertActivations { gate, up, .. }) => [gate, up],
        None => ["experts' gate", "experts' up"]
            .map(|label| storage.matrix(plan, label, [choice.slots(rows), inner], lifetime.clone())),
    };
    let probabilities = storage.matrix(plan, "experts' probabilities", [rows, choice.experts], lifetime.clone());
    let bytes = Tables::bytes(choice, rows);
    let [chosen, weights, slots, pairs, tiles] =
        bytes.map(|bytes| storage.alloc(plan, "experts of each row", bytes, lifetime.clone()));
    let tables = Tables { chosen, weights, slots, pairs, tiles };
    Some(ExpertActivations { probabilities, tables, gate, up })
}

/// Plans the activations of a gated delta rule in `storage`. Those that may be stored in bf16 are `staging`'s, where there is one.
fn plan_linear(
    plan: &mut MemoryPlan,
    storage: &mut Storage,
    of: &LinearAttention,
    rows: u32,
    staging: Option<&LinearActivations>,
) -> LinearActivations {
    use Phase::*;
    let [conv, values, heads] = [of.conv_width(), of.value_width(), of.value_heads].map(|n| n as u32);
    let mut matrix = |label, cols, first, last| storage.matrix(plan, label, [rows, cols], through(first, last));
    let [qkv, gate, out] = match staging {
        Some(LinearActivations { qkv, gate, out, .. }) => [*qkv, *gate, *out],
        None => [
            matrix("q, k, v before their convolution", conv, ProjectQkv, HeadNormBackward),
            matrix("gates of a delta rule", values, ProjectQkv, AttentionBackward),
            matrix("result of a delta rule", values, Attention, HeadNormBackward),
        ],
    };
    let [beta, decay] = ["beta", "decay"].map(|label| matrix(label, heads, ProjectQkv, AttentionBackward));
    LinearActivations { qkv, gate, beta, decay, out }
}

/// Plans [`Workspace::linear`]; `None` where no layer has a gated delta rule.
fn plan_linear_workspace(
    plan: &mut MemoryPlan,
    arena: &mut Arena,
    config: &ModelConfig,
    rows: u32,
) -> Option<LinearWorkspace> {
    use Phase::*;
    let of = config.linear_attention.as_ref()?;
    let mixed = [through(ProjectQkv, Attention), through(AttentionBackward, AttentionBackward)];
    let normed = [through(Attention, ProjectO), through(OBackward, OBackward)];
    let factors = [through(Attention, Attention), through(AttentionBackward, AttentionBackward)];
    Some(LinearWorkspace {
        mixed: arena.matrix(plan, "q, k, v of a delta rule", rows, of.conv_width() as u32, &mixed),
        normed: arena.matrix(plan, "gated result of a delta rule", rows, of.value_width() as u32, &normed),
        factors: arena.matrix(plan, "factors of a delta rule", rows, shape(of).factor_cols(), &factors),
        pairs: arena.alloc(plan, "products within a delta rule's chunks", shape(of).pairs_bytes(rows), &factors),
    })
}

/// Plans [`BackwardWorkspace::linear`]; `None` where no layer has a gated delta rule.
fn plan_linear_gradients(
    plan: &mut MemoryPlan,
    arena: &mut Arena,
    config: &ModelConfig,
    rows: u32,
) -> Option<LinearGradients> {
    use Phase::*;
    let of = config.linear_attention.as_ref()?;
    let [conv, values, heads] = [of.conv_width(), of.value_width(), of.value_heads].map(|n| n as u32);
    let outputs = [through(AttentionBackward, QkvBackward)];
    let label = "gradients of a delta rule's inputs";
    let of_values = arena.contiguous_matrices(plan, label, rows, [conv, values], &outputs);
    let mixed = [through(AttentionBackward, HeadNormBackward)];
    let mixed = arena.matrix(plan, "gradient of q, k, v", rows, conv, &mixed);
    let normed = [through(OBackward, HeadNormBackward)];
    let normed = arena.matrix(plan, "gradient of a delta rule's gated result", rows, values, &normed);
    let now = [through(AttentionBackward, AttentionBackward)];
    let out = arena.matrix(plan, "gradient of a delta rule's result", rows, values, &now);
    let of_heads = arena.contiguous_matrices(plan, "gradients of beta and decay", rows, [heads; 2], &outputs);
    let through_heads = [through(QkvBackward, QkvBackward)];
    let hidden = config.hidden_size as u32;
    let input = arena.matrix(plan, "gradient through beta and decay", rows, hidden, &through_heads);
    let scratch = arena.alloc(plan, "scratch of a delta rule", shape(of).scratch_bytes(rows), &now);
    Some(LinearGradients { normed, out, mixed, values: of_values, heads: of_heads, input, scratch })
}

fn plan_expert_workspace(
    plan: &mut MemoryPlan,
    arena: &mut Arena,
    config: &ModelConfig,
    rows: u32,
) -> Option<ExpertWorkspace> {
    use Phase::*;
    let experts = config.experts.as_ref()?;
    let choice = experts.choice();
    let slots = choice.slots(rows);
    let out = [through(ProjectDown, NextNorm), through(GateUpBackward, MiddleNormBackward)];
    let act = [through(Glu, ProjectDown), through(DownBackward, DownGradients)];
    let sorting = [through(ProjectGateUp, ProjectGateUp)];
    let backward = [through(DownBackward, MiddleNormBackward)];
    Some(ExpertWorkspace {
        out: arena.matrix(
            plan,
            "experts' outputs",
            slots,
            ExpertWorkspace::columns(config.hidden_size as u32, slots),
            &out,
        ),
        act: arena.matrix(plan, "experts' gated product", slots, experts.intermediate_size as u32, &act),
        counts: arena.alloc(plan, "sorting by expert", choice.count_bytes(), &sorting),
        shares: arena.alloc(plan, "gradients of experts' weights", 4 * u64::from(rows * choice.top), &backward),
    })
}

/// Plans [`Workspace::scaled`]: as wide as the widest output with magnitudes among the first, second and third projections of one input.
fn plan_scaled(
    plan: &mut MemoryPlan,
    arena: &mut Arena,
    network: &Network,
    adapter: &DeviceAdapter,
    sizes: TrainingSizes,
) -> Option<[Matrix; 3]> {
    use Projection::{ConvIn, ConvOut, Down, Gate, K, LayerEmbedding, LayerGate, LayerOut, O, Q, Up, V};
    use Projection::{LinearBeta, LinearDecay, LinearGate, LinearOut, LinearQkv};
    let width = |of: &[Projection]| {
        let modules = adapter.dora_modules().filter(|(_, projection, _)| of.contains(projection));
        modules.map(|(_, projection, _)| network.config.projection_shape(projection).0 as u32).max().unwrap_or(0)
    };
    dora::largest_rank(std::slice::from_ref(adapter))?;
    let first = match sizes.dropout {
        true => whole_step(),
        false => through(Phase::DownBackward, Phase::QkvBackward),
    };
    let first_of =
        [Q, O, Gate, Down, ConvIn, ConvOut, LayerEmbedding, LayerGate, LayerOut, LinearQkv, LinearBeta, LinearOut];
    let mut widths = [width(&first_of), width(&[K, Up, LinearGate, LinearDecay]), width(&[V])];
    if sizes.dropout {
        // In the forward pass, every output takes the first.
        widths[0] = widths.into_iter().max().unwrap_or(0);
    }
    Some(arena.contiguous_matrices(plan, "scaled gradients", sizes.rows, widths, &[first]))
}

/// The largest rank of each projection over the layers.
fn ranks(network: &Network, adapter: Option<&DeviceAdapter>) -> [u32; Projection::ALL.len()] {
    Projection::ALL.map(|projection| {
        let layers = 0..network.config.num_layers;
        let rank = |layer| Some(adapter?.module(layer, projection).filter(|module| module.is_adapted())?.rank);
        layers.filter_map(rank).max().unwrap_or(0)
    })
}

/// Bytes of the scratch buffers that the operations share: (weight panel, partial sums). `rows` go through the layers at a time, and
/// `head_rows` through the head.
pub fn scratch_bytes(
    network: &Network,
    adapters: &[DeviceAdapter],
    rows: u32,
    head_rows: u32,
    capabilities: &Capabilities,
) -> (u64, u64) {
    let rank = adapters.iter().map(DeviceAdapter::largest_rank).max().unwrap_or(0);
    // DoRA multiplies the rows of A too.
    let rows = rows.max(dora::largest_rank(adapters).unwrap_or(0));
    let of = |w: &Weight, rank, rows| WorkspaceQuery {
        out_features: w.panels[0].rows,
        in_features: w.in_features,
        rank,
        rows,
    };
    let vocabulary = [network.head(), &network.embedding];
    let of_base = |w| of(w, rank, if vocabulary.iter().any(|v| std::ptr::eq(*v, w)) { head_rows } else { rows });
    // Experts have kernels of their own.
    let of_linear = network.weights().filter(|(spec, _)| !matches!(spec.kind, TensorKind::Expert(..)));
    let queries = of_linear.map(|(_, w)| of_base(w));
    let modules = || adapters.iter().flat_map(DeviceAdapter::modules);
    let is_head = |m: &DeviceModule| adapters.iter().filter_map(DeviceAdapter::head).any(|head| std::ptr::eq(head, m));
    let factor_queries = modules().flat_map(|m| {
        let rows = if is_head(m) { head_rows } else { rows };
        // Tables and vectors are not multiplied.
        let multiplied = |factor: &&DeviceFactor| {
            !matches!(factor.factor, Factor::EmbeddingA | Factor::Magnitude | Factor::LoraBias | Factor::Bias)
                && (is_head(m) || factor.factor != Factor::Whole)
        };
        m.factors.iter().filter(multiplied).map(move |factor| of(&factor.weight, 0, rows))
    });
    let of_projection = |layer: &Layer, projection| Some(of(layer.find_projection(projection)?, rank, rows));
    // Cooperative matrices take the gradients of all layers that read one input at once, as rows in f16.
    let sums = network.layers.iter().filter(|_| capabilities.cooperative.is_some()).flat_map(|layer| {
        let [q, k, v] = Projection::OF_ATTENTION_INPUT.map(|p| of_projection(layer, p));
        let [gate, up] = Projection::OF_FEED_FORWARD_INPUT.map(|p| of_projection(layer, p));
        let attention = q.zip(k).zip(v).map(|((q, k), v)| WorkspaceQuery::grouped([q, k, v]));
        let feed_forward = gate.zip(up).map(|(gate, up)| WorkspaceQuery::grouped([gate, up]));
        let pair = |[a, b]: [Projection; 2]| {
            Some(WorkspaceQuery::grouped([of_projection(layer, a)?, of_projection(layer, b)?]))
        };
        let linear = [Projection::OF_LINEAR_VALUES, Projection::OF_LINEAR_HEADS].map(pair);
        [attention, feed_forward].into_iter().chain(linear).flatten()
    });
    let panel = linear::panel_bytes(capabilities, queries.chain(factor_queries).chain(sums));
    let partials = modules()
        .flat_map(|m| {
            let rows = if is_head(m) { head_rows } else { rows };
            m.factors.iter().map(move |factor| match factor.factor {
                Factor::A => lora_gradient::partial_bytes(m.rank, factor.weight.in_features, rows),
                Factor::B | Factor::EmbeddingB => {
                    lora_gradient::partial_bytes(m.rank, factor.weight.out_features, rows)
                }
                Factor::Magnitude => lora_gradient::partial_bytes(1, factor.weight.out_features, rows),
                Factor::LoraBias | Factor::Bias => column_gradient::scratch_bytes(factor.weight.out_features),
                Factor::EmbeddingA | Factor::Whole | Factor::Rows => 0,
            })
        })
        .chain([linear::partials_bytes(capabilities)])
        .max()
        .unwrap_or(16);
    (panel, partials)
}
