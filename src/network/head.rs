//! The head: from the final norm's output to logits, and back. Training, comparisons of logits and generation all record it here, so
//! that a cap or a scale of the logits has one place, and so has what an adapter changes of it.

use std::borrow::Cow;

use super::adapter::DeviceAdapter;
use super::base::Network;
use super::decoder::Dropout;
use super::dora::columns;
use super::trained::Trained;
use crate::gpu::{Arena, Lifetime, Matrix, MemoryPlan, Recorder};
use crate::lora::factors::Factor;
use crate::ops::cross_entropy::{self, LogitRange};
use crate::ops::linear::{self, LowRank};
use crate::ops::weight::Weight;
use crate::ops::{column_gradient, columns as few_columns, dropout, lora_gradient, weight_gradient};

/// Buffers for what adapters change of the head, for the rows that go through it at a time.
#[derive(Clone, Copy, Debug)]
pub struct HeadWorkspace {
    /// `x A^T`, and `dy B`.
    low: Option<[Matrix; 2]>,
    /// Logits of the tokens whose rows the adapter has.
    few: Option<Matrix>,
    /// The input of A with dropout applied, then its gradient.
    dropped: Option<Matrix>,
}

impl HeadWorkspace {
    /// Plans the buffers for `rows` rows, for the largest of `adapters`.
    pub fn plan(
        plan: &mut MemoryPlan,
        arena: &mut Arena,
        (network, adapters): (&Network, &[DeviceAdapter]),
        rows: u32,
        dropout: bool,
        lifetime: &Lifetime,
    ) -> Self {
        let ranks = adapters.iter().filter_map(DeviceAdapter::head).filter(|module| module.is_adapted());
        let rank = ranks.map(|module| module.rank).max();
        let few = adapters.iter().filter_map(DeviceAdapter::head_rows).map(|rows| rows.factor.weight.out_features);
        let mut matrix = |label: &str, cols| arena.matrix(plan, label, rows, cols, std::slice::from_ref(lifetime));
        Self {
            few: few.max().map(|tokens| matrix("logits of trained tokens", tokens)),
            low: rank.map(|rank| [matrix("head's x A^T", rank), matrix("head's dy B", rank)]),
            dropped: rank
                .filter(|_| dropout)
                .map(|_| matrix("head's dropped input", network.config.hidden_size as u32)),
        }
    }
}

/// The head as a pass takes it.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// The base.
    pub network: &'a Network,
    /// The adapter; `None` takes the base alone.
    pub adapter: Option<&'a DeviceAdapter>,
    /// The base's own gradients, where it is trained.
    pub trained: Option<&'a Trained>,
    /// Buffers for what the adapter changes.
    pub workspace: &'a HeadWorkspace,
    /// Dropout of the input of A.
    pub dropout: Option<Dropout>,
    /// A number that no other chunk of rows of the pass has, so that their dropout masks differ.
    pub chunk: u32,
}

/// The factor and the bound of the network's logits.
pub fn range(network: &Network) -> LogitRange {
    LogitRange { scale: network.config.logit_scale, cap: network.config.final_softcap }
}

