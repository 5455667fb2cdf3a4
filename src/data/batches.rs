//! The order of training: the examples of each step, and micro-batches as streams of rows.

use std::ops::Range;

use super::{Comparison, Example};
use crate::random::{Stream, bits, permutation};
use crate::setting::EVAL_FRACTION;
use crate::{Error, Result};

/// Assigns examples to optimizer steps. Every epoch takes each example once; its last step may be smaller.
#[derive(Clone, Debug)]
pub struct BatchOrder {
    examples: usize,
    examples_per_step: usize,
    seed: u64,
    shuffle: bool,
    /// The last requested epoch and its order, so that steps of one epoch shuffle only once.
    epoch_order: Option<(usize, Vec<usize>)>,
}

impl BatchOrder {
    /// `examples_per_step` is the batch size times the micro-batches of a step. Both counts must be above 0.
    ///
    /// # Errors
    /// One of the counts is 0.
    pub fn new(examples: usize, examples_per_step: usize, seed: u64, shuffle: bool) -> Result<Self> {
        if examples == 0 || examples_per_step == 0 {
            let problem = format!("{examples} examples in steps of {examples_per_step} make no training");
            return Err(Error::Argument(format!("{problem}; both must be at least 1")));
        }
        Ok(Self { examples, examples_per_step, seed, shuffle, epoch_order: None })
    }

    /// Optimizer steps that take every example once.
    pub fn steps_per_epoch(&self) -> usize {
        self.examples.div_ceil(self.examples_per_step)
    }

    /// Epoch of a step; both count from 0.
    pub fn epoch_of(&self, step: usize) -> usize {
        step / self.steps_per_epoch()
    }

    /// Indices of the examples of `step`. They depend only on the arguments of [`Self::new`] and `step`.
    pub fn batch_for_step(&mut self, step: usize) -> &[usize] {
        let epoch = self.epoch_of(step);
        let start = (step % self.steps_per_epoch()) * self.examples_per_step;
        let end = self.examples.min(start.saturating_add(self.examples_per_step));
        if self.epoch_order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let order = match self.shuffle {
                true => permutation(self.seed, Stream::Shuffle, epoch as u64, self.examples),
                false => (0..self.examples).collect(),
            };
            self.epoch_order = Some((epoch, order));
        }
        self.epoch_order.as_ref().map_or(&[], |(_, order)| &order[start..end])
    }
}

/// Splits off about `fraction` of the examples for evaluation, at least one, chosen by `seed`. Returns (training, held out), each in
/// the order of the data.
///
/// # Errors
/// A fraction that is not between 0 and 1, or fewer than two examples.
pub fn hold_out(examples: Vec<Example>, fraction: f64, seed: u64) -> Result<(Vec<Example>, Vec<Example>)> {
    if !(fraction > 0.0 && fraction < 1.0) {
        let problem = format!("{EVAL_FRACTION} is {fraction}; it must be above 0 and below 1");
        return Err(Error::setting(EVAL_FRACTION, problem));
    }
    let count = examples.len();
    if count < 2 {
        let problem = format!("holding out a part needs 2 examples or more, but there are {count}");
        return Err(Error::setting(EVAL_FRACTION, problem));
    }
    let held = ((count as f64 * fraction).round() as usize).clamp(1, count - 1);
    Ok(hold_out_count(examples, held, seed))
}

/// Splits off `held` examples, as [`hold_out`] does.
pub fn hold_out_count(examples: Vec<Example>, held: usize, seed: u64) -> (Vec<Example>, Vec<Example>) {
    let count = examples.len();
    let mut by_draw: Vec<usize> = (0..count).collect();
    by_draw.sort_by_key(|&i| (bits(seed, Stream::Split, 0, i as u64), i));
    let mut is_held = vec![false; count];
    by_draw.iter().take(held).for_each(|&i| is_held[i] = true);
    let (held_out, training): (Vec<_>, Vec<_>) = examples.into_iter().zip(is_held).partition(|(_, held)| *held);
    let examples = |pairs: Vec<(Example, bool)>| pairs.into_iter().map(|(example, _)| example).collect();
    (examples(training), examples(held_out))
}

/// A micro-batch as a stream of rows: sequences laid end to end, each trimmed after its last row with a label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its own sequence.
    pub positions: Vec<u32>,
    /// First row of the segment of each row: the first key that it may attend to.
    pub segment_start: Vec<u32>,
    /// End (exclusive) of the segment of each row.
    pub segment_end: Vec<u32>,
    /// Rows with a label, ascending.
    pub label_rows: Vec<u32>,
    /// Label of each row of `label_rows`: the next token.
    pub labels: Vec<u32>,
    /// The weight of each of `labels` in the loss, before it is divided by the count of a step's labels. In a preference 1 for the
    /// tokens of the answer, and 0 for those of the prompt.
    pub label_weights: Vec<f32>,
    /// The answers that are compared; empty where the examples are no preferences.
    pub answers: Vec<Answers>,
    /// The teacher's tokens for each of `labels`; empty where there is no teacher.
    pub teacher: TeacherRows,
}

/// The likeliest tokens of a teacher, as many for each label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TeacherRows {
    /// Ids, ascending for each label; the largest u32 where there are fewer.
    pub ids: Vec<u32>,
    /// The probability of each, which add up to 1 for each label.
    pub probabilities: Vec<f32>,
}

/// The two sequences of a preference in a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// None for a chosen and a rejected answer; else whether the answer was found good, and the other sequence is its mismatched one.
    pub desirable: Option<bool>,
    /// The labels of each sequence, as a range of `labels`.
    pub labels: [Range<usize>; 2],
    /// The sums of log-probabilities of both answers under the model as it was before training.
    pub reference: [f64; 2],
}

