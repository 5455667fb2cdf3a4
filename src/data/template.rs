//! Chat templates: the model's own, a file's or a built-in one, rendered as transformers renders them.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as TemplateValue};
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::template_functions as functions;
use crate::model::json_fields::parse_object;
use crate::setting::CHAT_TEMPLATE;
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
/// Stack for the template parser, which recurses for each operator of a chain such as `- - - 1`.
#[cfg(not(target_arch = "wasm32"))]
const COMPILER_STACK: usize = 512 << 20;
const NAME: &str = "chat template";
/// Names in lists of templates: the template for conversations without tools, and the one with tools.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// Private-use characters that mark the beginning and the end of an assistant region in the rendered text.
const REGION_BEGIN: char = '\u{10fff0}';
const REGION_END: char = '\u{10fff1}';

/// A compiled template with the special tokens that it may use.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Separate template for conversations with tools, which some models have.
    for_tools: Option<Environment<'static>>,
    special_tokens: Map<String, Value>,
    source: String,
    marks_regions: bool,
}

/// A rendered text and the byte ranges of its `{% generation %}` regions.
pub struct Rendered {
    pub text: String,
    pub regions: Vec<std::ops::Range<usize>>,
}

impl ChatTemplate {
    /// Finds the template that `choice` names: a `.jinja` or `.json` file, one of the model's named templates, or a built-in name.
    /// Without a choice it returns the model's own template, or `None` if the model has none.
    ///
    /// `special_tokens` maps `bos_token`, `eos_token` and the like to their text.
    pub fn load(model_dir: &Path, choice: Option<&str>, special_tokens: Map<String, Value>) -> Result<Option<Self>> {
        let own = own_templates(model_dir)?;
        let find = |name: &str| own.iter().find(|(own, ..)| own == name);
        let Some(choice) = choice else {
            let Some((_, template, source)) = find(DEFAULT) else {
                return match own.is_empty() {
                    true => Ok(None),
                    false => {
                        let names = names(own.iter().map(|(name, ..)| name.as_str()));
                        let problem = format!(
                            "has the chat templates {names}, but none is named default; choose one with {CHAT_TEMPLATE}"
                        );
                        Err(Error::file(model_dir, problem))
                    }
                };
            };
            let mut loaded = Self::new(template, source.clone(), special_tokens)?;
            if let Some((_, template, source)) = find(TOOL_USE) {
                loaded.for_tools = Some(compile(template, source)?.0);
            }
            return Ok(Some(loaded));
        };
        let path = Path::new(choice);
        if files::is_file(path) {
            return Self::new(&template_of_file(path)?, choice.to_owned(), special_tokens).map(Some);
        }
        if let Some((_, template, source)) = find(choice) {
            return Self::new(template, format!("{source}, {choice}"), special_tokens).map(Some);
        }
        if let Some((name, template)) = BUILT_IN.iter().find(|(name, _)| *name == choice) {
            return Self::new(template, format!("built-in {name}"), special_tokens).map(Some);
        }
        let known = names(own.iter().map(|(name, ..)| name.as_str()).chain(BUILT_IN.map(|(name, _)| name)));
        let problem = format!("the chat template `{choice}` is neither a file nor one of {known}");
        Err(Error::setting(CHAT_TEMPLATE, problem))
    }

    /// Compiles `template`. Messages name its `source`.
    pub fn new(template: &str, source: String, special_tokens: Map<String, Value>) -> Result<Self> {
        let (environment, marks_regions) = compile(template, &source)?;
        Ok(Self { environment, for_tools: None, special_tokens, source, marks_regions })
    }

    /// Source of the template, for messages.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of the model's end token.
    pub fn eos_token(&self) -> Option<&str> {
        self.special_tokens.get("eos_token").and_then(Value::as_str)
    }

    /// True if the template marks the assistant's text by `{% generation %}`.
    pub fn marks_regions(&self) -> bool {
        self.marks_regions
    }

