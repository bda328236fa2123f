//! What a follower of a run is told: pure.

use std::collections::BTreeMap;

use super::cursor::{Cursor, Place};
use crate::broker::events::EventLog;
use crate::broker::store::tree::StepRow;
use crate::protocol::control::{EventPosition, FollowBody, FollowEvent};
use crate::protocol::link::{EventBody, Seq};
use crate::task::{State, TaskId, TaskView};

/// One who follows a run.
pub(super) struct Teller {
    run: TaskId,
    pub(super) cursor: Cursor,
    /// Steps that have not ended, as they were told last.
    open: BTreeMap<Seq, Told>,
}

struct Told {
    path: String,
    state: State,
    text_bytes: Option<u64>,
    voiced: bool,
}

impl Teller {
    pub(super) fn new(run: TaskId, cursor: Cursor) -> Self {
        Self { run, cursor, open: BTreeMap::new() }
    }

    fn event(&self, step: Option<&str>, body: FollowBody) -> FollowEvent {
        FollowEvent {
            id: self.run,
            event: self.cursor.to_string(),
            position: EventPosition::default(),
            step: step.map(str::to_owned),
            body,
        }
    }

    /// Takes in the run's steps as the store has them: what began, what changed, what ended, each
    /// told once.
    pub(super) fn take(&mut self, rows: &[StepRow]) -> Vec<FollowEvent> {
        let mut events = Vec::new();
        let mut ended: Vec<_> =
            rows.iter().filter(|row| row.ended.is_some_and(|at| at > self.cursor.ended)).collect();
        ended.sort_by_key(|row| row.ended);
        for row in ended {
            self.take_end(row, &mut events);
        }
        // What begins does so because something else has ended.
        for row in rows {
            self.take_open(row, &mut events);
        }
        events
    }

    fn take_open(&mut self, row: &StepRow, events: &mut Vec<FollowEvent>) {
        let (path, state) = (row.view.step.clone(), row.view.state);
        let is_new = row.seq > self.cursor.begun;
        if row.ended.is_some() {
            // Its end says it all. One that a retry runs again is told anew.
            self.cursor.begun = self.cursor.begun.max(row.seq);
            return;
        }
        self.cursor.begun = self.cursor.begun.max(row.seq);
        let text_bytes = row.view.text_bytes;
        let told = self.open.get(&row.seq);
        let changed = told.is_none_or(|told| told.state != state || told.text_bytes != text_bytes);
        let resumed = told.is_none() && !is_new;
        self.open
            .insert(row.seq, Told { path: path.clone(), state, text_bytes, voiced: row.voiced });
        if changed && !(resumed && state == State::Queued) {
            let view = Box::new(row.view.clone());
            events.push(self.event(Some(&path), FollowBody::Step { view }));
        }
    }

    fn take_end(&mut self, row: &StepRow, events: &mut Vec<FollowEvent>) {
        let path = row.view.step.as_str();
        if row.voiced
            && let Some(text) = &row.text
        {
            let place = self.cursor.open.get(&row.seq).copied().unwrap_or_default();
            let (restarted, rest) = rest_of(text, place, row);
            if restarted {
                events.push(self.event(Some(path), FollowBody::Restarted));
            }
            if !rest.is_empty() {
                let place = Place { bytes: text.len(), attempt: row.view.attempt, ..place };
                self.cursor.open.insert(row.seq, place);
                events.push(self.event(Some(path), FollowBody::Text { text: rest.to_owned() }));
            }
        }
        self.cursor.open.remove(&row.seq);
        self.open.remove(&row.seq);
        self.cursor.ended = row.ended.unwrap_or(self.cursor.ended);
        let view = Box::new(row.view.clone());
        events.push(self.event(Some(path), FollowBody::Step { view }));
    }

