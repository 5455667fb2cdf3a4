//! Chat templates: the model's own, a file's or a built-in one, rendered as transformers renders them.

use std::path::Path;
use std::sync::OnceLock;

use chrono::NaiveDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value as TemplateValue;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::template_functions as functions;
use super::watch::{Work, watched};
use crate::files::Fingerprint;
use crate::model::companions;
use crate::model::json_fields::parse_object;
#[cfg(not(target_arch = "wasm32"))]
use crate::panics::caught;
use crate::setting::{CHAT_TEMPLATE, TEMPLATE_ARG, TEMPLATE_DATE};
use crate::{Error, Result, files};

/// Built-in templates by name, for models without one.
const BUILT_IN: [(&str, &str); 6] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("llama-2", include_str!("templates/llama-2.jinja")),
    ("llama-3", include_str!("templates/llama-3.jinja")),
    ("plain", include_str!("templates/plain.jinja")),
    ("zephyr", include_str!("templates/zephyr.jinja")),
];
/// Limit of instructions for one rendering. Thousands of turns need far fewer; an endless template stops here.
const FUEL: u64 = 5_000_000;
/// Largest template in bytes; published ones have less than a third of it.
const MAX_BYTES: usize = 128 << 10;
/// Stack for the template parser, which recurses for each operator of a chain such as `- - - 1`, and for templates that could nest
/// values deeply, which are dropped recursively.
#[cfg(not(target_arch = "wasm32"))]
const DEEP_STACK: usize = if cfg!(target_pointer_width = "64") { 1 << 30 } else { 128 << 20 };
const NAME: &str = "chat template";
/// File of a model's own template.
pub const OWN_FILE: &str = "chat_template.jinja";
/// Directory of a model's further templates, one file each.
pub const FURTHER: &str = "additional_chat_templates";
/// Names in lists of templates: the template for conversations without tools, and the one with tools.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// Private-use characters that mark the beginning and the end of an assistant region in the rendered text.
const REGION_BEGIN: char = '\u{10fff0}';
const REGION_END: char = '\u{10fff1}';

/// A compiled template with the special tokens that it may use.
#[derive(Clone)]
pub struct ChatTemplate {
    main: Compiled,
    /// Separate template for conversations with tools, which some models have.
    for_tools: Option<Compiled>,
    special_tokens: Map<String, Value>,
    source: String,
    /// Values of the template's variables for every conversation, such as `enable_thinking`.
    variables: Map<String, Value>,
    wants_parts: OnceLock<bool>,
}

#[derive(Clone)]
struct Compiled {
    environment: Environment<'static>,
    text: String,
    marks_regions: bool,
    /// True if the template could nest values without limit.
    nests: bool,
}

/// The values that a conversation gives to a template.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input<'a> {
    /// Messages with `role` and `content`, in the order of the conversation.
    pub messages: &'a [Value],
    /// A JSON list of tools that the assistant may call.
    pub tools: Option<&'a Value>,
    /// Values of further variables; they go before those of the template.
    pub variables: Option<&'a Map<String, Value>>,
}

/// A rendered text and the byte ranges of its `{% generation %}` regions.
pub struct Rendered {
    /// The text, without the marks of its regions.
    pub text: String,
    /// Byte ranges in `text`, ascending.
    pub regions: Vec<std::ops::Range<usize>>,
}

