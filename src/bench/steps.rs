//! Whole training steps on models of random weights.

use web_time::Instant;

use super::{Ceilings, StepResult, median};
use crate::Result;
use crate::data::Example;
use crate::data::batches::MicroBatch;
use crate::gpu::Gpu;
use crate::lora::adapter_file;
use crate::lora::config::{LoraConfig, LoraInit, TargetModules};
use crate::lora::targets;
use crate::model::config::{ModelConfig, Projection};
use crate::model::network::BaseStorage;
use crate::ops::adamw::AdamW;
use crate::ops::weight::{Code4, Float, Storage};
use crate::random::{Stream, bits};
use crate::train::engine::Engine;
use crate::train::plan::{PlanSettings, RecomputePolicy, TrainPlan};

/// A model by its sizes, and the batch that it is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub name: &'static str,
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocabulary: usize,
    pub sequences: usize,
    pub length: usize,
}

impl Shape {
    pub const ALL: [Self; 4] = [
        Self::new("stories260k", [64, 172, 5], [8, 4], 512, [8, 128]),
        Self::new("stories15m", [288, 768, 6], [6, 6], 32000, [4, 256]),
        Self::new("smollm2-135m", [576, 1536, 30], [9, 3], 49152, [1, 512]),
        Self::new("llama-3.2-1b", [2048, 8192, 16], [32, 8], 128_256, [1, 512]),
    ];

    const fn new(
        name: &'static str,
        [hidden, ffn, layers]: [usize; 3],
        [heads, kv_heads]: [usize; 2],
        vocabulary: usize,
        [sequences, length]: [usize; 2],
    ) -> Self {
        Self { name, hidden, ffn, layers, heads, kv_heads, vocabulary, sequences, length }
    }

    fn config(&self) -> Result<ModelConfig> {
        let json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.ffn, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "vocab_size": self.vocabulary, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "tie_word_embeddings": true,
        });
        ModelConfig::from_json(self.name.as_ref(), &json.to_string())
    }

    /// Operations per row of a QLoRA step: forward and input gradient through every matrix and the head, and causal attention.
    fn flops_per_row(&self, config: &ModelConfig) -> f64 {
        let shape = |p: Projection| config.projection_shape(p);
        let layer: usize = Projection::ALL.iter().map(|p| shape(*p).0 * shape(*p).1).sum();
        let matrices = (self.layers * layer + self.hidden * self.vocabulary) as f64;
        let attention = (self.layers * self.heads * config.head_dim * self.length) as f64;
        4.0 * matrices + 7.0 * attention
    }
}

/// Measures QLoRA steps of rank 16 on every linear layer; the device comes back for the next shape.
pub(super) async fn measure(gpu: Gpu, shape: &Shape, ceilings: &Ceilings) -> Result<(StepResult, Gpu)> {
    const STEPS: usize = 5;
    let config = shape.config()?;
    let lora = LoraConfig { r: 16, lora_alpha: 16.0, target_modules: TargetModules::AllLinear, ..Default::default() };
    let modules = targets::resolve(&lora, &config)?;
    let settings = PlanSettings {
        base: BaseStorage::Quantized(Storage::Quantized { code: Code4::Nf4, double: true }),
        max_rows: shape.sequences * shape.length,
        max_positions: shape.length,
        recompute: RecomputePolicy::Auto { kept_bytes: 2 << 30, total_bytes: u64::MAX },
        dropout: 0.0,
        training: true,
    };
    let plan = TrainPlan::new(gpu.target, &config, |_| Float::Bf16, &modules, &settings);
    let mut engine = Engine::with_random_weights(gpu, plan, 1).await?;
    engine.write_adapter(&adapter_file::init(&modules, &config, 1, LoraInit::KaimingUniform));
    let token = |i: usize| (bits(1, Stream::Sampling, 0, i as u64) % shape.vocabulary as u64) as u32;
    let sequence = |s: usize| {
        let input_ids: Vec<u32> = (0..=shape.length).map(|i| token(s * shape.length + i)).collect();
        Example { trained: vec![true; input_ids.len()], input_ids }
    };
    let examples: Vec<Example> = (0..shape.sequences).map(sequence).collect();
    let batch = [MicroBatch::from_examples(&examples)];
    let rows = batch[0].tokens.len();

    let (mut seconds, mut host) = (Vec::new(), Vec::new());
    // The first step compiles.
    for step in 0..=STEPS {
        engine.gpu.wait()?;
        let started = Instant::now();
        engine.step(&batch, &AdamW::default(), 1e-4, 0).await?;
        let submitted = started.elapsed().as_secs_f64();
        while engine.next_result().await?.is_some() {}
        if step > 0 {
            host.push(submitted);
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    let seconds = median(seconds);
    let gflops = shape.flops_per_row(&config) * rows as f64 / seconds / 1e9;
    let result = StepResult {
        model: shape.name.to_owned(),
        batch: format!("{} x {}", shape.sequences, shape.length),
        ms: seconds * 1e3,
        tokens_per_s: rows as f64 / seconds,
        gflops,
        share_of_ceiling: gflops / ceilings.fma_gflops,
        host_ms: median(host) * 1e3,
        gpu_bytes: engine.buffers.ledger().total(),
    };
    Ok((result, engine.gpu))
}
