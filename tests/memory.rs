//! What runs take on the device: figures held over plans, and one step of a 7B model that has to keep to its plan.

mod common;

use common::cli::{Shell, random_lines, train_on};
use loraine::data::Example;
use loraine::data::batches::MicroBatch;
use loraine::gpu::Category;
use loraine::lora::adapter_file;
use loraine::lora::config::LoraInit;
use loraine::lora::targets;
use loraine::memory::{ASSUMED_TARGET, Estimate, estimate};
use loraine::model::shapes;
use loraine::ops::weight::Float;
use loraine::train::engine::Engine;
use loraine::train::run::plan_within_budget;
use loraine::train::settings::{RecomputeChoice, RunSettings};

fn of(model: &str, settings: &RunSettings, seq_len: usize) -> Estimate {
    let config = shapes::by_name(model).unwrap();
    estimate(settings, &config, Float::Bf16, seq_len, ASSUMED_TARGET).unwrap()
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

/// Some 20 TFLOP, which a software adapter of two cores needs half an hour for. `LORAINE_LAYERS` takes fewer layers.
#[test]
#[ignore = "a step of 7B parameters: cargo test --test memory -- --ignored --nocapture"]
fn a_step_of_a_7b_model_keeps_to_its_plan() {
    let mut config = shapes::by_name("llama-2-7b").unwrap();
    if let Ok(layers) = std::env::var("LORAINE_LAYERS") {
        config.num_layers = layers.parse().expect("a count of layers");
        config.sliding_windows.truncate(config.num_layers);
    }
    let settings = RunSettings { quantize_embedding: true, ..qlora(1) };
    let modules = targets::resolve(&settings.lora_config(), &config).unwrap();
    let gpu = common::gpu();
    let plan = plan_within_budget(&settings, &config, &modules, |_| Float::Bf16, 512, 512, gpu.target).unwrap();
    let planned = plan.ledger();
    for (category, bytes) in planned.entries() {
        println!("{:<22} {bytes:>13}", category.name());
    }
    println!("{:<22} {:>13}", "planned", planned.total());
    let mut engine = pollster::block_on(Engine::with_random_weights(gpu, plan, 1)).unwrap();
    assert_eq!(*engine.buffers.ledger(), planned);
    assert!(planned.total() <= 4_600_000_000);
    engine.write_adapter(&adapter_file::init(&modules, &config, 1, LoraInit::KaimingUniform));
    let input_ids: Vec<u32> = (0..513u32).map(|i| (i * 7919 + 11) % config.vocab_size as u32).collect();
    let batch = [MicroBatch::from_examples([&Example { trained: vec![true; input_ids.len()], input_ids }])];
    assert_eq!(batch[0].tokens.len(), 512);
    let started = std::time::Instant::now();
    let result = pollster::block_on(async {
        engine.step(&batch, &settings.optimizer(), 1e-4, 0).await.unwrap();
        engine.next_result().await.unwrap().unwrap()
    });
    println!("{result:?} in {:.0} s", started.elapsed().as_secs_f64());
    assert!(result.applied && result.grad_norm > 0.0, "{result:?}");
}
