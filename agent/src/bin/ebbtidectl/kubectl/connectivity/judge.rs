//! Whether an exchange went as it has to.

use std::net::{IpAddr, SocketAddr};

use ebbtide_agent::probe::{Exchange, Outcome, Protocol, Seen};
use serde::Serialize;

use super::{
    live::Live,
    plan::{Asker, Check, Family, Group, Policy, Target},
    topology::Topology,
};

/// How a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    Failed,
    Skipped,
}

/// One row of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) group: Group,
    pub(super) family: Option<Family>,
    pub(super) protocol: Option<Protocol>,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) verdict: Verdict,
    /// What was seen, or what is wrong.
    pub(super) detail: String,
    /// The address that was asked.
    pub(super) server: Option<SocketAddr>,
    /// The name of the server that answered.
    pub(super) answered_by: Option<String>,
    /// The client as the server saw it.
    pub(super) seen: Option<SocketAddr>,
    /// Whether that was its own address.
    pub(super) address_kept: Option<bool>,
    /// The NIC by which the reply left, as the programs told.
    pub(super) left_by: Option<String>,
    pub(super) tries: u32,
    pub(super) millis: u64,
}

impl Row {
    /// Makes a row of a check that says nothing yet.
    pub(super) fn of(check: &Check, server: Option<SocketAddr>) -> Self {
        Self {
            family: Some(check.family),
            protocol: Some(check.protocol),
            server,
            ..Self::new(check.group, check.from.to_string(), check.to.to_string())
        }
    }

    pub(super) fn new(group: Group, from: String, to: String) -> Self {
        Self {
            group,
            family: None,
            protocol: None,
            from,
            to,
            verdict: Verdict::Ok,
            detail: String::new(),
            server: None,
            answered_by: None,
            seen: None,
            address_kept: None,
            left_by: None,
            tries: 0,
            millis: 0,
        }
    }

    pub(super) fn failed(self, detail: String) -> Self {
        Self {
            verdict: Verdict::Failed,
            detail,
            ..self
        }
    }

    pub(super) fn skipped(self, detail: String) -> Self {
        Self {
            verdict: Verdict::Skipped,
            detail,
            ..self
        }
    }
}

/// Judges what became of a check.
pub(super) fn judge(
    check: &Check,
    server: SocketAddr,
    exchange: &Exchange,
    live: &Live,
    topology: &Topology,
) -> Row {
    let row = Row {
        tries: exchange.tries,
        ..Row::of(check, Some(server))
    };
    let (local, seen, length, millis) = match &exchange.outcome {
        Outcome::Failed { why } => {
            return row.failed(match exchange.tries {
                0 | 1 => why.clone(),
                tries => format!("{why} ({tries} tries)"),
            });
        }
        Outcome::Skipped { why } => return row.skipped(why.clone()),
        Outcome::Answered {
            local,
            seen,
            length,
            millis,
        } => (local, seen.as_ref(), length, millis),
    };
    let row = Row {
        answered_by: seen.map(|seen| seen.server.clone()),
        seen: seen.map(|seen| seen.client),
        address_kept: seen.map(|seen| seen.client.ip() == local.ip()),
        millis: *millis,
        detail: match seen {
            Some(seen) => format!(
                "answered by {}, which saw {}; {length} bytes each way",
                seen.server, seen.client
            ),
            None if *length > 0 => format!("answered; {length} bytes each way"),
            None => "answered".to_owned(),
        },
        ..row
    };
    let wrong = seen.and_then(|seen| {
        wrong_server(check, seen, live).or_else(|| wrong_client(check, seen, live, topology))
    });
    // One that is answered at last is no path that works: TCP has repeated its SYN, and a datagram was sent three times.
    let sometimes = exchange.unanswered.as_ref();
    let sometimes = sometimes.map(|(number, why)| {
        let tries = exchange.tries;
        format!("it works only sometimes: {number} of {tries} were not answered, the last of them: {why}")
    });
    match wrong.or(sometimes) {
        Some(wrong) => row.failed(wrong),
        None => row,
    }
}

/// Returns what is wrong with who answered.
fn wrong_server(check: &Check, seen: &Seen, live: &Live) -> Option<String> {
    let of_network = |network: &str| {
        let mut pods = live.pods.iter();
        pods.any(|pod| pod.pod.network == network && pod.name == seen.server)
    };
    let is_right = match &check.to {
        Target::Pod(pod) => live.pod(pod).is_some_and(|pod| pod.name == seen.server),
        Target::Node { node, .. } => seen.server == *node,
        Target::ClusterIp { network } | Target::NodePort { network, .. } => of_network(network),
        Target::ApiServer | Target::Outside(_) => true,
    };
    (!is_right).then(|| format!("answered by {}, which is another server", seen.server))
}

