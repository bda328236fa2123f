//! A daemon for tests of the client: it says what the test tells it to say.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::BytesMut;

use crate::instance::{Instance, SocketPath};
use crate::protocol::control::{CONTROL_PROTOCOL, Hello, Reply, Request};
use crate::protocol::frame::{put_frame, take_frame};
use crate::task::{State, StepView, TaskId, TaskView};

/// What the fake does about a request.
pub(crate) enum Act {
    Reply(Reply),
    /// Drops the connection.
    HangUp,
}

/// What decides it: the number of the connection, from 0, and the request.
type Script = dyn FnMut(usize, Request) -> Vec<Act> + Send;

pub(crate) struct FakeDaemon {
    pub(crate) instance: Instance,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl FakeDaemon {
    pub(crate) fn new(script: impl FnMut(usize, Request) -> Vec<Act> + Send + 'static) -> Self {
        Self::with_hello(hello(), script)
    }

    pub(crate) fn with_hello(
        hello: Hello,
        script: impl FnMut(usize, Request) -> Vec<Act> + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let instance = Instance::at(folder.path());
        let socket = SocketPath::of(&instance.control_socket).unwrap();
        let listener = UnixListener::bind(socket.as_path()).unwrap();
        let ending = Arc::new(AtomicBool::new(false));
        let (end, script): (_, Arc<Mutex<Script>>) = (ending.clone(), Arc::new(Mutex::new(script)));
        let thread = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (hello, script) = (hello.clone(), script.clone());
                std::thread::spawn(move || {
                    let _ = serve(stream.unwrap(), &hello, number, &script);
                });
            }
        });
        Self { instance, ending, thread: Some(thread), _folder: folder }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.instance.control_socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        forq_protocol: CONTROL_PROTOCOL,
        version: "0.0.0-fake".to_owned(),
        input_bytes_max: 4_096,
        frame_bytes_max: 2 << 20,
    }
}

fn serve(
    mut stream: UnixStream,
    hello: &Hello,
    number: usize,
    script: &Mutex<Script>,
) -> std::io::Result<()> {
    send(&mut stream, hello)?;
    let mut incoming = BytesMut::new();
    let mut chunk = [0; 4_096];
    loop {
        while let Some(frame) = take_frame(&mut incoming, 64 << 20).unwrap() {
            let request = serde_json::from_slice(&frame).unwrap();
            let acts = (script.lock().unwrap())(number, request);
            for act in acts {
                match act {
                    Act::Reply(reply) => send(&mut stream, &reply)?,
                    Act::HangUp => return Ok(()),
                }
            }
        }
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            count => incoming.extend_from_slice(&chunk[..count]),
        }
    }
}

fn send(stream: &mut UnixStream, message: &impl serde::Serialize) -> std::io::Result<()> {
    let mut out = Vec::new();
    put_frame(&mut out, |out| serde_json::to_writer(out, message)).unwrap();
    stream.write_all(&out)
}

/// A task in a state, with an output if it succeeded.
pub(crate) fn task(id: TaskId, state: State, output: Option<&str>) -> Box<TaskView> {
    let mut json = serde_json::json!({
        "id": id, "kind": "chat", "state": state, "priority": 5, "queue": "default",
        "attempt": 1, "max_attempts": 3, "created_at": "2026-01-02T03:04:05Z",
    });
    if state == State::Failed {
        json["error"] = serde_json::json!({
            "kind": "handler", "message": "it broke", "retryable": false,
        });
    }
    let mut task: TaskView = serde_json::from_value(json).unwrap();
    task.output =
        output.map(|output| serde_json::value::RawValue::from_string(output.to_owned()).unwrap());
    Box::new(task)
}

/// A step of a run in a state; it has used 12 tokens in 3.2 s if it has ended.
pub(crate) fn step(path: &str, state: State) -> StepView {
    let mut json = serde_json::json!({
        "step": path, "id": TaskId::new(), "kind": "chat", "state": state, "attempt": 1,
    });
    if state.is_final() {
        json["run_ms"] = 3_200.into();
        json["usage"] = serde_json::json!({
            "prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12,
        });
    }
    if state == State::Failed {
        json["error"] = serde_json::json!({
            "kind": "handler", "message": "it broke", "retryable": false,
        });
    }
    serde_json::from_value(json).unwrap()
}
