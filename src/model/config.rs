//! `config.json` of a Hugging Face model directory, checked, with the defaults of transformers' configuration classes.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::companions;
pub use super::companions::CONFIG;
use super::convolutions::{Convolutions, intermediate_size_of_lfm2};
use super::experts::Experts;
use super::families::{FAMILIES, supported};
use super::family::{AttentionScale, Bias, ExpertKeys, Family, RopeLayers, Scale, SlidingWindows};
use super::foreign::instead_of_a_model;
use super::gemma4::{Gemma4, LayerEmbeddings};
use super::json_fields::{JsonFields, parse_object};
use super::linear_attention::LinearAttention;
use super::modules::{Fused, HEAD, HeadNorms, MODEL, NamedNorms, Norm, Projection, in_layer};
use super::packed::{self, Declared};
use super::rope::{MAX_POSITIONS, RopeConfig};
use super::unsupported;
use super::wrapper::{self, Wrapper};
use crate::ops::attention::MAX_HEAD_DIM;
use crate::ops::glu::Activation;
use crate::quant::format::Storage;
use crate::{Error, Result};

/// Above every published model's sizes, and low enough that the product of two fits 48 bits.
const MAX_DIMENSION: usize = 1 << 24;
/// Published models stay under 200 layers; a hostile file must not make us allocate per layer without end.
const MAX_LAYERS: usize = 4096;

/// A decoder's shape. Every size is at least 1 and `num_heads` is a multiple of `num_kv_heads`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The decoder family that `model_type` names.
    pub family: &'static Family,
    /// The class of models of several modalities whose text decoder this is; `None` for a text model.
    pub wrapper: Option<&'static Wrapper>,
    /// Rows of the embedding and of the head: the number of token ids.
    pub vocab_size: usize,
    /// Rows that the files have of the embedding and the head: fewer than `vocab_size` where an adapter brings tokens of its own.
    pub vocab_rows: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Output features of gate and up, and input features of down.
    pub intermediate_size: usize,
    /// The experts of layers that have them in place of the feed-forward block; `None` where no layer has.
    pub experts: Option<Experts>,
    /// The short convolutions of layers that have one in place of attention; `None` where no layer has.
    pub convolutions: Option<Convolutions>,
    /// The gated delta rule of layers that have one in place of attention; `None` where no layer has.
    pub linear_attention: Option<LinearAttention>,
    /// True if the output of attention is multiplied by the sigmoid of gates, which are rows of the queries' projection: those of a head
    /// follow its queries.
    pub output_gate: bool,
    /// The additions of Gemma 4's layers; `None` in other families.
    pub gemma4: Option<Gemma4>,
    /// Number of decoder layers, `num_hidden_layers`.
    pub num_layers: usize,
    /// Number of query heads, `num_attention_heads`.
    pub num_heads: usize,
    /// Number of key and value heads, `num_key_value_heads`.
    pub num_kv_heads: usize,
    /// Features of one head, a multiple of 4.
    pub head_dim: usize,
    /// The activation of the feed-forward block's gate.
    pub activation: Activation,
    /// The constant that RMSNorm adds to the mean square, above 0.
    pub rms_norm_eps: f32,
    /// The kinds of rotary position embedding that the layers have.
    pub ropes: Vec<RopeConfig>,
    /// Each layer's place in `ropes`; `None` where queries and keys are not rotated.
    pub layer_ropes: Vec<Option<usize>>,
    /// True if the embedding is the output head too.
    pub tie_word_embeddings: bool,
    /// True if q, k and v have biases.
    pub qkv_bias: bool,
    /// True if the output projection of attention has a bias.
    pub o_bias: bool,
    /// True if gate, up and down have biases.
    pub mlp_bias: bool,
    /// The norms of every layer, with their names.
    pub norms: NamedNorms,
    /// How the norms over queries and keys work, where there are such.
    pub head_norms: HeadNorms,
    /// The constant that every norm adds to its gains.
    pub gain_offset: f32,
    /// The factor on the embedding's rows.
    pub embedding_scale: f32,
    /// The factor on the output of a block before it is added to the residual stream.
    pub residual_scale: f32,
    /// The factor on a query's product with a key, before the softmax.
    pub attention_scale: f32,
    /// The bound `c` of attention's scores, `c tanh(s / c)`; `None` where there is none.
    pub attention_softcap: Option<f32>,
    /// True if each head of attention has a logit of its own in the softmax, which reads no value.
    pub attention_sinks: bool,
    /// The factor on the logits.
    pub logit_scale: f32,
    /// The bound `c` of the logits, `c tanh(z / c)`; `None` where there is none.
    pub final_softcap: Option<f32>,
    /// Longest sequence in tokens that the model is made for.
    pub max_position_embeddings: usize,
    /// Positions that a query sees in each layer, its own included; `None` is all before it.
    pub sliding_windows: Vec<Option<usize>>,
    /// The token before a text; `None` where the model has none.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text or a turn; empty where there are none.
    pub eos_token_ids: Vec<u32>,
    /// The matrices that the files hold in 4 bits, by the names of their tensors. [`super::source::Source`] reads it off the files; without
    /// files it is what `quantization_config` declares.
    pub quantized: BTreeMap<String, Storage>,
    /// Standard deviation of new weights.
    pub initializer_range: f32,
}

