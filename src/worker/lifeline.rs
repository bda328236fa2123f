//! The worker's lifeline: it says ready, then beats, and its end is the master's.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixDatagram;
use tokio::time::MissedTickBehavior;

use crate::config::HEARTBEAT;
use crate::protocol::codec;
use crate::protocol::lifeline::{FromWorker, ToWorker};

/// What the master tells a worker is a few bytes.
const TOLD_BYTES_MAX: usize = 64;

pub(super) struct Lifeline {
    /// A sequenced-packet socket, which is read and written like a datagram one.
    socket: UnixDatagram,
}

impl Lifeline {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: UnixDatagram::from_std(fd.into())? })
    }

    /// Tells the master that the event loop runs, and goes on telling it. While the master does
    /// not read, this waits for it, and nothing else does.
    pub(super) async fn beat(&self, tasks_done: &Cell<u64>) {
        self.say(&FromWorker::Ready).await;
        let mut beats = tokio::time::interval(HEARTBEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            self.say(&FromWorker::Beat { tasks_done: tasks_done.get() }).await;
        }
    }

    async fn say(&self, message: &FromWorker) {
        let sent = match codec::encode(message) {
            Ok(packet) => self.socket.send(&packet).await,
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = sent {
            tracing::debug!("cannot tell the master: {error}");
        }
    }

    /// Heeds the master until its end, which no worker outlives.
    pub(super) async fn heed(&self) {
        let mut packet = [0; TOLD_BYTES_MAX];
        while let Ok(bytes @ 1..) = self.socket.recv(&mut packet).await {
            match codec::decode(&packet[..bytes]) {
                Ok(ToWorker::ReopenLog) => crate::master::reopen_log(),
                Err(error) => tracing::error!("the master says what is no message: {error}"),
            }
        }
    }
}
