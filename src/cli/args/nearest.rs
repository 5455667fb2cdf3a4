//! Finds what a mistyped path probably meant.

use std::path::{Path, PathBuf};

/// Returns the directory beside `path` whose name is nearly its, among those that hold `file`.
pub fn nearest_directory(path: &Path, file: &str) -> Option<PathBuf> {
    let wanted = path.file_name()?.to_str()?.to_lowercase();
    let parent = path.parent()?;
    let here = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let distance = |name: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &wanted);
    let entries = std::fs::read_dir(here).ok()?.flatten();
    let names = entries.filter(|entry| entry.path().join(file).is_file());
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let (distance, name) = names.map(|name| (distance(&name), name)).min()?;
    (distance <= (wanted.chars().count() / 4).max(1)).then(|| parent.join(name))
}

/// `; did you mean NAME?`, or nothing.
pub fn suggestion(path: &Path, file: &str) -> String {
    nearest_directory(path, file).map_or(String::new(), |near| format!("; did you mean {}?", near.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_leads_to_the_directory_beside_it() {
        let place = tempfile::tempdir().unwrap();
        for (name, file) in [("SmolLM2-135M", "config.json"), ("SmolLM2-notes", "notes.txt"), ("run", "config.json")] {
            std::fs::create_dir(place.path().join(name)).unwrap();
            std::fs::write(place.path().join(name).join(file), "{}").unwrap();
        }
        let near = |name: &str| nearest_directory(&place.path().join(name), "config.json");
        assert_eq!(near("smolm2-135m"), Some(place.path().join("SmolLM2-135M")));
        assert_eq!(near("rnu"), Some(place.path().join("run")));
        assert_eq!((near("SmolLM2-note"), near("gpt2")), (None, None));
    }
}
