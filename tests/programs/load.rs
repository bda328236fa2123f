//! Calls as fast as they are answered, for `scripts/figures-llm` and `scripts/figures-workflows`:
//! chats straight at a server, in a plain loop of reqwest; tasks of any kind at a forq daemon; posts
//! to a service. So many rounds, or for so many seconds. Prints one line of JSON.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::{Parser, Subcommand};
use forq::protocol::control::{FollowBody, Reply, Request};
use forq::protocol::frame::{put_frame, take_frame};
use forq::task::{NewTask, State, TaskId};
use futures_util::future::{join_all, try_join_all};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Barrier;

/// That of `forq bench chat`.
const PROMPT: &str = "Say hello in one sentence.";
const REPLY_BYTES_MAX: usize = 16 << 20;
/// What refuses at once is not asked as fast as it refuses.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

#[derive(Parser)]
struct Load {
    #[command(subcommand)]
    target: Target,
    /// Calls at once, each by a client with a connection of its own
    #[arg(long, global = true, default_value_t = 1)]
    clients: usize,
    /// Calls of each client, besides a first that is not measured
    #[arg(long, global = true, default_value_t = 1)]
    rounds: usize,
    /// What is said; a longer prompt has a longer answer
    #[arg(long, global = true, default_value = PROMPT)]
    prompt: String,
    /// Begin each round together, when all have the answers of the one before
    #[arg(long, global = true)]
    in_step: bool,
    /// Instead of rounds: as many calls as end within so many seconds. A call that fails is counted
    #[arg(long, global = true, conflicts_with_all = ["rounds", "in_step"])]
    seconds: Option<f64>,
    /// Seconds before these, in which nothing is measured
    #[arg(long, global = true, default_value_t = 0.0)]
    warm: f64,
}

#[derive(Subcommand)]
enum Target {
    /// An OpenAI-compatible server
    Server {
        /// Where its API begins: http://…/v1
        url: String,
    },
    /// A forq daemon
    Daemon {
        /// Its control socket
        socket: PathBuf,
        /// Follow each task, rather than only wait for its end
        #[arg(long)]
        follow: bool,
        /// Kind of the tasks
        #[arg(long, default_value = "chat")]
        kind: String,
        /// A file with their input, if it is not the prompt
        #[arg(long)]
        input: Option<PathBuf>,
    },
    /// Any service, which answers when the work is done
    Post {
        /// Where
        url: String,
        /// A file with the JSON to post
        body: PathBuf,
    },
}

/// What one call took.
struct Took {
    whole: Duration,
    first_token: Option<Duration>,
}

type Failure = Box<dyn Error>;

/// Makes one call after the other.
enum Client {
    Http { http: reqwest::Client, url: String, body: Bytes },
    Daemon { stream: UnixStream, incoming: BytesMut, task: Asked, follow: bool },
}

/// What each task asks for.
struct Asked {
    kind: String,
    input: Box<RawValue>,
}

impl Client {
    async fn new(load: &Load, http: &reqwest::Client) -> Result<Self, Failure> {
        match &load.target {
            Target::Server { url } => {
                // As forq's workers ask.
                let body = json!({
                    "model": "sim-1", "stream": true, "stream_options": { "include_usage": true },
                    "messages": [{ "role": "user", "content": load.prompt }],
                });
                let url = format!("{url}/chat/completions");
                Ok(Self::Http { http: http.clone(), url, body: body.to_string().into() })
            }
            Target::Post { url, body } => {
                let body = std::fs::read(body)?.into();
                Ok(Self::Http { http: http.clone(), url: url.clone(), body })
            }
            Target::Daemon { socket, follow, kind, input } => {
                let input = match input {
                    Some(file) => RawValue::from_string(std::fs::read_to_string(file)?)?,
                    None => to_raw_value(&json!({ "prompt": load.prompt }))?,
                };
                let mut stream = UnixStream::connect(socket).await?;
                let mut incoming = BytesMut::new();
                next_frame(&mut stream, &mut incoming).await?;
                let task = Asked { kind: kind.clone(), input };
                Ok(Self::Daemon { stream, incoming, task, follow: *follow })
            }
        }
    }

