use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn pod(name: &str) -> Key {
    Key::container(name)
}

/// Returns all items that are handed out at `now`.
fn handed_out(queue: &mut Queue, now: Instant) -> Vec<Key> {
    std::iter::from_fn(|| queue.next(now).map(|(key, _)| key)).collect()
}

#[test]
fn an_item_named_twice_is_handed_out_once_at_the_earlier_time_with_all_that_was_named() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    queue.add(&pod("a"), Scope::GUARD, start + 5 * SECOND);
    queue.add(&pod("a"), Scope::FOREIGN, start + SECOND);
    queue.add(&pod("a"), Scope::PLAN, start + 9 * SECOND);
    assert_eq!(queue.next_due(), Some(start + SECOND));
    assert_eq!(queue.next(start), None);
    let both = Scope {
        guard: true,
        ..Scope::FOREIGN
    };
    assert_eq!(queue.next(start + SECOND), Some((pod("a"), both)));
    assert_eq!(queue.next(start + 60 * SECOND), None);
}

#[test]
fn what_is_in_work_is_not_handed_out_but_once_more_afterwards_if_it_was_named() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    let resync = Outcome::Done(Action::requeue(30 * SECOND));
    queue.add(&pod("a"), Scope::APPLY, start);
    assert!(queue.next(start).is_some());
    queue.add(&pod("a"), Scope::GUARD, start);
    queue.ensure(&pod("a"), start);
    assert_eq!(queue.next(start), None);
    assert_eq!(queue.due(&pod("a")), None);
    queue.done(&pod("a"), start, resync);
    assert_eq!(queue.next(start), Some((pod("a"), Scope::GUARD)));
    queue.done(&pod("a"), start, resync);
    assert_eq!(queue.due(&pod("a")), Some(start + 30 * SECOND));
}

#[test]
fn what_fails_is_tried_again_later_and_later_and_an_event_begins_anew() {
    let (mut now, mut queue) = (Instant::now(), Queue::default());
    for (key, expected) in [
        (pod("a"), [1, 2, 4, 8, 16, 32, 60, 60]),
        (Key::Node, [1, 2, 4, 8, 16, 30, 30, 30]),
    ] {
        queue.add(&key, Scope::GUARD, now);
        let fail = |queue: &mut Queue, now: &mut Instant, seconds: u32| {
            assert_eq!(queue.next(*now), Some((key.clone(), Scope::GUARD)));
            queue.done(&key, *now, Outcome::Failed);
            assert_eq!(queue.due(&key), Some(*now + seconds * SECOND), "{key}");
            *now += seconds * SECOND;
        };
        for seconds in expected {
            fail(&mut queue, &mut now, seconds);
        }
        queue.add(&key, Scope::PLAN, now);
        fail(&mut queue, &mut now, 1);
        fail(&mut queue, &mut now, 2);
        // A success resets it, too.
        assert!(queue.next(now).is_some());
        queue.done(&key, now, Outcome::Done(Action::requeue(SECOND)));
        now += SECOND;
        assert!(queue.next(now).is_some());
        queue.done(&key, now, Outcome::Failed);
        assert_eq!(queue.due(&key), Some(now + SECOND));
        now += SECOND;
        assert!(queue.next(now).is_some());
        queue.done(&key, now, Outcome::Done(Action::await_change()));
    }
}

#[test]
fn events_bring_nothing_earlier_than_its_cooldown() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    let calm = Outcome::Done(Action::requeue(30 * SECOND).with_cooldown(SECOND));
    for outcome in [calm, Outcome::Failed] {
        queue.add(&pod("a"), Scope::PLAN, start);
        assert_eq!(handed_out(&mut queue, start).len(), 1);
        queue.add(&pod("a"), Scope::PLAN, start);
        queue.done(&pod("a"), start, outcome);
        assert_eq!(queue.due(&pod("a")), Some(start + SECOND), "{outcome:?}");
        queue.add(&pod("a"), Scope::PLAN, start);
        assert_eq!(queue.due(&pod("a")), Some(start + SECOND), "{outcome:?}");
        assert_eq!(handed_out(&mut queue, start + SECOND).len(), 1);
        queue.done(&pod("a"), start, Outcome::Done(Action::await_change()));
    }
}

#[test]
fn a_held_item_waits_for_its_time_or_until_it_is_let_go() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    queue.hold(&Key::Node, start + 30 * SECOND);
    queue.add(&Key::Node, Scope::PLAN, start);
    assert_eq!(queue.due(&Key::Node), Some(start + 30 * SECOND));
    queue.release(&Key::Node, start + SECOND);
    assert_eq!(queue.next(start + SECOND), Some((Key::Node, Scope::PLAN)));
    queue.done(&Key::Node, start, Outcome::Done(Action::await_change()));
    queue.hold(&Key::Node, start + 30 * SECOND);
    assert_eq!(queue.next(start + 29 * SECOND), None);
    assert!(queue.next(start + 30 * SECOND).is_some());
}

#[test]
fn a_busy_item_keeps_what_it_was_named_for_and_is_no_failure() {
    let (mut now, mut queue) = (Instant::now(), Queue::default());
    queue.add(&pod("a"), Scope::GUARD, now);
    for millis in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
        assert_eq!(queue.next(now), Some((pod("a"), Scope::GUARD)));
        queue.done(&pod("a"), now, Outcome::Busy);
        let due = now + Duration::from_millis(millis);
        assert_eq!(queue.due(&pod("a")), Some(due));
        now = due;
    }
    assert!(queue.next(now).is_some());
    queue.done(&pod("a"), now, Outcome::Failed);
    assert_eq!(queue.due(&pod("a")), Some(now + SECOND));
}

