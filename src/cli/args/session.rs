//! Flags that name a model and its adapters, and the session that they open.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use loraine::hub::fetch::Extent;
use loraine::infer::session::{self, NamedAdapter, PreparedSession, Session, SessionSettings};
use loraine::infer::text_format::TemplateChoice;
use loraine::model::config::ModelConfig;

use super::adapter::{AdapterDir, adapter_directory};
use super::base::BaseArgs;
use super::device::DeviceArgs;
use super::model::{hub_name, model_directory};
use crate::cli::status::StatusLine;

#[derive(Args)]
pub struct SessionArgs {
    /// Hugging Face model directory, GGUF file, or owner/name on the hub (config.json, tokenizer.json, safetensors)
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter: a directory, a zip file, or owner/name on the hub, with an optional name [default: its own]; may be repeated
    #[arg(long = "adapter", value_name = "[NAME=]DIR|ZIP")]
    adapters: Vec<String>,
    /// Value of a variable of the chat template, such as enable_thinking=false; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    template_arg: Vec<String>,
    #[command(flatten)]
    base: BaseArgs,
}

impl SessionArgs {
    /// Reads and checks the files, after downloading a model of the hub.
    pub fn prepare(&self, template: TemplateChoice, device: &DeviceArgs) -> Result<PreparedSession> {
        let base = self.base.storage()?;
        let model = model_directory(&self.model, Extent::Everything)?;
        let template_arg = self.template_arg.clone();
        let (adapters, _unpacked): (Vec<_>, Vec<_>) =
            self.adapters.iter().map(|text| opened_adapter(text)).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let mut prepared = session::prepare(&SessionSettings { model, adapters, base, template, template_arg })?;
        device.cache.apply(&mut prepared.source);
        Ok(prepared)
    }

    /// The value of `--quant`.
    pub fn quant_name(&self) -> &'static str {
        self.base.quant_name()
    }
}

/// Loads a session onto the GPU. A terminal shows the progress; elsewhere the answers stand alone.
pub fn open(prepared: PreparedSession, context: usize, device: &DeviceArgs) -> Result<Session> {
    let mut status = StatusLine::new(!std::io::stderr().is_terminal());
    status.phase("opening the GPU", None);
    let gpu = device.open()?;
    Ok(pollster::block_on(prepared.open(gpu, context, |done, total| status.loading(done, total)))?)
}

/// Returns the value of `--max-context` and refuses values beyond the model's limit.
pub fn checked_context(given: Option<usize>, config: &ModelConfig) -> Result<Option<usize>> {
    let (limit, context) = (config.max_position_embeddings, given.unwrap_or(0));
    ensure!(context <= limit, "--max-context {context} is beyond the model's own limit of {limit} positions");
    Ok(given)
}

/// Parses `[NAME=]DIR|ZIP` and unpacks a zip file, which stays until the second value is dropped.
fn opened_adapter(text: &str) -> Result<(NamedAdapter, AdapterDir)> {
    let NamedAdapter { name, dir } = named_adapter(text);
    let opened = adapter_directory(&dir)?;
    Ok((NamedAdapter { name, dir: opened.dir.clone() }, opened))
}

/// Parses `[NAME=]DIR`. An existing directory with an equals sign in its name is taken as a directory.
fn named_adapter(text: &str) -> NamedAdapter {
    let (name, dir) = match text.split_once('=') {
        Some((name, dir)) if !Path::new(text).exists() => (Some(name.to_owned()), PathBuf::from(dir)),
        _ => (None, PathBuf::from(text)),
    };
    let of_hub = || hub_name(&dir)?.id.split_once('/').map(|(_, name)| name.to_owned());
    let last_part = || {
        let whole = dir.canonicalize().ok()?;
        let name = if whole.is_file() { whole.file_stem() } else { whole.file_name() };
        name?.to_str().map(str::to_owned)
    };
    let name = name.or_else(of_hub).or_else(last_part).unwrap_or_else(|| text.to_owned());
    NamedAdapter { name, dir }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_named_or_take_the_name_of_their_directory() {
        let place = tempfile::tempdir().unwrap();
        for name in ["run1", "a=b"] {
            std::fs::create_dir(place.path().join(name)).unwrap();
        }
        let dir = |name: &str| place.path().join(name);
        let given = |text: String| named_adapter(&text);
        let expected = |name: &str, dir: PathBuf| NamedAdapter { name: name.to_owned(), dir };
        assert_eq!(given(dir("run1").display().to_string()), expected("run1", dir("run1")));
        assert_eq!(given(dir("a=b").display().to_string()), expected("a=b", dir("a=b")));
        assert_eq!(given(format!("poet={}", dir("run1").display())), expected("poet", dir("run1")));
        assert_eq!(given("owner/poet@main".to_owned()), expected("poet", PathBuf::from("owner/poet@main")));
        assert_eq!(given("a=owner/poet".to_owned()), expected("a", PathBuf::from("owner/poet")));
        assert_eq!(given("nowhere".to_owned()), expected("nowhere", PathBuf::from("nowhere")));
    }
}
