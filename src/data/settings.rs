//! Settings for reading data, filled in by the command line, a TOML file or the page.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::template::OWN_FILE;
use crate::files;

/// Shape of a record: the fields that make an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// `messages` of role and content, perhaps with `system` and `tools`.
    Chat,
    /// `conversations` of from and value.
    Sharegpt,
    /// `prompt` and `completion`: two strings, or two lists of messages.
    Completion,
    /// `instruction`, perhaps `input`, `system` and `history`, and `output`; also question and answer, and similar pairs.
    #[cfg_attr(feature = "cli", value(alias = "instruction"))]
    Alpaca,
    /// `text`.
    Text,
    /// `input_ids`, perhaps with `labels`.
    Tokens,
    /// `chosen` and `rejected`, perhaps with `prompt`: strings, or lists of messages. Without a prompt it is what both begin with.
    Preference,
    /// `prompt`, `completion`, and `label`: true where the completion is good.
    UnpairedPreference,
}

impl Shape {
    /// Name in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Sharegpt => "sharegpt",
            Self::Completion => "completion",
            Self::Alpaca => "alpaca",
            Self::Text => "text",
            Self::Tokens => "tokens",
            Self::Preference => "preference",
            Self::UnpairedPreference => "unpaired-preference",
        }
    }
}

/// The feedback that an objective learns from, where the fields of a record make more than one example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Feedback {
    /// None: records are answers to learn.
    #[default]
    None,
    /// Pairs of a chosen and a rejected answer.
    Pairs,
    /// Answers that are labeled good or bad.
    Rated,
}

/// Tokens in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// The completion alone; in a conversation the last assistant turn.
    Completion,
    /// Every assistant turn.
    Assistant,
    /// Every token.
    All,
}

/// Treatment of examples longer than `max_seq_len`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum OnLong {
    /// Leave the long examples out where they are fewer than 1 % of all, and stop with an error otherwise.
    #[default]
    Auto,
    /// Stop with an error that lists the long examples.
    Refuse,
    /// Cut off the end.
    Truncate,
    /// Leave the example out.
    Drop,
    /// Split into several examples; the later ones do not see the earlier ones.
    Split,
}

/// Treatment of records that cannot be trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum OnBad {
    /// Stop with an error that lists them.
    #[default]
    Refuse,
    /// Leave them out and count them.
    Drop,
}

/// Data files, directories of data, or splits of them (`DIR:SPLIT`), which are read together. In settings files it is a path, or a list
/// of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMore", into = "OneOrMore")]
pub struct DataSources(Vec<PathBuf>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

impl From<OneOrMore> for DataSources {
    fn from(paths: OneOrMore) -> Self {
        match paths {
            OneOrMore::One(path) => path.into(),
            OneOrMore::More(paths) => paths.into(),
        }
    }
}

impl From<DataSources> for OneOrMore {
    fn from(mut sources: DataSources) -> Self {
        match sources.0.len() {
            0 => Self::One(PathBuf::new()),
            1 => Self::One(sources.0.remove(0)),
            _ => Self::More(sources.0),
        }
    }
}

impl From<PathBuf> for DataSources {
    fn from(path: PathBuf) -> Self {
        Self(if path.as_os_str().is_empty() { Vec::new() } else { vec![path] })
    }
}

impl From<&str> for DataSources {
    fn from(path: &str) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<String> for DataSources {
    fn from(path: String) -> Self {
        PathBuf::from(path).into()
    }
}

impl From<Vec<PathBuf>> for DataSources {
    fn from(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }
}

impl Deref for DataSources {
    type Target = [PathBuf];

    fn deref(&self) -> &[PathBuf] {
        &self.0
    }
}

impl DerefMut for DataSources {
    fn deref_mut(&mut self) -> &mut [PathBuf] {
        &mut self.0
    }
}

impl fmt::Display for DataSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(", "))
    }
}

