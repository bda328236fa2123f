//! From the submission of the tasks to the exit code: takes what is reported, has it told, and
//! stops the daemon.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use nix::libc::c_int;
use nix::sys::signal::Signal;
use signal_hook::consts::{SIGCHLD, SIGINT};
use tempfile::TempDir;

use super::asking::{self, Report};
use super::board::{Board, complaint};
use super::children::{Daemon, STOP_MAX};
use super::screen::Screen;
use super::summary::{Pool, Summary};
use super::work::{Work, title};
use crate::cli::client::Client;
use crate::cli::out::Out;
use crate::cli::tree::Show;
use crate::cli::{CliError, Exit, Instance, workflow};
use crate::protocol::control::{Ended, FollowBody, FollowEvent, Reply, Request};
use crate::task::{State, TaskId, TaskView};

/// How long the daemon may take to say how its workers did.
const INFO_MAX: Duration = Duration::from_secs(5);

/// A daemon that is up, or about to be, and what is reported of it.
pub(super) struct Run {
    pub(super) instance: Instance,
    pub(super) daemon: Daemon,
    /// The instance's folder, unless it is kept. It goes after the daemon.
    pub(super) private: Option<TempDir>,
    pub(super) reports: Sender<Report>,
    pub(super) told: Receiver<Report>,
}

/// Why the tasks are not done.
enum Stop {
    /// By a signal.
    Interrupted(c_int),
    /// By an error.
    Failed(CliError),
}

impl From<CliError> for Stop {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

impl Run {
    /// Sees to everything from here on, and gives the exit code.
    pub(super) fn drive(mut self, work: Work, out: &mut Out) -> Result<u8, CliError> {
        let began = Instant::now();
        let is_single = matches!(work, Work::One(_));
        let mut progress = Progress::default();
        match self.work(work, &mut progress, out) {
            Ok(()) => {
                let pool = if is_single || out.json { None } else { Some(self.pool()) };
                self.stop(Signal::SIGTERM);
                let all_succeeded = progress.summary.all_succeeded();
                if let Some(pool) = pool {
                    progress.summary.tell(began.elapsed(), &pool, out)?;
                }
                match &progress.last_complaint {
                    Some(complaint) if is_single => Err(self.failed(progress.run, complaint)),
                    _ if all_succeeded => Ok(Exit::Done as u8),
                    _ => Ok(Exit::TaskFailed as u8),
                }
            }
            Err(Stop::Interrupted(signal)) => {
                self.stop(Signal::SIGINT);
                out.note(self.interrupted(&progress));
                // As a shell counts: 130 for Ctrl-C.
                Ok(128u8.saturating_add(u8::try_from(signal).unwrap_or(0)))
            }
            Err(Stop::Failed(error)) => {
                // A daemon that ended by itself is the reason for whatever else went wrong.
                let ended = self.daemon.ended().map(|status| self.daemon.obituary(status));
                self.stop(Signal::SIGINT);
                Err(ended.unwrap_or(error))
            }
        }
    }

    /// Takes reports until every task has ended and is told.
    fn work(&mut self, work: Work, progress: &mut Progress, out: &mut Out) -> Result<(), Stop> {
        let titles: Vec<_> = work.tasks().map(title).collect();
        let is_workflow = matches!(&work, Work::One(task) if task.kind == workflow::KIND);
        progress.total = titles.len();
        let is_json = out.json;
        asking::submit_and_wait(self.instance.clone(), work, is_json, self.reports.clone())?;
        let tasks = self.submitted(titles)?;
        progress.total = tasks.len();
        if is_workflow && !is_json {
            return tasks.into_iter().try_for_each(|(id, _)| self.watch(id, progress, out));
        }
        let (ids, titles): (Vec<_>, Vec<_>) = tasks.into_iter().unzip();
        let mut screen = Screen::new(out, titles);
        let mut board = Board::new(if is_json { 0 } else { ids.len() });
        let (to_follow, followed) = crossbeam_channel::unbounded();
        if !is_json {
            asking::follow(&self.instance, &followed, &self.reports)?;
        }
        let mut asked = 0;
        while progress.ended < ids.len() || !board.is_over() {
            while asked < board.followed().end {
                // Its receivers are there as long as `followed` is.
                let _ = to_follow.send((asked, ids[asked]));
                asked += 1;
            }
            match self.next()? {
                Report::Ended(ended) => progress.ended(&ended, &mut screen)?,
                Report::Event(index, event) => {
                    progress.event(&event);
                    for say in board.take(index, &event.body) {
                        screen.say(say)?;
                    }
                }
                Report::Failed(error) => return Err(error.into()),
                Report::Submitted(_) | Report::Signal(_) => {}
            }
        }
        screen.close()?;
        Ok(())
    }

