//! The trained values on the host: an adapter's factors, or every tensor of the base. Also the file of AdamW's moments.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::lora::factors::AdapterTensors;
use crate::lora::targets::LoraModule;
use crate::model::tensors::NamedTensor;
use crate::network::adapter;
use crate::network::moments::{HostMoment, MomentStorage};
use crate::network::trained::moment_storage;
use crate::ops::adamw8bit;
use crate::setting::OPTIM;
use crate::{Error, Result};

/// The values of everything that a run trains.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainedValues {
    /// The factors of an adapter.
    Adapter(AdapterTensors),
    /// Every tensor of the base, as [`crate::network::trained::Trained::read`] orders them.
    Base(Vec<NamedTensor>),
}

impl TrainedValues {
    /// The number of trained parameters.
    pub fn parameters(&self) -> u64 {
        match self {
            Self::Adapter(adapter) => adapter.parameters(),
            Self::Base(tensors) => tensors.iter().map(|t| t.values.len() as u64).sum(),
        }
    }

    /// The tensors with the names that they have in `optimizer.safetensors` and the storage of their moments, where the run's is `asked`;
    /// `modules` are the adapter's.
    fn named(&self, modules: &[LoraModule], asked: MomentStorage) -> Vec<(String, &[f32], MomentStorage)> {
        match self {
            Self::Adapter(tensors) => modules
                .iter()
                .zip(&tensors.modules)
                .flat_map(|(module, values)| {
                    module.factors.iter().zip(&values.0).map(move |(factor, values)| {
                        let storage = adapter::moment_storage(asked, module.place, *factor, values.len());
                        (format!("{}.{}", module.own_name(), factor.name()), values.as_slice(), storage)
                    })
                })
                .collect(),
            Self::Base(tensors) => tensors
                .iter()
                .map(|t| (t.name.clone(), t.values.as_slice(), moment_storage(asked, &t.name, t.values.len())))
                .collect(),
        }
    }
}

const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// The bytes of `optimizer.safetensors`: for each tensor of `values` its moments, in 8 bits with their scales as `.absmax`.
/// `path` is for messages.
pub(super) fn serialize_moments(
    path: &Path,
    values: &TrainedValues,
    moments: &[[HostMoment; 2]],
    modules: &[LoraModule],
) -> Result<Vec<u8>> {
    let mut views = Vec::new();
    let mut add = |name: String, dtype: Dtype, length: usize, bytes| -> Result<()> {
        let view = TensorView::new(dtype, vec![length], bytes).map_err(|e| Error::file(path, e))?;
        views.push((name, view));
        Ok(())
    };
    // Where no tensor has a second moment, the optimizer keeps one. An A of another module has neither.
    let has_second = |[_, second]: &[HostMoment; 2]| !matches!(second, HostMoment::F32(values) if values.is_empty());
    let kinds = if moments.iter().any(has_second) { &MOMENTS[..] } else { &MOMENTS[..1] };
    for ((name, ..), pair) in values.named(modules, MomentStorage::F32).iter().zip(moments) {
        for (kind, moment) in kinds.iter().zip(pair) {
            let name = format!("{name}.{kind}");
            match moment {
                HostMoment::F32(values) => add(name, Dtype::F32, values.len(), bytemuck::cast_slice(values))?,
                HostMoment::EightBit { codes, scales } => {
                    add(format!("{name}.absmax"), Dtype::F32, scales.len(), bytemuck::cast_slice(scales))?;
                    add(name, Dtype::U8, codes.len(), codes)?;
                }
            }
        }
    }
    serialize(views, None).map_err(|e| Error::file(path, e))
}

/// Reads the bytes that [`serialize_moments`] has given for tensors of the shapes of `values`. The run keeps moments in `storage`.
pub(super) fn deserialize_moments(
    path: &Path,
    bytes: &[u8],
    values: &TrainedValues,
    modules: &[LoraModule],
    storage: MomentStorage,
) -> Result<Vec<[HostMoment; 2]>> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| Error::file(path, format!("is damaged: {e}")))?;
    let [first, second] = MOMENTS.map(|moment| file.names().iter().any(|name| name.ends_with(&format!(".{moment}"))));
    if first && second == (storage == MomentStorage::Momentum) {
        let (was, is) = if second { ("adamw", "lion") } else { ("lion", "adamw") };
        let problem = format!("holds the moments of {}, but the run has {}", OPTIM.is(was), OPTIM.is(is));
        return Err(Error::file(path, problem));
    }
    let tensor = |name: &str, dtype: Dtype, length: usize| {
        let tensor = file.tensor(name).map_err(|_| Error::field(path, name, "is missing"))?;
        if tensor.dtype() == dtype && tensor.shape() == [length] {
            return Ok(tensor);
        }
        let moments_of =
            |was, is| format!("is of {} ({:?}), but the run has {}", OPTIM.is(was), tensor.dtype(), OPTIM.is(is));
        let problem = match (tensor.dtype(), dtype) {
            (Dtype::F32, Dtype::U8) => moments_of("adamw", "adamw8bit"),
            (Dtype::U8, Dtype::F32) => moments_of("adamw8bit", "adamw"),
            (found, wanted) => format!("is {found:?} {:?}, not {wanted:?} [{length}]", tensor.shape()),
        };
        Err(Error::field(path, name, problem))
    };
    let read = |name: &str, kind: &str, elements: usize, storage: MomentStorage| -> Result<HostMoment> {
        let name = format!("{name}.{kind}");
        let finite = |tensor: &str, values: Vec<f32>| match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(Error::field(path, tensor, format!("is damaged: element {at} is {}", values[at]))),
            None => Ok(values),
        };
        match storage {
            MomentStorage::F32 | MomentStorage::Momentum => {
                let values = bytemuck::pod_collect_to_vec(tensor(&name, Dtype::F32, elements)?.data());
                Ok(HostMoment::F32(finite(&name, values)?))
            }
            MomentStorage::EightBit => {
                let codes = tensor(&name, Dtype::U8, elements)?.data().to_vec();
                let blocks = adamw8bit::blocks(elements as u64) as usize;
                let absmax = format!("{name}.absmax");
                let scales = bytemuck::pod_collect_to_vec(tensor(&absmax, Dtype::F32, blocks)?.data());
                Ok(HostMoment::EightBit { codes, scales: finite(&absmax, scales)? })
            }
        }
    };
    let pair = |(name, of, storage): &(String, &[f32], MomentStorage)| {
        let m = read(name, MOMENTS[0], of.len(), *storage)?;
        let v = match storage {
            MomentStorage::Momentum => HostMoment::F32(Vec::new()),
            _ => read(name, MOMENTS[1], of.len(), *storage)?,
        };
        Ok([m, v])
    };
    values.named(modules, storage).iter().map(pair).collect()
}
