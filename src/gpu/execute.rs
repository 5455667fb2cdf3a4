//! Allocation of planned memory, and execution of recorded lists in few submits, each short enough for a driver's watchdog.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_channel::oneshot::{self, Receiver};
use web_time::Instant;

use super::commands::{Command, Dispatch, PARAMS_STRIDE};
use super::device::{Gpu, Pipeline};
use super::error::GpuError;
use super::memory::{BufferId, Ledger, MemoryPlan, View};
use super::profile::Profile;
use crate::panics::caught;

/// GPU time that one submit may take: well under the 2 s of Windows' watchdog, short enough for a responsive desktop.
const SUBMIT_BUDGET: Duration = Duration::from_millis(100);

/// The most that one read-back takes from the device.
const READ_BYTES: u64 = 4 << 20;

/// A GPU that finishes no submit for so long hangs. Software drivers may take longer.
const HANG_LIMIT: Duration = Duration::from_secs(120);

/// The allocated buffers of a [`MemoryPlan`], with the bytes that they take.
#[derive(Default)]
pub struct Buffers {
    buffers: Vec<wgpu::Buffer>,
    ledger: Ledger,
    /// The list whose parameters each uniform buffer holds.
    params_of: HashMap<BufferId, u64>,
}

impl Buffers {
    /// The bytes that are allocated, by category.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Frees the memory at once. A browser frees that of a dropped buffer only when its garbage is collected.
    pub fn destroy(self) {
        self.buffers.iter().for_each(wgpu::Buffer::destroy);
    }

    fn get(&self, id: BufferId) -> &wgpu::Buffer {
        &self.buffers[id.0 as usize]
    }
}

enum Item {
    Dispatch(ReadyDispatch),
    Copy { from: View, to: View },
    Clear(View),
}

struct ReadyDispatch {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    /// The offset of the dispatch's parameters among those of the list.
    params_at: u32,
    workgroups: [u32; 3],
    work: u64,
    op: &'static str,
}

impl ReadyDispatch {
    fn encode(&self, pass: &mut wgpu::ComputePass, list: &Prepared) {
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.set_bind_group(1, &list.uniform_group, &[self.params_at]);
        pass.dispatch_workgroups(self.workgroups[0], self.workgroups[1], self.workgroups[2]);
    }
}

/// A command list with its pipelines and bind groups. Replaying it creates nothing.
pub struct Prepared {
    id: u64,
    items: Vec<Item>,
    params: Vec<u8>,
    uniform: View,
    uniform_group: wgpu::BindGroup,
}

/// A copy to the host that has been asked for; its staging buffer is busy until [`Gpu::finish_read`].
pub struct PendingRead {
    staging: View,
    submission: wgpu::SubmissionIndex,
    mapped: Receiver<Result<(), wgpu::BufferAsyncError>>,
    /// The result of the copy, once it was asked for and is there.
    outcome: Option<Result<(), wgpu::BufferAsyncError>>,
}

impl Gpu {
    /// Allocates the buffers of `plan` that `buffers` does not have yet.
    ///
    /// # Errors
    /// A buffer over the adapter's limit, or out of memory; both name the buffer.
    pub async fn allocate(&self, plan: &MemoryPlan, buffers: &mut Buffers) -> Result<(), GpuError> {
        for spec in &plan.specs[buffers.buffers.len()..] {
            let allowed = self.capabilities.max_buffer_bytes;
            if spec.bytes > allowed {
                return Err(GpuError::LimitTooSmall {
                    what: spec.label.clone(),
                    limit: "buffer",
                    needed: spec.bytes,
                    allowed,
                });
            }
            let usage = if spec.readback {
                wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST
            } else {
                wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::UNIFORM
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST
            };
            let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
            let descriptor =
                wgpu::BufferDescriptor { label: Some(&spec.label), size: spec.bytes, usage, mapped_at_creation: false };
            let buffer = self.device.create_buffer(&descriptor);
            if scope.pop().await.is_some() {
                let (what, category) = (spec.label.clone(), spec.category);
                return Err(GpuError::OutOfMemory { bytes: spec.bytes, what, category });
            }
            buffers.ledger.add(spec.category, buffer.size());
            buffers.buffers.push(buffer);
        }
        self.check()
    }

