//! How the pool comes to have the workers that it should have: pure.
//!
//! Three rules, the first that applies goes first:
//! 1. too few: take back one that drains and is still good, else fork;
//! 2. too many: give up a place that waits for its fork, else drain one: a worker that is to be
//!    replaced once its successor is ready, or the one with the least to do;
//! 3. as many as there should be, but some are to be replaced: fork a successor.
//!
//! Forks for demand stay under `max + surge` living workers, forks of successors under
//! `want + surge`; workers that drain count, since they are there.

/// A worker that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) slot: u32,
    /// It said that it is ready.
    pub(crate) ready: bool,
    /// It gets no more tasks.
    pub(crate) draining: bool,
    /// It was told to end, and cannot be taken back.
    pub(crate) ending: bool,
    /// It is to be replaced: an old generation, or recycled.
    pub(crate) stale: bool,
    /// Tasks that it runs, as far as the broker has said.
    pub(crate) in_flight: u32,
    /// Its number since the instance started: the older, the less.
    pub(crate) serial: u64,
}

/// How many workers there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) want: u32,
    pub(crate) max: u32,
    pub(crate) surge: u32,
}

/// One step towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Fork one more.
    Fork,
    /// Give up a place that waits for its fork.
    GiveUp,
    /// Let this slot's worker take tasks again.
    TakeBack(u32),
    /// Give this slot's worker no more tasks; it ends when it has none.
    Drain(u32),
}

/// The next step, if there is one. `vacant`: places that wait for their fork.
pub(crate) fn next(members: &[Member], vacant: u32, target: Target) -> Option<Step> {
    let active = |member: &&Member| !member.draining && !member.ending;
    let count = |members: usize| u32::try_from(members).unwrap_or(u32::MAX);
    let living = count(members.len()) + vacant;
    let actives = count(members.iter().filter(active).count());
    let stale: Vec<&Member> = members.iter().filter(active).filter(|member| member.stale).collect();

    // Nothing is lost with a worker that has not begun.
    if let Some(member) = stale.iter().find(|member| !member.ready) {
        return Some(Step::Drain(member.slot));
    }
    if actives + vacant < target.want {
        let good = |member: &&Member| member.draining && !member.ending && !member.stale;
        let back = members.iter().filter(good).max_by_key(|member| member.in_flight);
        return match back {
            Some(member) => Some(Step::TakeBack(member.slot)),
            None => (living < target.max + target.surge).then_some(Step::Fork),
        };
    }
    if actives + vacant > target.want {
        return surplus(members, vacant, &stale, target.want);
    }
    (!stale.is_empty() && living < target.want + target.surge).then_some(Step::Fork)
}

