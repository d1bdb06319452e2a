//! Each rule, as a table of reads and what follows.

use super::*;

/// Reads: seconds since the one before, the addresses told, and what is usable, held and waiting then.
type Row = (u64, &'static str, [&'static str; 3]);

fn run(what: &str, pods: &[&str], rows: &[Row]) {
    let mut lab = Lab::default();
    pods.iter().for_each(|pod| lab.pod(pod));
    for (place, (seconds, addresses, expected)) in rows.iter().enumerate() {
        lab.read(*seconds, [nic(1, addresses)]);
        let found = [lab.usable(1), lab.held(1), lab.waiting(1)];
        assert_eq!(found, *expected, "{what}: read {place} of {addresses:?}");
    }
}

#[test]
fn a_block_is_added_slowly_and_withdrawn_at_once() {
    let a = "10.0.1.10";
    run(
        "two equal reads, five seconds apart",
        &[],
        &[
            (0, a, ["", "", a]),
            (5, a, [a, "", ""]),
            (5, "", ["", a, ""]),
        ],
    );
    run(
        "two reads within five seconds are not enough",
        &[],
        &[
            (0, a, ["", "", a]),
            (4, a, ["", "", a]),
            (1, a, [a, "", ""]),
        ],
    );
    run(
        "one read is not enough, however much later it is",
        &[],
        &[
            (0, "", ["", "", ""]),
            (9000, a, ["", "", a]),
            (30, a, [a, "", ""]),
        ],
    );
    run("a pod has it", &["10.0.1.10"], &[(0, a, [a, "", ""])]);
    run(
        "a pod has it, but the cloud took it away",
        &["10.0.1.10"],
        &[
            (0, a, [a, "", ""]),
            (30, "", ["", a, ""]),
            (30, a, ["", "", a]),
            (299, a, ["", "", a]),
            (1, a, [a, "", ""]),
        ],
    );
    run(
        "five minutes and two reads",
        &[],
        &[
            (0, a, ["", "", a]),
            (30, a, [a, "", ""]),
            (30, "", ["", a, ""]),
            (301, a, ["", "", a]),
            (300, a, [a, "", ""]),
        ],
    );
    run(
        "five minutes on end",
        &[],
        &[
            (0, a, ["", "", a]),
            (30, a, [a, "", ""]),
            (30, "", ["", a, ""]),
            (30, a, ["", "", a]),
            (290, a, ["", "", a]),
            (5, "", ["", a, ""]),
            (5, a, ["", "", a]),
            (290, a, ["", "", a]),
            (10, a, [a, "", ""]),
        ],
    );
    run(
        "what was never usable is distrusted as well",
        &[],
        &[
            (0, a, ["", "", a]),
            (30, "", ["", "", ""]),
            (30, a, ["", "", a]),
            (30, a, ["", "", a]),
            (270, a, [a, "", ""]),
        ],
    );
    run(
        "forgotten after ten minutes, and new then",
        &[],
        &[
            (0, a, ["", "", a]),
            (30, a, [a, "", ""]),
            (30, "", ["", a, ""]),
            (599, "", ["", a, ""]),
            (1, "", ["", "", ""]),
            (30, a, ["", "", a]),
            (30, a, [a, "", ""]),
        ],
    );
    run(
        "a primary address is no pod's, whatever it is called",
        &["10.0.1.4"],
        &[
            (0, "10.0.1.4 10.0.1.10", ["", "", a]),
            (30, "10.0.1.4 10.0.1.10", [a, "", ""]),
        ],
    );
}

