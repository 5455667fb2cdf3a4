//! The engine against what PyTorch, PEFT and bitsandbytes computed: logits, gradients and losses, tensor by tensor.

use crate::common::*;
use loraine::data::batches::MicroBatch;
use loraine::lora::adapter_file::{self, LoadedAdapter};
use loraine::lora::factors::{AdapterTensors, Factor};
use loraine::model::config::ModelConfig;
use loraine::model::experts::Experts;
use loraine::model::modules::Norm;
use loraine::model::rope::RopeScaling;
use loraine::model::source::Source;
use loraine::model::tensors::NamedTensor;
use loraine::network::base::BaseStorage;
use loraine::network::trained::Part;
use loraine::ops::adamw::AdamW;
use loraine::ops::experts::Scores;
use loraine::ops::glu::Activation;
use loraine::quant::format::Code4;
use loraine::train::engine::Engine;
use loraine::train::values::TrainedValues;

const NF4_DOUBLE: BaseStorage = BaseStorage::Quantized(Code4::Nf4.storage(true));

/// Logits, gradients of the first step, and the losses of ten steps of one fixture.
fn check_fixture(name: &str, adapter_dir: &str, reference: &str, base: BaseStorage, keep_layers: usize) {
    let dir = fixture(name);
    let mut source = Source::open(&dir).unwrap();
    adapter_file::follow_vocabulary(&dir.join(adapter_dir), &mut source).unwrap();
    let LoadedAdapter { modules, tensors, .. } = adapter_file::load_for(&dir.join(adapter_dir), &source).unwrap();
    let expected = Reference::read(&dir.join(format!("{reference}.safetensors")));
    let report = json(&dir.join(format!("{reference}.json")));
    let ids: Vec<Vec<u32>> = (0..3)
        .map(|i| {
            let own = Reference::read(&dir.join("reference.safetensors"));
            let own = if expected.find("input_ids.0").is_some() { &expected } else { &own };
            own.ids(&format!("input_ids.{i}"))
        })
        .collect();
    let logit_bound = if base == BaseStorage::AsStored { 1e-4 } else { 5e-4 };
    let what = format!("{name}/{reference}, {keep_layers} kept layers");

    let mut engine = open_source(&source, base, &modules, &tensors, 64, keep_layers);
    if let Some(logits) = expected.find("lora_logits.0") {
        let got = pollster::block_on(engine.logits(&whole_sequence(&ids[0]))).unwrap();
        assert_close(&format!("{what}: logits with adapter"), &got, logits, logit_bound);
    }
    // Others have an effect whatever B is.
    let plain = modules.iter().all(|module| module.factors == Factor::PLAIN);
    if plain {
        engine.write_adapter(&without_effect(&tensors));
    }
    for (i, ids) in ids.iter().enumerate().filter(|_| plain) {
        if let Some(logits) = expected.find(&format!("logits.{i}")) {
            let got = pollster::block_on(engine.logits(&whole_sequence(ids))).unwrap();
            assert_close(&format!("{what}: logits {i}"), &got, logits, logit_bound);
        }
    }
    engine.write_adapter(&tensors);

    let examples: Vec<_> = ids.into_iter().map(example).collect();
    let batch = MicroBatch::from_examples(&examples);
    pollster::block_on(engine.accumulate(std::slice::from_ref(&batch), 0)).unwrap();
    let gradients = pollster::block_on(engine.read_gradients()).unwrap();
    assert_factors(&what, &gradients, &modules, &expected, "grad.", ".weight", 1e-3);

    let losses = numbers(&report["losses"]);
    let norms = numbers(&report["grad_norms"]);
    let optimizer = AdamW { weight_decay: 0.01, max_norm: 1.0, ..AdamW::default() };
    let results = train(&mut engine, &vec![vec![batch]; losses.len()], &optimizer, report["lr"].as_f64().unwrap());
    for (i, ((loss, norm), (want_loss, want_norm))) in results.iter().zip(losses.iter().zip(&norms)).enumerate() {
        let bound = if i == 0 { 1e-4 } else { 2e-3 };
        assert!((loss / want_loss - 1.0).abs() < bound, "{what}: loss {loss} of step {i} instead of {want_loss}");
        assert!((norm / want_norm - 1.0).abs() < 5e-3, "{what}: norm {norm} of step {i} instead of {want_norm}");
    }
    if expected.find("final.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").is_some() {
        let adapter = pollster::block_on(engine.read_adapter()).unwrap();
        assert_factors(&what, &adapter, &modules, &expected, "final.", ".weight", 2e-2);
    }
}

