use super::*;
use crate::cli::top::model::Sight;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

fn info(workers: u32) -> Value {
    let workers: Vec<Value> = (1..=workers)
        .map(|slot| {
            json!({
                "slot": slot, "pid": 1000 + slot, "generation": 2, "state": "ready",
                "in_flight": 3, "capacity": 32, "rss_bytes": 20 << 20, "tasks_done": 40,
                "restarts": 1, "last_exit": "ended by SIGKILL",
            })
        })
        .collect();
    json!({
        "version": "0.1.0", "phase": "running", "uptime_s": 3_700,
        "master": { "pid": 998, "rss_bytes": 4 << 20 },
        "broker": { "pid": 999, "rss_bytes": 9 << 20, "restarts": 2 },
        "workers": workers,
        "scale": { "min": 2, "max": 8, "want": 4, "reason": "9 tasks wait" },
        "queue": { "queued": 9, "running": 12, "scheduled": 1, "blocked": 5, "paused": true },
    })
}

fn live(info: &Value, succeeded: u64) -> Sight {
    let stats = json!({
        "succeeded": succeeded, "tasks_per_min": 90, "utilisation": 0.375,
        "wait_ms": { "p50": 12, "p95": 80.4 }, "run_ms": { "p50": 1500, "p95": 61_000 },
    });
    Sight::Live(Snapshot::read(&info.to_string(), Some(&stats.to_string())).unwrap())
}

fn board(sights: impl IntoIterator<Item = Sight>) -> (Board, Instant) {
    let mut now = Instant::now();
    let mut board = Board::default();
    for sight in sights {
        now += Duration::from_secs(1);
        board.take(sight, now);
    }
    (board, now)
}

/// The rows of a window of this size.
fn drawn((board, now): &(Board, Instant), width: u16, height: u16) -> Vec<String> {
    let look = Look { now: *now, paused: false, sort: Sort::Slot, paint: Paint { colour: false } };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, board, look)).unwrap();
    let buffer = terminal.backend().buffer();
    buffer
        .content()
        .chunks(usize::from(width.max(1)))
        .map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>())
        .collect()
}

#[track_caller]
fn assert_shows(rows: &[String], parts: &[&str]) {
    for part in parts {
        assert!(rows.iter().any(|row| row.contains(part)), "no '{part}' in {rows:#?}");
    }
}

#[test]
fn a_common_window_shows_everything() {
    let mut after = info(4);
    after["workers"][2]["restarts"] = json!(2);
    after["workers"][2]["pid"] = json!(2000);
    let board = board([live(&info(4), 100), live(&after, 142)]);
    let rows = drawn(&board, 80, 24);
    assert_shows(
        &rows,
        &[
            "running  up 1h01m  forq 0.1.0  master 998 4.0MiB  broker 999 9.0MiB 2 restarts",
            "queue  paused  9 queued  12 running  1 scheduled  5 blocked",
            "ended  42.0/s  90/min  38 % used  █",
            "times  wait p50 12ms p95 80ms  run p50 1.5s p95 1m01s",
            "scale  4 workers of 2 to 8: 9 tasks wait",
            "SLOT  PID   GEN  STATE  TASKS  RSS      DONE  RESTARTS  LAST EXIT",
            "4     1004  2    ready  3/32   20.0MiB  40    1         ended by SIGKILL",
            "AGO     EVENT",
            "0s      worker 3 died: ended by SIGKILL, pid 1003 → 2000",
            "q quit  p pause  s sort: slot",
        ],
    );
}

#[test]
fn a_small_window_shows_what_matters_first() {
    let rows = drawn(&board([live(&info(4), 1)]), 20, 5);
    assert!(rows[0].starts_with("running  up 1h01m"), "{rows:#?}");
    assert!(rows[1].starts_with("paused  9 queued"), "{rows:#?}");
    assert!(rows[2].starts_with("1     ready  3/32"), "{rows:#?}");
    assert!(rows[4].starts_with("2 more"), "{rows:#?}");
}

#[test]
fn no_window_is_too_small() {
    let lost = || Sight::Lost("no daemon at /a/rather/long/path/forq.sock: waiting".to_owned());
    let boards = [
        board([]),
        board([lost()]),
        board([live(&info(0), 0)]),
        board([live(&info(50), 0), live(&info(3), 1), live(&info(9), 1)]),
        board([live(&info(3), 0), lost()]),
    ];
    for board in &boards {
        for width in (0..12).chain([19, 20, 21, 39, 40, 80, 300]) {
            for height in (0..20).chain([60]) {
                drawn(board, width, height);
            }
        }
    }
}

#[test]
fn a_lost_daemon_is_named_and_nothing_of_it_is_shown_as_if_it_were_there() {
    let lost = Sight::Lost("no daemon at /state/forq.sock: waiting".to_owned());
    let board = board([live(&info(2), 1), lost]);
    let rows = drawn(&board, 80, 24);
    assert_shows(&rows, &["no daemon at /state/forq.sock: waiting", "connection lost"]);
    assert!(!rows.iter().any(|row| row.contains("1001")), "{rows:#?}");
    // In a small window the sentence takes several rows.
    assert_shows(&drawn(&board, 20, 6), &["no daemon at /state/", "forq.sock: waiting"]);
}

#[test]
fn a_silent_broker_and_a_degraded_daemon_say_so() {
    let status = json!({ "phase": "degraded", "master_pid": 7, "workers": [{ "slot": 1 }] });
    let silent = Sight::Silent(Snapshot::read_status(&status.to_string()).unwrap());
    assert_shows(
        &drawn(&board([silent]), 80, 24),
        &["degraded  master 7", "the broker does not answer: this is what the master last wrote"],
    );
    let mut degraded = info(1);
    degraded["reason"] = json!("no worker has booted for 1m");
    assert_shows(&drawn(&board([live(&degraded, 0)]), 80, 24), &["no worker has booted for 1m"]);
}

#[test]
fn a_paused_view_says_so_first() {
    let (board, now) = board([live(&info(1), 0)]);
    let look = Look { now, paused: true, sort: Sort::Done, paint: Paint { colour: true } };
    let mut terminal = Terminal::new(TestBackend::new(40, 12)).unwrap();
    terminal.draw(|frame| draw(frame, &board, look)).unwrap();
    let shown = terminal.backend().to_string();
    assert!(shown.contains(" PAUSED   running"), "{shown}");
    assert!(shown.contains("sort: done"), "{shown}");
}

#[test]
fn colour_is_left_out_where_it_is_not_wanted_and_escapes_never_pass() {
    let mut info = info(2);
    info["reason"] = json!("bad\u{1b}[31m\u{7}thing");
    let (board, now) = board([live(&info, 0)]);
    for colour in [true, false] {
        let look = Look { now, paused: false, sort: Sort::Slot, paint: Paint { colour } };
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &board, look)).unwrap();
        let cells = terminal.backend().buffer().content();
        assert_eq!(cells.iter().any(|cell| cell.fg != Color::Reset), colour);
        let controls = cells.iter().filter(|cell| cell.symbol().contains(char::is_control));
        assert_eq!(controls.count(), 0);
    }
}
