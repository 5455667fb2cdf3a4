//! Ctrl-C: the first asks the program to stop where it can, the second ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// Exit status of a program that Ctrl-C ended, as shells count it: 128 and the number of SIGINT.
const ENDED: i32 = 130;

/// Whether Ctrl-C was pressed.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches Ctrl-C until the program ends; the first one prints `notice`. A program can do so once.
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

    /// Forgets the Ctrl-C that was served: the next one is the first again.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
