//! Selects the linear layers of an adapter with their rank and scale, by PEFT's matching rules.

use std::collections::HashSet;

use fancy_regex::{Regex, RegexBuilder};

use super::config::{Bias, ExcludeModules, LoraConfig, MAX_RANK, TargetModules};
use super::factor::Factor;
use crate::model::config::ModelConfig;
use crate::model::gemma4;
use crate::model::modules::{self, Projection};
use crate::model::tensors::modules_without_projections;
use crate::model::wrapper::in_decoder;
use crate::setting::{
    ALPHA, ALPHA_PATTERN, EXCLUDE_MODULES, Key, LAYERS_TO_TRANSFORM, LORA_BIAS, MODULES_TO_SAVE, RANK, RANK_PATTERN,
    TARGET_MODULES, TRAINABLE_TOKEN_INDICES,
};
use crate::{Error, Result};

/// The place of a module in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The matrix with a row for each token.
    Embedding,
    /// A linear layer of the decoder layer of this number, from 0.
    Layer(usize, Projection),
    /// The matrix from hidden states to logits.
    Head,
}

/// One module with trained tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Its place in the model.
    pub place: Place,
    /// The decoder's place among the modules of transformers: `model` for a text model.
    pub decoder: &'static str,
    /// Its path below the layer in the files and for PEFT, or the name of the embedding or the head.
    pub path: &'static str,
    /// True if it is a part of a fused layer and takes A from the module before it: PEFT trains one A for all parts.
    pub shares_a: bool,
    /// Rank of its factors: `r`, or the rank of the first pattern that matches.
    pub rank: usize,
    /// Numerator of its scale: `lora_alpha`, or the alpha of the first pattern that matches.
    pub alpha: f32,
    /// Factor of `B·A·x`: alpha / rank, or alpha / sqrt(rank) with rank-stabilized scaling.
    pub scale: f32,
    /// Outputs and inputs; an embedding's inputs are its tokens.
    pub features: [usize; 2],
    /// What is trained, in the order in which it is stored and saved.
    pub factors: Vec<Factor>,
    /// The tokens of [`Factor::Rows`], in the order of the rows.
    pub tokens: Vec<u32>,
}

impl LoraModule {
    /// Name of the module in the base model, such as `model.layers.N.self_attn.q_proj`.
    pub fn name(&self) -> String {
        match self.place {
            Place::Layer(layer, _) if !self.is_of_all_layers() => module_name(self.decoder, layer, self.path),
            _ => in_decoder(self.decoder, self.path),
        }
    }

    /// True for a part of the linear layer that computes the embeddings of every layer; in the files it stands beside the layers.
    pub fn is_of_all_layers(&self) -> bool {
        matches!(self.place, Place::Layer(_, Projection::LayerEmbedding))
    }

    /// A name that no other module has: parts of a fused layer have one in [`Self::name`].
    pub fn own_name(&self) -> String {
        match self.place {
            Place::Layer(layer, projection) => module_name(self.decoder, layer, projection.module()),
            Place::Embedding | Place::Head => self.name(),
        }
    }

    /// True if LoRA adapts it, false if it has copies alone.
    pub fn is_adapted(&self) -> bool {
        self.factors.iter().any(|factor| matches!(factor, Factor::A | Factor::EmbeddingA))
    }

    /// The name of the base's tensor that its copies begin as, `weight` or `bias`.
    pub fn base_tensor(&self, model: &ModelConfig, tensor: &str) -> String {
        let module = match self.place {
            Place::Layer(layer, projection) => modules::in_layer(layer, projection.module()),
            Place::Head if !model.tie_word_embeddings => modules::HEAD.to_owned(),
            Place::Embedding | Place::Head => modules::EMBEDDING.to_owned(),
        };
        format!("{module}.{tensor}")
    }
}

fn module_name(decoder: &str, layer: usize, path: &str) -> String {
    in_decoder(decoder, &modules::in_layer(layer, path))
}

