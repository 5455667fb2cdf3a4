//! An adapter on the device: its factors as unpadded matrices in flat buffers, and for training their gradients and moments
//! at the same places of buffers beside them, so that clipping and AdamW are one pass over each.

use std::ops::Index;

use crate::gpu::{Buffers, Category, Gpu, GpuError, MemoryPlan, View};
use crate::lora::factors::{AdapterTensors, Factor, FactorSpec, ModuleFactors, factors};
use crate::lora::targets::LoraModule;
use crate::model::config::ModelConfig;
use crate::model::modules::Projection;
use crate::network::moments::{HostMoment, MomentStorage, Moments};
use crate::ops::dora;
use crate::ops::weight::{Panel, Weight};
use crate::quant::format::{Float, Storage};

/// A range of the adapter's parameters that one binding covers.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The values, f32, one factor after the other.
    pub params: View,
    /// Gradients and moments; `None` outside training.
    pub training: Option<TrainingState>,
    /// True for factors that have LoRA+'s learning rate.
    pub raised: bool,
}

/// Gradients and moments of a segment, each at the place of its parameter.
#[derive(Clone, Copy, Debug)]
pub struct TrainingState {
    /// Gradients, f32.
    pub grads: View,
    /// AdamW's two moments.
    pub moments: Moments,
}

/// One factor on the device.
#[derive(Clone, Debug)]
pub struct DeviceFactor {
    /// The part that it plays.
    pub factor: Factor,
    /// The factor as the frozen weight of a contraction of its own: A is `[rank, in_features]`, B `[out_features, rank]`.
    pub weight: Weight,
    /// The values, f32, row by row without padding.
    pub values: View,
    /// The gradient, laid out as `values`; `None` outside training.
    pub gradient: Option<View>,
    segment: usize,
    /// The place of its first element in the segment, in elements.
    first: usize,
    /// Number of its values; 0 where they are another module's.
    elements: usize,
}

/// One LoRA module on the device.
#[derive(Clone, Debug)]
pub struct DeviceModule {
    /// Columns of `x A^T`.
    pub rank: u32,
    /// Factor of `x A^T B^T`: alpha / rank, or alpha / sqrt(rank) with rank-stabilized scaling.
    pub scale: f32,
    /// A number that no other module has, so that the dropout masks of modules differ.
    pub site: u32,
    /// Its factors, in the order of [`factors`].
    pub factors: Vec<DeviceFactor>,
    /// The vectors of its outputs under DoRA.
    pub outputs: Option<dora::Outputs>,
}

impl DeviceModule {
    /// The factor of this kind, where the module has one.
    pub fn factor(&self, factor: Factor) -> Option<&DeviceFactor> {
        self.factors.iter().find(|own| own.factor == factor)
    }

    /// The vectors of DoRA and its magnitudes.
    pub fn dora(&self) -> Option<(dora::Outputs, &DeviceFactor)> {
        self.outputs.zip(self.factor(Factor::Magnitude))
    }
}

impl Index<Factor> for DeviceModule {
    type Output = DeviceFactor;

    fn index(&self, factor: Factor) -> &Self::Output {
        &self.factors[factor as usize]
    }
}

/// The place of a factor in its segment, before the segment has a buffer.
struct Place {
    spec: FactorSpec,
    segment: usize,
    /// Bytes from the segment's beginning.
    offset: u64,
}

impl Place {
    fn on_device(self, segments: &[Segment]) -> DeviceFactor {
        let Self { spec, segment, offset } = self;
        let Segment { params, training, .. } = segments[segment];
        // Bindings cover whole vectors of 16 bytes; the bytes up to there are the factor's own padding.
        let bytes = (4 * spec.elements() as u64).next_multiple_of(16).min(params.bytes - offset);
        let values = params.slice(offset, bytes);
        let [rows, cols] = spec.shape.map(|n| n as u32);
        DeviceFactor {
            factor: spec.factor,
            weight: Weight {
                storage: Storage::Float(Float::F32),
                out_features: rows,
                in_features: cols,
                panels: vec![Panel { first_row: 0, rows, data: values, absmax: None, nested: None }],
                bias: None,
            },
            values,
            gradient: training.map(|t| t.grads.slice(offset, bytes)),
            segment,
            first: (offset / 4) as usize,
            elements: spec.elements(),
        }
    }
}