impl ModelConfig {
    /// Reads the `config.json` of a model directory, or the keys of a GGUF file.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        match instead_of_a_model(dir).filter(|_| !companions::is_file(&path)) {
            Some(problem) => Err(Error::file(dir, problem)),
            None => Self::from_file(&path),
        }
    }

    /// Reads `path`, a `config.json`.
    ///
    /// # Errors
    /// A file that cannot be read, or a field that is missing, out of its range or not supported. The error names the
    /// field and what it may be.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = companions::text(path)?;
        Self::from_json(path, &text)
    }

    /// Parses the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let object = parse_object(path, text)?;
        let unwrapped = wrapper::unwrap(path, &object)?;
        let fields = match &unwrapped {
            Some(inner) => JsonFields::below(path, inner.prefix, &inner.fields),
            None => JsonFields::new(path, &object),
        };
        let family = family(&fields)?;
        let quantization = fields.value("quantization_config");
        // The files of gpt-oss say by themselves which tensors are in MXFP4.
        let is_mxfp4 = |config: &&Value| config.get("quant_method").and_then(Value::as_str) == Some("mxfp4");
        let by_files = family.experts.is_some_and(|rule| rule.keys == ExpertKeys::GptOss);
        let quantization = quantization.filter(|config| !(by_files && is_mxfp4(config)));
        let quantization = quantization.map(|config| packed::from_fields(&fields, config)).transpose()?;
        for (flag, problem) in family.refused_flags {
            if fields.flag(flag, false)? {
                return Err(fields.error(flag, format!("is true: this is {problem}")));
            }
        }

        check_layer_kinds(&fields, family)?;
        let hidden_size = fields.required_count("hidden_size", MAX_DIMENSION)?;
        let num_layers = fields.required_count("num_hidden_layers", MAX_LAYERS)?;
        let num_heads = fields.required_count("num_attention_heads", MAX_DIMENSION)?;
        let num_kv_heads = kv_heads(&fields, family, num_heads)?;
        let head_dim = head_dim(&fields, family, hidden_size, num_heads)?;
        let scale = |rule| scale(&fields, rule, hidden_size);
        let mut sliding_windows = sliding_windows(&fields, family.sliding_windows, num_layers)?;
        if family.gemma4 {
            // As transformers does it, whatever the file says.
            sliding_windows[num_layers - 1] = None;
        }
        let of_gemma4 = || Gemma4::of_fields(&fields, &sliding_windows, MAX_DIMENSION);
        let gemma4 = family.gemma4.then(of_gemma4).transpose()?;
        let global_head_dim = gemma4.as_ref().map_or(head_dim, |gemma4| gemma4.global_head_dim);
        let head_dims = [global_head_dim, head_dim];
        let (ropes, layer_ropes) = layer_ropes(&fields, family, &sliding_windows, head_dims)?;
        let mut config = Self {
            family,
            wrapper: unwrapped.as_ref().map(|inner| inner.wrapper),
            vocab_size: fields.required_count("vocab_size", MAX_DIMENSION)?,
            vocab_rows: fields.required_count("vocab_size", MAX_DIMENSION)?,
            hidden_size,
            intermediate_size: intermediate_size(&fields, family)?,
            experts: experts(&fields, family, num_layers)?,
            convolutions: convolutions(&fields, family, num_layers)?,
            linear_attention: linear_attention(&fields, family, num_layers)?,
            output_gate: family.linear_attention,
            gemma4,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            activation: activation(&fields, family)?,
            rms_norm_eps: fields.positive(family.rms_norm_eps_key)?.unwrap_or(family.rms_norm_eps) as f32,
            ropes,
            layer_ropes,
            tie_word_embeddings: tie(&fields, family)?,
            qkv_bias: bias(&fields, family.qkv_bias)?,
            o_bias: bias(&fields, family.o_bias)?,
            mlp_bias: bias(&fields, family.mlp_bias)?,
            norms: family.norms,
            head_norms: family.head_norms,
            gain_offset: family.gain_offset,
            embedding_scale: scale(family.embedding_scale)?,
            residual_scale: scale(family.residual_scale)?,
            attention_scale: attention_scale(&fields, family.attention_scale, head_dim)?,
            attention_softcap: softcap(&fields, family.attention_softcap)?,
            attention_sinks: family.attention_sinks,
            logit_scale: scale(family.logit_scale)?,
            final_softcap: softcap(&fields, family.final_softcap)?,
            max_position_embeddings: fields
                .count("max_position_embeddings", MAX_POSITIONS)?
                .unwrap_or(family.max_position_embeddings),
            sliding_windows,
            bos_token_id: token_ids(&fields, "bos_token_id", family.bos_token_id)?.first().copied(),
            eos_token_ids: token_ids(&fields, "eos_token_id", family.eos_token_id)?,
            quantized: BTreeMap::new(),
            initializer_range: fields.positive("initializer_range")?.unwrap_or(0.02) as f32,
        };
        if let Some(declared) = quantization {
            config.quantized = config.declared_matrices(&declared);
        }
        Ok(config)
    }

    fn declared_matrices(&self, declared: &Declared) -> BTreeMap<String, Storage> {
        let of_layer = |layer| {
            let own = Projection::ALL.into_iter().filter(move |projection| self.has_projection(layer, *projection));
            let experts = self.experts_of(layer).into_iter().flat_map(|experts| 0..experts.count);
            let of_expert = |expert| Projection::OF_EXPERTS.map(|projection| projection.module_of_expert(expert));
            let experts = experts.flat_map(of_expert).map(move |module| in_layer(layer, &module));
            own.map(move |projection| in_layer(layer, projection.module())).chain(experts)
        };
        let head = (!self.tie_word_embeddings).then(|| HEAD.to_owned());
        let modules = (0..self.num_layers).flat_map(of_layer).chain(head);
        let held = modules.filter(|module| declared.holds(module));
        held.map(|module| (format!("{module}.weight"), Storage::Quantized(declared.format))).collect()
    }

    /// `(rows, columns)` of the weight, that is (out_features, in_features); where layers differ, of the largest.
    pub fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        let shapes = (0..self.num_layers).map(|layer| self.layer_shape(layer, projection));
        match &self.gemma4 {
            None => self.layer_shape(0, projection),
            Some(_) => shapes.fold((0, 0), |(rows, columns), shape| (rows.max(shape.0), columns.max(shape.1))),
        }
    }

    /// Features of a head in a layer.
    pub fn layer_head_dim(&self, layer: usize) -> usize {
        match &self.gemma4 {
            Some(gemma4) if self.sliding_windows[layer].is_none() => gemma4.global_head_dim,
            _ => self.head_dim,
        }
    }

    /// The layer whose keys and values a layer reads: itself, or an earlier one.
    pub fn kv_source(&self, layer: usize) -> usize {
        self.gemma4.as_ref().map_or(layer, |gemma4| gemma4.kv_sources[layer])
    }

    /// The embeddings for each layer, where there are any.
    pub fn layer_embeddings(&self) -> Option<LayerEmbeddings> {
        self.gemma4.as_ref()?.embeddings
    }

    /// Features of the queries of all heads of a layer with attention.
    pub fn query_width(&self, layer: usize) -> usize {
        self.num_heads * self.layer_head_dim(layer)
    }

    /// `(rows, columns)` of the weight of a layer, that is (out_features, in_features).
    pub fn layer_shape(&self, layer: usize, projection: Projection) -> (usize, usize) {
        let head_dim = self.layer_head_dim(layer);
        let (queries, keys) = (self.query_width(layer), self.num_kv_heads * head_dim);
        let with_gates = if self.output_gate { 2 * queries } else { queries };
        let wide = self.gemma4.as_ref().is_some_and(|gemma4| gemma4.double_wide && self.kv_source(layer) != layer);
        let intermediate = if wide { 2 * self.intermediate_size } else { self.intermediate_size };
        let embedding = self.layer_embeddings().map_or(0, |embeddings| embeddings.width);
        let linear = |size: fn(&LinearAttention) -> usize| self.linear_attention.as_ref().map_or(0, size);
        match projection {
            Projection::Q => (with_gates, self.hidden_size),
            Projection::K | Projection::V => (keys, self.hidden_size),
            Projection::O => (self.hidden_size, queries),
            Projection::Gate | Projection::Up => (intermediate, self.hidden_size),
            Projection::Down => (self.hidden_size, intermediate),
            Projection::LayerEmbedding | Projection::LayerGate => (embedding, self.hidden_size),
            Projection::LayerOut => (self.hidden_size, embedding),
            Projection::ConvIn => (3 * self.hidden_size, self.hidden_size),
            Projection::ConvOut => (self.hidden_size, self.hidden_size),
            Projection::LinearQkv => (linear(LinearAttention::conv_width), self.hidden_size),
            Projection::LinearGate => (linear(LinearAttention::value_width), self.hidden_size),
            Projection::LinearBeta | Projection::LinearDecay => (linear(|of| of.value_heads), self.hidden_size),
            Projection::LinearOut => (self.hidden_size, linear(LinearAttention::value_width)),
        }
    }

    /// The experts of a layer; None where it has a feed-forward block.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers[layer])
    }

    /// The part of the model that cannot be trained itself; None where all of it can.
    pub fn frozen_parts(&self) -> Option<&'static str> {
        match (&self.experts, &self.gemma4) {
            (Some(_), _) => Some("experts"),
            (None, Some(_)) => Some("layers that share keys and values"),
            (None, None) => None,
        }
    }

    /// True if the feed-forward blocks of layers without experts may have adapters. In a model like Qwen3-MoE, PEFT takes their names for
    /// parts of the experts and leaves them alone.
    pub fn adapts_feed_forward(&self) -> bool {
        self.experts.is_none() || self.family.experts.is_some_and(|rule| rule.keys != ExpertKeys::Qwen)
    }

    /// True if a model directory of the family may hold weights in blocks, the MXFP4 of gpt-oss.
    pub fn may_be_in_blocks(&self) -> bool {
        self.family.experts.is_some_and(|rule| rule.keys == ExpertKeys::GptOss)
    }

    /// True if a layer has a short convolution in place of attention.
    pub fn is_convolution(&self, layer: usize) -> bool {
        self.convolutions.as_ref().is_some_and(|convolutions| convolutions.layers[layer])
    }

    /// True if a layer has a gated delta rule in place of attention.
    pub fn is_linear_attention(&self, layer: usize) -> bool {
        self.linear_attention.as_ref().is_some_and(|linear| linear.layers[layer])
    }

    /// Number of the weights of a layer's convolution over rows; 0 where no layer has one.
    pub fn convolution_weights(&self) -> usize {
        let short = self.convolutions.as_ref().map(|of| self.hidden_size * of.taps);
        short.or(self.linear_attention.as_ref().map(|of| of.conv_width() * of.taps)).unwrap_or(0)
    }

    /// True if some layers keep a state of past rows in place of their keys and values: convolutions, and gated delta rules.
    pub fn has_recurrent_layers(&self) -> bool {
        self.convolutions.is_some() || self.linear_attention.is_some()
    }

    /// True if a layer has attention.
    pub fn has_attention(&self, layer: usize) -> bool {
        !self.is_convolution(layer) && !self.is_linear_attention(layer)
    }

    /// True if a layer has this projection: those of the feed-forward block are missing where there are experts, and those of attention
    /// where there is a convolution or a gated delta rule.
    pub fn has_projection(&self, layer: usize, projection: Projection) -> bool {
        match projection {
            Projection::Q | Projection::O => self.has_attention(layer),
            Projection::K | Projection::V => self.has_attention(layer) && self.kv_source(layer) == layer,
            Projection::LayerEmbedding | Projection::LayerGate | Projection::LayerOut => {
                self.layer_embeddings().is_some()
            }
            Projection::ConvIn | Projection::ConvOut => self.is_convolution(layer),
            Projection::LinearQkv
            | Projection::LinearGate
            | Projection::LinearBeta
            | Projection::LinearDecay
            | Projection::LinearOut => self.is_linear_attention(layer),
            Projection::Gate | Projection::Up | Projection::Down => self.experts_of(layer).is_none(),
        }
    }

    /// The projections that some layer has, in the order of [`Projection::ALL`].
    pub fn projections(&self) -> impl Iterator<Item = Projection> {
        let of_any =
            |projection: &Projection| (0..self.num_layers).any(|layer| self.has_projection(layer, *projection));
        Projection::ALL.into_iter().filter(of_any)
    }

    /// True if a layer has a norm at this place: those of queries and keys are missing where there is no attention.
    pub fn layer_has_norm(&self, layer: usize, norm: Norm) -> bool {
        self.has_norm(norm)
            && match norm {
                Norm::Query => self.has_attention(layer),
                Norm::Key => self.has_attention(layer) && self.kv_source(layer) == layer,
                Norm::LayerEmbedding => self.layer_embeddings().is_some(),
                _ => true,
            }
    }

    /// `(rows, columns)` of the weight of each expert in a layer with experts.
    pub fn expert_shape(&self, experts: &Experts, projection: Projection) -> (usize, usize) {
        match projection {
            Projection::Down => (self.hidden_size, experts.intermediate_size),
            _ => (experts.intermediate_size, self.hidden_size),
        }
    }

    /// The linear layer that holds a projection in the files with others; None where it is a layer of its own.
    pub fn fused(&self, projection: Projection) -> Option<&'static Fused> {
        self.family.fused.iter().find(|fused| fused.parts.contains(&projection))
    }

    /// The path below the layer of the linear layer that holds a projection in the files and for PEFT.
    pub fn path(&self, projection: Projection) -> &'static str {
        let renamed = self.family.paths.iter().find(|(of, _)| *of == projection).map(|(_, path)| *path);
        self.fused(projection).map(|fused| fused.path).or(renamed).unwrap_or(projection.module())
    }

    /// The decoder's place among the modules of transformers, which the names of adapted modules follow.
    pub fn decoder(&self) -> &'static str {
        self.wrapper.map_or(MODEL, |wrapper| wrapper.decoder)
    }

    /// True if a layer has a norm at this place.
    pub fn has_norm(&self, norm: Norm) -> bool {
        self.norms.iter().any(|(place, _)| *place == norm)
    }

    /// True if the output of a block goes through a norm before it is added to the residual stream.
    pub fn norms_outputs(&self) -> bool {
        self.has_norm(Norm::AttentionOutput) || self.has_norm(Norm::FeedForwardOutput)
    }

    /// Number of gains of a layer's norm at this place.
    pub fn norm_length(&self, layer: usize, norm: Norm) -> usize {
        let head_dim = self.layer_head_dim(layer);
        let heads = |count: usize| if self.head_norms.whole_row { count * head_dim } else { head_dim };
        match norm {
            Norm::Query => heads(self.num_heads),
            Norm::Key => heads(self.num_kv_heads),
            _ => self.hidden_size,
        }
    }

    /// True if a projection has a bias, `[out_features]`.
    pub fn projection_has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Q | Projection::K | Projection::V => self.qkv_bias,
            Projection::O => self.o_bias,
            Projection::Gate | Projection::Up | Projection::Down => self.mlp_bias,
            _ => false,
        }
    }
}

