//! `loraine inspect`.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use loraine::data::inspect::{Inspection, ShownExample, ShownToken, inspect};
use loraine::data::settings::DataSettings;
use loraine::data::tokenizer::Tokenizer;
use loraine::hub::fetch::Extent;
use loraine::model::companions;
use loraine::model::config::{CONFIG, ModelConfig};
use loraine::setting::{as_flag, written};
use loraine::train::settings::{ObjectiveChoice, RunSettings};

use unicode_width::UnicodeWidthStr;

use super::args::data::{DataArgs, SPLIT_OF_TRAINING, data_sources};

/// Columns of rows of tokens, on the narrowest terminal that is common.
const WIDTH: usize = 78;
const BAR: usize = 40;
const BUCKETS: usize = 12;
const TRAINED: &str = "\x1b[1;32m";
const MASKED: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// Show a data set as training sees it: tokens, trained tokens, and lengths
#[derive(Args)]
#[command(after_help = "Example:\n  loraine inspect --model Qwen2.5-0.5B-Instruct --data train.jsonl --n 2")]
pub struct InspectArgs {
    /// Model directory, or owner/name on the hub; only its tokenizer and chat template are needed
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Data: .jsonl, .json, .csv, .tsv, .parquet or .txt, also as .gz or .zst, a directory (train.*), or owner/name on the hub; may be
    /// given several times
    #[arg(long, value_name = "FILE|DIR|NAME", required = true)]
    data: Vec<PathBuf>,
    /// Examples to show
    #[arg(long, short, default_value_t = 3, value_name = "COUNT")]
    n: usize,
    /// Longest sequence in tokens [default: 512, or the model's limit]
    #[arg(long, value_name = "TOKENS")]
    max_seq_len: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// What would be learned from the data; kto reads the label of each answer [default: sft]
    #[arg(long, value_enum)]
    objective: Option<ObjectiveChoice>,
    #[command(flatten)]
    data_args: DataArgs,
}

pub fn run(mut args: InspectArgs) -> anyhow::Result<()> {
    args.model = super::args::model::model_directory(&args.model, Extent::Tokenizer)?;
    let (tokenizer, vocab_size, longest) = match companions::is_file(&args.model.join(CONFIG)) {
        true => {
            let config = ModelConfig::from_dir(&args.model)?;
            (Tokenizer::from_dir(&args.model, &config)?, config.vocab_size, config.max_position_embeddings)
        }
        false => {
            let tokenizer = Tokenizer::from_tokenizer_dir(&args.model)?;
            let vocabulary = tokenizer.vocabulary();
            (tokenizer, vocabulary, usize::MAX)
        }
    };
    let max_seq_len = args.max_seq_len.unwrap_or(longest.min(512));
    let objective = args.objective.unwrap_or_default();
    let feedback = RunSettings { objective, ..RunSettings::default() }.objective().feedback();
    let settings = DataSettings { context: Some(longest), feedback, ..args.data_args.settings(max_seq_len) };
    let sources = data_sources(&args.data, SPLIT_OF_TRAINING)?;
    let mut inspection = inspect(&sources, &tokenizer, &settings, vocab_size, args.n)?;
    inspection.refusal = inspection.refusal.map(|refusal| written(&refusal, as_flag));
    if args.json {
        out!("{}", serde_json::to_string(&inspection)?);
    } else {
        out!("{}", page(&inspection, max_seq_len, super::show::colored()).trim_end_matches('\n'));
    }
    match inspection.refusal {
        Some(refusal) => bail!("training would refuse this data: {refusal}"),
        None => Ok(()),
    }
}

fn page(inspection: &Inspection, max_seq_len: usize, colors: bool) -> String {
    let mut page = String::new();
    for example in &inspection.examples {
        page += &example_text(example, colors);
        page.push('\n');
    }
    page += &histogram(&inspection.lengths, max_seq_len);
    if let Some(report) = &inspection.report {
        page += &format!("\n{}\n", written(&report.to_string(), as_flag));
    }
    page
}

/// Tokens that share their text, with their ids.
struct Group {
    text: String,
    ids: String,
    trained: bool,
    width: usize,
}

fn groups(tokens: &[ShownToken]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for token in tokens {
        match groups.last_mut().filter(|_| token.continues) {
            Some(group) => group.ids += &format!(" {}", token.id),
            None => groups.push(Group {
                text: visible(&token.text),
                ids: token.id.to_string(),
                trained: token.trained,
                width: 0,
            }),
        }
    }
    for group in &mut groups {
        group.width = group.text.width().max(group.ids.len());
    }
    groups
}

/// Shows the rendered text, then the tokens in rows above their ids. Trained tokens are green, or underlined with `^`.
fn example_text(example: &ShownExample, colors: bool) -> String {
    let trained = example.tokens.iter().skip(1).filter(|token| token.trained).count();
    let (number, shape, tokens) = (example.number, example.shape.name(), example.tokens.len());
    let slot = example.slot.map_or_else(String::new, |slot| format!(", slot {slot}"));
    let found = example.found.map_or_else(String::new, |found| format!(", {found}"));
    let change = example.change.as_ref().map_or_else(String::new, |change| format!("; {change}"));
    let plural = if tokens == 1 { "" } else { "s" };
    let mut out =
        format!("example {number} ({shape}{found}{slot}): {tokens} token{plural}, {trained} trained on{change}\n\n");
    for line in example.text.lines() {
        out += &format!("  | {}\n", line.replace('\x1b', "\u{241b}"));
    }
    let groups = groups(&example.tokens);
    let mut start = 0;
    while start < groups.len() {
        let mut width = 2;
        let fits = |group: &&Group| {
            width += group.width + 1;
            width <= WIDTH + 1
        };
        let count = groups[start..].iter().take_while(fits).count().max(1);
        out += &token_row(&groups[start..start + count], colors);
        start += count;
    }
    out
}

