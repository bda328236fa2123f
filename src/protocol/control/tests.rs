use super::*;
use proptest::prelude::*;

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

fn task() -> Box<TaskView> {
    let mut task: TaskView = serde_json::from_value(serde_json::json!({
        "id": TaskId::new(), "kind": "noop", "state": "succeeded", "priority": 5,
        "queue": "default", "attempt": 1, "max_attempts": 3,
        "created_at": "2026-01-02T03:04:05Z",
    }))
    .unwrap();
    task.input = Some(raw("{\"a\":  1.50}"));
    task.output = Some(raw("[ ]"));
    Box::new(task)
}

fn reread<T: Serialize + serde::de::DeserializeOwned>(message: &T) -> String {
    let written = serde_json::to_string(message).unwrap();
    let read: T = serde_json::from_str(&written).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), written);
    written
}

#[test]
fn requests_read_back_as_written_with_raw_json_untouched() {
    let id = TaskId::new();
    let tasks = vec![NewTask::new("noop", raw("{\"a\":  1.50}"))];
    let submit = Request::Submit { tasks, dry_run: false, room_for: 0, wait: true };
    assert!(reread(&submit).contains("{\"a\":  1.50}"));
    for request in [
        Request::Status { id },
        Request::Wait { ids: vec![id], full: true },
        Request::Follow {
            id,
            after: Some(EventPosition { attempt: 1, n: 2 }),
            from: Some("1.2".to_owned()),
            all: true,
        },
        Request::List(ListFilter { states: vec![State::Failed], ..ListFilter::default() }),
        Request::QueueClear { queue: None },
        Request::Info,
        Request::Usage { since_day: 20_000, by: UsageBy::ALL.to_vec() },
        Request::Stop { now: true },
    ] {
        reread(&request);
    }
}

#[test]
fn replies_read_back_as_written_with_raw_json_untouched() {
    let ended = Ended { id: TaskId::new(), state: State::Succeeded, task: Some(task()) };
    for reply in [
        Reply::Task { task: task() },
        Reply::Tasks { tasks: vec![*task()] },
        Reply::Finished { tasks: vec![ended] },
    ] {
        let written = reread(&reply);
        assert!(written.contains("{\"a\":  1.50}") && written.contains("[ ]"));
    }
    reread(&Reply::Json { document: raw("{\"a\": [1]}") });
    reread(&Reply::Error(Refusal::new(RefusalKind::Unavailable, "full")));
    reread(&Reply::End);
}

#[test]
fn events_are_flat_and_read_back_as_written() {
    let bodies = [
        (FollowBody::Waiting { position: Some(1), estimated_wait_ms: None }, "waiting"),
        (FollowBody::Started { worker_pid: 7 }, "started"),
        (FollowBody::Restarted, "restarted"),
        (FollowBody::Text { text: "hi".to_owned() }, "text"),
        (FollowBody::Data { data: serde_json::json!({"x": 1}) }, "data"),
        (FollowBody::Data { data: serde_json::Value::Null }, "data"),
        (FollowBody::Gap, "gap"),
        (FollowBody::Finished { task: task() }, "finished"),
    ];
    for (body, name) in bodies {
        let position = EventPosition { attempt: 1, n: 2 };
        let event = FollowEvent {
            id: TaskId::new(),
            event: position.to_string(),
            position,
            step: Some("plot".to_owned()),
            body,
        };
        let written = serde_json::to_value(&event).unwrap();
        assert_eq!((&written["type"], &written["n"]), (&name.into(), &2.into()));
        reread(&Reply::Event(event));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(serde_json::from_slice::<Request>(&bytes).is_err());
        prop_assert!(serde_json::from_slice::<Reply>(&bytes).is_err());
        prop_assert!(serde_json::from_slice::<Hello>(&bytes).is_err());
    }

    /// A request with some of its bytes changed is an error or another request.
    #[test]
    fn damaged_requests_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let tasks = vec![NewTask::new("chat", raw(r#"{"prompt": "h\u00e9 \u2603", "n": [1.5]}"#))];
        let submit = Request::Submit { tasks, dry_run: true, room_for: 7, wait: true };
        let mut bytes = serde_json::to_vec(&submit).unwrap();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = serde_json::from_slice::<Request>(&bytes);
        let _ = serde_json::from_slice::<Request>(&bytes[..cut.index(bytes.len())]);
    }
}

#[test]
fn nesting_without_end_does_not_use_up_the_stack() {
    let deep = 1_000_000;
    for open in ["[", "{\"a\":"] {
        let text =
            format!(r#"{{"submit":{{"tasks":[{{"kind":"noop","input":{}"#, open.repeat(deep));
        assert!(serde_json::from_str::<Request>(&text).is_err());
    }
    let whole = format!("{}{}", "[".repeat(deep), "]".repeat(deep));
    let text = format!(r#"{{"submit":{{"tasks":[{{"kind":"noop","input":{whole}}}]}}}}"#);
    let Ok(Request::Submit { tasks, .. }) = serde_json::from_str(&text) else {
        panic!("refused");
    };
    // Raw JSON may be as deep as it likes; whoever reads it is not led down there.
    assert!(serde_json::from_str::<serde_json::Value>(tasks[0].input.get()).is_err());
}

/// What users' scripts send must be understood for as long as the version is the same.
#[test]
fn unknown_fields_and_verbs_are_refused_by_name() {
    let task = r#"{"submit":{"tasks":[{"kind":"noop","prio":3}]}}"#;
    let error = serde_json::from_str::<Request>(task).unwrap_err().to_string();
    assert!(error.contains("unknown field `prio`"), "{error}");
    let error = serde_json::from_str::<Request>(r#"{"sumbit":{}}"#).unwrap_err().to_string();
    assert!(error.contains("unknown variant `sumbit`"), "{error}");
}
