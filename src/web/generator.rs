//! Generates answers with a base and its adapters and streams them to a page.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::path::PathBuf;

use js_sys::Function;
use serde::{Deserialize, Serialize};
use tsify::Tsify;
use wasm_bindgen::prelude::*;

use super::{errors, from_js, open_gpu, to_js};
use crate::infer::conversation::Conversation;
use crate::infer::generator::{GenerationSettings, Stop};
use crate::infer::sampler::SamplingSettings;
use crate::infer::session::{self, NamedAdapter, Session, SessionSettings};
use crate::infer::text_format::{TemplateChoice, TextFormat};
use crate::network::base::BaseStorage;
use crate::quant::format::Code4;
use crate::setting::{QUANT, QUANTIZE_EMBEDDING};
use crate::{Error, Result};

/// Default number of positions of the cache.
const DEFAULT_CONTEXT: usize = 1024;

/// Settings of a generator.
#[derive(Default, Deserialize, Tsify)]
#[serde(default)]
pub struct GeneratorSettings {
    /// 4-bit code of the base; by default the types of the files.
    pub quant: Option<Code4>,
    /// True to quantize the scales of the 4-bit base too; by default true. Unused without `quant`.
    #[tsify(optional)]
    pub double_quant: Option<bool>,
    /// True to quantize embedding and head too, with `quant`.
    #[tsify(optional)]
    pub quantize_embedding: bool,
    /// Largest number of tokens of prompt and answer together.
    pub context: Option<usize>,
}

/// Settings of one answer. Absent fields have their defaults.
#[derive(Deserialize, Tsify)]
#[serde(default)]
pub struct AnswerSettings {
    /// Largest number of tokens to generate; by default 256.
    #[tsify(optional)]
    pub max_tokens: usize,
    /// Divisor of the logits before sampling; 0 always takes the likeliest token.
    #[tsify(optional)]
    pub temperature: f32,
    /// Number of likeliest tokens to sample from; 0 is all.
    #[tsify(optional)]
    pub top_k: usize,
    /// Samples from the likeliest tokens whose probabilities add up to this; 1 is all.
    #[tsify(optional)]
    pub top_p: f32,
    /// Seed of the sampling: the same seed gives the same answer.
    #[tsify(optional)]
    pub seed: u64,
    /// System message before the prompt.
    pub system: Option<String>,
    /// True if the prompt is a text to continue instead of a user's turn.
    #[tsify(optional)]
    pub raw: bool,
}

impl Default for AnswerSettings {
    fn default() -> Self {
        let SamplingSettings { temperature, top_k, top_p, seed, .. } = SamplingSettings::default();
        Self { max_tokens: 256, temperature, top_k, top_p, seed, system: None, raw: false }
    }
}

/// A finished answer.
#[derive(Serialize, Tsify)]
pub struct Answer {
    /// The whole text, as `on_text` received it in pieces.
    pub text: String,
    /// Number of generated tokens.
    pub tokens: usize,
    /// The reason why it ended.
    pub stop: StopReason,
    /// Time for the prompt and the answer, in seconds.
    pub seconds: f64,
}

/// The reason why an answer ended.
#[derive(Serialize, Tsify)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model gave a token that ends its turn.
    EndToken,
    /// `max_tokens` tokens were generated.
    MaxTokens,
    /// Prompt and answer fill the generator's context.
    Context,
    /// The page called `cancel`.
    Canceled,
}

/// A base with its adapters, for a page.
#[wasm_bindgen]
pub struct Generator {
    /// `None` during an answer.
    session: RefCell<Option<Session>>,
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
        open(model.into(), adapters, settings, on_progress).await.map_err(|e| errors::to_js(&e))
    }

    /// Answers `prompt` with an adapter (by its name) or with the base alone. `on_text` receives the text piece by piece.
    #[wasm_bindgen(unchecked_return_type = "Answer")]
    pub async fn answer(
        &self,
        prompt: String,
        adapter: Option<String>,
        #[wasm_bindgen(unchecked_param_type = "AnswerSettings")] settings: JsValue,
        #[wasm_bindgen(unchecked_param_type = "(text: string) => void")] on_text: Function,
    ) -> Result<JsValue, JsValue> {
        let mut session = self.take()?;
        self.canceled.set(false);
        let answered = self.answer_with(&mut session, &prompt, adapter, &settings, &on_text).await;
        self.session.replace(Some(session));
        to_js(&answered.map_err(|e| errors::to_js(&e))?)
    }

    /// Computes the logits `[vocabulary]` of the token after `prompt`. Only `system` and `raw` of the settings apply.
    pub async fn logits(
        &self,
        prompt: String,
        adapter: Option<String>,
        #[wasm_bindgen(unchecked_param_type = "AnswerSettings")] settings: JsValue,
    ) -> Result<Vec<f32>, JsValue> {
        let mut session = self.take()?;
        let logits = self.logits_with(&mut session, &prompt, adapter, &settings).await;
        self.session.replace(Some(session));
        logits.map_err(|e| errors::to_js(&e))
    }

    /// Ends the current answer.
    pub fn cancel(&self) {
        self.canceled.set(true);
    }
}