fn family(fields: &JsonFields) -> Result<&'static Family> {
    let architectures = fields.texts("architectures")?.unwrap_or_default();
    let unsupported = |key: &str, name: &str| match unsupported::reason(name) {
        Some(reason) => fields.error(key, format!("`{name}` is not supported: {reason}")),
        None => fields.error(key, format!("`{name}` is not supported; {}", supported())),
    };
    let of = |matches: &dyn Fn(&Family) -> bool| FAMILIES.into_iter().find(|family| matches(family));
    let family = match (fields.text("model_type")?, architectures.first()) {
        (Some(name), _) => of(&|f| f.model_type == name).ok_or_else(|| unsupported("model_type", name))?,
        (None, Some(name)) => of(&|f| architectures.iter().any(|a| a == f.architecture))
            .ok_or_else(|| unsupported("architectures", name))?,
        (None, None) => return Err(fields.error("model_type", format!("is missing; {}", supported()))),
    };
    match architectures.first() {
        Some(name) if !architectures.iter().any(|a| a == family.architecture) => {
            Err(unsupported("architectures", name))
        }
        _ => Ok(family),
    }
}

fn experts(fields: &JsonFields, family: &Family, num_layers: usize) -> Result<Option<Experts>> {
    let Some(rule) = family.experts else { return Ok(None) };
    let experts = Experts::of_fields(fields, rule.keys, num_layers, MAX_DIMENSION)?;
    Ok(Some(experts).filter(|experts| experts.layers.contains(&true)))
}

