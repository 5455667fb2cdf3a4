//! The provenance of a run: the data, the base and the settings that its numbers follow from. A run that resumes from a checkpoint
//! must have the same provenance.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::schedule::Schedule;
use super::setting_spec::{OnResume, Setting};
use super::settings::{RunSettings, SETTINGS};
use crate::Result;
use crate::data::{Comparison, Example};
use crate::files::Fingerprint;
use crate::model::tensor_source::TensorSource;
use crate::setting::{DATA, EVAL_DATA, EVAL_FRACTION, GPU_MEMORY, INIT_ADAPTER, Key, MODEL, OUT, RECOMPUTE, TEACHER};

/// The provenance of a run, kept in a checkpoint and compared when a run resumes from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Fingerprint of the examples, slot by slot.
    data: String,
    /// Fingerprint of the base's files.
    base: String,
    /// Fingerprint of the teacher's log-probabilities, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    teacher: Option<String>,
    settings: RunSettings,
    steps: usize,
}

impl Provenance {
    /// The provenance of a run with these settings over these examples, `slots` by slot.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn new(
        settings: &RunSettings,
        examples: &[Example],
        slots: &[Vec<usize>],
        base: &TensorSource,
        steps: usize,
        teacher: Option<&str>,
    ) -> Result<Self> {
        let mut data = Fingerprint::default();
        for slot in slots {
            data.add(&slot.len().to_le_bytes());
            slot.iter().for_each(|i| add_example(&mut data, &examples[*i]));
        }
        let (base, teacher) = (base.fingerprint()?, teacher.map(str::to_owned));
        Ok(Self { data: data.text(), base, teacher, settings: settings.clone(), steps })
    }

    /// Checks that a rank that prepared `own` and holds out the same examples, `held_out` in both, can join the run of a first rank with
    /// this provenance. Files may lie in other places, and a rank may have a memory limit of its own.
    ///
    /// # Errors
    /// The setting that differs, or the data, as a sentence.
    pub fn check_joins(&self, own: &Self, held_out: [&str; 2]) -> Result<(), String> {
        let own_to_a_rank = [MODEL, DATA, EVAL_DATA, INIT_ADAPTER, OUT, RECOMPUTE, GPU_MEMORY, TEACHER];
        let [first, fields] = [self, own].map(Self::fields);
        for Setting { key, .. } in SETTINGS.iter().filter(|setting| !own_to_a_rank.contains(&setting.key)) {
            let (theirs, here) = (first.get(key.0), fields.get(key.0));
            if theirs != here {
                return Err(format!("{} here, but {} of the first rank", key.is(shown(here)), shown(theirs)));
            }
        }
        let differs = |what: &str, key: Key, path: &Path| {
            Err(format!("{what} ({}) is not that of the first rank; give every rank the same", key.is(path.display())))
        };
        if self.base != own.base {
            return differs("the base model", MODEL, &own.settings.model);
        }
        if self.data != own.data {
            return differs("the training data", DATA, Path::new(&own.settings.data.to_string()));
        }
        if self.teacher != own.teacher {
            let path = own.settings.teacher.clone().unwrap_or_default();
            return differs("the teacher's file", TEACHER, &path);
        }
        match held_out {
            [theirs, here] if theirs != here => Err("the held-out data is not that of the first rank".to_owned()),
            _ => Ok(()),
        }
    }

    fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(&self.settings) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        }
    }

    /// Checks that a run of provenance `now` can resume from a checkpoint of this one. The answer lists, as sentences, the settings that
    /// `now` changes and may change.
    ///
    /// # Errors
    /// A sentence that names what `now` must not change.
    pub fn check_resume(&self, now: &Self) -> Result<Vec<String>, String> {
        let [old, new] = [self, now].map(Self::fields);
        let changed = SETTINGS.iter().filter(|setting| old.get(setting.key.0) != new.get(setting.key.0));
        if let Some(Setting { key, .. }) = changed.clone().find(|setting| setting.on_resume == OnResume::Fixed) {
            let (was, is) = (shown(old.get(key.0)), shown(new.get(key.0)));
            return Err(match new.get(key.0) {
                Some(Value::Bool(_)) => format!("was made with {} = {was}, not {is}", key.0),
                _ => format!("was made with {}, not {is}", key.is(was)),
            });
        }
        if self.base != now.base {
            let [was, is] = [self, now].map(|provenance| MODEL.is(provenance.settings.model.display()));
            return Err(format!("was made with other base weights ({was}) than those of {is}"));
        }
        if self.data != now.data {
            let held_out = match (self.settings.eval_fraction, now.settings.eval_fraction) {
                (was, is) if was == is => String::new(),
                (was, _) => format!(" ({})", EVAL_FRACTION.is(was.unwrap_or(0.0))),
            };
            return Err(format!(
                "was made with other training examples than {} gives now; take the data and its settings{held_out} back as they were, \
                 or begin a new run from the adapter with {INIT_ADAPTER}",
                DATA.is(&now.settings.data)
            ));
        }
        if self.teacher != now.teacher {
            let path = now.settings.teacher.clone().unwrap_or_default();
            return Err(format!("was made with other log-probabilities than {} has", TEACHER.is(path.display())));
        }
        let mut changes: Vec<String> = changed
            .filter(|setting| setting.on_resume == OnResume::Steering)
            .map(|Setting { key, .. }| format!("{key} was {}", shown(old.get(key.0))))
            .collect();
        if self.steps != now.steps && now.settings.schedule != Schedule::Constant {
            changes.push(format!("the run had {} steps", self.steps));
        }
        Ok(changes)
    }
}

