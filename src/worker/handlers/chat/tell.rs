//! What followers hear of an answer that is still being made.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::handler::Context;

/// Bytes of text by which a provider has proved itself.
const PROOF_BYTES: usize = 1024;
/// Time between its first text and a later one by which it has.
const PROOF_TIME: Duration = Duration::from_secs(3);

/// Tells the text of an attempt's calls, so that followers always know what still counts.
///
/// Text is told as it comes. If its provider then fails and another answers, or the answer is not as
/// expected and there is another, `restarted` is told before the other's text: what came before it
/// is void. With `buffer_first`, text is held until
/// its provider has proved itself by [`PROOF_BYTES`], by [`PROOF_TIME`] or by the end of its
/// answer; if it fails before, nobody hears of it.
pub(super) struct Teller<'a> {
    context: &'a Context,
    buffer_first: bool,
    /// Whose text it is.
    provider: &'a str,
    held: Option<Held>,
    /// Whether text of this call was told.
    told: bool,
    /// Why the text that was told before this call is void, until that is told.
    void: Option<String>,
}

#[derive(Default)]
struct Held {
    text: String,
    since: Option<Instant>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(context: &'a Context, buffer_first: bool) -> Self {
        Self { context, buffer_first, provider: "", held: None, told: false, void: None }
    }

    /// A call begins.
    pub(super) fn begin(&mut self, provider: &'a str) {
        self.provider = provider;
        self.held = self.buffer_first.then(Held::default);
    }

    /// It brings some text, which may be empty.
    pub(super) fn text(&mut self, news: String, now: Instant) {
        if news.is_empty() {
            return;
        }
        let Some(held) = &mut self.held else { return self.tell(news) };
        held.text.push_str(&news);
        let since = *held.since.get_or_insert(now);
        if held.text.len() >= PROOF_BYTES || now - since >= PROOF_TIME {
            self.release();
        }
    }

    /// It brought an answer.
    pub(super) fn succeeded(&mut self) {
        self.release();
        // An answer without text, after one that began with some.
        self.tell_restart();
    }

    /// It brought none.
    pub(super) fn failed(&mut self, why: &str) {
        self.voided(format!("provider '{}' {why}", self.provider));
    }

    /// What it brought does not count.
    pub(super) fn voided(&mut self, why: String) {
        self.held = None;
        if std::mem::take(&mut self.told) {
            self.void = Some(why);
        }
    }

    fn release(&mut self) {
        if let Some(held) = self.held.take().filter(|held| !held.text.is_empty()) {
            self.tell(held.text);
        }
    }

    fn tell(&mut self, text: String) {
        self.tell_restart();
        self.told = true;
        self.context.text(text);
    }

    fn tell_restart(&mut self) {
        if let Some(reason) = self.void.take() {
            let restarted = json!({ "provider": self.provider, "reason": reason });
            self.context.data(json!({ "restarted": restarted }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::handler::Event;
    use crate::worker::handlers::testing::{self, Events};

    /// What followers hear of a history: text in quotes, `from>to` for a restart.
    fn heard(buffer_first: bool, history: impl FnOnce(&mut Teller<'_>)) -> Vec<String> {
        let events = Arc::new(Events::default());
        let context = testing::context(&events);
        history(&mut Teller::new(&context, buffer_first));
        let heard = |event| match event {
            Event::Text { text } => text,
            Event::Data { data } => {
                let restarted = &data["restarted"];
                let text = |name: &str| restarted[name].as_str().unwrap().to_owned();
                format!("{}>{}", text("reason"), text("provider"))
            }
        };
        events.all().into_iter().map(heard).collect()
    }

    fn text(teller: &mut Teller<'_>, news: &str) {
        teller.text(news.to_owned(), Instant::now());
    }

    #[test]
    fn a_restart_is_told_before_the_text_that_counts() {
        let told = heard(false, |teller| {
            teller.begin("a");
            text(teller, "one");
            text(teller, "");
            teller.failed("broke");
            teller.begin("b");
            teller.failed("was not there");
            teller.begin("c");
            text(teller, "two");
            text(teller, "three");
            teller.succeeded();
        });
        assert_eq!(told, ["one", "provider 'a' broke>c", "two", "three"]);
    }

    #[test]
    fn a_silent_failure_restarts_nothing() {
        let told = heard(false, |teller| {
            teller.begin("a");
            teller.failed("was not there");
            teller.begin("b");
            text(teller, "two");
            teller.succeeded();
        });
        assert_eq!(told, ["two"]);
    }

    #[test]
    fn an_answer_that_does_not_count_is_void_where_it_was_told() {
        for (buffer_first, expected) in
            [(false, ["one", "not as expected>a", "two"].as_slice()), (true, ["two"].as_slice())]
        {
            let told = heard(buffer_first, |teller| {
                teller.begin("a");
                text(teller, "one");
                teller.voided("not as expected".to_owned());
                teller.begin("a");
                text(teller, "two");
                teller.succeeded();
            });
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn an_answer_without_text_voids_what_was_told_too() {
        let told = heard(false, |teller| {
            teller.begin("a");
            text(teller, "one");
            teller.failed("broke");
            teller.begin("b");
            teller.succeeded();
        });
        assert_eq!(told, ["one", "provider 'a' broke>b"]);
    }

    #[test]
    fn held_text_is_told_by_size_by_time_and_at_the_end() {
        let long = "x".repeat(PROOF_BYTES - 1);
        let told = heard(true, |teller| {
            teller.begin("a");
            text(teller, "lost");
            teller.failed("broke");
            teller.begin("b");
            text(teller, &long);
            text(teller, "y");
            text(teller, "z");
            teller.failed("broke");
            teller.begin("c");
            let start = Instant::now();
            teller.text("1".to_owned(), start);
            teller.text("2".to_owned(), start + PROOF_TIME - Duration::from_nanos(1));
            teller.text("3".to_owned(), start + PROOF_TIME);
            teller.text("4".to_owned(), start + PROOF_TIME);
            teller.failed("broke");
            teller.begin("d");
            text(teller, "end");
            teller.succeeded();
        });
        let first = format!("{long}y");
        let expected =
            [&first, "z", "provider 'b' broke>c", "123", "4", "provider 'c' broke>d", "end"];
        assert_eq!(told, expected);
    }
}