/// Settings that turn a data file into examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct DataSettings {
    /// Shape of every record; by default the fields of each record decide.
    pub shape: Option<Shape>,
    /// Field of the text; by default one of the usual names, such as `text`. A name given here makes the records
    /// texts.
    pub text_field: Option<String>,
    /// Field of the prompt; by default one of the usual names, such as `prompt`. A name given here makes the records
    /// completions.
    pub prompt_field: Option<String>,
    /// Field of the completion; by default one of the usual names, such as `completion`. A name given here makes the
    /// records completions.
    pub completion_field: Option<String>,
    /// Field of the messages; by default one of the usual names, such as `messages`. A name given here makes the
    /// records chats.
    pub messages_field: Option<String>,
    /// Template file, or the name of one of the model's or built-in templates; by default the model's own template.
    pub chat_template: Option<String>,
    /// Values of the template's variables, each as `name=value`: `enable_thinking=false`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub template_arg: Vec<String>,
    /// Date and time that the template writes as those of now, such as `2026-03-04T05:06:07`; by default those of the start of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub template_date: Option<String>,
    /// Tokens in the loss; by default assistant turns, completions, whole texts, and the tokens that `labels` select.
    pub train_on: Option<TrainOn>,
    /// Treatment of examples longer than `max_seq_len`.
    pub on_long: OnLong,
    /// Treatment of records that cannot be read or trained on.
    pub on_bad: OnBad,
    /// Longest sequence in tokens; a run replaces it by its own setting.
    #[serde(skip)]
    pub max_seq_len: usize,
    /// True to let several short examples share one slot of a batch.
    pub packing: bool,
    /// The feedback that the objective learns from.
    #[serde(skip)]
    pub feedback: Feedback,
    /// Longest sequence in tokens that the model can take, so that advice stays within it; None where it is not known.
    #[serde(skip)]
    pub context: Option<usize>,
}

impl DataSettings {
    /// The limit to advise for sequences of up to `longest` tokens; None where the model cannot take longer ones than now.
    pub(super) fn raised_limit(&self, longest: usize) -> Option<usize> {
        let limit = self.context.map_or(longest, |context| longest.min(context));
        (limit > self.max_seq_len).then_some(limit)
    }
}

/// The file in which a run records its settings.
pub const RUN_FILE: &str = "run.toml";

impl DataSettings {
    /// The settings that the run in `dir` recorded; `None` where there is no such record.
    pub fn recorded(dir: &Path) -> Option<Self> {
        let path = dir.join(RUN_FILE);
        let run: toml::Table = files::read_to_string(&path).ok()?.parse().ok()?;
        run.get("data-format")?.clone().try_into().ok()
    }

    /// Takes the chat template and its variables over from an adapter, where these settings name none.
    pub fn follow_adapter(&mut self, adapter: &Path) {
        let home = home_of_adapter(adapter);
        if self.chat_template.is_none() && files::is_file(&home.join(OWN_FILE)) {
            self.chat_template = Some(home.display().to_string());
        }
        if self.template_arg.is_empty()
            && let Some(recorded) = Self::recorded(&home)
        {
            self.template_arg = recorded.template_arg;
        }
    }
}

/// The directory with the chat template of an adapter: its own, or that of the run which a checkpoint belongs to.
pub fn home_of_adapter(dir: &Path) -> PathBuf {
    let whole = files::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let run = whole.parent().filter(|parent| parent.ends_with("checkpoints")).and_then(Path::parent);
    match run {
        Some(run) if !files::is_file(&dir.join(OWN_FILE)) => run.to_owned(),
        _ => dir.to_owned(),
    }
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
            template_arg: Vec::new(),
            template_date: None,
            train_on: None,
            on_long: OnLong::default(),
            on_bad: OnBad::default(),
            max_seq_len: 512,
            packing: false,
            feedback: Feedback::None,
            context: None,
        }
    }
}
