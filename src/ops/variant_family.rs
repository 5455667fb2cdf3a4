//! The family of kernel variants that a device takes.

use crate::gpu::Capabilities;

/// A family of kernel variants. A device takes one of them where an operation has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VariantFamily {
    /// Real GPUs: tiles in workgroup memory.
    Tiles,
    /// Software adapters: neither workgroup memory nor barriers, and workgroups of one vector of lanes.
    Lanes,
    /// Software adapters whose lanes exchange values. A load costs them far more than arithmetic: one lane loads each value and hands
    /// it to the others.
    Broadcast,
}

impl VariantFamily {
    /// Lanes of one vector of the software adapters that `Lanes` and `Broadcast` were measured on.
    pub(crate) const LANES: u32 = 8;

    /// The family of a device. A software adapter with narrower subgroups (SwiftShader) takes `Lanes`, as it does in a browser, which
    /// has no subgroups.
    pub(crate) fn of(capabilities: &Capabilities) -> Self {
        match (capabilities.cpu, capabilities.subgroup_size) {
            (false, _) => Self::Tiles,
            (true, Self::LANES) => Self::Broadcast,
            (true, _) => Self::Lanes,
        }
    }
}
