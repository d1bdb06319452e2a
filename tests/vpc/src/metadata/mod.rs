//! The double of five clouds' metadata services, which tells the nodes what the VPC assigned to their NICs.
//!
//! It speaks as the real ones do, as far as captures and documentation show, and refuses what they refuse. It serves in
//! the router's namespace at the real addresses, so a node reaches it by its NIC as in a cloud, whether it is a namespace
//! or a machine, and it knows the node by the source address, which the strict VPC holds true. [`Knobs`] make it late,
//! wrong or broken.
//!
//! What no capture shows is chosen so that nothing depends on it: Azure tells no prefixes, Alibaba Cloud tells several
//! IPv4 prefixes a line each.

mod alibaba;
mod aws;
mod azure;
mod exchange;
mod gcp;
mod json;
mod knobs;
mod log;
mod server;
mod tencent;
mod tokens;
mod told;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use self::server::Shared;
pub use self::{
    knobs::{Does, Fault, Knobs, Listing, Torn},
    log::Request,
};
use crate::vpc::{Vpc, ip};

/// A cloud, whose metadata service the double can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cloud {
    /// Amazon Web Services.
    Aws,
    /// Alibaba Cloud.
    Alibaba,
    /// Microsoft Azure.
    Azure,
    /// Google Cloud.
    Gcp,
    /// Tencent Cloud.
    Tencent,
}

/// The port of all metadata services.
const PORT: u16 = 80;
/// The address that AWS, Azure and Google Cloud share.
const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
/// AWS' second address.
pub const AWS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254));

impl Cloud {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Aws,
        Self::Alibaba,
        Self::Azure,
        Self::Gcp,
        Self::Tencent,
    ];

    /// Returns its name in an agent's configuration.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Alibaba => "alibaba",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
            Self::Tencent => "tencent",
        }
    }

    /// Returns the address of its metadata service.
    #[must_use]
    pub const fn address(self) -> SocketAddr {
        let address = match self {
            Self::Aws | Self::Azure | Self::Gcp => SHARED,
            Self::Alibaba => IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
            Self::Tencent => IpAddr::V4(Ipv4Addr::new(169, 254, 0, 23)),
        };
        SocketAddr::new(address, PORT)
    }
}

/// The double of the metadata services, as it serves. Dropping it ends it.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// use ebbtide_vpc::{metadata::MetadataDouble, plan::Plan, vpc::Vpc};
///
/// let vpc = Vpc::build(Plan::default())?;
/// let metadata = MetadataDouble::start(&vpc)?;
/// // The VPC delivers it to the NIC at once, and tells of it after five seconds.
/// metadata.everywhere(|knobs| knobs.lag = Duration::from_secs(5));
/// vpc.assign("master", "ens6", "210.22.16.64/28".parse::<ipnet::IpNet>()?)?;
/// assert_eq!(metadata.count("master", "ipv4-prefix"), 0);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct MetadataDouble {
    shared: Arc<Shared>,
    /// `None` only while this is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl MetadataDouble {
    /// Serves the nodes of a VPC; it serves when this returns.
    ///
    /// # Errors
    /// If an address cannot be bound, as when there is one already.
    pub fn start(vpc: &Vpc) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("metadata")
            .enable_all()
            .build()
            .context("starting a runtime for the metadata double")?;
        let shared = Arc::new(Shared::new(&vpc.plan, Arc::clone(vpc.record())));
        let addresses: BTreeSet<IpAddr> = Cloud::ALL
            .map(|cloud| cloud.address().ip())
            .into_iter()
            .chain([AWS_V6])
            .collect();
        for address in addresses {
            let text = address.to_string();
            // It may be there: of a double before this one. Without `nodad` the kernel would let nothing bind it for a
            // moment, see `Netlink::add_address`.
            ip(
                &vpc.router,
                &["addr", "replace", &text, "dev", "lo", "nodad"],
            )?;
            let address = SocketAddr::new(address, PORT);
            let listener = vpc
                .router
                .run(|| listen(address))
                .with_context(|| format!("serving metadata at {address}"))?;
            let _guard = runtime.enter();
            let listener = TcpListener::from_std(listener.into())
                .context("serving metadata in the background")?;
            runtime.spawn(server::serve(listener, Arc::clone(&shared)));
        }
        Ok(Self {
            shared,
            runtime: Some(runtime),
        })
    }

    /// Turns the knobs of one node's metadata.
    ///
    /// # Panics
    /// If the plan has no such node, which is a mistake in the test.
    pub fn at(&self, node: &str, turn: impl FnOnce(&mut Knobs)) {
        self.shared.turn(
            |all: &mut BTreeMap<String, Knobs>| match all.get_mut(node) {
                Some(knobs) => turn(knobs),
                None => panic!("the plan has no node {node}"),
            },
        );
    }

    /// Turns the knobs of all nodes' metadata.
    pub fn everywhere(&self, turn: impl FnMut(&mut Knobs)) {
        self.shared.turn(|all| all.values_mut().for_each(turn));
    }

    /// Lets all tokens of a node expire.
    pub fn expire_tokens(&self, node: &str) {
        self.shared.tokens().expire(node);
    }

    /// Returns all requests so far, in the order in which they came.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log().all()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.shared.log().forget();
    }

    /// Returns how many requests of a node so far have this in their path or query.
    #[must_use]
    pub fn count(&self, node: &str, path: &str) -> usize {
        self.shared
            .log()
            .all()
            .iter()
            .filter(|request| request.node == node && request.path.contains(path))
            .count()
    }

    /// Returns the largest number of requests of a node in any one second so far.
    #[must_use]
    pub fn busiest_second(&self, node: &str) -> usize {
        self.shared.log().busiest_second(node)
    }
}

impl Drop for MetadataDouble {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whoever still waits for an answer waits in vain.
            runtime.shutdown_background();
        }
    }
}

fn listen(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
