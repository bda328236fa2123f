//! Conversations: what a task adds to one, what the next one sees, and what is forgotten.

use serde_json::{Value, json};

use super::{DEFAULTS, Sqlite, new_task, submit};
use crate::broker::conversation::{Bounds, Keep, SummaryBy};
use crate::broker::store::sqlite::{Durability, cancelled};
use crate::broker::store::{
    Claim, Claimed, End, Forgotten, Moved, Next, Owner, Ready, Refill, Retried, Retry, Store,
    sessions, view,
};
use crate::protocol::control::ListFilter;
use crate::task::{ErrorKind, NewTask, State, TaskError, TaskId};

const OWNER: Owner = Owner { instance: 1, serial: 7 };
const BOUNDS: Bounds = Bounds { turns_max: 20, tokens_max: 8000 };

/// A store with one worker that takes what is ready.
struct Bench {
    store: Sqlite,
    folder: tempfile::TempDir,
    keep: Keep,
    now_ms: i64,
}

impl Bench {
    fn new(bounds: Bounds, summarises: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("forq.db"), 1, Durability::Os).unwrap();
        let by = SummaryBy { model: None, agents_model: None, defaults: DEFAULTS };
        let keep = Keep { bounds, summary: summarises.then_some(by) };
        Self { store, folder, keep, now_ms: 1000 }
    }

    fn reopen(&mut self) {
        self.store = Sqlite::open(&self.folder.path().join("forq.db"), 1, Durability::Os).unwrap();
    }

    fn say(&mut self, session: &str, prompt: &str) -> TaskId {
        let input = json!({ "prompt": prompt, "system": "s", "model": "own" }).to_string();
        let mut task = NewTask { kind: "chat".to_owned(), ..new_task(&input) };
        task.session = Some(session.to_owned());
        task.needs.tokens = 100;
        submit(&mut self.store, vec![task], self.now_ms).unwrap()[0]
    }

    fn ready(&mut self) -> Vec<Ready> {
        let (queue, gate) = ("default".to_owned(), String::new());
        self.store.refill(&Refill { queue, priority: 5, gate, after: i64::MIN, limit: 9 }).unwrap()
    }

    /// Claims the one task that is ready.
    fn claim(&mut self) -> Claimed {
        let ready = self.ready();
        assert_eq!(ready.len(), 1, "{ready:?}");
        let sees = Some(self.keep.bounds);
        let claim =
            Claim { seq: ready[0].seq, owner: OWNER, worker_pid: 1, now_ms: self.now_ms, sees };
        self.store.begin(true).unwrap();
        let claimed = self.store.claim(&claim).unwrap().unwrap();
        self.store.commit().unwrap();
        claimed
    }

    fn end(&mut self, claimed: &Claimed, next: Next) -> Option<Moved> {
        self.store.begin(true).unwrap();
        let moved = self.store.end(&End {
            run: claimed.facts.run,
            owner: OWNER,
            now_ms: self.now_ms,
            next,
            awaited: true,
            calls: Vec::new(),
            advance: None,
            keep: Some(Box::new(self.keep.clone())),
        });
        self.store.commit().unwrap();
        moved.unwrap()
    }

    /// Runs the one task that is ready to this answer; what it saw.
    fn answer(&mut self, text: &str) -> Vec<String> {
        let claimed = self.claim();
        assert!(self.end(&claimed, said(text)).is_some());
        seen(&claimed)
    }

    fn show(&self, session: &str) -> Option<Value> {
        sessions::show(&self.store.db, session).unwrap()
    }

    fn clear(&mut self, session: &str) -> Option<Forgotten> {
        self.store.begin(true).unwrap();
        let forgotten = self.store.forget_session(session, self.now_ms).unwrap();
        self.store.commit().unwrap();
        forgotten
    }

    fn prune_idle(&mut self, idle_ms: i64) -> u32 {
        self.store.begin(true).unwrap();
        let pruned = self.store.prune_sessions(self.now_ms - idle_ms, 9).unwrap();
        self.store.commit().unwrap();
        pruned
    }
}

fn said(text: &str) -> Next {
    Next::Succeeded { output: json!({ "text": text }).to_string(), usage: None }
}

fn failed() -> Next {
    let message = "no".to_owned();
    let (kind, retryable, cause) = (ErrorKind::Handler, false, None);
    Next::Failed { error: TaskError { kind, message, retryable, cause } }
}

