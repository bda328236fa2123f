//! Tools end to end: services that fail, limits over several workers, answers that stand in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Daemon, SOON, Value, eventually_eq, json, outcomes, pause, shown, text};

const KEY: &str = "sk-canary-in-a-tool";

/// What a server saw of one path.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    calls: usize,
    now: usize,
    /// At once, at most.
    most: usize,
}

/// A server whose paths say how they behave; each connection carries one call.
struct Services {
    url: String,
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
}

impl Services {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<BTreeMap<String, Seen>>>::default();
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let seen = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream.unwrap(), &seen));
            }
        });
        Self { url, seen }
    }

    fn seen(&self, path: &str) -> Seen {
        self.seen.lock().unwrap().get(path).copied().unwrap_or_default()
    }

    /// A tool `t` whose services have the names of their paths.
    fn tool(&self, chain: &[&str], more: &str) -> String {
        let mut config = format!(
            "[queue]\nretry_backoff = '50ms'\n[tools.t]\nchain = {chain:?}\nbreaker.failures = 1000\n{more}\n"
        );
        for path in chain {
            let url = format!("{}/{path}?q={{{{ params.q | urlencode }}}}", self.url);
            config.push_str(&format!("[tools.t.services.{path}]\nurl = \"{url}\"\n"));
        }
        config
    }
}

/// Answers one call as its path says.
fn serve(mut stream: TcpStream, seen: &Mutex<BTreeMap<String, Seen>>) {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    reader.read_line(&mut line).unwrap();
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    while line.trim_end() != "" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    let path = target.split(['?', '/']).nth(1).unwrap_or_default().to_owned();
    {
        let mut seen = seen.lock().unwrap();
        let seen = seen.entry(path.clone()).or_default();
        seen.calls += 1;
        seen.now += 1;
        seen.most = seen.most.max(seen.now);
    }
    let (status, body) = match path.as_str() {
        "down" => ("503 Service Unavailable", "\"closed\"".to_owned()),
        "picky" => ("401 Unauthorized", format!("\"no such key: {KEY}\"")),
        "hang" => {
            // Until the caller hangs up.
            let _ = reader.read(&mut [0]);
            ("200 OK", String::new())
        }
        "slow" => {
            pause(Duration::from_millis(100));
            ("200 OK", json!({ "asked": target }).to_string())
        }
        _ => ("200 OK", json!({ "asked": target }).to_string()),
    };
    seen.lock().unwrap().get_mut(&path).unwrap().now -= 1;
    let head = "Content-Type: application/json\r\nConnection: close";
    let length = body.len();
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}");
}

fn input(q: &str) -> Value {
    json!({ "tool": "t", "params": { "q": q } })
}

#[test]
fn a_backup_answers_when_the_primary_is_down() {
    let services = Services::start();
    let daemon = Daemon::start(&services.tool(&["down", "good"], ""));
    let id = daemon.submit("tool", &input("a & b"), &[]);
    let task = daemon.until(&id, "succeeded");
    let expected = json!({
        "service": "good", "status": 200, "json": { "asked": "/good?q=a%20%26%20b" },
        "degraded": false, "cached": false,
        "failures": [{ "service": "down", "error": "answered 503: \"closed\"" }],
    });
    assert_eq!(task["output"], expected);
    assert_eq!(outcomes(&task), ["succeeded"], "the chain is one attempt");
}

