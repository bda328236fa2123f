//! What permits must not forget: what was spent in the last minute, and which servers are left
//! alone.

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