#[test]
fn a_kind_without_an_answer_counts_after_three_reads_and_an_empty_one_at_once() {
    let full = || with(nic(1, "10.0.1.10"), Kind::V4Prefixes, "10.0.7.0/28");
    let gap = || without(full(), Kind::V4Prefixes);
    let mut lab = Lab::default();
    for _ in 0..2 {
        lab.read(30, [full()]);
    }
    for _ in 0..5 {
        // Two reads without it are no news, again and again, and across restarts.
        for _ in 0..2 {
            lab.read(30, [gap()]);
            assert_eq!(lab.usable(1), "10.0.1.10 10.0.7.0/28");
            lab.restart();
        }
        lab.read(30, [full()]);
    }
    for expected in [
        "10.0.1.10 10.0.7.0/28",
        "10.0.1.10 10.0.7.0/28",
        "10.0.1.10",
    ] {
        lab.read(30, [gap()]);
        assert_eq!(lab.usable(1), expected);
        lab.restart();
    }
    assert_eq!(lab.held(1), "10.0.7.0/28");
    // Never answered is nothing, too.
    lab.read(30, [without(gap(), Kind::V6Prefixes)]);
    lab.read(30, [with(full(), Kind::V4Prefixes, "")]);
    assert_eq!(lab.usable(1), "10.0.1.10");
    // What waits begins anew where there was no answer.
    let mut lab = Lab::default();
    lab.read(30, [full()]);
    lab.read(30, [gap()]);
    lab.read(30, [full()]);
    assert_eq!(
        (lab.usable(1).as_str(), lab.waiting(1).as_str()),
        ("10.0.1.10", "10.0.7.0/28")
    );
    lab.read(30, [full()]);
    assert_eq!(lab.usable(1), "10.0.1.10 10.0.7.0/28");
}

#[test]
fn a_restart_knows_what_was_usable_and_waits_anew_for_the_rest() {
    let mut lab = Lab::default();
    lab.read(30, [nic(1, "10.0.1.10")]);
    lab.read(30, [nic(1, "10.0.1.10 10.0.1.11")]);
    lab.restart();
    // The service does not answer yet.
    assert_eq!(lab.usable(1), "10.0.1.10");
    assert_eq!(
        lab.ledger.nic(mac(1)).unwrap().subnets,
        [net("10.0.0.0/16")]
    );
    // Much later by the new process' clock, which says nothing.
    lab.read(100_000, [nic(1, "10.0.1.10 10.0.1.11")]);
    assert_eq!(lab.usable(1), "10.0.1.10");
    lab.read(30, [nic(1, "10.0.1.10 10.0.1.11")]);
    assert_eq!(lab.usable(1), "10.0.1.10 10.0.1.11");
    lab.restart();
    // It was taken away meanwhile.
    lab.read(30, [nic(1, "10.0.1.10")]);
    assert_eq!(
        (lab.usable(1).as_str(), lab.held(1).as_str()),
        ("10.0.1.10", "10.0.1.11")
    );
}

#[test]
fn a_moved_block_is_usable_there_when_nobody_has_it_by_the_first_nic() {
    let mut lab = Lab::default();
    let a = || [nic(1, "10.0.1.10"), nic(2, "")];
    let b = || [nic(1, ""), nic(2, "10.0.1.10")];
    for _ in 0..2 {
        lab.read(30, a());
    }
    lab.pod("10.0.1.10");
    for _ in 0..30 {
        lab.read(30, b());
        assert_eq!((lab.usable(1).as_str(), lab.usable(2).as_str()), ("", ""));
        assert_eq!(
            (lab.held(1).as_str(), lab.waiting(2).as_str()),
            ("10.0.1.10", "10.0.1.10")
        );
        let why = lab.ledger.waiting(mac(2))[0];
        assert_eq!(why.reason, Reason::UsedOn { mac: mac(1) });
        assert!(
            why.to_string()
                .contains("pods have addresses of it by NIC 02:00:00:00:00:01"),
            "{why}"
        );
    }
    lab.pods.clear();
    for _ in 0..2 {
        assert_eq!(lab.usable(2), "");
        lab.read(30, b());
    }
    assert_eq!(
        (lab.usable(1).as_str(), lab.usable(2).as_str()),
        ("", "10.0.1.10")
    );
    // A pod has it by the second; a ghost of the first changes nothing.
    lab.pod("10.0.1.10");
    for _ in 0..30 {
        lab.read(30, [nic(1, "10.0.1.10"), nic(2, "10.0.1.10")]);
        assert_eq!(
            (lab.usable(1).as_str(), lab.usable(2).as_str()),
            ("", "10.0.1.10")
        );
        assert_eq!(lab.waiting(1), "10.0.1.10");
    }
    // It vanishes and returns where its pods are: they are not the first's.
    lab.read(30, [nic(1, ""), nic(2, "")]);
    for _ in 0..11 {
        assert_eq!(lab.usable(2), "");
        lab.read(30, b());
    }
    assert_eq!(lab.usable(2), "10.0.1.10");
    // Back to the first one, while a pod has it by the second.
    lab.read(30, a());
    for _ in 0..30 {
        lab.read(30, a());
        assert_eq!(
            (lab.usable(1).as_str(), lab.held(2).as_str()),
            ("", "10.0.1.10")
        );
    }
    lab.pods.clear();
    for _ in 0..12 {
        lab.read(30, a());
    }
    assert_eq!(
        (lab.usable(1).as_str(), lab.usable(2).as_str()),
        ("10.0.1.10", "")
    );
}

