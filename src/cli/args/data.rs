//! Flags for reading data, shared by every subcommand that reads data.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use loraine::data::settings::{DataSettings, OnBad, OnLong, Shape, TrainOn};
use loraine::data::splits::{Split, Wanted, choose, is_data_file, named_split};
use loraine::hub::dataset::HubDataset;
use loraine::hub::fetch_dataset::fetch_dataset;
use loraine::hub::settings::HubSettings;

/// Splits that a command reads of a data set.
pub const SPLITS_OF_RUN: &[Split] = &[Split::Train, Split::Valid];
pub const SPLIT_OF_TRAINING: &[Split] = &[Split::Train];
pub const SPLITS_OF_EVALUATION: &[Split] = &[Split::Test, Split::Valid];

/// Returns the sources of `--data` as paths. Data sets of the hub are downloaded into the cache first, as far as `splits` go.
pub fn data_sources(given: &[PathBuf], splits: &[Split]) -> anyhow::Result<Vec<PathBuf>> {
    given.iter().map(|source| local(source, splits)).collect()
}

fn local(source: &Path, splits: &[Split]) -> anyhow::Result<PathBuf> {
    let Some(set) = hub_name(source) else { return Ok(source.to_owned()) };
    let choose = |names: &[String]| chosen(names, &set, splits);
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})")?
            .progress_chars("=> "),
    );
    let dir = fetch_dataset(&set, &HubSettings::from_env(), choose, |file, done, total| {
        bar.set_message(file.to_owned());
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let dir = dir?;
    Ok(match &set.split {
        Some(split) => format!("{}:{split}", dir.display()).into(),
        None => dir,
    })
}

/// The data set on the hub, if the argument names one and no path. A name whose first part is an existing directory is a path, even if
/// the path does not exist, and so is the name of a data file.
fn hub_name(source: &Path) -> Option<HubDataset> {
    let (path, _) = named_split(source);
    let first = path.components().next().map(|first| PathBuf::from(first.as_os_str()));
    let is_path = path.exists() || is_data_file(&path) || first.is_some_and(|first| first.is_dir());
    source.to_str().and_then(HubDataset::parse).filter(|_| !is_path)
}

/// Chooses the files of the wanted splits, of which one has to be there.
fn chosen(names: &[String], set: &HubDataset, splits: &[Split]) -> Result<Vec<String>, String> {
    let wanted: Vec<Wanted> = match &set.split {
        Some(split) => vec![Wanted::Named(split)],
        None => splits.iter().map(|split| Wanted::Split(*split)).collect(),
    };
    let mut files = Vec::new();
    for wanted in wanted {
        files.extend(choose(names, wanted)?.unwrap_or_default().files);
    }
    match files.is_empty() {
        false => Ok(files),
        true => {
            Err("holds no such data as Parquet, JSON or CSV files; data sets that a script makes are not read".into())
        }
    }
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Format of the records [default: detected from their fields]
    #[arg(long, value_enum)]
    pub shape: Option<Shape>,
    /// Name of the field with the text
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Name of the field with the prompt; with --shape alpaca of the instruction
    #[arg(long, value_name = "NAME")]
    pub prompt_field: Option<String>,
    /// Name of the field with the completion; with --shape alpaca of the output
    #[arg(long, value_name = "NAME")]
    pub completion_field: Option<String>,
    /// Name of the field with the list of messages
    #[arg(long, value_name = "NAME")]
    pub messages_field: Option<String>,
    /// Chat template: a .jinja or .json file, or a name such as chatml [default: the model's own]
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Value of a variable of the chat template, such as enable_thinking=false; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub template_arg: Vec<String>,
    /// Date and time that the chat template writes as those of now [default: of the start of the run]
    #[arg(long, value_name = "YYYY-MM-DDTHH:MM:SS")]
    pub template_date: Option<String>,
    /// Tokens to train on [default: assistant turns, completions, whole texts]
    #[arg(long, value_enum)]
    pub train_on: Option<TrainOn>,
    /// Examples longer than --max-seq-len: drop under 1 % of them and refuse more, refuse, truncate, drop or split them
    /// [default: auto]
    #[arg(long, value_enum)]
    pub on_long: Option<OnLong>,
    /// Treatment of records that cannot be trained on [default: refuse]
    #[arg(long, value_enum)]
    pub on_bad: Option<OnBad>,
    /// Pack short examples into shared slots of the batch
    #[arg(long)]
    pub packing: bool,
}

impl DataArgs {
    pub fn settings(&self, max_seq_len: usize) -> DataSettings {
        let mut settings = DataSettings { max_seq_len, ..DataSettings::default() };
        self.apply(&mut settings);
        settings
    }

    /// Applies the given flags to `settings`.
    pub fn apply(&self, settings: &mut DataSettings) {
        fn set<T: Clone>(field: &mut Option<T>, flag: &Option<T>) {
            if flag.is_some() {
                field.clone_from(flag);
            }
        }
        set(&mut settings.shape, &self.shape);
        set(&mut settings.text_field, &self.text_field);
        set(&mut settings.prompt_field, &self.prompt_field);
        set(&mut settings.completion_field, &self.completion_field);
        set(&mut settings.messages_field, &self.messages_field);
        set(&mut settings.chat_template, &self.chat_template);
        if !self.template_arg.is_empty() {
            settings.template_arg.clone_from(&self.template_arg);
        }
        set(&mut settings.template_date, &self.template_date);
        set(&mut settings.train_on, &self.train_on);
        settings.on_long = self.on_long.unwrap_or(settings.on_long);
        settings.on_bad = self.on_bad.unwrap_or(settings.on_bad);
        settings.packing |= self.packing;
    }
}
