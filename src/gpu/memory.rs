//! Every byte that a run needs, as plain data. The plan of buffers is made without a GPU and allocated as it is, so that an estimate
//! and a real run agree by construction.

use serde::{Deserialize, Serialize};

/// The purpose of a buffer, by which the ledger counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// The base model: matrices as floats or as 4-bit codes, norm gains and biases.
    Weights,
    /// Scales of 4-bit weights: one absmax a block, and with double quantization the scales of these scales.
    QuantScales,
    /// LoRA factors A and B.
    Adapter,
    /// Gradients of everything that is trained.
    Gradients,
    /// AdamW's two moments of each trained parameter.
    Optimizer,
    /// Activations that stay from the forward pass to the backward pass.
    KeptActivations,
    /// Buffers whose contents are short-lived, and shared by layers and operations in turn.
    Workspace,
    /// Keys and values of past positions during generation.
    KvCache,
    /// Small buffers that the host writes or reads: tokens, labels, parameters of dispatches, results.
    Uploads,
}

impl Category {
    /// Every category, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Weights,
        Self::QuantScales,
        Self::Adapter,
        Self::Gradients,
        Self::Optimizer,
        Self::KeptActivations,
        Self::Workspace,
        Self::KvCache,
        Self::Uploads,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::QuantScales => "quantization constants",
            Self::Adapter => "adapter",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::KeptActivations => "activations",
            Self::Workspace => "workspace",
            Self::KvCache => "KV cache",
            Self::Uploads => "staging buffers",
        }
    }
}

/// Formats bytes with decimal units and three digits: `12.3 GB`.
pub fn readable_bytes(count: u64) -> String {
    let (unit, name) = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")]
        .into_iter()
        .find(|(unit, _)| count >= *unit)
        .unwrap_or((1, "B"));
    let value = count as f64 / unit as f64;
    let digits = if unit == 1 || value >= 100.0 { 0 } else { 1 + usize::from(value < 10.0) };
    format!("{value:.digits$} {name}")
}

/// Formats a need and a smaller limit, in whole bytes where rounding would make them equal.
pub fn readable_need(needed: u64, allowed: u64) -> [String; 2] {
    let rounded = [needed, allowed].map(readable_bytes);
    match rounded[0] == rounded[1] {
        true => [needed, allowed].map(|bytes| format!("{bytes} B")),
        false => rounded,
    }
}

/// Bytes by category.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger([u64; Category::ALL.len()]);

/// An object with the bytes of each category that holds any.
impl Serialize for Ledger {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries())
    }
}

impl Ledger {
    /// Adds `bytes` to a category.
    pub fn add(&mut self, category: Category, bytes: u64) {
        self.0[category as usize] += bytes;
    }

    /// The bytes of a category.
    pub fn get(&self, category: Category) -> u64 {
        self.0[category as usize]
    }

    /// The bytes of all categories.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The categories that hold anything.
    pub fn entries(&self) -> impl Iterator<Item = (Category, u64)> + '_ {
        Category::ALL.into_iter().map(|c| (c, self.get(c))).filter(|(_, bytes)| *bytes > 0)
    }
}

/// The index of a buffer in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub(super) u32);

/// A range of a buffer; offset and size in bytes. Offsets are multiples of [`VIEW_ALIGNMENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The buffer that it lies in.
    pub buffer: BufferId,
    /// Its beginning in the buffer, in bytes.
    pub offset: u64,
    /// Its size in bytes, a multiple of 16 where a kernel binds it.
    pub bytes: u64,
}

/// The strictest offset alignment that WebGPU allows an adapter to ask for.
pub const VIEW_ALIGNMENT: u64 = 256;

impl View {
    /// The part of this view that begins at `offset` bytes.
    pub fn slice(self, offset: u64, bytes: u64) -> Self {
        assert!(
            offset.is_multiple_of(VIEW_ALIGNMENT) && offset + bytes <= self.bytes,
            "slice {offset}+{bytes} of {self:?}"
        );
        Self { buffer: self.buffer, offset: self.offset + offset, bytes }
    }

    /// This view cut into contiguous views of the given bytes.
    pub(super) fn split<const N: usize>(self, views: [u64; N]) -> [Self; N] {
        let (begins, _) = contiguous_offsets(views);
        std::array::from_fn(|i| self.slice(begins[i], whole_bytes(views[i])))
    }

    /// Words of 4 bytes between the beginnings of `of` and of this view, which lies in it.
    pub fn words_from(self, of: Self) -> u32 {
        assert!(self.buffer == of.buffer && self.offset >= of.offset, "{self:?} in {of:?}");
        ((self.offset - of.offset) / 4) as u32
    }

