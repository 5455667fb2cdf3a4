//! Answers from a base and its adapters, streamed to a page.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use js_sys::Function;
use serde::{Deserialize, Serialize};
use tsify::Tsify;
use wasm_bindgen::prelude::*;

use super::{errors, from_js, open_gpu, to_js};
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::{StreamDecoder, Tokenizer};
use crate::infer::conversation::{Conversation, end_of_turn};
use crate::infer::end_tokens;
use crate::infer::generator::{self, GenerationSettings, LoadedAdapter, Stop};
use crate::infer::plan::{DEFAULT_ROWS_PER_PASS, PlanSettings};
use crate::infer::sampler::SamplingSettings;
use crate::lora::adapter_file;
use crate::model::source::Source;
use crate::network::base::BaseStorage;
use crate::train::settings::Quant;
use crate::{Error, Result};

/// Positions where nothing else is asked for.
const DEFAULT_CONTEXT: usize = 1024;

#[derive(Deserialize, Tsify)]
pub struct NamedAdapter {
    pub name: String,
    /// A PEFT adapter directory of the engine's file system.
    #[tsify(type = "string")]
    pub dir: PathBuf,
}

/// How the base is held.
#[derive(Default, Deserialize, Tsify)]
#[serde(default)]
pub struct GeneratorSettings {
    /// Without it as the files have it.
    pub quant: Option<Quant>,
    #[tsify(optional)]
    pub double_quant: Option<bool>,
    /// Embedding and head in 4 bits too, where `quant` is given.
    #[tsify(optional)]
    pub quantize_embedding: bool,
    /// Most tokens of prompt and answer together.
    pub context: Option<usize>,
}

#[derive(Deserialize, Tsify)]
#[serde(default)]
pub struct AnswerSettings {
    #[tsify(optional)]
    pub max_tokens: usize,
    #[tsify(optional)]
    pub temperature: f32,
    #[tsify(optional)]
    pub top_k: usize,
    #[tsify(optional)]
    pub top_p: f32,
    #[tsify(optional)]
    pub seed: u64,
    /// A message that stands before the prompt.
    pub system: Option<String>,
    /// The prompt is a text to go on from, not a user's turn.
    #[tsify(optional)]
    pub raw: bool,
}

impl Default for AnswerSettings {
    fn default() -> Self {
        let SamplingSettings { temperature, top_k, top_p, seed, .. } = SamplingSettings::default();
        Self { max_tokens: 256, temperature, top_k, top_p, seed, system: None, raw: false }
    }
}

#[derive(Serialize, Tsify)]
pub struct Answer {
    pub text: String,
    pub tokens: usize,
    pub stop: StopReason,
    pub seconds: f64,
}

#[derive(Serialize, Tsify)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    EndToken,
    MaxTokens,
    Context,
    Canceled,
}

struct Inner {
    generator: generator::Generator,
    tokenizer: Tokenizer,
    /// None where the model has none: prompts are texts then.
    template: Option<ChatTemplate>,
    end_tokens: Vec<u32>,
}

/// A base with adapters to switch between.
#[wasm_bindgen]
pub struct Generator {
    inner: RefCell<Option<Inner>>,
    names: Vec<String>,
    canceled: Cell<bool>,
}

#[wasm_bindgen]
impl Generator {
    /// Loads the base and every adapter onto the device.
    #[wasm_bindgen(unchecked_return_type = "Generator")]
    pub async fn open(
        model: String,
        #[wasm_bindgen(unchecked_param_type = "NamedAdapter[]")] adapters: JsValue,
        #[wasm_bindgen(unchecked_param_type = "GeneratorSettings")] settings: JsValue,
        #[wasm_bindgen(unchecked_optional_param_type = "(done: number, total: number) => void")] on_progress: Option<
            Function,
        >,
    ) -> Result<Generator, JsValue> {
        open(Path::new(&model), adapters, settings, on_progress).await.map_err(|e| errors::to_js(&e))
    }

    /// Answers `prompt` with an adapter, by its name, or with the base alone; `on_text` gets the text piece by piece.
    #[wasm_bindgen(unchecked_return_type = "Answer")]
    pub async fn answer(
        &self,
        prompt: String,
        adapter: Option<String>,
        #[wasm_bindgen(unchecked_param_type = "AnswerSettings")] settings: JsValue,
        #[wasm_bindgen(unchecked_param_type = "(text: string) => void")] on_text: Function,
    ) -> Result<JsValue, JsValue> {
        let mut inner = self.take()?;
        self.canceled.set(false);
        let answered = self.answer_with(&mut inner, &prompt, adapter, &settings, &on_text).await;
        self.inner.replace(Some(inner));
        to_js(&answered.map_err(|e| errors::to_js(&e))?)
    }

    /// Logits of the token after `prompt`, one for each of the vocabulary; of the settings `system` and `raw` count.
    pub async fn logits(
        &self,
        prompt: String,
        adapter: Option<String>,
        #[wasm_bindgen(unchecked_param_type = "AnswerSettings")] settings: JsValue,
    ) -> Result<Vec<f32>, JsValue> {
        let mut inner = self.take()?;
        let logits = self.logits_with(&mut inner, &prompt, adapter, &settings).await;
        self.inner.replace(Some(inner));
        logits.map_err(|e| errors::to_js(&e))
    }

