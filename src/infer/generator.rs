//! Generates text on the device: the prompt in pieces, then one row per token, with a cache of keys and values.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use web_time::{Duration, Instant};

use super::plan::{GenerationPlan, PassShape, PlanSettings};
use super::sampler::{SamplingSettings, next_token};
use crate::gpu::{Buffers, Gpu, Lists, Profile, Recorder};
use crate::lora::adapter_file::LoadedAdapter;
use crate::lora::factor::Factor;
use crate::lora::targets::LoraModule;
use crate::model::source::Source;
use crate::network::layer_rows::LayerRows;
use crate::network::load;
use crate::ops::rows::NO_ROW;
use crate::{Error, Result, tune};

/// Number of pass shapes that stay prepared; beyond it, all are prepared again.
const MAX_LISTS: usize = 64;

/// Settings of one generated text.
#[derive(Clone, Debug, Default)]
pub struct GenerationSettings {
    /// Settings of the choice among tokens.
    pub sampling: SamplingSettings,
    /// Largest number of generated tokens.
    pub max_tokens: usize,
    /// Tokens that end the text; they are not part of it. Without any, the text does not stop by itself.
    pub end_tokens: Vec<u32>,
    /// Texts that end an answer; they are not part of it. [`Generator::generate`], which knows no text, ignores them.
    pub stop_strings: Vec<String>,
}

/// Reason for the end of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model generated an end token, which is not part of the text.
    EndToken(u32),
    /// The text reached a stop string, which is not part of it.
    StopString,
    /// The text has as many tokens as the settings allow.
    MaxTokens,
    /// The cache is full.
    Context,
    /// `on_token` or [`Generator::cancel`] ended it.
    Caller,
}

/// A generated text with its times.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Generated tokens, without the prompt.
    pub tokens: Vec<u32>,
    /// The reason for its end.
    pub stop: Stop,
    /// Tokens of the prompt that were computed; tokens in the cache do not count.
    pub prompt_computed: usize,
    /// Time until the first logits.
    pub prompt_time: Duration,
    /// Time from the first logits to the end.
    pub token_time: Duration,
}

/// A base with any number of adapters on the device, ready to continue texts.
pub struct Generator {
    /// The device.
    pub gpu: Gpu,
    /// The plan that the buffers were allocated by.
    pub plan: GenerationPlan,
    /// The buffers on the device.
    pub buffers: Buffers,
    /// GPU times of every pass, if set.
    pub profile: Option<Profile>,
    /// Ends a text at its next pass where it is true; also while a long prompt is computed.
    pub cancel: Arc<AtomicBool>,
    /// The table of embeddings for each layer, in a model that has one.
    layer_rows: Option<LayerRows>,
    lists: Lists<PassShape>,
    cached: Vec<CachedText>,
}

/// The text whose keys and values one of the plan's caches holds.
///
/// Texts that take turns in one cache replace each other and compute their whole prompt again, with the same results.
#[derive(Clone)]
struct CachedText {
    tokens: Vec<u32>,
    /// True if the cache cannot go back to a part of the text: a convolution keeps its last rows alone, and a gated delta rule its
    /// last state.
    whole: bool,
    /// Index of the adapter that computed the cache; `None` means the base.
    adapter: Option<usize>,
}

impl CachedText {
    /// Number of leading tokens of `text` that are in the cache of `adapter`. The last token is always computed, since the caller needs
    /// its logits.
    fn shared_with(&self, text: &[u32], adapter: Option<usize>) -> usize {
        if adapter != self.adapter {
            return 0;
        }
        let common = self.tokens.iter().zip(text).take_while(|(a, b)| a == b).count();
        if self.whole && (common < self.tokens.len() || common == text.len()) {
            return 0;
        }
        common.min(text.len().saturating_sub(1))
    }

    /// Keeps the part of the cache that `text` can use with `adapter`.
    fn begin(&mut self, text: &[u32], adapter: Option<usize>) {
        self.tokens.truncate(self.shared_with(text, adapter));
        self.adapter = adapter;
    }
}