fn convolutions(fields: &JsonFields, family: &Family, num_layers: usize) -> Result<Option<Convolutions>> {
    if !family.convolutions {
        return Ok(None);
    }
    let convolutions = Convolutions::of_lfm2(fields, num_layers)?;
    Ok(Some(convolutions).filter(|convolutions| convolutions.layers.contains(&true)))
}

fn linear_attention(fields: &JsonFields, family: &Family, num_layers: usize) -> Result<Option<LinearAttention>> {
    if !family.linear_attention {
        return Ok(None);
    }
    let linear = LinearAttention::of_qwen(fields, num_layers, MAX_DIMENSION)?;
    Ok(Some(linear).filter(|linear| linear.layers.contains(&true)))
}

fn intermediate_size(fields: &JsonFields, family: &Family) -> Result<usize> {
    // The model with experts says its sizes as they are.
    match family.convolutions && family.experts.is_none() {
        true => intermediate_size_of_lfm2(fields, MAX_DIMENSION),
        false => fields.required_count(family.intermediate_key, MAX_DIMENSION),
    }
}

/// LFM2's own files spell it `tie_embedding`.
fn tie(fields: &JsonFields, family: &Family) -> Result<bool> {
    let tie = fields.flag("tie_word_embeddings", family.tie_word_embeddings)?;
    if family.convolutions { fields.flag("tie_embedding", tie) } else { Ok(tie) }
}

