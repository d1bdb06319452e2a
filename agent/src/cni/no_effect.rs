//! Reports requests of pods that have no effect on this node: nothing else would show it.

use std::collections::BTreeMap;

use ebbtide_ipam::pool::Object;
use ebbtide_plugin::wire::Invocation;
use tracing::warn;

use super::{NetConf, wanted};
use crate::agent::Agent;

/// Reports in the log and by an Event on the pod which of the runtime's requests have no effect. A runtime passes them
/// to the plugin that has the capability (`portMappings`, `bandwidth`); that is Ebbtide's where there is no other.
pub(super) fn report(agent: &Agent, invocation: &Invocation, conf: &NetConf) {
    let ports: Vec<String> = conf.host_ports().iter().map(u16::to_string).collect();
    if !ports.is_empty() {
        let ports = ports.join(", ");
        warn!(%ports, "hostPort is not served: portmap is not behind ebbtide in the CNI configuration");
        wanted::send_warning_event(
            agent,
            invocation,
            "HostPortIgnored",
            format!(
                "hostPort {ports} is not served on this node: the CNI plugin portmap is not behind ebbtide; \
                 put it into the node's CNI directory and restart the agent, or use a NodePort Service"
            ),
        );
    }
    let is_of_others = conf.is_chained() && conf.ipam_plugin().is_none();
    if is_of_others && conf.bandwidth().is_ok_and(|limit| limit.is_some()) {
        let note = "the pod's bandwidth (kubernetes.io/ingress-bandwidth, kubernetes.io/egress-bandwidth) has no \
                    effect: its interface is another plugin's; put the CNI plugin bandwidth behind that one, or remove \
                    the annotations";
        warn!("{note}");
        wanted::send_warning_event(agent, invocation, "NoEffect", note.to_owned());
    }
}

/// Reports as [`report`] which of the pod's annotations have no effect.
pub(super) fn report_annotations(agent: &Agent, invocation: &Invocation, pod: &Object) {
    for note in of_annotations(&pod.annotations) {
        warn!("{note}");
        wanted::send_warning_event(agent, invocation, "NoEffect", note);
    }
}

/// The domains of annotations that the agent reads, with the known names. Those that end in `*` are written by others.
const KNOWN: [(&str, &[&str]); 3] = [
    (
        "ipam.spidernet.io/",
        &[
            "ippool",
            "ippools",
            "routes",
            "default-route-nic",
            // Refused where they are read.
            "subnet",
            "subnets",
            // Spiderpool's first releases recorded the assigned addresses there.
            "assigned-*",
        ],
    ),
    ("ebbtide.io/", &["accept-marks", "metadata"]),
    ("cni.spidernet.io/", &[]),
];

/// Spiderpool's annotations that this agent ignores, with what to use instead.
const WITHOUT_EFFECT: [(&str, &str); 4] = [
    (
        "ipam.spidernet.io/ippool-ip-number",
        "it says how many addresses a pool is to get from a SpiderSubnet, and this agent makes no pools; name pools \
         with ipam.spidernet.io/ippool",
    ),
    (
        "ipam.spidernet.io/ippool-reclaim",
        "this agent makes no pools of SpiderSubnets, and so removes none",
    ),
    (
        "cni.spidernet.io/rdma-resource-inject",
        "no webhook of ours adds resources to pods; write them under `resources` of the container",
    ),
    (
        "cni.spidernet.io/network-resource-inject",
        "no webhook of ours adds networks and resources to pods; write them with k8s.v1.cni.cncf.io/networks and \
         under `resources` of the container",
    ),
];

/// Returns the pod's annotations that have no effect, each as a sentence.
fn of_annotations(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let set = annotations
        .iter()
        .filter(|(_, text)| !text.trim().is_empty());
    set.filter_map(|(name, _)| {
        let why = why(name)?;
        Some(format!("annotation {name} has no effect: {why}"))
    })
    .collect()
}

fn why(name: &str) -> Option<&'static str> {
    if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(other, _)| *other == name) {
        return Some(why);
    }
    let (rest, known) = KNOWN
        .iter()
        .find_map(|(domain, known)| Some((name.strip_prefix(domain)?, known)))?;
    let is_known = known.iter().any(|other| match other.strip_suffix('*') {
        Some(front) => rest.starts_with(front),
        None => *other == rest,
    });
    (!is_known).then_some("no such annotation of pods is known; correct its name, or remove it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_without_effect_is_named_with_what_does_it_instead() {
        for (name, text, said) in [
            ("ipam.spidernet.io/ippool", "{}", None),
            ("ipam.spidernet.io/ippools", "[]", None),
            ("ipam.spidernet.io/routes", "[]", None),
            ("ipam.spidernet.io/default-route-nic", "net1", None),
            ("ipam.spidernet.io/assigned-eth0", "{}", None),
            ("ebbtide.io/accept-marks", "false", None),
            ("ebbtide.io/metadata", "drop", None),
            ("example.com/ippool-ip-number", "3", None),
            ("kubernetes.io/config.source", "file", None),
            ("ipam.spidernet.io/ippool-ip-number", "", None),
            (
                "ipam.spidernet.io/ippool-ip-number",
                "+1",
                Some("name pools with ipam.spidernet.io/ippool"),
            ),
            (
                "ipam.spidernet.io/ippool-reclaim",
                "false",
                Some("makes no pools"),
            ),
            ("ipam.spidernet.io/ippol", "{}", Some("no such annotation")),
            (
                "ebbtide.io/answer-neighbours",
                "true",
                Some("no such annotation of pods"),
            ),
            (
                "cni.spidernet.io/rdma-resource-inject",
                "a",
                Some("`resources`"),
            ),
            (
                "cni.spidernet.io/network-resource-inject",
                "a",
                Some("k8s.v1.cni.cncf.io/networks"),
            ),
        ] {
            let all = [(name.to_owned(), text.to_owned())].into();
            let found = of_annotations(&all);
            match (said, &found[..]) {
                (None, []) => {}
                (Some(said), [one]) => {
                    assert!(one.contains(said) && one.contains(name), "{one}");
                }
                _ => panic!("{name}: {found:?}"),
            }
        }
    }
}
