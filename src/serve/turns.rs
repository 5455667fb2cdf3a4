//! Turns: several texts grow on one device, every text in a cache of its own. A pass computes a part of one prompt, or a token of each of
//! several texts with one adapter. Further texts wait in a queue.

use std::collections::VecDeque;

use crate::infer::answer_text::AnswerText;
use crate::infer::generator::{GenerationSettings, Stop};
use crate::infer::sampler::next_token;
use crate::infer::session::Session;
use crate::infer::text_format::TextFormat;
use crate::{Error, Result};

/// A text to generate.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Index of the adapter that answers; `None` means the base.
    pub adapter: Option<usize>,
    /// Settings of the answer.
    pub settings: GenerationSettings,
    /// Changes of the logits before a token is chosen.
    pub bias: Bias,
    /// Number of most likely tokens to report beside each token with its log-probability; `None` reports no log-probabilities.
    pub logprobs: Option<usize>,
}

/// Changes of the logits before a token is chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bias {
    /// Tokens and what is added to their logits.
    pub tokens: Vec<(u32, f32)>,
    /// Taken from the logit of each token that the answer has.
    pub presence: f32,
    /// Taken from a token's logit each time that the answer has it.
    pub frequency: f32,
}

impl Bias {
    fn apply(&self, logits: &mut [f32], answer: &[u32]) {
        let mut add = |token: u32, change: f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += change;
            }
        };
        self.tokens.iter().for_each(|(token, change)| add(*token, *change));
        if self.presence == 0.0 && self.frequency == 0.0 {
            return;
        }
        let mut sorted = answer.to_vec();
        sorted.sort_unstable();
        for equal in sorted.chunk_by(|a, b| a == b) {
            add(equal[0], -self.presence - self.frequency * equal.len() as f32);
        }
    }
}

/// A token with its natural log-probability before temperature, filters and biases.
#[derive(Clone, Debug, PartialEq)]
pub struct Chance {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f64,
    /// The most likely tokens at its place with their log-probabilities, most likely first.
    pub likeliest: Vec<(u32, f64)>,
}

impl Chance {
    fn of(token: u32, logits: &[f32], count: usize) -> Self {
        let highest = logits.iter().fold(f64::NEG_INFINITY, |highest, logit| highest.max(f64::from(*logit)));
        let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - highest).exp()).sum();
        let logprob = |token: u32| f64::from(logits[token as usize]) - highest - total.ln();
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if count < order.len() {
            order.select_nth_unstable_by(count, by_logit);
            order.truncate(count);
        }
        order.sort_unstable_by(by_logit);
        Self { token, logprob: logprob(token), likeliest: order.iter().map(|id| (*id, logprob(*id))).collect() }
    }
}

/// The addition of a turn to a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// New text; empty while a prompt is computed, and while a character or a stop string is incomplete.
    pub text: String,
    /// The new token with its log-probability, if the request asks for it.
    pub chance: Option<Chance>,
    /// The end of the text, which is over with it.
    pub end: Option<End>,
}

/// The end of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Its reason.
    pub stop: Stop,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub cached_tokens: usize,
    /// Tokens of the answer, an end token not counted.
    pub tokens: usize,
}

/// A text that grows in a cache.
struct Growing {
    id: u64,
    request: Request,
    /// Prompt and answer.
    text: Vec<u32>,
    cached_tokens: usize,
    words: AnswerText,
}

/// A place for one text: a cache of the generator.
#[derive(Default)]
struct Slot {
    growing: Option<Growing>,
    /// The number of its last text, by which the slot that rests for longest is found; 0 before the first.
    last: u64,
}

/// The texts that grow, and those that wait.
pub struct Turns {
    slots: Vec<Slot>,
    waiting: VecDeque<(u64, Request)>,
    max_waiting: usize,
    next_slot: usize,
    last_id: u64,
}

impl Turns {
    /// Turns among `slots` texts, as many as the generator has caches; `max_waiting` further ones wait.
    pub fn new(slots: usize, max_waiting: usize) -> Self {
        let slots = (0..slots).map(|_| Slot::default()).collect();
        Self { slots, waiting: VecDeque::new(), max_waiting, next_slot: 0, last_id: 0 }
    }

    /// Takes a request and returns its number, or `None` if the queue is full.
    pub fn submit(&mut self, request: Request) -> Option<u64> {
        let free = self.slots.len() - self.growing();
        if self.waiting.len() >= self.max_waiting + free {
            return None;
        }
        self.last_id += 1;
        self.waiting.push_back((self.last_id, request));
        Some(self.last_id)
    }

