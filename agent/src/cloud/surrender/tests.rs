use ebbtide_types::Family;
use proptest::{collection::vec, prelude::*};

use super::*;

fn sets(text: &str) -> Sets {
    Sets::parse(&[(Family::V4, text.to_owned())].into()).unwrap()
}

#[test]
fn what_is_asked_back_is_kept_for_twenty_minutes_after_it() {
    let all = sets("10.0.0.0-10.0.0.9");
    /// What is done, and then what is asked back and what is kept.
    struct Row(&'static str, u64, Step, &'static str, &'static str);
    enum Step {
        Ask(&'static str),
        /// Nothing is known of the wish.
        Nothing,
        /// A report names these.
        Tell(&'static str),
        TellFails(&'static str),
    }
    use Step::{Ask, Nothing, Tell, TellFails};
    let mut state = Surrender::default();
    for Row(what, now, step, asked, kept) in [
        Row(
            "three",
            0,
            Ask("10.0.0.1-10.0.0.3"),
            "10.0.0.1-10.0.0.3",
            "",
        ),
        Row(
            "others are no matter",
            5,
            Ask("10.0.0.1-10.0.0.3, 10.9.9.9"),
            "10.0.0.1-10.0.0.3",
            "",
        ),
        Row("unknown: it stays", 9000, Nothing, "10.0.0.1-10.0.0.3", ""),
        Row(
            "one less",
            9000,
            Ask("10.0.0.1-10.0.0.2"),
            "10.0.0.1-10.0.0.2",
            "10.0.0.3",
        ),
        Row(
            "unknown: time passes",
            9600,
            Nothing,
            "10.0.0.1-10.0.0.2",
            "10.0.0.3",
        ),
        Row(
            "asked again",
            9700,
            Ask("10.0.0.1-10.0.0.3"),
            "10.0.0.1-10.0.0.3",
            "",
        ),
        Row("told", 9700, Tell("10.0.0.1"), "10.0.0.1-10.0.0.3", ""),
        Row(
            "dropped",
            10_000,
            Ask("10.0.0.2"),
            "10.0.0.2",
            "10.0.0.1, 10.0.0.3",
        ),
        Row(
            "not for long enough",
            11_199,
            Nothing,
            "10.0.0.2",
            "10.0.0.1, 10.0.0.3",
        ),
        Row(
            "the report still names one",
            11_200,
            Nothing,
            "10.0.0.2",
            "10.0.0.1",
        ),
        Row(
            "it may still do so",
            11_300,
            TellFails(""),
            "10.0.0.2",
            "10.0.0.1",
        ),
        Row(
            "it does not any more",
            11_400,
            Tell(""),
            "10.0.0.2",
            "10.0.0.1",
        ),
        Row(
            "nor for less than twenty minutes",
            12_599,
            Nothing,
            "10.0.0.2",
            "10.0.0.1",
        ),
        Row("over", 12_600, Nothing, "10.0.0.2", ""),
        Row("all dropped", 12_700, Ask(""), "", "10.0.0.2"),
        Row(
            "a step back of the clock is no time",
            12_000,
            Nothing,
            "",
            "10.0.0.2",
        ),
        Row("the end", 13_900, Nothing, "", ""),
    ] {
        match step {
            Ask(wish) => state.ask(now, &sets(wish), &all),
            Nothing => {}
            Tell(names) => {
                state.telling(&sets(names));
                state.has_told(now, sets(names));
            }
            TellFails(names) => state.telling(&sets(names)),
        }
        if !matches!(step, Tell(_) | TellFails(_)) {
            state.expire(now);
        }
        assert_eq!(state.asked().to_string(), asked, "{what}");
        assert_eq!(state.kept().to_string(), kept, "{what}");
    }
}

#[test]
fn an_address_that_the_cloud_took_stays_withheld_while_it_is_asked_back() {
    let mut state = Surrender::default();
    state.ask(0, &sets("10.0.0.1"), &sets("10.0.0.1-10.0.0.2"));
    // It has left the pool.
    state.ask(10, &sets("10.0.0.1"), &sets("10.0.0.2"));
    assert_eq!(state.asked(), &sets("10.0.0.1"));
    state.ask(20, &Sets::default(), &sets("10.0.0.2"));
    state.ask(30, &sets("10.0.0.1"), &sets("10.0.0.2"));
    assert_eq!(
        state.asked(),
        &sets("10.0.0.1"),
        "nor is it forgotten while it is kept"
    );
}

#[test]
fn what_a_report_names_whose_write_was_not_answered_is_kept_until_one_without_it_was() {
    let mut state = Surrender::default();
    let one = sets("10.0.0.1");
    state.ask(0, &one, &one);
    // It may have arrived.
    state.telling(&one);
    state.ask(10, &Sets::default(), &one);
    let late = 10 + 3 * KEPT;
    state.expire(late);
    assert_eq!(state.kept(), one);
    state.telling(&Sets::default());
    state.has_told(late, Sets::default());
    state.expire(late + KEPT - 1);
    assert_eq!(state.kept(), one);
    state.expire(late + KEPT);
    assert!(state.withheld().is_empty());
}

/// How many addresses the histories have.
const COUNT: u8 = 4;
const COOLDOWN: u64 = 60;

/// What happens in a history: to the agent, around it, and in it at any moment between two of its steps.
#[derive(Clone, Debug)]
enum Event {
    /// The controller asks for these, or ceases to.
    Wish(u8),
    /// It writes what nobody can read, or readable things again.
    Unreadable(bool),
    Pass(u64),
    Take(u8),
    Free(u8),
    /// The agent's steps, which come in this order, but for pods and crashes in between.
    See,
    Save,
    Compute,
    Write {
        arrives: bool,
        is_answered: bool,
    },
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..1_u8 << COUNT).prop_map(Event::Wish),
        1 => any::<bool>().prop_map(Event::Unreadable),
        2 => prop_oneof![1..90_u64, 500..700_u64, Just(KEPT - 1), Just(KEPT)].prop_map(Event::Pass),
        4 => (0..COUNT).prop_map(Event::Take),
        3 => (0..COUNT).prop_map(Event::Free),
        4 => Just(Event::See),
        4 => Just(Event::Save),
        4 => Just(Event::Compute),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(arrives, is_answered)| Event::Write { arrives, is_answered }),
        1 => Just(Event::Crash),
    ]
}

fn of_mask(mask: u8) -> Sets {
    let mut sets = Sets::default();
    for address in (0..COUNT).filter(|bit| mask & (1 << bit) != 0) {
        let address = std::net::IpAddr::from([10, 0, 0, address]);
        sets.add(&ebbtide_ipam::catalog::AddressSet::single(address));
    }
    sets
}

fn has(sets: &Sets, address: u8) -> bool {
    let address = std::net::IpAddr::from([10, 0, 0, address]);
    sets.of(Family::V4).contains(address)
}

/// An agent, the API server, and pods.
struct World {
    now: u64,
    wish: u8,
    unreadable: bool,
    reported: Sets,
    /// When each address could last have been taken away: it was asked back and named as surrendered.
    danger: [Option<u64>; COUNT as usize],
    used: [bool; COUNT as usize],
    released: [Option<u64>; COUNT as usize],
    agent: Surrender,
    /// Asked back and kept, as on disk.
    disk: (Sets, Sets),
    is_saved: bool,
    report: Option<Sets>,
}

impl World {
    fn new() -> Self {
        Self {
            now: 0,
            wish: 0,
            unreadable: false,
            reported: Sets::default(),
            danger: [None; COUNT as usize],
            used: [false; COUNT as usize],
            released: [None; COUNT as usize],
            agent: Surrender::default(),
            disk: Default::default(),
            is_saved: false,
            report: None,
        }
    }

    fn is_cooling(&self, address: u8) -> bool {
        let released = self.released[usize::from(address)];
        released.is_some_and(|at| self.now - at < COOLDOWN)
    }

    fn look(&mut self) {
        for address in 0..COUNT {
            if self.wish & (1 << address) != 0 && has(&self.reported, address) {
                let place = usize::from(address);
                self.danger[place] = Some(self.now);
                assert!(
                    !self.used[place],
                    "{address} is a pod's, and may be taken away"
                );
            }
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Wish(wish) => self.wish = wish,
            Event::Unreadable(unreadable) => self.unreadable = unreadable,
            Event::Pass(seconds) => self.now += seconds,
            Event::Take(address) => {
                let place = usize::from(address);
                let is_free = !self.used[place] && !self.is_cooling(address);
                if is_free && !has(&self.agent.withheld(), address) {
                    if let Some(at) = self.danger[place] {
                        let since = self.now - at;
                        assert!(since >= KEPT, "{address} is given to a pod after {since} s");
                    }
                    self.used[place] = true;
                }
            }
            Event::Free(address) => {
                let place = usize::from(address);
                if std::mem::take(&mut self.used[place]) {
                    self.released[place] = Some(self.now);
                }
            }
            Event::See => {
                if !self.unreadable {
                    let all = of_mask((1 << COUNT) - 1);
                    self.agent.ask(self.now, &of_mask(self.wish), &all);
                }
                self.agent.expire(self.now);
                (self.is_saved, self.report) = (false, None);
            }
            Event::Save => {
                self.disk = (self.agent.asked().clone(), self.agent.kept());
                self.is_saved = true;
            }
            Event::Compute if self.is_saved => {
                let busy = (0..COUNT).filter(|address| {
                    self.used[usize::from(*address)] || self.is_cooling(*address)
                });
                let busy = of_mask(busy.fold(0, |mask, address| mask | 1 << address));
                let surrendered = self.agent.asked().without(&busy);
                self.agent.telling(&surrendered);
                self.report = Some(surrendered);
            }
            Event::Write {
                arrives,
                is_answered,
            } => {
                let report = self.report.take();
                if let Some(report) = report.filter(|_| arrives) {
                    self.reported = report.clone();
                    if is_answered {
                        self.agent.has_told(self.now, report);
                    }
                }
            }
            Event::Crash => {
                let (asked, kept) = self.disk.clone();
                self.agent = Surrender::restored(self.now, asked, kept);
                (self.is_saved, self.report) = (false, None);
            }
            Event::Compute => {}
        }
        self.look();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_was_told_as_surrendered_is_no_pods_until_twenty_minutes_after_the_wish(events in vec(event(), 1..120)) {
        let mut world = World::new();
        events.iter().for_each(|event| world.happen(event));
        // And nothing is withheld for ever: when nobody asks any more, all is free in the end.
        world.wish = 0;
        world.unreadable = false;
        for pass in [0, KEPT, 0] {
            world.happen(&Event::Pass(pass));
            for step in [Event::See, Event::Save, Event::Compute, Event::Write { arrives: true, is_answered: true }] {
                world.happen(&step);
            }
        }
        prop_assert!(world.agent.withheld().is_empty());
    }
}
