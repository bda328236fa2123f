//! The master's decisions: functions of what is known and the time, without I/O and without a
//! clock inside, so that tables, properties and simulated time can test them.
//!
//! * [`phase`]: where the instance is in its life.
//! * [`roll`]: the next step to the pool that there should be; [`scale`], [`bounds`]: how large that
//!   is.
//! * [`pulse`]: who stands still; [`policy`], [`breaker`]: when to fork again.
//! * [`quiet`]: which deaths are worth a line.

pub(crate) mod bounds;
pub(crate) mod breaker;
pub(crate) mod phase;
pub(crate) mod policy;
pub(crate) mod pulse;
pub(crate) mod quiet;
pub(crate) mod roll;
pub(crate) mod scale;
