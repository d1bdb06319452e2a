//! Which interfaces a request is about, and on which networks.

use std::net::IpAddr;

use ebbtide_ipam::{
    catalog::{Addresses, Catalog, Network},
    pool::{Object, Source, Subject},
};
use ebbtide_kernel::podnet::NetworkSpec;
use ebbtide_kube::{self as kube, networks};
use ebbtide_plugin::{cni::code, wire::Invocation};
use ebbtide_types::{NetworkRef, ObjectName, settings::PodMetadata};
use tracing::warn;

use super::{Attachment, Failure, NamedPools, NetConf, NetworkChoice, PodIdentity, bandwidth};
use crate::agent::Agent;

/// A network, and the pools that its pods may have addresses from.
pub(super) struct Resolved {
    pub(super) spec: NetworkSpec,
    pub(super) name: Option<ObjectName>,
    pub(super) addresses: Addresses,
    pub(super) ipv4_pools: Vec<String>,
    pub(super) ipv6_pools: Vec<String>,
    /// Addresses that the pod is to have on it, instead of any free ones.
    pub(super) ips: Vec<IpAddr>,
}

impl Resolved {
    /// Returns the NIC whose addresses from the cloud's metadata alone the pod may have, if it is so.
    pub(super) fn metadata(&self) -> Option<&str> {
        (self.addresses == Addresses::Metadata).then_some(self.spec.master.as_str())
    }

    pub(super) fn source(&self) -> Source<'_> {
        if self.ipv4_pools.is_empty() && self.ipv6_pools.is_empty() {
            Source::Defaults
        } else {
            Source::Named {
                ipv4: &self.ipv4_pools,
                ipv6: &self.ipv6_pools,
            }
        }
    }
}

impl Resolved {
    /// Replaces the network's own pools with those that a configuration names, by family, or with the metadata.
    ///
    /// # Errors
    /// If it names pools for a network whose addresses come from the metadata.
    fn prefer_pools(&mut self, pools: NamedPools) -> Result<(), Failure> {
        if pools.addresses == Addresses::Metadata {
            self.addresses = pools.addresses;
            self.ipv4_pools.clear();
            self.ipv6_pools.clear();
            return Ok(());
        }
        let named = [&pools.ipv4[..], &pools.ipv6].concat();
        if self.addresses == Addresses::Metadata && !named.is_empty() {
            return Err(Failure::new(
                code::UNSUPPORTED_FIELD,
                format!(
                    "the network configuration names pools ({}), and network {} takes its addresses from the cloud's \
                     metadata",
                    named.join(", "),
                    self.spec.name
                ),
                "leave them out of `ipam`, or remove the annotation ebbtide.io/addresses of the network",
            ));
        }
        if !pools.ipv4.is_empty() {
            self.ipv4_pools = pools.ipv4;
        }
        if !pools.ipv6.is_empty() {
            self.ipv6_pools = pools.ipv6;
        }
        Ok(())
    }
}

impl From<&Network> for Resolved {
    fn from(network: &Network) -> Self {
        Self {
            spec: NetworkSpec {
                master: network.master.clone(),
                mode: network.mode,
                mtu: network.mtu,
                veth: network.coordinator,
                via_host: network.via_host.clone(),
                default_route: network.default_route_nic.clone(),
                answer_neighbours: network.answer_neighbours,
                ..NetworkSpec::named(network.name.to_string())
            },
            name: Some(network.name.clone()),
            addresses: network.addresses,
            ipv4_pools: network.ipv4_pools.clone(),
            ipv6_pools: network.ipv6_pools.clone(),
            ips: Vec::new(),
        }
    }
}

