//! Sessions and their conversations as people see them, read from the database.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension};
use serde_json::{Map, Value, json};

use super::view::rfc3339;
use crate::broker::conversation::{LANE_PREFIX, session_of};

/// The most sessions that are told at once.
pub(crate) const SESSIONS_MAX: u32 = 10_000;

/// A session, as far as it has something to tell.
#[derive(Clone, Debug, Default)]
struct Session {
    turns: i64,
    tokens: i64,
    last_used_ms: Option<i64>,
    has_summary: bool,
    waiting: i64,
    running: i64,
}

/// The document of `forq session list`: those that were used last come first, `limit` at most, and
/// those whose first task has not ended before them. `more` says that some were left out.
pub(crate) fn list(db: &Connection, limit: u32) -> rusqlite::Result<Value> {
    let limit = limit.clamp(1, SESSIONS_MAX);
    let mut found = BTreeMap::new();
    let mut query = db.prepare_cached(
        "SELECT name, touched_at, tokens, summary IS NOT NULL,
           (SELECT count(*) FROM turns WHERE session = name)
         FROM sessions ORDER BY touched_at DESC LIMIT ?1",
    )?;
    let mut rows = query.query([limit + 1])?;
    while let Some(row) = rows.next()? {
        let session = Session {
            last_used_ms: Some(row.get(1)?),
            tokens: row.get(2)?,
            has_summary: row.get(3)?,
            turns: row.get(4)?,
            ..Session::default()
        };
        found.insert(row.get::<_, String>(0)?, session);
    }
    let mut more = found.len() > limit as usize;
    let mut query = db.prepare_cached(
        "SELECT lane, count(*) FILTER (WHERE state = 1), count(*) FROM tasks INDEXED BY tasks_lane
         WHERE lane >= 's:' AND lane < 's;' AND lane IS NOT NULL AND state < 4 GROUP BY lane",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let (lane, running, open): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let name = session_of(&lane).unwrap_or(&lane);
        let is_new = !found.contains_key(name);
        if is_new && (found.len() > limit as usize || has_conversation(db, name)?) {
            more = true;
            continue;
        }
        let session = found.entry(name.to_owned()).or_default();
        (session.running, session.waiting) = (running, open - running);
    }
    let mut sessions: Vec<_> = found.into_iter().collect();
    let newest_first = |last_used: Option<i64>| std::cmp::Reverse(last_used.unwrap_or(i64::MAX));
    sessions.sort_by_key(|(_, session)| newest_first(session.last_used_ms));
    sessions.truncate(limit as usize);
    let sessions: Vec<_> =
        sessions.into_iter().map(|(name, session)| Value::Object(told(&name, &session))).collect();
    Ok(json!({ "sessions": sessions, "more": more }))
}

fn has_conversation(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM sessions WHERE name = ?1")?.exists([name])
}

fn told(name: &str, session: &Session) -> Map<String, Value> {
    let mut told = Map::new();
    told.insert("name".to_owned(), json!(name));
    told.insert("turns".to_owned(), json!(session.turns));
    told.insert("tokens".to_owned(), json!(session.tokens));
    told.insert("has_summary".to_owned(), json!(session.has_summary));
    told.insert("last_used_at".to_owned(), json!(session.last_used_ms.map(rfc3339)));
    told.insert("waiting".to_owned(), json!(session.waiting));
    told.insert("running".to_owned(), json!(session.running));
    told
}

/// The document of `forq session show`; `None` if there is no such session.
pub(crate) fn show(db: &Connection, name: &str) -> rusqlite::Result<Option<Value>> {
    let known = db
        .prepare_cached("SELECT touched_at, tokens, summary FROM sessions WHERE name = ?1")?
        .query_row([name], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<String>>(2)?))
        })
        .optional()?;
    let (running, open): (i64, i64) = db
        .prepare_cached(
            "SELECT count(*) FILTER (WHERE state = 1), count(*) FROM tasks
             WHERE lane = ?1 AND state < 4",
        )?
        .query_row([format!("{LANE_PREFIX}{name}")], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if known.is_none() && open == 0 {
        return Ok(None);
    }
    let turns = turns(db, name)?;
    let mut session = Session { turns: turns.len() as i64, ..Session::default() };
    (session.running, session.waiting) = (running, open - running);
    let mut summary = None;
    if let Some((touched_at, tokens, text)) = known {
        (session.last_used_ms, session.tokens) = (Some(touched_at), tokens);
        session.has_summary = text.is_some();
        summary = text;
    }
    let mut told = told(name, &session);
    told.insert("summary".to_owned(), json!(summary));
    told.insert("conversation".to_owned(), turns.into());
    Ok(Some(told.into()))
}

fn turns(db: &Connection, name: &str) -> rusqlite::Result<Vec<Value>> {
    let mut query =
        db.prepare_cached("SELECT at, tokens, messages FROM turns WHERE session = ?1 ORDER BY n")?;
    let found = query.query_map([name], |row| {
        let (at, tokens, messages): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let messages: Value = serde_json::from_str(&messages).unwrap_or_default();
        Ok(json!({ "at": rfc3339(at), "tokens": tokens, "messages": messages }))
    })?;
    found.collect()
}
