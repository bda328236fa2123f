//! The sockets of an instance as a stranger uses them: bytes, and what comes back.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{SOON, Value};

/// A frame around these bytes.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&length.to_le_bytes(), message].concat()
}

/// A connection to one of an instance's sockets.
pub(crate) struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Connects; every read ends after [`SOON`] at the latest.
    #[track_caller]
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("somebody listens");
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { stream }
    }

    /// Sends what the other side may not want any more.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the other side takes bytes");
    }

    /// Sends a frame of JSON.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &Value) {
        self.send(&frame(request.to_string().as_bytes()));
    }

    /// The next frame, which is JSON.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Value {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).expect("an answer");
        let mut message = vec![0; u32::from_le_bytes(length) as usize];
        self.stream.read_exact(&mut message).expect("a whole answer");
        serde_json::from_slice(&message).expect("JSON")
    }

    /// Says that no more will come, and still listens.
    pub(crate) fn end_sending(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Waits until the other side has let go; gives everything that it said before.
    #[track_caller]
    pub(crate) fn let_go(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            // It had bytes of ours that it did not want to read.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("not let go: {error}"),
        }
        rest
    }

    /// Lets a send give up after a while.
    pub(crate) fn limit_sending(&self, time: std::time::Duration) {
        self.stream.set_write_timeout(Some(time)).unwrap();
    }

    /// Lets a read give up after a while.
    pub(crate) fn limit_reading(&self, time: std::time::Duration) {
        self.stream.set_read_timeout(Some(time)).unwrap();
    }
}
