//! The maps of the host's programs: each address' owner, and the counters of each NIC.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap},
};
use ebbtide_layout::{
    Address, HostConfig, NIC_IS_STRICT, NIC_IS_STRICT6, Nic, NicCounters, NodeAddress,
    OWNER_HAS_GATEWAY, OWNER_IS_POD, reply_bit,
};
use ebbtide_types::Family;

use super::{
    Error, FlowTables, NOEXIST, TablesByAddress,
    error::{io_error, is_gone, is_there, map_error},
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
    /// The sender address of ARP requests: the node's address on the NIC, else a pod's.
    pub asks_as: Option<Ipv4Addr>,
    /// The gateways of the main table's default routes over the NIC, of both families.
    pub gateways: Vec<IpAddr>,
    /// The node's own addresses on the NIC, and whether packets from them can be redirected to it: its table has a
    /// gateway for their family, and its mark selects that table.
    pub addresses: Vec<(IpAddr, bool)>,
}

impl HostNic {
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
const fn strict(family: Family) -> u32 {
    match family {
        Family::V4 => NIC_IS_STRICT,
        Family::V6 => NIC_IS_STRICT6,
    }
}

/// The maps of the programs in the host's namespace.
#[derive(Debug)]
pub struct Host {
    maps: Mutex<Maps>,
    tables: FlowTables,
    marks: u32,
}

pub(super) struct Maps {
    flows: TablesByAddress,
    addresses: HashMap<MapData, Address, NodeAddress>,
    nics: HashMap<MapData, u32, Nic>,
    counters: PerCpuHashMap<MapData, u32, NicCounters>,
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
        let flows = object
            .take_map("HOST_FLOWS")
            .ok_or(Error::Lacks("map HOST_FLOWS"))?;
        Ok(Self {
            flows: TablesByAddress::new(&flows, "map HOST_FLOWS")?,
            addresses: open(object, "ADDRESSES")?,
            nics: open(object, "NICS")?,
            counters: open(object, "NIC_COUNTERS")?,
            host: open(object, "HOST")?,
        })
    }

    /// Records the owner of each address.
    fn own(&mut self, addresses: &[(IpAddr, NodeAddress)]) -> Result<(), Error> {
        for (address, owner) in addresses {
            retry_enomem(|| {
                let said = self.addresses.insert(key(*address), owner, 0);
                said.map_err(|e| map_error(format!("write the NIC of {address}"), e))
            })?;
        }
        Ok(())
    }

