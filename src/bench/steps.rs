//! Whole training steps on models of random weights.

use serde::{Deserialize, Serialize};
use web_time::Instant;

use super::Ceilings;
use crate::data::Example;
use crate::data::batches::MicroBatch;
use crate::gpu::{Capabilities, Category, Gpu, OperationShare, Profile};
use crate::lora::config::LoraInit;
use crate::lora::factors;
use crate::lora::targets::{self, LoraModule};
use crate::model::config::ModelConfig;
use crate::model::modules::Projection;
use crate::model::shapes;
use crate::network::moments::Shard;
use crate::ops::adamw::AdamW;
use crate::quant::format::Float;
use crate::random::{Stream, bits};
use crate::setting::SHAPE;
use crate::train::budget::PlanRequest;
use crate::train::engine::Engine;
use crate::train::plan::TrainPlan;
use crate::train::settings::RunSettings;
use crate::{Error, Result};

/// Small models that only the bench knows: name, [hidden, feed-forward, layers], [heads, key-value heads], vocabulary, tied head.
type Small = (&'static str, [usize; 3], [usize; 2], usize, bool);
const SMALL: [Small; 3] = [
    ("stories260k", [64, 172, 5], [8, 4], 512, true),
    ("stories15m", [288, 768, 6], [6, 6], 32000, true),
    ("llama-60m", [512, 1376, 8], [8, 8], 32000, false),
];
/// The default batch: sequences and their length.
const BATCH: [usize; 2] = [1, 512];
/// Measured steps; fewer where they would take longer than `MAX_SECONDS`.
const STEPS: usize = 5;
const MAX_SECONDS: f64 = 15.0;

/// The sizes of a model, and the batch of its measurement.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The name of the model.
    pub name: String,
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Number of sequences in the batch.
    pub sequences: usize,
    /// Length of each sequence in tokens.
    pub length: usize,
}

impl Shape {
    /// Parses `NAME` or `NAME:SEQUENCESxLENGTH`.
    ///
    /// # Errors
    /// An unknown name, with the known ones in the message, or a malformed batch.
    pub fn named(text: &str) -> Result<Self> {
        let (name, batch) = text.split_once(':').map_or((text, None), |(name, batch)| (name, Some(batch)));
        let [sequences, length] = match batch {
            None => BATCH,
            Some(batch) => {
                let sides = batch.split_once('x').and_then(|(s, l)| Some([s.parse().ok()?, l.parse().ok()?]));
                let problem = || format!("`{batch}` in `{text}` is no batch such as 4x256, of at least 1x1");
                sides.filter(|sides| !sides.contains(&0)).ok_or_else(|| Error::setting(SHAPE, problem()))?
            }
        };
        let config = match SMALL.iter().find(|small| small.0 == name) {
            Some(small) => small_config(small)?,
            None => shapes::by_name(name).map_err(|_| {
                let known: Vec<_> = SMALL.iter().map(|small| small.0).chain(shapes::names()).collect();
                Error::setting(SHAPE, format!("`{name}` is not known; there are {}", known.join(", ")))
            })?,
        };
        Ok(Self { name: name.to_owned(), config, sequences, length })
    }

    /// The batch as the report shows it.
    pub fn batch(&self) -> String {
        format!("{} x {}", self.sequences, self.length)
    }

    /// Operations per row of a QLoRA step: forward pass and input gradient through every matrix and the head, and causal attention.
    fn flops_per_row(&self) -> f64 {
        let config = &self.config;
        let shape = |p: Projection| config.projection_shape(p);
        let of_layer = |layer: usize| -> usize {
            let own = Projection::ALL.iter().filter(|p| config.has_projection(layer, **p));
            let experts = config.experts_of(layer).map_or(0, |experts| {
                config.hidden_size * (experts.count + 3 * experts.top * experts.intermediate_size)
            });
            own.map(|p| shape(*p).0 * shape(*p).1).sum::<usize>() + experts
        };
        let layers: usize = (0..config.num_layers).map(of_layer).sum();
        let matrices = (layers + config.hidden_size * config.vocab_size) as f64;
        let attending = (0..config.num_layers).filter(|layer| config.has_attention(*layer)).count();
        let attention = (attending * config.num_heads * config.head_dim * self.length) as f64;
        4.0 * matrices + 7.0 * attention
    }

    /// Sequences of random tokens, all of which are trained.
    fn micro_batch(&self) -> MicroBatch {
        let token = |i: usize| (bits(1, Stream::Sampling, 0, i as u64) % self.config.vocab_size as u64) as u32;
        let sequence = |s: usize| {
            let input_ids: Vec<u32> = (0..=self.length).map(|i| token(s * self.length + i)).collect();
            Example::new(input_ids.clone(), vec![true; input_ids.len()])
        };
        MicroBatch::from_examples(&(0..self.sequences).map(sequence).collect::<Vec<_>>())
    }
}

fn small_config((name, [hidden, ffn, layers], [heads, kv_heads], vocabulary, tied): &Small) -> Result<ModelConfig> {
    let json = serde_json::json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "tie_word_embeddings": tied,
    });
    ModelConfig::from_json(name.as_ref(), &json.to_string())
}