/// Returns what is known of the pod. Labels and annotations come from the API server; without one, pools that select
/// by them are skipped.
pub(super) async fn subject(agent: &Agent, identity: &PodIdentity) -> Result<Subject, Failure> {
    let plain = Subject {
        pod: Object::named(identity.name.clone()),
        namespace: Object::named(identity.namespace.clone()),
        pod_uid: identity.uid.clone(),
        ..Subject::UNKNOWN
    };
    let Some(cluster) = &agent.cluster else {
        return Ok(plain);
    };
    if !cluster.is_taken_over().await {
        return Err(Failure::new(
            code::TRY_AGAIN_LATER,
            "which addresses pods have that Spiderpool served is not known yet",
            "the runtime will try again; nothing was given out. If it stays so, see in the agent's \
             log what it is waiting for (the API server, most likely)",
        ));
    }
    // Not a pod: the runtime's own client, used by hand.
    if identity.name.is_empty() {
        return Ok(plain);
    }
    let name = ObjectName {
        namespace: identity.namespace.clone(),
        name: identity.name.clone(),
    };
    match cluster.pod(&name, &identity.uid).await {
        Ok(subject) => Ok(subject),
        Err(unknown) => Err(Failure::new(
            code::TRY_AGAIN_LATER,
            unknown.to_string(),
            "the runtime will try again; nothing was given out, since the pod's annotations may \
             name its network and pools",
        )),
    }
}

/// Sends a failed ADD's error as an Event on the pod, where people look first.
pub(super) fn send_failure_event(agent: &Agent, invocation: &Invocation, failure: &Failure) {
    if invocation.command != "ADD" || failure.code == code::TRY_AGAIN_LATER {
        return;
    }
    let note = format!("{}; {}", failure.message, failure.hint);
    send_warning_event(agent, invocation, "NoNetwork", note);
}

/// Sends a warning Event on the pod of a command.
pub(super) fn send_warning_event(
    agent: &Agent,
    invocation: &Invocation,
    reason: &'static str,
    note: String,
) {
    let Some(cluster) = &agent.cluster else {
        return;
    };
    let identity = PodIdentity::parse(&invocation.args);
    let pod = ObjectName {
        namespace: identity.namespace,
        name: identity.name,
    };
    cluster.send_pod_event(pod, reason, note);
}

/// Returns the interfaces to make, the one that the runtime requested first.
pub(super) fn interfaces(
    agent: &Agent,
    choice: NetworkChoice,
    conf: &NetConf,
    attachment: &Attachment,
    subject: &Subject,
    catalog: &Catalog,
) -> Result<Vec<(String, Resolved)>, Failure> {
    let pod = ObjectName {
        namespace: subject.namespace.name.clone(),
        name: subject.pod.name.clone(),
    };
    let asking = Some(pod.namespace.as_str());
    let default = agent.settings.default_network.as_ref();
    let limit = bandwidth::wanted(conf, &subject.pod)?;
    let asked = networks::wanted(&pod, &subject.pod, &attachment.interface, default);
    if choice != NetworkChoice::ByPod {
        // Another plugin (Multus) reads the annotations and calls Ebbtide once for each network.
        let mut network = resolve(agent, choice, conf, catalog, asking)?;
        network.ips = conf.ips()?;
        network.spec.accept_marks = accepts_marks(conf, &subject.pod);
        network.spec.metadata = metadata(conf, &subject.pod)?;
        network.spec.bandwidth = limit;
        if let Ok(asked) = asked {
            prefer_route(&mut network, asked.default_route_nic);
        }
        return Ok(vec![(attachment.interface.clone(), network)]);
    }
    let asked = asked.map_err(|error| {
        Failure::new(
            code::INVALID_NETWORK_CONFIG,
            error.to_string(),
            "correct the pod, or name a network in the CNI configuration with `network`; nothing \
             was given out",
        )
    })?;
    for note in &asked.without_effect {
        warn!("{note}");
        if let Some(cluster) = &agent.cluster {
            cluster.send_pod_event(pod.clone(), "NoEffect", note.clone());
        }
    }
    let mut interfaces = Vec::new();
    for each in asked.interfaces {
        // The cluster's default network is open to all namespaces.
        let asking = asking.filter(|_| !each.is_default);
        let mut network = by_reference(agent, &each.network, conf, catalog, asking)?;
        network.ips = each.ips;
        network.spec.gateways = each.default_route;
        network.spec.accept_marks = accepts_marks(conf, &subject.pod);
        network.spec.metadata = metadata(conf, &subject.pod)?;
        network.spec.bandwidth = limit;
        prefer_route(&mut network, asked.default_route_nic.clone());
        interfaces.push((each.interface, network));
    }
    // The runtime's addresses are for the interface that it requests; the pod's own annotations win.
    if let Some((_, first)) = interfaces
        .first_mut()
        .filter(|(_, first)| first.ips.is_empty())
    {
        first.ips = conf.ips()?;
    }
    Ok(interfaces)
}

