//! What people see of a run: its steps as they stand, and the text of those that speak.
//!
//! * `model`: the steps, from events; `pace`: how fast their text comes
//! * `rows`, `lines`: the tree as lines of a terminal; `words`: the same in sentences
//! * `speaker`: whose turn it is to speak
//! * `live`: the drawing
//!
//! All but this file and `live` is pure.

mod lines;
mod live;
mod model;
mod pace;
mod rows;
mod speaker;
mod words;

use std::collections::BTreeMap;
use std::time::Instant;

pub(crate) use self::model::base_name;
pub(crate) use self::rows::SIBLINGS_MAX;
pub(crate) use self::words::money;

use self::live::{Live, Shared, elapsed_ms, with};
use self::speaker::Speaker;
use super::out::Out;
use super::{CliError, result, steps, when};
use crate::protocol::control::{FollowBody, FollowEvent};
use crate::task::{State, StepView, TaskView};

/// Shows a run while it is followed: text on stdout, its steps on stderr.
pub(crate) struct Show {
    began: Instant,
    shared: Shared,
    /// On a terminal. Elsewhere each move of a step is a line.
    live: Option<Live>,
    speaker: Speaker,
    said: Said,
    /// Remarks that wait for the end of the line of text.
    remarks: Vec<String>,
}

/// What was told of the steps' texts, to compare with the run's output.
#[derive(Default)]
struct Said {
    /// Of steps that have not ended, since each last began.
    open: BTreeMap<String, String>,
    /// Of the one that spoke last among those that have ended.
    last: Option<String>,
    /// The follower came later than some of the text.
    is_partial: bool,
}

impl Show {
    /// `all`: every step speaks, so each has its name before its text. `is_resumed`: from behind
    /// an event.
    pub(crate) fn new(all: bool, is_resumed: bool, out: &Out) -> Self {
        let (began, shared) = (Instant::now(), Shared::default());
        Self {
            began,
            live: Live::start(&shared, began, out),
            shared,
            speaker: Speaker::new(all),
            said: Said { is_partial: is_resumed, ..Said::default() },
            remarks: Vec::new(),
        }
    }

    /// Whether an event is that of a run.
    pub(crate) fn is_about(event: &FollowEvent) -> bool {
        event.step.is_some() || matches!(event.body, FollowBody::Step { .. })
    }

    /// Tells an event.
    pub(crate) fn take(&mut self, event: &FollowEvent, out: &mut Out) -> Result<(), CliError> {
        let step = event.step.as_deref().unwrap_or_default();
        match &event.body {
            FollowBody::Step { view } => self.take_step(view, out),
            FollowBody::Text { text } => {
                self.said.take(step, text);
                let text = self.speaker.take(step, text);
                self.write(&text, out)
            }
            FollowBody::Restarted => {
                self.said.restart(step);
                let text = self.speaker.restart(step);
                self.write(&text, out)?;
                self.remark(format!("{step}: its text begins anew"), out);
                Ok(())
            }
            FollowBody::Gap => {
                self.said.is_partial = true;
                self.remark(format!("{step}: some of its text is missing here"), out);
                Ok(())
            }
            FollowBody::Data { .. }
            | FollowBody::Waiting { .. }
            | FollowBody::Started { .. }
            | FollowBody::Finished { .. } => Ok(()),
        }
    }

    fn take_step(&mut self, view: &StepView, out: &mut Out) -> Result<(), CliError> {
        let now_ms = elapsed_ms(self.began);
        let moved = with(&self.shared, |shown| shown.tree.take(view, now_ms));
        if view.state.is_final() {
            self.said.end(&view.step);
            let text = self.speaker.end(&view.step);
            self.write(&text, out)?;
        }
        if let Some(moved) = moved.filter(|_| self.live.is_none()) {
            self.remark(words::of_move(moved, view), out);
        }
        Ok(())
    }

