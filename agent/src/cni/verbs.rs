//! ADD, DEL, CHECK, STATUS and GC.

use std::sync::Arc;

use ebbtide_plugin::{
    cni::{NEWEST, code},
    wire::{Invocation, Response},
};
use ipnet::IpNet;
use tracing::{Instrument as _, error, info, info_span, warn};

use super::{AddResult, Attachment, Failure, NetConf, NetworkChoice, PodIdentity, invocation};
use crate::{
    agent::{Agent, DetachError},
    catalog::{Catalog, ObjectName, glob::fits},
    netlink::{
        model::MAIN_TABLE,
        netns::{Evidence, Netns},
    },
    node::NodeFacts,
    podnet::{self, Earlier, Links, NetworkSpec, PodAddress, PodNet, Sandbox},
    pool::{Assigned, Object, Owner, Record, Request, Reserved, Source, Subject},
};

/// Carries out what the plugin was asked to do.
pub async fn handle(agent: &Agent, invocation: &Invocation) -> Response {
    let span = info_span!(
        "cni",
        command = %invocation.command,
        container = %invocation.container_id.get(..12).unwrap_or(&invocation.container_id),
        interface = %invocation.if_name,
    );
    async {
        let mut version = NEWEST.to_owned();
        match run(agent, invocation, &mut version).await {
            Ok(output) => Response { exit: 0, output },
            Err(failure) => {
                warn!(code = failure.code, "{}", failure.message);
                Response {
                    exit: 1,
                    output: failure.to_json(&version),
                }
            }
        }
    }
    .instrument(span)
    .await
}

async fn run(
    agent: &Agent,
    invocation: &Invocation,
    version: &mut String,
) -> Result<String, Failure> {
    let conf = NetConf::parse(&invocation.config)?;
    version.clone_from(&conf.cni_version);
    let since = |minimum: &str| {
        if conf.is_at_least(minimum) {
            return Ok(());
        }
        Err(Failure::new(
            code::INCOMPATIBLE_VERSION,
            format!(
                "{} is not part of CNI {}",
                invocation.command, conf.cni_version
            ),
            format!("use a configuration of cniVersion {minimum} or newer"),
        ))
    };
    match invocation.command.as_str() {
        "ADD" => add(agent, invocation, &conf).await,
        "DEL" => del(agent, invocation, &conf).await,
        "CHECK" => {
            since("0.4.0")?;
            check(agent, invocation, &conf).await
        }
        "STATUS" => {
            since("1.1.0")?;
            status(agent, &conf)
        }
        "GC" => {
            since("1.1.0")?;
            gc(agent, &conf).await
        }
        other => Err(Failure::new(
            code::INVALID_ENVIRONMENT,
            format!("CNI_COMMAND={other:?} is not a command"),
            "it must be ADD, DEL, CHECK, STATUS, GC or VERSION",
        )),
    }
}

/// A network, and the pools its pods may have addresses from.
struct Resolved {
    spec: NetworkSpec,
    name: Option<ObjectName>,
    ipv4_pools: Vec<String>,
    ipv6_pools: Vec<String>,
}