    /// Ends the work for a request; its place is free at once.
    pub fn cancel(&mut self, id: u64) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        for slot in &mut self.slots {
            slot.growing.take_if(|growing| growing.id == id);
        }
    }

    /// Gives up the requests that wait and returns their numbers.
    pub fn refuse_waiting(&mut self) -> Vec<u64> {
        self.waiting.drain(..).map(|(id, _)| id).collect()
    }

    /// Number of texts that grow.
    pub fn growing(&self) -> usize {
        self.slots.iter().filter(|slot| slot.growing.is_some()).count()
    }

    /// Number of requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// True if there is nothing to do.
    pub fn idle(&self) -> bool {
        self.growing() == 0 && self.waiting.is_empty()
    }

    /// Gives waiting requests free places, then runs one pass of the text whose turn it is, together with others where that is possible.
    /// Returns the number of each text of the pass with its news or the error that ended it; nothing if there is nothing to do.
    pub async fn step(&mut self, session: &mut Session) -> Vec<(u64, Result<News>)> {
        if let Some((id, problem)) = self.fill(session) {
            return vec![(id, Err(problem))];
        }
        let members = self.next_pass(session);
        let Some(first) = members.first() else { return Vec::new() };
        self.next_slot = (first + 1) % self.slots.len();
        let texts: Vec<(usize, &[u32])> = members
            .iter()
            .filter_map(|at| self.slots[*at].growing.as_ref().map(|growing| (*at, growing.text.as_slice())))
            .collect();
        let adapter = self.slots[*first].growing.as_ref().and_then(|growing| growing.request.adapter);
        let computed = match texts[..] {
            [(cache, text)] => session.generator.advance(cache, text, adapter).await.map(|logits| vec![logits]),
            _ => {
                let together = session.generator.advance_together(&texts, adapter).await;
                together.map(|logits| logits.into_iter().map(Some).collect())
            }
        };
        let mut all = Vec::new();
        match computed {
            Ok(logits) => {
                for (at, logits) in members.into_iter().zip(logits) {
                    let Some(growing) = &mut self.slots[at].growing else { continue };
                    let news = logits.map_or(Ok(News::default()), |logits| growing.grow(logits, session));
                    all.push((growing.id, news));
                }
            }
            // The others of the pass try again, and end with an error of their own if there is one.
            Err(problem) => all.extend(self.slots[*first].growing.as_ref().map(|growing| (growing.id, Err(problem)))),
        }
        for (id, news) in &all {
            if news.as_ref().map_or(true, |news| news.end.is_some()) {
                self.cancel(*id);
            }
        }
        all
    }

    /// The slots of the next pass: the one whose turn it is, and if its text lacks one token alone, others of which that is true too.
    fn next_pass(&self, session: &Session) -> Vec<usize> {
        let count = self.slots.len();
        let mut growing = (0..count)
            .map(|i| (self.next_slot + i) % count)
            .filter_map(|at| self.slots[at].growing.as_ref().map(|growing| (at, growing)));
        let generator = &session.generator;
        let lacks_one = |at: usize, growing: &Growing| generator.lacks_one(at, &growing.text, growing.request.adapter);
        let Some((first, own)) = growing.next() else { return Vec::new() };
        if !lacks_one(first, own) {
            return vec![first];
        }
        let alike =
            |(at, other): &(usize, &Growing)| other.request.adapter == own.request.adapter && lacks_one(*at, other);
        let others = growing.filter(alike).map(|(at, _)| at);
        std::iter::once(first).chain(others).take(generator.plan.together).collect()
    }

    /// Begins waiting requests in free slots; a request that cannot begin is returned with its error.
    fn fill(&mut self, session: &Session) -> Option<(u64, Error)> {
        while self.growing() < self.slots.len()
            && let Some((id, request)) = self.waiting.pop_front()
        {
            let at = self.best_slot(session, &request)?;
            let cached_tokens = session.generator.cached_tokens(at, &request.prompt, request.adapter);
            let words = match AnswerText::after(&session.format, &request.prompt, &request.settings) {
                Ok(words) => words,
                Err(problem) => return Some((id, problem)),
            };
            let text = request.prompt.clone();
            let growing = Some(Growing { id, request, text, cached_tokens, words });
            self.slots[at] = Slot { growing, last: id };
        }
        None
    }

    /// The free slot for a request: the one that holds most of the prompt, or else the one that rests for longest. A slot counts
    /// only if at least half of the prompt or of its text is common to both, so that a short common beginning does not drive out a
    /// long conversation.
    fn best_slot(&self, session: &Session, request: &Request) -> Option<usize> {
        let kept = |at: usize| {
            let shared = session.generator.cached_tokens(at, &request.prompt, request.adapter);
            let least = session.generator.cache_length(at).min(request.prompt.len()).div_ceil(2);
            if shared >= least { shared } else { 0 }
        };
        let free = (0..self.slots.len()).filter(|at| self.slots[*at].growing.is_none());
        free.max_by_key(|at| (kept(*at), std::cmp::Reverse(self.slots[*at].last)))
    }
}

