//! Selects the pools for a request, in order: a pure function of the request.
//!
//! The rules are Spiderpool's with two differences: the order is the same each time, and a family is wanted only if a
//! pool of it concerns *this* node and network (there, one IPv6 pool of another node makes every IPv4-only pod fail).

use std::{cmp::Reverse, collections::BTreeSet};

use ebbtide_types::{
    Family,
    glob::{fits, is_glob},
};

use super::{NoAddress, NoMetadata, PassedOver, Request, Source, Subject};
use crate::catalog::{Labels, Pool, manifest::LabelSelector};

/// The pools of one family that the pod is to have.
#[derive(Debug)]
pub(super) struct Choice<'a> {
    pub(super) family: Family,
    /// The pools to try, in this order; at least one.
    pub(super) pools: Vec<&'a Pool>,
    /// The other candidates, each with the reason against it.
    pub(super) passed_over: Vec<(String, PassedOver)>,
}

/// The choices for each family that the pod is to have; at least one.
pub(super) type Selection<'a> = Vec<Choice<'a>>;

type Candidate<'a> = (String, Result<&'a Pool, PassedOver>);

pub(super) fn select<'a>(request: &Request<'a>) -> Result<Selection<'a>, NoAddress> {
    let mut selection = Selection::new();
    let mut passed_over = Vec::new();
    for family in Family::BOTH {
        let candidates = candidates(request, family);
        let mut chosen = Vec::new();
        let mut wanted = false;
        let mut reasons = Vec::new();
        for (name, verdict) in candidates {
            match verdict {
                Ok(pool) => chosen.push(pool),
                Err(reason) => {
                    wanted |= is_meant_for_us(request, &name, &reason);
                    reasons.push((name, reason));
                }
            }
        }
        if !chosen.is_empty() {
            selection.push(Choice {
                family,
                pools: chosen,
                passed_over: std::mem::take(&mut reasons),
            });
        } else if wanted {
            return Err(no_address(request, Some(family), reasons));
        }
        passed_over.append(&mut reasons);
    }
    if selection.is_empty() {
        Err(no_address(request, None, passed_over))
    } else {
        Ok(selection)
    }
}

fn candidates<'a>(request: &Request<'a>, family: Family) -> Vec<Candidate<'a>> {
    match request.source {
        Source::Defaults => {
            let is_default = |pool: &&Pool| match request.metadata {
                Some(link) => request.catalog.is_of_metadata(pool, link),
                None => pool.default && pool.derived_of().is_none(),
            };
            let chosen = |pool: &&Pool| is_default(pool) && pool.family == family;
            specific_first(request, chosen)
                .into_iter()
                .map(|pool| (pool.name.clone(), verdict(request, pool, family)))
                .collect()
        }
        Source::Named { ipv4, ipv6 } => {
            let names = match family {
                Family::V4 => ipv4,
                Family::V6 => ipv6,
            };
            named(request, names, family)
        }
    }
}

/// Resolves names and patterns to pools, in the list's order. Pools that match a pattern take its
/// place, the more specific first; a pool that is already in the list is not repeated.
fn named<'a>(request: &Request<'a>, names: &[String], family: Family) -> Vec<Candidate<'a>> {
    let mut seen = BTreeSet::new();
    let mut candidates = Vec::new();
    for name in names {
        let mut found: Vec<Candidate<'a>> = if is_glob(name) {
            let chosen = |pool: &&Pool| pool.family == family && fits(name, &pool.name);
            specific_first(request, chosen)
                .into_iter()
                .map(|pool| (pool.name.clone(), verdict(request, pool, family)))
                .collect()
        } else {
            let pool = request.catalog.pool(name).ok_or(PassedOver::Unknown);
            vec![(
                name.clone(),
                pool.and_then(|pool| verdict(request, pool, family)),
            )]
        };
        if found.is_empty() {
            found.push((name.clone(), Err(PassedOver::NoMatch)));
        }
        found.retain(|(name, _)| seen.insert(name.clone()));
        candidates.append(&mut found);
    }
    candidates
}

fn specific_first<'a>(request: &Request<'a>, chosen: impl Fn(&&Pool) -> bool) -> Vec<&'a Pool> {
    let mut pools: Vec<&'a Pool> = request
        .catalog
        .pools()
        .iter()
        .filter(|pool| chosen(pool))
        .collect();
    pools.sort_by_key(|pool| (Reverse(specificity(pool)), pool.name.as_str()));
    pools
}

/// Returns the first condition that the pool does not meet, in the documented order.
fn verdict<'a>(
    request: &Request<'_>,
    pool: &'a Pool,
    family: Family,
) -> Result<&'a Pool, PassedOver> {
    if pool.disabled {
        return Err(PassedOver::Disabled);
    }
    if pool.family != family {
        return Err(PassedOver::WrongFamily(pool.family));
    }
    if !request.families.allow(family) {
        return Err(PassedOver::FamilyOff(family));
    }
    match (request.metadata, pool.derived_of()) {
        (Some(link), _) if !request.catalog.is_of_metadata(pool, link) => {
            return Err(PassedOver::NotOfMetadata(link.to_owned()));
        }
        (None, Some(link)) => return Err(PassedOver::OfMetadata(link.to_owned())),
        _ => {}
    }
    concerns(request, pool)?;
    Ok(pool)
}

