//! What must not be forgotten: what was spent in the last minute, which servers are left alone, and
//! when schedules ran last.

use std::collections::BTreeMap;

use rusqlite::Row;

use super::Sqlite;
use crate::broker::permits::{Facts, Memo};
use crate::broker::store::StoreError;

impl Sqlite {
    pub(super) fn keep_memo(&mut self, memo: &Memo) -> Result<(), StoreError> {
        match memo {
            Memo::Spent { meter, slot, requests, tokens } => self
                .db
                .prepare_cached(
                    "INSERT INTO spent VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET
                       requests = requests + excluded.requests, tokens = tokens + excluded.tokens",
                )?
                .execute((meter, slot, requests, tokens))?,
            Memo::Server { name, breaker, closed_until_ms } => self
                .db
                .prepare_cached("INSERT OR REPLACE INTO servers VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute((
                    name,
                    breaker.failures,
                    breaker.open_until_ms,
                    breaker.probe.map(|permit| permit as i64),
                    closed_until_ms,
                ))?,
        };
        Ok(())
    }

    pub(super) fn keep_run(
        &mut self,
        schedule: &str,
        at_ms: Option<i64>,
    ) -> Result<(), StoreError> {
        match at_ms {
            Some(at_ms) => {
                let sql = "INSERT OR REPLACE INTO schedules VALUES (?1, ?2)";
                self.db.prepare_cached(sql)?.execute((schedule, at_ms))?
            }
            None => self.db.execute("DELETE FROM schedules WHERE name = ?1", [schedule])?,
        };
        Ok(())
    }

    pub(super) fn read_last_runs(&self) -> Result<BTreeMap<String, i64>, StoreError> {
        let mut query = self.db.prepare("SELECT name, last_at FROM schedules")?;
        let runs = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(runs.collect::<Result<_, _>>()?)
    }

    pub(super) fn read_memos(&mut self, oldest_slot: i64) -> Result<Vec<Memo>, StoreError> {
        self.db.execute("DELETE FROM spent WHERE slot < ?1", [oldest_slot])?;
        let spent = |row: &Row<'_>| {
            let (meter, slot) = (row.get(0)?, row.get(1)?);
            Ok(Memo::Spent { meter, slot, requests: row.get(2)?, tokens: row.get(3)? })
        };
        let server = |row: &Row<'_>| {
            let probe: Option<i64> = row.get(3)?;
            let probe = probe.map(i64::unsigned_abs);
            let breaker = Facts { failures: row.get(1)?, open_until_ms: row.get(2)?, probe };
            Ok(Memo::Server { name: row.get(0)?, breaker, closed_until_ms: row.get(4)? })
        };
        let mut memos = Vec::new();
        let mut query = self.db.prepare("SELECT * FROM spent")?;
        for memo in query.query_map([], spent)? {
            memos.push(memo?);
        }
        let mut query = self.db.prepare("SELECT * FROM servers")?;
        for memo in query.query_map([], server)? {
            memos.push(memo?);
        }
        Ok(memos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::store::Store;
    use crate::broker::store::sqlite::Durability;

    #[test]
    fn the_last_run_of_each_schedule_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("forq.db");
        let mut store = Sqlite::open(&path, 1, Durability::Os).unwrap();
        store.begin(true).unwrap();
        for (schedule, at_ms) in [("a", Some(1)), ("b", Some(2)), ("a", Some(3)), ("c", None)] {
            store.remember_run(schedule, at_ms).unwrap();
        }
        store.commit().unwrap();
        store.begin(true).unwrap();
        store.remember_run("b", None).unwrap();
        store.rollback();
        drop(store);
        let mut store = Sqlite::open(&path, 1, Durability::Os).unwrap();
        let runs = |pairs: &[(&str, i64)]| -> BTreeMap<String, i64> {
            pairs.iter().map(|(name, at_ms)| ((*name).to_owned(), *at_ms)).collect()
        };
        assert_eq!(store.last_runs().unwrap(), runs(&[("a", 3), ("b", 2)]));
        store.remember_run("b", None).unwrap();
        assert_eq!(store.last_runs().unwrap(), runs(&[("a", 3)]));
    }
}
