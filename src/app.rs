//! [`App`]: a forq binary with kinds of task of its own.

use std::future::Future;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::task::{AbortHandle, spawn_blocking};

use crate::cli::{Daemon, ServeOverrides};
use crate::handler::{
    Context, Handler, HandlerError, HandlerFuture, Registry, parse_input, to_output,
};
use crate::instance::Instance;

/// A forq binary with kinds of task of its own, beside the built-in ones.
///
/// The input of a kind is any type that `serde` can read: whatever does not fit it is refused
/// when it is submitted, with the field's name. Unknown fields are refused if the type says
/// `#[serde(deny_unknown_fields)]`.
///
/// A panic in a handler fails its attempt and nothing else.
#[derive(Default)]
pub struct App {
    own: Registry,
}

impl App {
    /// A binary that knows the built-in kinds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind whose handler waits more than it computes. It shares its worker's event loop
    /// with the other tasks there, so it must not block: see [`App::blocking_handler`].
    ///
    /// Cancelling a task, or its time limit, drops the future.
    ///
    /// A kind with the name of an earlier or a built-in one takes its place.
    #[must_use]
    pub fn handler<F, Fut, I, O>(mut self, kind: impl Into<String>, work: F) -> Self
    where
        F: Fn(Context, I) -> Fut + 'static,
        Fut: Future<Output = Result<O, HandlerError>> + 'static,
        I: DeserializeOwned + 'static,
        O: Serialize + 'static,
    {
        let handler = Async { work: Rc::new(work), input: PhantomData };
        self.own.insert(&kind.into(), Rc::new(handler));
        self
    }

    /// Adds a kind whose handler computes, or calls what blocks. It runs on a thread of its
    /// worker's bounded pool; while all threads are busy, it waits for one.
    ///
    /// A thread cannot be interrupted: if the task is cancelled or its time limit passes, nobody
    /// waits for the handler any longer, but its thread is busy until it returns. So an attempt
    /// that is retried may start while the one before still runs.
    ///
    /// A kind with the name of an earlier or a built-in one takes its place.
    #[must_use]
    pub fn blocking_handler<F, I, O>(mut self, kind: impl Into<String>, work: F) -> Self
    where
        F: Fn(Context, I) -> Result<O, HandlerError> + Clone + Send + Sync + 'static,
        I: DeserializeOwned + 'static,
        O: Serialize + 'static,
    {
        let handler = Blocking { work, input: PhantomData };
        self.own.insert(&kind.into(), Rc::new(handler));
        self
    }

    /// Does what the command line says, and gives the exit code: `main` is this and nothing else.
    pub fn main(self) -> ExitCode {
        if let Some(code) = crate::guard::maybe_main() {
            return code;
        }
        crate::cli::run(std::env::args_os(), &self)
    }
}

impl Daemon for App {
    fn serve(&self, instance: &Instance, overrides: ServeOverrides) -> ExitCode {
        crate::master::serve(instance, &overrides, self.own.clone())
    }

    fn own_kinds(&self) -> Registry {
        self.own.clone()
    }
}

/// A kind that runs on the event loop.
struct Async<F, I> {
    work: Rc<F>,
    input: PhantomData<fn(I)>,
}

impl<F, Fut, I, O> Handler for Async<F, I>
where
    F: Fn(Context, I) -> Fut + 'static,
    Fut: Future<Output = Result<O, HandlerError>> + 'static,
    I: DeserializeOwned + 'static,
    O: Serialize + 'static,
{
    fn check(&self, input: &RawValue) -> Result<(), String> {
        parse_input::<I>(input).map(drop)
    }

    fn run(&self, context: Context, input: Box<RawValue>) -> HandlerFuture {
        let work = self.work.clone();
        Box::pin(async move {
            let input = parse_input(&input).map_err(HandlerError::input)?;
            to_output(&work(context, input).await?)
        })
    }
}

/// A kind that runs on the blocking pool.
struct Blocking<F, I> {
    work: F,
    input: PhantomData<fn(I)>,
}

