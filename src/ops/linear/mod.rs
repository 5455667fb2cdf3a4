//! Linear layers over frozen weights, with the LoRA term (Hu et al. 2021) inside the same contraction:
//!
//! forward `y = x W^T + s (x A^T) B^T + b`, input gradient `dx = dy W + s (dy B) A`.
//!
//! Where several layers read the same input (q, k and v; gate and up), GPUs make the gradient of that in one contraction over all of them.
//!
//! `W [out, in]` is read packed in both directions. GPUs take [`tiled`]: register tiles fed from workgroup memory, with the weight
//! decoded on the way in, in the size that was measured to be the fastest ([`Candidate`]); those with cooperative matrices take
//! [`cooperative`], save where a product is small. Software adapters take [`broadcast`] where their lanes exchange values, else
//! [`rows`]: the weight is decoded to a bounded f32 panel, LoRA rows appended, and multiplied without workgroup memory. The few rows
//! of generation have a form of their own everywhere, [`few_rows`].

mod broadcast;
mod cooperative;
#[cfg(test)]
mod cooperative_tests;
mod few_rows;
mod rows;
#[cfg(test)]
mod tests;
mod tiled;

use tiled::Tile;

use super::weight::{Panel, Weight};
use crate::gpu::{Capabilities, Category, Command, Kernel, Matrix, MemoryPlan, ProblemSize, Recorder, View, round_up};
use crate::ops::Form;
use crate::quant::format::{Code4, Storage};

/// Which way a contraction reads the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    InputGradient,
}

/// The low-rank part of one linear layer: `low` is `x A^T` (forward) or `dy B` (gradient), `[rows, rank]`;
/// `other` is lora_B `[out, rank]` (forward) or lora_A `[rank, in]` (gradient), unpadded.
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    pub low: Matrix,
    pub other: View,
    pub scale: f32,
}

/// One of the ways in which a GPU can do a contraction. All of a list take as many dispatches a panel, so that a plan's room for
/// parameters does not depend on the choice, and give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    Tiled(Tile),
    Cooperative(cooperative::Way),
}

impl Candidate {
    /// All for one problem, first the one that is taken where none was measured. Whatever else can do it joins this list:
    /// trials and tests walk it. Software adapters have nothing to choose from. Cooperative matrices, whose factors are rounded,
    /// are taken wherever a device has them, not where a trial found them faster: a run's bits must not hang on that.
    pub fn all(capabilities: &Capabilities, problem: &ProblemSize) -> Vec<Self> {
        if cooperative::applies(capabilities, problem) {
            return cooperative::Way::all(capabilities).map(Self::Cooperative).collect();
        }
        match Form::of(capabilities) {
            Form::Tiles => Tile::fitting(problem.rows, problem.cols).into_iter().map(Self::Tiled).collect(),
            Form::Lanes | Form::Broadcast => Vec::new(),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Tiled(tile) => tile.name,
            Self::Cooperative(way) => way.tile.name,
        }
    }

    fn kernel(self, direction: Direction, storage: Storage, in_features: u32) -> Kernel {
        match self {
            Self::Tiled(tile) => tile.kernel(direction, storage, in_features, 1),
            Self::Cooperative(way) => way.kernel(direction, storage, in_features, 1),
        }
    }

    fn record(self, rec: &mut Recorder, sum: Sum) {
        match self {
            Self::Tiled(tile) => tiled::record(rec, tile, &sum),
            Self::Cooperative(way) => cooperative::record(rec, way, &sum),
        }
    }
}

/// One of the linear layers that read the same input, seen from the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct Branch<'a> {
    pub dy: Matrix,
    pub weight: &'a Weight,
    pub low: Option<LowRank>,
}

