//! `fork`, and what a child must do before it may do anything else. The only `unsafe` of forq.
//!
//! A plain fork is legal here because the master has one thread and no tokio, TLS or RNG: the
//! child may allocate and build a runtime of its own. The order in the child:
//!
//! 1. all signals are blocked since before the fork, so none reaches the master's handlers here;
//! 2. the kernel is told to end this process with its parent, and the parent is checked, since it
//!    may be gone already;
//! 3. the caller takes the master's actions out of the signal registry and drops its descriptors
//!    (see `serve`), and builds a runtime;
//! 4. the child's own listeners are there: [`unblock_signals`].
#![allow(unsafe_code)]

use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{ForkResult, Pid, getppid};

/// Which side of the fork this is.
pub(super) enum Side {
    Parent(Pid),
    Child,
}

/// Forks. Returns twice; in the child with all signals blocked.
pub(super) fn fork() -> nix::Result<Side> {
    let parent = Pid::this();
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: this process has one thread (the master starts none; a test reads its
    // /proc/PID/task), so no lock can be held by a thread that the child does not have.
    #[allow(clippy::disallowed_methods, reason = "this is the place")]
    let forked = unsafe { nix::unistd::fork() };
    match forked {
        Ok(ForkResult::Child) => {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                // The master died in between: nobody would end this process.
                exit(1);
            }
            Ok(Side::Child)
        }
        Ok(ForkResult::Parent { child }) => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Ok(Side::Parent(child))
        }
        Err(error) => {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Err(error)
        }
    }
}

/// Lets signals through again: the child's own listeners are there.
pub(crate) fn unblock_signals() {
    // Cannot fail: the set is valid.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Ends a child without the exit handlers of the process that it was forked from.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: `_exit` is always sound; it runs nothing and never returns.
    unsafe { nix::libc::_exit(code) }
}
