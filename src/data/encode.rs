//! Turns one record into token ids and labels, and refuses records that would train a mistake.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use super::columns::{Columns, columns, unknown_columns};
use super::fitting::fitted;
use super::leftovers::{Habits, check_roles, count_leftovers};
use super::preference::{Preference, begin_together, preference_of};
use super::record::Record;
use super::records::{MAX_RECORD_BYTES, too_large};
use super::report::Tally;
use super::sample::{Conversation, Sample, check_train_on, sample_of, unused_fields};
use super::settings::{DataSettings, Shape, TrainOn};
use super::template::{ChatTemplate, Input, built_in_names};
use super::tokenizer::Tokenizer;
use super::turns::{RenderedTurns, assistant_turns};
use super::{Comparison, Example};
use crate::Result;
use crate::setting::{CHAT_TEMPLATE, SHAPE};

/// Note for conversations of [`RenderedTurns::as_written_last`].
const AS_WRITTEN_LAST: &str = "the chat template writes earlier answers differently from the last, for example without their \
                               reasoning: each answer is trained as the template writes it when it is the last";

/// An example together with its source text.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The token ids, and those that are trained on.
    pub example: Example,
    /// Rendered text; empty for records of token ids.
    pub text: String,
    /// Byte range in `text` of each token; empty for records of token ids.
    pub ranges: Vec<Range<usize>>,
    /// Positions of the trained tokens that end a turn or a completion.
    pub ends: Vec<usize>,
    /// What the encoding changed, for the report.
    pub notes: Vec<String>,
}

/// Reasons to refuse a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A setting or a file of the model is wrong, so that no record could be read.
    Setup,
    /// The fields or the chat template are wrong; the text says how.
    Readable,
    /// No token has a label.
    TrainsSomething,
    /// A trained turn does not end in a special token, so the model would never learn to stop.
    EndsItsTurns,
    /// The begin token stands twice in a row.
    BeginsOnce,
}

/// A record that cannot be trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The rule that it breaks.
    pub rule: Rule,
    /// The rest of a sentence whose subject is the record.
    pub detail: String,
}

impl Refusal {
    fn new(rule: Rule, detail: impl Into<String>) -> Self {
        Self { rule, detail: detail.into() }
    }
}

impl From<crate::Error> for Refusal {
    fn from(error: crate::Error) -> Self {
        Self::new(Rule::Setup, error.to_string())
    }
}

impl From<String> for Refusal {
    fn from(detail: String) -> Self {
        Self { rule: Rule::Readable, detail }
    }
}

/// Encodes the records of one data set.
pub struct Encoder<'a> {
    tokenizer: Option<&'a Tokenizer>,
    settings: &'a DataSettings,
    vocab_size: usize,
    template: OnceCell<Option<ChatTemplate>>,
    /// True once the template has written a record.
    has_rendered: Cell<bool>,
    habits: Habits,
    /// What was read and not used.
    tally: Tally,
    /// How the first record of each shape was read.
    formats: RefCell<BTreeMap<Shape, String>>,
}

impl<'a> Encoder<'a> {
    /// An encoder. Without a `tokenizer` it takes only records of token ids, which must be below `vocab_size`.
    pub fn new(tokenizer: Option<&'a Tokenizer>, settings: &'a DataSettings, vocab_size: usize) -> Self {
        let (template, habits, tally) = (OnceCell::new(), Habits::default(), Tally::default());
        let (has_rendered, formats) = (Cell::default(), RefCell::default());
        Self { tokenizer, settings, vocab_size, template, has_rendered, habits, tally, formats }
    }

    /// The chat template, if one was used.
    pub fn used_template(&self) -> Option<&ChatTemplate> {
        self.template.get().and_then(Option::as_ref).filter(|_| self.has_rendered.get())
    }

    /// What was read and not used, with the number of records or messages.
    pub fn unused(&self) -> BTreeMap<String, usize> {
        self.tally.counts()
    }

    /// How the records were read, one sentence for each shape.
    pub fn formats(&self) -> Vec<String> {
        self.formats.borrow().values().cloned().collect()
    }

