//! Variants of adapters and of their training: they repeat and resume to the bit, and change what they say.

use std::collections::BTreeSet;

use crate::common::cli::{Shell, copy_files, random_lines, token_lines, train_on};
use crate::common::*;
use loraine::data::batches::MicroBatch;
use loraine::gpu::Capabilities;
use loraine::infer::generator::Generator;
use loraine::infer::plan as generation;
use loraine::lora::adapter_file;
use loraine::lora::factors::{AdapterTensors, Factor};
use loraine::lora::targets::{LoraModule, Place};
use loraine::memory::estimate;
use loraine::model::config::ModelConfig;
use loraine::model::source::Source;
use loraine::network::base::BaseStorage;
use loraine::network::moments::{MomentStorage, Shard};
use loraine::ops::adamw::AdamW;
use loraine::quant::format::Float;
use loraine::train::engine::Engine;
use loraine::train::plan::{PlanSettings, RecomputePolicy, TrainPlan};
use loraine::train::settings::RunSettings;
use loraine::train::values::TrainedValues;

/// A run of each of `options`, again, and from its middle.
fn assert_repeats(model: &str, options: &str) {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(7, 96, 1));
    let command = format!(
        "{} --data data.jsonl --steps 4 --lr 0.01 --rank 4 --batch-size 2 --grad-accum 2 --save-every 2 --keep 9 {options}",
        train_on(model)
    );
    for out in ["whole", "again"] {
        shell.succeed(&format!("{command} --out {out}"));
    }
    shell.assert_same_adapter(options, ["whole", "again"]);
    copy_files(&shell.path("whole"), &shell.path("cut"));
    copy_files(&shell.path("whole/checkpoints/step-2"), &shell.path("cut/checkpoints/step-2"));
    let shown = shell.succeed(&format!("{command} --out cut --resume"));
    assert!(shown.contains("resumed after step 2 "), "{shown}");
    shell.assert_same_adapter(options, ["whole", "cut"]);
    assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("cut"), "{options}");
}

#[test]
fn noise_and_a_raised_learning_rate_repeat_and_resume() {
    assert_repeats("llama_tied", "--neftune-noise-alpha 5 --loraplus-lr-ratio 4 --optim adamw8bit");
}

#[test]
fn lora_plus_raises_the_learning_rate_of_b_alone() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(4, 96, 1));
    for (out, options) in [("plain", ""), ("raised", "--loraplus-lr-ratio 16"), ("one", "--loraplus-lr-ratio 1")] {
        let steps = "--steps 1 --lr 0.001 --schedule constant --max-grad-norm 0 --batch-size 4";
        shell.succeed(&format!("{} --data data.jsonl --out {out} {steps} {options}", train_on("llama_tied")));
    }
    shell.assert_same_adapter("ratio 1", ["plain", "one"]);
    let (plain, raised) = (shell.adapter("plain"), shell.adapter("raised"));
    for name in plain.names() {
        let factor = if name.contains("lora_B") { 16.0 } else { 1.0 };
        for (a, b) in plain.get(name).iter().zip(raised.get(name)) {
            assert!((factor * a - b).abs() <= 1e-6 * b.abs(), "{name}: {a} {b}");
        }
    }
}

#[test]
fn noise_is_for_training_steps_alone() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(4, 96, 1));
    for (out, options) in [("plain", ""), ("noisy", "--neftune-noise-alpha 5"), ("off", "--neftune-noise-alpha 0")] {
        let steps = "--steps 2 --lr 1e-9 --eval-data data.jsonl --batch-size 4";
        shell.succeed(&format!("{} --data data.jsonl --out {out} {steps} {options}", train_on("llama_tied")));
    }
    shell.assert_same_adapter("no noise", ["plain", "off"]);
    let evaluation = |run: &str| shell.metrics(run).iter().find_map(|line| line.get("eval_loss")?.as_f64());
    assert_eq!(evaluation("plain"), evaluation("noisy"));
    let [plain, noisy] = ["plain", "noisy"].map(|run| shell.losses(run)[0]);
    assert!((plain - noisy).abs() > 1e-4 && (plain - noisy).abs() < 1.0, "{plain} {noisy}");
}