impl<F, I, O> Handler for Blocking<F, I>
where
    F: Fn(Context, I) -> Result<O, HandlerError> + Clone + Send + Sync + 'static,
    I: DeserializeOwned + 'static,
    O: Serialize + 'static,
{
    fn check(&self, input: &RawValue) -> Result<(), String> {
        parse_input::<I>(input).map(drop)
    }

    fn run(&self, context: Context, input: Box<RawValue>) -> HandlerFuture {
        let work = self.work.clone();
        Box::pin(async move {
            // Reading and writing JSON is work too, and what comes of it need not cross threads.
            let job = spawn_blocking(move || {
                let input = parse_input(&input).map_err(HandlerError::input)?;
                to_output(&work(context, input)?)
            });
            let _abort = AbortOnDrop(job.abort_handle());
            match job.await {
                Ok(outcome) => outcome,
                // As if it had run here: the runner knows what to do about a panic.
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                Err(_) => Err(HandlerError::retryable("the worker stopped before it could run")),
            }
        })
    }
}

/// Keeps a cancelled job that still waits for a thread from ever starting.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::task::ErrorKind;
    use crate::worker::handlers::testing::{check, context, raw, run};

    #[derive(Deserialize)]
    struct Pair {
        a: u32,
        b: u32,
    }

    fn app() -> Registry {
        App::new()
            .handler("sum", |_, Pair { a, b }| async move {
                tokio::task::yield_now().await;
                a.checked_add(b).ok_or_else(|| HandlerError::fatal("too large"))
            })
            .blocking_handler("divide", |_, Pair { a, b }| Ok(a / b))
            .own
    }

    #[tokio::test]
    async fn own_kinds_check_run_and_fail() {
        let kinds = app();
        for (kind, result) in [("sum", 8), ("divide", 3)] {
            let handler = kinds.get(kind).unwrap().as_ref();
            assert_eq!(run(handler, r#"{"a":6,"b":2}"#).await.unwrap(), json!(result));
            assert_eq!(check(handler, r#"{"a":6,"b":2,"c":0}"#), Ok(()));
            let error = check(handler, r#"{"a":6,"b":-2}"#).unwrap_err();
            assert!(error.starts_with("input.b: invalid value: integer `-2`"), "{error}");
            let error = run(handler, "{}").await.unwrap_err();
            assert_eq!((error.kind, error.retryable), (ErrorKind::Input, false));
        }
        let input = format!(r#"{{"a":{},"b":1}}"#, u32::MAX);
        let error = run(kinds.get("sum").unwrap().as_ref(), input).await.unwrap_err();
        assert_eq!(error.message, "too large");
    }

    #[tokio::test]
    #[should_panic(expected = "divide by zero")]
    async fn a_panic_on_the_pool_is_a_panic_of_the_attempt() {
        _ = run(app().get("divide").unwrap().as_ref(), r#"{"a":1,"b":0}"#).await;
    }

    #[test]
    fn the_last_of_a_name_wins() {
        let mut kinds = app();
        let later = App::new()
            .handler("noop", |_, _: Pair| async { Ok(()) })
            .handler("noop", |_, _: u8| async { Ok(()) });
        kinds.add(&later.own);
        assert_eq!(kinds.check("noop", &raw("3")), Ok(()));
        assert_eq!(kinds.check("sum", &raw(r#"{"a":1,"b":1}"#)), Ok(()));
    }

    #[test]
    fn a_cancelled_job_that_waits_for_a_thread_never_starts() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let started = Arc::new(AtomicBool::new(false));
        let flag = started.clone();
        let kinds = App::new()
            .blocking_handler("late", move |_, ()| {
                flag.store(true, Ordering::SeqCst);
                Ok(())
            })
            .own;
        runtime.block_on(async {
            let (release, held) = channel::<()>();
            let busy = spawn_blocking(move || held.recv());
            let mut late = kinds.get("late").unwrap().run(context(&Arc::default()), raw("null"));
            tokio::select! {
                biased;
                _ = &mut late => panic!("there is no thread for it"),
                () = std::future::ready(()) => {}
            }
            drop(late);
            drop(release);
            _ = busy.await;
            // The pool is first in, first out.
            spawn_blocking(|| ()).await.unwrap();
        });
        assert!(!started.load(Ordering::SeqCst));
    }
}
