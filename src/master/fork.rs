//! `fork` and `exec`, and what a child must do before it may do anything else. The only `unsafe`
//! of forq.
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

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
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

/// Keeps all signals out: what comes now is there when they are let through again, also across
/// [`exec`].
pub(super) fn block_signals() {
    // Cannot fail: the set is valid.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// Replaces this process's image. Comes back only if that fails.
pub(super) fn exec(path: &CStr, arguments: &[CString], environment: &[CString]) -> nix::Error {
    match nix::unistd::execve(path, arguments, environment) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Takes over a descriptor that the image before this one left open, and closes it to commands
/// again.
pub(super) fn adopt(fd: RawFd) -> nix::Result<OwnedFd> {
    if fd <= nix::libc::STDERR_FILENO {
        return Err(nix::Error::EBADF);
    }
    // SAFETY: the number comes from the image that this process ran a moment ago, which named
    // each descriptor once and left it to us; this runs before anything else here opens or closes
    // any. One that is not open is found out by the next line, before it is used.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    match fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => Ok(owned),
        Err(error) => {
            // Nothing to close.
            std::mem::forget(owned);
            Err(error)
        }
    }
}

/// Whether a descriptor outlives [`exec`].
pub(super) fn hand_on(fd: impl AsFd, yes: bool) -> nix::Result<()> {
    let flags = if yes { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)
}

/// Ends a child without the exit handlers of the process that it was forked from.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: `_exit` is always sound; it runs nothing and never returns.
    unsafe { nix::libc::_exit(code) }
}
