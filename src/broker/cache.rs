//! Answers that are given again to equal requests, and requests that wait for the answer of an
//! equal one (single flight).
//!
//! An answer is kept for the `cache_ttl` of its model or tool; a tool's old one may stand in for
//! `stale_ttl` longer when every service fails. The whole has a size in bytes, past which the
//! answers that are asked for least go. It is memory: a broker's death empties it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;

use super::store::Ready;
use crate::protocol::link::Seq;

/// Tasks that wait for the answers of others at most; more make calls of their own.
const WAITING_TASKS_MAX: usize = 10_000;
/// What an answer takes besides its text.
const ANSWER_OVERHEAD_BYTES: usize = 256;

/// Stands for a request.
pub(crate) type Key = u128;

/// An answer that is kept.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The output of its task, as JSON.
    pub(crate) output: String,
    /// Who gave it, for the accounts.
    pub(crate) server: String,
    pub(crate) model: String,
    /// It stands for a call until then.
    pub(crate) fresh_until_ms: i64,
    /// It is kept for so long in all.
    pub(crate) kept_for: Duration,
}

/// What is known of a request.
#[derive(Debug)]
pub(crate) enum Known {
    /// Its answer, fresh.
    Answer(Arc<Answer>),
    /// An equal request is being answered.
    UnderWay,
    /// Nothing that may be used.
    Nothing,
}

/// How often it helped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tasks that were given an answer from here.
    pub(crate) hits: u64,
    /// Tasks whose answer might have been here and was not.
    pub(crate) misses: u64,
    /// Tasks that waited for an equal one; each is a hit or a miss as well.
    pub(crate) shared: u64,
}

/// The answers, and who waits for one.
pub(crate) struct Answers {
    kept: Cache<Key, Arc<Answer>>,
    flights: BTreeMap<Key, Flight>,
    waiting: usize,
    pub(crate) counts: Counts,
}

struct Flight {
    leader: Seq,
    /// Leaders that found no answer.
    failures: u32,
    waiting: Vec<Ready>,
}

struct Lives;

impl Expiry<Key, Arc<Answer>> for Lives {
    fn expire_after_create(&self, _: &Key, answer: &Arc<Answer>, _: Instant) -> Option<Duration> {
        Some(answer.kept_for)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        answer: &Arc<Answer>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(answer.kept_for)
    }
}

impl Answers {
    /// Empty, and never larger than this.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let (flights, waiting, counts) = (BTreeMap::new(), 0, Counts::default());
        Self { kept: cache(bytes_max), flights, waiting, counts }
    }

    /// Of another size from now on. What is kept goes: this is rare.
    pub(crate) fn resize(&mut self, bytes_max: u64) {
        if self.kept.policy().max_capacity() != Some(bytes_max) {
            self.kept = cache(bytes_max);
        }
    }

    /// Whether this task goes to find the answer.
    pub(crate) fn is_leader(&self, key: Key, seq: Seq) -> bool {
        self.flights.get(&key).is_some_and(|flight| flight.leader == seq)
    }

    /// What is known of a request.
    pub(crate) fn look(&self, key: Key, now_ms: i64) -> Known {
        match self.kept.get(&key).filter(|answer| answer.fresh_until_ms > now_ms) {
            Some(answer) => Known::Answer(answer),
            None if self.flights.contains_key(&key) => Known::UnderWay,
            None => Known::Nothing,
        }
    }

    /// An answer that is too old to stand for a call, and better than none.
    pub(crate) fn stale(&self, key: Key) -> Option<Arc<Answer>> {
        self.kept.get(&key)
    }

    /// A task goes to find the answer. With one on its way already it goes by itself.
    pub(crate) fn lead(&mut self, key: Key, leader: Seq) {
        self.counts.misses += 1;
        let (failures, waiting) = (0, Vec::new());
        self.flights.entry(key).or_insert(Flight { leader, failures, waiting });
    }

    /// A task waits for the answer of the one that is on its way. False if too many wait already.
    pub(crate) fn join(&mut self, key: Key, ready: &Ready) -> bool {
        let Some(flight) = self.flights.get_mut(&key) else { return false };
        if self.waiting >= WAITING_TASKS_MAX {
            return false;
        }
        self.waiting += 1;
        self.counts.shared += 1;
        flight.waiting.push(ready.clone());
        true
    }

    /// An answer has come.
    pub(crate) fn keep(&mut self, key: Key, answer: Answer) {
        self.kept.insert(key, Arc::new(answer));
    }

    /// The task that went to find the answer is over: those who may go now. With an answer that is
    /// everybody. Without one the first of those who waited goes to find it, and more each time,
    /// by themselves: what fails for one may fail for all, one after the other, or for none.
    pub(crate) fn land(&mut self, key: Key, leader: Seq, now_ms: i64) -> Vec<Ready> {
        if self.flights.get(&key).is_none_or(|flight| flight.leader != leader) {
            return Vec::new();
        }
        let Some(mut flight) = self.flights.remove(&key) else { return Vec::new() };
        let answered = matches!(self.look(key, now_ms), Known::Answer(_));
        let count = if answered { flight.waiting.len() } else { 1 << flight.failures.min(16) };
        let rest = flight.waiting.split_off(count.min(flight.waiting.len()));
        self.waiting -= flight.waiting.len();
        let mut going = flight.waiting;
        if let Some(first) = going.first().filter(|_| !answered) {
            let (leader, failures) = (first.seq, flight.failures + 1);
            self.flights.insert(key, Flight { leader, failures, waiting: rest });
            going.iter_mut().skip(1).for_each(|ready| ready.needs.cache_refresh = true);
        }
        going
    }

    /// Forgets every answer: memory is short.
    pub(crate) fn shed(&self) {
        self.kept.invalidate_all();
        self.kept.run_pending_tasks();
    }

    /// How many answers there are, and their bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.kept.run_pending_tasks();
        (self.kept.entry_count(), self.kept.weighted_size())
    }
}