#[test]
fn settings_without_a_use_are_refused() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(4, 96, 1));
    let train = format!("{} --data data.jsonl --out out", train_on("llama_tied"));
    shell.fail(&format!("{train} --loraplus-lr-ratio 0"), &["--loraplus-lr-ratio", "positive"]);
    shell.fail(&format!("{train} --method full --loraplus-lr-ratio 2"), &["--loraplus-lr-ratio", "adapter"]);
    shell.fail(&format!("{train} --neftune-noise-alpha -1"), &["--neftune-noise-alpha"]);
}

/// Adapters of PEFT under `tests/fixtures`: model, adapter and reference.
const OF_PEFT: &[(&str, &str)] = &[
    ("llama_tied", "dora"),
    ("qwen2", "dora"),
    ("phi3", "dora"),
    ("odd_sizes", "dora"),
    ("odd_sizes", "dora_nf4"),
    ("llama_tied", "saved"),
    ("llama_untied", "saved"),
    ("gemma2", "saved"),
    ("llama_tied", "vocabulary"),
    ("llama_untied", "vocabulary"),
    ("gemma2", "vocabulary"),
    ("odd_sizes", "head"),
    ("llama_tied", "tokens"),
    ("llama_untied", "tokens"),
    ("gemma2", "tokens"),
    ("odd_sizes", "tokens_nf4"),
    ("qwen2", "bias"),
    ("qwen2", "bias_all"),
    ("qwen2", "bias_dora"),
    ("qwen2", "lora_bias"),
    ("llama_tied", "grown"),
    ("llama_untied", "grown"),
];

#[test]
fn variants_repeat_and_resume() {
    for (model, options) in [
        ("llama_tied", "--use-dora --method lora --dropout 0.1 --recompute all"),
        ("phi3", "--use-dora --rslora --loraplus-lr-ratio 4 --optim adamw8bit"),
        ("llama_tied", "--modules-to-save lm_head,embed_tokens --optim adamw8bit --weight-decay 0.01"),
        ("llama_untied", "--target-modules q_proj,lm_head,embed_tokens --dropout 0.1 --method lora"),
        ("llama_tied", "--trainable-token-indices 5,70,0 --recompute all"),
        ("llama_untied", "--target-modules v_proj,lm_head --lora-bias"),
        ("qwen2", "--target-modules q_proj --bias all --use-dora --quantize-embedding --trainable-token-indices 9"),
    ] {
        assert_repeats(model, options);
    }
}

#[test]
fn a_new_dora_adapter_begins_as_its_base() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(4, 96, 1));
    for (out, options) in [("plain", ""), ("dora", "--use-dora"), ("dropped", "--use-dora --dropout 0.2")] {
        let steps = "--steps 1 --lr 1e-9 --eval-data data.jsonl --batch-size 4";
        shell.succeed(&format!("{} --data data.jsonl --out {out} {steps} {options}", train_on("odd_sizes")));
    }
    let evaluations = |run: &str| -> Vec<f64> {
        shell.metrics(run).iter().filter_map(|line| line.get("eval_loss")?.as_f64()).collect()
    };
    for run in ["dora", "dropped"] {
        for (a, b) in evaluations("plain").iter().zip(evaluations(run)) {
            assert!((a / b - 1.0).abs() < 1e-6, "{run}: {a} {b}");
        }
    }
    let adapter = shell.adapter("dora");
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    assert!(adapter.shape(name).len() == 1 && adapter.get(name).iter().all(|m| *m > 0.0));
    let config = String::from_utf8(shell.read("dora/adapter_config.json")).unwrap();
    assert!(config.contains("\"use_dora\": true"), "{config}");
}

/// Under dropout no reference has the same masks: the slope of the loss along the gradient is the square of its length.
#[test]
fn factors_under_dropout_have_the_slope_of_the_loss() {
    for (model, variant) in [("llama_untied", "vocabulary"), ("llama_tied", "tokens"), ("qwen2", "lora_bias")] {
        let (slope, square) = slope_along_gradient(model, variant, |_, _| true);
        assert!((slope / square - 1.0).abs() < 2e-2, "{model} {variant}: {slope} instead of {square}");
    }
}