impl ChatTemplate {
    /// Finds the template that `choice` names: a `.jinja` or `.json` file, a directory with templates such as that of an adapter, one
    /// of the model's named templates, or a built-in name. Without a choice it returns the model's own template, or `None` if the
    /// model has none.
    ///
    /// `special_tokens` maps `bos_token`, `eos_token` and the like to their text.
    ///
    /// # Errors
    /// A choice that names no template, a file that cannot be read, or a template that cannot be compiled.
    pub fn load(model_dir: &Path, choice: Option<&str>, special_tokens: Map<String, Value>) -> Result<Option<Self>> {
        let Some(choice) = choice else { return Self::own(model_dir, special_tokens) };
        let path = Path::new(choice);
        if files::is_file(path) {
            return Self::new(&template_of_file(path)?, choice.to_owned(), special_tokens).map(Some);
        }
        let own = own_templates(model_dir)?;
        if let Some((_, template, source)) = own.iter().find(|(own, ..)| own == choice) {
            return Self::new(template, format!("{source}, {choice}"), special_tokens).map(Some);
        }
        if let Some((name, template)) = BUILT_IN.iter().find(|(name, _)| *name == choice) {
            return Self::new(template, format!("built-in {name}"), special_tokens).map(Some);
        }
        if files::is_dir(path)
            && let Some(template) = Self::own(path, special_tokens.clone())?
        {
            return Ok(Some(template));
        }
        if let Some((name, template)) = BUILT_IN.iter().find(|(name, _)| plain(name) == plain(choice)) {
            return Self::new(template, format!("built-in {name}"), special_tokens).map(Some);
        }
        let known = names(own.iter().map(|(name, ..)| name.as_str()).chain(BUILT_IN.map(|(name, _)| name)));
        let problem = format!("the chat template `{choice}` is neither a file nor one of {known}");
        Err(Error::setting(CHAT_TEMPLATE, problem))
    }

    /// The template of a directory's own files, with the one for tools if there is one.
    fn own(dir: &Path, special_tokens: Map<String, Value>) -> Result<Option<Self>> {
        let own = own_templates(dir)?;
        let find = |name: &str| own.iter().find(|(own, ..)| own == name);
        let Some((_, template, source)) = find(DEFAULT) else {
            return match own.is_empty() {
                true => Ok(None),
                false => {
                    let names = names(own.iter().map(|(name, ..)| name.as_str()));
                    let problem = format!(
                        "has the chat templates {names}, but none is named default; choose one with {CHAT_TEMPLATE}"
                    );
                    Err(Error::file(dir, problem))
                }
            };
        };
        let mut loaded = Self::new(template, source.clone(), special_tokens)?;
        if let Some((_, template, source)) = find(TOOL_USE) {
            loaded.for_tools = Some(compile(template, source)?);
        }
        Ok(Some(loaded))
    }

    /// Compiles `template`. Messages name its `source`.
    ///
    /// # Errors
    /// A template that is too long or is not valid.
    pub fn new(template: &str, source: String, special_tokens: Map<String, Value>) -> Result<Self> {
        let main = compile(template, &source)?;
        let (variables, wants_parts) = (Map::new(), OnceLock::new());
        Ok(Self { main, for_tools: None, special_tokens, source, variables, wants_parts })
    }

    /// Lets the template write `moment` as the date and time of now, in the form `2026-03-04T05:06:07`.
    ///
    /// # Errors
    /// A moment of another form.
    pub fn at(mut self, moment: &str) -> Result<Self> {
        let wrong = |e: chrono::ParseError| {
            Error::setting(
                TEMPLATE_DATE,
                format!("{TEMPLATE_DATE} is {moment:?}, but must be like 2026-03-04T05:06:07: {e}"),
            )
        };
        let moment: NaiveDateTime = moment.parse().map_err(wrong)?;
        for compiled in [Some(&mut self.main), self.for_tools.as_mut()].into_iter().flatten() {
            functions::set_moment(&mut compiled.environment, Some(moment));
        }
        Ok(self)
    }

