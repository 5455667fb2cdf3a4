//! The HTTP server, in a thread of its own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::{self, Stream};
use loraine::serve::answer::Form;
use loraine::serve::refusal::Refusal;
use loraine::serve::request::{self, Asked};
use loraine::serve::service::Service;
use loraine::serve::turns::News;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::device::Job;
use super::guard::Guard;

/// Time between comments that keep a stream open while its prompt is computed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The state that all requests share.
pub struct Shared {
    service: Service,
    guard: Guard,
    jobs: mpsc::Sender<Job>,
    max_body: usize,
    ready: AtomicBool,
    stopping: AtomicBool,
    stop: Notify,
}

type Answered = std::result::Result<Response, Refusal>;
type Reader = fn(&Value, &Service) -> std::result::Result<Asked, Refusal>;

impl Shared {
    pub fn new(service: Service, guard: Guard, jobs: mpsc::Sender<Job>, max_body: usize) -> Self {
        let (ready, stopping, stop) = (AtomicBool::new(false), AtomicBool::new(false), Notify::new());
        Self { service, guard, jobs, max_body, ready, stopping, stop }
    }

    /// The model is loaded.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Takes no further connections and requests.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.stop.notify_one();
    }

    fn available(&self) -> std::result::Result<(), Refusal> {
        match (self.ready.load(Ordering::Relaxed), self.stopping.load(Ordering::Relaxed)) {
            (_, true) => Err(Refusal::unavailable("the server is stopping")),
            (false, false) => Err(Refusal::unavailable("Loading model")),
            (true, false) => Ok(()),
        }
    }
}

/// Starts the server; it ends after [`Shared::stop`], once the last answer is written.
pub fn start(listener: TcpListener, shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.context("the server cannot start")?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener).context("the server cannot start")?
    };
    let serve = move || {
        let app = routes(shared.clone());
        let stopped = async move { shared.stop.notified().await };
        let served = runtime.block_on(axum::serve(listener, app).with_graceful_shutdown(stopped).into_future());
        if let Err(problem) = served {
            eprintln!("error: the server ended: {problem}");
        }
    };
    std::thread::Builder::new().name("http".to_owned()).spawn(serve).context("the server cannot start")
}

fn routes(shared: Arc<Shared>) -> Router {
    let chat = |State(shared): State<Arc<Shared>>, body| answer(shared, body, request::chat);
    let completion = |State(shared): State<Arc<Shared>>, body| answer(shared, body, request::completion);
    let at_once = |handle: fn(&Service, &Value) -> std::result::Result<Value, Refusal>| {
        post(move |State(shared): State<Arc<Shared>>, body| computed(shared, body, handle))
    };
    Router::new()
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .route("/v1/models", get(models))
        .route("/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/completions", post(completion))
        .route("/tokenize", at_once(Service::tokenize))
        .route("/detokenize", at_once(Service::detokenize))
        .route("/lora-adapters", at_once(Service::choose).get(lora_adapters))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(shared.max_body))
        .layer(from_fn_with_state(shared.clone(), guarded))
        .layer(shared.guard.cors())
        .with_state(shared)
}

async fn guarded(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    match shared.guard.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refused(&refusal),
    }
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    shared
        .available()
        .map_or_else(|refusal| refused(&refusal), |()| in_json(StatusCode::OK, &json!({ "status": "ok" })))
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    in_json(StatusCode::OK, &shared.service.models())
}

async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let models = shared.service.models();
    let mut entries = models["data"].as_array().into_iter().flatten();
    match entries.find(|entry| entry["id"] == id.as_str()) {
        Some(entry) => in_json(StatusCode::OK, entry),
        None => refused(&Refusal::new(404, "not_found_error", format!("there is no model `{id}`; see /v1/models"))),
    }
}

async fn lora_adapters(State(shared): State<Arc<Shared>>) -> Response {
    in_json(StatusCode::OK, &shared.service.lora_adapters())
}

async fn unknown(request: Request) -> Response {
    let message = format!("there is no {}; see docs/serve.md for what there is", request.uri().path());
    refused(&Refusal::new(404, "not_found_error", message))
}

async fn wrong_method(request: Request) -> Response {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    refused(&Refusal::new(405, "invalid_request_error", message))
}