#[test]
fn a_moved_block_is_the_second_nics_alone_though_the_first_is_remembered_to_have_had_it() {
    let mut lab = Lab::default();
    let a = || [nic(1, "10.0.1.10"), nic(2, "")];
    let b = || [nic(1, ""), nic(2, "10.0.1.10")];
    for told in [a(), a(), b(), b()] {
        lab.read(30, told);
    }
    assert_eq!(
        (lab.held(1).as_str(), lab.usable(2).as_str()),
        ("10.0.1.10", "10.0.1.10")
    );
    // A pod gets it by the second, where it vanishes and returns: the pod is no reason against that.
    lab.pod("10.0.1.10");
    lab.read(30, [nic(1, ""), nic(2, "")]);
    for _ in 0..11 {
        assert_eq!(lab.usable(2), "");
        lab.read(30, b());
    }
    assert_eq!(lab.usable(2), "10.0.1.10");
}

#[test]
fn what_two_nics_are_told_to_have_stays_where_it_was_and_begins_nowhere() {
    let both = || [nic(1, "10.0.1.10 10.0.1.11"), nic(2, "10.0.1.10 10.0.1.11")];
    let mut lab = Lab::default();
    for _ in 0..2 {
        lab.read(30, [nic(1, "10.0.1.10"), nic(2, "")]);
    }
    for _ in 0..20 {
        lab.read(30, both());
        assert_eq!(
            (lab.usable(1).as_str(), lab.usable(2).as_str()),
            ("10.0.1.10", "")
        );
        assert_eq!(
            lab.ledger.waiting(mac(1))[0].reason,
            Reason::AlsoOn { mac: mac(2) }
        );
    }
    // Not even for a pod that has it, since nobody knows by which one.
    let mut lab = Lab::default();
    lab.pod("10.0.1.11");
    lab.read(30, both());
    assert_eq!((lab.usable(1).as_str(), lab.usable(2).as_str()), ("", ""));
    // A prefix on one and an address of it on the other is the same.
    let mut lab = Lab::default();
    for _ in 0..3 {
        lab.read(
            30,
            [
                with(nic(1, ""), Kind::V4Prefixes, "10.0.7.0/28"),
                nic(2, "10.0.7.3 10.0.8.1"),
            ],
        );
    }
    assert_eq!(
        (lab.usable(1).as_str(), lab.usable(2).as_str()),
        ("", "10.0.8.1")
    );
    // The ordinary two reads begin when it is told of one.
    for expected in ["10.0.8.1", "10.0.7.3 10.0.8.1"] {
        lab.read(
            30,
            [
                with(nic(1, ""), Kind::V4Prefixes, ""),
                nic(2, "10.0.7.3 10.0.8.1"),
            ],
        );
        assert_eq!(lab.usable(2), expected);
    }
}

#[test]
fn an_address_in_a_prefix_is_there_once() {
    let mut lab = Lab::default();
    let told =
        |addresses: &str, prefixes: &str| [with(nic(1, addresses), Kind::V4Prefixes, prefixes)];
    for _ in 0..2 {
        lab.read(30, told("10.0.7.3 10.0.7.17", "10.0.7.0/28 10.0.7.0/28"));
    }
    assert_eq!(lab.usable(1), "10.0.7.0/28 10.0.7.17");
    lab.read(30, told("10.0.7.3 10.0.7.17", ""));
    assert_eq!(
        (lab.usable(1).as_str(), lab.held(1).as_str()),
        ("10.0.7.3 10.0.7.17", "10.0.7.0/28")
    );
}

