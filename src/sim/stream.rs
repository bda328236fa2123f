//! An answer as a stream of chunks, at the pace of a model.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use tokio::time::Instant;

use super::answer::Answer;
use super::{MODEL, SimOptions};
use crate::openai::{
    ChatChunk, ChunkChoice, Content, Delta, FunctionDelta, ToolCallDelta, Usage, sse,
};

/// Longest that one answer is drawn out, so that no option overflows a clock.
const DELAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// When token `index` of an answer is due, from the start of the request.
pub(super) fn due(options: &SimOptions, index: usize) -> Duration {
    let first = Duration::from_millis(options.first_token_ms);
    let after = if options.tokens_per_second > 0.0 {
        // Beyond what a duration holds: DELAY_MAX, below.
        Duration::try_from_secs_f64(index as f64 / options.tokens_per_second)
            .unwrap_or(Duration::MAX)
    } else {
        Duration::ZERO
    };
    first.saturating_add(after).min(DELAY_MAX)
}

/// What all chunks of one answer share.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) include_usage: bool,
}

/// The chunks of an answer in order, each with the token whose time it goes at.
fn chunks(head: &Head, answer: Answer, usage: Usage) -> Vec<(usize, ChatChunk)> {
    let chunk = |choices| ChatChunk {
        id: head.id.clone(),
        object: "chat.completion.chunk".into(),
        created: head.created,
        model: MODEL.into(),
        choices,
        usage: head.include_usage.then_some(None),
        extra: super::routes::fingerprint(),
    };
    let news = |delta, finish_reason| {
        chunk(vec![ChunkChoice { delta, finish_reason, ..ChunkChoice::default() }])
    };
    let last = answer.tokens.len().saturating_sub(1);
    let mut chunks = vec![(0, news(first_delta(head, answer.calls.as_deref()), None))];
    for (index, token) in answer.tokens.into_iter().enumerate() {
        let delta = match answer.calls {
            None => Delta { content: Some(Content::Text(token)), ..Delta::default() },
            Some(_) => call_delta(None, None, token),
        };
        chunks.push((index, news(delta, None)));
    }
    chunks.push((last, news(Delta::default(), Some(answer.finish_reason.into()))));
    if head.include_usage {
        chunks.push((last, ChatChunk { usage: Some(Some(usage)), ..chunk(Vec::new()) }));
    }
    chunks
}

fn first_delta(head: &Head, calls: Option<&str>) -> Delta {
    let role = Some("assistant".into());
    match calls {
        None => Delta { role, content: Some(Content::Text(String::new())), ..Delta::default() },
        Some(name) => {
            let id = super::routes::call_id(&head.id);
            Delta { role, ..call_delta(Some(id), Some(name.into()), String::new()) }
        }
    }
}

fn call_delta(id: Option<String>, name: Option<String>, arguments: String) -> Delta {
    let kind = id.is_some().then(|| "function".into());
    let function = FunctionDelta { name, arguments: Some(arguments) };
    let call = ToolCallDelta { index: Some(0), id, kind, function, ..ToolCallDelta::default() };
    Delta { tool_calls: vec![call], ..Delta::default() }
}

/// The body of a streamed answer.
pub(super) fn body(options: SimOptions, head: &Head, answer: Answer, usage: Usage) -> Body {
    let rest = chunks(head, answer, usage).into();
    let play = Play { options, start: Instant::now(), rest };
    let stream = futures_util::stream::unfold(play, |mut play| async {
        let bytes = play.next().await?;
        Some((Ok::<_, Infallible>(bytes), play))
    });
    Body::from_stream(stream)
}

/// An answer that is being told.
struct Play {
    options: SimOptions,
    start: Instant,
    /// Each chunk with the number of the token that it is due with.
    rest: VecDeque<(usize, ChatChunk)>,
}

impl Play {
    /// Waits for the next chunk's time, and gives all that are due by then.
    async fn next(&mut self) -> Option<Bytes> {
        let next = self.start + due(&self.options, self.rest.front()?.0);
        if next > Instant::now() {
            tokio::time::sleep_until(next).await;
        }
        let mut out = Vec::new();
        let elapsed = self.start.elapsed();
        while let Some((_, chunk)) =
            self.rest.pop_front_if(|(index, _)| due(&self.options, *index) <= elapsed)
        {
            match serde_json::to_vec(&chunk) {
                Ok(json) => sse::write_event(&mut out, &json),
                Err(error) => tracing::error!(%error, "a chunk that is not JSON"),
            }
        }
        if self.rest.is_empty() {
            sse::write_event(&mut out, sse::DONE.as_bytes());
        }
        Some(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_the_pace() {
        let options =
            SimOptions { first_token_ms: 200, tokens_per_second: 50.0, ..SimOptions::default() };
        assert_eq!(due(&options, 0), Duration::from_millis(200));
        assert_eq!(due(&options, 50), Duration::from_millis(1200));
        let at_once = SimOptions { tokens_per_second: 0.0, ..options.clone() };
        assert_eq!(due(&at_once, 50), Duration::from_millis(200));
        for odd in [f64::NAN, f64::MIN_POSITIVE, -1.0, f64::INFINITY] {
            let options = SimOptions { tokens_per_second: odd, ..options.clone() };
            assert!(due(&options, 1000) <= DELAY_MAX);
        }
    }
}
