//! How `forq run` shows what goes on: text on stdout, progress on stderr.
//!
//! Where both are the same terminal the bar stands below the text. Only whole lines go above it
//! for good; the line that is still growing is shown in a line of the bar's own.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::board::Say;
use crate::cli::CliError;
use crate::cli::out::Out;

/// How often progress is told where there is no terminal to draw a bar on, at most.
const NOTES_MAX: usize = 10;
/// How much of the growing line is shown: its end, so that the text is seen to flow, and no more
/// than the usual terminal is wide.
const LINE_CHARS_MAX: usize = 79;

/// Where `forq run` tells of its tasks.
pub(super) struct Screen<'a, 'o> {
    out: &'a mut Out<'o>,
    bar: Option<ProgressBar>,
    /// Whether text goes above the bar, on the same terminal.
    is_shared: bool,
    /// The line that is still growing.
    line: String,
    titles: Vec<String>,
    ended: usize,
    bad: usize,
}

impl<'a, 'o> Screen<'a, 'o> {
    /// A single task has no title, no progress.
    pub(super) fn new(out: &'a mut Out<'o>, titles: Vec<String>) -> Self {
        let has_bar = titles.len() > 1 && io::stderr().is_terminal();
        let is_shared = has_bar && io::stdout().is_terminal();
        let bar = has_bar.then(|| bar(titles.len() as u64));
        Self { out, bar, is_shared, line: String::new(), titles, ended: 0, bad: 0 }
    }

    /// One more task has ended.
    pub(super) fn count(&mut self, succeeded: bool) {
        self.ended += 1;
        self.bad += usize::from(!succeeded);
        let (ended, total) = (self.ended, self.titles.len());
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(failures(self.bad));
                bar.inc(1);
            }
            None if is_noted(ended, total) => {
                self.out.note(format_args!("{ended} of {total} ended{}", failures(self.bad)));
            }
            None => {}
        }
    }

    pub(super) fn say(&mut self, say: Say) -> Result<(), CliError> {
        if self.titles.len() == 1 {
            return self.say_alone(say);
        }
        match say {
            Say::Title(index) => {
                let (number, total) = (index + 1, self.titles.len());
                let title = format!("[{number}/{total}] {}\n", self.titles[index]);
                self.text(&title)
            }
            Say::Text(text) => self.text(&text),
            Say::Remark(remark) | Say::Complaint(remark) => {
                self.end_line()?;
                self.text(&format!("({remark})\n"))
            }
            Say::End => {
                self.end_line()?;
                self.text("\n")
            }
        }
    }

    /// Of a single task stdout has the result and nothing else; a complaint is the run's error.
    fn say_alone(&mut self, say: Say) -> Result<(), CliError> {
        match say {
            Say::Text(text) => self.text(&text),
            Say::Remark(remark) => {
                self.end_line()?;
                self.out.note(remark);
                Ok(())
            }
            Say::End => self.end_line(),
            Say::Title(_) | Say::Complaint(_) => Ok(()),
        }
    }

    /// The finished task as JSON, for programs.
    pub(super) fn value(&mut self, value: &impl serde::Serialize) -> Result<(), CliError> {
        let out = &mut *self.out;
        let mut print = || out.value(value).and_then(|()| out.flush());
        match &self.bar {
            Some(bar) if self.is_shared => bar.suspend(print),
            _ => print(),
        }
    }

    /// Takes the bar away.
    pub(super) fn close(mut self) -> Result<(), CliError> {
        self.end_line()?;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), CliError> {
        let Some(bar) = self.bar.as_ref().filter(|_| self.is_shared) else {
            self.line = tail(&self.line, text);
            self.out.raw(text)?;
            return self.out.flush();
        };
        self.line.push_str(text);
        if let Some(end) = self.line.rfind('\n') {
            let rest = self.line.split_off(end + 1);
            let whole = std::mem::replace(&mut self.line, rest);
            let out = &mut *self.out;
            bar.suspend(|| out.raw(&whole).and_then(|()| out.flush()))?;
        }
        bar.set_message(last_chars(&self.line, LINE_CHARS_MAX).to_owned());
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), CliError> {
        if self.line.is_empty() { Ok(()) } else { self.text("\n") }
    }
}

/// Two lines: the text that still grows, and how far the whole is.
fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template = "{wide_msg}\n{bar:30} {pos}/{len}{prefix}  {elapsed} gone, {eta} to go";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn failures(bad: usize) -> String {
    if bad == 0 { String::new() } else { format!(", {bad} without success") }
}

/// Whether a note is due: [`NOTES_MAX`] in all, evenly spread, the last one at the end.
fn is_noted(ended: usize, total: usize) -> bool {
    total > 1 && ended * NOTES_MAX / total > (ended - 1) * NOTES_MAX / total
}

fn last_chars(text: &str, chars_max: usize) -> &str {
    let start = text.char_indices().rev().take(chars_max).last().map_or(0, |(start, _)| start);
    &text[start..]
}

/// The last line of what was written, after `text` was added.
fn tail(line: &str, text: &str) -> String {
    match text.rsplit_once('\n') {
        Some((_, rest)) => rest.to_owned(),
        None => format!("{line}{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_few_and_the_last_is_at_the_end() {
        for (total, expected) in [(1, 0), (2, 2), (10, 10), (11, 10), (1000, 10)] {
            let noted: Vec<_> = (1..=total).filter(|ended| is_noted(*ended, total)).collect();
            assert_eq!(noted.len(), expected, "{total}");
            assert!(noted.is_empty() || noted.last() == Some(&total), "{total}");
        }
    }

    #[test]
    fn the_end_of_a_line_is_cut_between_characters() {
        for (text, expected) in [("", ""), ("ab", "ab"), ("abc", "abc"), ("aäöü", "äöü")] {
            assert_eq!(last_chars(text, 3), expected);
        }
    }

    #[test]
    fn text_stands_between_titles_and_ends_with_its_line() {
        let (mut data, mut notes) = (Vec::new(), Vec::new());
        let mut out = Out::into(&mut data, &mut notes, false);
        let titles = vec!["first".to_owned(), "second".to_owned()];
        let mut screen = Screen::new(&mut out, titles);
        for say in [
            Say::Title(0),
            Say::Text("one\ntw".to_owned()),
            Say::Text("o".to_owned()),
            Say::End,
            Say::Title(1),
            Say::Text("half".to_owned()),
            Say::Complaint("failed: it broke".to_owned()),
            Say::End,
        ] {
            screen.say(say).unwrap();
        }
        screen.close().unwrap();
        drop(out);
        assert_eq!(
            String::from_utf8(data).unwrap(),
            "[1/2] first\none\ntwo\n\n[2/2] second\nhalf\n(failed: it broke)\n\n"
        );
    }

    #[test]
    fn a_single_task_has_its_text_alone() {
        let (mut data, mut notes) = (Vec::new(), Vec::new());
        let mut out = Out::into(&mut data, &mut notes, false);
        let mut screen = Screen::new(&mut out, vec!["only".to_owned()]);
        for say in [Say::Title(0), Say::Text("hi".to_owned()), Say::End] {
            screen.say(say).unwrap();
        }
        screen.count(true);
        screen.close().unwrap();
        drop(out);
        assert_eq!((data, notes), (b"hi\n".to_vec(), Vec::new()));
    }
}
