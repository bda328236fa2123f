//! The worker link: broker and worker over the worker socket, frames of [`super::codec`].
//!
//! The worker says [`ToBroker::Hello`] first, with everything that it still holds; the broker
//! then sends tasks by credit. A result stays with the worker until its [`ToWorker::Ack`].

use serde::{Deserialize, Serialize};

use super::calls::{Answered, Ask, Begin, Grant, Settled};
use super::steps::{Advance, BeginWith, StepTask};
use crate::handler::Event;
use crate::task::{TaskError, TaskId, Usage};

/// The version of this protocol. Version 2 knows permits: what it adds stands at the end of each
/// enum, and only [`ToWorker::Begin`] may come unasked, so a worker of version 1 is sent
/// [`ToWorker::Run`] instead. Version 3 knows workflows: a worker before it is sent nothing of them.
pub const LINK_PROTOCOL: u32 = 3;
/// The oldest version that a broker still speaks: that of workers which an upgrade found.
pub const LINK_PROTOCOL_MIN: u32 = 1;

/// The store's number of a task: what the processes call it among themselves.
pub type Seq = i64;

/// One attempt of one task: what a claim, an event and a result are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Run {
    /// Which task.
    pub seq: Seq,
    /// Which start of it.
    pub attempt: u32,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToBroker {
    /// First on every connection.
    Hello(Hello),
    /// It runs at most this many at once from now on; 0 while its results wait for acks.
    Credits {
        /// Tasks at once.
        capacity: u32,
    },
    /// Events of running tasks, in order.
    Events {
        /// Each with its run and number.
        events: Vec<TaskEvent>,
    },
    /// An attempt ended. Kept and sent again until it is acknowledged.
    Done(Done),
    /// Second on every connection: the permits of calls that are under way.
    Permits {
        /// Each with its attempt.
        held: Vec<(Run, Grant)>,
    },
    /// A running attempt wants to call.
    Ask(Ask),
    /// A call ended.
    Settled(Settled),
}

/// A worker's first words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`LINK_PROTOCOL`] of the worker.
    pub protocol: u32,
    /// Its build's version, for logs.
    pub build: String,
    /// Its place in the pool, from 1.
    pub slot: u32,
    /// Its number since the instance started; never used twice.
    pub serial: u64,
    /// The configuration's generation that it was forked with.
    pub generation: u32,
    /// Tasks at once.
    pub capacity: u32,
    /// Attempts that it runs, or whose result is not acknowledged.
    pub holds: Vec<Run>,
}

/// One event of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskEvent {
    /// Of which attempt.
    pub run: Run,
    /// Counts from 1 in each attempt; a jump means that events were dropped.
    pub n: u64,
    /// What happened, as JSON of [`Event`]: its free-form values have no place in bincode.
    pub body: EventBody,
}

/// An [`Event`] as it travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum EventBody {
    /// A piece of text.
    Text(String),
    /// Any other JSON, as text.
    Data(String),
}

impl From<&Event> for EventBody {
    fn from(event: &Event) -> Self {
        match event {
            Event::Text { text } => EventBody::Text(text.clone()),
            Event::Data { data } => EventBody::Data(data.to_string()),
        }
    }
}

