//! The measurements of operations at the shapes of real models.

use serde::{Deserialize, Serialize};

use super::ceilings::{Ceilings, Probe, REPETITIONS};
use crate::gpu::{Category, Gpu, Harness};
use crate::ops::attention::{self, Shape};
use crate::ops::glu::{self, Activation};
use crate::ops::weight::Weight;
use crate::ops::{cross_entropy, linear, lora_gradient, rms_norm};
use crate::quant::format::{BlockCode, Code4, Float, Storage};
use crate::{Result, tune};

/// The measurement of one operation at one shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperationResult {
    /// The name of the operation.
    pub name: String,
    /// The shape of its operands.
    pub shape: String,
    /// The time of one run in milliseconds.
    pub ms: f64,
    /// GFLOP/s for operations bound by arithmetic, GB/s for those bound by memory.
    pub achieved: f64,
    /// The unit of `achieved`.
    pub unit: String,
    /// The share of the adapter's ceiling, 0 to 1.
    pub share_of_ceiling: f64,
    /// True if the ceiling is that of cooperative matrices.
    #[serde(default)]
    pub by_matrices: bool,
    /// The kernel that a trial chose; empty without a trial.
    #[serde(default)]
    pub kernel: String,
}

/// The amount of the resource that limits an operation.
#[derive(Clone, Copy)]
enum Amount {
    Flops(f64),
    /// Operations of cooperative matrices.
    MatrixFlops(f64),
    Bytes(f64),
}

type Record = Box<dyn Fn(&mut Harness) -> Amount>;

pub(super) struct Case {
    pub name: &'static str,
    pub shape: String,
    record: Record,
}

/// A case with its time. Its share of a ceiling is computed once all ceilings are known.
pub(super) struct MeasuredCase {
    case: Case,
    kernel: String,
    amount: Amount,
    seconds: f64,
}

impl Case {
    /// Times the operation and the ceilings in turn.
    pub(super) async fn measure(self, gpu: &Gpu, probe: &mut Probe) -> Result<MeasuredCase> {
        let mut harness = Harness::new(gpu);
        (self.record)(&mut harness);
        let problem_sizes = std::mem::take(&mut harness.rec.problem_sizes);
        let autotune = tune::choices(gpu, &problem_sizes).await?;
        let kernels = problem_sizes.iter().filter_map(|problem| autotune.get(&problem.class()));
        let kernel = kernels.collect::<Vec<_>>().join(", ");
        let mut harness = Harness::new(gpu);
        harness.rec.autotune = autotune.clone();
        let amount = match (self.record)(&mut harness) {
            Amount::Flops(flops) if linear::by_matrices(&harness.rec) => Amount::MatrixFlops(flops),
            amount => amount,
        };
        let mut measured = harness.ready(gpu).await?;
        let mut seconds = f64::INFINITY;
        for _ in 0..REPETITIONS {
            seconds = seconds.min(measured.measure(gpu).await?);
            probe.refresh(gpu).await?;
        }
        Ok(MeasuredCase { case: self, kernel, amount, seconds })
    }
}

impl MeasuredCase {
    pub(super) fn result(self, ceilings: &Ceilings) -> OperationResult {
        let (amount, ceiling, unit) = match self.amount {
            Amount::Flops(flops) => (flops, ceilings.fma_gflops, "GFLOP/s"),
            Amount::MatrixFlops(flops) => (flops, ceilings.matrix_gflops.unwrap_or(f64::NAN), "GFLOP/s"),
            Amount::Bytes(bytes) => (bytes, ceilings.copy_gb_per_s, "GB/s"),
        };
        let achieved = amount / self.seconds / 1e9;
        OperationResult {
            name: self.case.name.to_owned(),
            shape: self.case.shape,
            ms: self.seconds * 1e3,
            achieved,
            unit: unit.to_owned(),
            share_of_ceiling: achieved / ceiling,
            by_matrices: matches!(self.amount, Amount::MatrixFlops(_)),
            kernel: self.kernel,
        }
    }
}

/// The cases in the order of the report.
pub(super) fn cases(quick: bool) -> Vec<Case> {
    let nf4 = Code4::Nf4.storage(true);
    let size = if quick { 1024 } else { 2048 };
    let mut cases = Vec::new();
    for (storage, names) in [
        (nf4, ["linear forward NF4", "linear input gradient NF4"]),
        (Storage::Blocks(BlockCode::Q4K), ["linear forward Q4_K", "linear input gradient Q4_K"]),
        (Storage::Blocks(BlockCode::Q6K), ["linear forward Q6_K", "linear input gradient Q6_K"]),
        (Storage::Blocks(BlockCode::Q80), ["linear forward Q8_0", "linear input gradient Q8_0"]),
        (Storage::Float(Float::Bf16), ["linear forward bf16", "linear input gradient bf16"]),
    ] {
        cases.push(linear_case(names[0], storage, size, true));
        cases.push(linear_case(names[1], storage, size, false));
    }
    cases.push(lora_gradient_case(1024, 16, 2048));
    let rows = if quick { 1024 } else { 2048 };
    for pass in [Pass::Forward, Pass::Backward, Pass::Both] {
        cases.push(attention_case(rows, pass));
    }
    cases.push(rms_norm_case(1024, 2048));
    cases.push(swiglu_case(1024, 5632));
    cases.push(cross_entropy_case(256, 32000));
    cases
}

