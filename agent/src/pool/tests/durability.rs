use std::fs;

use redb::{Database, ReadableDatabase as _, TableDefinition};

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
        "both rest on"
    );
    lab.pass(2);
    assert_eq!(
        add(&pools, &catalog, "d"),
        ["10.0.0.2"],
        "the longest-rested, as before"
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
            .contains("pool.redb is in use by another agent"),
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
    let error = Pools::open(&dir.join("pool.redb"), Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Failed { .. }), "{error}");
}

#[test]
fn another_schema_is_refused_and_left_as_it_is() {
    let lab = Lab::new();
    drop(lab.open());
    let path = lab.dir.path().join("pool.redb");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(TableDefinition::<&str, u64>::new("meta"))
        .unwrap()
        .insert("schema", 7)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Pools::open(lab.dir.path(), Options::default()).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Schema {
                found: 7,
                supported: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_store_of_version_1_is_read_and_rewritten() {
    let lab = Lab::new();
    let pools = lab.open();
    for container in ["a", "b", "c"] {
        add(&pools, &catalog(POOL), container);
    }
    release(&pools, "c");
    let before = pools.list();
    drop(pools);
    let path = lab.dir.path().join("pool.redb");
    let table = TableDefinition::<(&str, &str, &str), &[u8]>::new("allocations");
    let meta = TableDefinition::<&str, u64>::new("meta");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    for allocation in &before {
        let container = allocation.owner.container_id.as_str();
        let value = serde_json::to_vec(allocation).unwrap();
        let mut rows = transaction.open_table(table).unwrap();
        rows.insert(("net", container, "eth0"), value.as_slice())
            .unwrap();
    }
    transaction
        .open_table(meta)
        .unwrap()
        .insert("schema", 1)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let pools = lab.open();
        assert_eq!(pools.list(), before);
        assert_eq!(pools.usage(&catalog(POOL))[0].resting, 1);
    }
    let transaction = Database::open(&path).unwrap().begin_read().unwrap();
    let schema = transaction.open_table(meta).unwrap().get("schema").unwrap();
    assert_eq!(schema.unwrap().value(), 2);
}

#[test]
fn a_file_that_is_not_ours_or_holds_nonsense_is_called_damaged() {
    let lab = Lab::new();
    let path = lab.dir.path().join("pool.redb");
    for content in [&b"no database at all"[..], &[0xff; 8192]] {
        fs::write(&path, content).unwrap();
        let error = Pools::open(lab.dir.path(), Options::default()).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("move it aside"), "{error}");
    }
    fs::remove_file(&path).unwrap();
    drop(lab.open());
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let table = TableDefinition::<(&str, &str, &str), &[u8]>::new("allocations");
    transaction
        .open_table(table)
        .unwrap()
        .insert(("net", "c", "eth0"), &b"{\"owner\":1}"[..])
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Pools::open(lab.dir.path(), Options::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the record of eth0 of container c in network net"),
        "{error}"
    );
}

#[test]
fn one_address_with_two_owners_on_disk_is_called_damaged() {
    let lab = Lab::new();
    let pools = lab.open();
    add(&pools, &catalog(POOL), "a");
    let mut double = pools.get(&owner("a")).unwrap();
    drop(pools);
    double.owner = owner("b");
    let database = Database::open(lab.dir.path().join("pool.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let table = TableDefinition::<(&str, &str, &str), &[u8]>::new("allocations");
    let value = codec::encode(&double).unwrap();
    transaction
        .open_table(table)
        .unwrap()
        .insert(("net", "b", "eth0"), value.as_slice())
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Pools::open(lab.dir.path(), Options::default()).unwrap_err();
    assert!(
        error.to_string().contains("has another owner as well"),
        "{error}"
    );
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

#[test]
fn what_a_killed_agent_leaves_is_whole() {
    let (lab, other) = (Lab::new(), Lab::new());
    let catalog = catalog(POOL);
    let pools = lab.open();
    for container in ["a", "b", "c"] {
        add(&pools, &catalog, container);
        // Still open: the file is as it is after kill -9, not as after an orderly end.
        fs::copy(
            lab.dir.path().join("pool.redb"),
            other.dir.path().join("pool.redb"),
        )
        .unwrap();
        assert_eq!(other.open().list(), pools.list());
    }
}

#[test]
fn a_flipped_bit_is_called_damage_or_changes_nothing() {
    let lab = Lab::new();
    let pools = lab.open();
    for number in 0..5 {
        add(&pools, &catalog(POOL), &number.to_string());
    }
    let before = pools.list();
    drop(pools);
    let path = lab.dir.path().join("pool.redb");
    let good = fs::read(&path).unwrap();
    let mut damaged = 0;
    // The header, where redb's own consistency is, and a sample of the pages.
    for position in (0..512).step_by(7).chain((512..good.len()).step_by(379)) {
        let mut bad = good.clone();
        bad[position] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        match Pools::open(lab.dir.path(), Options::default()) {
            Ok(pools) => assert_eq!(pools.list(), before, "bit in byte {position}"),
            Err(OpenError::Corrupt { .. }) => {
                damaged += 1;
                assert_eq!(
                    fs::read(&path).unwrap(),
                    bad,
                    "left as it is for the next start to refuse, too"
                );
            }
            Err(other) => panic!("byte {position}: {other}"),
        }
    }
    assert!(damaged > 10, "{damaged}");
}

#[test]
fn a_flipped_bit_and_an_unclean_end_together_lose_nothing_without_a_word() {
    let lab = Lab::new();
    let pools = lab.open();
    for number in 0..5 {
        add(&pools, &catalog(POOL), &number.to_string());
    }
    let before = pools.list();
    // Still open: as kill -9 leaves them.
    let read = |name: &str| fs::read(lab.dir.path().join(name)).unwrap();
    let (good, mark) = (read("pool.redb"), read("pool.mark"));
    let mut behind = 0;
    for position in (0..512).step_by(7).chain((512..good.len()).step_by(379)) {
        let other = Lab::new();
        let mut bad = good.clone();
        bad[position] ^= 0x10;
        fs::write(other.dir.path().join("pool.redb"), &bad).unwrap();
        fs::write(other.dir.path().join("pool.mark"), &mark).unwrap();
        match Pools::open(other.dir.path(), Options::default()) {
            Ok(pools) => assert_eq!(pools.list(), before, "bit in byte {position}"),
            Err(error @ OpenError::Corrupt { .. }) => {
                behind += usize::from(error.to_string().contains("the last 1 of 5 changes"));
            }
            Err(other) => panic!("byte {position}: {other}"),
        }
    }
    assert!(behind > 10, "{behind}");
}