impl EventBody {
    /// What it takes in a buffer.
    pub fn bytes(&self) -> usize {
        match self {
            EventBody::Text(text) | EventBody::Data(text) => text.len(),
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Which attempt.
    pub run: Run,
    /// Start to end, in milliseconds.
    pub run_ms: u64,
    /// How.
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// With an output.
    Succeeded {
        /// JSON.
        output: String,
        /// Tokens, for kinds that count them.
        usage: Option<Usage>,
    },
    /// Without one.
    Failed {
        /// Why.
        error: TaskError,
        /// How long the other side asked us to wait, in milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// Its future was dropped because the broker said so.
    Cancelled,
    /// A run has come this far, and waits for its steps.
    Advanced {
        /// Those that are next, each of which is told only once.
        steps: Vec<StepTask>,
    },
    /// A run that this worker was to know is not in its memory any more: tell it the whole.
    Forgotten,
    /// A run has failed.
    RunFailed {
        /// Why.
        error: TaskError,
        /// The keys of the steps that a retry runs again.
        blamed: Vec<String>,
    },
}

/// What the broker says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Start this attempt.
    Run(Start),
    /// Drop this attempt's future; the answer is [`Outcome::Cancelled`], or its result if that
    /// was faster.
    Cancel(Run),
    /// These results are on disk (or nobody wants them any more): forget them.
    Ack {
        /// Which.
        runs: Vec<Run>,
    },
    /// No more will come: end when nothing is held.
    Drain,
    /// Start this attempt, with what it may call.
    Begin(Begin),
    /// The answer to an [`Ask`].
    Answered(Answered),
    /// Advance this run.
    Advance(Advance),
    /// Start this attempt, with more than [`ToWorker::Begin`] carries.
    BeginWith(BeginWith),
}

/// An attempt to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Which.
    pub run: Run,
    /// The task's name for the world.
    pub id: TaskId,
    /// The handler.
    pub kind: String,
    /// JSON.
    pub input: String,
    /// The attempt's time limit, in milliseconds.
    pub timeout_ms: u64,
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::codec;
    use crate::task::{Cause, ErrorKind};

    fn run() -> impl Strategy<Value = Run> {
        any::<(Seq, u32)>().prop_map(|(seq, attempt)| Run { seq, attempt })
    }

    fn failed() -> impl Strategy<Value = Outcome> {
        (".*", any::<Option<u64>>(), any::<Option<i32>>()).prop_map(
            |(message, retry_after_ms, exit_code)| {
                let cause =
                    exit_code.map(|code| Cause { exit_code: Some(code), ..Cause::default() });
                let kind = ErrorKind::Provider;
                let error = TaskError { kind, message, retryable: true, cause };
                Outcome::Failed { error, retry_after_ms }
            },
        )
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        let usage = any::<Option<(u64, u64, u64)>>().prop_map(|tokens| {
            tokens.map(|(prompt_tokens, completion_tokens, total_tokens)| Usage {
                prompt_tokens,
                completion_tokens,
                total_tokens,
            })
        });
        prop_oneof![
            (".*", usage).prop_map(|(output, usage)| Outcome::Succeeded { output, usage }),
            failed(),
            Just(Outcome::Cancelled),
        ]
    }

    fn to_broker() -> impl Strategy<Value = ToBroker> {
        let event = (run(), any::<u64>(), ".*").prop_map(|(run, n, text)| TaskEvent {
            run,
            n,
            body: EventBody::Text(text),
        });
        let hello = (any::<(u32, u32, u64, u32, u32)>(), ".*", vec(run(), 0..20)).prop_map(
            |((protocol, slot, serial, generation, capacity), build, holds)| Hello {
                protocol,
                build,
                slot,
                serial,
                generation,
                capacity,
                holds,
            },
        );
        prop_oneof![
            hello.prop_map(ToBroker::Hello),
            any::<u32>().prop_map(|capacity| ToBroker::Credits { capacity }),
            vec(event, 0..10).prop_map(|events| ToBroker::Events { events }),
            (run(), any::<u64>(), outcome())
                .prop_map(|(run, run_ms, outcome)| ToBroker::Done(Done { run, run_ms, outcome })),
        ]
    }

    fn to_worker() -> impl Strategy<Value = ToWorker> {
        let start = (run(), any::<u128>(), ".*", ".*", any::<u64>()).prop_map(
            |(run, id, kind, input, timeout_ms)| {
                let id = TaskId(uuid::Uuid::from_u128(id));
                ToWorker::Run(Start { run, id, kind, input, timeout_ms })
            },
        );
        prop_oneof![
            start,
            run().prop_map(ToWorker::Cancel),
            vec(run(), 0..20).prop_map(|runs| ToWorker::Ack { runs }),
            Just(ToWorker::Drain),
        ]
    }

    proptest! {
        #[test]
        fn messages_read_back_as_written(up in to_broker(), down in to_worker()) {
            prop_assert_eq!(codec::decode::<ToBroker>(&codec::encode(&up)?)?, up);
            prop_assert_eq!(codec::decode::<ToWorker>(&codec::encode(&down)?)?, down);
        }

        /// A message with some of its bytes changed is an error or another message.
        #[test]
        fn damaged_messages_never_panic(
            message in to_broker(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = codec::encode(&message)?;
            for (place, byte) in damage {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            let _ = codec::decode::<ToBroker>(&bytes);
        }
    }
}
