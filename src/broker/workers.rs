//! One worker's connection. It is taken only from a pid that the master named.

use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::Input;
use super::framed::Frames;
use super::outbox::Outbox;
use crate::config::INPUT_BYTES_MAX;
use crate::protocol::codec;
use crate::protocol::frame::FRAME_OVERHEAD_BYTES;
use crate::protocol::link::{LINK_PROTOCOL, LINK_PROTOCOL_MIN, ToBroker};

/// How long a connection from an unknown pid is parked: a child may be faster than its name.
const PARKED_MAX: Duration = Duration::from_secs(1);

/// A connection that waits for the master to name its pid.
pub(crate) struct Knock {
    pub(crate) pid: i32,
    /// Answered with the worker's serial.
    pub(crate) admit: oneshot::Sender<u64>,
}

/// Takes connections until the process ends.
pub(crate) async fn accept(listener: UnixListener, inputs: UnboundedSender<Input>) {
    for connection in 1.. {
        match listener.accept().await {
            Ok((stream, _)) => {
                let inputs = inputs.clone();
                spawn_local(serve(stream, connection, inputs));
            }
            Err(error) => {
                tracing::warn!("cannot take a worker: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn speaks(protocol: u32) -> bool {
    (LINK_PROTOCOL_MIN..=LINK_PROTOCOL).contains(&protocol)
}

async fn serve(stream: UnixStream, connection: u64, inputs: UnboundedSender<Input>) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or(0);
    let (admit, admitted) = oneshot::channel();
    let _ = inputs.send(Input::Knocked(Knock { pid, admit }));
    let Ok(Ok(serial)) = timeout(PARKED_MAX, admitted).await else {
        tracing::warn!("pid {pid} on the worker socket is no worker of ours: let go");
        return;
    };
    let (reader, writer) = stream.into_split();
    let frame_bytes_max = INPUT_BYTES_MAX as usize + FRAME_OVERHEAD_BYTES;
    let mut frames = Frames::new(reader, frame_bytes_max);
    let outbox = Outbox::default();
    let writing = spawn_local({
        let outbox = outbox.clone();
        async move { outbox.write_to(writer).await }
    });
    let mut greeted = false;
    loop {
        let frame = match frames.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!("worker {pid} let go: {error}");
                break;
            }
        };
        let message = match codec::decode::<ToBroker>(&frame) {
            Ok(ToBroker::Hello(hello)) if !speaks(hello.protocol) => {
                tracing::warn!("worker {pid} speaks protocol {}: let go", hello.protocol);
                break;
            }
            Ok(ToBroker::Hello(hello)) if !greeted && hello.serial == serial => {
                greeted = true;
                let outbox = outbox.clone();
                Input::WorkerCame { connection, serial, hello, outbox }
            }
            Ok(message) if greeted && !matches!(message, ToBroker::Hello(_)) => {
                Input::WorkerSaid { serial, message }
            }
            Ok(_) => {
                tracing::warn!("worker {pid} does not say hello as it should: let go");
                break;
            }
            Err(error) => {
                tracing::warn!("worker {pid} let go: {error}");
                break;
            }
        };
        let _ = inputs.send(message);
    }
    if greeted {
        let _ = inputs.send(Input::WorkerGone { connection, serial });
    }
    outbox.close();
    writing.abort();
}