fn token_row(row: &[Group], colors: bool) -> String {
    let [mut pieces, mut ids, mut marks] = ["  "; 3].map(str::to_owned);
    for Group { text, ids: of_group, trained, width } in row {
        let (on, off) = match (colors, trained) {
            (false, _) => ("", ""),
            (true, true) => (TRAINED, RESET),
            (true, false) => (MASKED, RESET),
        };
        pieces += &format!("{on}{text}{off}{} ", " ".repeat(width - text.width()));
        ids += &format!("{of_group:<width$} ");
        let mark = if *trained { "^" } else { " " };
        marks += &format!("{} ", mark.repeat(*width));
    }
    let mut out = format!("\n{}\n", pieces.trim_end());
    if !colors && row.iter().any(|group| group.trained) {
        out += &format!("{}\n", marks.trim_end());
    }
    out + &format!("{}\n", ids.trim_end())
}

/// Returns a token's text with visible white space and control characters.
fn visible(text: &str) -> String {
    let shown = |character| match character {
        ' ' => '\u{b7}',
        '\n' => '\u{21b5}',
        '\t' => '\u{2192}',
        '\r' => '\u{240d}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}

/// Draws a histogram of the lengths in buckets of equal width, and marks those beyond the longest sequence.
fn histogram(lengths: &[usize], max_seq_len: usize) -> String {
    let Some(longest) = lengths.iter().max() else { return String::new() };
    let width = (longest / BUCKETS + 1).next_multiple_of(if *longest >= 10 * BUCKETS { 10 } else { 1 });
    let mut counts = vec![0; longest / width + 1];
    lengths.iter().for_each(|length| counts[length / width] += 1);
    let most = counts.iter().max().copied().unwrap_or(1).max(1);
    let plural = if lengths.len() == 1 { "" } else { "s" };
    let mut out = format!("tokens of {} example{plural}\n", lengths.len());
    for (bucket, count) in counts.into_iter().enumerate().skip_while(|(_, count)| *count == 0) {
        let (first, last) = (bucket * width, (bucket + 1) * width - 1);
        let bar = "\u{2588}".repeat((count * BAR).div_ceil(most));
        let beyond = if last > max_seq_len { "  reaches beyond --max-seq-len" } else { "" };
        out += &format!("  {:>13}  {count:>7}  {bar}{beyond}\n", format!("{first}..{last}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use loraine::data::settings::Shape;

    fn example() -> ShownExample {
        let token = |id, text: &str, trained| ShownToken { id, text: text.into(), trained, continues: false };
        let tokens = vec![token(7, "<user>", false), token(1234, " a\n", true), token(9, "\u{1b}[0m", true)];
        let (text, change, slot) = ("<user> a\n".into(), None, None);
        ShownExample { number: 3, shape: Shape::Chat, text, tokens, change, slot, found: None }
    }

    #[test]
    fn ids_stand_under_their_tokens_in_80_columns_for_wide_characters_and_groups() {
        let token = |id, text: &str, continues| ShownToken { id, text: text.into(), trained: false, continues };
        let few = vec![
            token(108_386, "\u{4f60}\u{597d}", false),
            token(7, "\u{1f600}", false),
            token(81, "", true),
            token(5, "a", false),
        ];
        let example = |tokens| ShownExample { tokens, text: String::new(), ..example() };
        let shown = example_text(&example(few), false);
        assert!(shown.ends_with("  \u{4f60}\u{597d}   \u{1f600}   a\n  108386 7 81 5\n"), "{shown}");
        let many = example_text(&example((0..200).map(|id| token(id * 997, "\u{597d}", false)).collect()), false);
        assert!(many.lines().all(|line| line.width() <= 80), "{many}");
    }

    #[test]
    fn trained_tokens_are_marked_with_and_without_colors() {
        let plain = example_text(&example(), false);
        assert!(plain.starts_with("example 3 (chat): 3 tokens, 2 trained on\n\n  | <user> a\n"), "{plain}");
        assert!(
            plain.contains("  <user> \u{b7}a\u{21b5}  \u{fffd}[0m\n         ^^^^ ^^^^\n  7      1234 9\n"),
            "{plain}"
        );
        assert!(!plain.contains('\x1b'));
        let colored = example_text(&example(), true);
        assert!(colored.contains(&format!("{MASKED}<user>{RESET} {TRAINED}\u{b7}a\u{21b5}{RESET}")), "{colored}");
    }

    #[test]
    fn the_histogram_counts_every_example_once() {
        let bars = histogram(&[1, 1, 2, 25], 20);
        let counts: usize =
            bars.lines().skip(1).map(|l| l.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()).sum();
        assert_eq!(counts, 4, "{bars}");
        assert_eq!(bars.matches("beyond").count(), 2, "{bars}");
        assert_eq!(histogram(&[], 20), "");
    }
}
