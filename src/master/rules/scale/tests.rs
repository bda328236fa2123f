//! The rule by table, and through a small simulated pool.

use proptest::prelude::*;

use super::*;

const WINDOW: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(100);
const BOOT: Duration = Duration::from_millis(300);

struct Worker {
    ready_at: Instant,
    slots: u32,
    draining: bool,
    /// When each of its tasks ends.
    ends: Vec<Instant>,
}

/// A broker, a master and workers, in tenths of a second.
struct Sim {
    now: Instant,
    rule: Scale,
    bounds: Bounds,
    concurrency: u32,
    ceiling: Option<u64>,
    workers: Vec<Worker>,
    /// When each waiting task came, and how long it runs.
    queue: VecDeque<(Instant, Duration)>,
    spawns: u32,
    drains: u32,
    steps: u32,
    wants: Vec<u32>,
    reasons: Vec<String>,
}

impl Sim {
    fn new(bounds: (u32, u32), concurrency: u32) -> Self {
        let now = Instant::now();
        let mut sim = Self {
            now,
            rule: Scale::new(WINDOW, 0, now),
            bounds: Bounds { min: bounds.0, max: bounds.1 },
            concurrency,
            ceiling: None,
            workers: Vec::new(),
            queue: VecDeque::new(),
            spawns: 0,
            drains: 0,
            steps: 0,
            wants: Vec::new(),
            reasons: Vec::new(),
        };
        sim.run(Duration::from_secs(2));
        (sim.spawns, sim.drains) = (0, 0);
        sim
    }

    fn events(&self) -> u32 {
        self.spawns + self.drains
    }

    fn active(&self) -> usize {
        self.workers.iter().filter(|worker| !worker.draining).count()
    }

    fn submit(&mut self, count: usize, run: Duration) {
        self.queue.extend(std::iter::repeat_n((self.now, run), count));
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step();
        }
    }

    /// Runs until it holds; the time that this took.
    fn run_until(&mut self, max: Duration, holds: impl Fn(&Sim) -> bool) -> Duration {
        let start = self.now;
        while !holds(self) {
            assert!(self.now < start + max, "not after {max:?}: {:?}", self.reasons.last());
            self.step();
        }
        self.now - start
    }

    fn step(&mut self) {
        self.now += STEP;
        self.steps += 1;
        let now = self.now;
        for worker in &mut self.workers {
            worker.ends.retain(|&end| end > now);
        }
        self.workers.retain(|worker| !worker.draining || !worker.ends.is_empty());
        self.dispatch();
        // Once a second, and now and then in between, as a fresh report comes.
        if self.steps.is_multiple_of(10) || self.steps.is_multiple_of(7) {
            self.decide();
        }
    }

    fn in_flight(&self) -> usize {
        self.workers.iter().filter(|worker| !worker.draining).map(|worker| worker.ends.len()).sum()
    }

    fn dispatch(&mut self) {
        while let Some(&(_, run)) = self.queue.front() {
            let running: usize = self.workers.iter().map(|worker| worker.ends.len()).sum();
            if self.ceiling.is_some_and(|ceiling| running as u64 >= ceiling) {
                return;
            }
            let now = self.now;
            let free = self
                .workers
                .iter_mut()
                .filter(|worker| !worker.draining && worker.ready_at <= now)
                .filter(|worker| worker.ends.len() < worker.slots as usize)
                .min_by_key(|worker| worker.ends.len());
            let Some(worker) = free else { return };
            worker.ends.push(now + run);
            self.queue.pop_front();
        }
    }

    fn decide(&mut self) {
        let now = self.now;
        let is_ready = |worker: &&Worker| !worker.draining && worker.ready_at <= now;
        let ready = self.workers.iter().filter(is_ready).count() as u32;
        let pool = PoolNow {
            ready,
            booting: self.active() as u32 - ready,
            draining: (self.workers.len() - self.active()) as u32,
            slots: self.workers.iter().filter(is_ready).map(|worker| u64::from(worker.slots)).sum(),
            concurrency: self.concurrency,
        };
        let load = Load {
            ready: self.queue.len() as u64,
            in_flight: self.in_flight() as u64,
            oldest_wait: self.queue.front().map_or(Duration::ZERO, |&(came, _)| now - came),
            ceiling: self.ceiling,
        };
        let decision = self.rule.decide(&load, &pool, self.bounds, now);
        assert!((self.bounds.min..=self.bounds.max).contains(&decision.want), "{decision:?}");
        self.obey(decision.want);
        self.wants.push(decision.want);
        if self.reasons.last() != Some(&decision.reason) {
            self.reasons.push(decision.reason);
        }
    }

    fn obey(&mut self, want: u32) {
        while self.active() < want as usize {
            if let Some(worker) = self.workers.iter_mut().find(|worker| worker.draining) {
                worker.draining = false;
                continue;
            }
            self.spawns += 1;
            let ready_at = self.now + BOOT;
            let slots = self.concurrency;
            self.workers.push(Worker { ready_at, slots, draining: false, ends: Vec::new() });
        }
        while self.active() > want as usize {
            let victim = self.workers.iter_mut().filter(|worker| !worker.draining);
            let Some(victim) = victim.min_by_key(|worker| worker.ends.len()) else { return };
            victim.draining = true;
            self.drains += 1;
        }
    }
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_step_load_takes_the_pool_to_its_ceiling_and_back_once() {
    let mut sim = Sim::new((2, 8), 4);
    assert_eq!(sim.active(), 2);
    sim.submit(300, secs(10));
    let took = sim.run_until(secs(20), |sim| sim.active() == 8);
    assert!(took < secs(5), "{took:?}");
    sim.run_until(secs(200), |sim| sim.queue.is_empty() && sim.in_flight() == 0);
    sim.run_until(secs(180), |sim| sim.workers.len() == 2);
    sim.run(secs(300));
    assert_eq!((sim.active(), sim.spawns, sim.drains), (2, 6, 6));
    let expected = ["up to 3: ", "up to 5: ", "up to 8: ", "at max 8: ", "down to 7: ", "idle"];
    for start in expected {
        assert!(sim.reasons.iter().any(|reason| reason.starts_with(start)), "{:?}", sim.reasons);
    }
}

