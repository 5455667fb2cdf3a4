//! The teacher of a run or of an evaluation, and the data that it has log-probabilities for.

use std::path::Path;

use crate::Result;
use crate::data::Example;
use crate::data::read::DataReport;
use crate::data::settings::DataSettings;
use crate::data::teacher::{TeacherFacts, TeacherFile};
use crate::data::tokenizer::Tokenizer;

/// Opens the file of a teacher for a student with this tokenizer and number of ids.
///
/// # Errors
/// As [`TeacherFile::open`].
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn open(
    path: Option<&Path>,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
) -> Result<Option<TeacherFile>> {
    let vocabulary = || crate::data::teacher::vocabulary_fingerprint(tokenizer, vocab_size);
    path.map(|path| TeacherFile::open(path, &vocabulary(), vocab_size)).transpose()
}

/// Browsers do not distill, so that a visitor need not download it.
///
/// # Errors
/// A teacher.
#[cfg(target_arch = "wasm32")]
pub(super) fn open(path: Option<&Path>, _: Option<&Tokenizer>, _: usize) -> Result<Option<TeacherFile>> {
    use crate::setting::OBJECTIVE;
    let problem = format!("{} is for the terminal program", OBJECTIVE.is("distill"));
    path.map_or(Ok(None), |_| Err(crate::Error::setting(OBJECTIVE, problem)))
}

/// Takes over the date that the chat template wrote for the teacher, unless the settings name one.
pub(super) fn follow_date(format: &mut DataSettings, facts: &TeacherFacts) {
    if format.template_date.is_none() && !facts.template_date.is_empty() {
        format.template_date = Some(facts.template_date.clone());
    }
}

/// Checks that a teacher has log-probabilities for all examples.
///
/// # Errors
/// As [`TeacherFile::check_examples`].
pub(super) fn check(teacher: Option<&TeacherFile>, examples: &[Example], report: &DataReport) -> Result<()> {
    match teacher {
        Some(teacher) => teacher.check_examples(examples, &report.source, &report.template_fingerprint),
        None => Ok(()),
    }
}
