//! What `/proc` says of processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A process, told apart from a later one with the same pid by its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// In clock ticks since the machine's start.
    started: u64,
}

impl Process {
    /// The process with this pid; one that waits to be reaped is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // "pid (name) state parent …", where the name may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        if matches!(fields.first(), Some(&("Z" | "X"))) {
            return None;
        }
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether it still runs.
    pub(crate) fn is_there(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Its short name.
    pub(crate) fn name(&self) -> String {
        name(self.pid)
    }
}

/// A process's short name; empty if it is gone.
pub(crate) fn name(pid: i32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}

/// `root` and everything below it.
pub(crate) fn tree(root: i32) -> Vec<Process> {
    let all = all();
    let mut found: Vec<Process> =
        all.iter().filter(|process| process.pid == root).cloned().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.pid) {
        found.extend(all.iter().filter(|process| process.parent == parent).cloned());
        next += 1;
    }
    found
}

fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::of).collect()
}

/// Children that wait to be reaped.
pub(crate) fn zombies_of(parent: i32) -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let start = format!("Z {parent} ");
    stats
        .filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(&start)))
        .count()
}

/// A line of `/proc/PID/status`.
#[track_caller]
pub(crate) fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(name, _)| *name == field).map(|(_, value)| value.trim().to_owned());
    found.unwrap_or_else(|| panic!("no {field} in the status of {pid}"))
}

/// A mask of signals in `/proc/PID/status`; bit 0 is signal 1.
#[track_caller]
pub(crate) fn signals(pid: i32, field: &str) -> u64 {
    u64::from_str_radix(&status(pid, field), 16).expect("a mask")
}

/// What each open descriptor of a process leads to.
#[track_caller]
pub(crate) fn descriptors(pid: i32) -> BTreeMap<i32, PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("a live process of ours");
    let entries = entries.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        // One that was closed in the meantime leads nowhere.
        Some((number, fs::read_link(entry.path()).ok()?))
    });
    entries.collect()
}

/// The inodes of the sockets of this machine that listen at a path.
pub(crate) fn listening_sockets() -> Vec<String> {
    // The flag is SO_ACCEPTCON.
    let listening = unix_sockets().into_iter().filter(|row| row[3] == "00010000");
    listening.filter_map(|row| row.get(6).cloned()).collect()
}

/// How many connections that were accepted at a path are still open.
pub(crate) fn accepted_at(path: &Path) -> usize {
    let at_path = |row: &&Vec<String>| row.get(7).is_some_and(|at| Path::new(at) == path);
    unix_sockets().iter().filter(at_path).filter(|row| row[3] != "00010000").count()
}

/// The rows of the kernel's table: Num RefCount Protocol Flags Type St Inode Path.
fn unix_sockets() -> Vec<Vec<String>> {
    let table = fs::read_to_string("/proc/net/unix").expect("a table of sockets");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    table.lines().skip(1).map(words).collect()
}
