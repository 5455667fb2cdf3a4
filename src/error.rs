//! The one error type of the library's edge: every variant is a sentence that names the file, the field and what would be right.
//!
//! Where a sentence names a setting, it holds a placeholder that [`crate::setting::written`] replaces.

use std::path::{Path, PathBuf};

use crate::gpu::GpuError;
use crate::setting::{Key, MODEL, RESUME, SAVE_EVERY};

/// The result of a call that can fail with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the library. Its text is one sentence that names what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory that cannot be read, written or understood as a whole.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The rest of the sentence, of which the path is the subject.
        problem: String,
    },
    /// One field (a JSON key, a tensor) of a file is wrong.
    #[error("{}: `{field}`: {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The JSON key with those above it (`rope_scaling.factor`), or the tensor's name.
        field: String,
        /// The rest of the sentence, of which the field is the subject.
        problem: String,
    },
    /// One line of a data file is wrong; `line` counts from 1.
    #[error("{}, line {line}: {problem}", path.display())]
    Line {
        /// The data file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// The rest of the sentence, of which the line is the subject.
        problem: String,
    },
    /// A model that a hub does not give.
    #[error("{model}: {problem}")]
    Hub {
        /// The model as it was asked for, `owner/name` or `owner/name@revision`.
        model: String,
        /// The rest of the sentence, of which the model is the subject.
        problem: String,
    },
    /// A setting that cannot work, alone or with the others. `problem` is a whole sentence.
    #[error("{problem}")]
    Setting {
        /// The setting's key in a settings file, such as `batch-size`.
        key: &'static str,
        /// A whole sentence, with placeholders for the settings that it names.
        problem: String,
    },
    /// An argument of a call that cannot work: text, tokens or a batch.
    #[error("{0}")]
    Argument(String),
    /// A call on something that is in use, or that can be used once.
    #[error("{0}")]
    Busy(&'static str),
    /// The run cannot go on: the numbers themselves went wrong.
    #[error("{0}")]
    Training(String),
    /// A group of devices of which one has ended, or that do not train the same.
    #[error("{0}")]
    Group(String),
    /// A run whose device was lost again and again.
    #[error(
        "the GPU device was lost {times} times, the last time after step {step} ({reason}); {}",
        way_on(checkpoint.as_deref())
    )]
    DeviceLost {
        /// Optimizer steps done when the device was lost for the last time.
        step: usize,
        /// Losses on end without a new checkpoint.
        times: usize,
        /// Reason that the driver gave.
        reason: String,
        /// Newest checkpoint of the run.
        checkpoint: Option<PathBuf>,
    },
    /// An error of the GPU, its driver or its memory.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

fn way_on(checkpoint: Option<&Path>) -> String {
    match checkpoint {
        Some(checkpoint) => format!("go on from the last checkpoint with {}", RESUME.is(checkpoint.display())),
        None => format!("no checkpoint was saved yet; start again, with {SAVE_EVERY} for checkpoints every few steps"),
    }
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
    /// A file cannot be read, written or understood.
    File,
    /// A hub does not give the model.
    Hub,
    /// A setting cannot work, alone or with the others.
    Setting,
    /// An argument of a call cannot work: text, tokens or a batch.
    Argument,
    /// The called object is in use, or can be used only once.
    Busy,
    /// The numbers of a run went wrong.
    Training,
    /// A device of several that train together has ended.
    Group,
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
            Self::Group => "group",
        }
    }
}

impl Error {
    /// A [`Self::File`]. The sentence is the path and `problem`.
    pub fn file(path: impl AsRef<Path>, problem: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().to_owned(), problem: problem.to_string() }
    }

    /// The text that a clone without git-lfs has in place of a large file.
    pub fn lfs_pointer(path: impl AsRef<Path>) -> Self {
        let problem = format!(
            "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`, or give the name on the hub, {}, to download it",
            MODEL.is("owner/name")
        );
        Self::file(path, problem)
    }

    /// A [`Self::Field`]. The sentence is the path, `field` and `problem`.
    pub fn field(path: impl AsRef<Path>, field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self::Field { path: path.as_ref().to_owned(), field: field.into(), problem: problem.to_string() }
    }

    /// A [`Self::Line`] about line `line`, counted from 1.
    pub fn line(path: impl AsRef<Path>, line: usize, problem: impl std::fmt::Display) -> Self {
        Self::Line { path: path.as_ref().to_owned(), line, problem: problem.to_string() }
    }

    /// A [`Self::Setting`]. `problem` is the whole sentence.
    pub fn setting(key: Key, problem: impl std::fmt::Display) -> Self {
        Self::Setting { key: key.0, problem: problem.to_string() }
    }

    /// The kind of the error, by which a program can choose its answer.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File { .. } | Self::Field { .. } | Self::Line { .. } => ErrorKind::File,
            Self::Hub { .. } => ErrorKind::Hub,
            Self::Setting { .. } => ErrorKind::Setting,
            Self::Argument(_) => ErrorKind::Argument,
            Self::Busy(_) => ErrorKind::Busy,
            Self::Training(_) => ErrorKind::Training,
            Self::Group(_) => ErrorKind::Group,
            Self::Gpu(GpuError::NoAdapter | GpuError::Open { .. } | GpuError::UnknownAdapter { .. }) => {
                ErrorKind::NoAdapter
            }
            Self::DeviceLost { .. } | Self::Gpu(GpuError::Lost(_)) => ErrorKind::GpuLost,
            Self::Gpu(GpuError::OutOfMemory { .. } | GpuError::LimitTooSmall { .. }) => ErrorKind::OutOfMemory,
            Self::Gpu(_) => ErrorKind::Gpu,
        }
    }
}