/// The annotation by which a pod decides about marks; [`INTERCEPTION`] is Istio's, for a proxy that marks packets.
const ACCEPT_MARKS: &str = "ebbtide.io/accept-marks";
/// See [`ACCEPT_MARKS`].
const INTERCEPTION: &str = "sidecar.istio.io/interceptionMode";

/// Whether accepted sockets of the pod are to take their SYN's mark.
pub(super) fn accepts_marks(conf: &NetConf, pod: &Object) -> bool {
    let said = |key: &str| pod.annotations.get(key).map(String::as_str);
    match said(ACCEPT_MARKS) {
        Some("true") => true,
        Some("false") => false,
        _ => conf.accept_marks.unwrap_or(true) && said(INTERCEPTION) != Some("TPROXY"),
    }
}

/// The annotation by which a pod decides how it reaches the cloud's metadata service.
const METADATA: &str = "ebbtide.io/metadata";

/// Returns how the pod is to reach the cloud's metadata service, if it or the configuration says so.
///
/// # Errors
/// If the annotation has another value: as a typing error it could mean either.
pub(super) fn metadata(conf: &NetConf, pod: &Object) -> Result<Option<PodMetadata>, Failure> {
    let said = pod.annotations.get(METADATA).map(|text| text.trim());
    let Some(said) = said.filter(|text| !text.is_empty()) else {
        return Ok(conf.metadata);
    };
    match PodMetadata::named(said) {
        Some(metadata) => Ok(Some(metadata)),
        None => Err(Failure::new(
            code::INVALID_NETWORK_CONFIG,
            format!("annotation {METADATA} of the pod is {said:?}"),
            "write allow, viaHost or drop",
        )),
    }
}

/// Sets the NIC of the default route that the pod requests, instead of the network's.
fn prefer_route(network: &mut Resolved, nic: Option<String>) {
    if nic.is_some() {
        network.spec.default_route = nic;
    }
}

/// Returns the network of a pod that names none, for commands without a pod.
pub(super) fn expected(
    agent: &Agent,
    conf: &NetConf,
    catalog: &Catalog,
) -> Result<Resolved, Failure> {
    match (conf.choice()?, &agent.settings.default_network) {
        (NetworkChoice::ByPod, Some(network)) => by_reference(agent, network, conf, catalog, None),
        // Every pod names its own: any network will do.
        (NetworkChoice::ByPod, None) => match catalog.networks().first() {
            Some(network) => Ok(Resolved {
                ipv4_pools: Vec::new(),
                ipv6_pools: Vec::new(),
                ..Resolved::from(network)
            }),
            None => Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                "no network is declared",
                "declare a SpiderMultusConfig, or name one in the CNI configuration with `network`",
            )),
        },
        (choice, _) => resolve(agent, choice, conf, catalog, None),
    }
}

/// Returns a network by its own name, or by that of a NetworkAttachmentDefinition. `asking` is the namespace of the
/// pod that names it, if one does.
///
/// A name without a namespace means the first of the administrator's namespaces that has either, and never another
/// one: otherwise whoever may write objects in some namespace could capture everybody's pods.
fn by_reference(
    agent: &Agent,
    reference: &NetworkRef,
    conf: &NetConf,
    catalog: &Catalog,
    asking: Option<&str>,
) -> Result<Resolved, Failure> {
    let named = |text: &str| {
        let network = catalog.network(text)?;
        permit(agent, catalog, asking, &network.name)?;
        Ok(Resolved::from(network))
    };
    let Some(cluster) = &agent.cluster else {
        return named(&reference.to_string());
    };
    for name in catalog.namespaces().meant(reference) {
        // A definition that could not be used counts, too: one of the same name in another namespace is not meant.
        let is_declared = kube::attachment::is_declared(cluster, &name);
        if catalog.network_exact(&name).is_some() {
            return named(&name.to_string());
        }
        match kube::attachment::configuration(cluster, &name) {
            Some(found) => {
                permit(agent, catalog, asking, &name)?;
                return by_attachment(agent, &name, found, conf, catalog, asking);
            }
            None if is_declared => return named(&name.to_string()),
            None => {}
        }
    }
    named(&reference.to_string())
}

