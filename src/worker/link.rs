//! The worker's side of the worker link. A broker that dies costs nothing: tasks run on, results
//! are kept, and the next broker is told of all of it.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::spawn_local;

use super::flows::Flows;
use super::held::{Held, Wake};
use super::lag::{LOOK_EVERY, Pace};
use super::runner;
use crate::handler::Registry;
use crate::instance::SocketPath;
use crate::protocol::calls::Begin;
use crate::protocol::codec;
use crate::protocol::frame::take_frame;
use crate::protocol::link::{Hello, LINK_PROTOCOL, TaskEvent, ToBroker, ToWorker};
use crate::protocol::steps::{Advance, BeginWith};

/// The pause between two tries to reach a broker; the first tries come faster.
const RECONNECT_MAX: Duration = Duration::from_millis(200);
/// The broker is trusted, and bounded by the inputs it accepts; this only catches nonsense.
const FRAME_BYTES_MAX: usize = 1 << 30;
/// What one message carries of events, if it is more than one: far under the least that a broker
/// takes.
const EVENTS_BYTES_MAX: usize = 256 * 1024;
/// What an event takes besides its body, at most.
const EVENT_OVERHEAD_BYTES: usize = 32;
/// What is read at once.
const READ_BYTES: usize = 64 * 1024;

/// What a worker's link is made of.
pub(super) struct Link {
    pub(super) socket: PathBuf,
    pub(super) slot: u32,
    pub(super) serial: u64,
    pub(super) generation: u32,
    pub(super) concurrency: u32,
    /// What its event loop bears of that.
    pub(super) capacity: Cell<u32>,
    pub(super) output_bytes_max: u64,
    pub(super) registry: Rc<Registry>,
    /// Attempts that have ended.
    pub(super) tasks_done: Cell<u64>,
}

/// What lives across connections.
struct State {
    held: RefCell<Held>,
    flows: RefCell<Flows>,
    wake: Arc<Wake>,
}

impl Link {
    /// Serves brokers, one after the other, until one of them says to drain and nothing is held.
    pub(super) async fn serve(&self) {
        let state = Rc::new(State {
            held: RefCell::default(),
            flows: RefCell::default(),
            wake: Arc::default(),
        });
        tokio::select! {
            () = self.serve_brokers(&state) => {}
            () = self.watch_the_loop(&state.wake) => {}
        }
    }

    /// Takes fewer tasks while the event loop is late.
    async fn watch_the_loop(&self, wake: &Wake) {
        let mut pace = Pace::new(self.concurrency, Instant::now());
        loop {
            let due = Instant::now() + LOOK_EVERY;
            tokio::time::sleep(LOOK_EVERY).await;
            let now = Instant::now();
            let capacity = pace.looked(now.saturating_duration_since(due), now);
            if self.capacity.replace(capacity) != capacity {
                tracing::info!("worker {} takes {capacity} tasks at once now", self.slot);
                wake.changed.notify_one();
            }
        }
    }