/// Refuses layers that are no attention, and experts, in families whose larger models have them.
fn check_layer_kinds(fields: &JsonFields, family: &Family) -> Result<()> {
    let Some(key) = family.attention_only else { return Ok(()) };
    let kinds = fields.texts(key)?.unwrap_or_default();
    if let Some(other) = kinds.iter().find(|kind| !["attention", "full_attention"].contains(&kind.as_str())) {
        return Err(fields.error(
            key,
            format!("names a layer of the kind `{other}`; only `attention` is supported, as in the dense models of Granite 4.0"),
        ));
    }
    if let Some(experts) = fields.value("num_local_experts").filter(|count| count.as_u64() != Some(0)) {
        return Err(fields.error(
            "num_local_experts",
            format!("is {experts}: mixtures of experts are not supported, only the dense models"),
        ));
    }
    match fields.text("position_embedding_type")? {
        None | Some("rope") => Ok(()),
        Some(other) => {
            Err(fields.error("position_embedding_type", format!("is `{other}`, but only `rope` is supported")))
        }
    }
}

fn activation(fields: &JsonFields, family: &Family) -> Result<Activation> {
    let key = family.activation_key;
    match fields.text(key)? {
        // The configuration says `silu`, and the model has its own.
        _ if family.activation == Activation::Clamped => Ok(family.activation),
        None => Ok(family.activation),
        Some("gelu") if family.gelu_is_tanh => Ok(Activation::GeluTanh),
        // The convolution before a gated delta rule has the same one, whose kernel has SiLU alone.
        Some(name) if family.linear_attention && name != "silu" => {
            Err(fields.error(key, format!("is `{name}`, but only `silu` is supported in this family")))
        }
        Some(name) => Activation::parse(name).map_err(|problem| fields.error(key, problem)),
    }
}

fn scale(fields: &JsonFields, rule: Scale, hidden_size: usize) -> Result<f32> {
    Ok(match rule {
        Scale::One => 1.0,
        Scale::SqrtHidden => (hidden_size as f32).sqrt(),
        Scale::Key(key) => fields.positive(key)?.unwrap_or(1.0) as f32,
        Scale::Reciprocal(key) => (1.0 / fields.positive(key)?.unwrap_or(1.0)) as f32,
    })
}

fn attention_scale(fields: &JsonFields, rule: AttentionScale, head_dim: usize) -> Result<f32> {
    Ok(match rule {
        AttentionScale::HeadSize => 1.0 / (head_dim as f32).sqrt(),
        AttentionScale::InverseSqrt { key, default } => fields.positive(key)?.unwrap_or(default).sqrt().recip() as f32,
        AttentionScale::One => 1.0,
        AttentionScale::Key(key) => fields.positive(key)?.unwrap_or(1.0) as f32,
    })
}

