//! Which kernels are chosen decides how fast a run is, and nothing else.

use std::ops::Range;
use std::path::Path;

use crate::common::cli::{Shell, random_lines, train_on};
use crate::common::{adapter, fixture, gpu, take_for_gpu};
use loraine::data::Example;
use loraine::data::batches::MicroBatch;
use loraine::gpu::{AutotuneTable, Command, Gpu, ProblemSize, Recorder, Tune, TuneOptions};
use loraine::infer::generator::Generator;
use loraine::infer::plan;
use loraine::model::source::Source;
use loraine::network::base::BaseStorage;
use loraine::network::moments::{MomentStorage, Shard};
use loraine::ops::adamw::AdamW;
use loraine::ops::linear::Variant;
use loraine::quant::format::Code4;
use loraine::train::engine::Engine;
use loraine::train::plan::{PlanSettings, RecomputePolicy, TrainPlan};

const MODEL: &str = "llama_untied";
const NF4: BaseStorage = BaseStorage::Quantized(Code4::Nf4.storage(true));

/// The tests' adapter, taken for a GPU.
fn as_gpu(tune: Tune, cache: Option<&Path>) -> Gpu {
    let mut gpu = gpu();
    take_for_gpu(&mut gpu);
    gpu.tuning = TuneOptions { tune, cache: cache.map(Path::to_owned) };
    gpu
}

fn source() -> Source {
    Source::open(&fixture(MODEL)).unwrap()
}

fn engine(gpu: Gpu) -> Engine {
    let source = source();
    let config = &source.config;
    let (modules, tensors) = adapter(&fixture(MODEL).join("adapter"), config);
    let recompute = RecomputePolicy::Keep(0);
    let settings = PlanSettings {
        base: NF4,
        max_rows: 96,
        max_positions: 48,
        recompute,
        dropout: 0.0,
        loraplus: false,
        neftune_alpha: 0.0,
        training: Some(MomentStorage::F32),
        distillation: None,
        shard: Shard::default(),
    };
    let stored = |name: &str| source.stored(name);
    let plan = TrainPlan::new(gpu.capabilities, config, stored, &modules, &settings);
    let engine = pollster::block_on(Engine::open(gpu, plan, &source, |_, _| {})).unwrap();
    engine.write_adapter(&tensors);
    engine
}

/// Makes these steps of a run, on batches of uneven length.
fn steps(engine: &mut Engine, steps: Range<u32>) {
    for step in steps {
        let example = |length: u32| {
            let ids = (0..length).map(|i| (i * 31 + step * 7 + length) % 96).collect();
            Example::new(ids, vec![true; length as usize])
        };
        let batch = [MicroBatch::from_examples(&[example(40), example(2 + 17 * (step % 3))])];
        pollster::block_on(engine.step(&batch, &AdamW::default(), 1e-2, 0)).unwrap();
    }
    while pollster::block_on(engine.next_result()).unwrap().is_some() {}
}

/// For each problem the variant at `index`, counted round and round.
fn variants_at(engine: &Engine, index: usize) -> AutotuneTable {
    let mut autotune = AutotuneTable::default();
    for problem in engine.plan.problem_sizes() {
        let variants = Variant::all(&engine.plan.shared.capabilities, &problem);
        autotune.insert(problem.class(), variants[index % variants.len()].name());
    }
    autotune
}

fn kernels(rec: &Recorder) -> String {
    format!("{:?}", rec.commands)
}

#[test]
fn layers_that_read_one_input_make_its_gradient_together() {
    let products = |gpu: Gpu| {
        let pass = engine(gpu).plan.record_pass(96, 96, true);
        let of_gradient = |c: &&Command| matches!(c, Command::Dispatch(d) if d.op == "linear_input_gradient_4bit");
        pass.commands.iter().filter(of_gradient).count()
    };
    // q, k and v; o; gate and up; down. Nothing below the lowest layer's attention needs a gradient.
    let layers = source().config.num_layers;
    assert_eq!(products(as_gpu(Tune::Off, None)), 4 * layers - 1);
    assert_eq!(products(gpu()), if gpu().capabilities.cpu { 7 * layers - 3 } else { 4 * layers - 1 });
}

