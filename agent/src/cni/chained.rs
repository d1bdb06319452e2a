//! ADD where another plugin made the interface (a chain) or assigns the addresses (`ipam.type`).

use std::{net::IpAddr, sync::Arc};

use ebbtide_ipam::pool::{Object, Owner};
use ebbtide_kernel::{
    netlink::{self, direct::Direct, link::Link, netns::Netns},
    node,
    podnet::{self, Delegate, Links, NetworkSpec, PodAddress, PodNet, Sandbox},
};
use ebbtide_plugin::{cni::code, wire::Invocation};
use ebbtide_types::{Mac, timing};
use ipnet::IpNet;
use serde_json::{Value, json};
use tracing::{error, warn};

use super::{
    AddResult, Failure, NetConf,
    add::{existing, make, own_existing},
    bandwidth,
    config::DHCP,
    conflict::{refuse_another, refuse_conflicts},
    container::{Container, owner},
    delegate,
    foreign::{self, Origin, Target},
    previous::Previous,
    result::is_by_family,
    wanted,
};
use crate::agent::Agent;

/// Carries out ADD in the steps of [`super::add`], with addresses from another plugin.
pub(super) async fn add(
    agent: &Agent,
    invocation: &Invocation,
    conf: &NetConf,
) -> Result<String, Failure> {
    let choice = conf.choice()?;
    let container = Container::wait(agent, invocation).await?;
    let owner = owner(conf, &container.attachment);
    let sandbox = container.sandbox(&container.attachment.interface);
    if let Some(result) = conf.previous() {
        let mut previous = Previous::parse(result, "the plugin before ebbtide")?;
        let inside = timing::at_once("look into the pod", || {
            Inside::read(&container.netns, &sandbox.interface)
        })?;
        for absent in previous.leave_out_absent(&inside.in_pod) {
            warn!(
                pod = %sandbox.pod,
                "prevResult gives the pod {absent}, which none of its interfaces has: it is left out. Does the plugin \
                 before ebbtide put its addresses on the interface?"
            );
        }
        let addresses = previous.of_interface(&sandbox.interface, &inside.addresses)?;
        let known = agent.interface(&owner);
        let known = known.as_ref().and_then(|net| net.spec.as_ref());
        let strict_links = match known {
            Some(spec) => spec.strict_links.clone(),
            None => {
                // A result without `sandbox` may mean a link in the pod with the same name as a NIC.
                let host = agent.nics();
                let nics = host.iter().flat_map(|host| &host.nics);
                let nics: Vec<&str> = nics.map(|nic| nic.name.as_str()).collect();
                previous
                    .in_host(&sandbox.interface)
                    .filter(|link| is_strict(link) && !nics.contains(link))
                    .map(ToOwned::to_owned)
                    .collect()
            }
        };
        let spec = NetworkSpec {
            made_before: Some(inside.link.mtu),
            strict_links,
            accept_marks: !inside.marks
                && wanted::accepts_marks(conf, &pod(agent, &container).await),
            master: String::new(),
            ..match conf.network() {
                Some(_) => {
                    let asking = Some(container.identity.namespace.as_str());
                    wanted::resolve(agent, choice, conf, &agent.catalog(), asking)?.spec
                }
                None => NetworkSpec::named(&conf.name),
            }
        };
        refuse_another(agent, &owner, &sandbox, &spec)?;
        let origin = Origin {
            by: "the plugin before ebbtide",
            on: Target::Existing(&inside.link),
        };
        let (net, _) = attach(agent, &owner, &sandbox, &spec, &addresses, origin, None).await?;
        agent.enable_forwarding().await;
        return Ok(extend_result(result, &net, &conf.cni_version).to_string());
    }
    let asking = Some(container.identity.namespace.as_str());
    let mut spec = wanted::resolve(agent, choice, conf, &agent.catalog(), asking)?.spec;
    let pod = pod(agent, &container).await;
    spec.accept_marks = wanted::accepts_marks(conf, &pod);
    spec.bandwidth = bandwidth::wanted(conf, &pod)?;
    refuse_another(agent, &owner, &sandbox, &spec)?;
    refuse_conflicts(agent, &owner, &spec)?;
    let Some(ipam) = ipam(conf, invocation) else {
        return Err(Failure::new(
            code::INVALID_NETWORK_CONFIG,
            "nobody gives the addresses",
            "this is a defect of the agent: please report it",
        ));
    };
    let known = agent.interface(&owner);
    let (addresses, dns) = match &known {
        // The plugin would assign others, or none.
        Some(net) => (net.addresses.clone(), json!({})),
        None => from(&ipam).await?,
    };
    let origin = Origin {
        by: &ipam.kind,
        on: Target::Nic(&spec.master),
    };
    let attached = attach(
        agent,
        &owner,
        &sandbox,
        &spec,
        &addresses,
        origin,
        Some(&ipam),
    )
    .await;
    let (net, mac) = match attached {
        Ok(made) => made,
        Err(failure) => {
            // If the interface was recorded, `attach` has abandoned it and released the addresses.
            if known.is_none() && agent.interface(&owner).is_none() {
                release_addresses(&ipam).await;
            }
            return Err(failure);
        }
    };
    agent.enable_forwarding().await;
    let mut result = AddResult { mac, net: &net }.to_json(&conf.cni_version);
    result["dns"] = dns;
    Ok(result.to_string())
}