    /// Shows a workflow's run until it has ended, and what it took.
    fn watch(&mut self, id: TaskId, progress: &mut Progress, out: &mut Out) -> Result<(), Stop> {
        let (to_follow, followed) = crossbeam_channel::unbounded();
        asking::follow(&self.instance, &followed, &self.reports)?;
        // Its receivers are there as long as `followed` is.
        let _ = to_follow.send((0, id));
        let mut show = Show::new(false, false, out);
        let task = loop {
            match self.next()? {
                Report::Event(_, FollowEvent { body: FollowBody::Finished { task }, .. }) => {
                    break task;
                }
                Report::Event(_, event) => show.take(&event, out)?,
                Report::Failed(error) => return Err(error.into()),
                Report::Ended(_) | Report::Submitted(_) | Report::Signal(_) => {}
            }
        };
        progress.ended = 1;
        progress.run = Some(id);
        progress.add(&task);
        show.end_whole(&task, out)?;
        Ok(())
    }

    /// Waits until all tasks are accepted, and gives each with its title, once.
    fn submitted(&mut self, titles: Vec<String>) -> Result<Vec<(TaskId, String)>, Stop> {
        loop {
            match self.next()? {
                Report::Submitted(ids) => {
                    // Lines that share a key share a task.
                    let mut seen = BTreeSet::new();
                    let tasks = ids.into_iter().zip(titles);
                    return Ok(tasks.filter(|(id, _)| seen.insert(*id)).collect());
                }
                Report::Failed(error) => return Err(error.into()),
                _ => {}
            }
        }
    }

    /// The next report that is not about processes: an end of the daemon, or a signal, is the
    /// end of the run.
    fn next(&mut self) -> Result<Report, Stop> {
        loop {
            match self.told.recv() {
                Ok(Report::Signal(SIGCHLD)) => {
                    if let Some(status) = self.daemon.ended() {
                        return Err(Stop::Failed(self.daemon.obituary(status)));
                    }
                }
                Ok(Report::Signal(signal)) => return Err(Stop::Interrupted(signal)),
                Ok(report) => return Ok(report),
                Err(_) => return Err(CliError::internal("nobody reports any more").into()),
            }
        }
    }

    /// The workers, as they are now. The table is worth having without them.
    fn pool(&self) -> Pool {
        let ask = || -> Option<Pool> {
            let deadline = Some(Instant::now() + INFO_MAX);
            let mut client = Client::connect_until(&self.instance, deadline).ok()?;
            match client.call(&Request::Info).ok()? {
                Reply::Json { document } => serde_json::from_str(document.get()).ok(),
                _ => None,
            }
        };
        ask().unwrap_or_default()
    }

    /// Asks the daemon to end, and waits until it has. Another Ctrl-C, or too long a wait, and
    /// it is killed.
    fn stop(&mut self, how: Signal) {
        self.daemon.signal(how);
        let deadline = Instant::now() + STOP_MAX;
        while self.daemon.ended().is_none() {
            match self.told.recv_deadline(deadline) {
                Ok(Report::Signal(SIGINT)) | Err(_) => return self.daemon.signal(Signal::SIGKILL),
                Ok(_) => {}
            }
        }
    }

    /// The one task did not succeed.
    fn failed(&self, run: Option<TaskId>, complaint: &str) -> CliError {
        let Some(id) = run else {
            return CliError::new(Exit::TaskFailed, format!("the task {complaint}"));
        };
        let error = CliError::new(Exit::TaskFailed, format!("the run {complaint}"));
        if self.private.is_some() {
            return error;
        }
        let folder = self.instance.state_dir.display();
        error.hint(format!(
            "`forq serve --state-dir {folder}` and `forq retry {id}` go on from the failed step"
        ))
    }

    fn interrupted(&self, progress: &Progress) -> String {
        let Progress { ended, total, .. } = progress;
        let said = format!("interrupted: {ended} of {total} tasks had ended");
        if self.private.is_some() {
            return said;
        }
        let folder = self.instance.state_dir.display();
        format!("{said}; `forq serve --state-dir {folder}` goes on with the others")
    }
}

/// What is known of the tasks so far.
#[derive(Default)]
struct Progress {
    total: usize,
    ended: usize,
    /// The run, if it was a workflow's.
    run: Option<TaskId>,
    summary: Summary,
    /// How the last one ended that did not succeed.
    last_complaint: Option<String>,
}

impl Progress {
    /// One more has ended, as the waiting thread says: with the whole task for programs.
    fn ended(&mut self, ended: &Ended, screen: &mut Screen) -> Result<(), CliError> {
        self.ended += 1;
        screen.count(ended.state == State::Succeeded);
        match &ended.task {
            Some(task) => {
                self.add(task);
                screen.value(task)
            }
            None => Ok(()),
        }
    }

    fn event(&mut self, event: &FollowEvent) {
        if let FollowBody::Finished { task } = &event.body {
            self.add(task);
        }
    }

    fn add(&mut self, task: &TaskView) {
        self.summary.add(task);
        self.last_complaint = complaint(task).or(self.last_complaint.take());
    }
}
