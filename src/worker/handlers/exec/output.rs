//! What a command prints: lines of stdout, the end of stderr. Pure.

use serde_json::Value;

use crate::handler::Event;

/// Everything that came, and where its lines end.
#[derive(Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Start of the first line that was not given out.
    line: usize,
    /// Up to here no end of it was found.
    seen: usize,
}

impl Lines {
    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, with its end.
    pub(super) fn next_line(&mut self) -> Option<&[u8]> {
        let Some(index) = self.bytes[self.seen..].iter().position(|byte| *byte == b'\n') else {
            self.seen = self.bytes.len();
            return None;
        };
        let (start, end) = (self.line, self.seen + index + 1);
        (self.line, self.seen) = (end, end);
        Some(&self.bytes[start..end])
    }

    /// What stands after the last whole line.
    pub(super) fn last_line(&self) -> Option<&[u8]> {
        Some(&self.bytes[self.line..]).filter(|line| !line.is_empty())
    }

    pub(super) fn into_text(self) -> String {
        into_text(self.bytes)
    }
}

/// A JSON object is data; any other line is text, with its end.
pub(super) fn event_of(line: &[u8]) -> Event {
    if line.trim_ascii_start().first() == Some(&b'{')
        && let Ok(data @ Value::Object(_)) = serde_json::from_slice(line)
    {
        return Event::Data { data: Box::new(data) };
    }
    Event::Text { text: String::from_utf8_lossy(line).into_owned() }
}

/// The last bytes of what came.
pub(super) struct Tail {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Tail {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), bytes_max }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // At twice the size only, so that each byte is moved about once.
        if self.bytes.len() > 2 * self.bytes_max {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.bytes.drain(..self.bytes.len().saturating_sub(self.bytes_max));
    }

    pub(super) fn into_text(mut self) -> String {
        self.cut();
        into_text(self.bytes)
    }
}

/// Most output is UTF-8, and then it is not copied.
fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn lines_do_not_depend_on_the_pieces(pieces in prop::collection::vec("[ab\n]{0,5}", 0..8)) {
            let mut lines = Lines::default();
            let mut told = Vec::new();
            for piece in &pieces {
                lines.push(piece.as_bytes());
                while let Some(line) = lines.next_line() {
                    told.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            told.extend(lines.last_line().map(|line| String::from_utf8(line.to_vec()).unwrap()));
            let whole = pieces.concat();
            let expected: Vec<_> = whole.split_inclusive('\n').collect();
            prop_assert_eq!(told, expected);
            prop_assert_eq!(lines.into_text(), whole);
        }

        #[test]
        fn a_tail_is_the_end(pieces in prop::collection::vec("[a-z]{0,9}", 0..20), max in 1_usize..9) {
            let mut tail = Tail::new(max);
            for piece in &pieces {
                tail.push(piece.as_bytes());
                prop_assert!(tail.bytes.len() <= 2 * max + 9);
            }
            let whole = pieces.concat();
            prop_assert_eq!(tail.into_text(), &whole[whole.len().saturating_sub(max)..]);
        }
    }

    #[test]
    fn objects_are_data_and_the_rest_is_text() {
        let text = |text: &str| Event::Text { text: text.into() };
        assert_eq!(event_of(b" {\"a\":1}\r\n"), Event::Data { data: Box::new(json!({"a": 1})) });
        for line in ["[1]\n", "3\n", "{a\n", "{\"a\":1} x\n", "\n", "no end"] {
            assert_eq!(event_of(line.as_bytes()), text(line));
        }
        assert_eq!(event_of(b"\xff\n"), text("\u{fffd}\n"));
    }
}