/// (loss, gradient norm) of each step.
fn train(engine: &mut Engine, steps: &[Vec<MicroBatch>], optimizer: &AdamW, lr: f64) -> Vec<(f64, f64)> {
    let mut results = Vec::new();
    for micro_batches in steps {
        results.extend(pollster::block_on(engine.step(micro_batches, optimizer, lr, 0)).unwrap());
    }
    while let Some(result) = pollster::block_on(engine.next_result()).unwrap() {
        results.push(result);
    }
    assert!(results.len() == steps.len() && results.iter().all(|r| r.applied));
    results.iter().map(|r| (r.report.loss, f64::from(r.grad_norm))).collect()
}

macro_rules! fixture_tests {
    ($($name:ident: $dir:literal, $adapter:literal, $reference:literal, $base:expr;)*) => {$(
        #[test]
        fn $name() {
            check_fixture($dir, $adapter, $reference, $base, usize::MAX);
        }
    )*};
}

const NF4: BaseStorage = BaseStorage::Quantized(Code4::Nf4.storage(false));
const FP4: BaseStorage = BaseStorage::Quantized(Code4::Fp4.storage(false));

fixture_tests! {
    llama_tied: "llama_tied", "adapter", "reference", BaseStorage::AsStored;
    llama_untied_and_sharded: "llama_untied", "adapter", "reference", BaseStorage::AsStored;
    mistral_with_a_sliding_window: "mistral_window", "adapter", "reference", BaseStorage::AsStored;
    qwen2_with_biases: "qwen2", "adapter", "reference", BaseStorage::AsStored;
    qwen3_with_head_norms: "qwen3", "adapter", "reference", BaseStorage::AsStored;
    qwen3_with_experts: "qwen3_moe", "adapter", "reference", BaseStorage::AsStored;
    qwen3_with_experts_in_every_second_layer: "qwen3_moe_step", "adapter", "reference", BaseStorage::AsStored;
    qwen3_with_experts_nf4: "qwen3_moe", "adapter", "reference_nf4", NF4;
    lfm2_with_experts: "lfm2_moe", "adapter", "reference", BaseStorage::AsStored;
    lfm2_with_experts_of_a_plain_router: "lfm2_moe_plain", "adapter", "reference", BaseStorage::AsStored;
    lfm2_with_experts_nf4: "lfm2_moe", "adapter", "reference_nf4", NF4;
    gpt_oss: "gpt_oss", "adapter", "reference", BaseStorage::AsStored;
    gpt_oss_nf4: "gpt_oss", "adapter", "reference_nf4", NF4;
    gpt_oss_in_mxfp4: "gpt_oss_mxfp4", "adapter", "reference", BaseStorage::AsStored;
    llama3_rope: "llama3_rope", "adapter", "reference", BaseStorage::AsStored;
    linear_rope: "linear_rope", "adapter", "reference", BaseStorage::AsStored;
    yarn_rope: "yarn_rope", "adapter", "reference", BaseStorage::AsStored;
    gelu_tanh_activation: "llama_gelu", "adapter", "reference", BaseStorage::AsStored;
    head_size_128: "head128", "adapter", "reference", BaseStorage::AsStored;
    eight_heads_in_a_group: "grouped8", "adapter", "reference", BaseStorage::AsStored;
    odd_sizes: "odd_sizes", "adapter", "reference", BaseStorage::AsStored;
    gemma: "gemma", "adapter", "reference", BaseStorage::AsStored;
    gemma2: "gemma2", "adapter", "reference", BaseStorage::AsStored;
    gemma3: "gemma3", "adapter", "reference", BaseStorage::AsStored;
    smollm3: "smollm3", "adapter", "reference", BaseStorage::AsStored;
    phi3: "phi3", "adapter", "reference", BaseStorage::AsStored;
    glm4: "glm4", "adapter", "reference", BaseStorage::AsStored;
    granite: "granite", "adapter", "reference", BaseStorage::AsStored;
    granite4: "granite4", "adapter", "reference", BaseStorage::AsStored;
    olmo2: "olmo2", "adapter", "reference", BaseStorage::AsStored;
    olmo3: "olmo3", "adapter", "reference", BaseStorage::AsStored;
    exaone4: "exaone4", "adapter", "reference", BaseStorage::AsStored;
    hunyuan: "hunyuan", "adapter", "reference", BaseStorage::AsStored;
    ministral3: "ministral3", "adapter", "reference", BaseStorage::AsStored;
    ernie: "ernie", "adapter", "reference", BaseStorage::AsStored;
    gemma4: "gemma4", "adapter", "reference", BaseStorage::AsStored;
    lfm2: "lfm2", "adapter", "reference", BaseStorage::AsStored;
    lfm2_with_the_keys_of_older_files: "lfm2_old_keys", "adapter", "reference", BaseStorage::AsStored;
    lfm2_nf4: "lfm2", "adapter", "reference_nf4", NF4;
    dora_of_convolutions: "lfm2", "adapter_dora", "reference_dora", BaseStorage::AsStored;
    gemma4_nf4: "gemma4", "adapter", "reference_nf4", NF4;
    dora_of_layers_embeddings: "gemma4", "adapter_dora", "reference_dora", BaseStorage::AsStored;
    qwen3_5: "qwen3_5", "adapter", "reference", BaseStorage::AsStored;
    qwen3_5_nf4: "qwen3_5", "adapter", "reference_nf4", NF4;
    dora_of_a_delta_rule: "qwen3_5", "adapter_dora", "reference_dora", BaseStorage::AsStored;
    qwen3_5_with_a_vision_tower: "qwen3_5_vision", "adapter", "reference", BaseStorage::AsStored;
    gemma3_with_a_vision_tower: "gemma3_vision", "adapter", "reference", BaseStorage::AsStored;
    lfm2_with_a_vision_tower: "lfm2_vl", "adapter", "reference", BaseStorage::AsStored;
    qwen3_with_a_vision_tower: "qwen3_vl", "adapter", "reference", BaseStorage::AsStored;
    gemma2_nf4: "gemma2", "adapter", "reference_nf4", NF4;
    phi3_nf4: "phi3", "adapter", "reference_nf4", NF4;
    granite4_nf4: "granite4", "adapter", "reference_nf4", NF4;
    gemma3_with_a_vision_tower_nf4: "gemma3_vision", "adapter", "reference_nf4", NF4;
    odd_sizes_nf4_double: "odd_sizes", "adapter", "reference_nf4_dq", NF4_DOUBLE;
    odd_sizes_nf4: "odd_sizes", "adapter", "reference_nf4", NF4;
    odd_sizes_fp4: "odd_sizes", "adapter", "reference_fp4", FP4;
    rank_pattern: "llama_tied", "adapter_rank_pattern", "reference_rank_pattern", BaseStorage::AsStored;
    rank_stabilized: "llama_tied", "adapter_rslora", "reference_rslora", BaseStorage::AsStored;
    target_regex: "llama_tied", "adapter_regex", "reference_regex", BaseStorage::AsStored;
    dora: "llama_tied", "adapter_dora", "reference_dora", BaseStorage::AsStored;
    dora_with_biases: "qwen2", "adapter_dora", "reference_dora", BaseStorage::AsStored;
    dora_of_fused_layers: "phi3", "adapter_dora", "reference_dora", BaseStorage::AsStored;
    dora_of_odd_sizes: "odd_sizes", "adapter_dora", "reference_dora", BaseStorage::AsStored;
    dora_nf4: "odd_sizes", "adapter_dora_nf4", "reference_dora_nf4", NF4;
    grown_vocabulary_tied: "llama_tied", "adapter_grown", "reference_grown", BaseStorage::AsStored;
    saved_modules_tied: "llama_tied", "adapter_saved", "reference_saved", BaseStorage::AsStored;
    saved_modules_untied: "llama_untied", "adapter_saved", "reference_saved", BaseStorage::AsStored;
    saved_embedding_of_a_tied_head: "gemma2", "adapter_saved", "reference_saved", BaseStorage::AsStored;
    lora_on_the_vocabulary_tied: "llama_tied", "adapter_vocabulary", "reference_vocabulary", BaseStorage::AsStored;
    lora_on_the_vocabulary_untied: "llama_untied", "adapter_vocabulary", "reference_vocabulary", BaseStorage::AsStored;
    lora_on_a_scaled_embedding: "gemma2", "adapter_vocabulary", "reference_vocabulary", BaseStorage::AsStored;
    lora_on_the_head_alone: "odd_sizes", "adapter_head", "reference_head", BaseStorage::AsStored;
    trained_tokens_tied: "llama_tied", "adapter_tokens", "reference_tokens", BaseStorage::AsStored;
    trained_tokens_untied: "llama_untied", "adapter_tokens", "reference_tokens", BaseStorage::AsStored;
    trained_tokens_of_a_scaled_embedding: "gemma2", "adapter_tokens", "reference_tokens", BaseStorage::AsStored;
    trained_tokens_of_both_nf4: "odd_sizes", "adapter_tokens_nf4", "reference_tokens_nf4", NF4;
    trained_biases: "qwen2", "adapter_bias", "reference_bias", BaseStorage::AsStored;
    all_biases: "qwen2", "adapter_bias_all", "reference_bias_all", BaseStorage::AsStored;
    biases_of_the_factors: "qwen2", "adapter_lora_bias", "reference_lora_bias", BaseStorage::AsStored;
    biases_beside_dora: "qwen2", "adapter_bias_dora", "reference_bias_dora", BaseStorage::AsStored;
    some_layers: "llama_tied", "adapter_layers", "reference_layers", BaseStorage::AsStored;
}

