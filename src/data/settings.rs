//! How data is read: plain settings that the command line, a TOML file and a page fill in.

use serde::{Deserialize, Serialize};

/// The fields that make an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// `messages` of role and content, perhaps with `tools`.
    Chat,
    /// `conversations` of from and value.
    Sharegpt,
    /// `prompt` and `completion`: two strings, or two lists of messages.
    Completion,
    /// `instruction`, perhaps `input`, and `output`.
    Alpaca,
    /// `text`.
    Text,
    /// `input_ids`, perhaps with `labels`.
    Tokens,
}

impl Shape {
    /// As settings and reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Sharegpt => "sharegpt",
            Self::Completion => "completion",
            Self::Alpaca => "alpaca",
            Self::Text => "text",
            Self::Tokens => "tokens",
        }
    }
}

/// Which tokens the loss is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// The completion alone; of a conversation its last assistant turn.
    Completion,
    /// Every assistant turn.
    Assistant,
    /// Every token.
    All,
}

/// What happens to an example longer than the longest sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum OnLong {
    /// Nothing is trained; the error says how many and which.
    #[default]
    Refuse,
    /// Its end is cut off.
    Truncate,
    /// It is left out.
    Drop,
    /// It becomes several examples, the later ones without what stood before them.
    Split,
}

/// How a data file becomes examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct DataSettings {
    /// The shape of every example; without it the fields of each decide.
    pub shape: Option<Shape>,
    /// Names of fields that differ from the usual ones. Naming one also says what shape the examples have.
    pub text_field: Option<String>,
    pub prompt_field: Option<String>,
    pub completion_field: Option<String>,
    pub messages_field: Option<String>,
    /// A template file, or the name of one of the model's or of the built-in ones; without it the model's own.
    pub chat_template: Option<String>,
    /// Without it the assistant turns of conversations, completions, whole texts, and what `labels` say.
    pub train_on: Option<TrainOn>,
    pub on_long: OnLong,
    /// In tokens; of a run, its own setting.
    #[serde(skip)]
    pub max_seq_len: usize,
    /// Whether several short examples share one slot of a batch.
    pub packing: bool,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            shape: None,
            text_field: None,
            prompt_field: None,
            completion_field: None,
            messages_field: None,
            chat_template: None,
            train_on: None,
            on_long: OnLong::Refuse,
            max_seq_len: 512,
            packing: false,
        }
    }
}
