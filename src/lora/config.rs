//! PEFT's `LoraConfig` and its file, `adapter_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::hub::python_text;
use crate::model::json_fields::{JsonFields, parse_object};
use crate::{Error, Result, files};

/// Largest rank. It is beyond every useful rank and bounds the sizes that a hostile file can ask for.
pub const MAX_RANK: usize = 1 << 16;

/// PEFT version whose keys the written file has.
const PEFT_VERSION: &str = "0.21.2";

/// Selection of the linear layers that get an adapter.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetModules {
    /// Whole names, or endings after a dot: `q_proj`, `self_attn.q_proj`, `model.layers.0.self_attn.q_proj`.
    Names(Vec<String>),
    /// One regular expression that must match a module's whole name.
    Regex(String),
    /// Every linear layer except the head.
    AllLinear,
}

impl TargetModules {
    /// Parses an argument: `all-linear`, names separated by commas, or a regular expression (if it has any other character).
    pub fn from_argument(text: &str) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ',' | ' ');
        if text.chars().all(is_name) {
            let names = text.split(',').map(str::trim).filter(|n| !n.is_empty());
            Self::Names(names.map(str::to_owned).collect())
        } else {
            Self::from_text(text)
        }
    }

    fn from_text(text: &str) -> Self {
        match text.eq_ignore_ascii_case("all-linear") {
            true => Self::AllLinear,
            false => Self::Regex(text.to_owned()),
        }
    }
}

/// Modules that are left out although `target_modules` selects them.
#[derive(Clone, Debug, PartialEq)]
pub enum ExcludeModules {
    /// Whole names, or endings after a dot, as in [`TargetModules::Names`].
    Names(Vec<String>),
    /// One regular expression that must match a module's whole name.
    Regex(String),
}

impl ExcludeModules {
    /// Parses an argument: names separated by commas, or a regular expression (if it has any other character). Empty is None.
    pub fn from_argument(text: &str) -> Option<Self> {
        match TargetModules::from_argument(text) {
            TargetModules::Names(names) => Some(Self::Names(names)).filter(|_| !text.trim().is_empty()),
            TargetModules::Regex(_) | TargetModules::AllLinear => Some(Self::Regex(text.to_owned())),
        }
    }
}

/// The biases of linear layers that are trained. The names are PEFT's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None of them.
    #[default]
    None,
    /// Those of the adapted layers.
    #[cfg_attr(feature = "cli", value(name = "lora_only", alias = "lora-only"))]
    LoraOnly,
    /// All of them.
    All,
}

/// Initialization of A; B always starts at zero. The names are PEFT's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum LoraInit {
    /// Uniform in ±1/sqrt(in_features), like PyTorch's linear layers.
    #[serde(rename = "true", alias = "True", alias = "kaiming", alias = "default")]
    #[cfg_attr(feature = "cli", value(name = "true", aliases = ["True", "kaiming", "default"]))]
    KaimingUniform,
    /// Normal with standard deviation 1/r.
    Gaussian,
}

/// Reads an initialization as a settings file may have it: PEFT's `true` has no quotes in Python.
///
/// # Errors
/// A value that is no initialization.
pub fn init_or_true<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<LoraInit, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Flag(bool),
        Name(LoraInit),
    }
    match Given::deserialize(deserializer) {
        Ok(Given::Flag(true)) => Ok(LoraInit::KaimingUniform),
        Ok(Given::Name(init)) => Ok(init),
        _ => Err(serde::de::Error::custom("must be true or \"gaussian\"; B always starts at zero")),
    }
}

/// Values by pattern, in the order in which they were given: the first match counts. As JSON or TOML they are one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Patterns<T> {
    /// True if there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Entries<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("values by pattern, such as { q_proj = 8 }")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Patterns(entries))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

