//! The master: forks, reaps, signals, and nothing else.
//!
//! It runs no task code, parses no client byte, opens no store, and starts no thread, so that a
//! plain `fork` stays legal and so that it has nothing to crash on.
//!
//! * [`mod@serve`]: from the configuration to the first fork, and from a fork to a child's own main.
//! * [`supervise`]: the loop; [`births`], [`deaths`], [`talk`], [`resize`], [`reload`], [`stop`]:
//!   what it does; [`rules`]: what it decides, pure.
//! * [`upgrade`]: one image of the master to the next; [`systemd`]: what a service is told.
//! * [`requests`], [`checker`]: who asks for a reload or an upgrade, and what is checked first.
//! * [`children`]: the table of children; [`limits`], [`oom`]: open files, memory, root; and
//!   whether the kernel killed a child for want of memory.
//! * [`fork`]: the one place with `unsafe`; [`signals`], [`lifeline`]: what wakes the loop.
//! * [`files`]: the state folder, its lock and its sockets; [`status`]: `status.json`.
//! * [`title`]: what `ps` shows; [`logging`]: where the log goes, also after a rotation.

mod births;
mod checker;
mod children;
mod deaths;
mod files;
mod fork;
mod lifeline;
mod limits;
mod logging;
mod oom;
mod reload;
mod requests;
mod resize;
mod rules;
mod serve;
mod signals;
mod status;
mod stop;
mod supervise;
mod systemd;
mod talk;
mod title;
mod upgrade;

pub(crate) use fork::unblock_signals;
pub(crate) use logging::{reopen as reopen_log, set_level as set_log_level};
pub(crate) use serve::{PARENT_VARIABLE, follow_parent, serve};

/// What the environment says to the daemon alone. A command that got them would speak to systemd
/// in the daemon's name, or take its own descriptor 3 for a socket.
pub(crate) const DAEMON_VARIABLES: [&str; 10] = [
    upgrade::HANDOVER_VARIABLE,
    upgrade::CHECK_VARIABLE,
    upgrade::FAILED_VARIABLE,
    PARENT_VARIABLE,
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];
