//! Draws what is known of the daemon into a window of any size.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Sparkline;

use super::model::{Board, Link, Snapshot, Times};
use super::plan::Plan;
use super::workers::{self, Sort};
use crate::cli::info::{self, Process, text};
use crate::cli::out::{size, span};

/// A narrower window has no room for the names of lines.
const NAMES_FROM_WIDTH: u16 = 40;
/// Names are padded to this.
const NAME_WIDTH: usize = 7;
/// A sentence that is wider than the window may take this many rows.
const TROUBLE_ROWS_MAX: usize = 3;
/// Columns for an event's age.
const AGE_WIDTH: usize = 6;

/// How it is shown, rather than what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) now: Instant,
    pub(super) paused: bool,
    pub(super) sort: Sort,
    pub(super) paint: Paint,
}

/// Styles, without colours where they are not wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    pub(super) colour: bool,
}

impl Paint {
    fn fg(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    pub(super) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn alarm(self) -> Style {
        self.fg(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// For a worker's state or the daemon's phase.
    pub(super) fn state(self, state: &str) -> Style {
        match state {
            "ready" | "running" => self.fg(Color::Green),
            "degraded" | "no daemon" => self.fg(Color::Red),
            "draining" | "stopping" => self.fg(Color::Yellow),
            _ => self.fg(Color::Cyan),
        }
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, board: &Board, look: Look) {
    let area = frame.area();
    let head = head(board, look, area.width);
    let workers = board.current().map_or(&[][..], |seen| &seen.info.workers);
    let plan = Plan::of(
        area.height,
        rows(head.len()),
        if workers.is_empty() { 0 } else { rows(workers.len() + 1) },
        rows(board.events.len() + 1),
    );
    let mut top = area.top();
    let mut take = |height: u16| {
        let part = Rect { y: top, height, ..area };
        top += height;
        part
    };
    draw_head(frame, take(plan.head), head, board);
    take(plan.gap);
    workers::draw(frame, take(plan.workers), workers, look.sort, look.paint);
    take(plan.gap);
    draw_events(frame, take(plan.events), board, look);
    draw_keys(frame, take(plan.keys), look);
}

fn rows(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// A line of the head.
enum Headline {
    Text(Line<'static>),
    /// The line, with the past rates to its right.
    Rate(Line<'static>),
}

/// The most important line first: a small window shows only some.
fn head(board: &Board, look: Look, width: u16) -> Vec<Headline> {
    let mut head = vec![status(board, look)];
    let mut lines = trouble(board)
        .iter()
        .flat_map(|sentence| wrapped(sentence, width))
        .map(|row| Line::styled(row, look.paint.alarm()))
        .collect();
    head.append(&mut lines);
    let mut head: Vec<Headline> = head.into_iter().map(Headline::Text).collect();
    let Some(seen) = board.current() else { return head };
    let named = |name: &str, text: String| {
        let name =
            if width < NAMES_FROM_WIDTH { String::new() } else { format!("{name:NAME_WIDTH$}") };
        Line::from(vec![Span::styled(name, look.paint.dim()), Span::raw(text)])
    };
    head.extend(queue(seen).map(|text| Headline::Text(named("queue", text))));
    if board.link == Link::Live {
        head.push(Headline::Rate(named("ended", rates(board, seen))));
        head.push(Headline::Text(named("times", times(seen))));
    }
    let scale = seen.info.scale.as_ref().map(info::scale);
    head.extend(scale.map(|text| Headline::Text(named("scale", text))));
    head
}

fn status(board: &Board, look: Look) -> Line<'static> {
    let mut spans = Vec::new();
    if look.paused {
        spans.push(Span::styled(" PAUSED ", Style::new().add_modifier(Modifier::REVERSED)));
        spans.push(Span::raw("  "));
    }
    let (word, rest) = match (&board.link, board.current()) {
        (Link::New, _) => ("connecting".to_owned(), Vec::new()),
        (_, None) => ("no daemon".to_owned(), Vec::new()),
        (_, Some(seen)) => (text(seen.info.phase.as_deref()), about(seen)),
    };
    let style = look.paint.state(&word).add_modifier(Modifier::BOLD);
    spans.push(Span::styled(word, style));
    spans.extend(rest.into_iter().map(|part| Span::raw(format!("  {part}"))));
    Line::from(spans)
}

fn about(seen: &Snapshot) -> Vec<String> {
    let info = &seen.info;
    let mut parts = Vec::new();
    let uptime = info.uptime_s.map(|s| Duration::try_from_secs_f64(s).unwrap_or_default());
    parts.extend(uptime.map(|uptime| format!("up {}", age(uptime))));
    parts.extend(info.version.as_ref().map(|version| format!("forq {version}")));
    parts.extend(info.master.as_ref().map(|master| format!("master {}", process(master))));
    parts.extend(info.broker.as_ref().map(|broker| format!("broker {}", process(broker))));
    parts
}

fn process(process: &Process) -> String {
    let rss = process.rss_bytes.map(|bytes| format!(" {}", size(bytes))).unwrap_or_default();
    let restarts = match process.restarts {
        None | Some(0) => String::new(),
        Some(1) => " 1 restart".to_owned(),
        Some(many) => format!(" {many} restarts"),
    };
    format!("{}{rss}{restarts}", text(process.pid))
}

/// What is wrong, a sentence each.
fn trouble(board: &Board) -> Vec<String> {
    let mut sentences = Vec::new();
    match &board.link {
        Link::Lost(why) => sentences.push(why.clone()),
        Link::Silent => sentences
            .push("the broker does not answer: this is what the master last wrote".to_owned()),
        Link::New | Link::Live => {}
    }
    if let Some(seen) = board.current() {
        sentences.extend(seen.info.reason.clone());
        if seen.info.disk_full == Some(true) {
            sentences.push("the disk is full".to_owned());
        }
    }
    sentences
}

/// Cut into rows, for what matters may stand at the end.
fn wrapped(sentence: &str, width: u16) -> Vec<String> {
    let chars: Vec<char> = sentence.chars().collect();
    let rows = chars.chunks(usize::from(width.max(1)));
    rows.take(TROUBLE_ROWS_MAX).map(|row| row.iter().collect()).collect()
}

fn queue(seen: &Snapshot) -> Option<String> {
    let queue = seen.info.queue.as_ref()?;
    let pause = queue.pause().map(|pause| format!("{pause}  ")).unwrap_or_default();
    Some(format!(
        "{pause}{} queued  {} running  {} scheduled  {} blocked",
        queue.queued, queue.running, queue.scheduled, queue.blocked
    ))
}

/// Measured here, then counted by the daemon.
fn rates(board: &Board, seen: &Snapshot) -> String {
    let shown = |number: Option<f64>, digits: usize| {
        number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
    };
    let used = seen.stats.utilisation.map(|part| part * 100.0);
    format!(
        "{}/s  {}/min  {} % used",
        shown(board.rates.back().copied(), 1),
        shown(seen.stats.tasks_per_min, 0),
        shown(used, 0)
    )
}

fn times(seen: &Snapshot) -> String {
    let shown = |name: &str, times: Times| {
        let ms = |ms: Option<f64>| {
            ms.map_or_else(|| "-".to_owned(), |ms| span(ms.max(0.0).round() as u64))
        };
        format!("{name} p50 {} p95 {}", ms(times.p50), ms(times.p95))
    };
    format!("{}  {}", shown("wait", seen.stats.wait_ms), shown("run", seen.stats.run_ms))
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, head: Vec<Headline>, board: &Board) {
    for (row, line) in area.rows().zip(head) {
        match line {
            Headline::Text(line) => frame.render_widget(line, row),
            Headline::Rate(line) => {
                let used = rows(line.width()).saturating_add(2).min(row.width);
                frame.render_widget(line, row);
                let rest = Rect { x: row.x + used, width: row.width - used, ..row };
                frame.render_widget(past(board, rest.width), rest);
            }
        }
    }
}

/// The newest rates that fit, in tenths, as bars.
fn past(board: &Board, width: u16) -> Sparkline<'static> {
    let surplus = board.rates.len().saturating_sub(usize::from(width));
    let tenths = board.rates.iter().skip(surplus).map(|rate| (rate * 10.0) as u64);
    Sparkline::default().data(tenths.collect::<Vec<u64>>())
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, board: &Board, look: Look) {
    let mut lines = area.rows();
    if board.events.len() == 0 {
        return;
    }
    if area.height >= 3
        && let Some(row) = lines.next()
    {
        let title = format!("{:<AGE_WIDTH$}  EVENT", "AGO");
        frame.render_widget(Line::styled(title, look.paint.dim()), row);
    }
    for (row, event) in lines.zip(board.events.newest_first()) {
        let ago = age(look.now.saturating_duration_since(event.at));
        let line = Line::from(vec![
            Span::styled(format!("{ago:<AGE_WIDTH$}  "), look.paint.dim()),
            Span::raw(event.text.clone()),
        ]);
        frame.render_widget(line, row);
    }
}

fn draw_keys(frame: &mut Frame<'_>, area: Rect, look: Look) {
    let keys = format!("q quit  p pause  s sort: {}", look.sort.word());
    frame.render_widget(Line::styled(keys, look.paint.dim()), area);
}

/// In whole seconds: tenths would flicker.
fn age(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..60 => format!("{s}s"),
        s => span(s.saturating_mul(1_000)),
    }
}

#[cfg(test)]
mod tests;
