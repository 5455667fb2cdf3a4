//! The text format of a model: its tokenizer, its chat template, and the tokens that end an answer.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::end_tokens;
use crate::data::settings::{DataSettings, home_of_adapter};
use crate::data::template::{self, ChatTemplate, Input};
use crate::data::tokenizer::{Tokenizer, brings_tokens};
use crate::model::companions;
use crate::model::config::ModelConfig;
use crate::model::model_directory::copy_tokenizer;
use crate::setting::CHAT_TEMPLATE;
use crate::{Error, Result};

/// Choice of the chat template for prompts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TemplateChoice {
    /// No template: every prompt is a text to continue, and the end of a turn does not end it.
    Without,
    /// The model's own, if it has one.
    #[default]
    Own,
    /// A file, or the name of a template.
    Named(String),
}

/// Turns text into tokens and back; all clients of a model share it.
pub struct TextFormat {
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template; `None` where there is none or none is wanted.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer: from the model's files, from the tokenizer, and the template's end of turn.
    pub end_tokens: Vec<u32>,
    /// Ordinary text with which the template ends turns, where the tokenizer has no token for it.
    pub end_text: Option<String>,
}

pub(super) fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

impl TextFormat {
    /// Reads the text format of the model directory `dir` for answers with `adapters`. The template that an adapter was trained with
    /// goes before the model's own; `arguments` are values of its variables, as `name=value`.
    ///
    /// # Errors
    /// The tokenizer, `generation_config.json` or the template is missing or damaged, or the template cannot render two plain turns.
    pub fn load(
        dir: &Path,
        config: &ModelConfig,
        choice: &TemplateChoice,
        arguments: &[String],
        adapters: &[PathBuf],
    ) -> Result<Self> {
        let tokenizer = Tokenizer::from_dir(&tokenizer_dir(dir, config, adapters), config)?;
        let chat_template = match choice {
            TemplateChoice::Named(name) => Some(name.clone()),
            TemplateChoice::Own | TemplateChoice::Without => None,
        };
        let mut settings = DataSettings { chat_template, template_arg: arguments.to_vec(), ..DataSettings::default() };
        adapters.iter().for_each(|adapter| settings.follow_adapter(adapter));
        let template = match choice {
            TemplateChoice::Without => None,
            _ => ChatTemplate::load(dir, settings.chat_template.as_deref(), tokenizer.special_tokens()?)?,
        };
        let template = template.map(|template| template.with_arguments(&settings.template_arg)).transpose()?;
        let mut end_tokens = end_tokens::from_dir(dir, config)?;
        for adapter in adapters {
            end_tokens.extend(end_tokens::listed(&home_of_adapter(adapter))?);
        }
        end_tokens.extend(tokenizer.eos());
        if let Some(template) = &template {
            end_tokens.extend(end_of_turn(&tokenizer, template)?);
        }
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let end_text = match &template {
            Some(template) if end_of_turn(&tokenizer, template)?.is_none() => template.end_of_turn(),
            _ => None,
        };
        Ok(Self { tokenizer, template, end_tokens, end_text })
    }

    /// Encodes a text to continue, with the special tokens that the tokenizer adds. An empty text gives the begin token, or nothing if
    /// there is none.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn continuation(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text, true)?;
        if ids.is_empty() {
            ids.extend(self.tokenizer.bos());
        }
        Ok(ids)
    }

    /// Encodes `messages` up to the beginning of the model's answer.
    ///
    /// # Errors
    /// The model has no template, or the template refuses the messages, for example a system message that it does not support.
    pub fn chat(&self, messages: &[Value]) -> Result<Vec<u32>> {
        self.chat_of(&Input { messages, ..Input::default() })
    }

    /// Like [`Self::chat`], with tools and with values of the template's variables.
    ///
    /// # Errors
    /// As [`Self::chat`].
    pub fn chat_of(&self, input: &Input) -> Result<Vec<u32>> {
        let missing =
            || Error::setting(CHAT_TEMPLATE, "the model has no chat template, so it cannot hold a conversation");
        let template = self.template.as_ref().ok_or_else(missing)?;
        let rendered = template.render_input(input, true).map_err(refused)?;
        self.tokenizer.encode(&rendered.text, false)
    }
}

/// The directory of the tokenizer: the model's, or that of an adapter that brings tokens of its own.
pub fn tokenizer_dir(model: &Path, config: &ModelConfig, adapters: &[PathBuf]) -> PathBuf {
    let homes = adapters.iter().map(|adapter| home_of_adapter(adapter));
    let homes = homes.filter(|home| companions::is_file(&home.join("tokenizer.json")));
    let mut with_tokenizer = homes.filter(|home| config.vocab_size > config.vocab_rows || brings_tokens(home, model));
    with_tokenizer.next().unwrap_or_else(|| model.to_owned())
}