/// The fields of PEFT's `LoraConfig` that are supported, under PEFT's names.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the factors, 1 to [`MAX_RANK`].
    pub r: usize,
    /// Numerator of the adapter's scale, above 0.
    pub lora_alpha: f64,
    /// Dropout probability of the input of A during training, from 0 to below 1.
    pub lora_dropout: f64,
    /// The linear layers that get an adapter.
    pub target_modules: TargetModules,
    /// Scale by alpha / sqrt(r) instead of alpha / r.
    pub use_rslora: bool,
    /// Train a magnitude for each output beside the factors (DoRA).
    pub use_dora: bool,
    /// Pairs of a pattern and a rank: a module whose name ends in a match of the pattern has that rank instead of `r`. The first match
    /// counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Pairs of a pattern and an alpha, used like `rank_pattern` instead of `lora_alpha`.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Numbers of the decoder layers that may get adapters, from 0; `None` is all of them.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Modules that get no adapter although `target_modules` selects them.
    pub exclude_modules: Option<ExcludeModules>,
    /// Train a bias of each factor B.
    pub lora_bias: bool,
    /// Ends of the names of modules of which a whole copy is trained: the embedding and the head. Other names are passed over.
    pub modules_to_save: Vec<String>,
    /// Tokens whose rows are trained, with the end of the name of the embedding or the head that they are of.
    pub trainable_token_indices: Vec<(String, Vec<u32>)>,
    /// The biases of linear layers that are trained.
    pub bias: Bias,
    /// The base model by its hub name or its directory, for those who load the adapter later.
    pub base_model_name_or_path: Option<String>,
    /// Initial values of a new adapter's A.
    pub init_lora_weights: LoraInit,
    /// Keys of the file that are set but have no effect, for a warning.
    pub ignored: Vec<String>,
}

impl Default for LoraConfig {
    /// PEFT's defaults, except that `target_modules` selects every linear layer.
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            use_rslora: false,
            use_dora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers_to_transform: None,
            exclude_modules: None,
            lora_bias: false,
            modules_to_save: Vec::new(),
            trainable_token_indices: Vec::new(),
            bias: Bias::None,
            base_model_name_or_path: None,
            init_lora_weights: LoraInit::KaimingUniform,
            ignored: Vec::new(),
        }
    }
}

/// PEFT's settings that change the computation and are not supported.
const REFUSED: [&str; 12] = [
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "alora_invocation_tokens",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "megatron_config",
    "ensure_weight_tying",
];

/// Keys that are read, or that do not affect the computation.
const KNOWN: [&str; 29] = [
    "lora_bias",
    "peft_type",
    "modules_to_save",
    "trainable_token_indices",
    "peft_version",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "base_model_name_or_path",
    "init_lora_weights",
    "bias",
    "task_type",
    "inference_mode",
    "revision",
    "auto_mapping",
    "qalora_group_size",
    "megatron_core",
    "loftq_config",
    "corda_config",
    "eva_config",
    "lora_ga_config",
];

