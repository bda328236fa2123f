//! The way of one attempt along the services of a tool: who is next, and what is said when nobody
//! is. Pure.

use super::answer::Failed;
use super::failure::Failure;
use super::services::{Service, Tool};
use crate::handler::HandlerError;
use crate::task::ErrorKind;

/// Where an attempt stands. A service is known by its place in the tool's chain.
pub(super) struct Walk<'a> {
    tool: &'a Tool,
    /// Not called yet, in order.
    left: Vec<usize>,
    calls_left: usize,
    failures: Vec<(usize, Failure)>,
}

impl<'a> Walk<'a> {
    /// A first attempt may call everybody, however few attempts its task has; a later one has the
    /// calls that its task has left, so that a chain multiplies nothing.
    pub(super) fn new(tool: &'a Tool, attempt: u32, calls_max: u32) -> Self {
        let count = tool.services.len();
        let calls_max = usize::try_from(calls_max).unwrap_or(usize::MAX).max(1);
        let calls_left = if attempt <= 1 { calls_max.max(count) } else { calls_max };
        Self { tool, left: (0..count).collect(), calls_left, failures: Vec::new() }
    }

    /// Whom to call next, best first. None if the attempt is over.
    pub(super) fn servers(&self) -> Vec<String> {
        if self.calls_left == 0 {
            return Vec::new();
        }
        self.left.iter().map(|place| self.tool.services[*place].server.clone()).collect()
    }

    /// Whom a permit for `server` is for. It is not given again in this attempt.
    pub(super) fn take(&mut self, server: &str) -> Option<usize> {
        let is_it = |place: &usize| self.tool.services[*place].server == server;
        let index = self.left.iter().position(is_it)?;
        self.calls_left = self.calls_left.saturating_sub(1);
        Some(self.left.remove(index))
    }

    /// A call failed.
    pub(super) fn failed(&mut self, place: usize, failure: Failure) {
        self.failures.push((place, failure));
    }

    /// The calls that failed, for the output of the one that did not.
    pub(super) fn into_failures(self) -> Vec<Failed> {
        self.failures.iter().map(|(place, failure)| self.said(*place, &failure.what)).collect()
    }

    /// What to say when nobody has answered: of each service, and as the error of the attempt.
    /// `closed`: why those who are left are not in service, a sentence each, if that ended it.
    ///
    /// It is worth another attempt if one of the failures may pass or somebody was not in service.
    /// The wait before it is the shortest that a failure which may pass asks for; if one of those
    /// asks for none, or somebody was not in service, it is the task's own backoff.
    pub(super) fn into_end(self, closed: Option<Vec<String>>) -> (Vec<Failed>, HandlerError) {
        let passing = || self.failures.iter().filter(|(_, failure)| failure.retryable);
        let retryable = closed.is_some() || passing().next().is_some();
        let waits: Option<Vec<_>> = passing().map(|(_, failure)| failure.retry_after).collect();
        let retry_after = waits.filter(|_| closed.is_none()).into_iter().flatten().min();
        let mut failed: Vec<Failed> =
            self.failures.iter().map(|(place, failure)| self.said(*place, &failure.what)).collect();
        // They are told in the order in which they were asked for.
        let mut closed = closed.map(Vec::into_iter);
        for place in &self.left {
            let why = match &mut closed {
                Some(closed) => closed.next().unwrap_or_else(|| "is not in service".to_owned()),
                None => "was not asked, since the task has no call left".to_owned(),
            };
            // The broker's sentence begins with the server.
            let server = format!("{} ", self.tool.services[*place].server);
            failed.push(self.said(*place, why.strip_prefix(&server).unwrap_or(&why)));
        }
        let each: Vec<_> =
            failed.iter().map(|one| format!("{}: {}", one.service, one.error)).collect();
        let message = format!("no service of '{}' answered: {}", self.tool.name, each.join("; "));
        let error = HandlerError::of(ErrorKind::Provider, message, retryable);
        (failed, HandlerError { retry_after, ..error })
    }

