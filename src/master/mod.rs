//! The master: forks, reaps, signals, and nothing else.
//!
//! It runs no task code, parses no client byte, opens no store, and starts no thread, so that a
//! plain `fork` stays legal and so that it has nothing to crash on.
//!
//! * [`mod@serve`]: from the configuration to the first fork, and from a fork to a child's own main.
//! * [`supervise`]: the loop; [`births`], [`deaths`], [`talk`], [`resize`], [`reload`], [`stop`]:
//!   what it does.
//! * [`upgrade`], [`handover`], [`adopt`]: one image of the master to the next; [`checker`],
//!   [`requests`]: who asks for that or a reload, and what is checked first.
//! * [`roll`], [`scale`], [`bounds`], [`policy`], [`breaker`], [`pulse`], [`phase`]: its decisions, pure.
//! * [`children`]: the table of children; [`limits`], [`oom`]: open files, memory, root; and
//!   whether the kernel killed a child for want of memory.
//! * [`fork`]: the one place with `unsafe`; [`signals`], [`lifeline`]: what wakes the loop.
//! * [`files`]: the state folder, its lock and its sockets; [`status`]: `status.json`.
//! * [`activation`]: the control socket from systemd; [`notify`], [`announce`]: what
//!   systemd is told.
//! * [`title`]: what `ps` shows; [`logging`]: where the log goes, also after a rotation;
//!   [`journal`]: its lines for systemd's; [`quiet`]: how a crash loop does not fill it.

mod activation;
mod adopt;
mod announce;
mod births;
mod bounds;
mod breaker;
mod checker;
mod children;
mod deaths;
mod files;
mod fork;
mod handover;
mod journal;
mod lifeline;
mod limits;
mod logging;
mod notify;
mod oom;
mod phase;
mod policy;
mod pulse;
mod quiet;
mod reload;
mod requests;
mod resize;
mod roll;
mod scale;
mod serve;
mod signals;
mod status;
mod stop;
mod supervise;
mod talk;
mod title;
mod upgrade;

pub(crate) use fork::unblock_signals;
pub(crate) use logging::{reopen as reopen_log, set_level as set_log_level};
pub(crate) use serve::{PARENT_VARIABLE, follow_parent, serve};

/// What the environment says to the daemon alone. A command that got them would speak to systemd
/// in the daemon's name, or take its own descriptor 3 for a socket.
pub(crate) const DAEMON_VARIABLES: [&str; 10] = [
    handover::HANDOVER_VARIABLE,
    handover::CHECK_VARIABLE,
    handover::FAILED_VARIABLE,
    PARENT_VARIABLE,
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];
