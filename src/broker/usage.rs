//! What calls take, and cost: told to those who ask, and held against the budgets.

use serde_json::json;
use tokio::task::spawn_local;

use crate::protocol::control::UsageBy;
use crate::protocol::link::Run;

use super::budget::{Books, day_of};
use super::clients::ReplyTo;
use super::store::{Paid, usage};
use super::{Core, info};

impl Core {
    pub(super) fn usage(&self, to: ReplyTo, since_day: i64, by: Vec<UsageBy>) {
        let reader = self.reader.clone();
        let budgets = self.books().budgets();
        spawn_local(async move {
            match reader.ask(move |db| usage::document(db, since_day, &by)).await {
                Ok(mut document) => {
                    document.insert("budgets".to_owned(), json!(budgets));
                    info::send(&to, &document.into());
                }
                Err(refusal) => to.refuse(refusal),
            }
        });
    }

    fn books(&self) -> Books<'_> {
        Books { config: &self.config, spent: &self.spent }
    }

    /// Counts the calls of an attempt whose end is on its way to the store.
    pub(super) fn spend(&mut self, run: Run, calls: &[Paid]) {
        let Some(state) = self.runs.get(&run.seq) else { return };
        let (agent, queue) = (state.facts.agent.as_deref(), &state.facts.queue);
        for paid in calls {
            self.spent.add(&paid.server, agent, queue, paid.spent());
        }
    }

    /// At midnight every budget is whole again.
    pub(super) fn heed_the_day(&mut self, now_ms: i64) {
        self.spent.turn_to(day_of(now_ms));
    }
}
