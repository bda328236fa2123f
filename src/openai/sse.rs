//! Server-sent events: an incremental parser, and the writing of one event.
//!
//! The parser buffers bytes, never text: a chunk of the network may end inside a character.

use bytes::{Buf, BytesMut};

/// The data of the event that ends a streamed completion.
pub const DONE: &str = "[DONE]";

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The `event` field; empty for most.
    pub name: String,
    /// The `data` lines, joined by line feeds.
    pub data: String,
}

/// An event (or a line) that is longer than the reader allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is over the limit of {limit_bytes} bytes")]
pub struct EventTooLong {
    /// What the reader allows.
    pub limit_bytes: usize,
}

/// Turns the bytes of a stream into events, however the network has cut them.
///
/// Follows the HTML standard: lines end with CR, LF or CRLF, lines with a leading colon are
/// comments, an event that the end of the stream cuts off is none. `id` and `retry` are skipped:
/// nobody resumes a completion.
#[derive(Debug)]
pub struct Parser {
    limit_bytes: usize,
    buffer: BytesMut,
    /// How much of the buffer is known to have no line end.
    scanned: usize,
    /// The last line ended with CR: a LF that comes next belongs to it.
    after_cr: bool,
    at_start: bool,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl Parser {
    /// A parser that refuses events of more than `limit_bytes`, so that memory stays bounded.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            buffer: BytesMut::new(),
            scanned: 0,
            after_cr: false,
            at_start: true,
            name: Vec::new(),
            data: Vec::new(),
            has_data: false,
        }
    }

    /// Takes what has arrived; then ask [`Parser::next_event`] until it has no more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event. After an error, the same error again.
    pub fn next_event(&mut self) -> Result<Option<Event>, EventTooLong> {
        while let Some(line_bytes) = self.find_line()? {
            if self.take_line(line_bytes)
                && let Some(event) = self.dispatch()
            {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The length of the next line, without its end.
    fn find_line(&mut self) -> Result<Option<usize>, EventTooLong> {
        if self.after_cr && !self.buffer.is_empty() {
            if self.buffer[0] == b'\n' {
                self.buffer.advance(1);
            }
            self.after_cr = false;
        }
        let unseen = &self.buffer[self.scanned..];
        let end = unseen.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let line_bytes = self.scanned + end.unwrap_or(unseen.len());
        if self.name.len() + self.data.len() + line_bytes > self.limit_bytes {
            return Err(EventTooLong { limit_bytes: self.limit_bytes });
        }
        self.scanned = line_bytes;
        Ok(end.is_some().then_some(line_bytes))
    }

    /// Takes the line off the buffer; true if it is the blank one that ends an event.
    fn take_line(&mut self, line_bytes: usize) -> bool {
        let line = self.buffer.split_to(line_bytes);
        self.after_cr = self.buffer[0] == b'\r';
        self.buffer.advance(1);
        self.scanned = 0;
        let mut line = &line[..];
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            return true;
        }
        let (field, value) = split_field(line);
        match field {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            _ => {}
        }
        false
    }

    fn dispatch(&mut self) -> Option<Event> {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        std::mem::take(&mut self.has_data)
            .then(|| Event { name: into_text(name), data: into_text(data) })
    }
}

/// A comment has an empty field name, which nobody knows.
fn split_field(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|&byte| byte == b':') {
        Some(colon) => {
            let value = &line[colon + 1..];
            (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, b""),
    }
}

fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Appends an unnamed event to `out`. `data` has no line ends (JSON on one line has none).
pub fn write_event(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT_BYTES: usize = 64;

    /// All events of a stream that arrives in pieces, and how it ended.
    fn parse<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<Event>, Result<(), EventTooLong>) {
        let mut parser = Parser::new(LIMIT_BYTES);
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece);
            loop {
                match parser.next_event() {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(error) => return (events, Err(error)),
                }
            }
        }
        (events, Ok(()))
    }

    fn data_of(stream: &str) -> Vec<String> {
        let (events, end) = parse([stream.as_bytes()]);
        end.unwrap();
        events.into_iter().map(|event| event.data).collect()
    }

    #[test]
    fn streams_of_all_sorts() {
        let cases: [(&str, &[&str]); 12] = [
            ("data: a\n\n", &["a"]),
            ("data:a\r\n\r\ndata:  b\r\rdata: c\n\r\n", &["a", " b", "c"]),
            ("data: a\ndata: b\n\n", &["a\nb"]),
            ("data\n\n", &[""]),
            ("data:\n\n", &[""]),
            ("data: a\ndata:\n\n", &["a\n"]),
            (": ping\n\n: ping\ndata: a\n\n", &["a"]),
            ("\u{feff}data: a\n\n", &["a"]),
            ("id: 1\nretry: 3\nevent: x\n\ndata: a\n\n", &["a"]),
            ("event: x\n\n\n\n", &[]),
            ("Data: a\n\n", &[]),
            ("data: cut", &[]),
        ];
        for (stream, events) in cases {
            assert_eq!(data_of(stream), events, "{stream:?}");
        }
    }

    #[test]
    fn a_name_is_for_one_event() {
        let (events, _) = parse([&b"event: x\nevent: y\ndata: a\n\ndata: b\n\n"[..]]);
        assert_eq!(events[0].name, "y");
        assert_eq!(events[1].name, "");
    }

    #[test]
    fn an_event_is_told_before_more_arrives() {
        // The LF of a CRLF is not waited for.
        assert_eq!(parse([&b"data: a\r\n\r"[..]]).0.len(), 1);
    }

    #[test]
    fn a_long_event_is_an_error_that_stays() {
        let mut parser = Parser::new(LIMIT_BYTES);
        parser.push(&[b'x'; LIMIT_BYTES + 1]);
        let error = parser.next_event().unwrap_err();
        parser.push(b"\n\ndata: a\n\n");
        assert_eq!(parser.next_event(), Err(error));
        // Many short lines of one event count as well.
        let lines = "data: aaaaaaa\n".repeat(20);
        assert!(parse([lines.as_bytes()]).1.is_err());
    }

    fn line() -> impl Strategy<Value = String> {
        let field = prop::sample::select(vec!["data: ", "data:", "event: ", ": ", "id: ", ""]);
        let end = prop::sample::select(vec!["\n", "\r", "\r\n", "\n\n"]);
        (field, "[a-zé漢😀: ]{0,12}", end)
            .prop_map(|(field, value, end)| field.to_owned() + &value + end)
    }

    fn cut<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut rest = stream;
        let mut pieces = Vec::new();
        for cut in cuts {
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        pieces.push(rest);
        pieces
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_events(
            lines in prop::collection::vec(line(), 0..30),
            cuts in prop::collection::vec(0usize..9, 0..60),
        ) {
            let stream = lines.concat();
            let stream = stream.as_bytes();
            let whole = parse([stream]);
            prop_assert_eq!(&parse(cut(stream, &cuts)), &whole);
            prop_assert_eq!(&parse(stream.chunks(1)), &whole);
        }

        #[test]
        fn garbage_never_panics_and_stays_bounded(
            stream in prop::collection::vec(any::<u8>(), 0..400),
            cuts in prop::collection::vec(0usize..50, 0..20),
        ) {
            let (events, end) = parse(cut(&stream, &cuts));
            prop_assert_eq!(&(events.clone(), end), &parse([&stream[..]]));
            // Bytes that are no UTF-8 become a replacement character of three bytes.
            prop_assert!(events.iter().all(|event| event.data.len() <= 3 * LIMIT_BYTES));
        }

        #[test]
        fn written_events_read_back(data in "[^\r\n]{0,15}") {
            let mut out = Vec::new();
            write_event(&mut out, data.as_bytes());
            prop_assert_eq!(parse([&out[..]]).0, [Event { name: String::new(), data }]);
        }
    }
}
