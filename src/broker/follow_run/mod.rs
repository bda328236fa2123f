//! Clients that follow a run: its steps, and the text of those that it names as its voice.
//!
//! Text is told as it comes from workers; everything else is read from the store each time that
//! something has moved, so that what is told is on disk, and a broker that has just begun tells the
//! same.
//!
//! * [`cursor`]: where a follower is, pure
//! * [`teller`]: what it is told, pure

mod cursor;
mod teller;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::spawn_local;

use self::cursor::Cursor;
use self::teller::Teller;
use super::clients::ReplyTo;
use super::follow::OfRun;
use super::runs::RunState;
use super::store::tree::{StepRow, Tree, Voices, tree};
use super::store::view;
use super::waits::no_such_task;
use super::{Core, Input, steady_ms};
use crate::protocol::control::{Refusal, RefusalKind, Reply};
use crate::protocol::link::Seq;
use crate::task::{TaskId, TaskView};
use crate::worker::handlers::workflow::RunInput;
use crate::workflow::{Voice, Workflow};

/// Between two looks at how much text the steps have.
const TELL_EVERY_MS: i64 = 500;

/// A client that follows a run.
pub(crate) struct RunFollower {
    to: ReplyTo,
    id: TaskId,
    teller: Teller,
    voices: Voices,
    /// The runs that it is about: the one that is followed, and those within it.
    runs: BTreeSet<Seq>,
    /// A look at the store is under way.
    looking: bool,
    /// Something has moved since.
    again: bool,
}

/// Who follows runs, each by a number.
#[derive(Default)]
pub(crate) struct RunFollowers {
    all: BTreeMap<u64, RunFollower>,
    last: u64,
    /// When they are told again how much text there is.
    told_at_ms: i64,
}

impl RunFollowers {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// A client is gone.
    pub(super) fn forget(&mut self, client: u64) {
        self.all.retain(|_, follower| follower.to.client != client);
    }

    fn of(&self, run: Seq) -> Vec<u64> {
        let about = self.all.iter().filter(|(_, follower)| follower.runs.contains(&run));
        about.map(|(number, _)| *number).collect()
    }
}

impl Core {
    /// A client follows this run.
    pub(super) fn follow_run(&mut self, to: ReplyTo, wish: OfRun, task: &TaskView) {
        let cursor = match wish.from.as_deref().map(str::parse::<Cursor>).transpose() {
            Ok(cursor) => cursor.unwrap_or_default(),
            Err(message) => return to.refuse(Refusal::new(RefusalKind::Invalid, message)),
        };
        let voices = if wish.all { Voices::All } else { voices_of(task.input.as_deref()) };
        self.run_followers.last += 1;
        let number = self.run_followers.last;
        let (id, teller) = (task.id, Teller::new(task.id, cursor));
        let (runs, looking, again) = (BTreeSet::new(), false, false);
        let follower = RunFollower { to, id, teller, voices, runs, looking, again };
        self.run_followers.all.insert(number, follower);
        self.look_at_run(number);
    }

    /// A step of this run began, moved or ended, or the run itself did.
    pub(super) fn run_moved(&mut self, run: Seq) {
        if !self.run_followers.is_empty() {
            self.run_followers.of(run).into_iter().for_each(|number| self.look_at_run(number));
        }
    }

    /// A task moved, which may be a run that somebody follows.
    pub(super) fn followed_moved(&mut self, id: TaskId) {
        let followed = self.run_followers.all.iter().filter(|(_, follower)| follower.id == id);
        let numbers: Vec<u64> = followed.map(|(number, _)| *number).collect();
        numbers.into_iter().for_each(|number| self.look_at_run(number));
    }

    fn look_at_run(&mut self, number: u64) {
        let Some(follower) = self.run_followers.all.get_mut(&number) else { return };
        if std::mem::replace(&mut follower.looking, true) {
            follower.again = true;
            return;
        }
        self.read(move |core| core.read_run(number));
    }

    fn read_run(&self, number: u64) {
        let Some(follower) = self.run_followers.all.get(&number) else { return };
        let (id, voices) = (follower.id, follower.voices.clone());
        let heard = (follower.teller.cursor.begun, follower.teller.cursor.ended);
        let (reader, inputs) = (self.reader.clone(), self.inputs.clone());
        spawn_local(async move {
            let read = reader.ask(move |db| {
                let Some(tree) = tree(db, id, heard, &voices)? else { return Ok(None) };
                let done = if tree.state.is_final() { view::task(db, id)? } else { None };
                Ok(Some((tree, done)))
            });
            let read = read.await;
            let then = move |core: &mut Core| core.looked_at_run(number, read);
            let _ = inputs.send(Input::Then(Box::new(then)));
        });
    }