fn surplus(members: &[Member], vacant: u32, stale: &[&Member], want: u32) -> Option<Step> {
    let active = |member: &&Member| !member.draining && !member.ending;
    if stale.is_empty() || want == 0 {
        if vacant > 0 {
            return Some(Step::GiveUp);
        }
        let least = |member: &&Member| (member.ready, member.in_flight, member.serial);
        return members.iter().filter(active).min_by_key(least).map(|m| Step::Drain(m.slot));
    }
    let ready = members.iter().filter(active).filter(|member| member.ready).count();
    if ready > want as usize {
        return stale.iter().min_by_key(|m| m.serial).map(|m| Step::Drain(m.slot));
    }
    // More successors than one replacement needs: the wish has changed meanwhile.
    let fresh = members.iter().filter(active).filter(|member| !member.stale).count() as u32;
    (vacant > 0 && fresh + vacant > want).then_some(Step::GiveUp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ready(slot: u32) -> Member {
        Member {
            slot,
            ready: true,
            draining: false,
            ending: false,
            stale: false,
            in_flight: 0,
            serial: slot.into(),
        }
    }

    fn booting(slot: u32) -> Member {
        Member { ready: false, ..ready(slot) }
    }

    fn stale(slot: u32) -> Member {
        Member { stale: true, ..ready(slot) }
    }

    fn draining(member: Member) -> Member {
        Member { draining: true, ..member }
    }

    const TWO: Target = Target { want: 2, max: 4, surge: 1 };

    #[test]
    #[allow(clippy::type_complexity, reason = "a table")]
    fn each_rule_by_a_case() {
        let busy = |slot, in_flight| Member { in_flight, ..ready(slot) };
        let ending = |slot| Member { ending: true, ..draining(ready(slot)) };
        let cases: &[(&str, Vec<Member>, u32, Target, Option<Step>)] = &[
            ("an empty pool", vec![], 0, TWO, Some(Step::Fork)),
            ("waits for its fork", vec![ready(1)], 1, TWO, None),
            ("as it should be", vec![ready(1), ready(2)], 0, TWO, None),
            ("booting counts", vec![booting(1), booting(2)], 0, TWO, None),
            (
                "take back before a fork, the busiest",
                vec![ready(1), draining(busy(2, 1)), draining(busy(3, 9))],
                0,
                TWO,
                Some(Step::TakeBack(3)),
            ),
            ("what ends is gone", vec![ready(1), ending(2)], 0, TWO, Some(Step::Fork)),
            (
                "a stale one is not taken back",
                vec![ready(1), draining(stale(2))],
                0,
                TWO,
                Some(Step::Fork),
            ),
            (
                "no fork over max and surge",
                vec![ready(1), draining(stale(2)), draining(stale(3))],
                0,
                Target { want: 2, max: 2, surge: 1 },
                None,
            ),
            ("a successor first", vec![stale(1), stale(2)], 0, TWO, Some(Step::Fork)),
            ("which must be ready", vec![stale(1), stale(2), booting(3)], 0, TWO, None),
            (
                "then the oldest drains",
                vec![stale(1), stale(2), ready(3)],
                0,
                TWO,
                Some(Step::Drain(1)),
            ),
            (
                "its place is free when it has gone",
                vec![draining(stale(1)), stale(2), ready(3)],
                0,
                TWO,
                None,
            ),
            ("then the next", vec![stale(2), ready(3)], 0, TWO, Some(Step::Fork)),
            ("a successor that waits for its fork", vec![stale(1), stale(2)], 1, TWO, None),
            (
                "a stale one that has not begun goes at once",
                vec![stale(1), Member { ready: false, ..stale(2) }],
                0,
                TWO,
                Some(Step::Drain(2)),
            ),
            (
                "the least busy drains",
                vec![busy(1, 3), busy(2, 1), busy(3, 2)],
                0,
                TWO,
                Some(Step::Drain(2)),
            ),
            (
                "one that boots before it",
                vec![busy(1, 3), ready(2), booting(3)],
                0,
                TWO,
                Some(Step::Drain(3)),
            ),
            ("a place before a worker", vec![ready(1), ready(2)], 1, TWO, Some(Step::GiveUp)),
        ];
        for (name, members, vacant, target, step) in cases {
            assert_eq!(next(members, *vacant, *target), *step, "{name}");
        }
    }

    /// Steps until there is none; workers get ready and drained ones end in between.
    fn settle(mut members: Vec<Member>, target: Target, peak: &mut usize) -> Vec<Member> {
        let mut serial = 1000;
        for _ in 0..200 {
            match next(&members, 0, target) {
                Some(Step::Fork) => {
                    serial += 1;
                    let slot = (1..).find(|slot| members.iter().all(|m| m.slot != *slot));
                    members.push(Member { serial, ..booting(slot.unwrap_or(0)) });
                }
                Some(Step::Drain(slot)) => {
                    members.iter_mut().filter(|m| m.slot == slot).for_each(|m| m.draining = true);
                }
                Some(Step::TakeBack(slot)) => {
                    members.iter_mut().filter(|m| m.slot == slot).for_each(|m| m.draining = false);
                }
                Some(Step::GiveUp) => {}
                None => {
                    let gone = members.iter().position(|m| m.draining);
                    let born = members.iter().position(|m| !m.ready);
                    match (born, gone) {
                        (Some(at), _) => members[at].ready = true,
                        (None, Some(at)) => drop(members.remove(at)),
                        (None, None) => break,
                    }
                }
            }
            *peak = (*peak).max(members.len());
        }
        members
    }

    #[test]
    fn a_reload_replaces_everyone_and_never_serves_with_less() {
        for (workers, surge) in [(1, 1), (2, 1), (8, 1), (8, 3)] {
            let target = Target { want: workers, max: workers, surge };
            let mut peak = 0;
            let members = settle((1..=workers).map(stale).collect(), target, &mut peak);
            assert_eq!(members.len() as u32, workers);
            assert!(members.iter().all(|m| !m.stale && m.ready && !m.draining));
            assert_eq!(peak as u32, workers + surge);
        }
    }

    proptest! {
        #[test]
        fn from_anywhere_it_settles_within_its_bounds(
            kinds in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..9),
            want in 0u32..9, more in 0u32..3, surge in 1u32..4,
        ) {
            let members: Vec<Member> = (1..).zip(kinds).map(|(slot, (ready_, draining, stale))| {
                Member { ready: ready_, draining, stale, ..ready(slot) }
            }).collect();
            let target = Target { want, max: want + more, surge };
            let mut peak = members.len();
            let settled = settle(members.clone(), target, &mut peak);
            prop_assert_eq!(settled.len() as u32, want);
            prop_assert!(settled.iter().all(|m| m.ready && !m.draining && !m.stale));
            prop_assert!(peak as u32 <= (want + more + surge).max(members.len() as u32));
        }
    }
}
