//! ADD, DEL, CHECK, STATUS and GC.

use std::sync::Arc;

use ebbtide_plugin::{
    cni::{NEWEST, code},
    wire::{Invocation, Response},
};
use ipnet::IpNet;
use tracing::{Instrument as _, error, info, info_span, warn};

use super::{
    AddResult, Attachment, Failure, NetConf, PodIdentity, guest, invocation,
    wanted::{self, Resolved},
};
use crate::{
    agent::{Agent, DetachError},
    catalog::{Catalog, glob::fits},
    kube::Leases,
    netlink::{
        model::{MAIN_TABLE, Mac},
        netns::{Evidence, Netns},
    },
    podnet::{self, Earlier, Links, NetworkSpec, PodAddress, PodNet, Sandbox},
    pool::{Assigned, Owner, PoolError, Record, Request, Reserved, Subject},
    timing,
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
        match timing::request("the agent's part", run(agent, invocation, &mut version)).await {
            Ok(output) => Response { exit: 0, output },
            Err(failure) => {
                warn!(code = failure.code, "{}", failure.message);
                wanted::tell_pod(agent, invocation, &failure);
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

async fn add(agent: &Agent, invocation: &Invocation, conf: &NetConf) -> Result<String, Failure> {
    if conf.is_guest() {
        return guest::add(agent, invocation, conf).await;
    }
    let attachment = Attachment::parse(invocation)?;
    let netns = invocation::netns(invocation)?;
    let choice = conf.choice()?;
    let _turn = agent.turns.to_change(&attachment.container_id).await;
    let Evidence::Present(namespace) = Netns::look(&netns, None)? else {
        return Err(Failure::new(
            code::UNKNOWN_CONTAINER,
            format!("CNI_NETNS={} is no network namespace", netns.display()),
            "did the container end meanwhile? The runtime must make the namespace before ADD",
        ));
    };
    let identity = PodIdentity::parse(&invocation.args);
    let subject = wanted::subject(agent, &identity).await?;
    let catalog = agent.catalog();
    let wanted = wanted::interfaces(agent, choice, conf, &attachment, &subject, &catalog)?;
    let mut made: Vec<(Owner, Made)> = Vec::new();
    for (interface, network) in &wanted {
        let sandbox = Sandbox {
            pod: identity.or_container(&attachment.container_id),
            container_id: attachment.container_id.clone(),
            interface: interface.clone(),
            netns: netns.clone(),
            netns_inode: namespace.inode(),
        };
        let owner = Owner {
            interface: interface.clone(),
            ..owner(conf, &attachment)
        };
        match attach(agent, &owner, &sandbox, network, &subject, &catalog).await {
            Ok(net) => made.push((owner, net)),
            Err(failure) => {
                // All interfaces or none; the one that brought the veth goes last.
                for (owner, made) in made.iter().rev() {
                    undo(agent, owner, made).await;
                }
                return Err(failure);
            }
        }
    }
    if conf.is_by_pod()
        && let Some(cluster) = &agent.cluster
    {
        cluster.note_own_network(&conf.name);
    }
    let Some((_, first)) = made.first() else {
        return Err(Failure::new(
            code::INVALID_NETWORK_CONFIG,
            "the pod wants no interface",
            "this is a defect of the agent: please report it",
        ));
    };
    let result = AddResult {
        mac: first.mac,
        net: &first.net,
    };
    Ok(result.to_json(&conf.cni_version).to_string())
}

/// An interface that is there now.
struct Made {
    net: Arc<PodNet>,
    links: Links,
    mac: Option<Mac>,
}

/// Makes one interface, or puts it right if it was made before.
async fn attach(
    agent: &Agent,
    owner: &Owner,
    sandbox: &Sandbox,
    network: &Resolved,
    subject: &Subject,
    catalog: &Catalog,
) -> Result<Made, Failure> {
    refuse_conflicts(agent, owner, &network.spec)?;
    let earlier = earlier(agent, owner);
    let master = &network.spec.master;
    let facts = agent.facts.sure_of(master, &agent.host);
    let facts = timing::step("look at the node", facts).await?;
    let settings = agent.settings_in(catalog);
    let plan = |assigned: &[Assigned]| -> Result<PodNet, Failure> {
        let addresses = pod_addresses(assigned, network)?;
        Ok(podnet::plan(
            sandbox,
            &earlier,
            &network.spec,
            &addresses,
            &facts,
            &settings,
        )?)
    };
    let (net, links) = match reserve(agent, owner, network, subject).await? {
        Reserved::Existing(allocation) => {
            // The same request again, or one that an earlier agent did not live to answer.
            let net = plan(&allocation.assigned)?;
            let update = agent.pools.update_record(owner, record(&net)?);
            timing::step("write to disk", update).await?;
            (Arc::new(net), Links::Ensure)
        }
        Reserved::New(grant) => {
            let net = plan(grant.assigned())?;
            timing::step("write to disk", grant.commit(record(&net)?)).await?;
            (Arc::new(net), Links::New)
        }
    };
    agent.note(owner.clone(), Arc::clone(&net));
    timing::step("prepare the NICs", agent.prepare_nics(&facts, Some(&net))).await;
    let nic = agent.missing_nic_plan(&facts, &net);
    let mac = facts.nic(master).and_then(|nic| nic.mac);
    let made = Made { net, links, mac };
    let net = &made.net;
    if let Err(e) = podnet::apply(net, &nic, &agent.host, &agent.datapath, links).await {
        undo(agent, owner, &made).await;
        return Err(e.into());
    }
    let ips: Vec<String> = net
        .addresses
        .iter()
        .map(|a| a.address.to_string())
        .collect();
    info!(pod = %net.pod, network = %net.network, addresses = %ips.join(", "), "interface made");
    if !agent.facts.are(&facts) {
        // The node changed while the interface was being made: it must not be the only one that
        // nobody told.
        agent.look_again.notify_one();
    }
    Ok(made)
}

/// Chooses addresses. Where the pools are shared by nodes and this one's lease is used up, it waits
/// for more.
async fn reserve(
    agent: &Agent,
    owner: &Owner,
    network: &Resolved,
    subject: &Subject,
) -> Result<Reserved, Failure> {
    let deadline = Leases::deadline();
    loop {
        let catalog = agent.catalog();
        let request = Request {
            network: network.name.as_ref(),
            source: network.source(),
            subject,
            exactly: &network.ips,
            ..Request::new(owner, &agent.node_name, &catalog)
        };
        match (agent.pools.reserve(&request), &agent.leases) {
            (Err(PoolError::Full(full)), Some(leases)) => {
                if !leases.more(&full, deadline).await {
                    return Err(PoolError::Full(full).into());
                }
            }
            (reserved, _) => return Ok(reserved?),
        }
    }
}

/// Takes away what this ADD made. What an earlier one made and answered is not ours to take.
async fn undo(agent: &Agent, owner: &Owner, made: &Made) {
    if made.links == Links::New
        && let Err(left) = agent.abandon(owner, &made.net).await
    {
        error!(pod = %made.net.pod, "could not be undone, DEL or GC will try again: {left}");
    }
}

pub(super) fn owner(conf: &NetConf, attachment: &Attachment) -> Owner {
    Owner {
        network: conf.name.clone(),
        container_id: attachment.container_id.clone(),
        interface: attachment.interface.clone(),
    }
}

/// What the pod has from its other interfaces.
pub(super) fn earlier(agent: &Agent, owner: &Owner) -> Earlier {
    let mut earlier = Earlier::default();
    agent.each_interface(|other, net| {
        let table = net.table.unwrap_or(MAIN_TABLE);
        if other == owner {
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
    });
    earlier
}

/// What cannot stand beside the interfaces that are there already.
pub(super) fn refuse_conflicts(
    agent: &Agent,
    owner: &Owner,
    spec: &NetworkSpec,
) -> Result<(), Failure> {
    let mut conflict = None;
    agent.each_interface(|other, net| {
        if let Some(there) = net.ipvlan.as_ref().filter(|_| other != owner)
            && there.master == spec.master
            && there.mode != spec.mode
        {
            conflict = Some((other.interface.clone(), net.pod.clone(), there.mode));
        }
    });
    let Some((interface, pod, mode)) = conflict else {
        return Ok(());
    };
    Err(Failure::new(
        code::INVALID_NETWORK_CONFIG,
        format!(
            "network {} wants mode {} on {}, but {interface} of pod {pod} is there in mode \
             {mode}",
            spec.name, spec.mode, spec.master
        ),
        "a NIC has one ipvlan mode, adding another would change all its children: use the \
         same mode in all networks of one master",
    ))
}

fn pod_addresses(assigned: &[Assigned], network: &Resolved) -> Result<Vec<PodAddress>, Failure> {
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
                gateway: network.spec.gateway_for(a.address).or(a.gateway),
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
    let _turn = agent.turns.to_change(&attachment.container_id).await;
    // None: never made, or removed before; nothing of it is left.
    for (owner, net) in attached(agent, conf, &attachment) {
        detach(agent, &owner, &net).await?;
        info!(pod = %net.pod, interface = owner.interface, "interface removed");
    }
    // The IPAM plugin is told in any case: an ADD may have ended before it was written down.
    guest::tell_ipam(conf, invocation, "DEL").await?;
    Ok(String::new())
}

/// The interfaces that a command is about, the one that brought the veth last: the one that it names,
/// or all of the pod's if one ADD made them.
fn attached(agent: &Agent, conf: &NetConf, attachment: &Attachment) -> Vec<(Owner, Arc<PodNet>)> {
    let named = owner(conf, attachment);
    let mut found = agent.interfaces();
    found.retain(|(other, net)| {
        // What another plugin made was added by itself, whatever the configuration names.
        let in_one_add = conf.is_by_pod()
            && net.ipvlan.is_some()
            && other.network == named.network
            && other.container_id == named.container_id;
        in_one_add || *other == named
    });
    found.sort_by_key(|(_, net)| net.veth.is_some());
    found
}

async fn detach(agent: &Agent, owner: &Owner, net: &PodNet) -> Result<(), Failure> {
    agent.detach(owner, net).await.map_err(|e| match e {
        DetachError::Podnet(e) => Failure::new(
            code::TRY_AGAIN_LATER,
            format!("remove {} of pod {}: {e}", owner.interface, net.pod),
            "its addresses stay taken until this succeeds; the runtime will try again",
        ),
        DetachError::Pool(e) => e.into(),
        DetachError::Delegate(_) | DetachError::Record(_) => Failure::new(
            code::TRY_AGAIN_LATER,
            format!("remove {} of pod {}: {e}", owner.interface, net.pod),
            "the runtime will try again",
        ),
    })
}

async fn check(agent: &Agent, invocation: &Invocation, conf: &NetConf) -> Result<String, Failure> {
    let attachment = Attachment::parse(invocation)?;
    let _turn = agent.turns.to_look(&attachment.container_id).await;
    let attached = attached(agent, conf, &attachment);
    if attached.is_empty() {
        let owner = owner(conf, &attachment);
        return Err(Failure::new(
            code::UNKNOWN_CONTAINER,
            format!(
                "container {} has no interface {} in network {}",
                owner.container_id, owner.interface, owner.network
            ),
            "it was never added here, or was removed: make the container anew",
        ));
    }
    let facts = agent.facts.get(&agent.host).await?;
    for (_, net) in attached {
        let mut nic = agent.nic_plan(&facts, &net);
        if let Some(host) = agent.nics() {
            let programs = host.plan.filters.iter();
            let own = programs.filter(|filter| Some(filter.link.as_str()) == net.master());
            nic.filters.extend(own.cloned());
        }
        let damage = podnet::check(&net, &nic, &agent.host, &agent.datapath).await?;
        if !damage.is_empty() {
            return Err(Failure::new(
                code::CHECK_FAILED,
                format!("pod {}: {}", net.pod, damage.join("; ")),
                "a repeated ADD or a restart of the agent puts it right; something else on the \
                 node removed it",
            ));
        }
    }
    guest::tell_ipam(conf, invocation, "CHECK").await?;
    Ok(String::new())
}

async fn gc(agent: &Agent, conf: &NetConf) -> Result<String, Failure> {
    let valid = conf.valid_attachments()?;
    let mut failures = Vec::new();
    let mut removed = 0;
    for (owner, _) in agent.interfaces() {
        // The runtime knows of the interface that it asked for, not of those made with it.
        let stays = valid.iter().any(|(container, interface)| {
            *container == owner.container_id && (conf.is_by_pod() || *interface == owner.interface)
        });
        if owner.network != conf.name || stays {
            continue;
        }
        let _turn = agent.turns.to_change(&owner.container_id).await;
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
    if conf.is_guest() {
        // Whether there are addresses is another plugin's to say.
        return Ok(String::new());
    }
    let catalog = agent.catalog();
    let unavailable =
        |message: String, way_out: &str| Failure::new(code::NOT_AVAILABLE, message, way_out);
    let network =
        wanted::expected(agent, conf, &catalog).map_err(|f| unavailable(f.message, &f.way_out))?;
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
