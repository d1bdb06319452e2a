//! Pools that nobody declares: what the cloud has assigned to a NIC of this node, as its metadata service says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use ebbtide_types::{Family, digest::fnv, settings::CloudSetting};
use ipnet::IpNet;

use super::{
    AddressSet, Addresses, Affinities, Catalog, Consequence, Pool, PoolSource, Problem,
    address::{never_assigned, unusable},
};

/// The file named in a [`Problem`] of a derived pool.
const SOURCE: &str = "the cloud's metadata";

/// The addresses of one family that the cloud has assigned to a NIC of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivedNic {
    /// The node's name.
    pub node: String,
    /// The NIC's name on this node: the master of networks.
    pub link: String,
    /// The family of all that follows; other addresses are ignored.
    pub family: Family,
    /// What pods may have now; an address is a block of one. Empty where all of it is held: the pool then exists, and
    /// is full.
    pub blocks: Vec<IpNet>,
    /// The NIC's own addresses.
    pub primary: Vec<IpAddr>,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// The prefixes of the NIC's subnets.
    pub subnets: Vec<IpNet>,
    /// Where the agent has it from, as in `AWS eni-0a1b2c3d`.
    pub source: String,
}

/// What to say where a NIC's metadata gives no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivedNote {
    /// The NIC's name on this node; empty: all NICs that have no note of their own.
    pub link: String,
    /// Why there is none, as a sentence without its full stop.
    pub reason: String,
    /// What gives the NIC another address, as a command for people; empty if that is not known.
    pub more: String,
}

impl DerivedNote {
    /// The note of a NIC that the metadata service has told of. `id` is the cloud's name of the NIC.
    #[must_use]
    pub fn of_nic(link: &str, cloud: CloudSetting, id: &str) -> Self {
        let shown = if id.is_empty() { link } else { id };
        Self {
            link: link.to_owned(),
            reason: format!("no secondary addresses are assigned to NIC {shown} yet"),
            more: assignment(cloud, id).unwrap_or_default(),
        }
    }

    /// The note of all NICs while the metadata service has not been read.
    #[must_use]
    pub fn not_read(why: &str) -> Self {
        let why = if why.is_empty() {
            "it has not answered"
        } else {
            why
        };
        Self {
            link: String::new(),
            reason: format!("the cloud's metadata service has not been read yet ({why})"),
            more: String::new(),
        }
    }
}

/// Returns the vendor's command that assigns another address to a NIC.
fn assignment(cloud: CloudSetting, id: &str) -> Option<String> {
    let nic = |placeholder: &str| match id {
        "" => placeholder.to_owned(),
        id => id.to_owned(),
    };
    match cloud {
        CloudSetting::Aws => Some(format!(
            "aws ec2 assign-private-ip-addresses --network-interface-id {} --secondary-private-ip-address-count 1",
            nic("ENI")
        )),
        CloudSetting::Alibaba => Some(format!(
            "aliyun ecs AssignPrivateIpAddresses --NetworkInterfaceId {} --SecondaryPrivateIpAddressCount 1",
            nic("ENI")
        )),
        CloudSetting::Azure => Some(format!(
            "az network nic ip-config create --resource-group GROUP --nic-name {} --name pods-1",
            nic("NIC")
        )),
        CloudSetting::Gcp => Some(format!(
            "gcloud compute instances network-interfaces update INSTANCE --network-interface {} --aliases RANGE-NAME:/28",
            nic("nic0")
        )),
        CloudSetting::Tencent => Some(format!(
            "tccli vpc AssignPrivateIpAddresses --NetworkInterfaceId {} --SecondaryPrivateIpAddressCount 1",
            nic("ENI")
        )),
        CloudSetting::Auto | CloudSetting::None => None,
    }
}

