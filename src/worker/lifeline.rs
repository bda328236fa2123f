//! The worker's lifeline: it says ready, and its end is the master's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::protocol::codec;
use crate::protocol::lifeline::FromWorker;

pub(super) struct Lifeline {
    fd: AsyncFd<OwnedFd>,
}

impl Lifeline {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: AsyncFd::new(fd)? })
    }

    /// Tells the master that the event loop runs. The packet fits: it is the first.
    pub(super) fn ready(&self) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = codec::encode(&FromWorker::Ready)
            .map_err(io::Error::other)
            .and_then(|packet| Ok(send(self.fd.as_raw_fd(), &packet, flags)?));
        if let Err(error) = sent {
            tracing::error!("cannot tell the master: {error}");
        }
    }

    /// Waits for the master's end, which no worker outlives.
    pub(super) async fn ended(&self) {
        let mut packet = [0; 64];
        loop {
            let read = self.fd.async_io(Interest::READABLE, |fd| {
                Ok(recv(fd.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)?)
            });
            if matches!(read.await, Ok(0) | Err(_)) {
                return;
            }
        }
    }
}
