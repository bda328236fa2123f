//! Looks at the daemon again and again, on a thread of its own: a broker that does not answer
//! must not hold up the keys.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::model::{Sight, Snapshot};
use crate::cli::client::{Client, unexpected};
use crate::cli::info::{BROKER_PATIENCE, last_status};
use crate::cli::{CliError, Exit};
use crate::instance::Instance;
use crate::protocol::control::{Reply, Request};

/// The thread. It ends once this is dropped, after its last look at most.
pub(super) struct Watch {
    pub(super) sights: Receiver<Sight>,
    _stop: Sender<()>,
}

impl Watch {
    /// Looks at once, then with pauses of `interval`; a byte in `wake` tells of each look.
    pub(super) fn start(
        instance: Instance,
        interval: Duration,
        wake: UnixStream,
    ) -> io::Result<Self> {
        let (sender, sights) = channel();
        let (stop, stopped) = channel::<()>();
        let watch = move || {
            loop {
                if sender.send(look(&instance)).is_err() {
                    return;
                }
                // Full means that the reader has been woken and has not come yet.
                let _ = io::Write::write(&mut &wake, &[0]);
                if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("watch".to_owned()).spawn(watch)?;
        Ok(Self { sights, _stop: stop })
    }
}

/// One look, over a connection of its own: whoever serves the socket now is asked.
fn look(instance: &Instance) -> Sight {
    let error = match ask(instance) {
        Ok(snapshot) => return Sight::Live(snapshot),
        Err(error) => error,
    };
    match error.exit {
        Exit::NoDaemon => {
            Sight::Lost(format!("no daemon at {}: waiting", instance.control_socket.display()))
        }
        Exit::TimedOut => {
            let status = last_status(instance);
            let snapshot = status.and_then(|status| Snapshot::read_status(&status).ok());
            snapshot.map_or_else(|| Sight::Lost(error.message), Sight::Silent)
        }
        _ => Sight::Lost(error.message),
    }
}

fn ask(instance: &Instance) -> Result<Snapshot, CliError> {
    let deadline = Instant::now() + BROKER_PATIENCE;
    let mut client = Client::connect_until(instance, Some(deadline))?;
    let info = document(&mut client, &Request::Info)?;
    // A broker whose disk is slow still knows its workers.
    let stats = match document(&mut client, &Request::Stats) {
        Err(error) if error.exit == Exit::TimedOut => None,
        stats => Some(stats?),
    };
    Snapshot::read(&info, stats.as_deref())
        .map_err(|error| CliError::internal(format!("cannot read the daemon's info: {error}")))
}

fn document(client: &mut Client, request: &Request) -> Result<String, CliError> {
    match client.call(request)? {
        Reply::Json { document } => Ok(document.get().to_owned()),
        other => Err(unexpected(&other)),
    }
}
