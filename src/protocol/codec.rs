//! Messages to bytes between the processes of one instance, which are all one build.
//!
//! bincode lives in this file alone: its authors have declared it finished, and whoever swaps it
//! for another format changes nothing else.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame;

/// What one message may claim to hold: over the largest frame that a configuration allows. bincode
/// makes room for a text before it looks whether the text is there, and a claim without bound ends
/// the process.
const MESSAGE_BYTES_MAX: usize = 512 << 20;

type Config = bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MESSAGE_BYTES_MAX>,
>;

const CONFIG: Config = bincode::config::standard().with_limit();

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

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{lifeline, link};

    /// Every type that is read off a socket: it is an error or a message, never a panic.
    fn read_as_everything(bytes: &[u8]) {
        fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
            if let Ok(message) = decode::<T>(bytes) {
                let again = decode::<T>(&encode(&message).unwrap()).unwrap();
                assert_eq!(again, message);
            }
        }
        read::<link::ToBroker>(bytes);
        read::<link::ToWorker>(bytes);
        read::<lifeline::ToBroker>(bytes);
        read::<lifeline::FromBroker>(bytes);
        read::<lifeline::FromWorker>(bytes);
    }

    /// Bytes that lead further into a message than chance does: small numbers are variants and
    /// lengths, and 250 to 253 announce a number of 2 to 16 bytes.
    fn likely_bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![4 => 0u8..8, 1 => 250u8..=255, 1 => any::<u8>()];
        vec(byte, 0..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn garbage_is_an_error(bytes in vec(any::<u8>(), 0..200), likely in likely_bytes()) {
            read_as_everything(&bytes);
            read_as_everything(&likely);
        }
    }

    /// The variant, the fields up to the text, then a text that claims more than there is.
    #[test]
    fn a_text_that_claims_to_be_huge_is_an_error() {
        for claim in [1 << 32, 1 << 40, u64::MAX >> 1, u64::MAX] {
            let claimed = |mut message: Vec<u8>| {
                assert_eq!(message.pop(), Some(0), "an empty text or list at its end");
                message.push(253);
                message.extend_from_slice(&claim.to_le_bytes());
                message
            };
            let fatal = lifeline::FromBroker::Fatal { message: String::new() };
            let fatal = claimed(encode(&fatal).unwrap());
            let read = decode::<lifeline::FromBroker>(&fatal);
            assert!(matches!(read, Err(CodecError::Decode(_))), "{read:?}");
            let events = claimed(encode(&link::ToBroker::Events { events: vec![] }).unwrap());
            let read = decode::<link::ToBroker>(&events);
            assert!(matches!(read, Err(CodecError::Decode(_))), "{read:?}");
        }
    }

    #[test]
    fn every_cut_of_a_message_is_an_error_and_so_is_more() {
        let run = link::Run { seq: 1_700_000_000_000_000, attempt: 3 };
        let bytes = encode(&link::ToBroker::Done(link::Done {
            run,
            run_ms: 70_000,
            outcome: link::Outcome::Succeeded { output: "{\"a\":1}".repeat(50), usage: None },
        }))
        .unwrap();
        for cut in 0..bytes.len() {
            assert!(decode::<link::ToBroker>(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let more = [&bytes[..], &[0]].concat();
        assert!(matches!(decode::<link::ToBroker>(&more), Err(CodecError::Trailing(1))));
    }
}
