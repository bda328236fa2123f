//! The tree on a terminal: drawn below the text, again and again, so that time is seen to pass.
//!
//! Only whole lines of text go above it for good; the line that is still growing is shown in the
//! first line of what is drawn.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use ratatui::crossterm::terminal;

use super::lines::{FRAME_MS, View, lines, tail};
use super::model::Tree;
use crate::cli::CliError;
use crate::cli::out::Out;

/// Lines of the terminal that the tree leaves to the text.
const ROWS_LEFT: usize = 3;
/// Of a terminal that does not say how large it is: columns, rows.
const SIZE_DEFAULT: (u16, u16) = (80, 24);

/// What is drawn, as the drawing thread sees it.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) tree: Tree,
    /// The text that has no end of line yet.
    line: String,
}

/// A run's steps, for whoever draws them.
pub(super) type Shared = Arc<Mutex<Shown>>;

/// Looks at what is shown, or changes it. Nobody panics in between.
pub(super) fn with<T>(shared: &Shared, act: impl FnOnce(&mut Shown) -> T) -> T {
    act(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The drawing.
pub(super) struct Live {
    bar: ProgressBar,
    shared: Shared,
    began: Instant,
    colour: bool,
    /// The text goes above the tree, on the same terminal.
    has_text: bool,
}

impl Live {
    /// `None` where there is no terminal that can be drawn on.
    pub(super) fn start(shared: &Shared, began: Instant, out: &Out) -> Option<Self> {
        if !out.terminals.notes {
            return None;
        }
        let target = ProgressDrawTarget::stderr();
        if target.is_hidden() {
            return None;
        }
        let (drawn, colour) = (Arc::clone(shared), out.notes_have_colour());
        let draw = move |_: &ProgressState, to: &mut dyn fmt::Write| {
            // It is a string that is written to.
            let _ = to.write_str(&with(&drawn, |shown| picture(shown, began, colour)));
        };
        let style = ProgressStyle::with_template("{tree}").ok()?.with_key("tree", draw);
        let bar = ProgressBar::with_draw_target(None, target).with_style(style);
        bar.enable_steady_tick(Duration::from_millis(FRAME_MS));
        let (shared, has_text) = (Arc::clone(shared), out.terminals.data);
        Some(Self { bar, shared, began, colour, has_text })
    }

    /// Writes text: its whole lines above the tree.
    pub(super) fn text(&self, text: &str, out: &mut Out) -> Result<(), CliError> {
        if !self.has_text {
            out.raw(text)?;
            return out.flush();
        }
        let whole = with(&self.shared, |shown| {
            shown.line.push_str(text);
            let end = shown.line.rfind('\n')? + 1;
            let rest = shown.line.split_off(end);
            Some(std::mem::replace(&mut shown.line, rest))
        });
        match whole {
            Some(whole) => self.bar.suspend(|| out.raw(&whole).and_then(|()| out.flush())),
            None => {
                // Any change has it drawn, as often as eyes can follow.
                self.bar.set_message("");
                Ok(())
            }
        }
    }

    /// Writes a remark above the tree.
    pub(super) fn note(&self, note: &str, out: &mut Out) {
        self.bar.suspend(|| out.note(note));
    }

    /// The tree as it stands now.
    pub(super) fn tree(&self) -> String {
        with(&self.shared, |shown| drawn_tree(&shown.tree, self.began, self.colour).join("\n"))
    }
}

impl Drop for Live {
    /// Takes the drawing away, here and now: the drawing thread may hold the bar for longer.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn picture(shown: &Shown, began: Instant, colour: bool) -> String {
    let mut lines = drawn_tree(&shown.tree, began, colour);
    if !shown.line.is_empty() {
        lines.insert(0, tail(&shown.line, size().0));
    }
    lines.join("\n")
}

fn drawn_tree(tree: &Tree, began: Instant, colour: bool) -> Vec<String> {
    let (columns, rows) = size();
    let rows_max = rows.saturating_sub(ROWS_LEFT).max(1);
    lines(tree, View { columns, rows_max, colour, now_ms: elapsed_ms(began) })
}

/// Of the terminal: columns, rows.
fn size() -> (usize, usize) {
    let (columns, rows) = terminal::size().unwrap_or(SIZE_DEFAULT);
    (usize::from(columns.max(1)), usize::from(rows))
}

/// The clock of a tree.
pub(super) fn elapsed_ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
