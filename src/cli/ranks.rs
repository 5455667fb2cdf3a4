//! The GPUs that train or evaluate one model: one, several of this computer with a thread each, or those of the processes that `mpirun` has started
//! together.

use std::thread;

use loraine::gpu::{Gpu, TuneOptions};
use loraine::train::evaluate::{EvalResult, PreparedEval};
use loraine::train::event::{Control, Event, Outcome};
use loraine::train::group::{Group, Share};
use loraine::train::prepare::PreparedRun;
#[cfg(feature = "mpi")]
use loraine::train::prepare::prepare;
use loraine::train::run::{self, Start};
#[cfg(feature = "mpi")]
use loraine::train::settings::RunSettings;
use loraine::train::{threads, worker};

#[cfg(feature = "mpi")]
use super::args::device::DeviceArgs;
use super::args::gpu::GpuArgs;
use super::interrupt::{Asking, Ended, Interrupt};
use super::run_view::RunView;

/// The places of a run's GPUs.
pub enum Ranks {
    /// All in this process.
    Threads(Vec<GpuArgs>),
    /// One in each of several processes.
    #[cfg(feature = "mpi")]
    Processes(processes::Processes),
}

/// Number of processes that this one was started with, as Open MPI, MPICH and Slurm tell it.
fn launched() -> Option<usize> {
    let count = |name: &str| std::env::var(name).ok()?.parse().ok();
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"].iter().find_map(|name| count(name)).filter(|size| *size > 1)
}

impl Ranks {
    /// The ranks that this process was started with, or the GPUs that `gpu` lists.
    pub fn of(gpu: &GpuArgs) -> anyhow::Result<Self> {
        let Some(size) = launched() else { return Ok(Self::Threads(gpu.each())) };
        #[cfg(feature = "mpi")]
        {
            let _ = size;
            Ok(Self::Processes(processes::Processes::connect(gpu)?))
        }
        #[cfg(not(feature = "mpi"))]
        anyhow::bail!(
            "{size} processes of this program were started together, but it was built without MPI; build it with `cargo build --release \
             --features mpi`, or use --gpu 0,1 for several GPUs of one computer"
        )
    }

    /// Number of GPUs.
    pub fn count(&self) -> usize {
        match self {
            Self::Threads(gpus) => gpus.len(),
            #[cfg(feature = "mpi")]
            Self::Processes(processes) => processes.mpi.size(),
        }
    }

    /// True in the process that shows and writes.
    pub fn is_first(&self) -> bool {
        match self {
            Self::Threads(_) => true,
            #[cfg(feature = "mpi")]
            Self::Processes(processes) => processes.mpi.rank() == 0,
        }
    }

    /// Opens the GPUs of this process.
    pub fn open(&self, tuning: TuneOptions) -> anyhow::Result<Vec<Gpu>> {
        match self {
            Self::Threads(gpus) => gpus.iter().map(|gpu| gpu.open_tuned(tuning.clone())).collect(),
            #[cfg(feature = "mpi")]
            Self::Processes(processes) => Ok(vec![processes.gpu.open_tuned(tuning)?]),
        }
    }

    /// Trains on all GPUs; `gpus` are those of this process, which is the first.
    pub fn train(
        &self,
        prepared: PreparedRun,
        gpus: Vec<Gpu>,
        share: Share,
        start: &Start,
        view: &mut RunView,
    ) -> anyhow::Result<(Outcome, Option<Ended>)> {
        let mut gpus = gpus.into_iter();
        let Some(first) = gpus.next() else { anyhow::bail!("no GPU was opened") };
        match self {
            Self::Threads(all) if all.len() == 1 => run_shown(prepared, first, None, start, view),
            Self::Threads(_) => {
                let other = |prepared, gpu, group| {
                    let _ = pollster::block_on(worker::work(prepared, gpu, group));
                };
                on_threads(prepared, gpus, other, |prepared, group| {
                    let group = group.map(|group| group.with_share(share));
                    run_shown(prepared, first, group, start, view)
                })
            }
            #[cfg(feature = "mpi")]
            Self::Processes(processes) => {
                let group = Group::new(processes.mpi.transport()).with_share(share);
                run_shown(prepared, first, Some(group), start, view)
            }
        }
    }

