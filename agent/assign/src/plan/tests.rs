//! One test for each rule.

use ebbtide_kube::node_cloud::{ASKED, NodeCloud, NodePool, TOLD};

use super::*;

const NIC: &str = "eni-1";

fn settings() -> Settings {
    Settings {
        warm: BTreeMap::from([(Family::V4, 2)]),
        by: By::Address,
        max_per_nic: None,
        slack: 1,
        idle: Duration::from_secs(60),
    }
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    let net = |text: &&str| match text.contains('/') {
        true => text.parse().unwrap(),
        false => IpNet::from(text.parse::<std::net::IpAddr>().unwrap()),
    };
    texts.iter().map(net).collect()
}

/// What an agent tells of one NIC.
#[derive(Clone, Default)]
struct Told {
    blocks: &'static [&'static str],
    ranges: &'static str,
    used: &'static str,
    resting: &'static str,
    held: &'static str,
    surrendered: &'static str,
    asked: &'static str,
    waiting: u64,
}

impl Told {
    fn report(&self) -> Report {
        let pool = NodePool {
            name: "p".into(),
            networks: vec![],
            family: Family::V4,
            subnet: "10.0.0.0/24".parse().unwrap(),
            gateway: None,
            ranges: self.ranges.into(),
            used: self.used.into(),
            resting: self.resting.into(),
            held: self.held.into(),
            surrendered: self.surrendered.into(),
        };
        let back = match self.asked {
            "" => BTreeMap::new(),
            text => BTreeMap::from([(NIC.into(), BTreeMap::from([(Family::V4, text.to_owned())]))]),
        };
        Report {
            told: NodeCloud {
                version: VERSION,
                node: "node-a".into(),
                cloud: "aws".into(),
                nics: vec![NodeNic {
                    id: NIC.into(),
                    mac: "02:00:00:00:00:01".to_owned().try_into().unwrap(),
                    link: "ens5".into(),
                    waiting: BTreeMap::from([(Family::V4, self.waiting)]),
                    blocks: nets(self.blocks),
                    pools: if self.ranges.is_empty() {
                        vec![]
                    } else {
                        vec![pool]
                    },
                }],
            },
            asked: Asked {
                version: VERSION,
                back,
            },
        }
    }

    fn facts(&self) -> NodeFacts {
        NodeFacts {
            instance: Some("i-1".into()),
            limits: Some(Limits { v4: 6, v6: 6 }),
            report: Ok(self.report()),
        }
    }
}

fn described(blocks: &[&str]) -> Described {
    Described {
        id: NIC.into(),
        mac: "02:00:00:00:00:01".to_owned().try_into().ok(),
        instance: Some("i-1".into()),
        primary: BTreeSet::from(["10.0.0.4".parse().unwrap()]),
        blocks: nets(blocks).into_iter().collect(),
    }
}

/// A cluster of one node, and what EC2 says.
struct Bench {
    planner: Planner,
    nodes: BTreeMap<String, NodeFacts>,
    seen: BTreeMap<String, Seen>,
}

impl Bench {
    fn new(settings: Settings, told: &Told) -> Self {
        Self {
            planner: Planner::new(settings, at(0)),
            nodes: BTreeMap::from([("node-a".to_owned(), told.facts())]),
            seen: BTreeMap::new(),
        }
    }

    fn tell(&mut self, told: &Told) {
        self.nodes.insert("node-a".to_owned(), told.facts());
    }

    /// Plans with a description of now, and returns what is to be done in short.
    fn plan(&mut self, now: u64, blocks: &[&str]) -> Vec<String> {
        let nic = Some(described(blocks));
        self.seen.insert(NIC.into(), Seen { at: at(now), nic });
        self.plan_as_seen(now)
    }

    fn plan_as_seen(&mut self, now: u64) -> Vec<String> {
        let plan = self.planner.plan(&self.nodes, &self.seen, at(now));
        let shown = |action: &Action| match action {
            Action::Assign { family, amount, .. } => format!("assign {family} {amount:?}"),
            Action::Unassign { blocks, .. } => {
                let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
                format!("unassign {}", blocks.join(" "))
            }
            Action::Ask { asked, .. } => {
                let text = asked.back.values().flat_map(BTreeMap::values).cloned();
                format!("ask [{}]", text.collect::<Vec<_>>().join("; "))
            }
        };
        let looks = plan.look.iter().map(|nic| format!("look {nic}"));
        let notes = plan.notes.iter().map(|note| format!("note: {}", note.text));
        looks
            .chain(plan.actions.iter().map(shown))
            .chain(notes)
            .collect()
    }
}

