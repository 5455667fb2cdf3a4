//! Handles Ctrl-C: the first asks the program to stop, the second ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// Exit status after Ctrl-C, by the convention of shells: 128 plus the number of SIGINT.
const ENDED: i32 = 130;

/// Records whether Ctrl-C was pressed.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches Ctrl-C until the program ends; the first one prints `notice`. Call it once per program.
    pub fn watch(notice: Option<&'static str>) -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let interrupt = Self(asked.clone());
        ctrlc::set_handler(move || {
            if asked.swap(true, Ordering::Relaxed) {
                std::process::exit(ENDED);
            }
            if let Some(notice) = notice {
                eprintln!("\n{notice}");
            }
        })
        .context("Ctrl-C cannot be watched")?;
        Ok(interrupt)
    }

    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Resets the state after Ctrl-C was handled: the next one counts as the first again.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