    /// The run has ended, and its daemon can still be asked about it: its result is told if no
    /// step has spoken, and the tree stays where it was drawn.
    pub(crate) fn end(mut self, task: &TaskView, out: &mut Out) -> Result<(), CliError> {
        let tree = self.close(out)?;
        let has_succeeded = task.state == State::Succeeded;
        if has_succeeded && !self.said.has_something() {
            result::print(task, out)?;
        }
        if let Some(tree) = tree {
            out.note(tree);
        }
        out.note(self.totals(task));
        if has_succeeded && self.said.has_something() && !self.has_told_output(task) {
            out.note(format_args!("hint: `forq result {}` prints its output", task.id));
        }
        Ok(())
    }

    /// The run has ended, and so will its daemon: all that there is to know is told now.
    pub(crate) fn end_whole(mut self, task: &TaskView, out: &mut Out) -> Result<(), CliError> {
        self.close(out)?;
        if task.state == State::Succeeded && !self.has_told_output(task) {
            if self.said.has_something() {
                out.line("")?;
            }
            result::print(task, out)?;
        }
        if !task.by_step.is_empty() {
            out.note_table(&steps::HEADER, steps::rows(&steps::together(&task.by_step)));
        }
        out.note(self.totals(task));
        Ok(())
    }

    /// Takes the drawing away; the tree as it was drawn last.
    fn close(&mut self, out: &mut Out) -> Result<Option<String>, CliError> {
        let text = self.speaker.finish();
        self.write(&text, out)?;
        let tree = self.live.take().map(|live| live.tree());
        self.tell_remarks(out);
        Ok(tree)
    }

    fn totals(&self, task: &TaskView) -> String {
        let mut totals = with(&self.shared, |shown| {
            // Who came late has not heard of all of them.
            for view in &task.by_step {
                shown.tree.take(view, 0);
            }
            shown.tree.totals()
        });
        totals.tokens = task.usage.map_or(totals.tokens, |usage| usage.total_tokens);
        totals.cost = task.cost.or(totals.cost);
        let took_ms = took_ms(task).unwrap_or_else(|| elapsed_ms(self.began));
        words::of_run(task, took_ms, totals)
    }

    fn has_told_output(&self, task: &TaskView) -> bool {
        let output = task.output.as_ref().and_then(|output| result::text_of(output));
        self.said.is_all_of(output.as_deref())
    }

    fn write(&mut self, text: &str, out: &mut Out) -> Result<(), CliError> {
        if text.is_empty() {
            return Ok(());
        }
        match &self.live {
            Some(live) => live.text(text, out)?,
            None => out.raw(text).and_then(|()| out.flush())?,
        }
        if !self.speaker.is_in_line() {
            self.tell_remarks(out);
        }
        Ok(())
    }

    /// Says something about the run, between two lines of text.
    fn remark(&mut self, remark: String, out: &mut Out) {
        self.remarks.push(remark);
        if !self.speaker.is_in_line() {
            self.tell_remarks(out);
        }
    }

    fn tell_remarks(&mut self, out: &mut Out) {
        for remark in self.remarks.drain(..) {
            match &self.live {
                Some(live) => live.note(&remark, out),
                None => out.note(remark),
            }
        }
    }
}

impl Said {
    fn take(&mut self, step: &str, text: &str) {
        match self.open.get_mut(step) {
            Some(said) => said.push_str(text),
            None => drop(self.open.insert(step.to_owned(), text.to_owned())),
        }
    }

    fn restart(&mut self, step: &str) {
        self.open.remove(step);
    }

    fn end(&mut self, step: &str) {
        self.last = self.open.remove(step).or(self.last.take());
    }

    fn has_something(&self) -> bool {
        self.last.is_some() || !self.open.is_empty()
    }

    /// Whether the run's output is the text that was told last.
    fn is_all_of(&self, output: Option<&str>) -> bool {
        let (Some(said), Some(output)) = (self.last.as_deref(), output) else { return false };
        let (said, output) = (said.trim(), output.trim());
        said == output || (self.is_partial && output.ends_with(said))
    }
}

/// From its submission to its end, in milliseconds.
fn took_ms(task: &TaskView) -> Option<u64> {
    let created_ms = when::moment_ms(&task.created_at).ok()?;
    let finished_ms = when::moment_ms(task.finished_at.as_ref()?).ok()?;
    Some(finished_ms.abs_diff(created_ms))
}

#[cfg(test)]
mod tests;
