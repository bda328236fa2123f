//! A client that outlives brokers: when the connection breaks before the whole answer is there,
//! it connects again and asks again.
//!
//! Asking twice is harmless: a submission carries the ids that the client made, a wait asks for
//! the ids that are left, and a follower says where it was.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};

use super::error::{CliError, Exit};
use super::exchange::{Call, Exchange, Follow, Wait};
use super::link::{Link, LinkError};
use crate::instance::Instance;
use crate::protocol::control::{Ended, FollowEvent, Hello, Refusal, Reply, Request};
use crate::task::TaskId;

/// Connections that broke in a row, each soon and without a reply, before a client gives up:
/// then it is probably the request that kills the broker.
const QUICK_BREAKS_MAX: u32 = 30;
/// A connection that lasted this long did not break because of what was asked.
const QUICK_BREAK_MAX: Duration = Duration::from_secs(1);
/// The ids that one request waits for, at most.
const WAIT_IDS_MAX: usize = 10_000;
/// The longest pause before connecting again.
const PAUSE_MS_MAX: u64 = 1_000;

/// A conversation with a daemon, over as many connections as it takes.
pub(crate) struct Client {
    instance: Instance,
    link: Link,
    deadline: Option<Instant>,
    breaks: Breaks,
}

impl Client {
    /// Connects, and waits for as long as there is a master but no broker.
    pub(crate) fn connect(instance: &Instance) -> Result<Self, CliError> {
        Self::connect_until(instance, None)
    }

    /// As [`Client::connect`]; this and everything asked later ends at `deadline` with exit 4.
    pub(crate) fn connect_until(
        instance: &Instance,
        deadline: Option<Instant>,
    ) -> Result<Self, CliError> {
        let mut breaks = Breaks::default();
        let link = open_link(instance, deadline, &mut breaks)?;
        Ok(Self { instance: instance.clone(), link, deadline, breaks })
    }

    /// What the broker said first.
    pub(crate) fn hello(&self) -> &Hello {
        self.link.hello()
    }

    /// Asks, and gives the one reply; a refusal is an error.
    pub(crate) fn call(&mut self, request: &Request) -> Result<Reply, CliError> {
        self.ask(request)?.map_err(CliError::from)
    }

    /// As [`Client::call`], with a refusal as it came.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Result<Reply, Refusal>, CliError> {
        self.converse(&mut Call { request })
    }

    /// Waits for each of `ids`; `on_ended` is told of each once, as they end (of very many, some
    /// thousands at a time, so that a request stays small).
    pub(crate) fn wait(
        &mut self,
        ids: &[TaskId],
        full: bool,
        mut on_ended: impl FnMut(Ended) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        for ids in ids.chunks(WAIT_IDS_MAX) {
            let left: BTreeSet<TaskId> = ids.iter().copied().collect();
            let request = Request::Wait { ids: ids.to_vec(), full };
            self.converse(&mut Wait { left, full, request, on_ended: &mut on_ended })?;
        }
        Ok(())
    }

    /// Follows a task to its end, from behind an event if one is given; `on_event` is told of each
    /// event once, in order. `all`: the text of each step of a run.
    pub(crate) fn follow(
        &mut self,
        id: TaskId,
        from: Option<String>,
        all: bool,
        on_event: impl FnMut(FollowEvent) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let request = Request::Follow { id, after: None, from, all };
        self.converse(&mut Follow { id, all, request, is_finished: false, on_event })
    }

    fn converse<E: Exchange>(&mut self, exchange: &mut E) -> Result<E::Answer, CliError> {
        loop {
            let began = Instant::now();
            match self.try_converse(exchange) {
                Ok(answer) => return answer,
                Err(LinkError::Broken(error)) => {
                    self.breaks.count(began.elapsed(), &error)?;
                    self.link = open_link(&self.instance, self.deadline, &mut self.breaks)?;
                }
                Err(error) => return Err(explain(error, &self.instance)),
            }
        }
    }

    /// One connection's share of a conversation: the inner result is the answer.
    fn try_converse<E: Exchange>(
        &mut self,
        exchange: &mut E,
    ) -> Result<Result<E::Answer, CliError>, LinkError> {
        let mut reply = match self.link.send(exchange.request()) {
            Ok(()) => self.link.next_reply(self.deadline)?,
            // A broker that drops us may have said why before it did.
            Err(broken) => self.link.next_reply(self.deadline).map_err(|_| broken)?,
        };
        loop {
            self.breaks.forget();
            match exchange.take(reply) {
                Ok(None) => reply = self.link.next_reply(self.deadline)?,
                Ok(Some(answer)) => return Ok(Ok(answer)),
                Err(error) => return Ok(Err(error)),
            }
        }
    }
}