/// Returns the network of a NetworkAttachmentDefinition; `found` is Ebbtide's configuration in it.
fn by_attachment(
    agent: &Agent,
    name: &ObjectName,
    found: Result<String, String>,
    conf: &NetConf,
    catalog: &Catalog,
    asking: Option<&str>,
) -> Result<Resolved, Failure> {
    let text = found.map_err(|reason| {
        Failure::new(
            code::UNSUPPORTED_FIELD,
            format!("NetworkAttachmentDefinition {name}: {reason}"),
            "this agent makes interfaces of its own networks only: for other plugins put Multus \
             in front, it calls ebbtide like any other",
        )
    })?;
    let attachment = NetConf::parse(&text)?;
    if attachment.is_chained() {
        return Err(Failure::new(
            code::UNSUPPORTED_FIELD,
            format!("NetworkAttachmentDefinition {name} gives its addresses by another plugin"),
            "use \"ipam\": {\"type\": \"ebbtide\"}, or put Multus in front",
        ));
    }
    match attachment.choice()? {
        NetworkChoice::ByPod => Err(Failure::new(
            code::INVALID_NETWORK_CONFIG,
            format!("NetworkAttachmentDefinition {name} names neither `network` nor `master`"),
            "name a SpiderMultusConfig with `network`",
        )),
        choice => resolve(agent, choice, conf, catalog, asking),
    }
}

/// Refuses a network that pods of this namespace may not name, if namespaces are isolated.
fn permit(
    agent: &Agent,
    catalog: &Catalog,
    asking: Option<&str>,
    network: &ObjectName,
) -> Result<(), Failure> {
    let settings = &agent.settings;
    let Some(asking) =
        asking.filter(|own| settings.namespace_isolation && *own != network.namespace)
    else {
        return Ok(());
    };
    let open = catalog
        .namespaces()
        .open_to_all(&settings.global_namespaces);
    if open.contains(&network.namespace) {
        return Ok(());
    }
    Err(Failure::new(
        code::INVALID_NETWORK_CONFIG,
        format!(
            "a pod of namespace {asking} may not name network {network}: namespaces are isolated \
             (`namespaceIsolation`), and all pods may name those of {} alone",
            open.join(", ")
        ),
        "use a network of the pod's own namespace, or have the administrator list the other one in \
         `globalNamespaces` of the agent's settings",
    ))
}