impl Generator {
    /// Plans and allocates the memory, and loads the model.
    ///
    /// # Errors
    /// The files do not have the requested base, the context does not fit, or the device is out of memory or fails.
    pub async fn open(
        gpu: Gpu,
        source: &Source,
        adapters: &[LoadedAdapter],
        settings: &PlanSettings,
        progress: impl FnMut(u64, u64),
    ) -> Result<Self> {
        let config = &source.config;
        let settings = &PlanSettings { base: settings.base.of(config)?, ..*settings };
        let stored = |name: &str| source.stored(name);
        let modules: Vec<&[LoraModule]> = adapters.iter().map(|a| a.modules.as_slice()).collect();
        let mut plan = GenerationPlan::new(gpu.capabilities, config, stored, &modules, settings)?;
        plan.shared.autotune = tune::choices(&gpu, &plan.problem_sizes()).await?;
        let mut buffers = Buffers::default();
        gpu.allocate(&plan.shared.memory, &mut buffers).await?;
        let staging = plan.shared.staging.as_ref();
        load::load(&gpu, &mut buffers, source, &plan.shared.network, staging, || plan.shared.recorder(), progress)
            .await?;
        let run = |list: &Recorder, buffers: &mut Buffers| -> Result<()> {
            if !list.commands.is_empty() {
                let list = gpu.prepare(&list.commands, buffers, plan.shared.uniforms[0])?;
                gpu.run(&list, buffers)?;
            }
            Ok(())
        };
        run(&plan.record_norms(), &mut buffers)?;
        for (place, adapter) in plan.adapters.iter().zip(adapters) {
            place.write(&gpu, &buffers, &adapter.tensors);
        }
        run(&plan.record_factors(), &mut buffers)?;
        gpu.flush().await?;
        let layer_rows = LayerRows::open(source)?;
        let whole = config.has_recurrent_layers();
        let cached = vec![CachedText { tokens: Vec::new(), whole, adapter: None }; plan.caches()];
        let lists = Lists::new(MAX_LISTS);
        let cancel = Arc::default();
        Ok(Self { gpu, plan, buffers, layer_rows, profile: None, cancel, lists, cached })
    }

    /// Computes the logits `[vocabulary]` of the token after `text`, with an adapter (by its index) or with the base alone. A prefix that
    /// `text` shares with the last text of the same adapter in the first cache is not computed again.
    ///
    /// # Errors
    /// The text is empty or longer than the context, a token is outside the vocabulary, the adapter does not exist, or the device fails.
    pub async fn logits_after(&mut self, text: &[u32], adapter: Option<usize>) -> Result<Vec<f32>> {
        self.compute(text, adapter, || false).await?;
        self.read_one(0).await
    }

    /// Number of leading tokens of `text` that a cache (by its index) holds for an adapter.
    pub fn cached_tokens(&self, cache: usize, text: &[u32], adapter: Option<usize>) -> usize {
        self.cached.get(cache).map_or(0, |cached| cached.shared_with(text, adapter))
    }

    /// Number of tokens whose keys and values a cache (by its index) holds.
    pub fn cache_length(&self, cache: usize) -> usize {
        self.cached.get(cache).map_or(0, |cached| cached.tokens.len())
    }

    /// Runs one pass over what a cache (by its index) lacks of `text`. Returns the logits `[vocabulary]` of the token after the text, or
    /// none while further passes over the text are needed.
    ///
    /// # Errors
    /// The errors of [`Self::logits_after`], or the cache does not exist.
    pub async fn advance(&mut self, cache: usize, text: &[u32], adapter: Option<usize>) -> Result<Option<Vec<f32>>> {
        self.check(text, adapter)?;
        if cache >= self.cached.len() {
            return Err(Error::Argument(format!("cache {cache} was asked for, but there are {}", self.cached.len())));
        }
        self.cached[cache].begin(text, adapter);
        if !self.next_pass(cache, text, adapter).await? {
            return Ok(None);
        }
        self.read_one(cache).await.map(Some)
    }

    /// True if a cache (by its index) lacks the last token of `text` alone, as [`Self::advance_together`] needs it.
    pub fn lacks_one(&self, cache: usize, text: &[u32], adapter: Option<usize>) -> bool {
        self.cached_tokens(cache, text, adapter) + 1 == text.len()
    }

