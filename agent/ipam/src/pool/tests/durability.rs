use std::fs;

use super::*;

const POOL: &str = "p: {subnet: 10.0.0.0/16, ips: [10.0.0.1-10.0.9.255], default: true}";

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_the_rest_goes_on() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], default: true}"),
    );
    let pools = lab.open();
    for container in ["a", "b", "c"] {
        add(&pools, &catalog, container);
    }
    release(&pools, "b");
    lab.pass(1);
    release(&pools, "a");
    let before = pools.list();
    drop(pools);
    lab.pass(58);
    let pools = lab.open();
    assert_eq!(pools.list(), before);
    assert!(
        matches!(reserve(&pools, &catalog, "d"), Err(PoolError::Full(_))),
        "both keep cooling down"
    );
    lab.pass(2);
    assert_eq!(
        add(&pools, &catalog, "d"),
        ["10.0.0.2"],
        "the longest-cooled, as before"
    );
    assert_eq!(add(&pools, &catalog, "e"), ["10.0.0.1"]);
}

#[test]
fn a_clock_that_was_set_back_makes_addresses_rest_longer_not_shorter() {
    let (lab, catalog) = (
        Lab::new(),
        catalog("p: {subnet: 10.0.0.0/24, ips: [10.0.0.1], default: true}"),
    );
    let pools = lab.open();
    add(&pools, &catalog, "a");
    release(&pools, "a");
    drop(pools);
    lab.clock.fetch_sub(3_600_000, Ordering::SeqCst);
    let pools = lab.open();
    lab.pass(59);
    assert!(matches!(
        reserve(&pools, &catalog, "b"),
        Err(PoolError::Full(_))
    ));
    lab.pass(1);
    add(&pools, &catalog, "b");
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused() {
    let lab = Lab::new();
    let pools = lab.open();
    let error = Pools::open(lab.dir.path(), Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("pool.journal is in use by another agent"),
        "{error}"
    );
    drop(pools);
    Pools::open(lab.dir.path(), Options::default()).unwrap();
}

#[test]
fn a_directory_that_is_not_there_is_made_for_root_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new();
    let dir = lab.dir.path().join("var/lib");
    Pools::open(&dir, Options::default()).unwrap();
    assert_eq!(
        fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let error = Pools::open(&dir.join("pool.journal"), Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Failed { .. }), "{error}");
}

#[test]
fn a_crowd_of_owners_gets_different_addresses_all_of_them_durable() {
    let (lab, catalog) = (Lab::new(), Arc::new(catalog(POOL)));
    let pools = lab.open();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .build()
        .unwrap();
    let mut got: Vec<IpAddr> = runtime.block_on(async {
        let tasks: Vec<_> = (0..300)
            .map(|number| {
                let (pools, catalog) = (pools.clone(), Arc::clone(&catalog));
                tokio::spawn(async move {
                    let container = format!("c{number}");
                    let allocation = grant(&pools, &catalog, &container)
                        .commit(json!(number))
                        .await
                        .unwrap();
                    if number % 3 == 0 {
                        pools.release(&owner(&container)).await.unwrap().unwrap();
                    }
                    addresses(&allocation.assigned)
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.append(&mut task.await.unwrap());
        }
        all
    });
    got.sort_unstable();
    got.dedup();
    assert_eq!(got.len(), 300);
    let before = pools.list();
    assert_eq!(before.len(), 200);
    drop((runtime, pools));
    assert_eq!(lab.open().list(), before);
}

#[test]
fn a_commit_whose_future_was_dropped_is_finished_and_can_be_released() {
    let (lab, catalog) = (Lab::new(), catalog(POOL));
    let pools = lab.open();
    let commit = grant(&pools, &catalog, "a").commit(json!("abandoned"));
    wait(async {
        let mut commit = Box::pin(commit);
        // One poll sends it to the writer.
        let _ = futures::poll!(&mut commit);
    });
    drop(pools);
    let pools = lab.open();
    assert_eq!(pools.list().len(), 1);
    assert!(release(&pools, "a").is_some());
    let unpolled = grant(&pools, &catalog, "b").commit(json!(null));
    drop(unpolled);
    assert!(
        matches!(reserve(&pools, &catalog, "b"), Ok(Reserved::New(_))),
        "never begun: given back"
    );
}
