//! What the holder of a stolen token can do: with the agents' account and the controller's, as shipped.

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Result, ensure};
use ebbtide_cluster::{ControlPlane, Controller, Member, Release};
use ebbtide_vpc::skip::{Need, skip};
use serde_json::{Value, json};

use crate::{
    attempt::{Act, Attempt, Holder, Verdict, attempt},
    setup::{DEPLOY, LONG, NO_REST, cluster},
};

/// The first release whose tokens name their node, and that has admission policies.
const POLICIES: Release = Release::new(30);

pub(crate) const NAMESPACE: &str = "ebbtide-system";
const CORE: &str = "/api/v1";
const SPIDER: &str = "/apis/spiderpool.spidernet.io/v2beta1";
const APPS: &str = "/apis/apps/v1/namespaces/ebbtide-system";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const LEASES: &str = "/apis/coordination.k8s.io/v1";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
const NETWORKS: &str = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";

pub(crate) fn pod(namespace: &str, name: &str, node: &str, account: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "labels": {"app": name},
            "annotations": {"v1.multus-cni.io/default-network": "default/a"},
        },
        "spec": {
            "nodeName": node, "serviceAccountName": account,
            "containers": [{"name": "c", "image": "none"}],
        },
    })
}

/// Creates a cluster with the shipped objects, two nodes, an agent's pod on each, a controller's pod, and a user's pod
/// on each. The flag is true if its release supports the account policies, which are enforced then.
pub(crate) fn site() -> Result<Option<(ControlPlane, bool)>> {
    let Some(cluster) = cluster()? else {
        return Ok(None);
    };
    let deploy = |file: &str| format!("{DEPLOY}/{file}");
    cluster.kubectl(&["apply", "-f", &deploy("ebbtide.yaml")])?;
    for node in ["node-a", "node-b"] {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        cluster.apply(&object.to_string())?;
    }
    for (name, node, account) in [
        ("agent-a", "node-a", "ebbtide"),
        ("agent-b", "node-b", "ebbtide"),
        ("controller", "node-a", "ebbtide-controller"),
    ] {
        cluster.apply(&pod(NAMESPACE, name, node, account).to_string())?;
    }
    for (name, node) in [("web-a", "node-a"), ("web-b", "node-b")] {
        cluster.apply(&pod("default", name, node, "default").to_string())?;
    }
    let can = cluster.release()? >= POLICIES;
    if can {
        cluster.kubectl(&["apply", "-f", &deploy("policy-accounts.yaml")])?;
    }
    Ok(Some((cluster, can)))
}

/// Reports a skip for a test that could not be completed without policies.
pub(crate) fn without_policies(cluster: &ControlPlane) -> Result<()> {
    let release = cluster.release()?;
    skip(
        Need::Policies,
        format_args!(
            "the API server is of {release}: tokens that name their node, and policies, are since {POLICIES}"
        ),
    );
    Ok(())
}

/// Waits until policies are enforced, which takes a moment after their creation: until `probe` is refused.
pub(crate) fn until_refused(holder: &Holder, probe: &Attempt) {
    for _ in 0..120 {
        if matches!(holder.verdict(probe), Verdict::Refused(_)) {
            return;
        }
        thread::sleep(Duration::from_millis(500));
    }
    // The following requests show what is allowed.
}