fn one(settings: Settings, told: &Told, blocks: &[&str]) -> Vec<String> {
    Bench::new(settings, told).plan(40, blocks)
}

const FIVE: &[&str] = &["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8", "10.0.0.9"];

#[test]
fn warm_and_waiting_less_what_is_free_and_on_its_way_is_asked_for() {
    let none = Told::default();
    let two = Told {
        blocks: &["10.0.0.5", "10.0.0.6"],
        ranges: "10.0.0.5-10.0.0.6",
        ..none.clone()
    };
    for (name, told, blocks, expected) in [
        (
            "nothing is there",
            none.clone(),
            &[][..],
            vec!["assign IPv4 Addresses(2)"],
        ),
        (
            "pods wait",
            Told {
                waiting: 2,
                ..none.clone()
            },
            &[],
            vec!["assign IPv4 Addresses(4)"],
        ),
        ("all is there", two.clone(), two.blocks, vec![]),
        (
            "one is used",
            Told {
                used: "10.0.0.5",
                ..two.clone()
            },
            two.blocks,
            vec!["assign IPv4 Addresses(1)"],
        ),
        (
            "one rests",
            Told {
                resting: "10.0.0.5",
                ..two.clone()
            },
            two.blocks,
            vec!["assign IPv4 Addresses(1)"],
        ),
        (
            "one is not told any more",
            Told {
                held: "10.0.0.5",
                ..two.clone()
            },
            two.blocks,
            vec!["assign IPv4 Addresses(1)"],
        ),
        (
            "it is on its way",
            none.clone(),
            &["10.0.0.5", "10.0.0.6"],
            vec![],
        ),
        (
            "one of two is on its way",
            none,
            &["10.0.0.5"],
            vec!["assign IPv4 Addresses(1)"],
        ),
    ] {
        assert_eq!(one(settings(), &told, blocks), expected, "{name}");
    }
}

#[test]
fn prefixes_are_asked_for_in_whole_ones() {
    let by = Settings {
        by: By::Prefix,
        warm: BTreeMap::from([(Family::V4, 1)]),
        ..settings()
    };
    let whole = Told {
        blocks: &["10.0.0.16/28"],
        ranges: "10.0.0.16-10.0.0.31",
        ..Told::default()
    };
    for (told, expected) in [
        (Told::default(), vec!["assign IPv4 Prefixes(1)"]),
        (
            Told {
                waiting: 17,
                ..Told::default()
            },
            vec!["assign IPv4 Prefixes(3)"],
        ),
        (whole.clone(), vec![]),
        (
            Told {
                used: "10.0.0.16",
                ..whole
            },
            vec!["assign IPv4 Prefixes(1)"],
        ),
    ] {
        let blocks = told.blocks;
        assert_eq!(one(by.clone(), &told, blocks), expected);
    }
}

#[test]
fn never_more_than_the_type_allows_or_people_want_and_it_is_said() {
    let told = Told {
        waiting: 100,
        ..Told::default()
    };
    let full = one(settings(), &told, &[]);
    assert_eq!(full[0], "assign IPv4 Addresses(5)");
    assert!(
        full[1].contains("eni-1 has 1 of at most 6 IPv4 addresses"),
        "{full:?}"
    );
    let few = Settings {
        max_per_nic: Some(3),
        ..settings()
    };
    assert_eq!(one(few, &told, &[])[0], "assign IPv4 Addresses(3)");
    // What is full is not asked about again and again.
    let mut bench = Bench::new(
        settings(),
        &Told {
            blocks: FIVE,
            ..told.clone()
        },
    );
    assert_eq!(bench.plan(40, FIVE).len(), 1);
    assert_eq!(bench.plan_as_seen(95).len(), 1);
    assert_eq!(bench.plan_as_seen(105), ["look eni-1"]);
    // A type that nobody knows.
    let mut bench = Bench::new(settings(), &told);
    bench.nodes.get_mut("node-a").unwrap().limits = None;
    assert!(
        bench.plan(40, &[])[0].starts_with("note: the instance type of this node is not known")
    );
}