impl Resolved {
    fn source(&self) -> Source<'_> {
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

fn resolve(choice: NetworkChoice, conf: &NetConf, catalog: &Catalog) -> Result<Resolved, Failure> {
    match choice {
        NetworkChoice::Named(name) => {
            let network = catalog.network(&name)?;
            Ok(Resolved {
                spec: NetworkSpec {
                    name: network.name.to_string(),
                    master: network.master.clone(),
                    mode: network.mode,
                    mtu: network.mtu,
                    veth: network.coordinator,
                    via_host: network.via_host.clone(),
                    default_route: network.default_route_nic.clone(),
                },
                name: Some(network.name.clone()),
                ipv4_pools: network.ipv4_pools.clone(),
                ipv6_pools: network.ipv6_pools.clone(),
            })
        }
        NetworkChoice::Inline {
            master,
            mode,
            mtu,
            ipv4_pools,
            ipv6_pools,
        } => Ok(Resolved {
            spec: NetworkSpec {
                name: conf.name.clone(),
                master,
                mode,
                mtu,
                veth: true,
                via_host: Vec::new(),
                default_route: None,
            },
            name: None,
            ipv4_pools,
            ipv6_pools,
        }),
    }
}

async fn add(agent: &Agent, invocation: &Invocation, conf: &NetConf) -> Result<String, Failure> {
    let attachment = Attachment::parse(invocation)?;
    let netns = invocation::netns(invocation)?;
    let choice = conf.choice()?;
    let _turn = agent.lock(&attachment.container_id).await;
    let Evidence::Present(namespace) = Netns::look(&netns, None)? else {
        return Err(Failure::new(
            code::UNKNOWN_CONTAINER,
            format!("CNI_NETNS={} is no network namespace", netns.display()),
            "did the container end meanwhile? The runtime must make the namespace before ADD",
        ));
    };
    let catalog = agent.catalog();
    let network = resolve(choice, conf, &catalog)?;
    let identity = PodIdentity::parse(&invocation.args);
    // Labels and annotations are the API server's to tell; pools that look at them are passed over.
    let subject = Subject {
        pod: Object::named(identity.name.clone()),
        namespace: Object::named(identity.namespace.clone()),
        node_labels: None,
    };
    let sandbox = Sandbox {
        pod: identity.or_container(&attachment.container_id),
        container_id: attachment.container_id.clone(),
        interface: attachment.interface.clone(),
        netns,
        netns_inode: namespace.inode(),
    };
    let owner = owner(conf, &attachment);
    refuse_conflicts(agent, &owner, &network.spec)?;
    let earlier = earlier(agent, &owner);
    let facts = NodeFacts::read(&agent.host).await?;
    let request = Request {
        network: network.name.as_ref(),
        source: network.source(),
        subject: &subject,
        ..Request::new(&owner, &agent.node_name, &catalog)
    };
    let plan = |assigned: &[Assigned]| -> Result<PodNet, Failure> {
        let addresses = pod_addresses(assigned)?;
        Ok(podnet::plan(
            &sandbox,
            &earlier,
            &network.spec,
            &addresses,
            &facts,
            &agent.settings,
        )?)
    };
    let (net, links) = match agent.pools.reserve(&request)? {
        Reserved::Existing(allocation) => {
            // The same request again, or one that an earlier agent did not live to answer.
            let net = plan(&allocation.assigned)?;
            agent.pools.update_record(&owner, record(&net)?).await?;
            (Arc::new(net), Links::Ensure)
        }
        Reserved::New(grant) => {
            let net = plan(grant.assigned())?;
            grant.commit(record(&net)?).await?;
            (Arc::new(net), Links::New)
        }
    };
    agent.note(owner.clone(), Arc::clone(&net));
    agent.prepare_nics(&facts).await;
    let nic = agent.nic_plan(&facts, &net);
    if let Err(e) = podnet::apply(&net, &nic, &agent.host, &agent.datapath, links).await {
        // What an earlier ADD made and answered is not this one's to take away.
        if links == Links::New
            && let Err(left) = agent.abandon(&owner, &net).await
        {
            error!(pod = %net.pod, "could not be undone, DEL or GC will try again: {left}");
        }
        return Err(e.into());
    }
    let ips: Vec<String> = net
        .addresses
        .iter()
        .map(|a| a.address.to_string())
        .collect();
    info!(pod = %net.pod, network = %net.network, addresses = %ips.join(", "), "interface made");
    let result = AddResult {
        mac: facts.nic(&net.ipvlan.master).and_then(|nic| nic.mac),
        net: &net,
    };
    Ok(result.to_json(&conf.cni_version).to_string())
}

fn owner(conf: &NetConf, attachment: &Attachment) -> Owner {
    Owner {
        network: conf.name.clone(),
        container_id: attachment.container_id.clone(),
        interface: attachment.interface.clone(),
    }
}

/// What the pod has from its other interfaces.
fn earlier(agent: &Agent, owner: &Owner) -> Earlier {
    let mut earlier = Earlier::default();
    for (other, net) in agent.interfaces() {
        let table = net.table.unwrap_or(MAIN_TABLE);
        if other == *owner {
            earlier.own_table = Some(table);
        } else if other.container_id == owner.container_id {
            earlier.tables.push(table);
            if let Some(veth) = &net.veth {
                earlier.veth = Some(veth.clone());
            }
            let replies = net.in_pod.rules.iter();
            let replies = replies.filter(|rule| rule.table == agent.settings.reply_table);
            earlier.families.extend(replies.map(|rule| rule.family));
        }
    }
    earlier
}

/// What cannot stand beside the interfaces that are there already.
fn refuse_conflicts(agent: &Agent, owner: &Owner, spec: &NetworkSpec) -> Result<(), Failure> {
    for (other, net) in agent.interfaces() {
        if other == *owner {
            continue;
        }
        if net.ipvlan.master == spec.master && net.ipvlan.mode != spec.mode {
            return Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                format!(
                    "network {} wants mode {} on {}, but {} of pod {} is there in mode {}",
                    spec.name, spec.mode, spec.master, other.interface, net.pod, net.ipvlan.mode
                ),
                "a NIC has one ipvlan mode, adding another would change all its children: use the \
                 same mode in all networks of one master",
            ));
        }
    }
    Ok(())
}