    async fn call(&mut self) -> Result<Took, Failure> {
        let began = Instant::now();
        let first_token = match self {
            Self::Http { http, url, body } => post(http, url, body, began).await?,
            Self::Daemon { stream, incoming, task, follow: true } => {
                follow_task(stream, incoming, task, began).await?
            }
            Self::Daemon { stream, incoming, task, follow: false } => {
                wait_for_task(stream, incoming, task).await?;
                None
            }
        };
        Ok(Took { whole: began.elapsed(), first_token })
    }
}

async fn post(
    http: &reqwest::Client,
    url: &str,
    body: &Bytes,
    began: Instant,
) -> Result<Option<Duration>, Failure> {
    let request = http.post(url).header("content-type", "application/json");
    let mut response = request.body(body.clone()).send().await?.error_for_status()?;
    let mut first_token = None;
    while response.chunk().await?.is_some() {
        first_token.get_or_insert_with(|| began.elapsed());
    }
    Ok(first_token)
}

async fn wait_for_task(
    stream: &mut UnixStream,
    incoming: &mut BytesMut,
    task: &Asked,
) -> Result<(), Failure> {
    submit(stream, task, true).await?;
    // The connection is for the next call, too: the answer is read to its end.
    let mut failed = None;
    loop {
        match next_reply(stream, incoming).await? {
            Reply::Submitted { .. } => {}
            Reply::Finished { tasks } => {
                failed = tasks.into_iter().find(|task| task.state != State::Succeeded);
            }
            Reply::End => {
                let failed = failed.map(|task| format!("{}: {:?}", task.id, task.state).into());
                return failed.map_or(Ok(()), Err);
            }
            other => return Err(unexpected(&other)),
        }
    }
}

async fn follow_task(
    stream: &mut UnixStream,
    incoming: &mut BytesMut,
    task: &Asked,
    began: Instant,
) -> Result<Option<Duration>, Failure> {
    let id = submit(stream, task, false).await?;
    // Until it is accepted there is nothing to follow.
    let Reply::Submitted { .. } = next_reply(stream, incoming).await? else {
        return Err("the daemon does not accept the task".into());
    };
    send(stream, &Request::Follow { id, after: None, from: None, all: false }).await?;
    let mut first_token = None;
    loop {
        match next_reply(stream, incoming).await? {
            Reply::Event(event) => match event.body {
                FollowBody::Text { .. } => {
                    first_token.get_or_insert_with(|| began.elapsed());
                }
                FollowBody::Finished { task } if task.state != State::Succeeded => {
                    return Err(format!("{id}: {:?}: {:?}", task.state, task.error).into());
                }
                _ => {}
            },
            Reply::End => return Ok(first_token),
            other => return Err(unexpected(&other)),
        }
    }
}

async fn submit(stream: &mut UnixStream, task: &Asked, wait: bool) -> Result<TaskId, Failure> {
    let task = NewTask::new(&task.kind, task.input.clone());
    let id = task.id;
    let request = Request::Submit { tasks: vec![task], dry_run: false, room_for: 0, wait };
    send(stream, &request).await?;
    Ok(id)
}

async fn send(stream: &mut UnixStream, request: &Request) -> Result<(), Failure> {
    let mut frame = Vec::new();
    put_frame(&mut frame, |out| serde_json::to_writer(out, request))?;
    stream.write_all(&frame).await?;
    Ok(())
}

async fn next_reply(stream: &mut UnixStream, incoming: &mut BytesMut) -> Result<Reply, Failure> {
    Ok(serde_json::from_slice(&next_frame(stream, incoming).await?)?)
}

async fn next_frame(stream: &mut UnixStream, incoming: &mut BytesMut) -> Result<Bytes, Failure> {
    loop {
        if let Some(frame) = take_frame(incoming, REPLY_BYTES_MAX)? {
            return Ok(frame);
        }
        if stream.read_buf(incoming).await? == 0 {
            return Err("the daemon closed the connection".into());
        }
    }
}

fn unexpected(reply: &Reply) -> Failure {
    format!("the daemon says {reply:?}").into()
}