#[test]
fn a_change_relies_on_what_ec2_said_just_now() {
    let mut bench = Bench::new(settings(), &Told::default());
    assert_eq!(bench.plan_as_seen(40), ["look eni-1"]);
    bench.plan(40, &[]);
    assert_eq!(bench.plan_as_seen(50), ["assign IPv4 Addresses(2)"]);
    assert_eq!(bench.plan_as_seen(51), ["look eni-1"]);
    bench.seen.insert(
        NIC.into(),
        Seen {
            at: at(51),
            nic: None,
        },
    );
    assert_eq!(
        bench.plan_as_seen(51),
        ["note: EC2 does not know eni-1: is `region` right?"]
    );
}

#[test]
fn after_a_change_nothing_more_until_the_agent_tells_it_or_a_time_has_passed() {
    let mut bench = Bench::new(
        settings(),
        &Told {
            waiting: 1,
            ..Told::default()
        },
    );
    assert_eq!(bench.plan(40, &[]), ["assign IPv4 Addresses(3)"]);
    bench
        .planner
        .record(NIC, Outcome::Given(nets(&["10.0.0.5"])), at(40));
    // EC2 may still describe what was before.
    assert_eq!(bench.plan(50, &[]), [""; 0]);
    assert_eq!(bench.plan(159, &[]), [""; 0]);
    assert_eq!(bench.plan(160, &[]), ["assign IPv4 Addresses(3)"]);
    bench
        .planner
        .record(NIC, Outcome::Given(nets(&["10.0.0.5"])), at(160));
    bench.tell(&Told {
        blocks: &["10.0.0.5"],
        ranges: "10.0.0.5",
        ..Told::default()
    });
    assert_eq!(bench.plan(166, &["10.0.0.5"]), ["assign IPv4 Addresses(1)"]);
    // Nobody knows whether it was done: as if it were.
    bench.planner.record(NIC, Outcome::Unknown, at(166));
    assert_eq!(bench.plan(200, &["10.0.0.5"]), [""; 0]);
    assert_eq!(bench.plan(286, &["10.0.0.5"]), ["assign IPv4 Addresses(1)"]);
}

#[test]
fn a_new_leader_changes_nothing_for_a_while() {
    let mut bench = Bench::new(settings(), &Told::default());
    assert_eq!(bench.plan(29, &[]), [""; 0]);
    assert_eq!(bench.plan(30, &[]), ["assign IPv4 Addresses(2)"]);
    let planner = Planner::new(settings(), at(1)).settled();
    bench.planner = planner;
    assert_eq!(bench.plan(2, &[]), ["assign IPv4 Addresses(2)"]);
}

#[test]
fn a_refused_nic_waits_longer_each_time() {
    let mut bench = Bench::new(settings(), &Told::default());
    let mut now = 40;
    for pause in [30, 60, 120, 240, 480, 600, 600] {
        assert_eq!(bench.plan(now, &[]), ["assign IPv4 Addresses(2)"]);
        bench.planner.record(NIC, Outcome::Refused, at(now));
        assert_eq!(bench.plan(now + pause - 1, &[]), [""; 0], "{pause}");
        now += pause;
    }
}

#[test]
fn a_subnet_without_room_for_all_is_asked_for_half_and_then_for_less() {
    let told = Told {
        waiting: 3,
        ..Told::default()
    };
    let mut bench = Bench::new(settings(), &told);
    let mut now = 40;
    for count in [5, 2, 1] {
        let asked = format!("assign IPv4 Addresses({count})");
        assert_eq!(bench.plan(now, &[]), [asked]);
        let outcome = Outcome::NoRoom(Family::V4, count);
        assert_eq!(outcome.next(), Some(count / 2).filter(|next| *next > 0));
        bench.planner.record(NIC, outcome, at(now));
        now += LAG.as_secs();
    }
    // Not even one: as after any refusal.
    assert_eq!(bench.plan(now, &[]), [""; 0]);
    now += 25;
    assert_eq!(bench.plan(now, &[]), ["assign IPv4 Addresses(1)"]);
    let one = &["10.0.0.5"];
    bench
        .planner
        .record(NIC, Outcome::Given(nets(one)), at(now));
    bench.tell(&Told {
        blocks: one,
        ranges: "10.0.0.5",
        used: "10.0.0.5",
        waiting: 2,
        ..Told::default()
    });
    // As little as there is, and in the end as much as is wanted.
    now += LAG.as_secs();
    assert_eq!(bench.plan(now, one), ["assign IPv4 Addresses(1)"]);
    now += MODEST.as_secs();
    assert_eq!(bench.plan(now, one), ["assign IPv4 Addresses(4)"]);
}