/// Returns what no holder of such a token may do, as it would gain more than its node or its work.
fn beyond() -> Vec<Attempt> {
    let pods = format!("{CORE}/namespaces/default/pods");
    let maps = format!("{CORE}/namespaces/{NAMESPACE}/configmaps");
    let accounts = format!("{CORE}/namespaces/{NAMESPACE}/serviceaccounts");
    let image = json!({"spec": {"containers": [{"name": "c", "image": "evil"}]}});
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "evil"},
        "spec": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 443}]},
    });
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "evil"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    });
    let named =
        |kind: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "evil"}});
    let lease =
        |namespace: &str, name: &str| format!("{LEASES}/namespaces/{namespace}/leases/{name}");
    let patch = |what, path: String| attempt(what, path, Act::Patch(label.clone()));
    vec![
        attempt("a pod's image", format!("{pods}/web-a"), Act::Patch(image)),
        patch("a pod's metadata, beside the status", format!("{pods}/web-a")),
        attempt("a pod replaced", format!("{pods}/web-b"), Act::Replace(pod("default", "web-b", "node-b", "x"))),
        attempt("a pod made", &pods, Act::Create(pod("default", "evil", "node-b", "default"))),
        attempt("a pod deleted", format!("{pods}/web-b"), Act::Delete),
        attempt("exec", format!("{pods}/web-b/exec?command=sh"), Act::Create(json!({}))),
        attempt("attach", format!("{pods}/web-b/attach"), Act::Create(json!({}))),
        attempt("eviction", format!("{pods}/web-b/eviction"), Act::Create(named("Eviction"))),
        attempt("binding", format!("{pods}/web-b/binding"), Act::Create(named("Binding"))),
        patch("ephemeral containers", format!("{pods}/web-b/ephemeralcontainers")),
        attempt("secrets listed", format!("{CORE}/secrets"), Act::List),
        attempt("a secret", format!("{CORE}/namespaces/kube-system/secrets/x"), Act::Get),
        attempt("a secret made", format!("{CORE}/namespaces/{NAMESPACE}/secrets"), Act::Create(named("Secret"))),
        attempt("ConfigMaps of others", format!("{CORE}/namespaces/kube-system/configmaps"), Act::List),
        attempt("a ConfigMap of others", format!("{CORE}/namespaces/default/configmaps/x"), Act::Replace(named("ConfigMap"))),
        attempt("a ConfigMap deleted", format!("{maps}/ebbtide"), Act::Delete),
        patch("a ConfigMap patched", format!("{maps}/ebbtide")),
        attempt("the agents' token", format!("{accounts}/ebbtide/token"), Act::Create(token.clone())),
        attempt("the controller's token", format!("{accounts}/ebbtide-controller/token"), Act::Create(token.clone())),
        attempt("a token of others", format!("{CORE}/namespaces/kube-system/serviceaccounts/default/token"), Act::Create(token)),
        attempt("a Service in kube-system", format!("{CORE}/namespaces/kube-system/services"), Act::Create(service.clone())),
        attempt("a Service changed", format!("{CORE}/namespaces/default/services/kubernetes"), Act::Patch(label.clone())),
        patch("a Service's status", format!("{CORE}/namespaces/default/services/kubernetes/status")),
        patch("a node", format!("{CORE}/nodes/node-a")),
        patch("a node's status", format!("{CORE}/nodes/node-a/status")),
        attempt("a node deleted", format!("{CORE}/nodes/node-b"), Act::Delete),
        attempt("a kubelet, by the API server", format!("{CORE}/nodes/node-b/proxy/pods"), Act::Create(json!({}))),
        patch("a namespace", format!("{CORE}/namespaces/default")),
        attempt("another's Lease", lease("kube-node-lease", "node-b"), Act::Get),
        attempt("the scheduler's Lease", lease("kube-system", "kube-scheduler"), Act::Get),
        attempt("the Lease deleted", lease(NAMESPACE, "ebbtide-agent"), Act::Delete),
        patch("the Lease patched", lease(NAMESPACE, "ebbtide-agent")),
        patch("the agents' DaemonSet", format!("{APPS}/daemonsets/ebbtide")),
        patch("the controller's Deployment", format!("{APPS}/deployments/ebbtide-controller")),
        attempt("more rights", format!("{RBAC}/clusterrolebindings"), Act::Create(binding)),
        patch("a role", format!("{RBAC}/clusterroles/ebbtide")),
        patch("a definition", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/spiderippools.spiderpool.spidernet.io".into()),
        attempt("a webhook", format!("{ADMISSION}/mutatingwebhookconfigurations"), Act::Create(named("MutatingWebhookConfiguration"))),
        attempt("a policy deleted", format!("{ADMISSION}/validatingadmissionpolicies/ebbtide-node-pods"), Act::Delete),
        attempt("a certificate", "/apis/certificates.k8s.io/v1/certificatesigningrequests", Act::Create(named("CertificateSigningRequest"))),
        attempt("an Event by the older way", format!("{CORE}/namespaces/default/events"), Act::Create(named("Event"))),
        attempt("a network made", format!("{SPIDER}/namespaces/default/spidermultusconfigs"), Act::Create(named("SpiderMultusConfig"))),
        patch("a network", format!("{SPIDER}/namespaces/default/spidermultusconfigs/x")),
        patch("a reservation", format!("{SPIDER}/spiderreservedips/x")),
        patch("a coordinator", format!("{SPIDER}/spidercoordinators/default")),
        attempt("a definition of a network deleted", format!("{NETWORKS}/x"), Act::Delete),
    ]
}

