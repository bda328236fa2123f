//! From the configuration to the first fork, and from a fork to a child's own main.

use std::fs::File;
use std::os::fd::OwnedFd;
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
use super::{activation, files, fork, lifeline, limits, logging, title};
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
/// What is told of a bad configuration: far under what a packet takes.
const ERRORS_BYTES_MAX: usize = 16 * 1024;
/// The exit code of a configuration or a state folder that cannot be used.
const UNUSABLE: u8 = 2;

/// What the master starts from, and each child after it.
pub(super) struct Boot {
    pub(super) instance: Instance,
    pub(super) config: Config,
    /// What the configuration was made of.
    pub(super) sources: Sources,
    /// The options of `forq serve`, which hold over every reload.
    pub(super) flags: Vec<Override>,
    users: Registry,
    /// This start's number: later starts have greater ones.
    number: i64,
    control: UnixListener,
    worker: UnixListener,
    /// Held for as long as any process of the instance lives.
    _lock: Flock<File>,
}

/// Runs the daemon in the foreground, and tells its own errors.
pub(crate) fn serve(instance: &Instance, overrides: &ServeOverrides, users: Registry) -> ExitCode {
    follow_parent();
    let booted = boot(instance, overrides, users).and_then(|boot| {
        let signals = Signals::listen().map_err(|error| format!("cannot listen: {error}"))?;
        Ok(Master::new(boot, signals, Instant::now()))
    });
    let master = match booted {
        Ok(master) => master,
        Err(message) => return fail(&message),
    };
    title::set("forq: master");
    match master.run() {
        Ok(Ended::Stopped) => ExitCode::SUCCESS,
        Ok(Ended::Fatal(message)) => fail(&message),
        Ok(Ended::Child(boot, born)) => fork::exit(born_main(*boot, born)),
        Err(error) => fail(&format!("the master cannot go on: {error}")),
    }
}

fn boot(instance: &Instance, overrides: &ServeOverrides, users: Registry) -> Result<Boot, String> {
    let flags = overrides_of(overrides);
    let sources = read_sources(instance, &flags)?;
    let loaded = config::load(&sources).map_err(|errors| errors.to_string())?;
    for warning in &loaded.warnings {
        tell(&format!("warning: {warning}"));
    }
    let config = loaded.config;
    files::make_dir(&instance.state_dir)?;
    let lock = files::lock(instance)?;
    logging::start(&config.log)?;
    // Known now rather than by workers that cannot start.
    worker::kinds::with_built_in(&users, &config, true)?;
    limits::raise_open_files(&config.workers)?;
    limits::warn_of_root();
    let control = control_socket(instance)?;
    let worker = files::bind(&instance.worker_socket())?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    let instance = instance.clone();
    Ok(Boot { instance, config, sources, flags, users, number, control, worker, _lock: lock })
}

/// systemd's socket if it passed one, which is then found in the state folder as well.
fn control_socket(instance: &Instance) -> Result<UnixListener, String> {
    let Some(passed) = activation::take()? else { return files::bind(&instance.control_socket) };
    files::point_to(&passed, &instance.control_socket)?;
    Ok(passed)
}

/// Reads everything that the configuration is made of; the error is a sentence or more.
pub(super) fn read_sources(instance: &Instance, flags: &[Override]) -> Result<Sources, String> {
    let must_exist = instance.named_config.is_some();
    let mut sources = config::read_sources(Some(&instance.config()), must_exist)
        .map_err(|errors| errors.to_string())?;
    sources.flags = flags.to_vec();
    Ok(sources)
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
        Born::Checker { lifeline, sources } => checker_main(&boot.users, lifeline, &sources),
    }
}

/// Looks at a configuration as a start would, and tells the master what it found.
fn checker_main(users: &Registry, lifeline: OwnedFd, sources: &Sources) -> i32 {
    title::set("forq: checker");
    let found = config::load(sources)
        .map_err(|errors| errors.to_string())
        .and_then(|loaded| worker::kinds::with_built_in(users, &loaded.config, true));
    let said = match found {
        Ok(_) => FromChecker::Good,
        Err(mut errors) => {
            errors.truncate(errors.floor_char_boundary(ERRORS_BYTES_MAX));
            FromChecker::Bad { errors }
        }
    };
    match lifeline::say(&lifeline, &said) {
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
    // The listeners are the broker's.
    drop((boot.control, boot.worker));
    match runtime() {
        Ok(runtime) => worker::run(start, &runtime),
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
