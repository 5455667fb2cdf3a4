//! What a run trains, on the host: an adapter's factors, or every tensor of the base.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::lora::adapter_file::AdapterTensors;
use crate::lora::targets::LoraModule;
use crate::model::trained::NamedTensor;
use crate::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    Adapter(AdapterTensors),
    Base(Vec<NamedTensor>),
}

/// AdamW's moments, each shaped as what is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub first: Values,
    pub second: Values,
}

impl Values {
    pub fn parameters(&self) -> u64 {
        match self {
            Self::Adapter(adapter) => adapter.tensors.iter().map(|(a, b)| (a.len() + b.len()) as u64).sum(),
            Self::Base(tensors) => tensors.iter().map(|t| t.values.len() as u64).sum(),
        }
    }

    /// The tensors with the names that they have in `optimizer.safetensors`; `modules` are the adapter's.
    fn named(&self, modules: &[LoraModule]) -> Vec<(String, &[f32])> {
        match self {
            Self::Adapter(adapter) => modules
                .iter()
                .zip(&adapter.tensors)
                .flat_map(|(module, (a, b))| {
                    let name = |factor: &str| format!("{}.{factor}", module.name());
                    [(name("lora_A"), a.as_slice()), (name("lora_B"), b.as_slice())]
                })
                .collect(),
            Self::Base(tensors) => tensors.iter().map(|t| (t.name.clone(), t.values.as_slice())).collect(),
        }
    }
}

impl Moments {
    /// The bytes of `optimizer.safetensors`; `path` is for messages.
    pub(super) fn serialize(&self, path: &Path, modules: &[LoraModule]) -> Result<Vec<u8>> {
        let mut views = Vec::new();
        for (moment, values) in [("exp_avg", &self.first), ("exp_avg_sq", &self.second)] {
            for (name, values) in values.named(modules) {
                let view = TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values));
                views.push((format!("{name}.{moment}"), view.map_err(|e| Error::file(path, e))?));
            }
        }
        serialize(views, None).map_err(|e| Error::file(path, e))
    }

    /// Reads what [`Self::serialize`] wrote, shaped as `like`.
    pub(super) fn deserialize(path: &Path, bytes: &[u8], like: &Values, modules: &[LoraModule]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| Error::file(path, format!("is damaged: {e}")))?;
        let read = |moment: &str| -> Result<Values> {
            let mut found = Vec::new();
            for (name, values) in like.named(modules) {
                let name = format!("{name}.{moment}");
                let tensor = file.tensor(&name).map_err(|_| Error::field(path, &name, "is missing"))?;
                if tensor.dtype() != Dtype::F32 || tensor.shape() != [values.len()] {
                    let problem = format!("is {:?} {:?}, not F32 [{}]", tensor.dtype(), tensor.shape(), values.len());
                    return Err(Error::field(path, &name, problem));
                }
                found.push(bytemuck::pod_collect_to_vec(tensor.data()));
            }
            let mut found = found.into_iter();
            let mut next = || found.next().unwrap_or_default();
            Ok(match like {
                Values::Adapter(adapter) => Values::Adapter(AdapterTensors {
                    tensors: adapter.tensors.iter().map(|_| (next(), next())).collect(),
                }),
                Values::Base(tensors) => {
                    Values::Base(tensors.iter().map(|t| NamedTensor { values: next(), ..t.clone() }).collect())
                }
            })
        };
        Ok(Self { first: read("exp_avg")?, second: read("exp_avg_sq")? })
    }
}
