//! The length prefix: four bytes, little-endian, then that many bytes of message.
//!
//! A peer may claim any length and send as slowly as it likes: memory grows with the bytes that
//! have arrived, never with the length that was claimed, and a length over the limit is an error
//! before its first byte is read.

use bytes::{Buf, Bytes, BytesMut};

/// The size of the prefix.
pub const PREFIX_BYTES: usize = 4;
/// What may come on top of an input or output in the frame that carries it: names, options, ids.
pub const FRAME_OVERHEAD_BYTES: usize = 1 << 20;

/// A frame that is longer than its reader allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {claimed_bytes} bytes is over the limit of {limit_bytes}")]
pub struct TooLong {
    /// What the prefix said.
    pub claimed_bytes: usize,
    /// What the reader allows.
    pub limit_bytes: usize,
}

/// Takes one whole frame off the front of `buffer`, if one is there.
pub fn take_frame(buffer: &mut BytesMut, limit_bytes: usize) -> Result<Option<Bytes>, TooLong> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let claimed_bytes = u32::from_le_bytes(*prefix) as usize;
    if claimed_bytes > limit_bytes {
        return Err(TooLong { claimed_bytes, limit_bytes });
    }
    if buffer.len() < PREFIX_BYTES + claimed_bytes {
        return Ok(None);
    }
    buffer.advance(PREFIX_BYTES);
    Ok(Some(buffer.split_to(claimed_bytes).freeze()))
}

/// Appends a frame to `out`: `write` appends the message, and the prefix is filled in after it.
///
/// On an error `out` is as it was. Messages are bounded by their makers, far under 4 GiB.
pub fn put_frame<E>(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    if let Err(error) = write(out) {
        out.truncate(start);
        return Err(error);
    }
    let length = u32::try_from(out.len() - start - PREFIX_BYTES).unwrap_or(u32::MAX);
    out[start..start + PREFIX_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            put_frame::<()>(&mut out, |out| {
                out.extend_from_slice(message);
                Ok(())
            })
            .unwrap();
        }
        out
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..8),
            cut_bytes in 1usize..40,
        ) {
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for piece in framed(&messages).chunks(cut_bytes) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = take_frame(&mut buffer, 80).unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            prop_assert_eq!(seen, messages);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = take_frame(&mut buffer, 16) {
                prop_assert!(frame.len() <= 16);
            }
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_its_bytes() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert!(take_frame(&mut buffer, 1 << 20).is_err());
    }

    #[test]
    fn a_failed_write_leaves_no_trace() {
        let mut out = vec![1];
        assert_eq!(
            put_frame(&mut out, |out| {
                out.push(9);
                Err("no")
            }),
            Err("no")
        );
        assert_eq!(out, [1]);
    }
}