fn softcap(fields: &JsonFields, rule: Option<(&str, Option<f64>)>) -> Result<Option<f32>> {
    let Some((key, default)) = rule else { return Ok(None) };
    let absent = default.filter(|_| !fields.contains(key));
    Ok(fields.positive(key)?.or(absent).map(|cap| cap as f32))
}

/// The kinds of rotary position embedding, and the place of each layer's among them.
fn layer_ropes(
    fields: &JsonFields,
    family: &Family,
    windows: &[Option<usize>],
    head_dims: [usize; 2],
) -> Result<(Vec<RopeConfig>, Vec<Option<usize>>)> {
    let rotated: Vec<bool> = match family.rope.layers {
        RopeLayers::All => vec![true; windows.len()],
        RopeLayers::Windowed => {
            let any = windows.iter().any(Option::is_some);
            windows.iter().map(|window| !any || window.is_some()).collect()
        }
        RopeLayers::Listed { interval } => listed_ropes(fields, interval, windows.len())?,
    };
    let mut ropes: Vec<RopeConfig> = Vec::new();
    let mut places = Vec::with_capacity(windows.len());
    for (window, rotated) in windows.iter().zip(rotated) {
        if !rotated {
            places.push(None);
            continue;
        }
        let windowed = window.is_some();
        let rope = RopeConfig::from_fields(fields, &family.rope, windowed, head_dims[usize::from(windowed)])?;
        let place = ropes.iter().position(|other| *other == rope);
        places.push(Some(place.unwrap_or(ropes.len())));
        if place.is_none() {
            ropes.push(rope);
        }
    }
    Ok((ropes, places))
}

/// `no_rope_layers`: 1 for a layer with rotation, 0 for one without.
fn listed_ropes(fields: &JsonFields, interval: usize, num_layers: usize) -> Result<Vec<bool>> {
    let key = "no_rope_layers";
    let Some(value) = fields.value(key) else {
        let interval = fields.count("no_rope_layer_interval", MAX_LAYERS)?.unwrap_or(interval);
        return Ok((0..num_layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect());
    };
    let flag = |value: &Value| match value.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => None,
    };
    let listed: Option<Vec<bool>> = value.as_array().and_then(|list| list.iter().map(flag).collect());
    match listed {
        Some(listed) if listed.len() == num_layers => Ok(listed),
        _ => Err(fields.error(key, format!("must be a list of {num_layers} numbers, each 0 or 1"))),
    }
}

fn bias(fields: &JsonFields, bias: Bias) -> Result<bool> {
    match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::Key(key) => fields.flag(key, false),
    }
}

fn kv_heads(fields: &JsonFields, family: &Family, num_heads: usize) -> Result<usize> {
    // A key that is null means the same in every family.
    let absent = family.num_kv_heads.filter(|_| !fields.contains("num_key_value_heads")).unwrap_or(num_heads);
    let heads = fields.count("num_key_value_heads", MAX_DIMENSION)?.unwrap_or(absent);
    if !num_heads.is_multiple_of(heads) {
        let problem = format!("is {heads}, which does not divide num_attention_heads, {num_heads}");
        return Err(fields.error("num_key_value_heads", problem));
    }
    Ok(heads)
}

fn head_dim(fields: &JsonFields, family: &Family, hidden_size: usize, num_heads: usize) -> Result<usize> {
    let head_dim = match fields.count("head_dim", MAX_DIMENSION)?.or(family.head_dim) {
        Some(given) => given,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let problem = format!("is {num_heads}, which does not divide hidden_size, {hidden_size}");
            return Err(fields.error("num_attention_heads", problem));
        }
    };
    if !head_dim.is_multiple_of(4) {
        return Err(fields.error("head_dim", format!("is {head_dim}, but must be a multiple of 4")));
    }
    if head_dim > MAX_HEAD_DIM as usize {
        return Err(fields.error("head_dim", format!("is {head_dim}, but must be at most {MAX_HEAD_DIM}")));
    }
    if num_heads.checked_mul(head_dim).is_none_or(|n| n > MAX_DIMENSION) {
        let problem = format!("{num_heads} heads of {head_dim} are more than {MAX_DIMENSION} features");
        return Err(fields.error("head_dim", problem));
    }
    Ok(head_dim)
}

/// Positions that a query sees in each layer, its own included; `None` is all before it.
fn sliding_windows(fields: &JsonFields, rule: SlidingWindows, num_layers: usize) -> Result<Vec<Option<usize>>> {
    // A key that is null turns the window off; an absent one means the default.
    let window = |default: Option<usize>| -> Result<Option<usize>> {
        let absent = !fields.contains("sliding_window");
        Ok(fields.count("sliding_window", MAX_POSITIONS)?.or(default.filter(|_| absent)))
    };
    match rule {
        SlidingWindows::Never => Ok(vec![None; num_layers]),
        SlidingWindows::EveryLayer { default } => Ok(vec![window(default)?; num_layers]),
        SlidingWindows::Pattern { default, pattern } => {
            let Some(window) = window(default)? else { return Ok(vec![None; num_layers]) };
            match fields.texts("layer_types")? {
                Some(kinds) => windows_by_name(fields, &kinds, Some(window), num_layers),
                None => {
                    let every = fields.count("sliding_window_pattern", MAX_LAYERS)?.unwrap_or(pattern);
                    Ok((0..num_layers).map(|i| (!(i + 1).is_multiple_of(every)).then_some(window)).collect())
                }
            }
        }
        SlidingWindows::Chosen { default, default_first } => {
            let given = window(Some(default))?;
            let window = if fields.flag("use_sliding_window", false)? { given } else { None };
            match fields.texts("layer_types")? {
                Some(kinds) => windows_by_name(fields, &kinds, window, num_layers),
                None => {
                    let first = first_windowed_layer(fields, default_first)?;
                    Ok((0..num_layers).map(|layer| window.filter(|_| layer >= first)).collect())
                }
            }
        }
    }
}

