//! A disk that fails at every possible moment.

use super::{disk::Disk, *};

const POOL: &str = "p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}";

/// Runs `test` with the disk failing after 0, 1, 2... changes, until it reports that nothing failed.
pub(super) fn at_every_change(test: impl Fn(&Lab, &Disk, i64) -> bool) {
    for changes in 0..200 {
        let lab = Lab::new();
        let disk = Disk::default();
        if !test(&lab, &disk, changes) {
            assert!(changes >= 2, "a write and a sync at the least");
            return;
        }
    }
    panic!("the disk never stopped failing");
}

#[test]
fn an_add_that_could_not_be_written_did_not_happen_and_never_comes_back_beside_another() {
    let catalog = catalog(POOL);
    at_every_change(|lab, disk, changes| {
        let pools = disk.open(lab);
        add(&pools, &catalog, "old");
        let second = grant(&pools, &catalog, "a");
        disk.fail_after(changes);
        let result = wait(second.commit(json!(null)));
        let failed = disk.mend();
        assert_eq!(result.is_err(), failed, "after {changes}: {result:?}");
        if let Err(error) = result {
            assert!(
                error
                    .to_string()
                    .contains("see that the file system has space"),
                "{error}"
            );
            assert_eq!(
                add(&pools, &catalog, "b"),
                ["10.0.0.2"],
                "after {changes}: given back, and served again"
            );
        }
        let before = pools.list();
        assert_eq!(before.len(), 2);
        drop(pools);
        assert_eq!(disk.open(lab).list(), before, "after {changes}");
        failed
    });
}

#[test]
fn a_release_that_could_not_be_written_did_not_happen() {
    let catalog = catalog(POOL);
    at_every_change(|lab, disk, changes| {
        let pools = disk.open(lab);
        add(&pools, &catalog, "a");
        disk.fail_after(changes);
        let result = wait(pools.release(&owner("a")));
        let failed = disk.mend();
        assert_eq!(result.is_err(), failed, "after {changes}: {result:?}");
        assert_eq!(
            get(&pools, &owner("a")).is_some(),
            failed,
            "after {changes}"
        );
        add(&pools, &catalog, "b");
        let before = pools.list();
        drop(pools);
        let pools = disk.open(lab);
        assert_eq!(pools.list(), before, "after {changes}");
        assert_eq!(release(&pools, "a").is_some(), failed);
        failed
    });
}

#[test]
fn a_crash_in_the_middle_of_a_write_leaves_either_all_of_it_or_nothing() {
    let catalog = catalog(POOL);
    at_every_change(|lab, disk, changes| {
        let pools = disk.open(lab);
        add(&pools, &catalog, "old");
        disk.fail_after(changes);
        let result = wait(grant(&pools, &catalog, "new").commit(json!(null)));
        // Nothing more reaches the disk: not even the writes of an orderly end.
        disk.fail_after(0);
        drop(pools);
        disk.mend();
        let containers: Vec<String> = disk
            .open(lab)
            .list()
            .into_iter()
            .map(|each| each.owner.container_id)
            .collect();
        let whole = containers == ["new", "old"];
        assert!(
            whole || (result.is_err() && containers == ["old"]),
            "after {changes}: {containers:?}, {result:?}"
        );
        result.is_err()
    });
}

/// Data written after a failure, and cut off by a crash, must not be combined with the remains of the failed batch.
#[test]
fn a_crash_after_a_failure_leaves_what_was_acknowledged() {
    let catalog = catalog(POOL);
    at_every_change(|lab, disk, changes| {
        let pools = disk.open(lab);
        add(&pools, &catalog, "old");
        // Fails after it was written and before it was synced.
        disk.fail_after(1);
        let long = json!("long".repeat(1000));
        assert!(wait(grant(&pools, &catalog, "failed").commit(long)).is_err());
        disk.fail_after(changes);
        let result = wait(grant(&pools, &catalog, "new").commit(json!(null)));
        disk.fail_after(0);
        let acknowledged = pools.list();
        drop(pools);
        disk.mend();
        let found = disk.open(lab).list();
        if result.is_ok() {
            assert_eq!(found, acknowledged, "after {changes}");
        }
        assert!(found.iter().any(|each| each.owner == owner("old")));
        let mut addresses: Vec<_> = found.iter().map(|each| each.assigned[0].address).collect();
        addresses.dedup();
        assert_eq!(addresses.len(), found.len(), "after {changes}");
        result.is_err()
    });
}
