//! What calls take, and cost: told to those who ask, and held against the budgets.

use serde_json::json;
use tokio::task::spawn_local;

use crate::handler::Needs;
use crate::protocol::control::UsageBy;
use crate::protocol::link::Run;
use crate::task::{NewTask, QUEUE_DEFAULT};
use crate::worker::handlers::workflow;

use super::budget::{Books, day_of};
use super::clients::ReplyTo;
use super::store::{Paid, usage};
use super::{Core, info, now_ms};

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

    /// Why a task is not accepted today, one sentence. One that calls nobody costs nothing.
    pub(super) fn over_budget(&self, task: &NewTask) -> Option<String> {
        let Needs { gate, agent, .. } = &task.needs;
        // A run calls nobody itself. Which of its steps will, and for whom, is not known yet: they are
        // part of a run that was accepted.
        if gate.is_empty() && task.kind != workflow::KIND {
            return None;
        }
        let queue = task.queue.as_deref().unwrap_or(QUEUE_DEFAULT);
        self.books().refusal(queue, agent.as_deref(), self.permits.chain(gate), now_ms())
    }

    /// Counts the calls of an attempt whose end is on its way to the store.
    pub(super) fn spend(&mut self, run: Run, calls: &[Paid]) {
        let Some(state) = self.runs.get(&run.seq).filter(|_| !calls.is_empty()) else { return };
        let before = self.books().spent();
        let (agent, queue) = (state.facts.agent.as_deref(), &state.facts.queue);
        for paid in calls {
            self.spent.add(&paid.server, agent, queue, paid.spent());
        }
        for budget in self.books().spent() {
            if !before.iter().any(|known| known.key() == budget.key()) {
                tracing::warn!("a budget is spent until 00:00 UTC: {budget}");
            }
        }
        self.heed_budgets();
    }

    /// Has servers passed over whose budgets are spent, and no others.
    pub(super) fn heed_budgets(&mut self) {
        let books = Books { config: &self.config, spent: &self.spent };
        let until_ms = books.whole_again_at_ms();
        self.permits.spent(|server| books.passes_over(server).then_some(until_ms));
    }

    /// At midnight every budget is whole again.
    pub(super) fn heed_the_day(&mut self, now_ms: i64) {
        if self.spent.turn_to(day_of(now_ms)) {
            self.heed_budgets();
        }
    }
}
