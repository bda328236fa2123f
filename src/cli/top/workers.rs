//! The table of workers: which columns fit, in which order the rows come.

use std::cmp::Reverse;

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};

use super::view::Paint;
use crate::cli::info::{Worker, loose, text, used};
use crate::cli::out::size;

/// Columns between two columns of the table.
const SPACING: u16 = 2;
/// The last column is cut, down to this.
const LAST_EXIT_WIDTH_MIN: u16 = 9;

/// What comes first in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Slot,
    InFlight,
    Memory,
    Done,
    Restarts,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Slot => Self::InFlight,
            Self::InFlight => Self::Memory,
            Self::Memory => Self::Done,
            Self::Done => Self::Restarts,
            Self::Restarts => Self::Slot,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::InFlight => "tasks",
            Self::Memory => "rss",
            Self::Done => "done",
            Self::Restarts => "restarts",
        }
    }

    /// Most first, but slots from 1; equals stay by slot.
    fn sorted(self, workers: &[Worker]) -> Vec<&Worker> {
        let mut sorted: Vec<&Worker> = workers.iter().collect();
        sorted.sort_by_key(|worker| (worker.slot, worker.pid));
        match self {
            Self::Slot => {}
            Self::InFlight => sorted.sort_by_key(|worker| Reverse(worker.in_flight)),
            Self::Memory => sorted.sort_by_key(|worker| Reverse(worker.rss_bytes)),
            Self::Done => sorted.sort_by_key(|worker| Reverse(worker.tasks_done)),
            Self::Restarts => sorted.sort_by_key(|worker| Reverse(worker.restarts)),
        }
        sorted
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Slot,
    Pid,
    Generation,
    State,
    Tasks,
    Memory,
    Done,
    Restarts,
    LastExit,
}

/// What is kept longest in a narrow window comes first.
const BY_IMPORTANCE: [Column; 9] = [
    Column::Slot,
    Column::State,
    Column::Tasks,
    Column::Pid,
    Column::Memory,
    Column::Done,
    Column::Restarts,
    Column::LastExit,
    Column::Generation,
];

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Slot => "SLOT",
            Self::Pid => "PID",
            Self::Generation => "GEN",
            Self::State => "STATE",
            Self::Tasks => "TASKS",
            Self::Memory => "RSS",
            Self::Done => "DONE",
            Self::Restarts => "RESTARTS",
            Self::LastExit => "LAST EXIT",
        }
    }

    fn value(self, worker: &Worker) -> String {
        match self {
            Self::Slot => text(worker.slot),
            Self::Pid => text(worker.pid),
            Self::Generation => text(worker.generation),
            Self::State => text(worker.state.as_deref()),
            Self::Tasks => used(worker.in_flight, worker.capacity),
            Self::Memory => worker.rss_bytes.map_or_else(|| "-".to_owned(), size),
            Self::Done => text(worker.tasks_done),
            Self::Restarts => text(worker.restarts),
            Self::LastExit => worker.last_exit.as_ref().map(loose).unwrap_or_default(),
        }
    }

    fn style(self, worker: &Worker, paint: Paint) -> Style {
        match (self, worker.state.as_deref()) {
            (Self::State, Some(state)) => paint.state(state),
            _ => Style::default(),
        }
    }
}

/// The columns that fit into `width`, in their order, with their widths.
fn columns(workers: &[&Worker], width: u16) -> Vec<(Column, u16)> {
    let mut left = width;
    let mut chosen = Vec::new();
    for column in BY_IMPORTANCE {
        let values = workers.iter().map(|worker| column.value(worker).chars().count());
        let wanted = values.chain([column.title().len()]).max().unwrap_or(0);
        let wanted = u16::try_from(wanted).unwrap_or(u16::MAX);
        let spacing = if chosen.is_empty() { 0 } else { SPACING };
        let room = left.saturating_sub(spacing);
        let given = if column == Column::LastExit { wanted.min(room) } else { wanted };
        if column == Column::LastExit && given < LAST_EXIT_WIDTH_MIN {
            continue;
        }
        if given > room {
            break;
        }
        left = room - given;
        chosen.push((column, given));
    }
    chosen.sort_unstable();
    chosen
}

/// Draws as many workers as fit, and says how many do not.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    workers: &[Worker],
    sort: Sort,
    paint: Paint,
) {
    let workers = sort.sorted(workers);
    let rows = usize::from(area.height);
    if rows == 0 {
        return;
    }
    // A header is worth a row only if all workers, or a few, are there besides.
    let has_header = rows > workers.len() || rows >= 4;
    let room = rows - usize::from(has_header);
    let shown = if workers.len() <= room { workers.len() } else { room - 1 };
    let columns = columns(&workers, area.width);
    let lines =
        workers.iter().take(shown).map(|worker| {
            Row::new(columns.iter().map(|(column, _)| {
                Cell::new(column.value(worker)).style(column.style(worker, paint))
            }))
        });
    let widths = columns.iter().map(|(_, width)| Constraint::Length(*width));
    let mut table = Table::new(lines, widths).column_spacing(SPACING);
    if has_header {
        let titles = columns.iter().map(|(column, _)| column.title());
        table = table.header(Row::new(titles).style(paint.dim()));
    }
    frame.render_widget(table, area);
    if shown < workers.len() {
        let more = Line::styled(format!("{} more", workers.len() - shown), paint.dim());
        frame.render_widget(more, Rect { y: area.bottom() - 1, height: 1, ..area });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers() -> Vec<Worker> {
        let worker = |slot, in_flight, last_exit: Option<&str>| Worker {
            slot: Some(slot),
            pid: Some(1_000_000 + slot as i32),
            generation: Some(1),
            state: Some("draining".to_owned()),
            in_flight: Some(in_flight),
            capacity: Some(32),
            rss_bytes: Some(u64::from(slot) << 20),
            last_exit: last_exit.map(Into::into),
            ..Worker::default()
        };
        vec![worker(2, 0, Some("ended by SIGKILL")), worker(1, 3, None), worker(3, 3, None)]
    }

    fn titles(width: u16) -> Vec<&'static str> {
        let workers = workers();
        let columns = columns(&workers.iter().collect::<Vec<_>>(), width);
        let used: u16 = columns.iter().map(|(_, width)| width + SPACING).sum();
        assert!(used <= width + SPACING, "{width}");
        columns.iter().map(|(column, _)| column.title()).collect()
    }

    #[test]
    fn a_narrow_window_keeps_the_columns_that_matter() {
        assert_eq!(titles(3), [""; 0]);
        assert_eq!(titles(5), ["SLOT"]);
        assert_eq!(titles(21), ["SLOT", "STATE", "TASKS"]);
        let all = ["SLOT", "PID", "GEN", "STATE", "TASKS", "RSS", "DONE", "RESTARTS", "LAST EXIT"];
        assert_eq!(titles(80), all);
    }

    #[test]
    fn workers_are_sorted_most_first() {
        let workers = workers();
        let order = |sort: Sort| -> Vec<u32> {
            sort.sorted(&workers).iter().filter_map(|worker| worker.slot).collect()
        };
        assert_eq!(order(Sort::Slot), [1, 2, 3]);
        assert_eq!(order(Sort::InFlight), [1, 3, 2]);
        assert_eq!(order(Sort::Memory), [3, 2, 1]);
        let mut sort = Sort::default();
        for _ in 0..5 {
            sort = sort.next();
        }
        assert_eq!(sort, Sort::Slot);
    }
}