/// One contraction with one panel of a weight: `y = x W^T` or, for the gradient, `y = x W`, with its terms.
#[derive(Clone, Copy)]
struct Contraction<'a> {
    direction: Direction,
    x: Matrix,
    weight: &'a Weight,
    panel: &'a Panel,
    low: Option<LowRank>,
    y: Matrix,
    accumulate: bool,
}

impl<'a> Contraction<'a> {
    /// Those of all panels. The gradient contracts over rows of W: later panels add to what the first has written, which took the
    /// LoRA term.
    fn of_panels(
        direction: Direction,
        x: Matrix,
        weight: &'a Weight,
        low: Option<LowRank>,
        y: Matrix,
        accumulate: bool,
    ) -> impl Iterator<Item = Self> {
        weight.panels.iter().enumerate().map(move |(i, panel)| {
            let whole = Self { direction, x, weight, panel, low, y, accumulate };
            if i == 0 || whole.forward() { whole } else { whole.added() }
        })
    }

    /// To be added to what y holds, which has the LoRA term and the bias.
    fn added(self) -> Self {
        Self { low: None, accumulate: true, ..self }
    }

    fn forward(&self) -> bool {
        self.direction == Direction::Forward
    }

    /// Columns of y that the panel makes.
    fn cols(&self) -> u32 {
        if self.forward() { self.panel.rows } else { self.weight.in_features }
    }

    /// Columns of x that the panel takes.
    fn depth(&self) -> u32 {
        if self.forward() { self.weight.in_features } else { self.panel.rows }
    }

    fn rank(&self) -> u32 {
        self.low.map_or(0, |low| low.low.cols)
    }

    fn scale(&self) -> f32 {
        self.low.map_or(0.0, |low| low.scale)
    }

    /// Quads between two rows of the LoRA term's `low`.
    fn low_ld4(&self) -> u32 {
        self.low.map_or(0, |low| low.low.ld / 4)
    }

    /// The quads of x and of y at which the panel's columns begin.
    fn first_quads(&self) -> [u32; 2] {
        let first = self.panel.first_row / 4;
        if self.forward() { [0, first] } else { [first, 0] }
    }

    fn bias(&self) -> Option<View> {
        self.weight.bias.filter(|_| self.forward())
    }

    /// Packed values, scales, nested scales.
    fn weight_views(&self, rec: &Recorder) -> [View; 3] {
        [self.panel.data, self.panel.absmax.unwrap_or(rec.unused), self.panel.nested.unwrap_or(rec.unused)]
    }

    /// Bias, and the two factors of the LoRA term.
    fn term_views(&self, rec: &Recorder) -> [View; 3] {
        let (low, other) = self.low.map_or((rec.unused, rec.unused), |low| (low.low.view, low.other));
        [self.bias().unwrap_or(rec.unused), low, other]
    }

    fn op_name(&self) -> &'static str {
        op_name(self.direction, self.weight.storage)
    }

    /// Multiply-adds.
    fn work(&self) -> u64 {
        u64::from(self.x.rows) * u64::from(self.cols()) * u64::from(self.depth() + self.rank())
    }

    fn problem(&self) -> ProblemSize {
        let storage = self.weight.storage.name();
        ProblemSize { op: self.op_name(), storage, rows: self.x.rows, cols: self.cols(), depth: self.depth() }
    }
}

/// The most contractions that one dispatch adds up.
const MAX_TERMS: usize = 3;

/// Contractions that add up to one y, and the views that cover what they have of each operand.
struct Sum<'a> {
    terms: Vec<Contraction<'a>>,
    x: View,
    data: View,
    absmax: Option<View>,
    nested: Option<View>,
    /// The factors of the LoRA terms, of those that have one.
    low: Option<View>,
    other: Option<View>,
}

/// Where the operands of one contraction of a sum begin in the views that cover them: quads, or words of 4 bytes.
struct Place {
    x4: u32,
    low4: u32,
    other: u32,
    data: u32,
    absmax: u32,
    nested: u32,
}