fn linear_case(name: &'static str, storage: Storage, size: u32, forward: bool) -> Case {
    let rows = 1024;
    let record = move |harness: &mut Harness| {
        let weight = Weight::plan(&mut harness.plan, "weight", storage, [size, size], false, u64::MAX);
        let x = harness.plan.matrix(Category::Workspace, "x", rows, size);
        let y = harness.plan.matrix(Category::Workspace, "y", rows, size);
        if forward {
            linear::forward(&mut harness.rec, x, &weight, None, y, false);
        } else {
            linear::input_gradient(&mut harness.rec, x, &weight, None, y, false);
        }
        Amount::Flops(2.0 * f64::from(rows) * f64::from(size) * f64::from(size))
    };
    Case { name, shape: format!("{rows} x {size} x {size}"), record: Box::new(record) }
}

fn lora_gradient_case(rows: u32, rank: u32, cols: u32) -> Case {
    let record = move |harness: &mut Harness| {
        let x = harness.plan.matrix(Category::Workspace, "x", rows, cols);
        let low = harness.plan.matrix(Category::Workspace, "dy B", rows, rank);
        let gradient = harness.plan.matrix(Category::Gradients, "dA", rank, cols);
        lora_gradient::lora_a(&mut harness.rec, low, x, 1.0, gradient.view);
        Amount::Flops(2.0 * f64::from(rows) * f64::from(rank) * f64::from(cols))
    };
    Case { name: "LoRA gradient dA", shape: format!("{rows} x {rank} x {cols}"), record: Box::new(record) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
    Both,
}

fn attention_case(rows: u32, pass: Pass) -> Case {
    let shape = Shape { heads: 8, kv_heads: 8, head_dim: 64 };
    let record = move |harness: &mut Harness| {
        let width = shape.heads * shape.head_dim;
        let mut matrix = |label: &str| harness.plan.matrix(Category::Workspace, label, rows, width);
        let [q, k, v, out, dout, dq, dk, dv] = ["q", "k", "v", "out", "dout", "dq", "dk", "dv"].map(&mut matrix);
        let lse = harness.plan.alloc(Category::Workspace, "log-sum-exp", 4 * u64::from(rows * shape.heads));
        let scratch = harness.plan.alloc(Category::Workspace, "scratch", shape.scratch_bytes(rows));
        let mut ranges = |label: &str, range: &dyn Fn(u32) -> [u32; 2]| {
            let view = harness.plan.alloc(Category::Uploads, label, 8 * u64::from(rows));
            let words: Vec<u32> = (0..rows).flat_map(range).collect();
            harness.uploads.push((view, bytemuck::cast_slice(&words).to_vec()));
            view
        };
        let keys = ranges("key ranges", &|row| [0, row + 1]);
        let queries = ranges("query ranges", &|row| [row, rows]);
        // Causal attention computes half of the square. Forward takes two products, backward five without the recomputed ones.
        let product = f64::from(rows) * f64::from(rows) * f64::from(width);
        let mut flops = 0.0;
        let rec = &mut harness.rec;
        let operands =
            attention::Operands { shape, scale: 0.125, cap: None, sinks: None, q, k, v, key_ranges: keys, out, lse };
        if pass != Pass::Backward {
            attention::forward(rec, &operands);
            flops += 2.0 * product;
        }
        if pass != Pass::Forward {
            let gradients = attention::Gradients { query_ranges: queries, dout, scratch, dq, dk, dv };
            attention::backward(rec, &operands, &gradients);
            flops += 5.0 * product;
        }
        Amount::Flops(flops)
    };
    let name = match pass {
        Pass::Forward => "attention forward",
        Pass::Backward => "attention backward",
        Pass::Both => "attention forward + backward",
    };
    Case { name, shape: format!("{rows} tokens, 8 heads of 64, causal"), record: Box::new(record) }
}

fn rms_norm_case(rows: u32, cols: u32) -> Case {
    let record = move |harness: &mut Harness| {
        let x = harness.plan.matrix(Category::Workspace, "x", rows, cols);
        let y = harness.plan.matrix(Category::Workspace, "y", rows, cols);
        let gain = harness.plan.alloc(Category::Weights, "gain", 4 * u64::from(cols));
        let norm = rms_norm::NormConstants { eps: 1e-5, gain_offset: 0.0 };
        rms_norm::forward(&mut harness.rec, x, gain, norm, y);
        Amount::Bytes(8.0 * f64::from(rows) * f64::from(cols))
    };
    Case { name: "RMSNorm", shape: format!("{rows} x {cols}"), record: Box::new(record) }
}

fn swiglu_case(rows: u32, cols: u32) -> Case {
    let record = move |harness: &mut Harness| {
        let mut matrix = |label: &str| harness.plan.matrix(Category::Workspace, label, rows, cols);
        let (gate, up, act) = (matrix("gate"), matrix("up"), matrix("act"));
        glu::forward(&mut harness.rec, Activation::Silu, gate, up, act);
        Amount::Bytes(12.0 * f64::from(rows) * f64::from(cols))
    };
    Case { name: "SwiGLU", shape: format!("{rows} x {cols}"), record: Box::new(record) }
}

fn cross_entropy_case(rows: u32, vocabulary: u32) -> Case {
    let record = move |harness: &mut Harness| {
        let logits = harness.plan.matrix(Category::Workspace, "logits", rows, vocabulary);
        let mut vector = |label: &str| harness.plan.alloc(Category::Workspace, label, 4 * u64::from(rows));
        let (labels, losses, scalars) = (vector("labels"), vector("losses"), vector("scalars"));
        let plain = cross_entropy::LogitRange::PLAIN;
        cross_entropy::forward_backward(&mut harness.rec, (logits, plain), labels, scalars, losses, true);
        // Read for the sum, read and written for the gradient.
        Amount::Bytes(12.0 * f64::from(rows) * f64::from(vocabulary))
    };
    Case { name: "cross-entropy with gradient", shape: format!("{rows} x {vocabulary}"), record: Box::new(record) }
}