    fn said(&self, place: usize, error: &str) -> Failed {
        let Service { name, .. } = &self.tool.services[place];
        Failed { service: name.clone(), error: error.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::super::failure::{timed_out, too_large};
    use super::super::tests::tools;
    use super::*;

    fn tool() -> Rc<Tool> {
        let services = ["a", "b", "c"].map(|name| format!("services.{name}.url = 'http://{name}'"));
        let config = format!("[tools.t]\nchain = ['a', 'b', 'c']\n{}", services.join("\n"));
        Rc::clone(&tools(&config)["t"])
    }

    fn busy(retry_after_s: Option<u64>) -> Failure {
        let retry_after = retry_after_s.map(Duration::from_secs);
        Failure { what: "answered 429: busy".to_owned(), retry_after, ..timed_out(Duration::ZERO) }
    }

    /// Calls one after the other, as a broker with everybody in service has it.
    fn walk<'a>(tool: &'a Tool, failures: &[Failure]) -> Walk<'a> {
        let mut walk = Walk::new(tool, 1, 1);
        for failure in failures {
            let place = walk.take(&walk.servers()[0]).unwrap();
            walk.failed(place, failure.clone());
        }
        walk
    }

    #[test]
    fn nobody_is_called_twice() {
        let tool = tool();
        let mut walk = Walk::new(&tool, 1, 1);
        assert_eq!(walk.servers(), ["t/a", "t/b", "t/c"]);
        // The broker leaves `a` alone for a moment.
        assert_eq!(walk.take("t/b"), Some(1));
        assert_eq!(walk.servers(), ["t/a", "t/c"]);
        assert_eq!((walk.take("t/b"), walk.take("u/a")), (None, None));
        assert_eq!((walk.take("t/a"), walk.take("t/c")), (Some(0), Some(2)));
        assert!(walk.servers().is_empty());
    }

    #[test]
    fn the_budget_of_a_task_is_not_multiplied_by_its_chain() {
        let tool = tool();
        for (attempt, calls_max, calls) in
            [(1, 0, 3), (1, 1, 3), (1, 9, 3), (2, 0, 1), (2, 2, 2), (3, u32::MAX, 3)]
        {
            let mut walk = Walk::new(&tool, attempt, calls_max);
            let mut made = 0;
            while let Some(server) = walk.servers().first() {
                walk.take(server).unwrap();
                made += 1;
            }
            assert_eq!(made, calls, "attempt {attempt} with {calls_max}");
        }
    }

    #[test]
    fn an_end_names_everybody_and_why() {
        let tool = tool();
        let closed = vec!["t/b is left alone".to_owned(), "t/c asked to be left alone".to_owned()];
        let (failed, error) = walk(&tool, &[busy(None)]).into_end(Some(closed));
        let expected =
            [("a", "answered 429: busy"), ("b", "is left alone"), ("c", "asked to be left alone")];
        let told: Vec<_> = failed.iter().map(|one| (&*one.service, &*one.error)).collect();
        assert_eq!(told, expected);
        let said = "no service of 't' answered: a: answered 429: busy; b: is left alone; c: asked \
                    to be left alone";
        assert_eq!((error.message.as_str(), error.retryable), (said, true));

        let mut walk = Walk::new(&tool, 2, 1);
        let place = walk.take("t/a").unwrap();
        walk.failed(place, too_large(9));
        let (failed, error) = walk.into_end(None);
        assert!(failed[2].error.starts_with("was not asked"), "{failed:?}");
        assert!(!error.retryable);
    }

    #[test]
    fn the_wait_is_the_shortest_that_is_asked_for() {
        let tool = tool();
        for (failures, closed, wait_s) in [
            (vec![busy(Some(9)), busy(Some(7)), too_large(1)], None, Some(7)),
            (vec![busy(Some(9)), busy(None), too_large(1)], None, None),
            (vec![busy(Some(9))], Some(Vec::new()), None),
            (vec![too_large(1), too_large(1), too_large(1)], None, None),
        ] {
            let (_, error) = walk(&tool, &failures).into_end(closed);
            assert_eq!(error.retry_after, wait_s.map(Duration::from_secs), "{failures:?}");
        }
    }
}