async fn open(
    model: PathBuf,
    adapters: JsValue,
    settings: JsValue,
    on_progress: Option<Function>,
) -> Result<Generator> {
    let adapters: Vec<NamedAdapter> = from_js(&adapters, "the adapters")?;
    let settings: GeneratorSettings = from_js(&settings, "the settings")?;
    let base = match settings.quant {
        Some(quant) => {
            BaseStorage::quantized(quant.storage(settings.double_quant.unwrap_or(true)), settings.quantize_embedding)
        }
        None if settings.quantize_embedding => {
            let problem = format!("{QUANTIZE_EMBEDDING} is for a base in 4 bits; give {QUANT} too");
            return Err(Error::setting(QUANTIZE_EMBEDDING, problem));
        }
        None => BaseStorage::AsStored,
    };
    let (template, template_arg) = (TemplateChoice::Own, Vec::new());
    let prepared = session::prepare(&SessionSettings { model, adapters, base, template, template_arg })?;
    let context = settings.context.unwrap_or(DEFAULT_CONTEXT).min(prepared.config().max_position_embeddings);
    let gpu = open_gpu().await?;
    let progress = |done: u64, total: u64| {
        if let Some(listener) = &on_progress {
            let _ = listener.call2(&JsValue::NULL, &(done as f64).into(), &(total as f64).into());
        }
    };
    let session = prepared.open(gpu, context, progress).await?;
    Ok(Generator { session: RefCell::new(Some(session)), canceled: Cell::new(false) })
}

/// Encodes `prompt` as a user's turn if the model has a chat template and `settings` do not ask for raw text.
fn encode(format: &TextFormat, prompt: &str, settings: &AnswerSettings) -> Result<Vec<u32>> {
    match settings.raw || format.template.is_none() {
        true => format.continuation(prompt),
        false => Conversation::new(settings.system.clone()).ask(format, prompt),
    }
}

fn index(session: &Session, adapter: Option<&str>) -> Result<Option<usize>> {
    adapter.map_or(Ok(None), |name| session.names.index(name))
}

impl Generator {
    fn take(&self) -> Result<Session, JsValue> {
        let busy = || errors::to_js(&Error::Busy("the generator is busy with another answer"));
        self.session.take().ok_or_else(busy)
    }

    async fn logits_with(
        &self,
        session: &mut Session,
        prompt: &str,
        adapter: Option<String>,
        settings: &JsValue,
    ) -> Result<Vec<f32>> {
        let ids = encode(&session.format, prompt, &from_js(settings, "the settings")?)?;
        let adapter = index(session, adapter.as_deref())?;
        session.generator.logits_after(&ids, adapter).await
    }

    async fn answer_with(
        &self,
        session: &mut Session,
        prompt: &str,
        adapter: Option<String>,
        settings: &JsValue,
        on_text: &Function,
    ) -> Result<Answer> {
        let settings: AnswerSettings = from_js(settings, "the settings")?;
        let adapter = index(session, adapter.as_deref())?;
        let ids = encode(&session.format, prompt, &settings)?;
        let sampling = SamplingSettings {
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            seed: settings.seed,
            ..SamplingSettings::default()
        };
        let end_tokens = session.format.end_tokens.clone();
        let generation = GenerationSettings {
            sampling,
            max_tokens: settings.max_tokens,
            end_tokens,
            ..GenerationSettings::default()
        };
        let show = |piece: &str| {
            if !piece.is_empty() {
                // An exception in the page's listener loses this piece of text, not the answer.
                let _ = on_text.call1(&JsValue::NULL, &piece.into());
            }
            if self.canceled.get() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let session::Answer { text, generation: made } = session.answer(&ids, adapter, &generation, show).await?;
        Ok(Answer {
            text,
            tokens: made.tokens.len(),
            stop: match made.stop {
                Stop::EndToken(_) | Stop::StopString => StopReason::EndToken,
                Stop::MaxTokens => StopReason::MaxTokens,
                Stop::Context => StopReason::Context,
                Stop::Caller => StopReason::Canceled,
            },
            seconds: (made.prompt_time + made.token_time).as_secs_f64(),
        })
    }
}