    /// Makes the pipelines and bind groups of a list. Its parameters take `uniform` whenever the list runs.
    ///
    /// # Errors
    /// A binding over the adapter's limit, or a kernel that the driver refuses.
    pub fn prepare(&self, commands: &[Command], buffers: &Buffers, uniform: View) -> Result<Prepared, GpuError> {
        let mut params = Vec::new();
        let mut items = Vec::with_capacity(commands.len());
        for command in commands {
            items.push(match command {
                Command::Copy { from, to } => Item::Copy { from: *from, to: *to },
                Command::Clear(view) => Item::Clear(*view),
                Command::Dispatch(dispatch) => {
                    let pipeline = self.pipeline(&dispatch.kernel)?;
                    for view in &dispatch.views {
                        if view.bytes > self.capabilities.max_binding_bytes {
                            return Err(GpuError::LimitTooSmall {
                                what: dispatch.op.to_owned(),
                                limit: "binding",
                                needed: view.bytes,
                                allowed: self.capabilities.max_binding_bytes,
                            });
                        }
                    }
                    let entries: Vec<_> = dispatch
                        .views
                        .iter()
                        .enumerate()
                        .map(|(i, view)| wgpu::BindGroupEntry {
                            binding: i as u32,
                            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                                buffer: buffers.get(view.buffer),
                                offset: view.offset,
                                size: wgpu::BufferSize::new(view.bytes),
                            }),
                        })
                        .collect();
                    let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                        label: Some(dispatch.op),
                        layout: &pipeline.bindings,
                        entries: &entries,
                    });
                    let start = params.len();
                    let params_at = start as u32;
                    params.extend_from_slice(&dispatch.params);
                    params.resize(start + PARAMS_STRIDE as usize, 0);
                    let (workgroups, work, op) = (dispatch.workgroups, dispatch.work, dispatch.op);
                    Item::Dispatch(ReadyDispatch { pipeline, bind_group, params_at, workgroups, work, op })
                }
            });
        }
        assert!(
            params.len() as u64 <= uniform.bytes,
            "the uniform arena holds {} bytes, not {}",
            uniform.bytes,
            params.len()
        );
        let uniform_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("parameters"),
            layout: &self.uniform_layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: buffers.get(uniform.buffer),
                    offset: uniform.offset,
                    size: Self::uniform_size(),
                }),
            }],
        });
        self.check()?;
        Ok(Prepared { id: self.next_list_id(), items, params, uniform, uniform_group })
    }

    /// Compiles the kernels of `commands` that the device has not compiled yet. `progress` is told how many of them are done, and how
    /// many there are.
    ///
    /// A driver may put this work off until a kernel runs for the first time. So each kernel gets a dispatch of no workgroups, which
    /// changes nothing.
    ///
    /// # Errors
    /// As [`Gpu::prepare`], or a failing device.
    pub async fn compile(
        &self,
        commands: &[Command],
        buffers: &mut Buffers,
        uniform: View,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<(), GpuError> {
        let mut seen = HashSet::new();
        let dispatches = commands.iter().filter_map(|command| match command {
            Command::Dispatch(dispatch) => Some(dispatch),
            Command::Copy { .. } | Command::Clear(_) => None,
        });
        let missing: Vec<_> =
            dispatches.filter(|dispatch| seen.insert(&dispatch.kernel) && !self.is_warm(&dispatch.kernel)).collect();
        if !missing.is_empty() {
            // Work of earlier lists is not compilation.
            self.flush().await?;
        }
        for (done, dispatch) in missing.iter().enumerate() {
            progress(done, missing.len());
            let alone = Command::Dispatch(Dispatch { workgroups: [0, 1, 1], ..(*dispatch).clone() });
            let list = self.prepare(&[alone], buffers, uniform)?;
            self.run(&list, buffers)?;
            self.flush().await?;
            self.pipeline(&dispatch.kernel)?.warm.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn upload_params(&self, list: &Prepared, buffers: &mut Buffers) {
        if !list.params.is_empty() && buffers.params_of.insert(list.uniform.buffer, list.id) != Some(list.id) {
            self.queue.write_buffer(buffers.get(list.uniform.buffer), list.uniform.offset, &list.params);
        }
    }

    /// Submits the list. Returns at once; errors of the device show at the next [`Gpu::check`] or read.
    ///
    /// # Errors
    /// The device is gone, or an earlier error of its was not reported yet.
    pub fn run(&self, list: &Prepared, buffers: &mut Buffers) -> Result<(), GpuError> {
        self.upload_params(list, buffers);
        let rate = self.rate.load(Ordering::Relaxed) as f64;
        let budget = (rate * SUBMIT_BUDGET.as_secs_f64()) as u64;
        let mut at = 0;
        while at < list.items.len() {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut spent = 0;
            while at < list.items.len() && (spent == 0 || spent < budget) {
                match &list.items[at] {
                    Item::Dispatch(_) => {
                        let mut pass = encoder.begin_compute_pass(&Default::default());
                        while let Some(Item::Dispatch(dispatch)) = list.items.get(at) {
                            dispatch.encode(&mut pass, list);
                            spent += dispatch.work.max(1);
                            at += 1;
                            if spent >= budget {
                                break;
                            }
                        }
                    }
                    copy => {
                        self.encode_copy(&mut encoder, copy, buffers);
                        at += 1;
                    }
                }
            }
            self.submit(encoder);
        }
        self.check()
    }

    fn submit(&self, encoder: wgpu::CommandEncoder) -> wgpu::SubmissionIndex {
        let commands = encoder.finish();
        let started = Instant::now();
        let submission = self.queue.submit([commands]);
        self.in_submits.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        #[cfg(not(target_arch = "wasm32"))]
        {
            let finished = self.finished.clone();
            self.queue.on_submitted_work_done(move || {
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        submission
    }

    /// Seconds spent in the driver's submits so far. A software adapter runs the commands there.
    pub fn seconds_in_submits(&self) -> f64 {
        self.in_submits.load(Ordering::Relaxed) as f64 * 1e-6
    }

    fn encode_copy(&self, encoder: &mut wgpu::CommandEncoder, item: &Item, buffers: &Buffers) {
        match item {
            Item::Copy { from, to } => encoder.copy_buffer_to_buffer(
                buffers.get(from.buffer),
                from.offset,
                buffers.get(to.buffer),
                to.offset,
                Some(from.bytes),
            ),
            Item::Clear(view) => encoder.clear_buffer(buffers.get(view.buffer), view.offset, Some(view.bytes)),
            Item::Dispatch(_) => {}
        }
    }

    /// Runs the list with one timed pass per dispatch and adds the times to `profile`. Slower than [`Gpu::run`].
    ///
    /// # Errors
    /// A failing device.
    pub async fn run_profiled(
        &self,
        list: &Prepared,
        buffers: &mut Buffers,
        profile: &mut Profile,
    ) -> Result<(), GpuError> {
        const DISPATCHES: usize = 1024;
        self.upload_params(list, buffers);
        let queries = self.timestamps.then(|| self.timestamps_of(2 * DISPATCHES as u32));
        for chunk in list.items.chunks(DISPATCHES) {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut ops = Vec::new();
            for item in chunk {
                let Item::Dispatch(dispatch) = item else {
                    self.encode_copy(&mut encoder, item, buffers);
                    continue;
                };
                let at = 2 * ops.len() as u32;
                let timestamp_writes = queries.as_ref().map(|query_set| wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(at),
                    end_of_pass_write_index: Some(at + 1),
                });
                let started = Instant::now();
                let op = dispatch.op;
                let mut pass =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(op), timestamp_writes });
                dispatch.encode(&mut pass, list);
                drop(pass);
                ops.push(op);
                if queries.is_none() {
                    let full = std::mem::replace(&mut encoder, self.device.create_command_encoder(&Default::default()));
                    self.queue.submit([full.finish()]);
                    self.flush().await?;
                    profile.add(op, started.elapsed().as_secs_f64());
                }
            }
            let Some(queries) = &queries else {
                self.queue.submit([encoder.finish()]);
                continue;
            };
            let times = self.submit_timed(encoder, queries, 2 * ops.len() as u32).await?;
            for (op, time) in ops.iter().zip(times.chunks_exact(2)) {
                profile.add(op, (time[1] - time[0]).max(0.0));
            }
        }
        self.check()
    }

    /// Runs the dispatches of a list in one submit. Returns the seconds from the beginning of the first to the end of the last by the
    /// device's own clock, or None where it has no clock.
    ///
    /// # Errors
    /// A failing device.
    pub async fn time_on_device(&self, list: &Prepared, buffers: &mut Buffers) -> Result<Option<f64>, GpuError> {
        if !self.timestamps {
            return Ok(None);
        }
        self.upload_params(list, buffers);
        let queries = self.timestamps_of(2);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set: &queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        for item in &list.items {
            if let Item::Dispatch(dispatch) = item {
                dispatch.encode(&mut pass, list);
            }
        }
        drop(pass);
        let times = self.submit_timed(encoder, &queries, 2).await?;
        self.check()?;
        Ok(Some((times[1] - times[0]).max(0.0)))
    }

    fn timestamps_of(&self, count: u32) -> wgpu::QuerySet {
        let descriptor = wgpu::QuerySetDescriptor { label: Some("times"), ty: wgpu::QueryType::Timestamp, count };
        self.device.create_query_set(&descriptor)
    }

    /// Submits the commands of `encoder`, and returns the first `count` times of `queries` in seconds from the first of them.
    async fn submit_timed(
        &self,
        mut encoder: wgpu::CommandEncoder,
        queries: &wgpu::QuerySet,
        count: u32,
    ) -> Result<Vec<f64>, GpuError> {
        let bytes = 8 * u64::from(count);
        let resolved = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("times"),
            size: bytes.max(16),
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        if count > 0 {
            encoder.resolve_query_set(queries, 0..count, &resolved, 0);
        }
        self.queue.submit([encoder.finish()]);
        let times = self.read_buffer(&resolved, 0, bytes).await?;
        let times: Vec<u64> =
            times.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default())).collect();
        let nanoseconds = f64::from(self.queue.get_timestamp_period());
        let since = |time: &u64| time.saturating_sub(times[0]) as f64 * nanoseconds * 1e-9;
        Ok(times.iter().map(since).collect())
    }

    /// Writes host data to the start of `view`; it lands before the next submitted list.
    pub fn write(&self, buffers: &Buffers, view: View, data: &[u8]) {
        assert!(data.len() as u64 <= view.bytes, "{} bytes into {view:?}", data.len());
        if !data.is_empty() {
            self.queue.write_buffer(buffers.get(view.buffer), view.offset, data);
        }
    }

    /// Blocks until everything submitted is done. Returns at once in a browser.
    ///
    /// # Errors
    /// A failing device.
    pub fn wait(&self) -> Result<(), GpuError> {
        self.wait_for(None)?;
        self.check()
    }

    /// Blocks until a submission is done, or everything submitted. Returns at once in a browser.
    ///
    /// # Errors
    /// A lost device, or one that finishes nothing for [`HANG_LIMIT`].
    fn wait_for(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<(), GpuError> {
        loop {
            self.check()?;
            let before = self.finished.load(Ordering::Relaxed);
            let kind = wgpu::PollType::Wait { submission_index: submission_index.clone(), timeout: Some(HANG_LIMIT) };
            // wgpu panics where it finds out during a wait that the device is lost.
            match caught(|| self.device.poll(kind)) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(wgpu::PollError::Timeout)) => {
                    let moves = self.finished.load(Ordering::Relaxed) != before;
                    if !moves && !self.capabilities.cpu {
                        // Its end would wait for the GPU, without a limit.
                        std::mem::forget((self.device.clone(), self.queue.clone()));
                        return Err(self.lose(format!("it finished nothing for {} seconds", HANG_LIMIT.as_secs())));
                    }
                }
                Ok(Err(problem)) => return Err(self.lose(problem.to_string())),
                Err(panic) => return Err(self.lose(panic)),
            }
        }
    }

    /// Submits pending writes and waits for everything submitted, so that staging memory is freed.
    ///
    /// # Errors
    /// A failing device.
    pub async fn flush(&self) -> Result<(), GpuError> {
        let (sender, done) = oneshot::channel();
        self.queue.submit([]);
        self.queue.on_submitted_work_done(move || {
            let _ = sender.send(());
        });
        self.wait()?;
        done.await.map_err(|e| self.lose(e.to_string()))?;
        self.check()
    }

    /// Runs the list `times` and returns the seconds from the first submit to the last completion;
    /// also teaches the submit budget how fast this adapter is.
    ///
    /// # Errors
    /// A failing device.
    pub async fn time(&self, list: &Prepared, buffers: &mut Buffers, times: u32) -> Result<f64, GpuError> {
        self.flush().await?;
        let started = Instant::now();
        for _ in 0..times {
            self.run(list, buffers)?;
        }
        self.flush().await?;
        let seconds = started.elapsed().as_secs_f64();
        self.learn_rate(list.work() * u64::from(times), seconds);
        Ok(seconds)
    }

    /// Tells the submit budget that `work` took `seconds`.
    pub fn learn_rate(&self, work: u64, seconds: f64) {
        if work > 0 && seconds > 0.0 {
            let rate = (work as f64 / seconds).clamp(1e8, 1e15);
            self.rate.store(rate as u64, Ordering::Relaxed);
        }
    }

    /// The bytes of `view`, once everything submitted so far is done.
    ///
    /// # Errors
    /// A failing device, or no memory for the copy.
    pub async fn read(&self, buffers: &Buffers, view: View) -> Result<Vec<u8>, GpuError> {
        self.read_buffer(buffers.get(view.buffer), view.offset, view.bytes).await
    }

    /// [`Gpu::read`] as f32 values.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub async fn read_f32(&self, buffers: &Buffers, view: View) -> Result<Vec<f32>, GpuError> {
        let mut values = Vec::with_capacity((view.bytes / 4) as usize);
        let add = |piece: &[u8]| values.extend(piece.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        self.read_pieces(buffers.get(view.buffer), view.offset, view.bytes, add).await?;
        Ok(values)
    }

    async fn read_buffer(&self, buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> Result<Vec<u8>, GpuError> {
        let mut read = Vec::with_capacity(bytes as usize);
        self.read_pieces(buffer, offset, bytes, |piece| read.extend_from_slice(piece)).await?;
        Ok(read)
    }

    /// Gives the bytes of a range of `buffer` to `take`, piece by piece: a browser copies each twice.
    async fn read_pieces(
        &self,
        buffer: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), GpuError> {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read-back"),
            size: bytes.clamp(4, READ_BYTES),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        for start in (0..bytes).step_by(READ_BYTES as usize) {
            let length = READ_BYTES.min(bytes - start);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(buffer, offset + start, &staging, 0, Some(length));
            let submission = self.submit(encoder);
            let mapped = map(&staging, 0, length);
            take(&self.finish_map(&staging, 0, length, mapped, submission).await?);
        }
        Ok(())
    }

    /// Asks for a copy of `from` in `staging`, to be collected later without stalling the queue.
    pub fn begin_read(&self, buffers: &Buffers, from: View, staging: View) -> PendingRead {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let (source, target) = (buffers.get(from.buffer), buffers.get(staging.buffer));
        encoder.copy_buffer_to_buffer(source, from.offset, target, staging.offset, Some(from.bytes));
        let submission = self.submit(encoder);
        let staging = View { bytes: from.bytes, ..staging };
        PendingRead { staging, submission, mapped: map(target, staging.offset, staging.bytes), outcome: None }
    }

    /// True if [`Gpu::finish_read`] would return at once. Does not wait.
    pub fn is_ready(&self, pending: &mut PendingRead) -> bool {
        // An error of the device shows when the read is finished.
        let _ = self.device.poll(wgpu::PollType::Poll);
        if pending.outcome.is_none() {
            pending.outcome = pending.mapped.try_recv().ok().flatten();
        }
        pending.outcome.is_some()
    }

    /// The bytes of a read begun earlier; frees its staging buffer.
    ///
    /// # Errors
    /// A failing device.
    pub async fn finish_read(&self, buffers: &Buffers, pending: PendingRead) -> Result<Vec<u8>, GpuError> {
        let PendingRead { staging, submission, mapped, outcome } = pending;
        let buffer = buffers.get(staging.buffer);
        match outcome {
            Some(outcome) => {
                let known = std::future::ready(Ok(outcome));
                self.finish_map(buffer, staging.offset, staging.bytes, known, submission).await
            }
            None => self.finish_map(buffer, staging.offset, staging.bytes, mapped, submission).await,
        }
    }

    async fn finish_map(
        &self,
        staging: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
        mapped: impl Future<Output = Result<Result<(), wgpu::BufferAsyncError>, oneshot::Canceled>>,
        submission: wgpu::SubmissionIndex,
    ) -> Result<Vec<u8>, GpuError> {
        // Up to the copy and no further: later work stays under way.
        self.wait_for(Some(submission))?;
        let mapped = mapped.await.map_err(|e| e.to_string()).and_then(|mapped| mapped.map_err(|e| e.to_string()));
        if let Err(problem) = mapped {
            self.check()?;
            // A browser may refuse the copy before it says that the device is lost.
            return Err(self.lose(problem));
        }
        let range = staging.get_mapped_range(offset..offset + bytes).map_err(|e| self.lose(e.to_string()))?;
        let data = range.to_vec();
        drop(range);
        staging.unmap();
        self.check()?;
        Ok(data)
    }
}

fn map(staging: &wgpu::Buffer, offset: u64, bytes: u64) -> Receiver<Result<(), wgpu::BufferAsyncError>> {
    let (sender, receiver) = oneshot::channel();
    staging.map_async(wgpu::MapMode::Read, offset..offset + bytes, move |result| {
        let _ = sender.send(result);
    });
    receiver
}

impl Prepared {
    /// Rough multiply-adds of the whole list.
    pub fn work(&self) -> u64 {
        self.items.iter().map(|i| if let Item::Dispatch(dispatch) = i { dispatch.work } else { 0 }).sum()
    }

    /// The number of dispatches.
    pub fn dispatches(&self) -> usize {
        self.items.iter().filter(|i| matches!(i, Item::Dispatch(_))).count()
    }
}