    /// Returns the shape and the example of a record. An empty text gives no example.
    ///
    /// # Errors
    /// A record that cannot be read, or that would train a mistake, with the [`Rule`] that it breaks.
    pub fn encode(&self, record: &Record) -> Result<(Shape, Option<Encoded>), Refusal> {
        if record.values().map(text_bytes).sum::<usize>() > MAX_RECORD_BYTES {
            return Err(too_large().into());
        }
        let columns = columns(record, self.settings).ok_or_else(|| unknown_columns(record))?;
        let shape = columns.shape;
        check_train_on(shape, self.settings.train_on)?;
        let chat = shape == Shape::Alpaca && self.template()?.is_some();
        if matches!(shape, Shape::Preference | Shape::UnpairedPreference) {
            return self.preference(record, &columns).map(|encoded| (shape, encoded));
        }
        let sample = sample_of(record, &columns, self.settings, self.vocab_size, chat)?;
        if !self.formats.borrow().contains_key(&shape) {
            self.formats.borrow_mut().insert(shape, self.format(&columns.sentence(), &sample, shape));
        }
        for field in unused_fields(record, &columns, &sample) {
            self.tally.add(field);
        }
        Ok((shape, self.sample(sample, shape)?))
    }

    /// Encodes a sample. An empty text gives no example.
    fn sample(&self, sample: Sample, shape: Shape) -> Result<Option<Encoded>, Refusal> {
        let encoded = match sample {
            Sample::Tokens { input_ids, trained } => {
                let example = Example::new(input_ids, trained);
                Encoded { example, text: String::new(), ranges: Vec::new(), ends: Vec::new(), notes: Vec::new() }
            }
            Sample::Text(text) if text.is_empty() => return Ok(None),
            Sample::Text(text) => self.text(text)?,
            Sample::Completion { prompt, completion } => self.completion(prompt, &completion)?,
            Sample::Chat(conversation) => self.conversation(&conversation)?,
        };
        let mut encoded = encoded;
        if shape != Shape::Tokens {
            self.remove_second_begin(&mut encoded);
            self.refuse_two_begins(&encoded.example)?;
        }
        if encoded.example.trained_tokens() == 0 {
            let rule = "every token is masked, or there is only one";
            return Err(Refusal::new(Rule::TrainsSomething, format!("has no token to train on: {rule}")));
        }
        Ok(Some(encoded))
    }