/// Passes DEL or CHECK on to the IPAM plugin, if another plugin's is configured.
pub(super) async fn call_ipam(
    conf: &NetConf,
    invocation: &Invocation,
    command: &str,
) -> Result<(), Failure> {
    match ipam(conf, invocation) {
        Some(ipam) => delegate::call(&ipam, command).await.map(drop),
        None => Ok(()),
    }
}

fn ipam(conf: &NetConf, invocation: &Invocation) -> Option<Delegate> {
    // A plugin that was never asked for an address has none to release.
    let kind = conf.ipam_plugin().filter(|kind| *kind != DHCP)?;
    Some(Delegate {
        kind: kind.to_owned(),
        container_id: invocation.container_id.clone(),
        netns: invocation.netns.clone(),
        interface: invocation.if_name.clone(),
        args: invocation.args.clone(),
        path: invocation.path.clone(),
        config: invocation.config.clone(),
    })
}

/// Requests addresses from the IPAM plugin. If its result is not understood, they are released.
async fn from(ipam: &Delegate) -> Result<(Vec<PodAddress>, Value), Failure> {
    let text = delegate::call(ipam, "ADD").await?;
    let understood = serde_json::from_str::<Value>(&text)
        .map_err(|e| {
            Failure::new(
                code::DECODING_FAILURE,
                format!("{} printed no result: {e}", ipam.kind),
                "is it an IPAM plugin?",
            )
        })
        .and_then(|result| {
            let addresses = Previous::parse(&result, &ipam.kind)?.of_ipam(&ipam.kind)?;
            let dns = result.get("dns").cloned().unwrap_or_else(|| json!({}));
            Ok((addresses, dns))
        });
    if understood.is_err() {
        release_addresses(ipam).await;
    }
    understood
}

async fn release_addresses(ipam: &Delegate) {
    if let Err(left) = delegate::call(ipam, "DEL").await {
        error!(
            "{} keeps an address of an interface that is not there: {}",
            ipam.kind, left.message
        );
    }
}

/// Plans, records and applies the interface; also returns the NIC's link-layer address.
async fn attach(
    agent: &Agent,
    owner: &Owner,
    sandbox: &Sandbox,
    spec: &NetworkSpec,
    addresses: &[PodAddress],
    origin: Origin<'_>,
    ipam: Option<&Delegate>,
) -> Result<(Arc<PodNet>, Option<Mac>), Failure> {
    let known = agent.interface(owner);
    let facts = match spec.made_before {
        Some(_) => agent.facts.get(&agent.host).await?,
        None => agent.facts.get_for_link(&spec.master, &agent.host).await?,
    };
    // The same ADD again: its addresses were admitted before.
    let _reservation = match known.as_ref().filter(|net| net.addresses == addresses) {
        Some(_) => None,
        None => Some(foreign::admit(agent, owner, sandbox, addresses, origin, &facts).await?),
    };
    let existing = match spec.made_before {
        // The interface of the other plugin is this one.
        Some(_) => own_existing(agent, owner),
        None => existing(agent, owner, sandbox).await?,
    };
    let settings = agent.settings_in(&agent.catalog());
    let node = agent.without_pods(&facts);
    let planned = podnet::plan(sandbox, &existing, spec, addresses, &node, &settings)?;
    let net = Arc::new(PodNet {
        delegate: ipam.cloned(),
        ..planned
    });
    let written = timing::step("write to disk", agent.write_record(owner, &net)).await;
    written.map_err(|e| {
        Failure::new(
            code::IO_FAILURE,
            format!("{} of pod {}: {e}", owner.interface, net.pod),
            "nothing was made; look at the agent's state directory",
        )
    })?;
    let links = match known {
        Some(_) => Links::Ensure,
        None => Links::New,
    };
    make(agent, owner, &net, &facts, links).await?;
    let mac = facts.nic(&spec.master).and_then(|nic| nic.mac);
    Ok((net, mac))
}

