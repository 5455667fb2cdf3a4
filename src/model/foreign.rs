//! Directories that are no model: what they are instead, and what would be right.

use std::path::Path;

use serde_json::Value;

use crate::files;
use crate::hub::{conversion, python_text};
use crate::setting::{ADAPTER, MODEL};

/// The names in a directory, sorted; none where it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let mut names = files::names(dir).unwrap_or_default();
    names.sort();
    names
}

/// The kind of files that a directory without `config.json` holds instead of a model; None where it cannot be told.
pub fn instead_of_a_model(dir: &Path) -> Option<String> {
    let names = names(dir);
    let has = |name: &str| names.iter().any(|other| other == name);
    if has("adapter_config.json") {
        let base = base_of(&dir.join("adapter_config.json")).map_or(String::new(), |base| format!(" ({base})"));
        return Some(format!(
            "is a PEFT adapter, not a model: give its base{base} as {MODEL}, and this directory as {ADAPTER}"
        ));
    }
    if has("snapshots") && (has("refs") || has("blobs")) {
        let snapshots = dir.join("snapshots");
        let commit = self::names(&snapshots).into_iter().find(|name| files::is_dir(&snapshots.join(name)));
        let place = snapshots.join(commit.unwrap_or_else(|| "COMMIT".to_owned()));
        return Some(format!("is a folder of the hub's cache: the model lies in {}", place.display()));
    }
    if let Some(name) = names.iter().find(|name| name.ends_with(".gguf")) {
        return Some(format!("holds GGUF files: give one of them, such as {}", dir.join(name).display()));
    }
    let models: Vec<String> =
        names.iter().filter(|name| files::is_file(&dir.join(name).join("config.json"))).cloned().collect();
    (!models.is_empty())
        .then(|| format!("holds no config.json itself, but folders in it do: {}; give one of them", models.join(", ")))
}

fn base_of(config: &Path) -> Option<String> {
    let config: Value = serde_json::from_str(&files::read_to_string(config).ok()?).ok()?;
    config.get("base_model_name_or_path")?.as_str().map(str::to_owned)
}

/// The weights that a directory holds in another form than safetensors, and how to convert them; empty where there are none.
pub(super) fn other_weights(dir: &Path) -> String {
    let names = names(dir);
    let pickle = |name: &&String| {
        (name.starts_with("pytorch_model") && name.ends_with(".bin"))
            || name.ends_with(".pth")
            || ["tf_model.h5", "flax_model.msgpack", "pytorch_model.bin.index.json"].contains(&name.as_str())
    };
    if let Some(name) = names.iter().find(pickle) {
        let from = dir.display().to_string();
        let command = conversion(&from, &format!("{}-safetensors", from.trim_end_matches('/')));
        return format!("; {name} is not read, convert it: {command}");
    }
    let is_other = |name: &&String| name.ends_with(".safetensors") && !name.starts_with("adapter");
    match names.iter().find(is_other).map(String::as_str) {
        Some(name @ "consolidated.safetensors") => {
            return format!(
                "; {name} has Mistral's own names, which are not read: take the model's files for transformers"
            );
        }
        Some(name) => return format!("; if {name} holds all of the weights, rename it to model.safetensors"),
        None => {}
    }
    match names.iter().any(|name| name.ends_with(".gguf")) {
        true => "; of its GGUF files give the path of one itself".to_owned(),
        false => String::new(),
    }
}

/// The command that writes `tokenizer.json` beside the other files of a tokenizer in `dir`; None where there are none.
pub fn tokenizer_command(dir: &Path) -> Option<String> {
    let names = names(dir);
    let found =
        ["tokenizer.model", "vocab.json", "merges.txt"].into_iter().find(|known| names.iter().any(|n| n == known))?;
    let dir = python_text(&dir.display().to_string());
    Some(format!(
        "holds {found}, but no tokenizer.json; write it: python -c \"from transformers import AutoTokenizer as T; \
         T.from_pretrained({dir}).save_pretrained({dir})\""
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn directories_are_named_for_what_they_are() {
        let holding = |files: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            instead_of_a_model(dir.path())
        };
        assert_eq!(holding(&[("notes.txt", "")]), None);
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[("adapter_config.json", r#"{"base_model_name_or_path": "a/b"}"#)], "give its base (a/b) as ⟨model⟩"),
            (&[("snapshots/0123/config.json", "{}"), ("refs/main", "0123")], "snapshots/0123"),
            (&[("model-Q4_K_M.gguf", "")], "GGUF files"),
            (&[("checkpoint-7/config.json", "{}"), ("x/y", "")], "folders in it do: checkpoint-7;"),
        ];
        for (files, says) in cases {
            let message = holding(files).unwrap();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn other_forms_of_weights_and_tokenizers_come_with_a_command() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!((other_weights(dir.path()).as_str(), tokenizer_command(dir.path())), ("", None));
        for (name, says) in
            [("model_1.safetensors", "rename it to"), ("consolidated.safetensors", "Mistral's own names")]
        {
            fs::write(dir.path().join(name), "").unwrap();
            assert!(other_weights(dir.path()).contains(says), "{name}");
        }
        fs::write(dir.path().join("pytorch_model-00001-of-00002.bin"), "").unwrap();
        let message = other_weights(dir.path());
        assert!(message.contains("00002.bin is not read") && message.contains("-safetensors'"), "{message}");
        fs::write(dir.path().join("vocab.json"), "").unwrap();
        let message = tokenizer_command(dir.path()).unwrap();
        assert!(message.starts_with("holds vocab.json, but") && message.contains("save_pretrained('/"), "{message}");
    }
}