    /// Renders `messages`; `add_generation_prompt` adds the beginning of an assistant turn.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        self.render_regions(messages, tools, add_generation_prompt).map(|rendered| rendered.text)
    }

    /// Like [`Self::render`], with the regions that the template marks.
    pub fn render_regions(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, String> {
        let mut context: Vec<(&str, TemplateValue)> =
            self.special_tokens.iter().map(|(k, v)| (k.as_str(), TemplateValue::from(Serde(v)))).collect();
        context.push(("messages", TemplateValue::from(Serde(messages))));
        context.push(("tools", TemplateValue::from(Serde(tools))));
        context.push(("documents", TemplateValue::from(())));
        context.push(("add_generation_prompt", TemplateValue::from(add_generation_prompt)));
        let context = TemplateValue::from_pairs(context);
        let environment = tools.and(self.for_tools.as_ref()).unwrap_or(&self.environment);
        functions::begin_rendering();
        RENDERINGS.fetch_add(1, Ordering::Relaxed);
        let rendered = environment.get_template(NAME).and_then(|template| template.render(context));
        RENDERINGS.fetch_add(1, Ordering::Relaxed);
        let marked = rendered.map_err(|e| self.problem(&e))?;
        if !self.marks_regions {
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

/// Incremented at the beginning and at the end of each rendering, so it is odd during a rendering.
static RENDERINGS: AtomicU64 = AtomicU64::new(0);

/// Returns the number of the current rendering, so that a watchdog can measure its time. Only for programs that render on one
/// thread.
pub fn rendering() -> Option<u64> {
    let count = RENDERINGS.load(Ordering::Relaxed);
    (count % 2 == 1).then_some(count)
}

/// Names of the built-in templates, for messages.
pub fn built_in_names() -> String {
    names(BUILT_IN.iter().map(|(name, _)| *name))
}

/// Compiles a template. Also returns whether it has generation regions.
fn compile(template: &str, source: &str) -> Result<(Environment<'static>, bool)> {
    if template.len() > MAX_BYTES {
        let problem = format!("has {} bytes; a chat template may have {MAX_BYTES}", template.len());
        return Err(Error::file(source, problem));
    }
    let (template, marks_regions) = with_marks(template);
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| Error::file(source, e))?,
    );
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    functions::register(&mut environment);
    let mut added = Ok(());
    let add = || added = environment.add_template_owned(NAME, template);
    #[cfg(target_arch = "wasm32")]
    add();
    #[cfg(not(target_arch = "wasm32"))]
    std::thread::scope(|scope| {
        let compiler = std::thread::Builder::new().stack_size(COMPILER_STACK).spawn_scoped(scope, add);
        compiler.map(|_| ()).map_err(|e| Error::file(source, format!("cannot be compiled: {e}")))
    })?;
    added.map_err(|e| {
        let line = e.line().map_or_else(String::new, |line| format!(" in line {line}"));
        let detail = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
        Error::file(source, format!("is no chat template that can be read{line}: {detail}"))
    })?;
    Ok((environment, marks_regions))
}

/// Replaces `{% generation %}` and `{% endgeneration %}` by standard Jinja blocks around marks in the text.
fn with_marks(template: &str) -> (String, bool) {
    let mut marks = false;
    let mut replaced = template.to_owned();
    for (tag, mark) in [("generation", REGION_BEGIN), ("endgeneration", REGION_END)] {
        let Ok(pattern) = regex::Regex::new(&format!(r"\{{%([-+]?)\s*{tag}\s*([-+]?)%\}}")) else { continue };
        marks |= pattern.is_match(&replaced);
        let block = format!("{{%$1 if true %}}{mark}{{% endif $2%}}");
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

/// Lists the templates of a model's files as (name, template, file). `chat_template.jinja` comes before `tokenizer_config.json`.
fn own_templates(model_dir: &Path) -> Result<Vec<(String, String, String)>> {
    let own = model_dir.join("chat_template.jinja");
    if files::is_file(&own) {
        return Ok(vec![(DEFAULT.to_owned(), read(&own)?, own.display().to_string())]);
    }
    let settings = model_dir.join("tokenizer_config.json");
    if !files::is_file(&settings) {
        return Ok(Vec::new());
    }
    let templates = templates_of_settings(&settings)?;
    Ok(templates.into_iter().map(|(name, template)| (name, template, settings.display().to_string())).collect())
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

fn read(path: &Path) -> Result<String> {
    files::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))
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
    fn generation_regions_are_found_and_leave_no_trace() {
        let text =
            "{% for m in messages %}\n  {% generation %}\n{{ m.content }}.\n  {%- endgeneration %}\n\n{% endfor %}";
        let template = template(text);
        assert!(template.marks_regions());
        let messages = json!([{"content": "one"}, {"content": "\u{e9}"}]);
        let rendered = template.render_regions(messages.as_array().unwrap(), None, false).unwrap();
        assert_eq!((rendered.text.as_str(), rendered.regions), ("one.\n\u{e9}.\n", vec![0..4, 5..8]));
        let odd = json!([{"content": REGION_BEGIN.to_string()}]);
        assert!(template.render(odd.as_array().unwrap(), None, false).unwrap_err().contains("do not pair up"));
    }
}
