//! What runs take on the device: figures held over plans, and one step of a 7B model that has to keep to its plan.

use crate::common;
use crate::common::cli::{Shell, random_lines, train_on};
use loraine::data::Example;
use loraine::data::batches::MicroBatch;
use loraine::gpu::Category;
use loraine::lora::config::LoraInit;
use loraine::lora::factors;
use loraine::lora::targets;
use loraine::memory::{ASSUMED_CAPABILITIES, Estimate, estimate};
use loraine::model::shapes;
use loraine::model::source::Source;
use loraine::model::tensors::{EMBEDDING, TensorSpec, tensors};
use loraine::network::activations::ActivationFormat;
use loraine::network::base::BaseStorage;
use loraine::network::moments::{MomentStorage, Shard};
use loraine::quant::format::Float;
use loraine::train::budget::PlanRequest;
use loraine::train::engine::Engine;
use loraine::train::plan::{PlanSettings, RecomputePolicy, TrainPlan};
use loraine::train::settings::{ActivationsChoice, Method, Optim, RecomputeChoice, RunSettings};

fn of(model: &str, settings: &RunSettings, seq_len: usize) -> Estimate {
    let config = shapes::by_name(model).unwrap();
    estimate(settings, &config, Float::Bf16, seq_len, ASSUMED_CAPABILITIES).unwrap()
}

/// QLoRA of rank 16 on every linear layer.
fn qlora(batch_size: usize) -> RunSettings {
    RunSettings { batch_size, ..RunSettings::default() }
}

#[test]
fn a_7b_model_takes_less_than_4_6_gb() {
    let plain = of("llama-2-7b", &qlora(1), 512);
    assert!(plain.total < 5_000_000_000, "{plain:?}");
    let in_4_bits = of("llama-2-7b", &RunSettings { quantize_embedding: true, ..qlora(1) }, 512);
    assert!(in_4_bits.total < 4_600_000_000, "{in_4_bits:?}");
    let settings = RunSettings { quantize_embedding: true, optim: Optim::Adamw8bit, ..qlora(1) };
    let with_8_bit_moments = of("llama-2-7b", &settings, 512);
    assert!(with_8_bit_moments.total < 4_350_000_000, "{with_8_bit_moments:?}");
}

#[test]
fn an_8b_model_takes_less_than_7_4_gb() {
    let settings = |batch| RunSettings { quantize_embedding: true, ..qlora(batch) };
    for (batch, seq_len) in [(1, 2048), (4, 512)] {
        let found = of("llama-3.1-8b", &settings(batch), seq_len);
        assert!(found.total < 7_400_000_000, "{batch} x {seq_len}: {found:?}");
    }
}

#[test]
fn a_135m_model_with_2048_tokens_takes_less_than_0_6_gb() {
    for (batch, seq_len) in [(1, 2048), (4, 512)] {
        let found = of("smollm2-135m", &qlora(batch), seq_len);
        assert!(found.total < 600_000_000, "{batch} x {seq_len}: {found:?}");
    }
}

/// The figures of BENCHMARKS.md: large vocabularies weigh most in small models.
#[test]
fn small_models_of_large_vocabularies_take_what_is_written() {
    for (model, gigabytes) in [("gemma-3-270m", 0.65), ("gemma-3-1b", 1.28), ("gemma-3-4b", 3.72), ("phi-4-mini", 3.60)]
    {
        let found = of(model, &RunSettings { quantize_embedding: true, ..qlora(1) }, 2048);
        assert!((found.total as f64) < gigabytes * 1e9, "{model}: {found:?}");
    }
}