/// Checks that the pool is for this node, pod and network. Names win over labels.
fn concerns(request: &Request<'_>, pool: &Pool) -> Result<(), PassedOver> {
    let Subject {
        pod,
        namespace,
        node_labels,
        ..
    } = request.subject;
    let wanted = &pool.affinities;
    if !pool.node_names.is_empty() {
        if !pool.node_names.iter().any(|name| name == request.node) {
            return Err(PassedOver::WrongNode(pool.node_names.clone()));
        }
    } else {
        labels_meet(&wanted.node, node_labels.as_ref(), "nodeAffinity", "node")?;
    }
    if !wanted.namespace_names.is_empty() {
        if namespace.name.is_empty() {
            return Err(PassedOver::NotKnown("namespaceName", "the pod's namespace"));
        }
        if !wanted.namespace_names.contains(&namespace.name) {
            return Err(PassedOver::WrongNamespace(wanted.namespace_names.clone()));
        }
    } else {
        let labels = namespace.labels.as_ref();
        labels_meet(&wanted.namespace, labels, "namespaceAffinity", "namespace")?;
    }
    labels_meet(&wanted.pod, pod.labels.as_ref(), "podAffinity", "pod")?;
    let is_meant = |name| {
        pool.networks
            .iter()
            .any(|reference| reference.matches(name, request.catalog.namespaces()))
    };
    // Those of a derived pool are what people are shown; the NIC decides.
    let is_derived = pool.derived_of().is_some();
    if !is_derived && !pool.networks.is_empty() && !request.network.is_some_and(is_meant) {
        return Err(PassedOver::WrongNetwork(pool.networks.clone()));
    }
    Ok(())
}

/// Matches a selector with labels. Unknown labels match nothing: a guess could give a pod another one's addresses.
fn labels_meet(
    selector: &Option<LabelSelector>,
    labels: Option<&Labels>,
    field: &'static str,
    whose: &'static str,
) -> Result<(), PassedOver> {
    match (selector, labels) {
        (None, _) => Ok(()),
        (Some(selector), Some(labels)) if selector.matches(labels) => Ok(()),
        (Some(_), Some(_)) => Err(PassedOver::WrongLabels(field, whose)),
        (Some(_), None) => Err(PassedOver::NotKnown(
            field,
            match whose {
                "node" => "the node's labels",
                "namespace" => "the namespace's labels",
                _ => "the pod's labels",
            },
        )),
    }
}

/// Whether a pool that was passed over shows that the pod should have an address of its family.
///
/// A disabled or mistyped one does: silently leaving out a family would hide the mistake.
fn is_meant_for_us(request: &Request<'_>, name: &str, reason: &PassedOver) -> bool {
    match reason {
        PassedOver::Unknown | PassedOver::NoMatch | PassedOver::WrongFamily(_) => true,
        PassedOver::Disabled => request.catalog.pool(name).is_some_and(|pool| {
            request.families.allow(pool.family) && concerns(request, pool).is_ok()
        }),
        _ => false,
    }
}

/// The sort key that puts more specific pools first, with Spiderpool's order of conditions.
const fn specificity(pool: &Pool) -> [bool; 6] {
    [
        pool.affinities.pod.is_some(),
        !pool.node_names.is_empty(),
        pool.affinities.node.is_some(),
        !pool.affinities.namespace_names.is_empty(),
        pool.affinities.namespace.is_some(),
        !pool.networks.is_empty(),
    ]
}

fn no_address(
    request: &Request<'_>,
    family: Option<Family>,
    mut candidates: Vec<(String, PassedOver)>,
) -> NoAddress {
    if request.source == Source::Defaults && request.metadata.is_none() {
        let forgotten = request.catalog.pools().iter().filter(|pool| {
            !pool.default
                && pool.derived_of().is_none()
                && family.is_none_or(|family| family == pool.family)
                && verdict(request, pool, pool.family).is_ok()
        });
        candidates.extend(forgotten.map(|pool| (pool.name.clone(), PassedOver::NotDefault)));
    }
    NoAddress {
        family,
        node: request.node.to_owned(),
        network: request.network.map(ToString::to_string),
        annotation: request.annotation,
        metadata: request.metadata.map(|link| {
            let of_link = |pool: &&Pool| request.catalog.is_of_metadata(pool, link);
            let pools = request.catalog.pools().iter().filter(of_link);
            Box::new(NoMetadata {
                link: link.to_owned(),
                pools: pools
                    .filter(|_| request.source != Source::Defaults)
                    .map(|pool| pool.name.clone())
                    .collect(),
                note: request.catalog.derived_note(link).cloned(),
            })
        }),
        candidates,
    }
}
