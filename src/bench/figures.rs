//! The project's own targets, compared with a report and the results of its peers.

use serde::Deserialize;

use super::report::Report;

/// The result of a program of `examples/peers`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "peer", rename_all = "lowercase")]
pub enum Peer {
    /// Burn's f32 matrix product of 1024 x 2048 x 2048 on wgpu.
    Burn {
        /// Measured speed in GFLOP/s.
        gflops: f64,
    },
    /// A QLoRA step of PyTorch, PEFT and bitsandbytes, of the model and batch `stories15m` `4 x 256`.
    PyTorch {
        /// Measured speed in tokens per second.
        tokens_per_s: f64,
    },
}

/// A figure with its measured value and its target.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The name of the figure.
    pub name: String,
    /// The measured value, with its unit.
    pub measured: String,
    /// The target, with its unit.
    pub aim: &'static str,
}

const MATRIX: &str = "1024 x 2048 x 2048";
const MODELS: [&str; 3] = ["stories15m", "llama-60m", "smollm2-135m"];

/// The figures for which the report and the peers have the data.
pub fn figures(report: &Report, peers: &[Peer]) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add = |name: String, measured: String, aim| figures.push(Figure { name, measured, aim });
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let operation = |name: &str| report.operations.iter().find(|op| op.name == name);
    let linear = ["linear forward NF4", "linear input gradient NF4"]
        .map(|name| operation(name).filter(|op| op.shape.starts_with(MATRIX)));
    for op in linear.into_iter().flatten() {
        add(format!("{} {MATRIX}, share of the ceiling", op.name), percent(op.share_of_ceiling), "30 %");
    }
    let step = report.steps.iter().find(|step| (step.model.as_str(), step.batch.as_str()) == (MODELS[0], "4 x 256"));
    for peer in peers {
        match peer {
            Peer::Burn { gflops } => {
                for op in linear.into_iter().flatten() {
                    let ratio = format!("{:.2} x", op.achieved / gflops);
                    add(format!("{} against Burn's f32 product", op.name), ratio, "2 x");
                }
            }
            Peer::PyTorch { tokens_per_s } => {
                if let Some(step) = step {
                    let ratio = format!("{:.2} x", step.tokens_per_s / tokens_per_s);
                    add(format!("{} step against PyTorch on the CPU", step.model), ratio, "0.5 x");
                }
            }
        }
    }
    if let Some(step) = step {
        let name = format!("{} step of {}, share of the ceiling", step.model, step.batch);
        add(name, percent(step.share_of_ceiling), "20 %");
    }
    if let Some(op) = operation("attention forward + backward") {
        add(format!("{}, {}, share of the ceiling", op.name, op.shape), percent(op.share_of_ceiling), "15 %");
    }
    let off = report.lengths.iter().map(|length| length.off_the_line.abs()).fold(0.0, f64::max);
    if let (Some(first), Some(last)) = (report.lengths.first(), report.lengths.last()) {
        let name = format!("bytes of {} to {} tokens, off a straight line by", first.tokens, last.tokens);
        add(name, percent(off), "linear");
    }
    let rates: Vec<f64> =
        report.steps.iter().filter(|step| MODELS.contains(&step.model.as_str())).map(|step| step.gflops).collect();
    if rates.len() == MODELS.len() {
        let (low, high) = rates.iter().fold((f64::MAX, 0.0f64), |(low, high), rate| (low.min(*rate), high.max(*rate)));
        add(format!("step time per operation of {}, spread", MODELS.join(", ")), percent(high / low - 1.0), "20 %");
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::super::{Ceilings, OperationResult, StepResult};
    use super::*;

    fn step(model: &str, gflops: f64) -> StepResult {
        StepResult {
            model: model.to_owned(),
            batch: "4 x 256".to_owned(),
            ms: 1.0,
            tokens_per_s: 300.0,
            gflops,
            share_of_ceiling: 0.25,
            host_ms: 1.0,
            gpu_bytes: 1,
            memory: Vec::new(),
            kernels: Vec::new(),
            operations: Vec::new(),
        }
    }

    #[test]
    fn figures_are_read_off_the_report_and_the_peers() {
        let operation = OperationResult {
            name: "linear forward NF4".to_owned(),
            shape: MATRIX.to_owned(),
            ms: 1.0,
            achieved: 40.0,
            unit: "GFLOP/s".to_owned(),
            share_of_ceiling: 0.4,
            by_matrices: false,
            kernel: String::new(),
        };
        let report = Report {
            gpu: String::new(),
            driver: String::new(),
            ceilings: Ceilings { fma_gflops: 100.0, matrix_gflops: None, copy_gb_per_s: 1.0, dispatch_us: 1.0 },
            operations: vec![operation],
            steps: [("stories15m", 20.0), ("llama-60m", 22.0), ("smollm2-135m", 21.0)].map(|(m, g)| step(m, g)).into(),
            lengths: Vec::new(),
        };
        let peers: Vec<Peer> =
            [r#"{"peer": "burn", "ms": 1, "gflops": 16.0}"#, r#"{"peer": "pytorch", "tokens_per_s": 600}"#]
                .map(|line| serde_json::from_str(line).unwrap())
                .into();
        let measured: Vec<String> = figures(&report, &peers).into_iter().map(|figure| figure.measured).collect();
        assert_eq!(measured, ["40.0 %", "2.50 x", "0.50 x", "25.0 %", "10.0 %"]);
    }
}
