//! Where a verb's data and remarks go: stdout and stderr, or a test's buffers.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use super::error::CliError;
use crate::task::State;

/// Data for stdout, remarks for stderr, and in which form.
pub(crate) struct Out<'a> {
    data: Box<dyn Write + 'a>,
    notes: Box<dyn Write + 'a>,
    /// For programs.
    pub(crate) json: bool,
    colour: bool,
    /// Which of the two are terminals.
    pub(crate) terminals: Terminals,
}

/// Which of a process's streams are terminals.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terminals {
    pub(crate) data: bool,
    pub(crate) notes: bool,
}

impl<'a> Out<'a> {
    /// The process's own. Data is buffered: [`Out::flush`] before waiting for anything.
    pub(crate) fn stdio(json: bool) -> Out<'static> {
        let terminals =
            Terminals { data: io::stdout().is_terminal(), notes: io::stderr().is_terminal() };
        Out {
            data: Box::new(io::BufWriter::new(io::stdout().lock())),
            notes: Box::new(io::stderr()),
            json,
            colour: wants_colour(),
            terminals,
        }
    }

    /// Plain, into any writers.
    #[cfg(test)]
    pub(crate) fn into(data: &'a mut Vec<u8>, notes: &'a mut Vec<u8>, json: bool) -> Self {
        let (data, notes) = (Box::new(data), Box::new(notes));
        Self { data, notes, json, colour: false, terminals: Terminals::default() }
    }

    /// A line of data.
    pub(crate) fn line(&mut self, line: impl Display) -> Result<(), CliError> {
        writeln!(self.data, "{line}").map_err(|error| CliError::output(&error))
    }

    /// Data as it is.
    pub(crate) fn raw(&mut self, text: &str) -> Result<(), CliError> {
        self.data.write_all(text.as_bytes()).map_err(|error| CliError::output(&error))
    }

    /// A line of JSON.
    pub(crate) fn value(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), CliError> {
        match serde_json::to_string(value) {
            Ok(json) => self.line(json),
            Err(error) => Err(CliError::internal(format!("cannot write JSON: {error}"))),
        }
    }

    /// A remark for people. Nothing depends on it, so nothing fails over it.
    pub(crate) fn note(&mut self, note: impl Display) {
        let _ = self.flush();
        let _ = writeln!(self.notes, "{note}");
    }

    /// Lets the reader have what was written so far.
    pub(crate) fn flush(&mut self) -> Result<(), CliError> {
        self.data.flush().map_err(|error| CliError::output(&error))
    }

    /// A table for people, without lines.
    pub(crate) fn table(
        &mut self,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<Cell>>,
    ) -> Result<(), CliError> {
        self.line(table(header, rows, self.colour && self.terminals.data))
    }

    /// The same as a remark.
    pub(crate) fn note_table(
        &mut self,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<Cell>>,
    ) {
        self.note(table(header, rows, self.colour && self.terminals.notes));
    }

    /// Whether remarks may have colour.
    pub(crate) fn notes_have_colour(&self) -> bool {
        self.colour && self.terminals.notes
    }

    /// Names and values, one a line, the values in one column.
    pub(crate) fn pairs(&mut self, pairs: &[(&str, String)]) -> Result<(), CliError> {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in pairs {
            self.line(format_args!("{name:width$}  {value}"))?;
        }
        Ok(())
    }
}

fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<Cell>>, colour: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.force_no_tty();
    if colour {
        table.enforce_styling();
    }
    table.set_header(header.iter().map(Cell::new));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Whether the environment lets us use colour; <https://no-color.org>.
pub(crate) fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A cell with a state, and what it waits for.
pub(crate) fn state_cell(state: State, shown: String) -> Cell {
    let cell = Cell::new(shown);
    match state {
        State::Succeeded => cell.fg(Color::Green),
        State::Failed => cell.fg(Color::Red),
        State::Cancelled => cell.fg(Color::DarkGrey),
        State::Running => cell.fg(Color::Cyan),
        State::Queued | State::Scheduled | State::Blocked => cell,
    }
}

/// Tells an error, once, at the edge.
pub(crate) fn tell(error: &CliError) {
    if error.message.is_empty() {
        return;
    }
    let mut stderr = io::stderr().lock();
    let (on, off) =
        if stderr.is_terminal() && wants_colour() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let _ = writeln!(stderr, "{on}error:{off} {}", error.message);
    if let Some(hint) = &error.hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

/// A span for people: `850ms`, `12.3s`, `4m05s`, `3h20m`, `2d04h`.
pub(crate) fn span(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}.{}s", ms % 1_000 / 100),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3_600 % 24),
    }
}

/// A size for people, in the units that configuration uses.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, unit_bytes) in UNITS {
        if bytes >= unit_bytes {
            return format!(
                "{}.{}{unit}",
                bytes / unit_bytes,
                bytes % unit_bytes * 10 / unit_bytes
            );
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_short() {
        let spans = [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1.0s"),
            (12_345, "12.3s"),
            (65_000, "1m05s"),
            (3_700_000, "1h01m"),
            (100_000_000, "1d03h"),
        ];
        for (ms, expected) in spans {
            assert_eq!(span(ms), expected);
        }
        for (bytes, expected) in [(5, "5B"), (1536, "1.5KiB"), (16 << 20, "16.0MiB")] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn a_table_has_no_escapes_without_colour_and_no_trailing_blanks() {
        let (mut data, mut notes) = (Vec::new(), Vec::new());
        let mut out = Out::into(&mut data, &mut notes, false);
        out.table(
            &["A", "STATE"],
            [vec![Cell::new("1"), state_cell(State::Failed, "failed".to_owned())]],
        )
        .unwrap();
        drop(out);
        assert_eq!(String::from_utf8(data).unwrap(), "A  STATE\n1  failed\n");
    }
}
