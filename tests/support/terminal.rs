//! A pseudo-terminal with a command in it: what it shows, and keys typed into it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{Termios, tcgetattr};

use super::daemon::eventually_ended;
use super::{SOON, eventually};

/// A terminal that a command runs in. The command ends with this value.
pub(crate) struct Terminal {
    master: Option<File>,
    /// Kept open, so that what the command leaves behind can be looked at.
    slave: File,
    path: PathBuf,
    child: Child,
    /// Everything that was written so far.
    written: Vec<u8>,
    screen: Screen,
}

impl Terminal {
    /// Runs `command` in a new terminal of this size, which is its controlling one.
    #[track_caller]
    pub(crate) fn run(command: &Command, columns: u16, rows: u16) -> Self {
        // Closed on exec: else a daemon that another test starts would hold it open.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags).expect("a pseudo-terminal");
        grantpt(&master).expect("its other side");
        unlockpt(&master).expect("its other side");
        let path = PathBuf::from(ptsname_r(&master).expect("its name"));
        let master = File::from(OwnedFd::from(master));
        let noctty = OFlag::O_NOCTTY.bits();
        let slave = OpenOptions::new().read(true).write(true).custom_flags(noctty).open(&path);
        let slave = slave.expect("its other side");
        resize(&path, columns, rows);

        let side = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut in_session = Command::new("setsid");
        in_session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => in_session.env(name, value),
                None => in_session.env_remove(name),
            };
        }
        let child = in_session.env("TERM", "xterm").stdin(side()).stdout(side()).stderr(side());
        let child = child.spawn().expect("setsid, which util-linux has");
        let screen = Screen::new(columns, rows);
        Self { master: Some(master), slave, path, child, written: Vec::new(), screen }
    }

    /// Waits until the screen shows `part` on one of its rows.
    #[track_caller]
    pub(crate) fn until(&mut self, part: &str) {
        self.until_rows(part, |rows| rows.iter().any(|row| row.contains(part)));
    }

    /// Waits until the rows of the screen are as `wanted`; `what` is for the message.
    #[track_caller]
    pub(crate) fn until_rows(&mut self, what: &str, wanted: impl Fn(&[String]) -> bool) {
        let mut rows = Vec::new();
        let deadline = std::time::Instant::now() + SOON;
        while std::time::Instant::now() < deadline {
            self.read();
            rows = self.screen.rows();
            if wanted(&rows) {
                return;
            }
            super::pause(std::time::Duration::from_millis(5));
        }
        panic!("the screen never shows '{what}': {rows:#?}");
    }

    /// Everything that was written so far, with its escapes.
    pub(crate) fn written(&mut self) -> String {
        self.read();
        String::from_utf8_lossy(&self.written).into_owned()
    }

    /// Types.
    pub(crate) fn type_in(&mut self, keys: &str) {
        let master = self.master.as_mut().expect("an open terminal");
        master.write_all(keys.as_bytes()).expect("a terminal that listens");
    }

    /// Gives the window another size.
    pub(crate) fn resize(&mut self, columns: u16, rows: u16) {
        self.read();
        self.screen = Screen::new(columns, rows);
        resize(&self.path, columns, rows);
    }

    /// How the terminal is set: raw, or as a shell wants it.
    pub(crate) fn settings(&self) -> Termios {
        tcgetattr(self.slave.as_fd()).expect("a terminal")
    }

    /// The pid of the command.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Takes the terminal away, as a closed window does.
    pub(crate) fn hang_up(&mut self) {
        self.master = None;
    }

    /// Waits for the command's end.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        eventually("the command ends", SOON, || {
            self.read();
            self.child.try_wait().expect("a child of this test")
        })
    }

    /// Takes in what was written since.
    fn read(&mut self) {
        let Some(master) = &mut self.master else { return };
        let mut bytes = [0; 4096];
        loop {
            match master.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => {
                    self.written.extend_from_slice(&bytes[..count]);
                    self.screen.write(&bytes[..count]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing there now, or (EIO) nobody on the other side.
                Err(_) => return,
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = eventually_ended(&mut self.child, SOON);
    }
}

#[track_caller]
fn resize(path: &PathBuf, columns: u16, rows: u16) {
    let stty = Command::new("stty")
        .arg("--file")
        .arg(path)
        .args(["columns", &columns.to_string(), "rows", &rows.to_string()])
        .status();
    assert!(stty.expect("stty, which coreutils has").success());
}

/// As much of a terminal as a full-screen program needs: cells, a cursor that is put, clearing.
struct Screen {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// What is not whole yet: an escape, or a part of a character.
    pending: Vec<u8>,
}

impl Screen {
    fn new(columns: u16, rows: u16) -> Self {
        let cells = vec![vec![' '; usize::from(columns)]; usize::from(rows)];
        Self { cells, row: 0, column: 0, pending: Vec::new() }
    }

    fn rows(&self) -> Vec<String> {
        self.cells.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect()
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.pending.push(*byte);
            let is_escape = self.pending.first() == Some(&0x1b);
            if is_escape && self.escape() {
                self.pending.clear();
            } else if !is_escape && let Ok(text) = std::str::from_utf8(&self.pending) {
                text.to_owned().chars().for_each(|character| self.put(character));
                self.pending.clear();
            }
        }
    }

    fn put(&mut self, character: char) {
        match character {
            '\r' => self.column = 0,
            '\n' => self.row += 1,
            _ => {
                let cell = self.cells.get_mut(self.row).and_then(|row| row.get_mut(self.column));
                if let Some(cell) = cell {
                    *cell = character;
                }
                self.column += 1;
            }
        }
    }

    /// Obeys the escape that is pending, if it is whole.
    fn escape(&mut self) -> bool {
        let [_, b'[', parameters @ .., last] = &self.pending[..] else {
            return self.pending.len() == 2 && self.pending[1] != b'[';
        };
        if !(0x40..=0x7e).contains(last) {
            return false;
        }
        let parameters = String::from_utf8_lossy(parameters).into_owned();
        let mut numbers = parameters.split(';').map(|number| number.parse().unwrap_or(1));
        match last {
            b'H' => {
                self.row = numbers.next().unwrap_or(1_usize) - 1;
                self.column = numbers.next().unwrap_or(1) - 1;
            }
            b'J' => self.cells.iter_mut().flatten().for_each(|cell| *cell = ' '),
            _ => {}
        }
        true
    }
}
