//! The broker's lifeline: packets to and from the master.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::net::UnixDatagram;
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
    // A sequenced-packet socket is read and written like a datagram one.
    let lifeline = Rc::new(UnixDatagram::from_std(lifeline.into())?);
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

async fn read(lifeline: &UnixDatagram, inputs: &UnboundedSender<Input>) -> io::Result<()> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        let bytes = lifeline.recv(&mut packet).await?;
        if bytes == 0 {
            return Ok(());
        }
        match codec::decode(&packet[..bytes]) {
            Ok(message) => drop(inputs.send(Input::Master(message))),
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

async fn write(lifeline: Rc<UnixDatagram>, mut outgoing: UnboundedReceiver<Vec<u8>>) {
    while let Some(packet) = outgoing.recv().await {
        if lifeline.send(&packet).await.is_err() {
            return;
        }
    }
}
