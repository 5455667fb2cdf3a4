//! The device memory of generation, planned from sizes alone: base, any number of adapters, cache, workspace.

use crate::gpu::{Capabilities, Category, Ledger, Matrix, MemoryPlan, ProblemSize, Recorder, View, params_bytes};
use crate::lora::targets::LoraModule;
use crate::model::config::ModelConfig;
use crate::model::modules::Projection;
use crate::network::activations::{Activations, Inputs, Phase, scratch_bytes, through};
use crate::network::adapter::{AdapterSizes, DeviceAdapter};
use crate::network::base::BaseStorage;
use crate::network::decoder::{CachedRows, KvCache, LayerCache, Pass};
use crate::network::dora;
use crate::network::head::{Head, HeadWorkspace};
use crate::network::plan::{NetworkPlan, NetworkPlanner, max_binding};
use crate::ops::{linear, rows};
use crate::quant::format::Float;
use crate::setting::MAX_CONTEXT;
use crate::{Error, Result};

/// Default number of rows in one pass over a prompt. Each pass reads every weight once.
pub const DEFAULT_ROWS_PER_PASS: usize = 128;

/// The sizes and choices that determine a plan.
#[derive(Clone, Copy, Debug)]
pub struct PlanSettings {
    /// Storage of the base on the device.
    pub base: BaseStorage,
    /// Positions of the cache: the longest text including the prompt.
    pub max_positions: usize,
    /// Rows of one pass over a prompt; longer prompts take several passes.
    pub rows_per_pass: usize,
    /// Number of caches, each for one text: as many texts as grow by turns.
    pub caches: usize,
}

/// Shape of a recorded pass: its rows, its adapter, its caches, and whether it computes logits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PassShape {
    /// Tokens of the pass, at most [`GenerationPlan::rows_per_pass`].
    pub rows: u32,
    /// Index of the adapter; `None` is the base alone.
    pub adapter: Option<usize>,
    /// Indices of the caches that the pass reads and extends: one for all rows, or one for each row.
    pub caches: Vec<usize>,
    /// True if the pass ends with the logits of a row of each cache.
    pub logits: bool,
}

/// All buffers of generation; records its passes.
#[derive(Clone, Debug)]
pub struct GenerationPlan {
    /// Its uniforms are the dispatch parameters of the passes over prompts, and of the passes of one row.
    pub shared: NetworkPlan,
    /// The adapters, in the order in which they were given.
    pub adapters: Vec<DeviceAdapter>,
    /// Most texts that one pass continues by a token each. Their results have the bits that they have alone.
    pub together: usize,
    /// Rows whose logits are computed, u32.
    pub last_rows: View,
    /// In a pass over several texts: for each of them the place in its cache of its row, u32, and `u32::MAX` for the other rows.
    pub places: Vec<View>,
    /// Logits of the rows that `last_rows` names, `[together, vocabulary]`.
    pub logits: Matrix,
    /// Copy of `logits` that the host reads.
    pub logits_read: View,
    /// Rows of the largest pass; longer prompts take several.
    pub rows_per_pass: u32,
    caches: Vec<KvCache>,
    last_hidden: Matrix,
    head: HeadWorkspace,
}

