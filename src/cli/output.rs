//! Standard output that cannot be written is an error, and messages hold no passwords.

use std::io::{self, Write};
use std::sync::OnceLock;

use anyhow::Result;

/// The first error of standard output, but for a closed pipe, whose reader has read enough.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Remembers the error of a print.
pub fn note(printed: io::Result<()>) {
    match printed {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            let _ = FAILED.set(e);
        }
        _ => {}
    }
}

/// # Errors
/// Something could not be printed.
pub fn finish() -> Result<()> {
    note(io::stdout().flush());
    match FAILED.get() {
        Some(e) => anyhow::bail!("standard output cannot be written: {e}"),
        None => Ok(()),
    }
}

/// `text` with `***` in place of user and password in addresses.
pub fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/?#`\"'".contains(c)).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(user) => {
                out.push_str("***");
                &after[user..]
            }
            None => after,
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_addresses_are_not_shown() {
        assert_eq!(without_passwords("https://me:s3@cret@host/x: no"), "https://***@host/x: no");
        assert_eq!(without_passwords("http://host:80/@a and http://u@b"), "http://host:80/@a and http://***@b");
        assert_eq!(without_passwords("mail a@b.c"), "mail a@b.c");
    }
}