/// Returns the pod. If it is not known, it has no annotations, and the configuration alone decides.
async fn pod(agent: &Agent, container: &Container) -> Object {
    let known = wanted::subject(agent, &container.identity).await;
    known.map_or_else(|_| Object::named(String::new()), |subject| subject.pod)
}

/// Whether a link of the host filters reverse paths strictly: the larger one of `all` and its own setting counts
/// (Documentation/networking/ip-sysctl.rst).
fn is_strict(link: &str) -> bool {
    let plain = !link.contains('/') && !matches!(link, "." | "..");
    plain && node::is_strict(link)
}

/// The existing interface, and its surroundings in the pod.
struct Inside {
    link: Link,
    addresses: Vec<IpNet>,
    /// The addresses of all interfaces.
    in_pod: Vec<IpAddr>,
    /// Whether foreign rules in the pod route by marks.
    marks: bool,
}

impl Inside {
    fn read(netns: &Netns, name: &str) -> Result<Self, Failure> {
        let place = format!("in {}", netns.path().display());
        let (link, addresses, marks) = netns.run(|| {
            let mut pod = Direct::open(place)?;
            let link = pod.links(&[name])?.remove(name);
            let addresses = pod.addresses()?;
            Ok::<_, netlink::Error>((link, addresses, pod.foreign_rules()?.by_mark))
        })??;
        let Some(link) = link else {
            return Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                format!(
                    "another plugin's result came (prevResult), but the pod has no interface {name}"
                ),
                "the plugin before ebbtide must make the interface that the runtime asks for; for an \
                 interface of ebbtide's own, put it first",
            ));
        };
        let own = addresses
            .iter()
            .filter(|found| found.ifindex == link.ifindex);
        let own = own.map(|found| found.address);
        let own = own.filter(|own| !node::is_link_local(&own.addr()));
        let own: Vec<IpNet> = own.collect();
        Ok(Self {
            in_pod: addresses.iter().map(|found| found.address.addr()).collect(),
            addresses: own,
            link,
            marks,
        })
    }
}

/// Returns the earlier plugins' result with what was added: the veth pair to the host.
fn extend_result(existing: &Value, net: &PodNet, version: &str) -> Value {
    let own = AddResult { mac: None, net }.to_json(version);
    // Ebbtide's result begins with the pod's interface, which theirs already has.
    let added = own["interfaces"].as_array().into_iter().flatten().skip(1);
    with_interfaces(existing, added, version)
}

/// Returns a result with these interfaces added. If it is no JSON object, it is unchanged.
pub(super) fn with_interfaces<'a>(
    existing: &Value,
    added: impl Iterator<Item = &'a Value>,
    version: &str,
) -> Value {
    let mut result = existing.clone();
    let Some(fields) = result.as_object_mut() else {
        return result;
    };
    fields.insert("cniVersion".to_owned(), json!(version));
    // Before 0.3.0 a result has no interfaces.
    if is_by_family(version) {
        return result;
    }
    let mut interfaces = match fields.remove("interfaces") {
        Some(Value::Array(interfaces)) => interfaces,
        // Empty values were read as no interfaces.
        _ => Vec::new(),
    };
    for one in added {
        if !interfaces.contains(one) {
            interfaces.push(one.clone());
        }
    }
    fields.insert("interfaces".to_owned(), interfaces.into());
    result
}