#[test]
fn a_run_resumed_with_other_kernels_is_the_uninterrupted_one() {
    let mut whole = engine(as_gpu(Tune::Off, None));
    assert_eq!(whole.plan.shared.autotune, AutotuneTable::default());
    steps(&mut whole, 0..4);
    let want = pollster::block_on(whole.read_values()).unwrap();
    let mut begun = engine(as_gpu(Tune::Off, None));
    steps(&mut begun, 0..2);
    let values = pollster::block_on(begun.read_values()).unwrap();
    let moments = pollster::block_on(begun.read_moments()).unwrap();
    assert_ne!(values, want);
    let usual = kernels(&begun.plan.record_pass(96, 96, true));
    for index in [1, 3] {
        let mut resumed = engine(as_gpu(Tune::Off, None));
        resumed.plan.shared.autotune = variants_at(&resumed, index);
        assert_ne!(kernels(&resumed.plan.record_pass(96, 96, true)), usual);
        resumed.resume(2, &values, &moments);
        steps(&mut resumed, 2..4);
        assert!(pollster::block_on(resumed.read_values()).unwrap() == want, "variants at {index}");
    }
}

#[test]
fn a_measured_run_has_the_bits_of_one_that_is_not() {
    let cache = tempfile::tempdir().unwrap();
    let measured = |tune| {
        let mut engine = engine(as_gpu(tune, Some(cache.path())));
        steps(&mut engine, 0..2);
        (pollster::block_on(engine.read_values()).unwrap(), engine.plan.shared.autotune.clone(), engine.plan.ledger())
    };
    let usual = measured(Tune::Off);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    let first = measured(Tune::Auto);
    assert!(first.0 == usual.0 && first.2 == usual.2);
    assert!(usual.1.lines().is_empty() && !first.1.lines().is_empty(), "{:?}", first.1);
    // The next start has all that the first has measured, and goes on where its time was up.
    let second = measured(Tune::Auto);
    assert!(second.0 == usual.0);
    let lines = second.1.lines();
    assert!(first.1.lines().iter().all(|line| lines.contains(line)), "{lines:?}");
}

#[test]
fn answers_do_not_depend_on_the_kernels() {
    let logits = |tune, cache: Option<&Path>| {
        let source = source();
        let settings = plan::PlanSettings { base: NF4, max_positions: 48, rows_per_pass: 40, caches: 1 };
        let opened = Generator::open(as_gpu(tune, cache), &source, &[], &settings, |_, _| {});
        let mut generator = pollster::block_on(opened).unwrap();
        let text: Vec<u32> = (0..41).map(|i| (i * 31 + 7) % 96).collect();
        let logits = pollster::block_on(generator.logits_after(&text, None)).unwrap();
        (logits, generator.plan.shared.autotune.lines(), generator.plan.problem_sizes())
    };
    let (usual, none, problem_sizes) = logits(Tune::Off, None);
    let (measured, some, _) = logits(Tune::On, None);
    assert!(usual == measured);
    assert!(none.is_empty() && !some.is_empty());
    // The passes of a prompt; one token's products have a form of their own, with nothing to choose from.
    assert!(!problem_sizes.is_empty() && problem_sizes.iter().all(|problem: &ProblemSize| problem.rows == 40));
}

#[test]
fn the_flag_changes_no_run() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(6, 96, 1));
    for tune in ["auto", "on", "off"] {
        shell.succeed(&format!("{} --data data.jsonl --out {tune} --steps 2 --tune {tune}", train_on("llama_tied")));
        shell.assert_same_adapter(tune, ["auto", tune]);
    }
    let command = format!("eval --model {} --data data.jsonl --json", fixture("llama_tied").display());
    let loss = |tune: &str| shell.succeed(&format!("{command} --tune {tune}"));
    assert_eq!(loss("on"), loss("off"));
}
