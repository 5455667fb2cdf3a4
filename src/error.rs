//! The one error type of the library's edge: every variant is a sentence that names the file, the field and what would be right.

use std::path::{Path, PathBuf};

use crate::gpu::GpuError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory that cannot be read, written or understood as a whole.
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// One field (a JSON key, a tensor) of a file is wrong.
    #[error("{}: `{field}`: {problem}", path.display())]
    Field { path: PathBuf, field: String, problem: String },
    /// One line of a data file is wrong; `line` counts from 1.
    #[error("{}, line {line}: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
    /// A model that a hub does not give.
    #[error("{model}: {problem}")]
    Hub { model: String, problem: String },
    /// A setting that cannot work, alone or with the others.
    #[error("{0}")]
    Setting(String),
    /// The run cannot go on: the numbers themselves went wrong.
    #[error("{0}")]
    Training(String),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

impl Error {
    pub fn file(path: impl AsRef<Path>, problem: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().to_owned(), problem: problem.to_string() }
    }

    pub fn field(path: impl AsRef<Path>, field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self::Field { path: path.as_ref().to_owned(), field: field.into(), problem: problem.to_string() }
    }

    pub fn line(path: impl AsRef<Path>, line: usize, problem: impl std::fmt::Display) -> Self {
        Self::Line { path: path.as_ref().to_owned(), line, problem: problem.to_string() }
    }
}
