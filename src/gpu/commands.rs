//! Recorded command lists: the work of a step as plain data. No GPU is needed to make, count or inspect them.

use std::sync::Arc;

use bytemuck::Pod;
use serde::Serialize;

use super::autotune::{AutotuneTable, ProblemSize};
use super::kernel::{Constant, Kernel};
use super::memory::{Matrix, View};
use super::params::Param;

/// Bytes between the parameters of two dispatches in the uniform buffer: the strictest alignment of a dynamic offset in WebGPU.
pub const PARAMS_STRIDE: u64 = 256;

/// The matrices that a subgroup multiplies as a whole, with factors in f16 and sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct Cooperative {
    /// Rows, columns and depth of each product.
    pub side: u32,
    /// Invocations of the smallest and the largest subgroup that may run a kernel.
    pub subgroups: [u32; 2],
}

impl Cooperative {
    /// The matrices of Metal, lavapipe, NVIDIA and AMD, for the tests that walk all variants.
    pub const KNOWN: [Self; 4] = [
        Self { side: 8, subgroups: [32, 32] },
        Self { side: 8, subgroups: [8, 8] },
        Self { side: 16, subgroups: [32, 32] },
        Self { side: 16, subgroups: [32, 64] },
    ];

    /// Adds the types of the two factors and the sums to a kernel, and the language extensions that they need.
    pub fn join(self, kernel: Kernel) -> Kernel {
        let [a, b, c] = match self.side {
            8 => ["coop_mat8x8<f16, A>", "coop_mat8x8<f16, B>", "coop_mat8x8<f32, C>"],
            _ => ["coop_mat16x16<f16, A>", "coop_mat16x16<f16, B>", "coop_mat16x16<f32, C>"],
        };
        kernel
            .enable("f16")
            .enable("wgpu_cooperative_matrix")
            .constant("MatrixA", Constant::Type(a))
            .constant("MatrixB", Constant::Type(b))
            .constant("MatrixC", Constant::Type(c))
    }
}

/// The properties of an adapter that decide on tile sizes and kernel variants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capabilities {
    /// True for a software adapter: its kernels use neither workgroup memory nor barriers, and address rows uniformly.
    pub cpu: bool,
    /// Invocations that exchange values through subgroup operations; 0 where the operations are missing or the size varies.
    pub subgroup_size: u32,
    /// The cooperative matrices; None where the adapter has none, or where the device was opened without them.
    pub cooperative: Option<Cooperative>,
    /// The largest range that one binding may cover, in bytes.
    pub max_binding_bytes: u64,
    /// The largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// The most workgroups of a dispatch in each dimension.
    pub max_workgroups: u32,
}

impl Capabilities {
    /// The WebGPU baseline, which every adapter offers.
    pub const BASELINE: Self = Self {
        cpu: false,
        subgroup_size: 0,
        cooperative: None,
        max_binding_bytes: 128 << 20,
        max_buffer_bytes: 256 << 20,
        max_workgroups: 65535,
    };
}

/// One run of a kernel.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The operation's name in profiles.
    pub op: &'static str,
    /// The kernel to run; equal kernels share a pipeline.
    pub kernel: Arc<Kernel>,
    /// The storage bindings of group 0, in their order.
    pub views: Vec<View>,
    /// The bytes of the uniform binding.
    pub params: Vec<u8>,
    /// Workgroups in each dimension, none of them 0.
    pub workgroups: [u32; 3],
    /// Rough count of multiply-adds (or elements moved), for time budgets.
    pub work: u64,
}

/// One command of a list.
#[derive(Clone, Debug)]
pub enum Command {
    /// Runs a kernel.
    Dispatch(Dispatch),
    /// Copies a view to one of the same size.
    Copy {
        /// The range that is read.
        from: View,
        /// The range that is written, in another buffer or elsewhere in the same one.
        to: View,
    },
    /// Fills a view with zeros.
    Clear(View),
}

/// Buffers whose contents live within one operation. All operations share them.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// The converted operands of a linear layer: a weight or its scales decoded to f32, or rows in f16.
    pub weight_panel: View,
    /// Partial sums of contractions over rows.
    pub partials: View,
}

