//! The kinds of trained tensors: their names and shapes for PEFT.

use std::borrow::Cow;

/// A tensor that is trained for one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// `[rank, in_features]`: takes the module's input down to the rank.
    A,
    /// `[out_features, rank]`: takes it up to the module's output.
    B,
    /// `[out_features]`, for the device a matrix of one column: DoRA's length of each row of the weight.
    Magnitude,
    /// Of an embedding `[rank, vocabulary]`, for the device its transpose: a column for each token.
    EmbeddingA,
    /// Of an embedding `[hidden, rank]`.
    EmbeddingB,
    /// A copy of the module's whole weight, `[vocabulary, hidden]`: PEFT's `modules_to_save`.
    Whole,
    /// The rows of some tokens, `[tokens, hidden]`, in place of those of the weight: PEFT's `trainable_token_indices`.
    Rows,
    /// `[out_features]`, for the device a matrix of one column: a bias of B, which is scaled as B is (PEFT's `lora_bias`).
    LoraBias,
    /// A copy of the module's bias, `[out_features]`, for the device a matrix of one column.
    Bias,
}

impl Factor {
    /// The factors of plain LoRA, in the order in which they are stored, trained and saved.
    pub const PLAIN: [Self; 2] = [Self::A, Self::B];
    /// The factors of LoRA on an embedding.
    pub const OF_EMBEDDING: [Self; 2] = [Self::EmbeddingA, Self::EmbeddingB];
    /// The factors whose names hold the adapter's in memory, which other programs write to files too.
    pub const NAMED: [Self; 6] = [Self::A, Self::B, Self::Magnitude, Self::EmbeddingA, Self::EmbeddingB, Self::Rows];

    /// PEFT's name of the factor in tensor names.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "lora_A",
            Self::B => "lora_B",
            Self::Magnitude => "lora_magnitude_vector",
            Self::EmbeddingA => "lora_embedding_A",
            Self::EmbeddingB => "lora_embedding_B",
            Self::Whole => "weight",
            Self::Rows => "token_adapter.trainable_tokens_delta",
            Self::LoraBias => "lora_B.bias",
            Self::Bias => "bias",
        }
    }

    /// What follows the name in PEFT's files.
    pub fn ending(self) -> &'static str {
        if matches!(self, Self::A | Self::B) { ".weight" } else { "" }
    }

    /// True for the factors that begin as what the base has, rather than at a value of their own.
    pub fn is_copy(self) -> bool {
        matches!(self, Self::Whole | Self::Rows | Self::Bias)
    }

    /// True for the factors whose learning rate LoRA+ raises (Hayou et al. 2024): B and vectors, as in PEFT's
    /// `create_loraplus_optimizer`.
    pub fn is_raised(self) -> bool {
        matches!(self, Self::B | Self::Magnitude | Self::LoraBias | Self::Bias)
    }

    /// False for the factors that weight decay leaves alone, as in transformers' Trainer.
    pub fn decays(self) -> bool {
        !matches!(self, Self::LoraBias | Self::Bias)
    }

    /// The name in PEFT's files of the tensor of a module. `adapted` says that the module has factors of LoRA too: PEFT then keeps its
    /// own tensors one level down.
    pub fn tensor(self, module: &str, adapted: bool) -> String {
        let level = if self == Self::Bias && adapted { ".base_layer" } else { "" };
        format!("base_model.model.{module}{level}.{}{}", self.name(), self.ending())
    }

    /// The shape in PEFT's files of a factor that has these rows and columns on the device.
    pub fn file_shape(self, [rows, cols]: [usize; 2]) -> Vec<usize> {
        match self {
            Self::Magnitude | Self::LoraBias | Self::Bias => vec![rows],
            Self::EmbeddingA => vec![cols, rows],
            _ => vec![rows, cols],
        }
    }

    /// The values as PEFT's files have them, from those of the device with `cols` columns.
    pub fn to_file(self, values: Cow<'_, [f32]>, cols: usize) -> Cow<'_, [f32]> {
        if self == Self::EmbeddingA { Cow::Owned(transposed(&values, cols)) } else { values }
    }

    /// The values as the device has them in `rows` rows, from those of PEFT's files.
    pub fn from_file(self, values: Vec<f32>, rows: usize) -> Vec<f32> {
        if self == Self::EmbeddingA { transposed(&values, rows) } else { values }
    }
}

/// The transpose of a matrix with `cols` columns.
pub fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols.max(1);
    (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect()
}
