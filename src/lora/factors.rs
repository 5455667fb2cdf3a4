//! The trained tensors of a LoRA module as a list: another variant of LoRA adds an entry to the list, not a new type. What a module
//! trains is [`LoraModule::factors`].

use std::ops::{Index, IndexMut};

use super::config::LoraInit;
pub use super::factor::Factor;
use super::targets::{LoraModule, Place};
use crate::Result;
use crate::model::modules::Projection;
use crate::model::source::Source;
use crate::random::{Stream, normal, uniform};

/// One factor of one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactorSpec {
    /// The part that it plays.
    pub factor: Factor,
    /// Rows and columns, as [`Factor`] says.
    pub shape: [usize; 2],
    /// The tensor's name in PEFT's files.
    pub tensor: String,
}

impl FactorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

/// The factors of a module, in the order in which they are stored, trained and saved. An A that is shared has its values at the first
/// part of the fused layer, and no row at the others.
pub fn factors(module: &LoraModule) -> Vec<FactorSpec> {
    let ([outputs, inputs], rank) = (module.features, module.rank);
    let (vocabulary, hidden) = if module.place == Place::Embedding { (inputs, outputs) } else { (outputs, inputs) };
    let shape = |factor: Factor| match factor {
        Factor::A if module.shares_a => [0, inputs],
        Factor::A => [rank, inputs],
        Factor::EmbeddingA => [inputs, rank],
        Factor::B | Factor::EmbeddingB => [outputs, rank],
        Factor::Magnitude | Factor::LoraBias | Factor::Bias => [outputs, 1],
        Factor::Whole => [vocabulary, hidden],
        Factor::Rows => [module.tokens.len(), hidden],
    };
    let spec = |factor: Factor| FactorSpec {
        factor,
        shape: shape(factor),
        tensor: factor.tensor(&module.name(), module.is_adapted()),
    };
    module.factors.iter().copied().map(spec).collect()
}

/// The values of one module's factors, in the order of [`factors`]. Without values, magnitudes are the norms of the base's rows, which the
/// device computes, and copies are still to be made by [`copy_from_base`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModuleFactors(pub Vec<Vec<f32>>);

impl ModuleFactors {
    /// The values of a factor of `module`, where it has them.
    pub fn of(&self, module: &LoraModule, factor: Factor) -> Option<&[f32]> {
        let at = module.factors.iter().position(|own| *own == factor)?;
        self.0.get(at).map(Vec::as_slice)
    }
}

impl Index<Factor> for ModuleFactors {
    type Output = Vec<f32>;

    fn index(&self, factor: Factor) -> &Self::Output {
        &self.0[factor as usize]
    }
}

impl IndexMut<Factor> for ModuleFactors {
    fn index_mut(&mut self, factor: Factor) -> &mut Self::Output {
        &mut self.0[factor as usize]
    }
}

/// The trained tensors of every module, in the modules' order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterTensors {
    /// One entry for each adapted linear layer.
    pub modules: Vec<ModuleFactors>,
}

impl AdapterTensors {
    /// Every factor's values, module by module.
    pub fn values(&self) -> impl Iterator<Item = &Vec<f32>> {
        self.modules.iter().flat_map(|module| &module.0)
    }

    /// A of the module at `index`, which a part of a fused layer has from the first part.
    pub fn a(&self, modules: &[LoraModule], index: usize) -> &[f32] {
        let owner = (0..=index).rev().find(|at| !modules[*at].shares_a).unwrap_or(index);
        &self.modules[owner][Factor::A]
    }

    /// Number of trained parameters.
    pub fn parameters(&self) -> u64 {
        self.values().map(|values| values.len() as u64).sum()
    }
}

/// Number of trained parameters of these modules.
pub fn parameters(modules: &[LoraModule]) -> u64 {
    modules.iter().flat_map(factors).map(|factor| factor.elements() as u64).sum()
}

