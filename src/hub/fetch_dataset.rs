//! Downloads the files of data sets into the cache, as [`super::fetch`] does those of models.

use std::path::{Path, PathBuf};

use super::dataset::HubDataset;
use super::fetch::{Found, cached_snapshot, error, find};
use super::is_plain_path;
use super::settings::HubSettings;
use crate::Result;

/// Levels of directories in a snapshot that are looked through.
pub(super) const DEPTH: usize = 4;

/// Downloads the files of a data set that the cache lacks, and returns the directory in the cache that holds them. `choose` gets the
/// paths of all files below that directory, and returns those to download or a problem. `progress` receives the name of a file, the
/// bytes downloaded so far and the file's size.
///
/// # Errors
/// The data set does not exist or is not accessible, `choose` finds a problem, or a file does not arrive whole.
pub fn fetch_dataset(
    set: &HubDataset,
    settings: &HubSettings,
    choose: impl Fn(&[String]) -> Result<Vec<String>, String>,
    mut progress: impl FnMut(&str, u64, u64),
) -> Result<PathBuf> {
    let of_set = |snapshot: PathBuf| set.dir.iter().fold(snapshot, |path, dir| path.join(dir));
    let cached = || -> Option<PathBuf> {
        let dir = of_set(cached_snapshot(&set.repo, &settings.cache)?);
        let mut names = Vec::new();
        list(&dir, "", DEPTH, &mut names);
        choose(&names).is_ok().then_some(dir)
    };
    let download = match find(&set.repo, settings, "", cached)? {
        Found::Cached(dir) => return Ok(dir),
        Found::Listed(download) => download,
    };
    let prefix = set.dir.as_ref().map_or_else(String::new, |dir| format!("{dir}/"));
    let all = download.info.siblings.iter().map(|file| file.rfilename.as_str()).filter(|name| is_plain_path(name));
    let names: Vec<String> = all.filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect();
    let chosen = choose(&names).map_err(|problem| error(&set.repo, problem))?;
    for name in chosen {
        download.file(&format!("{prefix}{name}"), &mut progress)?;
    }
    Ok(of_set(download.snapshot()))
}

/// Lists the files below a directory as paths from it.
pub(super) fn list(dir: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        match path.is_dir() {
            true if depth > 1 => list(&path, &format!("{prefix}{name}/"), depth - 1, names),
            true => {}
            // A link whose target is gone does not count.
            false if path.exists() => names.push(format!("{prefix}{name}")),
            false => {}
        }
    }
}
