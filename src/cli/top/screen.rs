//! The terminal: taken over, waited on, and given back whichever way this ends.

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};

/// Where the terminal is written to.
type Tty = BufWriter<File>;

/// The terminal, full of us.
pub(super) struct Screen {
    // Never dropped: that would show the cursor, which is the guard's part, and panic where stderr
    // is gone along with the terminal.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<Tty>>>,
    _restore: Restore,
    wake: UnixStream,
    waker: UnixStream,
    /// The signal that ends us, if one came.
    ending: Arc<AtomicUsize>,
}

/// Why a wait ended.
pub(super) enum Woken {
    /// By this signal, to end.
    Signal(u8),
    /// By a key, a look, a new size, or time.
    Other,
}

/// Gives the terminal back.
struct Restore(File);

impl Drop for Restore {
    fn drop(&mut self) {
        give_back(&self.0);
    }
}

/// If the terminal is gone there is nothing to give back.
fn give_back(tty: &File) {
    let _ = disable_raw_mode();
    let _ = execute!(BufWriter::new(tty), LeaveAlternateScreen, Show);
}

/// Gives the terminal back before a panic is told, so that it is told where it can be read.
fn give_back_in_panic(tty: File) {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        give_back(&tty);
        told(panic);
    }));
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn open() -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let ending = Arc::new(AtomicUsize::new(0));
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            let number = usize::try_from(signal).unwrap_or_default();
            // Before the pipe: who is woken must find the number.
            signal_hook::flag::register_usize(signal, Arc::clone(&ending), number)?;
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        signal_hook::low_level::pipe::register(SIGWINCH, waker.try_clone()?)?;
        // Not through std's stdout: what it cannot write would count as lost data at the end.
        let tty = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        give_back_in_panic(tty.try_clone()?);
        let restore = Restore(tty.try_clone()?);
        let mut tty = BufWriter::new(tty);
        enable_raw_mode()?;
        execute!(tty, EnterAlternateScreen)?;
        let terminal = ManuallyDrop::new(Terminal::new(CrosstermBackend::new(tty))?);
        Ok(Self { terminal, _restore: restore, wake, waker, ending })
    }

    /// Where a byte ends a wait.
    pub(super) fn waker(&self) -> io::Result<UnixStream> {
        self.waker.try_clone()
    }

    /// Draws, in the size that the window has now.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(|_| ())
    }

    /// Waits for a key, a byte or a signal, for `timeout` at most.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<Woken> {
        let is_gone = self.poll(timeout)?;
        let mut bytes = [0; 64];
        while matches!(self.wake.read(&mut bytes), Ok(count) if count > 0) {}
        Ok(self.ending(is_gone).map_or(Woken::Other, Woken::Signal))
    }

    /// The signal that ended us, if that is why something failed.
    pub(super) fn fate(&self) -> Option<u8> {
        let is_gone = self.poll(Duration::ZERO).unwrap_or(false);
        self.ending(is_gone)
    }

    fn ending(&self, is_gone: bool) -> Option<u8> {
        match self.ending.load(Ordering::SeqCst) {
            // There is no signal where the terminal is not our controlling one.
            0 if is_gone => u8::try_from(SIGHUP).ok(),
            0 => None,
            number => u8::try_from(number).ok(),
        }
    }

    /// Waits, and says whether the terminal is gone.
    fn poll(&self, timeout: Duration) -> io::Result<bool> {
        let stdin = io::stdin();
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        Ok(fds[0].revents().is_some_and(|events| events.intersects(gone)))
    }

    /// What was typed.
    pub(super) fn events(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        while event::poll(Duration::ZERO)? {
            events.push(event::read()?);
        }
        Ok(events)
    }
}
