//! One case with its data: what it records, and the results that the twin expects of it.

use std::ops::{Deref, DerefMut};

use crate::gpu::{AutotuneTable, Capabilities, Category, Harness, Matrix, Recorder, Scratch, View};
use crate::ops::experiment::Experiment;
use crate::ops::linear::{self, WorkspaceQuery};

/// Bytes for partial sums. The gradients of the widest layers need less.
const PARTIALS: u64 = 64 << 20;

/// The work of a case, of which its time is a share.
#[derive(Clone, Copy, Default)]
pub(super) struct Amount {
    /// Floating-point operations, two a multiply-add.
    pub flops: f64,
    /// Bytes that have to be read and written at least once.
    pub bytes: f64,
    /// True if the operations may be those of cooperative matrices.
    pub linear: bool,
}

impl Amount {
    /// An operation that is bound by memory alone.
    pub(super) fn bytes(bytes: usize) -> Self {
        Self { bytes: bytes as f64, ..Self::default() }
    }
}

/// One case: its name, and what records it with its data and the twin's results.
pub(super) struct Case {
    pub name: String,
    pub record: Box<dyn Fn(&mut Trial) -> Amount>,
}

type Values = Box<dyn FnOnce() -> Vec<f64>>;

/// A result on the device, and what the twin says of it.
pub(super) struct Expected {
    /// The result's name.
    pub name: &'static str,
    /// Where it lies.
    pub view: View,
    /// The largest relative error `||got - want|| / ||want||`.
    pub bound: f64,
    form: Form,
}

enum Form {
    /// These rows of a matrix in f32.
    Rows { matrix: Matrix, rows: Vec<usize>, want: Values },
    /// The first values of a vector in f32.
    Vector(Values),
    /// The first bytes, all of which have to be equal. Their error is the share of those that are not.
    Bytes(Vec<u8>),
}

/// Rows of a result to compare: as many as `count`, from the first to the last.
pub(super) fn sample(rows: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, rows);
    (0..count).map(|i| i * (rows - 1) / (count - 1).max(1)).collect()
}

/// These rows of `cols` columns each.
pub(super) fn rows_of(values: &[f64], cols: usize, rows: &[usize]) -> Vec<f64> {
    rows.iter().flat_map(|row| &values[row * cols..][..cols]).copied().collect()
}

/// `a + factor b`.
pub(super) fn added(a: &[f64], b: &[f64], factor: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + factor * b).collect()
}

/// A case that is being recorded. It is its experiment too.
pub(super) struct Trial {
    experiment: Experiment,
    pub rec: Recorder,
    pub amount: Amount,
    expected: Vec<Expected>,
}

impl Deref for Trial {
    type Target = Experiment;

    fn deref(&self) -> &Experiment {
        &self.experiment
    }
}

impl DerefMut for Trial {
    fn deref_mut(&mut self) -> &mut Experiment {
        &mut self.experiment
    }
}

impl Trial {
    pub(super) fn new(capabilities: Capabilities, autotune: AutotuneTable) -> Self {
        let mut experiment = Experiment::default();
        let mut buffer = |label: &str, bytes| experiment.plan.alloc(Category::Workspace, label, bytes);
        let partials = buffer("partial sums", PARTIALS.min(capabilities.max_binding_bytes));
        let scratch = Scratch { weight_panel: buffer("decoded weight panel", 16), partials };
        let unused = ["unused binding", "unused written binding"].map(|label| buffer(label, 16));
        let rec = Recorder::new(capabilities, unused[0], unused[1], scratch).with_autotune(&autotune);
        Self { experiment, rec, amount: Amount::default(), expected: Vec::new() }
    }

    /// Plans the scratch that a linear layer needs.
    pub(super) fn reserve_panel(&mut self, query: WorkspaceQuery) {
        let bytes = linear::panel_bytes(&self.rec.capabilities, [query]);
        self.rec.scratch.weight_panel = self.experiment.plan.alloc(Category::Workspace, "decoded weight panel", bytes);
    }

    /// Expects these rows of `matrix`, one after another.
    pub(super) fn expect(
        &mut self,
        name: &'static str,
        matrix: Matrix,
        rows: &[usize],
        bound: f64,
        want: impl FnOnce() -> Vec<f64> + 'static,
    ) {
        let form = Form::Rows { matrix, rows: rows.to_vec(), want: Box::new(want) };
        self.expected.push(Expected { name, view: matrix.view, bound, form });
    }

    /// Expects the first values of `view`.
    pub(super) fn expect_vector(
        &mut self,
        name: &'static str,
        view: View,
        bound: f64,
        want: impl FnOnce() -> Vec<f64> + 'static,
    ) {
        self.expected.push(Expected { name, view, bound, form: Form::Vector(Box::new(want)) });
    }

    /// Expects exactly these bytes at the beginning of `view`.
    pub(super) fn expect_bytes(&mut self, name: &'static str, view: View, want: Vec<u8>) {
        self.expected.push(Expected { name, view, bound: 0.0, form: Form::Bytes(want) });
    }

    /// The harness that runs the commands, and the expected results.
    pub(super) fn into_parts(self) -> (Harness, Vec<Expected>) {
        let Experiment { plan, uploads, .. } = self.experiment;
        (Harness { plan, rec: self.rec, uploads }, self.expected)
    }
}

impl Expected {
    /// The relative error of the device's bytes; infinite where a value is not finite.
    pub(super) fn error(self, bytes: &[u8]) -> f64 {
        let float = |at: usize| f64::from(f32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[4 * at + i])));
        match self.form {
            Form::Rows { matrix, rows, want } => {
                let (cols, ld) = (matrix.cols as usize, matrix.ld as usize);
                let places = rows.iter().flat_map(|row| (0..cols).map(move |col| row * ld + col));
                relative_error(places.map(float), &want())
            }
            Form::Vector(want) => {
                let want = want();
                relative_error((0..want.len()).map(float), &want)
            }
            Form::Bytes(want) => {
                let unlike = bytes.iter().zip(&want).filter(|(got, want)| got != want).count();
                unlike as f64 / want.len() as f64
            }
        }
    }
}

fn relative_error(got: impl Iterator<Item = f64>, want: &[f64]) -> f64 {
    let (mut off, mut scale) = (0.0, 0.0);
    for (got, want) in got.zip(want) {
        off += (got - want) * (got - want);
        scale += want * want;
    }
    let error = (off / scale.max(1e-24)).sqrt();
    if error.is_finite() { error } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_wrong_or_missing_value_is_an_error() {
        let want = vec![1.0; 1000];
        let mut got = want.clone();
        assert_eq!(relative_error(got.iter().copied(), &want), 0.0);
        got[999] = 1.1;
        assert!((relative_error(got.iter().copied(), &want) - 0.1 / 1000f64.sqrt()).abs() < 1e-9);
        got[0] = f64::NAN;
        assert_eq!(relative_error(got.into_iter(), &want), f64::INFINITY);
    }

    #[test]
    fn samples_hold_the_first_and_the_last_row() {
        assert_eq!(sample(1, 8), [0]);
        assert_eq!(sample(3, 8), [0, 1, 2]);
        assert_eq!(sample(10, 4), [0, 3, 6, 9]);
        assert_eq!(rows_of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, &[0, 2]), [1.0, 2.0, 5.0, 6.0]);
    }
}
