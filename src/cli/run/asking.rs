//! What `forq run` does at the same time, each on a thread of its own that reports to one
//! channel: submitting and waiting, following, and listening for signals.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use nix::libc::c_int;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::board::FOLLOWED_MAX;
use super::work::Work;
use crate::cli::client::{Client, pause};
use crate::cli::{CliError, Exit, Instance, submit};
use crate::protocol::control::{Ended, FollowEvent};
use crate::task::TaskId;

/// How long a daemon may take until it says hello.
const BOOT_MAX: Duration = Duration::from_secs(60);
/// Between two looks whether it does. Its socket has no other sign of life.
const BOOT_PAUSE: Duration = Duration::from_millis(5);

/// Something that `forq run` is told.
pub(super) enum Report {
    Signal(c_int),
    /// All tasks are accepted; these are their ids, in order.
    Submitted(Vec<TaskId>),
    /// One of them ended.
    Ended(Ended),
    /// Something happened to a followed one, by its place in the order.
    Event(usize, FollowEvent),
    /// A thread gave up.
    Failed(CliError),
}

/// Reports the signals that end us, and a child's end. From now on they end nobody by
/// themselves.
pub(super) fn listen_for_signals(reports: Sender<Report>) -> Result<(), CliError> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD])
        .map_err(|error| CliError::internal(format!("cannot listen for signals: {error}")))?;
    start("signals", move || {
        for signal in signals.forever() {
            if reports.send(Report::Signal(signal)).is_err() {
                return;
            }
        }
    })
}

/// Submits `work` once there is a daemon, and reports each task's end: with the whole task if
/// `full`.
pub(super) fn submit_and_wait(
    instance: Instance,
    work: Work,
    full: bool,
    reports: Sender<Report>,
) -> Result<(), CliError> {
    start("submit", move || {
        let result = connect_at_boot(&instance).and_then(|mut client| {
            let ids = match work {
                Work::One(task) => vec![submit::submit_one(&mut client, *task)?],
                Work::Lines(lines) => submit::submit_lines(&mut client, lines, |_| Ok(()))?,
            };
            tell(&reports, Report::Submitted(ids.clone()))?;
            client.wait(&ids, full, |ended| tell(&reports, Report::Ended(ended)))
        });
        if let Err(error) = result {
            let _ = reports.send(Report::Failed(error));
        }
    })
}

/// Follows the tasks that come in over `tasks`, some at once, each to its end.
pub(super) fn follow(
    instance: &Instance,
    tasks: &Receiver<(usize, TaskId)>,
    reports: &Sender<Report>,
) -> Result<(), CliError> {
    for _ in 0..FOLLOWED_MAX {
        let (instance, tasks, reports) = (instance.clone(), tasks.clone(), reports.clone());
        start("follow", move || {
            let result = Client::connect(&instance).and_then(|mut client| {
                tasks.iter().try_for_each(|(index, id)| {
                    client.follow(id, None, false, |event| {
                        tell(&reports, Report::Event(index, event))
                    })
                })
            });
            if let Err(error) = result {
                let _ = reports.send(Report::Failed(error));
            }
        })?;
    }
    Ok(())
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), CliError> {
    // Nobody joins it: it ends with what it listens to, or with the process.
    match std::thread::Builder::new().name(name.to_owned()).spawn(run) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(CliError::new(Exit::Unavailable, format!("cannot start a thread: {error}")))
        }
    }
}

/// Nobody listens any more once `run` is about to end.
fn tell(reports: &Sender<Report>, report: Report) -> Result<(), CliError> {
    reports.send(report).map_err(|_| CliError::internal("forq run is ending"))
}

/// A daemon that boots has no socket yet. One that dies instead is noticed by its parent.
fn connect_at_boot(instance: &Instance) -> Result<Client, CliError> {
    let deadline = Instant::now() + BOOT_MAX;
    loop {
        match Client::connect_until(instance, Some(deadline)) {
            Err(error) if error.exit == Exit::NoDaemon && Instant::now() < deadline => {
                pause(BOOT_PAUSE);
            }
            Ok(_) => return Client::connect(instance),
            Err(error) => return Err(error),
        }
    }
}