/// Under dropout no reference has the same masks. The norms are constants to the gradient, so that only magnitudes have the slope of the
/// loss; those of the lowest layer see the gradient of every input above.
#[test]
fn magnitudes_under_dropout_have_the_slope_of_the_loss() {
    for model in ["qwen2", "phi3"] {
        for layer in [0, 1] {
            let of_layer = |module: &LoraModule, factor| {
                factor == Factor::Magnitude && matches!(module.place, Place::Layer(of, _) if of == layer)
            };
            let (slope, square) = slope_along_gradient(model, "dora", of_layer);
            assert!((slope / square - 1.0).abs() < 2e-2, "{model}, layer {layer}: {slope} instead of {square}");
        }
    }
}

/// The slope of the loss in the direction of the gradient of the chosen factors, and the square of that gradient's length.
fn slope_along_gradient(model: &str, variant: &str, chosen: impl Fn(&LoraModule, Factor) -> bool) -> (f64, f64) {
    let dir = fixture(model);
    let source = Source::open(&dir).unwrap();
    let read = adapter_file::load_for(&dir.join(format!("adapter_{variant}")), &source).unwrap();
    let (modules, tensors) = (read.modules, read.tensors);
    let settings = PlanSettings {
        base: BaseStorage::AsStored,
        max_rows: 64,
        max_positions: 64,
        recompute: RecomputePolicy::Keep(1),
        dropout: 0.3,
        loraplus: false,
        neftune_alpha: 0.0,
        training: Some(MomentStorage::F32),
        distillation: None,
        shard: Shard::default(),
    };
    let gpu = gpu();
    let plan = TrainPlan::new(gpu.capabilities, &source.config, |name| source.stored(name), &modules, &settings);
    let mut engine = pollster::block_on(Engine::open(gpu, plan, &source, |_, _| {})).unwrap();
    engine.write_adapter(&tensors);
    let ids = Reference::read(&dir.join("reference.safetensors")).ids("input_ids.0");
    let batch = [MicroBatch::from_examples([&example(ids)])];
    pollster::block_on(engine.accumulate(&batch, 5)).unwrap();
    let gradients = pollster::block_on(engine.read_gradients()).unwrap();
    let moments = pollster::block_on(engine.read_moments()).unwrap();
    let (mut square, step) = (0.0, 2e-3);
    let mut moved = [tensors.clone(), tensors];
    for (i, module) in modules.iter().enumerate() {
        for (at, factor) in module.factors.iter().enumerate().filter(|(_, factor)| chosen(module, **factor)) {
            let of = &gradients.modules[i].0[at];
            assert!(!of.is_empty(), "{factor:?} of {}", module.name());
            square += of.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
            for (to, sign) in moved.iter_mut().zip([1.0, -1.0]) {
                to.modules[i].0[at].iter_mut().zip(of).for_each(|(m, g)| *m += sign * step * g);
            }
        }
    }
    let mut loss = |values: &AdapterTensors| -> f64 {
        engine.resume(0, &TrainedValues::Adapter(values.clone()), &moments);
        pollster::block_on(engine.step(&batch, &AdamW::default(), 1e-30, 5)).unwrap();
        pollster::block_on(engine.next_result()).unwrap().unwrap().report.loss
    };
    ((loss(&moved[0]) - loss(&moved[1])) / (2.0 * f64::from(step)), square)
}

#[test]
fn adapters_of_peft_are_saved_as_they_were_read() {
    for (model, variant) in OF_PEFT {
        let dir = fixture(model);
        let mut source = Source::open(&dir).unwrap();
        let from = dir.join(format!("adapter_{variant}"));
        adapter_file::follow_vocabulary(&from, &mut source).unwrap();
        let read = adapter_file::load_for(&from, &source).unwrap();
        let out = tempfile::tempdir().unwrap();
        adapter_file::save_on(out.path(), &read.config, &read.modules, &read.tensors, &source).unwrap();
        let [a, b] = [&from, &out.path().to_owned()].map(|dir| Reference::read(&dir.join("adapter_model.safetensors")));
        // Of a grown vocabulary, PEFT saves each matrix three times.
        let once = |name: &&str| !name.contains(".modules_to_save.") && !name.contains(".original_module.");
        let names: BTreeSet<&str> = a.names().filter(once).collect();
        assert_eq!(names, b.names().collect(), "{model} {variant}");
        for name in names {
            // PEFT wrote copies of the base as it had it in memory, in f32.
            let same = name.contains("base_layer.weight") || a.bytes(name) == b.bytes(name);
            assert!(same && a.shape(name) == b.shape(name), "{model} {variant}: {name}");
        }
        let again = adapter_file::load_for(out.path(), &source).unwrap();
        assert_eq!(again.tensors, read.tensors);
    }
}