impl Growing {
    /// Chooses the next token by the logits after the text.
    fn grow(&mut self, mut logits: Vec<f32>, session: &Session) -> Result<News> {
        let Request { prompt, settings, bias, logprobs, .. } = &self.request;
        let chance = |token, logits: &[f32]| logprobs.map(|count| Chance::of(token, logits, count));
        let raw = logprobs.map(|_| logits.clone()).unwrap_or_default();
        if settings.max_tokens == 0 {
            return self.end(Stop::MaxTokens, News::default(), &session.format);
        }
        bias.apply(&mut logits, &self.text[prompt.len()..]);
        let token = next_token(&logits, &self.text, &settings.sampling)?;
        if settings.end_tokens.contains(&token) {
            return self.end(Stop::EndToken(token), News::default(), &session.format);
        }
        let (made, context) = (self.text.len() + 1 - prompt.len(), session.context());
        let news =
            News { text: self.words.push(&session.format, token)?, chance: chance(token, &raw), ..News::default() };
        let full = self.text.len() + 1 > context;
        let most = made >= settings.max_tokens;
        self.text.push(token);
        match () {
            () if self.words.stopped() => self.end(Stop::StopString, news, &session.format),
            () if most => self.end(Stop::MaxTokens, news, &session.format),
            () if full => self.end(Stop::Context, news, &session.format),
            () => Ok(news),
        }
    }

    /// Adds the remaining text and the end to the last news.
    fn end(&mut self, stop: Stop, mut news: News, format: &TextFormat) -> Result<News> {
        news.text += &self.words.finish(format)?;
        let stop = if self.words.stopped() { Stop::StopString } else { stop };
        let prompt_tokens = self.request.prompt.len();
        let tokens = self.text.len() - prompt_tokens;
        news.end = Some(End { stop, prompt_tokens, cached_tokens: self.cached_tokens, tokens });
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_change_the_logits_of_their_tokens() {
        let mut logits = [0.0, 1.0, 2.0, 3.0];
        let bias = Bias { tokens: vec![(0, 5.0), (3, -100.0), (9, 1.0)], presence: 0.5, frequency: 0.25 };
        bias.apply(&mut logits, &[2, 1, 2]);
        assert_eq!(logits, [5.0, 0.25, 1.0, -97.0]);
    }

    #[test]
    fn chances_are_log_probabilities_of_the_likeliest_tokens() {
        let logits = [0.1f32, 0.4, 0.3, 0.2].map(f32::ln);
        let chance = Chance::of(3, &logits, 2);
        let close = |logprob: f64, share: f64| (logprob.exp() - share).abs() < 1e-6;
        assert!(close(chance.logprob, 0.2), "{chance:?}");
        let [(1, first), (2, second)] = chance.likeliest[..] else { panic!("{chance:?}") };
        assert!(close(first, 0.4) && close(second, 0.3), "{chance:?}");
        assert_eq!(Chance::of(0, &logits, 0).likeliest, []);
        assert_eq!(Chance::of(0, &logits, 9).likeliest.len(), 4);
    }

    #[test]
    fn the_queue_has_a_bound_and_canceled_requests_leave_it() {
        let mut turns = Turns::new(1, 2);
        let ids: Vec<_> = (0..4).map(|_| turns.submit(Request::default())).collect();
        assert_eq!(ids, [Some(1), Some(2), Some(3), None]);
        turns.cancel(2);
        assert_eq!(turns.waiting(), 2);
        assert_eq!(turns.submit(Request::default()), Some(4));
        assert_eq!(turns.refuse_waiting(), [1, 3, 4]);
        assert!(turns.idle());
    }
}
