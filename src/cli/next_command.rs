//! The commands that a finished command suggests: each is complete, quoted for a shell, and works as it stands.

use std::path::Path;

use loraine::infer::text_format::{TemplateChoice, TextFormat};
use loraine::model::config::ModelConfig;
use loraine::train::prepare::PreparedRun;
use loraine::train::settings::{Method, RunSettings};

use super::show::{shell_text, shell_word};

/// Returns the command that shows what a run teaches: a chat for conversations, a text that goes on for other texts, and a loss where
/// there is no tokenizer. `model` is the user's name of the base.
pub fn after_training(run: &PreparedRun, model: &Path) -> String {
    let settings = &run.settings;
    let out = shell_word(&settings.out);
    let given = match settings.method {
        Method::Full => format!("--model {out}"),
        Method::Lora | Method::Qlora => {
            format!("--model {}{} --adapter {out}", shell_word(model), quantization(settings))
        }
    };
    if run.data.chat_template.is_some() {
        // The template is saved with what was trained.
        return format!("loraine chat {given}");
    }
    match &run.opening {
        Some(text) => format!("loraine generate {given} --raw --prompt {}", shell_text(text)),
        None => {
            let longest = settings.max_seq_len.map_or(String::new(), |length| format!(" --max-seq-len {length}"));
            let sources = match run.data.source.is_file() {
                true => vec![run.data.source.as_path()],
                false => settings.data.iter().map(AsRef::as_ref).collect(),
            };
            let data: String = sources.into_iter().map(|source| format!(" --data {}", shell_word(source))).collect();
            format!("loraine eval {given}{data}{longest}")
        }
    }
}

/// The flags that hold the base as a run has held it.
fn quantization(settings: &RunSettings) -> String {
    if settings.method != Method::Qlora {
        return String::new();
    }
    if settings.keep_blocks {
        return " --quant keep".to_owned();
    }
    let mut flags = format!(" --quant {}", settings.quant);
    if !settings.double_quant {
        flags += " --no-double-quant";
    }
    if settings.quantize_embedding {
        flags += " --quantize-embedding";
    }
    flags
}

/// Returns the command that tries a model directory without an adapter.
pub fn after_export(dir: &Path) -> String {
    let model = shell_word(dir);
    let own = |config| TextFormat::load(dir, &config, &TemplateChoice::Own, &[], &[]);
    let format = ModelConfig::from_dir(dir).and_then(own);
    match format {
        Ok(format) if format.template.is_some() => format!("loraine chat --model {model}"),
        Ok(_) => format!("loraine generate --model {model} --raw --prompt 'Once upon a time'"),
        // A model without a tokenizer.
        Err(_) => format!("loraine info --model {model}"),
    }
}
