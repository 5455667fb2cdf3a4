//! The work on the device, in the program's main thread.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use loraine::infer::session::Session;
use loraine::serve::refusal::Refusal;
use loraine::serve::turns::{News, Request, Turns};
use loraine::{ErrorKind, Result};
use tokio::sync::mpsc::UnboundedSender;

use crate::cli::interrupt::Interrupt;

/// Where the news of a request go. The client has hung up when it is closed.
pub type Client = UnboundedSender<std::result::Result<News, Refusal>>;

/// A request and its client. The first news, without text, says that the request was taken.
pub struct Job {
    pub request: Request,
    pub client: Client,
}

/// How often an idle server looks for signals.
const IDLE: Duration = Duration::from_millis(50);
/// Time that answers in work have to end after a signal.
const GRACE: Duration = Duration::from_secs(10);

/// Makes answers until a signal arrives; `on_stop` is called at once then. Answers in work go on for a time.
///
/// # Errors
/// The device is lost.
pub fn work(
    session: &mut Session,
    mut turns: Turns,
    jobs: &Receiver<Job>,
    interrupt: &Interrupt,
    on_stop: impl Fn(),
) -> Result<()> {
    let mut clients: BTreeMap<u64, Client> = BTreeMap::new();
    let mut end = None;
    loop {
        if interrupt.asked() && end.is_none() {
            end = Some(Instant::now() + GRACE);
            on_stop();
        }
        while let Some(job) = next_job(jobs, turns.idle() && end.is_none()) {
            take(job, &mut turns, &mut clients);
        }
        if let Some(end) = end {
            refuse(turns.refuse_waiting(), &mut clients);
            if turns.idle() || Instant::now() >= end {
                refuse(clients.keys().copied().collect(), &mut clients);
                return Ok(());
            }
        }
        clients.retain(|id, client| {
            if client.is_closed() {
                turns.cancel(*id);
            }
            !client.is_closed()
        });
        for (id, news) in pollster::block_on(turns.step(session)) {
            let over = news.as_ref().map_or(true, |news| news.end.is_some());
            if let Some(client) = clients.get(&id) {
                // A client that has just hung up is seen above.
                let _ = client.send(news.as_ref().map(Clone::clone).map_err(Refusal::of));
            }
            if over {
                clients.remove(&id);
            }
            if let Err(error) = news
                && error.kind() == ErrorKind::GpuLost
            {
                return Err(error);
            }
        }
    }
}

/// The next job, if there is one; an idle server waits for a moment.
fn next_job(jobs: &Receiver<Job>, idle: bool) -> Option<Job> {
    match idle {
        true => jobs.recv_timeout(IDLE).ok(),
        false => jobs.try_recv().ok(),
    }
}

fn take(job: Job, turns: &mut Turns, clients: &mut BTreeMap<u64, Client>) {
    if job.client.is_closed() {
        return;
    }
    let answer = match turns.submit(job.request) {
        Some(id) => {
            clients.insert(id, job.client.clone());
            Ok(News::default())
        }
        None => {
            let message = format!("{} requests wait already; try again later", turns.waiting());
            Err(Refusal::new(429, "rate_limit_error", message))
        }
    };
    // A client that has just hung up is canceled in its turn.
    let _ = job.client.send(answer);
}

fn refuse(ids: Vec<u64>, clients: &mut BTreeMap<u64, Client>) {
    for client in ids.into_iter().filter_map(|id| clients.remove(&id)) {
        // It may have hung up.
        let _ = client.send(Err(Refusal::unavailable("the server is stopping")));
    }
}