#[test]
fn recomputed_layers_give_the_same_gradients() {
    let names = [
        "qwen3",
        "qwen3_moe",
        "lfm2_moe",
        "gpt_oss",
        "gemma2",
        "gemma3",
        "olmo2",
        "granite",
        "phi3",
        "glm4",
        "lfm2",
        "gemma4",
        "qwen3_5",
    ];
    for name in names {
        for keep_layers in [0, 1] {
            check_fixture(name, "adapter", "reference", BaseStorage::AsStored, keep_layers);
        }
    }
}

/// A change that leaves one feature of a model out.
type Ablation = (&'static str, &'static str, fn(&mut ModelConfig));

const ABLATIONS: [Ablation; 54] = [
    ("mistral_window", "windows", |config| config.sliding_windows.fill(None)),
    ("qwen2", "biases", |config| config.qkv_bias = false),
    ("qwen3", "norms of heads", |config| without(config, &[Norm::Query, Norm::Key])),
    ("qwen3_moe", "weights of experts divided by their sum", |config| experts(config).normalized = false),
    ("qwen3_moe", "a second expert", |config| experts(config).top = 1),
    ("lfm2_moe", "biases of experts", |config| experts(config).biased = false),
    ("lfm2_moe", "weights of experts divided by their sum", |config| experts(config).normalized = false),
    ("lfm2_moe", "scale of the experts' weights", |config| experts(config).scale = 1.0),
    ("lfm2_moe", "sigmoids of the router", |config| experts(config).scores = Scores::Softmax),
    ("lfm2_moe", "a third expert", |config| experts(config).top = 2),
    ("lfm2_moe_plain", "weights of experts that are not divided", |config| experts(config).normalized = true),
    ("lfm2_moe_plain", "sigmoids of the router", |config| experts(config).scores = Scores::Softmax),
    ("gpt_oss", "sinks", |config| config.attention_sinks = false),
    ("gpt_oss", "biases of experts", |config| experts(config).with_biases = false),
    ("gpt_oss", "biases of attention", |config| (config.qkv_bias, config.o_bias) = (false, false)),
    ("gpt_oss", "bounds and factor of the activation", |config| config.activation = Activation::Silu),
    ("gpt_oss", "windows", |config| config.sliding_windows.fill(None)),
    ("gpt_oss", "scaling of the rotation", |config| config.ropes[0].scaling = RopeScaling::Default),
    ("gpt_oss_mxfp4", "a third expert", |config| experts(config).top = 2),
    ("llama_gelu", "activation", |config| config.activation = Activation::Silu),
    ("gemma", "offset of gains", |config| config.gain_offset = 0.0),
    ("gemma", "scale of the embedding", |config| config.embedding_scale = 1.0),
    ("gemma2", "bound of the scores", |config| config.attention_softcap = None),
    ("gemma2", "windows of every other layer", |config| config.sliding_windows.fill(None)),
    ("gemma3", "bound of the logits", |config| config.final_softcap = None),
    ("gemma3", "scale of the scores", |config| config.attention_scale = 1.0 / (config.head_dim as f32).sqrt()),
    ("gemma3", "rotation of layers with a window", |config| config.layer_ropes.fill(Some(1))),
    ("gemma3", "norms on outputs", |config| without(config, &[Norm::AttentionOutput, Norm::FeedForwardOutput])),
    ("granite", "scale of the residual stream", |config| config.residual_scale = 1.0),
    ("granite", "scale of the logits", |config| config.logit_scale = 1.0),
    ("granite", "scale of the scores", |config| config.attention_scale = 1.0 / (config.head_dim as f32).sqrt()),
    ("granite4", "scale of the embedding", |config| config.embedding_scale = 1.0),
    ("smollm3", "layers without rotation", |config| config.layer_ropes.fill(Some(0))),
    ("exaone4", "rotation in layers with a window alone", |config| config.layer_ropes.fill(Some(0))),
    ("olmo3", "scaling in the other layers alone", |config| config.layer_ropes.fill(Some(0))),
    ("hunyuan", "rotation before the norms", |config| config.head_norms.after_rope = false),
    ("hunyuan", "base of the rotation", |config| config.ropes[0].scaling = RopeScaling::Default),
    ("ministral3", "growth of queries", |config| config.ropes[0].query_scaling = None),
    ("ernie", "pairs of neighbors", |config| config.ropes[0].interleaved = false),
    ("glm4", "half of a head", |config| config.ropes[0].rotated = config.head_dim),
    ("glm4", "biases", |config| config.qkv_bias = false),
    ("phi3", "factors of the frequencies", |config| config.ropes[0].scaling = RopeScaling::Default),
    ("gemma4", "pairs that do not turn", |config| config.ropes[1].scaling = RopeScaling::Default),
    ("gemma4", "scale of the scores", |config| config.attention_scale = 0.25),
    ("gemma4", "windows", |config| config.sliding_windows[0] = Some(9)),
    ("lfm2", "norms of heads", |config| without(config, &[Norm::Query, Norm::Key])),
    ("lfm2", "constant of the norms", |config| config.rms_norm_eps = 1e-1),
    ("lfm2_old_keys", "a head of its own", |config| config.tie_word_embeddings = true),
    ("qwen3_5", "a quarter of a head", |config| config.ropes[0].rotated = config.head_dim),
    ("qwen3_5", "offset of gains", |config| config.gain_offset = 0.0),
    ("qwen3_5", "norms of heads", |config| without(config, &[Norm::Query, Norm::Key])),
    ("qwen3_5", "constant of the norms", |config| config.rms_norm_eps = 1e-1),
    ("qwen3_5_vision", "a head of its own", |config| config.tie_word_embeddings = true),
    ("phi3", "three quarters of a head", |config| config.ropes[0].rotated = config.head_dim),
];

