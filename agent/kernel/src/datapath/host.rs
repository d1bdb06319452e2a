//! The maps of the host's programs: each address' owner, and the counters of each NIC.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use ebbtide_layout::{
    Address, HostConfig, MAX_NICS, NIC_IS_STRICT, NIC_IS_STRICT6, NIC_SUBNET_SHIFT, Nic,
    NicCounters, NodeAddress, OWNER_FORWARDS, OWNER_HAS_GATEWAY, OWNER_IN_L3, OWNER_IS_FOLLOWED,
    OWNER_IS_POD,
};
use ebbtide_types::Family;
use ipnet::IpNet;

use super::{
    Error,
    error::{is_gone, map_error},
    key, lock, on_each_cpu,
    retry::retry_enomem,
};

/// A NIC as the host's programs see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNic {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Its bits of the mark; zero if there were not enough for all NICs.
    pub mark: u32,
    /// The families with strict reverse path filtering on the NIC.
    pub strict: Vec<Family>,
    /// The IPv4 subnet on the NIC that the main table leads to by it, around [`asks_as`](Self::asks_as); only where the
    /// kernel filters strictly. What comes from there gets no mark.
    pub beside: Option<IpNet>,
    /// The sender address of ARP requests: the node's address on the NIC, else a pod's.
    pub asks_as: Option<Ipv4Addr>,
    /// The gateways of the main table's default routes over the NIC, of both families.
    pub gateways: Vec<IpAddr>,
    /// The node's own addresses on the NIC, and whether packets from them can be redirected to it: its table has a
    /// gateway for their family, and its mark selects that table.
    pub addresses: Vec<(IpAddr, bool)>,
}

impl HostNic {
    /// Returns the programs' flags.
    fn flags(&self) -> u32 {
        let strict = self.strict.iter();
        let strict = strict.fold(0, |flags, family| flags | strict_flag(*family));
        let beside = self.beside.as_ref().map_or(0, IpNet::prefix_len);
        strict | u32::from(beside) << NIC_SUBNET_SHIFT
    }

    /// Returns the first gateway of a family in the programs' format: IPv4 in the last word; zero for none.
    fn gateway(&self, family: Family) -> [u32; 4] {
        let of_family = |gateway: &&IpAddr| Family::of(**gateway) == family;
        let Some(gateway) = self.gateways.iter().find(of_family) else {
            return [0; 4];
        };
        let bytes = key(*gateway);
        let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * at + byte]));
        std::array::from_fn(word)
    }
}

/// Returns the programs' flag for strict reverse path filtering.
const fn strict_flag(family: Family) -> u32 {
    match family {
        Family::V4 => NIC_IS_STRICT,
        Family::V6 => NIC_IS_STRICT6,
    }
}

/// A pod as the programs in the host's namespace know it.
#[derive(Clone, Copy, Debug)]
pub struct RegisteredPod {
    /// Its number ([`Filter::only_from`](crate::netlink::model::Filter)).
    pub number: u16,
    /// Whether its interface is an ipvlan one in l3.
    pub is_l3: bool,
    /// Whether the NIC's program follows what reaches it directly
    /// ([`PodNet::registered`](crate::podnet::PodNet::registered)).
    pub is_followed: bool,
}

impl RegisteredPod {
    const fn flags(self) -> u32 {
        let mode = if self.is_l3 { OWNER_IN_L3 } else { 0 };
        let followed = if self.is_followed {
            OWNER_IS_FOLLOWED
        } else {
            0
        };
        OWNER_IS_POD | mode | followed
    }
}

/// The maps of the programs in the host's namespace.
#[derive(Debug)]
pub struct Host {
    maps: Mutex<Maps>,
}

pub(super) struct Maps {
    addresses: HashMap<MapData, Address, NodeAddress>,
    nics: HashMap<MapData, u32, Nic>,
    /// The NICs' marks by their numbers.
    marks: Array<MapData, u32>,
    /// Counters by the NICs' numbers.
    counters: PerCpuArray<MapData, NicCounters>,
    host: Array<MapData, HostConfig>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        fn open<T: TryFrom<Map, Error = MapError>>(
            object: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, Error> {
            let map = object.take_map(name).ok_or(Error::Lacks(name))?;
            T::try_from(map).map_err(|e| map_error(format!("open the map {name}"), e))
        }
        Ok(Self {
            addresses: open(object, "ADDRESSES")?,
            nics: open(object, "NICS")?,
            marks: open(object, "MARKS")?,
            counters: open(object, "NIC_COUNTERS")?,
            host: open(object, "HOST")?,
        })
    }

