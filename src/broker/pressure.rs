//! What is done when memory is short: pure, but for the reading.
//!
//! Past `queue.memory_high` of the machine, or of the control group if that has a limit, the
//! cache is shed; if that has not helped a second later, new work is refused until there is room
//! again. What is queued or runs is never dropped.

use std::fs;
use std::path::PathBuf;

use super::Core;
use crate::cgroup;
use crate::protocol::control::{Refusal, RefusalKind};

/// How often it is looked at.
const LOOK_EVERY_MS: i64 = 1000;
/// This much below the mark is room again.
const RELIEF: f64 = 0.02;
/// When a refused client should try again.
const RETRY_AFTER_S: u32 = 5;

/// How short memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Pressure {
    /// There is room.
    #[default]
    Calm,
    /// The cache was shed.
    Shed,
    /// New work is refused; so much is in use.
    Refusing { share: f64 },
}

impl Pressure {
    /// After a look at memory.
    fn after(self, share: f64, memory_high: f64) -> Self {
        match self {
            Pressure::Refusing { .. } if share > memory_high - RELIEF => {
                Pressure::Refusing { share }
            }
            Pressure::Shed if share >= memory_high => Pressure::Refusing { share },
            _ if share >= memory_high => Pressure::Shed,
            _ => Pressure::Calm,
        }
    }

    /// Why submissions are refused, if they are.
    pub(crate) fn refusal(self, memory_high: f64) -> Option<Refusal> {
        let Pressure::Refusing { share } = self else { return None };
        let percent = |share: f64| (share * 100.0).round();
        let message = format!(
            "memory is short: {} % of it is in use, more than queue.memory_high = {} %; what is \
             queued is safe: try again in {RETRY_AFTER_S} s",
            percent(share),
            percent(memory_high)
        );
        Some(Refusal::new(RefusalKind::Unavailable, message))
    }
}

/// Where the control group's use and limit are.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    usage: Vec<PathBuf>,
    limit: Vec<PathBuf>,
    stat: Vec<PathBuf>,
    look_at_ms: i64,
    pub(crate) pressure: Pressure,
    /// As it was seen last.
    pub(crate) share: f64,
}

impl Memory {
    /// Of this process's control group.
    pub(crate) fn new() -> Self {
        Self {
            usage: cgroup::memory_files("memory.current", "memory.usage_in_bytes"),
            limit: cgroup::memory_files("memory.max", "memory.limit_in_bytes"),
            stat: cgroup::memory_files("memory.stat", "memory.stat"),
            ..Self::default()
        }
    }

    /// The part of memory that is in use, of the machine or of the control group: whichever is
    /// shorter.
    fn read(&self) -> f64 {
        let machine = fs::read_to_string("/proc/meminfo").ok();
        let machine = machine.as_deref().and_then(share_of_machine).unwrap_or(0.0);
        let first = |paths: &[PathBuf]| paths.iter().find_map(|path| fs::read_to_string(path).ok());
        let group = first(&self.usage).zip(first(&self.limit));
        let group = group.and_then(|(usage, limit)| {
            share_of_group(&usage, &limit, &first(&self.stat).unwrap_or_default())
        });
        machine.max(group.unwrap_or(0.0))
    }
}

/// Of `/proc/meminfo`.
fn share_of_machine(text: &str) -> Option<f64> {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<f64>().ok()
    };
    let (total, available) = (kib("MemTotal")?, kib("MemAvailable")?);
    (total > 0.0).then(|| 1.0 - available / total)
}

/// Of a group's own files. The cache of files that nobody reads now is not in use. `None`: there
/// is no limit (`max`, or more than any machine has).
fn share_of_group(usage: &str, limit: &str, stat: &str) -> Option<f64> {
    const NO_LIMIT: f64 = (1u64 << 60) as f64;
    let limit = limit.trim().parse::<f64>().ok().filter(|limit| (1.0..NO_LIMIT).contains(limit))?;
    let line = |name: &str| {
        stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    let files = line("total_inactive_file ").or_else(|| line("inactive_file ")).unwrap_or(0.0);
    Some((usage.trim().parse::<f64>().ok()? - files).max(0.0) / limit)
}

impl Core {
    /// Looks at memory, if it is time, and does what is to be done.
    pub(super) fn look_at_memory(&mut self, now_ms: i64) {
        let soon = self.memory.look_at_ms - LOOK_EVERY_MS..self.memory.look_at_ms;
        if soon.contains(&now_ms) {
            return;
        }
        self.memory.look_at_ms = now_ms + LOOK_EVERY_MS;
        self.permits.heed_the_clock(now_ms);
        self.memory.share = self.memory.read();
        let (before, high) = (self.memory.pressure, self.config.queue.memory_high);
        let after = before.after(self.memory.share, high);
        self.memory.pressure = after;
        if after != Pressure::Calm {
            self.answers.shed();
        }
        let percent = (self.memory.share * 100.0).round();
        match (before, after) {
            (Pressure::Calm, Pressure::Shed) => {
                tracing::warn!("memory is short ({percent} % in use): the cache is shed");
            }
            (Pressure::Shed, Pressure::Refusing { .. }) => {
                tracing::error!("memory is short ({percent} % in use): new work is refused");
            }
            (Pressure::Refusing { .. }, Pressure::Calm | Pressure::Shed) => {
                tracing::info!("memory has room again ({percent} % in use)");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_the_cache_then_new_work() {
        let mut pressure = Pressure::Calm;
        let seen: Vec<Pressure> = [0.5, 0.8, 0.79, 0.85, 0.9, 0.79, 0.78, 0.9]
            .into_iter()
            .map(|share| {
                pressure = pressure.after(share, 0.8);
                pressure
            })
            .collect();
        let refusing = |share| Pressure::Refusing { share };
        use Pressure::{Calm, Shed};
        assert_eq!(
            seen,
            [Calm, Shed, Calm, Shed, refusing(0.9), refusing(0.79), Calm, Shed],
            "a little less is not room yet"
        );
        let refusal = refusing(0.853).refusal(0.8).unwrap();
        assert!(refusal.message.contains("85 % of it") && refusal.message.contains("in 5 s"));
        assert!(Shed.refusal(0.8).is_none());
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let meminfo = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    250 kB\n";
        assert_eq!(share_of_machine(meminfo), Some(0.75));
        assert_eq!(share_of_machine("MemTotal: 1000 kB"), None);
        for (usage, limit, stat, share) in [
            ("800\n", "1000\n", "", Some(0.8)),
            ("800", "1000", "anon 5\ninactive_file 300\n", Some(0.5)),
            ("800", "1000", "inactive_file 1\ntotal_inactive_file 300\n", Some(0.5)),
            ("800", "max\n", "", None),
            ("800", "9223372036854771712", "", None),
            ("", "1000", "", None),
        ] {
            assert_eq!(share_of_group(usage, limit, stat), share, "{usage} of {limit}");
        }
        assert!((0.0..=1.0).contains(&Memory::new().read()));
    }
}
