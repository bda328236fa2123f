//! A run with its steps, and the steps of the runs within it, as those who follow it see them.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension};
use serde::Deserialize;

use super::Ord;
use super::sqlite::{id_of, state_of};
use super::view::{attempt_of, ran_ms, usage_of};
use crate::broker::now_ms;
use crate::protocol::link::Seq;
use crate::task::{State, StepView, TaskId};
use crate::workflow::step_of;

/// A step, from the run that is followed down.
#[derive(Clone, Debug)]
pub(crate) struct StepRow {
    pub(crate) seq: Seq,
    /// Its place in the order of ends.
    pub(crate) ended: Option<Ord>,
    /// Its key is a path: `table#1/host`.
    pub(crate) view: StepView,
    /// Its text is told.
    pub(crate) voiced: bool,
    /// The text of its output, if it is told and news.
    pub(crate) text: Option<String>,
    /// Its output came after others had been given up.
    pub(crate) restarted: bool,
}

/// What is read of a run.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The run itself.
    pub(crate) root: Seq,
    pub(crate) state: State,
    pub(crate) rows: Vec<StepRow>,
}

/// Whose text is told.
#[derive(Clone, Debug)]
pub(crate) enum Voices {
    /// Every step's.
    All,
    /// That of the steps with these names; of a workflow within, if it has one of them, that of the
    /// steps which it names itself.
    Named { names: Vec<String>, within: BTreeMap<String, Voices> },
}

impl Voices {
    fn has(&self, path: &str) -> bool {
        let Voices::Named { names, within } = self else { return true };
        let (first, rest) = path.split_once('/').map_or((path, None), |(a, b)| (a, Some(b)));
        let step = step_of(first);
        names.iter().any(|name| name == step)
            && rest.is_none_or(|rest| within.get(step).is_none_or(|voices| voices.has(rest)))
    }
}

/// Reads what is news to somebody who has heard of steps up to `begun` and of ends up to `ended`:
/// every step that has not ended, too. `None` if there is no such run.
pub(crate) fn tree(
    db: &Connection,
    run: TaskId,
    (begun, ended): (Seq, Ord),
    voices: &Voices,
) -> rusqlite::Result<Option<Tree>> {
    // First: a run that has ended by now has no step that ends later, but for those of a failure.
    let root = db
        .prepare_cached("SELECT seq, state FROM tasks WHERE id = ?1")?
        .query_row([run.0.as_bytes()], |row| Ok((row.get::<_, Seq>(0)?, state_of(row, 1)?)))
        .optional()?;
    let Some((root, state)) = root else { return Ok(None) };
    let mut query = db.prepare_cached(
        "WITH RECURSIVE tree (seq, path) AS (
           SELECT seq, step FROM tasks WHERE parent = ?1
           UNION ALL
           SELECT tasks.seq, tree.path || '/' || tasks.step
           FROM tree JOIN tasks ON tasks.parent = tree.seq)
         SELECT tasks.seq, path, id, kind, state, ended, attempt - advances, stepping, created_at,
           first_started_at, finished_at, usage_in, usage_out, cost, error
         FROM tree JOIN tasks ON tasks.seq = tree.seq
         WHERE ended IS NULL OR ended > ?3 OR tasks.seq > ?2 ORDER BY tasks.seq",
    )?;
    let mut found = query.query((root, begun, ended))?;
    let (mut rows, now_ms) = (Vec::new(), now_ms());
    while let Some(row) = found.next()? {
        rows.push(row_of(row, voices, now_ms)?);
    }
    for row in rows.iter_mut().filter(|row| row.voiced && row.ended.is_some_and(|at| at > ended)) {
        read_text(db, row)?;
    }
    Ok(Some(Tree { root, state, rows }))
}

fn row_of(row: &rusqlite::Row<'_>, voices: &Voices, now_ms: i64) -> rusqlite::Result<StepRow> {
    let state = state_of(row, 4)?;
    let (path, kind): (String, String) = (row.get(1)?, row.get(3)?);
    let (created_at, error): (i64, Option<String>) = (row.get(8)?, row.get(14)?);
    let (started_at, finished_at): (Option<i64>, Option<i64>) = (row.get(9)?, row.get(10)?);
    // The text of a workflow within is that of its steps.
    let voiced = kind != crate::worker::handlers::workflow::KIND && voices.has(&path);
    Ok(StepRow {
        seq: row.get(0)?,
        ended: row.get(5)?,
        voiced,
        text: None,
        restarted: false,
        view: StepView {
            step: path,
            id: id_of(row, 2)?,
            kind,
            state,
            attempt: attempt_of(state, row.get(6)?, row.get(7)?),
            wait_ms: started_at.map(|at| at.abs_diff(created_at)),
            run_ms: ran_ms((state, row.get(7)?), started_at, finished_at, now_ms),
            text_bytes: None,
            usage: usage_of(row.get(11)?, row.get(12)?),
            cost: row.get(13)?,
            error: error.and_then(|error| serde_json::from_str(&error).ok()),
        },
    })
}

fn read_text(db: &Connection, row: &mut StepRow) -> rusqlite::Result<()> {
    #[derive(Deserialize)]
    struct Said {
        text: Option<String>,
        fallbacks: Option<serde::de::IgnoredAny>,
        asked: Option<serde::de::IgnoredAny>,
    }
    let output: Option<String> = db
        .prepare_cached("SELECT output FROM tasks WHERE seq = ?1")?
        .query_row([row.seq], |row| row.get(0))?;
    let said = output.and_then(|output| serde_json::from_str::<Said>(&output).ok());
    if let Some(said) = said {
        row.restarted = said.fallbacks.is_some() || said.asked.is_some();
        row.text = said.text;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workflow_within_names_its_own_voice() {
        let named = |names: &[&str], within: BTreeMap<String, Voices>| Voices::Named {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            within,
        };
        let inner = named(&["host"], BTreeMap::new());
        let within = BTreeMap::from([("table".to_owned(), inner)]);
        let voices = named(&["table", "scene", "free"], within);
        for (path, has) in [
            ("table", true),
            ("table#2/host", true),
            ("table#2/planner", false),
            ("free/anything", true),
            ("scene[3]", true),
            ("tables", false),
            ("other/host", false),
        ] {
            assert_eq!(voices.has(path), has, "{path}");
        }
        assert!(Voices::All.has("anything"));
    }
}