    /// Takes in the events of a running step, as far as they are news.
    pub(super) fn catch_up(&mut self, seq: Seq, attempt: u32, log: &EventLog) -> Vec<FollowEvent> {
        let mut events = Vec::new();
        let Some(told) = self.open.get(&seq).filter(|told| told.voiced) else { return events };
        let path = told.path.clone();
        let mut place = self.cursor.open.get(&seq).copied().unwrap_or_default();
        if place.attempt != attempt {
            let begun = place.bytes > 0;
            place = Place { attempt, n: 0, bytes: 0 };
            // Only what was told is worth a place: each is in the id of every event.
            if begun {
                self.cursor.open.insert(seq, place);
                events.push(self.event(Some(&path), FollowBody::Restarted));
            }
        }
        let (gap, news) = log.after(place.n);
        if gap {
            // How far this is in the whole text is not known any more: its end tells all of it.
            place.bytes = usize::MAX;
            events.push(self.event(Some(&path), FollowBody::Gap));
        }
        for (n, body) in news {
            place.n = *n;
            let told = match body {
                EventBody::Text(text) => {
                    place.bytes = place.bytes.saturating_add(text.len());
                    Some(FollowBody::Text { text: text.clone() })
                }
                EventBody::Data(json) if is_restart(json) => {
                    let begun = std::mem::take(&mut place.bytes) > 0;
                    begun.then_some(FollowBody::Restarted)
                }
                EventBody::Data(_) => None,
            };
            self.cursor.open.insert(seq, place);
            events.extend(told.map(|body| self.event(Some(&path), body)));
        }
        events
    }

    /// The last event.
    pub(super) fn finish(&self, task: TaskView) -> FollowEvent {
        self.event(None, FollowBody::Finished { task: Box::new(task) })
    }
}

/// What is left to tell of a step's text, and whether it begins anew: what was told belongs to
/// another attempt, or to an answer that was given up.
fn rest_of<'a>(text: &'a str, place: Place, row: &StepRow) -> (bool, &'a str) {
    if place.bytes == 0 {
        return (false, text);
    }
    let same = place.attempt == row.view.attempt && !row.restarted;
    match text.get(place.bytes..).filter(|_| same) {
        Some(rest) => (false, rest),
        None if place.bytes == text.len() && place.attempt == row.view.attempt => (false, ""),
        None => (true, text),
    }
}

fn is_restart(json: &str) -> bool {
    json.starts_with("{\"restarted\":")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests may fail loudly")]

    use super::*;
    use crate::task::StepView;

    fn running(seq: Seq) -> StepRow {
        let view = StepView {
            step: format!("s[{seq}]"),
            id: TaskId::new(),
            kind: "chat".to_owned(),
            state: State::Running,
            attempt: 1,
            wait_ms: None,
            run_ms: None,
            text_bytes: None,
            usage: None,
            cost: None,
            error: None,
        };
        StepRow { seq, ended: None, view, voiced: true, text: None, restarted: false }
    }

    #[test]
    fn steps_that_have_said_nothing_take_no_room_in_an_event() {
        let mut teller = Teller::new(TaskId::new(), Cursor::default());
        let rows: Vec<StepRow> = (1..=1000).map(running).collect();
        teller.take(&rows);
        for row in &rows {
            assert!(teller.catch_up(row.seq, 1, &EventLog::default()).is_empty());
        }
        assert_eq!(teller.cursor.to_string(), "1000.0");
        let mut log = EventLog::default();
        log.push(1, EventBody::Text("a".to_owned()));
        let told = teller.catch_up(7, 2, &log);
        assert_eq!((told.len(), told[0].event.as_str()), (1, "1000.0_7.2.1.1"));
        let told = teller.catch_up(7, 3, &EventLog::default());
        assert!(matches!(told[..], [FollowEvent { body: FollowBody::Restarted, .. }]));
        assert!(teller.catch_up(7, 3, &EventLog::default()).is_empty(), "told once");
    }

    #[test]
    fn after_a_gap_the_end_tells_the_whole_text() {
        let mut teller = Teller::new(TaskId::new(), Cursor::default());
        let mut row = running(1);
        teller.take(std::slice::from_ref(&row));
        let mut log = EventLog::default();
        log.push(2, EventBody::Text("lost before, ".to_owned()));
        log.push(3, EventBody::Text("told".to_owned()));
        let told = teller.catch_up(1, 1, &log);
        assert!(matches!(told[0].body, FollowBody::Gap) && told.len() == 3);
        (row.ended, row.text) = (Some(9), Some("it was lost before, told".to_owned()));
        row.view.state = State::Succeeded;
        let told = teller.take(&[row]);
        let [restarted, text, _] = &told[..] else { panic!("{told:?}") };
        assert!(matches!(restarted.body, FollowBody::Restarted), "{restarted:?}");
        let FollowBody::Text { text } = &text.body else { panic!("{text:?}") };
        assert_eq!(text, "it was lost before, told");
    }
}