    /// Records the owner of each address. One that is recorded already is not written again: the programs write its
    /// flags, too.
    fn own(&mut self, addresses: &[(IpAddr, NodeAddress)]) -> Result<(), Error> {
        for (address, owner) in addresses {
            let known = self.addresses.get(&key(*address), 0).ok();
            let forwards = known.map_or(0, |known| known.flags & OWNER_FORWARDS);
            let owner = NodeAddress {
                flags: owner.flags | forwards,
                ..*owner
            };
            if known == Some(owner) {
                continue;
            }
            retry_enomem(|| {
                let said = self.addresses.insert(key(*address), owner, 0);
                said.map_err(|e| map_error(format!("write the NIC of {address}"), e))
            })?;
        }
        Ok(())
    }

    /// Returns the number of the NIC with this index; zero if it has none.
    fn number(&self, ifindex: u32) -> u32 {
        self.nics.get(&ifindex, 0).map_or(0, |nic| nic.number)
    }

    /// Returns the number of a NIC, the lowest free one if it is new; zero if all are taken.
    fn give_number(&self, ifindex: u32) -> u32 {
        match self.number(ifindex) {
            0 => {
                let known: Vec<u32> = self
                    .nics
                    .iter()
                    .filter_map(Result::ok)
                    .map(|(_, nic)| nic.number)
                    .collect();
                lowest_free(&known)
            }
            number => number,
        }
    }

    /// Writes the numbers of NICs to the addresses that are recorded with them.
    fn renumber(&mut self) -> Result<(), Error> {
        let all: Vec<(Address, NodeAddress)> =
            self.addresses.iter().filter_map(Result::ok).collect();
        for (address, owner) in all {
            let nic = self.number(owner.ifindex);
            if nic != owner.nic {
                let owner = NodeAddress { nic, ..owner };
                self.addresses
                    .insert(address, owner, 0)
                    .map_err(|e| map_error("write the number of an address' NIC", e))?;
            }
        }
        Ok(())
    }

    fn forget(&mut self, address: &Address) -> Result<(), MapError> {
        match self.addresses.remove(address) {
            Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => Ok(()),
            Err(MapError::KeyNotFound) => Ok(()),
            other => other,
        }
    }

    /// Removes a NIC; its number may be another's next.
    fn forget_nic(&mut self, ifindex: u32) -> Result<(), Error> {
        let number = self.number(ifindex);
        self.nics
            .remove(&ifindex)
            .map_err(|e| map_error("forget a NIC", e))?;
        self.set_mark(number, 0)?;
        self.reset_counters(number)
    }

    fn set_mark(&mut self, number: u32, mark: u32) -> Result<(), Error> {
        // No NIC has the number zero.
        let mark = if number == 0 { 0 } else { mark };
        self.marks
            .set(number, mark, 0)
            .map_err(|e| map_error("write the mark of a NIC", e))
    }

    fn reset_counters(&mut self, number: u32) -> Result<(), Error> {
        self.counters
            .set(number, on_each_cpu(NicCounters::default())?, 0)
            .map_err(|e| map_error("reset a NIC's counters", e))
    }
}

/// Returns the lowest number for a NIC that is not in `taken`; zero if there is none.
fn lowest_free(taken: &[u32]) -> u32 {
    (1..MAX_NICS)
        .find(|number| !taken.contains(number))
        .unwrap_or(0)
}

impl Host {
    pub(super) fn new(maps: Maps) -> Self {
        Self {
            maps: Mutex::new(maps),
        }
    }

    /// Returns the marks of NICs by interface index. Packets and flows in flight carry them, so a NIC keeps its mark as
    /// long as it exists.
    #[must_use]
    pub fn marks(&self) -> Vec<(u32, u32)> {
        let maps = lock(&self.maps);
        let nics = maps.nics.iter().filter_map(Result::ok);
        nics.map(|(ifindex, nic)| (ifindex, nic.mark)).collect()
    }

