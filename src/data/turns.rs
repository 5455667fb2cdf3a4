//! Finds the assistant's parts of a rendered conversation by rendering longer and longer beginnings of it.

use std::ops::Range;

use serde_json::Value;

use super::messages::REASONING;
use super::sample::{Conversation, is_assistant};
use super::template::{ChatTemplate, Input};
use crate::setting::TRAIN_ON;

/// Stands for the text of a message where its place in a rendered conversation is searched.
const STAND_IN: &str = "\u{10fff2}loraine\u{10fff3}";

/// A rendered conversation and the byte ranges of its assistant turns, from the end of the generation prompt to the end of the turn.
#[derive(Clone, Debug, Default)]
pub struct RenderedTurns {
    /// The whole conversation.
    pub text: String,
    /// Byte ranges in `text`, ascending and apart.
    pub turns: Vec<Range<usize>>,
    /// Index of the message that each range of `turns` belongs to. A template may mark several ranges of one message.
    pub messages: Vec<usize>,
    /// True if the text is not what the template writes for the whole conversation: each turn stands as it was when it was the last.
    pub as_written_last: bool,
}

/// A conversation under a template.
struct Rendering<'a> {
    template: &'a ChatTemplate,
    conversation: &'a Conversation,
}

/// Renders the conversation and finds its assistant turns from the `first` one on, counted from 0.
///
/// The marks of a template with `{% generation %}` are used as they are. For other templates, the text before a turn (with the
/// generation prompt) and the text up to its end are both beginnings of the whole text. Where a template writes earlier turns in
/// another way than the last, for example without their reasoning, the text is put together from every turn as the template wrote it
/// when it was the last, which is also how the model will write it. A turn includes its end token. A template that ends the last turn
/// with another token than earlier ones, as Harmony does, leaves thoughts out of earlier turns on purpose; its text is taken as it is.
///
/// # Errors
/// The template refuses the conversation, or the turns cannot be found.
pub fn assistant_turns(
    template: &ChatTemplate,
    conversation: &Conversation,
    first: usize,
) -> Result<RenderedTurns, String> {
    let rendering = Rendering { template, conversation };
    let count = conversation.messages.len();
    let assistant = (0..count).filter(|&at| is_assistant(&conversation.messages[at]));
    let assistant: Vec<usize> = assistant.collect();
    let wanted = assistant.get(first..).unwrap_or_default();
    if template.marks_regions(conversation.tools.as_ref()) {
        return rendering.marked(&assistant, wanted);
    }
    match rendering.in_the_whole(wanted, None)? {
        Ok(turns) => Ok(turns),
        Err(problem) => match rendering.with_other_end(&assistant, wanted) {
            Some(turns) => Ok(turns),
            None => rendering.put_together(&assistant, wanted).ok_or(problem),
        },
    }
}

/// The marker that a text begins with, such as `<|end|>`.
fn leading_marker(text: &str) -> Option<&str> {
    let length = text.starts_with('<').then(|| text.find('>'))?? + 1;
    let marker = &text[..length];
    (!marker.contains(char::is_whitespace)).then_some(marker)
}

