//! The master's ends of the lifelines: packets that never make it wait.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::codec;
use crate::protocol::lifeline::TOLD_BYTES_MAX;

/// Packets that wait for a child that does not read. A pool that changes this often without its
/// broker reading a word is a broker to be replaced.
const WAITING_PACKETS_MAX: usize = 4096;

/// A lifeline that was made: the master's end and the child's.
pub(super) fn pair() -> nix::Result<(Lifeline, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (mine, childs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((Lifeline::over(mine), childs))
}

pub(super) struct Lifeline {
    fd: OwnedFd,
    waiting: VecDeque<Vec<u8>>,
    /// The child let go of its end. It may live on for a while.
    is_over: Cell<bool>,
}

impl Lifeline {
    /// The master's end of one, which may have been made by the image before this one.
    pub(super) fn over(fd: OwnedFd) -> Self {
        Self { fd, waiting: VecDeque::new(), is_over: Cell::new(false) }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the child has let go of it. To wait on it would be to spin.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// Whether packets wait for the child to read.
    pub(super) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends a message now or as soon as the child reads.
    pub(super) fn send<T: Serialize>(&mut self, message: &T) {
        match codec::encode(message) {
            Ok(packet) if self.waiting.len() < WAITING_PACKETS_MAX => {
                self.waiting.push_back(packet);
                self.flush();
            }
            Ok(_) => tracing::error!("a child does not read its lifeline: a message is dropped"),
            Err(error) => tracing::error!("a message to a child could not be written: {error}"),
        }
    }

    /// Sends what waits, as far as the child reads.
    pub(super) fn flush(&mut self) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while let Some(packet) = self.waiting.front() {
            match send(self.fd.as_raw_fd(), packet, flags) {
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // Sent, or the child is gone and needs it no more.
                _ => drop(self.waiting.pop_front()),
            }
        }
    }

    /// The next message; `None` if there is none now. What children say is short.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> Option<T> {
        let mut packet = [0; TOLD_BYTES_MAX];
        let bytes = recv(self.fd.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).ok()?;
        self.is_over.set(bytes == 0);
        match codec::decode(packet.get(..bytes).filter(|packet| !packet.is_empty())?) {
            Ok(message) => Some(message),
            Err(error) => {
                tracing::error!("a child says something that is no message: {error}");
                None
            }
        }
    }
}

/// From a child that has no event loop: says one thing to the master.
pub(super) fn say<T: Serialize>(lifeline: &OwnedFd, message: &T) -> std::io::Result<()> {
    let packet = codec::encode(message).map_err(std::io::Error::other)?;
    send(lifeline.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}