/// Writes the text format of what was trained into `dir`, as transformers saves it: the files of the tokenizer of the model at `from`,
/// the template, and `generation_config.json` where the trained `ends` are not the model's end tokens.
///
/// # Errors
/// A file that cannot be read or written.
pub fn save(dir: &Path, from: &Path, template: Option<&ChatTemplate>, ends: &[u32]) -> Result<()> {
    copy_tokenizer(from, dir)?;
    if let Some(chat_template) = template {
        template::save(chat_template, dir)?;
    }
    end_tokens::add(dir, from, ends)
}

/// The tokens with which answers end after training: the template's end of turn, or without a template the tokenizer's end token.
///
/// # Errors
/// The template cannot render two plain turns.
pub fn trained_ends(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Result<Vec<u32>> {
    let end = match template {
        Some(template) => end_of_turn(tokenizer, template)?,
        None => tokenizer.eos(),
    };
    Ok(end.into_iter().collect())
}

/// Makes the error of a template that refuses the messages.
fn refused(problem: String) -> Error {
    Error::setting(CHAT_TEMPLATE, problem)
}

/// Returns the special token with which the template ends assistant turns, or `None` if ordinary text ends them.
fn end_of_turn(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Option<u32>> {
    const ANSWER: &str = "0123456789";
    let rendered =
        template.render(&[message("user", "a"), message("assistant", ANSWER)], None, false).map_err(refused)?;
    let after = rendered.rfind(ANSWER).map(|at| &rendered[at + ANSWER.len()..]).unwrap_or_default();
    let first = tokenizer.encode(after, false)?.first().copied();
    Ok(first.filter(|id| tokenizer.is_special(*id)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::tokenizer::tests::stories;

    /// The small stories tokenizer with a template of the fewest words.
    pub(crate) fn plain_chat() -> Option<TextFormat> {
        let tokenizer = stories()?;
        let special = tokenizer.special_tokens().unwrap();
        let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";
        let template = ChatTemplate::new(template, "test".to_owned(), special).unwrap();
        Some(TextFormat { tokenizer, template: Some(template), end_tokens: Vec::new(), end_text: None })
    }

    #[test]
    fn the_end_of_a_turn_is_found_in_the_template() {
        let Some(format) = plain_chat() else { return };
        let found = end_of_turn(&format.tokenizer, format.template.as_ref().unwrap()).unwrap();
        assert!(found.is_some() && found == format.tokenizer.eos());
    }

    #[test]
    fn without_a_template_there_is_no_conversation_and_an_empty_text_begins_with_its_token() {
        let Some(format) = plain_chat() else { return };
        let format = TextFormat { template: None, ..format };
        let error = format.chat(&[message("user", "hi")]).unwrap_err().to_string();
        assert!(error.contains("no chat template"), "{error}");
        assert_eq!(format.continuation("").unwrap().first().copied(), format.tokenizer.bos());
    }

    #[test]
    fn what_was_trained_is_saved_and_read_again() {
        let Some(format) = plain_chat() else { return };
        let model = Path::new("../shared/models/stories260K");
        let config = ModelConfig::from_dir(model).unwrap();
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        let checkpoint = run.join("checkpoints/step-3");
        std::fs::create_dir_all(&checkpoint).unwrap();
        save(&run, model, format.template.as_ref(), &[7]).unwrap();
        std::fs::write(run.join("run.toml"), "[data-format]\ntemplate-arg = [\"kind=true\"]\n").unwrap();
        for adapter in [&run, &checkpoint] {
            let load = |choice| TextFormat::load(model, &config, &choice, &[], std::slice::from_ref(adapter)).unwrap();
            let own = load(TemplateChoice::Own);
            let ids = |text: &str| own.tokenizer.encode(text, false).unwrap();
            assert_eq!(own.chat(&[message("user", "hi")]).unwrap(), ids("user: hi</s>assistant:"));
            assert!(own.end_tokens.contains(&7) && load(TemplateChoice::Without).end_tokens.contains(&7));
            let named = load(TemplateChoice::Named("zephyr".to_owned()));
            assert_eq!(named.chat(&[message("user", "hi")]).unwrap(), ids("<|user|>\nhi</s>\n<|assistant|>\n"));
        }
        let mut settings = DataSettings::default();
        settings.follow_adapter(&checkpoint);
        assert_eq!(settings.template_arg, ["kind=true"]);
    }
}
