//! Tells a worker that the kernel killed for want of memory from one that somebody killed: both
//! are a SIGKILL, but the kernel counts its own in the control group.
//!
//! It counts them before it kills, so the count is there when the dead are reaped. Commands of
//! tasks are counted as well, so only a count that grew lately says anything about a death.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::of(&counters(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo")))
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

/// Where the count may be, likeliest first: version 2 of control groups, then version 1. A system
/// may have both, with the memory controller on either.
fn counters(cgroup: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (is_v2, file) in [(true, "memory.events"), (false, "memory.oom_control")] {
        let Some(group) = group_of(cgroup, is_v2) else { continue };
        for (root, mount) in mounts(mountinfo, is_v2) {
            // In a container the mount may begin below the root that our path counts from, or our
            // path may be one of the outside; then the mount itself is the best guess.
            let inside = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
            found.push(Path::new(mount).join(inside).join(file));
        }
    }
    found
}

/// Our path in the hierarchy of `/proc/self/cgroup` that accounts for memory.
fn group_of(cgroup: &str, is_v2: bool) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers) = (fields.next()?, fields.next()?);
        let is_it = match is_v2 {
            true => number == "0" && controllers.is_empty(),
            false => controllers.split(',').any(|controller| controller == "memory"),
        };
        fields.next().filter(|_| is_it)
    })
}

/// The mounts of that hierarchy in `/proc/self/mountinfo`: what part of it, and where.
fn mounts(mountinfo: &str, is_v2: bool) -> impl Iterator<Item = (&str, &str)> {
    mountinfo.lines().filter_map(move |line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let mut options = filesystem.nth(1)?.split(',');
        let is_it = match is_v2 {
            true => kind == "cgroup2",
            false => kind == "cgroup" && options.any(|option| option == "memory"),
        };
        let mut fields = mount.split(' ').skip(3);
        let place = (fields.next()?, fields.next()?);
        is_it.then_some(place)
    })
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

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
    const V1_MOUNTS: &str = "\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_counter_is_found_in_either_version() {
        let v1 = "4:memory:/process/ab\n3:cpuset:/\n0::/\n";
        let table = [
            // A service of systemd.
            (
                "0::/system.slice/forq.service\n",
                V2_MOUNT,
                &["/sys/fs/cgroup/system.slice/forq.service/memory.events"][..],
            ),
            // Both versions at once: whichever can be read.
            (
                v1,
                V1_MOUNTS,
                &[
                    "/sys/fs/cgroup/unified/memory.events",
                    "/sys/fs/cgroup/memory/process/ab/memory.oom_control",
                ],
            ),
            // Two controllers in one hierarchy.
            (
                "6:hugetlb,memory:/a:b\n",
                "35 31 0:32 / /cg rw shared:9 master:1 - cgroup cgroup rw,hugetlb,memory\n",
                &["/cg/a:b/memory.oom_control"],
            ),
            // A container that sees the outside's path, and its own part mounted.
            (
                "0::/docker/4f/inner\n",
                "30 23 0:26 /docker/4f /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
                &["/sys/fs/cgroup/inner/memory.events"],
            ),
            // A container whose path lies outside of what is mounted.
            (
                "0::/elsewhere\n",
                "30 23 0:26 /docker/4f /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
                &["/sys/fs/cgroup/memory.events"],
            ),
            ("", V2_MOUNT, &[]),
            ("0::/\n", "", &[]),
            ("garbage\n0:\n", "garbage - \n - cgroup2\n", &[]),
        ];
        for (cgroup, mountinfo, expected) in table {
            let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(counters(cgroup, mountinfo), expected, "{cgroup}{mountinfo}");
        }
    }

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