    /// The smallest range that covers all of these; None where there are none, or in several buffers.
    pub fn span(views: &[Self]) -> Option<Self> {
        let first = views.first().filter(|first| views.iter().all(|view| view.buffer == first.buffer))?;
        let offset = views.iter().map(|view| view.offset).min()?;
        let end = views.iter().map(|view| view.offset + view.bytes).max()?;
        Some(Self { buffer: first.buffer, offset, bytes: end - offset })
    }
}

/// The bytes that a view takes in its buffer: bindings cover whole vectors of 16 bytes.
fn whole_bytes(bytes: u64) -> u64 {
    bytes.max(4).next_multiple_of(16)
}

/// The offsets of contiguous views of the given bytes in one buffer, and the end of the last one.
fn contiguous_offsets<const N: usize>(views: [u64; N]) -> ([u64; N], u64) {
    let mut end = 0_u64;
    let begins = views.map(|bytes| {
        let begin = end.next_multiple_of(VIEW_ALIGNMENT);
        end = begin + whole_bytes(bytes);
        begin
    });
    (begins, end)
}

/// Bytes of contiguous views.
fn contiguous_bytes<const N: usize>(views: [u64; N]) -> u64 {
    contiguous_offsets(views).1
}

/// A row-major f32 matrix on the device. The columns between `cols` and `ld` are padding of any content, which is never read as a
/// value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// The range of memory that holds the rows.
    pub view: View,
    /// Number of rows.
    pub rows: u32,
    /// Number of columns, without the padding.
    pub cols: u32,
    /// The distance between rows in elements, a multiple of 4.
    pub ld: u32,
}

impl Matrix {
    /// A matrix with rows padded to 4 elements; `view` allocates its bytes.
    pub(super) fn padded(rows: u32, cols: u32, view: impl FnOnce(u64) -> View) -> Self {
        let view = view(Self::padded_bytes(rows, cols));
        Self { view, rows, cols, ld: round_up(cols.max(1), 4) }
    }

    fn padded_bytes(rows: u32, cols: u32) -> u64 {
        4 * u64::from(rows.max(1)) * u64::from(round_up(cols.max(1), 4))
    }

    /// Contiguous matrices with rows padded to 4 elements; `views` allocates the bytes of each.
    pub(super) fn contiguous<const N: usize>(
        rows: u32,
        cols: [u32; N],
        views: impl FnOnce([u64; N]) -> [View; N],
    ) -> [Self; N] {
        let views = views(cols.map(|cols| Self::padded_bytes(rows, cols)));
        std::array::from_fn(|i| Self::padded(rows, cols[i], |_| views[i]))
    }

    /// The part of the matrix that has its first `rows` rows.
    pub fn first_rows(self, rows: u32) -> Self {
        assert!(rows <= self.rows, "{rows} rows of {self:?}");
        let bytes = u64::from(rows) * u64::from(self.ld) * 4;
        Self { view: View { bytes, ..self.view }, rows, ..self }
    }

    /// The part of the matrix that has its rows `first .. first + rows`. `first` rows must take a multiple of
    /// [`VIEW_ALIGNMENT`] bytes.
    pub fn rows(self, first: u32, rows: u32) -> Self {
        let row_bytes = 4 * u64::from(self.ld);
        Self { view: self.view.slice(u64::from(first) * row_bytes, u64::from(rows) * row_bytes), rows, ..self }
    }

    /// The matrix seen as `rows * heads` rows of one head each. `heads` must divide `cols`, and rows must not be padded.
    pub fn split_heads(self, heads: u32) -> Self {
        assert!(self.ld == self.cols && self.cols.is_multiple_of(heads * 4), "{heads} heads of {self:?}");
        let cols = self.cols / heads;
        Self { rows: self.rows * heads, cols, ld: cols, ..self }
    }
}

/// `n` rounded up to the next multiple of `of`.
pub const fn round_up(n: u32, of: u32) -> u32 {
    n.div_ceil(of) * of
}

/// A planned buffer.
#[derive(Clone, Debug)]
pub struct BufferSpec {
    /// The name in reports and error messages.
    pub label: String,
    /// The category that counts it.
    pub category: Category,
    /// The size, in bytes.
    pub bytes: u64,
    /// True if the host maps the buffer, and kernels do not bind it.
    pub readback: bool,
}

/// The buffers of a run, in the order of their ids.
#[derive(Clone, Debug, Default)]
pub struct MemoryPlan {
    pub(super) specs: Vec<BufferSpec>,
    /// The largest contiguous group that one binding covers. Views of a larger group get a buffer of their own each.
    max_row_bytes: Option<u64>,
}

impl MemoryPlan {
    /// An empty plan, for a device whose bindings are long enough for any group of views.
    pub fn new() -> Self {
        Self::default()
    }

    /// A plan for a device whose bindings cover at most `max_binding_bytes`.
    pub fn for_bindings_of(max_binding_bytes: u64) -> Self {
        Self { max_row_bytes: Some(max_binding_bytes), ..Self::default() }
    }