/// Records commands in the order in which they run.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// The properties of the device.
    pub capabilities: Capabilities,
    /// The view for bindings that a variant declares and never reads.
    pub unused: View,
    /// The view for bindings that a variant declares and never writes. It is another buffer than `unused`, since a dispatch may not
    /// bind one buffer for reading and writing.
    pub unused_write: View,
    /// The buffers for intermediate results.
    pub scratch: Scratch,
    /// The kernels that were measured.
    pub autotune: AutotuneTable,
    /// The recorded problems that several kernels can solve, in the order of the commands.
    pub problem_sizes: Vec<ProblemSize>,
    /// The commands so far.
    pub commands: Vec<Command>,
}

impl Recorder {
    /// A recorder without commands, whose choices are the operations' first variants.
    pub fn new(capabilities: Capabilities, unused: View, unused_write: View, scratch: Scratch) -> Self {
        let (autotune, problem_sizes, commands) = (AutotuneTable::default(), Vec::new(), Vec::new());
        Self { capabilities, unused, unused_write, scratch, autotune, problem_sizes, commands }
    }

    /// This recorder with the kernels that were measured.
    pub fn with_autotune(self, autotune: &AutotuneTable) -> Self {
        Self { autotune: autotune.clone(), ..self }
    }

    /// Notes a problem that is about to be recorded, and returns the name of the kernel that was measured to be the fastest for it.
    pub fn choose(&mut self, problem: ProblemSize) -> Option<&str> {
        self.problem_sizes.push(problem);
        self.autotune.get(&problem.class())
    }

    /// Records a run of `kernel` in the profile's category `op`. Zero workgroups record nothing.
    pub fn dispatch<P: Pod + Param>(
        &mut self,
        op: &'static str,
        kernel: Kernel,
        views: &[View],
        params: &P,
        workgroups: [u32; 3],
        work: u64,
    ) {
        assert_eq!(kernel.params(), P::TYPE, "parameters of {op}");
        self.dispatch_bytes(op, kernel, views, bytemuck::bytes_of(params).to_vec(), workgroups, work);
    }

    /// The part of [`Self::dispatch`] that is the same for parameters of all types, and compiled once.
    fn dispatch_bytes(
        &mut self,
        op: &'static str,
        kernel: Kernel,
        views: &[View],
        params: Vec<u8>,
        workgroups: [u32; 3],
        work: u64,
    ) {
        assert!(params.len() as u64 <= PARAMS_STRIDE, "parameters of {op} exceed the uniform stride");
        assert!(
            workgroups.iter().all(|n| *n <= self.capabilities.max_workgroups),
            "{op} dispatches {workgroups:?} workgroups"
        );
        if workgroups.contains(&0) {
            return;
        }
        let kernel = Arc::new(kernel);
        self.commands.push(Command::Dispatch(Dispatch { op, kernel, views: views.to_vec(), params, workgroups, work }));
    }

    /// Records a copy between views of one size.
    pub fn copy(&mut self, from: View, to: View) {
        assert_eq!(from.bytes, to.bytes, "copy between views of unlike size");
        self.commands.push(Command::Copy { from, to });
    }

    /// Copies the rows of `from` over those of `to`.
    pub fn copy_matrix(&mut self, from: Matrix, to: Matrix) {
        assert_eq!((from.rows, from.ld), (to.rows, to.ld), "copy between matrices of unlike shape");
        let bytes = u64::from(from.rows) * u64::from(from.ld) * 4;
        self.copy(View { bytes, ..from.view }, View { bytes, ..to.view });
    }

    /// Records that a view is filled with zeros.
    pub fn clear(&mut self, view: View) {
        self.commands.push(Command::Clear(view));
    }

    /// The dispatch size for `count` workgroups, in two dimensions where one is too short for them. Kernels compute the index with `workgroup_id.x + workgroup_id.y * num_workgroups.x`.
    pub fn fold(&self, count: u64) -> [u32; 3] {
        let max = u64::from(self.capabilities.max_workgroups);
        if count <= max {
            return [count as u32, 1, 1];
        }
        let y = count.div_ceil(max);
        [count.div_ceil(y) as u32, y as u32, 1]
    }
}

/// Bytes of the uniform buffer that a list needs.
pub fn params_bytes(commands: &[Command]) -> u64 {
    commands.iter().filter(|c| matches!(c, Command::Dispatch(_))).count() as u64 * PARAMS_STRIDE
}
