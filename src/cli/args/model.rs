//! Resolves `--model` and `--adapter` to directories or GGUF files and downloads models and adapters of the hub.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use loraine::hub::HubModel;
use loraine::hub::fetch::{Extent, HubSettings, fetch};
use loraine::hub::fetch_gguf::{HubGguf, fetch_gguf};
use loraine::lora::config::LoraConfig;
use loraine::model::config::CONFIG;
use loraine::model::foreign::instead_of_a_model;

use super::nearest::suggestion;

const ADAPTER: &str = "adapter_config.json";
const HUB: &str = "a model of the Hugging Face hub is named owner/name, such as HuggingFaceTB/SmolLM2-135M-Instruct";

/// Returns the directory or the GGUF file of `--model`. A model of the hub is downloaded into the cache first.
pub fn model_directory(model: &Path, extent: Extent) -> Result<PathBuf> {
    if let Some(gguf) = model.to_str().and_then(HubGguf::parse).filter(|_| !model.exists()) {
        // Only the whole file tells how large the model is.
        ensure!(
            extent != Extent::Config,
            "{gguf}: the model's size is not known before it is downloaded; give the name of the original model"
        );
        return with_bar(|progress| Ok(fetch_gguf(&gguf, &HubSettings::from_env(), progress)?));
    }
    match (hub_name(model), problem(model, extent)) {
        (Some(name), _) => fetched(&name, extent),
        (None, Some(problem)) => bail!("{}: {problem}", model.display()),
        (None, None) => Ok(model.to_owned()),
    }
}

/// The name on the hub, if the argument is one and no path. A name whose first part is an existing directory is a path, even if the
/// path does not exist.
pub fn hub_name(argument: &Path) -> Option<HubModel> {
    let is_path = argument.exists() || argument.parent().is_some_and(|owner| owner.is_dir() && owner != Path::new(""));
    argument.to_str().and_then(HubModel::parse).filter(|_| !is_path)
}

/// Downloads a model or an adapter of the hub into the cache and returns its directory there.
pub fn fetched(name: &HubModel, extent: Extent) -> Result<PathBuf> {
    with_bar(|progress| Ok(fetch(name, &HubSettings::from_env(), extent, progress)?))
}

/// Downloads by `fetch`, which is given what shows the bytes of each file.
fn with_bar(fetch: impl FnOnce(&mut dyn FnMut(&str, u64, u64)) -> Result<PathBuf>) -> Result<PathBuf> {
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})")?
            .progress_chars("=> "),
    );
    let path = fetch(&mut |file, done, total| {
        bar.set_message(file.to_owned());
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    path
}

/// Says why a path is no model directory, and what would be; None where the files may be read.
fn problem(path: &Path, extent: Extent) -> Option<String> {
    if path.is_dir() {
        return problem_of_directory(path, extent);
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
    if path.is_file() {
        return match extension.as_str() {
            "json" if extent == Extent::Config => None,
            "gguf" => None,
            "zip" => Some("is a zip file; unpack a model first, and give an adapter with --adapter".to_owned()),
            _ => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Some(format!("is a file; give the directory of the model, such as {}", parent.display()))
            }
        };
    }
    let near = suggestion(path, CONFIG);
    let one_word = path.components().count() == 1;
    Some(match (near.is_empty(), one_word) {
        (true, true) => format!("does not exist as a directory, and {HUB}"),
        (true, false) => "does not exist".to_owned(),
        (false, _) => format!("does not exist{near}"),
    })
}

fn problem_of_directory(dir: &Path, extent: Extent) -> Option<String> {
    let holds = |file: &str| dir.join(file).is_file();
    if holds(CONFIG) || (extent == Extent::Tokenizer && (holds("tokenizer.json") || holds("tokenizer.model"))) {
        return None;
    }
    if holds(ADAPTER) {
        let base = LoraConfig::from_file(&dir.join(ADAPTER)).ok().and_then(|config| config.base_model_name_or_path);
        let base = base.unwrap_or_else(|| "BASE".to_owned());
        return Some(format!("is an adapter, not a model; give --model {base} --adapter {}", dir.display()));
    }
    let entries: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    if let Some(inner) = entries.iter().filter(|path| path.join(CONFIG).is_file()).min() {
        return Some(format!("holds no {CONFIG}; did you mean {}?", inner.display()));
    }
    let is_gguf = |path: &&PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if let Some(file) = entries.iter().filter(is_gguf).min() {
        return Some(format!("holds no {CONFIG}; give the GGUF file itself, such as {}", file.display()));
    }
    if let Some(problem) = instead_of_a_model(dir) {
        return Some(problem);
    }
    Some(format!("holds no {CONFIG}; a model directory has config.json, tokenizer.json and model.safetensors"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_path_that_is_no_model_says_what_would_be() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for (dir, file, text) in [
            ("model", CONFIG, "{}"),
            (
                "adapter",
                ADAPTER,
                r#"{"peft_type": "LORA", "target_modules": "all-linear", "base_model_name_or_path": "a/b"}"#,
            ),
            ("outer/inner", CONFIG, "{}"),
            ("ggufs", "q4.gguf", ""),
            ("words", "tokenizer.json", "{}"),
            ("empty", "notes.txt", ""),
            (".", "m.GGUF", ""),
            (".", "m.zip", ""),
            (".", "m.safetensors", ""),
        ] {
            fs::create_dir_all(path(dir)).unwrap();
            fs::write(path(dir).join(file), text).unwrap();
        }
        assert_eq!(problem(&path("model"), Extent::Everything), None);
        assert_eq!(problem(&path("words"), Extent::Tokenizer), None);
        assert_eq!(problem(&path("m.GGUF"), Extent::Everything), None);
        assert_eq!(problem(&path("model/config.json"), Extent::Config), None);
        for (name, says) in [
            ("adapter", "is an adapter, not a model; give --model a/b --adapter"),
            ("outer", "did you mean"),
            ("ggufs", "give the GGUF file itself, such as"),
            ("words", "holds no config.json"),
            ("empty", "a model directory has"),
            ("m.zip", "zip file"),
            ("m.safetensors", "is a file"),
            ("modelz", "did you mean"),
            ("nowhere/at/all", "does not exist"),
        ] {
            let problem = problem(&path(name), Extent::Everything).expect(name);
            assert!(problem.contains(says), "{name}: {problem}");
        }
        let word = problem(Path::new("gpt2-of-nobody"), Extent::Everything).unwrap();
        assert!(word.contains("owner/name"), "{word}");
    }
}
