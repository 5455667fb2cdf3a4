//! The one error type of the library's edge: every variant is a sentence that names the file, the field and what would be right.
//!
//! Where a sentence names a setting, it holds a placeholder that [`crate::setting::written`] replaces.

use std::path::{Path, PathBuf};

use crate::gpu::GpuError;
use crate::setting::Key;

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
    /// A setting that cannot work, alone or with the others. `problem` is a whole sentence.
    #[error("{problem}")]
    Setting { key: &'static str, problem: String },
    /// An argument of a call that cannot work: text, tokens or a batch.
    #[error("{0}")]
    Argument(String),
    /// A call on something that is in use, or that can be used once.
    #[error("{0}")]
    Busy(&'static str),
    /// The run cannot go on: the numbers themselves went wrong.
    #[error("{0}")]
    Training(String),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// The kinds of error that a caller would answer differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No device could be opened.
    NoAdapter,
    /// The device went away during the work.
    GpuLost,
    /// The work takes more memory than the device or one of its bindings has.
    OutOfMemory,
    /// Anything else on the device.
    Gpu,
    File,
    Hub,
    Setting,
    Argument,
    Busy,
    /// The numbers of a run went wrong.
    Training,
}

impl ErrorKind {
    /// The kind in kebab-case, as programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoAdapter => "no-adapter",
            Self::GpuLost => "gpu-lost",
            Self::OutOfMemory => "out-of-memory",
            Self::Gpu => "gpu",
            Self::File => "file",
            Self::Hub => "hub",
            Self::Setting => "setting",
            Self::Argument => "argument",
            Self::Busy => "busy",
            Self::Training => "training",
        }
    }
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

    pub fn setting(key: Key, problem: impl std::fmt::Display) -> Self {
        Self::Setting { key: key.0, problem: problem.to_string() }
    }

    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File { .. } | Self::Field { .. } | Self::Line { .. } => ErrorKind::File,
            Self::Hub { .. } => ErrorKind::Hub,
            Self::Setting { .. } => ErrorKind::Setting,
            Self::Argument(_) => ErrorKind::Argument,
            Self::Busy(_) => ErrorKind::Busy,
            Self::Training(_) => ErrorKind::Training,
            Self::Gpu(GpuError::NoAdapter | GpuError::Open { .. } | GpuError::UnknownAdapter { .. }) => {
                ErrorKind::NoAdapter
            }
            Self::Gpu(GpuError::Lost(_)) => ErrorKind::GpuLost,
            Self::Gpu(GpuError::OutOfMemory { .. } | GpuError::LimitTooSmall { .. }) => ErrorKind::OutOfMemory,
            Self::Gpu(_) => ErrorKind::Gpu,
        }
    }
}
