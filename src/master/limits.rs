//! What the system lets an instance have: open files, memory, and whose rights it has.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, SysconfVar, geteuid, sysconf};

use crate::broker::CLIENTS_MAX;
use crate::config::Workers;

/// How much sooner than the master a worker is killed when memory is short.
pub(super) const WORKER_OOM_SCORE: i32 = 500;
/// How much sooner than the master the broker is: it comes back, and its database is sound, but
/// everybody waits for it.
pub(super) const BROKER_OOM_SCORE: i32 = 100;
/// The kernel's bound.
const OOM_SCORE_MAX: i32 = 1000;

/// Files that any process of ours has open beside what is counted here: standard streams, epoll,
/// signals, lifeline, database, name look-ups.
const BASE_FILES: u64 = 64;
/// Files of a task that calls out: its connection. A task that sleeps or computes has none.
const TASK_FILES: u64 = 1;
/// Files of a command: two pipes, the lifeline of its guard, the guard's pidfd; and as many again
/// while it is started.
const COMMAND_FILES: u64 = 8;
/// Clients that there is always room for.
const FEW_CLIENTS: u64 = 64;

/// Open files that one process may need.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    /// With fewer the instance cannot do what it is configured for.
    least: u64,
    /// With more it could do nothing more. The limit is not raised further: programs that close
    /// every descriptor there might be take seconds under a limit of a billion.
    most: u64,
    /// Whose need the least is.
    of: String,
}

/// Raises the soft limit on open files to what the concurrency may need. The error is one sentence:
/// not even what it certainly needs is allowed.
pub(super) fn raise_open_files(workers: &Workers) -> Result<(), String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|error| format!("cannot read the limit on open files: {error}"))?;
    let limit = limit(&files(workers), soft, hard)?;
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)
        .map_err(|error| format!("cannot raise the limit on open files to {limit}: {error}"))
}

/// What the process that needs the most needs: all inherit one limit.
fn files(workers: &Workers) -> Files {
    let concurrency = u64::from(workers.concurrency);
    // During a reload the old generation drains while the new one is there.
    let children = 2 * (u64::from(workers.max) + u64::from(workers.max_surge));
    let worker = Files {
        least: BASE_FILES + concurrency * TASK_FILES,
        most: BASE_FILES + concurrency * COMMAND_FILES,
        of: format!("a worker with concurrency = {concurrency}"),
    };
    let broker = Files {
        least: BASE_FILES + children + FEW_CLIENTS,
        most: BASE_FILES + children + CLIENTS_MAX as u64,
        of: format!("a pool with max = {}", workers.max),
    };
    // The master's lifelines are fewer than the broker's connections.
    let most = worker.most.max(broker.most);
    if worker.least >= broker.least { Files { most, ..worker } } else { Files { most, ..broker } }
}

/// The new soft limit.
fn limit(files: &Files, soft: u64, hard: u64) -> Result<u64, String> {
    let Files { least, most, of } = files;
    if hard < *least {
        return Err(format!(
            "{of} needs {least} open files, and no more than {hard} are allowed: raise the limit \
             (LimitNOFILE= of the unit, or `ulimit -Hn {least}`), or lower it in [workers]"
        ));
    }
    Ok((*most).clamp(soft.min(hard), hard))
}

/// Makes this process a likelier victim than what forked it when memory is short.
pub(super) fn raise_oom_score(by: i32) {
    const FILE: &str = "/proc/self/oom_score_adj";
    let raised = std::fs::read_to_string(FILE).and_then(|text| {
        let inherited = text.trim().parse().map_err(std::io::Error::other)?;
        std::fs::write(FILE, oom_score(inherited, by).to_string())
    });
    if let Err(error) = raised {
        tracing::debug!("cannot write {FILE}: {error}");
    }
}

fn oom_score(inherited: i32, by: i32) -> i32 {
    inherited.saturating_add(by).min(OOM_SCORE_MAX)
}

/// Says so if every command of every task will be root's.
pub(super) fn warn_of_root() {
    if geteuid().is_root() {
        tracing::warn!(
            "running as root, and so will every command of a task: give forq a user of its own \
             (User= of the unit, or `sudo -u USER forq serve`)"
        );
    }
}

/// Resident memory of a process, in bytes; `None` if it is gone.
pub(super) fn resident_bytes(pid: Pid) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    resident_pages(&statm)?.checked_mul(page)
}

/// The second field of `/proc/PID/statm`.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(max: u32, concurrency: u32) -> Workers {
        Workers { max, concurrency, ..Workers::default() }
    }

    #[test]
    fn open_files_follow_the_concurrency() {
        let table = [
            (workers(4, 32), 138, 4170, "a pool with max = 4"),
            (workers(4, 10_000), 10_064, 80_064, "a worker with concurrency = 10000"),
            (workers(1024, 32), 2178, 6210, "a pool with max = 1024"),
        ];
        for (workers, least, most, of) in table {
            assert_eq!(files(&workers), Files { least, most, of: of.to_owned() });
        }
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_helps() {
        let files = files(&workers(4, 10_000));
        let table = [
            // (soft, hard) and the new soft limit.
            ((1024, 1_000_000), Some(80_064)),
            ((1024, 20_000), Some(20_000)),
            ((10_064, 10_064), Some(10_064)),
            // Never lowered.
            ((500_000, 1_000_000), Some(500_000)),
            ((u64::MAX, u64::MAX), Some(u64::MAX)),
            ((1024, 10_063), None),
        ];
        for ((soft, hard), expected) in table {
            assert_eq!(limit(&files, soft, hard).ok(), expected, "{soft} {hard}");
        }
        assert_eq!(
            limit(&files, 1024, 4096).unwrap_err(),
            "a worker with concurrency = 10000 needs 10064 open files, and no more than 4096 are \
             allowed: raise the limit (LimitNOFILE= of the unit, or `ulimit -Hn 10064`), or lower \
             it in [workers]"
        );
    }

    #[test]
    fn a_score_is_raised_from_what_was_inherited() {
        let table = [(0, 500, 500), (-900, 100, -800), (700, 500, 1000), (1000, 500, 1000)];
        for (inherited, by, expected) in table {
            assert_eq!(oom_score(inherited, by), expected);
        }
    }

    #[test]
    fn resident_memory_is_read() {
        assert_eq!(resident_pages("2301 1207 905 3 0 400 0\n"), Some(1207));
        for bad in ["", "2301", "2301 many", "2301 -1"] {
            assert_eq!(resident_pages(bad), None, "{bad}");
        }
        let mine = resident_bytes(Pid::this()).unwrap();
        assert!((1 << 20..1 << 40).contains(&mine), "{mine}");
        assert_eq!(resident_bytes(Pid::from_raw(i32::MAX)), None);
    }
}
