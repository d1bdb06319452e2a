use std::{fs, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

use super::*;

#[test]
fn files_are_read_in_the_order_of_their_names_and_others_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write(
        "b.yaml",
        &pool("b", "{subnet: 10.0.0.0/24, ips: [10.0.0.5]}"),
    );
    write(
        "a.yml",
        &pool("a", "{subnet: 10.0.0.0/24, ips: [10.0.0.5]}"),
    );
    write("c.txt", "not: [yaml");
    write(".hidden.yaml", "not: [yaml");
    fs::write(dir.path().join("latin.yaml"), b"kind: \xe9").unwrap();
    fs::create_dir(dir.path().join("d.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("e.yaml")).unwrap();
    let catalog = super::super::files::load(dir.path());
    assert_eq!(
        catalog
            .pools()
            .iter()
            .map(|pool| pool.name.as_str())
            .collect::<Vec<_>>(),
        ["a"]
    );
    let problems: Vec<_> = catalog
        .problems()
        .iter()
        .map(|p| (p.file.file_name().unwrap().to_str().unwrap(), p.document))
        .collect();
    assert_eq!(
        problems,
        [("b.yaml", Some(1)), ("e.yaml", None), ("latin.yaml", None)]
    );
}

#[test]
fn a_missing_directory_is_a_problem_and_no_failure() {
    let catalog = super::super::files::load(Path::new("/nonexistent/manifests"));
    assert!(catalog.pools().is_empty());
    assert!(
        catalog.problems()[0]
            .message
            .contains("create the directory"),
        "{}",
        catalog.problems()[0]
    );
}

/// Waits for the catalog to have exactly these pools. The timeout is far longer than needed: this
/// proves that it happens, not how fast.
async fn expect_pools(receiver: &mut watch::Receiver<Arc<Catalog>>, names: &[&str], step: &str) {
    let has = |catalog: &Arc<Catalog>| {
        catalog
            .pools()
            .iter()
            .map(|pool| pool.name.as_str())
            .eq(names.iter().copied())
    };
    let result = timeout(Duration::from_secs(20), receiver.wait_for(has)).await;
    assert!(matches!(result, Ok(Ok(_))), "{step}: wanted {names:?}");
}

#[tokio::test]
async fn a_change_is_seen_whatever_its_kind() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("manifests");
    let file = dir.join("a.yaml");
    let text = |name: &str| pool(name, "{subnet: 10.0.0.0/24}");
    let (sender, mut receiver) = watch::channel(Arc::new(Catalog::default()));
    let task = tokio::spawn(super::super::files::watch(dir.clone(), sender));
    let catalog = &mut receiver;

    timeout(
        Duration::from_secs(20),
        catalog.wait_for(|catalog| catalog.problems().len() == 1),
    )
    .await
    .unwrap()
    .unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(&file, text("a")).unwrap();
    expect_pools(catalog, &["a"], "the directory came late").await;
    fs::write(&file, text("b")).unwrap();
    expect_pools(catalog, &["b"], "a file was rewritten").await;
    fs::write(dir.join("new"), text("c")).unwrap();
    fs::rename(dir.join("new"), &file).unwrap();
    expect_pools(catalog, &["c"], "a file was replaced").await;
    fs::write(&file, "broken: [").unwrap();
    expect_pools(catalog, &[], "a file was broken").await;
    let other = parent.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a.yaml"), text("d")).unwrap();
    fs::rename(&dir, parent.path().join("old")).unwrap();
    fs::rename(&other, &dir).unwrap();
    expect_pools(catalog, &["d"], "the directory was replaced").await;
    fs::write(&file, text("e")).unwrap();
    expect_pools(catalog, &["e"], "a file in the new directory was rewritten").await;
    fs::write(parent.path().join("target"), text("f")).unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(parent.path().join("target"), &file).unwrap();
    expect_pools(catalog, &["f"], "a link came").await;
    fs::write(parent.path().join("target"), text("g")).unwrap();
    expect_pools(catalog, &["g"], "a link's target was rewritten").await;
    drop(receiver);
    timeout(Duration::from_secs(20), task)
        .await
        .expect("ends when nobody listens")
        .unwrap();
}
