//! Recorded command lists: what a step does, as plain data that needs no GPU to be made, counted or looked at.

use std::sync::Arc;

use bytemuck::Pod;
use serde::Serialize;

use super::autotune::{AutotuneTable, ProblemSize};
use super::kernel::{Constant, Kernel};
use super::memory::{Matrix, View};

/// Distance between two dispatches' parameters in the uniform arena: the strictest alignment of a dynamic offset.
pub const PARAMS_STRIDE: u64 = 256;

/// Matrices that a subgroup multiplies as a whole, with factors in f16 and sums in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct Cooperative {
    /// Rows, columns and depth of each product.
    pub side: u32,
    /// Invocations of the smallest and the largest subgroup that may run a kernel.
    pub subgroups: [u32; 2],
}

impl Cooperative {
    /// Those of Metal, lavapipe, NVIDIA and AMD, for the tests that walk all variants.
    pub const KNOWN: [Self; 4] = [
        Self { side: 8, subgroups: [32, 32] },
        Self { side: 8, subgroups: [8, 8] },
        Self { side: 16, subgroups: [32, 32] },
        Self { side: 16, subgroups: [32, 64] },
    ];

    /// Gives a text the types of the two factors and the sums, and the extensions that they take.
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

/// What the ops need to know of the adapter to choose shapes and variants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capabilities {
    /// A software adapter: no shared memory, no barriers, rows addressed uniformly.
    pub cpu: bool,
    /// Invocations that exchange values through subgroup operations; 0 where these are missing or their count varies.
    pub subgroup_size: u32,
    /// None where missing, or where the device was opened without.
    pub cooperative: Option<Cooperative>,
    /// The largest range that one binding may cover, in bytes.
    pub max_binding_bytes: u64,
    pub max_buffer_bytes: u64,
    pub max_workgroups: u32,
}

impl Capabilities {
    /// The WebGPU baseline every adapter offers.
    pub const BASELINE: Self = Self {
        cpu: false,
        subgroup_size: 0,
        cooperative: None,
        max_binding_bytes: 128 << 20,
        max_buffer_bytes: 256 << 20,
        max_workgroups: 65535,
    };
}

#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The operation's name in profiles.
    pub op: &'static str,
    pub kernel: Arc<Kernel>,
    pub views: Vec<View>,
    pub params: Vec<u8>,
    pub workgroups: [u32; 3],
    /// Rough count of multiply-adds (or elements moved), for time budgets.
    pub work: u64,
}

#[derive(Clone, Debug)]
pub enum Command {
    Dispatch(Dispatch),
    Copy { from: View, to: View },
    Clear(View),
}

/// Buffers whose contents live within one operation, shared by all.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// What linear layers make of their operands first: a weight or its scales decoded to f32, or rows in f16, as the device wants.
    pub weight_panel: View,
    /// Partial sums of contractions over rows.
    pub partials: View,
}

/// Records commands in the order in which they run.
#[derive(Clone, Debug)]
pub struct Recorder {
    pub capabilities: Capabilities,
    /// Bound where a variant declares a binding that it never reads.
    pub unused: View,
    /// The same for bindings that are never written; another buffer, since one may not be bound both ways at once.
    pub unused_write: View,
    pub scratch: Scratch,
    pub autotune: AutotuneTable,
    /// What was recorded that several kernels can do, in the order of the commands.
    pub problem_sizes: Vec<ProblemSize>,
    pub commands: Vec<Command>,
}

impl Recorder {
    pub fn new(capabilities: Capabilities, unused: View, unused_write: View, scratch: Scratch) -> Self {
        let (autotune, problem_sizes, commands) = (AutotuneTable::default(), Vec::new(), Vec::new());
        Self { capabilities, unused, unused_write, scratch, autotune, problem_sizes, commands }
    }

    /// The same, with kernels that were measured.
    pub fn with_autotune(self, autotune: &AutotuneTable) -> Self {
        Self { autotune: autotune.clone(), ..self }
    }

    /// Notes what is about to be recorded, and names the kernel that was measured to be the fastest for it, if any was.
    pub fn choose(&mut self, problem: ProblemSize) -> Option<&str> {
        self.problem_sizes.push(problem);
        self.autotune.get(&problem.class())
    }

    pub fn dispatch<P: Pod>(
        &mut self,
        op: &'static str,
        kernel: Kernel,
        views: &[View],
        params: &P,
        workgroups: [u32; 3],
        work: u64,
    ) {
        let params = bytemuck::bytes_of(params).to_vec();
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

    pub fn clear(&mut self, view: View) {
        self.commands.push(Command::Clear(view));
    }

    /// Workgroup counts for `count` workgroups in a row, folded into two dimensions where one is too short.
    /// Kernels undo it with `workgroup_id.x + workgroup_id.y * num_workgroups.x`.
    pub fn fold(&self, count: u64) -> [u32; 3] {
        let max = u64::from(self.capabilities.max_workgroups);
        if count <= max {
            return [count as u32, 1, 1];
        }
        let y = count.div_ceil(max);
        [count.div_ceil(y) as u32, y as u32, 1]
    }
}

/// Bytes of uniform arena that a list needs.
pub fn params_bytes(commands: &[Command]) -> u64 {
    commands.iter().filter(|c| matches!(c, Command::Dispatch(_))).count() as u64 * PARAMS_STRIDE
}