fn in_json(status: StatusCode, value: &Value) -> Response {
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind)], Body::from(value.to_string())).into_response()
}

fn refused(refusal: &Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = in_json(status, &refusal.to_json());
    if matches!(refusal.status, 429 | 503) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Parses a body, and computes with it beside the server's thread, which other requests need.
async fn with_body<T: Send + 'static>(
    shared: Arc<Shared>,
    body: std::result::Result<Bytes, BytesRejection>,
    compute: impl FnOnce(&Value, &Service) -> std::result::Result<T, Refusal> + Send + 'static,
) -> std::result::Result<T, Refusal> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the body is larger than {} MiB; see --max-body", shared.max_body >> 20);
            Refusal::new(413, "invalid_request_error", message)
        }
        _ => Refusal::invalid(format!("the body cannot be read: {}", rejection.body_text())),
    })?;
    let work = move || {
        let parsed = serde_json::from_slice(&body);
        let value: Value = parsed.map_err(|problem| Refusal::invalid(format!("the body is not JSON: {problem}")))?;
        compute(&value, &shared.service)
    };
    let failed = |_| Refusal::new(500, "server_error", "the request could not be read");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

async fn computed(
    shared: Arc<Shared>,
    body: std::result::Result<Bytes, BytesRejection>,
    handle: fn(&Service, &Value) -> std::result::Result<Value, Refusal>,
) -> Response {
    match with_body(shared, body, move |value, service| handle(service, value)).await {
        Ok(value) => in_json(StatusCode::OK, &value),
        Err(refusal) => refused(&refusal),
    }
}

async fn answer(shared: Arc<Shared>, body: std::result::Result<Bytes, BytesRejection>, read: Reader) -> Response {
    answered(shared, body, read).await.unwrap_or_else(|refusal| refused(&refusal))
}

async fn answered(shared: Arc<Shared>, body: std::result::Result<Bytes, BytesRejection>, read: Reader) -> Answered {
    shared.available()?;
    let Asked { request, form, stream } = with_body(shared.clone(), body, read).await?;
    let (client, mut news) = unbounded_channel();
    shared.jobs.send(Job { request, client }).map_err(|_| ended())?;
    // Taken, or refused while a status can still say so.
    news.recv().await.unwrap_or_else(|| Err(ended()))?;
    if stream {
        let events = Sse::new(pieces(shared, form, news)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        return Ok(events.into_response());
    }
    let (mut text, mut chances) = (String::new(), Vec::new());
    loop {
        let News { text: piece, chance, end } = news.recv().await.unwrap_or_else(|| Err(ended()))?;
        text += &piece;
        chances.extend(chance);
        if let Some(end) = end {
            return Ok(in_json(StatusCode::OK, &form.whole(&shared.service, &text, &chances, &end)));
        }
    }
}

fn ended() -> Refusal {
    Refusal::unavailable("the server has ended")
}

/// A stream of pieces under way.
struct Pieces {
    shared: Arc<Shared>,
    form: Form,
    news: UnboundedReceiver<std::result::Result<News, Refusal>>,
    ready: VecDeque<String>,
    over: bool,
}

impl Pieces {
    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.over {
            let news = self.news.recv().await.unwrap_or_else(|| Err(ended()));
            match &news {
                Ok(news) => {
                    let pieces = self.form.pieces(&self.shared.service, news);
                    self.ready.extend(pieces.iter().map(Value::to_string));
                    self.over = news.end.is_some();
                }
                Err(refusal) => {
                    self.ready.push_back(refusal.to_json().to_string());
                    self.over = true;
                }
            }
            if self.over {
                self.ready.push_back("[DONE]".to_owned());
            }
        }
        self.ready.pop_front()
    }
}

fn pieces(
    shared: Arc<Shared>,
    form: Form,
    news: UnboundedReceiver<std::result::Result<News, Refusal>>,
) -> impl Stream<Item = std::result::Result<Event, Infallible>> {
    let ready = form.first().iter().map(Value::to_string).collect();
    let pieces = Pieces { shared, form, news, ready, over: false };
    stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.next().await?;
        Some((Ok(Event::default().data(piece)), pieces))
    })
}