    /// A storage buffer of at least `bytes`, zeroed when it is allocated.
    pub fn alloc(&mut self, category: Category, label: impl Into<String>, bytes: u64) -> View {
        self.push(category, label.into(), bytes, false)
    }

    /// A buffer that the host can map for reading.
    pub fn alloc_readback(&mut self, label: impl Into<String>, bytes: u64) -> View {
        self.push(Category::Uploads, label.into(), bytes, true)
    }

    /// A `rows x cols` f32 matrix with rows padded to 4 elements.
    pub fn matrix(&mut self, category: Category, label: impl Into<String>, rows: u32, cols: u32) -> Matrix {
        Matrix::padded(rows, cols, |bytes| self.alloc(category, label, bytes))
    }

    /// Contiguous views of the given bytes in one buffer, so that one binding can cover them all.
    pub fn alloc_contiguous<const N: usize>(&mut self, category: Category, label: &str, views: [u64; N]) -> [View; N] {
        self.contiguous_views(views, |plan, bytes| plan.alloc(category, label, bytes))
    }

    /// Contiguous matrices of `rows` rows each.
    pub fn contiguous_matrices<const N: usize>(
        &mut self,
        category: Category,
        label: &str,
        rows: u32,
        cols: [u32; N],
    ) -> [Matrix; N] {
        Matrix::contiguous(rows, cols, |bytes| self.alloc_contiguous(category, label, bytes))
    }

    /// Allocates contiguous views by `alloc`, separately where one binding would not cover the group.
    pub(super) fn contiguous_views<const N: usize>(
        &mut self,
        views: [u64; N],
        mut alloc: impl FnMut(&mut Self, u64) -> View,
    ) -> [View; N] {
        if self.max_row_bytes.is_some_and(|max| contiguous_bytes(views) > max) {
            return views.map(|bytes| alloc(self, bytes));
        }
        alloc(self, contiguous_bytes(views)).split(views)
    }

    /// The bytes of a view's whole buffer.
    pub(super) fn bytes(&self, view: View) -> u64 {
        self.specs[view.buffer.0 as usize].bytes
    }

    /// Makes the buffer of a view at least `bytes` long. A buffer that grows takes `label` as its name.
    pub(super) fn grow(&mut self, view: View, label: &str, bytes: u64) -> View {
        let spec = &mut self.specs[view.buffer.0 as usize];
        if bytes > spec.bytes {
            spec.bytes = bytes.next_multiple_of(16);
            label.clone_into(&mut spec.label);
        }
        View { bytes: spec.bytes, ..view }
    }

    /// The planned bytes by category.
    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for spec in &self.specs {
            ledger.add(spec.category, spec.bytes);
        }
        ledger
    }

    /// The planned buffers, in the order of their ids.
    pub fn specs(&self) -> &[BufferSpec] {
        &self.specs
    }

    fn push(&mut self, category: Category, label: String, bytes: u64, readback: bool) -> View {
        let bytes = whole_bytes(bytes);
        let buffer = BufferId(self.specs.len() as u32);
        self.specs.push(BufferSpec { label, category, bytes, readback });
        View { buffer, offset: 0, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_views_begin_where_bindings_may_and_are_covered_by_their_span() {
        let mut plan = MemoryPlan::new();
        let other = plan.alloc(Category::Workspace, "other", 16);
        let views = plan.alloc_contiguous(Category::Workspace, "row", [300, 0, 16]);
        assert_eq!(views.map(|view| (view.offset, view.bytes)), [(0, 304), (512, 16), (768, 16)]);
        assert_eq!(plan.specs()[1].bytes, 784);
        assert_eq!(View::span(&views), Some(View { buffer: views[0].buffer, offset: 0, bytes: 784 }));
        assert_eq!(View::span(&[views[2], views[1]]).map(|span| (span.offset, span.bytes)), Some((512, 272)));
        assert_eq!(views[2].words_from(views[1]), 64);
        assert_eq!(View::span(&[views[0], other]), None);
        assert_eq!(View::span(&[]), None);
        // Buffers that do not fit in one binding lie apart.
        for (max_binding_bytes, together) in [(784, true), (783, false)] {
            let mut plan = MemoryPlan::for_bindings_of(max_binding_bytes);
            let views = plan.alloc_contiguous(Category::Workspace, "row", [300, 0, 16]);
            assert_eq!(View::span(&views).is_some(), together);
        }
    }

    #[test]
    fn contiguous_matrices_keep_their_padding() {
        let mut plan = MemoryPlan::new();
        let [a, b] = plan.contiguous_matrices(Category::Workspace, "pair", 3, [5, 64]);
        assert_eq!((a.ld, a.view.bytes, b.ld, b.view.offset, b.view.bytes), (8, 96, 64, 256, 768));
        assert_eq!(a, Matrix { view: a.view, ..plan.matrix(Category::Workspace, "alone", 3, 5) });
    }
}
