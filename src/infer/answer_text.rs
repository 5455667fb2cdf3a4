//! The text of an answer under way: whole characters of its tokens, up to a text that ends it.

use super::generator::GenerationSettings;
use super::stop_strings::StopStrings;
use super::text_format::TextFormat;
use crate::Result;
use crate::data::tokenizer::StreamDecoder;

/// Makes text of the tokens of an answer, one by one.
pub struct AnswerText {
    decoder: StreamDecoder,
    stops: StopStrings,
}

impl AnswerText {
    /// The text of an answer to `prompt`.
    ///
    /// # Errors
    /// Tokens that the tokenizer refuses.
    pub fn after(format: &TextFormat, prompt: &[u32], settings: &GenerationSettings) -> Result<Self> {
        let decoder = StreamDecoder::after(&format.tokenizer, prompt)?;
        let mut ends = settings.stop_strings.clone();
        // Not where the end tokens are ignored.
        ends.extend(format.end_text.clone().filter(|_| !settings.end_tokens.is_empty()));
        Ok(Self { decoder, stops: StopStrings::new(ends) })
    }

    /// Adds a token and returns the text that it completes, which is empty while a character or a stop string is incomplete.
    ///
    /// # Errors
    /// A token that the tokenizer refuses.
    pub fn push(&mut self, format: &TextFormat, token: u32) -> Result<String> {
        Ok(self.stops.push(&self.decoder.push(&format.tokenizer, token)?))
    }

    /// True once a stop string was seen: the answer is over.
    pub fn stopped(&self) -> bool {
        self.stops.found()
    }

    /// Returns the remaining text at the end of an answer. It may hold a stop string, so ask [`Self::stopped`] after it.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(&mut self, format: &TextFormat) -> Result<String> {
        Ok(self.stops.push(&self.decoder.finish(&format.tokenizer)?) + &self.stops.finish())
    }
}
