//! Reads the flow tables that the programs fill.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use ebbtide_layout::{Address, Flow, FlowKey, HostFlow, WHOLE};

use super::{
    Datapath, Error, Host, TablesByAddress,
    error::{is_gone, map_error},
    key,
};

/// The kind of a remembered flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A flow in the pod, with the interface by which it came in and its replies leave.
    InPod {
        /// The interface's index in the pod's namespace.
        ifindex: u32,
        /// Whether it comes by the pod's own interface now, and its replies leave by that.
        is_straight: bool,
    },
    /// A request in the host that came in by a NIC, and whose replies leave by it.
    Request {
        /// The NIC's bits of the mark.
        mark: u32,
    },
    /// A flow that the host forwards for a pod: its replies reach the host's stack before the pod.
    Forwarded,
}

/// A remembered flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its addresses, ports and protocol.
    pub key: FlowKey,
    /// Its kind.
    pub kind: Kind,
    /// When it was learned, in seconds of `CLOCK_BOOTTIME`.
    pub since: u32,
    /// Its packets since then, in both directions.
    pub packets: u64,
}

/// Returns the time since boot, suspend included: the programs' clock (`CLOCK_BOOTTIME`), to the hundredth of a second
/// that `/proc/uptime` has. Zero if that cannot be read.
#[must_use]
pub fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or_default()
}

/// Converts a map key to an address: mapped ones to IPv4.
#[must_use]
pub fn address(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

impl Datapath {
    /// Returns the flows in the own tables of a pod with these addresses.
    ///
    /// # Errors
    /// If the kernel refuses to read a table.
    pub fn flows(&self, addresses: &[IpAddr]) -> Result<Vec<Remembered>, Error> {
        let tables = tables(&self.flows, addresses.iter().map(|a| key(*a)).collect())?;
        read(tables, |key, flow: Flow| Remembered {
            key,
            kind: Kind::InPod {
                ifindex: flow.ifindex,
                is_straight: flow.straight != 0,
            },
            since: flow.since,
            packets: flow.packets,
        })
    }
}

impl Host {
    /// Returns the flows of these addresses in the host; with `None`, of all addresses.
    ///
    /// # Errors
    /// If the kernel refuses to read a table.
    pub fn flows(&self, addresses: Option<&[IpAddr]>) -> Result<Vec<Remembered>, Error> {
        let addresses = match addresses {
            Some(addresses) => addresses.iter().map(|a| key(*a)).collect(),
            None => self.owned(),
        };
        let tables = tables(&self.flow_tables(), addresses)?;
        let reply = ebbtide_layout::reply_bit(self.nic_marks());
        read(tables, |key, flow: HostFlow| Remembered {
            key,
            kind: match flow.forwarded {
                0 => Kind::Request {
                    mark: flow.mark & !reply,
                },
                _ => Kind::Forwarded,
            },
            since: flow.since,
            packets: flow.packets,
        })
    }
}

/// Opens the tables of these addresses, each once: the addresses of one pod share one. Tables that are removed
/// meanwhile are left out.
fn tables(all: &TablesByAddress, addresses: Vec<Address>) -> Result<Vec<MapData>, Error> {
    let failed = |source| Error::Io {
        what: "find",
        path: "a flow table".into(),
        source,
    };
    let mut ids = BTreeSet::new();
    for address in addresses {
        ids.extend(all.id(&address).map_err(failed)?);
    }
    let open = |id| match MapData::from_id(id) {
        Err(MapError::SyscallError(e)) if is_gone(&e.io_error) => None,
        other => Some(other.map_err(|e| map_error("open a flow table", e))),
    };
    ids.into_iter().filter_map(open).collect()
}

/// Reads all flows in `tables`. Flows that are added or removed meanwhile may be seen or not; a table that changes
/// faster than it can be read is read in part.
fn read<V: aya::Pod>(
    tables: Vec<MapData>,
    remembered: impl Fn(FlowKey, V) -> Remembered,
) -> Result<Vec<Remembered>, Error> {
    let mut flows = Vec::new();
    for table in tables {
        let table: HashMap<_, FlowKey, V> = HashMap::try_from(Map::LruHashMap(table))
            .map_err(|e| map_error("open a flow table", e))?;
        // If the current entry is removed, the kernel begins again from the first.
        let most = ebbtide_layout::FLOWS_PER_POD as usize;
        let entries = table.iter().take(most).filter_map(Result::ok);
        // Entries of other kinds are for a packet's fragments in flight.
        let entries = entries.filter(|(key, _)| key.kind == WHOLE);
        flows.extend(entries.map(|(key, value)| remembered(key, value)));
    }
    Ok(flows)
}
