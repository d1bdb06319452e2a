//! The VPC's strictness: the eBPF program `strict-vpc` on every router port.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{
        HashMap, MapData,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{
        SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions},
    },
};
use ipnet::IpNet;

use crate::{netlink::Netlink, netns::Netns, plan::Nic, workspace};

/// The reason why the VPC dropped a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Its source MAC is not the NIC's.
    Mac,
    /// Its source address is not one of the NIC's addresses.
    Source,
    /// It is neither ARP, IPv4 nor IPv6.
    Protocol,
}

impl Reason {
    /// All reasons, in the program's numbering.
    const ALL: [Self; 3] = [Self::Mac, Self::Source, Self::Protocol];
}

/// Frames that the VPC dropped at one port for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The node that sent them.
    pub node: String,
    /// The NIC it sent them from.
    pub nic: String,
    /// The reason.
    pub reason: Reason,
    /// The number of frames since the VPC was built.
    pub count: u64,
    /// Source address of the last frame.
    pub source: IpAddr,
    /// Destination address of the last frame.
    pub destination: IpAddr,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            Reason::Mac => "a MAC that is not the NIC's",
            Reason::Source => "an address that is not the NIC's",
            Reason::Protocol => "an unknown protocol",
        };
        write!(
            f,
            "{} × {what} at {}/{}, the last from {} to {}",
            self.count, self.node, self.nic, self.source, self.destination
        )
    }
}

/// The program, attached.
pub struct Strict {
    router: Netns,
    /// The loaded program; `None` only while this is dropped.
    ebpf: Option<Ebpf>,
    /// The program's list of what each NIC may send from.
    allowed: Mutex<Allowed>,
    ports: Vec<(u32, Nic)>,
}

type Allowed = LpmTrie<MapData, [u8; 20], u32>;

impl Strict {
    /// Loads the program and attaches it to the port of every NIC.
    ///
    /// # Errors
    /// If the object is not there or the kernel refuses it.
    pub fn attach<'a>(
        router: &Netns,
        netlink: &Netlink,
        nics: impl IntoIterator<Item = &'a Nic>,
    ) -> Result<Self> {
        let path = workspace::EBPF.file("strict-vpc")?;
        let mut ebpf =
            Ebpf::load_file(&path).with_context(|| format!("loading {}", path.display()))?;
        let ports: Vec<(u32, Nic)> = nics
            .into_iter()
            .map(|nic| Ok((netlink.index(&nic.port())?, nic.clone())))
            .collect::<Result<_>>()?;
        let allowed = ebpf
            .take_map("ALLOWED")
            .context("strict-vpc has no map ALLOWED")?;
        let mut allowed = LpmTrie::try_from(allowed).context("the map ALLOWED of strict-vpc")?;
        fill(&mut ebpf, &mut allowed, &ports)?;
        router.run(|| attach(&mut ebpf, &ports))?;
        Ok(Self {
            router: router.clone(),
            ebpf: Some(ebpf),
            allowed: Mutex::new(allowed),
            ports,
        })
    }

    /// Lets a NIC send from one more block of addresses.
    ///
    /// # Errors
    /// If the program's map refuses it.
    pub(crate) fn allow(&self, nic: &Nic, block: IpNet) -> Result<()> {
        let key = allowed_key(self.port(nic)?, block);
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed
            .insert(&key, 1, 0)
            .with_context(|| format!("allowing {block} to {}/{}", nic.node, nic.name))
    }

    /// Drops what a NIC sends from a block of addresses that it was allowed.
    ///
    /// # Errors
    /// If it was not allowed.
    pub(crate) fn forbid(&self, nic: &Nic, block: IpNet) -> Result<()> {
        let key = allowed_key(self.port(nic)?, block);
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed
            .remove(&key)
            .with_context(|| format!("forbidding {block} to {}/{}", nic.node, nic.name))
    }

    fn port(&self, nic: &Nic) -> Result<u32> {
        self.ports
            .iter()
            .find(|(_, other)| other.mac == nic.mac)
            .map(|(ifindex, _)| *ifindex)
            .with_context(|| format!("the VPC has no port for {}/{}", nic.node, nic.name))
    }

    /// Returns everything that was dropped so far.
    ///
    /// # Errors
    /// If the program's counters cannot be read.
    pub fn violations(&self) -> Result<Vec<Violation>> {
        let map = self
            .ebpf
            .as_ref()
            .and_then(|ebpf| ebpf.map("VIOLATIONS"))
            .context("strict-vpc has no map VIOLATIONS")?;
        let map: HashMap<&MapData, [u32; 2], [u64; 5]> = HashMap::try_from(map)?;
        let mut violations = Vec::new();
        for (ifindex, nic) in &self.ports {
            for (number, reason) in (0..).zip(Reason::ALL) {
                let value = map
                    .get(&[*ifindex, number], 0)
                    .context("reading the VPC's counters")?;
                if value[0] > 0 {
                    violations.push(Violation {
                        node: nic.node.clone(),
                        nic: nic.name.clone(),
                        reason,
                        count: value[0],
                        source: address([value[1], value[2]]),
                        destination: address([value[3], value[4]]),
                    });
                }
            }
        }
        Ok(violations)
    }
}

