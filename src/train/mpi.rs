//! Ranks that are processes, connected by MPI.

use std::mem::ManuallyDrop;

use mpi::collective::{CommunicatorCollectives, Root};
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};

use super::group::Transport;
use crate::{Error, Result};

/// Bytes of one message: MPI counts in 32 bits.
const MOST_BYTES: usize = 1 << 30;

/// This process among those that `mpirun` has started together.
pub struct Mpi {
    /// A process that ends with an error must not wait for the others in MPI's end; it ends them.
    universe: ManuallyDrop<Universe>,
    world: SimpleCommunicator,
    /// Number of this process among those of its computer, and how many there are.
    local: [usize; 2],
}

impl Mpi {
    /// Connects to the other processes.
    ///
    /// # Errors
    /// A process that is connected already.
    pub fn connect() -> Result<Self> {
        let universe = mpi::initialize().ok_or_else(|| Error::Group("MPI is in use already".to_owned()))?;
        let world = universe.world();
        let computer = world.split_shared(world.rank());
        let local = [computer.rank() as usize, computer.size() as usize];
        Ok(Self { universe: ManuallyDrop::new(universe), world, local })
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.world.size() as usize
    }

    /// Number of this process among those of its computer, from 0, and how many there are.
    pub fn local(&self) -> [usize; 2] {
        self.local
    }

    /// The name of this computer.
    pub fn computer() -> String {
        mpi::environment::processor_name().unwrap_or_default()
    }

    /// The way to the other processes.
    pub fn transport(&self) -> impl Transport + use<> {
        Process { world: self.world.duplicate() }
    }

    /// Ends MPI, once all processes have come here.
    pub fn finish(self) {
        drop(ManuallyDrop::into_inner(self.universe));
    }

    /// Ends all processes, this one too.
    pub fn abort(&self) -> ! {
        self.world.abort(1)
    }
}

/// One process's way to the others.
struct Process {
    world: SimpleCommunicator,
}

impl Transport for Process {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    /// Each rank adds up one part of the values, so that no rank has to receive all values of all others.
    fn sum(&mut self, values: &mut [f32], to: usize) -> Result<(), String> {
        let size = self.size();
        for values in values.chunks_mut(MOST_BYTES / 4) {
            let part = values.len().div_ceil(size);
            let mut padded = values.to_vec();
            padded.resize(part * size, 0.0);
            let mut of_ranks = vec![0.0f32; part * size];
            self.world.all_to_all_into(&padded[..], &mut of_ranks[..]);
            let (sum, others) = of_ranks.split_at_mut(part);
            for other in others.chunks(part) {
                sum.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
            }
            let root = self.world.process_at_rank(to as i32);
            match self.rank() == to {
                true => {
                    root.gather_into_root(&*sum, &mut padded[..]);
                    values.copy_from_slice(&padded[..values.len()]);
                }
                false => root.gather_into(&*sum),
            }
        }
        Ok(())
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let first = self.world.process_at_rank(0);
        // Open MPI refuses a gathering of nothing, so each rank sends one byte more.
        let sent = [&[0], bytes].concat();
        let length = sent.len() as i32;
        if self.rank() > 0 {
            first.gather_into(&length);
            first.gather_varcount_into(&sent[..]);
            return Ok(Vec::new());
        }
        let mut lengths = vec![0i32; self.size()];
        first.gather_into_root(&length, &mut lengths[..]);
        let mut starts = Vec::with_capacity(lengths.len());
        let mut end = 0;
        for length in &lengths {
            starts.push(end);
            end += length;
        }
        let mut all = vec![0u8; end as usize];
        first.gather_varcount_into_root(&sent[..], &mut PartitionMut::new(&mut all[..], &lengths[..], &starts[..]));
        let of_rank = |(start, length): (&i32, &i32)| all[*start as usize + 1..(start + length) as usize].to_vec();
        Ok(starts.iter().zip(&lengths).map(of_rank).collect())
    }

    fn broadcast(&mut self, bytes: &mut [u8], from: usize) -> Result<(), String> {
        let root = self.world.process_at_rank(from as i32);
        bytes.chunks_mut(MOST_BYTES).for_each(|bytes| root.broadcast_into(bytes));
        Ok(())
    }

    /// The program prints its error first; its end then ends the others.
    fn fail(&mut self, _: &str) {}
}