#[test]
fn a_saw_tooth_does_not_make_the_pool_one() {
    let mut sim = Sim::new((2, 10), 4);
    let mut settled = 0;
    for cycle in 0..10 {
        if cycle == 2 {
            settled = sim.events();
        }
        for _ in 0..30 {
            sim.submit(14, secs(2));
            sim.run(secs(1));
        }
        sim.run(secs(30));
    }
    assert!(sim.active() > 2 && sim.events() - settled <= 6, "{settled}, {}", sim.events());
}

#[test]
fn flapping_lengthens_the_window_and_calm_takes_it_back() {
    // Off for a little longer than the window.
    let events_of = |is_damped: bool| {
        let mut sim = Sim::new((1, 8), 4);
        for _ in 0..12 {
            if !is_damped {
                sim.rule.set_down_after(WINDOW);
            }
            for _ in 0..20 {
                sim.submit(10, secs(2));
                sim.run(secs(1));
            }
            sim.run(secs(80));
        }
        (sim.events(), sim)
    };
    let ((damped, mut sim), (bare, _)) = (events_of(true), events_of(false));
    assert!(damped < bare / 2, "{damped} {bare}");
    assert!(sim.rule.window > WINDOW);
    sim.run(secs(1800));
    assert_eq!((sim.rule.window, sim.active()), (WINDOW, 1));
}

#[test]
fn a_trickle_stays_at_the_floor() {
    let mut sim = Sim::new((1, 8), 4);
    for _ in 0..300 {
        sim.submit(1, secs(1));
        sim.run(secs(2));
    }
    assert_eq!((sim.active(), sim.events()), (1, 0));
    // What is told does not change each second: a line for each five at most.
    assert!(sim.reasons.len() <= 122, "{}", sim.reasons.len());
}