fn pod_addresses(assigned: &[Assigned]) -> Result<Vec<PodAddress>, Failure> {
    assigned
        .iter()
        .map(|a| {
            Ok(PodAddress {
                address: IpNet::new(a.address, a.prefix_len).map_err(|e| {
                    Failure::new(
                        code::INVALID_NETWORK_CONFIG,
                        format!(
                            "pool {} has a prefix length of {}: {e}",
                            a.pool, a.prefix_len
                        ),
                        "correct the pool's subnet",
                    )
                })?,
                pool: a.pool.clone(),
                gateway: a.gateway,
                routes: a.routes.iter().map(|r| (r.dst, r.gateway)).collect(),
            })
        })
        .collect()
}

fn record(net: &PodNet) -> Result<Record, Failure> {
    Record::of(net).map_err(|e| {
        Failure::new(
            code::IO_FAILURE,
            format!("write down the plan of pod {}: {e}", net.pod),
            "this is a defect of the agent: please report it",
        )
    })
}

async fn del(agent: &Agent, invocation: &Invocation, conf: &NetConf) -> Result<String, Failure> {
    let attachment = Attachment::parse(invocation)?;
    let _turn = agent.lock(&attachment.container_id).await;
    let owner = owner(conf, &attachment);
    let Some(net) = agent.interface(&owner) else {
        // Never made, or removed before: nothing of it is left.
        return Ok(String::new());
    };
    detach(agent, &owner, &net).await?;
    info!(pod = %net.pod, "interface removed");
    Ok(String::new())
}

async fn detach(agent: &Agent, owner: &Owner, net: &PodNet) -> Result<(), Failure> {
    agent.detach(owner, net).await.map_err(|e| match e {
        DetachError::Podnet(e) => Failure::new(
            code::TRY_AGAIN_LATER,
            format!("remove {} of pod {}: {e}", owner.interface, net.pod),
            "its addresses stay taken until this succeeds; the runtime will try again",
        ),
        DetachError::Pool(e) => e.into(),
    })
}

async fn check(agent: &Agent, invocation: &Invocation, conf: &NetConf) -> Result<String, Failure> {
    let attachment = Attachment::parse(invocation)?;
    let _turn = agent.lock(&attachment.container_id).await;
    let owner = owner(conf, &attachment);
    let Some(net) = agent.interface(&owner) else {
        return Err(Failure::new(
            code::UNKNOWN_CONTAINER,
            format!(
                "container {} has no interface {} in network {}",
                owner.container_id, owner.interface, owner.network
            ),
            "it was never added here, or was removed: make the container anew",
        ));
    };
    let facts = NodeFacts::read(&agent.host).await?;
    let nic = agent.nic_plan(&facts, &net);
    let damage = podnet::check(&net, &nic, &agent.host, &agent.datapath).await?;
    if damage.is_empty() {
        return Ok(String::new());
    }
    Err(Failure::new(
        code::CHECK_FAILED,
        format!("pod {}: {}", net.pod, damage.join("; ")),
        "a repeated ADD or a restart of the agent puts it right; something else on the node \
         removed it",
    ))
}

async fn gc(agent: &Agent, conf: &NetConf) -> Result<String, Failure> {
    let valid = conf.valid_attachments()?;
    let mut failures = Vec::new();
    let mut removed = 0;
    for (owner, _) in agent.interfaces() {
        let stays = valid.contains(&(owner.container_id.as_str(), owner.interface.as_str()));
        if owner.network != conf.name || stays {
            continue;
        }
        let _turn = agent.lock(&owner.container_id).await;
        let Some(net) = agent.interface(&owner) else {
            continue;
        };
        match detach(agent, &owner, &net).await {
            Ok(()) => removed += 1,
            Err(failure) => failures.push(failure),
        }
    }
    info!(removed, failed = failures.len(), "garbage collected");
    match failures.into_iter().next() {
        None => Ok(String::new()),
        Some(first) => Err(first),
    }
}

/// Would an ADD succeed? From memory alone: the kubelet asks every few seconds.
fn status(agent: &Agent, conf: &NetConf) -> Result<String, Failure> {
    let catalog = agent.catalog();
    let unavailable =
        |message: String, way_out: &str| Failure::new(code::NOT_AVAILABLE, message, way_out);
    let network =
        resolve(conf.choice()?, conf, &catalog).map_err(|f| unavailable(f.message, &f.way_out))?;
    let patterns = || network.ipv4_pools.iter().chain(&network.ipv6_pools);
    let listed = |name: &str| patterns().any(|pattern| fits(pattern, name));
    let explicit = !network.ipv4_pools.is_empty() || !network.ipv6_pools.is_empty();
    let free = agent.pools.usage(&catalog).into_iter().any(|pool| {
        let here = pool.node_names.is_empty() || pool.node_names.contains(&agent.node_name);
        pool.free > 0 && here && (!explicit || listed(&pool.name))
    });
    if free {
        Ok(String::new())
    } else {
        Err(unavailable(
            format!(
                "no pool has a free address for network {} on node {}",
                network.spec.name, agent.node_name
            ),
            "`ebbtidectl pools` shows the pools and how full they are",
        ))
    }
}