impl<'a> Sum<'a> {
    /// A contraction by itself.
    fn one(term: Contraction<'a>) -> Self {
        let Contraction { x, panel, low, .. } = term;
        Self {
            terms: vec![term],
            x: x.view,
            data: panel.data,
            absmax: panel.absmax,
            nested: panel.nested,
            low: low.map(|low| low.low.view),
            other: low.map(|low| low.other),
        }
    }

    /// The branches' input gradients; None where no form of the device adds them up, or what they have of an operand lies in
    /// several buffers or beyond one binding.
    fn of_branches(capabilities: &Capabilities, branches: &[Branch<'a>], dx: Matrix) -> Option<Self> {
        let first = branches.first()?.weight;
        let alike = |branch: &Branch| {
            let Weight { storage, in_features, panels, .. } = branch.weight;
            (*storage, *in_features, panels.len()) == (first.storage, first.in_features, 1)
        };
        if branches.len() > MAX_TERMS || !branches.iter().all(alike) {
            return None;
        }
        let term = |Branch { dy, weight, low }: &Branch<'a>| Contraction {
            direction: Direction::InputGradient,
            x: *dy,
            weight,
            panel: &weight.panels[0],
            low: *low,
            y: dx,
            accumulate: false,
        };
        let terms: Vec<_> = branches.iter().map(term).collect();
        let cover = |view: &dyn Fn(&Contraction) -> Option<View>| {
            let views: Vec<_> = terms.iter().filter_map(view).collect();
            let span = View::span(&views);
            (views.is_empty() || span.is_some_and(|span| span.bytes <= capabilities.max_binding_bytes)).then_some(span)
        };
        let sum = Self {
            x: cover(&|term| Some(term.x.view))??,
            data: cover(&|term| Some(term.panel.data))??,
            absmax: cover(&|term| term.panel.absmax)?,
            nested: cover(&|term| term.panel.nested)?,
            low: cover(&|term| Some(term.low?.low.view))?,
            other: cover(&|term| Some(term.low?.other))?,
            terms,
        };
        let applies =
            |sum: &Self| Form::of(capabilities) == Form::Tiles || cooperative::applies(capabilities, &sum.problem());
        Some(sum).filter(applies)
    }

    /// What they share: direction, storage, rows, columns and y.
    fn first(&self) -> &Contraction<'a> {
        &self.terms[0]
    }

    /// Where the operands of one of the contractions begin.
    fn place(&self, term: &Contraction) -> Place {
        let Contraction { x, panel, low, .. } = term;
        let words = |view: Option<View>, of: Option<View>| view.zip(of).map_or(0, |(view, of)| view.words_from(of));
        // Rows of lora_B go with those of the weight, all of lora_A with each panel.
        let other_row = if term.forward() { panel.first_row * term.rank() } else { 0 };
        Place {
            x4: term.first_quads()[0] + x.view.words_from(self.x) / 4,
            low4: words(low.map(|low| low.low.view), self.low) / 4,
            other: other_row + words(low.map(|low| low.other), self.other),
            data: panel.data.words_from(self.data),
            absmax: words(panel.absmax, self.absmax),
            nested: words(panel.nested, self.nested),
        }
    }

    fn work(&self) -> u64 {
        self.terms.iter().map(Contraction::work).sum()
    }

    fn problem(&self) -> ProblemSize {
        ProblemSize { depth: self.terms.iter().map(Contraction::depth).sum(), ..self.first().problem() }
    }
}

/// Dispatches that a candidate takes for a panel at most.
pub(crate) const DISPATCHES: u64 = 3;

/// What a trial of a problem needs: operands of its shape, without a LoRA term.
pub(crate) struct Operands {
    direction: Direction,
    pub weight: Weight,
    pub x: Matrix,
    y: Matrix,
}

