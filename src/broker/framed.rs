//! Reading frames off a connection that may send anything, at any speed.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::time::timeout;

use crate::protocol::frame::{TooLong, take_frame};

/// A frame that has begun must be whole after this time, or its sender is let go.
pub(crate) const FRAME_TIME_MAX: Duration = Duration::from_secs(30);
/// What is read at once, at the least and at the most.
const READ_BYTES_MIN: usize = 8 * 1024;
const READ_BYTES_MAX: usize = 1 << 20;

/// Why there are no more frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("half a frame, and no more for {} s", FRAME_TIME_MAX.as_secs())]
    Slow,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The frames of one connection.
pub(crate) struct Frames {
    peer: OwnedReadHalf,
    buffer: BytesMut,
    limit_bytes: usize,
}

impl Frames {
    pub(crate) fn new(peer: OwnedReadHalf, limit_bytes: usize) -> Self {
        Self { peer, buffer: BytesMut::new(), limit_bytes }
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if let Some(frame) = take_frame(&mut self.buffer, self.limit_bytes)? {
            return Ok(Some(frame));
        }
        if self.buffer.is_empty() && self.read().await? == 0 {
            return Ok(None);
        }
        timeout(FRAME_TIME_MAX, self.rest()).await.map_err(|_| ReadError::Slow)?
    }

    /// The rest of a frame that has begun.
    async fn rest(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer, self.limit_bytes)? {
                return Ok(Some(frame));
            }
            if self.read().await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn read(&mut self) -> io::Result<usize> {
        // Doubling: an idle client costs little, a large frame few reads.
        self.buffer.reserve(self.buffer.len().clamp(READ_BYTES_MIN, READ_BYTES_MAX));
        self.peer.read_buf(&mut self.buffer).await
    }
}
