//! Reading back what the programs remember.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use ebbtide_layout::{Address, Flow, FlowKey, HostFlow, WHOLE};

use super::{Datapath, Error, Host, TablesByAddress, is_gone, key, map_error};

/// What is remembered of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In the pod: by which interface it came in, and its replies leave.
    InPod {
        /// Its index in the pod's namespace.
        ifindex: u32,
        /// It comes by the pod's own interface now, and replies leave by it.
        is_straight: bool,
    },
    /// In the host: a request that came in by a NIC, and whose replies leave by it.
    Request {
        /// The NIC's bits of the mark.
        mark: u32,
    },
    /// In the host: what it forwards for a pod; answers are its own business first.
    Forwarded,
}

/// A remembered flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its addresses, ports and protocol.
    pub key: FlowKey,
    /// What is known of it.
    pub kind: Kind,
    /// When it was learned, in seconds of `CLOCK_BOOTTIME`.
    pub since: u32,
    /// Its packets since then, both ways.
    pub packets: u64,
}

/// How long the machine has been up, also asleep: the programs' clock (`CLOCK_BOOTTIME`), to the
/// hundredth of a second that `/proc/uptime` has. Zero if that cannot be read.
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

/// An address of the maps as people write it.
#[must_use]
pub fn address(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

impl Datapath {
    /// The flows that a pod with these addresses remembers, in its own tables.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
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
    /// The flows of these addresses that the host has a part in; of all that it knows if `None`.
    ///
    /// # Errors
    /// When the kernel refuses to read a table.
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

/// The tables of these addresses, each once: the addresses of one pod share one. What is forgotten
/// meanwhile is left out.
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

/// Everything in `tables`. What comes and goes meanwhile may be seen or not; a table that changes
/// faster than it can be read is read in part.
fn read<V: aya::Pod>(
    tables: Vec<MapData>,
    remembered: impl Fn(FlowKey, V) -> Remembered,
) -> Result<Vec<Remembered>, Error> {
    let mut flows = Vec::new();
    for table in tables {
        let table: HashMap<_, FlowKey, V> = HashMap::try_from(Map::LruHashMap(table))
            .map_err(|e| map_error("open a flow table", e))?;
        // An entry that goes while we stand on it makes the kernel begin again from the first.
        let most = ebbtide_layout::FLOWS_PER_POD as usize;
        let entries = table.iter().take(most).filter_map(Result::ok);
        // Where a packet's fragments go is noted there, too, for as long as they are on their way.
        let entries = entries.filter(|(key, _)| key.kind == WHOLE);
        flows.extend(entries.map(|(key, value)| remembered(key, value)));
    }
    Ok(flows)
}
