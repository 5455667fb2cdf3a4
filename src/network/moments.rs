//! The optimizer's moments of a flat range of parameters: those of AdamW in f32 or in 8-bit codes, and the one of Lion. Their buffers on the
//! device, and their values on the host.

use crate::gpu::{Buffers, Category, Gpu, GpuError, MemoryPlan, Recorder, VIEW_ALIGNMENT, View};
use crate::ops::adamw;
use crate::ops::adamw8bit::{self, BLOCK, CodedMoments, ZERO_CODES};
use crate::ops::lion;

/// The moments that an optimizer keeps, and their storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentStorage {
    /// 32-bit floats.
    F32,
    /// 8-bit codes with a scale for each 256 of them, see [`crate::ops::adamw8bit`].
    EightBit,
    /// The momentum of [`crate::ops::lion`] in 32-bit floats, and no second moment.
    Momentum,
}

/// The place of this device among those that share out the moments of one model (ZeRO-1, Rajbhandari et al. 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Number of this device, from 0.
    pub rank: usize,
    /// Number of devices.
    pub size: usize,
}

/// One device that keeps all moments.
impl Default for Shard {
    fn default() -> Self {
        Self { rank: 0, size: 1 }
    }
}

impl Shard {
    /// The rank that keeps the moments of each range, where they have so many `bytes`. The largest come first, and each goes to the rank
    /// that has the least so far. No rank keeps more than the first one.
    pub fn owners(self, bytes: &[u64]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..bytes.len()).collect();
        order.sort_by_key(|range| std::cmp::Reverse(bytes[*range]));
        let (mut loads, mut owners) = (vec![0; self.size], vec![0; bytes.len()]);
        for range in order {
            let least = (0..self.size).min_by_key(|rank| loads[*rank]).unwrap_or(0);
            owners[range] = least;
            loads[least] += bytes[range];
        }
        let mut ranks: Vec<usize> = (0..self.size).collect();
        ranks.sort_by_key(|rank| std::cmp::Reverse(loads[*rank]));
        let mut places = vec![0; self.size];
        ranks.iter().enumerate().for_each(|(place, rank)| places[*rank] = place);
        owners.iter().map(|owner| places[*owner]).collect()
    }
}

impl MomentStorage {
    /// Bytes of the moments of `bytes` of parameters.
    pub fn bytes(self, bytes: u64) -> u64 {
        match self {
            Self::F32 => 2 * bytes,
            Self::Momentum => bytes,
            Self::EightBit => bytes / 2 + 8 * adamw8bit::blocks(bytes / 4),
        }
    }

    /// Smaller tensors keep f32 (bitsandbytes' `min_8bit_size`): there is little to save, and they are norms and biases.
    const MIN_ELEMENTS: usize = 4096;

    /// The storage of a tensor of this many elements, in a run with this storage.
    pub fn of_tensor(self, elements: usize) -> Self {
        if self == Self::EightBit && elements < Self::MIN_ELEMENTS { Self::F32 } else { self }
    }

    /// Tensors within one range begin at multiples of this many bytes of parameters, so that none shares a block.
    pub fn tensor_alignment(self) -> u64 {
        match self {
            Self::F32 | Self::Momentum => VIEW_ALIGNMENT,
            Self::EightBit => 4 * BLOCK,
        }
    }
}

/// The moments of a flat range on the device.
#[derive(Clone, Copy, Debug)]
pub enum Moments {
    /// The first and the second moment.
    F32([View; 2]),
    /// Codes and scales of both moments.
    EightBit(CodedMoments),
    /// Lion's momentum.
    Momentum(View),
    /// Kept by another rank, in this storage.
    Elsewhere(MomentStorage),
}

/// One moment of a tensor or a range on the host, with the bits that the device has. A second moment that there is not is empty.
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
            MomentStorage::Momentum => Self::Momentum(plan.alloc(Category::Optimizer, "momentum", bytes)),
        }
    }

    /// The storage of both moments.
    pub fn storage(&self) -> MomentStorage {
        match self {
            Self::F32(_) => MomentStorage::F32,
            Self::EightBit(_) => MomentStorage::EightBit,
            Self::Momentum(_) => MomentStorage::Momentum,
            Self::Elsewhere(storage) => *storage,
        }
    }

    /// True where the moments are on this device.
    pub fn are_here(&self) -> bool {
        !matches!(self, Self::Elsewhere(_))
    }

    /// Records the optimizer's step over the range, where its moments are here; `tables` holds what [`adamw8bit::tables`] gives, `state` and `hyper` are as for
    /// [`adamw::step`].
    pub fn step(&self, rec: &mut Recorder, params: View, grads: View, tables: View, state: View, hyper: View) {
        match *self {
            Self::F32([m, v]) => adamw::step(rec, params, grads, m, v, state, hyper),
            Self::EightBit(coded) => adamw8bit::step(rec, params, grads, coded, tables, state, hyper),
            Self::Momentum(m) => lion::step(rec, params, grads, m, state, hyper),
            Self::Elsewhere(_) => {}
        }
    }

    /// Both moments of the whole range as they are on the device now. Not for moments that another rank keeps.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read(&self, gpu: &Gpu, buffers: &Buffers) -> Result<[HostMoment; 2], GpuError> {
        Ok([self.read_one(gpu, buffers, 0).await?, self.read_one(gpu, buffers, 1).await?])
    }

    /// The first (0) or second (1) moment, as [`Self::read`] gives both.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_one(&self, gpu: &Gpu, buffers: &Buffers, moment: usize) -> Result<HostMoment, GpuError> {
        match self {
            Self::F32(views) => Ok(HostMoment::F32(gpu.read_f32(buffers, views[moment]).await?)),
            Self::EightBit(CodedMoments { codes, scales }) => {
                let scales = gpu.read_f32(buffers, *scales).await?;
                let codes = gpu.read(buffers, codes[moment]).await?;
                Ok(HostMoment::EightBit { codes, scales: scales.iter().skip(moment).step_by(2).copied().collect() })
            }
            Self::Momentum(m) if moment == 0 => Ok(HostMoment::F32(gpu.read_f32(buffers, *m).await?)),
            // There is one moment alone.
            Self::Momentum(_) => Ok(HostMoment::F32(Vec::new())),
            Self::Elsewhere(_) => unreachable!("a rank reads the moments that it keeps"),
        }
    }

    /// Sets both moments of the range, where they are here. `values` covers the whole range.
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
            (Self::Momentum(view), [HostMoment::F32(m), _]) => gpu.write(buffers, *view, bytemuck::cast_slice(m)),
            (Self::Elsewhere(_), _) => {}
            _ => unreachable!("moments are written in the storage that they were read from"),
        }
    }
}