impl Catalog {
    /// Returns this catalog with the pools that these NICs give, in place of the derived ones that it has.
    ///
    /// Declared pools win: an address of any of them, whatever node it is for, is left out of derived ones with a
    /// [`Problem`], and a declared pool of a derived one's name takes its place. What a SpiderReservedIP excludes, the
    /// NICs' own addresses, gateways and the addresses of a subnet that no host can have are left out, too.
    ///
    /// A block outside of all subnets of its NIC is a pool of its own, whose subnet it is.
    #[must_use]
    pub fn with_derived(&self, nics: &[DerivedNic], notes: &[DerivedNote]) -> Self {
        let mut catalog = self.clone();
        catalog.pools.retain(|pool| pool.derived_of().is_none());
        catalog
            .problems
            .retain(|problem| problem.file.as_os_str() != SOURCE);
        catalog.notes = notes.to_vec();
        catalog.instead.clear();
        let own = nics
            .iter()
            .flat_map(|nic| nic.primary.iter().chain(&nic.gateway));
        let own: Vec<IpAddr> = own.copied().collect();
        let declared = catalog.pools.len();
        for nic in nics {
            for mut pool in catalog.derive(nic, &own) {
                let mut others = catalog.pools.iter();
                if others.any(|other| other.name == pool.name) {
                    catalog.instead.push((pool.name, nic.link.clone()));
                    continue;
                }
                for (place, other) in catalog.pools.iter().enumerate() {
                    // Of two NICs with one address the first one keeps it.
                    if let Some(lost) = pool.leave_to(other)
                        && place < declared
                    {
                        catalog.problems.push(narrowed(&pool, &lost, other));
                    }
                }
                pool.keep_free(&catalog.reserved);
                catalog.pools.push(pool);
            }
        }
        catalog
    }

    /// Returns the NICs whose metadata networks want the addresses of.
    #[must_use]
    pub fn metadata_links(&self) -> BTreeSet<&str> {
        let wanting = self
            .networks
            .iter()
            .filter(|network| network.addresses == Addresses::Metadata);
        wanting.map(|network| network.master.as_str()).collect()
    }

    /// Returns what is to be said where this NIC's metadata gives no address.
    #[must_use]
    pub fn derived_note(&self, link: &str) -> Option<&DerivedNote> {
        let of = |wanted: &str| self.notes.iter().find(|note| note.link == wanted);
        of(link).or_else(|| of(""))
    }

    /// Whether requests for the metadata's addresses of this NIC are served by the pool.
    #[must_use]
    pub fn is_of_metadata(&self, pool: &Pool, link: &str) -> bool {
        let mut instead = self.instead.iter();
        pool.derived_of() == Some(link)
            || instead.any(|(name, of)| *name == pool.name && of == link)
    }

    /// Returns the pools that a NIC gives: that of its main subnet first.
    fn derive(&self, nic: &DerivedNic, own: &[IpAddr]) -> Vec<Pool> {
        let of_family = |net: &&IpNet| Family::of_net(net) == nic.family;
        let subnets: BTreeSet<IpNet> = nic
            .subnets
            .iter()
            .filter(of_family)
            .map(IpNet::trunc)
            .collect();
        let is_main = |subnet: &&IpNet| nic.primary.iter().any(|own| subnet.contains(own));
        let main = subnets
            .iter()
            .find(is_main)
            .or_else(|| subnets.first())
            .copied();
        // The longest one has it, if they overlap.
        let subnet_of = |block: &IpNet| {
            let holding = subnets.iter().filter(|subnet| subnet.contains(block));
            holding.max_by_key(|subnet| subnet.prefix_len()).copied()
        };
        let mut grouped: BTreeMap<(bool, IpNet), Vec<AddressSet>> = BTreeMap::new();
        if let Some(subnet) = main {
            grouped.entry((false, subnet)).or_default();
        }
        for block in nic.blocks.iter().filter(of_family).map(IpNet::trunc) {
            let set = AddressSet::of_net(&block);
            // No pod can have it, whoever says so.
            if unusable(&set).is_some() {
                continue;
            }
            let (is_outside, subnet) = match subnet_of(&block) {
                Some(subnet) => (false, subnet),
                None => (true, block),
            };
            grouped.entry((is_outside, subnet)).or_default().push(set);
        }
        let own = AddressSet::of(nic.family, own.iter().copied());
        let networks = self.networks.iter().filter(|network| {
            network.addresses == Addresses::Metadata && network.master == nic.link
        });
        let networks: Vec<_> = networks
            .map(|network| network.name.clone().into())
            .collect();
        let pools = grouped.into_iter().map(|((is_outside, subnet), sets)| {
            let mut ranges = AddressSet::union_of(nic.family, &sets).without(&own);
            // An alias range has neither: all of it is routed to the NIC.
            if !is_outside {
                ranges = ranges.without(&never_assigned(&subnet));
            }
            let is_main = !is_outside && Some(subnet) == main;
            Pool {
                name: name(nic, (!is_main).then_some(&subnet)),
                family: nic.family,
                subnet,
                reserved: AddressSet::empty(nic.family),
                declared: ranges.clone(),
                ranges,
                gateway: nic
                    .gateway
                    .filter(|gateway| Family::of(*gateway) == nic.family),
                routes: Vec::new(),
                node_names: vec![nic.node.clone()],
                networks: networks.clone(),
                default: true,
                disabled: false,
                affinities: Affinities::default(),
                source: PoolSource::Derived {
                    link: nic.link.clone(),
                    from: nic.source.clone(),
                },
            }
        });
        pools.collect()
    }
}

