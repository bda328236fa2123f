//! `forq top`: the daemon, live, on a terminal.
//!
//! [`watch`] looks at the daemon, [`model`] and [`events`] keep what was seen, [`view`] draws it.
//! Here are the terminal, the keys and the signals.

mod events;
mod model;
mod plan;
mod screen;
mod view;
mod watch;
mod workers;

use std::io::{self, IsTerminal};
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

use self::model::Board;
use self::screen::{Screen, Woken};
use self::view::{Look, Paint};
use self::watch::Watch;
use self::workers::Sort;
use super::out::{Out, wants_colour};
use super::{CliError, Exit, Globals, when};

/// Faster than this is a load on the daemon, and nobody reads it.
const INTERVAL_MS_MIN: u64 = 100;
/// Slower than this is not live.
const INTERVAL_MS_MAX: u64 = 60_000;
/// Events grow older even if nothing is seen.
const REDRAW: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Time between two looks at the daemon, 100ms to 1m
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let ms = when::duration_ms(text)?;
    if !(INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&ms) {
        return Err("must be 100ms to 1m".to_owned());
    }
    Ok(Duration::from_millis(ms))
}

pub(crate) fn run(args: TopArgs, globals: &Globals, out: &Out<'_>) -> Result<u8, CliError> {
    if out.json || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(CliError::invalid("top is a live view, and needs a terminal")
            .hint("for programs there are `forq stats --json` and `forq info --json`"));
    }
    let instance = globals.instance_to_ask()?;
    let mut screen = Screen::open().map_err(|error| broken(&error))?;
    let waker = screen.waker().map_err(|error| broken(&error))?;
    let watch = Watch::start(instance, args.interval, waker).map_err(|error| broken(&error))?;
    show(&mut screen, &watch).or_else(|error| match screen.fate() {
        Some(signal) => Ok(128 + signal),
        None => Err(broken(&error)),
    })
}

/// Shows what is seen until the user, a signal or the terminal's end says otherwise.
fn show(screen: &mut Screen, watch: &Watch) -> io::Result<u8> {
    let mut top = Top::default();
    loop {
        let now = Instant::now();
        loop {
            match watch.sights.try_recv() {
                Ok(sight) => top.board.take(sight, now),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("the thread that looks at the daemon ended"));
                }
            }
        }
        let (board, look) = top.shown(now);
        screen.draw(|frame| view::draw(frame, board, look))?;
        match screen.wait(REDRAW)? {
            Woken::Signal(signal) => return Ok(128 + signal),
            Woken::Other => {}
        }
        for event in screen.events()? {
            if top.heed(&event, Instant::now()) == Heed::Leave {
                return Ok(Exit::Done as u8);
            }
        }
    }
}

fn broken(error: &io::Error) -> CliError {
    CliError::new(Exit::Unavailable, format!("the terminal does not work: {error}"))
}

/// What is known, and how the user wants to see it.
#[derive(Default)]
struct Top {
    board: Board,
    /// What was known, and when the view was paused.
    frozen: Option<(Board, Instant)>,
    sort: Sort,
}

#[derive(Debug, PartialEq, Eq)]
enum Heed {
    Stay,
    Leave,
}

impl Top {
    fn shown(&self, now: Instant) -> (&Board, Look) {
        let (board, now) = match &self.frozen {
            Some((board, at)) => (board, *at),
            None => (&self.board, now),
        };
        let paint = Paint { colour: wants_colour() };
        (board, Look { now, paused: self.frozen.is_some(), sort: self.sort, paint })
    }

    fn heed(&mut self, event: &Event, now: Instant) -> Heed {
        let Event::Key(key) = event else { return Heed::Stay };
        if key.kind == KeyEventKind::Release {
            return Heed::Stay;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Heed::Leave,
            _ if control => {}
            KeyCode::Char('q') | KeyCode::Esc => return Heed::Leave,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('p') => {
                self.frozen = match self.frozen.take() {
                    None => Some((self.board.clone(), now)),
                    Some(_) => None,
                };
            }
            _ => {}
        }
        Heed::Stay
    }
}

#[cfg(test)]
mod tests {
    use super::model::Sight;
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    fn key(code: KeyCode, modifiers: KeyModifiers) -> Event {
        Event::Key(KeyEvent::new(code, modifiers))
    }

    #[test]
    fn keys_leave_pause_and_sort() {
        let now = Instant::now();
        let mut top = Top::default();
        let mut press = |code, modifiers| top.heed(&key(code, modifiers), now);
        let none = KeyModifiers::NONE;
        assert_eq!(press(KeyCode::Char('q'), none), Heed::Leave);
        assert_eq!(press(KeyCode::Esc, none), Heed::Leave);
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Heed::Leave);
        assert_eq!(press(KeyCode::Char('c'), none), Heed::Stay);
        assert_eq!(press(KeyCode::Char('q'), KeyModifiers::CONTROL), Heed::Stay);
        assert_eq!(press(KeyCode::Char('s'), none), Heed::Stay);
        assert_eq!(top.heed(&Event::Resize(20, 5), now), Heed::Stay);
        assert_ne!(top.sort, Sort::default());
    }

    #[test]
    fn a_paused_view_stands_still_and_misses_nothing() {
        let start = Instant::now();
        let later = start + Duration::from_secs(9);
        let mut top = Top::default();
        let pause = key(KeyCode::Char('p'), KeyModifiers::NONE);
        top.heed(&pause, start);
        top.board.take(Sight::Lost("first".to_owned()), start);
        top.board.take(Sight::Lost("then".to_owned()), later);
        let (board, look) = top.shown(later);
        assert_eq!((board.events.len(), look.now, look.paused), (0, start, true));
        top.heed(&pause, later);
        let (board, look) = top.shown(later);
        assert_eq!((board.events.len(), look.now, look.paused), (1, later, false));
    }

    #[test]
    fn intervals_have_bounds() {
        assert_eq!(interval("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(interval("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(interval("1m"), Ok(Duration::from_secs(60)));
        for text in ["0s", "99ms", "61s", "1h", "", "-1s"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
