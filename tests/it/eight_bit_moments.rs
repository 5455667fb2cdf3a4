//! `--optim adamw8bit` in whole runs: it learns as AdamW does, in less memory, and goes on bit by bit from its checkpoints.

use crate::common::cli::{Shell, random_lines, train_on};
use crate::common::{self, adapter, example, fixture, gpu};
use loraine::data::batches::MicroBatch;
use loraine::gpu::Category;
use loraine::model::source::Source;
use loraine::network::base::BaseStorage;
use loraine::network::moments::{HostMoment, MomentStorage, Shard};
use loraine::ops::adamw::AdamW;
use loraine::train::engine::Engine;
use loraine::train::plan::{PlanSettings, RecomputePolicy, TrainPlan};
use safetensors::{Dtype, SafeTensors};

/// With matrices of 4096 elements and more, and some of fewer.
const MODEL: &str = "odd_sizes";
/// The same of an adapter's factors.
const ADAPTER: &str = "--rank 64 --dropout 0.1";

fn train(shell: &Shell, out: &str, options: &str) -> String {
    shell.write("data.jsonl", random_lines(12, 101, 1));
    let command = format!("{} --data data.jsonl --out {out} --lr 0.003 {options}", train_on(MODEL));
    shell.succeed(&command)
}

#[test]
fn losses_stay_near_those_of_adamw() {
    const STEPS: usize = 40;
    for method in ["--method full --weight-decay 0.01", ADAPTER] {
        let shell = Shell::new();
        let run = |out: &str, options: &str| {
            train(&shell, out, &format!("{method} --steps {STEPS} --schedule constant {options}"));
            let bytes = shell.metrics(out)[0]["gpu_bytes"].as_u64().unwrap();
            (shell.losses(out), bytes)
        };
        let (whole, more) = run("f32", "");
        let (coded, less) = run("codes", "--optim adamw8bit");
        assert!(less < more, "{method}: {less} {more}");
        assert_eq!(run("again", "--optim adamw_8bit"), (coded.clone(), less), "{method}");
        // No moment has been read before the first step; what it left is rounded from the second on.
        assert!(coded[..2] == whole[..2] && coded != whole, "{method}: {coded:?} {whole:?}");
        assert!(whole[STEPS - 1] < 0.7 * whole[0], "{method}: {whole:?}");
        for (step, (a, b)) in whole.iter().zip(&coded).enumerate() {
            assert!((a / b - 1.0).abs() < 0.02, "{method}, step {step}: {b} instead of {a}");
        }
    }
}

