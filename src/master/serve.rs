//! From the configuration to the first fork, and from a fork to a child's own main.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::Flock;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tracing::error_span;

use super::births::Born;
use super::signals::Signals;
use super::supervise::{Ended, Master};
use super::systemd::activation;
use super::upgrade::adopt::{self, Left};
use super::upgrade::handover::{Handover, Image};
use super::{files, fork, lifeline, limits, logging, title, upgrade};
use crate::cli::ServeOverrides;
use crate::config::{self, Config, Override, Sources};
use crate::handler::Registry;
use crate::instance::Instance;
use crate::protocol::lifeline::FromChecker;
use crate::{broker, worker};

/// The environment's name for a parent that `serve` must not outlive.
pub(crate) const PARENT_VARIABLE: &str = "FORQ_PARENT";
/// Threads for handlers that block, in each worker.
const BLOCKING_THREADS_MAX: usize = 32;
/// How long such a thread waits for more work.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(10);
/// The exit code of a configuration or a state folder that cannot be used.
const UNUSABLE: u8 = 2;
/// The exit code of what is nobody's fault but ours or the system's; a restart may help.
const BROKEN: u8 = 70;

/// What the master starts from, and each child after it.
pub(super) struct Boot {
    pub(super) instance: Instance,
    pub(super) config: Config,
    /// What the configuration was made of.
    pub(super) sources: Sources,
    /// The options of `forq serve`, which hold over every reload.
    pub(super) flags: Vec<Override>,
    pub(super) image: Image,
    users: Registry,
    /// This start's number: later starts have greater ones.
    pub(super) number: i64,
    control: UnixListener,
    worker: UnixListener,
    /// Held for as long as any process of the instance lives.
    lock: Flock<File>,
}

impl Boot {
    /// What is handed over to another image: lock, both listeners, this image.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 4] {
        [self.lock.as_fd(), self.control.as_fd(), self.worker.as_fd(), self.image.own.as_fd()]
    }
}

/// A boot as far as it touches nothing: it is known that the configuration can be used.
pub(super) struct Configured {
    instance: Instance,
    config: Config,
    sources: Sources,
    flags: Vec<Override>,
    image: Image,
    users: Registry,
}

impl Configured {
    /// `must_work`: what a child would fail on is an error, too.
    fn new(
        instance: &Instance,
        overrides: &ServeOverrides,
        users: Registry,
        must_work: bool,
        read: impl FnOnce(&[Override]) -> Result<Sources, String>,
    ) -> Result<Self, String> {
        let flags = overrides_of(overrides);
        let sources = read(&flags)?;
        let loaded = config::load(&sources).map_err(|errors| errors.to_string())?;
        for warning in &loaded.warnings {
            tell(&format!("warning: {warning}"));
        }
        let config = loaded.config;
        if must_work {
            // Known now rather than by workers that cannot start.
            worker::kinds::with_built_in(&users, &config, true)?;
            limits::raise_open_files(&config.workers)?;
        }
        let image = Image::of_this_process()
            .map_err(|error| format!("cannot tell how this process was started: {error}"))?;
        Ok(Self { instance: instance.clone(), config, sources, flags, image, users })
    }

    /// With what is bound and locked.
    pub(super) fn with(
        self,
        number: i64,
        control: UnixListener,
        worker: UnixListener,
        lock: Flock<File>,
    ) -> Boot {
        let Self { instance, config, sources, flags, image, users } = self;
        Boot { instance, config, sources, flags, image, users, number, control, worker, lock }
    }
}

/// Runs the daemon in the foreground, and tells its own errors.
pub(crate) fn serve(instance: &Instance, overrides: &ServeOverrides, users: Registry) -> ExitCode {
    let begun = adopt::left().and_then(|left| match left {
        None => {
            follow_parent();
            start(instance, overrides, users)
        }
        // What it follows outlives an exec, and is no business of a check.
        Some(left) => take_over(left, instance, overrides, users),
    });
    let master = match begun {
        Ok(Some(master)) => master,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => return fail(&message),
    };
    title::set("forq: master");
    match master.run() {
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Ok(Ended::Fatal(message)) => fail(&message),
        Ok(Ended::Child(boot, born)) => fork::exit(born_main(*boot, born)),
        Err(error) => {
            tell(&format!("error: the master cannot go on: {error}"));
            ExitCode::from(BROKEN)
        }
    }
}

