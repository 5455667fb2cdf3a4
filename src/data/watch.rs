//! Work on files of others that no limit of its own bounds: chat templates and tokenizers. A program's watchdog measures its time and
//! memory from outside.

use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of such work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Rendering one conversation.
    Template,
    /// Reading or using a tokenizer.
    Tokenizer,
}

/// Work that is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// Differs between any two works.
    pub number: u64,
    /// Its kind.
    pub work: Work,
    /// Bytes that are worked on: what is allowed grows with them.
    pub bytes: u64,
}

/// Incremented at the beginning and at the end of each work, so it is odd during one.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Bytes of the current work, shifted by one; the lowest bit is set for a template.
static ABOUT: AtomicU64 = AtomicU64::new(0);

/// The work that goes on. Only for programs that do such work on one thread at a time.
pub fn current() -> Option<Current> {
    let number = COUNT.load(Ordering::Acquire);
    let about = ABOUT.load(Ordering::Acquire);
    let work = if about & 1 == 1 { Work::Template } else { Work::Tokenizer };
    (number % 2 == 1 && COUNT.load(Ordering::Acquire) == number).then_some(Current { number, work, bytes: about >> 1 })
}

/// Does `work`, on `bytes` bytes, so that a watchdog sees it. Works are not nested in each other.
pub(super) fn watched<T>(kind: Work, bytes: usize, work: impl FnOnce() -> T) -> T {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            COUNT.fetch_add(1, Ordering::AcqRel);
        }
    }
    ABOUT.store((bytes as u64) << 1 | u64::from(kind == Work::Template), Ordering::Release);
    COUNT.fetch_add(1, Ordering::AcqRel);
    let _end = End;
    work()
}
