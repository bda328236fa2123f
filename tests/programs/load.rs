//! Chat calls as fast as they are answered, for `scripts/figures-llm`: straight at a server, in a
//! plain loop of reqwest, or at a forq daemon. Prints one line of JSON.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use clap::{Parser, Subcommand};
use forq::protocol::control::{FollowBody, Reply, Request};
use forq::protocol::frame::{put_frame, take_frame};
use forq::task::{NewTask, State, TaskId};
use futures_util::future::try_join_all;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Barrier;

/// That of `forq bench chat`.
const PROMPT: &str = "Say hello in one sentence.";
const REPLY_BYTES_MAX: usize = 16 << 20;

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
    Server { http: reqwest::Client, url: String, body: String },
    Daemon { stream: UnixStream, incoming: BytesMut, input: Box<RawValue>, follow: bool },
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
                Ok(Self::Server { http: http.clone(), url, body: body.to_string() })
            }
            Target::Daemon { socket, follow } => {
                let input = to_raw_value(&json!({ "prompt": load.prompt }))?;
                let mut stream = UnixStream::connect(socket).await?;
                let mut incoming = BytesMut::new();
                next_frame(&mut stream, &mut incoming).await?;
                Ok(Self::Daemon { stream, incoming, input, follow: *follow })
            }
        }
    }

    async fn call(&mut self) -> Result<Took, Failure> {
        let began = Instant::now();
        let first_token = match self {
            Self::Server { http, url, body } => ask_server(http, url, body, began).await?,
            Self::Daemon { stream, incoming, input, follow: true } => {
                follow_task(stream, incoming, input, began).await?
            }
            Self::Daemon { stream, incoming, input, follow: false } => {
                wait_for_task(stream, incoming, input).await?;
                None
            }
        };
        Ok(Took { whole: began.elapsed(), first_token })
    }
}

async fn ask_server(
    http: &reqwest::Client,
    url: &str,
    body: &str,
    began: Instant,
) -> Result<Option<Duration>, Failure> {
    let request = http.post(url).header("content-type", "application/json");
    let mut response = request.body(body.to_owned()).send().await?.error_for_status()?;
    let mut first_token = None;
    while response.chunk().await?.is_some() {
        first_token.get_or_insert_with(|| began.elapsed());
    }
    Ok(first_token)
}

async fn wait_for_task(
    stream: &mut UnixStream,
    incoming: &mut BytesMut,
    input: &RawValue,
) -> Result<(), Failure> {
    submit(stream, input, true).await?;
    loop {
        match next_reply(stream, incoming).await? {
            Reply::Submitted { .. } => {}
            Reply::Finished { tasks } => {
                if let Some(task) = tasks.iter().find(|task| task.state != State::Succeeded) {
                    return Err(format!("{}: {:?}", task.id, task.state).into());
                }
            }
            Reply::End => return Ok(()),
            other => return Err(unexpected(&other)),
        }
    }
}

async fn follow_task(
    stream: &mut UnixStream,
    incoming: &mut BytesMut,
    input: &RawValue,
    began: Instant,
) -> Result<Option<Duration>, Failure> {
    let id = submit(stream, input, false).await?;
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

async fn submit(stream: &mut UnixStream, input: &RawValue, wait: bool) -> Result<TaskId, Failure> {
    let task = NewTask::new("chat", input.to_owned());
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

async fn next_frame(
    stream: &mut UnixStream,
    incoming: &mut BytesMut,
) -> Result<bytes::Bytes, Failure> {
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
    let driven = clients
        .into_iter()
        .map(|client| drive(client, load.rounds, load.in_step, Rc::clone(&barrier)));
    let driven = try_join_all(driven).await?;
    let seconds = driven.iter().map(|(began, _)| began.elapsed()).max().unwrap_or_default();
    let took: Vec<Took> = driven.into_iter().flat_map(|(_, took)| took).collect();
    Ok(json!({
        "calls": took.len(),
        "calls_per_s": took.len() as f64 / seconds.as_secs_f64(),
        "ms": spread(took.iter().map(|took| took.whole).collect()),
        "first_token_ms": spread(took.iter().filter_map(|took| took.first_token).collect()),
    }))
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