/// The factors of an adapter on the device, with gradients and moments in training.
#[derive(Clone, Debug)]
pub struct DeviceAdapter {
    /// The ranges that hold the factors of all modules.
    pub segments: Vec<Segment>,
    /// `layer * 7 + projection`; None where the projection is not adapted.
    modules: Vec<Option<DeviceModule>>,
    /// The modules in the order of the adapter's file, as indices into `modules`.
    order: Vec<usize>,
}

fn slot(layer: usize, projection: Projection) -> usize {
    layer * Projection::ALL.len() + projection as usize
}

impl DeviceAdapter {
    /// Plans the buffers of `modules`. With `training`, gradients follow, and moments in that storage. A segment has
    /// at most `max_segment_bytes`. With `loraplus`, the factors with a learning rate of their own have segments of their own.
    pub fn plan(
        plan: &mut MemoryPlan,
        modules: &[LoraModule],
        model: &ModelConfig,
        training: Option<MomentStorage>,
        loraplus: bool,
        max_segment_bytes: u64,
    ) -> Self {
        // Places come before buffers: a segment is as long as the factors in it, and these have one storage of their moments and one
        // learning rate.
        let mut lengths: Vec<((MomentStorage, bool), u64)> = Vec::new();
        let mut place = |spec: FactorSpec| {
            let bytes = 4 * spec.elements() as u64;
            let moments = training.unwrap_or(MomentStorage::F32).of_tensor(spec.elements());
            let kind = (moments, loraplus && spec.factor.is_raised());
            let newest = lengths.iter().rposition(|(of, _)| *of == kind);
            let open = newest.filter(|at| lengths[*at].1 + bytes <= max_segment_bytes);
            let segment = open.unwrap_or_else(|| {
                lengths.push((kind, 0));
                lengths.len() - 1
            });
            let offset = lengths[segment].1;
            lengths[segment].1 = (offset + bytes).next_multiple_of(moments.tensor_alignment());
            Place { spec, segment, offset }
        };
        let places: Vec<Vec<Place>> =
            modules.iter().map(|module| factors(module, model).into_iter().map(&mut place).collect()).collect();
        let segments: Vec<Segment> = lengths
            .iter()
            .map(|((moments, raised), bytes)| Segment {
                raised: *raised,
                params: plan.alloc(Category::Adapter, "LoRA factors", *bytes),
                training: training.map(|_| TrainingState {
                    grads: plan.alloc(Category::Gradients, "LoRA gradients", *bytes),
                    moments: Moments::plan(plan, *moments, *bytes),
                }),
            })
            .collect();
        let mut adapted: Vec<Option<DeviceModule>> = vec![None; model.num_layers * Projection::ALL.len()];
        let mut order: Vec<usize> = Vec::new();
        for (module, places) in modules.iter().zip(places) {
            let at = slot(module.layer, module.projection);
            let owner = order.last().filter(|_| module.shares_a).and_then(|last| adapted[*last].clone());
            let factors = places.into_iter().map(|place| match &owner {
                Some(owner) if place.spec.factor == Factor::A => {
                    DeviceFactor { elements: 0, ..owner[Factor::A].clone() }
                }
                _ => place.on_device(&segments),
            });
            let outputs = module.factors.contains(&Factor::Magnitude).then(|| {
                let bytes = 4 * model.projection_shape(module.projection).0 as u64;
                let [squares, factors, inverses] =
                    ["squared norms", "DoRA factors", "inverse norms"].map(|l| plan.alloc(Category::Adapter, l, bytes));
                dora::Outputs { squares, factors, inverses }
            });
            adapted[at] = Some(DeviceModule {
                outputs,
                rank: module.rank as u32,
                scale: module.scale,
                // One A reads one input: its mask is the same for all parts.
                site: owner.as_ref().map_or(at as u32, |owner| owner.site),
                factors: factors.collect(),
            });
            order.push(at);
        }
        Self { segments, modules: adapted, order }
    }

