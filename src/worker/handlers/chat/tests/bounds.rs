//! What a provider may take: time, memory, and nothing after its task is gone.

use super::*;

#[tokio::test(flavor = "current_thread")]
async fn endless_answers_are_refused() {
    let event = vec![sse_head(), send("data: "), send(vec![b'x'; 10 << 20])];
    let error = error_of(event).await;
    assert!(!error.retryable && error.message.contains("limit of 8388608 bytes"), "{error}");
    let json_head = head("200 OK", "content-type: application/json\r\n");
    let error = error_of(vec![json_head, send(vec![b' '; 17 << 20])]).await;
    assert!(!error.retryable && error.message.contains("limit of 16777216 bytes"), "{error}");
    // An endless error costs no more than its beginning.
    let error = error_of(vec![head("403 No", ""), send(vec![b'x'; 10 << 20])]).await;
    assert!(error.message.contains("403: xxx") && error.message.len() < 400, "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn endless_streams_end() {
    let error = error_of(vec![sse_head(), Step::Flood(text_event(&"x".repeat(64 << 10)))]).await;
    assert!(!error.retryable && error.message.contains("limit of 16777216 bytes"), "{error}");
    let thought = "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n";
    let fake_one = fake(vec![vec![sse_head(), Step::Flood(thought.repeat(100))]]).await;
    let client = Client::new(Provider { timeout: SHORT, ..provider(fake_one.base_url) });
    let error = client.chat().await.unwrap_err();
    assert!(error.message.ends_with(": timeout of 0.06 s passed"), "{error}");
    // What follows the last word neither counts nor costs the answer.
    for limits in [
        |base_url| Provider { idle_timeout: SHORT, ..provider(base_url) },
        |base_url| Provider { timeout: SHORT * 5, ..provider(base_url) },
    ] {
        let usages = "data: {\"choices\":[]}\n\n".repeat(100);
        let script = vec![sse_head(), send(text_event("a") + STOP), Step::Flood(usages)];
        let client = Client::new(limits(fake(vec![script]).await.base_url));
        assert_eq!(client.chat().await.unwrap()["text"], "a");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn each_time_limit_has_its_name() {
    let short_first = |base_url| Provider { first_token_timeout: SHORT, ..provider(base_url) };
    let short_idle = |base_url| Provider { idle_timeout: SHORT, ..provider(base_url) };
    let short_call = |base_url| Provider { timeout: SHORT, ..provider(base_url) };
    let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    type Limited<'a> = &'a dyn Fn(String) -> Provider;
    let cases: [(&str, Limited, Vec<Step>); 5] = [
        ("first_token_timeout", &short_first, vec![Step::Hang]),
        ("first_token_timeout", &short_first, vec![sse_head(), send(role), Step::Hang]),
        ("idle_timeout", &short_idle, vec![sse_head(), send(text_event("a")), Step::Hang]),
        ("timeout", &short_call, vec![Step::Hang]),
        ("timeout", &short_call, vec![sse_head(), send(text_event("a")), Step::Hang]),
    ];
    for (limit, limited, script) in cases {
        let fake = fake(vec![script]).await;
        let client = Client::new(limited(fake.base_url));
        let error = client.chat().await.unwrap_err();
        assert!(error.retryable && error.kind == ErrorKind::Provider);
        assert!(error.message.ends_with(&format!(": {limit} of 0.06 s passed")), "{error}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn comments_are_no_sign_of_life() {
    let script = vec![sse_head(), send(text_event("a")), Step::Ping];
    let fake = fake(vec![script]).await;
    let client = Client::new(Provider { idle_timeout: SHORT, ..provider(fake.base_url) });
    assert!(client.chat().await.unwrap_err().message.contains("idle_timeout"));
}

/// Calls that are dropped at once, to count them.
const DROPPED: usize = 20;

#[tokio::test(flavor = "current_thread")]
async fn dropped_tasks_close_their_calls() {
    // While the answer's head is awaited, and in the middle of its text.
    for script in [vec![Step::Hang], vec![sse_head(), send(text_event("a")), Step::Hang]] {
        let mut fakes = Vec::new();
        let mut chats = Vec::new();
        for _ in 0..DROPPED {
            let mut fake = fake(vec![script.clone()]).await;
            let client = Client::new(provider(std::mem::take(&mut fake.base_url)));
            let mut chat = Box::pin(async move { client.chat().await });
            tokio::select! {
                _ = &mut chat => panic!("there is no answer"),
                asked = fake.seen.recv() => assert!(!asked.unwrap().is_empty()),
            }
            fakes.push(fake);
            chats.push(chat);
        }
        drop(chats);
        for mut fake in fakes {
            assert_eq!(within(fake.seen.recv()).await.as_deref(), Some(""));
        }
    }
}
