//! Reads an answer off the connection: as a stream of events or in one piece, whichever came.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{ANSWER_BYTES_MAX, Answer};
use super::failure::{self, Failure};
use super::route::Provider;
use super::tell::Teller;
use crate::openai::sse::{DONE, Event, Parser};
use crate::openai::{ChatChunk, ErrorDetail};

/// Longest event of a stream.
const EVENT_BYTES_MAX: usize = 8 << 20;
/// Longest wait for the usage after the answer's last word. A gateway under load takes seconds
/// from one to the other, and without the usage the books are wrong; only a server that sends
/// neither the usage nor an end is waited for in vain.
const USAGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the end of a stream that said it is done; then the connection is not reused.
const END_WAIT_MAX: Duration = Duration::from_millis(20);

/// Where an answer is read from, and until when its next part must be there.
pub(super) struct Reader<'a, 'b> {
    pub(super) provider: &'a Provider,
    pub(super) teller: &'a mut Teller<'b>,
    pub(super) response: Response,
    /// When the first token must be there; `None` for an answer that comes in one piece.
    pub(super) first_token_by: Option<Instant>,
    /// When the whole answer must be there.
    pub(super) whole_by: Instant,
    /// When the last event came, up to the answer's last word. Comments do not count: a proxy
    /// sends them for a dead model, too.
    pub(super) last_event: Instant,
}

enum Next {
    More,
    Done,
}

impl Reader<'_, '_> {
    /// Reads the answer to its end.
    pub(super) async fn read(self) -> Result<Answer, Failure> {
        let content_type = self
            .response
            .headers()
            .get(CONTENT_TYPE)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
        match content_type.as_deref() {
            Some(sort) if sort.contains("event-stream") => self.read_stream().await,
            Some(sort) if sort.contains("json") => self.read_whole().await,
            None if self.first_token_by.is_some() => self.read_stream().await,
            None => self.read_whole().await,
            Some(sort) => {
                let what = format!("answered with '{sort}', not a completion; check its base_url");
                Err(failure::misconfigured(self.provider, &what))
            }
        }
    }

    async fn read_stream(mut self) -> Result<Answer, Failure> {
        let mut parser = Parser::new(EVENT_BYTES_MAX);
        let mut answer = Answer::default();
        loop {
            match self.next(&mut parser, &mut answer).await {
                Ok(Next::More) => {}
                // What comes after the last word may go wrong: the answer is paid for.
                Err(_) if answer.has_finished() => return Ok(answer),
                Err(error) => return Err(error),
                Ok(Next::Done) => {
                    // A connection can be used again only after its stream was read to the end.
                    let _ = timeout(END_WAIT_MAX, self.response.chunk()).await;
                    return Ok(answer);
                }
            }
        }
    }

    /// Takes the next piece off the connection and the events that it completes.
    async fn next(&mut self, parser: &mut Parser, answer: &mut Answer) -> Result<Next, Failure> {
        let Some(piece) = self.next_piece(answer).await? else {
            return Err(failure::cut());
        };
        parser.push(&piece);
        while let Some(event) = parser.next_event().map_err(|error| failure::too_long(&error))? {
            if event.data.trim() == DONE {
                return Ok(Next::Done);
            }
            self.take_event(&event, answer)?;
        }
        Ok(Next::More)
    }

    async fn next_piece(&mut self, answer: &Answer) -> Result<Option<Bytes>, Failure> {
        let (limit, after, by) = match self.first_token_by {
            Some(by) if !answer.has_begun() => {
                ("first_token_timeout", self.provider.first_token_timeout, by)
            }
            _ => {
                let most = if answer.has_finished() { USAGE_WAIT_MAX } else { Duration::MAX };
                let idle = self.provider.idle_timeout.min(most);
                ("idle_timeout", idle, deadline(self.last_event, idle))
            }
        };
        if self.whole_by < by {
            return self.piece_of_whole().await;
        }
        self.piece_by(limit, after, by).await
    }

    /// The next piece, if only the limit of the whole call stands.
    async fn piece_of_whole(&mut self) -> Result<Option<Bytes>, Failure> {
        self.piece_by("timeout", self.provider.timeout, self.whole_by).await
    }

    async fn piece_by(
        &mut self,
        limit: &str,
        after: Duration,
        by: Instant,
    ) -> Result<Option<Bytes>, Failure> {
        match timeout_at(by, self.response.chunk()).await {
            Ok(piece) => piece.map_err(|error| failure::transport(self.provider, &error)),
            Err(_) => Err(failure::timed_out(limit, after)),
        }
    }

    fn take_event(&mut self, event: &Event, answer: &mut Answer) -> Result<(), Failure> {
        if event.data.trim().is_empty() {
            return Ok(());
        }
        if !answer.has_finished() {
            self.last_event = Instant::now();
        }
        let chunk: ChatChunk = serde_json::from_str(&event.data).map_err(|error| {
            failure::garbage(self.provider, &format!("an event that is no chunk: {error}"))
        })?;
        let breaks =
            event.name == "error" || chunk.extra.get("error").is_some_and(|error| !error.is_null());
        if breaks {
            let detail = ErrorDetail::find(&chunk.extra.into()).unwrap_or_default();
            return Err(failure::broke_off(self.provider, &detail));
        }
        let news = answer.add(chunk).map_err(|error| failure::too_long(&error))?;
        self.teller.text(news, Instant::now());
        Ok(())
    }

    async fn read_whole(mut self) -> Result<Answer, Failure> {
        let mut body = Vec::new();
        loop {
            let Some(piece) = self.piece_of_whole().await? else { break };
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                let error = super::answer::AnswerTooLong;
                return Err(failure::too_long(&error));
            }
            body.extend_from_slice(&piece);
        }
        let answer = whole(self.provider, &body)?;
        self.teller.text(answer.text().to_owned(), Instant::now());
        Ok(answer)
    }
}

/// A limit may be configured as longer than any clock: then it is far off.
pub(super) fn deadline(from: Instant, limit: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    from + limit.min(FAR)
}

fn whole(provider: &Provider, body: &[u8]) -> Result<Answer, Failure> {
    let error = match serde_json::from_slice(body) {
        Ok(completion) => match Answer::whole(completion) {
            Some(answer) => return Ok(answer),
            None => "it has no choices".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    // Some servers put an error into an answer that says it is well.
    let detail = serde_json::from_slice(body).ok().and_then(|body| ErrorDetail::find(&body));
    Err(match detail {
        Some(detail) => failure::broke_off(provider, &detail),
        None => failure::garbage(provider, &format!("an answer that is no completion: {error}")),
    })
}