fn first_windowed_layer(fields: &JsonFields, default: usize) -> Result<usize> {
    let Some(value) = fields.value("max_window_layers") else { return Ok(default) };
    match value.as_u64() {
        Some(layers) => Ok(usize::try_from(layers).unwrap_or(usize::MAX)),
        None => {
            let problem = format!("is {value}, but must be a whole number of at least 0");
            Err(fields.error("max_window_layers", problem))
        }
    }
}

/// The windows of layers whose kinds `layer_types` names.
fn windows_by_name(
    fields: &JsonFields,
    kinds: &[String],
    window: Option<usize>,
    num_layers: usize,
) -> Result<Vec<Option<usize>>> {
    if kinds.len() != num_layers {
        let problem = format!("lists {} layers, but num_hidden_layers is {num_layers}", kinds.len());
        return Err(fields.error("layer_types", problem));
    }
    let window_of = |kind: &String| match (kind.as_str(), window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => Err(fields.error(
            "layer_types",
            "names sliding_attention, but use_sliding_window is not true or sliding_window is null",
        )),
        (other, _) => {
            let problem = format!("`{other}` is not supported; use full_attention or sliding_attention");
            Err(fields.error("layer_types", problem))
        }
    };
    kinds.iter().map(window_of).collect()
}

/// A token id or a list of them; where the key is absent, `default`.
fn token_ids(fields: &JsonFields, key: &str, default: Option<u32>) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| fields.error(key, format!("is {value}, but must be a token id, a list of them, or null")))
    };
    match fields.value(key) {
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
        None if !fields.contains(key) => Ok(default.into_iter().collect()),
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rope::RopeScaling;

    const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
        "num_attention_heads": 8"#;

    fn parse(text: &str) -> Result<ModelConfig> {
        ModelConfig::from_json(Path::new("dir/config.json"), text)
    }

    fn llama_with(rest: &str) -> Result<ModelConfig> {
        parse(&format!("{LLAMA}, {rest}}}"))
    }

    #[test]
    fn granite_4_is_read_where_it_is_dense() {
        let with = |rest: &str| {
            parse(&format!(
                r#"{{"model_type": "granitemoehybrid", "vocab_size": 32, "hidden_size": 16, "shared_intermediate_size": 24,
                "num_hidden_layers": 2, "num_attention_heads": 4, {rest}}}"#
            ))
        };
        let config = with(r#""layer_types": ["attention", "full_attention"], "num_local_experts": 0"#).unwrap();
        assert_eq!((config.intermediate_size, config.path(Projection::Down)), (24, "shared_mlp.output_linear"));
        for (rest, says) in [
            (r#""layer_types": ["mamba", "attention"]"#, "`mamba`"),
            (r#""num_local_experts": 62"#, "only the dense models"),
            (r#""position_embedding_type": "nope""#, "only `rope`"),
        ] {
            let problem = with(rest).unwrap_err().to_string();
            assert!(problem.contains(says), "{problem}");
        }
    }

    #[test]
    fn a_minimal_llama_gets_the_defaults_of_transformers() {
        let config = parse(&format!("{LLAMA}}}")).unwrap();
        assert_eq!((config.num_kv_heads, config.head_dim, config.max_position_embeddings), (8, 8, 2048));
        assert_eq!(config.ropes, [RopeConfig::plain(10_000.0, 8)]);
        assert_eq!(config.layer_ropes, vec![Some(0); 5]);
        assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), [2].as_slice()));
        assert_eq!(config.sliding_windows, vec![None; 5]);
        assert_eq!(config.activation, Activation::Silu);
        assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.o_bias && !config.mlp_bias);
        assert_eq!(config.projection_shape(Projection::Down), (64, 172));
    }

    #[test]
    fn families_differ_in_bias_norm_window_and_head_size() {
        let of = |kind: &str, rest: &str| {
            let text = LLAMA.replace("llama", &kind.to_lowercase()).replace("Llama", kind);
            parse(&format!("{text}, {rest}}}")).unwrap()
        };
        let mistral = of("Mistral", r#""num_key_value_heads": 2"#);
        assert_eq!(mistral.sliding_windows, vec![Some(4096); 5]);
        let mistral = of("Mistral", r#""num_key_value_heads": 2, "sliding_window": null"#);
        assert_eq!(mistral.sliding_windows, vec![None; 5]);
        let qwen2 = of("Qwen2", r#""num_key_value_heads": 2, "sliding_window": 16, "use_sliding_window": false"#);
        assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.eos_token_ids.is_empty());
        assert_eq!(qwen2.sliding_windows, vec![None; 5]);
        let windows =
            r#""num_key_value_heads": 2, "sliding_window": 16, "use_sliding_window": true, "max_window_layers": 3"#;
        assert_eq!(of("Qwen2", windows).sliding_windows, [None, None, None, Some(16), Some(16)]);
        let qwen3 = of("Qwen3", r#""num_key_value_heads": 2"#);
        assert!(qwen3.has_norm(Norm::Query) && !qwen3.qkv_bias && !qwen2.has_norm(Norm::Query));
        assert_eq!(qwen3.projection_shape(Projection::K), (256, 64));
        let layers = r#""num_key_value_heads": 2, "sliding_window": 16, "use_sliding_window": true,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention",
            "full_attention"]"#;
        assert_eq!(of("Qwen3", layers).sliding_windows, [Some(16), None, None, None, None]);
    }

    #[test]
    fn hidden_act_is_an_activation() {
        for name in ["gelu_pytorch_tanh", "gelu_new"] {
            let config = llama_with(&format!(r#""hidden_act": "{name}""#)).unwrap();
            assert_eq!(config.activation, Activation::GeluTanh);
        }
        assert_eq!(llama_with(r#""hidden_act": "silu""#).unwrap().activation, Activation::Silu);
    }

    #[test]
    fn rope_is_read_from_all_its_places() {
        let theta = |rest: &str| llama_with(rest).unwrap().ropes[0].clone();
        assert_eq!(theta(r#""rope_theta": 5e5"#).theta, 5e5);
        let new = theta(r#""rope_parameters": {"rope_type": "linear", "rope_theta": 7000, "factor": 2}"#);
        let linear = RopeScaling::Linear { factor: 2.0 };
        assert_eq!(new, RopeConfig { scaling: linear, ..RopeConfig::plain(7000.0, 8) });
        let old = theta(r#""rope_theta": 7000, "rope_scaling": {"type": "linear", "factor": 2}"#);
        assert_eq!(old, new);
        let llama3 = r#""rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
        assert!(matches!(
            theta(llama3).scaling,
            RopeScaling::Llama3 { original_max_position_embeddings: Some(8192), .. }
        ));
    }

    #[test]
    fn every_bad_field_is_named_with_what_would_be_right() {
        let cases = [
            (r#""num_key_value_heads": 3"#, "num_key_value_heads", "does not divide"),
            (r#""num_key_value_heads": 0"#, "num_key_value_heads", "whole number"),
            (r#""head_dim": 6"#, "head_dim", "multiple of 4"),
            (r#""head_dim": 516"#, "head_dim", "at most 512"),
            (r#""head_dim": 7.5"#, "head_dim", "whole number"),
            (r#""hidden_act": "relu2""#, "hidden_act", "silu"),
            (r#""rms_norm_eps": -1e-6"#, "rms_norm_eps", "above 0"),
            (r#""rope_theta": 0"#, "rope_theta", "above 0"),
            (r#""rope_theta": 0.5"#, "rope_theta", "above 1"),
            (r#""rope_scaling": {"type": "dynamic", "factor": 2}"#, "rope_scaling.rope_type", "llama3"),
            (r#""rope_scaling": {"type": "linear"}"#, "rope_scaling.factor", "missing"),
            (r#""rope_scaling": 3"#, "rope_scaling", "object"),
            (r#""tie_word_embeddings": "yes""#, "tie_word_embeddings", "true or false"),
            (r#""eos_token_id": -1"#, "eos_token_id", "token id"),
            (r#""eos_token_id": [1, 2.5]"#, "eos_token_id", "token id"),
            (r#""max_position_embeddings": -5"#, "max_position_embeddings", "whole number"),
            (r#""partial_rotary_factor": 0.5"#, "partial_rotary_factor", "only 1"),
            (r#""quantization_config": {"quant_method": "gptq"}"#, "quantization_config", "gptq"),
        ];
        for (rest, field, says) in cases {
            let message = llama_with(rest).expect_err(rest).to_string();
            assert!(message.contains(&format!("dir/config.json: `{field}`")) && message.contains(says), "{message}");
        }
        for field in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"] {
            let message = parse(&format!("{LLAMA}}}").replace(field, "other")).expect_err(field).to_string();
            assert!(message.contains(&format!("`{field}`: is missing")), "{message}");
            let message = parse(&format!("{LLAMA}}}").replace(&format!("\"{field}\": "), &format!("\"{field}\": -")));
            assert!(message.expect_err(field).to_string().contains("whole number"));
        }
        assert!(parse("[1]").unwrap_err().to_string().contains("one JSON object"));
        assert!(parse("{").unwrap_err().to_string().contains("not valid JSON"));
    }

    #[test]
    fn an_unknown_architecture_names_the_supported_ones() {
        for (from, to) in [("llama", "new_family"), ("LlamaForCausalLM", "LlamaForSequenceClassification")] {
            let message = parse(&format!("{LLAMA}}}").replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(to) && message.contains("Qwen3ForCausalLM"), "{message}");
        }
        let message = parse("{}").unwrap_err().to_string();
        assert!(message.contains("`model_type`: is missing"), "{message}");
    }
}
