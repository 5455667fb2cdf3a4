//! AdamW's moments of a flat range of parameters, in f32 or in 8-bit codes: their buffers on the device, and their values on the host.

use crate::gpu::{Buffers, Category, Gpu, GpuError, MemoryPlan, Recorder, VIEW_ALIGNMENT, View};
use crate::ops::adamw;
use crate::ops::adamw8bit::{self, BLOCK, CodedMoments, ZERO_CODES};

/// The storage of AdamW's moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentStorage {
    /// 32-bit floats.
    F32,
    /// 8-bit codes with a scale for each 256 of them, see [`crate::ops::adamw8bit`].
    EightBit,
}

impl MomentStorage {
    /// Smaller tensors keep f32 (bitsandbytes' `min_8bit_size`): there is little to save, and they are norms and biases.
    const MIN_ELEMENTS: usize = 4096;

    /// The storage of a tensor of this many elements, in a run with this storage.
    pub fn of_tensor(self, elements: usize) -> Self {
        if elements < Self::MIN_ELEMENTS { Self::F32 } else { self }
    }

    /// Tensors within one range begin at multiples of this many bytes of parameters, so that none shares a block.
    pub fn tensor_alignment(self) -> u64 {
        match self {
            Self::F32 => VIEW_ALIGNMENT,
            Self::EightBit => 4 * BLOCK,
        }
    }
}

/// Both moments of a flat range on the device.
#[derive(Clone, Copy, Debug)]
pub enum Moments {
    /// The first and the second moment.
    F32([View; 2]),
    /// Codes and scales of both moments.
    EightBit(CodedMoments),
}

/// One moment of a tensor or a range on the host, with the bits that the device has.
#[derive(Clone, Debug, PartialEq)]
pub enum HostMoment {
    /// The values.
    F32(Vec<f32>),
    /// The codes of the values, with the scales of their blocks.
    EightBit {
        /// One for each value.
        codes: Vec<u8>,
        /// One for each block.
        scales: Vec<f32>,
    },
}

impl Moments {
    /// Plans the moments of `bytes` of parameters.
    pub fn plan(plan: &mut MemoryPlan, storage: MomentStorage, bytes: u64) -> Self {
        let labels = ["first moment", "second moment"];
        match storage {
            MomentStorage::F32 => Self::F32(labels.map(|label| plan.alloc(Category::Optimizer, label, bytes))),
            MomentStorage::EightBit => Self::EightBit(CodedMoments {
                codes: labels.map(|label| plan.alloc(Category::Optimizer, label, bytes / 4)),
                scales: plan.alloc(Category::Optimizer, "moment scales", 8 * adamw8bit::blocks(bytes / 4)),
            }),
        }
    }

    /// The storage of both moments.
    pub fn storage(&self) -> MomentStorage {
        match self {
            Self::F32(_) => MomentStorage::F32,
            Self::EightBit(_) => MomentStorage::EightBit,
        }
    }

    /// Records AdamW's step over the range; `tables` holds what [`adamw8bit::tables`] gives, `state` and `hyper` are as for
    /// [`adamw::step`].
    pub fn step(&self, rec: &mut Recorder, params: View, grads: View, tables: View, state: View, hyper: View) {
        match *self {
            Self::F32([m, v]) => adamw::step(rec, params, grads, m, v, state, hyper),
            Self::EightBit(coded) => adamw8bit::step(rec, params, grads, coded, tables, state, hyper),
        }
    }

    /// Both moments of the whole range as they are on the device now.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read(&self, gpu: &Gpu, buffers: &Buffers) -> Result<[HostMoment; 2], GpuError> {
        match self {
            Self::F32([m, v]) => Ok([
                HostMoment::F32(gpu.read_f32(buffers, *m).await?),
                HostMoment::F32(gpu.read_f32(buffers, *v).await?),
            ]),
            Self::EightBit(CodedMoments { codes, scales }) => {
                let scales = gpu.read_f32(buffers, *scales).await?;
                let read = async |moment: usize| -> Result<HostMoment, GpuError> {
                    let codes = gpu.read(buffers, codes[moment]).await?;
                    Ok(HostMoment::EightBit { codes, scales: scales.iter().skip(moment).step_by(2).copied().collect() })
                };
                Ok([read(0).await?, read(1).await?])
            }
        }
    }

    /// Sets both moments of the range. `values` covers the whole range.
    pub fn write(&self, gpu: &Gpu, buffers: &Buffers, values: &[HostMoment; 2]) {
        match (self, values) {
            (Self::F32(views), [HostMoment::F32(m), HostMoment::F32(v)]) => {
                for (view, values) in views.iter().zip([m, v]) {
                    gpu.write(buffers, *view, bytemuck::cast_slice(values));
                }
            }
            (
                Self::EightBit(to),
                [HostMoment::EightBit { codes: m, scales: of_m }, HostMoment::EightBit { codes: v, scales: of_v }],
            ) => {
                for (view, codes) in to.codes.iter().zip([m, v]) {
                    gpu.write(buffers, *view, codes);
                }
                let scales: Vec<[f32; 2]> = of_m.iter().zip(of_v).map(|(m, v)| [*m, *v]).collect();
                gpu.write(buffers, to.scales, bytemuck::cast_slice(&scales));
            }
            _ => unreachable!("moments are written in the storage that they were read from"),
        }
    }
}

impl HostMoment {
    /// The first (0) or second (1) moment of `elements` before any step, a multiple of four of them.
    pub fn zeros(storage: MomentStorage, moment: usize, elements: usize) -> Self {
        match storage {
            MomentStorage::F32 => Self::F32(vec![0.0; elements]),
            MomentStorage::EightBit => Self::EightBit {
                codes: vec![ZERO_CODES[moment]; elements],
                scales: vec![0.0; elements.div_ceil(BLOCK as usize)],
            },
        }
    }

    /// Elements `first .. first + count`; where codes are kept, whole blocks from a block's first element on.
    pub fn part(&self, first: usize, count: usize) -> Self {
        let blocks = |at: usize| at.div_ceil(BLOCK as usize);
        match self {
            Self::F32(values) => Self::F32(values[first..first + count].to_vec()),
            Self::EightBit { codes, scales } => Self::EightBit {
                codes: codes[first..first + count].to_vec(),
                scales: scales[blocks(first)..blocks(first + count)].to_vec(),
            },
        }
    }

    /// Sets the elements from `first` on to `part`, which [`Self::part`] made.
    pub fn place(&mut self, first: usize, part: &Self) {
        match (self, part) {
            (Self::F32(values), Self::F32(part)) => values[first..first + part.len()].copy_from_slice(part),
            (Self::EightBit { codes, scales }, Self::EightBit { codes: part, scales: of_part }) => {
                codes[first..first + part.len()].copy_from_slice(part);
                let block = first.div_ceil(BLOCK as usize);
                scales[block..block + of_part.len()].copy_from_slice(of_part);
            }
            _ => unreachable!("a part has the storage of the whole"),
        }
    }

    /// Appends the next range of a tensor.
    pub fn append(&mut self, next: Self) {
        match (self, next) {
            (Self::F32(values), Self::F32(mut next)) => values.append(&mut next),
            (Self::EightBit { codes, scales }, Self::EightBit { codes: mut next, scales: mut of_next }) => {
                codes.append(&mut next);
                scales.append(&mut of_next);
            }
            _ => unreachable!("a tensor's ranges have one storage"),
        }
    }
}
