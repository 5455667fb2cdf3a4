//! The base in training. Its tensors are in f32 and trained in place; each has a gradient of the same layout, and AdamW's moments.

use std::collections::HashMap;

use super::base::Network;
use crate::gpu::{Buffers, Category, Gpu, GpuError, Matrix, MemoryPlan, View};
use crate::model::modules::{LinearPart, Norm};
use crate::model::tensors::{EMBEDDING, NamedTensor, TensorKind, TensorSpec};
use crate::network::moments::{HostMoment, MomentStorage, Moments, Shard};
use crate::ops::column_gradient;

/// A range of parameters within one binding, and what belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct TrainedRange {
    /// Values in f32, row by row: a panel of a matrix, or a vector.
    pub params: View,
    /// Gradients in f32, laid out as `params`.
    pub grads: View,
    /// AdamW's two moments, in the order of `params`.
    pub moments: Moments,
    /// False for norm gains and biases, which weight decay leaves alone, as in transformers' Trainer.
    pub decays: bool,
    /// The rank that keeps the moments and makes the steps.
    pub owner: usize,
    elements: usize,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// One for each panel.
    ranges: Vec<TrainedRange>,
}

/// The buffer of a range to read or to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The values.
    Params,
    /// The gradients.
    Grads,
}

impl TrainedRange {
    fn view(&self, part: Part) -> View {
        match part {
            Part::Params => self.params,
            Part::Grads => self.grads,
        }
    }
}

/// True for vectors that weight decay reaches: as in transformers' Trainer, all but norms and biases.
fn decays(kind: TensorKind) -> bool {
    matches!(kind, TensorKind::Convolution | TensorKind::Linear(LinearPart::Convolution | LinearPart::DecayLog))
}

/// The storage of the moments of a tensor of the base, where the run's setting is `asked`. Those of the embedding
/// stay in f32: its rows' gradients differ as much as the frequencies of words (Dettmers et al. 2022, section 2.3;
/// transformers does the same).
pub fn moment_storage(asked: MomentStorage, name: &str, elements: usize) -> MomentStorage {
    match asked {
        MomentStorage::EightBit if name == EMBEDDING => MomentStorage::F32,
        asked => asked.of_tensor(elements),
    }
}

/// Every tensor of a network in training.
#[derive(Clone, Debug)]
pub struct Trained {
    tensors: Vec<Tensor>,
    gradients: HashMap<View, View>,
    /// Row indices sorted by token, u32, for the embedding's gradient.
    pub row_order: View,
    /// One f32 for each row of a norm's input, heads counted apart.
    pub row_scales: View,
    /// The terms of each row in the gradient of a convolution's weights, `[rows, channels * taps]`, where layers have one.
    pub convolution_terms: Option<Matrix>,
}

impl Trained {
    /// Plans gradients for all of `network`, whose matrices are in f32, and the moments that `shard` keeps.
    pub fn plan(plan: &mut MemoryPlan, network: &Network, rows: u32, moments: MomentStorage, shard: Shard) -> Self {
        let mut tensors = Vec::new();
        let mut owners = shard.owners(&Self::moment_bytes(network, moments)).into_iter();
        let mut range = |params: View, elements: usize, moments: MomentStorage, decays: bool| {
            let owner = owners.next().unwrap_or(0);
            let grads = plan.alloc(Category::Gradients, "gradient", params.bytes);
            let moments = match owner == shard.rank {
                true => Moments::plan(plan, moments, params.bytes),
                false => Moments::Elsewhere(moments),
            };
            TrainedRange { params, grads, moments, decays, owner, elements }
        };
        for (spec, weight) in network.weights() {
            let width = weight.in_features as usize;
            let moments = moment_storage(moments, &spec.name, spec.elements());
            let ranges = weight
                .panels
                .iter()
                .map(|panel| range(panel.data, panel.rows as usize * width, moments, true))
                .collect();
            tensors.push(Tensor { name: spec.name, shape: spec.shape, ranges });
        }
        for (spec, params) in network.vectors() {
            let moments = moment_storage(moments, &spec.name, spec.elements());
            let decays = decays(spec.kind);
            let ranges = vec![range(params, spec.elements(), moments, decays)];
            tensors.push(Tensor { name: spec.name, shape: spec.shape, ranges });
        }
        let places = |tensor: &Tensor| tensor.ranges.iter().map(|r| (r.params, r.grads)).collect::<Vec<_>>();
        let gradients = tensors.iter().flat_map(places).collect();
        let config = &network.config;
        let linear = config.linear_attention.as_ref();
        let heads = if config.has_norm(Norm::Query) { config.num_heads as u64 } else { 1 };
        let heads = heads.max(linear.map_or(1, |of| of.value_heads as u64));
        let words = 4 * u64::from(rows);
        Self {
            tensors,
            gradients,
            row_order: plan.alloc(Category::Uploads, "rows by token", words),
            row_scales: plan.alloc(Category::Workspace, "row scales", words * heads),
            convolution_terms: (config.convolution_weights() > 0).then(|| {
                let cols = config.convolution_weights();
                plan.matrix(Category::Workspace, "terms of a convolution's gradient", rows, cols as u32)
            }),
        }
    }