    /// Gives the template's variables values for every conversation. Each of `arguments` is `name=value`; the value is JSON, or else
    /// a text.
    ///
    /// # Errors
    /// An argument without a name.
    pub fn with_arguments(mut self, arguments: &[String]) -> Result<Self> {
        for argument in arguments {
            let (name, value) =
                argument.split_once('=').filter(|(name, _)| !name.trim().is_empty()).ok_or_else(|| {
                    let problem = format!(
                        "{TEMPLATE_ARG} is {argument:?}, but must be NAME=VALUE, such as enable_thinking=false"
                    );
                    Error::setting(TEMPLATE_ARG, problem)
                })?;
            let value = match value.trim() {
                "True" => Value::Bool(true),
                "False" => Value::Bool(false),
                "None" => Value::Null,
                text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(value)),
            };
            self.variables.insert(name.trim().to_owned(), value);
        }
        Ok(self)
    }

    /// Fingerprint of its text.
    pub fn fingerprint(&self) -> String {
        Fingerprint::of(self.main.text.as_bytes()).text()
    }

    /// Source of the template, for messages.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The texts of the template and of its variant for conversations with tools.
    pub fn texts(&self) -> (&str, Option<&str>) {
        (&self.main.text, self.for_tools.as_ref().map(|compiled| compiled.text.as_str()))
    }

    /// True if the template writes today's date or the time.
    pub fn writes_the_date(&self) -> bool {
        let (main, for_tools) = self.texts();
        [Some(main), for_tools].into_iter().flatten().any(|text| text.contains("strftime_now"))
    }

    /// The text of the model's end token.
    pub fn eos_token(&self) -> Option<&str> {
        self.special_tokens.get("eos_token").and_then(Value::as_str)
    }

    /// True if the template for these tools marks the assistant's text by `{% generation %}`.
    pub fn marks_regions(&self, tools: Option<&Value>) -> bool {
        self.compiled(tools).marks_regions
    }

    /// The text that the template writes after an answer, without white space around it; `None` where there is none.
    pub fn end_of_turn(&self) -> Option<String> {
        const ANSWER: &str = "0123456789";
        let message = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
        let rendered = self.render(&[message("user", "a"), message("assistant", ANSWER)], None, false).ok()?;
        let end = rendered.rsplit_once(ANSWER)?.1.trim();
        (!end.is_empty()).then(|| end.to_owned())
    }

    /// True for a template that leaves out a content that is a text and writes one that is a list of parts.
    pub fn wants_parts(&self) -> bool {
        const TEXT: &str = "0123456789";
        let writes = |content: Value| {
            let rendered = self.render(&[serde_json::json!({ "role": "user", "content": content })], None, false);
            rendered.is_ok_and(|text| text.contains(TEXT))
        };
        let wants = || !writes(TEXT.into()) && writes(serde_json::json!([{ "type": "text", "text": TEXT }]));
        *self.wants_parts.get_or_init(wants)
    }

    fn compiled(&self, tools: Option<&Value>) -> &Compiled {
        tools.and(self.for_tools.as_ref()).unwrap_or(&self.main)
    }

    /// Renders `messages`; `add_generation_prompt` adds the beginning of an assistant turn.
    ///
    /// # Errors
    /// The template refuses the messages, or runs without end.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        self.render_input(&Input { messages, tools, variables: None }, add_generation_prompt)
            .map(|rendered| rendered.text)
    }

    /// Like [`Self::render`], with further variables and with the regions that the template marks. Messages reach the template as
    /// transformers passes them: without fields that are null, and with the reasoning under every name that templates read.
    ///
    /// # Errors
    /// As [`Self::render`], or marks that do not pair up.
    pub fn render_input(&self, input: &Input, add_generation_prompt: bool) -> Result<Rendered, String> {
        let compiled = self.compiled(input.tools);
        let messages: Vec<TemplateValue> = input.messages.iter().map(message_value).collect();
        let mut context: Vec<(&str, TemplateValue)> =
            self.special_tokens.iter().map(|(k, v)| (k.as_str(), functions::template_value(v))).collect();
        context.push(("messages", TemplateValue::from(messages)));
        context.push(("tools", functions::template_value(input.tools.unwrap_or(&Value::Null))));
        context.push(("documents", functions::template_value(&Value::Null)));
        context.push(("add_generation_prompt", TemplateValue::from(add_generation_prompt)));
        let variables = self.variables.iter().chain(input.variables.into_iter().flatten());
        context.extend(variables.map(|(k, v)| (k.as_str(), functions::template_value(v))));
        let context = TemplateValue::from_pairs(context);
        // Errors hold the template's variables, so they too are dropped where the stack is deep.
        let render = || compiled.render(context).map_err(|e| self.problem(&e));
        let rendered = watched(Work::Template, 0, || match compiled.nests {
            true => on_deep_stack(render).map_err(|e| format!("{}: {e}", self.source)).flatten(),
            false => render(),
        });
        let marked = rendered?;
        if !compiled.marks_regions {
            return Ok(Rendered { text: marked, regions: Vec::new() });
        }
        take_out_marks(&marked).ok_or_else(|| format!("{}: its generation regions do not pair up", self.source))
    }

    fn problem(&self, error: &minijinja::Error) -> String {
        if error.kind() == ErrorKind::OutOfFuel {
            return format!("{}: runs without end", self.source);
        }
        let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
        let line = error.line().map_or_else(String::new, |line| format!(", line {line}"));
        format!("the chat template refuses it: {detail} ({}{line})", self.source)
    }
}

