//! The trained parameters on the device: an adapter's factors, or every tensor of the base.

use super::optimizer::ParameterRange;
use super::values::TrainedValues;
use crate::Result;
use crate::gpu::{Buffers, Gpu};
use crate::network::adapter::DeviceAdapter;
use crate::network::moments::HostMoment;
use crate::network::trained::{Part, Trained};

/// The trained parameters: either the modules of `adapter`, or the tensors of `base` beside an adapter without
/// modules.
#[derive(Clone, Debug)]
pub struct TrainedParameters {
    /// The adapter; without modules where the base itself is trained.
    pub adapter: DeviceAdapter,
    /// The base's tensors; `None` where the base is frozen.
    pub base: Option<Trained>,
}

impl TrainedParameters {
    /// Every range with gradients; none where nothing is trained.
    pub fn ranges(&self) -> Vec<ParameterRange> {
        let of_adapter = self.adapter.segments.iter().filter_map(|segment| {
            let training = segment.training?;
            let (grads, moments) = (training.grads, training.moments);
            Some(ParameterRange {
                params: segment.params,
                grads,
                moments,
                decays: segment.decays,
                raised: segment.raised,
                owner: 0,
            })
        });
        let of_base = self.base.iter().flat_map(Trained::ranges);
        let of_base = of_base.map(|r| ParameterRange {
            params: r.params,
            grads: r.grads,
            moments: r.moments,
            decays: r.decays,
            raised: false,
            owner: r.owner,
        });
        of_adapter.chain(of_base).collect()
    }

    /// True where ranks share out the moments.
    pub fn is_sharded(&self) -> bool {
        self.base.iter().flat_map(Trained::ranges).any(|range| range.owner > 0)
    }

    /// The values as they are on the device now.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read(&self, gpu: &Gpu, buffers: &Buffers) -> Result<TrainedValues> {
        match &self.base {
            Some(base) => Ok(TrainedValues::Base(base.read(gpu, buffers, Part::Params).await?)),
            None => Ok(TrainedValues::Adapter(self.adapter.read(gpu, buffers).await?)),
        }
    }

    /// Sets values that [`Self::read`] has given; those of a base that is not trained are left alone.
    pub fn write(&self, gpu: &Gpu, buffers: &Buffers, values: &TrainedValues) {
        match (values, &self.base) {
            (TrainedValues::Adapter(tensors), _) => self.adapter.write(gpu, buffers, tensors),
            (TrainedValues::Base(tensors), Some(base)) => base.write(gpu, buffers, Part::Params, tensors),
            (TrainedValues::Base(_), None) => {}
        }
    }

    /// AdamW's moments of each tensor as they are on the device now, in the order of [`Self::read`].
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_moments(&self, gpu: &Gpu, buffers: &Buffers) -> Result<Vec<[HostMoment; 2]>> {
        match &self.base {
            Some(base) => Ok(base.read_moments(gpu, buffers).await?),
            None => Ok(self.adapter.read_moments(gpu, buffers).await?),
        }
    }

    /// Sets moments that [`Self::read_moments`] has given.
    pub fn write_moments(&self, gpu: &Gpu, buffers: &Buffers, moments: &[[HostMoment; 2]]) {
        match &self.base {
            Some(base) => base.write_moments(gpu, buffers, moments),
            None => self.adapter.write_moments(gpu, buffers, moments),
        }
    }
}
