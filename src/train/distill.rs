//! Writes the log-probabilities of a teacher for the trained tokens of a data set.

use std::path::{Path, PathBuf};

use super::evaluate::{EvalSettings, PreparedEval, prepare_with};
use super::event::{Event, Phase};
use crate::data::batches::MicroBatch;
use crate::data::logprobs::{self, Answers};
use crate::data::read::{self, DataReport, Dataset};
use crate::data::settings::{DataSettings, DataSources};
use crate::data::splits::{Split, nothing_to_train};
use crate::data::teacher::{FORMAT, TeacherFacts, VERSION, vocabulary_fingerprint};
use crate::data::teacher_writer::TeacherWriter;
use crate::data::template;
use crate::data::tokenizer::Tokenizer;
use crate::gpu::Gpu;
use crate::hub::base_name;
use crate::model::companions;
use crate::model::config::{CONFIG, ModelConfig};
use crate::ops::distillation::MAX_TOP_K;
use crate::setting::{OUT, OVERWRITE, TOP_K};
use crate::{Error, Result, files};

/// The settings of a teacher's pass.
#[derive(Clone, Debug)]
pub struct DistillSettings {
    /// The teacher with its data. Directories give their training and validation splits.
    pub teacher: EvalSettings,
    /// The file to write.
    pub out: PathBuf,
    /// True to replace a file that is there.
    pub overwrite: bool,
    /// Number of the likeliest tokens to keep for each trained token.
    pub top_k: usize,
}

/// A teacher's pass whose files were read and checked, before a device is opened.
pub struct PreparedDistill {
    /// The teacher and its data.
    pub teacher: PreparedEval,
    out: PathBuf,
    top_k: usize,
    facts: TeacherFacts,
}

/// The settings of a file from the log-probabilities of a server.
#[derive(Clone, Debug)]
pub struct AnswerSettings {
    /// Directory of the student, or of any model with its vocabulary and chat template.
    pub model: PathBuf,
    /// Files of records with log-probabilities.
    pub data: DataSources,
    /// The way in which records become examples.
    pub data_format: DataSettings,
    /// The file to write.
    pub out: PathBuf,
    /// True to replace a file that is there.
    pub overwrite: bool,
    /// Number of the likeliest tokens to keep for each trained token.
    pub top_k: usize,
}

/// Writes a file from answers whose records hold a server's log-probabilities.
///
/// # Errors
/// The first record that cannot be read or aligned, or a place that cannot be written.
pub fn from_answers(settings: &AnswerSettings) -> Result<Written> {
    let AnswerSettings { model, data, out, top_k, .. } = settings;
    check_out(out, settings.overwrite)?;
    check_top_k(*top_k)?;
    let (tokenizer, vocab_size) = match companions::is_file(&model.join(CONFIG)) {
        true => {
            let config = ModelConfig::from_dir(model)?;
            (Tokenizer::from_dir(model, &config)?, config.vocab_size)
        }
        false => {
            let tokenizer = Tokenizer::from_tokenizer_dir(model)?;
            let vocabulary = tokenizer.vocabulary();
            (tokenizer, vocabulary)
        }
    };
    let mut format = settings.data_format.clone();
    format.template_date.get_or_insert_with(template::now);
    let Answers { examples, mut rows, report } = logprobs::read(data, &tokenizer, &format, vocab_size)?;
    rows.iter_mut().for_each(|row| row.truncate(*top_k));
    let top_k = rows.iter().map(Vec::len).max().unwrap_or(1);
    let vocabulary = vocabulary_fingerprint(Some(&tokenizer), vocab_size);
    let facts =
        TeacherFacts { teacher: format!("the answers in {data}"), ..facts_of(&report, &vocabulary, data.to_string()) };
    let mut writer = TeacherWriter::create(out, &facts, &examples, top_k)?;
    rows.chunks(1 << 12).try_for_each(|rows| writer.add(rows))?;
    writer.finish()?;
    Written::of(out, examples.len(), rows.len(), top_k)
}