    async fn serve_brokers(&self, state: &Rc<State>) {
        let mut pause = Duration::from_millis(2);
        loop {
            match self.connect().await {
                Ok(stream) => {
                    pause = Duration::from_millis(2);
                    match self.talk(stream, state).await {
                        Ok(true) => return,
                        Ok(false) => tracing::debug!("the broker is gone; tasks run on"),
                        Err(error) => tracing::warn!("the link to the broker broke: {error}"),
                    }
                }
                Err(error) => tracing::debug!("no broker yet: {error}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let short = SocketPath::of(&self.socket)?;
        UnixStream::connect(short.as_path()).await
    }

    /// One connection. `true`: drained.
    async fn talk(&self, stream: UnixStream, state: &Rc<State>) -> io::Result<bool> {
        let (holds, held) = state.held.borrow_mut().reconnected();
        let (mut from_broker, mut to_broker) = stream.into_split();
        let hello = ToBroker::Hello(Hello {
            protocol: LINK_PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            slot: self.slot,
            serial: self.serial,
            generation: self.generation,
            capacity: self.capacity.get(),
            holds,
        });
        let mut outgoing = Vec::new();
        codec::put(&mut outgoing, &hello).map_err(io::Error::other)?;
        codec::put(&mut outgoing, &ToBroker::Permits { held }).map_err(io::Error::other)?;
        to_broker.write_all(&outgoing).await?;
        // One task writes while the other reads: neither waits for the other.
        let draining = Rc::new(Cell::new(false));
        let write = self.write(to_broker, state, &draining);
        let read = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(READ_BYTES);
                if from_broker.read_buf(&mut buffer).await? == 0 {
                    return Ok(false);
                }
                while let Some(frame) =
                    take_frame(&mut buffer, FRAME_BYTES_MAX).map_err(io::Error::other)?
                {
                    let message = codec::decode(&frame).map_err(io::Error::other)?;
                    self.told(message, state, &draining);
                }
            }
        };
        tokio::select! {
            ended = read => ended,
            ended = write => ended,
        }
    }

    fn told(&self, message: ToWorker, state: &Rc<State>, draining: &Cell<bool>) {
        match message {
            ToWorker::Begin(begin) => self.start(begin, true, (None, None), state),
            ToWorker::Run(start) => {
                let begin =
                    Begin { start, grant: None, calls_max: u32::MAX, cached: None, stale: None };
                self.start(begin, false, (None, None), state);
            }
            ToWorker::BeginWith(BeginWith { begin, expect, history }) => {
                self.start(begin, true, (expect, history), state);
            }
            ToWorker::Advance(advance) => self.advance(advance, state),
            ToWorker::Answered(answered) => state.held.borrow().answered(answered),
            ToWorker::Cancel(run) => state.held.borrow().cancel(run),
            ToWorker::Ack { runs } => {
                self.tasks_done.set(self.tasks_done.get() + runs.len() as u64);
                let mut held = state.held.borrow_mut();
                runs.into_iter().for_each(|run| held.acknowledged(run));
                state.wake.changed.notify_one();
            }
            ToWorker::Drain => {
                draining.set(true);
                state.wake.changed.notify_one();
            }
        }
    }

    fn start(
        &self,
        mut begin: Begin,
        limited: bool,
        (expect, history): (Option<String>, Option<String>),
        state: &Rc<State>,
    ) {
        let started = state.held.borrow_mut().start(&mut begin, limited, &state.wake);
        let Some(mut started) = started else { return };
        started.expect = expect;
        started.history = history.map(Arc::from);
        let (registry, state) = (Rc::clone(&self.registry), Rc::clone(state));
        let output_bytes_max = self.output_bytes_max;
        spawn_local(async move {
            let done = runner::run(registry, begin.start, started).await;
            let done = runner::within_limits(done, output_bytes_max);
            state.held.borrow_mut().finish(done);
            state.wake.changed.notify_one();
        });
    }

    /// Makes an advance at once: it is short, and waits for nothing.
    fn advance(&self, advance: Advance, state: &State) {
        if !state.held.borrow_mut().hold(advance.start.run, &state.wake) {
            return;
        }
        let mut flows = state.flows.borrow_mut();
        let done = flows.advance(&self.registry, advance, self.output_bytes_max);
        let done = runner::within_limits(done, self.output_bytes_max);
        state.held.borrow_mut().finish(done);
        state.wake.changed.notify_one();
    }

    /// Sends what there is to send. `true`: drained.
    async fn write(
        &self,
        mut to_broker: tokio::net::unix::OwnedWriteHalf,
        state: &State,
        draining: &Cell<bool>,
    ) -> io::Result<bool> {
        let mut outgoing = Vec::new();
        let mut told = self.capacity.get();
        loop {
            self.gather(state, &mut told, &mut outgoing).map_err(io::Error::other)?;
            if !outgoing.is_empty() {
                to_broker.write_all(&outgoing).await?;
                outgoing.clear();
                outgoing.shrink_to(READ_BYTES);
                continue;
            }
            if draining.get() && state.held.borrow().is_empty() {
                return Ok(true);
            }
            state.wake.changed.notified().await;
        }
    }

    fn gather(
        &self,
        state: &State,
        told: &mut u32,
        outgoing: &mut Vec<u8>,
    ) -> Result<(), codec::CodecError> {
        let mut held = state.held.borrow_mut();
        // A result must not overtake what led to it.
        for events in in_frames(held.take_events(&state.wake)) {
            codec::put(outgoing, &ToBroker::Events { events })?;
        }
        for said in held.take_calls(&state.wake) {
            codec::put(outgoing, &said)?;
        }
        while let Some(done) = held.take_result() {
            codec::put(outgoing, &ToBroker::Done(done))?;
        }
        let capacity = if held.is_full() { 0 } else { self.capacity.get() };
        if std::mem::replace(told, capacity) != capacity {
            codec::put(outgoing, &ToBroker::Credits { capacity })?;
        }
        Ok(())
    }
}

/// Events in as many messages as it takes: all that wait at once may be too much for one.
fn in_frames(events: Vec<TaskEvent>) -> Vec<Vec<TaskEvent>> {
    let mut frames: Vec<Vec<TaskEvent>> = Vec::new();
    let mut room = 0;
    for event in events {
        let bytes = event.body.bytes() + EVENT_OVERHEAD_BYTES;
        match frames.last_mut().filter(|_| bytes <= room) {
            Some(frame) => {
                room -= bytes;
                frame.push(event);
            }
            None => {
                room = EVENTS_BYTES_MAX.saturating_sub(bytes);
                frames.push(vec![event]);
            }
        }
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::FRAME_OVERHEAD_BYTES;
    use crate::protocol::link::{EventBody, Run};

    #[test]
    fn many_events_take_many_frames_in_order() {
        let event = |n: u64| {
            let run = Run { seq: i64::MAX, attempt: u32::MAX };
            let text = "x".repeat(if n.is_multiple_of(1000) { 1 << 19 } else { 1 });
            TaskEvent { run, n, body: EventBody::Text(text) }
        };
        let events: Vec<TaskEvent> = (1..50_000).map(event).collect();
        let frames = in_frames(events.clone());
        for frame in &frames {
            let message = ToBroker::Events { events: frame.clone() };
            let bytes = codec::encode(&message).unwrap().len();
            assert!(bytes < FRAME_OVERHEAD_BYTES, "{bytes} bytes");
        }
        assert!(frames.len() < 200, "{} frames", frames.len());
        assert_eq!(frames.concat(), events);
    }
}
