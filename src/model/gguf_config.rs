//! The keys of a GGUF file as the `config.json` that transformers would have.

use serde_json::{Map, Value, json};

use super::families::FAMILIES;
use super::family::{Bias, Family};
use super::gguf_blocks::GgmlType;
use super::gguf_file::{GgufFile, GgufValue};
use crate::Result;

/// Above every published model's sizes.
const MAX_COUNT: usize = 1 << 24;

/// A supported value of `general.architecture`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Architecture {
    /// Its name in GGUF files.
    pub name: &'static str,
    /// `model_type` of transformers.
    pub model_type: &'static str,
    /// True if the rows of q and k lie in the order of a rotation of neighboring features, unlike those of transformers.
    pub permuted: bool,
}

const fn architecture(name: &'static str, model_type: &'static str, permuted: bool) -> Architecture {
    Architecture { name, model_type, permuted }
}

/// Every supported architecture. Mistral is written as `llama`, and OLMo 3 as `olmo2` with windows.
pub(crate) const ARCHITECTURES: [Architecture; 16] = [
    architecture("llama", "llama", true),
    architecture("mistral3", "ministral3", true),
    architecture("qwen2", "qwen2", false),
    architecture("qwen3", "qwen3", false),
    architecture("gemma", "gemma", false),
    architecture("gemma2", "gemma2", false),
    architecture("gemma3", "gemma3_text", false),
    architecture("phi3", "phi3", false),
    architecture("granite", "granite", true),
    architecture("smollm3", "smollm3", true),
    architecture("olmo2", "olmo2", false),
    architecture("glm4", "glm4", false),
    architecture("exaone4", "exaone4", false),
    architecture("hunyuan-dense", "hunyuan_v1_dense", false),
    architecture("ernie4_5", "ernie4_5", false),
    architecture("lfm2", "lfm2", false),
];

/// The architecture that a file names.
///
/// # Errors
/// A file that is no model, or one of an architecture that is not supported.
pub(crate) fn architecture_of(file: &GgufFile) -> Result<Architecture> {
    let key = "general.architecture";
    let name = file.text(key)?.ok_or_else(|| file.error(key, "is missing"))?;
    if let Some(kind) = file.text("general.type")?.filter(|kind| *kind != "model") {
        let problem = format!("is `{kind}`: the file holds no model that writes text");
        return Err(file.error("general.type", problem));
    }
    ARCHITECTURES.into_iter().find(|other| other.name == name).ok_or_else(|| {
        let names = ARCHITECTURES.map(|architecture| architecture.name).join(", ");
        file.error(key, format!("`{name}` is not supported; supported are {names}"))
    })
}

/// The architecture as which llama.cpp knows a family of transformers; None where it is not written.
pub(crate) fn architecture_for(family: &Family) -> Option<Architecture> {
    let model_type = match family.model_type {
        // llama.cpp runs the graph of `llama` for it too, without its window.
        "mistral" => "llama",
        "olmo3" => "olmo2",
        other => other,
    };
    ARCHITECTURES.into_iter().find(|architecture| architecture.model_type == model_type)
}

/// The family of transformers that a file's model belongs to.
fn family_of(file: &GgufFile, architecture: Architecture) -> Result<&'static Family> {
    let windows = file.values.contains_key(&format!("{}.attention.sliding_window", architecture.name));
    let model_type = if architecture.name == "olmo2" && windows { "olmo3" } else { architecture.model_type };
    let family = FAMILIES.into_iter().find(|family| family.model_type == model_type);
    family.ok_or_else(|| file.error("general.architecture", format!("`{}` is not supported", architecture.name)))
}

/// An f32 as the number that its shortest decimal names.
fn decimal(value: f64) -> Value {
    format!("{}", value as f32).parse::<f64>().map_or(Value::Null, Value::from)
}

