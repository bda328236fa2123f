//! Runs followed through a daemon that says what each test needs, as far as the shell.

use std::sync::{Arc, Mutex};

use super::*;
use crate::cli::fake::{Act, FakeDaemon, step, task};
use crate::cli::tests::{Told, run_with};
use crate::protocol::control::{EventPosition, Reply, Request};
use crate::task::TaskId;

/// The events of a run, numbered from 1.
struct Events {
    id: TaskId,
    count: u64,
}

impl Events {
    fn new(id: TaskId) -> Self {
        Self { id, count: 0 }
    }

    fn next(&mut self, step: Option<&str>, body: FollowBody) -> Act {
        self.count += 1;
        Act::Reply(Reply::Event(FollowEvent {
            id: self.id,
            event: format!("{}.0", self.count),
            position: EventPosition::default(),
            step: step.map(str::to_owned),
            body,
        }))
    }

    fn step(&mut self, path: &str, state: State) -> Act {
        self.next(Some(path), FollowBody::Step { view: Box::new(step(path, state)) })
    }

    fn text(&mut self, path: &str, text: &str) -> Act {
        self.next(Some(path), FollowBody::Text { text: text.to_owned() })
    }

    fn end(&mut self, state: State, output: Option<&str>) -> [Act; 2] {
        let mut run = task(self.id, state, output);
        "workflow".clone_into(&mut run.kind);
        run.finished_at = Some("2026-01-02T03:04:17.300Z".to_owned());
        [self.next(None, FollowBody::Finished { task: run }), Act::Reply(Reply::End)]
    }
}

fn follow(options: &[&str], acts: impl Fn(&mut Events) -> Vec<Act> + Send + 'static) -> Told {
    let id = TaskId::new();
    let daemon = FakeDaemon::new(move |_, _| acts(&mut Events::new(id)));
    let id = id.to_string();
    let words: Vec<&str> = ["follow", &id].iter().chain(options).copied().collect();
    run_with(&daemon, &words)
}

