//! Tells a worker that the kernel killed for want of memory from one that somebody killed: both
//! are a SIGKILL, but the kernel counts its own in the control group.
//!
//! It counts them before it kills, so the count is there when the dead are reaped. Commands of
//! tasks are counted as well, so only a count that grew lately says anything about a death.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroup;

/// A process with much memory takes a while to die after it was counted.
const LATELY: Duration = Duration::from_secs(5);

/// The kernel's count of kills for want of memory among our processes.
pub(super) struct OomWatch {
    /// Absent: this system does not count, and nothing is ever put down to memory.
    counter: Option<PathBuf>,
    count: u64,
    grew_at: Option<Instant>,
}

impl OomWatch {
    /// Finds this process's counter.
    pub(super) fn new() -> Self {
        Self::of(&cgroup::memory_files("memory.events", "memory.oom_control"))
    }

    /// Takes the first counter that can be read.
    fn of(counters: &[PathBuf]) -> Self {
        let found = counters.iter().find_map(|path| Some((path, count_in(path)?)));
        let (counter, count) = found.map_or((None, 0), |(path, count)| (Some(path.clone()), count));
        Self { counter, count, grew_at: None }
    }

    /// Whether the kernel killed one of our processes for want of memory within the last seconds.
    /// To be asked when somebody died of a SIGKILL, and about once a second, so that an earlier
    /// kill, say of a task's command, is not blamed for a later death.
    pub(super) fn killed_lately(&mut self, now: Instant) -> bool {
        if let Some(count) = self.counter.as_deref().and_then(count_in) {
            if count > self.count {
                self.grew_at = Some(now);
            }
            self.count = count;
        }
        self.grew_at.is_some_and(|at| now.duration_since(at) < LATELY)
    }
}

fn count_in(path: &Path) -> Option<u64> {
    count(&std::fs::read_to_string(path).ok()?)
}

/// The count in either file: `oom_kill 3` on a line of its own. Kernels before 4.13 have none.
fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        let table = [
            ("low 0\nhigh 0\nmax 31\noom 4\noom_kill 3\noom_group_kill 1\n", Some(3)),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 12\n", Some(12)),
            ("oom_kill_disable 0\nunder_oom 0\n", None),
            ("oom_kill many\n", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(count(text), expected, "{text}");
        }
    }

    #[test]
    fn only_a_count_that_grew_lately_is_blamed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.events");
        let write = |count: u64| std::fs::write(&path, format!("oom_kill {count}\n")).unwrap();
        write(7);
        // The first of the places is not there.
        let mut watch = OomWatch::of(&[folder.path().join("none"), path.clone()]);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!(!watch.killed_lately(at(0)), "what was before us is not ours");
        write(9);
        // Seen by a look in passing, then two of our children are reaped.
        assert!([10, 900, 901].map(|ms| watch.killed_lately(at(ms))).iter().all(|&is| is));
        assert!(!watch.killed_lately(at(5010)), "that was another");
        // A smaller count is another group's: nothing is known of it yet.
        write(2);
        assert!(!watch.killed_lately(at(6000)));
        write(3);
        assert!(watch.killed_lately(at(7000)));
        std::fs::remove_file(&path).unwrap();
        assert!(!watch.killed_lately(at(20_000)));
    }

    #[test]
    fn nothing_is_blamed_where_nothing_counts() {
        let now = Instant::now();
        assert!(!OomWatch::of(&[]).killed_lately(now));
        // This machine's own files, whatever they are.
        let _ = OomWatch::new().killed_lately(now);
    }
}
