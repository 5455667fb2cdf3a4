//! The head's part of a training pass: the rows with a label, their logits in chunks, and their losses.

use crate::gpu::{Arena, Capabilities, Category, Matrix, MemoryPlan, Recorder, View, round_up};
use crate::network::activations::{Phase, through};
use crate::network::adapter::DeviceAdapter;
use crate::network::base::Network;
use crate::network::head::{self, Head, HeadWorkspace};
use crate::ops::cross_entropy;
use crate::ops::distillation::{self, Distillation, Targets};

/// Counts of rows with a label are rounded up to this. It also keeps slices of per-row buffers aligned.
pub const LABEL_CLASS: u32 = 64;
/// Bytes of logits that exist at a time: the rows go through the head in chunks that fit.
const LOGITS_BYTES: u64 = 32 << 20;

/// Buffers of the rows that go through the head.
#[derive(Clone, Copy, Debug)]
pub struct HeadBuffers {
    /// Place of each row with a label among the rows of the pass, u32.
    pub label_rows: View,
    /// Label of each of these rows, u32.
    pub labels: View,
    /// Final hidden states of the rows with a label. Chunk by chunk they become their gradients.
    gathered: Matrix,
    logits: Matrix,
    /// Cross-entropy of each row with a label, f32.
    pub losses: View,
    /// Buffers for what an adapter changes of the head.
    pub workspace: HeadWorkspace,
    /// Factor of each row's loss in the objective, and so of its gradient, f32.
    pub label_weights: View,
    /// The teacher's part, where there is a teacher.
    pub teacher: Option<TeacherBuffers>,
}

/// Buffers for what the rows with a label learn from a teacher.
#[derive(Clone, Copy, Debug)]
pub struct TeacherBuffers {
    /// The loss.
    pub distillation: Distillation,
    /// The teacher's tokens of each row, u32.
    pub ids: View,
    /// Their probabilities, f32.
    pub probabilities: View,
    /// The cross-entropy of each row with its label, f32.
    pub label_losses: View,
}

/// The head's part of one pass.
#[derive(Clone, Copy, Debug)]
pub struct HeadPass {
    /// Output of the final norm, `[rows, hidden]`.
    pub hidden: Matrix,
    /// Number of rows with a label, rounded up to a multiple of [`LABEL_CLASS`].
    pub labels: u32,
    /// One f32 to which the losses are added, without their weights.
    pub total: View,
    /// The gradient of `hidden`, where the pass is one of training.
    pub d_hidden: Option<Matrix>,
}

impl HeadBuffers {
    /// Plans for up to `max_rows` rows with a label.
    pub fn plan(
        memory: &mut MemoryPlan,
        arena: &mut Arena,
        (network, adapter): (&Network, &DeviceAdapter),
        (max_rows, dropout): (u32, bool),
        distillation: Option<Distillation>,
        capabilities: Capabilities,
    ) -> Self {
        let config = &network.config;
        let rows = round_up(max_rows, LABEL_CLASS);
        let budget = LOGITS_BYTES.min(capabilities.max_binding_bytes);
        let fitting = budget / (4 * u64::from(round_up(config.vocab_size as u32, 4)));
        let chunk = (u32::try_from(fitting).unwrap_or(u32::MAX) / LABEL_CLASS * LABEL_CLASS).clamp(LABEL_CLASS, rows);
        let per_row = 4 * u64::from(rows);
        let (vocabulary, hidden) = (config.vocab_size as u32, config.hidden_size as u32);
        let while_gathered = through(Phase::GatherLabeled, Phase::ScatterLabeled);
        let at_logits = through(Phase::Logits, Phase::Logits);
        let adapters = (network, std::slice::from_ref(adapter));
        let workspace = HeadWorkspace::plan(memory, arena, adapters, chunk, dropout, &at_logits);
        let teacher = distillation.map(|distillation| {
            let bytes = per_row * u64::from(distillation.top_k);
            TeacherBuffers {
                distillation,
                ids: memory.alloc(Category::Uploads, "teacher's tokens", bytes),
                probabilities: memory.alloc(Category::Uploads, "teacher's probabilities", bytes),
                label_losses: memory.alloc(Category::Workspace, "losses by labels", per_row),
            }
        });
        Self {
            teacher,
            workspace,
            logits: arena.matrix(memory, "logits", chunk, vocabulary, &[at_logits]),
            gathered: arena.matrix(memory, "rows with a label", rows, hidden, &[while_gathered]),
            label_rows: memory.alloc(Category::Uploads, "labeled rows", per_row),
            labels: memory.alloc(Category::Uploads, "labels", per_row),
            losses: memory.alloc(Category::Workspace, "losses", per_row),
            label_weights: memory.alloc(Category::Uploads, "label weights", per_row),
        }
    }