fn experts(config: &mut ModelConfig) -> &mut Experts {
    config.experts.as_mut().unwrap()
}

fn without(config: &mut ModelConfig, norms: &[Norm]) {
    let kept: Vec<_> = config.norms.iter().copied().filter(|(norm, _)| !norms.contains(norm)).collect();
    config.norms = kept.leak();
}

/// Each feature changes the logits of its fixture by more than any tolerance here, so that leaving it out is seen.
#[test]
fn every_feature_shows_in_its_fixture() {
    for (name, feature, leave_out) in ABLATIONS {
        let dir = fixture(name);
        let reference = Reference::read(&dir.join("reference.safetensors"));
        let mut source = Source::open(&dir).unwrap();
        leave_out(&mut source.config);
        let keep_all = usize::MAX;
        let mut engine = open_source(&source, BaseStorage::AsStored, &[], &AdapterTensors::default(), 64, keep_all);
        let got = pollster::block_on(engine.logits(&whole_sequence(&reference.ids("input_ids.0")))).unwrap();
        let expected = reference.get("logits.0");
        let largest = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let differs = got.iter().zip(expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(differs > 5e-3 * largest, "{name} without {feature}: {differs} of {largest}");
    }
}

/// The 20 steps that PEFT made on a real trained model.
fn check_stories(mode: &str, base: BaseStorage) {
    let (Some(model), Some(dir)) =
        (shared("models/stories260K"), shared(&format!("reference/lora_stories260K_{mode}")))
    else {
        return;
    };
    let config = ModelConfig::from_file(&model.join("config.json")).unwrap();
    let (modules, tensors) = adapter(&dir.join("adapter_init"), &config);
    let batches = Reference::read(&dir.join("batches.safetensors"));
    let report = json(&dir.join("report.json"));
    let ids = batches.ids("input_ids");
    let [steps, batch, length] = batches.shape("input_ids")[..] else { panic!("shape") };
    let logit_bound = if base == BaseStorage::AsStored { 1e-4 } else { 5e-4 };

    let mut engine = open_engine(&model, base, &modules, &tensors, batch * length, usize::MAX);
    let logits = Reference::read(&dir.join("logits0.safetensors"));
    let got = pollster::block_on(engine.logits(&whole_sequence(&ids[..16]))).unwrap();
    assert_close("logits", &got, logits.get("logits_row0_first16"), logit_bound);
    if base == BaseStorage::AsStored
        && let Some(forward) = shared("reference/forward_stories260K.safetensors")
    {
        let forward = Reference::read(&forward);
        let got = pollster::block_on(engine.logits(&whole_sequence(&forward.ids("input_ids")))).unwrap();
        assert_close("forward logits", &got, forward.get("logits"), 1e-4);
    }

    let step_batches: Vec<Vec<MicroBatch>> = ids
        .chunks(batch * length)
        .map(|ids| {
            let examples: Vec<_> = ids.chunks(length).map(|row| example(row.to_vec())).collect();
            vec![MicroBatch::from_examples(&examples)]
        })
        .collect();
    assert_eq!(step_batches.len(), steps);
    let optimizer = AdamW { weight_decay: 0.01, max_norm: 0.0, ..AdamW::default() };
    let lr = report["lr"].as_f64().unwrap();
    let mut results = Vec::new();
    for (i, micro_batches) in step_batches.iter().enumerate() {
        results.extend(train(&mut engine, std::slice::from_ref(micro_batches), &optimizer, lr));
        if i < 2 {
            let expected = Reference::read(&dir.join(format!("grads_step{}.safetensors", i + 1)));
            let gradients = pollster::block_on(engine.read_gradients()).unwrap();
            assert_factors("gradients", &gradients, &modules, &expected, "", ".default.weight", 1e-3);
        }
    }
    let (losses, norms) = (numbers(&report["losses"]), numbers(&report["grad_norms"]));
    for (i, ((loss, norm), (want_loss, want_norm))) in results.iter().zip(losses.iter().zip(&norms)).enumerate() {
        println!("step {i}: loss {loss:.6} ({want_loss:.6}), norm {norm:.5} ({want_norm:.5})");
        let bound = if i == 0 { 1e-4 } else { 2e-3 };
        assert!((loss / want_loss - 1.0).abs() < bound, "loss {loss} of step {i} instead of {want_loss}");
    }
    let expected = Reference::read(&dir.join("adapter_final/adapter_model.safetensors"));
    let adapter = pollster::block_on(engine.read_adapter()).unwrap();
    assert_factors("final adapter", &adapter, &modules, &expected, "", ".weight", 2e-2);
}

#[test]
fn stories260k_lora_equals_peft() {
    check_stories("f32", BaseStorage::AsStored);
}

#[test]
fn stories260k_qlora_equals_peft_and_bitsandbytes() {
    check_stories("nf4", NF4_DOUBLE);
}

/// Gradients of every tensor of the base.
fn full_gradients(model: &std::path::Path, batch: &MicroBatch) -> (Engine, Vec<NamedTensor>) {
    let none = AdapterTensors::default();
    let mut engine = open_engine(model, BaseStorage::Trained, &[], &none, batch.tokens.len(), 1);
    pollster::block_on(engine.accumulate(std::slice::from_ref(batch), 0)).unwrap();
    let gradients = pollster::block_on(engine.read_base(Part::Grads)).unwrap();
    (engine, gradients)
}

#[test]
fn stories260k_full_gradients_equal_pytorch() {
    let (Some(model), Some(expected), Some(forward)) = (
        shared("models/stories260K"),
        shared("reference/fullgrad_stories260K.safetensors"),
        shared("reference/forward_stories260K.safetensors"),
    ) else {
        return;
    };
    let expected = Reference::read(&expected);
    let ids = Reference::read(&forward).ids("input_ids");
    let (_, gradients) = full_gradients(&model, &MicroBatch::from_examples(&[example(ids)]));
    assert_eq!(gradients.len(), expected.names().count());
    for tensor in &gradients {
        assert_close(&tensor.name, &tensor.values, expected.get(&tensor.name), 1e-3);
    }
}

/// Along its own gradient the loss of each tensor must rise by the gradient's length: biases, head norms and untied heads too.
#[test]
fn full_gradients_are_the_slopes_of_the_loss() {
    let families = ["gemma2", "gemma3", "granite", "olmo3", "hunyuan", "ernie", "lfm2_old_keys", "qwen3_5"];
    for name in ["llama_untied", "qwen2", "qwen3", "mistral_window", "odd_sizes"].into_iter().chain(families) {
        let dir = fixture(name);
        let own = Reference::read(&dir.join("reference.safetensors"));
        let examples: Vec<_> = (0..3).map(|i| example(own.ids(&format!("input_ids.{i}")))).collect();
        let batch = MicroBatch::from_examples(&examples);
        let (mut engine, gradients) = full_gradients(&dir, &batch);
        let params = pollster::block_on(engine.read_base(Part::Params)).unwrap();
        for (i, gradient) in gradients.iter().enumerate() {
            let norm = gradient.values.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 1e-4, "{name}: {} has the gradient {norm}", gradient.name);
            // A step that moves the loss by so little that its curvature does not show; Granite's small logits have small gradients.
            let reach = if name == "granite" { 0.0004 } else { 0.002 } / norm;
            let mut loss = |sign: f64| {
                let mut moved = params.clone();
                for (value, g) in moved[i].values.iter_mut().zip(&gradient.values) {
                    *value += (sign * reach * f64::from(*g) / norm) as f32;
                }
                engine.write_values(&TrainedValues::Base(moved));
                let (sum, count) = pollster::block_on(engine.evaluate([&batch])).unwrap();
                sum / count as f64
            };
            let slope = (loss(1.0) - loss(-1.0)) / (2.0 * reach);
            assert!((slope / norm - 1.0).abs() < 0.02, "{name}: {} rises by {slope}, not {norm}", gradient.name);
        }
    }
}