#[test]
fn the_voice_is_on_stdout_and_the_steps_are_on_stderr() {
    let told = follow(&[], |events| {
        let mut acts = vec![
            events.step("plan", State::Running),
            events.step("plan", State::Succeeded),
            events.step("polish", State::Queued),
            events.step("polish", State::Running),
            events.text("polish", "Once upon "),
            events.step("check", State::Succeeded),
            events.text("polish", "a time"),
            events.step("polish", State::Succeeded),
        ];
        acts.extend(events.end(State::Succeeded, Some(r#"{"text":"Once upon a time"}"#)));
        acts
    });
    assert_eq!((told.exit, told.data.as_str()), (0, "Once upon a time\n"), "{}", told.error);
    let notes = [
        "plan: began",
        "plan: succeeded after 3.2s, 12 tokens",
        "polish: began",
        // It waited for the end of the line.
        "check: succeeded after 3.2s, 12 tokens",
        "polish: succeeded after 3.2s, 12 tokens",
        "succeeded after 12.3s: 3 steps, 36 tokens",
    ];
    assert_eq!(told.notes.lines().collect::<Vec<_>>(), notes);
}

#[test]
fn an_output_that_is_not_what_was_said_is_pointed_to() {
    for (output, is_hinted) in [
        (r#"{"text":"the moral"}"#, true),
        (r#"{"json":{"score":7}}"#, true),
        (r#"{"text":"a tale\n\n"}"#, false),
    ] {
        let told = follow(&[], move |events| {
            let mut acts = vec![
                events.text("polish", "a draft"),
                events.next(Some("polish"), FollowBody::Restarted),
                events.text("polish", "a tale"),
                events.step("polish", State::Succeeded),
            ];
            acts.extend(events.end(State::Succeeded, Some(output)));
            acts
        });
        assert_eq!((told.exit, told.data.as_str()), (0, "a draft\na tale\n"), "{}", told.error);
        assert!(told.notes.contains("polish: its text begins anew"), "{}", told.notes);
        assert_eq!(told.notes.contains("hint: `forq result"), is_hinted, "{}", told.notes);
    }
}

#[test]
fn the_result_is_printed_where_no_step_has_spoken() {
    let told = follow(&[], |events| {
        let mut acts = vec![events.step("sum", State::Succeeded)];
        acts.extend(events.end(State::Succeeded, Some(r#"{"json":{"n":1}}"#)));
        acts
    });
    assert_eq!((told.exit, told.data.as_str()), (0, "{\"json\":{\"n\":1}}\n"), "{}", told.error);
    assert!(!told.notes.contains("hint"), "{}", told.notes);
}

#[test]
fn several_that_speak_are_named() {
    let acts = |events: &mut Events| {
        let mut acts = vec![
            events.text("host", "Welcome\n"),
            events.text("host", "all"),
            events.text("guest", "Thanks\n"),
            events.step("host", State::Succeeded),
            events.step("guest", State::Succeeded),
        ];
        acts.extend(events.end(State::Succeeded, Some(r#"{"text":"Thanks"}"#)));
        acts
    };
    assert_eq!(follow(&[], acts).data, "Welcome\nall\n[guest]\nThanks\n");
    assert_eq!(follow(&["--all"], acts).data, "[host]\nWelcome\nall\n[guest]\nThanks\n");
}

#[test]
fn a_failed_run_says_which_step_and_how_to_go_on() {
    let told = follow(&[], |events| {
        let mut acts = vec![events.step("plot", State::Failed)];
        acts.extend(events.end(State::Failed, None));
        acts
    });
    assert_eq!((told.exit, told.data.as_str()), (1, ""));
    assert!(told.notes.contains("plot: failed after 3.2s, 12 tokens: it broke"), "{}", told.notes);
    assert!(told.error.contains("failed: it broke"), "{}", told.error);
    assert!(told.hint.contains("goes on from the failed one"), "{}", told.hint);
}

#[test]
fn programs_get_each_event_as_it_is() {
    let told = follow(&["--json"], |events| {
        let mut acts = vec![events.step("plot", State::Running), events.text("plot", "x")];
        acts.extend(events.end(State::Succeeded, Some(r#"{"text":"x"}"#)));
        acts
    });
    let values: Vec<serde_json::Value> =
        told.data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| values.iter().map(|value| value[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("type"), ["step", "text", "finished"]);
    assert_eq!(of("event"), ["1.0", "2.0", "3.0"]);
    assert_eq!(values[0]["view"]["state"], "running");
    assert_eq!((told.exit, told.notes.as_str()), (0, ""));
}

#[test]
fn a_run_is_followed_from_behind_an_event_over_connections() {
    let id = TaskId::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let daemon = FakeDaemon::new(move |connection, request| {
        let Request::Follow { from, all, .. } = request else { panic!("{request:?}") };
        seen.lock().unwrap().push((from, all));
        let mut events = Events { id, count: 40 + connection as u64 * 10 };
        match connection {
            0 => vec![events.text("polish", "tail of a "), Act::HangUp],
            _ => {
                let mut acts =
                    vec![events.text("polish", "tale"), events.step("polish", State::Succeeded)];
                acts.extend(events.end(State::Succeeded, Some(r#"{"text":"The tail of a tale"}"#)));
                acts
            }
        }
    });
    let words = ["follow", &id.to_string(), "--after", "7.3_9.1.2.30", "--all"];
    let told = run_with(&daemon, &words);
    assert_eq!(told.exit, 0, "{}", told.error);
    assert_eq!(told.data, "[polish]\ntail of a tale\n");
    assert!(!told.notes.contains("hint"), "what was said before is no news: {}", told.notes);
    let from = |event: &str| (Some(event.to_owned()), true);
    assert_eq!(*asked.lock().unwrap(), [from("7.3_9.1.2.30"), from("41.0")]);
}

#[test]
fn what_only_this_daemon_knows_is_told_before_it_goes() {
    for (said, data) in [
        (Some("a tale"), "a tale\n\nthe moral\n"),
        (Some("the moral"), "the moral\n"),
        (None, "the moral\n"),
    ] {
        let (mut data_told, mut notes) = (Vec::new(), Vec::new());
        let mut out = Out::into(&mut data_told, &mut notes, false);
        let mut show = Show::new(false, false, &out);
        let mut events = Events::new(TaskId::new());
        let says = said.map(|said| events.text("polish", said));
        for act in says.into_iter().chain([events.step("polish", State::Succeeded)]) {
            let Act::Reply(Reply::Event(event)) = act else { panic!("no event") };
            show.take(&event, &mut out).unwrap();
        }
        let mut run = task(events.id, State::Succeeded, Some(r#"{"text":"the moral"}"#));
        run.by_step = vec![step("polish", State::Succeeded)];
        show.end_whole(&run, &mut out).unwrap();
        drop(out);
        assert_eq!(String::from_utf8(data_told).unwrap(), data);
        let notes = String::from_utf8(notes).unwrap();
        let last: Vec<_> = notes.lines().skip(1).collect();
        assert!(last[0].starts_with("STEP    STATE"), "{notes}");
        assert!(last[1].starts_with("polish  succeeded"), "{notes}");
        assert!(last[2].ends_with("1 step, 12 tokens"), "{notes}");
        assert!(!notes.contains("hint"), "{notes}");
    }
}

#[test]
fn status_has_a_table_of_steps_and_says_how_to_go_on() {
    let id = TaskId::new();
    let daemon = FakeDaemon::new(move |_, _| {
        let mut run = task(id, State::Failed, None);
        "workflow".clone_into(&mut run.kind);
        run.cost = Some(0.25);
        run.by_step = vec![step("plan", State::Succeeded), step("plot", State::Failed)];
        vec![Act::Reply(Reply::Task { task: run })]
    });
    let told = run_with(&daemon, &["status", &id.to_string()]);
    assert_eq!(told.exit, 0, "{}", told.error);
    let line = |start: &str| told.data.lines().find(|line| line.starts_with(start)).unwrap();
    assert_eq!(line("cost"), "cost      0.2500");
    assert!(line("STEP").contains("WAITED"));
    assert!(line("plot").contains("failed") && line("plot").ends_with("handler: it broke"));
    assert!(told.notes.contains("from the failed step, `--from STEP`"), "{}", told.notes);
}
