//! The broker's lifeline: packets to and from the master.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::spawn_local;

use super::Input;
use crate::protocol::codec;
use crate::protocol::lifeline::{FromBroker, PACKET_BYTES_MAX};

/// Sends to the master without waiting for it.
#[derive(Clone)]
pub(crate) struct ToMaster {
    packets: UnboundedSender<Vec<u8>>,
}

impl ToMaster {
    /// Sends one message. A master that is gone needs none.
    pub(crate) fn send(&self, message: &FromBroker) {
        match codec::encode(message) {
            Ok(packet) => drop(self.packets.send(packet)),
            Err(error) => tracing::error!("a message to the master could not be written: {error}"),
        }
    }
}

/// Serves the lifeline until its end, which is the master's.
pub(crate) fn serve(lifeline: OwnedFd, inputs: UnboundedSender<Input>) -> io::Result<ToMaster> {
    let lifeline = Rc::new(AsyncFd::new(lifeline)?);
    let (packets, outgoing) = unbounded_channel();
    spawn_local(write(Rc::clone(&lifeline), outgoing));
    spawn_local(async move {
        if let Err(error) = read(&lifeline, &inputs).await {
            tracing::error!("the lifeline broke: {error}");
        }
        // The kernel ends us with the master; this is for a master that lives and let go.
        let _ = inputs.send(Input::Terminate);
    });
    Ok(ToMaster { packets })
}

async fn read(lifeline: &AsyncFd<OwnedFd>, inputs: &UnboundedSender<Input>) -> io::Result<()> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let bytes = lifeline
            .async_io(tokio::io::Interest::READABLE, |fd| {
                Ok(recv(fd.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT)?)
            })
            .await?;
        if bytes == 0 {
            return Ok(());
        }
        match codec::decode(&packet[..bytes]) {
            Ok(message) => drop(inputs.send(Input::Master(message))),
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

async fn write(lifeline: Rc<AsyncFd<OwnedFd>>, mut outgoing: UnboundedReceiver<Vec<u8>>) {
    while let Some(packet) = outgoing.recv().await {
        let sent = lifeline
            .async_io(tokio::io::Interest::WRITABLE, |fd| {
                Ok(send(fd.as_raw_fd(), &packet, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
            })
            .await;
        if sent.is_err() {
            return;
        }
    }
}
