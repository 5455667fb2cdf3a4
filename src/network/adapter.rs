//! An adapter on the device: its factors as unpadded matrices in flat buffers, and for training their gradients and moments
//! at the same places of buffers beside them, so that clipping and AdamW are one pass over each.

use crate::gpu::{Buffers, Category, Gpu, GpuError, MemoryPlan, View};
use crate::lora::adapter_file::{self, AdapterTensors};
use crate::lora::targets::LoraModule;
use crate::model::config::{ModelConfig, Projection};
use crate::network::moments::{HostMoment, MomentStorage, Moments};
use crate::ops::weight::{Panel, Weight};
use crate::quant::format::{Float, Storage};

/// One flat range of parameters, within one binding.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub params: View,
    pub training: Option<TrainingState>,
}

#[derive(Clone, Copy, Debug)]
pub struct TrainingState {
    pub grads: View,
    pub moments: Moments,
}

/// A factor's place; the gradient only in training.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    pub values: View,
    pub gradient: Option<View>,
    segment: usize,
    /// Of the segment's elements.
    first: usize,
    elements: usize,
}

/// One LoRA module on the device.
#[derive(Clone, Debug)]
pub struct DeviceModule {
    pub rank: u32,
    pub scale: f32,
    /// Separates the dropout masks of modules.
    pub site: u32,
    pub a: Factor,
    pub b: Factor,
    /// The factors as frozen weights of their own contractions: A `[rank, in]`, B `[out, rank]`.
    pub a_weight: Weight,
    pub b_weight: Weight,
}

#[derive(Clone, Debug)]
pub struct DeviceAdapter {
    pub segments: Vec<Segment>,
    /// `layer * 7 + projection`; None where the projection is not adapted.
    modules: Vec<Option<DeviceModule>>,
    /// In the order of the file: the index into `modules`.
    order: Vec<usize>,
}

fn slot(layer: usize, projection: Projection) -> usize {
    layer * Projection::ALL.len() + projection as usize
}

impl DeviceAdapter {
    /// Plans the buffers of `modules`; with `training`, gradients and moments too, the moments held so. Segments stay within
    /// `max_segment_bytes`.
    pub fn plan(
        plan: &mut MemoryPlan,
        modules: &[LoraModule],
        model: &ModelConfig,
        training: Option<MomentStorage>,
        max_segment_bytes: u64,
    ) -> Self {
        // First the places, then the buffers: a segment is as long as the factors that it took, whose moments are all held alike.
        let mut places = Vec::new();
        let mut lengths: Vec<(MomentStorage, u64)> = Vec::new();
        for module in modules {
            let (a, b) = adapter_file::shapes(module, model);
            for shape in [a, b] {
                let elements = shape[0] * shape[1];
                let bytes = 4 * elements as u64;
                let moments = training.unwrap_or(MomentStorage::F32).of_tensor(elements);
                let newest = lengths.iter().rposition(|(of, _)| *of == moments);
                let open = newest.filter(|at| lengths[*at].1 + bytes <= max_segment_bytes);
                let at = open.unwrap_or_else(|| {
                    lengths.push((moments, 0));
                    lengths.len() - 1
                });
                places.push((at, lengths[at].1, bytes, shape));
                lengths[at].1 = (lengths[at].1 + bytes).next_multiple_of(moments.tensor_alignment());
            }
        }
        let segments: Vec<Segment> = lengths
            .iter()
            .map(|(moments, bytes)| Segment {
                params: plan.alloc(Category::Adapter, "LoRA factors", *bytes),
                training: training.map(|_| TrainingState {
                    grads: plan.alloc(Category::Gradients, "LoRA gradients", *bytes),
                    moments: Moments::plan(plan, *moments, *bytes),
                }),
            })
            .collect();
        let mut adapted = vec![None; model.num_layers * Projection::ALL.len()];
        let mut order = Vec::new();
        for (i, module) in modules.iter().enumerate() {
            let factor = |(segment, offset, bytes, shape): (usize, u64, u64, [usize; 2])| {
                let Segment { params, training } = segments[segment];
                // Bindings cover whole vectors of 16 bytes; what follows a factor up to there is padding of its own.
                let bytes = u64::next_multiple_of(bytes, 16).min(params.bytes - offset);
                Factor {
                    values: params.slice(offset, bytes),
                    gradient: training.map(|t| t.grads.slice(offset, bytes)),
                    segment,
                    first: (offset / 4) as usize,
                    elements: shape[0] * shape[1],
                }
            };
            let weight = |data: View, shape: [usize; 2]| {
                let [rows, cols] = shape.map(|n| n as u32);
                Weight {
                    storage: Storage::Float(Float::F32),
                    out_features: rows,
                    in_features: cols,
                    panels: vec![Panel { first_row: 0, rows, data, absmax: None, nested: None }],
                    bias: None,
                }
            };
            let (a, b) = (places[2 * i], places[2 * i + 1]);
            let at = slot(module.layer, module.projection);
            adapted[at] = Some(DeviceModule {
                rank: module.rank as u32,
                scale: module.scale,
                site: at as u32,
                a: factor(a),
                b: factor(b),
                a_weight: weight(factor(a).values, a.3),
                b_weight: weight(factor(b).values, b.3),
            });
            order.push(at);
        }
        Self { segments, modules: adapted, order }
    }