/// A list of names or a regular expression that selects modules.
enum Matcher {
    Names(Vec<String>),
    Regex(Expression),
}

impl Matcher {
    fn matches(&self, module: &str) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| is_named(module, name))),
            Self::Regex(expression) => expression.matches(module),
        }
    }
}

/// True if `name` is a module's whole name, or its ending after a point.
pub fn is_named(module: &str, name: &str) -> bool {
    name == module || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// Steps back that an expression may take over one name; Python's take as many as there are.
const BACKTRACKING: usize = 100_000;
/// Limit for all compiled expressions of a field. Those that select modules stay far below it.
const COMPILED_BYTES: usize = 16 << 20;

/// A regular expression of a setting, as Python's `re` reads it: with look-around and back-references.
struct Expression {
    field: Key,
    text: String,
    regex: Regex,
}

impl Expression {
    /// Compiles `text`, one of `count` expressions of the field, between `before` and the end of the name.
    fn new(field: Key, text: &str, before: &str, count: usize) -> Result<Self> {
        let build = |pattern: &str| {
            let mut builder = RegexBuilder::new(pattern);
            builder.backtrack_limit(BACKTRACKING).delegate_size_limit(COMPILED_BYTES / count.max(16));
            builder.build().map_err(|e| one_line(&e))
        };
        // Alone first: what is unbalanced must not be closed by the parts around it.
        let regex = build(text).and_then(|_| build(&format!(r"\A{before}(?:{text})\z"))).map_err(|e| {
            let problem = format!("{field}: `{text}` is not a regular expression: {e}");
            Error::setting(field, problem)
        })?;
        Ok(Self { field, text: text.to_owned(), regex })
    }

    fn matches(&self, module: &str) -> Result<bool> {
        let Self { field, text, regex } = self;
        regex.is_match(module).map_err(|_| {
            let problem = "goes back and forth too often over one name; write it with fewer repetitions";
            Error::setting(*field, format!("{field}: `{text}` {problem}"))
        })
    }
}

/// Returns the cause of a regular expression's error; the full message repeats the expression over several lines.
fn one_line(e: &fancy_regex::Error) -> String {
    let text = e.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// Compiles the keys of `rank_pattern` or `alpha_pattern` by PEFT's rule: each must match the end of the module's name.
fn patterns<T: Copy>(field: Key, patterns: &[(String, T)]) -> Result<Vec<(Expression, T)>> {
    patterns
        .iter()
        .map(|(key, value)| Ok((Expression::new(field, key, r"(?:.*\.)?", patterns.len())?, *value)))
        .collect()
}

fn first_match<T: Copy>(patterns: &[(Expression, T)], module: &str) -> Result<Option<T>> {
    for (expression, value) in patterns {
        if expression.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Returns the adapted modules, ordered by layer and [`Projection::ALL`].
///
/// # Errors
/// The settings match nothing, or match modules that are not linear layers.
pub fn resolve(lora: &LoraConfig, model: &ModelConfig) -> Result<Vec<LoraModule>> {
    let target = match &lora.target_modules {
        TargetModules::AllLinear => None,
        TargetModules::Names(names) => Some(Matcher::Names(names.clone())),
        TargetModules::Regex(text) => Some(Matcher::Regex(Expression::new(TARGET_MODULES, text, "", 1)?)),
    };
    let exclude = match &lora.exclude_modules {
        None => None,
        Some(ExcludeModules::Names(names)) => Some(Matcher::Names(names.clone())),
        Some(ExcludeModules::Regex(text)) => Some(Matcher::Regex(Expression::new(EXCLUDE_MODULES, text, "", 1)?)),
    };
    if let Some(target) = &target {
        let excluded = |module: &str| exclude.as_ref().map_or(Ok(false), |m| m.matches(module));
        refuse_other_modules(model, |module| Ok(target.matches(module)? && !excluded(module)?))?;
    }
    check_layers(lora, model)?;
    let choice = Choice { lora, model, target, exclude };
    let (ranks, alphas) = (patterns(RANK_PATTERN, &lora.rank_pattern)?, patterns(ALPHA_PATTERN, &lora.alpha_pattern)?);
    let mut modules = Vec::new();
    for place in choice.places() {
        let mut module = choice.module(place);
        if choice.adapts(&module)? {
            let name = module.name();
            module.rank = first_match(&ranks, &name)?.unwrap_or(lora.r);
            let alpha = first_match(&alphas, &name)?.unwrap_or(lora.lora_alpha);
            choice.set_scale(&mut module, alpha)?;
        }
        choice.add_copies(&mut module)?;
        if matches!(place, Place::Embedding) && !module.factors.is_empty() && model.layer_embeddings().is_some() {
            let problem = "adapters of the embedding are not supported in a model with embeddings for each layer";
            return Err(Error::setting(TARGET_MODULES, problem));
        }
        if !module.factors.is_empty() {
            modules.push(module);
        }
    }
    if modules.is_empty() {
        let exist = model.projections().filter(|projection| adaptable(model, *projection));
        let mut exist: Vec<_> = exist.map(|projection| modules::last_part(model.path(projection))).collect();
        exist.dedup();
        let of_kinds = if model.has_recurrent_layers() { ", by its kind," } else { "" };
        let first = Projection::OF_MIXER.into_iter().find(|projection| model.has_projection(0, *projection));
        let first = first.unwrap_or(Projection::Q);
        let exist = exist.join(", ");
        let problem = format!(
            "{TARGET_MODULES} {}matches no module; each of the {} layers has{of_kinds} {exist}, with full names like {}",
            describe(&lora.target_modules),
            model.num_layers,
            module_name(model.decoder(), 0, model.path(first))
        );
        return Err(Error::setting(TARGET_MODULES, problem));
    }
    Ok(modules)
}

fn describe(target: &TargetModules) -> String {
    match target {
        TargetModules::Names(names) => format!("({}) ", names.join(", ")),
        TargetModules::Regex(text) => format!("`{text}` "),
        TargetModules::AllLinear => String::new(),
    }
}

fn check_layers(lora: &LoraConfig, model: &ModelConfig) -> Result<()> {
    if lora.layers_to_transform.is_some() && matches!(lora.target_modules, TargetModules::Regex(_)) {
        let problem = format!(
            "{LAYERS_TO_TRANSFORM} cannot stand beside a regular expression in {TARGET_MODULES}; name the layers in the expression"
        );
        return Err(Error::setting(LAYERS_TO_TRANSFORM, problem));
    }
    let beyond = lora.layers_to_transform.iter().flatten().find(|layer| **layer >= model.num_layers);
    match beyond {
        None => Ok(()),
        Some(layer) => {
            let last = model.num_layers - 1;
            let problem = format!("{LAYERS_TO_TRANSFORM} names layer {layer}, but the model has layers 0 to {last}");
            Err(Error::setting(LAYERS_TO_TRANSFORM, problem))
        }
    }
}

/// The modules that the settings choose, and what is trained of each.
struct Choice<'a> {
    lora: &'a LoraConfig,
    model: &'a ModelConfig,
    /// None is every linear layer.
    target: Option<Matcher>,
    exclude: Option<Matcher>,
}

impl Choice<'_> {
    /// Every place of the model that may have trained tensors.
    fn places(&self) -> impl Iterator<Item = Place> {
        let layers = 0..self.model.num_layers;
        // The parts of one linear layer are neighbors.
        let of_all_layers = layers.clone().map(|layer| (layer, Projection::LayerEmbedding));
        let of_one = Projection::ALL.into_iter().filter(|projection| *projection != Projection::LayerEmbedding);
        let of_layers = layers.flat_map(move |layer| of_one.clone().map(move |projection| (layer, projection)));
        let places = of_all_layers
            .chain(of_layers)
            .filter(|(layer, projection)| {
                adaptable(self.model, *projection) && self.model.has_projection(*layer, *projection)
            })
            .map(|(layer, projection)| Place::Layer(layer, projection));
        std::iter::once(Place::Embedding).chain(places).chain([Place::Head])
    }

    /// The module at a place, of which nothing is trained yet.
    fn module(&self, place: Place) -> LoraModule {
        let model = self.model;
        let (path, features) = match place {
            Place::Embedding => (modules::EMBEDDING, [model.hidden_size, model.vocab_size]),
            Place::Head => (modules::HEAD, [model.vocab_size, model.hidden_size]),
            Place::Layer(layer, projection) => {
                let (outputs, inputs) = model.layer_shape(layer, projection);
                let path = match projection {
                    Projection::LayerEmbedding => gemma4::MODEL_PROJECTION,
                    _ => model.path(projection),
                };
                (path, [outputs, inputs])
            }
        };
        let shares_a = match place {
            Place::Layer(layer, Projection::LayerEmbedding) => layer > 0,
            Place::Layer(_, projection) => model.fused(projection).is_some_and(|fused| fused.parts[0] != projection),
            Place::Embedding | Place::Head => false,
        };
        let decoder = model.decoder();
        let (factors, tokens) = (Vec::new(), Vec::new());
        LoraModule { place, decoder, path, shares_a, rank: 0, alpha: 0.0, scale: 0.0, features, factors, tokens }
    }

    fn adapts(&self, module: &LoraModule) -> Result<bool> {
        let name = module.name();
        let chosen = match (&self.target, module.place) {
            (Some(target), _) => target.matches(&name)?,
            (None, place) => matches!(place, Place::Layer(..)),
        };
        let layers = self.lora.layers_to_transform.as_ref();
        let in_layers = match module.place {
            Place::Layer(layer, _) if !module.is_of_all_layers() => layers.is_none_or(|layers| layers.contains(&layer)),
            _ => layers.is_none(),
        };
        Ok(chosen && in_layers && !self.exclude.as_ref().map_or(Ok(false), |exclude| exclude.matches(&name))?)
    }

    /// Gives a module LoRA's factors and their scale.
    fn set_scale(&self, module: &mut LoraModule, alpha: f64) -> Result<()> {
        let (name, rank) = (module.name(), module.rank);
        if !(1..=MAX_RANK).contains(&rank) {
            let problem = format!("the rank of {name} is {rank}, but must be in 1..={MAX_RANK}");
            return Err(Error::setting(RANK, problem));
        }
        if !(alpha.is_finite() && alpha > 0.0) {
            let problem = format!("the alpha of {name} is {alpha}, but must be a number above 0");
            return Err(Error::setting(ALPHA, problem));
        }
        let divisor = if self.lora.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        (module.alpha, module.scale) = (alpha as f32, (alpha / divisor) as f32);
        let is_layer = matches!(module.place, Place::Layer(..));
        if self.lora.use_dora && !is_layer {
            let problem = format!(
                "{TARGET_MODULES} matches {name}, but magnitudes (DoRA) are not supported there; leave it out by {EXCLUDE_MODULES}"
            );
            return Err(Error::setting(TARGET_MODULES, problem));
        }
        module.factors = match module.place {
            Place::Embedding => Factor::OF_EMBEDDING.into(),
            Place::Layer(..) | Place::Head => Factor::PLAIN.into(),
        };
        if self.lora.lora_bias && (self.lora.use_dora || module.place == Place::Embedding) {
            let problem = format!("{LORA_BIAS} cannot stand beside magnitudes (DoRA), or an adapter on the embedding");
            return Err(Error::setting(LORA_BIAS, problem));
        }
        module.factors.extend(self.lora.use_dora.then_some(Factor::Magnitude));
        module.factors.extend(self.lora.lora_bias.then_some(Factor::LoraBias));
        Ok(())
    }

    /// Adds the copies of the base's tensors that are trained beside LoRA.
    fn add_copies(&self, module: &mut LoraModule) -> Result<()> {
        let name = module.name();
        if let Place::Layer(_, projection) = module.place {
            let trained = match self.lora.bias {
                Bias::None => false,
                Bias::LoraOnly => module.is_adapted(),
                Bias::All => true,
            };
            if trained && self.model.projection_has_bias(projection) {
                module.factors.push(Factor::Bias);
            }
            return Ok(());
        }
        let saved = self.lora.modules_to_save.iter().any(|saved| name.ends_with(saved.as_str()));
        let rows = self.lora.trainable_token_indices.iter().find(|(of, _)| name.ends_with(of.as_str()));
        if [module.is_adapted(), saved, rows.is_some()].into_iter().filter(|is| *is).count() > 1 {
            let problem = format!(
                "{name} is chosen twice: {TARGET_MODULES}, {MODULES_TO_SAVE} and {TRAINABLE_TOKEN_INDICES} exclude each other"
            );
            return Err(Error::setting(MODULES_TO_SAVE, problem));
        }
        if saved {
            module.factors.push(Factor::Whole);
        }
        if let Some((_, tokens)) = rows {
            let vocabulary = self.model.vocab_size;
            let mut seen = HashSet::new();
            if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary || !seen.insert(**token)) {
                let problem = format!(
                    "{TRAINABLE_TOKEN_INDICES} has {token}, but the tokens of this model are 0 to {}, each given once",
                    vocabulary - 1
                );
                return Err(Error::setting(TRAINABLE_TOKEN_INDICES, problem));
            }
            module.factors.push(Factor::Rows);
            module.tokens = tokens.clone();
        }
        Ok(())
    }
}

/// True if a projection may have an adapter.
fn adaptable(model: &ModelConfig, projection: Projection) -> bool {
    model.adapts_feed_forward() || !Projection::OF_EXPERTS.contains(&projection)
}

/// Refuses target modules that are neither linear layers nor the embedding, as PEFT does.
fn refuse_other_modules(model: &ModelConfig, is_target: impl Fn(&str) -> Result<bool>) -> Result<()> {
    let frozen = (0..model.num_layers).flat_map(|layer| Projection::ALL.map(|projection| (layer, projection)));
    let frozen = frozen
        .filter(|(layer, projection)| !adaptable(model, *projection) && model.has_projection(*layer, *projection))
        .map(|(layer, projection)| modules::in_layer(layer, projection.module()));
    let others = modules_without_projections(model).into_iter().chain(frozen);
    for module in others.filter(|module| ![modules::HEAD, modules::EMBEDDING].contains(&module.as_str())) {
        let module = in_decoder(model.decoder(), &module);
        if is_target(&module)? {
            if model.experts.is_some() && module.contains(".mlp.") && !module.ends_with(modules::ACTIVATION) {
                let problem = format!(
                    "{TARGET_MODULES} matches {module}: in a model with experts, only attention can have adapters; take q_proj, \
                     k_proj, v_proj and o_proj, or leave this one out by {EXCLUDE_MODULES}"
                );
                return Err(Error::setting(TARGET_MODULES, problem));
            }
            let problem = format!(
                "{TARGET_MODULES} matches {module}, which is not a linear layer; name the linear layers, or leave this one out by \
                 {EXCLUDE_MODULES}"
            );
            return Err(Error::setting(TARGET_MODULES, problem));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;

    pub(crate) fn model() -> ModelConfig {
        let text = r#"{"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}"#;
        ModelConfig::from_json(Path::new("config.json"), text).unwrap()
    }

    fn names(names: &[&str]) -> LoraConfig {
        let names = TargetModules::Names(names.iter().map(|&n| n.to_owned()).collect());
        LoraConfig { target_modules: names, ..LoraConfig::default() }
    }

    fn regex(text: &str) -> LoraConfig {
        LoraConfig { target_modules: TargetModules::Regex(text.into()), ..LoraConfig::default() }
    }

    fn resolved(lora: &LoraConfig) -> Vec<String> {
        let modules = resolve(lora, &model()).unwrap();
        let name = |module: &LoraModule| match module.place {
            Place::Layer(layer, projection) => format!("{layer}.{}", projection.name()),
            Place::Embedding | Place::Head => module.path.to_owned(),
        };
        modules.iter().map(name).collect()
    }

    #[test]
    fn names_match_whole_parts_at_the_end() {
        assert_eq!(resolved(&names(&["q_proj"])), ["0.q_proj", "1.q_proj", "2.q_proj"]);
        assert_eq!(resolved(&names(&["1.mlp.up_proj", "nothing"])), ["1.up_proj"]);
        assert_eq!(resolved(&names(&["model.layers.2.self_attn.v_proj"])), ["2.v_proj"]);
        assert!(resolve(&names(&["proj"]), &model()).is_err());
        assert_eq!(resolved(&LoraConfig::default()).len(), 21);
        assert_eq!(resolved(&names(&["lm_head", "embed_tokens"])), ["model.embed_tokens", "lm_head"]);
    }

    #[test]
    fn expressions_match_the_whole_name() {
        assert_eq!(resolved(&regex(r".*\.(0|2)\..*[kv]_proj")), ["0.k_proj", "0.v_proj", "2.k_proj", "2.v_proj"]);
        assert!(resolve(&regex("q_proj"), &model()).is_err());
        assert!(resolve(&regex("a|.*q_proj"), &model()).is_ok());
        // As Python's re.fullmatch selects them.
        let later = r"model\.layers\.(?!0\.)\d+\.(?:self_attn|mlp)\.(?:q_proj|up_proj)";
        assert_eq!(resolved(&regex(later)), ["1.q_proj", "1.up_proj", "2.q_proj", "2.up_proj"]);
        assert_eq!(resolved(&regex(r".*(?<!mlp)\.(?:v|up)_proj")), ["0.v_proj", "1.v_proj", "2.v_proj"]);
    }

    #[test]
    fn layers_and_exclusions_narrow_the_choice() {
        let mut lora = names(&["q_proj", "up_proj"]);
        lora.layers_to_transform = Some(vec![2]);
        assert_eq!(resolved(&lora), ["2.q_proj", "2.up_proj"]);
        lora.exclude_modules = Some(ExcludeModules::Names(vec!["up_proj".into()]));
        assert_eq!(resolved(&lora), ["2.q_proj"]);
        lora.exclude_modules = Some(ExcludeModules::Regex(r".*\.self_attn\..*".into()));
        assert_eq!(resolved(&lora), ["2.up_proj"]);
    }

    #[test]
    fn patterns_set_rank_and_alpha_and_the_scale_follows() {
        let mut lora = names(&["q_proj", "v_proj"]);
        lora.lora_alpha = 16.0;
        lora.rank_pattern = vec![("1.self_attn.q_proj".into(), 2), ("q_proj".into(), 4)];
        lora.alpha_pattern = vec![("^model.layers.0.self_attn.v_proj".into(), 9.0), ("_proj".into(), 1.0)];
        let ranks: Vec<_> = resolve(&lora, &model()).unwrap().iter().map(|m| (m.rank, m.alpha, m.scale)).collect();
        let expected =
            [(4, 16.0, 4.0), (8, 9.0, 1.125), (2, 16.0, 8.0), (8, 16.0, 2.0), (4, 16.0, 4.0), (8, 16.0, 2.0)];
        assert_eq!(ranks, expected);
        lora.use_rslora = true;
        assert_eq!(resolve(&lora, &model()).unwrap()[0].scale, 8.0);
    }

    #[test]
    fn many_expressions_fit_where_they_are_small() {
        let mut lora = names(&["q_proj"]);
        // PEFT writes one for each module of an adapter with ranks of its own.
        lora.rank_pattern = (0..900).map(|i| (format!("model.layers.{i}.self_attn.q_proj"), 4)).collect();
        lora.rank_pattern.push(("2.self_attn.q_proj".into(), 5));
        assert_eq!(resolve(&lora, &model()).unwrap().iter().map(|m| m.rank).collect::<Vec<_>>(), [4, 4, 4]);
        lora.rank_pattern = (0..300).map(|i| (format!(r"\w{{200}}q{i}"), 4)).collect();
        let message = resolve(&lora, &model()).unwrap_err().to_string();
        assert!(message.contains("is not a regular expression"), "{message}");
    }

    #[test]
    fn experts_get_no_adapters() {
        let text = r#"{"model_type": "qwen3_moe", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [0]}"#;
        let model = ModelConfig::from_json(Path::new("config.json"), text).unwrap();
        let count = |lora: &LoraConfig| resolve(lora, &model).map(|modules| modules.len());
        assert_eq!(count(&LoraConfig::default()).unwrap(), 3 * 4);
        assert_eq!(count(&names(&["q_proj", "v_proj"])).unwrap(), 6);
        for target in ["gate_proj", "gate", "experts", "mlp.experts.3.down_proj", "layers.0.mlp.up_proj"] {
            let message = resolve(&names(&["q_proj", target]), &model).unwrap_err().to_string();
            let says = message.contains(".mlp.") && message.contains("only attention can have adapters; take q_proj");
            assert!(says, "{message}");
        }
        let mut lora = names(&["q_proj", "up_proj"]);
        lora.exclude_modules = Some(ExcludeModules::Regex(r".*\.mlp\..*".into()));
        assert_eq!(count(&lora).unwrap(), 3);
    }

    #[test]
    fn what_cannot_work_says_why() {
        let message = |lora: LoraConfig| resolve(&lora, &model()).unwrap_err().to_string();
        let nothing = message(names(&["c_attn"]));
        assert!(nothing.contains("c_attn") && nothing.contains("q_proj, k_proj") && nothing.contains("down_proj"));
        assert!(
            message(LoraConfig { r: 0, ..names(&["q_proj"]) }).contains("rank of model.layers.0.self_attn.q_proj is 0")
        );
        assert!(message(LoraConfig { lora_alpha: f64::NAN, ..names(&["q_proj"]) }).contains("alpha"));
        assert!(message(regex(".*")).contains("which is not a linear layer"));
        assert!(message(names(&["q_proj", "mlp"])).contains("model.layers.0.mlp, which is not a linear layer"));
        assert!(message(regex("(?!x).*")).contains("which is not a linear layer"));
        let dora = LoraConfig { use_dora: true, ..names(&["lm_head"]) };
        assert!(message(dora).contains("magnitudes (DoRA) are not supported there"));
        let twice = LoraConfig { modules_to_save: vec!["lm_head".into()], ..names(&["lm_head"]) };
        assert!(message(twice).contains("lm_head is chosen twice"));
        let of = |tokens: &[u32]| LoraConfig {
            trainable_token_indices: vec![("embed_tokens".into(), tokens.to_vec())],
            ..names(&["q_proj"])
        };
        assert!(message(of(&[3, 32])).contains("has 32, but the tokens of this model are 0 to 31"));
        assert!(message(of(&[3, 4, 3])).contains("each given once"));
        assert!(message(regex("(q_proj")).contains("`(q_proj` is not a regular expression"));
        assert!(message(regex(r"(.+)(.+)(.+)(.+)(.+)(.+)\1\2\3\4\5\6x")).contains("goes back and forth too often"));
        assert!(message(regex(r"\w{300}\w{300}\w{300}q_proj")).contains("is not a regular expression"));
        assert!(message(LoraConfig { layers_to_transform: Some(vec![3]), ..names(&["q_proj"]) }).contains("layer 3"));
        let both = LoraConfig { layers_to_transform: Some(vec![0]), ..regex(".*q_proj") };
        assert!(message(both).contains("beside a regular expression"));
    }
}
