//! ADD with Ebbtide's own interface, and addresses from the pools.

use std::sync::Arc;

use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Assigned, Owner, PoolError, Record, Request, Reserved, Subject},
};
use ebbtide_kernel::{
    netlink::model::MAIN_TABLE,
    node::NodeFacts,
    podnet::{self, Existing, ForeignInterfaces, Links, PodAddress, PodNet, Sandbox},
};
use ebbtide_kube::Leases;
use ebbtide_plugin::{cni::code, wire::Invocation};
use ebbtide_types::{Mac, timing};
use ipnet::IpNet;
use tokio::sync::MutexGuard;
use tracing::{error, info, warn};

use super::{
    AddResult, Failure, NetConf, bandwidth,
    conflict::{self, refuse_another, refuse_conflicts},
    container::{Container, owner},
    no_effect,
    wanted::{self, Resolved},
};
use crate::{
    agent::{Agent, DetachError},
    cloud::Wait,
    reconcile::Scope,
};

/// Makes all interfaces that the pod requests, or none.
pub(super) async fn add(
    agent: &Agent,
    invocation: &Invocation,
    conf: &NetConf,
) -> Result<String, Failure> {
    let choice = conf.choice()?;
    let container = Container::wait(agent, invocation).await?;
    let attachment = &container.attachment;
    let subject = wanted::subject(agent, &container.identity).await?;
    no_effect::report_annotations(agent, invocation, &subject.pod);
    let catalog = agent.catalog();
    let wanted = wanted::interfaces(agent, choice, conf, attachment, &subject, &catalog)?;
    for (interface, network) in &wanted {
        let owner = Owner {
            interface: interface.clone(),
            ..owner(conf, attachment)
        };
        refuse_another(agent, &owner, &container.sandbox(interface), &network.spec)?;
        refuse_conflicts(agent, &owner, &network.spec)?;
    }
    bandwidth::report(agent, invocation, &wanted);
    let mut made: Vec<(Owner, Made)> = Vec::new();
    for (interface, network) in &wanted {
        let sandbox = container.sandbox(interface);
        let owner = Owner {
            interface: interface.clone(),
            ..owner(conf, attachment)
        };
        match attach(agent, &owner, &sandbox, network, &subject, &catalog).await {
            Ok(net) => made.push((owner, net)),
            Err(failure) => {
                // All interfaces or none; the one that brought the veth is removed last.
                for (owner, made) in made.iter().rev() {
                    undo(agent, owner, &made.net, made.links).await;
                }
                agent.restore_nics().await;
                return Err(failure);
            }
        }
    }
    agent.enable_forwarding().await;
    if conf.is_by_pod()
        && let Some(cluster) = &agent.cluster
    {
        cluster.record_own_network(&conf.name);
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

/// An interface that was made.
struct Made {
    net: Arc<PodNet>,
    links: Links,
    mac: Option<Mac>,
}

/// Makes one interface, or repairs it if it was made before.
async fn attach(
    agent: &Agent,
    owner: &Owner,
    sandbox: &Sandbox,
    network: &Resolved,
    subject: &Subject,
    catalog: &Catalog,
) -> Result<Made, Failure> {
    let existing = existing(agent, owner, sandbox).await?;
    loop {
        let (made, new) =
            attempt(agent, owner, sandbox, network, subject, catalog, &existing).await?;
        let came = timing::step("look whose they are", agent.assigned_to_node(&new)).await;
        let address = match came {
            Ok(None) => return Ok(made),
            Ok(Some(address)) => address,
            Err(e) => {
                undo(agent, owner, &made.net, made.links).await;
                return Err(e.into());
            }
        };
        agent.metrics.events.conflicted();
        // From now on the address is withheld.
        if let Err(left) = agent.undo_add(owner, &made.net).await {
            return Err(Failure::new(
                code::TRY_AGAIN_LATER,
                format!(
                    "{address}, which was to be assigned to the pod, is an address of the node"
                ),
                format!("what was made is removed by DEL or GC: {left}"),
            ));
        }
        warn!(pod = %made.net.pod, "the node got {address} meanwhile: the pod gets another one");
    }
}

/// Makes one interface with the addresses that are free now. Returns it with the addresses that are newly assigned.
async fn attempt(
    agent: &Agent,
    owner: &Owner,
    sandbox: &Sandbox,
    network: &Resolved,
    subject: &Subject,
    catalog: &Catalog,
    existing: &Existing,
) -> Result<(Made, Vec<Assigned>), Failure> {
    let master = &network.spec.master;
    let facts = agent.facts.get_for_link(master, &agent.host);
    let facts = timing::step("look at the node", facts).await?;
    let settings = agent.settings_in(catalog);
    let plan = |assigned: &[Assigned]| -> Result<PodNet, Failure> {
        let addresses = pod_addresses(assigned, network)?;
        Ok(podnet::plan(
            sandbox,
            existing,
            &network.spec,
            &addresses,
            &agent.without_pods(&facts),
            &settings,
        )?)
    };
    let (net, links, new) = match reserve(agent, owner, network, subject, &facts).await? {
        Reserved::Existing(allocation) => {
            // The same request again, or one that an earlier agent did not answer.
            let net = plan(&allocation.assigned)?;
            let update = agent.pools.update_record(owner, record(&net)?);
            timing::step("write to disk", update).await?;
            (Arc::new(net), Links::Ensure, Vec::new())
        }
        Reserved::New(grant) => {
            let new = grant.assigned().to_vec();
            let net = plan(&new)?;
            timing::step("write to disk", grant.commit(record(&net)?)).await?;
            (Arc::new(net), Links::New, new)
        }
    };
    let mac = facts.nic(master).and_then(|nic| nic.mac);
    make(agent, owner, &net, &facts, links).await?;
    Ok((Made { net, links, mac }, new))
}

/// Programs an interface with a durable record into the kernel, and undoes it if that fails.
pub(super) async fn make(
    agent: &Agent,
    owner: &Owner,
    net: &Arc<PodNet>,
    facts: &Arc<NodeFacts>,
    links: Links,
) -> Result<(), Failure> {
    let before = agent.interface(owner);
    let (links, _first) = existing_interfaces(agent, owner, net, links).await?;
    timing::step("prepare the NICs", agent.prepare_nics(facts, Some(net))).await;
    let nic = agent.missing_nic_plan(facts, net);
    if let Err(e) = podnet::apply(net, &nic, &agent.host, &agent.datapath, links).await {
        match e {
            podnet::Error::NothingMade(_) => undo_unmade(agent, owner, net, links).await,
            _ => undo(agent, owner, net, links).await,
        }
        if let Some(before) = before.filter(|_| links == Links::Ensure) {
            remember(agent, owner, &before, net).await;
        }
        agent.restore_nics().await;
        return Err(e.into());
    }
    let ips: Vec<String> = net
        .addresses
        .iter()
        .map(|a| a.address.to_string())
        .collect();
    info!(pod = %net.pod, network = %net.network, addresses = %ips.join(", "), "interface made");
    agent.record_uplink(owner, net, facts);
    let is_outdated = !agent.facts.is_current(facts);
    if is_outdated {
        // The node changed while the interface was being made, which no event has named for it.
        agent.work.enqueue_node();
    }
    // The plan of the pod's first interface may depend on this one.
    if is_outdated || net.shared_veth.is_some() {
        agent
            .work
            .enqueue_container(&owner.container_id, Scope::PLAN);
    }
    Ok(())
}

/// Restores the record of an interface that could not be applied again. Not if its namespace was replaced: then what
/// was made is in the new one, and DEL must find it there.
async fn remember(agent: &Agent, owner: &Owner, before: &Arc<PodNet>, net: &PodNet) {
    if before.netns_inode != net.netns_inode || **before == *net {
        return;
    }
    agent.insert_interface(owner.clone(), Arc::clone(before));
    if let Err(e) = agent.write_record(owner, before).await {
        error!(pod = %net.pod, "write the record of the interface as it was made: {e}");
    }
}

/// Reserves addresses. If the pools are shared by nodes and this node's lease is used up, waits for more; also if the
/// cloud may have assigned some that are not known yet.
async fn reserve(
    agent: &Agent,
    owner: &Owner,
    network: &Resolved,
    subject: &Subject,
    facts: &Arc<NodeFacts>,
) -> Result<Reserved, Failure> {
    let deadline = Leases::deadline();
    let pod = match subject.pod.name.as_str() {
        "" => owner.container_id.clone(),
        name => format!("{}/{name}", subject.namespace.name),
    };
    let mut wait = Wait::new(&agent.cloud, pod, agent.catalogs());
    loop {
        let catalog = wait.catalog();
        agent.withhold(facts, &catalog);
        let request = Request {
            network: network.name.as_ref(),
            source: network.source(),
            metadata: network.metadata(),
            subject,
            requested_addresses: &network.ips,
            ..Request::new(owner, &agent.node_name, &catalog)
        };
        match (agent.pools.reserve(&request), &agent.leases) {
            (Err(PoolError::Full(full)), Some(leases)) if network.metadata().is_none() => {
                if !leases.more(&full, deadline).await {
                    return Err(PoolError::Full(full).into());
                }
            }
            (reserved, _) => {
                let Some(link) = network.metadata() else {
                    return Ok(reserved?);
                };
                match &reserved {
                    Err(
                        lacking @ (PoolError::Full(_)
                        | PoolError::NoAddress(_)
                        | PoolError::Unavailable(_)),
                    ) if wait.more(link, lacking).await => continue,
                    Ok(_) => wait.end(link),
                    Err(_) => {}
                }
                return Ok(reserved?);
            }
        }
    }
}

/// Records an interface that is about to be made, unless another of Ebbtide's has its NIC in another mode. The first
/// one on a NIC holds the lock until it is made, so that no other comes in between.
async fn existing_interfaces<'a>(
    agent: &'a Agent,
    owner: &Owner,
    net: &Arc<PodNet>,
    links: Links,
) -> Result<(Links, Option<MutexGuard<'a, ()>>), Failure> {
    let Some(ipvlan) = net.ipvlan.as_ref().filter(|_| links == Links::New) else {
        agent.insert_interface(owner.clone(), Arc::clone(net));
        return Ok((links, None));
    };
    let lock = agent.first_child.lock().await;
    let wanted = (ipvlan.master.as_str(), ipvlan.mode);
    if let Err(failure) = conflict::refuse(agent, owner, &net.network, wanted) {
        undo_unmade(agent, owner, net, links).await;
        return Err(failure);
    }
    agent.insert_interface(owner.clone(), Arc::clone(net));
    Ok(match conflict::is_first(agent, owner, &ipvlan.master) {
        true => (Links::First, Some(lock)),
        false => (links, None),
    })
}

/// Removes what this ADD made. What an earlier ADD made and answered stays.
async fn undo(agent: &Agent, owner: &Owner, net: &PodNet, links: Links) {
    if links != Links::Ensure {
        log_undone(net, agent.undo_add(owner, net).await);
    }
}

/// Undoes as [`undo`], where no link was made.
async fn undo_unmade(agent: &Agent, owner: &Owner, net: &PodNet, links: Links) {
    if links != Links::Ensure {
        log_undone(net, agent.undo_unmade_add(owner, net).await);
    }
}

fn log_undone(net: &PodNet, undone: Result<(), DetachError>) {
    if let Err(left) = undone {
        error!(pod = %net.pod, "could not be undone, DEL or GC will try again: {left}");
    }
}

/// Returns what the pod has from its other interfaces, Ebbtide's and other plugins'.
pub(super) async fn existing(
    agent: &Agent,
    owner: &Owner,
    sandbox: &Sandbox,
) -> Result<Existing, Failure> {
    let mut existing = own_existing(agent, owner);
    if existing.own_table.is_some() {
        // Planned again: the result stays the same.
        return Ok(existing);
    }
    let mut own = vec![sandbox.interface.clone()];
    agent.each_interface(|other, net| {
        if other.container_id == owner.container_id && net.ipvlan.is_some() {
            own.push(other.interface.clone());
        }
    });
    let others = timing::step("look into the pod", ForeignInterfaces::read(sandbox, own)).await?;
    existing.others_defaults = others.defaults;
    existing.in_main.extend(others.addresses);
    existing.marks |= others.routing.by_mark;
    existing.foreign |= others.routing.any;
    Ok(existing)
}

/// Returns what the pod has from its other interfaces that Ebbtide made or extended.
pub(super) fn own_existing(agent: &Agent, owner: &Owner) -> Existing {
    let mut existing = Existing::default();
    agent.each_interface(|other, net| {
        let table = net.table.unwrap_or(MAIN_TABLE);
        if other.container_id == owner.container_id {
            existing.bandwidth = existing.bandwidth.or(net.bandwidth());
        }
        if other == owner {
            existing.own_table = Some(table);
            existing.others_defaults.clone_from(&net.others_defaults);
            existing.in_main.extend(net.in_main());
            existing.marks |= !net.accepts_marks();
            existing.foreign |= net.has_reply_rule();
        } else if other.container_id == owner.container_id {
            existing.tables.push(table);
            existing.marks |= !net.accepts_marks();
            existing.foreign |= net.has_reply_rule();
            if table == MAIN_TABLE {
                existing.in_main.extend(net.ips());
            }
            if let Some(veth) = &net.veth {
                existing.veth = Some(veth.clone());
            }
            existing.families.extend(net.reply_families());
        }
    });
    existing
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