impl LoraConfig {
    /// Reads an `adapter_config.json`.
    ///
    /// # Errors
    /// A file that cannot be read, or a key with a value that is wrong or not supported; the error names the key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = files::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
        Self::from_json(path, &text)
    }

    /// Parses the text of `adapter_config.json`. Only `peft_type` and `target_modules` are required.
    ///
    /// # Errors
    /// Text that is not a JSON object, or a key with a value that is wrong or not supported. `path` is the file that
    /// the error names.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let object = parse_object(path, text)?;
        let fields = JsonFields::new(path, &object);
        let defaults = Self::default();
        match fields.text("peft_type")? {
            Some("LORA") => {}
            Some(other) => return Err(fields.error("peft_type", format!("is `{other}`, but must be `LORA`"))),
            None if fields.value("lora_parameters").is_some() || fields.value("fine_tune_type").is_some() => {
                return Err(Error::file(path, of_mlx(&fields)));
            }
            None => return Err(fields.error("peft_type", "is missing; it must be `LORA`")),
        }
        let bias = match fields.text("bias")? {
            None | Some("none") => Bias::None,
            Some("lora_only") => Bias::LoraOnly,
            Some("all") => Bias::All,
            Some(bias) => {
                return Err(fields.error("bias", format!("is `{bias}`, but must be `none`, `all` or `lora_only`")));
            }
        };
        if let Some(key) = REFUSED.iter().find(|key| fields.value(key).is_some_and(|v| !is_unset(v))) {
            let dir = path.parent().unwrap_or(Path::new("."));
            let advice = format!("merge it into its base with PEFT and take that model: {}", merge_command(dir));
            return Err(fields.error(key, format!("is set, but adapters that use it are not supported; {advice}")));
        }
        let is_ignored = |key: &String, value: &Value| {
            !KNOWN.contains(&key.as_str()) && !REFUSED.contains(&key.as_str()) && !is_unset(value)
        };
        let config = Self {
            r: fields.count("r", MAX_RANK)?.unwrap_or(defaults.r),
            lora_alpha: fields.positive("lora_alpha")?.unwrap_or(defaults.lora_alpha),
            lora_dropout: dropout(&fields)?,
            target_modules: target_modules(&fields)?,
            use_rslora: fields.flag("use_rslora", false)?,
            use_dora: fields.flag("use_dora", false)?,
            rank_pattern: pattern(&fields, "rank_pattern", "rank_pattern.", |f, key| f.required_count(key, MAX_RANK))?,
            alpha_pattern: pattern(&fields, "alpha_pattern", "alpha_pattern.", |f, key| f.required_positive(key))?,
            layers_to_transform: layers_to_transform(&fields)?,
            exclude_modules: exclude_modules(&fields)?,
            lora_bias: fields.flag("lora_bias", false)?,
            modules_to_save: fields.texts("modules_to_save")?.unwrap_or_default(),
            trainable_token_indices: trainable_token_indices(&fields)?,
            bias,
            base_model_name_or_path: fields.text("base_model_name_or_path")?.map(str::to_owned),
            init_lora_weights: init_lora_weights(&fields, path.parent().unwrap_or(Path::new(".")))?,
            ignored: fields.keys().filter(|(k, v)| is_ignored(k, v)).map(|(k, _)| k.clone()).collect(),
        };
        if config.layers_to_transform.is_some() && matches!(config.target_modules, TargetModules::Regex(_)) {
            let problem =
                "cannot stand beside a regular expression in target_modules; name the layers in the expression";
            return Err(fields.error("layers_to_transform", problem));
        }
        Ok(config)
    }

    /// Writes `adapter_config.json` as PEFT does: every key, sorted, indented by two spaces.
    pub fn to_json(&self) -> String {
        let target_modules = match &self.target_modules {
            TargetModules::Names(list) => json!(list),
            TargetModules::Regex(regex) => json!(regex),
            TargetModules::AllLinear => json!("all-linear"),
        };
        let exclude_modules = match &self.exclude_modules {
            None => Value::Null,
            Some(ExcludeModules::Names(list)) => json!(list),
            Some(ExcludeModules::Regex(regex)) => json!(regex),
        };
        let init_lora_weights = match self.init_lora_weights {
            LoraInit::KaimingUniform => json!(true),
            LoraInit::Gaussian => json!("gaussian"),
        };
        let ranks: Map<String, Value> = self.rank_pattern.iter().map(|(k, r)| (k.clone(), json!(r))).collect();
        let alphas: Map<String, Value> = self.alpha_pattern.iter().map(|(k, a)| (k.clone(), number(*a))).collect();
        let tokens: Map<String, Value> =
            self.trainable_token_indices.iter().map(|(of, tokens)| (of.clone(), json!(tokens))).collect();
        let some = |given: bool, value: Value| if given { value } else { Value::Null };
        let keys = [
            ("alora_invocation_tokens", Value::Null),
            ("alpha_pattern", Value::Object(alphas)),
            ("arrow_config", Value::Null),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("bias", json!(self.bias)),
            ("corda_config", Value::Null),
            ("ensure_weight_tying", json!(false)),
            ("eva_config", Value::Null),
            ("exclude_modules", exclude_modules),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", init_lora_weights),
            ("kasa_config", Value::Null),
            ("layer_replication", Value::Null),
            ("layers_pattern", Value::Null),
            ("layers_to_transform", json!(self.layers_to_transform)),
            ("loftq_config", json!({})),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_bias", json!(self.lora_bias)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("lora_ga_config", Value::Null),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("modules_to_save", some(!self.modules_to_save.is_empty(), json!(self.modules_to_save))),
            ("monteclora_config", Value::Null),
            ("peft_type", json!("LORA")),
            ("peft_version", json!(PEFT_VERSION)),
            ("qalora_group_size", json!(16)),
            ("r", json!(self.r)),
            ("rank_pattern", Value::Object(ranks)),
            ("revision", Value::Null),
            ("target_modules", target_modules),
            ("target_parameters", Value::Null),
            ("task_type", json!("CAUSAL_LM")),
            ("trainable_token_indices", some(!tokens.is_empty(), Value::Object(tokens))),
            ("use_bdlora", Value::Null),
            ("use_dora", json!(self.use_dora)),
            ("use_qalora", json!(false)),
            ("use_rslora", json!(self.use_rslora)),
            ("velora_config", Value::Null),
        ];
        let sorted: BTreeMap<&str, Value> = keys.into();
        let sorted: Map<String, Value> = sorted.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        format!("{:#}", Value::Object(sorted))
    }
}

