//! Which family of variants a device takes.

use crate::gpu::Capabilities;

/// The family of variants a device takes, where an operation has more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VariantFamily {
    /// Real GPUs: tiles in workgroup memory.
    Tiles,
    /// Software adapters: neither workgroup memory nor barriers, a vector of lanes a workgroup.
    Lanes,
    /// Software adapters whose lanes exchange values. A load costs these far more than arithmetic: each value is loaded by one lane
    /// and handed to the others.
    Broadcast,
}

impl VariantFamily {
    /// Lanes of one vector of the software adapters that the last two were measured on.
    pub(crate) const LANES: u32 = 8;

    /// An adapter with narrower subgroups (SwiftShader) takes what it takes in a browser, where there are none.
    pub(crate) fn of(capabilities: &Capabilities) -> Self {
        match (capabilities.cpu, capabilities.subgroup_size) {
            (false, _) => Self::Tiles,
            (true, Self::LANES) => Self::Broadcast,
            (true, _) => Self::Lanes,
        }
    }
}