    /// Evaluates on all GPUs; `gpus` are those of this process. The first process has the result.
    pub fn evaluate(
        &self,
        prepared: PreparedEval,
        gpus: Vec<Gpu>,
        listen: impl FnMut(Event<'_>),
    ) -> anyhow::Result<Option<EvalResult>> {
        let mut gpus = gpus.into_iter();
        let Some(first) = gpus.next() else { anyhow::bail!("no GPU was opened") };
        let run = |prepared: PreparedEval, group| pollster::block_on(prepared.run(first, group, listen));
        let result = match self {
            Self::Threads(all) if all.len() == 1 => run(prepared, None),
            Self::Threads(_) => {
                let other = |prepared: PreparedEval, gpu, group| {
                    let _ = pollster::block_on(prepared.run(gpu, Some(group), |_| ()));
                };
                on_threads(prepared, gpus, other, run)
            }
            #[cfg(feature = "mpi")]
            Self::Processes(processes) => run(prepared, Some(Group::new(processes.mpi.transport()))),
        };
        Ok(result?)
    }

    /// Works for the first process until its run ends.
    #[cfg(feature = "mpi")]
    pub fn follow(self, settings: RunSettings, device: &DeviceArgs) -> anyhow::Result<()> {
        if let Self::Processes(processes) = &self {
            // The first process stops the run; this one must not end before.
            let _interrupt = Interrupt::watch(Asking::Every, None)?;
            let mut prepared = prepare(settings)?;
            device.cache.apply(&mut prepared.source);
            let gpu = processes.gpu.open_tuned(device.tuning())?;
            pollster::block_on(worker::work(prepared, gpu, Group::new(processes.mpi.transport())))?;
        }
        self.finish();
        Ok(())
    }

    /// Parts from the other processes, after the run.
    pub fn finish(self) {
        match self {
            Self::Threads(_) => {}
            #[cfg(feature = "mpi")]
            Self::Processes(processes) => processes.finish(),
        }
    }
}

/// Gives `prepared` to all GPUs of this process: to `first` with the first place of a group, and to `other` for each of `others`, in a
/// thread of its own.
fn on_threads<P: Clone + Send, T>(
    prepared: P,
    others: impl ExactSizeIterator<Item = Gpu>,
    other: impl Fn(P, Gpu, Group) + Copy + Send,
    first: impl FnOnce(P, Option<Group>) -> T,
) -> T {
    let mut places = threads::connect(others.len() + 1).into_iter();
    let group = places.next().map(Group::new);
    thread::scope(|scope| {
        let spawn = |(gpu, place): (Gpu, threads::Thread)| {
            let prepared = prepared.clone();
            scope.spawn(move || other(prepared, gpu, Group::new(place)))
        };
        let workers: Vec<_> = others.zip(places).map(spawn).collect();
        // An error of a worker ends the first rank too, with the worker's sentence.
        let result = first(prepared, group);
        for worker in workers {
            let _ = worker.join();
        }
        result
    })
}

/// Trains and shows the progress. Ctrl-C finishes the step and saves; the program then ends as if the signal had ended it.
pub fn run_shown(
    prepared: PreparedRun,
    gpu: Gpu,
    group: Option<Group>,
    start: &Start,
    view: &mut RunView,
) -> anyhow::Result<(Outcome, Option<Ended>)> {
    let notice = "stopping after this step and saving; press Ctrl-C again to leave at once";
    let interrupt = Interrupt::watch(Asking::Every, Some(notice))?;
    let control = async || if interrupt.asked() { Control::Stop } else { Control::Continue };
    let listen = |event: Event<'_>| view.show(event);
    let outcome = match group {
        Some(group) => pollster::block_on(run::run_first(prepared, gpu, group, start, control, listen)),
        None => pollster::block_on(run::run(prepared, gpu, start, control, listen)),
    };
    view.finish();
    let outcome = outcome?;
    let ended = outcome.interrupted.then(|| interrupt.ended());
    Ok((outcome, ended))
}

/// Ends all processes that were started together, if this one is among several; after an error was printed.
pub fn leave() {
    #[cfg(feature = "mpi")]
    processes::abort();
}

/// The words before an error of this process.
pub fn whose() -> String {
    #[cfg(feature = "mpi")]
    return processes::whose();
    #[cfg(not(feature = "mpi"))]
    String::new()
}

#[cfg(feature = "mpi")]
mod processes {
    use std::cell::RefCell;
    use std::rc::Rc;

    use anyhow::ensure;
    use loraine::gpu::{adapters, preferred};
    use loraine::train::mpi::Mpi;

    use super::GpuArgs;

    thread_local! {
        /// The connection, for the end of the program after an error.
        static CONNECTED: RefCell<Option<Rc<Mpi>>> = const { RefCell::new(None) };
    }

    /// This process among the others, and its GPU.
    pub struct Processes {
        pub mpi: Rc<Mpi>,
        pub gpu: GpuArgs,
    }

    impl Processes {
        pub fn connect(gpu: &GpuArgs) -> anyhow::Result<Self> {
            let mpi = Rc::new(Mpi::connect()?);
            CONNECTED.set(Some(mpi.clone()));
            let gpu = own_gpu(gpu, mpi.local())?;
            Ok(Self { mpi, gpu })
        }

        pub fn finish(self) {
            CONNECTED.take();
            if let Some(mpi) = Rc::into_inner(self.mpi) {
                mpi.finish();
            }
        }
    }

    /// The GPU of the process `rank` of the `size` on this computer: of the list in `gpu`, or of the most capable GPUs.
    fn own_gpu(gpu: &GpuArgs, [rank, size]: [usize; 2]) -> anyhow::Result<GpuArgs> {
        let listed = gpu.each();
        if listed.len() > 1 {
            ensure!(
                listed.len() >= size,
                "--gpu lists {} GPUs, but {size} processes were started on this computer; list a GPU for each",
                listed.len()
            );
            return Ok(listed[rank].clone());
        }
        if gpu.gpu.is_some() {
            return Ok(gpu.clone());
        }
        let all = pollster::block_on(adapters());
        let Some(best) = preferred(&all).and_then(|index| all.iter().find(|adapter| adapter.index == index)) else {
            return Ok(gpu.clone());
        };
        let alike: Vec<usize> = all
            .iter()
            .filter(|adapter| (adapter.kind, &adapter.backend) == (best.kind, &best.backend))
            .map(|adapter| adapter.index)
            .collect();
        Ok(GpuArgs { gpu: Some(alike[rank % alike.len()].to_string()), ..gpu.clone() })
    }

    pub fn abort() {
        CONNECTED.with_borrow(|connected| {
            if let Some(mpi) = connected {
                mpi.abort();
            }
        });
    }

    pub fn whose() -> String {
        CONNECTED.with_borrow(|connected| match connected {
            Some(mpi) => format!("rank {} ({}): ", mpi.rank(), Mpi::computer()),
            None => String::new(),
        })
    }
}