/// The command that merges the adapter in `dir` into its base with PEFT.
pub(super) fn merge_command(dir: &Path) -> String {
    let dir = python_text(&dir.display().to_string());
    format!(
        "python -c \"from peft import AutoPeftModelForCausalLM as M; \
         M.from_pretrained({dir}, torch_dtype='auto').merge_and_unload().save_pretrained('merged')\""
    )
}

/// Writes a whole number without a decimal point, as PEFT does.
fn number(x: f64) -> Value {
    match x.fract() == 0.0 && x.abs() < 1e15 {
        true => json!(x as i64),
        false => json!(x),
    }
}

/// True for PEFT's ways to switch a setting off.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn dropout(fields: &JsonFields) -> Result<f64> {
    let Some(value) = fields.value("lora_dropout") else { return Ok(0.0) };
    let rate = value.as_f64().filter(|p| (0.0..1.0).contains(p));
    rate.ok_or_else(|| fields.error("lora_dropout", format!("is {value}, but must be at least 0 and below 1")))
}

fn target_modules(fields: &JsonFields) -> Result<TargetModules> {
    let right = "a list of module names, one regular expression, or `all-linear`";
    match fields.value("target_modules") {
        None => Err(fields.error("target_modules", format!("is missing; it must be {right}"))),
        Some(Value::String(text)) => Ok(TargetModules::from_text(text)),
        Some(_) => match fields.texts("target_modules") {
            Ok(Some(names)) if !names.is_empty() => Ok(TargetModules::Names(names)),
            _ => Err(fields.error("target_modules", format!("must be {right}"))),
        },
    }
}

fn exclude_modules(fields: &JsonFields) -> Result<Option<ExcludeModules>> {
    match fields.value("exclude_modules") {
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(ExcludeModules::Regex(text.clone()))),
        _ => Ok(fields.texts("exclude_modules")?.filter(|n| !n.is_empty()).map(ExcludeModules::Names)),
    }
}

/// The sentence for an adapter of MLX-LM, whose file has the same name.
fn of_mlx(fields: &JsonFields) -> String {
    let base = fields.value("model").and_then(Value::as_str).map(|base| format!(" {base}")).unwrap_or_default();
    format!(
        "is of an adapter of MLX-LM, not of PEFT; merge it into its base{base} with mlx_lm.fuse, and take the merged model"
    )
}

/// Parses `{"embed_tokens": [3, 7]}`, or a list of tokens of the embedding.
fn trainable_token_indices(fields: &JsonFields) -> Result<Vec<(String, Vec<u32>)>> {
    let key = "trainable_token_indices";
    let wrong = || fields.error(key, "must be a list of token ids, or lists by the name of the embedding");
    let list = |value: &Value| -> Result<Vec<u32>> {
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
        value.as_array().ok_or_else(wrong)?.iter().map(id).collect()
    };
    let of = match fields.value(key) {
        None => Vec::new(),
        Some(Value::Object(object)) => {
            object.iter().map(|(name, tokens)| Ok((name.clone(), list(tokens)?))).collect::<Result<_>>()?
        }
        Some(tokens) => vec![("embed_tokens".to_owned(), list(tokens)?)],
    };
    Ok(of.into_iter().filter(|(_, tokens)| !tokens.is_empty()).collect())
}

