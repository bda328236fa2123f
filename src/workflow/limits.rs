//! Bounds of a workflow and of a run.

/// Bytes of a definition, with everything nested in it.
pub(crate) const DEFINITION_BYTES_MAX: usize = 1 << 20;
/// Steps of one workflow.
pub(crate) const STEPS_MAX: usize = 256;
/// Entries of a table whose keys are names: inputs, steps, actions, and what they say.
pub(super) const ENTRIES_MAX: usize = STEPS_MAX;
/// Regular expressions in what its steps expect: to compile one takes the broker up to a millisecond.
pub(super) const PATTERNS_MAX: usize = 1_000;
/// Mistakes of a definition that are told.
pub(super) const PROBLEMS_MAX: usize = 100;
/// Workflows inside of each other, the outermost included.
pub(crate) const NESTING_MAX: usize = 8;
/// Tasks of one run, those of nested runs not counted: they are runs of their own.
pub(crate) const TASKS_MAX: usize = 10_000;
/// Items of a `for_each`, tasks of a `plan`.
pub(crate) const ITEMS_MAX: usize = 10_000;
/// The same for a step that does not say its `max`.
pub(crate) const ITEMS_DEFAULT: usize = 100;
/// Rounds of a `repeat`.
pub(crate) const ROUNDS_MAX: usize = 100;
/// Attempts of a step's task.
pub(crate) const ATTEMPTS_MAX: u64 = 100;
/// Steps of the engine that one template may take: a worker's loop waits meanwhile.
pub(super) const TEMPLATE_STEPS_MAX: u64 = 1_000_000;
/// Bytes of code in one template: each few could put a list into another, and what is nested
/// thousandfold takes a worker's stack.
pub(super) const CODE_BYTES_MAX: usize = 8 << 10;
/// Bytes of the idempotency key of a step, as of any task.
pub(crate) const KEY_BYTES_MAX: usize = 256;
/// What a task takes on its way besides its texts: names and numbers.
pub(super) const STEP_OVERHEAD_BYTES: u64 = 128;
/// Bytes of a name of a workflow, step, input or action.
pub(super) const NAME_BYTES_MAX: usize = 64;
