//! The lifelines: one `SOCK_SEQPACKET` pair from the master to each child, a message a packet.
//!
//! Its end of file is how each side learns, without a clock, that the other is gone.

use serde::{Deserialize, Serialize};

use crate::task::Cause;

/// A packet is never longer than this.
pub const PACKET_BYTES_MAX: usize = 128 * 1024;

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
}

/// What the broker tells the master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromBroker {
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
}

/// What a worker tells the master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Its event loop runs.
    Ready,
}

/// The pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// The master's phase, in one word.
    pub phase: String,
    /// Deaths of brokers so far.
    pub broker_restarts: u32,
    /// One for each slot.
    pub workers: Vec<PoolWorker>,
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
    /// Whether it said that it is ready.
    pub ready: bool,
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
        Pool { phase: "degraded".to_owned(), broker_restarts: u32::MAX, workers }
    }

    #[test]
    fn messages_read_back_as_written() {
        let exit = Exit { serial: 7, pid: 99, cause: Cause::default() };
        for message in
            [ToBroker::Pool(pool(3)), ToBroker::Exited(exit), ToBroker::Stop { drain_ms: 30_000 }]
        {
            let bytes = codec::encode(&message).unwrap();
            assert_eq!(codec::decode::<ToBroker>(&bytes).unwrap(), message);
        }
        for message in [
            FromBroker::Ready,
            FromBroker::Fatal { message: "why".to_owned() },
            FromBroker::ExitSeen { serial: u64::MAX },
            FromBroker::StopAsked { now: true },
            FromBroker::Drained,
        ] {
            let bytes = codec::encode(&message).unwrap();
            assert_eq!(codec::decode::<FromBroker>(&bytes).unwrap(), message);
        }
    }

    #[test]
    fn a_large_pool_fits_a_packet() {
        let bytes = codec::encode(&ToBroker::Pool(pool(1024))).unwrap();
        assert!(bytes.len() < PACKET_BYTES_MAX, "{} bytes", bytes.len());
    }
}