    /// Replaces the NICs that the programs know by `nics`, and the redirect device, whose ingress enters the host's
    /// stack.
    ///
    /// # Errors
    /// If the kernel refuses a map operation.
    pub fn set(&self, nics: &[HostNic], redirect_device: Option<u32>) -> Result<(), Error> {
        let mut maps = lock(&self.maps);
        let config = HostConfig {
            redirect_device: redirect_device.unwrap_or(0),
            several_nics: u32::from(nics.len() > 1),
            nic_flags: nics.iter().fold(0, |flags, nic| flags | nic.flags()),
            pad: 0,
        };
        maps.host
            .set(0, config, 0)
            .map_err(|e| map_error("write the node's configuration for the programs", e))?;
        for nic in nics {
            let number = maps.give_number(nic.ifindex);
            maps.set_mark(number, nic.mark)?;
            let value = Nic {
                number,
                mark: nic.mark,
                flags: nic.flags(),
                asks_as: nic
                    .asks_as
                    .map_or(0, |own| u32::from_ne_bytes(own.octets())),
                gateway4: nic.gateway(Family::V4)[3],
                gateway6: nic.gateway(Family::V6),
            };
            retry_enomem(|| {
                let told = maps.nics.insert(nic.ifindex, value, 0);
                told.map_err(|e| map_error(format!("write the entry of NIC {}", nic.name), e))
            })?;
            let owned: Vec<_> = nic
                .addresses
                .iter()
                .map(|(address, has_gateway)| {
                    let owner = owner(nic.ifindex, 0, *has_gateway);
                    (
                        *address,
                        NodeAddress {
                            nic: number,
                            ..owner
                        },
                    )
                })
                .collect();
            maps.own(&owned)?;
        }
        let gone: Vec<u32> = maps
            .nics
            .keys()
            .filter_map(Result::ok)
            .filter(|known| nics.iter().all(|nic| nic.ifindex != *known))
            .collect();
        for ifindex in gone {
            maps.forget_nic(ifindex)?;
        }
        let wanted: Vec<Address> = nics
            .iter()
            .flat_map(|nic| nic.addresses.iter().map(|(address, _)| key(*address)))
            .collect();
        let gone: Vec<Address> = maps
            .addresses
            .iter()
            .filter_map(Result::ok)
            .filter(|(address, owner)| owner.flags & OWNER_IS_POD == 0 && !wanted.contains(address))
            .map(|(address, _)| address)
            .collect();
        for address in gone {
            maps.forget(&address)
                .map_err(|e| map_error("delete an address of the node", e))?;
        }
        maps.renumber()
    }

    /// Records these addresses as those of `pod`, each with whether the table of the pod's NIC has a
    /// gateway for it. Without a NIC that is known to own them, nothing is recorded.
    ///
    /// # Errors
    /// If the kernel refuses a map operation.
    pub fn register_pod(
        &self,
        addresses: &[(IpAddr, bool)],
        pod: RegisteredPod,
        nic: Option<u32>,
    ) -> Result<(), Error> {
        let Some(ifindex) = nic else {
            return Ok(());
        };
        let mut maps = lock(&self.maps);
        let number = maps.number(ifindex);
        let owned: Vec<_> = addresses
            .iter()
            .map(|(address, has_gateway)| {
                let owner = NodeAddress {
                    pod: pod.number.into(),
                    nic: number,
                    ..owner(ifindex, pod.flags(), *has_gateway)
                };
                (*address, owner)
            })
            .collect();
        maps.own(&owned)
    }

    /// Returns the index of the NIC of a pod's address, as recorded when the pod's interface was made.
    #[must_use]
    pub fn nic_of(&self, address: IpAddr) -> Option<u32> {
        let owner = lock(&self.maps).addresses.get(&key(address), 0).ok()?;
        (owner.flags & OWNER_IS_POD != 0).then_some(owner.ifindex)
    }

    /// Returns the interface index of the NIC with this number, by which the programs remember flows.
    #[must_use]
    pub fn nic_with_number(&self, number: u32) -> Option<u32> {
        let maps = lock(&self.maps);
        let mut nics = maps.nics.iter().filter_map(Result::ok);
        nics.find(|(_, nic)| nic.number == number && number != 0)
            .map(|(ifindex, _)| ifindex)
    }

    pub(super) fn forget(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut maps = lock(&self.maps);
        for address in addresses {
            maps.forget(&key(*address))
                .map_err(|e| map_error(format!("delete the entry of {address}"), e))?;
        }
        Ok(())
    }

    /// Returns the counters of a NIC, summed over all CPUs.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn counters(&self, nic: &HostNic) -> Result<NicCounters, Error> {
        let maps = lock(&self.maps);
        let mut sum = NicCounters::default();
        let number = maps.number(nic.ifindex);
        if number == 0 {
            return Ok(sum);
        }
        let counters = maps.counters.get(&number, 0);
        let counters =
            counters.map_err(|e| map_error(format!("read the counters of {}", nic.name), e))?;
        for part in counters.iter() {
            sum.add(part);
        }
        Ok(sum)
    }
}

const fn owner(ifindex: u32, flags: u32, has_gateway: bool) -> NodeAddress {
    let gateway = if has_gateway { OWNER_HAS_GATEWAY } else { 0 };
    NodeAddress {
        ifindex,
        flags: flags | gateway,
        pod: 0,
        nic: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_nic_has_the_lowest_free_number_and_zero_is_none() {
        let all: Vec<u32> = (1..MAX_NICS).collect();
        for (taken, expected) in [
            (&[][..], 1),
            (&[1, 2], 3),
            (&[2, 3], 1),
            (&[0, 1, 3], 2),
            (&all, 0),
        ] {
            assert_eq!(lowest_free(taken), expected, "{taken:?}");
        }
    }
}
