//! The way of one attempt along its chain: who is next, and what is said when nobody is. Pure.

use std::collections::BTreeSet;

use serde::Serialize;

use super::failure::Failure;
use super::route::{Chain, Route};
use crate::handler::HandlerError;
use crate::task::ErrorKind;

/// Where an attempt stands.
pub(super) struct Walk<'a> {
    chain: &'a Chain,
    /// Not called yet, in the chain's order.
    left: Vec<&'a Route>,
    calls_left: usize,
    /// Of those the task has left. The first attempt's whole chain may be more.
    own_calls_left: usize,
    failures: Vec<(&'a Route, Failure)>,
}

/// A call that failed before another one brought the answer, as the output lists it.
#[derive(Debug, Serialize)]
pub(super) struct Fallback {
    provider: String,
    model: String,
    error: String,
}

impl<'a> Walk<'a> {
    /// A first attempt may call the whole chain, however few attempts its task has; a later one
    /// has the calls that its task has left, so that a chain multiplies nothing.
    pub(super) fn new(chain: &'a Chain, attempt: u32, calls_max: u32) -> Self {
        let calls_max = usize::try_from(calls_max).unwrap_or(usize::MAX).max(1);
        let calls_left = if attempt <= 1 { calls_max.max(chain.routes.len()) } else { calls_max };
        let left = chain.routes.iter().collect();
        Self { chain, left, calls_left, own_calls_left: calls_max, failures: Vec::new() }
    }

    /// Whom to call next, best first: each once. None if the attempt is over.
    pub(super) fn servers(&self) -> Vec<String> {
        let hopeless = self.failures.last().is_some_and(|(_, last)| !last.verdict.goes_on);
        if hopeless || self.calls_left == 0 {
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let names = self.left.iter().map(|route| &route.provider.name);
        names.filter(|name| seen.insert(*name)).cloned().collect()
    }

    /// The route of a permit for `server`. It is not given again in this attempt, unless it answers
    /// and is asked [`again`](Self::again).
    pub(super) fn take(&mut self, server: &str) -> Option<&'a Route> {
        let index = self.left.iter().position(|route| route.provider.name == server)?;
        self.calls_left = self.calls_left.saturating_sub(1);
        self.own_calls_left = self.own_calls_left.saturating_sub(1);
        Some(self.left.remove(index))
    }

    /// The route's answer was not as expected. It is next, if the task has a call left: else false.
    /// Whoever failed before is not called again.
    pub(super) fn again(&mut self, route: &'a Route) -> bool {
        self.left.insert(0, route);
        self.calls_left = self.own_calls_left;
        self.calls_left > 0
    }

    /// A call failed.
    pub(super) fn failed(&mut self, route: &'a Route, failure: Failure) {
        self.failures.push((route, failure));
    }

    /// The calls that failed, for the output of the one that did not.
    pub(super) fn into_fallbacks(self) -> Vec<Fallback> {
        let fallback = |(route, failure): (&Route, Failure)| Fallback {
            provider: route.provider.name.clone(),
            model: route.model.clone(),
            error: failure.what,
        };
        self.failures.into_iter().map(fallback).collect()
    }

    /// The error of an attempt without an answer. `closed`: why nobody who is left is in service,
    /// a sentence each, if that ended it.
    ///
    /// It is worth another attempt if one of the failures may pass or somebody was not in service.
    /// The wait before it is the shortest that a failure which may pass asks for; if one of those
    /// asks for none, or somebody was not in service, it is the task's own backoff.
    pub(super) fn into_error(mut self, closed: Option<Vec<String>>) -> HandlerError {
        let last_word = self.chain.routes.len() == 1 && closed.is_none();
        let hopeless = self.failures.last().is_some_and(|(_, last)| !last.verdict.goes_on);
        if (last_word || hopeless)
            && let Some((route, last)) = self.failures.pop()
        {
            let mut error = last.into_error(&route.provider.name);
            if !self.failures.is_empty() {
                let before = self.failure_sentences().join("; ");
                error.message = format!("{} (before it, {before})", error.message);
            }
            return error;
        }
        let passing = || self.failures.iter().filter(|(_, failure)| failure.verdict.retryable);
        let retryable = closed.is_some() || passing().next().is_some();
        let waits: Option<Vec<_>> = passing().map(|(_, failure)| failure.retry_after).collect();
        let retry_after = waits.filter(|_| closed.is_none()).into_iter().flatten().min();
        let message = self.message(closed);
        HandlerError { retry_after, ..HandlerError::of(ErrorKind::Provider, message, retryable) }
    }