/// The fingerprint of examples.
pub(super) fn fingerprint_of(examples: &[Example]) -> String {
    let mut data = Fingerprint::default();
    examples.iter().for_each(|example| add_example(&mut data, example));
    data.text()
}

fn add_example(data: &mut Fingerprint, example: &Example) {
    for example in example.sequences() {
        data.add(&example.input_ids.len().to_le_bytes());
        data.add(bytemuck::cast_slice(&example.input_ids));
        example.trained.iter().for_each(|trained| data.add(&[u8::from(*trained)]));
        if let Comparison::Rated { desirable, .. } = example.comparison {
            data.add(&[u8::from(desirable)]);
        }
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(change: impl FnOnce(&mut RunSettings), ids: &[u32], steps: usize) -> Provenance {
        let mut settings = RunSettings::default();
        change(&mut settings);
        let example = Example::new(ids.to_vec(), vec![true; ids.len()]);
        Provenance::new(&settings, &[example], &[vec![0]], &TensorSource::empty(Path::new("model")), steps, None)
            .unwrap()
    }

    #[test]
    fn what_makes_another_run_is_named() {
        let first = provenance(|_| (), &[1, 2, 3], 9);
        assert_eq!(first.check_resume(&first), Ok(Vec::new()));
        let watched = provenance(|s| (s.save_every, s.keep, s.log_every) = (1, 7, 3), &[1, 2, 3], 9);
        assert_eq!(first.check_resume(&watched), Ok(Vec::new()));
        let refusal =
            |change: fn(&mut RunSettings)| first.check_resume(&provenance(change, &[1, 2, 3], 9)).unwrap_err();
        assert_eq!(refusal(|s| s.batch_size = 2), "was made with ⟨batch-size=4⟩, not 2");
        assert_eq!(refusal(|s| s.shuffle = false), "was made with shuffle = true, not false");
        let other_data = first.check_resume(&provenance(|_| (), &[1, 2, 4], 9)).unwrap_err();
        assert!(other_data.contains("other training examples") && !other_data.contains("fraction"), "{other_data}");
        let held_out = first.check_resume(&provenance(|s| s.eval_fraction = Some(0.1), &[1, 2], 9)).unwrap_err();
        assert!(held_out.contains("its settings (⟨eval-fraction=0⟩) back"), "{held_out}");
        let steered = provenance(|s| s.lr = 1.0, &[1, 2, 3], 12);
        assert_eq!(
            first.check_resume(&steered),
            Ok(vec!["⟨lr⟩ was 0.0002".to_owned(), "the run had 9 steps".to_owned()])
        );
    }
}