/// The written file, in numbers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// The file.
    pub out: PathBuf,
    /// Number of examples.
    pub examples: usize,
    /// Number of trained tokens, each with a row of log-probabilities.
    pub tokens: usize,
    /// Tokens of a row.
    pub top_k: usize,
    /// Size of the file in bytes.
    pub bytes: u64,
}

impl Written {
    fn of(out: &Path, examples: usize, tokens: usize, top_k: usize) -> Result<Self> {
        let bytes = files::len(out).map_err(|e| Error::file(out, format!("cannot be read: {e}")))?;
        Ok(Self { out: out.to_owned(), examples, tokens, top_k, bytes })
    }
}

fn check_top_k(top_k: usize) -> Result<()> {
    match (1..=MAX_TOP_K as usize).contains(&top_k) {
        true => Ok(()),
        false => Err(Error::setting(TOP_K, format!("{TOP_K} is {top_k}; it must be from 1 to {MAX_TOP_K}"))),
    }
}

/// Refuses a place that holds a file already, unless `overwrite`, or that has no directory.
///
/// # Errors
/// The reason, with what would be right.
pub fn check_out(out: &Path, overwrite: bool) -> Result<()> {
    if files::is_dir(out) {
        return Err(Error::file(out, format!("is a directory; {OUT} is a file, such as teacher.safetensors")));
    }
    if files::exists(out) && !overwrite {
        return Err(Error::file(
            out,
            format!("is there already; replace it with {OVERWRITE}, or choose another {OUT}"),
        ));
    }
    match out.parent().filter(|dir| !dir.as_os_str().is_empty() && !files::is_dir(dir)) {
        Some(dir) => Err(Error::file(dir, "is no directory that is there")),
        None => Ok(()),
    }
}

/// Reads the model, the adapter and the data, and refuses those that cannot work.
///
/// # Errors
/// The first thing that is wrong, by file and field.
pub fn prepare(mut settings: DistillSettings) -> Result<PreparedDistill> {
    check_out(&settings.out, settings.overwrite)?;
    check_top_k(settings.top_k)?;
    // Held, so that the student's run writes the same date.
    settings.teacher.data_format.template_date.get_or_insert_with(template::now);
    let (model, adapter) = (settings.teacher.model.clone(), settings.teacher.adapter.clone());
    let data = settings.teacher.data.to_string();
    let teacher = prepare_with(settings.teacher, |settings, tokenizer, format, vocab_size| {
        let read = |split| read::read_sources(&settings.data, split, tokenizer, format, vocab_size);
        let missing = || nothing_to_train(settings.data.first().map_or(Path::new(""), PathBuf::as_path));
        let Dataset { mut examples, report } = read(Split::Train)?.ok_or_else(missing)?;
        examples.extend(read(Split::Valid)?.into_iter().flat_map(|set| set.examples));
        Ok(Dataset { examples, report })
    })?;
    let adapter = adapter.map_or_else(String::new, |dir| format!(" with {}", base_name(&dir)));
    let facts = TeacherFacts {
        teacher: base_name(&model) + &adapter,
        max_seq_len: teacher.max_seq_len.to_string(),
        ..facts_of(&teacher.report, &teacher.vocabulary, data)
    };
    let top_k = settings.top_k.min(teacher.tokens);
    Ok(PreparedDistill { teacher, out: settings.out, top_k, facts })
}

/// The description of the data that a file is for.
fn facts_of(report: &DataReport, vocabulary: &str, data: String) -> TeacherFacts {
    TeacherFacts {
        format: FORMAT.to_owned(),
        version: VERSION.to_owned(),
        vocabulary: vocabulary.to_owned(),
        chat_template: report.template_fingerprint.clone(),
        template_date: report.template_date.clone().unwrap_or_default(),
        data,
        ..TeacherFacts::default()
    }
}

