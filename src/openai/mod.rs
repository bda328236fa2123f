//! The OpenAI wire, as the chat handler speaks it to providers and the simulated model answers
//! it.
//!
//! What we read from others is read leniently: servers differ in which fields they leave out,
//! and which they send as `null`. Fields that we do not know pass through in `extra`.

mod chat;
mod chunk;
mod error;
mod models;
pub mod sse;
mod usage;

pub use chat::{
    ChatCompletion, ChatRequest, Choice, Content, FunctionCall, Message, StreamOptions, ToolCall,
};
pub use chunk::{ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta};
pub use error::{ErrorBody, ErrorDetail};
pub use models::{Model, ModelList};
pub use usage::Usage;

use serde::{Deserialize, Deserializer};

/// Reads `null` as the default.
fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