    fn message(&self, closed: Option<Vec<String>>) -> String {
        let name = &self.chain.name;
        let unasked = match closed {
            Some(_) => Vec::new(),
            None => self.left.iter().map(|route| self.chain.label(route)).collect(),
        };
        let lead = match (self.failures.is_empty(), unasked.is_empty()) {
            (true, _) => format!("no provider of '{name}' is in service"),
            (_, true) => format!("all providers of '{name}' failed"),
            (_, false) => format!("no provider of '{name}' answered"),
        };
        let mut sentences = self.failure_sentences();
        sentences.extend(closed.into_iter().flatten());
        let no_call = |label| format!("{label} was not asked, since the task has no call left");
        sentences.extend(unasked.into_iter().map(no_call));
        if sentences.is_empty() { lead } else { format!("{lead}: {}", sentences.join("; ")) }
    }

    fn failure_sentences(&self) -> Vec<String> {
        let sentence = |(route, failure): &(&Route, Failure)| {
            format!("{}: {}", self.chain.label(route), failure.what)
        };
        self.failures.iter().map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Routes;
    use super::super::failure::{cut, timed_out};
    use super::super::tests::provider_named;
    use super::super::verdict::Verdict;
    use super::*;

    fn chain(targets: &[&str]) -> std::rc::Rc<Chain> {
        let mut routes = Routes::default();
        for name in ["a", "b", "c"] {
            routes.add_provider(provider_named(name));
        }
        let targets: Vec<_> = targets.iter().map(|target| (*target).to_owned()).collect();
        routes.add_model("x", &targets, false).unwrap();
        routes.find(Some("x")).unwrap()
    }

    fn failure(what: &str, verdict: Verdict, retry_after_s: Option<u64>) -> Failure {
        let retry_after = retry_after_s.map(Duration::from_secs);
        Failure { what: what.to_owned(), verdict, retry_after, ..cut() }
    }

    /// Calls one route after the other, as a broker with everybody in service has it.
    fn walk<'a>(chain: &'a Chain, failures: &[Failure]) -> Walk<'a> {
        let mut walk = Walk::new(chain, 1, 1);
        for failure in failures {
            let route = walk.take(&walk.servers()[0]).unwrap();
            walk.failed(route, failure.clone());
        }
        walk
    }

    #[test]
    fn nobody_is_called_twice() {
        let chain = chain(&["a/m", "b/m", "a/n", "c/m"]);
        let mut walk = Walk::new(&chain, 1, 1);
        assert_eq!(walk.servers(), ["a", "b", "c"]);
        // The broker leaves `a` alone for a moment.
        assert_eq!(walk.take("b").unwrap().model, "m");
        assert_eq!(walk.servers(), ["a", "c"]);
        assert_eq!(walk.take("a").unwrap().model, "m");
        assert_eq!(walk.take("a").unwrap().model, "n");
        assert!(walk.take("a").is_none() && walk.take("b").is_none());
        assert_eq!(walk.servers(), ["c"]);
        walk.take("c").unwrap();
        assert!(walk.servers().is_empty());
    }

    #[test]
    fn the_budget_of_a_task_is_not_multiplied_by_its_chain() {
        let chain = chain(&["a/m", "b/m", "c/m"]);
        for (attempt, calls_max, calls) in
            [(1, 0, 3), (1, 1, 3), (1, 9, 3), (2, 0, 1), (2, 1, 1), (2, 2, 2), (3, u32::MAX, 3)]
        {
            let mut walk = Walk::new(&chain, attempt, calls_max);
            let mut made = 0;
            while let Some(server) = walk.servers().first() {
                let route = walk.take(server).unwrap();
                walk.failed(route, cut());
                made += 1;
            }
            assert_eq!(made, calls, "attempt {attempt} with {calls_max}");
        }
    }

    #[test]
    fn who_answered_is_asked_again_within_the_calls_of_the_task() {
        let chain = chain(&["a/m", "b/m", "c/m"]);
        for (calls_max, asked) in [(0, 1), (1, 1), (2, 1), (3, 2), (5, 4)] {
            let mut walk = Walk::new(&chain, 1, calls_max);
            let first = walk.take("a").unwrap();
            walk.failed(first, cut());
            let second = walk.take("b").unwrap();
            let mut times = 1;
            while walk.again(second) {
                assert_eq!(walk.servers(), ["b", "c"]);
                walk.take("b").unwrap();
                times += 1;
            }
            assert_eq!(times, asked, "{calls_max}");
        }
        // The rest of the chain stands in for it.
        let mut walk = Walk::new(&chain, 1, 3);
        let first = walk.take("a").unwrap();
        assert!(walk.again(first));
        let first = walk.take("a").unwrap();
        walk.failed(first, cut());
        assert_eq!(walk.servers(), ["b", "c"]);
        walk.take("b").unwrap();
        assert!(walk.servers().is_empty());
    }

    #[test]
    fn a_request_that_is_bad_everywhere_ends_it() {
        let chain = chain(&["a/m", "b/m", "c/m"]);
        let bad = failure("answered 400: no", Verdict::BAD_REQUEST, None);
        let ended = walk(&chain, std::slice::from_ref(&bad));
        assert!(ended.servers().is_empty());
        let error = ended.into_error(None);
        assert_eq!(error.message, "provider 'a' answered 400: no");
        let error = walk(&chain, &[cut(), bad]).into_error(None);
        let said =
            "provider 'b' answered 400: no (before it, a: cut the answer off before its end)";
        assert_eq!((error.message.as_str(), error.retryable), (said, false));
    }

    #[test]
    fn an_error_names_everybody_and_why() {
        let chain = chain(&["a/m", "b/m", "c/m"]);
        let late = timed_out("timeout", Duration::from_secs(2));
        let lone = vec!["b is left alone until noon".to_owned(), "c is closed".to_owned()];
        let cases: [(&[Failure], _, &str); 5] = [
            (
                &[cut(), late.clone(), failure("answered 500: boom", Verdict::TROUBLE, None)],
                None,
                "all providers of 'x' failed: a: cut the answer off before its end; b: did not \
                 answer in time: timeout of 2 s passed; c: answered 500: boom",
            ),
            (
                &[cut()],
                Some(lone.clone()),
                "all providers of 'x' failed: a: cut the answer off before its end; b is left \
                 alone until noon; c is closed",
            ),
            (
                &[],
                Some(lone),
                "no provider of 'x' is in service: b is left alone until noon; c is closed",
            ),
            (&[], Some(Vec::new()), "no provider of 'x' is in service"),
            (
                &[cut(), late],
                None,
                "no provider of 'x' answered: a: cut the answer off before its end; b: did not \
                 answer in time: timeout of 2 s passed; c was not asked, since the task has no \
                 call left",
            ),
        ];
        for (failures, closed, message) in cases {
            let error = walk(&chain, failures).into_error(closed);
            assert_eq!(error.message, message);
            assert_eq!(error.kind, ErrorKind::Provider);
            assert!(error.retryable);
        }
    }

    #[test]
    fn the_wait_is_the_shortest_that_all_agree_on() {
        let chain = chain(&["a/m", "b/m"]);
        let passing = |wait_s| failure("x", Verdict::TROUBLE, wait_s);
        let final_one = failure("x", Verdict::UNUSABLE, None);
        for (failures, closed, retryable, wait_s) in [
            ([passing(Some(9)), passing(Some(4))], false, true, Some(4)),
            ([passing(Some(9)), passing(None)], false, true, None),
            ([final_one.clone(), passing(Some(9))], false, true, Some(9)),
            ([passing(Some(9)), passing(Some(4))], true, true, None),
            ([final_one.clone(), final_one.clone()], false, false, None),
            ([final_one.clone(), final_one], true, true, None),
        ] {
            let error = walk(&chain, &failures).into_error(closed.then(Vec::new));
            assert_eq!(error.retryable, retryable);
            assert_eq!(error.retry_after, wait_s.map(Duration::from_secs));
        }
    }
}
