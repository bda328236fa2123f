//! What a client has in flight: what to ask, what the answer is made of, and what to ask again
//! on a new connection when a part of the answer is already there.

use std::collections::BTreeSet;

use super::CliError;
use super::client::unexpected;
use crate::protocol::control::{Ended, FollowBody, FollowEvent, Refusal, Reply, Request};
use crate::task::TaskId;

/// One request and its replies.
pub(super) trait Exchange {
    type Answer;
    /// What to ask on a new connection, given what is known so far.
    fn request(&mut self) -> &Request;
    /// Takes a reply, and gives the answer once it is whole.
    fn take(&mut self, reply: Reply) -> Result<Option<Self::Answer>, CliError>;
}

pub(super) struct Call<'a> {
    pub(super) request: &'a Request,
}

impl Exchange for Call<'_> {
    type Answer = Result<Reply, Refusal>;

    fn request(&mut self) -> &Request {
        self.request
    }

    fn take(&mut self, reply: Reply) -> Result<Option<Self::Answer>, CliError> {
        Ok(Some(match reply {
            Reply::Error(refusal) => Err(refusal),
            reply => Ok(reply),
        }))
    }
}

pub(super) struct Wait<F> {
    pub(super) left: BTreeSet<TaskId>,
    pub(super) full: bool,
    pub(super) request: Request,
    pub(super) on_ended: F,
}

impl<F: FnMut(Ended) -> Result<(), CliError>> Exchange for Wait<F> {
    type Answer = ();

    fn request(&mut self) -> &Request {
        self.request = Request::Wait { ids: self.left.iter().copied().collect(), full: self.full };
        &self.request
    }

    fn take(&mut self, reply: Reply) -> Result<Option<()>, CliError> {
        match reply {
            Reply::Finished { tasks } => {
                for ended in tasks {
                    if self.left.remove(&ended.id) {
                        (self.on_ended)(ended)?;
                    }
                }
                Ok(None)
            }
            Reply::End if self.left.is_empty() => Ok(Some(())),
            Reply::Error(refusal) => Err(refusal.into()),
            other => Err(unexpected(&other)),
        }
    }
}

pub(super) struct Follow<F> {
    pub(super) id: TaskId,
    pub(super) all: bool,
    pub(super) request: Request,
    pub(super) is_finished: bool,
    pub(super) on_event: F,
}

impl<F: FnMut(FollowEvent) -> Result<(), CliError>> Exchange for Follow<F> {
    type Answer = ();

    fn request(&mut self) -> &Request {
        &self.request
    }

    fn take(&mut self, reply: Reply) -> Result<Option<()>, CliError> {
        match reply {
            // The connection broke after the end was told: it is told again, and known.
            Reply::Event(_) if self.is_finished => Ok(None),
            Reply::Event(event) => {
                let (after, from) = (Some(event.position), Some(event.event.clone()));
                let from = from.filter(|from| !from.is_empty());
                self.request = Request::Follow { id: self.id, after, from, all: self.all };
                self.is_finished = matches!(event.body, FollowBody::Finished { .. });
                (self.on_event)(event)?;
                Ok(None)
            }
            Reply::End if self.is_finished => Ok(Some(())),
            Reply::Error(refusal) => Err(refusal.into()),
            other => Err(unexpected(&other)),
        }
    }
}