impl GenerationPlan {
    /// Plans generation. `stored` returns the type of a tensor in the files; `adapters` holds the modules of each adapter.
    ///
    /// # Errors
    /// The context has no positions, or its cache does not fit in one binding of the device.
    pub fn new(
        capabilities: Capabilities,
        config: &ModelConfig,
        stored: impl Fn(&str) -> Float,
        adapters: &[&[LoraModule]],
        settings: &PlanSettings,
    ) -> Result<Self> {
        let max_binding = max_binding(&capabilities);
        let (positions, _) = cache_shape(config, settings.max_positions, max_binding)?;
        let mut planner = NetworkPlanner::new(capabilities, config, settings.base, stored, settings.max_positions);
        let NetworkPlanner { memory, arena, network, .. } = &mut planner;
        let rows_per_pass = (settings.rows_per_pass.clamp(1, settings.max_positions)) as u32;
        let sizes = AdapterSizes {
            rows: rows_per_pass as usize,
            training: None,
            loraplus: false,
            max_segment_bytes: max_binding,
        };
        let adapters: Vec<DeviceAdapter> =
            adapters.iter().map(|modules| DeviceAdapter::plan(memory, modules, config, sizes)).collect();
        let mut cached = |label, rows, width| memory.matrix(Category::KvCache, label, rows, width);
        let mut of_layer = |layer| {
            let mut convolved =
                |taps: usize, width| cached("state of a convolution", taps.max(2) as u32 - 1, width as u32);
            if let Some(of) = config.convolutions.as_ref().filter(|_| config.is_convolution(layer)) {
                return LayerCache::Convolution(convolved(of.taps, config.hidden_size));
            }
            if let Some(of) = config.linear_attention.as_ref().filter(|_| config.is_linear_attention(layer)) {
                let convolution = convolved(of.taps, of.conv_width());
                let rule = cached(
                    "state of a delta rule",
                    (of.value_heads * of.value_head_dim) as u32,
                    of.key_head_dim as u32,
                );
                return LayerCache::Linear { convolution, rule: rule.view };
            }
            let width = config.layer_shape(layer, Projection::K).0 as u32;
            LayerCache::Attention(["cached keys", "cached values"].map(|l| cached(l, positions, width)))
        };
        let mut cache = || {
            let mut layers: Vec<LayerCache> = Vec::with_capacity(config.num_layers);
            for layer in 0..config.num_layers {
                // Layers that share keys and values share their cache.
                let source = config.kv_source(layer);
                layers.push(if source == layer { of_layer(layer) } else { layers[source] });
            }
            KvCache { layers }
        };
        let caches: Vec<KvCache> = (0..settings.caches.max(1)).map(|_| cache()).collect();
        // The state of a convolution or a gated delta rule is that of one text.
        let most = if config.has_recurrent_layers() { 1 } else { linear::FEW_ROWS.min(rows_per_pass) as usize };
        let together = caches.len().min(most);
        let inputs = Inputs::plan(memory, config, rows_per_pass);
        let words = |memory: &mut MemoryPlan, label: &str| memory.alloc(Category::Uploads, label, 4 * together as u64);
        let last_rows = words(memory, "last rows");
        let of_each = if together > 1 { together } else { 0 };
        let places = (0..of_each).map(|_| words(memory, "places of rows")).collect();
        let activations = Activations::plan_inference(memory, arena, network, &adapters, rows_per_pass);
        let texts = together as u32;
        let scratch = scratch_bytes(network, &adapters, rows_per_pass, texts, &capabilities);
        let at_head = through(Phase::Logits, Phase::Logits);
        let head = HeadWorkspace::plan(memory, arena, (network, &adapters), texts, false, &at_head);
        let mut of_texts = |label: &str, width: usize| memory.matrix(Category::Workspace, label, texts, width as u32);
        let last_hidden = of_texts("hidden states of last rows", config.hidden_size);
        let logits = of_texts("logits", config.vocab_size);
        let logits_read = memory.alloc_readback("logits read-back", logits.view.bytes);
        let shared = planner.finish(inputs, activations, scratch);
        let mut plan = Self {
            shared,
            adapters,
            together,
            last_rows,
            places,
            logits,
            logits_read,
            rows_per_pass,
            caches,
            last_hidden,
            head,
        };
        // The longest lists are those of all rows, and of most texts: fewer of either never take more dispatches.
        let longest = |rows, texts| {
            let bytes = plan.lists_of(rows, texts).map(|list| params_bytes(&list.commands));
            bytes.max().unwrap_or(0)
        };
        let of_texts = if together > 1 { longest(texts, together) } else { 0 };
        let uniforms = [longest(rows_per_pass, 1).max(of_texts), longest(1, 1)];
        let setup = [plan.record_norms(), plan.record_factors()].map(|list| params_bytes(&list.commands));
        let uniforms = [uniforms[0].max(setup[0]).max(setup[1]), uniforms[1]];
        plan.shared.plan_uniforms(uniforms);
        Ok(plan)
    }

    /// Bytes by category.
    pub fn ledger(&self) -> Ledger {
        self.shared.ledger()
    }

    /// Largest number of tokens of prompt and answer together.
    pub fn max_positions(&self) -> usize {
        self.shared.network.max_positions
    }

    /// Number of caches, each for one text.
    pub fn caches(&self) -> usize {
        self.caches.len()
    }

    /// Records what follows from the loaded base, once: the norms that DoRA needs. Nothing for other adapters.
    pub fn record_norms(&self) -> Recorder {
        let mut rec = self.shared.recorder();
        self.adapters.iter().for_each(|adapter| dora::record_norms(&mut rec, &self.shared.network, adapter));
        rec
    }

    /// Records DoRA's factors from those of the adapters, once these are written. Nothing for other adapters.
    pub fn record_factors(&self) -> Recorder {
        let mut rec = self.shared.recorder();
        let ranks = self.shared.activations.workspace.ranks.as_ref();
        for adapter in &self.adapters {
            dora::record_factors(&mut rec, &self.shared.network, adapter, ranks);
        }
        rec
    }

    /// Records the pass of `rows` rows over the first caches, as many as `texts`, with the base, and with each adapter.
    fn lists_of(&self, rows: u32, texts: usize) -> impl Iterator<Item = Recorder> {
        let adapters = std::iter::once(None).chain((0..self.adapters.len()).map(Some));
        adapters
            .map(move |adapter| self.record(&PassShape { rows, adapter, caches: (0..texts).collect(), logits: true }))
    }

    /// Problem sizes for the autotuner: the contractions of the passes over prompts. Passes of one token have only one kernel to choose.
    pub fn problem_sizes(&self) -> Vec<ProblemSize> {
        self.lists_of(self.rows_per_pass, 1).flat_map(|list| list.problem_sizes).collect()
    }