/// When calls are measured: those that end in it are.
#[derive(Clone, Copy)]
struct Window {
    warm: Duration,
    measured: Duration,
}

/// What came of a client's calls.
#[derive(Default)]
struct Came {
    took: Vec<Took>,
    errors: usize,
    first_error: Option<String>,
}

/// Calls until the window is over; the last is given up then.
async fn drive_for(mut client: Client, window: Window, barrier: Rc<Barrier>) -> Came {
    barrier.wait().await;
    let began = Instant::now();
    let end = tokio::time::Instant::from_std(began + window.warm + window.measured);
    let mut came = Came::default();
    while let Ok(called) = tokio::time::timeout_at(end, client.call()).await {
        let is_measured = began.elapsed() >= window.warm;
        match called {
            Ok(took) if is_measured => came.took.push(took),
            Ok(_) => {}
            Err(error) => {
                came.errors += usize::from(is_measured);
                came.first_error.get_or_insert_with(|| error.to_string());
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
    came
}

/// A client's calls, and when the first of them began.
async fn drive(
    mut client: Client,
    rounds: usize,
    in_step: bool,
    barrier: Rc<Barrier>,
) -> Result<(Instant, Vec<Took>), Failure> {
    client.call().await?;
    barrier.wait().await;
    let began = Instant::now();
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        took.push(client.call().await?);
        if in_step {
            barrier.wait().await;
        }
    }
    Ok((began, took))
}

async fn run(load: Load) -> Result<Value, Failure> {
    // An error only means that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().tls_certs_only([]).build()?;
    let clients = try_join_all((0..load.clients).map(|_| Client::new(&load, &http))).await?;
    let barrier = Rc::new(Barrier::new(load.clients));
    if let Some(measured) = load.seconds {
        let measured = Duration::try_from_secs_f64(measured)?;
        let window = Window { warm: Duration::try_from_secs_f64(load.warm)?, measured };
        let driven = clients.into_iter().map(|client| drive_for(client, window, barrier.clone()));
        return Ok(summed(join_all(driven).await, measured));
    }
    let driven = clients
        .into_iter()
        .map(|client| drive(client, load.rounds, load.in_step, Rc::clone(&barrier)));
    let driven = try_join_all(driven).await?;
    let seconds = driven.iter().map(|(began, _)| began.elapsed()).max().unwrap_or_default();
    let took: Vec<Took> = driven.into_iter().flat_map(|(_, took)| took).collect();
    Ok(figures(&took, seconds))
}

/// The figures of all clients, and what went wrong.
fn summed(all: Vec<Came>, measured: Duration) -> Value {
    let errors: usize = all.iter().map(|came| came.errors).sum();
    let first_error = all.iter().find_map(|came| came.first_error.clone());
    let took: Vec<Took> = all.into_iter().flat_map(|came| came.took).collect();
    let mut figures = figures(&took, measured);
    figures["errors"] = errors.into();
    figures["first_error"] = first_error.into();
    figures
}

fn figures(took: &[Took], seconds: Duration) -> Value {
    json!({
        "calls": took.len(),
        "calls_per_s": took.len() as f64 / seconds.as_secs_f64(),
        "ms": spread(took.iter().map(|took| took.whole).collect()),
        "first_token_ms": spread(took.iter().filter_map(|took| took.first_token).collect()),
    })
}

/// Nothing of nothing: a 0 would look like a good figure.
fn spread(mut times: Vec<Duration>) -> Option<Value> {
    times.sort_unstable();
    let ms = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times.get(rank - 1).map(|time| time.as_secs_f64() * 1000.0)
    };
    Some(json!({ "p50": ms(50)?, "p99": ms(99)?, "max": ms(100)? }))
}

fn main() -> ExitCode {
    let load = Load::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let said = match runtime {
        Ok(runtime) => runtime.block_on(run(load)),
        Err(error) => Err(error.into()),
    };
    match said {
        Ok(figures) => match writeln!(std::io::stdout().lock(), "{figures}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "load: {error}");
            ExitCode::FAILURE
        }
    }
}