/// A start from nothing.
fn start(
    instance: &Instance,
    overrides: &ServeOverrides,
    users: Registry,
) -> Result<Option<Master>, String> {
    let configured =
        Configured::new(instance, overrides, users, true, |flags| read_sources(instance, flags))?;
    files::make_dir(&instance.state_dir)?;
    let lock = files::lock(instance)?;
    logging::start(&configured.config.log)?;
    limits::warn_of_root();
    let control = control_socket(instance)?;
    let worker = files::bind(&instance.worker_socket())?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    let boot = configured.with(number, control, worker, lock);
    let signals = Signals::listen().map_err(|error| format!("cannot listen: {error}"))?;
    Ok(Some(Master::new(boot, signals, Instant::now())))
}

/// A start from what another image of the master left; `None`: it only asked.
fn take_over(
    left: Left,
    instance: &Instance,
    overrides: &ServeOverrides,
    users: Registry,
) -> Result<Option<Master>, String> {
    // One that comes back was at work under this, and there is no other way.
    let must_work = !matches!(left, Left::All { failed: Some(_), .. });
    let configure = |text: Option<String>| {
        let sources = |flags: &[Override]| handed_sources(instance, flags, text);
        Configured::new(instance, overrides, users, must_work, sources)
    };
    match left {
        Left::Check { handover, lifeline } => {
            let configure = |text| {
                configure(text).and_then(|new| logging::check(&new.config.log).map(|()| new))
            };
            adopt::check(handover, &lifeline, configure).map(|()| None)
        }
        Left::All { mut file, failed } => {
            let handover = Handover::read(&mut file);
            let ready = handover.and_then(|left| Ok((configure(left.config.clone())?, left)));
            let (configured, left) = match ready {
                Ok(ready) => ready,
                Err(error) => {
                    let back = adopt::go_back(&mut file, &error);
                    return Err(format!("{error}; and there is no way back: {back:?}"));
                }
            };
            logging::start_anyhow(&configured.config.log);
            adopted(configured, left, failed)
                .map(Some)
                .map_err(|error| format!("cannot take over: {error}"))
        }
    }
}

fn adopted(
    configured: Configured,
    left: Handover,
    failed: Option<String>,
) -> std::io::Result<Master> {
    let boot = Boot::adopt(configured, &left)?;
    let signals = Signals::listen()?;
    Master::adopt(boot, signals, left, failed, Instant::now())
}

/// The sources of a configuration whose file was read by another image.
fn handed_sources(
    instance: &Instance,
    flags: &[Override],
    text: Option<String>,
) -> Result<Sources, String> {
    let mut sources = config::read_sources(None, false).map_err(|errors| errors.to_string())?;
    sources.file = text.map(|text| (instance.config(), text));
    sources.flags = flags.to_vec();
    Ok(sources)
}

/// systemd's socket if it passed one, which is then found in the state folder as well.
fn control_socket(instance: &Instance) -> Result<UnixListener, String> {
    let Some(passed) = activation::take()? else { return files::bind(&instance.control_socket) };
    files::point_to(&passed, &instance.control_socket)?;
    Ok(passed)
}

/// Reads everything that the configuration is made of; the error is a sentence or more.
fn read_sources(instance: &Instance, flags: &[Override]) -> Result<Sources, String> {
    let must_exist = instance.named_config.is_some();
    let mut sources = config::read_sources(Some(&instance.config()), must_exist)
        .map_err(|errors| errors.to_string())?;
    sources.flags = flags.to_vec();
    Ok(sources)
}

/// As [`read_sources`], by a master that runs: it has one loop, and must wait for nobody. A start
/// may take its configuration from a pipe, but that has been read.
pub(super) fn read_sources_again(
    instance: &Instance,
    flags: &[Override],
) -> Result<Sources, String> {
    let path = instance.config();
    if std::fs::metadata(&path).is_ok_and(|found| found.file_type().is_fifo()) {
        return Err(format!("{}: is a pipe: it would be waited for", path.display()));
    }
    read_sources(instance, flags)
}

fn overrides_of(overrides: &ServeOverrides) -> Vec<Override> {
    let flags = [
        ("workers.min", "--min-workers", overrides.min_workers),
        ("workers.max", "--max-workers", overrides.max_workers),
        ("workers.concurrency", "--concurrency", overrides.concurrency),
    ];
    let set = flags.into_iter().filter_map(|(key, flag, value)| Some((key, flag, value?)));
    set.map(|(key, flag, value)| Override {
        key: key.to_owned(),
        value: toml::Value::Integer(value.into()),
        flag: flag.to_owned(),
    })
    .collect()
}

