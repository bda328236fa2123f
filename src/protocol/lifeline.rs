//! The lifelines: one `SOCK_SEQPACKET` pair from the master to each child, a message a packet.
//!
//! Its end of file is how each side learns, without a clock, that the other is gone.

use serde::{Deserialize, Serialize};

use crate::task::Cause;

/// A packet is never longer than this.
pub const PACKET_BYTES_MAX: usize = 128 * 1024;

/// What a child tells the master is never longer than this: a broker's last words name a path,
/// and its beats each worker.
pub const TOLD_BYTES_MAX: usize = 32 * 1024;

/// A piece of a configuration file in one packet.
pub const CONFIG_PIECE_BYTES_MAX: usize = 64 * 1024;

/// What the master tells the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToBroker {
    /// The pool as it stands: which pids are its workers, and what `forq info` shows of them.
    Pool(Pool),
    /// A worker is dead and reaped. Told again to a new broker until [`FromBroker::ExitSeen`].
    Exited(Exit),
    /// Begin to stop, or hasten a stop that has begun.
    Stop {
        /// How long running tasks may still take, in milliseconds.
        drain_ms: u64,
    },
    /// A piece of a new configuration file, which was checked; a file that is not there has one
    /// empty piece.
    Config {
        /// In order, of at most [`CONFIG_PIECE_BYTES_MAX`].
        piece: Vec<u8>,
        /// The file is whole now and takes effect.
        last: bool,
    },
    /// What became of an [`FromBroker::Asked`].
    Answer {
        /// Which.
        asker: u64,
        /// The generation that is in force now, or why nothing has changed: a sentence or more.
        result: Result<u32, String>,
    },
    /// The log file is to be opened again.
    ReopenLog,
}

/// What the master tells a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The log file is to be opened again.
    ReopenLog,
}

/// What an operator may ask of the master through the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// As HUP.
    Reload,
    /// As USR2.
    Upgrade,
    /// As TTIN and TTOU, and more.
    Resize(Resize),
}

/// How many workers there should be from now on, whatever the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// So many.
    To(u32),
    /// So many more than there should be now.
    More(u32),
    /// So many fewer than there should be now.
    Fewer(u32),
}

/// What the broker tells the master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromBroker {
    /// It still opens its store, which may be large, and its loop turns.
    Opening,
    /// The store is open and clients are served.
    Ready,
    /// It cannot start, and a new one could not either.
    Fatal {
        /// One sentence with the cure.
        message: String,
    },
    /// The tasks of this dead worker are dealt with.
    ExitSeen {
        /// Which worker.
        serial: u64,
    },
    /// A client asks for a stop.
    StopAsked {
        /// Without waiting for running tasks.
        now: bool,
    },
    /// Everything that ran is on disk as finished or queued: workers and broker may end.
    Drained,
    /// Its loop turns; once every [`HEARTBEAT`](crate::config::HEARTBEAT), and at once when a task
    /// waits and no worker is there.
    Beat(Load),
    /// A worker that drains has nothing left.
    Idle {
        /// Which.
        serial: u64,
        /// Its [`PoolWorker::drain`], so that a word from before is told apart.
        drain: u32,
    },
    /// A client asks for something that only the master can do. Answer: [`ToBroker::Answer`].
    Asked {
        /// Who.
        asker: Asker,
        /// What.
        ask: Ask,
    },
    /// The store is about to be brought to this build's schema: an older build could not read it.
    Migrating,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// The broker's own number for it; means nothing to another broker.
    pub number: u64,
    /// The client's number for what it asks, the same when it has to ask again.
    pub request: u128,
}

/// How much there is to do: what the scale rule looks at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Tasks that could run now, if there were slots.
    pub ready: u64,
    /// Tasks that hold slots of the workers that take more.
    pub in_flight: u64,
    /// How long the oldest of the ready has been so, in milliseconds.
    pub oldest_wait_ms: u64,
    /// Slots of the workers that take tasks.
    pub slots: u64,
    /// Slots that all providers together could fill, if that is known.
    pub ceiling: Option<u64>,
    /// The tasks of each worker that has some, by its serial.
    pub busy: Vec<(u64, u32)>,
}

/// What a worker tells the master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Its event loop runs.
    Ready,
    /// It still turns; once every [`HEARTBEAT`](crate::config::HEARTBEAT).
    Beat {
        /// Tasks that it has ended.
        tasks_done: u64,
    },
}

/// What the child that checks a configuration tells the master, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromChecker {
    /// It can be used.
    Good,
    /// It cannot; line and key, an error a line.
    Bad {
        /// Cut to what a packet takes.
        errors: String,
    },
}

