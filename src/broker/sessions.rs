//! Sessions: what is kept of their conversations, and what people ask of them.

use serde_json::json;
use tokio::task::spawn_local;

use crate::protocol::control::{Refusal, RefusalKind, Reply};
use crate::protocol::link::Run;

use super::clients::ReplyTo;
use super::conversation::Keep;
use super::pending::Pending;
use super::store::writer::Op;
use super::store::{Forgotten, Next, sessions};
use super::{Core, info, now_ms};

impl Core {
    /// What is done with the turn of a task that succeeds, if it is of a session.
    pub(super) fn keep_of(&self, run: Run, next: &Next) -> Option<Box<Keep>> {
        let facts = &self.runs.get(&run.seq)?.facts;
        if facts.session.is_none() || !matches!(next, Next::Succeeded { .. }) {
            return None;
        }
        let agent = facts.agent.as_ref().and_then(|agent| self.config.agents.get(agent));
        let agents_model = agent.and_then(|agent| agent.model.as_ref());
        let gate_of = |model: &str| {
            let input = json!({ "prompt": "", "model": model });
            let input = serde_json::value::to_raw_value(&input).ok()?;
            self.registry.needs("chat", &input).ok().map(|needs| needs.gate)
        };
        Some(Box::new(Keep::of(&self.config.sessions, agents_model, self.defaults(), gate_of)))
    }

    /// After how long a conversation is old; `None`: never.
    pub(super) fn sessions_idle_ms(&self) -> Option<i64> {
        let idle = self.config.sessions.idle_timeout;
        (!idle.is_zero()).then(|| i64::try_from(idle.as_millis()).unwrap_or(i64::MAX))
    }

    pub(super) fn list_sessions(&self, to: ReplyTo, limit: u32) {
        let reader = self.reader.clone();
        spawn_local(async move {
            match reader.ask(move |db| sessions::list(db, limit)).await {
                Ok(document) => info::send(&to, &document),
                Err(refusal) => to.refuse(refusal),
            }
        });
    }

    pub(super) fn show_session(&self, to: ReplyTo, name: String) {
        let reader = self.reader.clone();
        spawn_local(async move {
            let wanted = name.clone();
            match reader.ask(move |db| sessions::show(db, &wanted)).await {
                Ok(Some(document)) => info::send(&to, &document),
                Ok(None) => to.refuse(no_such_session(&name)),
                Err(refusal) => to.refuse(refusal),
            }
        });
    }

    pub(super) fn clear_session(&mut self, to: ReplyTo, name: String) {
        let op = Op::ForgetSession { name: name.clone(), now_ms: now_ms() };
        self.store(op, Pending::ForgetSession { to, name });
    }

    pub(super) fn session_forgotten(
        &mut self,
        to: &ReplyTo,
        name: &str,
        result: Result<Option<Forgotten>, Refusal>,
    ) {
        match result {
            Ok(Some(Forgotten { turns, moved, running })) => {
                if let Some(moved) = moved {
                    self.moved(&moved);
                }
                if let Some(seq) = running {
                    self.cancel_seq(seq);
                }
                to.send(&Reply::Done { count: turns });
            }
            Ok(None) => to.refuse(no_such_session(name)),
            Err(refusal) => to.refuse(refusal),
        }
    }
}

fn no_such_session(name: &str) -> Refusal {
    Refusal::new(RefusalKind::NoSuchTask, format!("there is no session '{name}'"))
}