    /// Encodes the answers of a preference. The rejected answer is the comparison of the chosen one, whose text is shown.
    fn preference(&self, record: &Record, columns: &Columns) -> Result<Option<Encoded>, Refusal> {
        let Preference { answers, feedback, used } = preference_of(record, columns)?;
        let of_answer = Columns::of_completion();
        let mut encoded = Vec::with_capacity(answers.len());
        for (name, answer) in &answers {
            let of_this = |refusal: Refusal| Refusal { detail: format!("`{name}`: {}", refusal.detail), ..refusal };
            let sample = sample_of(answer, &of_answer, self.settings, self.vocab_size, false);
            let sample = sample.map_err(|problem| of_this(problem.into()))?;
            if encoded.is_empty() {
                let mut formats = self.formats.borrow_mut();
                formats.entry(columns.shape).or_insert_with(|| columns.sentence());
            }
            encoded.extend(self.sample(sample, Shape::Completion).map_err(of_this)?);
        }
        record.keys().filter(|name| !used.contains(name)).for_each(|name| self.tally.add(name));
        let mut encoded = encoded.into_iter();
        let Some(mut first) = encoded.next() else { return Ok(None) };
        first.example.comparison = match (feedback, encoded.next()) {
            (Some(desirable), _) => Comparison::Rated { desirable, mismatched: None },
            (None, Some(mut rejected)) => {
                begin_together(&mut first.example, &mut rejected.example);
                first.notes.extend(rejected.notes);
                Comparison::Rejected(Box::new(rejected.example))
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(first))
    }

    /// The prompt of a record, as [`Sample::question`] has it; `None` for a record that cannot be read.
    pub fn question(&self, record: &Record) -> Option<String> {
        let columns = columns(record, self.settings)?;
        let chat = columns.shape == Shape::Alpaca && self.template().ok()?.is_some();
        sample_of(record, &columns, self.settings, self.vocab_size, chat).ok()?.question()
    }

    /// How a record was read: its format, and for plain pairs that another one would use the chat template.
    fn format(&self, sentence: &str, sample: &Sample, shape: Shape) -> String {
        let is_plain = shape == Shape::Completion && matches!(sample, Sample::Completion { .. });
        match is_plain && self.template().is_ok_and(|template| template.is_some()) {
            true => format!("{sentence}, as plain text; {} uses the chat template", SHAPE.is(Shape::Alpaca.name())),
            false => sentence.to_owned(),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none, although the record holds text.
    pub fn tokenizer(&self) -> Result<&'a Tokenizer, String> {
        self.tokenizer.ok_or_else(|| "holds text, but there is no tokenizer: tokenizer.json is missing".into())
    }

    fn template(&self) -> Result<Option<&ChatTemplate>, Refusal> {
        if self.template.get().is_none() {
            let tokenizer = self.tokenizer()?;
            let choice = self.settings.chat_template.as_deref();
            let loaded = ChatTemplate::load(tokenizer.dir(), choice, tokenizer.special_tokens()?)?;
            let arguments = &self.settings.template_arg;
            let loaded = loaded.map(|template| template.with_arguments(arguments)).transpose()?;
            let loaded = match &self.settings.template_date {
                Some(date) => loaded.map(|template| template.at(date)).transpose()?,
                None => loaded,
            };
            let _ = self.template.set(loaded);
        }
        Ok(self.template.get().and_then(Option::as_ref))
    }

    /// Encodes a text with the tokenizer's begin token, if it adds one, and the end token. Every token is trained on.
    fn text(&self, text: String) -> Result<Encoded, Refusal> {
        let tokenizer = self.tokenizer()?;
        let (mut input_ids, mut ranges) = tokenizer.encode_with_ranges(&text, true)?;
        push_end(&mut input_ids, &mut ranges, text.len(), tokenizer.require_eos()?);
        let trained = vec![true; input_ids.len()];
        Ok(Encoded { example: Example::new(input_ids, trained), text, ranges, ends: Vec::new(), notes: Vec::new() })
    }

    /// Encodes prompt and completion together, as TRL does: the completion begins with the first token that the prompt alone would not
    /// have.
    fn completion(&self, prompt: String, completion: &str) -> Result<Encoded, Refusal> {
        let tokenizer = self.tokenizer()?;
        let alone = tokenizer.encode(&prompt, true)?;
        let text = prompt + completion;
        let (mut input_ids, mut ranges) = tokenizer.encode_with_ranges(&text, true)?;
        let prompt_len = alone.iter().zip(&input_ids).take_while(|(a, b)| a == b).count();
        push_end(&mut input_ids, &mut ranges, text.len(), tokenizer.require_eos()?);
        let all = self.settings.train_on == Some(TrainOn::All);
        let trained = (0..input_ids.len()).map(|i| all || i >= prompt_len).collect();
        let ends = vec![input_ids.len() - 1];
        Ok(Encoded { example: Example::new(input_ids, trained), text, ranges, ends, notes: Vec::new() })
    }

    /// Encodes a conversation. The template writes every special token itself, so the tokenizer adds none, as in transformers.
    fn conversation(&self, conversation: &Conversation) -> Result<Encoded, Refusal> {
        let tokenizer = self.tokenizer()?;
        let no_template = || {
            let name = format!("name one with {CHAT_TEMPLATE} (built in: {})", built_in_names());
            Refusal::from(format!("is a conversation, but the model has no chat template; {name}"))
        };
        let template = self.template()?.ok_or_else(no_template)?;
        self.has_rendered.set(true);
        check_roles(conversation, template)?;
        let conversation = &*fitted(template, conversation)?;
        count_leftovers(conversation, template, &self.habits, &self.tally);
        let mut notes = Vec::new();
        let RenderedTurns { text, turns, messages, as_written_last } = match self.settings.train_on {
            Some(TrainOn::All) => whole_text(template, conversation)?,
            train_on => {
                let completes = match train_on {
                    Some(TrainOn::Assistant) => false,
                    Some(TrainOn::Completion) => true,
                    _ => conversation.is_completion,
                };
                let first = if completes { conversation.assistant_turns_in_prompt() } else { 0 };
                assistant_turns(template, conversation, first)?
            }
        };
        let excluded = |message: &usize| conversation.untrained.contains(message);
        if !conversation.untrained.is_empty() && self.settings.train_on == Some(TrainOn::All) {
            self.tally.add("weight of messages");
        }
        let trained_turns = turns.into_iter().zip(messages).filter(|(_, message)| !excluded(message));
        let (turns, messages): (Vec<_>, Vec<_>) = trained_turns.unzip();
        if as_written_last {
            notes.push(AS_WRITTEN_LAST.to_owned());
        }
        let (input_ids, ranges) = tokenizer.encode_with_ranges(&text, false)?;
        let mut trained = vec![false; input_ids.len()];
        let mut ends = Vec::with_capacity(turns.len());
        for (index, turn) in turns.iter().enumerate() {
            let tokens = tokens_of(&ranges, turn);
            trained[tokens.clone()].fill(true);
            if messages.get(index + 1).is_some_and(|next| *next == messages[index]) {
                continue;
            }
            let is_blank = |&at: &usize| text.get(ranges[at].clone()).is_some_and(|part| part.trim().is_empty());
            match tokens.rev().find(|at| !is_blank(at)) {
                Some(last) if tokenizer.is_special(input_ids[last]) => ends.push(last),
                Some(last) => {
                    let marker = template.end_of_turn().filter(|marker| text[..turn.end].trim_end().ends_with(marker));
                    let Some(marker) = marker else {
                        let last = text.get(ranges[last].clone()).unwrap_or_default();
                        return Err(Refusal::new(Rule::EndsItsTurns, no_end(last, template.source())));
                    };
                    notes.push(format!(
                        "the chat template ends turns with {marker:?}, which this tokenizer has no token for: it is \
                         trained as ordinary text, and answers end where the model writes it"
                    ));
                    ends.push(last);
                }
                None => {}
            }
        }
        notes.dedup();
        Ok(Encoded { example: Example::new(input_ids, trained), text, ranges, ends, notes })
    }

    /// Takes the second of two begin tokens at the beginning out: a text that spells it out gets it from the tokenizer again.
    fn remove_second_begin(&self, encoded: &mut Encoded) {
        let Some(bos) = self.doubled_begin() else { return };
        let Encoded { example, ranges, ends, notes, .. } = encoded;
        if !example.input_ids.starts_with(&[bos, bos]) {
            return;
        }
        example.input_ids.remove(0);
        example.trained.remove(0);
        if !ranges.is_empty() {
            ranges.remove(0);
        }
        ends.iter_mut().for_each(|end| *end -= 1);
        notes.push(
            "the text begins with the begin token, which the tokenizer adds too: one of the two is left out".to_owned(),
        );
    }

    /// The begin token, unless it also ends texts.
    fn doubled_begin(&self) -> Option<u32> {
        let tokenizer = self.tokenizer?;
        tokenizer.bos().filter(|bos| tokenizer.eos() != Some(*bos))
    }

    /// Refuses a text that spells out the begin token and so gets it twice, which no model has seen in pretraining.
    fn refuse_two_begins(&self, example: &Example) -> Result<(), Refusal> {
        let Some(bos) = self.doubled_begin() else { return Ok(()) };
        match example.input_ids.windows(2).position(|pair| pair == [bos, bos]) {
            None => Ok(()),
            Some(at) => Err(Refusal::new(
                Rule::BeginsOnce,
                format!("has the begin token twice in a row, at token {at}; take it out of the text"),
            )),
        }
    }
}

/// The whole conversation as one turn of the last message.
fn whole_text(template: &ChatTemplate, conversation: &Conversation) -> Result<RenderedTurns, String> {
    let Conversation { messages, tools, variables, .. } = conversation;
    let input = Input { messages, tools: tools.as_ref(), variables: Some(variables) };
    let text = template.render_input(&input, false)?.text;
    let whole = 0..text.len();
    Ok(RenderedTurns { text, turns: vec![whole], messages: vec![messages.len()], as_written_last: false })
}

fn no_end(last: &str, source: &str) -> String {
    format!(
        "ends a trained turn with {last:?}, which is no special token of this tokenizer: the model would never learn to \
         stop; the chat template ({source}) does not fit the model, choose another with {CHAT_TEMPLATE}"
    )
}

/// Bytes of all texts in a value.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(text_bytes).sum(),
        Value::Object(object) => object.values().map(text_bytes).sum(),
        _ => 0,
    }
}

/// Returns the range of tokens that overlap the byte range `turn`. A token across the edge counts as a whole, as in transformers;
/// an empty token counts if it lies inside the turn.
fn tokens_of(ranges: &[Range<usize>], turn: &Range<usize>) -> Range<usize> {
    let inside = |range: &Range<usize>| match range.is_empty() {
        true => range.start > turn.start && range.start < turn.end,
        false => range.start < turn.end && range.end > turn.start,
    };
    match (ranges.iter().position(inside), ranges.iter().rposition(inside)) {
        (Some(first), Some(last)) => first..last + 1,
        _ => 0..0,
    }
}

fn push_end(ids: &mut Vec<u32>, ranges: &mut Vec<Range<usize>>, text_len: usize, end: u32) {
    if ids.last() != Some(&end) {
        ids.push(end);
        ranges.push(text_len..text_len);
    }
}