/// What a task sees: the texts of its history.
fn seen(claimed: &Claimed) -> Vec<String> {
    let history: Vec<Value> =
        claimed.history.as_deref().map_or(Vec::new(), |json| serde_json::from_str(json).unwrap());
    history.iter().map(|message| message["content"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_task_sees_what_was_said_before_it() {
    let mut bench = Bench::new(BOUNDS, false);
    bench.say("a", "one");
    let second = bench.say("a", "two");
    bench.say("b", "other");
    assert_eq!(view::task(&bench.store.db, second).unwrap().unwrap().state, State::Blocked);
    let ready = bench.ready();
    assert_eq!(ready.len(), 2);
    assert!(ready[0].session.is_some() && ready[0].session != ready[1].session);
    bench.store.begin(true).unwrap();
    bench.store.cancel(view_id(&bench, "other"), 1).unwrap();
    bench.store.commit().unwrap();
    assert!(bench.answer("first").is_empty());
    // What it will see counts for its permit.
    let turn_tokens = 4 + 1 + 4 + 2;
    assert_eq!(bench.ready()[0].needs.tokens, 100 + turn_tokens);
    bench.reopen();
    assert_eq!(bench.ready()[0].needs.tokens, 100 + turn_tokens);
    assert_eq!(bench.answer("second"), ["one", "first"]);
    bench.say("a", "three");
    assert_eq!(bench.answer("third"), ["one", "first", "two", "second"]);
    let shown = bench.show("a").unwrap();
    assert_eq!(
        (&shown["turns"], &shown["waiting"], &shown["running"]),
        (&json!(3), &json!(0), &json!(0))
    );
    assert_eq!(shown["conversation"][2]["messages"][0]["content"], "three");
    assert_eq!(bench.show("b"), None, "its only task was cancelled");
}

fn view_id(bench: &Bench, prompt: &str) -> TaskId {
    let tasks = view::list(&bench.store.db, &ListFilter { limit: 9, ..ListFilter::default() });
    let has = |id| view::task(&bench.store.db, id).unwrap().unwrap().input.unwrap();
    tasks.unwrap().iter().map(|task| task.id).find(|id| has(*id).get().contains(prompt)).unwrap()
}

#[test]
fn only_an_end_that_counts_adds_a_turn_and_once() {
    let mut bench = Bench::new(BOUNDS, false);
    bench.say("a", "one");
    bench.answer("first");
    let again = bench.say("a", "two");
    let claimed = bench.claim();
    let error = cancelled("x");
    let later = Next::RetryAt { due_at_ms: 1, charged: 1, error };
    bench.end(&claimed, later).unwrap();
    bench.store.begin(true).unwrap();
    bench.store.promote(2000, 9).unwrap();
    bench.store.commit().unwrap();
    let second = bench.claim();
    assert_eq!(seen(&second), seen(&claimed), "the second attempt sees the same");
    assert!(bench.end(&claimed, said("late")).is_none());
    bench.end(&second, failed()).unwrap();
    assert_eq!(bench.show("a").unwrap()["turns"], 1);
    bench.store.begin(true).unwrap();
    let retried = bench.store.retry(&Retry { id: again, redo: None }).unwrap();
    bench.store.commit().unwrap();
    assert!(matches!(retried, Some(Retried::Back(_))));
    assert_eq!(bench.ready()[0].needs.tokens, 100 + 11);
    let third = bench.claim();
    bench.end(&third, said("second")).unwrap();
    assert!(bench.end(&third, said("second")).is_none());
    assert_eq!(bench.show("a").unwrap()["turns"], 2);
}

#[test]
fn the_oldest_turns_are_dropped() {
    let mut bench = Bench::new(Bounds { turns_max: 2, tokens_max: 8000 }, false);
    for number in 0..4 {
        bench.say("a", &number.to_string());
        bench.answer("x");
    }
    assert_eq!(bench.show("a").unwrap()["turns"], 2);
    bench.keep.bounds = Bounds { turns_max: 20, tokens_max: 15 };
    bench.say("a", "4");
    assert_eq!(bench.answer("x"), ["3", "x"], "what a reload forbids is not seen any more");
    assert_eq!(bench.show("a").unwrap()["turns"], 1);
    bench.say("a", &"long ".repeat(100));
    assert_eq!(bench.answer("x"), ["4", "x"]);
    let shown = bench.show("a").unwrap();
    assert_eq!((&shown["turns"], &shown["tokens"]), (&json!(0), &json!(0)));
}

#[test]
fn what_goes_past_the_bounds_is_summed_up_before_the_next_task_runs() {
    let mut bench = Bench::new(Bounds { turns_max: 4, tokens_max: 8000 }, true);
    for number in 0..6 {
        bench.say("a", &format!("question {number}"));
    }
    for _ in 0..5 {
        bench.answer("answer");
    }
    let summary = bench.claim();
    assert_eq!(summary.history, None);
    let input: Value = serde_json::from_str(&summary.input).unwrap();
    let prompt = input["prompt"].as_str().unwrap();
    assert!(prompt.contains("user: question 2") && !prompt.contains("question 3"), "{prompt}");
    assert_eq!(input["model"], "own");
    let listed = view::task(&bench.store.db, summary.id).unwrap().unwrap();
    assert_eq!((listed.session.as_deref(), listed.step.as_deref()), (Some("a"), Some("summary")));
    bench.end(&summary, said("They counted.")).unwrap();
    let seen = bench.answer("answer");
    let lead = "Summary of the conversation so far: They counted.";
    assert_eq!(seen, [lead, "question 3", "answer", "question 4", "answer"]);
    // The next summary stands for the first one, too.
    for number in 6..8 {
        bench.say("a", &format!("question {number}"));
        bench.answer("answer");
    }
    let second = bench.claim();
    assert!(second.input.contains("They counted.") && second.input.contains("question 5"));
    bench.end(&second, failed()).unwrap();
    let shown = bench.show("a").unwrap();
    assert_eq!((&shown["turns"], &shown["summary"]), (&json!(2), &json!("They counted.")));
}

#[test]
fn a_summary_that_is_not_wanted_any_more_changes_nothing() {
    let mut bench = Bench::new(Bounds { turns_max: 1, tokens_max: 8000 }, true);
    let overflow = |bench: &mut Bench| {
        for prompt in ["x", "y"] {
            bench.say("a", prompt);
            bench.answer("z");
        }
    };
    overflow(&mut bench);
    // One that waits is cancelled.
    let forgotten = bench.clear("a").unwrap();
    assert_eq!((forgotten.turns, forgotten.running), (2, None));
    assert_eq!(forgotten.moved.unwrap().state, State::Cancelled);
    assert!(bench.ready().is_empty() && bench.show("a").is_none());
    assert!(bench.clear("a").is_none(), "there is no such session any more");
    // One that runs is told, and what it says comes too late.
    overflow(&mut bench);
    let summary = bench.claim();
    bench.say("a", "next");
    let forgotten = bench.clear("a").unwrap();
    assert_eq!(forgotten.running, Some(summary.facts.run.seq));
    bench.end(&summary, said("too late")).unwrap();
    assert!(bench.answer("n").is_empty());
    let shown = bench.show("a").unwrap();
    assert_eq!((&shown["turns"], &shown["summary"]), (&json!(1), &Value::Null));
}

#[test]
fn a_running_task_adds_its_turn_to_a_cleared_session() {
    let mut bench = Bench::new(BOUNDS, false);
    bench.say("a", "one");
    bench.answer("first");
    bench.say("a", "two");
    let claimed = bench.claim();
    assert_eq!(bench.clear("a").unwrap().turns, 1);
    assert_eq!(bench.show("a").unwrap()["running"], 1);
    bench.end(&claimed, said("second")).unwrap();
    bench.say("a", "three");
    assert_eq!(bench.answer("third"), ["two", "second"]);
}

#[test]
fn sessions_are_forgotten_when_they_are_idle() {
    let mut bench = Bench::new(BOUNDS, false);
    for session in ["a", "b"] {
        bench.say(session, "one");
        bench.answer("first");
        bench.now_ms += 1000;
    }
    let listed = sessions::list(&bench.store.db, 9).unwrap();
    assert_eq!(listed["sessions"][0]["name"], "b");
    assert_eq!(sessions::list(&bench.store.db, 1).unwrap()["more"], true);
    bench.say("a", "two");
    bench.now_ms += 10_000;
    assert_eq!(bench.prune_idle(5000), 1, "a task of the other waits");
    assert!(bench.show("a").is_some() && bench.show("b").is_none());
    let claimed = bench.claim();
    assert_eq!(seen(&claimed), ["one", "first"]);
    assert_eq!(bench.prune_idle(5000), 0, "it runs");
    bench.end(&claimed, failed()).unwrap();
    assert_eq!(bench.prune_idle(5000), 0, "it has just ended");
    bench.now_ms += 5001;
    assert_eq!(bench.prune_idle(5000), 1);
    let left: i64 =
        bench.store.db.query_row("SELECT count(*) FROM turns", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn a_session_whose_first_task_waits_is_listed() {
    let mut bench = Bench::new(BOUNDS, false);
    bench.say("a", "one");
    bench.say("a", "two");
    let lane = NewTask { lane: Some("a".to_owned()), ..new_task("{}") };
    submit(&mut bench.store, vec![lane], 0).unwrap();
    let listed = sessions::list(&bench.store.db, 9).unwrap();
    let expected = json!({ "name": "a", "turns": 0, "tokens": 0, "has_summary": false,
        "last_used_at": null, "waiting": 2, "running": 0 });
    assert_eq!(listed, json!({ "sessions": [expected], "more": false }));
    assert_eq!(bench.show("a").unwrap()["conversation"], json!([]));
}
