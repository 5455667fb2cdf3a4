//! The base in training: for every tensor a gradient and AdamW's moments, laid out as the tensor itself, which is its own f32
//! master copy.

use std::collections::HashMap;

use super::network::Network;
use crate::gpu::{Buffers, Category, Gpu, GpuError, MemoryPlan, View};
use crate::ops::column_gradient;

/// A tensor of a model in f32 on the host, by its name in the files.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A range of parameters within one binding; all of the same length.
#[derive(Clone, Copy, Debug)]
pub struct TrainedRange {
    pub params: View,
    pub grads: View,
    /// AdamW's first and second moments.
    pub moments: [View; 2],
    elements: usize,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// One for each panel.
    ranges: Vec<TrainedRange>,
}

/// Which of a range's buffers is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Params,
    Grads,
    /// AdamW's first (0) or second (1).
    Moment(usize),
}

impl TrainedRange {
    fn view(&self, part: Part) -> View {
        match part {
            Part::Params => self.params,
            Part::Grads => self.grads,
            Part::Moment(index) => self.moments[index],
        }
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
}

impl Trained {
    /// Plans gradients and moments for all of `network`, whose matrices are in f32.
    pub fn plan(plan: &mut MemoryPlan, network: &Network, rows: u32) -> Self {
        let mut tensors = Vec::new();
        let mut range = |params: View, elements: usize| TrainedRange {
            params,
            grads: plan.alloc(Category::Gradients, "gradient", params.bytes),
            moments: ["first moment", "second moment"].map(|l| plan.alloc(Category::Optimizer, l, params.bytes)),
            elements,
        };
        for (name, weight) in network.weights() {
            let width = weight.in_features as usize;
            let ranges = weight.panels.iter().map(|panel| range(panel.data, panel.rows as usize * width)).collect();
            tensors.push(Tensor { name, shape: vec![weight.out_features as usize, width], ranges });
        }
        for (name, params, length) in network.vectors() {
            tensors.push(Tensor { name, shape: vec![length], ranges: vec![range(params, length)] });
        }
        let places = |tensor: &Tensor| tensor.ranges.iter().map(|r| (r.params, r.grads)).collect::<Vec<_>>();
        let gradients = tensors.iter().flat_map(places).collect();
        let heads = if network.config.qk_norm { network.config.num_heads as u64 } else { 1 };
        let words = 4 * u64::from(rows);
        Self {
            tensors,
            gradients,
            row_order: plan.alloc(Category::Uploads, "rows by token", words),
            row_scales: plan.alloc(Category::Workspace, "row scales", words * heads),
        }
    }

    /// Where the gradient of `params` is added up.
    pub fn gradient(&self, params: View) -> View {
        self.gradients[&params]
    }

    pub fn ranges(&self) -> impl Iterator<Item = &TrainedRange> {
        self.tensors.iter().flat_map(|tensor| &tensor.ranges)
    }

    /// Scratch that the gradients of vectors need for partial sums.
    pub fn partials_bytes(network: &Network) -> u64 {
        let lengths = network.vectors().into_iter().map(|(_, _, length)| length as u32);
        lengths.map(column_gradient::scratch_bytes).max().unwrap_or(16)
    }

    /// All tensors as they are on the device now.
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

    /// Names and shapes in the order of [`Self::read`].
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()))
    }
}
