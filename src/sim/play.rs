//! A script as the body of a response.

use std::io;

use axum::body::{Body, Bytes};
use tokio::time::Instant;

use super::script::{Ending, Script};
use super::stats::Call;

/// The body that follows the script from now on. The call is over when its last byte is handed
/// over, and given up when the body is dropped before that.
pub(super) fn body(script: Script, call: Call) -> Body {
    let play = Play { script, call, start: Instant::now(), next: 0, sent: 0 };
    Body::from_stream(futures_util::stream::unfold(play, |mut play| async {
        let bytes = play.next().await?;
        Some((bytes, play))
    }))
}

/// A script that is being followed.
struct Play {
    script: Script,
    call: Call,
    start: Instant,
    /// The write that is next.
    next: usize,
    /// Bytes so far.
    sent: usize,
}

impl Play {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let Some(write) = self.script.writes.get(self.next) else {
            return self.end().await;
        };
        let due = self.start + write.due;
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        } else if !self.script.may_join {
            // The server writes what it has while the body has nothing.
            tokio::task::yield_now().await;
        }
        let end = self.due_now();
        let bytes = self.script.bytes.slice(self.sent..end);
        self.sent = end;
        if self.next == self.script.writes.len() && self.script.ending == Ending::Done {
            // A body whose length is known is not asked for more.
            self.call.finish();
        }
        Some(Ok(bytes))
    }

    /// Takes the next write, and those that are due as well and may join it; gives their end.
    fn due_now(&mut self) -> usize {
        let elapsed = self.start.elapsed();
        let rest = &self.script.writes[self.next..];
        let due = match self.script.may_join {
            true => rest.iter().take_while(|write| write.due <= elapsed).count().max(1),
            false => 1,
        };
        self.next += due;
        rest.get(due - 1).map_or(self.sent, |write| write.end)
    }

    async fn end(&mut self) -> Option<io::Result<Bytes>> {
        match &self.script.ending {
            Ending::Done => None,
            Ending::Silence => std::future::pending().await,
            Ending::Cut => {
                // As above: what was said before is to arrive.
                tokio::task::yield_now().await;
                self.call.finish();
                Some(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            Ending::Endless(bytes) => Some(Ok(bytes.clone())),
        }
    }
}
