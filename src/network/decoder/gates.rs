//! Gates on the output of attention, as Qwen3.5 has them: the queries' projection has the gates beside the queries, head by head, and the
//! output projection reads the result of attention times the sigmoid of its gates.

use super::Pass;
use crate::gpu::{Matrix, Recorder};
use crate::model::modules::Projection;
use crate::network::activations::{AttentionActivations, BackwardWorkspace, LayerActivations};
use crate::ops::output_gate;

impl Pass<'_> {
    /// Projects the queries into `q`, and the gates to their place where there are any.
    pub(super) fn project_queries(
        &self,
        rec: &mut Recorder,
        index: usize,
        input: Matrix,
        (layer, acts): (&LayerActivations, &AttentionActivations),
        q: Matrix,
    ) {
        let Some((gate, joint)) = acts.gate.zip(self.activations.workspace.queries_and_gates) else {
            return self.project(rec, index, Projection::Q, input, layer, q);
        };
        let joint = joint.first_rows(self.rows);
        self.project(rec, index, Projection::Q, input, layer, joint);
        output_gate::split(rec, joint, self.shape(index).heads, q, gate);
    }

    /// The input of the output projection: the result of attention, times its gates where there are any.
    pub(super) fn gated_attention(&self, rec: &mut Recorder, acts: &AttentionActivations) -> Matrix {
        let Some((gate, gated)) = acts.gate.zip(self.activations.workspace.gated) else { return acts.out };
        let gated = gated.first_rows(self.rows);
        output_gate::forward(rec, gate, acts.out, gated);
        gated
    }

    /// The gradient of what the output projection reads becomes that of the result of attention, and the gates become their gradient.
    pub(super) fn gates_backward(&self, rec: &mut Recorder, acts: &AttentionActivations, ws: &BackwardWorkspace) {
        if let Some(gate) = acts.gate {
            output_gate::backward_in_place(rec, gate, acts.out, ws.d_attention);
        }
    }

    /// The gradient of the queries' projection from that of the queries.
    pub(super) fn queries_gradient(
        &self,
        rec: &mut Recorder,
        index: usize,
        d_q: Matrix,
        (acts, ws): (&AttentionActivations, &BackwardWorkspace),
    ) -> Matrix {
        let Some((d_gate, joint)) = acts.gate.zip(ws.d_queries_and_gates) else { return d_q };
        output_gate::merge(rec, d_q, d_gate, self.shape(index).heads, joint);
        joint
    }
}
