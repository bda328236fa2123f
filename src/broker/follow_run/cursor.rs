//! Where a follower of a run is: pure.
//!
//! Steps have an order of their beginnings and one of their ends, both in the store. Of steps whose
//! text is told and which have not ended, the place in their text belongs to it, too. All of it is in
//! the id of each event, so that any broker can go on behind any event.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::broker::store::Ord;
use crate::protocol::link::Seq;

/// Behind an event of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Steps up to this one were told of.
    pub(super) begun: Seq,
    /// Ends up to this one were told.
    pub(super) ended: Ord,
    /// Text of steps that have not ended.
    pub(super) open: BTreeMap<Seq, Place>,
}

/// In the text of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) attempt: u32,
    /// The attempt's last event that was told.
    pub(super) n: u64,
    /// What was told of its text, in bytes, since that last began.
    pub(super) bytes: usize,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.begun, self.ended)?;
        for (seq, Place { attempt, n, bytes }) in &self.open {
            write!(f, "_{seq}.{attempt}.{n}.{bytes}")?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        read(text).ok_or_else(|| format!("'{text}' is no event of a run"))
    }
}

fn read(text: &str) -> Option<Cursor> {
    let mut parts = text.split('_');
    let (begun, ended) = parts.next()?.split_once('.')?;
    let mut cursor =
        Cursor { begun: begun.parse().ok()?, ended: ended.parse().ok()?, ..Cursor::default() };
    for part in parts {
        let mut numbers = part.split('.');
        let seq = numbers.next()?.parse().ok()?;
        let place = Place {
            attempt: numbers.next()?.parse().ok()?,
            n: numbers.next()?.parse().ok()?,
            bytes: numbers.next()?.parse().ok()?,
        };
        if numbers.next().is_some() {
            return None;
        }
        cursor.open.insert(seq, place);
    }
    Some(cursor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cursors_read_back_as_written(
            begun in any::<i64>(), ended in any::<i64>(),
            open in prop::collection::btree_map(any::<i64>(), any::<(u32, u64, usize)>(), 0..4),
        ) {
            let place = |(attempt, n, bytes)| Place { attempt, n, bytes };
            let open = open.into_iter().map(|(seq, at)| (seq, place(at))).collect();
            let cursor = Cursor { begun, ended, open };
            prop_assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        }

        #[test]
        fn nonsense_is_refused_and_never_panics(text in "[0-9._x-]{0,30}") {
            let _ = text.parse::<Cursor>();
        }
    }

    #[test]
    fn what_is_no_cursor_says_so() {
        for text in ["", "1", "1.x", "1.2_3", "1.2_3.4.5", "1.2_3.4.5.6.7"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
