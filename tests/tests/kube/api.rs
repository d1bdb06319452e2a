//! The real API server that the controllers' tests run against.

use anyhow::{Result, ensure};
use ebbtide_cluster::{ControlPlane, Options};

const OBJECT: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\ndata: {a: b}\n";

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: none}]
";

#[test]
fn two_api_servers_run_beside_each_other_and_one_keeps_its_objects_over_a_restart() -> Result<()> {
    let Some(mut first) = ControlPlane::start(Options::default())? else {
        return Ok(());
    };
    let Some(second) = ControlPlane::start(Options::default())? else {
        return Ok(());
    };
    first.apply(OBJECT)?;
    ensure!(
        second.get(&["configmap", "kept"]).is_err(),
        "both are one cluster"
    );
    first.stop_api_server()?;
    ensure!(
        first.get(&["configmap", "kept"]).is_err(),
        "still answering"
    );
    first.start_api_server()?;
    ensure!(first.get(&["configmap", "kept"])?["data"]["a"] == "b");
    Ok(())
}

#[test]
fn with_controllers_an_owner_takes_what_it_owns_along() -> Result<()> {
    let options = Options {
        controllers: true,
        ..Options::default()
    };
    let Some(cluster) = ControlPlane::start(options)? else {
        return Ok(());
    };
    cluster.apply(DEPLOYMENT)?;
    let ready = ["wait", "--for=condition=Progressing", "deployment/web"];
    cluster.kubectl(&ready)?;
    cluster.kubectl(&["delete", "deployment", "web", "--cascade=foreground"])?;
    let left = cluster.get(&["replicasets"])?;
    ensure!(
        left["items"].as_array().is_some_and(Vec::is_empty),
        "{left}"
    );
    Ok(())
}