/// A value as JSON with the spacing of Python.
pub fn json_text(value: &Value) -> String {
    functions::json_text(&functions::template_value(value))
}

/// The date and time of now where the program runs, for [`ChatTemplate::at`].
pub fn now() -> String {
    functions::local_now().format("%Y-%m-%dT%H:%M:%S").to_string()
}

/// Names of the built-in templates, for messages.
pub fn built_in_names() -> String {
    names(BUILT_IN.iter().map(|(name, _)| *name))
}

impl Compiled {
    /// The text with the marks of regions. The values of the rendering are dropped here too.
    fn render(&self, context: TemplateValue) -> Result<String, minijinja::Error> {
        functions::begin_rendering();
        self.environment.get_template(NAME).and_then(|template| template.render(context))
    }
}

/// Runs `work` with a stack that deep recursion does not exhaust.
///
/// # Errors
/// The system gives no such stack.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    #[cfg(target_arch = "wasm32")]
    return Ok(work());
    #[cfg(not(target_arch = "wasm32"))]
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(DEEP_STACK).spawn_scoped(scope, || caught(work))?;
        let done = thread.join().unwrap_or_else(|_| Err("stopped unexpectedly".to_owned()));
        done.map_err(std::io::Error::other)
    })
}

/// Names that messages give to the assistant's reasoning; templates read the first, those of gpt-oss the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message as transformers passes it to templates: null fields are left out, and a reasoning stands under the names that templates
/// read.
fn message_value(message: &Value) -> TemplateValue {
    let Value::Object(fields) = message else { return functions::template_value(message) };
    let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
    let mut pairs = Vec::with_capacity(fields.len() + 2);
    let reasoning = REASONING.into_iter().find_map(given);
    if let Some(reasoning) = reasoning {
        pairs.push(("thinking", functions::template_value(given("thinking").unwrap_or(reasoning))));
    }
    let kept = fields.iter().filter(|(name, value)| !(value.is_null() || reasoning.is_some() && *name == "thinking"));
    pairs.extend(kept.map(|(name, value)| (name.as_str(), functions::template_value(value))));
    if let Some(reasoning) = reasoning {
        pairs.push(("reasoning_content", functions::template_value(reasoning)));
    }
    TemplateValue::from_pairs(pairs)
}

fn compile(template: &str, source: &str) -> Result<Compiled> {
    if template.len() > MAX_BYTES {
        let problem = format!("has {} bytes; a chat template may have {MAX_BYTES}", template.len());
        return Err(Error::file(source, problem));
    }
    // Jinja knows one kind of line break.
    let text = template.replace("\r\n", "\n").replace('\r', "\n");
    let (template, marks_regions) = with_marks(&text);
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| Error::file(source, e))?,
    );
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    functions::register(&mut environment);
    let added = on_deep_stack(|| {
        environment.add_template_owned(NAME, template).map_err(|e| {
            let line = e.line().map_or_else(String::new, |line| format!(" in line {line}"));
            let detail = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
            format!("is no chat template that can be read{line}: {detail}")
        })
    });
    let added = added.map_err(|e| format!("cannot be compiled: {e}")).flatten();
    added.map_err(|problem| Error::file(source, problem))?;
    let nests = can_nest(&text);
    Ok(Compiled { environment, text, marks_regions, nests })
}

