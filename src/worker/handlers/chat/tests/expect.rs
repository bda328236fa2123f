//! Answers that are not as expected, and what a model is told of them.

use super::chain::{Chained, answers, plays, says};
use super::*;
use crate::expect::Expect;
use crate::protocol::calls::CallOutcome::{Failed, Succeeded};

/// A provider that answers its calls with these texts, one after the other.
async fn talks(texts: &[&str]) -> Fake {
    fake(texts.iter().map(|text| says(text)).collect()).await
}

fn at(fake: &mut Fake) -> Provider {
    provider(std::mem::take(&mut fake.base_url))
}

async fn request(fake: &mut Fake) -> Value {
    let request = fake.seen.recv().await.unwrap();
    serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn schema() -> Value {
    json!({"schema": {"required": ["score"], "properties": {"score": {"type": "integer"}}}})
}

fn asks() -> Value {
    json!({"prompt": "Rate it.", "expect": schema()})
}

fn restarted(provider: &str, mistake: &str) -> Event {
    let reason = format!("the answer is not as expected: {mistake}");
    Event::Data { data: json!({"restarted": {"provider": provider, "reason": reason}}).into() }
}

fn text(text: &str) -> Event {
    Event::Text { text: text.into() }
}

const HIGH: &str = r#"{"score": "high"}"#;
const MISTAKE: &str = "at /score: \"high\" is not of type \"integer\"";
const RIGHT: &str = "```json\n{\"score\": 7}\n```";

#[tokio::test(flavor = "current_thread")]
async fn a_model_is_told_what_is_wrong_and_asked_again() {
    let mut fake = talks(&[HIGH, RIGHT]).await;
    let came = Chained::new(vec![at(&mut fake)], false).run(asks()).await;
    assert_eq!(came.outcomes(), [("a", Succeeded), ("a", Succeeded)]);
    assert_eq!(came.events, [text(HIGH), restarted("a", MISTAKE), text(RIGHT)]);
    let output = came.result.unwrap();
    assert_eq!((&output["text"], &output["asked"]), (&json!(RIGHT), &json!(2)));
    // Of both: a call has 2 in and 3 out.
    assert_eq!(output["usage"]["prompt_tokens"], 4);
    assert_eq!(output["usage"]["completion_tokens"], 6);

    let first = request(&mut fake).await;
    let told = first["messages"][0]["content"].as_str().unwrap().to_owned();
    assert!(told.starts_with("Rate it.\n\nAnswer with one JSON value and nothing else.\n"));
    assert!(first.get("expect").is_none());
    let second = request(&mut fake).await;
    let complaint = format!(
        "That answer is not as expected: {MISTAKE}\nGive the corrected answer and nothing else."
    );
    let expected = json!([
        {"role": "user", "content": told},
        {"role": "assistant", "content": HIGH},
        {"role": "user", "content": complaint},
    ]);
    assert_eq!(second["messages"], expected);
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_held_back_is_not_told_when_it_does_not_count() {
    let mut fake = talks(&[HIGH, RIGHT]).await;
    let came = Chained::new(vec![at(&mut fake)], true).run(asks()).await;
    assert_eq!(came.events, [text(RIGHT)]);
    assert_eq!(came.result.unwrap()["asked"], 2);
}

#[tokio::test(flavor = "current_thread")]
async fn it_is_asked_as_often_as_the_task_has_calls() {
    for (calls_max, times) in [(1, "once"), (2, "2 times"), (3, "3 times")] {
        let mut fake = talks(&[HIGH; 4]).await;
        let chained = Chained { calls_max, ..Chained::new(vec![at(&mut fake)], false) };
        let came = chained.run(asks()).await;
        assert_eq!(came.settled.len(), calls_max as usize);
        let error = came.error();
        let said = format!(
            "the answer is not as expected: {MISTAKE} (asked {times}, at last provider 'a')"
        );
        assert_eq!(error.message, said);
        assert_eq!((error.kind, error.retryable), (ErrorKind::Handler, false));
    }
    // Nobody limits a handler that runs without a daemon: it ends all the same.
    let fake = talks(&[HIGH; 30]).await;
    let error = Client::new(provider(fake.base_url)).run(asks()).await.unwrap_err();
    assert!(error.message.ends_with("(asked 20 times, at last provider 'p')"), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn the_chain_goes_on_with_the_conversation() {
    let first = vec![says(HIGH), answers("500 No", "boom")];
    let mut second = talks(&[RIGHT]).await;
    let providers = vec![provider(fake(first).await.base_url), at(&mut second)];
    let came = Chained::new(providers, false).run(asks()).await;
    assert_eq!(came.outcomes(), [("a", Succeeded), ("a", Failed), ("b", Succeeded)]);
    assert_eq!(came.events, [text(HIGH), restarted("b", MISTAKE), text(RIGHT)]);
    let output = came.result.unwrap();
    assert_eq!((&output["asked"], &output["provider"]), (&json!(2), &json!("b")));
    assert_eq!(output["fallbacks"][0]["error"], "answered 500: boom");
    assert_eq!(request(&mut second).await["messages"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "current_thread")]
async fn what_fits_at_once_says_nothing_of_it() {
    for expect in [json!({"regex": "^well$"}), Value::Null] {
        let mut fake = talks(&["well"]).await;
        let chained = Chained::new(vec![at(&mut fake)], false);
        let came = chained.run(json!({"prompt": "x", "expect": expect})).await;
        assert_eq!(came.result.unwrap().get("asked"), None);
        let told = json!([{"role": "user", "content": "x"}]);
        assert_eq!(request(&mut fake).await["messages"], told);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_attempt_may_expect_it_too() {
    let mut fake = talks(&[HIGH, RIGHT]).await;
    let expect = Some(Arc::new(Expect::read(&schema()).unwrap()));
    let chained = Chained { expect, ..Chained::new(vec![at(&mut fake)], false) };
    let came = chained.chat().await;
    assert_eq!(came.result.unwrap()["text"], RIGHT);
    let told = request(&mut fake).await["messages"][0]["content"].as_str().unwrap().to_owned();
    assert!(told.starts_with("hello\n\nAnswer with one JSON value"), "{told}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_cached_answer_that_is_not_as_expected_is_asked_anew() {
    let cached = json!({"text": HIGH, "model": "m", "provider": "a", "cached": false}).to_string();
    let chained = Chained::new(vec![plays(says(RIGHT)).await], false);
    let came = Chained { cached: Some(cached), ..chained }.run(asks()).await;
    assert_eq!(came.events, [text(RIGHT)]);
    assert_eq!(came.result.unwrap()["cached"], false);
}