/// Ends with the process that started this one, if it asked for that.
pub(crate) fn follow_parent() {
    let parent = std::env::var(PARENT_VARIABLE).ok().and_then(|pid| pid.parse::<i32>().ok());
    if let Some(parent) = parent {
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGINT);
        if nix::unistd::getppid() != Pid::from_raw(parent) {
            // It is gone already.
            let _ = nix::sys::signal::raise(Signal::SIGINT);
        }
    }
}

/// A child's whole life after its fork; gives its exit code.
fn born_main(boot: Boot, born: Born) -> i32 {
    match born {
        Born::Broker { lifeline } => broker_main(boot, lifeline),
        Born::Worker { lifeline, slot, serial, generation } => {
            worker_main(boot, lifeline, slot, serial, generation)
        }
        Born::ConfigCheck { lifeline, sources } => {
            title::set("forq: check");
            let found =
                config::load(&sources).map_err(|errors| errors.to_string()).and_then(|loaded| {
                    logging::check(&loaded.config.log)?;
                    worker::kinds::check_templates(&loaded.config)?;
                    worker::kinds::with_built_in(&boot.users, &loaded.config, true)
                });
            say_of_check(&lifeline, found.map(drop))
        }
        Born::UpgradeCheck { lifeline, handover } => {
            let error = upgrade::check_main(&boot.image, &lifeline, &handover);
            let path = boot.image.path.to_string_lossy();
            say_of_check(&lifeline, Err(format!("cannot run {path}: {error}")))
        }
    }
}

/// Tells the master what a check has found.
fn say_of_check(lifeline: &OwnedFd, found: Result<(), String>) -> i32 {
    let said = found.map_or_else(FromChecker::bad, |()| FromChecker::Good);
    match lifeline::say(lifeline, &said) {
        Ok(()) => 0,
        Err(error) => cannot_start(&error.to_string()),
    }
}

fn broker_main(boot: Boot, lifeline: OwnedFd) -> i32 {
    title::set("forq: broker");
    // The database is its owner's. A worker keeps the umask that it was given: its commands' files
    // are the user's business.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let _span = error_span!("broker", pid = std::process::id()).entered();
    limits::raise_oom_score(limits::BROKER_OOM_SCORE);
    drop(boot.image);
    let start = broker::Start {
        users: boot.users,
        instance: boot.number,
        database: boot.instance.database(),
        reserve: boot.instance.state_dir.join("forq.reserve"),
        config: boot.config,
        sources: boot.sources,
        control: boot.control,
        worker: boot.worker,
        lifeline,
    };
    match runtime() {
        Ok(runtime) => broker::run(start, runtime),
        Err(error) => cannot_start(&error.to_string()),
    }
}

fn worker_main(boot: Boot, lifeline: OwnedFd, slot: u32, serial: u64, generation: u32) -> i32 {
    title::set(&format!("forq: worker {slot}"));
    let _span = error_span!("worker", slot, pid = std::process::id()).entered();
    limits::raise_oom_score(limits::WORKER_OOM_SCORE);
    let registry = match worker::kinds::with_built_in(&boot.users, &boot.config, true) {
        Ok(registry) => registry,
        Err(error) => return cannot_start(&error),
    };
    let start = worker::Start {
        registry,
        worker_socket: boot.instance.worker_socket(),
        lifeline,
        slot,
        serial,
        generation,
        concurrency: boot.config.workers.concurrency,
        output_bytes_max: boot.config.queue.input_bytes_max,
    };
    // The listeners are the broker's, the image the master's.
    drop((boot.control, boot.worker, boot.image));
    match runtime() {
        Ok(runtime) => {
            let code = worker::run(start, &runtime);
            // A thread that computes on, or looks up a name, ends with the process.
            runtime.shutdown_background();
            code
        }
        Err(error) => cannot_start(&error.to_string()),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .build()
}

fn cannot_start(error: &str) -> i32 {
    tracing::error!("cannot start: {error}");
    1
}

fn fail(message: &str) -> ExitCode {
    tell(&format!("error: {message}"));
    ExitCode::from(UNUSABLE)
}

fn tell(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
