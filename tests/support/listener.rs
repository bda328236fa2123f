//! A model that remembers what it was asked, word for word, and does what the last word says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Value, json, pause};

/// Answers `echo PROMPT`; to `refuse` with 400, to `stumble` the first time with 500, to `slow` and
/// `wait …` after a while, to `hang` never; as the model `slow` always after a while. Its thread ends with the test's process.
pub(crate) struct Listener {
    /// Where its API begins.
    pub(crate) url: String,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Listener {
    pub(crate) fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/v1", socket.local_addr().expect("its address"));
        let heard: Arc<Mutex<Vec<Value>>> = Arc::default();
        let hears = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                let hears = Arc::clone(&hears);
                std::thread::spawn(move || serve(stream, &hears));
            }
        });
        Self { url, heard }
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    /// The messages of a request, from 0.
    #[track_caller]
    pub(crate) fn request(&self, number: usize) -> Value {
        self.heard.lock().unwrap()[number]["messages"].clone()
    }

    /// The model of a request.
    #[track_caller]
    pub(crate) fn asked_for(&self, number: usize) -> String {
        super::text(&self.heard.lock().unwrap()[number], "/model")
    }
}

/// One connection, as long as it lasts.
fn serve(stream: TcpStream, heard: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut writer = stream;
    while let Some(request) = read(&mut reader) {
        let prompt =
            super::text(request["messages"].as_array().unwrap().last().unwrap(), "/content");
        let model = super::text(&request, "/model");
        let before = {
            let mut heard = heard.lock().unwrap();
            let before = heard.iter().filter(|known| known["messages"] == request["messages"]);
            let before = before.count();
            heard.push(request);
            before
        };
        if model == "slow" {
            pause(Duration::from_millis(500));
        }
        match prompt.split(' ').next().unwrap_or_default() {
            "slow" => pause(Duration::from_millis(500)),
            "wait" => pause(Duration::from_millis(50)),
            "hang" => pause(Duration::from_secs(60)),
            _ => {}
        }
        let (status, body) = match prompt.as_str() {
            "refuse" => ("400 Bad Request", json!({ "error": { "message": "no" } }).to_string()),
            "stumble" if before == 0 => ("500 Oops", "{}".to_owned()),
            _ => ("200 OK", stream_of(&format!("echo {prompt}"))),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        if writer.write_all(&[head.as_bytes(), body.as_bytes()].concat()).is_err() {
            return;
        }
    }
}

fn stream_of(text: &str) -> String {
    let choice = json!({ "index": 0, "delta": { "content": text }, "finish_reason": "stop" });
    let chunk = json!({ "id": "x", "model": "m", "choices": [choice] });
    format!("data: {chunk}\n\ndata: [DONE]\n\n")
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}