fn cache(bytes_max: u64) -> Cache<Key, Arc<Answer>> {
    let weigh = |_: &Key, answer: &Arc<Answer>| {
        u32::try_from(answer.output.len() + ANSWER_OVERHEAD_BYTES).unwrap_or(u32::MAX)
    };
    Cache::builder().max_capacity(bytes_max).weigher(weigh).expire_after(Lives).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::Needs;

    fn answer(output: &str, fresh_until_ms: i64) -> Answer {
        Answer {
            output: output.to_owned(),
            server: "a".to_owned(),
            model: "m".to_owned(),
            fresh_until_ms,
            kept_for: Duration::from_secs(60),
        }
    }

    fn ready(seq: Seq) -> Ready {
        let (queue, needs) = ("default".to_owned(), Needs::default());
        Ready { queue, priority: 5, ord: seq, seq, solo: false, needs, session: None }
    }

    #[test]
    fn an_answer_is_fresh_and_then_stale() {
        let mut answers = Answers::new(1 << 20);
        assert!(matches!(answers.look(1, 0), Known::Nothing));
        answers.keep(1, answer("x", 1000));
        assert!(matches!(answers.look(1, 999), Known::Answer(answer) if answer.output == "x"));
        assert!(matches!(answers.look(1, 1000), Known::Nothing));
        assert_eq!(answers.stale(1).unwrap().output, "x");
        answers.shed();
        assert!(answers.stale(1).is_none());
    }

    fn land(answers: &mut Answers, leader: Seq) -> Vec<(Seq, bool)> {
        let going = answers.land(1, leader, 0);
        going.iter().map(|ready| (ready.seq, ready.needs.cache_refresh)).collect()
    }

    #[test]
    fn equal_requests_wait_for_one() {
        let mut answers = Answers::new(1 << 20);
        assert!(!answers.join(1, &ready(2)), "for whom?");
        answers.lead(1, 1);
        assert!(matches!(answers.look(1, 0), Known::UnderWay));
        assert!(answers.join(1, &ready(2)) && answers.join(1, &ready(3)));
        assert!(land(&mut answers, 9).is_empty(), "another one's end");
        answers.keep(1, answer("x", 1000));
        assert_eq!(land(&mut answers, 1), [(2, false), (3, false)]);
        assert!(land(&mut answers, 1).is_empty());
        assert_eq!(answers.counts, Counts { hits: 0, misses: 1, shared: 2 });
    }

    #[test]
    fn when_none_comes_more_go_each_time() {
        let mut answers = Answers::new(1 << 20);
        answers.lead(1, 1);
        (2..=8).for_each(|seq| assert!(answers.join(1, &ready(seq))));
        assert_eq!(land(&mut answers, 1), [(2, false)]);
        assert!(answers.is_leader(1, 2) && matches!(answers.look(1, 0), Known::UnderWay));
        assert_eq!(land(&mut answers, 2), [(3, false), (4, true)], "the second by itself");
        assert_eq!(land(&mut answers, 3), [(5, false), (6, true), (7, true), (8, true)]);
        assert!(land(&mut answers, 5).is_empty() && answers.flights.is_empty());
        assert_eq!(answers.waiting, 0);
    }

    #[test]
    fn too_many_do_not_wait() {
        let mut answers = Answers::new(1 << 20);
        answers.lead(1, 0);
        for seq in 1..=WAITING_TASKS_MAX as i64 {
            assert!(answers.join(1, &ready(seq)));
        }
        assert!(!answers.join(1, &ready(-1)));
        answers.keep(1, answer("x", 1000));
        assert_eq!(land(&mut answers, 0).len(), WAITING_TASKS_MAX);
        answers.lead(1, 0);
        assert!(answers.join(1, &ready(1)));
    }

    #[test]
    fn its_size_is_bounded_in_bytes() {
        let mut answers = Answers::new(100_000);
        for key in 0..1000 {
            answers.keep(key, answer(&"x".repeat(1000), i64::MAX));
            answers.size();
        }
        let (count, bytes) = answers.size();
        assert!(bytes <= 100_000 && (10..=90).contains(&count), "{count} answers of {bytes} bytes");
    }
}
