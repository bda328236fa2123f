//! What was spent today, and what of it the budgets allow: pure.
//!
//! A day is a UTC day. A call counts when its attempt has ended, so calls that are under way when a
//! budget is spent go past it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::store::usage::rounded;
use crate::config::Config;

/// A day, in milliseconds.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// The day of a moment, since 1970.
pub(crate) fn day_of(ms: i64) -> i64 {
    ms.div_euclid(DAY_MS)
}

/// What calls have cost on one day, in the currency of the providers' prices.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    day: i64,
    all: f64,
    providers: BTreeMap<String, f64>,
    agents: BTreeMap<String, f64>,
    queues: BTreeMap<String, f64>,
}

impl Spent {
    /// Nothing yet, on this day.
    pub(crate) fn on(day: i64) -> Self {
        Self { day, ..Self::default() }
    }

    /// Begins anew if this is another day, and says whether it is.
    pub(crate) fn turn_to(&mut self, day: i64) -> bool {
        let turns = self.day != day;
        if turns {
            *self = Self::on(day);
        }
        turns
    }

    /// Counts a call.
    pub(crate) fn add(&mut self, provider: &str, agent: Option<&str>, queue: &str, cost: f64) {
        // Names come from strangers: what costs nothing takes no room.
        if cost <= 0.0 {
            return;
        }
        self.all += cost;
        let named = [
            (&mut self.providers, Some(provider)),
            (&mut self.agents, agent),
            (&mut self.queues, Some(queue)),
        ];
        for (sums, name) in named {
            let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
            match sums.get_mut(name) {
                Some(sum) => *sum += cost,
                None => drop(sums.insert(name.to_owned(), cost)),
            }
        }
    }
}

/// One `daily_budget` of the configuration, and what was spent of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Budget {
    key: String,
    limit: f64,
    spent: f64,
}

/// What was spent, held against the configuration.
#[derive(Clone, Copy)]
pub(crate) struct Books<'a> {
    pub(crate) config: &'a Config,
    pub(crate) spent: &'a Spent,
}

impl Books<'_> {
    /// Every budget that there is.
    pub(crate) fn budgets(&self) -> Vec<Budget> {
        let Config { providers, agents, queues, .. } = self.config;
        let providers = providers.keys().filter_map(|name| self.provider(name));
        let agents = agents.keys().filter_map(|name| self.agent(name));
        let queues = queues.keys().filter_map(|name| self.queue(name));
        self.whole().into_iter().chain(providers).chain(agents).chain(queues).collect()
    }

    fn whole(&self) -> Option<Budget> {
        let key = "queue.daily_budget".to_owned();
        budget(key, self.config.queue.daily_budget, Some(&self.spent.all))
    }

    fn provider(&self, name: &str) -> Option<Budget> {
        let limit = self.config.providers.get(name)?.daily_budget;
        budget(key("providers", name), limit, self.spent.providers.get(name))
    }

    fn agent(&self, name: &str) -> Option<Budget> {
        let limit = self.config.agents.get(name)?.daily_budget;
        budget(key("agents", name), limit, self.spent.agents.get(name))
    }

    fn queue(&self, name: &str) -> Option<Budget> {
        let limit = self.config.queues.get(name)?.daily_budget;
        budget(key("queues", name), limit, self.spent.queues.get(name))
    }
}

fn budget(key: String, limit: Option<f64>, spent: Option<&f64>) -> Option<Budget> {
    Some(Budget { key, limit: limit?, spent: rounded(spent.copied().unwrap_or(0.0)) })
}

/// A key as it stands in the file. Names of queues have characters that a bare key has not.
fn key(section: &str, name: &str) -> String {
    match name.contains(['.', ':']) {
        true => format!("{section}.\"{name}\".daily_budget"),
        false => format!("{section}.{name}.daily_budget"),
    }
}