impl HostMoment {
    /// The first (0) or second (1) moment of `elements` before any step, a multiple of four of them.
    pub fn zeros(storage: MomentStorage, moment: usize, elements: usize) -> Self {
        match storage {
            MomentStorage::F32 => Self::F32(vec![0.0; elements]),
            MomentStorage::Momentum => Self::F32(vec![0.0; if moment == 0 { elements } else { 0 }]),
            MomentStorage::EightBit => Self::EightBit {
                codes: vec![ZERO_CODES[moment]; elements],
                scales: vec![0.0; elements.div_ceil(BLOCK as usize)],
            },
        }
    }

    /// The bytes of both moments of a range, as [`Self::from_bytes`] reads them.
    pub fn to_bytes(pair: &[Self; 2]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for moment in pair {
            match moment {
                Self::F32(values) => bytes.extend_from_slice(bytemuck::cast_slice(values)),
                Self::EightBit { codes, scales } => {
                    bytes.extend_from_slice(codes);
                    bytes.extend_from_slice(bytemuck::cast_slice(scales));
                }
            }
        }
        bytes
    }

    /// Both moments of a range in `storage`, from the bytes that [`Self::to_bytes`] gave.
    pub fn from_bytes(storage: MomentStorage, bytes: &[u8]) -> [Self; 2] {
        let first = if storage == MomentStorage::Momentum { bytes.len() } else { bytes.len() / 2 };
        let (first, second) = bytes.split_at(first);
        [first, second].map(|bytes| match storage {
            MomentStorage::F32 | MomentStorage::Momentum => Self::F32(bytemuck::pod_collect_to_vec(bytes)),
            MomentStorage::EightBit => {
                // A block has BLOCK codes of one byte and a scale of four; the last block may be shorter.
                let blocks = bytes.len().div_ceil(BLOCK as usize + 4);
                let (codes, scales) = bytes.split_at(bytes.len() - 4 * blocks);
                Self::EightBit { codes: codes.to_vec(), scales: bytemuck::pod_collect_to_vec(scales) }
            }
        })
    }

    /// Elements `first .. first + count`; where codes are kept, whole blocks from a block's first element on.
    pub fn part(&self, first: usize, count: usize) -> Self {
        let blocks = |at: usize| at.div_ceil(BLOCK as usize);
        match self {
            Self::F32(values) if values.is_empty() => Self::F32(Vec::new()),
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
            // Lion has no second moment.
            (Self::F32(_), Self::F32(part)) if part.is_empty() => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_has_one_owner_and_the_first_rank_the_most() {
        for size in 1..6 {
            for count in [0, 1, 3, 17] {
                let bytes: Vec<u64> = (0..count).map(|at| 256 * (1 + at * at % 11)).collect();
                let owners = Shard { rank: 0, size }.owners(&bytes);
                assert_eq!(owners, Shard { rank: size - 1, size }.owners(&bytes));
                let load = |rank| owners.iter().zip(&bytes).filter(|(owner, _)| **owner == rank).map(|(_, b)| b).sum();
                let loads: Vec<u64> = (0..size).map(load).collect();
                let (all, largest) = (bytes.iter().sum::<u64>(), bytes.iter().max().copied().unwrap_or(0));
                assert_eq!(loads.iter().sum::<u64>(), all);
                assert!(loads.is_sorted_by(|one, next| one >= next), "{loads:?}");
                assert!(loads[0] <= all / size as u64 + largest, "{loads:?}");
            }
        }
    }

    #[test]
    fn moments_survive_their_way() {
        for elements in [4, 252, 256, 260, 512, 1020] {
            let values = |scale: f32| (0..elements).map(|i| scale * i as f32).collect::<Vec<_>>();
            let codes = |first: usize| (0..elements).map(|i| (first + i) as u8).collect::<Vec<_>>();
            let scales = |scale: f32| values(scale)[..elements.div_ceil(BLOCK as usize)].to_vec();
            let coded = |at: usize| HostMoment::EightBit { codes: codes(at), scales: scales(at as f32) };
            let pairs = [
                (MomentStorage::F32, [1.0, -2.0].map(|scale| HostMoment::F32(values(scale)))),
                (MomentStorage::EightBit, [3, 5].map(coded)),
                (MomentStorage::Momentum, [HostMoment::F32(values(3.0)), HostMoment::F32(Vec::new())]),
            ];
            for (storage, pair) in pairs {
                let bytes = HostMoment::to_bytes(&pair);
                assert_eq!(bytes.len() as u64, storage.bytes(4 * elements as u64));
                assert_eq!(HostMoment::from_bytes(storage, &bytes), pair);
            }
        }
    }
}
