//! What is told of tasks that run side by side: one at a time, in order, each as it streams.
//! The one whose turn it is is told live; of those after it the text is held back until then.
//! No I/O.

use std::collections::BTreeMap;

use crate::cli::result;
use crate::protocol::control::FollowBody;
use crate::task::{State, TaskView};

/// Tasks that are followed at once: the oldest that are not yet told to their end.
pub(super) const FOLLOWED_MAX: usize = 8;
/// Text of one task that is held back. What is longer is told from the output, at its end.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Something to tell, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Say {
    /// The turn of this task begins.
    Title(usize),
    /// A piece of its text.
    Text(String),
    /// What is to be said about it, on a line of its own.
    Remark(String),
    /// How it ended, if it did not succeed.
    Complaint(String),
    /// Its turn is over.
    End,
}

/// The state of the telling.
pub(super) struct Board {
    total: usize,
    /// Whose turn it is.
    turn: usize,
    entries: BTreeMap<usize, Entry>,
}

#[derive(Default)]
struct Entry {
    is_titled: bool,
    /// Whether some of this attempt's text was told.
    is_begun: bool,
    held: String,
    /// Too much was held back: its text is told at its end.
    is_cut: bool,
    end: Option<Ending>,
}

/// What is left to tell of a task that has ended.
struct Ending {
    /// The text of its output, for a task that has streamed none.
    text: String,
    complaint: Option<String>,
}

impl Board {
    pub(super) fn new(total: usize) -> Self {
        Self { total, turn: 0, entries: BTreeMap::new() }
    }

    /// Whether everything is told.
    pub(super) fn is_over(&self) -> bool {
        self.turn == self.total
    }

    /// The tasks that are to be followed now.
    pub(super) fn followed(&self) -> std::ops::Range<usize> {
        self.turn..self.total.min(self.turn + FOLLOWED_MAX)
    }

    /// Takes what happened to a followed task, and gives what is to be told now.
    pub(super) fn take(&mut self, index: usize, body: &FollowBody) -> Vec<Say> {
        let mut says = Vec::new();
        if !self.followed().contains(&index) {
            return says;
        }
        let entry = self.entries.entry(index).or_default();
        match body {
            FollowBody::Text { text } => entry.hold(text),
            FollowBody::Data { data } => entry.hold(&format!("{data}\n")),
            FollowBody::Gap => entry.hold("\n[some of the text is missing here]\n"),
            FollowBody::Restarted => {
                if std::mem::take(&mut entry.is_begun) {
                    says.push(Say::Remark(
                        "the attempt did not succeed; the next begins".to_owned(),
                    ));
                }
                entry.held.clear();
                entry.is_cut = false;
            }
            FollowBody::Finished { task } => entry.end = Some(Ending::of(task)),
            FollowBody::Waiting { .. } | FollowBody::Started { .. } | FollowBody::Step { .. } => {}
        }
        self.tell(&mut says);
        says
    }

    /// Tells what can be told, turn by turn.
    fn tell(&mut self, says: &mut Vec<Say>) {
        while let Some(entry) = self.entries.get_mut(&self.turn) {
            if !std::mem::replace(&mut entry.is_titled, true) {
                says.push(Say::Title(self.turn));
            }
            if !entry.held.is_empty() {
                says.push(Say::Text(std::mem::take(&mut entry.held)));
                entry.is_begun = true;
            }
            let Some(end) = entry.end.take() else { return };
            if !entry.is_begun && !end.text.is_empty() {
                says.push(Say::Text(end.text));
            }
            says.extend(end.complaint.map(Say::Complaint));
            says.push(Say::End);
            self.entries.remove(&self.turn);
            self.turn += 1;
        }
    }
}

impl Entry {
    fn hold(&mut self, text: &str) {
        if self.is_cut {
            return;
        }
        if self.held.len() + text.len() > HELD_BYTES_MAX {
            self.is_cut = true;
            self.held = String::new();
        } else {
            self.held.push_str(text);
        }
    }
}

impl Ending {
    fn of(task: &TaskView) -> Self {
        let text = match (&task.output, task.state) {
            (Some(output), State::Succeeded) => {
                result::text_of(output).unwrap_or_else(|| output.get().to_owned())
            }
            _ => String::new(),
        };
        Self { text, complaint: complaint(task) }
    }
}

