//! The end of an installation in the cluster: removes what controller and agents wrote, and nothing that people declared.
//!
//! A pool keeps its finalizer until the controller finds it empty. Without a controller nobody would remove it, and the
//! pool, its definition and its namespace could never be deleted.

mod left_test;

use std::time::Duration;

use ebbtide_ipam::catalog::{manifest::GROUP, published_for};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::{
    endpoint::{self, NODE_LABEL},
    lease_table, node_cloud,
    object::{Kind, resource},
    pools::FINALIZER,
};

/// The pause between two looks at what must end first.
const PAUSE: Duration = Duration::from_secs(2);

/// The Leases of the controllers.
const LEASES: [&str; 2] = ["ebbtide-agent", "ebbtide-cloud-controller"];

/// What to do, and when.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The agents' namespace; the client's own if none is given.
    pub namespace: Option<String>,
    /// Only look whether pods are left.
    pub check: bool,
    /// Remove nothing.
    pub dry_run: bool,
    /// How long to wait for the end of pods, of the controller and of the nodes' uninstallation.
    pub wait: Duration,
    /// The DaemonSet that uninstalls the nodes: it must be ready on all of them before.
    pub daemonset: Option<String>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Nothing is left (of a check: no pods are).
    #[default]
    Nothing,
    /// Pods are left.
    Pods,
    /// A controller is at work, and would write again what is removed.
    Controller,
    /// Nodes are left that are not uninstalled yet.
    Nodes,
    /// Something could not be removed.
    Failed,
}

impl Outcome {
    /// Returns the exit code of `ebbtide-agent uninstall-cluster`.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Failed => 1,
            // 2 is that of a wrong command line.
            Self::Pods => 3,
            Self::Controller => 4,
            Self::Nodes => 5,
        }
    }
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether nothing was removed, on request.
    pub dry_run: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// The objects that were removed, and the finalizers; of a dry run, those that would be.
    pub removed: Vec<String>,
    /// Pods that are left, or who else must end first.
    pub left: Vec<String>,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

/// Removes what Ebbtide wrote into the API server, or says why not.
///
/// # Errors
/// If the API server does not answer. What could not be removed is in the report.
pub async fn run(client: Client, options: &Options) -> kube::Result<Report> {
    let namespace = options.namespace.clone();
    let removal = Removal {
        namespace: namespace.unwrap_or_else(|| client.default_namespace().to_owned()),
        client,
        options,
    };
    let end = Instant::now() + options.wait;
    let mut told = Vec::new();
    loop {
        let (outcome, left) = removal.what_must_end().await?;
        if outcome == Outcome::Nothing {
            break;
        }
        if left != told {
            for one in &left {
                warn!("still there: {one}");
            }
            told.clone_from(&left);
        }
        if Instant::now() >= end {
            return Ok(Report {
                dry_run: options.dry_run,
                outcome,
                left,
                ..Report::default()
            });
        }
        sleep(PAUSE).await;
    }
    let mut report = Report {
        dry_run: options.dry_run,
        ..Report::default()
    };
    if !options.check {
        removal.remove(&mut report).await?;
        if !report.failures.is_empty() {
            report.outcome = Outcome::Failed;
        }
    }
    Ok(report)
}

struct Removal<'a> {
    client: Client,
    namespace: String,
    options: &'a Options,
}