/// Returns the network of a configuration; `asking` as in [`by_reference`].
pub(super) fn resolve(
    agent: &Agent,
    choice: NetworkChoice,
    conf: &NetConf,
    catalog: &Catalog,
    asking: Option<&str>,
) -> Result<Resolved, Failure> {
    match choice {
        NetworkChoice::ByPod => match &agent.settings.default_network {
            Some(network) => by_reference(agent, network, conf, catalog, None),
            None => Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                "neither the CNI configuration nor the agent names a network",
                "name a SpiderMultusConfig with `network`, or start the agent with --default-network",
            )),
        },
        NetworkChoice::Named { network, pools } => {
            let network = catalog.network(&network)?;
            permit(agent, catalog, asking, &network.name)?;
            let mut network = Resolved::from(network);
            network.prefer_pools(pools)?;
            Ok(network)
        }
        NetworkChoice::Inline {
            master,
            mode,
            mtu,
            pools,
        } => Ok(Resolved {
            spec: NetworkSpec {
                master,
                mode,
                mtu,
                ..NetworkSpec::named(&conf.name)
            },
            name: None,
            addresses: pools.addresses,
            ipv4_pools: pools.ipv4,
            ipv6_pools: pools.ipv6,
            ips: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_a_configuration_names_take_the_place_of_the_network_s_own_of_their_family() {
        let list = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        for (ipv4, ipv6, expected) in [
            (&[][..], &[][..], (&["a"][..], &["b"][..])),
            (&["c"], &[], (&["c"], &["b"])),
            (&[], &["d"], (&["a"], &["d"])),
            (&["c", "e"], &["d"], (&["c", "e"], &["d"])),
        ] {
            let mut network = Resolved {
                spec: NetworkSpec::named("n"),
                name: None,
                addresses: Addresses::Pools,
                ipv4_pools: list(&["a"]),
                ipv6_pools: list(&["b"]),
                ips: Vec::new(),
            };
            let named = NamedPools {
                ipv4: list(ipv4),
                ipv6: list(ipv6),
                ..NamedPools::default()
            };
            network.prefer_pools(named).unwrap();
            assert_eq!(
                (network.ipv4_pools, network.ipv6_pools),
                (list(expected.0), list(expected.1))
            );
        }
    }

    #[test]
    fn the_metadata_takes_the_place_of_pools_and_pools_never_that_of_the_metadata() {
        let network = |addresses, pools: &[&str]| Resolved {
            spec: NetworkSpec {
                master: "ens6".into(),
                ..NetworkSpec::named("default/n")
            },
            name: None,
            addresses,
            ipv4_pools: pools.iter().map(|pool| (*pool).to_owned()).collect(),
            ipv6_pools: Vec::new(),
            ips: Vec::new(),
        };
        let metadata = || NamedPools {
            addresses: Addresses::Metadata,
            ..NamedPools::default()
        };
        for mut network in [
            network(Addresses::Pools, &["a"]),
            network(Addresses::Metadata, &[]),
        ] {
            network.prefer_pools(metadata()).unwrap();
            assert_eq!(network.metadata(), Some("ens6"));
            assert_eq!(network.source(), Source::Defaults);
        }
        let mut network = network(Addresses::Metadata, &[]);
        network.prefer_pools(NamedPools::default()).unwrap();
        assert_eq!(network.metadata(), Some("ens6"));
        let named = NamedPools {
            ipv6: vec!["b".into()],
            ..NamedPools::default()
        };
        let failure = network.prefer_pools(named).unwrap_err();
        assert!(
            failure.message.contains("names pools (b)") && failure.message.contains("default/n"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn marks_are_accepted_unless_pod_or_network_say_otherwise() {
        for (fields, annotations, accepted) in [
            ("", vec![], true),
            (r#","acceptMarks":null"#, vec![], true),
            (r#","acceptMarks":false"#, vec![], false),
            ("", vec![(ACCEPT_MARKS, "false")], false),
            ("", vec![(INTERCEPTION, "TPROXY")], false),
            ("", vec![(INTERCEPTION, "REDIRECT")], true),
            (
                "",
                vec![(INTERCEPTION, "TPROXY"), (ACCEPT_MARKS, "true")],
                true,
            ),
            (
                r#","acceptMarks":false"#,
                vec![(ACCEPT_MARKS, "true")],
                true,
            ),
        ] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n"{fields}}}"#);
            let conf = NetConf::parse(&text).unwrap();
            let annotations = annotations.iter();
            let pod = Object {
                annotations: annotations
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
                ..Object::named("web")
            };
            assert_eq!(accepts_marks(&conf, &pod), accepted, "{text} {pod:?}");
        }
    }

    #[test]
    fn the_pod_s_word_about_metadata_is_before_the_configuration_s() {
        for (fields, said, expected) in [
            ("", None, Ok(None)),
            ("", Some(""), Ok(None)),
            ("", Some("allow"), Ok(Some(PodMetadata::Allow))),
            ("", Some(" drop "), Ok(Some(PodMetadata::Drop))),
            ("", Some("Drop"), Err(())),
            ("", Some("false"), Err(())),
            (r#","metadataForPods":null"#, None, Ok(None)),
            (
                r#","metadataForPods":"drop""#,
                None,
                Ok(Some(PodMetadata::Drop)),
            ),
            (
                r#","metadataForPods":"drop""#,
                Some("viaHost"),
                Ok(Some(PodMetadata::ViaHost)),
            ),
        ] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n"{fields}}}"#);
            let conf = NetConf::parse(&text).unwrap();
            let annotations = said.map(|said| (METADATA.to_owned(), said.to_owned()));
            let pod = Object {
                annotations: annotations.into_iter().collect(),
                ..Object::named("web")
            };
            let found = metadata(&conf, &pod).map_err(|failure| {
                assert!(failure.message.contains(METADATA), "{}", failure.message);
            });
            assert_eq!(found, expected, "{text} {said:?}");
        }
    }
}