/// How a task ended that did not succeed.
pub(super) fn complaint(task: &TaskView) -> Option<String> {
    let why = task.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
    (task.state != State::Succeeded).then(|| format!("{}{why}", task.state))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::fake;
    use crate::task::TaskId;

    fn text(text: &str) -> FollowBody {
        FollowBody::Text { text: text.to_owned() }
    }

    fn finished(state: State, output: &str) -> FollowBody {
        FollowBody::Finished { task: fake::task(TaskId::new(), state, Some(output)) }
    }

    fn said(text: &str) -> Say {
        Say::Text(text.to_owned())
    }

    #[test]
    fn the_first_is_live_and_the_second_waits_for_its_turn() {
        let mut board = Board::new(2);
        assert_eq!(board.take(1, &text("b")), []);
        assert_eq!(board.take(0, &text("a")), [Say::Title(0), said("a")]);
        assert_eq!(board.take(1, &text("c")), []);
        assert_eq!(board.take(0, &text("d")), [said("d")]);
        assert_eq!(
            board.take(0, &finished(State::Succeeded, "{}")),
            [Say::End, Say::Title(1), said("bc"),]
        );
        assert_eq!(board.take(1, &finished(State::Succeeded, "{}")), [Say::End]);
        assert!(board.is_over());
    }

    #[test]
    fn what_was_not_streamed_is_told_from_the_output() {
        let mut board = Board::new(3);
        let outputs = [r#"{"text":"hi"}"#, r#"{"exit_code":0}"#];
        let says = board.take(0, &finished(State::Succeeded, outputs[0]));
        assert_eq!(says, [Say::Title(0), said("hi"), Say::End]);
        let says = board.take(1, &finished(State::Succeeded, outputs[1]));
        assert_eq!(says, [Say::Title(1), said(outputs[1]), Say::End]);
        let says = board.take(2, &finished(State::Failed, "null"));
        assert_eq!(says, [Say::Title(2), Say::Complaint("failed: it broke".to_owned()), Say::End]);
    }

    #[test]
    fn a_lost_attempt_is_told_only_where_it_was_seen() {
        let mut board = Board::new(2);
        board.take(0, &text("half"));
        board.take(1, &text("unseen"));
        assert_eq!(board.take(1, &FollowBody::Restarted), []);
        assert!(matches!(board.take(0, &FollowBody::Restarted)[..], [Say::Remark(_)]));
        board.take(1, &text("whole"));
        let says = board.take(0, &finished(State::Succeeded, r#"{"text":"again"}"#));
        assert_eq!(says, [said("again"), Say::End, Say::Title(1), said("whole")]);
    }

    #[test]
    fn held_text_is_bounded() {
        let mut board = Board::new(2);
        let piece = "x".repeat(HELD_BYTES_MAX / 2 + 1);
        board.take(1, &text(&piece));
        board.take(1, &text(&piece));
        board.take(0, &finished(State::Succeeded, "{}"));
        let says = board.take(1, &finished(State::Succeeded, r#"{"text":"the whole"}"#));
        assert_eq!(says, [said("the whole"), Say::End]);
    }

    proptest! {
        /// Whatever order tasks are worked on in, each is told whole, and in order.
        #[test]
        fn every_text_is_told_once_and_in_order(
            total in 1usize..20, steps in prop::collection::vec(any::<prop::sample::Index>(), 200..400),
        ) {
            let mut board = Board::new(total);
            let mut pieces_left = vec![3; total];
            let mut told = String::new();
            let mut steps = steps.into_iter().cycle();
            while !board.is_over() {
                let followed: Vec<_> = board.followed().filter(|i| pieces_left[*i] > 0).collect();
                let index = followed[steps.next().unwrap().index(followed.len())];
                pieces_left[index] -= 1;
                let body = match pieces_left[index] {
                    0 => finished(State::Succeeded, "{}"),
                    left => text(&format!("{index}.{left} ")),
                };
                for say in board.take(index, &body) {
                    if let Say::Text(text) = say {
                        told.push_str(&text);
                    }
                }
            }
            let expected: String = (0..total).map(|i| format!("{i}.2 {i}.1 ")).collect();
            prop_assert_eq!(told, expected);
        }
    }
}