    /// Bytes of the moments of each range, in the order in which the ranges are planned.
    fn moment_bytes(network: &Network, asked: MomentStorage) -> Vec<u64> {
        let of =
            |spec: &TensorSpec, params: View| moment_storage(asked, &spec.name, spec.elements()).bytes(params.bytes);
        let mut bytes = Vec::new();
        for (spec, weight) in network.weights() {
            bytes.extend(weight.panels.iter().map(|panel| of(&spec, panel.data)));
        }
        bytes.extend(network.vectors().map(|(spec, params)| of(&spec, params)));
        bytes
    }

    /// The gradient of `params`, to which each pass adds.
    pub fn gradient(&self, params: View) -> View {
        self.gradients[&params]
    }

    /// The ranges of all tensors, in the order of [`Self::read`].
    pub fn ranges(&self) -> impl Iterator<Item = &TrainedRange> {
        self.tensors.iter().flat_map(|tensor| &tensor.ranges)
    }

    /// Scratch that the gradients of vectors need for partial sums.
    pub fn partials_bytes(network: &Network) -> u64 {
        let lengths = network.vectors().map(|(spec, _)| spec.elements() as u32);
        lengths.map(column_gradient::scratch_bytes).max().unwrap_or(16)
    }

    /// All tensors as they are on the device now.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read(&self, gpu: &Gpu, buffers: &Buffers, part: Part) -> Result<Vec<NamedTensor>, GpuError> {
        let mut read = Vec::new();
        for tensor in &self.tensors {
            let mut values = Vec::new();
            for range in &tensor.ranges {
                let part = gpu.read_f32(buffers, range.view(part)).await?;
                values.extend_from_slice(&part[..range.elements]);
            }
            read.push(NamedTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), values });
        }
        Ok(read)
    }

    /// Sets tensors that [`Self::read`] has given, in its order.
    pub fn write(&self, gpu: &Gpu, buffers: &Buffers, part: Part, tensors: &[NamedTensor]) {
        for (tensor, from) in self.tensors.iter().zip(tensors) {
            let mut rest = from.values.as_slice();
            for range in &tensor.ranges {
                let (values, after) = rest.split_at(range.elements);
                gpu.write(buffers, range.view(part), bytemuck::cast_slice(values));
                rest = after;
            }
        }
    }

    /// Both moments of every tensor as they are on the device now, in the order of [`Self::read`].
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_moments(&self, gpu: &Gpu, buffers: &Buffers) -> Result<Vec<[HostMoment; 2]>, GpuError> {
        self.gather_moments(async |range| range.moments.read(gpu, buffers).await).await
    }

    /// Both moments of every tensor, of which `of` gives those of each range.
    ///
    /// # Errors
    /// An error of `of`.
    pub async fn gather_moments<E>(
        &self,
        mut of: impl AsyncFnMut(&TrainedRange) -> Result<[HostMoment; 2], E>,
    ) -> Result<Vec<[HostMoment; 2]>, E> {
        let mut read = Vec::new();
        for tensor in &self.tensors {
            let mut whole: Option<[HostMoment; 2]> = None;
            for range in &tensor.ranges {
                let [m, v] = of(range).await?.map(|moment| moment.part(0, range.elements));
                match &mut whole {
                    None => whole = Some([m, v]),
                    Some([first, second]) => {
                        first.append(m);
                        second.append(v);
                    }
                }
            }
            read.extend(whole);
        }
        Ok(read)
    }

    /// Sets moments that [`Self::read_moments`] has given.
    pub fn write_moments(&self, gpu: &Gpu, buffers: &Buffers, tensors: &[[HostMoment; 2]]) {
        for (range, values) in self.moments_by_range(tensors) {
            range.moments.write(gpu, buffers, &values);
        }
    }

    /// Each range with its part of moments that [`Self::read_moments`] has given.
    pub fn moments_by_range<'a>(
        &'a self,
        tensors: &'a [[HostMoment; 2]],
    ) -> impl Iterator<Item = (&'a TrainedRange, [HostMoment; 2])> {
        self.tensors.iter().zip(tensors).flat_map(|(tensor, from)| {
            let mut first = 0;
            tensor.ranges.iter().map(move |range| {
                let storage = range.moments.storage();
                let mut values = [0, 1].map(|i| HostMoment::zeros(storage, i, (range.params.bytes / 4) as usize));
                for (values, from) in values.iter_mut().zip(from) {
                    values.place(0, &from.part(first, range.elements));
                }
                first += range.elements;
                (range, values)
            })
        })
    }

    /// Names and shapes in the order of [`Self::read`].
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()))
    }
}
