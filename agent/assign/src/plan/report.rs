//! A node's ConfigMap, read: what its agent tells, and what it is asked.

use std::collections::BTreeMap;

use ebbtide_ipam::catalog::AddressSet;
use ebbtide_kube::node_cloud::{ASKED, Asked, NodeCloud, NodePool, TOLD, VERSION};
use ebbtide_types::Family;
use ipnet::IpNet;

use super::sets;

/// Both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What the agent tells.
    pub told: NodeCloud,
    /// What it is asked; nothing if nobody wrote that yet.
    pub asked: Asked,
}

/// Why a ConfigMap is not understood: then nothing is done for its node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The agent wrote nothing yet.
    #[error("its agent told nothing yet")]
    Nothing,
    /// A newer version.
    #[error("its agent is newer than this controller (version {0}): update the controller")]
    Newer(u32),
    /// A part is no JSON of this form.
    #[error("{0} cannot be read: {1}")]
    Malformed(&'static str, String),
    /// It is another node's, or another cloud's.
    #[error("it tells of {0}")]
    Other(String),
    /// The node is gone, or the API server does not say whether it is there.
    #[error("the API server knows no such node")]
    NoNode,
}

impl Report {
    /// Reads a ConfigMap's entries.
    ///
    /// # Errors
    /// If anything in it is not understood.
    pub fn read(
        node: &str,
        provider: &str,
        data: Option<&BTreeMap<String, String>>,
    ) -> Result<Self, Unreadable> {
        let get = |key: &str| data.and_then(|data| data.get(key));
        let told: NodeCloud = part(TOLD, get(TOLD).ok_or(Unreadable::Nothing)?)?;
        if told.node != node {
            return Err(Unreadable::Other(format!("the node '{}'", told.node)));
        }
        if told.cloud != provider {
            return Err(Unreadable::Other(format!("the cloud '{}'", told.cloud)));
        }
        let asked = match get(ASKED) {
            Some(text) => part(ASKED, text)?,
            None => Asked {
                version: VERSION,
                back: BTreeMap::new(),
            },
        };
        Ok(Self { told, asked })
    }
}

fn part<T: serde::de::DeserializeOwned>(key: &'static str, text: &str) -> Result<T, Unreadable> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bad = |e: serde_json::Error| Unreadable::Malformed(key, e.to_string());
    // First, since a newer one may look otherwise.
    let version = serde_json::from_str::<Versioned>(text)
        .map_err(bad)?
        .version;
    if version > VERSION {
        return Err(Unreadable::Newer(version));
    }
    serde_json::from_str(text).map_err(bad)
}

/// Whether a block may be taken away from a NIC: all of it is asked back, and all of it is surrendered, and nobody has any
/// of it. Whoever sends the request asks this of the ConfigMap as the API server has it at that moment.
#[must_use]
pub fn may_take(report: &Report, nic: &str, block: &IpNet) -> bool {
    let family = Family::of_net(block);
    let of_nic = |each: &&ebbtide_kube::node_cloud::NodeNic| each.id == nic;
    let asked = report
        .asked
        .back
        .get(nic)
        .and_then(|back| back.get(&family));
    let (Some(told), Some(asked)) = (report.told.nics.iter().find(of_nic), asked) else {
        return false;
    };
    let pools = || told.pools.iter().filter(|pool| pool.family == family);
    let all = |get: fn(&NodePool) -> &String| -> Option<AddressSet> {
        let sets: Option<Vec<AddressSet>> =
            pools().map(|pool| sets::read(get(pool), family)).collect();
        Some(AddressSet::union_of(family, &sets?))
    };
    let (Some(asked), Some(surrendered), Some(used), Some(held), Some(resting)) = (
        sets::read(asked, family),
        all(|pool| &pool.surrendered),
        all(|pool| &pool.used),
        all(|pool| &pool.held),
        all(|pool| &pool.resting),
    ) else {
        return false;
    };
    sets::has_all(&asked, block)
        && sets::has_all(&surrendered, block)
        && ![used, held, resting]
            .iter()
            .any(|set| sets::has_any(set, block))
}
