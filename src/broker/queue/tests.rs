use super::*;
use crate::protocol::link::Seq;
use proptest::prelude::*;

fn ready(queue: &str, priority: u8, at_ms: i64, seq: Seq) -> Ready {
    // Each seq at its own microsecond, as the store does it.
    let needs = Needs::default();
    Ready {
        queue: queue.into(),
        priority,
        ord: at_ms * 1000 + seq,
        seq,
        solo: false,
        needs,
        session: None,
    }
}

fn drain(queues: &mut Queues, now_ms: i64) -> Vec<Seq> {
    std::iter::from_fn(|| {
        let next = queues.pop(now_ms, &mut |_, _, _| true)?;
        queues.ended(&next.queue);
        Some(next.seq)
    })
    .collect()
}

#[test]
fn higher_priority_first_then_the_older() {
    let mut queues = Queues::default();
    for (priority, seq) in [(5, 1), (0, 2), (9, 3), (5, 4)] {
        queues.push(&ready("default", priority, 1000, seq));
    }
    assert_eq!(drain(&mut queues, 1000), [3, 1, 4, 2]);
}

#[test]
fn a_low_task_is_overtaken_for_270_seconds_at_most() {
    let mut queues = Queues::default();
    queues.push(&ready("default", 0, 0, 1));
    queues.push(&ready("default", 9, 269_000, 2));
    queues.push(&ready("default", 9, 271_000, 3));
    assert_eq!(drain(&mut queues, 271_000), [2, 1, 3]);
}

#[test]
fn a_starved_queue_is_ahead_of_everything_in_time() {
    let mut queues = Queues::default();
    queues.push(&ready("low", 0, 0, 1));
    let (mut now_ms, mut seq) = (0, 1);
    let waited_ms = loop {
        seq += 1;
        queues.push(&ready("high", 9, now_ms, seq));
        let next = queues.pop(now_ms, &mut |_, _, _| true).unwrap();
        queues.ended(&next.queue);
        if next.seq == 1 {
            break now_ms;
        }
        now_ms += 1000;
    };
    assert!(waited_ms <= 10 * AGEING_MS, "{waited_ms} ms");
}

#[test]
fn queues_take_turns_by_weight() {
    let heavy = Settings { weight: 3, max_running: None };
    let mut queues = Queues::new(BTreeMap::from([("heavy".to_owned(), heavy)]));
    for seq in 0..400 {
        queues.push(&ready("heavy", 5, 0, seq));
        queues.push(&ready("light", 5, 0, 1000 + seq));
    }
    let first: Vec<_> = (0..100).filter_map(|_| queues.pop(0, &mut |_, _, _| true)).collect();
    let heavy = first.iter().filter(|next| next.queue == "heavy").count();
    assert!((74..=76).contains(&heavy), "{heavy} of 100");
}

#[test]
fn a_tenant_with_a_backlog_delays_another_by_its_share_only() {
    let mut queues = Queues::default();
    for seq in 0..5000 {
        queues.push(&ready("many", 5, 0, seq));
    }
    let now_ms = 600_000;
    (0..1000).for_each(|_| drop(queues.pop(now_ms, &mut |_, _, _| true)));
    for seq in 0..10 {
        queues.push(&ready("few", 5, now_ms, 10_000 + seq));
    }
    let next: Vec<_> = (0..20).filter_map(|_| queues.pop(now_ms, &mut |_, _, _| true)).collect();
    let few = next.iter().filter(|next| next.queue == "few").count();
    assert!(few >= 9, "{few} of 10 within 20 turns");
}

#[test]
fn max_running_and_pause_hold() {
    let one = Settings { weight: 1, max_running: Some(1) };
    let mut queues = Queues::new(BTreeMap::from([("narrow".to_owned(), one)]));
    queues.push(&ready("narrow", 5, 0, 1));
    queues.push(&ready("narrow", 5, 0, 2));
    assert_eq!(queues.pop(0, &mut |_, _, _| true).unwrap().seq, 1);
    assert_eq!(queues.pop(0, &mut |_, _, _| true), None);
    queues.ended("narrow");
    queues.pause(Some("narrow"), true);
    assert_eq!(queues.pop(0, &mut |_, _, _| true), None);
    queues.pause(None, false);
    assert_eq!(queues.pop(0, &mut |_, _, _| true).unwrap().seq, 2);
}

#[test]
fn a_task_that_is_cancelled_is_ahead_of_nobody() {
    let mut queues = Queues::default();
    let tasks: Vec<Ready> = (1..=4).map(|seq| ready("default", 5, 0, seq)).collect();
    tasks.iter().for_each(|task| queues.push(task));
    let last = place(tasks[3].ord, 5);
    assert_eq!(queues.ahead(last, |_| true), 3);
    queues.remove(&tasks[1]);
    queues.remove(&tasks[1]);
    assert_eq!(queues.ahead(last, |_| true), 2);
    assert_eq!(drain(&mut queues, 0), [1, 3, 4]);
    queues.push(&tasks[0]);
    queues.remove(&tasks[0]);
    assert!(queues.queues.is_empty(), "names are forgotten");
}

proptest! {
    /// Against a model with everything in memory: whatever the window does, each task comes
    /// out once, and in the order of its queue and priority.
    #[test]
    fn the_window_loses_nothing(
        count in 1usize..3 * WINDOW_TASKS_MAX,
        takes in prop::collection::vec(1usize..4000, 1..12),
    ) {
        let mut queues = Queues::default();
        let mut disk: BTreeMap<Ord, Ready> = BTreeMap::new();
        for seq in 0..count as i64 {
            let ready = ready("default", 5, 0, seq);
            queues.push(&ready);
            disk.insert(ready.ord, ready);
        }
        let mut seen = Vec::new();
        let mut take = |queues: &mut Queues, disk: &mut BTreeMap<Ord, Ready>, count: usize| {
            for _ in 0..count {
                for need in queues.needs() {
                    let found: Vec<_> = disk
                        .range(need.after.saturating_add(1)..)
                        .take(need.limit as usize)
                        .map(|(_, ready)| ready.clone())
                        .collect();
                    queues.refilled(&need, &found);
                }
                let Some(next) = queues.pop(0, &mut |_, _, _| true) else { return };
                disk.remove(&next.ord);
                seen.push(next.seq);
            }
        };
        for count in takes {
            take(&mut queues, &mut disk, count);
        }
        take(&mut queues, &mut disk, usize::MAX);
        prop_assert_eq!(seen, (0..count as i64).collect::<Vec<_>>());
    }
}