impl Operands {
    /// None where the problem is no contraction of this room.
    pub fn plan(plan: &mut MemoryPlan, problem: &ProblemSize) -> Option<Self> {
        let (direction, storage) = operation(problem)?;
        let shape = match direction {
            Direction::Forward => [problem.cols, problem.depth],
            Direction::InputGradient => [problem.depth, problem.cols],
        };
        let weight = Weight::plan(plan, "trial weight", storage, shape, false, u64::MAX);
        let x = plan.matrix(Category::Workspace, "trial x", problem.rows, problem.depth);
        let y = plan.matrix(Category::Workspace, "trial y", problem.rows, problem.cols);
        Some(Self { direction, weight, x, y })
    }

    /// What the scratch has to suffice for.
    pub fn scratch_use(&self) -> Use {
        let Weight { out_features, in_features, .. } = self.weight;
        Use { out_features, in_features, rank: 0, rows: self.x.rows }
    }

    pub fn record(&self, rec: &mut Recorder, candidate: Candidate) {
        for contraction in Contraction::of_panels(self.direction, self.x, &self.weight, None, self.y, false) {
            candidate.record(rec, Sum::one(contraction));
        }
    }
}

/// The direction and the storage that a problem names.
fn operation(problem: &ProblemSize) -> Option<(Direction, Storage)> {
    let storage = problem.storage.parse().ok()?;
    let named = |direction: &Direction| op_name(*direction, storage) == problem.op;
    Some(([Direction::Forward, Direction::InputGradient].into_iter().find(named)?, storage))
}

/// One number for the texts of all candidates: what was measured of others says nothing.
pub(crate) fn version(capabilities: &Capabilities, problem: &ProblemSize) -> u32 {
    let Some((direction, storage)) = operation(problem) else { return 0 };
    let in_features = if direction == Direction::Forward { problem.depth } else { problem.cols };
    Candidate::all(capabilities, problem).iter().fold(0, |sum, candidate| {
        let text = candidate.kernel(direction, storage, in_features).wgsl();
        crc32c::crc32c_append(crc32c::crc32c_append(sum, candidate.name().as_bytes()), text.as_bytes())
    })
}

/// `y = x W^T + low-rank term + bias`, added to `y` when `accumulate`. x is `[rows, in]`, y `[rows, out]`.
pub fn forward(rec: &mut Recorder, x: Matrix, weight: &Weight, low: Option<LowRank>, y: Matrix, accumulate: bool) {
    assert_eq!((x.rows, x.cols, y.cols), (y.rows, weight.in_features, weight.out_features), "linear forward");
    contract(rec, Direction::Forward, x, weight, low, y, accumulate);
}

/// `dx = dy W + low-rank term`, added to `dx` when `accumulate`. dy is `[rows, out]`, dx `[rows, in]`.
pub fn input_gradient(
    rec: &mut Recorder,
    dy: Matrix,
    weight: &Weight,
    low: Option<LowRank>,
    dx: Matrix,
    accumulate: bool,
) {
    assert_eq!(
        (dy.rows, dy.cols, dx.cols),
        (dx.rows, weight.out_features, weight.in_features),
        "linear input gradient"
    );
    contract(rec, Direction::InputGradient, dy, weight, low, dx, accumulate);
}

/// `dx = sum over the branches of dy W + low-rank term`: one contraction where the device has a form for that and the operands of
/// each kind lie within one binding, else one after another.
pub fn sum_of_input_gradients(rec: &mut Recorder, branches: &[Branch], dx: Matrix) {
    match Sum::of_branches(&rec.capabilities, branches, dx) {
        Some(sum) => choose(rec, sum.problem()).record(rec, sum),
        None => {
            for (i, Branch { dy, weight, low }) in branches.iter().enumerate() {
                input_gradient(rec, *dy, weight, *low, dx, i > 0);
            }
        }
    }
}

