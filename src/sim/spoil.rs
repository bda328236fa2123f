//! What a fault makes of an answer that would be right. Pure.

use std::time::Duration;

use bytes::Bytes;

use super::answer::Answer;
use super::fault::Fault;
use super::script::{Ending, Script, Write};

/// The text of [`Fault::BigChunk`].
const BIG_CHUNK_BYTES: usize = 10_000_000;
/// Between two bytes of [`Fault::SlowDrip`].
const DRIP_EVERY: Duration = Duration::from_millis(20);
/// Between two writes of [`Fault::SplitUtf8`]: enough for a reader to see each by itself.
const SPLIT_EVERY: Duration = Duration::from_millis(1);
/// Characters of two, three and four bytes.
const WIDE: [&str; 3] = ["é", "漢", "🦀"];
const GARBAGE: &[u8] = b"{\"id\": \"chatcmpl-sim\", \"choices\": [{\"index\": 0,, <nonsense>";
/// The text of [`Fault::ProseForJson`], a token each.
const PROSE: [&str; 7] = ["[simulated]", " Of", " course!", " Here", " it", " is,", " in words."];
/// How much of an endless answer is written at once.
const ENDLESS_WRITE_BYTES: usize = 16 << 10;

/// Changes what is said.
pub(super) fn spoil_answer(fault: Fault, mut answer: Answer) -> Answer {
    match fault {
        Fault::BigChunk => answer.tokens = vec!["x".repeat(BIG_CHUNK_BYTES)],
        // The arguments of a call stay as they are: what is no string in JSON has no such letters.
        Fault::SplitUtf8 if answer.calls.is_none() => {
            let words = answer.tokens.iter_mut().filter(|token| token.starts_with(' '));
            words.zip(WIDE.iter().cycle()).for_each(|(word, wide)| word.insert_str(0, wide));
        }
        Fault::ProseForJson if answer.is_first_json => {
            answer.tokens = PROSE.map(str::to_owned).into();
            answer.finish_reason = "stop";
        }
        _ => {}
    }
    answer
}

/// Changes how it is sent.
pub(super) fn spoil_script(fault: Fault, mut script: Script) -> Script {
    match fault {
        Fault::HangMidStream => half(script, Ending::Silence),
        Fault::CutMidStream => half(script, Ending::Cut),
        Fault::SplitUtf8 => {
            let ends = ends_inside_characters(&script.bytes);
            write_apart(script, ends, SPLIT_EVERY)
        }
        Fault::SlowDrip => {
            let ends = (1..=script.bytes.len()).collect();
            write_apart(script, ends, DRIP_EVERY)
        }
        Fault::GarbageJson => garbage(script),
        Fault::Endless => {
            // The event after the role's, or the white space that may come before JSON.
            let again = match script.writes[..] {
                [role, first, ..] => script.bytes.slice(role.end..first.end),
                _ => Bytes::from_static(b" "),
            };
            script.writes.truncate(1);
            if script.content_length.take().is_some() {
                script.writes.clear();
            }
            let times = ENDLESS_WRITE_BYTES.div_ceil(again.len().max(1));
            Script { ending: Ending::Endless(again.repeat(times).into()), ..script }
        }
        _ => script,
    }
}

/// Half of the writes, or half of the only one.
fn half(mut script: Script, ending: Ending) -> Script {
    match &mut script.writes[..] {
        [only] => only.end /= 2,
        _ => script.writes.truncate(script.writes.len() / 2),
    }
    Script { ending, ..script }
}

fn write_apart(script: Script, ends: Vec<usize>, every: Duration) -> Script {
    let first = script.writes.first().map_or(Duration::ZERO, |write| write.due);
    let due = |index: usize| first + every * u32::try_from(index).unwrap_or(u32::MAX);
    let writes = ends.into_iter().enumerate();
    let writes = writes.map(|(index, end)| Write { due: due(index), end }).collect();
    Script { writes, may_join: false, ..script }
}

/// A place in the middle of each character of several bytes, and the end.
fn ends_inside_characters(bytes: &[u8]) -> Vec<usize> {
    let text = String::from_utf8_lossy(bytes);
    let wide = text.char_indices().filter(|(_, char)| char.len_utf8() > 1);
    wide.map(|(at, char)| at + char.len_utf8() / 2).chain([bytes.len()]).collect()
}

/// Puts an event that is no JSON after half of a stream; takes the place of a whole body.
fn garbage(mut script: Script) -> Script {
    if script.content_length.is_some() {
        return Script::whole(GARBAGE.to_vec());
    }
    let mut event = Vec::new();
    crate::openai::sse::write_event(&mut event, GARBAGE);
    let middle = script.writes.len() / 2;
    let at = script.writes[..middle].last().map_or(0, |write| write.end);
    for write in &mut script.writes[middle..] {
        write.end += event.len();
    }
    let due = script.writes.get(middle).map_or(Duration::ZERO, |write| write.due);
    script.writes.insert(middle, Write { due, end: at + event.len() });
    let bytes = [&script.bytes[..at], &event, &script.bytes[at..]].concat().into();
    Script { bytes, ..script }
}

#[cfg(test)]
mod tests;