    /// Creates one flow table for those of `addresses` that have none yet.
    fn give_tables(&mut self, tables: &FlowTables, addresses: &[IpAddr]) -> Result<(), Error> {
        let missing: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|address| !self.flows.contains(&key(*address)).unwrap_or(false))
            .collect();
        if !missing.is_empty() {
            let table = tables.make()?;
            for address in missing {
                retry_enomem(|| {
                    let given = self.flows.insert(key(address), &table);
                    given.map_err(|e| io_error("insert a flow table of the host for", address, e))
                })?;
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

    /// Removes a NIC and its counters: the maps are of limited size.
    fn forget_nic(&mut self, ifindex: u32) -> Result<(), Error> {
        let mark = self.nics.get(&ifindex, 0).map_or(0, |nic| nic.mark);
        self.nics
            .remove(&ifindex)
            .map_err(|e| map_error("forget a NIC", e))?;
        self.forget_counters(ifindex)?;
        self.forget_mark(mark)
    }

    /// Removes the counters of a mark, unless a NIC has it.
    fn forget_mark(&mut self, mark: u32) -> Result<(), Error> {
        let mut nics = self.nics.iter().filter_map(Result::ok);
        match mark == 0 || nics.any(|(_, nic)| nic.mark == mark) {
            true => Ok(()),
            false => self.forget_counters(by_mark(mark)),
        }
    }

    fn forget_counters(&mut self, key: u32) -> Result<(), Error> {
        match self.counters.remove(&key) {
            Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => Ok(()),
            Err(MapError::KeyNotFound) | Ok(()) => Ok(()),
            Err(e) => Err(map_error("delete a NIC's counters", e)),
        }
    }

    fn count(&mut self, key: u32) -> Result<(), Error> {
        retry_enomem(|| {
            let fresh = on_each_cpu(NicCounters::default())?;
            match self.counters.insert(key, fresh, NOEXIST) {
                Err(MapError::SyscallError(e)) if is_there(&e.io_error) => Ok(()),
                other => other.map_err(|e| map_error("insert a NIC's counters", e)),
            }
        })
    }
}

impl Host {
    pub(super) fn new(maps: Maps, tables: FlowTables, marks: u32) -> Self {
        Self {
            maps: Mutex::new(maps),
            tables,
            marks,
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
            pad: 0,
        };
        maps.host
            .set(0, config, 0)
            .map_err(|e| map_error("write the index of the redirect device", e))?;
        let mut before = Vec::new();
        for nic in nics {
            before.extend(maps.nics.get(&nic.ifindex, 0).map(|nic| nic.mark));
            maps.count(nic.ifindex)?;
            if nic.mark != 0 {
                maps.count(by_mark(nic.mark))?;
            }
            let value = Nic {
                mark: nic.mark,
                flags: nic
                    .strict
                    .iter()
                    .fold(0, |flags, family| flags | strict(*family)),
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
                .map(|(address, has_gateway)| (*address, owner(nic.ifindex, 0, *has_gateway)))
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
        for mark in before {
            maps.forget_mark(mark)?;
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
        Ok(())
    }

    /// Records these addresses as a pod's, each with whether the table of the pod's NIC has a gateway for it. Without a
    /// NIC that is known to own them, only their flows are remembered.
    ///
    /// # Errors
    /// If the kernel refuses a map operation.
    pub fn register_pod(
        &self,
        addresses: &[(IpAddr, bool)],
        nic: Option<u32>,
    ) -> Result<(), Error> {
        let alone: Vec<IpAddr> = addresses.iter().map(|(address, _)| *address).collect();
        let mut maps = lock(&self.maps);
        maps.give_tables(&self.tables, &alone)?;
        let Some(ifindex) = nic else {
            return Ok(());
        };
        let owned: Vec<_> = addresses
            .iter()
            .map(|(address, has_gateway)| (*address, owner(ifindex, OWNER_IS_POD, *has_gateway)))
            .collect();
        maps.own(&owned)
    }

    /// Returns the index of the NIC of a pod's address, as recorded when the pod's interface was made.
    #[must_use]
    pub fn nic_of(&self, address: IpAddr) -> Option<u32> {
        let owner = lock(&self.maps).addresses.get(&key(address), 0).ok()?;
        (owner.flags & OWNER_IS_POD != 0).then_some(owner.ifindex)
    }

    /// Returns the flow tables by address.
    pub(super) fn flow_tables(&self) -> TablesByAddress {
        lock(&self.maps).flows.clone()
    }

    /// Returns all addresses that have an owner, and thus a flow table.
    pub(super) fn owned(&self) -> Vec<Address> {
        lock(&self.maps)
            .addresses
            .keys()
            .filter_map(Result::ok)
            .collect()
    }

    /// Returns the bits of packet marks that Ebbtide uses in the host.
    pub(super) const fn nic_marks(&self) -> u32 {
        self.marks
    }

    pub(super) fn forget(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut maps = lock(&self.maps);
        for address in addresses {
            maps.forget(&key(*address))
                .map_err(|e| map_error(format!("delete the entry of {address}"), e))?;
            maps.flows
                .remove(key(*address))
                .map_err(|e| io_error("delete the host's flow table of", *address, e))?;
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
        for index in [nic.ifindex, by_mark(nic.mark & !reply_bit(self.marks))] {
            let per_cpu = match maps.counters.get(&index, 0) {
                Ok(per_cpu) => per_cpu,
                Err(MapError::KeyNotFound) => continue,
                Err(e) => {
                    return Err(map_error(format!("read the counters of {}", nic.name), e));
                }
            };
            for part in per_cpu.iter() {
                sum.add(part);
            }
        }
        Ok(sum)
    }
}

const fn owner(ifindex: u32, flags: u32, has_gateway: bool) -> NodeAddress {
    let gateway = if has_gateway { OWNER_HAS_GATEWAY } else { 0 };
    NodeAddress {
        ifindex,
        flags: flags | gateway,
    }
}

/// Returns the key of counters that are kept by mark (ebpf/src/host.rs has the same).
const fn by_mark(mark: u32) -> u32 {
    (1 << 31) | mark
}