impl FromChecker {
    /// It cannot, for these reasons.
    pub fn bad(mut errors: String) -> Self {
        errors.truncate(errors.floor_char_boundary(TOLD_BYTES_MAX / 2));
        Self::Bad { errors }
    }
}

/// The pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// The master's phase, in one word.
    pub phase: String,
    /// Why it is degraded, if it is.
    pub reason: Option<String>,
    /// Counts reloads and upgrades, from 1.
    pub generation: u32,
    /// Every worker that takes tasks is of this generation and ready.
    pub rolled: bool,
    /// Why the last upgrade came to nothing, if it did.
    pub upgrade_error: Option<String>,
    /// The last decision about the number of workers.
    pub scale: Scale,
    /// Deaths of brokers so far.
    pub broker_restarts: u32,
    /// One for each slot.
    pub workers: Vec<PoolWorker>,
}

/// How many workers there should be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Never fewer.
    pub min: u32,
    /// Never more, but for those that drain.
    pub max: u32,
    /// So many now.
    pub want: u32,
    /// Why, in one line.
    pub reason: String,
}

/// One slot of the pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolWorker {
    /// From 1.
    pub slot: u32,
    /// The process in it now; absent while it waits for its next fork.
    pub pid: Option<i32>,
    /// That process's number since the instance started.
    pub serial: u64,
    /// The generation that it was forked with.
    pub generation: u32,
    /// Whether it said that it is ready.
    pub ready: bool,
    /// Not 0: it gets no more tasks, and this tells one such wish from another.
    pub drain: u32,
    /// Deaths in this slot so far.
    pub restarts: u32,
    /// How long the slot waits before its next fork, in milliseconds; 0 if it does not.
    pub backoff_ms: u64,
    /// How the last one ended, in words.
    pub last_exit: Option<String>,
}

/// A worker's death.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Which worker.
    pub serial: u64,
    /// What it was.
    pub pid: i32,
    /// How it ended.
    pub cause: Cause,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::codec;

    fn pool(workers: u32) -> Pool {
        let worker = PoolWorker {
            pid: Some(i32::MAX),
            serial: u64::MAX,
            restarts: u32::MAX,
            backoff_ms: u64::MAX,
            last_exit: Some("exit code 101, after a long life".to_owned()),
            ..PoolWorker::default()
        };
        let workers = (1..=workers).map(|slot| PoolWorker { slot, ..worker.clone() }).collect();
        Pool {
            phase: "degraded".to_owned(),
            reason: Some("x".repeat(200)),
            broker_restarts: u32::MAX,
            workers,
            ..Pool::default()
        }
    }

    #[test]
    fn messages_read_back_as_written() {
        let exit = Exit { serial: 7, pid: 99, cause: Cause::default() };
        for message in [
            ToBroker::Pool(pool(3)),
            ToBroker::Exited(exit),
            ToBroker::Stop { drain_ms: 30_000 },
            ToBroker::Config { piece: b"[workers]".to_vec(), last: true },
            ToBroker::Answer { asker: 7, result: Err("line 3".to_owned()) },
            ToBroker::ReopenLog,
        ] {
            let bytes = codec::encode(&message).unwrap();
            assert_eq!(codec::decode::<ToBroker>(&bytes).unwrap(), message);
        }
        for message in [
            FromBroker::Opening,
            FromBroker::Ready,
            FromBroker::Fatal { message: "why".to_owned() },
            FromBroker::ExitSeen { serial: u64::MAX },
            FromBroker::StopAsked { now: true },
            FromBroker::Drained,
            FromBroker::Idle { serial: 7, drain: 1 },
            FromBroker::Asked {
                asker: Asker { number: 7, request: u128::MAX },
                ask: Ask::Resize(Resize::More(2)),
            },
            FromBroker::Migrating,
        ] {
            let bytes = codec::encode(&message).unwrap();
            assert_eq!(codec::decode::<FromBroker>(&bytes).unwrap(), message);
        }
    }

    #[test]
    fn the_load_of_a_large_pool_fits_what_the_master_reads() {
        let busy = (0..1100).map(|worker| (u64::MAX - worker, u32::MAX)).collect();
        let load = Load { ready: u64::MAX, busy, ..Load::default() };
        let bytes = codec::encode(&FromBroker::Beat(load)).unwrap();
        assert!(bytes.len() < TOLD_BYTES_MAX, "{} bytes", bytes.len());
    }

    #[test]
    fn a_large_pool_fits_a_packet() {
        let bytes = codec::encode(&ToBroker::Pool(pool(1024))).unwrap();
        assert!(bytes.len() < PACKET_BYTES_MAX, "{} bytes", bytes.len());
    }
}