/// The keys of one architecture.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        self.file.float(&self.key(name))
    }

    fn text(&self, name: &str) -> Result<Option<&str>> {
        self.file.text(&self.key(name))
    }

    /// A number, or a list with one number for each layer, which must be equal.
    fn number(&self, name: &str) -> Result<Option<u64>> {
        let key = self.key(name);
        if !matches!(self.file.values.get(&key), Some(GgufValue::Array(_))) {
            return self.file.number(&key);
        }
        let list = self.file.numbers(&key)?.unwrap_or_default();
        match list.first().and_then(|first| u64::try_from(*first).ok()) {
            Some(first) if list.iter().all(|other| *other == first as i64) => Ok(Some(first)),
            _ => Err(self.file.error(&key, "differs between layers, which is not supported")),
        }
    }

    fn required(&self, name: &str) -> Result<u64> {
        self.number(name)?.ok_or_else(|| self.file.error(&self.key(name), "is missing; it must be a whole number"))
    }

    fn has(&self, name: &str) -> bool {
        self.file.values.contains_key(&self.key(name))
    }

    /// A size, at least 1.
    fn count(&self, name: &str) -> Result<usize> {
        let count = self.required(name)?;
        let fits = usize::try_from(count).ok().filter(|count| (1..=MAX_COUNT).contains(count));
        fits.ok_or_else(|| self.file.error(&self.key(name), format!("is {count}, but must be in 1..={MAX_COUNT}")))
    }

    /// The values of a small f32 tensor.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.file.tensor(name) else { return Ok(None) };
        if tensor.kind != GgmlType::F32 || tensor.bytes > 1 << 20 {
            return Err(self.file.error(name, "must be a short list of F32 numbers"));
        }
        let mut bytes = vec![0; tensor.bytes as usize];
        tensor.read(0, &mut bytes)?;
        Ok(Some(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
    }

    /// The frequencies' scaling, as transformers spells it.
    fn rope_scaling(&self) -> Result<Option<Value>> {
        let positions = self.required("context_length")?;
        let original = self.number("rope.scaling.original_context_length")?.unwrap_or(positions);
        let factors = |list: &[f32]| list.iter().map(|f| decimal(f64::from(*f))).collect::<Vec<_>>();
        // The frequencies of Llama 3 are a list of divisors in the file, as those of LongRoPE are.
        if let Some(divisors) = self.factors("rope_freqs.weight")? {
            return Ok(Some(json!({
                "rope_type": "longrope", "short_factor": factors(&divisors), "long_factor": factors(&divisors),
                "original_max_position_embeddings": positions, "attention_factor": 1.0,
            })));
        }
        let short = self.factors("rope_factors_short.weight")?;
        let long = self.factors("rope_factors_long.weight")?;
        let attention_factor = self.float("rope.scaling.attn_factor")?;
        if let (Some(short), Some(long)) = (short, long) {
            let mut scaling = json!({
                "rope_type": "longrope", "short_factor": factors(&short), "long_factor": factors(&long),
                "original_max_position_embeddings": original,
            });
            if let Some(factor) = attention_factor {
                scaling["attention_factor"] = decimal(factor);
            }
            return Ok(Some(scaling));
        }
        let factor = self.float("rope.scaling.factor")?;
        let kind = self.text("rope.scaling.type")?;
        let factor = if kind.is_some() { factor } else { factor.or(self.float("rope.scale_linear")?) };
        let Some(factor) = factor.filter(|factor| *factor != 0.0 && (*factor != 1.0 || kind == Some("yarn"))) else {
            return Ok(None);
        };
        match kind {
            None | Some("linear") => Ok(Some(json!({ "rope_type": "linear", "factor": decimal(factor) }))),
            Some("none") => Ok(None),
            Some("yarn") => self.yarn(factor, original, attention_factor).map(Some),
            Some(other) => {
                let problem = format!("`{other}` is not supported; supported are none, linear, yarn and longrope");
                Err(self.file.error(&self.key("rope.scaling.type"), problem))
            }
        }
    }

    fn yarn(&self, factor: f64, original: u64, attention_factor: Option<f64>) -> Result<Value> {
        let mut scaling = json!({
            "rope_type": "yarn", "factor": decimal(factor), "original_max_position_embeddings": original,
        });
        for (ours, key) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
            if let Some(value) = self.float(&format!("rope.scaling.{key}"))? {
                scaling[ours] = decimal(value);
            }
        }
        if let Some(multiplier) = self.float("rope.scaling.yarn_log_multiplier")?.filter(|m| *m != 0.0) {
            scaling["mscale"] = json!(1.0);
            scaling["mscale_all_dim"] = decimal(multiplier);
        }
        if let Some(given) = attention_factor.filter(|given| *given != 1.0) {
            scaling["attention_factor"] = decimal(given * (0.1 * factor.ln() + 1.0));
        }
        if let Some(beta) = self.float("attention.temperature_scale")?.filter(|beta| *beta != 0.0) {
            scaling["llama_4_scaling_beta"] = decimal(beta);
        }
        Ok(scaling)
    }

    /// Number of key and value heads of each layer; 0 where a layer has a short convolution in place of attention.
    fn kv_heads(&self, family: &Family, heads: usize) -> Result<Vec<usize>> {
        let name = "attention.head_count_kv";
        let key = self.key(name);
        if !family.convolutions || !matches!(self.file.values.get(&key), Some(GgufValue::Array(_))) {
            return Ok(vec![if self.has(name) { self.count(name)? } else { heads }]);
        }
        let list = self.file.numbers(&key)?.unwrap_or_default();
        let counts: Option<Vec<usize>> = list.iter().map(|count| usize::try_from(*count).ok()).collect();
        let counts = counts.unwrap_or_default();
        let most = counts.iter().copied().max().unwrap_or(0);
        if most == 0 || most > MAX_COUNT || counts.iter().any(|count| ![0, most].contains(count)) {
            return Err(self
                .file
                .error(&key, "must have one number for all layers with attention, and 0 for the others"));
        }
        Ok(counts)
    }

    /// The short convolutions of LFM2, whose inner size the file has as it is.
    fn convolutions(&self, fields: &mut Map<String, Value>, kv_heads: &[usize]) -> Result<()> {
        fields.insert("block_auto_adjust_ff_dim".to_owned(), false.into());
        fields.insert("conv_L_cache".to_owned(), self.count("shortconv.l_cache")?.into());
        if kv_heads.len() > 1 {
            let kind = |heads: &usize| if *heads == 0 { "conv" } else { "full_attention" };
            fields.insert("layer_types".to_owned(), kv_heads.iter().map(kind).collect());
        }
        Ok(())
    }

    /// Windows of attention, and which layers have them.
    fn windows(&self, fields: &mut Map<String, Value>, layers: u64) -> Result<()> {
        let Some(window) = self.number("attention.sliding_window")?.filter(|window| *window > 0) else {
            // A family's default would give a window to a model that has none.
            fields.insert("sliding_window".to_owned(), Value::Null);
            return Ok(());
        };
        fields.insert("sliding_window".to_owned(), window.into());
        let key = self.key("attention.sliding_window_pattern");
        match self.file.values.get(&key) {
            None => {}
            Some(GgufValue::Array(_)) => {
                let windowed = self.file.numbers(&key)?.unwrap_or_default();
                if windowed.len() as u64 != layers {
                    return Err(self.file.error(&key, format!("has {} values for {layers} layers", windowed.len())));
                }
                let kind = |windowed: &i64| if *windowed != 0 { "sliding_attention" } else { "full_attention" };
                fields.insert("layer_types".to_owned(), windowed.iter().map(kind).collect());
            }
            Some(_) => {
                fields.insert("sliding_window_pattern".to_owned(), json!(self.file.number(&key)?));
            }
        }
        Ok(())
    }
}

