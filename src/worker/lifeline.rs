//! The worker's lifeline: it says ready, and its end is the master's.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixDatagram;

use crate::protocol::codec;
use crate::protocol::lifeline::FromWorker;

pub(super) struct Lifeline {
    /// A sequenced-packet socket, which is read and written like a datagram one.
    socket: UnixDatagram,
}

impl Lifeline {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: UnixDatagram::from_std(fd.into())? })
    }

    /// Tells the master that the event loop runs. The packet fits: it is the first.
    pub(super) async fn ready(&self) {
        let sent = match codec::encode(&FromWorker::Ready) {
            Ok(packet) => self.socket.send(&packet).await,
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = sent {
            tracing::error!("cannot tell the master: {error}");
        }
    }

    /// Waits for the master's end, which no worker outlives.
    pub(super) async fn ended(&self) {
        let mut packet = [0; 64];
        while !matches!(self.socket.recv(&mut packet).await, Ok(0) | Err(_)) {}
    }
}