    fn looked_at_run(
        &mut self,
        number: u64,
        read: Result<Option<(Tree, Option<TaskView>)>, Refusal>,
    ) {
        let (mut tree, done) = match read {
            Ok(Some(read)) => read,
            Ok(None) => return self.refuse_run(number),
            Err(refusal) => return self.refuse_run_with(number, refusal),
        };
        let Some(follower) = self.run_followers.all.get_mut(&number) else { return };
        tree.rows.iter_mut().for_each(|row| add_progress(row, &self.runs));
        // Text that has come before its step was known.
        for event in follower.teller.take(&tree.rows) {
            follower.to.send(&Reply::Event(event));
        }
        for row in tree.rows.iter().filter(|row| row.ended.is_none()) {
            if let Some(run) = self.runs.get(&row.seq) {
                follower.tell_text(row.seq, run);
            }
        }
        if let Some(task) = done {
            follower.to.send(&Reply::Event(follower.teller.finish(task)));
            follower.to.send(&Reply::End);
            self.run_followers.all.remove(&number);
            return;
        }
        let kind = crate::worker::handlers::workflow::KIND;
        let within = tree.rows.iter().filter(|row| row.view.kind == kind).map(|row| row.seq);
        follower.runs.extend(within);
        follower.runs.insert(tree.root);
        follower.looking = false;
        if std::mem::take(&mut follower.again) {
            self.look_at_run(number);
        }
    }

    fn refuse_run(&mut self, number: u64) {
        if let Some(follower) = self.run_followers.all.get(&number) {
            let refusal = no_such_task(follower.id);
            self.refuse_run_with(number, refusal);
        }
    }

    fn refuse_run_with(&mut self, number: u64, refusal: Refusal) {
        if let Some(follower) = self.run_followers.all.remove(&number) {
            follower.to.refuse(refusal);
        }
    }

    /// A running step has news.
    pub(super) fn tell_step_events(&mut self, seq: Seq) {
        if self.run_followers.is_empty() {
            return;
        }
        let Some(run) = self.runs.get(&seq) else { return };
        tell_text(&mut self.run_followers, seq, run);
    }

    /// A step's attempt has ended, and its events are about to be forgotten.
    pub(super) fn tell_last_step_events(&mut self, run: &RunState) {
        tell_text(&mut self.run_followers, run.facts.run.seq, run);
    }

    /// Those who follow runs are told now and then how much text its steps have.
    pub(super) fn tell_progress(&mut self) {
        let now_ms = steady_ms();
        if self.run_followers.is_empty() || now_ms < self.run_followers.told_at_ms {
            return;
        }
        self.run_followers.told_at_ms = now_ms + TELL_EVERY_MS;
        let numbers: Vec<u64> = self.run_followers.all.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.look_at_run(number));
    }
}

impl RunFollower {
    fn tell_text(&mut self, seq: Seq, run: &RunState) {
        let attempt = run.facts.run.attempt;
        for event in self.teller.catch_up(seq, attempt, &run.events) {
            self.to.send(&Reply::Event(event));
        }
    }
}

fn tell_text(followers: &mut RunFollowers, seq: Seq, run: &RunState) {
    let Some(parent) = run.facts.parent else { return };
    for follower in followers.all.values_mut().filter(|one| one.runs.contains(&parent)) {
        follower.tell_text(seq, run);
    }
}

fn add_progress(row: &mut StepRow, runs: &BTreeMap<Seq, RunState>) {
    if let Some(run) = runs.get(&row.seq) {
        row.view.text_bytes = Some(run.events.text_bytes());
    }
}

/// Whose text a run wants told. One whose definition cannot be read has no voice.
fn voices_of(input: Option<&RawValue>) -> Voices {
    let input = input.and_then(|input| serde_json::from_str::<RunInput<'_>>(input.get()).ok());
    input
        .and_then(|input| voices_of_definition(input.workflow))
        .unwrap_or(Voices::Named { names: Vec::new(), within: BTreeMap::new() })
}

fn voices_of_definition(definition: &RawValue) -> Option<Voices> {
    #[derive(Deserialize)]
    struct Steps<'a> {
        #[serde(borrow, default)]
        steps: BTreeMap<String, Nested<'a>>,
    }
    #[derive(Deserialize)]
    struct Nested<'a> {
        #[serde(borrow)]
        workflow: Option<&'a RawValue>,
    }
    let names = match Workflow::read(definition).ok()?.voice() {
        Voice::All => return Some(Voices::All),
        Voice::Steps(names) => names.clone(),
    };
    let Steps { steps } = serde_json::from_str(definition.get()).ok()?;
    let nested = steps.into_iter().filter_map(|(name, step)| Some((name, step.workflow?)));
    let within = nested.filter_map(|(name, nested)| Some((name, voices_of_definition(nested)?)));
    Some(Voices::Named { names, within: within.collect() })
}
