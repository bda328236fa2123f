//! Whose turn it is to speak, where several steps have text at the same time: pure.
//!
//! One step has the floor, and its text goes out as it comes. What others say meanwhile is held
//! back until it has come to the end of a line. A line with a name goes before the text of each
//! that is not the one that spoke last; as long as only one speaks it needs none.

use std::collections::{BTreeMap, VecDeque};

/// Text that is held back, in all. With more, the one who has the floor is cut short.
const HELD_BYTES_MAX: usize = 1 << 20;

/// The state of the talk.
#[derive(Debug, Default)]
pub(super) struct Speaker {
    /// The first to speak is named, too.
    name_first: bool,
    floor: Option<String>,
    /// Who spoke last.
    last: Option<String>,
    in_line: bool,
    held: BTreeMap<String, Held>,
    held_bytes: usize,
    /// Those with held text, who came first first.
    waiting: VecDeque<String>,
}

#[derive(Debug, Default)]
struct Held {
    text: String,
    /// Nothing more will come.
    is_over: bool,
}

impl Speaker {
    pub(super) fn new(name_first: bool) -> Self {
        Self { name_first, ..Self::default() }
    }

    /// Whether the line that was written last still grows.
    pub(super) fn is_in_line(&self) -> bool {
        self.in_line
    }

    /// Takes a piece of a step's text, and gives what is to be written now.
    pub(super) fn take(&mut self, step: &str, text: &str) -> String {
        let mut out = String::new();
        if text.is_empty() {
            return out;
        }
        if self.floor.as_deref() == Some(step) {
            self.write(text, &mut out);
        } else {
            self.hold(step, text);
        }
        self.pass(&mut out);
        out
    }

    /// A step says no more.
    pub(super) fn end(&mut self, step: &str) -> String {
        let mut out = String::new();
        if self.floor.as_deref() == Some(step) {
            self.leave(&mut out);
        } else if let Some(held) = self.held.get_mut(step) {
            held.is_over = true;
        }
        self.pass(&mut out);
        out
    }

    /// What a step has said is void; it begins anew.
    pub(super) fn restart(&mut self, step: &str) -> String {
        let mut out = String::new();
        self.drop_held(step);
        if self.floor.as_deref() == Some(step) {
            self.leave(&mut out);
        }
        self.pass(&mut out);
        out
    }

    /// Nobody says more.
    pub(super) fn finish(&mut self) -> String {
        let mut out = String::new();
        self.held.values_mut().for_each(|held| held.is_over = true);
        self.leave(&mut out);
        self.pass(&mut out);
        out
    }

    fn hold(&mut self, step: &str, text: &str) {
        self.held_bytes += text.len();
        let held = self.held.entry(step.to_owned()).or_default();
        if held.text.is_empty() {
            self.waiting.push_back(step.to_owned());
        }
        held.text.push_str(text);
    }

    fn drop_held(&mut self, step: &str) -> Option<Held> {
        let held = self.held.remove(step)?;
        self.held_bytes -= held.text.len();
        self.waiting.retain(|one| one != step);
        Some(held)
    }

    /// Gives the floor to those who wait for it, as long as it is free.
    fn pass(&mut self, out: &mut String) {
        while !self.in_line || self.held_bytes > HELD_BYTES_MAX {
            let Some(next) = self.waiting.front().cloned() else { return };
            let Some(held) = self.drop_held(&next) else { return };
            self.leave(out);
            if self.last.as_ref().map_or(self.name_first, |last| *last != next) {
                out.push_str(&format!("[{next}]\n"));
            }
            self.last = Some(next.clone());
            self.floor = Some(next);
            self.write(&held.text, out);
            if held.is_over {
                self.leave(out);
            }
        }
    }

    fn write(&mut self, text: &str, out: &mut String) {
        out.push_str(text);
        self.in_line = !text.ends_with('\n');
    }

    fn leave(&mut self, out: &mut String) {
        self.floor = None;
        if std::mem::take(&mut self.in_line) {
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_voice_is_told_as_it_comes_and_without_a_name() {
        let mut speaker = Speaker::new(false);
        assert_eq!(speaker.take("polish", "Once "), "Once ");
        assert_eq!(speaker.take("polish", ""), "");
        assert_eq!(speaker.take("polish", "upon"), "upon");
        assert!(speaker.is_in_line());
        assert_eq!(speaker.end("polish"), "\n");
        assert_eq!(speaker.finish(), "");
    }

    #[test]
    fn the_second_is_named_and_waits_for_the_end_of_a_line() {
        let mut speaker = Speaker::new(false);
        assert_eq!(speaker.take("a", "one "), "one ");
        assert_eq!(speaker.take("b", "eins "), "");
        assert_eq!(speaker.take("b", "zwei"), "");
        assert_eq!(speaker.take("a", "two\n"), "two\n[b]\neins zwei");
        assert_eq!(speaker.take("a", "three\n"), "");
        assert_eq!(speaker.take("b", " drei"), " drei");
        assert_eq!(speaker.end("b"), "\n[a]\nthree\n");
        assert_eq!(speaker.take("a", "four"), "four");
        assert_eq!(speaker.finish(), "\n");
    }

    #[test]
    fn all_are_named_if_wanted() {
        let mut speaker = Speaker::new(true);
        assert_eq!(speaker.take("a", "x\n"), "[a]\nx\n");
        assert_eq!(speaker.take("a", "y\n"), "y\n");
    }

    #[test]
    fn what_was_not_yet_written_is_forgotten_when_it_begins_anew() {
        let mut speaker = Speaker::new(false);
        speaker.take("a", "one ");
        speaker.take("b", "lost");
        assert_eq!(speaker.restart("b"), "");
        assert_eq!(speaker.restart("a"), "\n");
        assert_eq!(speaker.take("a", "again"), "again");
        speaker.take("b", "kept");
        assert_eq!(speaker.finish(), "\n[b]\nkept\n");
    }

    #[test]
    fn who_never_ends_a_line_is_cut_short_in_the_end() {
        let mut speaker = Speaker::new(false);
        assert_eq!(speaker.take("a", "on and "), "on and ");
        let long = "x".repeat(HELD_BYTES_MAX + 1);
        assert_eq!(speaker.take("b", &long), format!("\n[b]\n{long}"));
        assert_eq!(speaker.take("a", "on"), "");
    }

    proptest! {
        /// Whatever order they speak in, each is told whole and in order, and names stand on lines
        /// of their own.
        #[test]
        fn nothing_is_lost(says in prop::collection::vec((0usize..4, "[xy \n]{0,4}", 0u8..8), 0..60)) {
            let names = ["a", "b", "c", "d"];
            let mut speaker = Speaker::new(true);
            let mut said = vec![String::new(); 4];
            let mut written = String::new();
            for (who, text, what) in says {
                if what == 0 {
                    written += &speaker.end(names[who]);
                } else {
                    said[who] += &text;
                    written += &speaker.take(names[who], &text);
                }
            }
            written += &speaker.finish();
            let mut told = vec![String::new(); 4];
            let mut who = None;
            for line in written.lines() {
                match names.iter().position(|name| line == format!("[{name}]")) {
                    Some(next) => who = Some(next),
                    None => told[who.unwrap()] += line,
                }
            }
            // Where a line was ended for another one's sake is no matter here.
            let bare = |texts: Vec<String>| -> Vec<_> {
                texts.into_iter().map(|text| text.replace('\n', "")).collect()
            };
            prop_assert_eq!(bare(told), bare(said));
        }
    }
}
