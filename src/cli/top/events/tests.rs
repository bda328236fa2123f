use super::*;
use serde_json::{Value, json};

fn lines(before: &Value, after: &Value) -> Vec<String> {
    let read = |value: &Value| Snapshot::read(&value.to_string(), None).unwrap();
    between(&read(before), &read(after))
}

fn worker(slot: u32, pid: Option<i32>, restarts: u64, state: &str) -> Value {
    let last_exit = (restarts > 0).then_some("ended by SIGKILL");
    json!({
        "slot": slot, "pid": pid, "restarts": restarts, "state": state, "last_exit": last_exit,
    })
}

fn of_pools(before: &[Value], after: &[Value]) -> Vec<String> {
    lines(&json!({ "workers": before }), &json!({ "workers": after }))
}

#[test]
fn nothing_happens_between_two_equal_looks() {
    let info = json!({
        "version": "1", "phase": "running", "reason": "r", "master": {"pid": 1},
        "broker": {"pid": 2, "restarts": 0}, "workers": [worker(1, Some(3), 1, "draining")],
        "scale": {"min": 1, "max": 2, "want": 1}, "queue": {"paused": true},
        "disk_full": true, "providers": [{"name": "a", "breaker": "open"}],
    });
    assert_eq!(lines(&info, &info), [""; 0]);
}

#[test]
fn workers_die_and_come_and_go() {
    let ready = |slot, pid, restarts| worker(slot, Some(pid), restarts, "ready");
    let draining = |slot, pid| worker(slot, Some(pid), 0, "draining");
    let table: Vec<(Vec<Value>, Vec<Value>, Vec<&str>)> = vec![
        (
            vec![ready(3, 12, 0)],
            vec![ready(3, 15, 1)],
            vec!["worker 3 died: ended by SIGKILL, pid 12 → 15"],
        ),
        (
            vec![ready(3, 12, 0)],
            vec![worker(3, None, 1, "booting")],
            vec!["worker 3 died: ended by SIGKILL, pid 12"],
        ),
        (
            vec![worker(3, None, 1, "booting")],
            vec![ready(3, 15, 1)],
            vec!["worker 3 started, pid 15"],
        ),
        (
            vec![worker(3, None, 1, "booting")],
            vec![worker(3, None, 4, "booting")],
            vec!["worker 3 died 3 times: ended by SIGKILL"],
        ),
        (
            vec![worker(3, None, 1, "booting")],
            vec![ready(3, 15, 2)],
            vec!["worker 3 died: ended by SIGKILL, now pid 15"],
        ),
        (
            vec![ready(1, 5, 0)],
            vec![ready(1, 5, 0), ready(2, 6, 0)],
            vec!["worker 2 started, pid 6"],
        ),
        (
            vec![ready(1, 5, 0)],
            vec![draining(1, 5), ready(1, 6, 0)],
            vec!["worker 1 started, pid 6", "worker 1 drains, pid 5"],
        ),
        (vec![draining(1, 5), ready(1, 6, 0)], vec![ready(1, 6, 0)], vec!["worker 1 ended, pid 5"]),
        (vec![ready(1, 5, 2)], vec![ready(1, 6, 2)], vec!["worker 1 replaced, pid 5 → 6"]),
        (vec![draining(2, 5)], vec![], vec!["worker 2 ended, pid 5"]),
    ];
    for (before, after, expected) in table {
        assert_eq!(of_pools(&before, &after), expected, "{before:?} {after:?}");
    }
}

#[test]
fn each_change_has_its_line() {
    let table = [
        (json!({"phase": "running"}), json!({"phase": "reloading"}), "phase running → reloading"),
        (
            json!({"phase": "running"}),
            json!({"phase": "degraded", "reason": "no worker boots"}),
            "phase running → degraded: no worker boots",
        ),
        (
            json!({"scale": {"want": 2, "reason": "idle"}}),
            json!({"scale": {"want": 4, "reason": "9 tasks wait"}}),
            "scale 2 → 4: 9 tasks wait",
        ),
        (
            json!({"scale": {"min": 1, "max": 4}}),
            json!({"scale": {"min": 2, "max": 5}}),
            "scale limits 1 to 4 → 2 to 5",
        ),
        (
            json!({"broker": {"pid": 5, "restarts": 0}}),
            json!({"broker": {"pid": 6, "restarts": 1}}),
            "broker died, pid 5 → 6",
        ),
        (
            json!({"broker": {"pid": 5, "restarts": 1}}),
            json!({"broker": {"pid": 6, "restarts": 1}}),
            "broker replaced, pid 5 → 6",
        ),
        (json!({"version": "1.0"}), json!({"version": "1.1"}), "version 1.0 → 1.1"),
        (json!({"queue": {"paused": false}}), json!({"queue": {"paused": true}}), "queue paused"),
        (json!({"queue": {"paused": true}}), json!({"queue": {}}), "queue resumed"),
        (json!({"disk_full": false}), json!({"disk_full": true}), "the disk is full"),
        (
            json!({"providers": [{"name": "a", "breaker": "closed"}]}),
            json!({"providers": [{"name": "a", "breaker": "open"}]}),
            "provider a: breaker closed → open",
        ),
    ];
    for (before, after, expected) in table {
        assert_eq!(lines(&before, &after), [expected]);
    }
}

#[test]
fn a_new_master_is_one_event() {
    let before = json!({
        "master": {"pid": 1}, "broker": {"pid": 2, "restarts": 5},
        "workers": [worker(1, Some(3), 9, "ready")],
    });
    let after = json!({
        "master": {"pid": 11}, "broker": {"pid": 12, "restarts": 0},
        "workers": [worker(1, Some(13), 0, "ready")], "scale": {"want": 1},
    });
    assert_eq!(lines(&before, &after), ["daemon restarted: master 1 → 11"]);
}

#[test]
fn the_connection_comes_and_goes() {
    let lost = || Link::Lost("no daemon".to_owned());
    let table = [
        (Link::New, Link::Live, None),
        (Link::New, lost(), None),
        (Link::Live, Link::Live, None),
        (Link::Live, lost(), Some("connection lost: no daemon")),
        (lost(), lost(), None),
        (lost(), Link::Live, Some("connected")),
        (Link::Live, Link::Silent, Some("the broker does not answer")),
        (Link::Silent, Link::Live, Some("the broker answers again")),
    ];
    for (before, after, expected) in table {
        assert_eq!(of_link(&before, &after).as_deref(), expected, "{before:?} {after:?}");
    }
}

#[test]
fn old_events_are_forgotten() {
    let at = Instant::now();
    let mut events = Events::default();
    events.extend((0..EVENTS_MAX + 5).map(|number| Event { at, text: number.to_string() }));
    assert_eq!(events.len(), EVENTS_MAX);
    assert_eq!(events.newest_first().next().unwrap().text, (EVENTS_MAX + 4).to_string());
}
