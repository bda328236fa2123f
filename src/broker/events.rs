//! The events of one running task, as far as they are kept: pure.

use std::collections::VecDeque;

use crate::protocol::link::EventBody;

/// Events that are kept of one task; older ones give way to a gap.
pub(crate) const EVENT_LOG_BYTES_MAX: usize = 1 << 20;

/// What is kept of one attempt's events.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    events: VecDeque<(u64, EventBody)>,
    bytes: usize,
    last_n: u64,
    /// Text that has come, in bytes.
    text_bytes: u64,
}

impl EventLog {
    /// Takes in an event. One that is known already (sent again after a reconnect) is not new.
    pub(crate) fn push(&mut self, n: u64, body: EventBody) -> bool {
        if n <= self.last_n {
            return false;
        }
        self.last_n = n;
        self.bytes += body.bytes();
        if let EventBody::Text(text) = &body {
            self.text_bytes += text.len() as u64;
        }
        self.events.push_back((n, body));
        while self.bytes > EVENT_LOG_BYTES_MAX
            && let Some((_, old)) = self.events.pop_front()
        {
            self.bytes -= old.bytes();
        }
        true
    }

    /// How much text has come, kept or not.
    pub(crate) fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// The events after number `after`, and whether some between are missing.
    pub(crate) fn after(&self, after: u64) -> (bool, impl Iterator<Item = &(u64, EventBody)>) {
        let first = self.events.iter().find(|(n, _)| *n > after).map(|(n, _)| *n);
        let gap = first.is_some_and(|first| first > after + 1);
        (gap, self.events.iter().filter(move |(n, _)| *n > after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> EventBody {
        EventBody::Text("x".repeat(bytes))
    }

    fn numbers(log: &EventLog, after: u64) -> (bool, Vec<u64>) {
        let (gap, events) = log.after(after);
        (gap, events.map(|(n, _)| *n).collect())
    }

    #[test]
    fn a_reader_continues_where_it_was() {
        let mut log = EventLog::default();
        assert!(log.push(1, text(1)) && log.push(2, text(1)) && log.push(3, text(1)));
        assert!(!log.push(2, text(1)), "sent again");
        assert_eq!(numbers(&log, 0), (false, vec![1, 2, 3]));
        assert_eq!(numbers(&log, 2), (false, vec![3]));
        assert_eq!(numbers(&log, 3), (false, vec![]));
    }

    #[test]
    fn what_does_not_fit_is_a_gap() {
        let mut log = EventLog::default();
        for n in 1..=4 {
            log.push(n, text(EVENT_LOG_BYTES_MAX / 2));
        }
        assert_eq!(numbers(&log, 0), (true, vec![3, 4]));
        assert_eq!(numbers(&log, 2), (false, vec![3, 4]));
    }

    #[test]
    fn a_jump_in_the_numbers_is_a_gap() {
        let mut log = EventLog::default();
        log.push(1, text(1));
        log.push(5, text(1));
        assert_eq!(numbers(&log, 1), (true, vec![5]));
    }
}
