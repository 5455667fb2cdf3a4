//! What the fuzz targets share: a directory to put damaged files into, and good files to put beside them.

use std::path::{Path, PathBuf};

use loraine::model::config::ModelConfig;
use tempfile::TempDir;

/// `tests/fixtures/NAME` of the project.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A model of the fixtures.
pub fn model(name: &str) -> ModelConfig {
    ModelConfig::from_file(&fixture(name).join("config.json")).expect("a good config.json")
}

/// The built-in model's directory, which has a tokenizer.
pub fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/demo/model")
}

/// Some readers catch the panics of a library that they use, at the first of which libFuzzer's hook would end the process.
/// A panic that nobody catches still ends it.
pub fn let_readers_catch_panics() {
    std::panic::set_hook(Box::new(|_| ()));
}

/// A directory that stays as long as the fuzzer runs.
pub struct Place {
    dir: TempDir,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// A directory with copies of these files.
    pub fn with(files: &[PathBuf]) -> Self {
        let place = Self::new();
        for file in files {
            let name = file.file_name().expect("a file");
            std::fs::copy(file, place.path().join(name)).expect("a copy");
        }
        place
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).expect("a file in a temporary directory");
        path
    }
}
