//! A session: a model with its adapters, opened in one place for every program that generates text.
//!
//! [`prepare`] reads and checks the files, so that a program reports wrong files and knows the lengths of its prompts before it opens
//! a GPU. [`PreparedSession::open`] loads the model onto the GPU.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::adapter_names::AdapterNames;
use super::answer_text::AnswerText;
use super::generator::{Generation, GenerationSettings, Generator, Stop};
use super::plan::{DEFAULT_ROWS_PER_PASS, PlanSettings};
use super::text_format::{TemplateChoice, TextFormat};
use crate::gpu::Gpu;
use crate::lora::adapter_file::{self, LoadedAdapter};
use crate::model::companions;
use crate::model::config::ModelConfig;
use crate::model::source::Source;
use crate::network::base::BaseStorage;
use crate::{Error, Result, files};

/// A PEFT adapter directory and its name in requests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(target_arch = "wasm32", derive(serde::Deserialize, tsify::Tsify))]
pub struct NamedAdapter {
    /// The name by which requests choose it.
    pub name: String,
    /// Its directory.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub dir: PathBuf,
}

/// Settings of a session.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// A Hugging Face model directory or a GGUF file.
    pub model: PathBuf,
    /// The adapters to load; each request chooses one of them or the base.
    pub adapters: Vec<NamedAdapter>,
    /// Storage of the base on the device.
    pub base: BaseStorage,
    /// The chat template for conversations.
    pub template: TemplateChoice,
    /// Values of the template's variables, each as `name=value`.
    pub template_arg: Vec<String>,
}

/// A session whose files are read and checked, without a GPU.
pub struct PreparedSession {
    /// The base model.
    pub source: Source,
    /// The model's tokenizer and chat template.
    pub format: Arc<TextFormat>,
    /// The names of the adapters.
    pub names: AdapterNames,
    /// The directories of the adapters.
    pub adapter_dirs: Vec<PathBuf>,
    /// Number of texts that grow by turns, each with a cache of its own: 1 unless a program sets it.
    pub caches: usize,
    base: BaseStorage,
    adapters: Vec<LoadedAdapter>,
}

/// Reads the model's files and its adapters.
///
/// # Errors
/// A model or adapter directory cannot be read or is damaged, or [`AdapterNames::new`] refuses the names.
pub fn prepare(settings: &SessionSettings) -> Result<PreparedSession> {
    let SessionSettings { model, adapters, base, template, template_arg } = settings;
    let names = AdapterNames::new(adapters.iter().map(|adapter| adapter.name.clone()))?;
    if !files::is_dir(model) && !companions::is_gguf(model) {
        return Err(Error::file(model, "is not a directory; a Hugging Face model directory or a GGUF file is wanted"));
    }
    let mut source = Source::open(model)?;
    adapters.iter().try_for_each(|adapter| adapter_file::follow_vocabulary(&adapter.dir, &mut source))?;
    if *base == BaseStorage::KeptBlocks {
        source.keep_blocks()?;
    }
    let dirs: Vec<PathBuf> = adapters.iter().map(|adapter| adapter.dir.clone()).collect();
    let format = Arc::new(TextFormat::load(model, &source.config, template, template_arg, &dirs)?);
    let load = |adapter: &NamedAdapter| adapter_file::load_for(&adapter.dir, &source);
    let adapters = adapters.iter().map(load).collect::<Result<_>>()?;
    Ok(PreparedSession { source, format, names, caches: 1, adapter_dirs: dirs, base: *base, adapters })
}

impl PreparedSession {
    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.source.config
    }

    /// Loads the base and every adapter onto `gpu`, with caches for `context` tokens of prompt and answer together.
    /// `progress` receives the loaded bytes of the base and the total.
    ///
    /// # Errors
    /// The files disagree with the model's configuration, the context does not fit, or the device is out of memory or fails.
    pub async fn open(self, gpu: Gpu, context: usize, progress: impl FnMut(u64, u64)) -> Result<Session> {
        let (base, rows_per_pass, caches) = (self.base, DEFAULT_ROWS_PER_PASS, self.caches);
        let plan = PlanSettings { base, max_positions: context, rows_per_pass, caches };
        let generator = Generator::open(gpu, &self.source, &self.adapters, &plan, progress).await?;
        Ok(Session { model: self.source.dir, format: self.format, names: self.names, generator })
    }
}

/// A model on a GPU, with its adapters, ready to answer.
///
/// It holds no state of a client: each client keeps its own [`super::conversation::Conversation`]. [`Self::answer`] uses
/// the first cache, one text at a time; a program with several clients gives each a cache by [`Generator::advance`].
pub struct Session {
    /// The model's directory.
    pub model: PathBuf,
    /// The model's tokenizer and chat template.
    pub format: Arc<TextFormat>,
    /// The names of the adapters, in the order of their indices.
    pub names: AdapterNames,
    /// The model on the device.
    pub generator: Generator,
}

/// An answer as text, with its tokens and times.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text, without special tokens.
    pub text: String,
    /// The tokens of the text, the reason for its end, and the times.
    pub generation: Generation,
}

impl Session {
    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.generator.plan.shared.network.config
    }

    /// Largest number of tokens of prompt and answer together.
    pub fn context(&self) -> usize {
        self.generator.plan.max_positions()
    }

    /// Continues the tokens of a prompt with an adapter (by its index) or with the base alone. `on_text` receives the text of each token,
    /// which is empty while a character or a stop string is incomplete, and at the end the remaining text. It may end the answer.
    ///
    /// # Errors
    /// The errors of [`Generator::generate`], or tokens that cannot be decoded.
    pub async fn answer(
        &mut self,
        prompt: &[u32],
        adapter: Option<usize>,
        settings: &GenerationSettings,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let mut words = AnswerText::after(&self.format, prompt, settings)?;
        let (mut text, mut failure) = (String::new(), None);
        let on_token = |token| match words.push(&self.format, token) {
            Ok(piece) => {
                text += &piece;
                let flow = on_text(&piece);
                if words.stopped() { ControlFlow::Break(()) } else { flow }
            }
            Err(e) => {
                failure = Some(e);
                ControlFlow::Break(())
            }
        };
        let mut generation = self.generator.generate(prompt, adapter, settings, on_token).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let rest = words.finish(&self.format)?;
        if words.stopped() {
            generation.stop = Stop::StopString;
        }
        text += &rest;
        // The answer is over either way.
        let _ = on_text(&rest);
        Ok(Answer { text, generation })
    }
}