fn contract(
    rec: &mut Recorder,
    direction: Direction,
    x: Matrix,
    weight: &Weight,
    low: Option<LowRank>,
    y: Matrix,
    accumulate: bool,
) {
    if let Some(low) = &low {
        assert_eq!(low.low.rows, x.rows, "low-rank rows");
    }
    for contraction in Contraction::of_panels(direction, x, weight, low, y, accumulate) {
        let problem = contraction.problem();
        if direction == Direction::Forward && x.rows <= few_rows::MAX_ROWS {
            few_rows::record(rec, contraction);
        } else if !rec.capabilities.cpu || cooperative::applies(&rec.capabilities, &problem) {
            choose(rec, problem).record(rec, Sum::one(contraction));
        } else if broadcast::applies(&rec.capabilities, weight.in_features) {
            broadcast::record(rec, contraction);
        } else {
            rows::record(rec, contraction);
        }
    }
}

/// Whether a list multiplies by cooperative matrices.
pub(crate) fn by_matrices(rec: &Recorder) -> bool {
    let is = |command: &Command| matches!(command, Command::Dispatch(d) if d.kernel.name == cooperative::NAME);
    rec.commands.iter().any(is)
}

/// The candidate that was measured to be the fastest, else the first.
fn choose(rec: &mut Recorder, problem: ProblemSize) -> Candidate {
    let candidates = Candidate::all(&rec.capabilities, &problem);
    let measured = rec.choose(problem);
    *candidates.iter().find(|candidate| Some(candidate.name()) == measured).unwrap_or(&candidates[0])
}

fn op_name(direction: Direction, storage: Storage) -> &'static str {
    match (direction, storage) {
        (Direction::Forward, Storage::Float(_)) => "linear_forward",
        (Direction::Forward, Storage::Quantized { .. }) => "linear_forward_4bit",
        (Direction::InputGradient, Storage::Float(_)) => "linear_input_gradient",
        (Direction::InputGradient, Storage::Quantized { .. }) => "linear_input_gradient_4bit",
    }
}

/// The shape of a weight's largest panel, the rank of its LoRA term, and the most rows that meet it.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub out_features: u32,
    pub in_features: u32,
    pub rank: u32,
    pub rows: u32,
}

/// Scratch that the forms want: on software adapters [`rows`] for the decoded panel of a weight, bounded and enough for 4 columns
/// of any width, and [`broadcast`] for the decoded scales; with cooperative matrices the rows in f16.
pub fn panel_bytes(capabilities: &Capabilities, uses: impl IntoIterator<Item = Use>) -> u64 {
    let one = |Use { out_features, in_features, rank, rows }: Use| {
        let scales = Code4::ALL.map(|code| broadcast::scales_bytes(code, out_features, in_features));
        let decoded = scales.into_iter().fold(rows::panel_bytes(out_features, in_features, rank), u64::max);
        let halves = cooperative::halves_bytes(rows, out_features.max(in_features), rank);
        let decoded = if capabilities.cpu { decoded } else { 16 };
        decoded.max(if capabilities.cooperative.is_some() { halves } else { 16 })
    };
    uses.into_iter().map(one).max().unwrap_or(16)
}

/// The layers of one input as the sum of their input gradients meets them.
pub fn together<const N: usize>(uses: [Use; N]) -> Use {
    let sum = |of: fn(&Use) -> u32| uses.iter().map(|one| round_up(of(one), 4)).sum::<u32>();
    // A quad for the powers of each.
    Use { out_features: sum(|one| one.out_features) + 4 * (N as u32 - 1), rank: sum(|one| one.rank), ..uses[0] }
}

/// Scratch for partial results.
pub fn partials_bytes(capabilities: &Capabilities) -> u64 {
    if capabilities.cooperative.is_some() { cooperative::ALL_MAXIMA_BYTES } else { 16 }
}

pub(super) fn kernels() -> Vec<Kernel> {
    [tiled::kernels(), cooperative::kernels(), broadcast::kernels(), rows::kernels(), few_rows::kernels()].concat()
}
