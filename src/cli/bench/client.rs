//! One benchmark client: a connection of its own, tasks out as its pace allows, and the time of
//! every answer.

use std::io;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::books::{Books, Outcome, Plan};
use super::commits::{BareCommits, CommitError};
use crate::instance::SocketPath;
use crate::protocol::control::{CONTROL_PROTOCOL, Hello, Refusal};
use crate::protocol::frame::{TooLong, put_frame, take_frame};

/// Encoded submissions that wait for the socket.
const OUTGOING_BYTES_MAX: usize = 256 << 10;
/// Replies to these requests are ids and states; a batch's worth is far under this.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Why a client gave up.
#[derive(Debug, thiserror::Error)]
pub(super) enum BenchError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the daemon speaks protocol {0}, this forq speaks {CONTROL_PROTOCOL}")]
    Version(u32),
    #[error("the daemon sent what is no reply: {0}")]
    Garbled(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the scratch database failed: {0}")]
    Commit(#[from] CommitError),
}

impl From<TooLong> for BenchError {
    fn from(error: TooLong) -> Self {
        Self::Garbled(error.to_string())
    }
}

impl From<serde_json::Error> for BenchError {
    fn from(error: serde_json::Error) -> Self {
        Self::Garbled(error.to_string())
    }
}

/// A connection that has said hello.
pub(super) struct Client {
    stream: UnixStream,
    incoming: BytesMut,
}

impl Client {
    pub(super) async fn connect(socket: &SocketPath) -> Result<Self, BenchError> {
        let stream = UnixStream::connect(socket.as_path()).await.map_err(BenchError::Connect)?;
        let mut client = Self { stream, incoming: BytesMut::new() };
        let hello: Hello = loop {
            if let Some(frame) = take_frame(&mut client.incoming, REPLY_BYTES_MAX)? {
                break serde_json::from_slice(&frame)?;
            }
            read_some(client.stream.read_buf(&mut client.incoming).await)?;
        };
        if hello.forq_protocol != CONTROL_PROTOCOL {
            return Err(BenchError::Version(hello.forq_protocol));
        }
        Ok(client)
    }

    /// Submits all of `plan` and waits for its end. Reads while it writes: a daemon need not
    /// wait for a client that does not listen. `yardstick` is used before each submission, and
    /// blocks: for a client that is alone.
    pub(super) async fn drive(
        mut self,
        plan: Plan,
        mut yardstick: Option<BareCommits>,
        began: Instant,
    ) -> Result<Outcome, BenchError> {
        let mut books = Books::new(plan, began);
        let mut outgoing = Vec::new();
        let (mut reader, mut writer) = self.stream.split();
        while !books.is_over() {
            while outgoing.len() < OUTGOING_BYTES_MAX && books.may_submit() {
                if let Some(commits) = &mut yardstick {
                    books.note_commits(commits.time_two()?);
                }
                let request = books.next_submission(Instant::now());
                put_frame(&mut outgoing, |out| serde_json::to_writer(out, &request))?;
            }
            let mut unsent = outgoing.as_slice();
            let unsent_bytes = unsent.len();
            tokio::select! {
                read = reader.read_buf(&mut self.incoming) => read_some(read)?,
                wrote = writer.write_buf(&mut unsent), if unsent.has_remaining() => {
                    wrote?;
                }
            }
            let sent_bytes = unsent_bytes - unsent.len();
            outgoing.drain(..sent_bytes);
            let now = Instant::now();
            while let Some(frame) = take_frame(&mut self.incoming, REPLY_BYTES_MAX)? {
                books.take(serde_json::from_slice(&frame)?, now)?;
            }
        }
        Ok(books.close())
    }
}

/// Nothing read is the end of the connection.
fn read_some(read: io::Result<usize>) -> Result<(), BenchError> {
    match read? {
        0 => Err(BenchError::Broken(io::ErrorKind::UnexpectedEof.into())),
        _ => Ok(()),
    }
}