/// Models of the families that lie beside the project, against what transformers and PEFT computed for them.
#[test]
fn shared_families_equal_transformers_and_peft() {
    let Some(families) = shared("reference/families") else { return };
    let mut checked = Vec::new();
    for entry in std::fs::read_dir(families).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.join("reference.safetensors").exists() {
            continue;
        }
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let config = match ModelConfig::from_dir(&dir) {
            Ok(config) => config,
            Err(problem) => {
                eprintln!("skipped: {problem}");
                continue;
            }
        };
        let expected = Reference::read(&dir.join("reference.safetensors"));
        let ids = expected.ids("input_ids");
        let sequences: Vec<_> = ids.chunks(expected.shape("input_ids")[1]).collect();
        let logits = |engine: &mut Engine| -> Vec<f32> {
            let of = |ids: &&[u32]| pollster::block_on(engine.logits(&whole_sequence(ids))).unwrap();
            sequences.iter().flat_map(of).collect()
        };
        let (modules, tensors) = adapter(&dir.join("adapter"), &config);
        let mut engine = open_engine(&dir, BaseStorage::AsStored, &modules, &tensors, ids.len(), usize::MAX);
        let got = logits(&mut engine);
        assert_close(&format!("{name}: logits with adapter"), &got, expected.get("lora_logits"), 2e-5);
        engine.write_adapter(&without_effect(&tensors));
        let got = logits(&mut engine);
        assert_close(&format!("{name}: logits"), &got, expected.get("logits"), 2e-5);
        engine.write_adapter(&tensors);
        let examples: Vec<_> = sequences.iter().map(|ids| example(ids.to_vec())).collect();
        let batch = MicroBatch::from_examples(&examples);
        let (sum, count) = pollster::block_on(engine.evaluate([&batch])).unwrap();
        assert_close(&format!("{name}: loss"), &[(sum / count as f64) as f32], expected.get("loss"), 1e-5);
        pollster::block_on(engine.accumulate(std::slice::from_ref(&batch), 0)).unwrap();
        let gradients = pollster::block_on(engine.read_gradients()).unwrap();
        assert_factors(&name, &gradients, &modules, &expected, "grad.", ".weight", 2e-4);
        checked.push(name);
    }
    assert!(checked.len() >= 5, "{checked:?}");
}
