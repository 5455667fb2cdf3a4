//! Switches the echo of a terminal off, so that keys typed during an answer do not stand in it.

#[cfg(unix)]
use std::sync::{Mutex, PoisonError};

#[cfg(unix)]
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// The settings of the terminal before [`Silence::begin`].
#[cfg(unix)]
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// A terminal without echo, until it is dropped. What is typed meanwhile is read by the next prompt.
pub struct Silence;

impl Silence {
    /// Switches the echo of standard input off, if it is a terminal.
    pub fn begin() -> Self {
        #[cfg(unix)]
        if let Ok(before) = tcgetattr(std::io::stdin()) {
            let mut silent = before.clone();
            silent.local_flags.remove(LocalFlags::ECHO);
            if tcsetattr(std::io::stdin(), SetArg::TCSANOW, &silent).is_ok() {
                *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            }
        }
        Self
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its settings back; a program that ends without dropping its [`Silence`] calls it.
pub fn restore() {
    #[cfg(unix)]
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &before);
    }
}
