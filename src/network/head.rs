//! The head: from the final norm's output to logits, and back. Training, comparisons of logits and generation all record it here, so
//! that a cap or a scale of the logits has one place.

use super::base::Network;
use super::trained::Trained;
use crate::gpu::{Matrix, Recorder};
use crate::ops::cross_entropy::{self, LogitRange};
use crate::ops::{linear, weight_gradient};

/// The factor and the bound of the network's logits.
pub fn range(network: &Network) -> LogitRange {
    LogitRange { scale: network.config.logit_scale, cap: network.config.final_softcap }
}

/// Logits `[rows, vocabulary]` of the final hidden states `[rows, hidden]`.
pub fn forward(rec: &mut Recorder, network: &Network, hidden: Matrix, logits: Matrix) {
    product(rec, network, hidden, logits);
    cross_entropy::apply_range(rec, logits, range(network));
}

/// The logits of [`forward`] before their factor and bound, which the loss applies by itself.
pub fn product(rec: &mut Recorder, network: &Network, hidden: Matrix, logits: Matrix) {
    linear::forward(rec, hidden, network.head(), None, logits, false);
}

/// Replaces the final hidden states by their gradient, given that of [`product`]. Where the base is trained, the head's own gradient
/// is added up first, since it reads the hidden states.
pub fn backward_in_place(
    rec: &mut Recorder,
    network: &Network,
    trained: Option<&Trained>,
    d_logits: Matrix,
    hidden: Matrix,
) {
    if let Some(trained) = trained {
        weight_gradient::add(rec, d_logits, hidden, network.head(), |data| trained.gradient(data));
    }
    linear::input_gradient(rec, d_logits, network.head(), None, hidden, false);
}
