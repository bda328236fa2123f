//! Messages to bytes between the processes of one instance, which are all one build.
//!
//! bincode lives in this file alone: its authors have declared it finished, and whoever swaps it
//! for another format changes nothing else.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame;

const CONFIG: bincode::config::Configuration = bincode::config::standard();

/// Bytes that are no message, or a message that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are no message of this type.
    #[error("not a message of this protocol: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// The message has something in it that the format cannot carry.
    #[error("cannot write a message: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// There is more after the message.
    #[error("{0} bytes after the message")]
    Trailing(usize),
}

/// Reads one message that fills `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (message, used) = bincode::serde::decode_from_slice(bytes, CONFIG)?;
    match bytes.len() - used {
        0 => Ok(message),
        rest => Err(CodecError::Trailing(rest)),
    }
}

/// One message as bytes.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    Ok(bincode::serde::encode_to_vec(message, CONFIG)?)
}

/// Appends one message to `out` as a frame.
pub fn put<T: Serialize>(out: &mut Vec<u8>, message: &T) -> Result<(), CodecError> {
    frame::put_frame(out, |out| {
        bincode::serde::encode_into_std_write(message, out, CONFIG)?;
        Ok(())
    })
}
