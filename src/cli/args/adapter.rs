//! Resolves `--adapter`: a PEFT adapter directory, a zip file of one, such as the page's download, or owner/name on the hub.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use zip::ZipArchive;

use loraine::hub::fetch::Extent;
use loraine::lora::adapter_file;
use loraine::lora::config::LoraConfig;

use super::model::{fetched, hub_name};
use super::nearest::suggestion;

const CONFIG: &str = "adapter_config.json";
/// Weights shrink little. A file that would grow more than this is no adapter.
const MOST_GROWTH: u64 = 20;
const SMALL: u64 = 64 << 20;

/// An adapter directory. One that was unpacked from a zip file is removed when this is dropped.
pub struct AdapterDir {
    pub dir: PathBuf,
    _unpacked: Option<TempDir>,
}

/// Returns the directory of an adapter, which may lie one folder down. A zip file is unpacked first, and an adapter of the hub is
/// downloaded into the cache.
pub fn adapter_directory(given: &Path) -> Result<AdapterDir> {
    if let Some(name) = hub_name(given) {
        let dir = fetched(&name, Extent::Adapter)?;
        name_ignored(&dir);
        return Ok(AdapterDir { dir, _unpacked: None });
    }
    if given.is_file() {
        let is_zip = given.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("zip"));
        ensure!(
            is_zip,
            "{}: is a file; give the adapter's directory, which holds {CONFIG} and adapter_model.safetensors, or a zip file of it",
            given.display()
        );
        let unpacked = unpack(given).with_context(|| given.display().to_string())?;
        return Ok(AdapterDir { dir: unpacked.path().to_owned(), _unpacked: Some(unpacked) });
    }
    if !given.is_dir() {
        bail!("{}: does not exist, so it is not an adapter directory{}", given.display(), suggestion(given, CONFIG));
    }
    let dir = adapter_file::locate(given)?;
    name_ignored(&dir);
    Ok(AdapterDir { dir, _unpacked: None })
}

/// Names the settings of an adapter that are set and not known here, as PEFT does.
fn name_ignored(dir: &Path) {
    let path = dir.join(CONFIG);
    let ignored = LoraConfig::from_file(&path).map(|config| config.ignored).unwrap_or_default();
    if !ignored.is_empty() {
        eprintln!("note: {}: without effect, since it is not known here: {}", path.display(), ignored.join(", "));
    }
}

/// Unpacks the files beside the archive's `adapter_config.json` into a temporary directory.
fn unpack(path: &Path) -> Result<TempDir> {
    let file = File::open(path).context("cannot be read")?;
    let packed = file.metadata().context("cannot be read")?.len();
    let mut archive = ZipArchive::new(file).context("is not a whole zip file")?;
    let folders: Vec<String> =
        archive.file_names().filter_map(|name| folder_of(name, CONFIG)).map(str::to_owned).collect();
    let [folder] = &folders[..] else {
        ensure!(!folders.is_empty(), "holds no {CONFIG}; it is not a PEFT adapter");
        bail!("holds {} adapters, in {}; unpack it and name one", folders.len(), folders.join(", "));
    };
    let dir = tempfile::tempdir().context("no temporary directory can be made")?;
    // Of all entries together: they may share their packed bytes.
    let most = packed.saturating_mul(MOST_GROWTH).saturating_add(SMALL);
    let mut left = most;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).context("is not a whole zip file")?;
        let name = entry.name().to_owned();
        let Some(name) = name.strip_prefix(folder.as_str()).filter(|name| is_plain(name)) else { continue };
        let mut to = File::create(dir.path().join(name)).context("cannot be unpacked")?;
        let size = io::copy(&mut entry.take(left), &mut to).with_context(|| format!("{name} cannot be unpacked"))?;
        ensure!(size < left, "{name} would take more than the {most} bytes that an adapter of this size has");
        left -= size;
    }
    Ok(dir)
}

/// The part of `path` before its last component, if that is `name`.
fn folder_of<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    path.strip_suffix(name).filter(|folder| folder.is_empty() || folder.ends_with('/'))
}

/// True for the name of a file that stays in its directory.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', ':']) && !matches!(name, "." | "..")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn write(path: &Path, files: &[(&str, &[u8])]) {
        let mut zip = ZipWriter::new(File::create(path).unwrap());
        for (name, bytes) in files {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn a_zip_file_is_unpacked_with_or_without_a_folder() {
        let place = tempfile::tempdir().unwrap();
        let zip = place.path().join("a.zip");
        for folder in ["", "adapter/"] {
            let name = |file: &str| format!("{folder}{file}");
            let (config, weights) = (name(CONFIG), name("adapter_model.safetensors"));
            write(&zip, &[(&config, b"{}"), (&weights, b"w"), ("../evil", b"x"), (&name("deep/x"), b"x")]);
            let found = adapter_directory(&zip).unwrap();
            let mut names: Vec<_> =
                std::fs::read_dir(&found.dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            assert_eq!(names, [CONFIG, "adapter_model.safetensors"]);
            let dir = found.dir.clone();
            drop(found);
            assert!(!dir.exists());
        }
    }

    #[test]
    fn what_is_no_adapter_is_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let problem = |name: &str| format!("{:#}", adapter_directory(&path(name)).err().unwrap());
        write(&path("other.zip"), &[("readme", b"x")]);
        write(&path("two.zip"), &[("a/adapter_config.json", b"{}"), ("b/adapter_config.json", b"{}")]);
        std::fs::write(path("broken.zip"), "PK").unwrap();
        std::fs::write(path("adapter_model.safetensors"), "").unwrap();
        std::fs::create_dir(path("pirate")).unwrap();
        std::fs::write(path("pirate").join(CONFIG), "{}").unwrap();
        std::fs::create_dir(path("model")).unwrap();
        std::fs::write(path("model/config.json"), "{}").unwrap();
        for (name, says) in [
            ("model", "but a model"),
            ("other.zip", "holds no adapter_config.json"),
            ("two.zip", "holds 2 adapters"),
            ("broken.zip", "not a whole zip file"),
            ("adapter_model.safetensors", "give the adapter's directory"),
            ("absent", "does not exist"),
            ("pirat", "did you mean"),
        ] {
            let problem = problem(name);
            assert!(problem.contains(says) && problem.contains(name), "{problem}");
        }
    }
}
