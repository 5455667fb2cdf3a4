//! The training step on the device: uploads, the replayed lists, and results that are read late.

use std::collections::VecDeque;
use std::ops::Range;

use web_time::Instant;

use super::group::{Group, Work};
use super::head::LABEL_CLASS;
use super::objective::{HeadRows, Objective, Report};
use super::optimizer::{OptimizerBuffers, ParameterRange, RESULTS_IN_FLIGHT, TOTAL_LOSS_AT};
use super::plan::{PassPart, TrainPlan};
use super::preference::{Preference, Tally, sum_of_logps};
use super::values::TrainedValues;
use crate::data::batches::{Answers, MicroBatch};
use crate::gpu::{Buffers, Gpu, Lists, PendingRead, Prepared, Profile, Recorder, round_up};
use crate::lora::factors::AdapterTensors;
use crate::model::source::Source;
use crate::model::tensors::NamedTensor;
use crate::network::layer_rows::LayerRows;
use crate::network::load;
use crate::network::moments::HostMoment;
use crate::network::trained::{Part, Trained, TrainedRange};
use crate::ops::adamw::{AdamW, Hyper, State};
use crate::ops::adamw8bit;
use crate::{Error, Result, tune};

/// Passes of this many shapes stay prepared. Beyond it, all are prepared again.
const MAX_LISTS: usize = 32;

/// Bytes of moments that a rank sends to the first one at once.
const MOST_MOMENT_BYTES: usize = 1 << 28;

/// The result of an optimizer step, known a few steps later.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// Number of the step, from 1.
    pub step: usize,
    /// The loss over all micro-batches of the step.
    pub report: Report,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f32,
    /// False when gradient or loss were not finite: the step was skipped, nothing changed.
    pub applied: bool,
    /// Number of trained tokens.
    pub labels: usize,
    /// Number of rows computed, trained on or not.
    pub tokens: usize,
}

struct Pending {
    step: usize,
    labels: usize,
    tokens: usize,
    /// Sums over the step's preferences, where the objective compares answers.
    tally: Option<Tally>,
    /// Rough multiply-adds.
    work: u64,
    read: PendingRead,
}

/// A model with an adapter in training.
pub struct Engine {
    /// The device.
    pub gpu: Gpu,
    /// The plan that the buffers were allocated by.
    pub plan: TrainPlan,
    /// The buffers on the device.
    pub buffers: Buffers,
    /// GPU time by operation, added up by every list that runs while this is set.
    pub profile: Option<Profile>,
    /// The objective that the steps optimize.
    pub objective: Objective,
    /// The other devices that train the same model, if there are any.
    pub group: Option<Group>,
    /// The table of embeddings for each layer, in a model that has one.
    layer_rows: Option<LayerRows>,
    /// Prepared passes by rows, by labels, and by the part that they do.
    passes: Lists<(u32, u32, PassPart)>,
    begin: Prepared,
    /// The lists of a step, see [`TrainPlan::record_optimizer_lists`].
    optimizer: Vec<Prepared>,
    pending: VecDeque<Pending>,
    submitted: usize,
    /// Sums over the preferences of the step at hand.
    tally: Tally,
    /// Multiply-adds of the lists that were submitted for the step at hand.
    work: u64,
    /// The time at which the device's pace was last measured, and the work whose results have come since.
    pace: Option<Instant>,
    finished_work: u64,
}

impl Engine {
    /// Allocates the plan and loads the base.
    ///
    /// # Errors
    /// Out of memory, a limit of the adapter, or files that are not what the plan was made for.
    pub async fn open(gpu: Gpu, plan: TrainPlan, source: &Source, progress: impl FnMut(u64, u64)) -> Result<Self> {
        let mut engine = Self::allocate(gpu, plan).await?;
        engine.layer_rows = LayerRows::open(source)?;
        let plan = &engine.plan;
        let staging = plan.shared.staging.as_ref();
        load::load(
            &engine.gpu,
            &mut engine.buffers,
            source,
            &plan.shared.network,
            staging,
            || plan.shared.recorder(),
            progress,
        )
        .await?;
        engine.compute_norms()?;
        Ok(engine)
    }

    /// Computes what follows from the loaded base.
    fn compute_norms(&mut self) -> Result<()> {
        let list = self.plan.record_norms();
        if list.commands.is_empty() {
            return Ok(());
        }
        let list = self.gpu.prepare(&list.commands, &self.buffers, self.plan.shared.uniforms[1])?;
        Ok(self.gpu.run(&list, &mut self.buffers)?)
    }

