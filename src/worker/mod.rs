//! The worker: runs tasks on its own event loop.
//!
//! * [`link`]: the connection to the broker, and what survives it.
//! * [`flows`]: runs of workflows, and their advances.
//! * [`held`]: attempts that run or whose result is not acknowledged.
//! * [`calls`]: what an attempt may call, and what came of it.
//! * [`lag`]: how many tasks its event loop can bear.
//! * [`runner`]: one attempt: its handler, its time limit, its panic, its cancel.
//! * [`expected`]: whether its output is what its task expects.
//! * [`kinds`]: the built-in kinds under this configuration.
//! * [`handlers`]: the kinds themselves.

pub(crate) mod calls;
mod expected;
mod flows;
pub(crate) mod handlers;
mod held;
pub(crate) mod kinds;
mod lag;
mod lifeline;
mod link;
mod runner;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::handler::Registry;

/// Everything that the master gives a worker.
pub(crate) struct Start {
    pub(crate) registry: Registry,
    pub(crate) worker_socket: PathBuf,
    pub(crate) lifeline: OwnedFd,
    /// Its place in the pool, from 1.
    pub(crate) slot: u32,
    /// Its number since the instance started.
    pub(crate) serial: u64,
    /// The configuration's generation.
    pub(crate) generation: u32,
    /// Tasks at once.
    pub(crate) concurrency: u32,
    /// The largest output that the broker takes.
    pub(crate) output_bytes_max: u64,
}

/// Runs the worker to its end; 0 if it was told to end or has drained.
pub(crate) fn run(start: Start, runtime: &tokio::runtime::Runtime) -> i32 {
    let tasks = LocalSet::new();
    let code = tasks.block_on(runtime, serve(start));
    // What still runs is dropped here, and ends with its handler: commands, upstream calls.
    drop(tasks);
    code
}

async fn serve(start: Start) -> i32 {
    let (mut terminate, lifeline) =
        match (signal(SignalKind::terminate()), lifeline::Lifeline::new(start.lifeline)) {
            (Ok(terminate), Ok(lifeline)) => (terminate, lifeline),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!("a worker cannot start: {error}");
                return 1;
            }
        };
    crate::master::unblock_signals();
    let link = link::Link {
        socket: start.worker_socket,
        slot: start.slot,
        serial: start.serial,
        generation: start.generation,
        capacity: Cell::new(start.concurrency),
        concurrency: start.concurrency,
        output_bytes_max: start.output_bytes_max,
        registry: Rc::new(start.registry),
        tasks_done: Cell::default(),
    };
    // The loop turns: that is what ready means here. The broker may come later.
    tokio::select! {
        () = link.serve() => 0,
        () = lifeline.beat(&link.tasks_done) => 0,
        () = lifeline.heed() => 0,
        _ = terminate.recv() => 0,
    }
}