impl Removal<'_> {
    /// Returns what must end before anything is removed.
    async fn what_must_end(&self) -> kube::Result<(Outcome, Vec<String>)> {
        let pods = self.living_pods().await?;
        if !pods.is_empty() {
            return Ok((Outcome::Pods, pods));
        }
        if self.options.check {
            return Ok((Outcome::Nothing, Vec::new()));
        }
        if let Some(nodes) = self.nodes_left().await? {
            return Ok((Outcome::Nodes, vec![nodes]));
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        for name in LEASES {
            let lease = leases.get_opt(name).await?;
            if let Some(holder) = lease.as_ref().and_then(|lease| holder(lease, now())) {
                let who = format!("the controller {holder}: delete its Deployment first");
                return Ok((Outcome::Controller, vec![who]));
            }
        }
        Ok((Outcome::Nothing, Vec::new()))
    }

    /// Returns the pods that live with addresses of Ebbtide's, by their SpiderEndpoints.
    async fn living_pods(&self) -> kube::Result<Vec<String>> {
        let mut living = Vec::new();
        for endpoint in self.list(&endpoint::resource(), Some(NODE_LABEL)).await? {
            let (namespace, name) = of(&endpoint.metadata);
            let uid = endpoint.data.pointer("/status/current/uid");
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let Some(pod) = pods.get_opt(&name).await? else {
                continue;
            };
            let phase = pod.status.and_then(|status| status.phase);
            let has_ended = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
            let is_it = pod.metadata.uid.as_deref() == uid.and_then(Value::as_str);
            if is_it && !has_ended {
                let node = endpoint.data.pointer("/status/current/node");
                let node = node.and_then(Value::as_str).unwrap_or("an unknown node");
                living.push(format!("pod {namespace}/{name} on {node}"));
            }
        }
        Ok(living)
    }

    /// Returns on how many nodes the DaemonSet is not ready yet; none if it is on all, or none is named.
    async fn nodes_left(&self) -> kube::Result<Option<String>> {
        let Some(name) = &self.options.daemonset else {
            return Ok(None);
        };
        let types = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "DaemonSet"));
        let set = self.api(&types, &self.namespace).get(name).await?;
        let left = nodes_left(&set.data["status"], set.metadata.generation);
        Ok(left.map(|left| format!("{left}: the log of their pod of DaemonSet {name} says why")))
    }

    async fn remove(&self, report: &mut Report) -> kube::Result<()> {
        let pools = resource(Kind::Pool);
        for pool in self.list(&pools, None).await? {
            // Published for people to read; nobody declared it.
            if published_for(&pool.metadata).is_some() {
                self.delete(&pools, pool.metadata, report).await;
            } else if has_finalizer(&pool.metadata) {
                self.release(pool.metadata, report).await;
            }
        }
        let definitions = resource(Kind::Attachment);
        for definition in self.list(&definitions, None).await? {
            if is_of_a_network(&definition.metadata) && calls_ebbtide(&definition.data) {
                self.delete(&definitions, definition.metadata, report).await;
            }
        }
        let endpoints = endpoint::resource();
        for endpoint in self.list(&endpoints, Some(NODE_LABEL)).await? {
            self.delete(&endpoints, endpoint.metadata, report).await;
        }
        let maps = ApiResource::erase::<ConfigMap>(&());
        for label in [lease_table::LABEL, node_cloud::LABEL] {
            for map in self.list_here(&maps, label).await? {
                self.delete(&maps, map.metadata, report).await;
            }
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        for name in LEASES {
            if let Some(lease) = leases.get_opt(name).await? {
                let types = ApiResource::erase::<Lease>(&());
                self.delete(&types, lease.metadata, report).await;
            }
        }
        for (types, namespace) in left_test::kinds(&self.namespace) {
            let name = left_test::name(&types, &self.namespace);
            let found = self.api(&types, &namespace).get_opt(&name).await?;
            if let Some(object) = found.filter(|object| left_test::is_left(&object.metadata)) {
                self.delete(&types, object.metadata, report).await;
            }
        }
        Ok(())
    }

    /// Lists objects of all namespaces. A kind that the API server does not know has none.
    async fn list(
        &self,
        types: &ApiResource,
        label: Option<&str>,
    ) -> kube::Result<Vec<DynamicObject>> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), types);
        known(label_list(&api, label).await)
    }

    /// Lists objects of the agents' namespace.
    async fn list_here(
        &self,
        types: &ApiResource,
        label: &str,
    ) -> kube::Result<Vec<DynamicObject>> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, types);
        known(label_list(&api, Some(label)).await)
    }

    /// Returns the API of a namespace's objects, or without one of the cluster's.
    fn api(&self, types: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        match namespace {
            "" => Api::all_with(self.client.clone(), types),
            _ => Api::namespaced_with(self.client.clone(), namespace, types),
        }
    }

    /// Deletes this very object.
    async fn delete(&self, types: &ApiResource, meta: ObjectMeta, report: &mut Report) {
        let (namespace, name) = of(&meta);
        let what = named(types, &namespace, &name);
        if self.options.dry_run {
            return report.removed.push(what);
        }
        let only_this = DeleteParams {
            preconditions: Some(Preconditions {
                uid: meta.uid,
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.api(types, &namespace);
        let deleted = api.delete(&name, &only_this).await.map(drop);
        report.note(what, "delete", deleted);
    }

    /// Removes Ebbtide's finalizer from a pool, and leaves those of others.
    async fn release(&self, meta: ObjectMeta, report: &mut Report) {
        let types = resource(Kind::Pool);
        let name = meta.name.unwrap_or_default();
        let what = format!("the finalizer of SpiderIPPool {name}");
        if self.options.dry_run {
            return report.removed.push(what);
        }
        let mut others = meta.finalizers.unwrap_or_default();
        others.retain(|each| each != FINALIZER);
        let patch = json!({ "metadata": {
            "resourceVersion": meta.resource_version,
            "finalizers": others,
        }});
        let api = self.api(&types, "");
        let patch = Patch::Merge(&patch);
        let patched = api.patch(&name, &PatchParams::default(), &patch).await;
        report.note(what, "remove", patched.map(drop));
    }
}

impl Report {
    fn note(&mut self, what: String, verb: &str, result: kube::Result<()>) {
        match result {
            Ok(()) => {
                info!("removed {what}");
                self.removed.push(what);
            }
            // It is gone, or another one of that name is there.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(e) => {
                let failure = format!("{verb} {what}: {e}");
                error!("{failure}");
                self.failures.push(failure);
            }
        }
    }
}

async fn label_list(
    api: &Api<DynamicObject>,
    label: Option<&str>,
) -> kube::Result<Vec<DynamicObject>> {
    let mut params = ListParams::default();
    if let Some(label) = label {
        params = params.labels(label);
    }
    Ok(api.list(&params).await?.items)
}

fn known(listed: kube::Result<Vec<DynamicObject>>) -> kube::Result<Vec<DynamicObject>> {
    match listed {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        other => other,
    }
}

fn named(types: &ApiResource, namespace: &str, name: &str) -> String {
    match namespace {
        "" => format!("{} {name}", types.kind),
        _ => format!("{} {namespace}/{name}", types.kind),
    }
}

/// Returns namespace and name.
fn of(meta: &ObjectMeta) -> (String, String) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    (text(&meta.namespace), text(&meta.name))
}