/// The measurement of training steps of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepResult {
    /// Name of the model.
    pub model: String,
    /// The batch, as sequences x tokens.
    pub batch: String,
    /// The time of a step in milliseconds.
    pub ms: f64,
    /// Speed in tokens per second.
    pub tokens_per_s: f64,
    /// GFLOP/s of the model itself, without recomputation and adapter.
    pub gflops: f64,
    /// The share of the multiply-add ceiling, 0 to 1.
    pub share_of_ceiling: f64,
    /// Milliseconds in which the host prepared and submitted a step. Submits do not count on a software adapter, which runs the step in
    /// them.
    pub host_ms: f64,
    /// The bytes allocated on the device.
    pub gpu_bytes: u64,
    /// Bytes of each category that is not empty.
    pub memory: Vec<(Category, u64)>,
    /// The kernels that a trial chose, by operation and shape.
    #[serde(default)]
    pub kernels: Vec<String>,
    /// The operations of one more step with their share of its time, the longest first.
    pub operations: Vec<OperationShare>,
}

impl StepResult {
    pub(super) fn with_ceiling(self, ceilings: &Ceilings) -> Self {
        Self { share_of_ceiling: self.gflops / ceilings.fma_gflops, ..self }
    }
}

/// The plan of a run with these settings.
pub(super) fn plan(
    capabilities: Capabilities,
    shape: &Shape,
    settings: &RunSettings,
) -> Result<(Vec<LoraModule>, TrainPlan)> {
    let settings = RunSettings { batch_size: shape.sequences, ..settings.clone() };
    let modules = targets::resolve(&settings.lora_config(), &shape.config)?;
    let plan = PlanRequest {
        settings: &settings,
        config: &shape.config,
        modules: &modules,
        stored: &|_| Float::Bf16,
        max_rows: shape.sequences * shape.length,
        max_positions: shape.length,
        distillation: None,
        capabilities,
        shard: Shard::default(),
    }
    .plan_within_budget()?;
    Ok((modules, plan))
}

/// Measures training steps, and returns the device for the next shape.
pub(super) async fn measure(gpu: Gpu, shape: &Shape, settings: &RunSettings) -> Result<(StepResult, Gpu)> {
    let (modules, plan) = plan(gpu.capabilities, shape, settings)?;
    let mut engine = Engine::with_random_weights(gpu, plan, 1).await?;
    engine.write_adapter(&factors::init(&modules, 1, LoraInit::KaimingUniform));
    let batch = [shape.micro_batch()];
    let rows = batch[0].tokens.len();

    // The first step compiles. It counts only if another one would take too long.
    let mut best = step(&mut engine, &batch).await?;
    let mut spent = 0.0;
    for _ in 0..STEPS {
        if spent + best.0 > MAX_SECONDS {
            break;
        }
        let (seconds, host) = step(&mut engine, &batch).await?;
        spent += seconds;
        best = (best.0.min(seconds), best.1.min(host));
    }
    let mut operations = Vec::new();
    if best.0 < MAX_SECONDS {
        engine.profile = Some(Profile::default());
        step(&mut engine, &batch).await?;
        operations = engine.profile.take().unwrap_or_default().shares();
    }
    let (seconds, host) = best;
    let gflops = shape.flops_per_row() * rows as f64 / seconds / 1e9;
    let ledger = engine.buffers.ledger();
    let result = StepResult {
        model: shape.name.clone(),
        batch: shape.batch(),
        ms: seconds * 1e3,
        tokens_per_s: rows as f64 / seconds,
        gflops,
        share_of_ceiling: 0.0,
        host_ms: host * 1e3,
        gpu_bytes: ledger.total(),
        memory: ledger.entries().collect(),
        kernels: engine.plan.shared.autotune.lines(),
        operations,
    };
    Ok((result, engine.gpu))
}

/// Seconds of a step, and the seconds in which the host prepared it.
async fn step(engine: &mut Engine, batch: &[MicroBatch]) -> Result<(f64, f64)> {
    engine.gpu.flush().await?;
    let (started, in_submits) = (Instant::now(), engine.gpu.seconds_in_submits());
    engine.step(batch, &AdamW::default(), 1e-4, 0).await?;
    let mut host = started.elapsed().as_secs_f64();
    if engine.gpu.capabilities.cpu {
        host -= engine.gpu.seconds_in_submits() - in_submits;
    }
    while engine.next_result().await?.is_some() {}
    Ok((started.elapsed().as_secs_f64(), host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_named_with_or_without_a_batch() {
        let shape = Shape::named("stories15m:4x256").unwrap();
        assert_eq!((shape.config.hidden_size, shape.sequences, shape.length), (288, 4, 256));
        let shape = Shape::named("llama-2-7b").unwrap();
        assert_eq!((shape.config.num_layers, shape.sequences, shape.length), (32, 1, 512));
        for (text, word) in [("gpt-9", "stories15m"), ("stories15m:4", "4x256"), ("stories15m:0x256", "1x1")] {
            let problem = Shape::named(text).unwrap_err().to_string();
            assert!(problem.contains(word), "{problem}");
        }
    }
}
