//! The measurements of an adapter, in one small file for each adapter and driver.
//!
//! A file that is damaged or of another adapter is ignored and replaced. If a file cannot be written, the measurements are not kept.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, File};
use crate::gpu::{AdapterSummary, AutotuneKey};

/// A larger file is not one that this module wrote.
const MAX_BYTES: u64 = 4 << 20;
const PREFIX: &str = "kernels-";
const SUFFIX: &str = ".json";

/// The device of the measurements. The driver is part of it, since another driver may compile the same text to other code. A browser
/// may not name its GPU: its limits stand in for the name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Device {
    adapter: String,
    kind: String,
    backend: String,
    driver: String,
    driver_info: String,
    subgroup_sizes: [u32; 2],
    max_buffer_bytes: u64,
}

/// The fastest kernel of a class, among kernels of these texts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    class: AutotuneKey,
    /// Checksum of the texts of all kernels that were measured.
    kernels: u32,
    fastest: String,
}

impl Entry {
    /// The entry of a key.
    pub(super) fn new(class: AutotuneKey, kernels: u32, fastest: &str) -> Self {
        Self { class, kernels, fastest: fastest.to_owned() }
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Contents {
    device: Device,
    entries: Vec<Entry>,
}

/// The measurements of a file.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<Entry>);

impl Kept {
    /// The fastest kernel of a class, if it was measured among these texts.
    pub(super) fn get(&self, class: &AutotuneKey, kernels: u32) -> Option<&str> {
        let found = self.0.iter().find(|entry| entry.class == *class && entry.kernels == kernels);
        found.map(|entry| entry.fastest.as_str())
    }
}

/// Every device's file in a directory.
pub(super) fn files_in(dir: &Path) -> Vec<PathBuf> {
    let names = files::names(dir).unwrap_or_default().into_iter();
    names.filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)).map(|name| dir.join(name)).collect()
}

/// The file of one device.
pub(super) struct Cache {
    path: PathBuf,
    device: Device,
}

impl Cache {
    /// The file of an adapter in a directory.
    pub(super) fn of(dir: &Path, adapter: &AdapterSummary) -> Self {
        let device = Device {
            adapter: adapter.name.clone(),
            kind: adapter.kind.to_owned(),
            backend: adapter.backend.clone(),
            driver: adapter.driver.clone(),
            driver_info: adapter.driver_info.clone(),
            subgroup_sizes: adapter.subgroup_sizes,
            max_buffer_bytes: adapter.max_buffer_bytes,
        };
        // The name tells devices apart. The contents say which device it is.
        let key = format!("{device:?}");
        Self { path: dir.join(format!("{PREFIX}{:08x}{SUFFIX}", crc32c::crc32c(key.as_bytes()))), device }
    }

    /// The measurements of the file, none where it cannot be read.
    pub(super) fn read(&self) -> Kept {
        self.contents().unwrap_or_default()
    }

    fn contents(&self) -> Option<Kept> {
        let mut text = String::new();
        File::open(&self.path).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        let contents: Contents = serde_json::from_str(&text).ok()?;
        (contents.device == self.device).then_some(Kept(contents.entries))
    }

    /// Adds measurements to the file as it is now. They replace those of the same keys.
    pub(super) fn add(&self, measured: Vec<Entry>) {
        let mut entries = self.read().0;
        entries.retain(|old| measured.iter().all(|new| new.class != old.class));
        entries.extend(measured);
        let contents = Contents { device: self.device.clone(), entries };
        let beside = self.path.with_extension(format!("{}.part", files::writer_id()));
        if self.write(&contents, &beside).is_err() {
            let _ = files::remove_file(&beside);
        }
    }

    fn write(&self, contents: &Contents, beside: &Path) -> io::Result<()> {
        files::create_dir_all(self.path.parent().unwrap_or(Path::new("")))?;
        let mut file = files::create_new(beside)?;
        file.write_all(serde_json::to_string_pretty(contents)?.as_bytes())?;
        file.sync_all()?;
        files::rename(beside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ProblemSize;

    fn adapter(driver_info: &str) -> AdapterSummary {
        AdapterSummary {
            index: 0,
            name: "A GPU".to_owned(),
            kind: "discrete",
            backend: "vulkan".to_owned(),
            driver: "driver".to_owned(),
            driver_info: driver_info.to_owned(),
            max_binding_bytes: 0,
            max_buffer_bytes: 0,
            workgroup_memory_bytes: 0,
            max_invocations: 0,
            subgroup_sizes: [0, 0],
            shader_f16: false,
            subgroups: false,
            timestamps: false,
            cooperative_matrix: None,
        }
    }

    fn class(rows: u32) -> AutotuneKey {
        ProblemSize { op: "linear_forward", storage: "f32", rows, cols: 64, depth: 64 }.class()
    }

    #[test]
    fn what_is_kept_is_found_by_its_device_class_and_texts() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::of(&dir.path().join("not/yet/there"), &adapter("1.0"));
        assert_eq!(cache.read().get(&class(64), 7), None);
        cache.add(vec![Entry::new(class(64), 7, "small"), Entry::new(class(128), 7, "large")]);
        let get = |rows, kernels| cache.read().get(&class(rows), kernels).map(str::to_owned);
        assert_eq!((get(64, 7).as_deref(), get(128, 7).as_deref(), get(256, 7)), (Some("small"), Some("large"), None));
        // Other texts were not measured, and what is measured of them takes the old one's place.
        assert_eq!(get(64, 8), None);
        cache.add(vec![Entry::new(class(64), 8, "new")]);
        assert_eq!((get(64, 8).as_deref(), get(64, 7), get(128, 7).as_deref()), (Some("new"), None, Some("large")));
        // Another driver has a file of its own, and does not believe this one under its name.
        let other = Cache::of(cache.path.parent().unwrap(), &adapter("1.1"));
        assert_ne!(other.path, cache.path);
        std::fs::copy(&cache.path, &other.path).unwrap();
        assert_eq!(other.read().get(&class(128), 7), None);
        other.add(vec![Entry::new(class(64), 7, "its own")]);
        assert_eq!((other.read().0.len(), cache.read().0.len()), (1, 2));
        let names: Vec<_> = std::fs::read_dir(cache.path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let mut listed = files_in(cache.path.parent().unwrap());
        listed.sort();
        let mut made = [cache.path, other.path];
        made.sort();
        assert_eq!(listed, made);
    }

    #[test]
    fn a_damaged_file_is_passed_over_and_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::of(dir.path(), &adapter("1.0"));
        cache.add(vec![Entry::new(class(64), 7, "small")]);
        let whole = std::fs::read(&cache.path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] = 0xff;
        for damaged in [&b""[..], &whole[..whole.len() / 2], &flipped, b"[]", b"{\"device\":{},\"entries\":3}"] {
            std::fs::write(&cache.path, damaged).unwrap();
            assert_eq!(cache.read().get(&class(64), 7), None);
            cache.add(vec![Entry::new(class(64), 7, "small")]);
            assert_eq!(std::fs::read(&cache.path).unwrap(), whole);
        }
        // Where a file cannot be, nothing is kept, and nothing fails.
        let blocked = Cache::of(&cache.path, &adapter("1.0"));
        blocked.add(vec![Entry::new(class(64), 7, "small")]);
        assert_eq!(blocked.read().get(&class(64), 7), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_cannot_be_written_is_read_from() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::of(dir.path(), &adapter("1.0"));
        cache.add(vec![Entry::new(class(64), 7, "small")]);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
        cache.add(vec![Entry::new(class(128), 7, "large")]);
        assert_eq!(cache.read().get(&class(64), 7), Some("small"));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}