/// Activations, attention and loss: all that grows with the sequence.
#[test]
fn memory_grows_linearly_with_the_sequence() {
    for recompute in [RecomputeChoice::None, RecomputeChoice::All] {
        let settings = RunSettings { recompute, ..qlora(1) };
        for model in ["smollm2-135m", "llama-3.2-1b", "qwen3-0.6b"] {
            let bytes = |seq_len| {
                let found = of(model, &settings, seq_len);
                let of_sequence = [Category::KeptActivations, Category::Workspace, Category::Uploads];
                found.categories.iter().filter(|(c, _)| of_sequence.contains(c)).map(|(_, b)| *b).sum::<u64>()
            };
            let lengths = [256, 512, 1024, 2048, 4096, 8192];
            let measured = lengths.map(bytes);
            for (lengths, measured) in lengths.windows(2).zip(measured.windows(2)) {
                let factor = measured[1] as f64 / measured[0] as f64;
                assert!(factor < 2.02, "{model}, {recompute:?}: {measured:?} bytes for {lengths:?} tokens");
            }
            let per_token = |i: usize| (measured[i + 1] - measured[i]) / (lengths[i + 1] - lengths[i]) as u64;
            // A buffer that the logits' chunk needs as it is grows only once a layer needs more; a square would double.
            let [early, late] = [2, 4].map(per_token);
            assert!(late <= early + early / 10, "{model}, {recompute:?}: {early} bytes a token, later {late}");
        }
    }
}

#[test]
fn defaults_keep_everything_of_small_models() {
    let found = of("smollm2-135m", &qlora(1), 256);
    assert_eq!(found.kept_layers, found.layers);
    let found = of("llama-2-7b", &qlora(1), 512);
    assert_eq!(found.kept_layers, 0);
}

/// A byte for each moment of an element and two f32 for 256 of them; embedding and small tensors as before.
#[test]
fn moments_in_8_bits_take_what_their_codes_and_scales_take() {
    let optimizer = |found: &Estimate| found.categories.iter().find(|(c, _)| *c == Category::Optimizer).unwrap().1;
    let with = |model: &str, settings: RunSettings| {
        [Optim::Adamw, Optim::Adamw8bit].map(|optim| of(model, &RunSettings { optim, ..settings.clone() }, 512))
    };
    let coded = |elements: u64| 2 * elements + 8 * elements.div_ceil(256);
    const TABLES: u64 = 1024 * 4;
    for model in ["smollm2-135m", "qwen2.5-0.5b"] {
        let [whole, small] = with(model, RunSettings { method: Method::Full, ..qlora(1) });
        let (mut before, mut after) = (0, TABLES);
        for TensorSpec { name, shape, .. } in tensors(&shapes::by_name(model).unwrap()) {
            let elements = shape.iter().product::<usize>() as u64;
            before += 8 * elements;
            after += if name == EMBEDDING || elements < 4096 { 8 * elements } else { coded(elements) };
        }
        assert_eq!([optimizer(&whole), optimizer(&small)], [before, after], "{model}");
        assert_eq!(whole.total - small.total, before - after, "{model}");
    }
    // Every factor of this adapter has at least 4096 elements, in whole blocks.
    let [whole, small] = with("llama-2-7b", qlora(1));
    let elements = whole.trained_parameters;
    assert_eq!([optimizer(&whole), optimizer(&small)], [8 * elements, coded(elements) + TABLES]);
    assert_eq!(small.trained_parameters, elements);
}

#[test]
fn embedding_and_head_train_in_4_bits() {
    for model in ["llama_tied", "llama_untied", "odd_sizes"] {
        let shell = Shell::new();
        shell.write("data.jsonl", random_lines(12, 96, 1));
        let run = |out: &str, options: &str| {
            let options = format!("{options} --steps 6 --rank 4 --lr 0.002");
            shell.succeed(&format!("{} --data data.jsonl --out {out} {options}", train_on(model)));
            let bytes = shell.metrics(out)[0]["gpu_bytes"].as_u64().unwrap();
            (shell.losses(out), bytes)
        };
        let (plain, more) = run("plain", "");
        let (in_4_bits, less) = run("in_4_bits", "--quantize-embedding");
        assert!(less < more, "{model}: {less} {more}");
        // Another base, but nearly the same: each step's loss is near, and not equal.
        for (a, b) in plain.iter().zip(&in_4_bits) {
            assert!((a / b - 1.0).abs() < 0.05 && a != b, "{model}: {plain:?} {in_4_bits:?}");
        }
        let (again, _) = run("again", "--quantize-embedding --recompute all");
        assert_eq!(again, in_4_bits, "{model}");
    }
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(12, 96, 1));
    let command = format!("{} --data data.jsonl --out x --method lora --quantize-embedding", train_on("llama_tied"));
    shell.fail(&command, &["--quantize-embedding is for --method qlora"]);
}