#[test]
fn a_pods_address_proves_a_new_block_where_nothing_else_is_known_to_have_it() {
    let told =
        |addresses: &str, prefixes: &str| [with(nic(1, addresses), Kind::V4Prefixes, prefixes)];
    // An agent without its file: the pod has it from somewhere.
    let mut lab = Lab::default();
    lab.pod("10.0.7.3");
    lab.read(0, told("", "10.0.7.0/28"));
    assert_eq!(lab.usable(1), "10.0.7.0/28");
    // The pod has it by the address that was assigned: of the prefix nothing is known.
    let mut lab = Lab::default();
    lab.pod("10.0.7.3");
    lab.read(0, told("10.0.7.3", ""));
    for (seconds, usable) in [(30, "10.0.7.3"), (30, "10.0.7.0/28")] {
        lab.read(seconds, told("10.0.7.3", "10.0.7.0/28"));
        assert_eq!(lab.usable(1), usable);
    }
}

#[test]
fn what_is_told_of_a_nic_itself_counts_at_once() {
    let mut lab = Lab::default();
    for _ in 0..2 {
        lab.read(30, [nic(1, "10.0.1.10 10.0.1.11")]);
    }
    let moved = CloudNic {
        id: "eni-x".into(),
        primary: vec!["10.0.1.10".parse().unwrap()],
        subnets: vec![net("10.0.1.0/24")],
        gateways: vec!["10.0.1.1".parse().unwrap()],
        ..nic(1, "10.0.1.10 10.0.1.11")
    };
    let changes = lab.read(30, [moved.clone()]);
    assert_eq!(
        changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "NIC eni-x (02:00:00:00:00:01): the cloud does not tell 10.0.1.10/32 any more; pods keep what they have of it, \
          new ones get none"
        ]
    );
    assert_eq!(lab.usable(1), "10.0.1.11");
    let told = lab.ledger.nic(mac(1)).unwrap();
    assert_eq!((&told.id, &told.primary), (&moved.id, &moved.primary));
    assert_eq!(
        (&told.subnets, &told.gateways),
        (&moved.subnets, &moved.gateways)
    );
    // Another NIC's primary address is no pod's either.
    lab.read(30, [nic(1, "10.0.2.4 10.0.1.11"), nic(2, "")]);
    assert_eq!(
        (lab.usable(1).as_str(), lab.waiting(1).as_str()),
        ("10.0.1.11", "")
    );
}

#[test]
fn a_clock_that_goes_back_makes_nothing_usable_earlier_and_stops_nothing_for_good() {
    let a = "10.0.1.10";
    let mut lab = Lab {
        now: 1_000_000,
        ..Lab::default()
    };
    lab.read(30, [nic(1, a)]);
    lab.now = 500_000;
    lab.read(0, [nic(1, a)]);
    assert_eq!(lab.usable(1), "");
    lab.read(5, [nic(1, a)]);
    assert_eq!(lab.usable(1), a);
    lab.read(30, [nic(1, "")]);
    lab.read(30, [nic(1, a)]);
    for _ in 0..20 {
        lab.now -= 10_000;
        lab.read(0, [nic(1, a)]);
        assert_eq!(lab.usable(1), "");
    }
    lab.read(299, [nic(1, a)]);
    assert_eq!(lab.usable(1), "");
    lab.read(1, [nic(1, a)]);
    assert_eq!(lab.usable(1), a);
}

#[test]
fn nonsense_is_left_out() {
    let mut lab = Lab::default();
    let odd = || {
        [with(
            nic(1, "fd00::1 10.0.1.10/24"),
            Kind::V6Addresses,
            "10.0.0.9 fd00::9/128",
        )]
    };
    for _ in 0..2 {
        lab.read(30, odd());
    }
    assert_eq!(lab.usable(1), "10.0.1.0/24 fd00::9");
    assert_eq!(lab.ledger.fault(), None);
}