    /// Ends the answer in the making.
    pub fn cancel(&self) {
        self.canceled.set(true);
    }
}

async fn open(model: &Path, adapters: JsValue, settings: JsValue, on_progress: Option<Function>) -> Result<Generator> {
    let adapters: Vec<NamedAdapter> = from_js(&adapters, "the adapters")?;
    let settings: GeneratorSettings = from_js(&settings, "the settings")?;
    let source = Source::open(model)?;
    let config = &source.config;
    let tokenizer = Tokenizer::from_dir(model, config)?;
    let template = ChatTemplate::load(model, None, tokenizer.special_tokens()?)?;
    let mut end_tokens = end_tokens::from_dir(model, config)?;
    end_tokens.extend(tokenizer.eos());
    if let Some(template) = &template {
        end_tokens.extend(end_of_turn(&tokenizer, template)?);
    }
    let mut loaded = Vec::new();
    for adapter in &adapters {
        let (_, modules, tensors) = adapter_file::load(&adapter.dir, config)?;
        loaded.push(LoadedAdapter { modules, tensors });
    }
    let base = match settings.quant {
        Some(quant) => quant.base(settings.double_quant.unwrap_or(true), settings.quantize_embedding),
        None if settings.quantize_embedding => {
            return Err(Error::Setting("quantize_embedding is for a base in 4 bits; give quant too".to_owned()));
        }
        None => BaseStorage::AsStored,
    };
    let context = settings.context.unwrap_or(DEFAULT_CONTEXT).min(config.max_position_embeddings);
    let plan = PlanSettings { base, max_positions: context, rows_per_pass: DEFAULT_ROWS_PER_PASS };
    let gpu = open_gpu().await?;
    let progress = |done: u64, total: u64| {
        if let Some(listener) = &on_progress {
            let _ = listener.call2(&JsValue::NULL, &(done as f64).into(), &(total as f64).into());
        }
    };
    let generator = generator::Generator::open(gpu, &source, &loaded, &plan, progress).await?;
    let inner = Inner { generator, tokenizer, template, end_tokens };
    let names = adapters.into_iter().map(|adapter| adapter.name).collect();
    Ok(Generator { inner: RefCell::new(Some(inner)), names, canceled: Cell::new(false) })
}

impl Inner {
    fn encode(&self, prompt: &str, settings: &AnswerSettings) -> Result<Vec<u32>> {
        match self.template.as_ref().filter(|_| !settings.raw) {
            Some(template) => Conversation::new(&self.tokenizer, template, settings.system.clone()).ask(prompt),
            None => self.tokenizer.encode(prompt, true),
        }
    }
}

impl Generator {
    fn take(&self) -> Result<Inner, JsValue> {
        let busy = || errors::to_js(&Error::Setting("the generator is at another answer".to_owned()));
        self.inner.take().ok_or_else(busy)
    }

    fn index(&self, adapter: Option<String>) -> Result<Option<usize>> {
        let index = |name: String| {
            let found = self.names.iter().position(|known| *known == name);
            found.ok_or_else(|| {
                Error::Setting(format!("there is no adapter `{name}`; there are: {}", self.names.join(", ")))
            })
        };
        adapter.map(index).transpose()
    }

    async fn logits_with(
        &self,
        inner: &mut Inner,
        prompt: &str,
        adapter: Option<String>,
        settings: &JsValue,
    ) -> Result<Vec<f32>> {
        let ids = inner.encode(prompt, &from_js(settings, "the settings")?)?;
        inner.generator.logits_after(&ids, self.index(adapter)?).await
    }

    async fn answer_with(
        &self,
        inner: &mut Inner,
        prompt: &str,
        adapter: Option<String>,
        settings: &JsValue,
        on_text: &Function,
    ) -> Result<Answer> {
        let settings: AnswerSettings = from_js(settings, "the settings")?;
        let adapter = self.index(adapter)?;
        let ids = inner.encode(prompt, &settings)?;
        let tokenizer = &inner.tokenizer;
        let sampling = SamplingSettings {
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            seed: settings.seed,
            ..SamplingSettings::default()
        };
        let generation =
            GenerationSettings { sampling, max_tokens: settings.max_tokens, end_tokens: inner.end_tokens.clone() };
        let mut stream = StreamDecoder::after(tokenizer, &ids)?;
        let (mut text, mut failure) = (String::new(), None);
        let mut show = |piece: &str| {
            text.push_str(piece);
            if !piece.is_empty() {
                // A page whose listener throws loses the piece, not the answer.
                let _ = on_text.call1(&JsValue::NULL, &piece.into());
            }
        };
        let on_token = |token| {
            match stream.push(token) {
                Ok(piece) => show(&piece),
                Err(e) => failure = Some(e),
            }
            if failure.is_some() || self.canceled.get() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let made = inner.generator.generate(&ids, adapter, &generation, on_token).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        show(&stream.finish()?);
        Ok(Answer {
            text,
            tokens: made.tokens.len(),
            stop: match made.stop {
                Stop::EndToken(_) => StopReason::EndToken,
                Stop::MaxTokens => StopReason::MaxTokens,
                Stop::Context => StopReason::Context,
                Stop::Caller => StopReason::Canceled,
            },
            seconds: (made.prompt_time + made.token_time).as_secs_f64(),
        })
    }
}