/// Parses one layer or a list of layers; an empty list means all layers. These models have one pattern of layer names: `layers`.
fn layers_to_transform(fields: &JsonFields) -> Result<Option<Vec<usize>>> {
    let names = match fields.value("layers_pattern") {
        Some(Value::String(name)) => vec![name.clone()],
        _ => fields.texts("layers_pattern")?.unwrap_or_default(),
    };
    if !names.is_empty() && !names.iter().any(|n| n == "layers") {
        return Err(fields.error("layers_pattern", format!("is {names:?}, but these models have only `layers`")));
    }
    let layer = |value: &Value| {
        let layer = value.as_u64().and_then(|n| usize::try_from(n).ok());
        layer
            .ok_or_else(|| fields.error("layers_to_transform", format!("holds {value}, which is not a layer's number")))
    };
    match fields.value("layers_to_transform") {
        None => Ok(None),
        Some(Value::Array(layers)) if layers.is_empty() => Ok(None),
        Some(Value::Array(layers)) => layers.iter().map(layer).collect::<Result<_>>().map(Some),
        Some(value) => Ok(Some(vec![layer(value)?])),
    }
}

fn pattern<T>(
    fields: &JsonFields,
    key: &'static str,
    prefix: &'static str,
    get: impl Fn(&JsonFields, &str) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    let Some(object) = fields.object(key, prefix)? else { return Ok(Vec::new()) };
    object.keys().map(|(name, _)| Ok((name.clone(), get(&object, name)?))).collect()
}