/// The family and the counts by which tensor names and shapes of a file are read.
#[derive(Clone, Debug)]
pub(crate) struct DecoderShape {
    pub architecture: Architecture,
    pub family: &'static Family,
    /// Features of one head.
    pub head_dim: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
}

impl DecoderShape {
    /// Reads the shape off the keys.
    ///
    /// # Errors
    /// A key that is missing, of another type than llama.cpp writes, or not supported.
    pub(crate) fn of(file: &GgufFile) -> Result<Self> {
        let architecture = architecture_of(file)?;
        let family = family_of(file, architecture)?;
        let keys = Keys { file, architecture };
        let hidden = keys.count("embedding_length")?;
        let heads = keys.count("attention.head_count")?;
        let kv_heads = keys.kv_heads(family, heads)?.into_iter().max().unwrap_or(heads);
        let head_dim =
            if keys.has("attention.key_length") { keys.count("attention.key_length")? } else { hidden / heads };
        if keys.has("attention.value_length") && keys.count("attention.value_length")? != head_dim {
            let problem = format!("must be the size of keys, {head_dim}");
            return Err(file.error(&keys.key("attention.value_length"), problem));
        }
        Ok(Self { architecture, family, head_dim, heads, kv_heads })
    }
}

/// The `config.json` that transformers would have for the model of a file.
///
/// # Errors
/// A key that is missing, of another type than llama.cpp writes, or not supported.
pub(crate) fn config_object(file: &GgufFile) -> Result<Map<String, Value>> {
    let DecoderShape { architecture, family, head_dim, heads, kv_heads } = DecoderShape::of(file)?;
    let keys = Keys { file, architecture };
    let embedding = file.tensor("token_embd.weight").filter(|tensor| tensor.shape.len() == 2);
    let embedding = embedding.ok_or_else(|| file.error("token_embd.weight", "is missing; it must be a matrix"))?;
    let (hidden, layers) = (keys.count("embedding_length")?, keys.required("block_count")?);
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    put("architectures", json!([family.architecture]));
    put("model_type", family.model_type.into());
    put("vocab_size", embedding.shape[0].into());
    put("hidden_size", hidden.into());
    put(family.intermediate_key, keys.required("feed_forward_length")?.into());
    put("num_hidden_layers", layers.into());
    put("num_attention_heads", heads.into());
    put("num_key_value_heads", kv_heads.into());
    put("head_dim", head_dim.into());
    put("max_position_embeddings", keys.required("context_length")?.into());
    let eps = keys.float("attention.layer_norm_rms_epsilon")?;
    let eps = eps.ok_or_else(|| file.error(&keys.key("attention.layer_norm_rms_epsilon"), "is missing"))?;
    put(family.rms_norm_eps_key, decimal(eps));
    put("rope_theta", decimal(keys.float("rope.freq_base")?.unwrap_or(10_000.0)));
    put("tie_word_embeddings", file.tensor("output.weight").is_none().into());
    let biases = [(family.qkv_bias, "attn_q"), (family.o_bias, "attn_output"), (family.mlp_bias, "ffn_down")];
    for (bias, name) in biases {
        let there = file.tensor(&format!("blk.0.{name}.bias")).is_some();
        if let Bias::Key(key) = bias
            && there
        {
            put(key, true.into());
        }
    }
    if let Some(rotated) = keys.number("rope.dimension_count")?.filter(|rotated| *rotated != head_dim as u64) {
        if family.rope.partial.is_none() {
            let problem = format!("is {rotated}, but must be the size of a head, {head_dim}");
            return Err(file.error(&keys.key("rope.dimension_count"), problem));
        }
        put("partial_rotary_factor", (rotated as f64 / head_dim as f64).into());
    }
    let floats = [
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("attention_multiplier", "attention.scale"),
        ("logits_scaling", "logit_scale"),
    ];
    for (ours, name) in floats {
        if let Some(value) = keys.float(name)? {
            put(ours, decimal(value));
        }
    }
    if ["gemma2", "gemma3"].contains(&architecture.name) {
        // The 27B models scale by the mean size of a head, as llama.cpp tells by the number of layers.
        let large = layers == if architecture.name == "gemma2" { 46 } else { 62 };
        let size = if large { hidden / heads } else { head_dim };
        put("query_pre_attn_scalar", size.into());
        let local = keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
        put("rope_local_base_freq", decimal(local));
    }
    for (ours, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        let id = file.number(&format!("tokenizer.ggml.{key}_token_id"))?;
        put(ours, id.filter(|id| *id < embedding.shape[0] as u64).map_or(Value::Null, Value::from));
    }
    if let Some(scaling) = keys.rope_scaling()? {
        put("rope_scaling", scaling);
    }
    keys.windows(&mut fields, layers)?;
    if family.convolutions {
        keys.convolutions(&mut fields, &keys.kv_heads(family, heads)?)?;
    }
    Ok(fields)
}