impl Head<'_> {
    /// The matrix from hidden states to logits: the adapter's own, or the base's.
    fn weight(&self) -> Cow<'_, Weight> {
        let module = self.adapter.and_then(DeviceAdapter::head);
        let whole = module.and_then(|module| module.factor(Factor::Whole));
        let weight = whole.map_or(self.network.head(), |factor| &factor.weight);
        match module.and_then(|module| module.bias_sum) {
            Some(bias) => Cow::Owned(Weight { bias: Some(bias), ..weight.clone() }),
            None => Cow::Borrowed(weight),
        }
    }

    fn mask(&self, site: u32, dropout: Dropout) -> dropout::Mask {
        // Sites of modules stay far below the chunks'.
        dropout::Mask { site: site ^ (self.chunk + 1) << 16, p: dropout.p, seed: dropout.seed }
    }

    /// The input of A.
    fn dropped(&self, rec: &mut Recorder, site: u32, x: Matrix) -> Matrix {
        let Some((dropout, place)) = self.dropout.zip(self.workspace.dropped) else { return x };
        let dropped = place.first_rows(x.rows);
        dropout::forward(rec, x, dropped, self.mask(site, dropout));
        dropped
    }

    /// Logits `[rows, vocabulary]` of the final hidden states `[rows, hidden]`.
    pub fn forward(&self, rec: &mut Recorder, hidden: Matrix, logits: Matrix) {
        self.product(rec, hidden, logits);
        cross_entropy::apply_range(rec, logits, range(self.network));
    }

    /// The logits of [`Self::forward`] before their factor and bound, which the loss applies by itself.
    pub fn product(&self, rec: &mut Recorder, hidden: Matrix, logits: Matrix) {
        let module = self.adapter.and_then(DeviceAdapter::head).filter(|module| module.is_adapted());
        let low = module.zip(self.workspace.low).map(|(module, [low, _])| {
            let product = columns(low.first_rows(hidden.rows), module.rank);
            let x = self.dropped(rec, module.site, hidden);
            linear::forward(rec, x, &module[Factor::A].weight, None, product, false);
            LowRank { product, factor: module[Factor::B].values, scale: module.scale }
        });
        let weight = self.weight();
        // A vocabulary that grew has columns beyond the base's head, which only the adapter's own fills.
        let known = Matrix { cols: weight.out_features, ..logits };
        linear::forward(rec, hidden, &weight, low, known, false);
        if let Some((rows, few)) = self.adapter.and_then(DeviceAdapter::head_rows).zip(self.workspace.few) {
            let few = columns(few.first_rows(hidden.rows), rows.factor.weight.out_features);
            linear::forward(rec, hidden, &rows.factor.weight, None, few, false);
            few_columns::put(rec, few, rows.tokens, logits);
        }
    }

    /// Replaces the final hidden states by their gradient, given that of [`Self::product`]. The gradients of what is trained are added up
    /// first, since they read the hidden states.
    pub fn backward_in_place(&self, rec: &mut Recorder, d_logits: Matrix, hidden: Matrix) {
        if let Some(trained) = self.trained {
            weight_gradient::add(rec, d_logits, hidden, self.network.head(), |data| trained.gradient(data));
        }
        let few = self.adapter.and_then(DeviceAdapter::head_rows).zip(self.workspace.few).map(|(rows, few)| {
            let few = columns(few.first_rows(hidden.rows), rows.factor.weight.out_features);
            few_columns::take(rec, few, rows.tokens, d_logits);
            weight_gradient::add(rec, few, hidden, &rows.factor.weight, |data| rows.factor.gradient_of(data));
            (rows, few)
        });
        let module = self.adapter.and_then(DeviceAdapter::head);
        if let Some(whole) = module.and_then(|module| module.factor(Factor::Whole)) {
            weight_gradient::add(rec, d_logits, hidden, &whole.weight, |data| whole.gradient_of(data));
        }
        let adapted = module.filter(|module| module.is_adapted()).zip(self.workspace.low);
        let low = adapted.map(|(module, [xa, dyb])| {
            let [xa, dyb] = [xa, dyb].map(|low| columns(low.first_rows(hidden.rows), module.rank));
            let (a, b) = (&module[Factor::A], &module[Factor::B]);
            linear::input_gradient(rec, d_logits, &b.weight, None, dyb, false);
            let x = self.dropped(rec, module.site, hidden);
            if let (Some(da), Some(db)) = (a.gradient, b.gradient) {
                lora_gradient::lora_a(rec, dyb, x, module.scale, da);
                lora_gradient::lora_b(rec, xa, d_logits, module.scale, db);
            }
            if let Some(gradient) = module.factor(Factor::LoraBias).and_then(|bias| bias.gradient) {
                column_gradient::scaled_bias(rec, d_logits, module.scale, gradient);
            }
            (module, LowRank { product: dyb, factor: a.values, scale: module.scale })
        });
        let dropout = self.dropout.zip(self.workspace.dropped);
        let term = low.map(|(_, low)| low).filter(|_| dropout.is_none());
        let weight = self.weight();
        let known = Matrix { cols: weight.out_features, ..d_logits };
        linear::input_gradient(rec, known, &weight, term, hidden, false);
        if let (Some((dropout, place)), Some((module, low))) = (dropout, low) {
            let term = place.first_rows(hidden.rows);
            linear::input_gradient(rec, low.product, &module[Factor::A].weight, None, term, false);
            dropout::backward_add(rec, term, hidden, self.mask(module.site, dropout), module.scale);
        }
        if let Some((rows, few)) = few {
            linear::input_gradient(rec, few, &rows.factor.weight, None, hidden, true);
        }
    }
}
