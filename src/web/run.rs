//! A training run that a page can start, pause and stop.

use std::cell::{Cell, RefCell};

use futures_channel::oneshot;
use js_sys::Function;
use wasm_bindgen::prelude::*;

use super::report::{PhaseReport, PlanReport, RunEvent, RunOutcome, StepReport};
use super::{errors, from_js, open_gpu, to_js};
use crate::train::event::{Control, Event, Outcome};
use crate::train::prepare::{PreparedRun, prepare};
use crate::train::run::{self, Resume, Start};
use crate::train::settings::RunSettings;
use crate::{Error, Result};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Go,
    Pause,
    /// Saved and waiting for [`Run::resume`].
    Paused,
    Stop,
}

/// One run, which trains once.
#[wasm_bindgen]
pub struct Run {
    prepared: RefCell<Option<PreparedRun>>,
    resume: bool,
    request: Cell<Request>,
    wake: RefCell<Option<oneshot::Sender<()>>>,
    step: Cell<usize>,
}

#[wasm_bindgen]
impl Run {
    /// Reads and checks settings, model and data. With `resume`, the run resumes from the newest checkpoint below `settings.out`.
    #[wasm_bindgen(constructor)]
    pub fn new(
        #[wasm_bindgen(unchecked_param_type = "Partial<RunSettings>")] settings: JsValue,
        resume: bool,
    ) -> Result<Run, JsValue> {
        let mut settings: RunSettings = from_js(&settings, "the settings").map_err(|e| errors::to_js(&e))?;
        if resume {
            settings.follow_recorded_date();
        }
        let prepared = prepare(settings).map_err(|e| errors::to_js(&e))?;
        Ok(Self {
            prepared: RefCell::new(Some(prepared)),
            resume,
            request: Cell::new(Request::Go),
            wake: RefCell::default(),
            step: Cell::new(0),
        })
    }

    /// Trains to the end, or until [`Run::stop`]. Every event goes to `on_event`.
    #[wasm_bindgen(unchecked_return_type = "RunOutcome")]
    pub async fn train(
        &self,
        #[wasm_bindgen(unchecked_param_type = "(event: RunEvent) => void")] on_event: Function,
    ) -> Result<JsValue, JsValue> {
        let outcome = self.run(&on_event).await.map_err(|e| errors::to_js(&e))?;
        to_js(&RunOutcome {
            step: outcome.step,
            interrupted: outcome.interrupted,
            first_eval: outcome.first_eval,
            last_eval: outcome.last_eval,
            warnings: outcome.warnings,
        })
    }

    /// Saves a checkpoint after the current step and waits for [`Run::resume`] or [`Run::stop`].
    pub fn pause(&self) {
        if self.request.get() == Request::Go {
            self.request.set(Request::Pause);
        }
    }

    /// Goes on with a run that [`Run::pause`] has stopped.
    pub fn resume(&self) {
        if self.request.get() != Request::Stop {
            self.set_and_wake(Request::Go);
        }
    }

    /// Saves a checkpoint and the adapter after the current step and ends the run.
    pub fn stop(&self) {
        self.set_and_wake(Request::Stop);
    }
}

/// Sends an event. An exception in the page's listener loses this event, not the run.
fn emit(on_event: &Function, event: RunEvent) {
    let _ = to_js(&event).and_then(|event| on_event.call1(&JsValue::NULL, &event));
}

impl Run {
    fn set_and_wake(&self, request: Request) {
        self.request.set(request);
        if let Some(wake) = self.wake.take() {
            let _ = wake.send(());
        }
    }

    async fn run(&self, on_event: &Function) -> Result<Outcome> {
        let prepared = self.prepared.take();
        let prepared = prepared.ok_or(Error::Busy("this run was started already"))?;
        for hint in prepared.hints() {
            emit(on_event, RunEvent::Warning(hint));
        }
        let gpu = open_gpu().await?;
        let start = Start { overwrite: !self.resume, resume: self.resume.then_some(Resume::Newest), profile: false };
        let layers = prepared.source.config.num_layers;
        let listen = |event: Event<'_>| {
            emit(
                on_event,
                match event {
                    Event::Planned { ledger, kept_layers, trained_parameters, steps, .. } => {
                        RunEvent::Planned(PlanReport {
                            steps: Some(steps),
                            ..PlanReport::of(ledger, trained_parameters, layers, kept_layers)
                        })
                    }
                    Event::Resumed { step, .. } => {
                        self.step.set(step);
                        RunEvent::Resumed { step }
                    }
                    Event::Loading { done, total } => RunEvent::Loading { done, total },
                    Event::Phase(phase) => RunEvent::Phase(PhaseReport::of(phase)),
                    Event::Step { metrics, steps } => RunEvent::Step(StepReport { metrics: metrics.clone(), steps }),
                    Event::Skipped { step } => RunEvent::Skipped { step },
                    Event::DeviceLost { step, reason, checkpoint } => {
                        // A run that starts anew reports no step that it resumed after.
                        self.step.set(0);
                        RunEvent::DeviceLost { step, reason: reason.to_owned(), resumes: checkpoint.is_some() }
                    }
                    Event::Evaluated(metrics) => RunEvent::Evaluated(metrics.clone()),
                    Event::Warning(warning) => RunEvent::Warning(warning.clone()),
                    Event::Saved(path) => RunEvent::Saved { path: path.display().to_string() },
                },
            );
        };
        run::run(prepared, gpu, &start, async || self.control(on_event).await, listen).await
    }

    async fn control(&self, on_event: &Function) -> Control {
        if self.request.get() != Request::Paused {
            self.step.set(self.step.get() + 1);
        }
        match self.request.get() {
            Request::Go => Control::Continue,
            Request::Stop => Control::Stop,
            Request::Pause => {
                self.request.set(Request::Paused);
                Control::Save
            }
            Request::Paused => {
                let (wake, woken) = oneshot::channel();
                self.wake.replace(Some(wake));
                emit(on_event, RunEvent::Paused { step: self.step.get() });
                let _ = woken.await;
                emit(on_event, RunEvent::Continued { step: self.step.get() });
                if self.request.get() == Request::Stop { Control::Stop } else { Control::Continue }
            }
        }
    }
}