#[test]
fn what_is_too_much_for_long_enough_is_asked_back_from_the_top() {
    let five = Told {
        blocks: FIVE,
        ranges: "10.0.0.5-10.0.0.9",
        ..Told::default()
    };
    let mut bench = Bench::new(settings(), &five);
    assert_eq!(bench.plan(40, FIVE), [""; 0]);
    assert_eq!(bench.plan(99, FIVE), [""; 0]);
    assert_eq!(bench.plan(100, FIVE), ["ask [10.0.0.7-10.0.0.9]"]);
    // Three are warm and slack: nothing is given back, and the time begins anew when it was so in between.
    let mut bench = Bench::new(settings(), &five);
    bench.plan(40, FIVE);
    bench.tell(&Told {
        used: "10.0.0.5-10.0.0.6",
        ..five.clone()
    });
    assert_eq!(bench.plan(90, FIVE), [""; 0]);
    bench.tell(&five);
    assert_eq!(bench.plan(140, FIVE), [""; 0]);
    assert_eq!(bench.plan(200, FIVE), ["ask [10.0.0.7-10.0.0.9]"]);
}

#[test]
fn of_prefixes_whole_free_ones_are_asked_back() {
    let by = Settings {
        by: By::Prefix,
        warm: BTreeMap::from([(Family::V4, 1)]),
        ..settings()
    };
    let blocks: &[&str] = &[
        "10.0.0.16/28",
        "10.0.0.32/28",
        "10.0.0.48/28",
        "10.0.0.64/28",
    ];
    let told = Told {
        blocks,
        ranges: "10.0.0.16-10.0.0.79",
        used: "10.0.0.20, 10.0.0.70",
        ..Told::default()
    };
    let mut bench = Bench::new(by, &told);
    bench.plan(40, blocks);
    // 62 are free, in two whole ones and two that pods have a part of.
    assert_eq!(bench.plan(100, blocks), ["ask [10.0.0.32-10.0.0.63]"]);
}

#[test]
fn only_what_is_asked_back_and_surrendered_and_described_is_taken() {
    let five = Told {
        blocks: FIVE,
        ranges: "10.0.0.5-10.0.0.9",
        ..Told::default()
    };
    for (name, told, blocks, expected) in [
        (
            "surrendered",
            Told {
                asked: "10.0.0.8-10.0.0.9",
                surrendered: "10.0.0.9",
                ..five.clone()
            },
            FIVE,
            vec!["unassign 10.0.0.9/32"],
        ),
        (
            "surrendered, but not asked back",
            Told {
                surrendered: "10.0.0.9",
                ..five.clone()
            },
            FIVE,
            vec![],
        ),
        (
            "asked back, but not surrendered",
            Told {
                asked: "10.0.0.9",
                ..five.clone()
            },
            FIVE,
            vec![],
        ),
        (
            "an agent that contradicts itself",
            Told {
                asked: "10.0.0.8-10.0.0.9",
                surrendered: "10.0.0.8-10.0.0.9",
                resting: "10.0.0.8",
                ..five.clone()
            },
            FIVE,
            vec!["unassign 10.0.0.9/32"],
        ),
        (
            "gone already",
            Told {
                asked: "10.0.0.9",
                surrendered: "10.0.0.9",
                ..five.clone()
            },
            &FIVE[..4],
            vec![],
        ),
        (
            "the NIC's own",
            Told {
                asked: "10.0.0.4",
                surrendered: "10.0.0.4",
                ..five.clone()
            },
            FIVE,
            vec!["ask []"],
        ),
        (
            "neither told nor described: the wish is done with",
            Told {
                asked: "10.0.0.20",
                ..five.clone()
            },
            FIVE,
            vec!["ask []"],
        ),
        (
            "taken, and its agent holds it for a while, as of nobody",
            Told {
                asked: "10.0.0.20",
                held: "10.0.0.20",
                ..five.clone()
            },
            FIVE,
            vec!["ask []"],
        ),
        (
            "a pod has got it meanwhile",
            Told {
                asked: "10.0.0.9",
                used: "10.0.0.9",
                ..five
            },
            FIVE,
            vec!["ask []"],
        ),
    ] {
        assert_eq!(one(settings(), &told, blocks), expected, "{name}");
    }
}

