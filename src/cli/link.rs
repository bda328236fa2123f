//! One connection to a broker: frames out, frames in, and what can go wrong with it.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use interprocess::local_socket::traits::Stream as _;
use interprocess::local_socket::{GenericFilePath, Stream, ToFsName};
use serde::Deserialize;

use crate::instance::{Instance, SocketPath};
use crate::protocol::control::{CONTROL_PROTOCOL, Hello, Reply, Request};
use crate::protocol::frame::{put_frame, take_frame};

/// A hello is small whoever speaks it.
const HELLO_BYTES_MAX: usize = 64 << 10;
/// A reply may carry several inputs and outputs; this is far over what a broker puts in one.
const REPLY_BYTES_MAX: usize = 1 << 30;
/// How much is read at once.
const READ_BYTES: usize = 64 << 10;

/// Why a connection does not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nobody listens.
    #[error("nobody listens: {0}")]
    Absent(io::Error),
    /// Somebody listens, and we may not connect.
    #[error("not allowed to connect: {0}")]
    Forbidden(io::Error),
    /// The connection ended: the broker died, or dropped us.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// The deadline passed.
    #[error("no answer in time")]
    TimedOut,
    /// What answers is no forq, or one that we do not understand.
    #[error("{0}")]
    Foreign(String),
}

/// One connection, past its hello.
pub(crate) struct Link {
    wire: Wire,
    outgoing: Vec<u8>,
    hello: Hello,
}

impl Link {
    /// Connects, and waits until `deadline` for the broker's hello. While no broker accepts,
    /// the connection waits in the master's backlog.
    pub(crate) fn open(instance: &Instance, deadline: Option<Instant>) -> Result<Self, LinkError> {
        let socket = SocketPath::of(&instance.control_socket).map_err(connect_error)?;
        let name = socket.as_path().to_fs_name::<GenericFilePath>().map_err(connect_error)?;
        let mut wire = Wire::new(Stream::connect(name).map_err(connect_error)?);
        let hello = read_hello(&wire.next_frame(HELLO_BYTES_MAX, deadline)?)?;
        Ok(Self { wire, outgoing: Vec::new(), hello })
    }

    /// What the broker said first.
    pub(crate) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Sends a request. Several may be sent before their replies are read.
    pub(crate) fn send(&mut self, request: &Request) -> Result<(), LinkError> {
        self.outgoing.clear();
        put_frame(&mut self.outgoing, |out| serde_json::to_writer(out, request))
            .map_err(|error| LinkError::Foreign(format!("a request is not JSON: {error}")))?;
        self.wire.stream.write_all(&self.outgoing).map_err(LinkError::Broken)
    }

    /// The next reply, waited for until `deadline`.
    pub(crate) fn next_reply(&mut self, deadline: Option<Instant>) -> Result<Reply, LinkError> {
        let frame = self.wire.next_frame(REPLY_BYTES_MAX, deadline)?;
        serde_json::from_slice(&frame)
            .map_err(|error| LinkError::Foreign(format!("the daemon's reply is unknown: {error}")))
    }
}

/// The reading end: bytes in, whole frames out.
struct Wire {
    stream: Stream,
    incoming: BytesMut,
    chunk: Vec<u8>,
    // Whether the stream has a receive timeout, so that most reads need no second system call.
    is_armed: bool,
}

impl Wire {
    fn new(stream: Stream) -> Self {
        Self { stream, incoming: BytesMut::new(), chunk: vec![0; READ_BYTES], is_armed: false }
    }

    fn next_frame(
        &mut self,
        limit_bytes: usize,
        deadline: Option<Instant>,
    ) -> Result<Bytes, LinkError> {
        loop {
            if let Some(frame) = take_frame(&mut self.incoming, limit_bytes)
                .map_err(|error| LinkError::Foreign(format!("not a forq daemon: {error}")))?
            {
                return Ok(frame);
            }
            self.arm(deadline)?;
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return Err(LinkError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.incoming.extend_from_slice(&self.chunk[..count]),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Err(LinkError::TimedOut);
                    }
                    _ => return Err(LinkError::Broken(error)),
                },
            }
        }
    }

    /// Gives the next read as long as `deadline` leaves it.
    fn arm(&mut self, deadline: Option<Instant>) -> Result<(), LinkError> {
        let timeout = match deadline {
            None if !self.is_armed => return Ok(()),
            None => None,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(LinkError::TimedOut);
                }
                // The kernel counts in microseconds, and takes 0 for "for ever".
                Some(left.max(Duration::from_millis(1)))
            }
        };
        self.is_armed = timeout.is_some();
        self.stream.set_recv_timeout(timeout).map_err(LinkError::Broken)
    }
}

fn connect_error(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotADirectory => LinkError::Absent(error),
        io::ErrorKind::PermissionDenied => LinkError::Forbidden(error),
        _ => LinkError::Broken(error),
    }
}

fn read_hello(frame: &[u8]) -> Result<Hello, LinkError> {
    /// All that every version says.
    #[derive(Deserialize)]
    struct AnyHello {
        forq_protocol: u32,
        #[serde(default)]
        version: String,
    }
    let foreign = |error| LinkError::Foreign(format!("what answers is not a forq daemon: {error}"));
    let any: AnyHello = serde_json::from_slice(frame).map_err(foreign)?;
    if any.forq_protocol != CONTROL_PROTOCOL {
        return Err(LinkError::Foreign(format!(
            "the daemon is forq {} and speaks protocol {}, this is forq {} and speaks protocol \
             {CONTROL_PROTOCOL}: use the daemon's own forq, or restart the daemon with this one",
            any.version,
            any.forq_protocol,
            env!("CARGO_PKG_VERSION"),
        )));
    }
    serde_json::from_slice(frame).map_err(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_of_another_protocol_is_refused_with_both_versions() {
        let error = read_hello(br#"{"forq_protocol":99,"version":"9.9.9"}"#).unwrap_err();
        let message = error.to_string();
        for part in ["9.9.9", "protocol 99", env!("CARGO_PKG_VERSION"), "protocol 1", "restart"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
    }

    #[test]
    fn garbage_is_no_hello() {
        for frame in [&b"HTTP/1.1 400"[..], b"{}", b""] {
            assert!(matches!(read_hello(frame), Err(LinkError::Foreign(_))));
        }
    }
}
