//! Several devices that train one model (data parallelism).
//!
//! Each device has the whole base and computes the gradients of its share of an optimizer step's micro-batches. The first rank adds the
//! gradients up, in the order of ranks, makes the optimizer's step and gives the new values to all. In full training the ranks share out
//! the parameters (ZeRO-1): each one has the moments of its own, adds up their gradients and makes their step. So every rank works with
//! the same values, whatever its device.

use std::ops::Range;

use crate::network::moments::Shard;
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
    /// The moments, which go to the first rank.
    Moments,
    /// None; the run has ended.
    End,
}

impl Work {
    fn words(self) -> [u64; 2] {
        match self {
            Self::Step(done) => [0, done as u64],
            Self::Evaluation => [1, 0],
            Self::Moments => [2, 0],
            Self::End => [3, 0],
        }
    }

    fn from_words([kind, done]: [u64; 2]) -> Self {
        match kind {
            0 => Self::Step(done as usize),
            1 => Self::Evaluation,
            2 => Self::Moments,
            _ => Self::End,
        }
    }
}

/// The rule by which micro-batches are given to ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Share {
    /// As many to each.
    #[default]
    Equal,
    /// By the speed that each rank has shown in the first steps. The order of summation follows the shares, so that runs repeat within
    /// the rounding of sums alone.
    Auto,
}

/// The work of one rank so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankUsage {
    /// Micro-batches whose gradients it computed.
    pub micro_batches: f64,
    /// Seconds that this took.
    pub seconds: f64,
}

/// The time that a group has spent, as the first rank sees it. The first step of a run, in which drivers compile, is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupUsage {
    /// Of each rank.
    pub ranks: Vec<RankUsage>,
    /// Seconds in which the first rank waited for others.
    pub waiting: f64,
    /// Seconds in which gradients and values were read, sent, added up and written.
    pub exchange: f64,
}

impl GroupUsage {
    /// The share of all time in which `seconds` passed, from 0 to 1.
    pub fn share_of(&self, seconds: f64) -> f64 {
        let own = self.ranks.first().map_or(0.0, |rank| rank.seconds);
        seconds / (own + self.waiting + self.exchange).max(f64::MIN_POSITIVE)
    }

    /// Micro-batches per second of each rank.
    pub fn speeds(&self) -> Vec<f64> {
        self.ranks.iter().map(|rank| rank.micro_batches / rank.seconds.max(f64::MIN_POSITIVE)).collect()
    }
}

/// Steps that are measured before [`Share::Auto`] gives shares by speed.
const MEASURED_STEPS: usize = 3;

/// This rank's place in a group. A rank whose place is dropped before the end of the run ends the others too.
pub struct Group {
    transport: Box<dyn Transport>,
    ended: bool,
    share: Share,
    /// The part of the micro-batches that each rank gets, relative to the others.
    weights: Vec<f64>,
    /// Steps that were measured.
    steps: usize,
    /// The time spent so far, on the first rank.
    pub usage: GroupUsage,
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
        let weights = vec![1.0; transport.size()];
        let usage = GroupUsage::default();
        Self { transport: Box::new(transport), ended: false, share: Share::Equal, weights, steps: 0, usage }
    }

    /// The group, with another rule of sharing. That of the first rank counts.
    pub fn with_share(mut self, share: Share) -> Self {
        self.share = share;
        self
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.transport.size()
    }

    /// Number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// The part of a base's moments that this rank keeps.
    pub fn shard(&self) -> Shard {
        Shard { rank: self.rank(), size: self.size() }
    }

    /// True for the rank that writes the files.
    pub fn is_first(&self) -> bool {
        self.transport.rank() == 0
    }

    /// The part of `count` micro-batches that this rank computes. Among equal shares, later ranks get the larger parts: the first has the
    /// optimizer's step too.
    pub fn share(&self, count: usize) -> Range<usize> {
        let all: f64 = self.weights.iter().sum();
        let end = |ranks: usize| {
            let part: f64 = self.weights[..ranks].iter().sum();
            // A sum that is a whole number but for its rounding.
            (count as f64 * part / all + 1e-9) as usize
        };
        end(self.rank())..end(self.rank() + 1)
    }

    /// Adds the micro-batches and seconds of each rank for one step, and the seconds that the first rank waited for the others. The
    /// shares of the next steps follow from them, where they are asked to.
    pub(super) fn measure(&mut self, of_ranks: &[Vec<f64>], waiting: f64) {
        self.steps += 1;
        if self.steps == 1 {
            self.usage = GroupUsage { ranks: vec![RankUsage::default(); self.size()], ..GroupUsage::default() };
            return;
        }
        self.usage.waiting += waiting;
        for (rank, numbers) in self.usage.ranks.iter_mut().zip(of_ranks) {
            rank.micro_batches += numbers[0];
            rank.seconds += numbers[1];
        }
        if self.share == Share::Auto && self.steps > MEASURED_STEPS {
            let speeds = self.usage.speeds();
            // A rank that has had no work yet has no speed.
            let mean = speeds.iter().sum::<f64>() / speeds.iter().filter(|speed| **speed > 0.0).count().max(1) as f64;
            self.weights = speeds.iter().map(|speed| if *speed > 0.0 { *speed } else { mean }).collect();
        }
    }

    /// The work that the first rank announces; on the first rank, `work` is announced.
    ///
    /// # Errors
    /// A rank that has ended.
    pub fn agree_on(&mut self, work: Work) -> Result<Work> {
        let mut words = work.words();
        self.broadcast(bytemuck::cast_slice_mut(&mut words), 0)?;
        let mut weights = std::mem::take(&mut self.weights);
        self.broadcast(bytemuck::cast_slice_mut(&mut weights), 0)?;
        self.weights = weights;
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

    /// [`Transport::gather`].
    ///
    /// # Errors
    /// A rank that has ended.
    pub fn gather_bytes(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.transport.gather(bytes).map_err(Error::Group)
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
    fn faster_ranks_get_more() {
        let mut group = Group::new(threads::connect(3).remove(0)).with_share(Share::Auto);
        let seconds = [4.0, 1.0, 0.0];
        for _ in 0..2 * MEASURED_STEPS {
            let of_ranks: Vec<Vec<f64>> =
                seconds.iter().map(|seconds| vec![f64::from(u8::from(*seconds > 0.0)), *seconds]).collect();
            group.measure(&of_ranks, 0.5);
        }
        // Speeds of 1/4 and 1; the third has shown none, and gets the mean.
        assert_eq!(group.weights, [0.25, 1.0, 0.625]);
        assert_eq!(group.share(15), 0..2);
        assert_eq!(group.usage.share_of(group.usage.waiting), 0.5 / 4.5);
    }

    #[test]
    fn work_survives_its_way() {
        for work in [Work::Step(0), Work::Step(7), Work::Evaluation, Work::Moments, Work::End] {
            assert_eq!(Work::from_words(work.words()), work);
        }
    }
}
