//! The part of a plan that training and generation share: the network, the inputs and buffers of a pass, and the memory that holds
//! every buffer. Sizes alone decide it, so that the same plan is the estimate and the allocation.

use super::activations::{Activations, Inputs};
use super::base::{self, BaseStorage, Network};
use super::decoder::Pass;
use super::load::Staging;
use crate::gpu::{Arena, AutotuneTable, Capabilities, Category, GpuError, Ledger, MemoryPlan, Recorder, Scratch, View};
use crate::model::config::ModelConfig;
use crate::quant::format::Float;

/// Every buffer that a pass over the network needs, and the memory plan that all of a plan's buffers are part of.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    /// Every planned buffer.
    pub memory: MemoryPlan,
    /// Limits and features of the device that the plan is for.
    pub capabilities: Capabilities,
    /// Kernels that were measured on the device. Neither the memory nor the results depend on them.
    pub autotune: AutotuneTable,
    /// The base.
    pub network: Network,
    /// Buffers for loading; `None` where the device quantizes nothing.
    pub staging: Option<Staging>,
    /// Tokens, positions and attention ranges, uploaded for each pass.
    pub inputs: Inputs,
    /// Buffers of the layers.
    pub activations: Activations,
    /// Parameters of the dispatches of two kinds of lists; the owner of the plan says which.
    pub uniforms: [View; 2],
    /// Views for bindings that a kernel declares and does not use: one for reading, one for writing.
    pub unused: [View; 2],
    scratch: Scratch,
}

/// A [`NetworkPlan`] whose owner still plans buffers of its own between the network and its passes.
pub struct NetworkPlanner {
    /// The buffers that are planned so far.
    pub memory: MemoryPlan,
    /// Buffers shared by contents that are never needed at the same time.
    pub arena: Arena,
    /// The base, with all its buffers planned.
    pub network: Network,
    capabilities: Capabilities,
    unused: [View; 2],
}

impl NetworkPlanner {
    /// Plans the base in `storage`; `stored` tells the type in which the files hold a tensor.
    pub fn new(
        capabilities: Capabilities,
        config: &ModelConfig,
        storage: BaseStorage,
        stored: impl Fn(&str) -> Float,
        max_positions: usize,
    ) -> Self {
        let mut memory = MemoryPlan::for_bindings_of(capabilities.max_binding_bytes);
        let unused = [(); 2].map(|()| memory.alloc(Category::Workspace, "unused binding", 16));
        let max_binding = max_binding(&capabilities);
        let network = base::plan(&mut memory, config, storage, stored, max_positions, max_binding);
        Self { memory, arena: Arena::new(Category::Workspace), network, capabilities, unused }
    }

    /// Plans the scratch of the operations, of `panel` and `partials` bytes, and the staging of the weights. The uniforms follow with
    /// [`NetworkPlan::plan_uniforms`], once lists can be recorded.
    pub fn finish(mut self, inputs: Inputs, activations: Activations, (panel, partials): (u64, u64)) -> NetworkPlan {
        let scratch = Scratch {
            weight_panel: self.memory.alloc(Category::Workspace, "decoded weight panel", panel),
            partials: self.memory.alloc(Category::Workspace, "partial sums", partials),
        };
        let staging = Staging::plan(&mut self.memory, &mut self.arena, &self.network);
        NetworkPlan {
            memory: self.memory,
            capabilities: self.capabilities,
            autotune: AutotuneTable::default(),
            network: self.network,
            staging,
            inputs,
            activations,
            uniforms: [View { bytes: 0, ..self.unused[0] }; 2],
            unused: self.unused,
            scratch,
        }
    }
}

impl NetworkPlan {
    /// Plans room for the parameters of the longest list of each kind, in bytes.
    pub fn plan_uniforms(&mut self, bytes: [u64; 2]) {
        self.uniforms = bytes.map(|bytes| self.memory.alloc(Category::Uploads, "dispatch parameters", bytes));
    }

    /// The bytes of all planned buffers by category.
    pub fn ledger(&self) -> Ledger {
        self.memory.ledger()
    }

    /// Checks every buffer against the device's limits, before any weight is read.
    ///
    /// # Errors
    /// A buffer that is longer than the part that a kernel of the device may see at once.
    pub fn check_limits(&self) -> Result<(), GpuError> {
        let allowed = max_binding(&self.capabilities);
        match self.memory.specs().iter().find(|spec| spec.bytes > allowed) {
            Some(spec) => Err(GpuError::LimitTooSmall {
                what: format!("the buffer of `{}`", spec.label),
                limit: "binding",
                needed: spec.bytes,
                allowed,
            }),
            None => Ok(()),
        }
    }

    /// An empty list for this plan's device.
    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.capabilities, self.unused[0], self.unused[1], self.scratch).with_autotune(&self.autotune)
    }

    /// A pass of the first `rows` rows over the base alone; its other fields are the caller's to set.
    pub fn pass(&self, rows: u32) -> Pass<'_> {
        Pass {
            network: &self.network,
            adapter: None,
            trained: None,
            inputs: &self.inputs,
            activations: &self.activations,
            rows,
            dropout: None,
            noise: None,
            texts: &[],
        }
    }
}

/// The most bytes that one binding may cover.
pub fn max_binding(capabilities: &Capabilities) -> u64 {
    capabilities.max_binding_bytes.min(capabilities.max_buffer_bytes)
}
