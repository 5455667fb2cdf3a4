//! Fits examples into the longest sequence.

use std::ops::Range;

use crate::data::encode::Encoded;
use crate::data::settings::{DataSettings, OnLong};
use crate::data::{Comparison, Example};

/// Outcome of the length limit for one example, with the number of trained end tokens that it keeps.
pub(super) enum Fitted {
    Whole(Example),
    Cut(Example, usize),
    /// The pieces, each with the range of its tokens.
    Split(Vec<(Example, Range<usize>)>, usize),
    TooLong(Example),
    NothingLeft,
}

pub(super) fn fit(encoded: Encoded, settings: &DataSettings) -> Fitted {
    let Encoded { mut example, ends, .. } = encoded;
    let limit = settings.max_seq_len;
    if example.longest() <= limit {
        return Fitted::Whole(example);
    }
    match settings.on_long {
        // The sequences of a preference belong together, so it is not split.
        OnLong::Split if example.comparison != Comparison::None => Fitted::TooLong(example),
        OnLong::Auto | OnLong::Refuse | OnLong::Drop => Fitted::TooLong(example),
        OnLong::Truncate => {
            example.input_ids.truncate(limit);
            example.trained.truncate(limit);
            let mut other_is_empty = false;
            if let Comparison::Rejected(other) = &mut example.comparison {
                other.input_ids.truncate(limit);
                other.trained.truncate(limit);
                other_is_empty = other.trained_tokens() == 0;
            }
            let own = example.trained.iter().skip(1).filter(|trained| **trained).count();
            match own {
                _ if other_is_empty => Fitted::NothingLeft,
                0 => Fitted::NothingLeft,
                _ => Fitted::Cut(example, ends.iter().filter(|&&at| at < limit).count()),
            }
        }
        OnLong::Split => {
            let pieces = example.input_ids.chunks(limit).zip(example.trained.chunks(limit));
            let piece = |(index, (ids, trained)): (usize, (&[u32], &[bool]))| {
                let start = index * limit;
                (Example::new(ids.to_vec(), trained.to_vec()), start..start + ids.len())
            };
            let pieces = pieces.enumerate().map(piece).filter(|(piece, _)| piece.trained_tokens() > 0);
            let pieces: Vec<_> = pieces.collect();
            match pieces.is_empty() {
                true => Fitted::NothingLeft,
                // No token precedes the first token of a piece, so it cannot be predicted.
                false => Fitted::Split(pieces, ends.iter().filter(|&&at| at % limit != 0).count()),
            }
        }
    }
}
