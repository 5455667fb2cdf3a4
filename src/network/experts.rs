//! Layers with experts in place of a feed-forward block: their weights, their buffers, and their passes forward and backward. Router and
//! experts are frozen; the gradient of their input goes through the experts and through the router's weights.

use crate::gpu::{Category, Matrix, MemoryPlan, Recorder, View, round_up};
use crate::model::config::ModelConfig;
use crate::model::experts::Experts;
use crate::model::modules::{EXPERT_BIAS, Projection, ROUTER};
use crate::ops::experts::{self, Choice, Source, Tables};
use crate::ops::glu::{self, Activation};
use crate::ops::linear;
use crate::ops::weight::Weight;
use crate::quant::format::Storage;

/// The weights of a layer's experts.
#[derive(Clone, Debug)]
pub struct ExpertLayer {
    /// The matrix from rows to logits of the experts, `[experts, hidden]`.
    pub router: Weight,
    /// The bias of each expert in the choice, f32 `[experts]`, where the model has one.
    pub bias: Option<View>,
    /// Gate, up and down of each expert, in the order of [`Projection::OF_EXPERTS`].
    projections: [Vec<Weight>; Projection::OF_EXPERTS.len()],
    /// The biases of gate, up and down of all experts, f32 `[experts][out_features]`, where the model has them.
    biases: Option<[View; Projection::OF_EXPERTS.len()]>,
}

impl ExpertLayer {
    /// Plans the weights. `router` and `experts` tell the storage of the router and of an expert's projection.
    pub(super) fn plan(
        plan: &mut MemoryPlan,
        config: &ModelConfig,
        experts: &Experts,
        router: Storage,
        of_experts: impl Fn(Projection) -> Storage,
        max_binding_bytes: u64,
    ) -> Self {
        let shape = [experts.count, config.hidden_size].map(|n| n as u32);
        let biases = experts.with_biases.then(|| {
            Projection::OF_EXPERTS.map(|projection| {
                let length = experts.count * config.expert_shape(experts, projection).0;
                plan.alloc(Category::Weights, format!("experts' {} biases", projection.name()), 4 * length as u64)
            })
        });
        Self {
            router: Weight::plan(plan, ROUTER, router, shape, experts.with_biases, u64::MAX),
            biases,
            bias: experts.biased.then(|| plan.alloc(Category::Weights, EXPERT_BIAS, 4 * experts.count as u64)),
            projections: Projection::OF_EXPERTS.map(|projection| {
                let (rows, columns) = config.expert_shape(experts, projection);
                let label = format!("experts' {}", projection.name());
                let shape = [rows, columns].map(|n| n as u32);
                Weight::plan_stack(plan, &label, of_experts(projection), shape, experts.count, max_binding_bytes)
            }),
        }
    }

    /// The matrices of a projection, one for each expert.
    pub fn projection(&self, projection: Projection) -> &[Weight] {
        place(projection).map_or(&[], |at| &self.projections[at])
    }

    /// The biases of a projection of all experts, f32 `[experts][out_features]`; None where the model has none.
    pub fn biases(&self, projection: Projection) -> Option<View> {
        Some(self.biases.as_ref()?[place(projection)?])
    }

    /// The matrices of a projection and their biases, as products take them.
    fn affine(&self, projection: Projection) -> (&[Weight], Option<View>) {
        (self.projection(projection), self.biases(projection))
    }
}

fn place(projection: Projection) -> Option<usize> {
    Projection::OF_EXPERTS.iter().position(|of| *of == projection)
}

/// The results of a layer's experts that its backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct ExpertActivations {
    /// Scores of the experts, `[rows, experts]`; the backward pass puts the gradient of the logits in their place.
    pub probabilities: Matrix,
    /// The experts of each row, and the slots of their pairs.
    pub tables: Tables,
    /// Output of gate, `[slots, inner]`; the backward pass puts its gradient in its place.
    pub gate: Matrix,
    /// Output of up, `[slots, inner]`; the backward pass puts its gradient in its place.
    pub up: Matrix,
}

/// The buffers of experts within one layer, which all layers share.
#[derive(Clone, Copy, Debug)]
pub struct ExpertWorkspace {
    /// `f(gate) * up`, then its gradient, `[slots, inner]`.
    pub act: Matrix,
    /// Columns of down's output, then of the gradient of an expert's input, `[slots, ExpertWorkspace::columns]`.
    pub out: Matrix,
    /// Scratch of sorting.
    pub counts: View,
    /// The gradient of each pair's weight.
    pub shares: View,
}

impl ExpertWorkspace {
    /// Columns of `out`: all of them, or as many as fit the smallest binding that WebGPU allows.
    pub(super) fn columns(hidden: u32, slots: u32) -> u32 {
        const BYTES: u32 = 128 << 20;
        let fitting = BYTES / 16 / slots.max(1) * 4;
        hidden.min(fitting.max(4))
    }
}

