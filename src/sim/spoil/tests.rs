//! Each fault on a streamed and on a whole answer.

use super::*;
use crate::openai::sse;
use crate::sim::{SimOptions, wire::Head};

const EVENTS: usize = 6;

fn answer() -> Answer {
    let tokens = ["[simul", "ated]", " one"].map(str::to_owned).into();
    Answer { calls: None, tokens, finish_reason: "stop", prompt_tokens: 1, is_first_json: false }
}

/// The role, three tokens, the reason, `[DONE]`.
fn stream(answer: Answer) -> Script {
    let head = Head { id: "c".into(), created: 0, include_usage: false };
    let options = SimOptions { first_token_ms: 7, ..SimOptions::default() };
    Script::stream(&options, &head, answer).unwrap()
}

fn whole() -> Script {
    Script::whole("{\"a\": \"é漢\"}".into())
}

fn end_of(script: &Script) -> usize {
    script.writes.last().map_or(0, |write| write.end)
}

#[test]
fn half_is_sent_before_silence_or_the_cut() {
    let (stream, whole) = (stream(answer()), whole());
    assert_eq!(stream.writes.len(), EVENTS);
    for (fault, ending) in
        [(Fault::HangMidStream, Ending::Silence), (Fault::CutMidStream, Ending::Cut)]
    {
        let spoilt = spoil_script(fault, stream.clone());
        assert_eq!(spoilt.writes, stream.writes[..EVENTS / 2]);
        assert_eq!(spoilt.ending, ending);
        let spoilt = spoil_script(fault, whole.clone());
        assert_eq!((end_of(&spoilt), spoilt.ending), (whole.bytes.len() / 2, ending));
        assert_eq!(spoilt.content_length, Some(whole.bytes.len()));
    }
}

#[test]
fn prose_is_for_the_first_try_at_json() {
    let first = Answer { is_first_json: true, ..answer() };
    let spoilt = spoil_answer(Fault::ProseForJson, first);
    assert_eq!(spoilt.tokens.concat(), "[simulated] Of course! Here it is, in words.");
    assert_eq!(spoil_answer(Fault::ProseForJson, answer()), answer());
}

#[test]
fn writes_end_inside_characters() {
    let answer = spoil_answer(Fault::SplitUtf8, answer());
    assert_eq!(answer.tokens, ["[simul", "ated]", "é one"]);
    for script in [stream(answer), whole()] {
        let spoilt = spoil_script(Fault::SplitUtf8, script.clone());
        assert!(!spoilt.may_join && spoilt.writes.len() > 1);
        assert_eq!((&spoilt.bytes, end_of(&spoilt)), (&script.bytes, script.bytes.len()));
        let text = str::from_utf8(&spoilt.bytes).unwrap();
        let (_, inside) = spoilt.writes.split_last().unwrap();
        assert!(inside.iter().all(|write| !text.is_char_boundary(write.end)));
        assert!(spoilt.writes.is_sorted_by(|a, b| a.due < b.due && a.end < b.end));
    }
}

#[test]
fn bytes_drip_one_by_one() {
    let script = stream(answer());
    let spoilt = spoil_script(Fault::SlowDrip, script.clone());
    assert_eq!(spoilt.writes.len(), script.bytes.len());
    assert_eq!(spoilt.writes[0], Write { due: Duration::from_millis(7), end: 1 });
    assert_eq!(spoilt.writes[9], Write { due: Duration::from_millis(7 + 9 * 20), end: 10 });
}

#[test]
fn garbage_is_one_event_or_the_whole_body() {
    let script = stream(answer());
    let spoilt = spoil_script(Fault::GarbageJson, script.clone());
    assert_eq!((spoilt.writes.len(), end_of(&spoilt)), (EVENTS + 1, spoilt.bytes.len()));
    let mut parser = sse::Parser::new(1 << 20);
    parser.push(&spoilt.bytes);
    let events: Vec<_> = std::iter::from_fn(|| parser.next_event().unwrap()).collect();
    let is_json = |event: &sse::Event| serde_json::from_str::<serde_json::Value>(&event.data);
    let bad: Vec<usize> = (0..events.len()).filter(|n| is_json(&events[*n]).is_err()).collect();
    // The last is [DONE].
    assert_eq!(bad, [EVENTS / 2, EVENTS]);
    let spoilt = spoil_script(Fault::GarbageJson, whole());
    assert_eq!((&spoilt.bytes[..], spoilt.content_length), (GARBAGE, Some(GARBAGE.len())));
}

#[test]
fn endless_says_the_first_token_again_and_again() {
    let script = stream(answer());
    let spoilt = spoil_script(Fault::Endless, script.clone());
    assert_eq!(spoilt.writes, script.writes[..1]);
    let Ending::Endless(again) = spoilt.ending else { panic!("{:?}", spoilt.ending) };
    let first = &script.bytes[script.writes[0].end..script.writes[1].end];
    assert!(again.starts_with(first) && again.len() % first.len() == 0);
    let spoilt = spoil_script(Fault::Endless, whole());
    assert!(spoilt.writes.is_empty() && spoilt.content_length.is_none());
    assert!(matches!(spoilt.ending, Ending::Endless(again) if again.iter().all(|b| *b == b' ')));
}

#[test]
fn a_big_chunk_is_one_event() {
    let script = stream(spoil_answer(Fault::BigChunk, answer()));
    assert_eq!(script.writes.len(), 4);
    assert!(script.writes[1].end - script.writes[0].end > BIG_CHUNK_BYTES);
    assert_eq!(spoil_script(Fault::BigChunk, script.clone()), script);
}
