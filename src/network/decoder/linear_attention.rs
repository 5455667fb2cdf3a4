//! Layers with a gated delta rule in place of attention, as Qwen3.5 has them: `linear_attention` among its kinds of layers.
//!
//! Queries, keys and values of a row go through a short convolution, then through the rule, whose state is all that it keeps of earlier
//! rows. The result goes through a norm over each head and is multiplied by the SiLU of its gates. [`crate::ops::delta_rule`] has the
//! formulas.

use super::{LayerBackward, LayerCache, Pass};
use crate::gpu::{Matrix, Recorder};
use crate::model::modules::{LinearPart, Projection};
use crate::network::activations::LayerActivations;
use crate::network::linear_attention::{LinearActivations, LinearGradients, LinearWorkspace, shape};
use crate::ops::add;
use crate::ops::causal_conv::{self, Convolution};
use crate::ops::delta_rule::{self, Operands};
use crate::ops::gated_norm::{self, GatedNorm};

/// The operands of a layer's gated delta rule.
pub(super) struct Linear {
    acts: LinearActivations,
    workspace: LinearWorkspace,
    convolution: Convolution,
    rule: Operands,
    norm: GatedNorm,
}

impl Pass<'_> {
    /// The operands of a layer with a gated delta rule.
    pub(super) fn linear(&self, layer: usize, acts: &LayerActivations) -> Option<Linear> {
        let of = self.network.config.linear_attention.as_ref()?;
        let part = |part| self.network.layers[layer].linear_part(part);
        let (acts, workspace) = (acts.linear?, self.activations.workspace.linear?.first_rows(self.rows));
        let weights = part(LinearPart::Convolution)?;
        let positions = self.inputs.positions;
        let rule = Operands {
            shape: shape(of),
            positions,
            qkv: workspace.mixed,
            a: acts.decay,
            b: acts.beta,
            a_log: part(LinearPart::DecayLog)?,
            dt_bias: part(LinearPart::StepBias)?,
            factors: workspace.factors,
            pairs: workspace.pairs,
        };
        let convolution = Convolution { positions, weights, taps: of.taps as u32, inputs: acts.qkv };
        let norm = GatedNorm {
            heads: of.value_heads as u32,
            eps: self.network.config.rms_norm_eps,
            x: acts.out,
            gain: part(LinearPart::Norm)?,
            z: acts.gate,
        };
        Some(Linear { acts, workspace, convolution, rule, norm })
    }

    /// Records a gated delta rule with its projections, from the layer's normed input to the output of the last of them.
    pub(super) fn linear_forward(
        &self,
        rec: &mut Recorder,
        index: usize,
        input: Matrix,
        (layer, linear): (&LayerActivations, &Linear),
        out: Matrix,
    ) {
        use Projection::{LinearBeta, LinearDecay, LinearGate, LinearOut, LinearQkv};
        let Linear { acts, workspace, .. } = linear;
        let outputs =
            [(LinearQkv, acts.qkv), (LinearGate, acts.gate), (LinearBeta, acts.beta), (LinearDecay, acts.decay)];
        for (projection, y) in outputs {
            self.project(rec, index, projection, input, layer, y);
        }
        // A pass of several texts has no such layers.
        let state = match self.texts.first().map(|text| text.cache.layers[index]) {
            Some(LayerCache::Linear { convolution, rule }) => Some((convolution, rule)),
            _ => None,
        };
        causal_conv::forward(rec, &linear.convolution, state.map(|(convolution, _)| convolution), workspace.mixed);
        if let Some((convolution, _)) = state {
            causal_conv::keep(rec, &linear.convolution, convolution);
        }
        delta_rule::forward(rec, &linear.rule, state.map(|(_, rule)| rule), acts.out);
        gated_norm::forward(rec, &linear.norm, workspace.normed);
        self.project(rec, index, LinearOut, workspace.normed, layer, out);
    }

    /// Records the backward pass of [`Self::linear_forward`] from the gradient of its output.
    pub(super) fn linear_backward(
        &self,
        rec: &mut Recorder,
        pass: LayerBackward,
        linear: &Linear,
        d_output: Matrix,
        lowest: bool,
    ) {
        use Projection::{LinearBeta, LinearDecay, LinearGate, LinearOut, LinearQkv};
        let LayerBackward { index, ws, .. } = pass;
        let Some(gradients) = ws.linear else { return };
        let Linear { workspace, convolution, rule, norm, .. } = linear;
        let LinearGradients { values: [d_qkv, d_gate], heads: [d_beta, d_decay], .. } = gradients;

        let out = self.projection_gradient(rec, pass, LinearOut, d_output, 0);
        self.input_gradient(rec, index, &[out], gradients.normed);
        if self.trains(index, &[LinearOut]) {
            // The normed result is not kept.
            gated_norm::forward(rec, norm, workspace.normed);
        }
        self.parameter_gradients(rec, pass, workspace.normed, out);
        let inputs = [LinearQkv, LinearGate, LinearBeta, LinearDecay];
        if lowest && !self.trains(index, &inputs) {
            return;
        }
        gated_norm::backward(rec, norm, gradients.normed, gradients.out, d_gate);
        // Queries, keys and values are not kept.
        causal_conv::forward(rec, convolution, None, workspace.mixed);
        let of_rule = delta_rule::Gradients {
            dout: gradients.out,
            scratch: gradients.scratch,
            dqkv: gradients.mixed,
            da: d_decay,
            db: d_beta,
            of_vectors: self.trained.map(|trained| [rule.a_log, rule.dt_bias].map(|vector| trained.gradient(vector))),
        };
        delta_rule::backward(rec, rule, &of_rule);
        causal_conv::backward(rec, convolution, gradients.mixed, d_qkv);
        if let Some((trained, terms)) = self.trained.and_then(|own| Some((own, own.convolution_terms?))) {
            let (terms, gradient) = (terms.first_rows(self.rows), trained.gradient(convolution.weights));
            causal_conv::weight_gradient(rec, convolution, gradients.mixed, terms, gradient);
            let gradient = trained.gradient(norm.gain);
            gated_norm::gain_gradient(rec, norm, gradients.normed, trained.row_scales, gradient);
        }

        let (input_gain, hidden) = (self.input_gain(index), self.hidden(index));
        let mut input = self.block_input(input_gain, hidden);
        if self.trains(index, &inputs) {
            input = self.norm_input(rec, input_gain, hidden);
        }
        let [d_norm, d_rest] = [ws.d_norm, gradients.input].map(|d| (!lowest).then_some(d));
        self.projections_backward(rec, pass, [(LinearQkv, d_qkv), (LinearGate, d_gate)], input, d_norm);
        self.projections_backward(rec, pass, [(LinearBeta, d_beta), (LinearDecay, d_decay)], input, d_rest);
        if !lowest {
            add::add(rec, gradients.input, ws.d_norm);
            self.block_input_backward(rec, input_gain, hidden, ws);
        }
    }
}