#[test]
fn so_many_containers_are_in_work_and_the_node_needs_no_place() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    for number in 0..3 * MAX_CONCURRENT {
        queue.add(&pod(&number.to_string()), Scope::PLAN, start);
    }
    let first = handed_out(&mut queue, start);
    assert_eq!(first.len(), MAX_CONCURRENT);
    assert_eq!(queue.next_due(), None);
    queue.add(&Key::Node, Scope::PLAN, start + SECOND);
    assert_eq!(queue.next_due(), Some(start + SECOND));
    assert_eq!(handed_out(&mut queue, start + SECOND), [Key::Node]);
    queue.done(&first[3], start, Outcome::Done(Action::await_change()));
    assert_eq!(handed_out(&mut queue, start).len(), 1);
}

#[test]
fn a_container_that_is_gone_is_forgotten() {
    let (start, mut queue) = (Instant::now(), Queue::default());
    queue.add(&pod("a"), Scope::PLAN, start);
    assert!(queue.next(start).is_some());
    queue.done(&pod("a"), start, Outcome::Done(Action::await_change()));
    assert!(queue.items.is_empty() && queue.by_due.is_empty());
}

/// A step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Name(usize, Scope, u64),
    Ensure(usize, u64),
    Next,
    Done(usize, Outcome),
    Sleep(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    const KEYS: usize = 2 * MAX_CONCURRENT;
    let scope = any::<(bool, bool, bool)>().prop_map(|(apply, guard, foreign)| Scope {
        apply,
        guard,
        foreign,
    });
    let millis = 0..5000_u64;
    let outcome = prop_oneof![
        Just(Outcome::Busy),
        Just(Outcome::Failed),
        Just(Outcome::Done(Action::await_change())),
        (millis.clone(), millis.clone()).prop_map(|(after, cooldown)| {
            let action = Action::requeue(Duration::from_millis(after));
            let cooldown = Duration::from_millis(cooldown);
            Outcome::Done(action.with_cooldown(cooldown))
        }),
    ];
    let step = prop_oneof![
        3 => (0..KEYS, scope, millis.clone()).prop_map(|(key, scope, at)| Step::Name(key, scope, at)),
        1 => (0..KEYS, millis.clone()).prop_map(|(key, at)| Step::Ensure(key, at)),
        4 => Just(Step::Next),
        3 => (any::<prop::sample::Index>(), outcome).prop_map(|(index, outcome)| Step::Done(index.index(KEYS), outcome)),
        2 => millis.prop_map(Step::Sleep),
    ];
    vec(step, 1..400)
}

fn covers(scope: Scope, other: Scope) -> bool {
    let mut union = scope;
    union |= other;
    union == scope
}

proptest! {
    #[test]
    fn no_key_is_lost_and_none_is_in_work_twice(steps in steps()) {
        let start = Instant::now();
        let (mut now, mut queue) = (start, Queue::default());
        // What was named since it was last handed out, and what is in work with which scope.
        let mut asked: BTreeMap<Key, Scope> = BTreeMap::new();
        let mut in_work: BTreeMap<Key, Scope> = BTreeMap::new();
        let key = |number| match number {
            0 => Key::Node,
            number => pod(&format!("{number}")),
        };
        let millis = Duration::from_millis;
        for step in steps {
            match step {
                Step::Name(number, scope, at) => {
                    queue.add(&key(number), scope, now + millis(at));
                    *asked.entry(key(number)).or_default() |= scope;
                }
                Step::Ensure(number, at) => {
                    queue.ensure(&key(number), now + millis(at));
                    if !in_work.contains_key(&key(number)) {
                        asked.entry(key(number)).or_default();
                    }
                }
                Step::Next => {
                    if let Some((key, scope)) = queue.next(now) {
                        let wanted = asked.remove(&key).unwrap_or_default();
                        prop_assert!(covers(scope, wanted), "{key}: {scope:?} of {wanted:?}");
                        prop_assert!(in_work.insert(key, scope).is_none());
                        let containers = in_work.keys().filter(|key| **key != Key::Node);
                        prop_assert!(containers.count() <= MAX_CONCURRENT);
                    }
                }
                Step::Done(number, outcome) => {
                    let Some((key, scope)) = in_work.iter().nth(number) else { continue };
                    let (key, scope) = (key.clone(), *scope);
                    queue.done(&key, now, outcome);
                    in_work.remove(&key);
                    match outcome {
                        Outcome::Done(action) if action.after.is_none() => {}
                        Outcome::Done(_) => drop(asked.entry(key).or_default()),
                        Outcome::Busy | Outcome::Failed => *asked.entry(key).or_default() |= scope,
                    }
                }
                Step::Sleep(time) => now += millis(time),
            }
        }
        // Every named item is handed out once everything else has ended.
        let mut left: BTreeSet<Key> = asked.keys().cloned().collect();
        now += 3600 * SECOND;
        for key in in_work.into_keys() {
            queue.done(&key, now, Outcome::Done(Action::await_change()));
        }
        while let Some((key, scope)) = queue.next(now) {
            let wanted = asked.remove(&key).unwrap_or_default();
            prop_assert!(covers(scope, wanted), "{key}: {scope:?} of {wanted:?}");
            left.remove(&key);
            queue.done(&key, now, Outcome::Done(Action::await_change()));
        }
        prop_assert!(left.is_empty(), "{left:?}");
        prop_assert!(queue.by_due.is_empty());
    }
}
