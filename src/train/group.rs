//! Several devices that train one model (data parallelism).
//!
//! Each device has the whole base and computes the gradients of its share of an optimizer step's micro-batches. The first rank adds the
//! gradients up, in the order of ranks, makes the optimizer's step and gives the new values to all. So every rank works with the same
//! values, whatever its device, and only the first one has a state that must not be lost.

use std::ops::Range;

use crate::{Error, Result};

/// The way between the ranks of a group: threads of one process, or processes that MPI connects.
pub trait Transport {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Adds up the values of all ranks, which have as many each. Rank `to` gets the sum, added in the order of ranks; those of the others
    /// are then of no use.
    ///
    /// # Errors
    /// The rank that has ended, and why, as a sentence.
    fn sum(&mut self, values: &mut [f32], to: usize) -> Result<(), String>;

    /// Gives the bytes of each rank to the first one, which gets them in the order of ranks; the others get nothing.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String>;

    /// Gives the bytes of rank `from` to all ranks, which have room for as many.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn broadcast(&mut self, bytes: &mut [u8], from: usize) -> Result<(), String>;

    /// Tells the other ranks that this one cannot go on. `problem` is a sentence.
    fn fail(&mut self, problem: &str);
}

/// The next work of a group, as the first rank announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The gradients of the optimizer step after so many.
    Step(usize),
    /// The losses of the examples that are held out.
    Evaluation,
    /// None; the run has ended.
    End,
}

impl Work {
    fn words(self) -> [u64; 2] {
        match self {
            Self::Step(done) => [0, done as u64],
            Self::Evaluation => [1, 0],
            Self::End => [2, 0],
        }
    }

    fn from_words([kind, done]: [u64; 2]) -> Self {
        match kind {
            0 => Self::Step(done as usize),
            1 => Self::Evaluation,
            _ => Self::End,
        }
    }
}

/// This rank's place in a group. A rank whose place is dropped before the end of the run ends the others too.
pub struct Group {
    transport: Box<dyn Transport>,
    ended: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            let problem = format!("rank {} has ended before the run", self.rank());
            self.transport.fail(&problem);
        }
    }
}

impl Group {
    /// The group that `transport` connects.
    pub fn new(transport: impl Transport + 'static) -> Self {
        Self { transport: Box::new(transport), ended: false }
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.transport.size()
    }

    /// Number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// True for the rank that keeps the optimizer's state and writes the files.
    pub fn is_first(&self) -> bool {
        self.transport.rank() == 0
    }

    /// The part of `count` micro-batches that this rank computes. Later ranks get the larger parts: the first has the optimizer's step too.
    pub fn share(&self, count: usize) -> Range<usize> {
        let (rank, size) = (self.rank(), self.size());
        count * rank / size..count * (rank + 1) / size
    }

    /// The work that the first rank announces; on the first rank, `work` is announced.
    ///
    /// # Errors
    /// A rank that has ended.
    pub fn agree_on(&mut self, work: Work) -> Result<Work> {
        let mut words = work.words();
        self.broadcast(bytemuck::cast_slice_mut(&mut words), 0)?;
        let agreed = Work::from_words(words);
        self.ended = agreed == Work::End;
        Ok(agreed)
    }

    /// Ends the work of all ranks; for the first one, after the last step.
    ///
    /// # Errors
    /// A rank that has ended before.
    pub fn end(mut self) -> Result<()> {
        self.agree_on(Work::End).map(|_| ())
    }

    /// [`Transport::sum`].
    ///
    /// # Errors
    /// A rank that has ended.
    pub fn sum(&mut self, values: &mut [f32], to: usize) -> Result<()> {
        self.transport.sum(values, to).map_err(Error::Group)
    }

    /// The numbers of each rank, on the first one.
    ///
    /// # Errors
    /// A rank that has ended.
    pub fn gather(&mut self, numbers: &[f64]) -> Result<Vec<Vec<f64>>> {
        let gathered = self.transport.gather(bytemuck::cast_slice(numbers)).map_err(Error::Group)?;
        Ok(gathered.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect())
    }

    /// [`Transport::broadcast`].
    ///
    /// # Errors
    /// A rank that has ended.
    pub fn broadcast(&mut self, bytes: &mut [u8], from: usize) -> Result<()> {
        self.transport.broadcast(bytes, from).map_err(Error::Group)
    }

    /// Tells the other ranks that this one cannot go on because of `error`.
    pub fn fail(&mut self, error: &Error) {
        self.transport.fail(&error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads;
    use super::*;

    #[test]
    fn shares_cover_every_micro_batch_once() {
        for size in 1..6 {
            let groups: Vec<Group> = threads::connect(size).into_iter().map(Group::new).collect();
            for count in 0..13 {
                let shares: Vec<usize> = groups.iter().flat_map(|group| group.share(count)).collect();
                assert_eq!(shares, (0..count).collect::<Vec<_>>(), "{count} over {size}");
                let longest = groups.iter().map(|group| group.share(count).len()).max();
                assert_eq!(longest, Some(count.div_ceil(size)));
            }
        }
    }

    #[test]
    fn work_survives_its_way() {
        for work in [Work::Step(0), Work::Step(7), Work::Evaluation, Work::End] {
            assert_eq!(Work::from_words(work.words()), work);
        }
    }
}