    /// The module at this place; `None` where the projection has no adapter.
    pub fn module(&self, layer: usize, projection: Projection) -> Option<&DeviceModule> {
        self.modules.get(slot(layer, projection))?.as_ref()
    }

    /// The modules of DoRA, with their places.
    pub fn dora_modules(&self) -> impl Iterator<Item = (usize, Projection, &DeviceModule)> {
        self.order.iter().filter_map(|at| {
            let module = self.modules[*at].as_ref().filter(|module| module.outputs.is_some())?;
            let count = Projection::ALL.len();
            Some((at / count, Projection::ALL[at % count], module))
        })
    }

    /// The modules in the order of the file.
    pub fn modules(&self) -> impl Iterator<Item = &DeviceModule> {
        self.order.iter().filter_map(|at| self.modules[*at].as_ref())
    }

    /// The lowest layer with a module; nothing below it needs a gradient.
    pub fn lowest_layer(&self) -> usize {
        self.modules.iter().position(Option::is_some).unwrap_or(0) / Projection::ALL.len()
    }

    /// The largest rank of all modules; 0 where there are none.
    pub fn largest_rank(&self) -> u32 {
        self.modules().map(|m| m.rank).max().unwrap_or(0)
    }

    /// Uploads the factors that have values. `tensors` has the modules in the order of [`Self::modules`].
    pub fn write(&self, gpu: &Gpu, buffers: &Buffers, tensors: &AdapterTensors) {
        for (factor, values) in self.factors().zip(tensors.values()) {
            if factor.elements > 0 && !values.is_empty() {
                gpu.write(buffers, factor.values, bytemuck::cast_slice(values));
            }
        }
    }

    fn factors(&self) -> impl Iterator<Item = &DeviceFactor> {
        self.modules().flat_map(|module| &module.factors)
    }

    /// Both moments of every factor as they are on the device now, module by module; none outside training.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_moments(&self, gpu: &Gpu, buffers: &Buffers) -> Result<Vec<[HostMoment; 2]>, GpuError> {
        let mut segments = Vec::new();
        for segment in &self.segments {
            let Some(training) = segment.training else { return Ok(Vec::new()) };
            segments.push(training.moments.read(gpu, buffers).await?);
        }
        let of =
            |factor: &DeviceFactor| segments[factor.segment].each_ref().map(|m| m.part(factor.first, factor.elements));
        Ok(self.factors().map(of).collect())
    }

    /// Sets moments that [`Self::read_moments`] has given.
    pub fn write_moments(&self, gpu: &Gpu, buffers: &Buffers, factors: &[[HostMoment; 2]]) {
        for (at, Segment { params, training, .. }) in self.segments.iter().enumerate() {
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
    ///
    /// # Errors
    /// A failing device.
    pub async fn read(&self, gpu: &Gpu, buffers: &Buffers) -> Result<AdapterTensors, GpuError> {
        self.read_factors(gpu, buffers, |factor| Some(factor.values)).await
    }

    /// The gradients as they are on the device now; None outside training.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_gradients(&self, gpu: &Gpu, buffers: &Buffers) -> Result<AdapterTensors, GpuError> {
        self.read_factors(gpu, buffers, |factor| factor.gradient).await
    }

    async fn read_factors(
        &self,
        gpu: &Gpu,
        buffers: &Buffers,
        view: impl Fn(&DeviceFactor) -> Option<View>,
    ) -> Result<AdapterTensors, GpuError> {
        let mut modules = Vec::new();
        for module in self.modules() {
            let mut read = Vec::new();
            for factor in &module.factors {
                let mut values = Vec::new();
                if let Some(view) = view(factor).filter(|_| factor.elements > 0) {
                    values = gpu.read_f32(buffers, view).await?;
                    values.truncate(factor.elements);
                }
                read.push(values);
            }
            modules.push(ModuleFactors(read));
        }
        Ok(AdapterTensors { modules })
    }
}
