//! Dispatches a CNI command, and carries out DEL, CHECK, STATUS and GC.

use std::sync::Arc;

use ebbtide_ipam::{catalog::PoolSource, pool::Owner};
use ebbtide_kernel::podnet::{self, PodNet};
use ebbtide_plugin::{
    cni::{Head, NEWEST, UNNAMED, code},
    object::Object,
    wire::{Invocation, Response},
};
use ebbtide_types::{glob::fits, timing};
use tracing::{Instrument as _, info, info_span, warn};

use super::{Attachment, Failure, NetConf, add::add, chained, container::owner, no_effect, wanted};
use crate::agent::{Agent, DetachError};

/// Carries out the plugin's command.
pub async fn handle(agent: &Agent, invocation: &Invocation) -> Response {
    let traced = agent.traces.begin(invocation);
    let span = info_span!(
        "cni",
        command = %invocation.command,
        container = %invocation.container_id.get(..12).unwrap_or(&invocation.container_id),
        interface = %invocation.if_name,
        trace_id = traced.trace_id().map(display),
        parent_id = traced.parent_id().map(display),
        span_id = traced.span_id().map(display),
    );
    async {
        let mut version = NEWEST.to_owned();
        // Boxed: an ADD's state is large, and each of these layers would have it once more on the stack.
        let asked = Box::pin(run(agent, invocation, &mut version));
        let asked = traced.scope(invocation, asked);
        let (result, took) = timing::request("the agent's part", asked).await;
        let code = result.as_ref().err().map_or(0, |failure| failure.code);
        let events = &agent.metrics.events;
        events.command(&invocation.command, code, &took);
        traced.end(invocation, result.as_ref().err(), &took);
        match result {
            Ok(output) => Response { exit: 0, output },
            Err(failure) => {
                warn!(code = failure.code, "{}", failure.message);
                wanted::send_failure_event(agent, invocation, &failure);
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
    // A refusal is also answered in the requested version.
    if let Ok(Object(head)) = serde_json::from_str::<Object<Head>>(&invocation.config) {
        let asked = head.cni_version.filter(|asked| !asked.trim().is_empty());
        *version = asked.unwrap_or_else(|| UNNAMED.to_owned());
    }
    let mut conf = NetConf::parse(&invocation.config)?;
    version.clone_from(&conf.cni_version);
    // Where another plugin assigns the addresses, that plugin reads the variable.
    if invocation.command == "ADD" && !conf.is_chained() {
        conf.read_args(&invocation.args)?;
    }
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
        "ADD" => {
            let result = match conf.is_chained() {
                true => chained::add(agent, invocation, &conf).await,
                false => add(agent, invocation, &conf).await,
            }?;
            no_effect::report(agent, invocation, &conf);
            Ok(result)
        }
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

async fn del(agent: &Agent, invocation: &Invocation, conf: &NetConf) -> Result<String, Failure> {
    let attachment = Attachment::parse(invocation)?;
    let _lock = agent.locks.write(&attachment.container_id).await;
    // None: never made, or already removed; nothing of it is left.
    for (owner, net) in attached(agent, conf, &attachment) {
        detach(agent, &owner, &net).await?;
        info!(pod = %net.pod, interface = owner.interface, "interface removed");
    }
    // The IPAM plugin is called in any case: an ADD may have failed before its record was written.
    chained::call_ipam(conf, invocation, "DEL").await?;
    Ok(String::new())
}

/// Returns the interfaces of a command, the one that brought the veth last: the one that it names, or all of the pod's
/// if one ADD made them.
fn attached(agent: &Agent, conf: &NetConf, attachment: &Attachment) -> Vec<(Owner, Arc<PodNet>)> {
    let named = owner(conf, attachment);
    let mut found = agent.interfaces();
    found.retain(|(other, net)| {
        // An interface that another plugin made was added by its own ADD, whatever the configuration names.
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
    let _lock = agent.locks.read(&attachment.container_id).await;
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
                "a repeated ADD or a restart of the agent repairs it; something else on the \
                 node removed it",
            ));
        }
    }
    chained::call_ipam(conf, invocation, "CHECK").await?;
    Ok(String::new())
}

async fn gc(agent: &Agent, conf: &NetConf) -> Result<String, Failure> {
    let valid = conf.valid_attachments()?;
    let mut failures = Vec::new();
    let mut removed = 0;
    for (owner, _) in agent.interfaces() {
        // The runtime lists the interface that it requested, not those that were made with it.
        let stays = valid.iter().any(|stays| {
            stays.container_id == owner.container_id
                && (conf.is_by_pod() || stays.ifname == owner.interface)
        });
        if owner.network != conf.name || stays {
            continue;
        }
        let _lock = agent.locks.write(&owner.container_id).await;
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

/// Answers whether an ADD could succeed, from memory alone: the kubelet asks every few seconds.
fn status(agent: &Agent, conf: &NetConf) -> Result<String, Failure> {
    if conf.is_chained() {
        // Another plugin decides whether there are addresses.
        return Ok(String::new());
    }
    // A node with pods stays ready even if its pools are full: otherwise all its pods would be removed from their
    // Services, and soon be evicted. A pod too many learns the reason from its ADD.
    if !agent.interfaces().is_empty() {
        return Ok(String::new());
    }
    let catalog = agent.catalog();
    let unavailable =
        |message: String, hint: &str| Failure::new(code::NOT_AVAILABLE, message, hint);
    let network =
        wanted::expected(agent, conf, &catalog).map_err(|f| unavailable(f.message, &f.hint))?;
    let patterns = || network.ipv4_pools.iter().chain(&network.ipv6_pools);
    let listed = |name: &str| patterns().any(|pattern| fits(pattern, name));
    let explicit = !network.ipv4_pools.is_empty() || !network.ipv6_pools.is_empty();
    let usage = agent.pools.usage(&catalog).into_iter();
    let mut own = usage.filter(|pool| {
        let here = pool.node_names.is_empty() || pool.node_names.contains(&agent.node_name);
        let may = match network.metadata() {
            Some(link) => {
                let found = catalog.pool(&pool.name);
                found.is_some_and(|found| catalog.is_of_metadata(found, link))
            }
            None => pool.source == PoolSource::Declared && (!explicit || listed(&pool.name)),
        };
        !pool.disabled && here && may
    });
    if own.any(|pool| pool.free > 0 || pool.in_cooldown > 0) {
        Ok(String::new())
    } else {
        Err(unavailable(
            format!(
                "no pool has an address for network {} on node {}{}",
                network.spec.name,
                agent.node_name,
                network
                    .metadata()
                    .and_then(|link| catalog.derived_note(link))
                    .map_or_else(String::new, |note| format!(": {}", note.reason))
            ),
            "`ebbtidectl pools` shows the pools and how full they are",
        ))
    }
}
