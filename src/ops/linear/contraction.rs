//! Contractions with a panel of a weight as plain data, alone or several that add up to one result.

use crate::gpu::{Matrix, ProblemSize, Recorder, View};
use crate::ops::weight::{Panel, Weight};
use crate::quant::format::Storage;

/// The direction in which a contraction reads the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// `y = x W^T`.
    Forward,
    /// `dx = dy W`.
    InputGradient,
}

/// The LoRA term of one linear layer, a product with the second factor times `scale`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    /// The product with the first factor, `[rows, rank]`: `x A^T` forward, `dy B` for the gradient.
    pub product: Matrix,
    /// The second factor, f32 without padding: lora_B `[out, rank]` forward, lora_A `[rank, in]` for the gradient.
    pub factor: View,
    /// The factor of the whole term.
    pub scale: f32,
}

/// The term that one linear layer adds to the gradient of an input that several layers read.
#[derive(Clone, Copy, Debug)]
pub struct GradientTerm<'a> {
    /// The gradient of the layer's output, `[rows, out]`.
    pub dy: Matrix,
    /// The layer's weight, `[out, in]`.
    pub weight: &'a Weight,
    /// The layer's LoRA term; `None` without an adapter.
    pub low_rank: Option<LowRank>,
}

/// One contraction with one panel of a weight and its terms: `y = x W^T`, or `y = x W` for the gradient.
#[derive(Clone, Copy)]
pub(super) struct Contraction<'a> {
    pub direction: Direction,
    pub x: Matrix,
    pub weight: &'a Weight,
    pub panel: &'a Panel,
    pub low_rank: Option<LowRank>,
    pub y: Matrix,
    pub accumulate: bool,
}

impl<'a> Contraction<'a> {
    /// The contractions with all panels. The gradient contracts over rows of W: the first panel's contraction writes y with the
    /// LoRA term, and the others add to it.
    pub(super) fn of_panels(
        direction: Direction,
        x: Matrix,
        weight: &'a Weight,
        low_rank: Option<LowRank>,
        y: Matrix,
        accumulate: bool,
    ) -> impl Iterator<Item = Self> {
        weight.panels.iter().enumerate().map(move |(i, panel)| {
            let whole = Self { direction, x, weight, panel, low_rank, y, accumulate };
            if i == 0 || whole.forward() { whole } else { whole.added() }
        })
    }

    /// The contraction alone, added to y, which holds the LoRA term and the bias already.
    pub(super) fn added(self) -> Self {
        Self { low_rank: None, accumulate: true, ..self }
    }

    pub(super) fn forward(&self) -> bool {
        self.direction == Direction::Forward
    }

    /// Columns of y that the panel makes.
    pub(super) fn cols(&self) -> u32 {
        if self.forward() { self.panel.rows } else { self.weight.in_features }
    }

    /// Columns of x that the panel takes.
    pub(super) fn depth(&self) -> u32 {
        if self.forward() { self.weight.in_features } else { self.panel.rows }
    }

    pub(super) fn rank(&self) -> u32 {
        self.low_rank.map_or(0, |term| term.product.cols)
    }

    pub(super) fn scale(&self) -> f32 {
        self.low_rank.map_or(0.0, |term| term.scale)
    }

    /// Quads between two rows of the LoRA term's product.
    pub(super) fn product_ld4(&self) -> u32 {
        self.low_rank.map_or(0, |term| term.product.ld / 4)
    }

    /// The quads of x and of y at which the panel's columns begin.
    pub(super) fn first_quads(&self) -> [u32; 2] {
        let first = self.panel.first_row / 4;
        if self.forward() { [0, first] } else { [first, 0] }
    }

    pub(super) fn bias(&self) -> Option<View> {
        self.weight.bias.filter(|_| self.forward())
    }

    /// Packed values, scales, nested scales.
    pub(super) fn weight_views(&self, rec: &Recorder) -> [View; 3] {
        [self.panel.data, self.panel.absmax.unwrap_or(rec.unused), self.panel.nested.unwrap_or(rec.unused)]
    }

    /// The bias, and the product and the factor of the LoRA term.
    pub(super) fn term_views(&self, rec: &Recorder) -> [View; 3] {
        let (product, factor) = self.low_rank.map_or((rec.unused, rec.unused), |term| (term.product.view, term.factor));
        [self.bias().unwrap_or(rec.unused), product, factor]
    }

    pub(super) fn op_name(&self) -> &'static str {
        op_name(self.direction, self.weight.storage)
    }

    /// Multiply-adds.
    pub(super) fn work(&self) -> u64 {
        u64::from(self.x.rows) * u64::from(self.cols()) * u64::from(self.depth() + self.rank())
    }

    pub(super) fn problem(&self) -> ProblemSize {
        let storage = self.weight.storage.name();
        ProblemSize { op: self.op_name(), storage, rows: self.x.rows, cols: self.cols(), depth: self.depth() }
    }
}

/// The most contractions that one dispatch adds up.
pub(super) const MAX_TERMS: usize = 3;