    /// Runs one pass over the last tokens of several texts, each with the index of its cache, which lacks that token alone. The weights
    /// are read once for all. Returns the logits `[vocabulary]` of the token after each text, with the bits that it has alone.
    ///
    /// # Errors
    /// The errors of [`Self::advance`], more texts than the plan allows, one cache for two texts, or a cache that lacks more.
    pub async fn advance_together(
        &mut self,
        texts: &[(usize, &[u32])],
        adapter: Option<usize>,
    ) -> Result<Vec<Vec<f32>>> {
        let caches: Vec<usize> = texts.iter().map(|(cache, _)| *cache).collect();
        if caches.is_empty() || caches.len() > self.plan.together {
            let problem = format!("{} texts for one pass, which takes 1 to {}", caches.len(), self.plan.together);
            return Err(Error::Argument(problem));
        }
        for (at, (cache, text)) in texts.iter().enumerate() {
            self.check(text, adapter)?;
            if caches[..at].contains(cache) || !self.lacks_one(*cache, text, adapter) {
                let problem = format!("cache {cache} does not hold all of its text but the last token");
                return Err(Error::Argument(problem));
            }
            self.cached[*cache].begin(text, adapter);
        }
        let tokens: Vec<u32> = texts.iter().filter_map(|(_, text)| text.last().copied()).collect();
        let positions: Vec<u32> = texts.iter().map(|(_, text)| text.len() as u32 - 1).collect();
        let rows = texts.len() as u32;
        for (row, places) in self.plan.places.iter().enumerate().take(caches.len()) {
            let mut words = vec![NO_ROW; caches.len()];
            words[row] = positions[row];
            self.gpu.write(&self.buffers, *places, bytemuck::cast_slice(&words));
        }
        let last_rows: Vec<u32> = (0..rows).collect();
        let shape = PassShape { rows, adapter, caches: caches.clone(), logits: true };
        self.run(&tokens, &positions, shape, &last_rows).await?;
        for (cache, token) in caches.iter().zip(tokens) {
            self.cached[*cache].tokens.push(token);
        }
        self.read_logits(rows, adapter).await
    }

