//! An API key is sent to its provider and appears nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use support::model::{Model, chat, provider};
use support::{Daemon, SOON, Value, eventually, json, shown, text};

const BY_ENV: &str = "sk-canary-env-7b1f3c9d2e";
const BY_FILE: &str = "sk-canary-file-4a8e6d0b5f";
const BY_CREDENTIAL: &str = "sk-canary-credential-91c2d7";
/// What they have in common; none of them may be seen in part, either.
const CANARY: &str = "sk-canary-";

/// How a server that repeats the key of each request does that.
const ECHOES: [&str; 5] = ["status", "redirect", "page", "event", "chunk"];

/// A server that answers each call with the key that it came with, in the way that the model's name
/// says; which keys it saw.
fn parrot() -> (String, Arc<Mutex<BTreeMap<String, u32>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let counted = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // One that was closed in the middle is the client's affair.
            let _ = stream.and_then(|stream| repeat(stream, &counted));
        }
    });
    (url, seen)
}

fn repeat(stream: TcpStream, seen: &Mutex<BTreeMap<String, u32>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut key, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                key = value.trim_start_matches("Bearer ").to_owned();
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let asked: Value = serde_json::from_slice(&body).unwrap();
    *seen.lock().unwrap().entry(key.clone()).or_default() += 1;
    reader.get_mut().write_all(answer(&text(&asked, "/model"), &key).as_bytes())
}

fn answer(how: &str, key: &str) -> String {
    let error = json!({ "error": { "message": format!("Incorrect API key provided: {key}.") } });
    let (head, body) = match how {
        "status" => ("401 Unauthorized\r\nContent-Type: application/json", error.to_string()),
        "redirect" => {
            let location = format!("302 Found\r\nLocation: https://elsewhere/?key={key}");
            return format!(
                "HTTP/1.1 {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        "page" => {
            let sort = format!("200 OK\r\nContent-Type: text/{key}");
            return format!("HTTP/1.1 {sort}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        "event" => (
            "200 OK\r\nContent-Type: text/event-stream",
            format!("event: error\ndata: {error}\n\n"),
        ),
        _ => {
            let chunk = json!({ "choices": key });
            ("200 OK\r\nContent-Type: text/event-stream", format!("data: {chunk}\n\n"))
        }
    };
    let length = body.len();
    format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[test]
fn a_key_is_seen_by_its_provider_alone() {
    let model = Model::start(&["--first-token-ms", "0"]);
    let (parrot_url, seen) = parrot();
    let mut daemon = Daemon::prepare("state", "");
    let log = daemon.file("forq.log");
    let key_file = daemon.file("key");
    fs::write(&key_file, format!("{BY_FILE}\n")).unwrap();
    fs::create_dir(daemon.file("credentials")).unwrap();
    fs::write(daemon.file("credentials/openai"), BY_CREDENTIAL).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    let keys = [
        ("env", "api_key_env = 'CANARY_KEY'".to_owned()),
        ("file", format!("api_key_file = '{}'", key_file.display())),
        ("credential", "api_key_credential = 'openai'".to_owned()),
    ];
    let mut config = format!("[log]\nlevel = 'trace'\nfile = '{}'\n", log.display());
    for (name, key) in &keys {
        config += &provider(name, &parrot_url, &format!("{key}\nbreaker = {{ failures = 1000 }}"));
        config += &provider(&format!("{name}-sim"), &model.url, key);
    }
    config += "[models.default]\nchain = ['env/status', 'file/redirect', 'credential/event']\n";
    daemon.configure(&config);
    let mut command = daemon.serve_command();
    command.env("CANARY_KEY", BY_ENV).env("CREDENTIALS_DIRECTORY", daemon.file("credentials"));
    daemon.start_by(command);

    let mut tasks = vec![chat("default")];
    for (name, _) in &keys {
        tasks.extend(ECHOES.map(|how| chat(&format!("{name}/{how}"))));
        tasks.push(chat(&format!("{name}-sim/m")));
        tasks.push(chat(&format!("{name}-sim/fault-401")));
    }
    for task in &mut tasks {
        task["max_attempts"] = 2.into();
    }
    let ids = daemon.submit_all(&tasks);
    let hangs = daemon.submit_all(&[chat("env-sim/fault-hang")]);
    daemon.wait_for_all(&ids, "20s");
    daemon.until(&hangs[0], "running");

    let said = what_is_said(&daemon, &ids);
    let lists = [&["list", "--json"][..], &["info"], &["info", "--json"], &["stats", "--json"]];
    let shows = [&["config", "show"][..], &["config", "show", "--json"], &["config", "check"]];
    let asked = lists.iter().chain(&shows).map(|args| {
        let mut command = daemon.command();
        let output = command
            .args(["--config", daemon.file("forq.toml").to_str().unwrap()])
            .args(*args)
            .env("CANARY_KEY", BY_ENV)
            .env("CREDENTIALS_DIRECTORY", daemon.file("credentials"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", shown(&output));
        (args.join(" "), [output.stdout, output.stderr].concat())
    });
    let mut found: Vec<(String, Vec<u8>)> = asked.chain(said).collect();
    found.extend(files_below(daemon.state_dir()));
    found.push(("the log".to_owned(), fs::read(&log).unwrap()));
    found.push(("standard error".to_owned(), daemon.log().into_bytes()));
    for process in daemon.tree() {
        let cmdline = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap();
        found.push((format!("the command line of {}", process.name()), cmdline));
    }
    assert!(found.len() > 30, "{}", found.len());
    for (what, bytes) in &found {
        assert!(!holds(bytes, CANARY), "a key is in {what}: {}", String::from_utf8_lossy(bytes));
    }
    // It was asked, with the right keys, and the answers went through what was searched.
    let seen = seen.lock().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(seen, [BY_CREDENTIAL, BY_ENV, BY_FILE]);
    let error = text(&daemon.task(&ids[1]), "/error/message");
    assert_eq!(error, "provider 'env' answered 401: Incorrect API key provided: [key].");
}

/// What the verbs say of each task.
fn what_is_said(daemon: &Daemon, ids: &[String]) -> Vec<(String, Vec<u8>)> {
    let verbs = [&["status"][..], &["status", "--json"], &["result"], &["follow", "--json"]];
    let pairs = ids.iter().flat_map(|id| verbs.map(|verb| (id, verb)));
    pairs
        .map(|(id, verb)| {
            let output = daemon.forq(&[verb, &[id.as_str()]].concat());
            (format!("{} {id}", verb.join(" ")), [output.stdout, output.stderr].concat())
        })
        .collect()
}

/// The files in a folder: the database with its log, `status.json` and whatever else there is.
fn files_below(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let wal = folder.join("forq.db-wal");
    eventually("the database has a log", SOON, || wal.exists().then_some(()));
    assert!(folder.join("status.json").exists());
    let entries = fs::read_dir(folder).unwrap().flatten();
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files.map(|file| (file.path().display().to_string(), fs::read(file.path()).unwrap())).collect()
}

fn holds(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}