/// Returns what the controller may do, and no agent.
fn of_the_cluster() -> Vec<Attempt> {
    let named =
        |kind: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "evil"}});
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let services = format!("{CORE}/namespaces/default/services");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "evil"},
        "spec": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 443}]},
    });
    let lease = format!("{LEASES}/namespaces/{NAMESPACE}/leases");
    let map = format!("{CORE}/namespaces/{NAMESPACE}/configmaps");
    vec![
        attempt("a Service", &services, Act::Create(service.clone())),
        attempt("a Service, for a look", &services, Act::DryRun(service)),
        attempt(
            "a definition made",
            NETWORKS,
            Act::Create(named("NetworkAttachmentDefinition")),
        ),
        attempt(
            "a definition changed",
            format!("{NETWORKS}/x"),
            Act::Patch(json!({"spec": {"config": "{}"}})),
        ),
        attempt(
            "a definition applied",
            format!("{NETWORKS}/x"),
            Act::Apply(named("NetworkAttachmentDefinition")),
        ),
        attempt(
            "a pool",
            format!("{SPIDER}/spiderippools/x"),
            Act::Patch(label.clone()),
        ),
        attempt(
            "a pool replaced",
            format!("{SPIDER}/spiderippools/x"),
            Act::Replace(named("SpiderIPPool")),
        ),
        attempt(
            "a pool made",
            format!("{SPIDER}/spiderippools"),
            Act::Create(named("SpiderIPPool")),
        ),
        attempt(
            "a pool deleted",
            format!("{SPIDER}/spiderippools/x"),
            Act::Delete,
        ),
        attempt(
            "a pool's status",
            format!("{SPIDER}/spiderippools/x/status"),
            Act::Patch(json!({"status": {}})),
        ),
        attempt(
            "a coordinator made",
            format!("{SPIDER}/spidercoordinators"),
            Act::Create(named("SpiderCoordinator")),
        ),
        attempt(
            "a coordinator's status",
            format!("{SPIDER}/spidercoordinators/x/status"),
            Act::Patch(json!({"status": {}})),
        ),
        attempt("a ConfigMap made", &map, Act::Create(named("ConfigMap"))),
        attempt("the Lease made", &lease, Act::Create(named("Lease"))),
        attempt(
            "the Lease taken",
            format!("{lease}/ebbtide-agent"),
            Act::Replace(named("Lease")),
        ),
        attempt(
            "kubeadm's configuration",
            format!("{CORE}/namespaces/kube-system/configmaps/kubeadm-config"),
            Act::Get,
        ),
    ]
}

/// Returns what agents may do, and the controller need not.
fn of_a_node() -> Vec<Attempt> {
    let status = format!("{CORE}/namespaces/default/pods/web-a/status");
    let endpoint = json!({"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderEndpoint", "metadata": {"name": "evil"}});
    vec![
        attempt(
            "a pod's status",
            status,
            Act::Patch(json!({"metadata": {"labels": {"x": "y"}}})),
        ),
        attempt("all pods", format!("{CORE}/pods"), Act::List),
        attempt(
            "an endpoint made",
            format!("{SPIDER}/namespaces/default/spiderendpoints"),
            Act::Create(endpoint),
        ),
    ]
}

