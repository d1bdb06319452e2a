//! By which NIC replies left: what the programs told while they were traced.

use std::net::{IpAddr, SocketAddr};

use ebbtide_agent::{
    probe::{Protocol, Question},
    query::TraceLine,
};

use super::{
    judge::{Row, Verdict},
    live::Live,
    plan::{Family, Group, Target, Traced, node_ports},
    topology::Topology,
};

/// The program at a NIC's egress: the last one that a packet passes.
const LAST: &str = "host_nic_egress";

/// What is asked during a trace, and the NIC by which the answer has to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) target: Target,
    pub(super) server: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) nic: String,
}

/// Returns what the client asks during a trace: the pod itself, and each NodePort at each NIC. `own` is the pod's NIC.
pub(super) fn expected(
    traced: &Traced,
    own: Option<&str>,
    topology: &Topology,
    live: &Live,
    family: Family,
) -> Vec<Expected> {
    let mut nodes = topology.nodes.iter();
    let Some(node) = nodes.find(|node| node.name == traced.pod.node) else {
        return Vec::new();
    };
    let mut networks = topology.networks.iter();
    let network = networks.find(|network| network.name == traced.pod.network);
    let ports = network.map(|network| node_ports(node, std::slice::from_ref(network)));
    let ports = ports
        .into_iter()
        .flatten()
        .filter_map(|target| match &target {
            Target::NodePort { nic, address, .. } if Family::of(*address) == family => {
                Some((nic.clone(), target))
            }
            _ => None,
        });
    let direct = own.map(|nic| (nic.to_owned(), Target::Pod(traced.pod.clone())));
    let mut expected = Vec::new();
    for (nic, target) in direct.into_iter().chain(ports) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if let Some(server) = live.resolve(&target, family, protocol) {
                expected.push(Expected {
                    target: target.clone(),
                    server,
                    protocol,
                    nic: nic.clone(),
                });
            }
        }
    }
    expected
}

/// Returns the questions for it.
pub(super) fn questions(expected: &[Expected]) -> Vec<Question> {
    let question = |(id, each): (u32, &Expected)| Question {
        id,
        protocol: each.protocol,
        server: each.server,
        times: 1,
    };
    (0..).zip(expected).map(question).collect()
}

/// Judges the lines of a trace.
pub(super) fn judge(
    traced: &Traced,
    client: IpAddr,
    expected: &[Expected],
    lines: &[TraceLine],
) -> Vec<Row> {
    let row = |each: &Expected| {
        let row = Row {
            family: Some(Family::of(each.server.ip())),
            protocol: Some(each.protocol),
            server: Some(each.server),
            ..Row::new(
                Group::ReplyNic,
                traced.client.to_string(),
                each.target.to_string(),
            )
        };
        let replies: Vec<&TraceLine> = lines
            .iter()
            .filter(|line| {
                line.program == LAST
                    && line.protocol.eq_ignore_ascii_case(each.protocol.name())
                    && line.source == each.server
                    && line.destination.ip() == client
            })
            .collect();
        let left: Vec<&str> = replies
            .iter()
            .filter(|line| line.verdict == "pass")
            .map(|line| line.interface.as_str())
            .collect();
        let corrected = replies.iter().filter(|line| line.verdict == "redirect");
        let corrected = match corrected.count() {
            0 => String::new(),
            number => format!(", {number} of them sent there by source-NIC enforcement"),
        };
        match left.iter().find(|nic| **nic != each.nic) {
            Some(wrong) => Row {
                left_by: Some((*wrong).to_owned()),
                ..row.failed(format!("a reply left by {wrong}, not by {}", each.nic))
            },
            None if left.is_empty() => row.failed(format!(
                "the programs of {} saw no reply at a NIC",
                traced.pod.node
            )),
            None => Row {
                left_by: Some(each.nic.clone()),
                detail: format!("{} packets left by {}{corrected}", left.len(), each.nic),
                ..row
            },
        }
    };
    expected.iter().map(row).collect()
}

/// Whether a trace has told by which NIC a reply left, the right one or not.
pub(super) fn is_seen(row: &Row) -> bool {
    row.left_by.is_some()
}

