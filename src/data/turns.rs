//! Finds the assistant's parts of a rendered conversation by rendering longer and longer prefixes of it.

use std::ops::Range;

use super::sample::{Conversation, is_assistant};
use super::template::ChatTemplate;
use crate::setting::TRAIN_ON;

/// A rendered conversation and the byte range of each assistant turn, from the end of the generation prompt to the end of the turn.
pub struct RenderedTurns {
    pub text: String,
    pub turns: Vec<Range<usize>>,
}

/// Renders the conversation and finds its assistant turns.
///
/// The marks of a template with `{% generation %}` are used as they are. For other templates, the text before a turn (with the
/// generation prompt) and the text up to its end must both be prefixes of the whole text. A template that renders earlier turns
/// differently later, as some do with reasoning, is an error. A turn includes its end token.
pub fn assistant_turns(template: &ChatTemplate, conversation: &Conversation) -> Result<RenderedTurns, String> {
    let Conversation { messages, tools, .. } = conversation;
    let render = |count: usize, prompt: bool| template.render(&messages[..count], tools.as_ref(), prompt);
    let whole = template.render_regions(messages, tools.as_ref(), false)?;
    let assistant: Vec<usize> = (0..messages.len()).filter(|&at| is_assistant(&messages[at])).collect();
    if template.marks_regions() {
        return match whole.regions.len() == assistant.len() {
            true => Ok(RenderedTurns { text: whole.text, turns: whole.regions }),
            false => Err(format!(
                "the chat template ({}) marks {} generation regions for {} assistant turns",
                template.source(),
                whole.regions.len(),
                assistant.len()
            )),
        };
    }
    let text = whole.text;
    let mut turns: Vec<Range<usize>> = Vec::with_capacity(assistant.len());
    for at in assistant {
        let before = match render(at, true) {
            Ok(before) => before,
            Err(_) if at == 0 => {
                return Err(format!(
                    "the conversation begins with an assistant turn, before which the chat template ({}) renders nothing",
                    template.source()
                ));
            }
            Err(problem) => return Err(problem),
        };
        let start = beginning(&text, &before).ok_or_else(|| inconsistent(template, at, "before", &text, &before))?;
        let end = match at + 1 == messages.len() {
            true => text.len(),
            false => {
                let through = render(at + 1, false)?;
                let through = without_closing(template, &text, &through);
                beginning(&text, through).ok_or_else(|| inconsistent(template, at, "up to", &text, through))?
            }
        };
        if end < start || turns.last().is_some_and(|last| start < last.end) {
            return Err(inconsistent(template, at, "up to", &text, &before));
        }
        turns.push(start..end);
    }
    Ok(RenderedTurns { text, turns })
}

fn beginning(text: &str, part: &str) -> Option<usize> {
    text.starts_with(part).then_some(part.len())
}

/// Returns `through` without the end token that some templates add after the last turn, whoever wrote it.
fn without_closing<'a>(template: &ChatTemplate, text: &str, through: &'a str) -> &'a str {
    match template.eos_token() {
        Some(end) if !text.starts_with(through) && text.ends_with(end) => through.strip_suffix(end).unwrap_or(through),
        _ => through,
    }
}

fn inconsistent(template: &ChatTemplate, at: usize, what: &str, text: &str, part: &str) -> String {
    let same = text.char_indices().zip(part.chars()).find(|((_, a), b)| a != b);
    let differs = same.map_or(text.len().min(part.len()), |((at, _), _)| at);
    let from = |text: &str| text.get(differs..).unwrap_or_default().chars().take(30).collect::<String>();
    format!(
        "the chat template ({}) writes the text {what} message {} differently when more follows: {:?} alone, {:?} in the \
         whole, so which tokens the assistant wrote is unknown; use a template that marks them with {{% generation %}}, \
         or {}",
        template.source(),
        at + 1,
        from(part),
        from(text),
        TRAIN_ON.is("all")
    )
}
