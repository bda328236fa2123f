//! What waits to be written to one connection: the loop appends, the connection's own task
//! writes. Nobody waits for a slow peer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Notify;

use crate::protocol::{codec, frame};

/// A handle on the bytes that wait for one connection.
#[derive(Clone, Default)]
pub(crate) struct Outbox {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    bytes: RefCell<Vec<u8>>,
    /// Some were taken and are on their way into the socket.
    writing: Cell<bool>,
    closed: Cell<bool>,
    changed: Notify,
    aborted: Notify,
}

impl Outbox {
    /// Appends one message as JSON.
    pub(crate) fn put_json<T: Serialize>(&self, message: &T) {
        let put = frame::put_frame(&mut self.inner.bytes.borrow_mut(), |out| {
            serde_json::to_writer(out, message)
        });
        self.appended(put.map_err(|error| error.to_string()));
    }

    /// Appends one message for a worker.
    pub(crate) fn put<T: Serialize>(&self, message: &T) {
        let put = codec::put(&mut self.inner.bytes.borrow_mut(), message);
        self.appended(put.map_err(|error| error.to_string()));
    }

    fn appended(&self, put: Result<(), String>) {
        if let Err(error) = put {
            // Our own types are always writable; a mistake here must not hide.
            tracing::error!("a message could not be written: {error}");
            self.abort();
        }
        self.inner.changed.notify_one();
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.inner.bytes.borrow().len()
    }

    /// Whether everything is in the socket.
    pub(crate) fn is_idle(&self) -> bool {
        self.len() == 0 && !self.inner.writing.get()
    }

    /// Lets the connection go at once: its peer does not read.
    pub(crate) fn abort(&self) {
        self.close();
        self.inner.aborted.notify_one();
    }

    /// Waits until the connection is to be let go at once.
    pub(crate) async fn aborted(&self) {
        self.inner.aborted.notified().await;
    }

    /// Lets the connection go once what waits is written.
    pub(crate) fn close(&self) {
        self.inner.closed.set(true);
        self.inner.changed.notify_one();
    }

    /// Whether the connection is gone, or about to go.
    pub(crate) fn is_closed(&self) -> bool {
        self.inner.closed.get()
    }

    /// Writes what comes until the connection or the outbox is closed.
    pub(crate) async fn write_to(&self, mut peer: OwnedWriteHalf) {
        let mut writing = Vec::new();
        loop {
            std::mem::swap(&mut writing, &mut *self.inner.bytes.borrow_mut());
            self.inner.writing.set(!writing.is_empty());
            if writing.is_empty() {
                if self.is_closed() {
                    return;
                }
                self.inner.changed.notified().await;
                continue;
            }
            if peer.write_all(&writing).await.is_err() {
                self.abort();
                return;
            }
            writing.clear();
            // One large message must not be remembered as this connection's size for ever.
            writing.shrink_to(KEPT_BYTES);
        }
    }
}

/// What an idle connection's buffer may keep.
const KEPT_BYTES: usize = 64 * 1024;