impl MicroBatch {
    /// Row `t` of a sequence predicts token `t + 1` where that is trained on. Sequences without a label leave no rows.
    pub fn from_examples<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut batch = Self::default();
        examples.into_iter().for_each(|example| batch.add(example, false, [0.0; 2]));
        batch
    }

    /// Adds an example. With `whole`, the tokens of its prompt have labels too, with weight 0; those of its other sequence never have.
    /// `reference` is that of [`Answers`].
    pub fn add(&mut self, example: &Example, whole: bool, reference: [f64; 2]) {
        let first = self.add_sequence(example, whole);
        let desirable = match &example.comparison {
            Comparison::None => return,
            Comparison::Rejected(_) => None,
            Comparison::Rated { desirable, .. } => Some(*desirable),
        };
        let end = self.labels.len();
        let second = example.other().map_or(end..end, |other| self.add_sequence(other, false));
        self.answers.push(Answers { desirable, labels: [first, second], reference });
    }

    fn add_sequence(&mut self, example: &Example, whole: bool) -> Range<usize> {
        let Example { input_ids, trained, .. } = example;
        let start = self.tokens.len() as u32;
        let rows = rows_of_sequence(example);
        let end = start + rows as u32;
        self.tokens.extend_from_slice(&input_ids[..rows]);
        self.positions.extend(0..rows as u32);
        self.segment_start.extend(std::iter::repeat_n(start, rows));
        self.segment_end.extend(std::iter::repeat_n(end, rows));
        let first_label = self.labels.len();
        let next = input_ids.iter().zip(trained).skip(1).take(rows);
        for (row, (label, trained)) in next.enumerate().filter(|(_, (_, trained))| whole || **trained) {
            self.label_rows.push(start + row as u32);
            self.labels.push(*label);
            self.label_weights.push(if *trained { 1.0 } else { 0.0 });
        }
        first_label..self.labels.len()
    }
}

/// Number of rows of an example in a stream, all of its sequences together.
pub fn rows_of(example: &Example) -> usize {
    example.sequences().map(rows_of_sequence).sum()
}

/// All rows of a sequence up to the last one with a label.
fn rows_of_sequence(Example { input_ids, trained, .. }: &Example) -> usize {
    trained.iter().rposition(|trained| *trained).unwrap_or(0).min(input_ids.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: &[u32], trained: &[u8]) -> Example {
        Example::new(ids.to_vec(), trained.iter().map(|t| *t == 1).collect())
    }

    #[test]
    fn each_epoch_takes_every_example_once_in_its_own_order() {
        let mut order = BatchOrder::new(10, 4, 5, true).unwrap();
        assert_eq!((order.steps_per_epoch(), order.epoch_of(2), order.epoch_of(3)), (3, 0, 1));
        let epoch = |order: &mut BatchOrder, epoch: usize| -> Vec<usize> {
            (0..3).flat_map(|s| order.batch_for_step(epoch * 3 + s).to_vec()).collect()
        };
        let (first, second) = (epoch(&mut order, 0), epoch(&mut order, 1));
        assert_ne!(first, second);
        assert_eq!(first, epoch(&mut order, 0));
        for mut taken in [first, second] {
            taken.sort_unstable();
            assert!(taken.into_iter().eq(0..10));
        }
        let mut plain = BatchOrder::new(5, 2, 5, false).unwrap();
        assert_eq!(plain.batch_for_step(2), [4]);
        assert_eq!(plain.batch_for_step(3), [0, 1]);
        assert!(BatchOrder::new(0, 2, 5, false).is_err() && BatchOrder::new(2, 0, 5, false).is_err());
    }

    #[test]
    fn rows_predict_the_next_trained_token_and_end_with_the_last() {
        let batch = MicroBatch::from_examples(&[
            example(&[10, 11, 12, 13, 14], &[1, 0, 1, 1, 0]),
            example(&[20, 21], &[1, 0]),
            example(&[30, 31, 32], &[0, 1, 1]),
        ]);
        let expected = MicroBatch {
            tokens: vec![10, 11, 12, 30, 31],
            positions: vec![0, 1, 2, 0, 1],
            segment_start: vec![0, 0, 0, 3, 3],
            segment_end: vec![3, 3, 3, 5, 5],
            label_rows: vec![1, 2, 3, 4],
            labels: vec![12, 13, 31, 32],
            label_weights: vec![1.0; 4],
            answers: Vec::new(),
            teacher: TeacherRows::default(),
        };
        assert_eq!(batch, expected);
    }

    #[test]
    fn holding_out_keeps_every_example_on_one_side() {
        let examples: Vec<_> = (0..50).map(|i| example(&[i, i], &[1, 1])).collect();
        let (training, held) = hold_out(examples.clone(), 0.1, 1).unwrap();
        assert_eq!((training.len(), held.len()), (45, 5));
        assert!(training.is_sorted_by_key(|e| e.input_ids[0]) && held.is_sorted_by_key(|e| e.input_ids[0]));
        assert!(held.iter().all(|e| !training.contains(e)));
        assert_ne!(held, hold_out(examples.clone(), 0.1, 2).unwrap().1);
        assert_eq!(hold_out(examples[..2].to_vec(), 0.01, 2).unwrap().1.len(), 1);
        for (count, fraction, says) in
            [(50, 0.0, "above 0"), (50, 1.0, "below 1"), (50, f64::NAN, "NaN"), (1, 0.5, "2 examples")]
        {
            let message = hold_out(examples[..count].to_vec(), fraction, 1).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }
}