    /// Allocates the plan over new weights, to be trained from scratch.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn from_scratch(gpu: Gpu, plan: TrainPlan, seed: u64) -> Result<Self> {
        let engine = Self::allocate(gpu, plan).await?;
        load::initialize(&engine.gpu, &engine.buffers, &engine.plan.shared.network, seed).await?;
        Ok(engine)
    }

    /// Allocates the plan over a base of random weights, for measurements.
    ///
    /// # Errors
    /// Out of memory, a limit of the adapter, or a failing device.
    pub async fn with_random_weights(gpu: Gpu, plan: TrainPlan, seed: u64) -> Result<Self> {
        let mut engine = Self::allocate(gpu, plan).await?;
        load::fill_randomly(&engine.gpu, &engine.buffers, &engine.plan.shared.network, seed).await?;
        engine.compute_norms()?;
        Ok(engine)
    }

    /// Chooses the kernels while the device is empty, and allocates.
    async fn allocate(gpu: Gpu, mut plan: TrainPlan) -> Result<Self> {
        plan.shared.autotune = tune::choices(&gpu, &plan.problem_sizes()).await?;
        let mut buffers = Buffers::default();
        gpu.allocate(&plan.shared.memory, &mut buffers).await?;
        if let Some(tables) = plan.optimizer.code_tables {
            gpu.write(&buffers, tables, bytemuck::cast_slice(&adamw8bit::tables()));
        }
        let begin = gpu.prepare(&plan.record_begin().commands, &buffers, plan.shared.uniforms[1])?;
        let prepare = |list: Recorder| gpu.prepare(&list.commands, &buffers, plan.shared.uniforms[1]);
        let optimizer = plan.record_optimizer_lists().into_iter().map(prepare).collect::<Result<_, _>>()?;
        Ok(Self {
            gpu,
            plan,
            buffers,
            profile: None,
            objective: Objective::default(),
            group: None,
            layer_rows: None,
            passes: Lists::new(MAX_LISTS),
            begin,
            optimizer,
            pending: VecDeque::new(),
            submitted: 0,
            tally: Tally::default(),
            work: 0,
            pace: None,
            finished_work: 0,
        })
    }

    /// Sets the factors of the adapter.
    pub fn write_adapter(&self, tensors: &AdapterTensors) {
        self.plan.parameters.adapter.write(&self.gpu, &self.buffers, tensors);
    }

    /// The factors of the adapter as they are on the device now.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_adapter(&self) -> Result<AdapterTensors> {
        Ok(self.plan.parameters.adapter.read(&self.gpu, &self.buffers).await?)
    }

    /// The trained values as they are on the device now.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_values(&self) -> Result<TrainedValues> {
        self.plan.parameters.read(&self.gpu, &self.buffers).await
    }

    /// Sets the trained values, as [`Self::read_values`] gives them.
    pub fn write_values(&self, values: &TrainedValues) {
        self.plan.parameters.write(&self.gpu, &self.buffers, values);
    }

    /// Every tensor of a base in training, or its gradients; empty where the base is frozen.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_base(&self, part: Part) -> Result<Vec<NamedTensor>> {
        match &self.plan.parameters.base {
            Some(base) => Ok(base.read(&self.gpu, &self.buffers, part).await?),
            None => Ok(Vec::new()),
        }
    }

    /// AdamW's moments of each trained tensor as they are on the device now, in the order of [`Self::read_values`].
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_moments(&self) -> Result<Vec<[HostMoment; 2]>> {
        self.plan.parameters.read_moments(&self.gpu, &self.buffers).await
    }

    /// Sets the values and moments that another engine had after `step` optimizer steps, and counts on from there.
    pub fn resume(&mut self, step: usize, values: &TrainedValues, moments: &[[HostMoment; 2]]) {
        self.write_values(values);
        self.plan.parameters.write_moments(&self.gpu, &self.buffers, moments);
        self.submitted = step;
    }

    /// The adapter's gradients as they are on the device now.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read_gradients(&self) -> Result<AdapterTensors> {
        Ok(self.plan.parameters.adapter.read_gradients(&self.gpu, &self.buffers).await?)
    }

    /// Runs one optimizer step over `micro_batches`, whose losses are all divided by the number of the step's labels.
    /// Returns the result of an earlier step once [`RESULTS_IN_FLIGHT`] are under way.
    ///
    /// # Errors
    /// A micro-batch larger than planned, or a failing device.
    pub async fn step(
        &mut self,
        micro_batches: &[MicroBatch],
        optimizer: &AdamW,
        learning_rate: f64,
        seed: u64,
    ) -> Result<Option<StepResult>> {
        self.step_watched(micro_batches, optimizer, learning_rate, seed, |_| ()).await
    }

    /// [`Self::step`]; `progress` is told the number of micro-batches that were given to the device before each.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn step_watched(
        &mut self,
        micro_batches: &[MicroBatch],
        optimizer: &AdamW,
        learning_rate: f64,
        seed: u64,
        progress: impl FnMut(usize),
    ) -> Result<Option<StepResult>> {
        self.begin_together(Work::Step(self.submitted))?;
        let started = Instant::now();
        self.accumulate_watched(micro_batches, seed, progress).await?;
        self.add_up_gradients(micro_batches.len(), started).await?;
        self.submitted += 1;
        let step = self.submitted;
        let hyper = optimizer.hyper(learning_rate, step as u32);
        self.plan.optimizer.write_hyper(&self.gpu, &self.buffers, &hyper, optimizer.loraplus_lr_ratio);
        self.optimize(hyper).await?;
        let slot = self.plan.optimizer.results[step % RESULTS_IN_FLIGHT];
        let read = self.gpu.begin_read(&self.buffers, self.plan.optimizer.metrics, slot);
        let labels = micro_batches.iter().map(|m| m.labels.len()).sum();
        let tokens = micro_batches.iter().map(|m| m.tokens.len()).sum();
        let work = std::mem::take(&mut self.work) + self.optimizer.iter().map(Prepared::work).sum::<u64>();
        let tally = self.objective.preference().map(|_| std::mem::take(&mut self.tally));
        self.pending.push_back(Pending { step, labels, tokens, tally, work, read });
        self.share_values().await?;
        let result = match self.pending.len() < RESULTS_IN_FLIGHT {
            true => None,
            false => self.next_result().await?,
        };
        // With steps always under way, results come at the pace of the device; submits are sized by it.
        if self.finished_work > 0 {
            let work = std::mem::take(&mut self.finished_work);
            if let Some(last) = self.pace.replace(Instant::now()) {
                self.gpu.learn_rate(work, last.elapsed().as_secs_f64());
            }
        }
        Ok(result)
    }

    /// Computes this rank's part of the gradients of the optimizer step after `done` others, and makes its part of the step.
    ///
    /// # Errors
    /// As [`Self::step`], or a rank that has ended.
    pub async fn work_on_step(&mut self, done: usize, micro_batches: &[MicroBatch], seed: u64) -> Result<()> {
        self.submitted = done;
        let started = Instant::now();
        self.accumulate_watched(micro_batches, seed, |_| ()).await?;
        self.add_up_gradients(micro_batches.len(), started).await?;
        if self.plan.parameters.is_sharded() {
            self.optimize(Hyper::default()).await?;
        }
        self.share_values().await
    }

    /// Clipping and the optimizer's step, with the settings of the first rank. Ranks that share out the moments exchange the sums that the
    /// norm follows from; the first one computes norm and clipping for all.
    async fn optimize(&mut self, mut hyper: Hyper) -> Result<()> {
        let Self { gpu, plan, buffers, profile, group, optimizer, .. } = self;
        let (Some(group), [sums, clip, step]) = (group, &optimizer[..]) else {
            for list in optimizer.iter() {
                gpu.replay(list, buffers, profile.as_mut()).await?;
            }
            return Ok(());
        };
        gpu.replay(sums, buffers, profile.as_mut()).await?;
        let ranges = plan.parameters.ranges();
        let (partials, state) = (plan.optimizer.partials, plan.optimizer.state());
        let mut all = gpu.read(buffers, partials).await?;
        let own: Vec<u8> = OptimizerBuffers::sums_of(&ranges, group.rank())
            .into_iter()
            .flat_map(|place| all[place].to_vec())
            .collect();
        let of_ranks = group.gather_bytes(&own)?;
        let mut state_bytes = [0; size_of::<State>()];
        if group.is_first() {
            for (rank, sums) in of_ranks.iter().enumerate() {
                let mut rest = &sums[..];
                for place in OptimizerBuffers::sums_of(&ranges, rank) {
                    let (sums, after) = rest.split_at(place.len());
                    all[place].copy_from_slice(sums);
                    rest = after;
                }
            }
            gpu.write(buffers, partials, &all);
            gpu.replay(clip, buffers, profile.as_mut()).await?;
            state_bytes.copy_from_slice(&gpu.read(buffers, state).await?);
        }
        group.broadcast(&mut state_bytes, 0)?;
        group.broadcast(bytemuck::bytes_of_mut(&mut hyper), 0)?;
        if !group.is_first() {
            gpu.write(buffers, state, &state_bytes);
            plan.optimizer.write_hyper(gpu, buffers, &hyper, 1.0);
        }
        Ok(gpu.replay(step, buffers, profile.as_mut()).await?)
    }

    /// Announces `work` to the group, if there is one.
    pub(super) fn begin_together(&mut self, work: Work) -> Result<()> {
        self.group.as_mut().map_or(Ok(()), |group| group.agree_on(work).map(|_| ()))
    }

    /// Gives the values of the first rank to all ranks of the group, and `moments`, where the first rank has any, to those that keep them.
    pub(super) async fn start_together(&mut self, moments: Option<&[[HostMoment; 2]]>) -> Result<()> {
        self.exchange_values(|_| 0).await?;
        let Self { gpu, plan, buffers, group: Some(group), .. } = self else { return Ok(()) };
        let mut given = [u8::from(moments.is_some())];
        group.broadcast(&mut given, 0)?;
        let Some(base) = plan.parameters.base.as_ref().filter(|_| given[0] == 1) else { return Ok(()) };
        let mut of_first = moments.map(|moments| base.moments_by_range(moments));
        for range in base.ranges() {
            let (storage, rank) = (range.moments.storage(), group.rank());
            let mut bytes = match of_first.as_mut().and_then(Iterator::next) {
                Some((_, pair)) => HostMoment::to_bytes(&pair),
                None => vec![0; storage.bytes(range.params.bytes) as usize],
            };
            if range.owner == 0 {
                continue;
            }
            group.broadcast(&mut bytes, 0)?;
            if range.owner == rank {
                range.moments.write(gpu, buffers, &HostMoment::from_bytes(storage, &bytes));
            }
        }
        Ok(())
    }

    /// The moments of all ranks, as [`Self::read_moments`] gives them; on the first one.
    pub(super) async fn collect_moments(&mut self) -> Result<Vec<[HostMoment; 2]>> {
        if self.group.is_none() || !self.plan.parameters.is_sharded() {
            return self.read_moments().await;
        }
        self.begin_together(Work::Moments)?;
        match self {
            Self { gpu, plan: TrainPlan { parameters, .. }, buffers, group: Some(group), .. } => match &parameters.base
            {
                Some(base) => base.gather_moments(async |range| pass_moments(gpu, buffers, group, range).await).await,
                None => Ok(Vec::new()),
            },
            _ => Ok(Vec::new()),
        }
    }

    /// This rank's part of [`Self::collect_moments`], on a rank other than the first.
    pub(super) async fn give_moments(&mut self) -> Result<()> {
        let Self { gpu, plan, buffers, group: Some(group), .. } = self else { return Ok(()) };
        for range in plan.parameters.base.iter().flat_map(Trained::ranges) {
            pass_moments(gpu, buffers, group, range).await?;
        }
        Ok(())
    }

    /// The part of `count` micro-batches that is computed here: all of them, or those of this rank of the group.
    pub(super) fn share(&self, count: usize) -> Range<usize> {
        self.group.as_ref().map_or(0..count, |group| group.share(count))
    }

    /// Gives all ranks of the group the values that each one's owner has after the optimizer's step.
    async fn share_values(&mut self) -> Result<()> {
        self.exchange_values(|range| range.owner).await
    }

    /// Gives all ranks of the group the trained values, each from the rank that `owner` tells.
    async fn exchange_values(&mut self, owner: impl Fn(&ParameterRange) -> usize) -> Result<()> {
        let Some(group) = &mut self.group else { return Ok(()) };
        // The optimizer's step may still be under way.
        self.gpu.read(&self.buffers, self.plan.optimizer.total_loss()).await?;
        let started = Instant::now();
        for range in self.plan.parameters.ranges() {
            let owner = owner(&range);
            let is_own = owner == group.rank();
            let mut bytes = match is_own {
                true => self.gpu.read(&self.buffers, range.params).await?,
                false => vec![0; range.params.bytes as usize],
            };
            group.broadcast(&mut bytes, owner)?;
            if !is_own {
                self.gpu.write(&self.buffers, range.params, &bytes);
            }
        }
        group.usage.exchange += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Adds up losses and the sums over preferences of all ranks of the group, on the first one, and each gradient on its owner. `started`
    /// is when this rank began its share of `count` micro-batches.
    async fn add_up_gradients(&mut self, count: usize, started: Instant) -> Result<()> {
        let Some(group) = &mut self.group else { return Ok(()) };
        let ranges = self.plan.parameters.ranges();
        let loss = self.plan.optimizer.total_loss();
        self.gpu.read(&self.buffers, loss).await?;
        let (seconds, waiting) = (started.elapsed().as_secs_f64(), Instant::now());
        let of_ranks = group.gather(&[group.share(count).len() as f64, seconds])?;
        group.measure(&of_ranks, waiting.elapsed().as_secs_f64());
        let started = Instant::now();
        for (view, owner) in ranges.iter().map(|range| (range.grads, range.owner)).chain([(loss, 0)]) {
            let mut values = self.gpu.read_f32(&self.buffers, view).await?;
            group.sum(&mut values, owner)?;
            if group.rank() == owner {
                self.gpu.write(&self.buffers, view, bytemuck::cast_slice(&values));
            }
        }
        let of_ranks = group.gather(&self.tally.numbers())?;
        self.tally = Tally::default();
        of_ranks.iter().for_each(|numbers| self.tally.merge(&Tally::from_numbers(numbers)));
        group.usage.exchange += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// The oldest result that has not been given out, if it is there already. Does not wait for the device.
    ///
    /// # Errors
    /// A failing device.
    pub async fn ready_result(&mut self) -> Result<Option<StepResult>> {
        match self.pending.front_mut().is_some_and(|pending| self.gpu.is_ready(&mut pending.read)) {
            true => self.next_result().await,
            false => Ok(None),
        }
    }

    /// Compiles the kernels that the lists of these micro-batches need, forward alone or with the backward pass and the optimizer.
    /// `progress` is told how many are done, and how many there are; it is not called where there are none.
    ///
    /// # Errors
    /// A kernel that the driver refuses, or a failing device.
    pub async fn compile(
        &mut self,
        micro_batches: &[MicroBatch],
        training: bool,
        progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let parts: &[PassPart] = match (training, self.objective.preference()) {
            (false, _) => &[PassPart::Evaluation],
            (true, None) => &[PassPart::Training],
            (true, Some(_)) => &[PassPart::Forward, PassPart::Backward],
        };
        let class = |batch: &MicroBatch| {
            let (rows, labels) = self.plan.class(batch.tokens.len(), batch.labels.len());
            parts.iter().map(move |part| (rows, labels, *part))
        };
        let mut classes: Vec<_> = micro_batches.iter().flat_map(class).collect();
        classes.retain(|class| !self.passes.contains(class));
        classes.sort_unstable();
        classes.dedup();
        let record = |(rows, labels, part)| self.plan.record_part(rows, labels, part).commands;
        let mut commands: Vec<_> = classes.into_iter().flat_map(record).collect();
        if commands.is_empty() {
            return Ok(());
        }
        commands.extend(self.plan.record_optimizer().commands.into_iter().filter(|_| training));
        Ok(self.gpu.compile(&commands, &mut self.buffers, self.plan.shared.uniforms[0], progress).await?)
    }

    /// The oldest result that has not been given out; None when there is none.
    ///
    /// # Errors
    /// A failing device.
    pub async fn next_result(&mut self) -> Result<Option<StepResult>> {
        let Some(Pending { step, labels, tokens, tally, work, read }) = self.pending.pop_front() else {
            return Ok(None);
        };
        let bytes = self.gpu.finish_read(&self.buffers, read).await?;
        self.finished_work += work;
        let state: State = bytemuck::pod_read_unaligned(&bytes[..size_of::<State>()]);
        let at = TOTAL_LOSS_AT as usize;
        let total: f32 = bytemuck::pod_read_unaligned(&bytes[at..at + 4]);
        let report = match &tally {
            None => self.objective.report(f64::from(total), labels),
            Some(tally) => Objective::report_of(tally),
        };
        let applied = state.finite == 1.0 && report.loss.is_finite();
        Ok(Some(StepResult { step, report, grad_norm: state.norm, applied, labels, tokens }))
    }

    /// Forward and backward over the micro-batches from zeroed gradients, which are left on the device.
    ///
    /// # Errors
    /// Micro-batches without a label, a micro-batch larger than planned, or a failing device.
    pub async fn accumulate(&mut self, micro_batches: &[MicroBatch], seed: u64) -> Result<()> {
        self.accumulate_watched(micro_batches, seed, |_| ()).await
    }

    async fn accumulate_watched(
        &mut self,
        micro_batches: &[MicroBatch],
        seed: u64,
        mut progress: impl FnMut(usize),
    ) -> Result<()> {
        let Some(scale) = self.objective.step_scale(micro_batches) else {
            return Err(Error::Training("a batch has no trained token; every label is masked".to_owned()));
        };
        self.tally = Tally::default();
        self.gpu.replay(&self.begin, &mut self.buffers, self.profile.as_mut()).await?;
        let share = self.share(micro_batches.len());
        for (i, batch) in micro_batches.iter().enumerate().take(share.end).skip(share.start) {
            progress(i);
            let seed =
                crate::random::bits(seed, crate::random::Stream::Dropout, self.submitted as u64, i as u64) as u32;
            let noise = noise_size(self.plan.neftune_alpha, batch, self.plan.shared.network.config.hidden_size);
            let draws = [seed, noise.to_bits()];
            self.gpu.write(&self.buffers, self.plan.optimizer.dropout_seed, bytemuck::cast_slice(&draws));
            self.pass(batch, Some(scale)).await?;
        }
        Ok(())
    }

    /// Sums over the preferences of the last [`Self::accumulate`].
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The sums of the losses of a micro-batch, that of the objective and that by the labels alone, without gradients; waits for the
    /// device.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    pub async fn both_losses(&mut self, batch: &MicroBatch) -> Result<[f64; 2]> {
        let Some(teacher) = self.plan.head.teacher.filter(|_| self.objective.has_label_losses()) else {
            let loss = self.evaluate([batch]).await?.0;
            return Ok([loss, loss]);
        };
        (self.pace, self.finished_work) = (None, 0);
        let losses = self.losses(batch, PassPart::Evaluation).await?;
        self.work = 0;
        if losses.is_empty() {
            return Ok([0.0; 2]);
        }
        let padded = round_up(losses.len() as u32, LABEL_CLASS);
        let view = teacher.label_losses.slice(0, 4 * u64::from(padded));
        let by_labels = self.gpu.read_f32(&self.buffers, view).await?;
        let sum = |values: &[f32]| values.iter().map(|loss| f64::from(*loss)).sum();
        Ok([sum(&losses), sum(&by_labels[..losses.len()])])
    }

    /// Gives `take` the logits of a micro-batch's labels in their order, some rows at a time: the values, and the number of values of a
    /// row, of which those beyond the vocabulary are padding.
    ///
    /// # Errors
    /// A micro-batch larger than planned, a failing device, or an error of `take`.
    pub async fn label_logits(
        &mut self,
        batch: &MicroBatch,
        mut take: impl FnMut(&[f32], usize) -> Result<()>,
    ) -> Result<()> {
        let labels = batch.labels.len() as u32;
        let (rows, padded) = self.plan.class(batch.tokens.len(), batch.labels.len());
        self.check_rows(batch)?;
        self.upload(batch, &self.objective.head_rows(batch, 1.0), rows as usize, padded as usize)?;
        self.gpu.run(&self.begin, &mut self.buffers)?;
        let uniforms = self.plan.shared.uniforms[0];
        let states = self.plan.record_label_states(rows, padded);
        let list = self.gpu.prepare(&states.commands, &self.buffers, uniforms)?;
        self.gpu.run(&list, &mut self.buffers)?;
        let mut first = 0;
        while first < labels {
            let (rec, logits) = self.plan.record_label_logits(first, padded);
            let list = self.gpu.prepare(&rec.commands, &self.buffers, uniforms)?;
            self.gpu.run(&list, &mut self.buffers)?;
            let values = self.gpu.read_f32(&self.buffers, logits.view).await?;
            let (taken, ld) = (logits.rows.min(labels - first), logits.ld as usize);
            take(&values[..taken as usize * ld], ld)?;
            first += logits.rows;
        }
        Ok(())
    }

    /// Sum of losses and count of labels over micro-batches, without gradients; waits for the device.
    ///
    /// # Errors
    /// A micro-batch larger than planned, or a failing device.
    pub async fn evaluate<'a>(
        &mut self,
        micro_batches: impl IntoIterator<Item = &'a MicroBatch>,
    ) -> Result<(f64, usize)> {
        let (mut sum, mut count) = (0.0, 0);
        (self.pace, self.finished_work) = (None, 0);
        for batch in micro_batches {
            // One sum per micro-batch: an f32 total over a whole data set would lose digits.
            self.gpu.run(&self.begin, &mut self.buffers)?;
            self.pass(batch, None).await?;
            let metrics = self.gpu.read_f32(&self.buffers, self.plan.optimizer.metrics).await?;
            sum += f64::from(metrics[TOTAL_LOSS_AT as usize / 4]);
            count += batch.labels.len();
        }
        self.work = 0;
        Ok((sum, count))
    }

    /// The log-probabilities of the answers of each preference, the sums over the tokens of both: of the model with its adapter, or of
    /// the base alone.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    pub async fn answer_logps(&mut self, batch: &MicroBatch, with_adapter: bool) -> Result<Vec<[f64; 2]>> {
        let part = if with_adapter { PassPart::Evaluation } else { PassPart::Base };
        let losses = self.losses(batch, part).await?;
        self.work = 0;
        let sums = |answers: &Answers| [0, 1].map(|at| sum_of_logps(batch, &answers.labels[at], &losses));
        Ok(batch.answers.iter().map(sums).collect())
    }

    /// Sums over the preferences of a micro-batch, without gradients; waits for the device.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    pub async fn compare(&mut self, batch: &MicroBatch, preference: Preference) -> Result<Tally> {
        (self.pace, self.finished_work) = (None, 0);
        let losses = self.losses(batch, PassPart::Evaluation).await?;
        self.work = 0;
        Ok(preference.weigh(batch, &losses, 1.0).1)
    }

    /// Cross-entropy of each label of a micro-batch, from a forward pass that ends with the losses.
    async fn losses(&mut self, batch: &MicroBatch, part: PassPart) -> Result<Vec<f32>> {
        if part == PassPart::Evaluation {
            // The factors that follow from the adapter are those of now.
            self.gpu.run(&self.begin, &mut self.buffers)?;
        }
        let head_rows = self.objective.head_rows(batch, 1.0);
        self.run_part(batch, Some(&head_rows), part).await?;
        let labels = batch.labels.len();
        if labels == 0 {
            return Ok(Vec::new());
        }
        let losses = self.plan.head.losses.slice(0, 4 * u64::from(round_up(labels as u32, LABEL_CLASS)));
        let mut losses = self.gpu.read_f32(&self.buffers, losses).await?;
        losses.truncate(labels);
        Ok(losses)
    }

    /// Runs the lists of one micro-batch: with the `scale` of the step's losses forward and backward, else forward alone.
    async fn pass(&mut self, batch: &MicroBatch, scale: Option<f32>) -> Result<()> {
        if let (Some(preference), Some(scale)) = (self.objective.preference(), scale) {
            let losses = self.losses(batch, PassPart::Forward).await?;
            let (weights, tally) = preference.weigh(batch, &losses, f64::from(scale));
            self.tally.merge(&tally);
            let (_, labels) = self.plan.class(batch.tokens.len(), batch.labels.len());
            self.write_weights(&weights, labels as usize);
            return self.run_part(batch, None, PassPart::Backward).await;
        }
        let head_rows = self.objective.head_rows(batch, scale.unwrap_or(1.0));
        let part = if scale.is_some() { PassPart::Training } else { PassPart::Evaluation };
        self.run_part(batch, Some(&head_rows), part).await
    }

    /// Runs the list of a part of a pass, after the upload of the micro-batch where `upload` has its rows with a label.
    async fn run_part(&mut self, batch: &MicroBatch, upload: Option<&HeadRows<'_>>, part: PassPart) -> Result<()> {
        let (rows, labels) = self.plan.class(batch.tokens.len(), batch.labels.len());
        self.check_rows(batch)?;
        if let Some(head_rows) = upload {
            self.upload(batch, head_rows, rows as usize, labels as usize)?;
        }
        let list = self.passes.get_or_prepare((rows, labels, part), || {
            let rec = self.plan.record_part(rows, labels, part);
            self.gpu.prepare(&rec.commands, &self.buffers, self.plan.shared.uniforms[0])
        })?;
        self.work += list.work();
        Ok(self.gpu.replay(list, &mut self.buffers, self.profile.as_mut()).await?)
    }

    fn check_rows(&self, batch: &MicroBatch) -> Result<()> {
        if batch.tokens.len() > self.plan.max_rows as usize {
            let problem = format!("a micro-batch has {} rows, planned are {}", batch.tokens.len(), self.plan.max_rows);
            return Err(Error::Argument(problem));
        }
        Ok(())
    }

    /// Uploads a micro-batch. The list may have more rows than the batch: these hold token 0, attend to themselves
    /// alone, and have no label.
    fn upload(&self, batch: &MicroBatch, head: &HeadRows<'_>, rows: usize, labels: usize) -> Result<()> {
        let real = batch.tokens.len();
        let padded = |values: &[u32], len: usize, fill: u32| -> Vec<u32> {
            values.iter().copied().chain(std::iter::repeat(fill)).take(len).collect()
        };
        let write = |view, words: Vec<u32>| self.gpu.write(&self.buffers, view, bytemuck::cast_slice(&words));
        let inputs = &self.plan.shared.inputs;
        write(inputs.tokens, padded(&batch.tokens, rows, 0));
        write(inputs.positions, padded(&batch.positions, rows, 0));
        self.plan.parameters.adapter.write_inputs(&self.gpu, &self.buffers, &padded(&batch.tokens, rows, 0));
        if let Some(trained) = &self.plan.parameters.base {
            let tokens = padded(&batch.tokens, rows, 0);
            let mut order: Vec<u32> = (0..rows as u32).collect();
            order.sort_by_key(|row| tokens[*row as usize]);
            write(trained.row_order, order);
        }
        for ranges in &inputs.windows {
            let window = ranges.window.unwrap_or(usize::MAX);
            let segment = |row: usize| match batch.segment_start.get(row).zip(batch.segment_end.get(row)) {
                Some((start, end)) if row < real => (*start as usize, *end as usize),
                _ => (row, row + 1),
            };
            let keys = |row| [segment(row).0.max((row + 1usize).saturating_sub(window)) as u32, row as u32 + 1];
            let queries = |row: usize| [row as u32, segment(row).1.min(row.saturating_add(window)) as u32];
            write(ranges.keys, (0..rows).flat_map(keys).collect());
            write(ranges.queries, (0..rows).flat_map(queries).collect());
        }
        let none = crate::ops::cross_entropy::NO_ROW;
        write(self.plan.head.label_rows, padded(head.rows, labels, none));
        write(self.plan.head.labels, padded(head.labels, labels, none));
        self.write_weights(&head.weights, labels);
        if let Some(buffers) = &self.plan.head.teacher {
            let (top_k, teacher) = (buffers.distillation.top_k as usize, &batch.teacher);
            if [teacher.ids.len(), teacher.probabilities.len()] != [top_k * batch.labels.len(); 2] {
                let problem = format!(
                    "a micro-batch has {} tokens of the teacher for {} labels, planned are {top_k} for each",
                    teacher.ids.len(),
                    batch.labels.len()
                );
                return Err(Error::Argument(problem));
            }
            write(buffers.ids, padded(&teacher.ids, top_k * labels, none));
            let mut probabilities = teacher.probabilities.clone();
            probabilities.resize(top_k * labels, 0.0);
            self.gpu.write(&self.buffers, buffers.probabilities, bytemuck::cast_slice(&probabilities));
        }
        match &self.layer_rows {
            Some(of) => of.upload(&self.gpu, &self.buffers, inputs, &padded(&batch.tokens, rows, 0)),
            None => Ok(()),
        }
    }

    /// Uploads the weight of each label's loss; a list of `labels` has 0 for those beyond.
    fn write_weights(&self, weights: &[f32], labels: usize) {
        let padded: Vec<f32> = weights.iter().copied().chain(std::iter::repeat(0.0)).take(labels).collect();
        self.gpu.write(&self.buffers, self.plan.head.label_weights, bytemuck::cast_slice(&padded));
    }

    /// Logits `[rows, vocabulary]` of the batch's rows, for comparisons; the batch must fit into one chunk of the head.
    ///
    /// # Errors
    /// Out of memory, or a failing device.
    pub async fn logits(&mut self, batch: &MicroBatch) -> Result<Vec<f32>> {
        let rows = batch.tokens.len();
        self.upload(batch, &self.objective.head_rows(batch, 1.0), rows, 0)?;
        // The adapter may be newer than the last step.
        self.gpu.run(&self.begin, &mut self.buffers)?;
        let (rec, logits) = self.plan.record_logits(rows as u32);
        let list = self.gpu.prepare(&rec.commands, &self.buffers, self.plan.shared.uniforms[0])?;
        self.gpu.run(&list, &mut self.buffers)?;
        let values = self.gpu.read_f32(&self.buffers, logits.view).await?;
        let (ld, cols) = (logits.ld as usize, logits.cols as usize);
        Ok(values.chunks(ld).flat_map(|row| row[..cols].to_vec()).collect())
    }
}

