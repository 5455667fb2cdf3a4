//! Damaged copies of data files, for the tests of their readers.

use std::path::{Path, PathBuf};

/// Cuts copies of the files off, and changes single bytes of them, `each` times a file; returns how many `is_refused` refuses.
pub(super) fn errors_of_damaged(files: &[PathBuf], each: usize, is_refused: impl Fn(&Path) -> bool) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let mut errors = 0;
    for file in files {
        let path = directory.path().join("damaged").with_extension(file.extension().unwrap_or_default());
        let whole = std::fs::read(file).unwrap();
        for step in 0..each {
            let mut bytes = whole.clone();
            let at = (step * 7919) % bytes.len();
            match step % 3 {
                0 => bytes.truncate(at),
                1 => bytes[at] ^= 0xff,
                _ => bytes[at] = bytes[at].wrapping_add(1),
            }
            std::fs::write(&path, &bytes).unwrap();
            errors += usize::from(is_refused(&path));
        }
    }
    errors
}