impl Pool {
    /// Leaves to another pool what it may hand out on any node, and returns that.
    pub(super) fn leave_to(&mut self, other: &Self) -> Option<AddressSet> {
        let theirs = [&other.declared, &other.ranges, &other.reserved];
        if other.family != self.family
            || theirs
                .iter()
                .all(|set| set.intersection(&self.declared).is_none())
        {
            return None;
        }
        let theirs = AddressSet::union_of(self.family, theirs);
        let kept = self.declared.without(&theirs);
        let lost = self.declared.without(&kept);
        self.ranges = self.ranges.without(&theirs);
        self.reserved = self.reserved.without(&theirs);
        self.declared = kept;
        Some(lost)
    }
}

fn narrowed(pool: &Pool, lost: &AddressSet, other: &Pool) -> Problem {
    Problem {
        file: PathBuf::from(SOURCE),
        document: None,
        object: Some(format!("SpiderIPPool {}", pool.name)),
        field: None,
        message: format!(
            "{lost} belong to the declared pool {}, which keeps them; take them out of that pool for pods of this NIC's \
             networks, or leave it so",
            other.name
        ),
        consequence: Consequence::Narrowed,
    }
}

/// Returns the name of a NIC's pool; those of other subnets than its main one have the subnet in it.
fn name(nic: &DerivedNic, subnet: Option<&IpNet>) -> String {
    let family = match nic.family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    let subnet = subnet.map(|subnet| {
        let address = subnet.network().to_string();
        // `fd00::` ends in what no name may end in.
        let address = address.replace(['.', ':'], "-");
        format!("-{}-{}", address.trim_matches('-'), subnet.prefix_len())
    });
    let (node, link) = (as_name(&nic.node), as_name(&nic.link));
    format!("{node}-{link}-{family}{}", subnet.unwrap_or_default())
}

/// Whether derived pools of the node have names of this form.
#[must_use]
pub(super) fn is_name_of(pool: &str, node: &str) -> bool {
    let of_node = pool.strip_prefix(&as_name(node));
    let Some(rest) = of_node.and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    ["-v4", "-v6"].iter().any(|family| {
        let mut places = rest.match_indices(family);
        places.any(|(at, _)| {
            let after = &rest[at + family.len()..];
            at > 0 && (after.is_empty() || after.starts_with('-'))
        })
    })
}

/// Returns a text as it can be in the name of an object. What had to be changed has a digest, so that no two are the
/// same.
fn as_name(text: &str) -> String {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if text.chars().all(fits) && is_end(text.chars().next()) && is_end(text.chars().last()) {
        return text.to_owned();
    }
    let lower = text.to_lowercase();
    let plain: String = lower
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .collect();
    let plain = plain.trim_matches(['-', '.']);
    let digest = fnv(text.bytes()) & 0xff_ffff;
    match plain {
        "" => format!("x-{digest:06x}"),
        plain => format!("{plain}-{digest:06x}"),
    }
}
