//! Panics of other crates that become ordinary errors. In a browser nothing is caught: there a panic ends the module.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// True while a panic of this thread becomes an error. A program's panic hook can then stay silent.
pub fn is_caught() -> bool {
    CAUGHT.get()
}

/// Calls `work`.
///
/// # Errors
/// The message of a panic inside `work`.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(outer);
    result.map_err(|panic| message(panic.as_ref()))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_messages() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(caught(|| -> u8 { panic!("one {}", 1) }), Err("one 1".to_owned()));
        let inside = caught(|| {
            assert!(caught(|| -> u8 { panic!("deep") }).is_err());
            is_caught()
        });
        assert_eq!((inside, is_caught()), (Ok(true), false));
    }
}