/// Returns on how many nodes a DaemonSet with this status is not ready yet; `None` if it is on all.
fn nodes_left(status: &Value, generation: Option<i64>) -> Option<String> {
    let number = |field: &str| status[field].as_i64();
    if number("observedGeneration") < generation {
        return Some("all nodes".to_owned());
    }
    let wanted = number("desiredNumberScheduled").unwrap_or_default();
    let ready = number("numberReady").unwrap_or_default();
    (ready < wanted).then(|| format!("{} of {wanted} nodes", wanted - ready))
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Returns who holds the Lease at this time, in seconds since 1970; `None` if it has expired or was given up.
fn holder(lease: &Lease, now: i64) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    let holder = spec
        .holder_identity
        .clone()
        .filter(|name| !name.is_empty())?;
    let renewed = spec.renew_time.as_ref()?.0.as_second();
    let duration = i64::from(spec.lease_duration_seconds.unwrap_or_default());
    (renewed + duration >= now).then_some(holder)
}

fn has_finalizer(meta: &ObjectMeta) -> bool {
    let mut all = meta.finalizers.iter().flatten();
    all.any(|each| each == FINALIZER)
}

/// Whether the definition was made for a SpiderMultusConfig.
fn is_of_a_network(meta: &ObjectMeta) -> bool {
    let mut owners = meta.owner_references.iter().flatten();
    owners.any(|owner| {
        owner.controller == Some(true)
            && owner.kind == Kind::Network.name()
            && owner.api_version.starts_with(GROUP)
    })
}

