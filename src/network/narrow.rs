//! Buffers that layers of several sizes share, as wide as the matrices of one of them: Gemma 4 has two sizes of heads, two of feed-forward
//! blocks, and layers that read the keys and values of others.

use super::activations::{Activations, BackwardWorkspace, LayerActivations, SharedKeys};
use super::base::Network;
use super::dora::columns;
use crate::model::config::ModelConfig;
use crate::model::modules::Projection;

/// The activations of a layer, as wide as its own matrices, with the keys and values that it shares.
pub fn narrowed(
    network: &Network,
    activations: &Activations,
    layer: usize,
    mut acts: LayerActivations,
) -> LayerActivations {
    let config = &network.config;
    if config.gemma4.is_none() {
        return acts;
    }
    let width = |projection| config.layer_shape(layer, projection).0 as u32;
    let [q, kv] = [Projection::Q, Projection::K].map(width);
    let rows = acts.middle.rows;
    if let Some(of) = &mut acts.attention {
        (of.q, of.out) = (columns(of.q, q), columns(of.out, q));
        of.raw_qk = of.raw_qk.map(|[raw_q, raw_k]| [columns(raw_q, q), columns(raw_k, kv)]);
        of.raw_v = of.raw_v.map(|raw| columns(raw, kv));
        [of.k, of.v] = match shared_keys(config, activations, layer) {
            Some(shared) => shared.kv.map(|m| m.first_rows(rows)),
            None => [columns(of.k, kv), columns(of.v, kv)],
        };
    }
    acts.gate_up = acts.gate_up.map(|both| both.map(|m| columns(m, width(Projection::Gate))));
    acts
}

/// The buffers of a layer's gradients, as wide as its own matrices.
pub fn narrowed_gradients(config: &ModelConfig, layer: usize, ws: BackwardWorkspace) -> BackwardWorkspace {
    if config.gemma4.is_none() {
        return ws;
    }
    let [q, kv] = [Projection::Q, Projection::K].map(|projection| config.layer_shape(layer, projection).0 as u32);
    BackwardWorkspace {
        d_attention: columns(ws.d_attention, q),
        d_q: columns(ws.d_q, q),
        d_k: columns(ws.d_k, kv),
        d_v: columns(ws.d_v, kv),
        d_raw_qk: ws.d_raw_qk.map(|[d_q, d_k]| [columns(d_q, q), columns(d_k, kv)]),
        d_raw_v: ws.d_raw_v.map(|d_v| columns(d_v, kv)),
        ..ws
    }
}

/// The keys and values that a layer reads or computes for others, where there are others.
pub fn shared_keys<'a>(config: &ModelConfig, activations: &'a Activations, layer: usize) -> Option<&'a SharedKeys> {
    activations.shared.iter().find(|shared| shared.layer == config.kv_source(layer))
}
