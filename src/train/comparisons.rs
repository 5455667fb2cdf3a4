//! Examples of preferences as an objective needs them.

use super::settings::ObjectiveChoice;
use crate::data::read::DataReport;
use crate::data::settings::{Feedback, Shape};
use crate::data::{Comparison, Example};
use crate::setting::OBJECTIVE;
use crate::{Error, Result};

/// The examples with the feedback that the objective learns from. KTO takes a pair as a good and a bad answer.
///
/// # Errors
/// Data without such feedback, or feedback that the objective does not use.
pub(super) fn fitting(examples: Vec<Example>, report: &DataReport, objective: ObjectiveChoice) -> Result<Vec<Example>> {
    let has = |example: &Example| match example.comparison {
        Comparison::None => Feedback::None,
        Comparison::Rejected(_) => Feedback::Pairs,
        Comparison::Rated { .. } => Feedback::Rated,
    };
    let wants = match objective {
        ObjectiveChoice::Sft | ObjectiveChoice::Distill => Feedback::None,
        ObjectiveChoice::Kto => Feedback::Rated,
        _ => Feedback::Pairs,
    };
    let misfit = |example: &&Example| match (has(example), wants) {
        (Feedback::Pairs, Feedback::Rated) => false,
        (has, wants) => has != wants,
    };
    if let Some(example) = examples.iter().find(misfit) {
        let own = OBJECTIVE.is(objective.name());
        let pairs = format!("{} (prompt, chosen and rejected)", Shape::Preference.name());
        let rated = format!("{} (prompt, completion and label)", Shape::UnpairedPreference.name());
        let holds = match has(example) {
            Feedback::None => {
                let named = report.shapes.keys().find(|shape| !matches!(shape, Shape::Preference));
                format!("records of the format {}", named.map_or("text", |shape| shape.name()))
            }
            Feedback::Pairs => format!("records of the format {pairs}"),
            Feedback::Rated => format!("records of the format {rated}"),
        };
        let advice = match (has(example), wants) {
            (Feedback::None, Feedback::Rated) => format!("which learns from {rated} or {pairs}"),
            (Feedback::None | Feedback::Rated, Feedback::Pairs) => format!("which learns from {pairs}"),
            (Feedback::Rated, _) => format!("which learns from single answers; choose {}", OBJECTIVE.is("kto")),
            _ => format!("which learns from single answers; choose {}", OBJECTIVE.is("dpo")),
        };
        return Err(Error::file(&report.source, format!("holds {holds}, but the objective is {own}, {advice}")));
    }
    if wants != Feedback::Rated {
        return Ok(examples);
    }
    let mut rated = Vec::with_capacity(examples.len());
    for mut example in examples {
        let rating = |desirable| Comparison::Rated { desirable, mismatched: None };
        match std::mem::take(&mut example.comparison) {
            Comparison::Rejected(mut rejected) => {
                example.comparison = rating(true);
                rejected.comparison = rating(false);
                rated.extend([example, *rejected]);
            }
            comparison => rated.push(Example { comparison, ..example }),
        }
    }
    Ok(rated)
}

/// Gives each labeled example the answer of the example before it in groups of `batch_size`, after its own prompt, as TRL does. The
/// last one precedes the first.
pub(super) fn mismatch(
    mut examples: Vec<Example>,
    feedback: Feedback,
    batch_size: usize,
    max_seq_len: usize,
) -> Vec<Example> {
    if feedback != Feedback::Rated {
        return examples;
    }
    let prompt = |example: &Example| example.trained.iter().take_while(|trained| !**trained).count();
    for group in examples.chunks_mut(batch_size) {
        let answers: Vec<Example> = group.to_vec();
        for (at, example) in group.iter_mut().enumerate() {
            let other = &answers[(at + answers.len() - 1) % answers.len()];
            let (own, start) = (prompt(example), prompt(other));
            let join = |a: &[u32], b: &[u32]| a.iter().chain(b).take(max_seq_len).copied().collect();
            let input_ids = join(&example.input_ids[..own], &other.input_ids[start..]);
            let trained = example.trained[..own].iter().chain(&other.trained[start..]).take(max_seq_len);
            let mixed = Example::new(input_ids, trained.copied().collect());
            if let Comparison::Rated { mismatched, .. } = &mut example.comparison {
                *mismatched = Some(Box::new(mixed));
            }
        }
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: &[u32], prompt: usize) -> Example {
        Example::new(ids.to_vec(), (0..ids.len()).map(|at| at >= prompt).collect())
    }

    fn pair(chosen: Example, rejected: Example) -> Example {
        Example { comparison: Comparison::Rejected(Box::new(rejected)), ..chosen }
    }

    #[test]
    fn kto_takes_pairs_apart_and_mixes_their_answers() {
        let pairs = vec![
            pair(example(&[1, 2, 3], 2), example(&[1, 2, 4, 5], 2)),
            pair(example(&[6, 7], 1), example(&[6, 8], 1)),
        ];
        let rated = fitting(pairs, &DataReport::default(), ObjectiveChoice::Kto).unwrap();
        let mixed = mismatch(rated, Feedback::Rated, 3, 3);
        let found: Vec<_> = mixed
            .iter()
            .map(|example| match &example.comparison {
                Comparison::Rated { desirable, mismatched: Some(other) } => (*desirable, other.input_ids.clone()),
                other => panic!("{other:?}"),
            })
            .collect();
        // The first three answers are a group, and the last is alone.
        assert_eq!(found, [(true, vec![1, 2, 7]), (false, vec![1, 2, 3]), (true, vec![6, 4, 5]), (false, vec![6, 8])]);
    }

    #[test]
    fn feedback_and_objective_must_fit() {
        let plain = || vec![example(&[1, 2], 1)];
        let pairs = || vec![pair(example(&[1, 2], 1), example(&[1, 3], 1))];
        let report = DataReport { source: "x.jsonl".into(), ..DataReport::default() };
        let fit = |examples, objective| fitting(examples, &report, objective);
        assert_eq!(fit(plain(), ObjectiveChoice::Sft).unwrap(), plain());
        assert_eq!(fit(pairs(), ObjectiveChoice::Orpo).unwrap(), pairs());
        for (examples, objective, says) in [
            (plain(), ObjectiveChoice::Dpo, "⟨objective=dpo⟩, which learns from preference (prompt, chosen"),
            (pairs(), ObjectiveChoice::Sft, "choose ⟨objective=dpo⟩"),
            (plain(), ObjectiveChoice::Kto, "unpaired-preference (prompt, completion and label) or preference"),
        ] {
            let message = fit(examples, objective).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }
}