    /// Records the forward pass of `shape`. With `logits`, it ends with those of the rows that `last_rows` holds.
    pub fn record(&self, shape: &PassShape) -> Recorder {
        let mut rec = self.shared.recorder();
        let texts = self.texts_of(shape);
        let pass = Pass {
            adapter: shape.adapter.and_then(|i| self.adapters.get(i)),
            texts: &texts,
            ..self.shared.pass(shape.rows)
        };
        let hidden = pass.forward(&mut rec);
        if shape.logits {
            let rows = texts.len() as u32;
            let (last, logits) = (self.last_hidden.first_rows(rows), self.logits.first_rows(rows));
            rows::gather_rows(&mut rec, hidden, self.last_rows, last);
            let (network, workspace) = (&self.shared.network, &self.head);
            let head = Head { network, adapter: pass.adapter, trained: None, workspace, dropout: None, chunk: 0 };
            head.forward(&mut rec, last, logits);
        }
        rec
    }

    fn texts_of(&self, shape: &PassShape) -> Vec<CachedRows<'_>> {
        if let [cache] = shape.caches[..] {
            let places = self.shared.inputs.positions;
            return vec![CachedRows { cache: &self.caches[cache], rows: 0..shape.rows, places }];
        }
        let of_row = |(row, (cache, places)): (u32, (&usize, &View))| CachedRows {
            cache: &self.caches[*cache],
            rows: row..row + 1,
            places: *places,
        };
        (0..).zip(shape.caches.iter().zip(&self.places)).map(of_row).collect()
    }
}

/// Returns the shape (positions, width) of a layer's cached keys, which must fit in one binding.
fn cache_shape(config: &ModelConfig, max_positions: usize, max_binding: u64) -> Result<(u32, u32)> {
    let width = config.projection_shape(Projection::K).0 as u32;
    let fitting = (max_binding / (4 * u64::from(width))).min(u64::from(u32::MAX));
    if max_positions == 0 {
        return Err(Error::setting(MAX_CONTEXT, "a context of 0 positions holds no text; give at least 1"));
    }
    match u32::try_from(max_positions) {
        Ok(positions) if u64::from(positions) <= fitting => Ok((positions, width)),
        _ => Err(Error::setting(
            MAX_CONTEXT,
            format!(
                "a context of {max_positions} positions does not fit into one binding of this GPU; at most {fitting} do"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::config::{LoraConfig, TargetModules};
    use crate::lora::targets::resolve;

    fn plan(cpu: bool, max_positions: usize, max_binding_bytes: u64) -> Result<GenerationPlan> {
        let capabilities = Capabilities { cpu, max_binding_bytes, ..Capabilities::BASELINE };
        let config = crate::lora::targets::tests::model();
        let lora = LoraConfig {
            r: 3,
            target_modules: TargetModules::Names(vec![
                "0.self_attn.q_proj".into(),
                "embed_tokens".into(),
                "lm_head".into(),
            ]),
            ..LoraConfig::default()
        };
        let adapted = resolve(&lora, &config).unwrap();
        let dora = LoraConfig { use_dora: true, target_modules: TargetModules::AllLinear, ..lora };
        let dora = resolve(&dora, &config).unwrap();
        let settings = PlanSettings { base: BaseStorage::AsStored, max_positions, rows_per_pass: 40, caches: 1 };
        GenerationPlan::new(capabilities, &config, |_| Float::Bf16, &[&adapted, &[], &dora], &settings)
    }

    #[test]
    fn the_parameter_arenas_hold_the_list_of_every_shape() {
        for cpu in [false, true] {
            for max_positions in [1, 100] {
                let plan = plan(cpu, max_positions, 128 << 20).unwrap();
                assert_eq!(plan.rows_per_pass as usize, max_positions.min(40));
                for rows in 1..=plan.rows_per_pass {
                    for adapter in [None, Some(0), Some(1)] {
                        let list = plan.record(&PassShape { rows, adapter, caches: vec![0], logits: true });
                        let arena = plan.shared.uniforms[usize::from(rows == 1)];
                        assert!(params_bytes(&list.commands) <= arena.bytes, "cpu {cpu}, {rows} rows, {adapter:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_longer_context_takes_cache_and_table_alone() {
        let config = crate::lora::targets::tests::model();
        let [short, long] = [100, 200].map(|positions| plan(true, positions, 128 << 20).unwrap().ledger());
        let cache = (8 * config.num_layers * config.num_kv_heads * config.head_dim * 100) as u64;
        assert_eq!(short.get(Category::KvCache), cache);
        let table = (4 * config.head_dim * 100) as u64;
        assert_eq!(long.total() - short.total(), cache + table);
    }

    #[test]
    fn contexts_that_cannot_be_held_are_refused() {
        let error = plan(true, 0, 128 << 20).unwrap_err().to_string();
        assert!(error.contains("0 positions"), "{error}");
        let width = crate::lora::targets::tests::model().projection_shape(Projection::K).0 as u64;
        assert!(plan(true, 64, 64 * 4 * width).is_ok());
        let error = plan(true, 65, 64 * 4 * width).unwrap_err().to_string();
        assert!(error.contains("65 positions") && error.contains("at most 64"), "{error}");
    }
}