#[test]
fn providers_at_their_limit_are_not_helped_by_workers() {
    let mut sim = Sim::new((2, 20), 32);
    sim.ceiling = Some(50);
    sim.submit(2000, secs(3));
    sim.run(secs(60));
    assert_eq!((sim.active(), sim.events()), (2, 0));
    let last = sim.reasons.last().unwrap();
    assert!(last.starts_with("limited by providers to 50: "), "{last}");
}

#[test]
fn one_slow_worker_does_not_bring_the_ceiling() {
    let mut sim = Sim::new((4, 20), 8);
    // It holds what it has for ever, and takes no more.
    sim.submit(8, secs(5));
    sim.step();
    sim.workers[0].slots = 2;
    sim.workers[0].ends = vec![sim.now + secs(3600); 2];
    for _ in 0..120 {
        sim.submit(8, secs(2));
        sim.run(secs(1));
    }
    assert!((4..=5).contains(&sim.active()), "{:?}", sim.reasons);
}

#[test]
fn an_empty_pool_wakes_at_once_and_sleeps_after_a_window_of_nothing() {
    let mut sim = Sim::new((0, 4), 4);
    assert_eq!(sim.active(), 0);
    sim.submit(1, secs(30));
    sim.decide();
    assert_eq!(sim.active(), 1);
    // Long quiet work is work.
    sim.run(secs(29));
    assert_eq!(sim.in_flight(), 1);
    sim.run(secs(58));
    assert_eq!((sim.active(), sim.spawns), (1, 1));
    sim.run_until(secs(15), |sim| sim.workers.is_empty());
    assert!(sim.reasons.iter().any(|reason| reason.starts_with("down to 0: nothing to do")));
    sim.run(secs(600));
    assert_eq!((sim.spawns, sim.drains), (1, 1));
}

#[test]
fn what_an_operator_moves_stays_moved() {
    let mut sim = Sim::new((2, 4), 4);
    sim.bounds = Bounds { min: 3, max: 4 };
    sim.decide();
    assert_eq!((sim.active(), sim.reasons.last().unwrap().as_str()), (3, "up to 3: min is 3"));
    sim.run(secs(600));
    assert_eq!(sim.active(), 3);
    sim.submit(200, secs(10));
    sim.run(secs(10));
    assert_eq!(sim.active(), 4);
    sim.bounds = Bounds { min: 1, max: 2 };
    sim.decide();
    assert_eq!((sim.active(), sim.reasons.last().unwrap().as_str()), (2, "down to 2: max is 2"));
    sim.run(secs(20));
    assert_eq!(sim.active(), 2);
}

#[test]
fn whoever_drains_is_taken_back_before_the_rate_counts() {
    let now = Instant::now();
    let mut rule = Scale::new(WINDOW, 2, now);
    let bounds = Bounds { min: 1, max: 16 };
    let pool = PoolNow { ready: 2, booting: 0, draining: 3, slots: 8, concurrency: 4 };
    rule.decide(&Load::default(), &pool, bounds, now);
    let load = Load { ready: 100, in_flight: 8, oldest_wait: secs(2), ceiling: None };
    let decision = rule.decide(&load, &pool, bounds, now + secs(5));
    assert_eq!(
        (decision.want, decision.reason.as_str()),
        (6, "up to 6: 100 ready, 8 in flight, oldest waits 2.0 s")
    );
}

#[test]
fn a_pool_that_is_taken_over_is_left_as_it_is() {
    let now = Instant::now();
    let mut rule = Scale::new(WINDOW, 6, now);
    // One more is there for a replacement: it changes nothing.
    let pool = PoolNow { ready: 5, booting: 2, draining: 0, slots: 20, concurrency: 4 };
    let bounds = Bounds { min: 2, max: 8 };
    assert_eq!(rule.decide(&Load::default(), &pool, bounds, now).want, 6);
    // Workers that died are still wanted.
    let pool = PoolNow { ready: 3, booting: 0, slots: 12, ..pool };
    assert_eq!(rule.decide(&Load::default(), &pool, bounds, now + secs(9)).want, 6);
}