/// Reads the initialization of an adapter in `dir`. Of an adapter that is there already, it matters only where it changed the base.
fn init_lora_weights(fields: &JsonFields, dir: &Path) -> Result<LoraInit> {
    match fields.value("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(LoraInit::KaimingUniform),
        Some(Value::String(kind)) => match kind.to_lowercase().as_str() {
            "gaussian" => Ok(LoraInit::Gaussian),
            // These only choose the initial A and B, which the file's tensors replace.
            "eva" | "orthogonal" | "mica" => Ok(LoraInit::KaimingUniform),
            of => {
                // PEFT can repeat these on the original base, the others follow from data or draws.
                let remedy = match of {
                    "pissa" | "olora" | "loftq" => format!(
                        "merge it into its base with PEFT and take that model: {}; or save it where it was trained",
                        merge_command(dir)
                    ),
                    _ => "save it where it was trained".to_owned(),
                };
                let problem = format!(
                    "is `{kind}`: the adapter belongs to a base whose weights PEFT changed too, not to the original one; {remedy} \
                     with PEFT's path_initial_model_for_weight_conversion, which makes it an adapter of the original base"
                );
                Err(fields.error("init_lora_weights", problem))
            }
        },
        Some(other) => Err(fields.error("init_lora_weights", format!("is {other}, but must be true or a string"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(text: &str) -> Result<LoraConfig> {
        LoraConfig::from_json(Path::new("out/adapter_config.json"), text)
    }

    #[test]
    fn the_smallest_file_that_peft_loads_gets_pefts_defaults() {
        let config = parse(r#"{"peft_type": "LORA", "target_modules": ["q_proj"]}"#).unwrap();
        let names = TargetModules::Names(vec!["q_proj".into()]);
        assert_eq!(config, LoraConfig { target_modules: names, ..LoraConfig::default() });
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = LoraConfig {
            r: 4,
            lora_alpha: 12.5,
            lora_dropout: 0.1,
            target_modules: TargetModules::Names(vec!["v_proj".into(), "q_proj".into()]),
            use_rslora: true,
            use_dora: true,
            rank_pattern: vec![("z".into(), 3), ("layers.0.self_attn.q_proj".into(), 2)],
            alpha_pattern: vec![("v_proj".into(), 7.0)],
            layers_to_transform: Some(vec![0, 2]),
            exclude_modules: Some(ExcludeModules::Regex(".*0.*".into())),
            lora_bias: true,
            modules_to_save: vec!["lm_head".into()],
            trainable_token_indices: vec![("embed_tokens".into(), vec![7, 3])],
            bias: Bias::LoraOnly,
            base_model_name_or_path: Some("a \"b\"".into()),
            init_lora_weights: LoraInit::Gaussian,
            ignored: Vec::new(),
        };
        assert_eq!(parse(&config.to_json()).unwrap(), config);
        let text = LoraConfig { lora_alpha: 16.0, ..config }.to_json();
        assert!(
            text.starts_with("{\n  \"alora_invocation_tokens\": null,\n  \"alpha_pattern\": {\n    \"v_proj\": 7\n")
        );
        assert!(text.contains("\n  \"lora_alpha\": 16,\n") && text.contains("\n  \"lora_dropout\": 0.1,\n"));
        let keys: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("  \"")).collect();
        assert!(keys.is_sorted());
    }

    #[test]
    fn unsupported_and_wrong_settings_are_refused_by_name() {
        let cases = [
            (r#""peft_type": "IA3""#, "peft_type", "`LORA`"),
            (r#""use_qalora": true"#, "use_qalora", "M.from_pretrained('out', "),
            (r#""fan_in_fan_out": true"#, "fan_in_fan_out", "not supported"),
            (r#""bias": "some""#, "bias", "`none`"),
            (r#""r": 0"#, "r", "whole number"),
            (r#""r": 2.5"#, "r", "whole number"),
            (r#""lora_alpha": 0"#, "lora_alpha", "above 0"),
            (r#""lora_dropout": 1"#, "lora_dropout", "below 1"),
            (r#""rank_pattern": {"q_proj": 0}"#, "rank_pattern.q_proj", "whole number"),
            (r#""rank_pattern": {"q_proj": null}"#, "rank_pattern.q_proj", "missing"),
            (r#""layers_to_transform": [-1]"#, "layers_to_transform", "-1"),
            (r#""layers_pattern": "h", "layers_to_transform": 0"#, "layers_pattern", "`layers`"),
            (r#""init_lora_weights": "pissa""#, "init_lora_weights", "merge_and_unload"),
            (r#""init_lora_weights": "olora""#, "init_lora_weights", "path_initial_model_for_weight_conversion"),
            (r#""init_lora_weights": "pissa_niter_4""#, "init_lora_weights", "save it where it was trained"),
            (r#""target_modules": []"#, "target_modules", "all-linear"),
            (r#""target_modules": 3"#, "target_modules", "all-linear"),
            (r#""target_modules": null"#, "target_modules", "missing"),
            (r#""target_modules": ".*q_proj", "layers_to_transform": [0]"#, "layers_to_transform", "expression"),
        ];
        for (rest, field, says) in cases {
            let message = parse(&format!(r#"{{"peft_type": "LORA", "target_modules": ["q_proj"], {rest}}}"#));
            let message = message.expect_err(rest).to_string();
            assert!(
                message.contains(&format!("adapter_config.json: `{field}`")) && message.contains(says),
                "{message}"
            );
        }
    }

    #[test]
    fn an_adapter_of_mlx_is_named() {
        let text = r#"{"fine_tune_type": "lora", "lora_parameters": {"rank": 8}, "model": "owner/base"}"#;
        let message = parse(text).unwrap_err().to_string();
        assert!(
            message.contains("of an adapter of MLX-LM") && message.contains("its base owner/base with mlx_lm.fuse"),
            "{message}"
        );
    }

    #[test]
    fn unknown_keys_are_ignored_and_listed_when_they_are_set() {
        let text = r#"{"peft_type": "LORA", "target_modules": "all-linear", "new_a": null, "new_b": false, "new_c": 3,
            "eva_config": null, "revision": "main"}"#;
        let config = parse(text).unwrap();
        assert_eq!((config.ignored, config.target_modules), (vec!["new_c".to_owned()], TargetModules::AllLinear));
    }

    #[test]
    fn arguments_become_names_or_an_expression() {
        let names = TargetModules::Names(vec!["q_proj".into(), "mlp.up_proj".into()]);
        assert_eq!(TargetModules::from_argument("q_proj, mlp.up_proj"), names);
        assert_eq!(TargetModules::from_argument("all-linear"), TargetModules::AllLinear);
        assert_eq!(TargetModules::from_argument(r".*\.q_proj"), TargetModules::Regex(r".*\.q_proj".into()));
    }

    #[test]
    fn the_key_set_is_that_of_a_file_written_by_peft() {
        let path = Path::new("../shared/reference/lora_stories260K_f32/adapter_init/adapter_config.json");
        let Ok(text) = fs::read_to_string(path) else {
            eprintln!("skipped: {} is not there", path.display());
            return;
        };
        let config = LoraConfig::from_json(path, &text).unwrap();
        assert!(config.ignored.is_empty() && config.r == 8 && config.lora_alpha == 16.0);
        assert_eq!(config.to_json(), text.trim_end());
    }
}