    /// Rows whose logits exist at a time.
    pub fn chunk_rows(&self) -> u32 {
        self.logits.rows
    }

    /// Records the losses of the rows with a label, and adds their sum to `pass.total`. With `pass.d_hidden`, each chunk of hidden
    /// states becomes its gradient before the next chunk's logits take the buffer; the gradients then go back to their rows.
    pub fn record(&self, rec: &mut Recorder, head: &Head, pass: HeadPass) {
        let HeadPass { hidden, labels, total, d_hidden } = pass;
        let gradient = d_hidden.is_some();
        cross_entropy::gather_rows(rec, hidden, self.label_rows, self.gathered.first_rows(labels));
        let mut first = 0;
        while first < labels {
            let rows = self.logits.rows.min(labels - first);
            let (x, logits) = (self.gathered.rows(first, rows), self.logits.first_rows(rows));
            let words = |view: View| view.slice(4 * u64::from(first), 4 * u64::from(rows));
            let head = Head { chunk: first / self.logits.rows, ..*head };
            head.product(rec, x, logits);
            let [labels, weights, losses] = [self.labels, self.label_weights, self.losses].map(words);
            let ranged = (logits, head::range(head.network));
            match self.teacher {
                None => cross_entropy::forward_backward(rec, ranged, labels, weights, losses, gradient),
                Some(TeacherBuffers { distillation, ids, probabilities, label_losses }) => {
                    let [ids, probabilities] = [ids, probabilities].map(|view| {
                        let per_row = 4 * u64::from(distillation.top_k);
                        view.slice(per_row * u64::from(first), per_row * u64::from(rows))
                    });
                    let targets = Targets { labels, label_weights: weights, ids, probabilities };
                    let losses = [losses, words(label_losses)];
                    distillation::forward_backward(rec, ranged, targets, distillation, losses, gradient);
                }
            }
            if gradient {
                head.backward_in_place(rec, logits, x);
            }
            first += rows;
        }
        cross_entropy::sum_losses(rec, self.losses, labels, total);
        if let Some(d_hidden) = d_hidden {
            rec.clear(d_hidden.view);
            cross_entropy::scatter_rows(rec, self.gathered.first_rows(labels), self.label_rows, d_hidden);
        }
    }

    /// Records that the rows with a label are gathered, for [`Self::record_label_logits`].
    pub fn record_gather(&self, rec: &mut Recorder, hidden: Matrix, labels: u32) {
        cross_entropy::gather_rows(rec, hidden, self.label_rows, self.gathered.first_rows(labels));
    }

    /// Records the logits of the gathered rows from `first` on, of `labels` rows in all, as far as they fit into a chunk, and says where
    /// they lie.
    pub fn record_label_logits(&self, rec: &mut Recorder, head: &Head, (first, labels): (u32, u32)) -> Matrix {
        let rows = self.logits.rows.min(labels - first);
        let logits = self.logits.first_rows(rows);
        head.forward(rec, self.gathered.rows(first, rows), logits);
        logits
    }

    /// Records the logits of all rows of `hidden`, which must fit into one chunk, and says where they lie.
    pub fn record_logits(&self, rec: &mut Recorder, head: &Head, hidden: Matrix) -> Matrix {
        let logits = self.logits.first_rows(hidden.rows);
        head.forward(rec, hidden, logits);
        logits
    }
}