/// Returns the rows of a trace that was repeated. A reply that left by a wrong NIC before did so, whatever the others do.
pub(super) fn once_more(before: Vec<Row>, mut now: Vec<Row>) -> Vec<Row> {
    let was_wrong = |row: &Row| is_seen(row) && row.verdict == Verdict::Failed;
    for wrong in before.into_iter().filter(was_wrong) {
        now.retain(|row| (row.server, row.protocol) != (wrong.server, wrong.protocol));
        now.push(wrong);
    }
    now
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            judge::Verdict,
            live::tests::live,
            plan::{tests::topology, traces},
        },
        *,
    };

    fn line(interface: &str, source: &str, verdict: &str) -> TraceLine {
        TraceLine {
            time: 0.0,
            program: LAST.into(),
            interface: interface.into(),
            protocol: "tcp".into(),
            source: source.parse().unwrap(),
            destination: "10.9.0.3:4000".parse().unwrap(),
            length: 60,
            mark_before: 0,
            mark_after: 0,
            verdict: verdict.into(),
            reason: String::new(),
        }
    }

    #[test]
    fn the_pod_itself_and_each_nic_of_its_node_are_asked() {
        let (topology, live) = (topology(2), live());
        let traced = &traces(&topology)[1];
        assert_eq!(traced.pod.to_string(), "pod of default/ipvlan-ens6 on n1");
        let expected = expected(traced, Some("ens6"), &topology, &live, Family::IPv4);
        let told: Vec<String> = expected
            .iter()
            .filter(|each| each.protocol == Protocol::Tcp)
            .map(|each| format!("{} {}", each.server, each.nic))
            .collect();
        assert_eq!(
            told,
            [
                "10.9.0.2:8080 ens6",
                "10.5.0.1:30020 ens5",
                "10.6.0.1:30020 ens6",
                "10.5.0.1:30030 ens5",
                "10.6.0.1:30030 ens6",
            ]
        );
        assert_eq!(questions(&expected).len(), 10);
    }

    #[test]
    fn a_reply_has_to_be_seen_at_the_nic_that_was_asked_and_at_no_other() {
        let topology = topology(2);
        let traced = &traces(&topology)[0];
        let expected = [Expected {
            target: Target::ApiServer,
            server: "10.6.0.1:30020".parse().unwrap(),
            protocol: Protocol::Tcp,
            nic: "ens6".into(),
        }];
        let client = "10.9.0.3".parse().unwrap();
        let judged = |lines: &[TraceLine]| judge(traced, client, &expected, lines).remove(0);
        let good = [
            line("ens5", "10.6.0.1:30020", "redirect"),
            line("ens6", "10.6.0.1:30020", "pass"),
            line("ens5", "10.5.0.1:30020", "pass"),
        ];
        let row = judged(&good);
        assert_eq!(row.verdict, Verdict::Ok);
        assert_eq!(row.left_by.as_deref(), Some("ens6"));
        assert!(
            row.detail.contains("1 of them sent there"),
            "{}",
            row.detail
        );
        let row = judged(&[line("ens5", "10.6.0.1:30020", "pass")]);
        assert_eq!(row.verdict, Verdict::Failed);
        assert_eq!(row.left_by.as_deref(), Some("ens5"));
        let row = judged(&[]);
        assert!(row.detail.contains("no reply"), "{}", row.detail);
    }
    #[test]
    fn a_reply_by_a_wrong_nic_stays_one_when_the_trace_is_repeated() {
        let topology = topology(2);
        let traced = &traces(&topology)[0];
        let expected = ["30020", "30030"].map(|port| Expected {
            target: Target::ApiServer,
            server: format!("10.6.0.1:{port}").parse().unwrap(),
            protocol: Protocol::Tcp,
            nic: "ens6".into(),
        });
        let client = "10.9.0.3".parse().unwrap();
        let judged = |lines: &[TraceLine]| judge(traced, client, &expected, lines);
        let first = judged(&[line("ens5", "10.6.0.1:30020", "pass")]);
        assert!(!first.iter().all(is_seen));
        let again = judged(&[
            line("ens6", "10.6.0.1:30020", "pass"),
            line("ens6", "10.6.0.1:30030", "pass"),
        ]);
        let rows = once_more(first, again);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.server.unwrap().port(), row.verdict))
            .collect();
        assert_eq!(told, [(30030, Verdict::Ok), (30020, Verdict::Failed)]);
    }
}