/// The gradients of a fixture's adapter with so many layers kept, and the bytes of kept activations. The plan is what is allocated.
fn gradients(model: &str, activation_format: ActivationFormat, keep: usize) -> (Vec<f32>, u64) {
    let dir = common::fixture(model);
    let source = Source::open(&dir).unwrap();
    let config = &source.config;
    let (modules, tensors) = common::adapter(&dir.join("adapter"), config);
    let settings = PlanSettings {
        base: BaseStorage::AsStored,
        max_rows: 64,
        max_positions: 64,
        recompute: RecomputePolicy::Keep(keep),
        dropout: 0.0,
        loraplus: false,
        neftune_alpha: 0.0,
        training: Some(MomentStorage::F32),
        distillation: None,
        shard: Shard::default(),
    };
    let gpu = common::gpu();
    let stored = |name: &str| source.stored(name);
    let plan = TrainPlan::with_activations(gpu.capabilities, config, stored, &modules, &settings, activation_format);
    let planned = plan.ledger();
    let mut engine = pollster::block_on(Engine::open(gpu, plan, &source, |_, _| {})).unwrap();
    assert_eq!(*engine.buffers.ledger(), planned);
    engine.write_adapter(&tensors);
    let input_ids: Vec<u32> = (0..41u32).map(|i| (i * 37 + 5) % 96).collect();
    let batch = [MicroBatch::from_examples([&Example::new(input_ids.clone(), vec![true; input_ids.len()])])];
    pollster::block_on(engine.accumulate(&batch, 0)).unwrap();
    let found = pollster::block_on(engine.read_gradients()).unwrap();
    let values: Vec<f32> = found.values().flatten().copied().collect();
    (values, planned.get(Category::KeptActivations))
}

/// The forward pass is the same; gradients read rounded activations.
#[test]
fn activations_kept_in_bf16_change_gradients_by_their_rounding_alone() {
    for model in ["llama_tied", "odd_sizes", "qwen3", "qwen3_moe", "mistral_window", "lfm2_old_keys"] {
        let (exact, _) = gradients(model, ActivationFormat::F32, 2);
        for keep in [0, 1, 2] {
            let (_, bytes) = gradients(model, ActivationFormat::F32, keep);
            let (rounded, fewer) = gradients(model, ActivationFormat::Bf16, keep);
            let error = common::relative_error(&rounded, &exact);
            println!("{model}, {keep} layers kept: relative error {error:.1e}, {fewer} bytes instead of {bytes}");
            // A recomputed first layer starts from the embedding, which the file may hold in bf16 already.
            assert!((keep < 2 || error > 0.0) && error < 5e-3, "{model}, {keep} layers kept: {error}");
            assert!(fewer < bytes * 8 / 10, "{model}, {keep} layers kept: {fewer} {bytes}");
        }
    }
}

/// Norms behind each part of a layer make more of a rounding: a first layer that is recomputed from a rounded embedding is off by 7e-3 in
/// Gemma 2 too. The embeddings of layers and the keys and values that several share stay in f32.
#[test]
fn gemma_4_keeps_what_is_its_own_in_bf16() {
    let (exact, _) = gradients("gemma4", ActivationFormat::F32, 6);
    for (keep, bound) in [(6, 5e-3), (0, 2e-2)] {
        let (same, bytes) = gradients("gemma4", ActivationFormat::F32, keep);
        let (rounded, fewer) = gradients("gemma4", ActivationFormat::Bf16, keep);
        assert!(common::relative_error(&same, &exact) < 1e-6, "{keep} layers kept");
        let error = common::relative_error(&rounded, &exact);
        assert!(error > 0.0 && error < bound, "{keep} layers kept: {error}");
        assert!(fewer < bytes * 9 / 10, "{keep} layers kept: {fewer} {bytes}");
    }
}

