// The common part of the optimizer's kernels. ops/adamw/mod.rs has the structs too.

const EXPONENT: u32 = 0x7f800000u;

struct Hyper {
    learning_rate: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    eps: f32,
    weight_decay: f32,
    first_correction: f32,
    second_correction_root: f32,
    max_norm: f32,
}

struct State { norm: f32, clip: f32, finite: f32, spare: f32 }