/// Contractions that add up to one y, with one view of each operand that covers all of them.
pub(super) struct GroupedContraction<'a> {
    pub terms: Vec<Contraction<'a>>,
    pub x: View,
    pub data: View,
    pub absmax: Option<View>,
    pub nested: Option<View>,
    /// The products of the LoRA terms, where there are any.
    pub product: Option<View>,
    /// The factors of the LoRA terms, where there are any.
    pub factor: Option<View>,
}

/// The beginnings of one contraction's operands in the views of a [`GroupedContraction`], in quads or in words of 4 bytes.
pub(super) struct TermOffsets {
    pub x4: u32,
    pub product4: u32,
    pub factor: u32,
    pub data: u32,
    pub absmax: u32,
    pub nested: u32,
}

impl<'a> GroupedContraction<'a> {
    /// A contraction by itself.
    pub(super) fn one(term: Contraction<'a>) -> Self {
        let Contraction { x, panel, low_rank, .. } = term;
        Self {
            terms: vec![term],
            x: x.view,
            data: panel.data,
            absmax: panel.absmax,
            nested: panel.nested,
            product: low_rank.map(|term| term.product.view),
            factor: low_rank.map(|term| term.factor),
        }
    }

    /// The sum of several layers' input gradients. None where the weights are unlike each other, or where the terms' views of an
    /// operand lie in several buffers or reach beyond one binding.
    pub(super) fn of_gradients(max_binding_bytes: u64, gradients: &[GradientTerm<'a>], dx: Matrix) -> Option<Self> {
        let first = gradients.first()?.weight;
        let alike = |gradient: &GradientTerm| {
            let Weight { storage, in_features, panels, .. } = gradient.weight;
            (*storage, *in_features, panels.len()) == (first.storage, first.in_features, 1)
        };
        if gradients.len() > MAX_TERMS || !gradients.iter().all(alike) {
            return None;
        }
        let term = |GradientTerm { dy, weight, low_rank }: &GradientTerm<'a>| Contraction {
            direction: Direction::InputGradient,
            x: *dy,
            weight,
            panel: &weight.panels[0],
            low_rank: *low_rank,
            y: dx,
            accumulate: false,
        };
        let terms: Vec<_> = gradients.iter().map(term).collect();
        let cover = |view: &dyn Fn(&Contraction) -> Option<View>| {
            let views: Vec<_> = terms.iter().filter_map(view).collect();
            let span = View::span(&views);
            (views.is_empty() || span.is_some_and(|span| span.bytes <= max_binding_bytes)).then_some(span)
        };
        Some(Self {
            x: cover(&|term| Some(term.x.view))??,
            data: cover(&|term| Some(term.panel.data))??,
            absmax: cover(&|term| term.panel.absmax)?,
            nested: cover(&|term| term.panel.nested)?,
            product: cover(&|term| Some(term.low_rank?.product.view))?,
            factor: cover(&|term| Some(term.low_rank?.factor))?,
            terms,
        })
    }

    /// The first contraction: all share its direction, storage, rows, columns and y.
    pub(super) fn first(&self) -> &Contraction<'a> {
        &self.terms[0]
    }

    /// The beginnings of the operands of one of the contractions.
    pub(super) fn offsets(&self, term: &Contraction) -> TermOffsets {
        let Contraction { x, panel, low_rank, .. } = term;
        let words = |view: Option<View>, of: Option<View>| view.zip(of).map_or(0, |(view, of)| view.words_from(of));
        // Rows of lora_B go with those of the weight, all of lora_A with each panel.
        let factor_row = if term.forward() { panel.first_row * term.rank() } else { 0 };
        TermOffsets {
            x4: term.first_quads()[0] + x.view.words_from(self.x) / 4,
            product4: words(low_rank.map(|term| term.product.view), self.product) / 4,
            factor: factor_row + words(low_rank.map(|term| term.factor), self.factor),
            data: panel.data.words_from(self.data),
            absmax: words(panel.absmax, self.absmax),
            nested: words(panel.nested, self.nested),
        }
    }

    pub(super) fn work(&self) -> u64 {
        self.terms.iter().map(Contraction::work).sum()
    }

    pub(super) fn problem(&self) -> ProblemSize {
        ProblemSize { depth: self.terms.iter().map(Contraction::depth).sum(), ..self.first().problem() }
    }
}

pub(super) fn op_name(direction: Direction, storage: Storage) -> &'static str {
    match (direction, storage) {
        (Direction::Forward, Storage::Float(_)) => "linear_forward",
        (Direction::Forward, Storage::Quantized { .. }) => "linear_forward_4bit",
        (Direction::Forward, Storage::Blocks(_)) => "linear_forward_blocks",
        (Direction::InputGradient, Storage::Float(_)) => "linear_input_gradient",
        (Direction::InputGradient, Storage::Quantized { .. }) => "linear_input_gradient_4bit",
        (Direction::InputGradient, Storage::Blocks(_)) => "linear_input_gradient_blocks",
    }
}
