//! `loraine serve`.

mod device;
mod guard;
mod http;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use loraine::infer::text_format::TemplateChoice;
use loraine::serve::service::Service;

use super::args::device::DeviceArgs;
use super::args::session::{self, SessionArgs};
use super::interrupt::{Asking, Interrupt};
use super::show::bytes;
use guard::Guard;
use http::Shared;

/// Default number of positions of each cache, unless the model has fewer.
const DEFAULT_CONTEXT: usize = 4096;
/// Time for the last pieces of answers to reach their clients, once the device has ended its work.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Serve a model and its adapters to programs that speak OpenAI's protocol
#[derive(Args)]
#[command(after_help = "The field `model` of a request names the adapter that answers, or the model itself.

Examples:
  loraine serve --model DIR
  loraine serve --model DIR --adapter pirate=run1 --adapter poet=run2 --port 9000
  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")]
pub struct ServeArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Chat template: a .jinja or .json file, or a name such as chatml [default: the model's own]
    #[arg(long, value_name = "FILE|NAME")]
    chat_template: Option<String>,
    /// Context: maximum tokens of one prompt and its answer [default: 4096, or the model's limit]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Answers that are made at once, each with a cache for a whole context
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// Address to listen on; 0.0.0.0 is reached from other machines
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080, help_heading = "Server")]
    port: u16,
    /// Key that requests must have, as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", env = "LORAINE_API_KEY", hide_env_values = true, help_heading = "Server")]
    api_key: Option<String>,
    /// Web page that may use the server, such as http://localhost:3000, or `*` for all; may be given several times
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    cors: Vec<String>,
    /// Further name of this machine in requests, for instance behind a proxy; may be given several times
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    allow_host: Vec<String>,
    /// Requests that may wait while all answers in work go on; further ones are refused
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Server")]
    max_queue: usize,
    /// Largest request, in MiB
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Server")]
    max_body: u16,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: ServeArgs) -> Result<()> {
    let template = args.chat_template.clone().map_or(TemplateChoice::Own, TemplateChoice::Named);
    let guard = Guard::new(args.host, args.api_key.as_deref(), &args.cors, &args.allow_host)?;
    let mut prepared = args.session.prepare(template, &args.device)?;
    let given = session::checked_context(args.max_context, prepared.config())?;
    let context = given.unwrap_or(DEFAULT_CONTEXT.min(prepared.config().max_position_embeddings));
    prepared.caches = usize::from(args.parallel);
    let listener = listen(SocketAddr::new(args.host, args.port))?;
    let address = listener.local_addr()?;
    let (jobs, received) = mpsc::channel();
    let service = Service::new(&prepared, context);
    let shared = Arc::new(Shared::new(service, guard, jobs, usize::from(args.max_body) << 20));
    let server = http::start(listener, shared.clone())?;

    let mut session = session::open(prepared, context, &args.device)?;
    let interrupt =
        Interrupt::watch(Asking::Every, Some("stopping; answers in work may still end (Ctrl-C leaves at once)"))?;
    shared.set_ready();
    let (gpu, used) = (&session.generator.gpu.adapter.name, bytes(session.generator.plan.ledger().total()));
    eprintln!("{gpu}: {used} for {} answers at once of {context} tokens each", args.parallel);
    if !args.host.is_loopback() && args.api_key.is_none() {
        eprintln!("warning: {} is reached from other machines; --api-key keeps strangers out", args.host);
    }
    out!("listening on http://{address}");
    let turns = loraine::serve::turns::Turns::new(usize::from(args.parallel), args.max_queue);
    device::work(&mut session, turns, &received, &interrupt, || shared.stop())?;
    drop(received);
    let until = Instant::now() + LAST_WRITES;
    while !server.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!("cannot listen on {address}; another program may use the port, choose one with --port")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