#[test]
fn by_its_roles_a_nodes_token_writes_nothing_of_the_clusters_and_the_controllers_no_more_than_it_does()
-> Result<()> {
    let Some((cluster, _)) = site()? else {
        return Ok(());
    };
    let agent = Holder::of(&cluster.kubeconfig_of(NAMESPACE, "ebbtide", Some("agent-a"))?)?;
    let controller = cluster.kubeconfig_of(NAMESPACE, "ebbtide-controller", Some("controller"))?;
    let controller = Holder::of(&controller)?;
    let mut wrong = agent.wrong(&[beyond(), of_the_cluster()].concat(), true);
    wrong.extend(controller.wrong(&[beyond(), of_a_node()].concat(), true));
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Makes a role that grows noticed: everything that the accounts may write, in any namespace.
#[test]
fn the_accounts_may_write_what_is_listed_here_and_nothing_else() -> Result<()> {
    let Some((cluster, _)) = site()? else {
        return Ok(());
    };
    let of = |account, pod| Holder::of(&cluster.kubeconfig_of(NAMESPACE, account, Some(pod))?);
    let (agent, controller) = (
        of("ebbtide", "agent-a")?,
        of("ebbtide-controller", "controller")?,
    );
    let by_agents = [
        "create events.events.k8s.io",
        "create spiderendpoints.spiderpool.spidernet.io",
        "delete spiderendpoints.spiderpool.spidernet.io",
        "patch events.events.k8s.io",
        "patch pods/status.",
        "patch spiderendpoints.spiderpool.spidernet.io",
        "update spiderendpoints.spiderpool.spidernet.io",
    ];
    let by_controller = [
        "create events.events.k8s.io",
        "create network-attachment-definitions.k8s.cni.cncf.io",
        "create spidercoordinators.spiderpool.spidernet.io",
        "create spiderippools.spiderpool.spidernet.io",
        "delete spiderendpoints.spiderpool.spidernet.io",
        "delete spiderippools.spiderpool.spidernet.io",
        "patch events.events.k8s.io",
        "patch network-attachment-definitions.k8s.cni.cncf.io",
        "patch spidercoordinators/status.spiderpool.spidernet.io",
        "patch spiderendpoints.spiderpool.spidernet.io",
        "patch spiderippools.spiderpool.spidernet.io",
        "patch spiderippools/status.spiderpool.spidernet.io",
        "update spidermultusconfigs/finalizers.spiderpool.spidernet.io",
    ];
    let own = [
        "create configmaps.",
        "create leases.coordination.k8s.io",
        "update configmaps.",
        "update leases.coordination.k8s.io=ebbtide-agent",
    ];
    for (namespace, holder, everywhere, here) in [
        ("kube-system", &agent, &by_agents[..], &[][..]),
        ("default", &agent, &by_agents, &[]),
        (NAMESPACE, &agent, &by_agents, &["update configmaps."]),
        ("kube-system", &controller, &by_controller, &[]),
        (
            "default",
            &controller,
            &by_controller,
            &["create services."],
        ),
        (NAMESPACE, &controller, &by_controller, &own),
    ] {
        let mut expected = [everywhere, here].concat();
        expected.sort_unstable();
        let found = holder.may_write(namespace)?;
        ensure!(found == expected, "in {namespace}: {found:#?}");
    }
    Ok(())
}

/// Runs the code of agents and controller with these tokens and no other rights.
#[test]
fn agents_and_controller_do_their_work_with_the_rights_that_they_have() -> Result<()> {
    let Some((cluster, _)) = site()? else {
        return Ok(());
    };
    cluster.apply(
        "---
         {apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: shared},
          spec: {subnet: 10.9.0.0/24, ips: [10.9.0.1-10.9.0.4], default: true}}",
    )?;
    cluster.apply(
        "---
         {apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderMultusConfig,
          metadata: {name: ipvlan-ens5, namespace: default}, spec: {cniType: ipvlan, ipvlan: {master: [ens5]}}}",
    )?;
    let of = |account: &str, pod: &str| -> Result<PathBuf> {
        cluster.kubeconfig_of(NAMESPACE, account, Some(pod))
    };
    let _controller = Controller::start(&of("ebbtide-controller", "controller")?, "controller")?;
    let state = tempfile::tempdir()?;
    let start = |pod: &str, node: &str| -> Result<Member> {
        let agent = Member::start(
            &of("ebbtide", pod)?,
            &state.path().join(node),
            node,
            NO_REST,
        )?;
        agent.is_open()?;
        agent.knows_pool("shared")?;
        Ok(agent)
    };
    let (a, b) = (start("agent-a", "node-a")?, start("agent-b", "node-b")?);
    let (first, second) = (a.add("web-a", LONG)?, b.add("web-b", LONG)?);
    ensure!(first != second, "{first} twice");
    // An address moves from one pod to the other.
    a.del("web-a")?;
    let map = cluster.get(&["-n", NAMESPACE, "configmap", "ebbtide-leases.shared"])?;
    ensure!(
        map["data"]["node-a"].is_string() && map["data"]["node-b"].is_string(),
        "{map:#}"
    );
    cluster.wait_until(&["spiderippool", "shared"], |pool| {
        pool["status"]["totalIPCount"] == 4
            && pool["spec"]["ipVersion"] == 4
            && pool["metadata"]["finalizers"][0] == "spiderpool.spidernet.io"
    })?;
    cluster.wait_until(&["network-attachment-definitions"], |list| {
        list["items"][0]["metadata"]["name"] == "ipvlan-ens5"
    })?;
    cluster.wait_until(&["spidercoordinators"], |list| {
        list["items"][0]["status"]["phase"].is_string()
    })?;
    // A node that is removed.
    drop(a);
    cluster.kubectl(&["delete", "node", "node-a"])?;
    let maps = ["-n", NAMESPACE, "configmap", "ebbtide-leases.shared"];
    cluster.wait_until(&maps, |map| map["data"]["node-a"].is_null())?;
    // A pool that is deleted.
    b.del("web-b")?;
    cluster.kubectl(&["delete", "spiderippool", "shared", "--wait=false"])?;
    cluster.wait_until(&["spiderippools"], |list| list["items"][0].is_null())?;
    Ok(())
}