impl Drop for Strict {
    fn drop(&mut self) {
        // aya detaches by interface index, in the namespace of the calling thread. In another namespace than the
        // router's that index is another interface's.
        let ebpf = self.ebpf.take();
        let detached = self.router.run(move || {
            drop(ebpf);
            Ok(())
        });
        debug_assert!(detached.is_ok(), "{detached:?}");
    }
}

impl fmt::Debug for Strict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Strict")
            .field("ports", &self.ports.len())
            .finish_non_exhaustive()
    }
}

fn fill(ebpf: &mut Ebpf, allowed: &mut Allowed, ports: &[(u32, Nic)]) -> Result<()> {
    let mut macs: HashMap<_, u32, [u8; 8]> = map(ebpf, "MACS")?;
    for (ifindex, nic) in ports {
        let mut mac = [0; 8];
        mac[..6].copy_from_slice(&nic.mac);
        macs.insert(ifindex, mac, 0)?;
    }
    for (ifindex, nic) in ports {
        for address in nic.addresses().chain([nic.link_local()]) {
            allowed.insert(&allowed_key(*ifindex, address.into()), 1, 0)?;
        }
    }
    let mut violations: HashMap<_, [u32; 2], [u64; 5]> = map(ebpf, "VIOLATIONS")?;
    for (ifindex, _) in ports {
        for (number, _) in (0..).zip(Reason::ALL) {
            violations.insert([*ifindex, number], [0; 5], 0)?;
        }
    }
    Ok(())
}

fn attach(ebpf: &mut Ebpf, ports: &[(u32, Nic)]) -> Result<()> {
    let program: &mut SchedClassifier = ebpf
        .program_mut("strict_vpc")
        .context("strict-vpc holds no program strict_vpc")?
        .try_into()?;
    program.load().context("the kernel refuses strict-vpc")?;
    for (_, nic) in ports {
        let port = nic.port();
        tc::qdisc_add_clsact(&port).with_context(|| format!("adding clsact to {port}"))?;
        program
            .attach_with_options(
                &port,
                TcAttachType::Ingress,
                TcAttachOptions::Netlink(NlOptions::default()),
            )
            .with_context(|| format!("attaching strict-vpc to {port}"))?;
    }
    Ok(())
}

fn map<'a, K: aya::Pod, V: aya::Pod>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<HashMap<&'a mut MapData, K, V>> {
    let Some(map) = ebpf.map_mut(name) else {
        bail!("strict-vpc has no map {name}");
    };
    HashMap::try_from(map).with_context(|| format!("the map {name} of strict-vpc"))
}

/// Returns the key of a block of addresses at a port: 32 bits of interface index, and the block with IPv4 mapped to IPv6.
fn allowed_key(ifindex: u32, block: IpNet) -> Key<[u8; 20]> {
    let first = match block.network() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let wildcards = block.max_prefix_len() - block.prefix_len();
    let mut key = [0; 20];
    key[..4].copy_from_slice(&ifindex.to_ne_bytes());
    key[4..].copy_from_slice(&first.octets());
    Key::new(u32::from(160 - wildcards), key)
}

/// Converts an address as the program stores it: sixteen bytes in network byte order.
fn address(words: [u64; 2]) -> IpAddr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
    Ipv6Addr::from(bytes).to_canonical()
}