/// True if a loop of the template could put a value into another without end: it assigns something other than a plain value to an
/// attribute, which alone outlives a round of a loop.
fn can_nest(template: &str) -> bool {
    const ASSIGNMENT: &str = r"(?s)\{%[-+]?\s*set\b([^=]*)=(.*?)[-+]?%\}";
    const PLAIN: &str = r#"^(?i:true|false|none|-?\d+|'[^']*'|"[^"]*"|loop\.index0?)$"#;
    let [Ok(assignment), Ok(plain)] = [ASSIGNMENT, PLAIN].map(regex::Regex::new) else { return true };
    let nests = |found: regex::Captures| found[1].contains('.') && !plain.is_match(found[2].trim());
    assignment.captures_iter(template).any(nests)
}

/// Replaces `{% generation %}` and `{% endgeneration %}` by scopes of their own, as they are in transformers, around marks in the
/// text.
fn with_marks(template: &str) -> (String, bool) {
    let mut marks = false;
    let mut replaced = template.to_owned();
    let begin = format!("{{%$1 with %}}{REGION_BEGIN}{{% if true $2%}}");
    let end = format!("{{%$1 endif %}}{REGION_END}{{% endwith $2%}}");
    for (tag, block) in [("generation", begin), ("endgeneration", end)] {
        let Ok(pattern) = regex::Regex::new(&format!(r"\{{%([-+]?)\s*{tag}\s*([-+]?)%\}}")) else { continue };
        marks |= pattern.is_match(&replaced);
        replaced = pattern.replace_all(&replaced, block.as_str()).into_owned();
    }
    (replaced, marks)
}

fn take_out_marks(marked: &str) -> Option<Rendered> {
    let (mut text, mut regions, mut begin) = (String::with_capacity(marked.len()), Vec::new(), None);
    for character in marked.chars() {
        match (character, begin) {
            (REGION_BEGIN, None) => begin = Some(text.len()),
            (REGION_END, Some(start)) => {
                regions.push(start..text.len());
                begin = None;
            }
            (REGION_BEGIN | REGION_END, _) => return None,
            _ => text.push(character),
        }
    }
    begin.is_none().then_some(Rendered { text, regions })
}

/// Lists the templates of a model's files as (name, template, file), in the order in which transformers prefers them:
/// `chat_template.jinja` with `additional_chat_templates/NAME.jinja`, then `tokenizer_config.json`, then `chat_template.json`.
fn own_templates(model_dir: &Path) -> Result<Vec<(String, String, String)>> {
    let named = |name: &str, path: &Path| -> Result<(String, String, String)> {
        Ok((name.to_owned(), read(path)?, path.display().to_string()))
    };
    let (own, further) = (model_dir.join(OWN_FILE), model_dir.join(FURTHER));
    let mut templates = Vec::new();
    if files::is_file(&own) {
        templates.push(named(DEFAULT, &own)?);
    }
    if files::is_dir(&further) {
        let mut names = files::names(&further).map_err(|e| Error::file(&further, format!("cannot be read: {e}")))?;
        names.sort_unstable();
        for file in names {
            if let Some(name) = file.strip_suffix(".jinja") {
                templates.push(named(name, &further.join(&file))?);
            }
        }
    }
    if templates.iter().any(|(name, ..)| name == DEFAULT) {
        return Ok(templates);
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let settings = model_dir.join(file);
        if !companions::is_file(&settings) {
            continue;
        }
        let found = templates_of_settings(&settings)?;
        if !found.is_empty() {
            let source = || settings.display().to_string();
            templates.extend(found.into_iter().map(|(name, template)| (name, template, source())));
            break;
        }
    }
    Ok(templates)
}