#[test]
fn what_is_planned_is_allocated_and_comes_back_from_the_host() {
    let dir = fixture(MODEL);
    let source = Source::open(&dir).unwrap();
    let config = &source.config;
    let (modules, tensors) = adapter(&dir.join("adapter"), config);
    for (base, modules) in [(BaseStorage::Trained, &[][..]), (BaseStorage::AsStored, &modules)] {
        let open = |storage: MomentStorage| {
            let gpu = gpu();
            let settings = PlanSettings {
                base,
                max_rows: 32,
                max_positions: 32,
                recompute: RecomputePolicy::Keep(9),
                dropout: 0.0,
                loraplus: false,
                neftune_alpha: 0.0,
                training: Some(storage),
                distillation: None,
                shard: Shard::default(),
            };
            let stored = |name: &str| source.stored(name);
            let plan = TrainPlan::new(gpu.capabilities, config, stored, modules, &settings);
            let engine = pollster::block_on(Engine::open(gpu, plan, &source, |_, _| {})).unwrap();
            assert_eq!(engine.plan.ledger(), *engine.buffers.ledger());
            engine.write_adapter(&tensors);
            engine
        };
        let batch = [MicroBatch::from_examples([&example((0..24u32).map(|i| (i * 37 + 5) % 101).collect())])];
        let step = |engine: &mut Engine| {
            pollster::block_on(async {
                engine.step(&batch, &AdamW::default(), 0.01, 0).await.unwrap();
                engine.next_result().await.unwrap().unwrap()
            })
        };
        let mut first = open(MomentStorage::EightBit);
        step(&mut first);
        let values = pollster::block_on(first.read_values()).unwrap();
        let moments = pollster::block_on(first.read_moments()).unwrap();
        let coded = moments.iter().filter(|pair| matches!(pair[0], HostMoment::EightBit { .. })).count();
        assert!(base != BaseStorage::Trained || (coded > 4 && coded < moments.len()), "{coded} of {}", moments.len());
        let mut second = open(MomentStorage::EightBit);
        second.resume(1, &values, &moments);
        assert_eq!(pollster::block_on(second.read_moments()).unwrap(), moments);
        assert_eq!(step(&mut second), step(&mut first));
        assert_eq!(
            pollster::block_on(second.read_moments()).unwrap(),
            pollster::block_on(first.read_moments()).unwrap()
        );
        let bytes = |engine: &Engine| engine.plan.ledger().get(Category::Optimizer);
        assert!(base != BaseStorage::Trained || 2 * bytes(&first) < bytes(&open(MomentStorage::F32)));
    }
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    for (method, trained) in [("--method full", "model.safetensors"), (ADAPTER, "adapter_model.safetensors")] {
        let shell = Shell::new();
        let options = format!("{method} --optim adamw8bit --steps 8 --save-every 3 --keep 9");
        train(&shell, "whole", &options);
        train(&shell, "parts", &options);
        let state = shell.read("parts/checkpoints/step-3/optimizer.safetensors");
        let file = SafeTensors::deserialize(&state).unwrap();
        let of = |dtype| file.tensors().iter().filter(|(_, view)| view.dtype() == dtype).count();
        assert!(of(Dtype::U8) > 0 && of(Dtype::F32) > of(Dtype::U8), "codes with scales, and small tensors in f32");
        std::fs::remove_file(shell.path(&format!("parts/{trained}"))).unwrap();
        let shown = shell.succeed("train --resume parts/checkpoints/step-3");
        assert!(shown.contains("resumed after step 3 "), "{shown}");
        for file in [trained, "checkpoints/step-6/optimizer.safetensors"] {
            let [a, b] = ["whole", "parts"].map(|run| shell.read(&format!("{run}/{file}")));
            assert!(a == b, "{method}: {file}");
        }
        assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("parts"), "{method}");
    }
}

#[test]
fn a_checkpoint_of_the_other_optimizer_is_refused() {
    let shell = Shell::new();
    for (out, options, other) in [("codes", "--optim adamw8bit", "adamw"), ("f32", "", "adamw8bit")] {
        train(&shell, out, &format!("{ADAPTER} --steps 2 --save-every 1 {options}"));
        let made = if other == "adamw" { "adamw8bit" } else { "adamw" };
        shell.fail(
            &format!("train --resume {out} --steps 4 --optim {other}"),
            &[
                &format!("{out}/checkpoints/step-2/optimizer.safetensors"),
                "lora_A.exp_avg`",
                &format!("is of --optim {made} ("),
                &format!("the run has --optim {other}"),
            ],
        );
    }
    // Where all tensors are small the file says nothing, but the run's origin does.
    train(&shell, "small", "--rank 2 --steps 2 --save-every 1");
    shell.fail("train --resume small --steps 4 --optim adamw8bit", &["small/checkpoints/step-2", "--optim adamw, not"]);
    let damaged = shell.path("codes/checkpoints/step-2/optimizer.safetensors");
    common::cli::edit(&damaged, |bytes| {
        let at = bytes.windows(7).position(|w| w == b".absmax").unwrap();
        bytes[at + 1] = b'A';
    });
    shell.fail(
        "train --resume codes/checkpoints/step-2 --steps 4",
        &["step-2/optimizer.safetensors", "is damaged: its checksum is another than when it was saved"],
    );
}
