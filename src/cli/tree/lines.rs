//! The tree as lines of a terminal: pure.

use ratatui::text::Span;

use super::model::Tree;
use super::rows::{Mark, Row, rows};
use crate::cli::out::span;

/// The spinner, a frame each tick.
const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// How long a frame is shown.
pub(super) const FRAME_MS: u64 = 100;
/// Names wider than this push what follows to the right.
const NAME_COLUMNS_MAX: usize = 28;
/// Two columns for each step that it is within.
const INDENT_COLUMNS: usize = 2;

/// Where and when the tree is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) columns: usize,
    pub(super) rows_max: usize,
    pub(super) colour: bool,
    pub(super) now_ms: u64,
}

/// The tree in at most `rows_max` lines, none wider than the terminal.
pub(super) fn lines(tree: &Tree, view: View) -> Vec<String> {
    let (rows, hidden) = rows(tree, view.rows_max, view.now_ms);
    let name_columns = rows.iter().map(|row| row.depth * INDENT_COLUMNS + columns(&row.name));
    let name_columns = name_columns.max().unwrap_or(0).min(NAME_COLUMNS_MAX);
    let mut lines: Vec<_> = rows.iter().map(|row| line(row, name_columns, view)).collect();
    if hidden > 0 {
        lines.push(cut(&format!("… {hidden} more"), view.columns));
    }
    lines
}

fn line(row: &Row, name_columns: usize, view: View) -> String {
    let (mark, colour) = mark(row.mark, view.now_ms);
    let name = format!("{:indent$}{}", "", row.name, indent = row.depth * INDENT_COLUMNS);
    let gap = name_columns.saturating_sub(columns(&name));
    let took = row.took_ms.map(span).unwrap_or_default();
    let rest = row.facts.iter().chain(&row.error).fold(String::new(), |rest, fact| {
        if rest.is_empty() { fact.clone() } else { format!("{rest}, {fact}") }
    });
    let text = format!("{name}{:gap$}  {took:>6}  {rest}", "");
    let text = cut(text.trim_end(), view.columns.saturating_sub(2));
    if view.colour { format!("{colour}{mark}\x1b[0m {text}") } else { format!("{mark} {text}") }
}

fn mark(mark: Mark, now_ms: u64) -> (&'static str, &'static str) {
    match mark {
        Mark::AtWork => (FRAMES[(now_ms / FRAME_MS) as usize % FRAMES.len()], "\x1b[36m"),
        Mark::Failed => ("✗", "\x1b[31m"),
        Mark::Waits => ("·", "\x1b[2m"),
        Mark::Succeeded => ("✓", "\x1b[32m"),
        Mark::Cancelled => ("–", "\x1b[2m"),
    }
}

/// How wide a text is on a terminal: a Chinese character takes two columns.
fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

/// The beginning of a text, as one line that fits; nothing in it moves the cursor.
fn cut(text: &str, columns_max: usize) -> String {
    let whole: String = text.chars().map(harmless).collect();
    if columns(&whole) <= columns_max {
        return whole;
    }
    let mut start: String = fitting(text.chars(), columns_max.saturating_sub(1)).collect();
    start.extend((columns_max > 0).then_some('…'));
    start
}

/// The end of a line that grows, so that it is seen to flow.
pub(super) fn tail(text: &str, columns_max: usize) -> String {
    let mut end: Vec<char> = fitting(text.chars().rev(), columns_max).collect();
    end.reverse();
    end.into_iter().collect()
}

/// The first of some characters, as many as fit.
fn fitting(chars: impl Iterator<Item = char>, columns_max: usize) -> impl Iterator<Item = char> {
    let mut left = columns_max;
    chars.map(harmless).take_while(move |c| {
        // The mark that turns the character before it into a wide picture.
        let width = if *c == '\u{fe0f}' { 1 } else { columns(c.encode_utf8(&mut [0; 4])) };
        let is_room = width <= left;
        left = left.saturating_sub(width);
        is_room
    })
}

fn harmless(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::fake::step;
    use crate::task::{State, StepView};

    const VIEW: View = View { columns: 60, rows_max: 10, colour: false, now_ms: 0 };

    fn tree() -> Tree {
        let mut tree = Tree::default();
        for (path, state) in [
            ("director", State::Succeeded),
            ("table#1", State::Running),
            ("table#1/host", State::Queued),
            ("check", State::Failed),
            ("repair", State::Cancelled),
        ] {
            tree.take(&step(path, state), 0);
        }
        tree
    }

    #[test]
    fn a_tree_is_drawn_a_line_a_step() {
        let drawn = lines(&tree(), View { now_ms: 1_500, ..VIEW });
        let expected = [
            "✓ director    3.2s  12 tokens",
            "⠴ table#1     1.5s",
            "·   host",
            "✗ check       3.2s  12 tokens, it broke",
            "– repair      3.2s  12 tokens",
        ];
        assert_eq!(drawn, expected);
    }

    #[test]
    fn colour_stands_only_around_the_mark() {
        let drawn = lines(&tree(), View { colour: true, ..VIEW });
        assert!(drawn[0].starts_with("\x1b[32m✓\x1b[0m director"), "{:?}", drawn[0]);
        let plain = lines(&tree(), VIEW);
        assert!(plain.iter().all(|line| !line.contains('\x1b')), "{plain:?}");
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_counted() {
        let drawn = lines(&tree(), View { columns: 20, rows_max: 3, ..VIEW });
        assert_eq!(drawn.len(), 3);
        assert_eq!(drawn[2], "… 3 more");
        assert!(drawn.iter().all(|line| columns(line) <= 20), "{drawn:?}");
    }

    #[test]
    fn an_error_stays_one_line_and_harmless() {
        let mut tree = Tree::default();
        let mut view = step("a", State::Failed);
        if let Some(error) = &mut view.error {
            error.message = "\x1b[2Jbad\tthing\nsecond line".to_owned();
        }
        tree.take(&StepView { usage: None, ..view }, 0);
        assert_eq!(lines(&tree, VIEW), ["✗ a    3.2s   [2Jbad thing"]);
    }

    #[test]
    fn text_is_cut_by_columns() {
        for (text, columns_max, start, end) in [
            ("abc", 3, "abc", "abc"),
            ("abcd", 3, "ab…", "bcd"),
            ("第一章", 6, "第一章", "第一章"),
            ("第一章", 5, "第一…", "一章"),
            ("第一章", 4, "第…", "一章"),
            ("第", 1, "…", ""),
            ("a", 0, "", ""),
        ] {
            assert_eq!(cut(text, columns_max), start, "{text} {columns_max}");
            assert_eq!(tail(text, columns_max), end, "{text} {columns_max}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_it_may_be(text in any::<String>(), columns_max in 0usize..40) {
            prop_assert!(columns(&cut(&text, columns_max)) <= columns_max);
            prop_assert!(columns(&tail(&text, columns_max)) <= columns_max);
        }
    }
}