/// Writes the template into a directory as transformers saves it, and takes earlier ones out.
///
/// # Errors
/// A file that cannot be written or removed.
pub fn save(template: &ChatTemplate, dir: &Path) -> Result<()> {
    let failed = |path: &Path, e: std::io::Error| Error::file(path, format!("cannot be written: {e}"));
    let (main, for_tools) = template.texts();
    files::write_atomically(&dir.join(OWN_FILE), main.as_bytes())?;
    let (further, legacy) = (dir.join(FURTHER), dir.join("chat_template.json"));
    for path in [&further, &legacy] {
        files::remove_if_there(path).map_err(|e| failed(path, e))?;
    }
    let settings = dir.join("tokenizer_config.json");
    if files::is_file(&settings) {
        let mut fields = parse_object(&settings, &read(&settings)?)?;
        if fields.shift_remove("chat_template").is_some() {
            files::write_atomically(&settings, format!("{:#}\n", Value::Object(fields)).as_bytes())?;
        }
    }
    if let Some(text) = for_tools {
        files::create_dir_all(&further).map_err(|e| failed(&further, e))?;
        files::write_atomically(&further.join(format!("{TOOL_USE}.jinja")), text.as_bytes())?;
    }
    Ok(())
}

/// Reads `chat_template` of a JSON file: one template, or a list of named templates.
fn templates_of_settings(path: &Path) -> Result<Vec<(String, String)>> {
    let wrong = || Error::field(path, "chat_template", "must be a template, or a list of {\"name\", \"template\"}");
    match parse_object(path, &read(path)?)?.remove("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(template)) => Ok(vec![(DEFAULT.to_owned(), template)]),
        Some(Value::Array(list)) => {
            let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
            list.iter().map(|entry| text(entry, "name").zip(text(entry, "template")).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

fn template_of_file(path: &Path) -> Result<String> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return read(path);
    }
    let mut templates = templates_of_settings(path)?;
    let default = templates.iter().position(|(name, _)| name == DEFAULT).unwrap_or(0);
    match default < templates.len() {
        true => Ok(templates.swap_remove(default).1),
        false => Err(Error::field(path, "chat_template", "is missing; it must be a template")),
    }
}

/// The text of a file without the byte order mark that some editors put before it.
fn read(path: &Path) -> Result<String> {
    let text = companions::text(path)?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The letters and digits of a name, so that `llama3` and `Llama-3` are the same.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::fs;

    use super::*;

    fn special() -> Map<String, Value> {
        json!({"bos_token": "<s>", "eos_token": "</s>"}).as_object().cloned().unwrap()
    }

    fn template(text: &str) -> ChatTemplate {
        ChatTemplate::new(text, "a test".into(), special()).unwrap()
    }

    fn render(text: &str, messages: Value) -> Result<String, String> {
        template(text).render(messages.as_array().unwrap(), None, false)
    }

    #[test]
    fn every_built_in_template_renders_a_conversation() {
        let messages = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hi "},
                {"role": "assistant", "content": "Hello"}]);
        let expected = [
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n",
            "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n",
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello </s>",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
             Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>",
            "<s>System: Be kind.\nUser: Hi\nAssistant: Hello</s>\n",
            "<|system|>\nBe kind.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nHello</s>\n",
        ];
        let directory = tempfile::tempdir().unwrap();
        for ((name, _), expected) in BUILT_IN.iter().zip(expected) {
            let template = ChatTemplate::load(directory.path(), Some(name), special()).unwrap().unwrap();
            assert_eq!(template.render(messages.as_array().unwrap(), None, false).unwrap(), expected, "{name}");
            let question = &messages.as_array().unwrap()[..2];
            let asked = template.render(question, None, true).unwrap();
            assert!(expected.starts_with(&asked), "{name}: {asked}");
        }
    }

    #[test]
    fn templates_come_from_the_files_that_transformers_reads() {
        let directory = tempfile::tempdir().unwrap();
        let load = |choice: Option<&str>| ChatTemplate::load(directory.path(), choice, special());
        let text = |choice, tools: Option<&Value>| load(choice).unwrap().unwrap().render(&[], tools, false).unwrap();
        let message = |choice| load(choice).err().expect("an error").to_string();
        assert!(load(None).unwrap().is_none());
        assert!(message(Some("chatlm")).contains("`chatlm` is neither a file nor one of chatml, gemma"));
        let settings = directory.path().join("tokenizer_config.json");
        fs::write(&settings, r#"{"chat_template": "own"}"#).unwrap();
        assert_eq!(text(None, None), "own");
        let named = |first: &str| {
            let list =
                json!({"chat_template": [{"name": first, "template": "d"}, {"name": "tool_use", "template": "t"}]});
            fs::write(&settings, list.to_string()).unwrap();
        };
        named("default");
        assert_eq!((text(None, None), text(None, Some(&json!([])))), ("d".into(), "t".into()));
        assert_eq!(text(Some("tool_use"), None), "t");
        let json_file = settings.to_str().unwrap();
        assert_eq!(text(Some(json_file), None), "d");
        named("rag");
        assert!(message(None).contains("rag, tool_use, but none is named default"));
        fs::write(&settings, r#"{"chat_template": 3}"#).unwrap();
        assert!(message(None).contains("must be a template"));
        fs::write(directory.path().join("chat_template.jinja"), "jinja").unwrap();
        assert_eq!(text(None, None), "jinja");
        fs::write(directory.path().join("chat_template.jinja"), "a\n{% for %}").unwrap();
        assert!(message(None).contains("chat_template.jinja: is no chat template that can be read in line 2"));
    }

    #[test]
    fn problems_inside_a_template_are_named() {
        let message = |text: &str| render(text, json!([])).unwrap_err();
        assert!(
            message("\n{{ raise_exception('roles must alternate') }}")
                .contains("roles must alternate (a test, line 2)")
        );
        assert!(message("{{ messages[0]['role'] }}").contains("refuses it"));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(message(endless).contains("runs without end"));
        let recursive = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
        assert!(message(recursive).contains("recursion"), "{}", message(recursive));
    }

    #[test]
    fn values_nested_deep_end_in_a_sentence_and_never_in_an_abort() {
        let nested = |levels: usize, end: &str| {
            let level = "{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}".repeat(levels / 90_000);
            let rest = format!("{{% for i in range({}) %}}{{% set ns.x = [ns.x] %}}{{% endfor %}}", levels % 90_000);
            render(&format!("{{% set ns = namespace(x=[]) %}}{level}{rest}{end}"), json!([]))
        };
        assert!(nested(400, "{{ ns.x }}").unwrap().contains("[[[[[]]]]]"));
        for print in ["{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x | string }}"] {
            let problem = nested(20_000, print).unwrap_err();
            assert!(problem.contains("nests deeper than 500 values"), "{print}: {problem}");
        }
        assert_eq!(nested(30_000, "{{ ns.x == [ns.x] }}").unwrap(), "False");
        assert_eq!(nested(360_000, "ok").unwrap(), "ok");
        // The error holds the variables.
        assert!(nested(360_000, "{{ raise_exception('no') }}").unwrap_err().contains("no"));
    }

    #[test]
    fn generation_regions_are_found_and_leave_no_trace() {
        let text =
            "{% for m in messages %}\n  {% generation %}\n{{ m.content }}.\n  {%- endgeneration %}\n\n{% endfor %}";
        let template = template(text);
        assert!(template.marks_regions(None));
        let messages = json!([{"content": "one"}, {"content": "\u{e9}"}]);
        let input = Input { messages: messages.as_array().unwrap(), ..Default::default() };
        let rendered = template.render_input(&input, false).unwrap();
        assert_eq!((rendered.text.as_str(), rendered.regions), ("one.\n\u{e9}.\n", vec![0..4, 5..8]));
        let odd = json!([{"content": REGION_BEGIN.to_string()}]);
        assert!(template.render(odd.as_array().unwrap(), None, false).unwrap_err().contains("do not pair up"));
    }

    #[test]
    fn variables_and_the_date_are_set() {
        let text = "{{ enable_thinking }} {{ effort }} {{ n + 1 }} {{ strftime_now('%d %b %Y') }}";
        let arguments = ["enable_thinking=false", "effort=high", "n=2"].map(str::to_owned);
        let set = || template(text).with_arguments(&arguments).unwrap().at("2026-03-04T05:06:07").unwrap();
        assert_eq!(set().render(&[], None, false).unwrap(), "False high 3 04 Mar 2026");
        assert!(set().writes_the_date() && !template("x").writes_the_date());
        let own = json!({"effort": "low"});
        let input = Input { variables: own.as_object(), ..Default::default() };
        assert_eq!(set().render_input(&input, false).unwrap().text, "False low 3 04 Mar 2026");
        let problem = template(text).with_arguments(&["effort".to_owned()]).err().unwrap().to_string();
        assert!(problem.contains("must be NAME=VALUE"), "{problem}");
        let problem = template(text).at("today").err().unwrap().to_string();
        assert!(problem.contains("must be like 2026-03-04T05:06:07"), "{problem}");
    }

    #[test]
    fn further_templates_lie_in_a_directory_and_come_back_from_it() {
        let place = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| place.path().join(name));
        fs::create_dir_all(from.join(FURTHER)).unwrap();
        fs::create_dir_all(to.join(FURTHER)).unwrap();
        fs::write(from.join(OWN_FILE), "d").unwrap();
        fs::write(from.join(FURTHER).join("tool_use.jinja"), "t").unwrap();
        fs::write(from.join(FURTHER).join("rag.jinja"), "r").unwrap();
        fs::write(to.join(FURTHER).join("old.jinja"), "o").unwrap();
        fs::write(to.join("tokenizer_config.json"), r#"{"chat_template": "old", "eos_token": "</s>"}"#).unwrap();
        let load = |dir: &Path, choice| ChatTemplate::load(dir, choice, special()).unwrap().unwrap();
        let texts =
            |template: &ChatTemplate| [None, Some(&json!([]))].map(|tools| template.render(&[], tools, false).unwrap());
        assert_eq!(texts(&load(&from, Some("rag"))), ["r", "r"]);
        save(&load(&from, None), &to).unwrap();
        assert_eq!(texts(&load(&to, None)), ["d", "t"]);
        // The directory of an adapter goes before the model's own.
        assert_eq!(texts(&load(place.path(), from.to_str())), ["d", "t"]);
        assert!(!to.join(FURTHER).join("old.jinja").exists());
        assert!(!fs::read_to_string(to.join("tokenizer_config.json")).unwrap().contains("chat_template"));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_template() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(OWN_FILE), "\u{feff}own").unwrap();
        let given = place.path().join("given.jinja");
        fs::write(&given, "\u{feff}given").unwrap();
        for (choice, text) in [(None, "own"), (given.to_str(), "given")] {
            let template = ChatTemplate::load(place.path(), choice, special()).unwrap().unwrap();
            assert_eq!(template.render(&[], None, false).unwrap(), text);
        }
    }

    #[test]
    fn built_in_templates_are_known_by_other_spellings() {
        let place = tempfile::tempdir().unwrap();
        for choice in ["llama3", "Llama-3", "llama_3", "ChatML"] {
            assert!(ChatTemplate::load(place.path(), Some(choice), special()).unwrap().is_some(), "{choice}");
        }
        let message = ChatTemplate::load(place.path(), Some("llama"), special()).err().unwrap().to_string();
        assert!(message.contains("`llama` is neither a file nor one of chatml"), "{message}");
    }

    #[test]
    fn templates_that_could_nest_values_have_a_deep_stack() {
        for plain in
            ["{% set ns.x = true %}", "{% set ns.i = loop.index0 %}", "{% set x = [x] %}", "{%- set ns.x = 'a' -%}"]
        {
            assert!(!can_nest(plain), "{plain}");
        }
        for nests in ["{% set ns.x = [ns.x] %}", "{%- set ns . x = y -%}", "{% set ns.x = namespace(a=ns.x) %}"] {
            assert!(can_nest(nests), "{nests}");
        }
        let deep = "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}ok";
        assert_eq!(render(deep, json!([])).unwrap(), "ok");
    }
}