#[test]
fn generation_applies_adapters_of_peft_side_by_side() {
    for (model, variant) in OF_PEFT.iter().filter(|(_, variant)| !variant.ends_with("nf4")) {
        let dir = fixture(model);
        let mut source = Source::open(&dir).unwrap();
        let names = ["adapter".to_owned(), format!("adapter_{variant}")];
        adapter_file::follow_vocabulary(&dir.join(&names[1]), &mut source).unwrap();
        let adapters = names.map(|name| adapter_file::load_for(&dir.join(name), &source).unwrap());
        let settings =
            generation::PlanSettings { base: BaseStorage::AsStored, max_positions: 64, rows_per_pass: 5, caches: 1 };
        let mut generator =
            pollster::block_on(Generator::open(gpu(), &source, &adapters, &settings, |_, _| {})).unwrap();
        assert_eq!(generator.plan.ledger(), *generator.buffers.ledger(), "planned and allocated bytes");
        let plain = Reference::read(&dir.join("reference.safetensors"));
        let own = Reference::read(&dir.join(format!("reference_{variant}.safetensors")));
        let ids = plain.ids("input_ids.0");
        // The grown vocabulary has a text of its own, with one of its tokens.
        let own_ids = own.find("input_ids.0").map(|_| own.ids("input_ids.0"));
        for (adapter, logits) in
            [(Some(1), own.get("lora_logits.0")), (None, plain.get("logits.0")), (Some(0), plain.get("lora_logits.0"))]
        {
            let ids = own_ids.as_ref().filter(|_| adapter == Some(1)).unwrap_or(&ids);
            let got = pollster::block_on(generator.logits_after(ids, adapter)).unwrap();
            let what = format!("{model}, {variant}, adapter {adapter:?}");
            assert_close(&what, &got, &logits[logits.len() - got.len()..], 1e-4);
        }
    }
}

#[test]
fn merged_models_are_their_base_with_the_adapter() {
    for (model, variant) in OF_PEFT.iter().filter(|(_, variant)| !variant.ends_with("nf4")) {
        let shell = Shell::new();
        let trained_tokens: [&[u32]; 2] = [&[41, 3, 77, 41, 3, 0, 77, 0, 41], &[3, 3, 0, 41, 77]];
        shell.write("data.jsonl", random_lines(2, 96, 3) + &token_lines(trained_tokens));
        let dir = fixture(model);
        let (model, adapter) = (dir.display(), dir.join(format!("adapter_{variant}")));
        shell.succeed(&format!("merge --model {model} --adapter {} --out merged --dtype f32", adapter.display()));
        let loss = |of: &str| -> f64 {
            let shown = shell.succeed(&format!("eval {of} --data data.jsonl --json"));
            serde_json::from_str::<serde_json::Value>(&shown).unwrap()["loss"].as_f64().unwrap()
        };
        let apart = loss(&format!("--model {model} --adapter {}", adapter.display()));
        let merged = loss("--model merged");
        assert!((merged / apart - 1.0).abs() < 1e-5, "{model} {variant}: {merged} instead of {apart}");
        let base = loss(&format!("--model {model}"));
        assert!((base / apart - 1.0).abs() > 1e-4, "{model} {variant}: {base} and {apart}");
    }
}