    /// Computes what the first cache lacks of `text`, in passes; false if `cancel` ended it before the last one.
    async fn compute(&mut self, text: &[u32], adapter: Option<usize>, cancel: impl Fn() -> bool) -> Result<bool> {
        self.check(text, adapter)?;
        self.cached[0].begin(text, adapter);
        while !cancel() {
            if self.next_pass(0, text, adapter).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Computes the next rows of `text`, which the cache lacks; true if they were the last.
    async fn next_pass(&mut self, cache: usize, text: &[u32], adapter: Option<usize>) -> Result<bool> {
        let first = self.cached[cache].tokens.len();
        let rows = (text.len() - first).min(self.plan.rows_per_pass as usize);
        let last = first + rows == text.len();
        let shape = PassShape { rows: rows as u32, adapter, caches: vec![cache], logits: last };
        let positions: Vec<u32> = (first as u32..(first + rows) as u32).collect();
        self.run(&text[first..first + rows], &positions, shape, &[rows as u32 - 1]).await?;
        self.cached[cache].tokens.extend_from_slice(&text[first..first + rows]);
        if !last {
            // Passes that wait in the queue could not be canceled.
            self.gpu.flush().await?;
        }
        Ok(last)
    }

    /// Reads the logits `[vocabulary]` of the last computed token, which a cache holds.
    async fn read_one(&mut self, cache: usize) -> Result<Vec<f32>> {
        let logits = self.read_logits(1, self.cached[cache].adapter).await?;
        Ok(logits.into_iter().next().unwrap_or_default())
    }

    /// Reads the logits `[vocabulary]` of each of the last `rows` rows with logits.
    async fn read_logits(&mut self, rows: u32, adapter: Option<usize>) -> Result<Vec<Vec<f32>>> {
        let logits = self.plan.logits.first_rows(rows);
        let read = self.gpu.begin_read(&self.buffers, logits.view, self.plan.logits_read);
        let bytes = self.gpu.finish_read(&self.buffers, read).await?;
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        let vocabulary = self.vocabulary(adapter);
        Ok(values.chunks_exact(logits.ld as usize).map(|row| row[..vocabulary].to_vec()).collect())
    }

    /// Continues `prompt` token by token. `on_token` receives each token and may end the text.
    ///
    /// # Errors
    /// The errors of [`Self::logits_after`] for the prompt, settings out of range, or logits that are not finite.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        adapter: Option<usize>,
        settings: &GenerationSettings,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation> {
        settings.sampling.check()?;
        let prompt_computed = prompt.len().saturating_sub(self.cached_tokens(0, prompt, adapter));
        let started = Instant::now();
        let cancel = self.cancel.clone();
        if !self.compute(prompt, adapter, || cancel.load(Ordering::Relaxed)).await? {
            let (tokens, prompt_time, token_time) = (Vec::new(), started.elapsed(), Duration::ZERO);
            return Ok(Generation { tokens, stop: Stop::Caller, prompt_computed, prompt_time, token_time });
        }
        let mut logits = self.read_one(0).await?;
        let prompt_time = started.elapsed();
        let mut text = prompt.to_vec();
        let stop = loop {
            if text.len() - prompt.len() >= settings.max_tokens {
                break Stop::MaxTokens;
            }
            let token = next_token(&logits, &text, &settings.sampling)?;
            if settings.end_tokens.contains(&token) {
                break Stop::EndToken(token);
            }
            text.push(token);
            if on_token(token).is_break() || cancel.load(Ordering::Relaxed) {
                break Stop::Caller;
            }
            if text.len() - prompt.len() < settings.max_tokens {
                if text.len() > self.plan.max_positions() {
                    break Stop::Context;
                }
                logits = self.logits_after(&text, adapter).await?;
            }
        };
        let tokens = text.split_off(prompt.len());
        let token_time = started.elapsed() - prompt_time;
        Ok(Generation { tokens, stop, prompt_computed, prompt_time, token_time })
    }

    /// Tokens that the model knows with an adapter: one that brings a head of its own may know more.
    fn vocabulary(&self, adapter: Option<usize>) -> usize {
        let config = &self.plan.shared.network.config;
        let adapter = adapter.and_then(|adapter| self.plan.adapters.get(adapter));
        let whole = adapter.and_then(|adapter| adapter.head()?.factor(Factor::Whole));
        let grows = adapter.is_some_and(|adapter| adapter.has_token_from(config.vocab_rows as u32));
        if whole.is_some() || grows { config.vocab_size } else { config.vocab_rows }
    }

    fn check(&self, text: &[u32], adapter: Option<usize>) -> Result<()> {
        let refuse = |problem| Err(Error::Argument(problem));
        if text.is_empty() {
            return refuse(
                "there is no token to continue from: the prompt is empty and adds no begin token".to_owned(),
            );
        }
        let (length, context) = (text.len(), self.plan.max_positions());
        if length > context {
            return refuse(format!("the prompt has {length} tokens, but the context holds {context}"));
        }
        let vocabulary = self.vocabulary(adapter);
        if let Some(id) = text.iter().find(|id| **id as usize >= vocabulary) {
            return refuse(format!("the prompt has the token {id}, but the vocabulary ends at {}", vocabulary - 1));
        }
        match adapter {
            Some(index) if index >= self.plan.adapters.len() => {
                refuse(format!("adapter {index} was asked for, but {} are loaded", self.plan.adapters.len()))
            }
            _ => Ok(()),
        }
    }

    /// Runs a pass over `tokens` at these positions of their texts, and adds their keys and values to the caches of `shape`, which are
    /// emptied if the pass fails. `last_rows` are the rows that have logits.
    async fn run(&mut self, tokens: &[u32], positions: &[u32], shape: PassShape, last_rows: &[u32]) -> Result<()> {
        let caches = shape.caches.clone();
        let result = self.pass(tokens, positions, shape, last_rows).await;
        if result.is_err() {
            caches.into_iter().for_each(|cache| self.cached[cache].tokens.clear());
        }
        result
    }

    async fn pass(&mut self, tokens: &[u32], positions: &[u32], shape: PassShape, last_rows: &[u32]) -> Result<()> {
        let PassShape { rows, adapter, .. } = shape;
        let write = |view, words: &[u32]| self.gpu.write(&self.buffers, view, bytemuck::cast_slice(words));
        write(self.plan.shared.inputs.tokens, tokens);
        if let Some(rows) = &self.layer_rows {
            rows.upload(&self.gpu, &self.buffers, &self.plan.shared.inputs, tokens)?;
        }
        if let Some(adapter) = adapter.and_then(|adapter| self.plan.adapters.get(adapter)) {
            adapter.write_inputs(&self.gpu, &self.buffers, tokens);
        }
        write(self.plan.shared.inputs.positions, positions);
        for ranges in &self.plan.shared.inputs.windows {
            let window = ranges.window.and_then(|w| u32::try_from(w).ok()).unwrap_or(u32::MAX);
            let keys = |position: &u32| [(position + 1).saturating_sub(window), position + 1];
            write(ranges.keys, &positions.iter().flat_map(keys).collect::<Vec<_>>());
        }
        write(self.plan.last_rows, last_rows);
        let list = self.lists.get_or_prepare(shape.clone(), || {
            let uniform = self.plan.shared.uniforms[usize::from(rows == 1)];
            self.gpu.prepare(&self.plan.record(&shape).commands, &self.buffers, uniform)
        })?;
        Ok(self.gpu.replay(list, &mut self.buffers, self.profile.as_mut()).await?)
    }
}
