//! The few netlink operations that build the test network. They block.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressHeaderFlags,
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
        neighbour::NeighbourFlags,
        route::RouteScope,
        tc::TcHandle,
    },
};

use crate::netns::Netns;

/// A link-layer address.
pub type Mac = [u8; 6];

/// A netlink connection into one namespace.
pub struct Netlink {
    runtime: tokio::runtime::Runtime,
    handle: rtnetlink::Handle,
    namespace: String,
}

/// One end of a veth pair.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    /// Its namespace; for the first end it must be the connection's own.
    pub netns: &'a Netns,
    /// Interface name.
    pub name: &'a str,
    /// Link-layer address.
    pub mac: Mac,
}

impl Netlink {
    pub(crate) fn connect(netns: &Netns) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("starting a runtime for netlink")?;
        let (connection, handle, _) = netns.run(|| {
            // The socket belongs to the namespace of the thread that opens it, for good.
            let _guard = runtime.enter();
            rtnetlink::new_connection()
                .with_context(|| format!("opening a netlink socket in {:?}", netns.name()))
        })?;
        runtime.spawn(connection);
        Ok(Self {
            runtime,
            handle,
            namespace: netns.name().to_owned(),
        })
    }

    /// Returns the rtnetlink handle, for operations without a method here. [`Netlink::wait`] drives its futures.
    #[must_use]
    pub fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// Drives a future of this connection until it completes.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Returns the index of a link.
    ///
    /// # Errors
    /// If there is no link of this name.
    pub fn index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name)?.header.index)
    }

    /// Returns the link-layer address of a link.
    ///
    /// # Errors
    /// If there is no link of this name, or it has no such address.
    pub fn mac(&self, name: &str) -> Result<Mac> {
        self.link(name)?
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
                _ => None,
            })
            .with_context(|| format!("{name} in {} has no MAC address", self.namespace))
    }

    /// Returns the names of all links.
    ///
    /// # Errors
    /// If the kernel refuses the dump.
    pub fn link_names(&self) -> Result<Vec<String>> {
        let links: Vec<_> = self
            .wait(self.handle.link().get().execute().try_collect())
            .with_context(|| format!("listing the links in {}", self.namespace))?;
        Ok(links
            .into_iter()
            .flat_map(|link: LinkMessage| link.attributes)
            .filter_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
            .collect())
    }

    fn link(&self, name: &str) -> Result<LinkMessage> {
        let request = self.handle.link().get().match_name(name.to_owned());
        self.wait(request.execute().try_next())
            .ok()
            .flatten()
            .with_context(|| format!("there is no link {name} in {}", self.namespace))
    }

    /// Creates a veth pair, each end in its own namespace and with its address. The near end is up, the far end is down
    /// (`veth_open` refuses until the pair is complete).
    ///
    /// # Errors
    /// If the kernel refuses; the error names both ends.
    pub fn add_veth(&self, end: &VethEnd<'_>, peer: &VethEnd<'_>, mtu: u32) -> Result<()> {
        let far = LinkMessageBuilder::<LinkUnspec>::default()
            .name(peer.name)
            .address(peer.mac.to_vec())
            .mtu(mtu)
            .setns_by_fd(peer.netns.as_fd().as_raw_fd())
            .build();
        let near = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(end.name)
            .address(end.mac.to_vec())
            .mtu(mtu)
            .up()
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .build();
        self.wait(self.handle.link().add(near).execute())
            .with_context(|| {
                format!(
                    "making the veth pair {} in {} and {} in {}",
                    end.name,
                    end.netns.name(),
                    peer.name,
                    peer.netns.name()
                )
            })
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// If there is no link of this name.
    pub fn set_up(&self, name: &str) -> Result<()> {
        let up = LinkUnspec::new_with_name(name).up().build();
        self.wait(self.handle.link().set(up).execute())
            .with_context(|| format!("setting {name} up in {}", self.namespace))
    }

    /// Adds an address to a link. It can be used at once.
    ///
    /// # Errors
    /// If the kernel refuses; the error names the link and the address.
    pub fn add_address(&self, name: &str, address: IpNet) -> Result<()> {
        let index = self.index(name)?;
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            // The kernel treats a new address as tentative until its work queue gets to it (`addrconf_dad_work`,
            // net/ipv6/addrconf.c), even without duplicate address detection. Until then nothing can bind it.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        self.wait(request.execute())
            .with_context(|| format!("giving {name} in {} {address}", self.namespace))
    }

    /// Adds a route through a gateway to the main table.
    ///
    /// # Errors
    /// If the kernel refuses; the error names the route.
    pub fn add_route(&self, destination: IpNet, gateway: IpAddr) -> Result<()> {
        let context = || format!("routing {destination} by {gateway} in {}", self.namespace);
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .and_then(|route| route.gateway(gateway))
            .with_context(context)?
            .build();
        self.wait(self.handle.route().add(message).execute())
            .with_context(context)
    }

    /// Adds a route through a gateway that is behind one link, whatever other links have its subnet.
    ///
    /// # Errors
    /// If the kernel refuses; the error names the route.
    pub fn add_route_by(&self, destination: IpNet, gateway: IpAddr, name: &str) -> Result<()> {
        let index = self.index(name)?;
        let context = || {
            format!(
                "routing {destination} by {gateway} at {name} in {}",
                self.namespace
            )
        };
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .and_then(|route| route.gateway(gateway))
            .with_context(context)?
            .output_interface(index)
            .build();
        self.wait(self.handle.route().add(message).execute())
            .with_context(context)
    }

    /// Removes the main table's route to exactly this destination.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_route(&self, destination: IpNet) -> Result<()> {
        let context = || format!("removing the route to {destination} in {}", self.namespace);
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .with_context(context)?
            .build();
        // The kernel takes this as any scope (`fib_table_delete`, net/ipv4/fib_trie.c).
        message.header.scope = RouteScope::NoWhere;
        self.wait(self.handle.route().del(message).execute())
            .with_context(context)
    }

    /// Adds a route by which a destination is on-link, whether it is or not.
    ///
    /// # Errors
    /// If the kernel refuses; the error names the route.
    pub fn add_on_link_route(&self, destination: IpNet, name: &str) -> Result<()> {
        let index = self.index(name)?;
        let context = || format!("routing {destination} by {name} in {}", self.namespace);
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .with_context(context)?
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        self.wait(self.handle.route().add(message).execute())
            .with_context(context)
    }

    /// Changes the link-layer address of a link.
    ///
    /// # Errors
    /// If there is no link of this name.
    pub fn set_mac(&self, name: &str, mac: Mac) -> Result<()> {
        let change = LinkUnspec::new_with_index(self.index(name)?)
            .address(mac.to_vec())
            .build();
        self.wait(self.handle.link().set(change).execute())
            .with_context(|| format!("changing the MAC of {name} in {}", self.namespace))
    }

    /// Removes a link's clsact qdisc, and with it all tc filters of the link.
    ///
    /// # Errors
    /// If it has none.
    pub fn remove_clsact(&self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        let mut traffic_control = self.handle.qdisc();
        let mut request = traffic_control.del(i32::try_from(index)?);
        request.message_mut().header.parent = TcHandle::CLSACT;
        self.wait(request.execute())
            .with_context(|| format!("removing clsact from {name} in {}", self.namespace))
    }

    /// Adds permanent neighbour entries on a link.
    ///
    /// # Errors
    /// If the kernel refuses; the error names the link and the address.
    pub fn add_neighbours(
        &self,
        name: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
        mac: Mac,
    ) -> Result<()> {
        let index = self.index(name)?;
        for address in addresses {
            let request = self
                .handle
                .neighbours()
                .add(index, address)
                .link_layer_address(&mac)
                // The kernel may have one that failed, of a packet before.
                .replace();
            self.wait(request.execute()).with_context(|| {
                format!(
                    "adding the neighbour {address} to {name} in {}",
                    self.namespace
                )
            })?;
        }
        Ok(())
    }

    /// Removes the entry of a neighbour on a link.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove_neighbour(&self, name: &str, address: IpAddr) -> Result<()> {
        let mut entry = self.handle.neighbours().add(self.index(name)?, address);
        let message = entry.message_mut().clone();
        self.wait(self.handle.neighbours().del(message).execute())
            .with_context(|| {
                format!(
                    "removing the neighbour {address} from {name} in {}",
                    self.namespace
                )
            })
    }

    /// Ends what [`Netlink::answer_for`] began for one address.
    ///
    /// # Errors
    /// If the kernel does not answer for it.
    pub fn stop_answering_for(&self, name: &str, address: IpAddr) -> Result<()> {
        let entry = self.handle.neighbours().add(self.index(name)?, address);
        let message = entry.flags(NeighbourFlags::Proxy).message_mut().clone();
        self.wait(self.handle.neighbours().del(message).execute())
            .with_context(|| {
                format!(
                    "answering for {address} no longer at {name} in {}",
                    self.namespace
                )
            })
    }

    /// Makes the kernel answer ARP requests and neighbour solicitations for these addresses on a link (`NTF_PROXY`), as
    /// long as it forwards and routes them by another link.
    ///
    /// # Errors
    /// If the kernel refuses; the error names the link and the address.
    pub fn answer_for(
        &self,
        name: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<()> {
        let index = self.index(name)?;
        for address in addresses {
            let proxy = self.handle.neighbours().add(index, address);
            self.wait(proxy.flags(NeighbourFlags::Proxy).execute())
                .with_context(|| {
                    format!("answering for {address} at {name} in {}", self.namespace)
                })?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