/// The experts of one layer in a pass of some rows.
#[derive(Clone, Copy)]
pub(super) struct Mixture<'a> {
    layer: &'a ExpertLayer,
    choice: Choice,
    activation: Activation,
    rows: u32,
    acts: ExpertActivations,
    workspace: ExpertWorkspace,
}

impl<'a> Mixture<'a> {
    /// The first rows of buffers that were planned for as many or more.
    pub(super) fn new(
        layer: &'a ExpertLayer,
        config: &ModelConfig,
        choice: Choice,
        rows: u32,
        (acts, workspace): (ExpertActivations, ExpertWorkspace),
    ) -> Self {
        let slots = choice.slots(rows);
        Self {
            layer,
            choice,
            activation: config.activation,
            rows,
            acts: ExpertActivations {
                probabilities: acts.probabilities.first_rows(rows),
                gate: acts.gate.first_rows(slots),
                up: acts.up.first_rows(slots),
                tables: acts.tables,
            },
            workspace: ExpertWorkspace {
                act: workspace.act.first_rows(slots),
                out: workspace.out.first_rows(slots),
                ..workspace
            },
        }
    }

    /// Records everything up to the inputs of down from the block's input x, `[rows, hidden]`.
    pub(super) fn forward_activations(&self, rec: &mut Recorder, x: Matrix) {
        let Self { choice, rows, acts, workspace, .. } = *self;
        let (of, tables) = ((choice, rows), &acts.tables);
        linear::forward(rec, x, &self.layer.router, None, acts.probabilities, false);
        experts::route(rec, acts.probabilities, choice, self.layer.bias, tables);
        experts::sort(rec, rows, choice, tables, workspace.counts);
        experts::forward(rec, (Source::Rows, x), self.layer.affine(Projection::Gate), of, tables, (acts.gate, 0));
        experts::forward(rec, (Source::Rows, x), self.layer.affine(Projection::Up), of, tables, (acts.up, 0));
        glu::forward(rec, self.activation, acts.gate, acts.up, workspace.act);
    }

    /// Records down and the weighted sum of each row's experts, `[rows, hidden]`.
    pub(super) fn forward_output(&self, rec: &mut Recorder, y: Matrix) {
        let Self { choice, rows, acts, workspace, .. } = *self;
        let down = self.layer.affine(Projection::Down);
        let act = (Source::Slots, workspace.act);
        for (part, first) in self.parts(y.cols) {
            experts::forward(rec, act, down, (choice, rows), &acts.tables, (part, first));
            experts::combine(rec, part, choice, &acts.tables, true, (y, first));
        }
    }

    /// The parts of a matrix of `cols` columns that go through `out` one after the other, with their first columns.
    fn parts(&self, cols: u32) -> impl Iterator<Item = (Matrix, u32)> {
        let out = self.workspace.out;
        (0..cols.div_ceil(out.cols)).map(move |part| {
            let first = part * out.cols;
            let cols = out.cols.min(cols - first);
            let ld = round_up(cols, 4);
            let bytes = 4 * u64::from(out.rows) * u64::from(ld);
            (Matrix { cols, ld, view: View { bytes, ..out.view }, ..out }, first)
        })
    }

    /// Records the gradient `dx` of the block's input from that of its output, both `[rows, hidden]`.
    pub(super) fn backward(&self, rec: &mut Recorder, dy: Matrix, dx: Matrix) {
        let Self { choice, rows, acts, workspace, .. } = *self;
        let ExpertWorkspace { act, shares, .. } = workspace;
        let (of, tables) = ((choice, rows), &acts.tables);
        let [gate, up, down] = Projection::OF_EXPERTS.map(|projection| self.layer.projection(projection));
        experts::input_gradient(rec, (Source::Rows, dy), down, of, tables, (act, 0), false);
        experts::glu_backward(rec, self.activation, [acts.gate, acts.up, act], of, tables, shares);
        if let Some(biases) = self.layer.biases(Projection::Down) {
            experts::bias_shares(rec, dy, biases, choice, tables, shares);
        }
        for (part, first) in self.parts(dx.cols) {
            experts::input_gradient(rec, (Source::Slots, acts.gate), gate, of, tables, (part, first), false);
            experts::input_gradient(rec, (Source::Slots, acts.up), up, of, tables, (part, first), true);
            experts::combine(rec, part, choice, tables, false, (dx, first));
        }
        experts::route_backward(rec, acts.probabilities, choice, tables, shares);
        linear::input_gradient(rec, acts.probabilities, &self.layer.router, None, dx, true);
    }
}