#[test]
fn runs_with_activations_in_bf16_start_alike_and_stay_near() {
    for model in ["llama_tied", "qwen3"] {
        let shell = Shell::new();
        shell.write("data.jsonl", random_lines(12, 96, 1));
        let run = |out: &str, options: &str| {
            let options = format!("{options} --steps 8 --rank 4 --lr 0.002 --recompute none");
            shell.succeed(&format!("{} --data data.jsonl --out {out} {options}", train_on(model)));
            shell.losses(out)
        };
        let (exact, rounded) = (run("f32", ""), run("bf16", "--activations bf16"));
        assert_eq!(exact[0], rounded[0], "{model}");
        assert_ne!(exact, rounded, "{model}");
        for (a, b) in exact.iter().zip(&rounded) {
            assert!((a / b - 1.0).abs() < 2e-3, "{model}: {exact:?} {rounded:?}");
        }
    }
}

#[test]
fn a_budget_that_only_bf16_fits_takes_it() {
    let all = RunSettings { recompute: RecomputeChoice::All, ..qlora(1) };
    let bytes = |activations| of("llama-2-7b", &RunSettings { activations, ..all.clone() }, 2048).total;
    let (whole, half) = (bytes(ActivationsChoice::F32), bytes(ActivationsChoice::Bf16));
    assert!(half < whole - 450_000_000, "{whole} {half}");
    for (budget, bf16, fits) in
        [(whole, false, true), (whole - 1, true, true), (half, true, true), (half - 1, true, false)]
    {
        let found = of("llama-2-7b", &RunSettings { gpu_memory: Some(budget), ..qlora(1) }, 2048);
        assert_eq!((found.bf16_activations, found.fits), (bf16, Some(fits)), "{budget}");
    }
}

/// Some 20 TFLOP, which a software adapter of two cores needs half an hour for. `LORAINE_LAYERS` takes fewer layers.
#[test]
#[ignore = "a step of 7B parameters: cargo test --test it memory:: -- --ignored --nocapture"]
fn a_step_of_a_7b_model_keeps_to_its_plan() {
    let mut config = shapes::by_name("llama-2-7b").unwrap();
    if let Ok(layers) = std::env::var("LORAINE_LAYERS") {
        config.num_layers = layers.parse().expect("a count of layers");
        config.sliding_windows.truncate(config.num_layers);
    }
    let settings = RunSettings { quantize_embedding: true, ..qlora(1) };
    let modules = targets::resolve(&settings.lora_config(), &config).unwrap();
    let gpu = common::gpu();
    let request = PlanRequest {
        settings: &settings,
        config: &config,
        modules: &modules,
        stored: &|_| Float::Bf16,
        max_rows: 512,
        max_positions: 512,
        distillation: None,
        capabilities: gpu.capabilities,
        shard: Shard::default(),
    };
    let plan = request.plan_within_budget().unwrap();
    let planned = plan.ledger();
    for (category, bytes) in planned.entries() {
        println!("{:<22} {bytes:>13}", category.name());
    }
    println!("{:<22} {:>13}", "planned", planned.total());
    let mut engine = pollster::block_on(Engine::with_random_weights(gpu, plan, 1)).unwrap();
    assert_eq!(*engine.buffers.ledger(), planned);
    assert!(planned.total() <= 4_600_000_000);
    engine.write_adapter(&factors::init(&modules, 1, LoraInit::KaimingUniform));
    let input_ids: Vec<u32> = (0..513u32).map(|i| (i * 7919 + 11) % config.vocab_size as u32).collect();
    let batch = [MicroBatch::from_examples([&Example::new(input_ids.clone(), vec![true; input_ids.len()])])];
    assert_eq!(batch[0].tokens.len(), 512);
    let started = std::time::Instant::now();
    let result = pollster::block_on(async {
        engine.step(&batch, &settings.optimizer(), 1e-4, 0).await.unwrap();
        engine.next_result().await.unwrap().unwrap()
    });
    println!("{result:?} in {:.0} s", started.elapsed().as_secs_f64());
    assert!(result.applied && result.grad_norm > 0.0, "{result:?}");
}
