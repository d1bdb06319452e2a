//! The limit of a pod's bandwidth that a request asks for.

use ebbtide_ipam::pool::Object;
use ebbtide_plugin::{cni::code, wire::Invocation};
use ebbtide_types::{
    IpvlanMode,
    bandwidth::{Bandwidth, BandwidthError, Rate, quantity},
};
use tracing::warn;

use super::{
    Failure, NetConf,
    wanted::{self, Resolved},
};
use crate::agent::Agent;

/// The annotations of Kubernetes' for a pod's bandwidth, which runtimes read, too: out of the pod, and into it.
const ANNOTATIONS: [&str; 2] = [
    "kubernetes.io/egress-bandwidth",
    "kubernetes.io/ingress-bandwidth",
];

/// Returns the limit that the runtime requests; else the one in the pod's annotations, where the agent knows them.
///
/// # Errors
/// If a value cannot be used.
pub(super) fn wanted(conf: &NetConf, pod: &Object) -> Result<Option<Bandwidth>, Failure> {
    match conf.bandwidth()? {
        Some(limit) => Ok(Some(limit)),
        None => annotated(pod),
    }
}

type Limited = Result<Option<Rate>, BandwidthError>;

fn annotated(pod: &Object) -> Result<Option<Bandwidth>, Failure> {
    let limit = |name: &str, limit: fn(u64, Option<u64>) -> Limited| {
        let text = pod.annotations.get(name).map(|text| text.trim());
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let rate = quantity(text).and_then(|rate| match rate {
            // To annotate no limit is a mistake for the kubelet, too.
            0 => Err(BandwidthError::Range(0)),
            rate => limit(rate, None),
        });
        rate.map_err(|e| refused(&format!("annotation {name} of the pod"), &e))
    };
    let [out, into] = ANNOTATIONS;
    Ok(Bandwidth::of(
        limit(out, Rate::egress)?,
        limit(into, Rate::ingress)?,
    ))
}

/// Returns the failure of a request with this value in this place.
pub(super) fn refused(place: &str, error: &BandwidthError) -> Failure {
    Failure::new(
        code::INVALID_NETWORK_CONFIG,
        format!("{place}: {error}"),
        "correct the pod's bandwidth, or remove it; nothing was given out",
    )
}

/// Reports what a limit does not reach: in l3s the kernel hands packets to the pod's sockets past its interface
/// (`ipvlan_nf_input`, drivers/net/ipvlan/ipvlan_l3s.c).
pub(super) fn report(agent: &Agent, invocation: &Invocation, interfaces: &[(String, Resolved)]) {
    for (interface, network) in interfaces {
        let spec = &network.spec;
        let into = spec.bandwidth.and_then(|bandwidth| bandwidth.ingress);
        if let Some(rate) = into.filter(|_| spec.mode == IpvlanMode::L3s) {
            let note = format!(
                "the limit of {rate} into the pod holds for what comes by the node alone: network {} is in mode l3s, \
                 in which nothing sees what {interface} receives; use l3 or l2",
                spec.name
            );
            warn!("{note}");
            wanted::send_warning_event(agent, invocation, "LimitedInPart", note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(runtime: &str) -> NetConf {
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"n","network":"a","runtimeConfig":{runtime}}}"#
        );
        NetConf::parse(&text).unwrap()
    }

    fn pod(annotations: &[(&str, &str)]) -> Object {
        let pairs = annotations.iter();
        Object {
            annotations: pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Object::named("web")
        }
    }

    #[test]
    fn a_limit_comes_from_the_runtime_or_else_from_the_annotations() {
        const OUT: &str = ANNOTATIONS[0];
        const IN: &str = ANNOTATIONS[1];
        for (runtime, annotations, expected) in [
            ("{}", &[][..], "none"),
            (
                "{}",
                &[(OUT, "10M"), (IN, "1.5G")],
                "egress 10 Mbit/s, ingress 1500 Mbit/s",
            ),
            ("{}", &[(OUT, " 1k ")], "egress 1 kbit/s"),
            ("{}", &[(OUT, "")], "none"),
            (
                r#"{"bandwidth":{"egressRate":20000000,"egressBurst":2147483647}}"#,
                &[(OUT, "10M"), (IN, "10M")],
                "egress 20 Mbit/s",
            ),
            (
                r#"{"bandwidth":{"ingressRate":0,"ingressBurst":0,"egressRate":0,"egressBurst":0}}"#,
                &[(IN, "1P")],
                "ingress 1 Pbit/s",
            ),
            // As containerd writes it.
            (
                r#"{"bandwidth":{"IngressRate":1000000,"IngressBurst":4294967295,"EgressRate":0,"EgressBurst":0}}"#,
                &[],
                "ingress 1 Mbit/s",
            ),
        ] {
            let found = wanted(&conf(runtime), &pod(annotations)).unwrap();
            let found = found.unwrap_or_default().to_string();
            assert_eq!(found, expected, "{runtime} {annotations:?}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused_and_named() {
        const OUT: &str = ANNOTATIONS[0];
        for (runtime, annotations, named) in [
            ("{}", &[(OUT, "10 Mbit")][..], OUT),
            ("{}", &[(OUT, "999")], "between 1k and 1P"),
            ("{}", &[(OUT, "0")], "between 1k and 1P"),
            ("{}", &[(OUT, "-5M")], "no quantity"),
            ("{}", &[(OUT, "1001T")], "between"),
            (r#"{"bandwidth":{"egressRate":-1}}"#, &[], "egressRate"),
            (r#"{"bandwidth":{"egressRate":1.5}}"#, &[], "whole number"),
            (r#"{"bandwidth":{"egressRate":"10M"}}"#, &[], "whole number"),
            (r#"{"bandwidth":{"egressRate":1e300}}"#, &[], "whole number"),
            (r#"{"bandwidth":{"egressBurst":5}}"#, &[], "no rate"),
            (
                r#"{"bandwidth":{"ingressRate":5,"ingressBurst":5}}"#,
                &[],
                "between",
            ),
        ] {
            let failure = wanted(&conf(runtime), &pod(annotations)).unwrap_err();
            assert_eq!(failure.code, code::INVALID_NETWORK_CONFIG);
            assert!(
                failure.message.contains(named),
                "{runtime}: {}",
                failure.message
            );
        }
    }
}
