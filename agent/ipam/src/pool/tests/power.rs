//! Power failures: what was written since the last sync is on the disk in part, sector by sector,
//! and files may have their earlier names.

use proptest::test_runner::{RngAlgorithm, TestRng};

use super::{disk::Disk, *};
use crate::pool::store::{Change, encode};

/// Covers every fsync: if one were left out anywhere, an acknowledged address would be missing.
#[test]
fn what_was_acknowledged_outlives_a_power_failure_at_any_moment() {
    let catalog = catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.99], default: true}");
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let (disk, lab) = (Disk::default(), Lab::new());
    let pools = disk.open(&lab);
    let (mut unsynced, mut whole) = (0, 0);
    for number in 0..60usize {
        add(&pools, &catalog, &number.to_string());
        if number % 3 == 0 {
            release(&pools, &number.to_string());
        }
        let acknowledged = pools.list();
        // The next request gets as far as the write, or not even that far.
        for changes in [1, 0] {
            disk.fail_after(changes);
            let next = grant(&pools, &catalog, "next");
            let long = json!("next".repeat(number * 40));
            wait(next.commit(long)).unwrap_err();
            for _ in 0..8 {
                unsynced += usize::from(disk.is_unsynced());
                let after = disk.after_power_failure(&mut random);
                let mut found = after.open(&Lab::new()).list();
                whole += usize::from(found.iter().any(|each| each.owner == owner("next")));
                found.retain(|each| each.owner != owner("next"));
                assert_eq!(found, acknowledged, "after {number}");
            }
            disk.mend();
        }
        lab.pass(60);
    }
    assert!(unsynced > 100 && whole > 10, "{unsynced} {whole}");
}

/// Every step of a rewrite, with and without a failure of the disk there, followed by a power failure.
#[test]
fn a_journal_that_begins_anew_loses_nothing_wherever_that_is_cut_off() {
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let put = |disk: &Disk, number: u64| Allocation {
        owner: owner(&number.to_string()),
        pod: None,
        assigned: vec![],
        record: json!({"number": number, "disk": disk.is_unsynced()}).into(),
        since: number,
        sticky: false,
    };
    for changes in 0..12 {
        let disk = Disk::default();
        let (mut journal, mut truth) = disk.journal().unwrap();
        let mut lines = Vec::new();
        for number in 0..20 {
            let allocation = put(&disk, number);
            encode(&mut lines, Change::Put(&allocation)).unwrap();
            journal.append(&mut lines).unwrap();
            truth
                .allocations
                .insert(allocation.owner.clone(), Arc::new(allocation));
        }
        disk.fail_after(changes);
        let rewritten = journal.rewrite(&truth);
        let look = |truth: &store::Contents, random: &mut TestRng| {
            for _ in 0..32 {
                let (_, found) = disk.after_power_failure(random).journal().unwrap();
                assert_eq!(found, *truth, "after {changes}");
            }
        };
        look(&truth, &mut random);
        // It stays in use, whichever file it has now; what fails was not acknowledged.
        for number in 20..24 {
            let allocation = put(&disk, number);
            encode(&mut lines, Change::Put(&allocation)).unwrap();
            if journal.append(&mut lines).is_err() {
                disk.mend();
                continue;
            }
            truth
                .allocations
                .insert(allocation.owner.clone(), Arc::new(allocation));
            look(&truth, &mut random);
        }
        assert!(truth.allocations.len() >= 23);
        assert!(changes < 4 || rewritten.is_ok(), "after {changes}");
    }
}