    pub fn module(&self, layer: usize, projection: Projection) -> Option<&DeviceModule> {
        self.modules.get(slot(layer, projection))?.as_ref()
    }

    /// The modules in the order of the file.
    pub fn modules(&self) -> impl Iterator<Item = &DeviceModule> {
        self.order.iter().filter_map(|at| self.modules[*at].as_ref())
    }

    /// The lowest layer with a module; nothing below it needs a gradient.
    pub fn lowest_layer(&self) -> usize {
        self.modules.iter().position(Option::is_some).unwrap_or(0) / Projection::ALL.len()
    }

    pub fn largest_rank(&self) -> u32 {
        self.modules().map(|m| m.rank).max().unwrap_or(0)
    }

    pub fn write(&self, gpu: &Gpu, buffers: &Buffers, tensors: &AdapterTensors) {
        for (module, (a, b)) in self.modules().zip(&tensors.tensors) {
            for (factor, values) in [(&module.a, a), (&module.b, b)] {
                gpu.write(buffers, factor.values, bytemuck::cast_slice(values));
            }
        }
    }

    fn factors(&self) -> impl Iterator<Item = &Factor> {
        self.modules().flat_map(|module| [&module.a, &module.b])
    }

    /// Both moments of every factor as they are on the device now, A and B in turn; none outside training.
    pub async fn read_moments(&self, gpu: &Gpu, buffers: &Buffers) -> Result<Vec<[HostMoment; 2]>, GpuError> {
        let mut segments = Vec::new();
        for segment in &self.segments {
            let Some(training) = segment.training else { return Ok(Vec::new()) };
            segments.push(training.moments.read(gpu, buffers).await?);
        }
        let of = |factor: &Factor| segments[factor.segment].each_ref().map(|m| m.part(factor.first, factor.elements));
        Ok(self.factors().map(of).collect())
    }

    /// Sets moments that [`Self::read_moments`] has given.
    pub fn write_moments(&self, gpu: &Gpu, buffers: &Buffers, factors: &[[HostMoment; 2]]) {
        for (at, Segment { params, training }) in self.segments.iter().enumerate() {
            let Some(TrainingState { moments, .. }) = training else { continue };
            let elements = (params.bytes / 4) as usize;
            let mut values = [0, 1].map(|i| HostMoment::zeros(moments.storage(), i, elements));
            for (factor, from) in self.factors().zip(factors).filter(|(factor, _)| factor.segment == at) {
                for (values, from) in values.iter_mut().zip(from) {
                    values.place(factor.first, from);
                }
            }
            moments.write(gpu, buffers, &values);
        }
    }

    /// The factors as they are on the device now.
    pub async fn read(&self, gpu: &Gpu, buffers: &Buffers) -> Result<AdapterTensors, GpuError> {
        self.read_factors(gpu, buffers, |factor| Some(factor.values)).await
    }

    /// The gradients as they are on the device now; None outside training.
    pub async fn read_gradients(&self, gpu: &Gpu, buffers: &Buffers) -> Result<AdapterTensors, GpuError> {
        self.read_factors(gpu, buffers, |factor| factor.gradient).await
    }

    async fn read_factors(
        &self,
        gpu: &Gpu,
        buffers: &Buffers,
        view: impl Fn(&Factor) -> Option<View>,
    ) -> Result<AdapterTensors, GpuError> {
        let mut tensors = Vec::new();
        for module in self.modules() {
            let mut pair = [Vec::new(), Vec::new()];
            for (values, (factor, weight)) in
                pair.iter_mut().zip([(&module.a, &module.a_weight), (&module.b, &module.b_weight)])
            {
                if let Some(view) = view(factor) {
                    *values = gpu.read_f32(buffers, view).await?;
                    values.truncate((weight.out_features * weight.in_features) as usize);
                }
            }
            let [a, b] = pair;
            tensors.push((a, b));
        }
        Ok(AdapterTensors { tensors })
    }
}