impl Rendering<'_> {
    fn render_messages(&self, messages: &[Value], prompt: bool) -> Result<String, String> {
        self.template.render_input(&self.input(messages), prompt).map(|rendered| rendered.text)
    }

    fn input<'b>(&'b self, messages: &'b [Value]) -> Input<'b> {
        let Conversation { tools, variables, .. } = self.conversation;
        Input { messages, tools: tools.as_ref(), variables: Some(variables) }
    }

    /// The text of the first `count` messages.
    fn render(&self, count: usize, prompt: bool) -> Result<String, String> {
        self.render_messages(&self.conversation.messages[..count], prompt)
    }

    /// The text of the first `count` messages with the stand-in as the text of message `at`.
    fn render_with_stand_in(&self, count: usize, at: usize) -> Result<String, String> {
        let mut messages = self.conversation.messages[..count].to_vec();
        if let Some(Value::Object(fields)) = messages.get_mut(at) {
            fields.insert("content".to_owned(), STAND_IN.into());
        }
        self.render_messages(&messages, false)
    }

    /// The regions that the template marks, each with the message that it belongs to.
    fn marked(&self, assistant: &[usize], wanted: &[usize]) -> Result<RenderedTurns, String> {
        let messages = &self.conversation.messages;
        let whole = self.template.render_input(&self.input(messages), false)?;
        let count = whole.regions.len();
        let mut owners = assistant.to_vec();
        if count != assistant.len() {
            owners.clear();
            for &at in assistant {
                let through = self.template.render_input(&self.input(&messages[..=at]), false)?;
                owners.resize(through.regions.len().clamp(owners.len(), count), at);
            }
        }
        if owners.len() != count || count == 0 && !assistant.is_empty() {
            return Err(format!(
                "the chat template ({}) marks {count} generation regions for {} assistant turns",
                self.template.source(),
                assistant.len()
            ));
        }
        let regions = whole.regions.into_iter().zip(owners).filter(|(_, at)| wanted.contains(at));
        let (turns, messages) = regions.unzip();
        Ok(RenderedTurns { text: whole.text, turns, messages, as_written_last: false })
    }

    /// The wanted turns in what the template writes for the whole conversation; the inner error says that they are not there as they
    /// were when they were the last. With `ends`, the last turn ends with the first of them and earlier ones with the second.
    fn in_the_whole(
        &self,
        wanted: &[usize],
        ends: Option<&[String; 2]>,
    ) -> Result<Result<RenderedTurns, String>, String> {
        let text = self.render(self.conversation.messages.len(), false)?;
        let mut turns: Vec<Range<usize>> = Vec::with_capacity(wanted.len());
        for &at in wanted {
            if self.loses_reasoning(at, &text) {
                return Ok(Err(self.inconsistent(at, "up to", &text, "")));
            }
            let Some(start) = self.start_in(&text, at) else {
                let before = self.render(at, true).unwrap_or_default();
                return Ok(Err(self.inconsistent(at, "before", &text, &before)));
            };
            let end = match at + 1 == self.conversation.messages.len() {
                true => text.len(),
                false => {
                    let through = match self.render(at + 1, false) {
                        Ok(through) => through,
                        Err(problem) => self.through_first(&text, at, start).ok_or(problem)?,
                    };
                    let through = self.without_closing(&text, &through);
                    let other = ends.and_then(|[last, earlier]| {
                        let before = through.strip_suffix(last.as_str())?;
                        Some(before.len() + earlier.len()).filter(|_| text.starts_with(&format!("{before}{earlier}")))
                    });
                    match other {
                        _ if text.starts_with(through) => through.len(),
                        Some(end) => end,
                        None => return Ok(Err(self.inconsistent(at, "up to", &text, through))),
                    }
                }
            };
            if end < start || turns.last().is_some_and(|last| start < last.end) {
                return Ok(Err(self.inconsistent(at, "up to", &text, "")));
            }
            turns.push(start..end);
        }
        Ok(Ok(RenderedTurns { text, turns, messages: wanted.to_vec(), as_written_last: false }))
    }

    /// The wanted turns where the template ends the last turn with another token than the earlier ones, which otherwise end as questions
    /// do. What it leaves out of earlier turns is left out before they are searched.
    fn with_other_end(&self, assistant: &[usize], wanted: &[usize]) -> Option<RenderedTurns> {
        let ends = self.other_ends()?;
        let whole = self.render(self.conversation.messages.len(), false).ok()?;
        let mut conversation = self.conversation.clone();
        for &at in assistant {
            let mut fewer = conversation.clone();
            let Some(Value::Object(fields)) = fewer.messages.get_mut(at) else { continue };
            REASONING.iter().for_each(|name| _ = fields.shift_remove(*name));
            if fields.contains_key("tool_calls") {
                fields.shift_remove("content");
            }
            let rendering = Rendering { template: self.template, conversation: &fewer };
            if rendering.render(fewer.messages.len(), false).is_ok_and(|text| text == whole) {
                conversation = fewer;
            }
        }
        Rendering { template: self.template, conversation: &conversation }.in_the_whole(wanted, Some(&ends)).ok()?.ok()
    }

    /// The token that ends the last turn and the one that ends earlier turns, where they differ and questions end with the second too.
    fn other_ends(&self) -> Option<[String; 2]> {
        let message = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
        let talk = [message("user", "a"), message("assistant", STAND_IN), message("user", "b")];
        let after = |count: usize| -> Option<String> {
            let text = self.template.render(&talk[..count], None, false).ok()?;
            Some(text.rsplit_once(STAND_IN)?.1.to_owned())
        };
        let (last, longer) = (after(2)?, after(3)?);
        let earlier = leading_marker(&longer)?;
        let question = self.template.render(&[message("user", STAND_IN)], None, false).ok()?;
        let of_question = leading_marker(question.rsplit_once(STAND_IN)?.1)?;
        let differ = leading_marker(&last)? == last && last != earlier && earlier == of_question;
        differ.then(|| [last.clone(), earlier.to_owned()])
    }

    /// The text up to the end of a first message under a template that does not render it alone, by the text that ends turns. The
    /// message begins at `start`.
    fn through_first(&self, text: &str, at: usize, start: usize) -> Option<String> {
        let content = self.conversation.messages[at].get("content").and_then(Value::as_str).unwrap_or_default().trim();
        let after = start + text[start..].find(content)? + content.len();
        let marker = self.template.end_of_turn().filter(|_| self.unasked(at))?;
        let end = after + text[after..].find(&marker)? + marker.len();
        Some(text[..end].to_owned())
    }

    /// True for a message before the first question, without which some templates render nothing.
    fn unasked(&self, at: usize) -> bool {
        let is_question = |message: &Value| message.get("role").is_some_and(|role| role == "user");
        !self.conversation.messages[..at].iter().any(is_question)
    }

    /// Position in the whole text at which the model begins to write message `at`.
    fn start_in(&self, text: &str, at: usize) -> Option<usize> {
        let with_prompt = self.render(at, true);
        if let Ok(before) = &with_prompt
            && text.starts_with(before)
        {
            return Some(before.len());
        }
        let before = self.before(at)?;
        let header = self.header(at, &before)?;
        text.starts_with(&header).then_some(header.len())
    }

    /// The text before message `at` without a generation prompt. Nothing precedes a first message under a template that does not
    /// render an empty conversation.
    fn before(&self, at: usize) -> Option<String> {
        match self.render(at, false) {
            Ok(before) => Some(before),
            Err(_) if self.unasked(at) => Some(String::new()),
            Err(_) => None,
        }
    }

    /// What stands before the part of message `at` that the model writes, for a generation prompt that the finished turn does not
    /// begin with: it opens a block for thoughts, or `at` is the first message. `before` is the text before the message.
    fn header(&self, at: usize, before: &str) -> Option<String> {
        let count = if self.unasked(at) { self.conversation.messages.len() } else { at + 1 };
        let stand_in = self.render_with_stand_in(count, at).ok()?;
        let place = stand_in.find(STAND_IN)?;
        let (header, prompt) = (&stand_in[..place], self.generation_prompt(at, before)?);
        let new = header.strip_prefix(before)?;
        let mut lengths = (1..=prompt.len()).rev().filter(|&length| prompt.is_char_boundary(length));
        let end = lengths.find_map(|length| {
            let found = new.rfind(&prompt[..length])? + length;
            (length == prompt.len() || found == new.len()).then_some(found)
        });
        Some(header[..before.len() + end.unwrap_or(0)].to_owned())
    }

    /// The text that the template adds as the beginning of message `at`.
    fn generation_prompt(&self, at: usize, before: &str) -> Option<String> {
        if let Some(prompt) = self.render(at, true).ok().and_then(|with| with.strip_prefix(before).map(str::to_owned)) {
            return Some(prompt);
        }
        let question = [serde_json::json!({ "role": "user", "content": STAND_IN })];
        let [without, with] = [false, true].map(|prompt| self.render_messages(&question, prompt));
        with.ok()?.strip_prefix(&without.ok()?).map(str::to_owned)
    }

    /// True if message `at` has thoughts in its text that `rendered` does not have, although it has what follows them.
    fn loses_reasoning(&self, at: usize, rendered: &str) -> bool {
        let content = self.conversation.messages[at].get("content").and_then(Value::as_str).unwrap_or_default();
        let Some((thoughts, said)) = content.split_once("</think>") else { return false };
        let thoughts = thoughts.rsplit("<think>").next().unwrap_or_default().trim();
        !thoughts.is_empty() && !rendered.contains(thoughts) && rendered.contains(said.trim())
    }

    /// Puts the conversation together from every turn as it is written when it is the last, and from what stands between turns.
    /// `None` where the parts cannot be told from each other.
    fn put_together(&self, assistant: &[usize], wanted: &[usize]) -> Option<RenderedTurns> {
        let mut whole = RenderedTurns { as_written_last: true, ..Default::default() };
        let mut last: Option<usize> = None;
        for &at in assistant {
            match last {
                None => whole.text += &self.before(at)?,
                Some(last) => whole.text += &self.between(last, at)?,
            }
            let (turn, start) = self.as_last(at, last)?;
            if wanted.contains(&at) {
                whole.turns.push(whole.text.len() + start..whole.text.len() + turn.len());
                whole.messages.push(at);
            }
            whole.text += &turn;
            last = Some(at);
        }
        let count = self.conversation.messages.len();
        if let Some(last) = last.filter(|last| last + 1 < count) {
            whole.text += &self.between(last, count)?;
        }
        Some(whole)
    }

    /// Message `at` as the template writes it when it is the last, and the position in it at which the model begins to write. The
    /// assistant's message before it is `last`.
    fn as_last(&self, at: usize, last: Option<usize>) -> Option<(String, usize)> {
        let (before, through) = (self.before(at)?, self.render(at + 1, false).ok()?);
        let mut turn = match through.strip_prefix(&before) {
            Some(turn) => turn.to_owned(),
            // The message before is the assistant's too, and changes when this one follows.
            None => self.between(last?, at + 1)?.strip_prefix(&self.between(last?, at)?)?.to_owned(),
        };
        let content = self.conversation.messages[at].get("content").and_then(Value::as_str).unwrap_or_default();
        if self.loses_reasoning(at, &turn) {
            let stand_in = self.render_with_stand_in(at + 1, at).ok()?;
            turn = stand_in.strip_prefix(&before)?.replace(STAND_IN, content);
        }
        let said = content.rsplit("</think>").next().unwrap_or_default().trim();
        if !turn.contains(said) {
            return None;
        }
        let prompt = self.generation_prompt(at, &before)?;
        let start = match turn.starts_with(&prompt) && at > 0 {
            true => prompt.len(),
            false => self.header(at, &before)?.len() - before.len(),
        };
        (start <= turn.len()).then_some((turn, start))
    }

    /// What the template writes after message `from`, up to message `to`.
    fn between(&self, from: usize, to: usize) -> Option<String> {
        let after = |count: usize| -> Option<String> {
            let text = self.render_with_stand_in(count, from).ok()?;
            Some(text.rsplit_once(STAND_IN)?.1.to_owned())
        };
        let (end_of_turn, longer) = (after(from + 1)?, after(to)?);
        let closing = self.template.eos_token().and_then(|end| end_of_turn.strip_suffix(end));
        let rest = longer.strip_prefix(&end_of_turn).or_else(|| longer.strip_prefix(closing?))?;
        Some(rest.to_owned())
    }

    /// Returns `through` without the end token that some templates add after the last turn, whoever wrote it.
    fn without_closing<'b>(&self, text: &str, through: &'b str) -> &'b str {
        match self.template.eos_token() {
            Some(end) if !text.starts_with(through) && text.ends_with(end) => {
                through.strip_suffix(end).unwrap_or(through)
            }
            _ => through,
        }
    }

    fn inconsistent(&self, at: usize, what: &str, text: &str, part: &str) -> String {
        let same = text.char_indices().zip(part.chars()).find(|((_, a), b)| a != b);
        let differs = same.map_or(text.len().min(part.len()), |((at, _), _)| at);
        let from = |text: &str| text.get(differs..).unwrap_or_default().chars().take(30).collect::<String>();
        format!(
            "the chat template ({}) writes the text {what} message {} differently when more follows: {:?} alone, {:?} in \
             the whole, so which tokens the assistant wrote is unknown; use a template that marks them with \
             {{% generation %}}, or {}",
            self.template.source(),
            at + 1,
            from(part),
            from(text),
            TRAIN_ON.is("all")
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    const QUESTIONS: &str = "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}<e>{% endif %}";

    /// The text with brackets around each turn, and the message of each.
    fn turns(template: &str, messages: Value, first: usize) -> Result<(String, Vec<usize>, bool), String> {
        let special = json!({"eos_token": "<e>"}).as_object().cloned().unwrap();
        let template = ChatTemplate::new(template, "a test".into(), special).unwrap();
        let messages = messages.as_array().unwrap().clone();
        let conversation = Conversation { messages, variables: Map::new(), ..Default::default() };
        let found = assistant_turns(&template, &conversation, first)?;
        let mut shown = found.text.clone();
        for range in found.turns.iter().rev() {
            shown.insert(range.end, ']');
            shown.insert(range.start, '[');
        }
        Ok((shown, found.messages, found.as_written_last))
    }

    fn talk(answers: [&str; 2]) -> Value {
        json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answers[0]},
            {"role": "user", "content": "r"}, {"role": "assistant", "content": answers[1]}])
    }

    #[test]
    fn turns_that_are_written_differently_later_are_trained_as_they_were_written() {
        let hybrid = format!(
            "{QUESTIONS}{{% if m.role == 'assistant' %}}<a>{{% if loop.last %}}<think></think>{{% endif %}}{{{{ m.content }}}}<e>\
             {{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}<a>{{% endif %}}"
        );
        let (text, messages, as_last) = turns(&hybrid, talk(["x", "y"]), 0).unwrap();
        assert_eq!(text, "<u>q<e><a>[<think></think>x<e>]<u>r<e><a>[<think></think>y<e>]");
        assert_eq!((messages, as_last), (vec![1, 3], true));
        let twice = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}]);
        let (text, messages, _) = turns(&hybrid, twice, 0).unwrap();
        assert_eq!(text, "<u>q<e><a>[<think></think>x<e>]<a>[<think></think>y<e>]");
        assert_eq!(messages, [1, 2]);
        // The last turn alone is in the text that the template writes.
        let (text, messages, as_last) = turns(&hybrid, talk(["x", "y"]), 1).unwrap();
        assert_eq!(text, "<u>q<e><a>x<e><u>r<e><a>[<think></think>y<e>]");
        assert_eq!((messages, as_last), (vec![3], false));
    }

    #[test]
    fn a_template_with_another_end_of_the_last_turn_is_taken_as_it_is() {
        let harmony = "{% for m in messages %}{% if m.role == 'user' %}<s>user<m>{{ m.content }}<end>\
            {% elif m.role == 'tool' %}<s>tool<m>{{ m.content }}<end>{% elif m.tool_calls %}\
            {% set later = namespace(final=false) %}{% for n in messages[loop.index:] %}{% if n.role == 'assistant' and not n.tool_calls %}\
            {% set later.final = true %}{% endif %}{% endfor %}\
            {% if not later.final and (m.thinking or m.content) %}<s>assistant<c>analysis<m>{{ m.thinking or m.content }}<end>{% endif %}<s>assistant<c>call<m>{{ m.tool_calls }}<call>\
            {% elif loop.last and not add_generation_prompt %}\
            {% if m.thinking %}<s>assistant<c>analysis<m>{{ m.thinking }}<end>{% endif %}<s>assistant<c>final<m>{{ m.content }}<return>\
            {% else %}<s>assistant<c>final<m>{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<s>assistant{% endif %}";
        let (text, messages, as_last) = turns(harmony, talk(["x", "y"]), 0).unwrap();
        let expected =
            "<s>user<m>q<end><s>assistant[<c>final<m>x<end>]<s>user<m>r<end><s>assistant[<c>final<m>y<return>]";
        assert_eq!((text.as_str(), &messages[..], as_last), (expected, &[1, 3][..], false));
        let thinking = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "x", "thinking": "one"},
            {"role": "user", "content": "r"}, {"role": "assistant", "content": "y", "thinking": "two"}]);
        let (text, ..) = turns(harmony, thinking, 0).unwrap();
        let last = "<s>assistant[<c>analysis<m>two<end><s>assistant<c>final<m>y<return>]";
        assert_eq!(text, format!("<s>user<m>q<end><s>assistant[<c>final<m>x<end>]<s>user<m>r<end>{last}"));
        let called = json!([{"role": "user", "content": "q"}, {"role": "assistant", "thinking": "one", "tool_calls": "f"},
            {"role": "tool", "content": "t"}, {"role": "assistant", "content": "y"}]);
        let (text, messages, _) = turns(harmony, called, 0).unwrap();
        let call = "<s>user<m>q<end><s>assistant[<c>call<m>f<call>]<s>tool<m>t<end>";
        assert_eq!((text, messages), (format!("{call}<s>assistant[<c>final<m>y<return>]"), vec![1, 3]));
    }

    #[test]
    fn a_prompt_that_opens_thoughts_belongs_to_them_alone() {
        let opens = format!(
            "{QUESTIONS}{{% if m.role == 'assistant' %}}<a>{{{{ m.content.split('</think>')[-1] }}}}<e>{{% endif %}}{{% endfor %}}\
             {{% if add_generation_prompt %}}<a><think>{{% endif %}}"
        );
        let (text, _, as_last) = turns(&opens, talk(["x", "<b>y"]), 0).unwrap();
        assert_eq!((text.as_str(), as_last), ("<u>q<e><a>[x<e>]<u>r<e><a>[<b>y<e>]", false));
        let (text, _, as_last) = turns(&opens, talk(["<think>t</think>x", "y"]), 0).unwrap();
        assert_eq!((text.as_str(), as_last), ("<u>q<e><a><think>[t</think>x<e>]<u>r<e><a>[y<e>]", true));
    }

    #[test]
    fn a_conversation_may_begin_with_the_assistant() {
        let plain = "{{ messages[0].role[:0] }}<s>{% for m in messages %}<{{ m.role }}>{{ m.content }}<e>{% endfor %}\
                     {% if add_generation_prompt %}<assistant>{% endif %}";
        let greeting = json!([{"role": "assistant", "content": "hi"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]);
        let (text, messages, _) = turns(plain, greeting.clone(), 0).unwrap();
        assert_eq!(text, "<s><assistant>[hi<e>]<user>q<e><assistant>[x<e>]");
        assert_eq!(messages, [0, 2]);
        let wants_a_user = format!(
            "{{% if messages|selectattr('role', 'eq', 'user')|list|length == 0 %}}{{{{ raise_exception('no user') }}}}{{% endif %}}{plain}"
        );
        assert_eq!(turns(&wants_a_user, greeting.clone(), 0).unwrap().0, text);
        let mut instructed = greeting;
        instructed.as_array_mut().unwrap().insert(0, json!({"role": "system", "content": "s"}));
        let (text, ..) = turns(&wants_a_user, instructed, 0).unwrap();
        assert_eq!(text, "<s><system>s<e><assistant>[hi<e>]<user>q<e><assistant>[x<e>]");
    }

    #[test]
    fn several_regions_belong_to_one_turn() {
        let marked = format!(
            "{QUESTIONS}{{% if m.role == 'assistant' %}}<a>{{% generation %}}{{{{ m.content }}}}{{% endgeneration %}}|{{% generation %}}<e>\
             {{% endgeneration %}}{{% endif %}}{{% endfor %}}"
        );
        let (text, messages, _) = turns(&marked, talk(["x", "y"]), 0).unwrap();
        assert_eq!(text, "<u>q<e><a>[x]|[<e>]<u>r<e><a>[y]|[<e>]");
        assert_eq!(messages, [1, 1, 3, 3]);
        assert_eq!(turns(&marked, talk(["x", "y"]), 1).unwrap().0, "<u>q<e><a>x|<e><u>r<e><a>[y]|[<e>]");
        let never = format!("{QUESTIONS}{{% generation %}}{{% endgeneration %}}{{% endfor %}}").replace(
            "{% generation %}{% endgeneration %}",
            "{% if false %}{% generation %}{% endgeneration %}{% endif %}",
        );
        assert!(turns(&never, talk(["x", "y"]), 0).unwrap_err().contains("marks 0 generation regions for 2"));
    }

    #[test]
    fn text_that_cannot_be_told_apart_is_refused() {
        let drops = "{% for m in messages %}{{ m.content if loop.last else '-' }}<e>{% endfor %}";
        let problem = turns(drops, talk(["x", "y"]), 0).unwrap_err();
        assert!(problem.contains("message 2 differently when more follows"), "{problem}");
    }
}