/// Whether the definition's configuration calls Ebbtide's plugin, which is gone. Another one works without Ebbtide.
fn calls_ebbtide(definition: &Value) -> bool {
    let config = definition.pointer("/spec/config").and_then(Value::as_str);
    let config = config.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(config) = config else {
        return false;
    };
    let plugins = config["plugins"].as_array().into_iter().flatten();
    let mut all = plugins.chain([&config]);
    all.any(|plugin| plugin["type"] == "ebbtide")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_an_exit_code_of_its_own() {
        use Outcome::{Controller, Failed, Nodes, Nothing, Pods};
        let all = [Nothing, Failed, Pods, Controller, Nodes];
        assert_eq!(all.map(Outcome::exit_code), [0, 1, 3, 4, 5]);
    }

    #[test]
    fn only_definitions_that_call_ebbtide_go() {
        for (config, expected) in [
            (
                r#"{"plugins": [{"type": "ebbtide"}, {"type": "tuning"}]}"#,
                true,
            ),
            (r#"{"type": "ebbtide"}"#, true),
            (r#"{"plugins": [{"type": "sriov"}]}"#, false),
            (r#"{"type": "bridge"}"#, false),
            ("", false),
            ("{", false),
        ] {
            let definition = json!({"spec": {"config": config}});
            assert_eq!(calls_ebbtide(&definition), expected, "{config}");
        }
        assert!(!calls_ebbtide(&json!({"spec": {}})));
    }

    #[test]
    fn a_lease_is_held_until_it_expires_or_is_given_up() {
        let lease = |holder: &str| -> Lease {
            serde_json::from_value(json!({"spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": 12,
                "renewTime": "2026-01-01T00:00:00.000000Z",
            }}))
            .unwrap()
        };
        let renewed = 1_767_225_600;
        assert_eq!(holder(&lease("a"), renewed + 12).as_deref(), Some("a"));
        assert_eq!(holder(&lease("a"), renewed + 13), None);
        assert_eq!(holder(&lease(""), renewed), None);
        assert_eq!(holder(&Lease::default(), renewed), None);
    }

    #[test]
    fn a_daemonset_is_done_when_it_is_ready_on_each_node_that_it_is_for() {
        let status = |observed, wanted, ready| json!({"observedGeneration": observed, "desiredNumberScheduled": wanted, "numberReady": ready});
        let all = Some("all nodes".to_owned());
        assert_eq!(nodes_left(&Value::Null, Some(1)), all);
        assert_eq!(nodes_left(&status(1, 3, 3), Some(2)), all);
        assert_eq!(
            nodes_left(&status(2, 3, 1), Some(2)),
            Some("2 of 3 nodes".to_owned())
        );
        assert_eq!(nodes_left(&status(2, 3, 3), Some(2)), None);
        assert_eq!(nodes_left(&status(2, 0, 0), Some(2)), None);
    }

    #[test]
    fn what_others_own_or_nobody_is_theirs() {
        let meta = |owners: Value| -> ObjectMeta {
            serde_json::from_value(json!({"name": "x", "ownerReferences": owners})).unwrap()
        };
        let owner = |kind: &str, api: &str| json!([{"kind": kind, "apiVersion": api, "name": "n", "uid": "u", "controller": true}]);
        let ours = owner("SpiderMultusConfig", "spiderpool.spidernet.io/v2beta1");
        assert!(is_of_a_network(&meta(ours)));
        assert!(!is_of_a_network(&meta(owner("Deployment", "apps/v1"))));
        assert!(!is_of_a_network(&meta(json!([]))));
    }
}
