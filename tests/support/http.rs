//! HTTP as bytes on a socket: what a server really sent, and whether it ended it properly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::{SOON, Value};

/// A request that is sent, and what comes back.
pub(crate) struct Exchange {
    reader: BufReader<TcpStream>,
}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// By their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

/// A response as far as it came.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Whether the body was as long as it was said to be.
    pub(crate) is_whole: bool,
}

impl Exchange {
    /// Sends a request to `http://HOST:PORT/PATH`; with a body it is a POST of JSON.
    #[track_caller]
    pub(crate) fn start(url: &str, body: Option<&Value>) -> Self {
        let rest = url.strip_prefix("http://").expect("plain HTTP");
        let (host, path) = rest.split_once('/').expect("a path");
        let mut stream = TcpStream::connect(host).expect("somebody listens");
        stream.set_read_timeout(Some(SOON)).unwrap();
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).expect("it is taken");
        Self { reader: BufReader::new(stream) }
    }

    /// The head; fails if it does not come.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Head {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).expect("a line of the head");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].split(' ').nth(1).expect("a status").parse().unwrap();
        let headers = lines[1..].iter().filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Head { status, headers: headers.collect() }
    }

    /// What arrived since the last look, as the network cut it; empty at the end.
    #[track_caller]
    pub(crate) fn piece(&mut self) -> Vec<u8> {
        let piece = self.reader.fill_buf().expect("a piece").to_vec();
        self.reader.consume(piece.len());
        piece
    }

    /// The whole response.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Response {
        let head = self.head();
        let mut raw = Vec::new();
        self.reader.read_to_end(&mut raw).expect("the end");
        let (body, is_whole) = match head.headers.get("content-length") {
            Some(length) => {
                let is_whole = raw.len() == length.parse::<usize>().unwrap();
                (raw, is_whole)
            }
            None => dechunk(&raw),
        };
        Response { head, body, is_whole }
    }
}

impl Response {
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A body that came in chunks, and whether the last one was there.
fn dechunk(mut raw: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = raw.windows(2).position(|two| two == b"\r\n") else {
            return (body, false);
        };
        let length = std::str::from_utf8(&raw[..end]).expect("a length");
        let length = usize::from_str_radix(length, 16).expect("a length");
        raw = &raw[end + 2..];
        if length == 0 {
            return (body, true);
        }
        if raw.len() < length + 2 {
            body.extend_from_slice(raw);
            return (body, false);
        }
        body.extend_from_slice(&raw[..length]);
        raw = &raw[length + 2..];
    }
}