impl PreparedDistill {
    /// Loads the teacher and writes the file.
    ///
    /// # Errors
    /// Out of memory, a failing device, logits that are not finite, or a disk that is full. Nothing is left of the file then.
    pub async fn run(self, gpu: Gpu, mut listen: impl FnMut(Event<'_>)) -> Result<Written> {
        let Self { teacher, out, top_k, facts } = self;
        let examples = &teacher.examples;
        let mut engine = teacher.open(gpu, &mut listen).await?;
        let mut writer = TeacherWriter::create(&out, &facts, examples, top_k)?;
        let chunks = examples.chunks(teacher.batch_size());
        let total = chunks.len();
        let mut tokens = 0;
        for (done, chunk) in chunks.enumerate() {
            listen(Event::Phase(Phase::Evaluating { done, total }));
            let batch = MicroBatch::from_examples(chunk);
            tokens += batch.labels.len();
            let take = |values: &[f32], ld: usize| writer.add(&likeliest_of_rows(values, ld, teacher.tokens, top_k)?);
            engine.label_logits(&batch, take).await?;
        }
        writer.finish()?;
        Written::of(&out, examples.len(), tokens, top_k)
    }
}

/// The likeliest tokens of each row of logits, on all cores.
fn likeliest_of_rows(values: &[f32], ld: usize, tokens: usize, top_k: usize) -> Result<Vec<Vec<(u32, f32)>>> {
    let rows: Vec<&[f32]> = values.chunks(ld).collect();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = rows.len().div_ceil(threads).max(1);
    let found: Vec<Option<Vec<(u32, f32)>>> = std::thread::scope(|scope| {
        let work = |rows: &[&[f32]]| rows.iter().map(|row| likeliest(row, tokens, top_k)).collect::<Vec<_>>();
        let working: Vec<_> = rows.chunks(share).map(|rows| scope.spawn(move || work(rows))).collect();
        working.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let found: Option<Vec<_>> = found.into_iter().collect();
    let problem = "the teacher's logits are not finite; look for damaged weights, or take another type of its weights";
    found.filter(|found| found.len() == rows.len()).ok_or_else(|| Error::Training(problem.to_owned()))
}

/// The `top_k` likeliest of the first `tokens` tokens with their log-probabilities, the likeliest first and equal ones by their ids. None
/// where a logit is not finite.
fn likeliest(logits: &[f32], tokens: usize, top_k: usize) -> Option<Vec<(u32, f32)>> {
    let logits = logits.get(..tokens)?;
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|z| f64::from((z - highest).exp())).sum();
    if !sum.is_finite() || !highest.is_finite() {
        return None;
    }
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(4 * top_k);
    let mut floor = f32::NEG_INFINITY;
    for (id, z) in (0..).zip(logits) {
        if *z > floor || best.len() < top_k {
            best.push((id, *z));
        }
        if best.len() == 4 * top_k {
            best.select_nth_unstable_by(top_k - 1, order);
            best.truncate(top_k);
            floor = best[top_k - 1].1;
        }
    }
    best.sort_unstable_by(order);
    best.truncate(top_k);
    let log_sum = f64::from(highest) + sum.ln();
    Some(best.into_iter().map(|(id, z)| (id, (f64::from(z) - log_sum) as f32)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, uniform};

    #[test]
    fn the_likeliest_are_those_of_a_whole_sort() {
        for (case, tokens) in [1, 5, 63, 1000].into_iter().enumerate() {
            // Few different values, so that many are equal.
            let logits: Vec<f32> =
                (0..tokens as u64 + 3).map(|i| (uniform(7, Stream::Split, case as u64, i) * 50.0).floor()).collect();
            let sum: f64 = logits[..tokens].iter().map(|z| f64::from(*z).exp()).sum();
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits[..tokens].iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            for top_k in [1, 3, tokens.min(64)] {
                let found = likeliest(&logits, tokens, top_k.min(tokens)).unwrap();
                assert_eq!(found.len(), top_k.min(tokens));
                for ((id, logprob), (want, z)) in found.iter().zip(&sorted) {
                    assert_eq!(id, want, "{tokens} {top_k}");
                    assert!((f64::from(*logprob) - (f64::from(*z) - sum.ln())).abs() < 1e-5);
                }
            }
        }
        assert_eq!(likeliest(&[0.0, f32::NAN], 2, 1), None);
        assert_eq!(likeliest(&[0.0, f32::INFINITY], 2, 1), None);
    }
}
