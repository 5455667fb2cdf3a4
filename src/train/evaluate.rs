//! Loss and perplexity of a base, with or without an adapter, on a data set.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::budget::longest_rows;
use super::comparisons;
use super::engine::Engine;
use super::event::{Event, Phase};
use super::group::Group;
use super::joining;
use super::objective::{Objective, Report};
use super::plan::{PlanSettings, RecomputePolicy, TrainPlan};
use super::preference::{Preference, Tally};
use super::prepare::seq_len_within;
use super::provenance::fingerprint_of;
use super::settings::ObjectiveChoice;
use super::teacher;
use crate::data::Example;
use crate::data::batches::MicroBatch;
use crate::data::read::{self, DataReport, Dataset};
use crate::data::settings::{DataSettings, DataSources, Feedback};
use crate::data::teacher::{TeacherFile, vocabulary_fingerprint};
use crate::data::tokenizer::Tokenizer;
use crate::gpu::Gpu;
use crate::infer::text_format;
use crate::lora::adapter_file;
use crate::lora::factors::AdapterTensors;
use crate::lora::targets::LoraModule;
use crate::model::source::Source;
use crate::network::base::BaseStorage;
use crate::network::moments::Shard;
use crate::ops::distillation::Distillation;
use crate::setting::{ADAPTER, BATCH_SIZE, DATA, MODEL, OBJECTIVE, QUANT, TEACHER};
use crate::{Error, Result, files};

/// The settings of an evaluation.
#[derive(Clone, Debug)]
pub struct EvalSettings {
    /// Directory of the base model.
    pub model: PathBuf,
    /// Directory of a PEFT adapter; `None` evaluates the base alone.
    pub adapter: Option<PathBuf>,
    /// Data to evaluate on, read together.
    pub data: DataSources,
    /// Storage of the base on the device.
    pub base: BaseStorage,
    /// Examples of a micro-batch, at least 1.
    pub batch_size: usize,
    /// Longest example in tokens; `None` is 512, or what the model has if that is less.
    pub max_seq_len: Option<usize>,
    /// What the data is measured by.
    pub objective: ObjectiveChoice,
    /// Its parameters, where it is a preference. The reference is the base without the adapter.
    pub preference: Option<Preference>,
    /// Its teacher, where it is distillation.
    pub student: Option<StudentSettings>,
    /// The way in which the file becomes examples. Its own `max_seq_len` is not used.
    pub data_format: DataSettings,
}

