//! The optimizer's buffers and its list: gradient norm, clipping and AdamW over everything that is trained.

use std::ops::Range;

use crate::gpu::{Buffers, Category, Gpu, MemoryPlan, Recorder, View};
use crate::network::moments::{MomentStorage, Moments};
use crate::ops::adamw::{self, Hyper};
use crate::ops::adamw8bit;

/// Steps whose results may be under way to the host while the next ones run.
pub const RESULTS_IN_FLIGHT: usize = 3;
/// State and loss in one buffer, at the alignment of a binding.
const METRICS_BYTES: u64 = 512;
/// Bytes of an [`adamw::Hyper`], and the places of the one without weight decay and of those with LoRA+'s learning rate, at the
/// alignment of a binding.
const HYPER_BYTES: u64 = size_of::<Hyper>() as u64;
const WITHOUT_DECAY_AT: u64 = 256;
const RAISED_AT: u64 = 512;
/// Offset of the sum of losses in the metrics, in bytes.
pub const TOTAL_LOSS_AT: u64 = 256;

/// A contiguous range of trained parameters within one binding, its gradients and its moments.
#[derive(Clone, Copy, Debug)]
pub struct ParameterRange {
    /// Values, f32.
    pub params: View,
    /// Gradients, f32, laid out as `params`.
    pub grads: View,
    /// AdamW's two moments, in the order of `params`.
    pub moments: Moments,
    /// False where weight decay leaves the parameters alone.
    pub decays: bool,
    /// True for parameters with LoRA+'s learning rate.
    pub raised: bool,
    /// The rank of a group that keeps the moments and makes the steps.
    pub owner: usize,
}

/// A part of the optimizer's list. Between them, ranks that share out the moments exchange what they have computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptimizerPart {
    /// The sums of squares of the gradients whose moments are here.
    NormSums,
    /// Norm and clipping, from all sums.
    Clip,
    /// AdamW over the ranges whose moments are here.
    Step,
}

impl OptimizerPart {
    /// Every part, in the order of a step.
    pub const ALL: [Self; 3] = [Self::NormSums, Self::Clip, Self::Step];
}

/// The buffers of a step beside gradients and moments.
#[derive(Clone, Debug)]
pub struct OptimizerBuffers {
    /// [`adamw::Hyper`] of the step at hand, then the same without weight decay; where any range is raised, both with LoRA+'s learning
    /// rate.
    hyper: View,
    /// [`adamw8bit::tables`], where any moments are in 8 bits.
    pub code_tables: Option<View>,
    /// Sums of squares of parts of the gradients, range by range.
    pub partials: View,
    /// [`adamw::State`], then the sum of losses at [`TOTAL_LOSS_AT`].
    pub metrics: View,
    /// Copies of `metrics` on their way to the host, used by the steps in turn.
    pub results: [View; RESULTS_IN_FLIGHT],
    /// u32 from which the dropout masks and the noise of a micro-batch are drawn, then the size of the noise, f32.
    pub dropout_seed: View,
}

impl OptimizerBuffers {
    /// Plans the buffers of an optimizer over `ranges`.
    pub fn plan(memory: &mut MemoryPlan, ranges: &[ParameterRange]) -> Self {
        let grads: Vec<View> = ranges.iter().map(|range| range.grads).collect();
        let coded = ranges.iter().any(|range| range.moments.storage() == MomentStorage::EightBit);
        let table_bytes = size_of_val(&adamw8bit::tables()) as u64;
        let raised = if ranges.iter().any(|range| range.raised) { RAISED_AT } else { 0 };
        Self {
            hyper: memory.alloc(Category::Uploads, "optimizer settings", raised + WITHOUT_DECAY_AT + HYPER_BYTES),
            code_tables: coded.then(|| memory.alloc(Category::Optimizer, "8-bit code tables", table_bytes)),
            partials: memory.alloc(Category::Workspace, "gradient norm partial sums", adamw::partials_bytes(&grads)),
            metrics: memory.alloc(Category::Uploads, "step results", METRICS_BYTES),
            results: [(); RESULTS_IN_FLIGHT].map(|()| memory.alloc_readback("step results read-back", METRICS_BYTES)),
            dropout_seed: memory.alloc(Category::Uploads, "dropout seed", 16),
        }
    }

    /// Writes the settings of a step; `ratio` is LoRA+'s.
    pub fn write_hyper(&self, gpu: &Gpu, buffers: &Buffers, hyper: &Hyper, ratio: f64) {
        for raised in [false, true] {
            let learning_rate = (f64::from(hyper.learning_rate) * if raised { ratio } else { 1.0 }) as f32;
            for (decays, weight_decay) in [(true, hyper.weight_decay), (false, 0.0)] {
                if raised && self.hyper.bytes < RAISED_AT {
                    continue;
                }
                let hyper = Hyper { learning_rate, weight_decay, ..*hyper };
                gpu.write(buffers, self.hyper_of(decays, raised), bytemuck::bytes_of(&hyper));
            }
        }
    }

    fn hyper_of(&self, decays: bool, raised: bool) -> View {
        let at = if decays { 0 } else { WITHOUT_DECAY_AT } + if raised { RAISED_AT } else { 0 };
        self.hyper.slice(at, HYPER_BYTES)
    }

    /// The [`adamw::State`] of the step.
    pub fn state(&self) -> View {
        self.metrics.slice(0, 16)
    }

    /// The sum of the step's losses, f32.
    pub fn total_loss(&self) -> View {
        self.metrics.slice(TOTAL_LOSS_AT, 16)
    }

    /// Records a part of a step: clipping by the norm of all gradients, then AdamW over every range. Records nothing where nothing is
    /// trained.
    pub fn record(&self, rec: &mut Recorder, ranges: &[ParameterRange], part: OptimizerPart) {
        if ranges.is_empty() {
            return;
        }
        let grads: Vec<View> = ranges.iter().map(|range| range.grads).collect();
        let here = ranges.iter().enumerate().filter(|(_, range)| range.moments.are_here());
        match part {
            OptimizerPart::NormSums => here.for_each(|(at, _)| adamw::norm_sums(rec, &grads, at, self.partials)),
            OptimizerPart::Clip => {
                adamw::clip(rec, &grads, self.hyper_of(true, false), self.partials, self.state());
            }
            OptimizerPart::Step => {
                let tables = self.code_tables.unwrap_or(rec.unused);
                for (_, range) in here {
                    let hyper = self.hyper_of(range.decays, range.raised);
                    range.moments.step(rec, range.params, range.grads, tables, self.state(), hyper);
                }
            }
        }
    }

    /// The bytes of the sums of squares whose range has this owner.
    pub fn sums_of(ranges: &[ParameterRange], owner: usize) -> Vec<Range<usize>> {
        let mut first = 0;
        let place = |range: &ParameterRange| {
            let bytes = adamw::partials_bytes(&[range.grads]) as usize;
            first += bytes;
            (range.owner == owner).then_some(first - bytes..first)
        };
        ranges.iter().filter_map(place).collect()
    }
}