/// The moments of a range on their way to the first rank: on that one, those of the owner; of no use on the others.
async fn pass_moments(
    gpu: &Gpu,
    buffers: &Buffers,
    group: &mut Group,
    range: &TrainedRange,
) -> Result<[HostMoment; 2]> {
    let own = match range.moments.are_here() {
        true => Some(range.moments.read(gpu, buffers).await?),
        false => None,
    };
    let storage = range.moments.storage();
    let mut bytes = Vec::new();
    if range.owner > 0 {
        let sent = own.as_ref().map_or(Vec::new(), HostMoment::to_bytes);
        for at in (0..storage.bytes(range.params.bytes) as usize).step_by(MOST_MOMENT_BYTES) {
            let end = sent.len().min(at + MOST_MOMENT_BYTES);
            let of_ranks = group.gather_bytes(sent.get(at..end).unwrap_or_default())?;
            of_ranks.get(range.owner).into_iter().for_each(|part| bytes.extend_from_slice(part));
        }
    }
    Ok(own.unwrap_or_else(|| HostMoment::from_bytes(storage, &bytes)))
}

/// The largest value of NEFTune's noise (Jain et al. 2023), `alpha / sqrt(L hidden)`, where L is the longest sequence of the micro-batch:
/// transformers pads the others to it.
fn noise_size(alpha: f32, batch: &MicroBatch, hidden: usize) -> f32 {
    let ends = batch.segment_end.iter().zip(&batch.segment_start);
    let longest = ends.map(|(end, start)| end - start).max().unwrap_or(1);
    (f64::from(alpha) / (f64::from(longest) * hidden as f64).sqrt()) as f32
}
