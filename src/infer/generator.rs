//! Generation on the device: prompts in pieces, then one row per token, over a cache of keys and values.

use std::ops::ControlFlow;

use web_time::{Duration, Instant};

use super::plan::{GenerationPlan, PassShape, PlanSettings};
use super::sampler::{SamplingSettings, next_token};
use crate::gpu::{Buffers, Gpu, Lists, Profile};
use crate::lora::adapter_file::LoadedAdapter;
use crate::lora::targets::LoraModule;
use crate::model::source::Source;
use crate::network::load;
use crate::{Error, Result, tune};

/// Passes of this many shapes stay prepared; beyond it, all are made anew.
const MAX_LISTS: usize = 64;

/// What one generated text is to be.
#[derive(Clone, Debug, Default)]
pub struct GenerationSettings {
    pub sampling: SamplingSettings,
    pub max_tokens: usize,
    /// The text ends before the first of these; none lets it run on.
    pub end_tokens: Vec<u32>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model gave an end token, which is not part of the text.
    EndToken(u32),
    MaxTokens,
    /// The cache holds no further position.
    Context,
    /// `on_token` asked for it.
    Caller,
}

#[derive(Clone, Debug)]
pub struct Generation {
    /// Without the prompt.
    pub tokens: Vec<u32>,
    pub stop: Stop,
    /// Tokens of the prompt that had to be computed: those that the cache held already are left out.
    pub prompt_computed: usize,
    /// Until the first logits.
    pub prompt_time: Duration,
    /// From there to the end.
    pub token_time: Duration,
}

/// A base with any number of adapters, ready to continue texts.
pub struct Generator {
    pub gpu: Gpu,
    pub plan: GenerationPlan,
    pub buffers: Buffers,
    /// Filled by every pass when set.
    pub profile: Option<Profile>,
    lists: Lists<PassShape>,
    cached: CachedText,
}

/// The text whose keys and values the plan's cache holds.
///
/// A plan has one cache, so a generator knows one text: clients that take turns replace each other's, and each then pays for
/// its whole prompt again, with the same results. A client gets its own by a further `KvCache` in the plan, its index in
/// [`PassShape`], and a `CachedText` beside this one; nothing else knows which text is cached.
#[derive(Default)]
struct CachedText {
    tokens: Vec<u32>,
    /// Index of the adapter that computed them; None is the base.
    adapter: Option<usize>,
}

impl CachedText {
    /// How many of the first tokens of `text` need no computation under `adapter`. The last one always does: its logits
    /// are what a caller asks for.
    fn shared_with(&self, text: &[u32], adapter: Option<usize>) -> usize {
        if adapter != self.adapter {
            return 0;
        }
        let common = self.tokens.iter().zip(text).take_while(|(a, b)| a == b).count();
        common.min(text.len().saturating_sub(1))
    }

    /// Keeps what `text` under `adapter` can use.
    fn begin(&mut self, text: &[u32], adapter: Option<usize>) {
        self.tokens.truncate(self.shared_with(text, adapter));
        self.adapter = adapter;
    }
}

impl Generator {
    /// Plans, allocates and loads.
    ///
    /// # Errors
    /// A base that the files cannot give, a context that does not fit, out of memory, or a failing device.
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
        plan.autotune = tune::choices(&gpu, &plan.problem_sizes()).await?;
        let mut buffers = Buffers::default();
        gpu.allocate(&plan.memory, &mut buffers).await?;
        let staging = plan.staging.as_ref();
        load::load(&gpu, &mut buffers, source, &plan.network, staging, || plan.recorder(), progress).await?;
        for (place, adapter) in plan.adapters.iter().zip(adapters) {
            place.write(&gpu, &buffers, &adapter.tensors);
        }
        gpu.flush().await?;
        let (lists, cached) = (Lists::new(MAX_LISTS), CachedText::default());
        Ok(Self { gpu, plan, buffers, profile: None, lists, cached })
    }

    /// Logits `[vocabulary]` of the token after `text`, under an adapter (by its index) or the base alone. What the text
    /// has in common with the last one under the same adapter is not computed again.
    ///
    /// # Errors
    /// An empty text, one longer than the context, ids outside the vocabulary, an unknown adapter, or a failing device.
    pub async fn logits_after(&mut self, text: &[u32], adapter: Option<usize>) -> Result<Vec<f32>> {
        self.check(text, adapter)?;
        self.cached.begin(text, adapter);
        while self.cached.tokens.len() < text.len() {
            let first = self.cached.tokens.len();
            let rows = (text.len() - first).min(self.plan.rows_per_pass as usize);
            let last = first + rows == text.len();
            self.pass(first, &text[first..first + rows], adapter, last).await?;
            self.cached.tokens.extend_from_slice(&text[first..first + rows]);
        }
        let read = self.gpu.begin_read(&self.buffers, self.plan.logits.view, self.plan.logits_read);
        let bytes = self.gpu.finish_read(&self.buffers, read).await?;
        let mut logits: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        logits.truncate(self.plan.network.config.vocab_size);
        Ok(logits)
    }

    /// Continues `prompt` token by token; `on_token` sees each as it comes and may end the text.
    ///
    /// # Errors
    /// Those of [`Self::logits_after`] for the prompt, settings out of range, or logits that are not finite.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        adapter: Option<usize>,
        settings: &GenerationSettings,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation> {
        settings.sampling.check()?;
        let prompt_computed = prompt.len().saturating_sub(self.cached.shared_with(prompt, adapter));
        let started = Instant::now();
        let mut logits = self.logits_after(prompt, adapter).await?;
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
            if on_token(token).is_break() {
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
        let vocabulary = self.plan.network.config.vocab_size;
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

    /// Runs `tokens` at positions `first ..`, whose keys and values join the cache.
    async fn pass(&mut self, first: usize, tokens: &[u32], adapter: Option<usize>, logits: bool) -> Result<()> {
        let rows = tokens.len() as u32;
        let positions = first as u32..first as u32 + rows;
        let write = |view, words: &[u32]| self.gpu.write(&self.buffers, view, bytemuck::cast_slice(words));
        write(self.plan.inputs.tokens, tokens);
        write(self.plan.inputs.positions, &positions.clone().collect::<Vec<_>>());
        for ranges in &self.plan.inputs.windows {
            let window = ranges.window.and_then(|w| u32::try_from(w).ok()).unwrap_or(u32::MAX);
            let keys = |position: u32| [(position + 1).saturating_sub(window), position + 1];
            write(ranges.keys, &positions.clone().flat_map(keys).collect::<Vec<_>>());
        }
        write(self.plan.last_row, &[rows - 1]);
        let shape = PassShape { rows, adapter, logits };
        let list = self.lists.get_or_prepare(shape, || {
            let uniform = self.plan.uniforms[usize::from(rows == 1)];
            self.gpu.prepare(&self.plan.record(shape).commands, &self.buffers, uniform)
        })?;
        Ok(self.gpu.replay(list, &mut self.buffers, self.profile.as_mut()).await?)
    }
}
