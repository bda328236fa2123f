//! What a starting broker reads, and what refills the queue's window.

use rusqlite::Row;
use uuid::Uuid;

use super::moves::{FACTS_COLUMNS, FACTS_COUNT, facts_of};
use super::{READY_COLUMNS, Sqlite, ready_of};
use crate::broker::store::{Depth, OpenClaim, Owner, Ready, Refill, StoreError};
use crate::task::{State, TaskId};

/// In the table `paused`, the row that stands for every queue. No queue can have this name.
const ALL_QUEUES: &str = "*";

impl Sqlite {
    pub(super) fn read_ready(&self, refill: &Refill) -> Result<Vec<Ready>, StoreError> {
        let sql = format!(
            "SELECT {READY_COLUMNS} FROM tasks INDEXED BY tasks_ready
             WHERE state = 0 AND queue = ?1 AND priority = ?2 AND gate = ?3 AND ord > ?4
             ORDER BY ord LIMIT ?5"
        );
        let mut query = self.db.prepare_cached(&sql)?;
        let Refill { queue, priority, gate, after, limit } = refill;
        let found = query.query_map((queue, priority, gate, after, limit), ready_of)?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    pub(super) fn read_claims(&self) -> Result<Vec<OpenClaim>, StoreError> {
        let sql = format!(
            "SELECT {FACTS_COLUMNS}, instance, serial, priority FROM tasks INDEXED BY tasks_running
             WHERE state = 1"
        );
        let mut query = self.db.prepare(&sql)?;
        let found = query.query_map([], |row| {
            let serial: i64 = row.get(FACTS_COUNT + 1)?;
            let owner = Owner { instance: row.get(FACTS_COUNT)?, serial: serial.unsigned_abs() };
            Ok(OpenClaim { owner, priority: row.get(FACTS_COUNT + 2)?, facts: facts_of(row)? })
        })?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// Counts what is not final, each state through its own small index.
    pub(super) fn read_depth(&self) -> Result<Depth, StoreError> {
        let mut depth = Depth::default();
        let mut groups = self.db.prepare(
            "SELECT queue, priority, count(*), gate FROM tasks INDEXED BY tasks_ready
             WHERE state = 0 GROUP BY queue, priority, gate",
        )?;
        let mut rows = groups.query([])?;
        while let Some(row) = rows.next()? {
            let queue: String = row.get(0)?;
            let count: i64 = row.get(2)?;
            depth.queues.entry(queue.clone()).or_default().queued += count.unsigned_abs();
            depth.groups.push((queue, row.get(1)?, row.get(3)?, count.unsigned_abs()));
        }
        for (state, condition) in [
            (State::Running, "INDEXED BY tasks_running WHERE state = 1"),
            (State::Scheduled, "INDEXED BY tasks_due WHERE state = 2"),
            (State::Blocked, "INDEXED BY tasks_blocked WHERE state = 3"),
        ] {
            let sql = format!("SELECT queue, count(*) FROM tasks {condition} GROUP BY queue");
            let mut counts = self.db.prepare(&sql)?;
            let mut rows = counts.query([])?;
            while let Some(row) = rows.next()? {
                let queue: String = row.get(0)?;
                depth.queues.entry(queue).or_default().count(state, row.get(1)?);
            }
        }
        let mut paused = self.db.prepare("SELECT queue FROM paused")?;
        let mut rows = paused.query([])?;
        while let Some(row) = rows.next()? {
            match row.get::<_, String>(0)? {
                all if all == ALL_QUEUES => depth.all_paused = true,
                queue => depth.paused.push(queue),
            }
        }
        depth.next_due_at_ms = self.next_due()?;
        depth.next_expiry_at_ms = self.next_expiry()?;
        Ok(depth)
    }

    pub(super) fn set_paused(
        &mut self,
        queue: Option<&str>,
        paused: bool,
    ) -> Result<(), StoreError> {
        let name = queue.unwrap_or(ALL_QUEUES);
        match (queue, paused) {
            (_, true) => self.db.execute("INSERT OR IGNORE INTO paused VALUES (?1)", [name])?,
            (Some(_), false) => self.db.execute("DELETE FROM paused WHERE queue = ?1", [name])?,
            // To resume all is to resume each.
            (None, false) => self.db.execute("DELETE FROM paused", [])?,
        };
        Ok(())
    }
}

pub(crate) fn id_of(row: &Row<'_>, column: usize) -> rusqlite::Result<TaskId> {
    Ok(TaskId(Uuid::from_bytes(row.get(column)?)))
}

pub(crate) fn state_of(row: &Row<'_>, column: usize) -> rusqlite::Result<State> {
    let code: u8 = row.get(column)?;
    // The order of State::ALL is the order of the codes; a test holds them together.
    State::ALL
        .get(usize::from(code))
        .copied()
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(column, code.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_places_in_the_order_of_states() {
        for (place, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(super::super::code(state), place as i64);
        }
    }
}