/// New factors. B is zero, so that training starts at the base model. A module's draws depend on its place alone, so adding modules
/// changes no other module's start.
pub fn init(modules: &[LoraModule], seed: u64, kind: LoraInit) -> AdapterTensors {
    let start = |module: &LoraModule| {
        let item = match module.place {
            Place::Layer(layer, projection) => (layer * Projection::MOST_OF_LAYER + projection.number()) as u64,
            Place::Embedding => u64::MAX,
            Place::Head => u64::MAX - 1,
        };
        let draw = |index: u64| uniform(seed, Stream::LoraInit, item, index);
        let start = |spec: FactorSpec| -> Vec<f32> {
            let indices = 0..spec.elements() as u64;
            match (spec.factor, kind) {
                (Factor::A, LoraInit::KaimingUniform) => {
                    let bound = 1.0 / (spec.shape[1] as f32).sqrt();
                    indices.map(|index| (2.0 * draw(index) - 1.0) * bound).collect()
                }
                (Factor::A, LoraInit::Gaussian) => {
                    indices.map(|index| (normal(draw, index) / module.rank as f64) as f32).collect()
                }
                // An embedding's LoRA begins at 0 by its A.
                (Factor::EmbeddingB, _) => indices.map(|index| normal(draw, index) as f32).collect(),
                (Factor::B | Factor::LoraBias | Factor::EmbeddingA, _) => vec![0.0; spec.elements()],
                (Factor::Magnitude | Factor::Whole | Factor::Rows | Factor::Bias, _) => Vec::new(),
            }
        };
        ModuleFactors(factors(module).into_iter().map(start).collect())
    };
    AdapterTensors { modules: modules.iter().map(start).collect() }
}

/// Gives copies of tensors of the base the values that these have in `source`. Tokens from number `first_new` on are new: their rows begin
/// as the mean of the rows before, as transformers' `resize_token_embeddings` draws them, without its noise.
///
/// # Errors
/// A tensor that cannot be read.
pub fn copy_from_base(
    adapter: &mut AdapterTensors,
    modules: &[LoraModule],
    source: &Source,
    first_new: Option<u32>,
) -> Result<()> {
    for (module, values) in modules.iter().zip(&mut adapter.modules) {
        for (spec, values) in factors(module).iter().zip(&mut values.0) {
            if !spec.factor.is_copy() || !values.is_empty() {
                continue;
            }
            *values = match spec.factor {
                Factor::Bias => source.values(&module.base_tensor(&source.config, "bias"), &[spec.shape[0]])?,
                _ => source.values(
                    &module.base_tensor(&source.config, "weight"),
                    &[source.config.vocab_rows, source.config.hidden_size],
                )?,
            };
            if spec.factor == Factor::Rows {
                let cols = spec.shape[1];
                let known = first_new.map_or(source.config.vocab_rows, |first| first as usize);
                let mean = mean_of_rows(&values[..known.min(source.config.vocab_rows) * cols], cols);
                let row = |token: &u32| match *token as usize {
                    new if new >= known => &mean[..],
                    known => &values[known * cols..][..cols],
                };
                *values = module.tokens.iter().flat_map(row).copied().collect();
            }
        }
    }
    Ok(())
}

/// The mean of the rows of a matrix with `cols` columns.
fn mean_of_rows(values: &[f32], cols: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; cols];
    for row in values.chunks_exact(cols) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let rows = (values.len() / cols).max(1) as f64;
    sums.iter().map(|sum| (sum / rows) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::config::LoraConfig;
    use crate::lora::targets::resolve;
    use crate::lora::targets::tests::model;

    #[test]
    fn new_adapters_have_pefts_distribution() {
        let config = LoraConfig { r: 64, ..LoraConfig::default() };
        let modules = resolve(&config, &model()).unwrap();
        let statistics = |kind| {
            let adapter = init(&modules, 3, kind);
            assert!(adapter.modules.iter().all(|module| module[Factor::B].iter().all(|x| *x == 0.0)));
            let a = adapter.modules[0][Factor::A].clone();
            assert_eq!(
                (a.len(), adapter.modules[6][Factor::A].len(), adapter.modules[6][Factor::B].len()),
                (64 * 16, 64 * 24, 16 * 64)
            );
            assert_ne!(a, adapter.modules[1][Factor::A]);
            let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
            (variance, a.iter().fold(0.0f32, |m, x| m.max(x.abs())))
        };
        let (variance, largest) = statistics(LoraInit::KaimingUniform);
        assert!((variance * 3.0 * 16.0 - 1.0).abs() < 0.1 && largest <= 0.25 && largest > 0.24, "{variance} {largest}");
        let (variance, largest) = statistics(LoraInit::Gaussian);
        assert!((variance * 64.0 * 64.0 - 1.0).abs() < 0.15 && largest * 64.0 > 2.5, "{variance} {largest}");
        let one = init(&modules[5..6], 3, LoraInit::Gaussian);
        assert_eq!(one.modules[0], init(&modules, 3, LoraInit::Gaussian).modules[5]);
    }
}
