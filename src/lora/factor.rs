//! The kinds of trained tensors: their names and shapes for PEFT.

/// A tensor that LoRA trains for one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// `[rank, in_features]`: takes the module's input down to the rank.
    A,
    /// `[out_features, rank]`: takes it up to the module's output.
    B,
    /// `[out_features]`, for the device a matrix of one column: DoRA's length of each row of the weight.
    Magnitude,
}

impl Factor {
    /// The factors of plain LoRA, in the order in which they are stored, trained and saved.
    pub const PLAIN: [Self; 2] = [Self::A, Self::B];
    /// Every factor.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::Magnitude];

    /// PEFT's name of the factor in tensor names.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "lora_A",
            Self::B => "lora_B",
            Self::Magnitude => "lora_magnitude_vector",
        }
    }

    /// What follows the name in PEFT's files.
    pub fn ending(self) -> &'static str {
        if self == Self::Magnitude { "" } else { ".weight" }
    }

    /// True for the factors whose learning rate LoRA+ raises (Hayou et al. 2024): all but A, as in PEFT's
    /// `create_loraplus_optimizer`.
    pub fn is_raised(self) -> bool {
        self != Self::A
    }

    /// The name in PEFT's files of the tensor of the module of this name.
    pub fn tensor(self, module: &str) -> String {
        format!("base_model.model.{module}.{}{}", self.name(), self.ending())
    }

    /// Rows and columns of the factor of a module of this rank and these features.
    pub fn shape(self, rank: usize, [out_features, in_features]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::A => [rank, in_features],
            Self::B => [out_features, rank],
            Self::Magnitude => [out_features, 1],
        }
    }

    /// The shape in PEFT's files of a factor of these rows and columns.
    pub fn file_shape(self, [rows, cols]: [usize; 2]) -> Vec<usize> {
        if self == Self::Magnitude { vec![rows] } else { vec![rows, cols] }
    }
}