/// Returns what is wrong with the client's address as it was seen.
///
/// What comes through a Service may be masqueraded: kube-proxy does it for policy Cluster, for a pod that asks itself, and for
/// clients that are not of its cluster. Whether the address was kept is told, and is no failure, except where a pod of the
/// same node answers at a NodePort with policy Local: there it has to be kept, unless kube-proxy counts the client as one
/// of the cluster, and then another node's pod might have answered as well.
fn wrong_client(check: &Check, seen: &Seen, live: &Live, topology: &Topology) -> Option<String> {
    if check.group.is_of_services() {
        return None;
    }
    let client = seen.client.ip();
    match &check.from {
        Asker::Pod(pod) => {
            let own = live
                .pod(pod)
                .is_some_and(|pod| pod.addresses.contains(&client));
            (!own).then(|| format!("the server saw {client}, which is not the pod's own address"))
        }
        Asker::Node(node) => {
            let mut nodes = topology.nodes.iter();
            let node = nodes.find(|each| each.name == *node);
            let own = node.is_some_and(|node| has(node.addresses().map(|(_, each)| each), client));
            (!own)
                .then(|| format!("the server saw {client}, which is none of the node's addresses"))
        }
    }
}

fn has(mut addresses: impl Iterator<Item = IpAddr>, address: IpAddr) -> bool {
    addresses.any(|each| each == address)
}

/// Whether a row is of a NodePort with policy Local on another node, which keeps the client's address.
pub(super) fn should_keep(check: &Check) -> bool {
    matches!(&check.to, Target::NodePort { policy: Policy::Local, node, .. } if node != check.from.node())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            live::tests::live,
            plan::{TestPod, tests::topology},
        },
        *,
    };

    fn pod(node: &str) -> TestPod {
        TestPod {
            node: node.into(),
            network: "default/ipvlan-ens5".into(),
        }
    }

    fn check(group: Group, from: Asker, to: Target) -> Check {
        Check {
            group,
            from,
            to,
            family: Family::IPv4,
            protocol: Protocol::Tcp,
        }
    }

    fn answered(by: &str, seen: &str) -> Exchange {
        Exchange {
            id: 0,
            tries: 1,
            unanswered: None,
            outcome: Outcome::Answered {
                local: "10.9.0.1:7".parse().unwrap(),
                seen: Some(Seen {
                    client: seen.parse().unwrap(),
                    server: by.into(),
                    node: String::new(),
                }),
                length: 9,
                millis: 3,
            },
        }
    }

    fn judged(check: &Check, exchange: &Exchange) -> Row {
        let server = "10.9.0.3:8080".parse().unwrap();
        judge(check, server, exchange, &live(), &topology(2))
    }

    #[test]
    fn a_pod_is_answered_by_the_one_that_it_asked_and_seen_as_itself() {
        let check = check(
            Group::OtherNode,
            Asker::Pod(pod("n1")),
            Target::Pod(pod("n2")),
        );
        let row = judged(&check, &answered("probe-2", "10.9.0.1:7"));
        assert_eq!((row.verdict, row.address_kept), (Verdict::Ok, Some(true)));
        for (by, seen, words) in [
            ("probe-1", "10.9.0.1:7", "another server"),
            ("probe-2", "10.5.0.1:7", "not the pod's own address"),
        ] {
            let row = judged(&check, &answered(by, seen));
            assert_eq!(row.verdict, Verdict::Failed);
            assert!(row.detail.contains(words), "{}", row.detail);
        }
    }

    #[test]
    fn a_node_is_seen_by_any_of_its_own_addresses() {
        let check = check(
            Group::NodeToItsPods,
            Asker::Node("n1".into()),
            Target::Pod(pod("n1")),
        );
        for (seen, verdict) in [("10.6.0.1:7", Verdict::Ok), ("10.6.0.2:7", Verdict::Failed)] {
            assert_eq!(judged(&check, &answered("probe-0", seen)).verdict, verdict);
        }
    }

    #[test]
    fn behind_a_service_any_pod_of_the_network_answers_and_may_see_another_client() {
        let to = Target::ClusterIp {
            network: "default/ipvlan-ens5".into(),
        };
        let check = check(Group::ClusterIp, Asker::Pod(pod("n1")), to);
        let row = judged(&check, &answered("probe-2", "10.5.0.1:7"));
        assert_eq!((row.verdict, row.address_kept), (Verdict::Ok, Some(false)));
        // Of the other network.
        let row = judged(&check, &answered("probe-1", "10.5.0.1:7"));
        assert_eq!(row.verdict, Verdict::Failed);
    }

    #[test]
    fn no_answer_is_a_failure_and_what_cannot_be_asked_is_none() {
        let check = check(
            Group::OtherNode,
            Asker::Pod(pod("n1")),
            Target::Pod(pod("n2")),
        );
        let exchange = |outcome| Exchange {
            id: 0,
            tries: 3,
            unanswered: None,
            outcome,
        };
        let why = || "connect: timed out".to_owned();
        let row = judged(&check, &exchange(Outcome::Failed { why: why() }));
        assert_eq!(row.verdict, Verdict::Failed);
        assert_eq!(row.detail, "connect: timed out (3 tries)");
        let sometimes = Exchange {
            tries: 4,
            unanswered: Some((2, why())),
            ..answered("probe-2", "10.9.0.1:7")
        };
        let row = judged(&check, &sometimes);
        assert_eq!(row.verdict, Verdict::Failed);
        assert!(row.detail.contains("2 of 4"), "{}", row.detail);
        let row = judged(&check, &exchange(Outcome::Skipped { why: why() }));
        assert_eq!(row.verdict, Verdict::Skipped);
    }
}
