//! Faults that tests play: each has to be named.

use super::*;
use crate::gpu::{GpuOptions, Kernel, MatrixUnits};
use crate::model::config::ModelConfig;

/// A device of its own, with the kernels for software adapters or for GPUs.
fn gpu(cpu: bool, matrix_units: MatrixUnits) -> Gpu {
    let options = GpuOptions { adapter: std::env::var("LORAINE_ADAPTER").ok(), matrix_units, ..GpuOptions::default() };
    let mut gpu = pollster::block_on(Gpu::open(&options)).unwrap();
    gpu.capabilities.cpu = cpu;
    gpu
}

fn subject(model_type: &str) -> Subject {
    let json = serde_json::json!({
        "model_type": model_type, "hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 101,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": if model_type == "gemma2" { "gelu_pytorch_tanh" } else { "silu" },
        "query_pre_attn_scalar": 16, "sliding_window": 64, "layer_types": model_type.starts_with("lfm2").then_some(["conv", "full_attention"]),
        "full_attention_interval": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 12, "linear_value_head_dim": 8,
        "block_auto_adjust_ff_dim": false,
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": true, "num_dense_layers": 1,
        "rope_scaling": (model_type == "gpt_oss").then(|| serde_json::json!({"rope_type": "yarn", "factor": 4.0})),
    });
    let config = ModelConfig::from_json(model_type.as_ref(), &json.to_string()).unwrap();
    Subject { name: model_type.to_owned(), config, rows: 67, quick: true }
}

fn ceilings() -> Ceilings {
    Ceilings { fma_gflops: 100.0, matrix_gflops: Some(200.0), copy_gb_per_s: 10.0, dispatch_us: 1.0 }
}

fn checked(gpu: &Gpu, case: &Case, fault: Fault<'_>) -> Check {
    pollster::block_on(check(gpu, case, &ceilings(), fault, &mut BTreeSet::new()))
}

/// No blind spot: a case notices when any one of its dispatches does not run.
#[test]
fn a_kernel_that_does_nothing_is_named() {
    for cpu in [false, true] {
        let gpu = gpu(cpu, MatrixUnits::Off);
        // The model with convolutions has the cases of the others, and its own, but for experts.
        let cases = cases::all(&subject("lfm2"), &gpu.capabilities);
        for case in cases
            .into_iter()
            .chain(["qwen3_moe", "lfm2_moe", "gpt_oss"].iter().flat_map(|of| experts::all(&subject(of))))
            .chain(linear_attention::all(&subject("qwen3_5_text")))
        {
            let mut count = 1;
            let mut at = 0;
            while at < count {
                let seen = std::cell::Cell::new(0);
                let drop_one = |_: &str, commands: &mut Vec<Command>| {
                    seen.set(commands.len());
                    if let Command::Dispatch(dispatch) = &mut commands[at] {
                        dispatch.workgroups = [0, 1, 1];
                    }
                };
                let check = checked(&gpu, &case, &drop_one);
                let told = format!("{}, software {cpu}, dispatch {at}: {check:?}", case.name);
                assert!(check.outcome == Outcome::Wrong && !check.problem.is_empty(), "{told}");
                (count, at) = (seen.get(), at + 1);
            }
        }
    }
}

#[test]
fn a_factor_that_is_off_by_a_thousandth_is_named() {
    let gpu = gpu(false, MatrixUnits::Off);
    let subject = subject("llama");
    // The factor of the scores stands among the parameters.
    let scale = subject.config.attention_scale * std::f32::consts::LOG2_E;
    let nudge = |_: &str, commands: &mut Vec<Command>| {
        for command in commands {
            if let Command::Dispatch(dispatch) = command {
                for word in dispatch.params.chunks_exact_mut(4) {
                    if word == scale.to_le_bytes() {
                        word.copy_from_slice(&(scale * 1.001).to_le_bytes());
                    }
                }
            }
        }
    };
    for case in cases::all(&subject, &gpu.capabilities).iter().filter(|case| case.name.starts_with("attention")) {
        let check = checked(&gpu, case, &nudge);
        assert!(check.outcome == Outcome::Wrong && check.error.is_some_and(|error| error < 0.1), "{check:?}");
    }
}

#[test]
fn a_report_names_the_wrong_and_the_refused_kernel_and_no_other() {
    let subject = subject("llama");
    let fault = |name: &str, commands: &mut Vec<Command>| {
        let Some(Command::Dispatch(dispatch)) = commands.first_mut() else { return };
        if name.starts_with("gated unit forward") {
            dispatch.workgroups = [1, 1, 1];
        } else if name.starts_with("dropout") {
            dispatch.kernel = Kernel::new::<u32>("torn", "this is no shader").into();
        }
    };
    let mut named = Vec::new();
    let mut progress = |case: &str| named.push(case.to_owned());
    let examined = examine_with(gpu(true, MatrixUnits::Off), &subject, &mut progress, &fault);
    let report = pollster::block_on(examined).unwrap();
    let failed: Vec<_> =
        report.checks.iter().filter(|check| check.failed()).map(|check| (&*check.name, check.outcome)).collect();
    let want = [("gated unit forward, 67 x 72", Outcome::Wrong), ("dropout, 67 x 64", Outcome::Refused)];
    assert_eq!(failed, want, "{:?}", report.findings);
    assert!(!report.healthy() && named.len() == report.checks.len() + 1);
    let [wrong, refused] = [&report.findings[0], &report.findings[1]];
    assert!(wrong.contains("act has values that are not finite") && wrong.contains("glu WG_SIZE="), "{wrong}");
    assert!(refused.starts_with("refused: dropout"), "{refused}");
    assert!(report.checks.iter().filter(|check| !check.failed()).all(|check| check.ms > 0.0));
    assert_eq!(report.unchecked, [""; 0]);
}

/// The variants for GPUs, with cooperative matrices, and for software adapters, there in a family with other formulas.
#[test]
fn every_kernel_of_a_step_is_right_and_has_a_check() {
    let all = [
        ("llama", false, MatrixUnits::Off),
        ("llama", false, MatrixUnits::On),
        ("gemma2", true, MatrixUnits::Off),
        ("lfm2", true, MatrixUnits::Off),
        ("qwen3_moe", false, MatrixUnits::Off),
        ("lfm2_moe", false, MatrixUnits::Off),
        ("gpt_oss", false, MatrixUnits::Off),
        ("qwen3_5_text", false, MatrixUnits::Off),
        ("qwen3_5_text", true, MatrixUnits::Off),
    ];
    for (model_type, cpu, matrix_units) in all {
        let (gpu, subject) = (gpu(cpu, matrix_units), subject(model_type));
        let mut seen = BTreeSet::new();
        for case in cases::all(&subject, &gpu.capabilities) {
            let check = pollster::block_on(check(&gpu, &case, &ceilings(), &|_, _| {}, &mut seen));
            assert_eq!(check.outcome, Outcome::Right, "software {cpu}, {matrix_units:?}: {check:?}");
        }
        let needed = subject.kernels(gpu.capabilities).unwrap();
        let missing: Vec<_> = needed.difference(&seen).collect();
        assert!(missing.is_empty(), "{model_type}, software {cpu}, {matrix_units:?}: {missing:?}");
    }
}
