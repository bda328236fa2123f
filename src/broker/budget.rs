//! What was spent today, and what of it the budgets allow: pure.
//!
//! A day is a UTC day. A call counts when its attempt has ended, so calls that are under way when a
//! budget is spent go past it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::store::usage::rounded;
use crate::config::{Config, format_duration};

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

impl Budget {
    /// Its key in the configuration.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Whether nothing more is to be spent today. A budget of 0 is spent every day.
    fn is_spent(&self) -> bool {
        self.spent >= self.limit
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}, spent {}", self.key, self.limit, self.spent)
    }
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

    /// Those that are spent.
    pub(crate) fn spent(&self) -> Vec<Budget> {
        self.budgets().into_iter().filter(Budget::is_spent).collect()
    }

    /// Whether this server is to be passed over today.
    pub(crate) fn passes_over(&self, server: &str) -> bool {
        let budgets = [self.whole(), self.provider(server)];
        budgets.into_iter().flatten().any(|budget| budget.is_spent())
    }

    /// When all budgets are whole again, in milliseconds since 1970.
    pub(crate) fn whole_again_at_ms(&self) -> i64 {
        (self.spent.day + 1).saturating_mul(DAY_MS)
    }

    /// Why a task that calls one server of `chain` is not accepted today, one sentence; `None` if
    /// nothing is against it.
    pub(crate) fn refusal(
        &self,
        queue: &str,
        agent: Option<&str>,
        chain: &[String],
        now_ms: i64,
    ) -> Option<String> {
        let budgets = [self.whole(), self.queue(queue), agent.and_then(|name| self.agent(name))];
        let mut spent: Vec<_> = budgets.into_iter().flatten().filter(Budget::is_spent).collect();
        if spent.is_empty() {
            let of_server = |name: &String| self.provider(name).filter(Budget::is_spent);
            // One that has something left, or no budget at all, will do.
            spent = chain.iter().map(of_server).collect::<Option<_>>()?;
        }
        if spent.is_empty() {
            return None;
        }
        let left_ms = (self.whole_again_at_ms() - now_ms).clamp(1, DAY_MS).unsigned_abs();
        let left = Duration::from_secs(left_ms.div_ceil(60_000) * 60);
        let keys: Vec<_> = spent.iter().map(Budget::to_string).collect();
        Some(format!(
            "the daily budget is spent until 00:00 UTC (in {}): {}",
            format_duration(left),
            keys.join("; ")
        ))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    const CONFIG: &str = "
queue.daily_budget = 10
queues = { q = { daily_budget = 2 }, 'a.b' = { daily_budget = 2 }, free = {} }
agents = { host = { daily_budget = 1.5 }, none = { daily_budget = 0 } }
[providers.a]
base_url = 'http://a'
price = { input_per_mtok = 1, output_per_mtok = 1 }
daily_budget = 3
[providers.b]
base_url = 'http://b'
price = { input_per_mtok = 1, output_per_mtok = 1 }
daily_budget = 4
[providers.local]
base_url = 'http://local'
";

    fn config() -> Config {
        let file = Some(("forq.toml".into(), CONFIG.to_owned()));
        load(&Sources { file, ..Sources::default() }).unwrap().config
    }

    fn spent(calls: &[(&str, Option<&str>, &str, f64)]) -> Spent {
        let mut spent = Spent::on(1);
        for (provider, agent, queue, cost) in calls {
            spent.add(provider, *agent, queue, *cost);
        }
        spent
    }

    /// What was spent, who asks (agent, queue, chain), and the keys that refuse it.
    type Case<'a> = (
        &'a [(&'a str, Option<&'a str>, &'a str, f64)],
        (Option<&'a str>, &'a str, &'a str),
        &'a str,
    );

    #[test]
    fn a_budget_that_is_spent_refuses_what_it_is_for() {
        let host = Some("host");
        let a = |cost| ("a", None, "free", cost);
        let cases: &[Case<'_>] = &[
            (&[], (host, "q", "a"), ""),
            (&[a(2.999)], (None, "q", "a"), ""),
            (&[a(3.0)], (None, "q", "a"), "providers.a.daily_budget = 3, spent 3"),
            // Summed up from less: no noise of the last bits decides.
            (&[a(0.1), a(0.2), a(2.7)], (None, "q", "a"), "providers.a.daily_budget = 3, spent 3"),
            (&[a(3.0)], (None, "q", "a b"), ""),
            (&[a(3.0)], (None, "q", "a local"), ""),
            (&[a(3.0)], (None, "q", "search/main"), ""),
            (&[a(3.0)], (None, "q", ""), ""),
            (
                &[a(3.5), ("b", None, "free", 4.0)],
                (None, "q", "a b"),
                "providers.a.daily_budget = 3, spent 3.5; providers.b.daily_budget = 4, spent 4",
            ),
            (
                &[("b", host, "q", 1.5)],
                (host, "q", "b"),
                "agents.host.daily_budget = 1.5, spent 1.5",
            ),
            (&[("b", host, "q", 1.5)], (Some("other"), "q", "b"), ""),
            (&[("b", None, "q", 2.5)], (host, "q", "b"), "queues.q.daily_budget = 2, spent 2.5"),
            (
                &[("b", None, "a.b", 2.0)],
                (None, "a.b", "b"),
                "queues.\"a.b\".daily_budget = 2, spent 2",
            ),
            (&[("b", None, "free", 2.5)], (host, "free", "b"), ""),
            (&[], (Some("none"), "q", "b"), "agents.none.daily_budget = 0, spent 0"),
            (
                &[("local", host, "q", 10.0)],
                (host, "q", "local"),
                "queue.daily_budget = 10, spent 10; queues.q.daily_budget = 2, spent 10; \
                 agents.host.daily_budget = 1.5, spent 10",
            ),
        ];
        let config = config();
        for (calls, (agent, queue, chain), keys) in cases {
            let spent = spent(calls);
            let books = Books { config: &config, spent: &spent };
            let chain: Vec<String> = chain.split_whitespace().map(str::to_owned).collect();
            let refusal = books.refusal(queue, *agent, &chain, DAY_MS + 1).unwrap_or_default();
            let expected = match *keys {
                "" => String::new(),
                keys => format!("the daily budget is spent until 00:00 UTC (in 1d): {keys}"),
            };
            assert_eq!(refusal, expected, "{calls:?}, {agent:?}, {queue}, {chain:?}");
        }
    }

    #[test]
    fn the_sentence_says_how_long() {
        let (config, spent) = (config(), spent(&[]));
        let books = Books { config: &config, spent: &spent };
        for (left_ms, words) in
            [(1, "(in 1m)"), (60_001, "(in 2m)"), (12_000_000, "(in 3h20m)"), (-5, "(in 1m)")]
        {
            let refusal = books.refusal("q", Some("none"), &[], 2 * DAY_MS - left_ms).unwrap();
            assert!(refusal.contains(words), "{left_ms}: {refusal}");
        }
        assert_eq!(books.whole_again_at_ms(), 2 * DAY_MS);
    }

    #[test]
    fn a_server_is_passed_over_for_its_own_budget_and_for_the_whole() {
        let config = config();
        let passed = |calls: &[_]| {
            let spent = spent(calls);
            let books = Books { config: &config, spent: &spent };
            ["a", "b", "local", "search/main"].map(|server| books.passes_over(server))
        };
        assert_eq!(passed(&[("a", None, "q", 2.9)]), [false; 4]);
        assert_eq!(passed(&[("a", None, "q", 3.0)]), [true, false, false, false]);
        assert_eq!(passed(&[("local", None, "q", 10.0)]), [true; 4]);
    }

    #[test]
    fn midnight_makes_all_budgets_whole() {
        let mut spent = spent(&[("a", Some("host"), "q", 5.0)]);
        assert!(!spent.turn_to(day_of(2 * DAY_MS - 1)) && spent.all > 0.0);
        assert!(spent.turn_to(day_of(2 * DAY_MS)));
        assert_eq!(spent, Spent::on(2));
    }

    #[test]
    fn every_budget_is_told() {
        let (config, spent) = (config(), spent(&[("a", Some("host"), "q", 1.5)]));
        let books = Books { config: &config, spent: &spent };
        let told = books.budgets();
        let keys: Vec<_> = told.iter().map(|it| (it.key.as_str(), it.limit, it.spent)).collect();
        let expected = [
            ("queue.daily_budget", 10.0, 1.5),
            ("providers.a.daily_budget", 3.0, 1.5),
            ("providers.b.daily_budget", 4.0, 0.0),
            ("agents.host.daily_budget", 1.5, 1.5),
            ("agents.none.daily_budget", 0.0, 0.0),
            ("queues.\"a.b\".daily_budget", 2.0, 0.0),
            ("queues.q.daily_budget", 2.0, 1.5),
        ];
        assert_eq!(keys, expected);
        let spent: Vec<_> = books.spent().into_iter().map(|budget| budget.key).collect();
        assert_eq!(spent, ["agents.host.daily_budget", "agents.none.daily_budget"]);
    }
}