#[test]
fn estimates_count_every_variant() {
    if std::env::var_os("LORAINE_FORMS").is_some() {
        eprintln!("skipped: the program plans for the kernels of its own device");
        return;
    }
    let shell = Shell::new();
    shell.write("data.jsonl", token_lines([[7; 33].as_slice(); 4]));
    let dir = fixture("llama_tied");
    let config = ModelConfig::from_file(&dir.join("config.json")).unwrap();
    for options in [
        "--use-dora",
        "--use-dora --loraplus-lr-ratio 2 --dropout 0.1 --method lora",
        "--modules-to-save embed_tokens",
        "--target-modules q_proj,lm_head,embed_tokens --dropout 0.1",
        "--trainable-token-indices 5,6,7",
    ] {
        let common = format!("--model {} --batch-size 2 --steps 1 --eval-fraction 0 {options}", dir.display());
        shell.succeed(&format!("train {common} --data data.jsonl --out out --overwrite"));
        let run = &shell.metrics("out")[0];
        let text = String::from_utf8(shell.read("out/run.toml")).unwrap();
        let mut table: toml::Table = toml::from_str(&text).unwrap();
        let record = table.remove("record").unwrap();
        let settings = RunSettings::from_table(table).unwrap();
        let estimate = estimate(&settings, &config, Float::F32, 33, gpu().capabilities).unwrap();
        assert_eq!(Some(estimate.total), run["gpu_bytes"].as_u64(), "{options}");
        let trained = record["trained_parameters"].as_integer().unwrap();
        assert_eq!(estimate.trained_parameters, trained as u64, "{options}");
    }
}

/// Whole copies of large vocabularies reach over several bindings.
#[test]
fn copies_in_several_pieces_train_as_one_piece() {
    let (Some(model), Some(case)) = (shared("models/stories260K"), shared("cases/adapter-modules-to-save/adapter"))
    else {
        return;
    };
    let source = Source::open(&model).unwrap();
    let read = adapter_file::load_for(&case, &source).unwrap();
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % source.config.vocab_size as u32).collect();
    let batch = [MicroBatch::from_examples([&example(ids)])];
    let run = |max_binding_bytes: u64, moments: MomentStorage| {
        let settings = PlanSettings {
            base: BaseStorage::AsStored,
            max_rows: 64,
            max_positions: 64,
            recompute: RecomputePolicy::Keep(9),
            dropout: 0.0,
            loraplus: false,
            neftune_alpha: 0.0,
            training: Some(moments),
            distillation: None,
            shard: Shard::default(),
        };
        let gpu = gpu();
        let capabilities = Capabilities { max_binding_bytes, ..gpu.capabilities };
        let plan = TrainPlan::new(capabilities, &source.config, |name| source.stored(name), &read.modules, &settings);
        let segments = plan.parameters.adapter.segments.len();
        let mut engine = pollster::block_on(Engine::open(gpu, plan, &source, |_, _| {})).unwrap();
        engine.write_adapter(&read.tensors);
        pollster::block_on(engine.accumulate(&batch, 0)).unwrap();
        let gradients = pollster::block_on(engine.read_gradients()).unwrap();
        for _ in 0..2 {
            pollster::block_on(engine.step(&batch, &AdamW::default(), 1e-3, 0)).unwrap();
        }
        let values = pollster::block_on(engine.read_values()).unwrap();
        let moments = pollster::block_on(engine.read_moments()).unwrap();
        engine.resume(2, &values, &moments);
        assert!(pollster::block_on(engine.read_values()).unwrap() == values, "values go back to their places");
        assert!(pollster::block_on(engine.read_moments()).unwrap() == moments, "moments go back to their places");
        (segments, gradients, values)
    };
    for moments in [MomentStorage::F32, MomentStorage::EightBit] {
        let (whole, gradients, values) = run(128 << 20, moments);
        let (pieces, of_pieces, values_of_pieces) = run(1 << 16, moments);
        assert!(pieces > whole, "{pieces} segments and {whole}");
        for (a, b) in gradients.values().zip(of_pieces.values()) {
            assert_close("gradient in pieces", b, a, 1e-4);
        }
        let (TrainedValues::Adapter(a), TrainedValues::Adapter(b)) = (values, values_of_pieces) else {
            panic!("an adapter")
        };
        for (a, b) in a.values().zip(b.values()) {
            let error = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 2e-3, "{error}");
        }
    }
}
