//! One client's connection: its requests to the loop, the loop's replies to it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_local;

use super::Input;
use super::framed::{Frames, ReadError};
use super::outbox::Outbox;
use crate::protocol::control::{CONTROL_PROTOCOL, Hello, Refusal, RefusalKind, Reply, Request};
use crate::protocol::frame::FRAME_OVERHEAD_BYTES;

/// Clients at once; one more is refused.
pub(crate) const CLIENTS_MAX: usize = 4096;
/// Requests of one connection that are worked on at once; more wait in its socket.
const REQUESTS_MAX: usize = 8;
/// Waiting replies after which a client is too slow to keep.
const CLIENT_OUTBOX_BYTES_MAX: usize = 64 << 20;

/// Where the replies of one request go. Its last clone gives the request's place free.
#[derive(Clone)]
pub(crate) struct ReplyTo {
    pub(crate) client: u64,
    outbox: Outbox,
    _place: Rc<OwnedSemaphorePermit>,
}

impl ReplyTo {
    /// Sends one reply.
    pub(crate) fn send(&self, reply: &Reply) {
        if self.outbox.len() > CLIENT_OUTBOX_BYTES_MAX {
            tracing::warn!("client {} reads too slowly: let go", self.client);
            self.outbox.abort();
        }
        if !self.outbox.is_closed() {
            self.outbox.put_json(reply);
        }
    }

    /// Refuses the request.
    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.send(&Reply::Error(refusal));
    }

    /// Whether nobody is there to read a reply.
    pub(crate) fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }
}

/// Takes connections until the process ends.
pub(crate) async fn accept(
    listener: UnixListener,
    inputs: UnboundedSender<Input>,
    input_bytes_max: Rc<Cell<u64>>,
) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    for client in 1.. {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: those who are there must go first.
                tracing::warn!("cannot take a client: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("more than {CLIENTS_MAX} clients: one let go");
            continue;
        };
        let (inputs, bytes_max) = (inputs.clone(), input_bytes_max.get());
        spawn_local(async move {
            serve(stream, client, inputs, bytes_max).await;
            drop(place);
        });
    }
}

async fn serve(
    stream: UnixStream,
    client: u64,
    inputs: UnboundedSender<Input>,
    input_bytes_max: u64,
) {
    let frame_bytes_max = input_bytes_max as usize + FRAME_OVERHEAD_BYTES;
    let (reader, writer) = stream.into_split();
    let outbox = Outbox::default();
    let writing = spawn_local({
        let outbox = outbox.clone();
        async move { outbox.write_to(writer).await }
    });
    outbox.put_json(&Hello {
        forq_protocol: CONTROL_PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        input_bytes_max,
        frame_bytes_max: frame_bytes_max as u64,
    });
    let frames = Frames::new(reader, frame_bytes_max);
    tokio::select! {
        () = read(frames, client, &inputs, &outbox) => {
            outbox.close();
            let _ = inputs.send(Input::ClientGone { client });
            let _ = writing.await;
        }
        () = outbox.aborted() => {
            writing.abort();
            let _ = inputs.send(Input::ClientGone { client });
        }
    }
}

/// Hands over requests until the client has no more.
async fn read(mut frames: Frames, client: u64, inputs: &UnboundedSender<Input>, outbox: &Outbox) {
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let next = frames.next().await;
        let to = ReplyTo { client, outbox: outbox.clone(), _place: Rc::new(place) };
        match next {
            Ok(None) => return,
            Ok(Some(frame)) => match serde_json::from_slice::<Request>(&frame) {
                Ok(request) => drop(inputs.send(Input::Asked { to, request })),
                Err(error) => to.refuse(not_understood(&error)),
            },
            Err(error) => {
                tracing::warn!("client {client} let go: {error}");
                if let ReadError::TooLong(error) = error {
                    to.refuse(Refusal::new(RefusalKind::Invalid, error.to_string()));
                }
                return;
            }
        }
    }
}

fn not_understood(error: &serde_json::Error) -> Refusal {
    let message = format!("not a request of protocol {CONTROL_PROTOCOL}: {error}");
    Refusal::new(RefusalKind::Invalid, message)
}