/// The teacher of a student, and the loss by it.
#[derive(Clone, Debug, PartialEq)]
pub struct StudentSettings {
    /// File with the teacher's log-probabilities.
    pub teacher: PathBuf,
    /// Divisor of the logits of teacher and student, above 0.
    pub temperature: f64,
    /// Share of the cross-entropy with the labels, from 0 to below 1.
    pub hard_label_share: f64,
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalResult {
    /// Mean loss of the objective over all trained tokens, or over the preferences.
    pub loss: f64,
    /// `perplexity`, the exponential of the cross-entropy; or the values of a preference objective under TRL's names.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
    /// Number of trained tokens.
    pub tokens: usize,
}

/// An evaluation whose files were read and checked, before a device is opened.
#[derive(Clone)]
pub struct PreparedEval {
    settings: EvalSettings,
    /// The base model.
    pub source: Source,
    modules: Vec<LoraModule>,
    tensors: AdapterTensors,
    pub(super) examples: Vec<Example>,
    teacher: Option<TeacherFile>,
    /// Fingerprint of the vocabulary.
    #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "browsers have no teachers"))]
    pub(super) vocabulary: String,
    /// Number of ids that the vocabulary has tokens for.
    #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "browsers have no teachers"))]
    pub(super) tokens: usize,
    /// Longest example in tokens.
    #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "browsers have no teachers"))]
    pub(super) max_seq_len: usize,
    /// What became of the records.
    pub report: DataReport,
}

/// Reads the model, the adapter and the data, and refuses those that cannot work.
///
/// # Errors
/// The first thing that is wrong, by file and field.
pub fn prepare(settings: EvalSettings) -> Result<PreparedEval> {
    prepare_with(settings, |settings, tokenizer, format, vocab_size| {
        read::read_to_evaluate(&settings.data, tokenizer, format, vocab_size)
    })
}

/// As [`prepare`], where `read` reads the data.
pub(super) fn prepare_with(
    settings: EvalSettings,
    read: impl FnOnce(&EvalSettings, Option<&Tokenizer>, &DataSettings, usize) -> Result<Dataset>,
) -> Result<PreparedEval> {
    if settings.batch_size == 0 {
        return Err(Error::setting(BATCH_SIZE, format!("{BATCH_SIZE} is 0; it must be at least 1")));
    }
    let mut source = Source::open(&settings.model)?;
    if let Some(adapter) = &settings.adapter {
        adapter_file::follow_vocabulary(adapter, &mut source)?;
    }
    if settings.base == BaseStorage::KeptBlocks {
        source.keep_blocks()?;
    }
    let config = &source.config;
    let (modules, tensors) = match &settings.adapter {
        Some(dir) => adapter_file::load_for(dir, &source).map(|adapter| (adapter.modules, adapter.tensors))?,
        None => (Vec::new(), AdapterTensors::default()),
    };
    let max_seq_len = seq_len_within(settings.max_seq_len, config)?;
    let adapters: Vec<PathBuf> = settings.adapter.iter().cloned().collect();
    let texts = text_format::tokenizer_dir(&source.dir, config, &adapters);
    let tokenizer = source.has_tokenizer().then(|| Tokenizer::from_dir(&texts, config)).transpose()?;
    let context = Some(source.config.max_position_embeddings);
    let mut format = DataSettings { max_seq_len, context, ..settings.data_format.clone() };
    if let Some(adapter) = &settings.adapter {
        format.follow_adapter(adapter);
    }
    let feedback = settings.preference.map_or(Feedback::None, |preference| preference.feedback());
    format.feedback = feedback;
    let file = settings.student.as_ref().map(|student| &*student.teacher);
    let teacher = teacher::open(file, tokenizer.as_ref(), config.vocab_size)?;
    if let Some(teacher) = &teacher {
        teacher::follow_date(&mut format, &teacher.facts);
    }
    let Dataset { examples, report } = read(&settings, tokenizer.as_ref(), &format, config.vocab_size)?;
    let examples = comparisons::fitting(examples, &report, settings.objective)?;
    teacher::check(teacher.as_ref(), &examples, &report)?;
    let examples = comparisons::mismatch(examples, feedback, settings.batch_size, max_seq_len);
    let vocabulary = vocabulary_fingerprint(tokenizer.as_ref(), config.vocab_size);
    let tokens = tokenizer.map_or(config.vocab_size, |tokenizer| tokenizer.vocabulary().min(config.vocab_size));
    Ok(PreparedEval { settings, source, modules, tensors, examples, teacher, vocabulary, tokens, max_seq_len, report })
}

impl PreparedEval {
    /// Loads the model and computes the loss over all examples. In a group, each rank computes its share, and the first one alone has the
    /// result.
    ///
    /// # Errors
    /// Out of memory, a failing device, a loss that is not finite, or a rank that evaluates something else or has ended. The other ranks
    /// are told.
    pub async fn run(
        self,
        gpu: Gpu,
        mut group: Option<Group>,
        listen: impl FnMut(Event<'_>),
    ) -> Result<Option<EvalResult>> {
        let result = self.compute(gpu, &mut group, listen).await;
        let Some(mut group) = group else { return result.map(Some) };
        match result {
            Ok(result) => {
                let result = group.is_first().then_some(result);
                group.end()?;
                Ok(result)
            }
            Err(error) => {
                group.fail(&error);
                Err(error)
            }
        }
    }

    /// The result, on the first rank of the group; on the others, of no use.
    async fn compute(
        &self,
        gpu: Gpu,
        group: &mut Option<Group>,
        mut listen: impl FnMut(Event<'_>),
    ) -> Result<EvalResult> {
        if let Some(group) = group {
            joining::check_same_evaluation(group, &self.identity()?)?;
        }
        let mut engine = self.open(gpu, &mut listen).await?;
        engine.group = group.take();
        let evaluated = self.evaluate(&mut engine, |phase| listen(Event::Phase(phase))).await;
        *group = engine.group.take();
        let (report, tokens) = evaluated?;
        if group.as_ref().is_none_or(Group::is_first) && !report.loss.is_finite() {
            let problem = format!("the loss on {} is not finite", self.settings.data);
            return Err(Error::Training(problem));
        }
        Ok(EvalResult { loss: report.loss, values: report.values, tokens })
    }

    /// The parts of an evaluation that decide its result: a name, the words of this rank, and a fingerprint that all ranks share.
    fn identity(&self) -> Result<Vec<[String; 3]>> {
        let settings = &self.settings;
        let mut adapter = files::Fingerprint::default();
        adapter.add(format!("{:?}", self.modules).as_bytes());
        self.tensors.values().for_each(|values| adapter.add(bytemuck::cast_slice(values)));
        let named = settings.adapter.as_ref().map_or("none".to_owned(), |dir| dir.display().to_string());
        let student = settings.student.as_ref().map(|student| (student.temperature, student.hard_label_share));
        let objective = format!("{:?} {:?} {student:?}", settings.objective, settings.preference);
        let teacher_file = settings.student.as_ref().map_or("none".to_owned(), |of| of.teacher.display().to_string());
        let teacher = self.teacher.as_ref().map_or("", |teacher| teacher.fingerprint());
        let part = |name: &str, here: String, all: String| [name.to_owned(), here, all];
        Ok(vec![
            part("the base model", MODEL.is(settings.model.display()), self.source.tensors.fingerprint()?),
            part("the adapter", ADAPTER.is(named), adapter.text()),
            part("the objective", OBJECTIVE.to_string(), objective),
            part("the teacher", TEACHER.is(teacher_file), teacher.to_owned()),
            part("the storage of the base", QUANT.to_string(), format!("{:?}", settings.base)),
            part("the batch size", BATCH_SIZE.is(settings.batch_size), settings.batch_size.to_string()),
            part("the data", DATA.is(&settings.data), fingerprint_of(&self.examples)),
        ])
    }

    /// Examples of a micro-batch.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn batch_size(&self) -> usize {
        self.settings.batch_size
    }

    fn distillation(&self) -> Option<Distillation> {
        let (teacher, student) = self.teacher.as_ref().zip(self.settings.student.as_ref())?;
        let (temperature, hard_label_share) = (student.temperature as f32, student.hard_label_share as f32);
        Some(Distillation { top_k: teacher.top_k as u32, temperature, hard_label_share })
    }

    /// Plans the memory, and loads the base and the adapter.
    pub(super) async fn open(&self, gpu: Gpu, listen: &mut impl FnMut(Event<'_>)) -> Result<Engine> {
        let (max_rows, max_positions) =
            longest_rows(self.examples.iter().map(Example::tokens), self.settings.batch_size);
        let settings = PlanSettings {
            base: self.settings.base.of(&self.source.config)?,
            max_rows,
            max_positions,
            recompute: RecomputePolicy::Keep(0),
            dropout: 0.0,
            loraplus: false,
            neftune_alpha: 0.0,
            training: None,
            distillation: self.distillation(),
            shard: Shard::default(),
        };
        let stored = |name: &str| self.source.stored(name);
        let plan = TrainPlan::new(gpu.capabilities, &self.source.config, stored, &self.modules, &settings);
        plan.check_limits()?;
        listen(Event::Phase(Phase::Preparing));
        let loading = |done, total| listen(Event::Loading { done, total });
        let mut engine = Engine::open(gpu, plan, &self.source, loading).await?;
        engine.write_adapter(&self.tensors);
        engine.objective = match (self.settings.preference, &self.settings.student) {
            (Some(preference), _) => Objective::Preference(preference),
            (None, Some(student)) => Objective::Distill { hard_label_share: student.hard_label_share },
            (None, None) => Objective::Sft,
        };
        Ok(engine)
    }

    /// The report over all examples, and the number of trained tokens.
    async fn evaluate(&self, engine: &mut Engine, listen: impl FnMut(Phase)) -> Result<(Report, usize)> {
        let preference = self.settings.preference;
        let needs_reference = preference.is_some_and(|preference| preference.needs_reference());
        let whole = preference.is_some_and(|preference| preference.learns_prompts());
        let chunks = self.examples.chunks(self.settings.batch_size);
        let share = engine.share(chunks.len());
        let mut batches = Vec::new();
        for (at, chunk) in chunks.enumerate() {
            let mut references = Vec::new();
            if needs_reference && share.contains(&at) {
                references = engine.answer_logps(&MicroBatch::from_examples(chunk), false).await?;
            }
            let mut batch = MicroBatch::default();
            for (at, example) in chunk.iter().enumerate() {
                batch.add(example, whole, references.get(at).copied().unwrap_or_default());
                if let (Some(teacher), Some(student)) = (&self.teacher, &self.settings.student) {
                    teacher.add_rows(&mut batch, example, student.temperature)?;
                }
            }
            batches.push(batch);
        }
        evaluation(engine, &batches, listen).await
    }
}

/// The report of an evaluation over micro-batches, without gradients, and the number of their labels. `listen` is told the work before
/// each of them. In a group, each rank computes its share.
pub(super) async fn evaluation(
    engine: &mut Engine,
    batches: &[MicroBatch],
    listen: impl FnMut(Phase),
) -> Result<(Report, usize)> {
    let mut of_ranks = vec![own_share(engine, batches, listen).await?];
    if let Some(group) = &mut engine.group {
        of_ranks = group.gather(&of_ranks[0])?;
    }
    let count = batches.iter().map(|batch| batch.labels.len()).sum();
    let report = match engine.objective.preference() {
        None => {
            let sum = |at: usize| of_ranks.iter().flat_map(|losses| losses.iter().skip(at).step_by(2)).sum();
            engine.objective.evaluation([sum(0), sum(1)], count)
        }
        Some(_) => {
            let mut tally = Tally::default();
            of_ranks.iter().for_each(|numbers| tally.merge(&Tally::from_numbers(numbers)));
            Objective::report_of(&tally)
        }
    };
    Ok((report, count))
}

/// The numbers of this rank's share of an evaluation: both losses of each micro-batch, or the sums over all preferences.
pub(super) async fn own_share(
    engine: &mut Engine,
    batches: &[MicroBatch],
    mut listen: impl FnMut(Phase),
) -> Result<Vec<f64>> {
    let share = engine.share(batches.len());
    let (mut losses, mut tally) = (Vec::new(), Tally::default());
    let preference = engine.objective.preference();
    for (done, batch) in batches[share.clone()].iter().enumerate() {
        let compiling = |done, total| listen(Phase::Compiling { done, total });
        engine.compile(std::slice::from_ref(batch), false, compiling).await?;
        listen(Phase::Evaluating { done, total: share.len() });
        match preference {
            Some(preference) => tally.merge(&engine.compare(batch, preference).await?),
            None => losses.extend(engine.both_losses(batch).await?),
        }
    }
    Ok(if preference.is_some() { tally.numbers() } else { losses })
}