#[test]
fn how_many_workers_a_demand_needs() {
    // (demand, fraction, ready, slots, concurrency) and the workers.
    let table = [
        ((0, FULL_UP, 3, 12, 4), 0),
        ((1, FULL_UP, 0, 0, 4), 1),
        ((1, FULL_UP, 1, 4, 4), 1),
        ((4, FULL_UP, 1, 4, 4), 2),
        ((200, FULL_UP, 2, 40, 20), 13),
        ((12, FULL_DOWN, 5, 20, 4), 5),
        ((12, FULL_UP, 5, 20, 4), 4),
        // One worker that is down to a slot needs two more, not forty.
        ((32, FULL_UP, 1, 1, 32), 3),
        // Lagging to nothing is not a division by it.
        ((3, FULL_UP, 2, 0, 0), 6),
        ((u64::MAX, FULL_UP, 2, 8, 1), u32::MAX),
    ];
    for ((demand, full, ready, slots, concurrency), workers) in table {
        let pool = PoolNow { ready, booting: 0, draining: 0, slots, concurrency };
        assert_eq!(workers_for(demand, full, &pool), workers, "{demand} {pool:?}");
    }
}

#[derive(Clone, Debug)]
enum Move {
    Submit { count: usize, seconds: u64 },
    Run { seconds: u64 },
    Bounds { min: u32, more: u32 },
    Ceiling(Option<u64>),
    Lag { worker: usize, slots: u32 },
    Die { worker: usize },
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        (1usize..80, 1u64..40).prop_map(|(count, seconds)| Move::Submit { count, seconds }),
        (1u64..100).prop_map(|seconds| Move::Run { seconds }),
        (0u32..6, 0u32..10).prop_map(|(min, more)| Move::Bounds { min, more }),
        proptest::option::of(0u64..60).prop_map(Move::Ceiling),
        (0usize..8, 0u32..4).prop_map(|(worker, slots)| Move::Lag { worker, slots }),
        (0usize..8).prop_map(|worker| Move::Die { worker }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The simulation asserts the bounds at each decision.
    #[test]
    fn any_history_stays_within_bounds_and_ends_at_the_floor(
        history in proptest::collection::vec(moves(), 1..25)
    ) {
        let mut sim = Sim::new((1, 6), 4);
        for step in history {
            match step {
                Move::Submit { count, seconds } => sim.submit(count, secs(seconds)),
                Move::Run { seconds } => sim.run(secs(seconds)),
                Move::Bounds { min, more } => sim.bounds = Bounds { min, max: min + more },
                Move::Ceiling(ceiling) => sim.ceiling = ceiling,
                Move::Lag { worker, slots } => {
                    if let Some(worker) = sim.workers.get_mut(worker) {
                        worker.slots = slots;
                    }
                }
                Move::Die { worker } if worker < sim.workers.len() => {
                    drop(sim.workers.remove(worker));
                }
                Move::Die { .. } => {}
            }
            sim.decide();
        }
        sim.queue.clear();
        sim.run(secs(3600));
        prop_assert_eq!(sim.active(), sim.bounds.min as usize);
    }

    #[test]
    fn a_constant_load_moves_the_pool_in_one_direction_only(
        demand in 0u64..400, start in 0u32..20, concurrency in 1u32..40
    ) {
        let mut now = Instant::now();
        let mut rule = Scale::new(WINDOW, start, now);
        let bounds = Bounds { min: 0, max: 20 };
        let mut wants = vec![start];
        for _ in 0..2000 {
            let ready = *wants.last().unwrap();
            let slots = u64::from(ready) * u64::from(concurrency);
            let in_flight = demand.min(slots);
            let load = Load {
                ready: demand - in_flight, in_flight, oldest_wait: secs(5), ceiling: None
            };
            let pool = PoolNow { ready, booting: 0, draining: 0, slots, concurrency };
            wants.push(rule.decide(&load, &pool, bounds, now).want);
            now += secs(1);
        }
        prop_assert!(wants.is_sorted() || wants.iter().rev().is_sorted(), "{wants:?}");
    }
}
