//! Handles Ctrl-C and the signals that ask a program to end: the first one asks, and a second Ctrl-C ends the program at once.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Context, Result};

use super::terminal;

/// Ctrl-C.
const SIGINT: i32 = 2;
/// The terminal went away.
#[cfg(unix)]
const SIGHUP: i32 = 1;
/// `kill` without a signal.
#[cfg(unix)]
const SIGTERM: i32 = 15;

/// Signals that ask an [`Interrupt`] to stop; the others that are watched end the program at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// Ctrl-C alone.
    CtrlC,
    /// Ctrl-C, `kill`, and a terminal that is closed.
    Every,
}

/// Records which signal asked the program to stop.
#[derive(Clone, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    signal: Arc<AtomicI32>,
}

/// The end of a program that a signal stopped. Its work so far is saved or shown, and there is nothing more to say.
#[derive(Debug)]
pub struct Ended {
    signal: i32,
}

impl Ended {
    /// Exit status by the convention of shells: 128 plus the number of the signal.
    pub fn status(&self) -> u8 {
        u8::try_from(128 + self.signal).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by signal {}", self.signal)
    }
}

impl std::error::Error for Ended {}

impl Interrupt {
    /// Watches the signals until the program ends; the first one prints `notice`. Call it once per program.
    pub fn watch(asking: Asking, notice: Option<&'static str>) -> Result<Self> {
        let interrupt = Self::default();
        let watched = interrupt.clone();
        on_signals(move |signal| watched.arrived(signal, asking, notice)).context("Ctrl-C cannot be watched")?;
        Ok(interrupt)
    }

    fn arrived(&self, signal: i32, asking: Asking, notice: Option<&str>) {
        if asking == Asking::CtrlC && signal != SIGINT {
            leave(signal);
        }
        if self.asked() {
            // A terminal that is closed sends its signal twice, by the shell and by the system.
            if signal == SIGINT {
                leave(signal);
            }
            return;
        }
        self.signal.store(signal, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
        if let Some(notice) = notice {
            // The terminal may be gone.
            let _ = writeln!(io::stderr(), "\n{notice}");
        }
    }

    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// The flag that is true from the first signal on.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.asked.clone()
    }

    /// Resets the state after Ctrl-C was handled: the next one counts as the first again.
    pub fn clear(&self) {
        self.asked.store(false, Ordering::Relaxed);
    }

    /// The program's end by the last signal.
    pub fn ended(&self) -> Ended {
        Ended { signal: self.signal.load(Ordering::Relaxed) }
    }
}

/// Ends the program at once.
fn leave(signal: i32) -> ! {
    terminal::restore();
    std::process::exit(i32::from(Ended { signal }.status()))
}

/// Calls `handle` in a thread of its own with each signal that asks the program to end.
#[cfg(unix)]
fn on_signals(handle: impl Fn(i32) + Send + 'static) -> Result<()> {
    // nohup has SIGHUP ignored, so that the program outlives its terminal. SIGINT counts in any case: shells ignore it for the
    // background jobs of a script, and still somebody who sends it means it.
    let watched = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| *signal != SIGHUP || !ignored(SIGHUP));
    let mut signals = signal_hook::iterator::Signals::new(watched)?;
    std::thread::spawn(move || signals.forever().for_each(handle));
    Ok(())
}

/// True if the program was started with this signal ignored.
#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let Ok(signal) = Signal::try_from(signal) else { return false };
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "the handling of a signal is asked for by replacing it")]
    // SAFETY: to ignore a signal runs no code of ours, and what was there before is put back.
    unsafe {
        let Ok(before) = sigaction(signal, &ignore) else { return false };
        let _ = sigaction(signal, &before);
        matches!(before.handler(), SigHandler::SigIgn)
    }
}

#[cfg(not(unix))]
fn on_signals(handle: impl Fn(i32) + Send + 'static) -> Result<()> {
    Ok(ctrlc::set_handler(move || handle(SIGINT))?)
}
