//! Ranks that are threads of one process, for several GPUs of one computer.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::group::Transport;

/// The state that the threads share. Each exchange has two moments at which all threads meet: once all values are there, and once
/// everybody has taken the result.
struct Meeting {
    /// Threads that have come to the current meeting.
    arrived: usize,
    /// Meetings so far.
    past: u64,
    /// The values of each rank, to be added up.
    values: Vec<Vec<f32>>,
    /// The bytes of each rank, on their way to others.
    bytes: Vec<Vec<u8>>,
    /// The first rank that has ended before its time, and why.
    failure: Option<String>,
}

struct Shared {
    size: usize,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

/// One thread's place among the others.
pub struct Thread {
    rank: usize,
    shared: Arc<Shared>,
}

/// Connects `size` ranks; each thread takes one of the results.
pub fn connect(size: usize) -> Vec<Thread> {
    let meeting =
        Meeting { arrived: 0, past: 0, values: vec![Vec::new(); size], bytes: vec![Vec::new(); size], failure: None };
    let shared = Arc::new(Shared { size, meeting: Mutex::new(meeting), changed: Condvar::new() });
    (0..size).map(|rank| Thread { rank, shared: shared.clone() }).collect()
}

impl Thread {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.shared.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all threads have come here.
    fn meet(&self) -> Result<(), String> {
        let mut meeting = self.lock();
        let past = meeting.past;
        meeting.arrived += 1;
        if meeting.arrived == self.shared.size {
            (meeting.arrived, meeting.past) = (0, past + 1);
            self.shared.changed.notify_all();
        }
        while meeting.past == past {
            if let Some(failure) = &meeting.failure {
                return Err(failure.clone());
            }
            meeting = self.shared.changed.wait(meeting).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Transport for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.size
    }

    fn sum(&mut self, values: &mut [f32], to: usize) -> Result<(), String> {
        values.clone_into(&mut self.lock().values[self.rank]);
        self.meet()?;
        if self.rank == to {
            let meeting = self.lock();
            values.copy_from_slice(&meeting.values[0]);
            for other in &meeting.values[1..] {
                values.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
            }
        }
        self.meet()
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        bytes.clone_into(&mut self.lock().bytes[self.rank]);
        self.meet()?;
        let gathered = if self.rank == 0 { self.lock().bytes.clone() } else { Vec::new() };
        self.meet()?;
        Ok(gathered)
    }

    fn broadcast(&mut self, bytes: &mut [u8], from: usize) -> Result<(), String> {
        if self.rank == from {
            bytes.clone_into(&mut self.lock().bytes[from]);
        }
        self.meet()?;
        if self.rank != from {
            bytes.copy_from_slice(&self.lock().bytes[from]);
        }
        self.meet()
    }

    fn fail(&mut self, problem: &str) {
        self.lock().failure.get_or_insert_with(|| problem.to_owned());
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_all<T: Send + 'static>(size: usize, work: impl Fn(Thread) -> T + Clone + Send + 'static) -> Vec<T> {
        let spawn = |thread| {
            let work = work.clone();
            std::thread::spawn(move || work(thread))
        };
        let threads: Vec<_> = connect(size).into_iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    #[test]
    fn sums_are_added_in_the_order_of_ranks() {
        // In f32, 1e8 + 1 - 1e8 is 0 in this order and 1 in another.
        let parts = [1e8f32, 1.0, -1e8];
        let expected: f32 = parts.iter().fold(0.0, |sum, part| sum + part);
        let sums = on_all(3, move |mut thread| {
            let mut first = [0.0; 2];
            for _ in 0..100 {
                first = [parts[thread.rank()], thread.rank() as f32];
                thread.sum(&mut first, 1).unwrap();
            }
            first
        });
        assert_eq!(sums[1], [expected, 3.0]);
    }

    #[test]
    fn bytes_go_from_one_rank_to_all_and_from_all_to_the_first() {
        let received = on_all(4, |mut thread| {
            let mut bytes = vec![thread.rank() as u8 + 7; 5];
            thread.broadcast(&mut bytes, 2).unwrap();
            let own = vec![thread.rank() as u8; thread.rank()];
            (bytes, thread.gather(&own).unwrap())
        });
        assert!(received.iter().all(|(bytes, _)| *bytes == [9; 5]));
        assert_eq!(received[0].1, [vec![], vec![1], vec![2; 2], vec![3; 3]]);
        assert!(received[1].1.is_empty());
    }

    #[test]
    fn a_rank_that_ends_ends_the_others() {
        let results = on_all(3, |mut thread| {
            if thread.rank() == 1 {
                thread.fail("rank 1 is out of memory");
                return Ok(());
            }
            thread.sum(&mut [0.0], 0)
        });
        let ended = Err("rank 1 is out of memory".to_owned());
        assert_eq!(results, [ended.clone(), Ok(()), ended]);
    }
}
