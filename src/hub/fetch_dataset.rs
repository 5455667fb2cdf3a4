//! Downloads the files of data sets into the cache, as [`super::fetch`] does those of models.

use std::path::{Path, PathBuf};

use hf_hub::api::RepoInfo;

use super::dataset::HubDataset;
use super::fetch::{Download, cached_snapshot, error, patiently, refusal, repo};
use super::settings::HubSettings;
use super::transfer::Transfer;
use super::{is_plain, is_plain_path};
use crate::Result;

/// Levels of directories in a snapshot that are looked through.
const DEPTH: usize = 4;

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
    if let Some(variable) = settings.offline {
        let problem = format!("is not in the cache, and {variable} forbids to fetch it");
        return cached().ok_or_else(|| error(&set.repo, problem));
    }
    if set.repo.is_commit()
        && let Some(dir) = cached()
    {
        return Ok(dir);
    }
    let transfer = Transfer::new(settings)?;
    let asked = format!("{}/api/{}", settings.endpoint, repo(&set.repo).api_url());
    let info: RepoInfo = match patiently(settings, |_| transfer.json(&asked)) {
        Ok(info) => info,
        Err(e) => match cached() {
            Some(dir) if e.may_pass() => return Ok(dir),
            _ => return Err(refusal(&set.repo, settings, &e)),
        },
    };
    if !is_plain(&info.sha) {
        return Err(error(&set.repo, format!("{} answers with the commit `{}`", settings.endpoint, info.sha)));
    }
    let prefix = set.dir.as_ref().map_or_else(String::new, |dir| format!("{dir}/"));
    let all = info.siblings.iter().map(|file| file.rfilename.as_str()).filter(|name| is_plain_path(name));
    let names: Vec<String> = all.filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect();
    let chosen = choose(&names).map_err(|problem| error(&set.repo, problem))?;
    let cache = settings.cache.repo(repo(&set.repo));
    let snapshot = cache.pointer_path(&info.sha);
    let download = Download { model: &set.repo, settings, transfer, cache, info };
    for name in chosen {
        download.file(&format!("{prefix}{name}"), &mut progress)?;
    }
    Ok(of_set(snapshot))
}

/// Lists the files below a directory as paths from it.
fn list(dir: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
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