/// Opens a connection, again and again while brokers die over it.
fn open_link(
    instance: &Instance,
    deadline: Option<Instant>,
    breaks: &mut Breaks,
) -> Result<Link, CliError> {
    loop {
        let began = Instant::now();
        match Link::open(instance, deadline) {
            Ok(link) => return Ok(link),
            Err(LinkError::Broken(error)) => breaks.count(began.elapsed(), &error)?,
            Err(error) => return Err(explain(error, instance)),
        }
    }
}

/// How many connections broke in a row without having been of use.
#[derive(Default)]
struct Breaks {
    in_a_row: u32,
}

impl Breaks {
    /// Counts one, and pauses before the next try.
    fn count(&mut self, lasted: Duration, error: &std::io::Error) -> Result<(), CliError> {
        if lasted >= QUICK_BREAK_MAX {
            self.forget();
        }
        self.in_a_row += 1;
        if self.in_a_row > QUICK_BREAKS_MAX {
            return Err(CliError::new(
                Exit::Unavailable,
                format!("the daemon broke off {QUICK_BREAKS_MAX} times without an answer: {error}"),
            )
            .hint("its log says why; `forq info` shows whether its broker keeps dying"));
        }
        pause(Duration::from_millis(pause_ms(self.in_a_row)));
        Ok(())
    }

    fn forget(&mut self) {
        self.in_a_row = 0;
    }
}

/// No pause after the first break (a broker that was killed is back in a moment), then 10 ms,
/// doubling.
fn pause_ms(breaks_in_a_row: u32) -> u64 {
    match breaks_in_a_row {
        0 | 1 => 0,
        many => (10 << (many - 2).min(16)).min(PAUSE_MS_MAX),
    }
}

/// Lets time pass where there is nothing to wait on but time.
pub(crate) fn pause(time: Duration) {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    // Cut short by a signal at worst, which is no harm.
    let _ = poll(&mut [], timeout);
}

fn explain(error: LinkError, instance: &Instance) -> CliError {
    let socket = instance.control_socket.display();
    match error {
        LinkError::Absent(_) => CliError::new(
            Exit::NoDaemon,
            format!("no daemon at {socket}: start one with `{}`", instance.start_command),
        ),
        LinkError::Forbidden(_) => {
            CliError::new(Exit::Forbidden, format!("not allowed to connect to {socket}"))
                .hint("the system's daemon serves members of the group forq")
        }
        LinkError::Broken(error) => {
            CliError::new(Exit::Unavailable, format!("the connection to {socket} broke: {error}"))
        }
        LinkError::TimedOut => {
            CliError::new(Exit::TimedOut, format!("no answer in time from the daemon at {socket}"))
        }
        LinkError::Foreign(message) => CliError::invalid(message),
    }
}

/// The error for a reply that no request of this kind gets.
pub(crate) fn unexpected(reply: &Reply) -> CliError {
    let mut shown = format!("{reply:?}");
    shown.truncate(shown.floor_char_boundary(200));
    CliError::internal(format!("the daemon gave an answer to another question: {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second() {
        let pauses: Vec<_> = (1..12).map(pause_ms).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 320, 640, 1_000, 1_000, 1_000]);
        assert_eq!(pause_ms(u32::MAX), 1_000);
    }

    #[test]
    fn only_quick_breaks_in_a_row_are_given_up() {
        let error = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let mut breaks = Breaks { in_a_row: QUICK_BREAKS_MAX };
        breaks.count(QUICK_BREAK_MAX, &error).unwrap();
        assert_eq!(breaks.in_a_row, 1);
        breaks.in_a_row = QUICK_BREAKS_MAX;
        let given_up = breaks.count(Duration::ZERO, &error).unwrap_err();
        assert_eq!(given_up.exit, Exit::Unavailable);
    }
}
