//! One test for each public bug of software that trusts a metadata service.

use super::*;

/// An address that was unassigned was listed, given to a pod after a restart, and its traffic dropped in silence.
#[test]
fn vpc_cni_3887_what_was_unassigned_is_not_trusted_when_it_is_listed_after_a_restart() {
    let mut lab = Lab::default();
    for _ in 0..2 {
        lab.read(30, [nic(1, "10.0.1.10 10.0.1.11")]);
    }
    assert_eq!(lab.usable(1), "10.0.1.10 10.0.1.11");
    lab.read(30, [nic(1, "10.0.1.10")]);
    for _ in 0..3 {
        lab.restart();
        assert_eq!(lab.usable(1), "10.0.1.10");
        for _ in 0..9 {
            lab.read(30, [nic(1, "10.0.1.10 10.0.1.11")]);
            assert_eq!(
                (lab.usable(1).as_str(), lab.waiting(1).as_str()),
                ("10.0.1.10", "10.0.1.11")
            );
        }
    }
    // The ghost goes, as it came.
    lab.read(30, [nic(1, "10.0.1.10")]);
    assert_eq!(lab.held(1), "10.0.1.11");
    // It is really assigned again.
    for _ in 0..11 {
        assert_eq!(lab.usable(1), "10.0.1.10");
        lab.read(30, [nic(1, "10.0.1.10 10.0.1.11")]);
    }
    assert_eq!(lab.usable(1), "10.0.1.10 10.0.1.11");
}

/// Addresses in use were released, since two lists were compared by their lengths.
#[test]
fn vpc_cni_3019_lists_of_the_same_length_are_not_the_same_list() {
    let mut lab = Lab::default();
    for _ in 0..2 {
        lab.read(30, [nic(1, "10.0.1.10 10.0.1.11")]);
    }
    lab.pod("10.0.1.10");
    let changes = lab.read(30, [nic(1, "10.0.1.11 10.0.1.12")]);
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert!(matches!(changes[0], Change::Held { .. }), "{changes:?}");
    assert_eq!(
        (
            lab.usable(1).as_str(),
            lab.held(1).as_str(),
            lab.waiting(1).as_str()
        ),
        ("10.0.1.11", "10.0.1.10", "10.0.1.12")
    );
    for _ in 0..100 {
        lab.read(30, [nic(1, "10.0.1.11 10.0.1.12")]);
        assert_eq!(lab.held(1), "10.0.1.10");
    }
    // A shorter list is not no list.
    lab.read(30, [nic(1, "")]);
    assert_eq!(lab.held(1), "10.0.1.10 10.0.1.11 10.0.1.12");
}

/// A prefix with a running pod was released after a false verdict about it.
#[test]
fn vpc_cni_3824_a_prefix_in_use_is_kept_whatever_the_service_says_and_for_how_long() {
    let mut lab = Lab::default();
    let told = |prefixes| [with(nic(1, ""), Kind::V4Prefixes, prefixes)];
    for _ in 0..2 {
        lab.read(30, told("10.0.7.16/28"));
    }
    lab.pod("10.0.7.20");
    let mut all = lab.read(30, told(""));
    for _ in 0..200 {
        all.extend(lab.read(30, told("")));
        assert_eq!(
            (lab.usable(1).as_str(), lab.held(1).as_str()),
            ("", "10.0.7.16/28")
        );
    }
    assert_eq!(all.len(), 1, "{all:?}");
    lab.pods.clear();
    let all = lab.read(30, told(""));
    assert!(matches!(all[..], [Change::Forgotten { .. }]), "{all:?}");
    assert_eq!(lab.held(1), "");
}

/// An interface with running pods was deleted, since it was not in an answer.
#[test]
fn vpc_cni_1967_a_nic_that_is_not_in_an_answer_keeps_its_pods() {
    let mut lab = Lab::default();
    let both = || [nic(1, "10.0.1.10"), nic(2, "10.0.2.10 10.0.2.11")];
    for _ in 0..2 {
        lab.read(30, both());
    }
    lab.pod("10.0.2.10");
    // No answer at all, or one without any NIC, is no news.
    assert_eq!(lab.read(30, []), []);
    assert_eq!(lab.usable(2), "10.0.2.10 10.0.2.11");
    let changes = lab.read(30, [nic(1, "10.0.1.10")]);
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert_eq!(
        (lab.usable(2).as_str(), lab.held(2).as_str()),
        ("", "10.0.2.10 10.0.2.11")
    );
    for _ in 0..25 {
        lab.read(30, [nic(1, "10.0.1.10")]);
    }
    assert_eq!(
        lab.held(2),
        "10.0.2.10",
        "the other one is forgotten, nobody has it"
    );
    lab.read(30, both());
    assert_eq!(
        (lab.usable(2).as_str(), lab.waiting(2).as_str()),
        ("", "10.0.2.10 10.0.2.11")
    );
    for _ in 0..10 {
        lab.read(30, both());
    }
    assert_eq!(lab.usable(2), "10.0.2.10 10.0.2.11");
}

/// A detached interface was listed for minutes while its keys answered 404, or for ever, and the agent ended in a loop.
#[test]
fn vpc_cni_194_and_1340_a_detached_nic_that_is_still_listed_has_nothing_after_three_reads() {
    let mut lab = Lab::default();
    for _ in 0..2 {
        lab.read(30, [nic(1, "10.0.1.10"), nic(2, "10.0.2.10")]);
    }
    lab.pod("10.0.2.10");
    let ghost = || without(nic(2, ""), Kind::V4Addresses);
    for read in 1..=400 {
        lab.read(30, [nic(1, "10.0.1.10"), ghost()]);
        let expected = if read < UNANSWERED.into() {
            "10.0.2.10"
        } else {
            ""
        };
        assert_eq!(lab.usable(2), expected, "read {read}");
        assert_eq!(lab.usable(1), "10.0.1.10");
    }
    assert_eq!(lab.held(2), "10.0.2.10", "a pod has it");
    assert_eq!(lab.ledger.nics().count(), 2);
    // At last it is not listed.
    lab.pods.clear();
    for _ in 0..30 {
        lab.read(30, [nic(1, "10.0.1.10")]);
    }
    assert_eq!(lab.ledger.nics().count(), 1);
}

/// The MAC of a new interface came late, and the interface was rolled back.
#[test]
fn terway_676_a_nic_that_comes_late_is_new_whenever_it_comes() {
    let mut lab = Lab::default();
    lab.read(30, [nic(1, "10.0.1.10")]);
    lab.read(30, [nic(1, "10.0.1.10")]);
    assert_eq!(lab.ledger.nic(mac(2)), None);
    assert_eq!(lab.usable(2), "");
    // Its MAC first, its addresses later.
    let bare = CloudNic {
        primary: vec![],
        subnets: vec![],
        ..without(nic(2, ""), Kind::V4Addresses)
    };
    let changes = lab.read(600, [nic(1, "10.0.1.10"), bare]);
    assert!(
        matches!(changes[..], [Change::NicNew { .. }]),
        "{changes:?}"
    );
    for _ in 0..2 {
        assert_eq!(lab.usable(2), "");
        lab.read(5, [nic(1, "10.0.1.10"), nic(2, "10.0.2.10")]);
    }
    assert_eq!(lab.usable(2), "10.0.2.10");
    assert_eq!(
        lab.ledger.nic(mac(2)).unwrap().subnets,
        [net("10.0.0.0/16")]
    );
}