#[test]
fn a_prefix_is_taken_when_all_of_it_is_surrendered() {
    let blocks: &[&str] = &["10.0.0.16/28", "10.0.0.32/28"];
    let told = Told {
        blocks,
        ranges: "10.0.0.16-10.0.0.47",
        asked: "10.0.0.32-10.0.0.47",
        surrendered: "10.0.0.32-10.0.0.46",
        ..Told::default()
    };
    let all = Told {
        surrendered: "10.0.0.32-10.0.0.47",
        ..told.clone()
    };
    assert_eq!(one(settings(), &told, blocks), [""; 0]);
    assert_eq!(one(settings(), &all, blocks), ["unassign 10.0.0.32/28"]);
}

#[test]
fn when_pods_wait_the_wishes_end_but_for_what_is_surrendered() {
    let told = Told {
        blocks: FIVE,
        ranges: "10.0.0.5-10.0.0.9",
        used: "10.0.0.5-10.0.0.6",
        asked: "10.0.0.8-10.0.0.9",
        surrendered: "10.0.0.9",
        waiting: 1,
        ..Told::default()
    };
    assert_eq!(
        one(settings(), &told, FIVE),
        ["unassign 10.0.0.9/32", "ask [10.0.0.9]"]
    );
}

#[test]
fn a_nic_that_is_not_the_nodes_or_that_two_tell_is_left_alone() {
    let mut bench = Bench::new(settings(), &Told::default());
    bench.nodes.get_mut("node-a").unwrap().instance = Some("i-2".into());
    let plan = bench.plan(40, &[]);
    assert!(
        plan[0].starts_with("note: eni-1 is not a NIC of this node's instance"),
        "{plan:?}"
    );
    let mut bench = Bench::new(settings(), &Told::default());
    bench.nodes.insert("node-b".into(), Told::default().facts());
    let plan = bench.plan(40, &[]);
    assert!(
        plan[0].starts_with("note: eni-1 is told by several nodes"),
        "{plan:?}"
    );
}

#[test]
fn nothing_is_taken_that_another_agent_says_it_has() {
    let told = Told {
        blocks: FIVE,
        ranges: "10.0.0.5-10.0.0.9",
        asked: "10.0.0.9",
        surrendered: "10.0.0.9",
        ..Told::default()
    };
    let mut bench = Bench::new(settings(), &told);
    let mut other = Told {
        ranges: "10.0.0.9",
        used: "10.0.0.9",
        ..Told::default()
    }
    .facts();
    if let Ok(report) = &mut other.report {
        report.told.nics[0].id = "eni-2".into();
    }
    bench.nodes.insert("node-b".into(), other);
    let plan = bench.plan(40, FIVE);
    assert!(
        !plan.iter().any(|each| each.starts_with("unassign")),
        "{plan:?}"
    );
}

#[test]
fn what_cannot_be_read_whole_or_is_newer_or_anothers_is_no_report() {
    let told = serde_json::to_string(&Told::default().report().told).unwrap();
    let newer = told.replace("\"version\":1", "\"version\":2");
    let asked = |version: u32| format!(r#"{{"version": {version}, "back": {{}}}}"#);
    let read = |told: Option<&String>, asked: Option<String>| {
        let mut data = BTreeMap::new();
        data.extend(told.map(|told| (TOLD.to_owned(), told.clone())));
        data.extend(asked.map(|asked| (ASKED.to_owned(), asked)));
        Report::read("node-a", "aws", Some(&data))
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    assert_eq!(read(Some(&told), None), Ok(()));
    assert_eq!(read(Some(&told), Some(asked(1))), Ok(()));
    for (told, asked, word) in [
        (None, None, "told nothing yet"),
        (Some(&newer), None, "update the controller"),
        (Some(&told), Some(asked(2)), "update the controller"),
        (
            Some(&told),
            Some("{".to_owned()),
            "asked.json cannot be read",
        ),
        (Some(&"[]".to_owned()), None, "told.json cannot be read"),
    ] {
        let error = read(told, asked).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    let mut data = BTreeMap::from([(TOLD.to_owned(), told)]);
    assert!(matches!(
        Report::read("node-b", "aws", Some(&data)),
        Err(Unreadable::Other(_))
    ));
    assert!(matches!(
        Report::read("node-a", "azure", Some(&data)),
        Err(Unreadable::Other(_))
    ));
    data.clear();
    assert_eq!(
        Report::read("node-a", "aws", Some(&data)),
        Err(Unreadable::Nothing)
    );
    // And without a report nothing is done.
    let mut bench = Bench::new(settings(), &Told::default());
    bench.nodes.get_mut("node-a").unwrap().report = Err(Unreadable::NoNode);
    assert_eq!(
        bench.plan(40, &[]),
        ["note: nothing is done for this node: the API server knows no such node"]
    );
}