#[test]
fn all_that_is_wrong_is_found_at_submission() {
    let services = Services::start();
    let daemon = Daemon::start(&services.tool(&["good"], ""));
    for (input, said) in [
        (json!({ "tool": "u" }), "there is no tool 'u': give t"),
        (json!({ "tool": "t" }), "`params.q` is undefined, in tools.t.services.good.url"),
        (json!({ "tool": "t", "parms": {} }), "unknown field `parms`"),
    ] {
        let error = daemon.fails(2, &["submit", "tool", &input.to_string()]);
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(services.seen("good").calls, 0);
}

#[test]
fn without_a_default_the_error_names_every_service() {
    let services = Services::start();
    let daemon = Daemon::start(&services.tool(&["down", "picky"], ""));
    let id = daemon.submit("tool", &input("x"), &["--max-attempts", "2"]);
    let task = daemon.until(&id, "failed");
    let message = text(&task, "/error/message");
    assert!(message.contains("down: answered 503: \"closed\""), "{message}");
    assert_eq!(task["error"]["kind"], "provider");
    assert_eq!(outcomes(&task), ["failed"], "two calls are two attempts");
}

#[test]
fn a_default_stands_in_at_once_even_if_nobody_may_be_asked() {
    let services = Services::start();
    let more = "default = '{\"results\": []}'\nbreaker = { failures = 1, cooldown = '1h' }";
    let config = services.tool(&["down", "hang"], more);
    let config = config.replace("breaker.failures = 1000\n", "timeout = '1s'\n");
    let daemon = Daemon::start(&config);
    for why in [
        ["answered 503: \"closed\"", "did not answer in time: timeout of 1 s passed"],
        ["is left alone for ", "is left alone for "],
    ] {
        let id = daemon.submit("tool", &input("x"), &[]);
        let output = &daemon.until(&id, "succeeded")["output"];
        assert_eq!(output["json"], json!({ "results": [] }), "{output}");
        assert_eq!((&output["service"], &output["degraded"]), (&json!("default"), &json!(true)));
        for (failure, why) in output["failures"].as_array().unwrap().iter().zip(why) {
            assert!(text(failure, "/error").starts_with(why), "{output}");
        }
    }
    assert_eq!((services.seen("down").calls, services.seen("hang").calls), (1, 1));
    eventually_eq(0, || services.seen("hang").now);
}

#[test]
fn no_more_calls_at_once_than_allowed_over_all_workers() {
    let services = Services::start();
    let workers = "[workers]\nmin = 2\nmax = 2\n";
    let daemon = Daemon::start(&(services.tool(&["slow"], "max_concurrent = 3\n") + workers));
    let tasks: Vec<_> =
        (0..20).map(|n| json!({ "kind": "tool", "input": input(&n.to_string()) })).collect();
    let ids = daemon.submit_all(&tasks);
    daemon.wait_for_all(&ids, "60s");
    let seen = services.seen("slow");
    assert_eq!((seen.calls, seen.most), (20, 3), "{seen:?}");
    let mut pids: Vec<_> =
        ids.iter().map(|id| daemon.task(id)["worker_pid"].as_i64().unwrap()).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 2, "one worker did it all");
}

#[test]
fn no_more_calls_a_minute_than_allowed() {
    let services = Services::start();
    let daemon = Daemon::start(&services.tool(&["good"], "rpm = 5\n"));
    let tasks: Vec<_> =
        (0..12).map(|n| json!({ "kind": "tool", "input": input(&n.to_string()) })).collect();
    let ids = daemon.submit_all(&tasks);
    let succeeded = || ids.iter().filter(|id| daemon.state(id) == "succeeded").count();
    eventually_eq(5, succeeded);
    // Nobody else is held up, and a broker's death makes no new minute.
    let other = daemon.submit("noop", &json!({}), &[]);
    daemon.until(&other, "succeeded");
    daemon.kill(support::Role::Broker);
    daemon.all_up();
    let other = daemon.submit("noop", &json!({}), &[]);
    daemon.until(&other, "succeeded");
    assert_eq!((succeeded(), services.seen("good").calls), (5, 5));
}

#[test]
fn a_key_is_sent_and_never_told() {
    let services = Services::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), KEY).unwrap();
    let config = services.tool(&["picky"], "") + &format!("api_key_file = {:?}\n", file.path());
    let daemon = Daemon::start(&config);
    let id = daemon.submit("tool", &input("x"), &[]);
    let message = text(&daemon.until(&id, "failed"), "/error/message");
    assert!(message.contains("picky: answered 401: \"no such key: [key]\""), "{message}");
    assert!(!daemon.log().contains(KEY));
    assert!(!daemon.ok(&["info", "--json"]).contains(KEY));
}

#[test]
fn a_template_that_cannot_be_read_is_found_before_anything_runs() {
    let services = Services::start();
    let bad = services.tool(&["good"], "").replace("params.q | urlencode }}", "params.q |");
    let mut daemon = Daemon::prepare("state", &bad);
    let file = daemon.file("forq.toml");
    let error = daemon.fails(2, &["config", "check", &file.to_string_lossy()]);
    assert!(error.contains("line 8: tools.t.services.good.url: syntax error"), "{error}");
    daemon.spawn();
    let status = daemon.gone(SOON);
    assert_eq!(status.code(), Some(2), "{}", daemon.log());
    assert!(daemon.log().contains("tools.t.services.good.url: syntax error"), "{}", daemon.log());
    // A reload changes nothing either.
    daemon.configure(&services.tool(&["good"], ""));
    daemon.start_again();
    daemon.configure(&bad);
    let refused = daemon.forq(&["reload", "--wait"]);
    assert!(!refused.status.success(), "{}", shown(&refused));
    let id = daemon.submit("tool", &input("x"), &[]);
    daemon.until(&id, "succeeded");
}
