//! The errors of a device. Each message says what to do about it.

use super::memory::{Category, readable_bytes, readable_need};
use crate::setting::{BATCH_SIZE, MAX_SEQ_LEN, METHOD, MODEL, OPTIM, RANK, RECOMPUTE};

/// An error of the device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The machine has no adapter.
    #[error(
        "no GPU adapter was found: install a Vulkan, Metal or DX12 driver (a machine without a GPU can use Mesa's software driver: `apt install mesa-vulkan-drivers`)"
    )]
    NoAdapter,
    /// No adapter has the wanted name.
    #[error("no adapter matches `{wanted}`; there are: {available}")]
    UnknownAdapter {
        /// The index or the part of a name that was asked for.
        wanted: String,
        /// The adapters of this machine, each as `index: name`, separated by commas.
        available: String,
    },
    /// The adapter's device cannot be opened.
    #[error("the device of `{adapter}` could not be opened: {problem}")]
    Open {
        /// The adapter's name, as its driver gives it.
        adapter: String,
        /// The driver's own words.
        problem: String,
    },
    /// An allocation failed.
    #[error("out of GPU memory while allocating {} for {what}: {}", readable_bytes(*bytes), to_save(*category))]
    OutOfMemory {
        /// Size of the buffer that could not be allocated, in bytes.
        bytes: u64,
        /// Label of that buffer in the memory plan.
        what: String,
        /// Its category, from which follows what would make it smaller.
        category: Category,
    },
    /// A buffer or binding is over a limit of the adapter.
    #[error(
        "{what} needs {} in one {limit}, the adapter allows {}: lower {} or {}",
        readable_need(*needed, *allowed)[0],
        readable_need(*needed, *allowed)[1],
        BATCH_SIZE,
        MAX_SEQ_LEN
    )]
    LimitTooSmall {
        /// The buffer or the operation that is too large.
        what: String,
        /// The kind of limit: `buffer` for a whole buffer, `binding` for the part that a kernel sees at once.
        limit: &'static str,
        /// Bytes that the run needs there.
        needed: u64,
        /// Bytes that the adapter allows there.
        allowed: u64,
    },
    /// The device is gone.
    #[error(
        "the GPU device was lost ({0}): a driver reset, a sleeping computer or an unplugged device does this; run the command again"
    )]
    Lost(String),
    /// The driver refused a command or a shader.
    #[error("the GPU reported an error: {0}")]
    Validation(String),
}

/// The settings that make buffers of a category smaller.
fn to_save(category: Category) -> String {
    match category {
        Category::Weights | Category::QuantScales => {
            format!("choose {}, or a smaller model for {MODEL}", METHOD.is("qlora"))
        }
        Category::Adapter | Category::Gradients => format!("lower {RANK}"),
        Category::Optimizer => format!("lower {RANK}, or choose {}", OPTIM.is("adamw8bit")),
        Category::KeptActivations | Category::Workspace | Category::KvCache | Category::Uploads => {
            format!("lower {BATCH_SIZE} or {MAX_SEQ_LEN}, or choose {}", RECOMPUTE.is("all"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_help_depends_on_what_does_not_fit() {
        let said = |category| GpuError::OutOfMemory { bytes: 1 << 30, what: "x".to_owned(), category }.to_string();
        let weights = said(Category::Weights);
        assert!(weights.contains(&METHOD.is("qlora")) && !weights.contains(&BATCH_SIZE.to_string()), "{weights}");
        assert!(said(Category::Workspace).contains(&BATCH_SIZE.to_string()));
        for category in Category::ALL {
            assert!(said(category).starts_with("out of GPU memory while allocating "), "{category:?}");
        }
    }
}
