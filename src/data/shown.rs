//! The text of each token, for people: in every script, with tokens that share a character as one group.

use std::ops::Range;

use super::tokenizer::Tokenizer;
use crate::Result;

/// Most tokens that can share one character, with room for marks that modify it.
const LONGEST_GROUP: usize = 12;

/// The text of each token. `None` continues the group of the token before, which has the text of the whole group.
pub(super) type Pieces = Vec<Option<String>>;

/// Takes the pieces from the text that was encoded. `ranges` has the byte range of each token; a token without text shows as itself.
pub(super) fn pieces_of_text(
    ids: &[u32],
    text: &str,
    ranges: &[Range<usize>],
    tokenizer: &Tokenizer,
) -> Result<Pieces> {
    let mut pieces = Pieces::with_capacity(ids.len());
    for (at, &id) in ids.iter().enumerate() {
        let range = ranges.get(at).cloned().unwrap_or_default();
        let before = at.checked_sub(1).and_then(|before| ranges.get(before));
        let piece = text.get(range.clone()).filter(|piece| !piece.is_empty());
        pieces.push(match piece {
            Some(_) if before == Some(&range) => None,
            Some(piece) => Some(piece.to_owned()),
            None => Some(alone(id, tokenizer)?),
        });
    }
    Ok(pieces)
}

/// Takes the pieces from the tokens themselves.
pub(super) fn pieces_of_tokens(ids: &[u32], tokenizer: &Tokenizer) -> Result<Pieces> {
    let mut pieces = Pieces::with_capacity(ids.len());
    // A token before those that are decoded, which decides about the space between them.
    let mut context: Vec<u32> = Vec::new();
    let mut at = 0;
    while at < ids.len() {
        let before = tokenizer.decode_with_special(&context)?;
        let mut length = 1;
        let text = loop {
            let window: Vec<u32> = context.iter().chain(&ids[at..at + length]).copied().collect();
            let text = tokenizer.decode_with_special(&window)?;
            let new = text.strip_prefix(before.as_str()).unwrap_or(&text).to_owned();
            let complete = !new.ends_with(char::REPLACEMENT_CHARACTER);
            if complete || length == LONGEST_GROUP || at + length == ids.len() {
                break if complete { Some(new) } else { None };
            }
            length += 1;
        };
        let Some(text) = text else {
            // Bytes that make no character.
            pieces.push(Some(tokenizer.token(ids[at]).unwrap_or_default()));
            context = vec![ids[at]];
            at += 1;
            continue;
        };
        let text = if text.is_empty() { alone(ids[at], tokenizer)? } else { text };
        pieces.push(Some(text));
        pieces.extend(std::iter::repeat_n(None, length - 1));
        context = ids[at..at + length].to_vec();
        at += length;
    }
    Ok(pieces)
}

/// A token that has no text of its own: as it is decoded alone, or else as the vocabulary spells it.
fn alone(id: u32, tokenizer: &Tokenizer) -> Result<String> {
    let decoded = tokenizer.decode_with_special(&[id])?;
    let spelled = || tokenizer.token(id).unwrap_or_default().replace(['\u{2581}', '\u{120}'], " ");
    Ok(if decoded.is_empty() || decoded.contains(char::REPLACEMENT_CHARACTER) { spelled() } else { decoded })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A text as tokens with their numbers of tokens, from both ways to find them.
    fn groups(pieces: Pieces) -> Vec<(String, usize)> {
        let mut groups: Vec<(String, usize)> = Vec::new();
        for piece in pieces {
            match (piece, groups.last_mut()) {
                (Some(text), _) => groups.push((text, 1)),
                (None, Some((_, count))) => *count += 1,
                (None, None) => panic!("the first token continues a group"),
            }
        }
        groups
    }

    #[test]
    fn every_script_is_readable_with_every_kind_of_tokenizer() {
        let dir = Path::new("../shared/tokenizers");
        if !dir.is_dir() {
            eprintln!("skipped: {} is not there", dir.display());
            return;
        }
        let text =
            "Hello there Zo\u{eb}: \u{4f60}\u{597d} \u{0645}\u{0631}\u{062d}\u{0628}\u{0627} \u{1f600}\u{10348}\n\tend";
        for name in ["qwen2.5-0.5b-instruct", "tinyllama-1.1b-chat"] {
            let tokenizer = Tokenizer::from_tokenizer_dir(&dir.join(name)).unwrap();
            let (ids, ranges) = tokenizer.encode_with_ranges(text, false).unwrap();
            let by_tokens = groups(pieces_of_tokens(&ids, &tokenizer).unwrap());
            let joined: String = by_tokens.iter().map(|(text, _)| text.as_str()).collect();
            assert_eq!(joined, text, "{name}");
            assert_eq!(by_tokens.iter().map(|(_, count)| count).sum::<usize>(), ids.len());
            assert!(
                by_tokens.iter().any(|(text, count)| text.contains('\u{10348}') && *count > 1),
                "{name}: {by_tokens:?}"
            );
            let by_text = groups(pieces_of_text(&ids, text, &ranges, &tokenizer).unwrap());
            assert!(by_text.iter().all(|(text, _)| !text.contains(['\u{120}', '\u{fffd}'])), "{name}: {by_text:?}");
            assert!(
                by_text.iter().any(|(text, count)| text.contains('\u{10348}') && *count > 1),
                "{name}: {by_text:?}"
            );
        }
    }
}
