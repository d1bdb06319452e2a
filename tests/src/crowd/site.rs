//! What the parts of a crowded node are built with: namespaces, wires, `ip`, servers, cells, and firewall rules.

use std::{
    fmt::{self, Display, Write as _},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{
    family::Family,
    iptables,
    netlink::{Mac, VethEnd},
    netns::Netns,
    traffic::{Protocol, bind},
    vpc::Vpc,
};

use super::{
    cell::{By, Cell},
    door::Doors,
    servers::Servers,
    vpn::HandOn,
};

/// Port of the servers in pods and containers.
pub(super) const POD_PORT: u16 = 8080;
/// Port of the servers of hosts.
pub(super) const HOST_PORT: u16 = 9090;
/// An MTU that fits into every tunnel here.
pub(super) const POD_MTU: u32 = 1300;

/// A crowded node that is being built.
pub(super) struct Site {
    /// The VPC: `master` is the crowded node, `worker1` a host beyond the router.
    pub(super) vpc: Vpc,
    /// The node.
    pub(super) node: Netns,
    /// The far host.
    pub(super) far: Netns,
    /// The threads in its namespaces.
    pub(super) doors: Arc<Doors>,
    /// All cells.
    pub(super) cells: Vec<Cell>,
    /// The node's firewall, one for each family.
    pub(super) firewall: [Firewall; 2],
    /// The lines for `ip` that were not run yet, by namespace and family.
    told: Vec<(Netns, Family, Vec<String>)>,
    /// The servers that were not started yet.
    serving: Vec<(Netns, Protocol, SocketAddr)>,
    servers: Option<Servers>,
    /// The program of the VPN in user space.
    pub(super) hand_on: Option<HandOn>,
    /// Other namespaces, which live as long as the site.
    others: Vec<Netns>,
    wires: u8,
}

/// The rules for `iptables-restore`.
#[derive(Debug, Default)]
pub(super) struct Firewall {
    pub(super) mangle: String,
    pub(super) nat: String,
    pub(super) forward: String,
}

impl Site {
    pub(super) fn new(vpc: Vpc) -> Self {
        Self {
            node: vpc.node("master").clone(),
            far: vpc.node("worker1").clone(),
            vpc,
            doors: Arc::default(),
            cells: Vec::new(),
            firewall: Default::default(),
            told: Vec::new(),
            serving: Vec::new(),
            servers: None,
            hand_on: None,
            others: Vec::new(),
            wires: 0,
        }
    }

    /// Returns the node's address on a NIC.
    pub(super) fn near_address(&self, nic: &str, family: Family) -> IpAddr {
        self.vpc.nic("master", nic).primary(family)
    }

    /// Returns the node's router on a NIC.
    pub(super) fn gateway(&self, nic: &str, family: Family) -> IpAddr {
        self.vpc.nic("master", nic).subnet(family).gateway
    }

    /// Returns the far host's address.
    pub(super) fn far_address(&self, family: Family) -> IpAddr {
        self.vpc.nic("worker1", "ens5").primary(family)
    }

    /// Creates a namespace whose IPv6 addresses can be used at once.
    pub(super) fn namespace(&mut self, name: &str) -> Result<Netns> {
        let netns = Netns::new(name)?;
        netns.sysctls(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        self.others.push(netns.clone());
        Ok(netns)
    }

    /// Creates a veth pair, both ends up.
    pub(super) fn wire(
        &mut self,
        end: (&Netns, &str),
        peer: (&Netns, &str),
        mtu: u32,
    ) -> Result<()> {
        self.wires += 1;
        let mac = |side| -> Mac { [0x02, 0xc1, 0x0d, 0x99, side, self.wires] };
        let [near, far] = [(end, mac(1)), (peer, mac(2))].map(|((netns, name), mac)| VethEnd {
            netns,
            name,
            mac,
        });
        end.0.netlink()?.add_veth(&near, &far, mtu)?;
        peer.0.netlink()?.set_up(peer.1)
    }

    /// Connects `netns` to the wire of one of the node's NICs, beside the VPC's router, by its link `wire`.
    pub(super) fn on_the_wire(&self, nic: &str, netns: &Netns) -> Result<()> {
        let port = self.vpc.nic("master", nic).port();
        let lines = [
            format!("link add link {port} name wire type macvlan mode bridge"),
            format!("link set wire netns {}", netns.path().display()),
        ];
        batch(&self.vpc.router, Family::V4, &lines)
    }

    /// Returns an address that the VPC routes to one of the node's NICs and that no pod gets.
    pub(super) fn announced(&self, nic: &str) -> Result<IpAddr> {
        let secondary = &self.vpc.nic("master", nic).v4.secondary;
        secondary.last().copied().context("no secondary addresses")
    }

    /// Adds lines for `ip` in a namespace; [`Site::finish`] runs them all.
    pub(super) fn tell<L: Into<String>>(
        &mut self,
        netns: &Netns,
        family: Family,
        lines: impl IntoIterator<Item = L>,
    ) {
        let lines = lines.into_iter().map(Into::into);
        let mut told = self.told.iter_mut();
        match told.find(|(known, of, _)| known.name() == netns.name() && *of == family) {
            Some((_, _, known)) => known.extend(lines),
            None => self.told.push((netns.clone(), family, lines.collect())),
        }
    }

    /// Adds servers for TCP and UDP on an address; [`Site::finish`] starts them.
    pub(super) fn serve(&mut self, netns: &Netns, address: IpAddr, port: u16) {
        let address = SocketAddr::new(address, port);
        let each = Protocol::BOTH.map(|protocol| (netns.clone(), protocol, address));
        self.serving.extend(each);
    }

    /// Runs the lines, starts the servers, and installs the firewall.
    pub(super) fn finish(&mut self) -> Result<()> {
        let mut told = std::mem::take(&mut self.told);
        // IPv6 lines come last: they use links and addresses that the others make.
        told.sort_by_key(|(_, family, _)| *family == Family::V6);
        for (netns, family, lines) in told {
            batch(&netns, family, &lines)?;
        }
        let mut sockets = Vec::new();
        for (netns, protocol, address) in std::mem::take(&mut self.serving) {
            let bound = self.doors.open(&netns, move || bind(protocol, address));
            let bound = bound
                .with_context(|| format!("serving {protocol} on {address} in {}", netns.name()))?;
            sockets.push((protocol, bound));
        }
        self.servers = Some(Servers::start(sockets)?);
        self.close()
    }

    /// Adds a TCP server on every address and interface of the namespace, a VRF's included.
    pub(super) fn serve_any(&mut self, netns: &Netns, family: Family, port: u16) {
        let any = SocketAddr::new(family.any(), port);
        self.serving.push((netns.clone(), Protocol::Tcp, any));
    }

    /// Adds the cells of one client and server.
    pub(super) fn ask(&mut self, asking: &Asking<'_>, by: &[By]) {
        self.cells.extend(asking.cells(by));
    }

    /// Makes the firewall accept what the node forwards for the matching interface or network, in both directions.
    pub(super) fn accept(&mut self, family: Family, matching: [&str; 2]) {
        let forward = &mut self.firewall(family).forward;
        for one in matching {
            let _ = writeln!(forward, "-A FORWARD {one} -j ACCEPT");
        }
    }

    pub(super) fn firewall(&mut self, family: Family) -> &mut Firewall {
        &mut self.firewall[usize::from(family == Family::V6)]
    }

    /// Installs the firewall: what no rule accepts is not forwarded.
    fn close(&self) -> Result<()> {
        for (family, firewall) in Family::BOTH.into_iter().zip(&self.firewall) {
            let Firewall {
                mangle,
                nat,
                forward,
            } = firewall;
            let script = format!(
                "*mangle\n{mangle}COMMIT\n*nat\n{nat}COMMIT\n*filter\n:FORWARD DROP [0:0]\n\
                 -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n{forward}COMMIT\n"
            );
            iptables::restore(&self.node, family, &script)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("cells", &self.cells.len())
            .finish_non_exhaustive()
    }
}

/// A client and a server.
#[derive(Clone, Debug)]
pub(super) struct Asking<'a> {
    group: &'a str,
    name: String,
    client: &'a Netns,
    server: SocketAddr,
    source: Option<IpAddr>,
    device: Option<&'static str>,
    mark: Option<u32>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(
        group: &'a str,
        name: impl Display,
        client: &'a Netns,
        server: (IpAddr, u16),
    ) -> Self {
        Self {
            group,
            name: name.to_string(),
            client,
            server: server.into(),
            source: None,
            device: None,
            mark: None,
        }
    }

    pub(super) fn from(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    pub(super) fn by_device(self, device: &'static str) -> Self {
        Self {
            device: Some(device),
            ..self
        }
    }

    pub(super) fn marked(self, mark: u32) -> Self {
        Self {
            mark: Some(mark),
            ..self
        }
    }

    /// Returns a cell for each protocol.
    pub(super) fn cells(&self, by: &[By]) -> Vec<Cell> {
        by.iter()
            .map(|by| Cell {
                group: self.group.to_owned(),
                name: self.name.clone(),
                client: self.client.clone(),
                source: self.source,
                device: self.device,
                mark: self.mark,
                server: self.server,
                by: *by,
            })
            .collect()
    }
}

/// Runs all these lines by `ip`. Lines without an address are of `family`; addresses determine their own.
///
/// # Errors
/// If one fails; the error has its output and the line.
pub(super) fn batch(netns: &Netns, family: Family, lines: &[String]) -> Result<()> {
    let options: &[&str] = match family {
        Family::V4 => &["-batch", "-"],
        Family::V6 => &["-6", "-batch", "-"],
    };
    let mut child = netns
        .command("ip")
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may end before it has read everything; its error is handled below.
        let _ = stdin.write_all((lines.join("\n") + "\n").as_bytes());
    }
    let output = child.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("Command failed -:")?.parse().ok())
            .and_then(|number: usize| lines.get(number.checked_sub(1)?));
        bail!(
            "ip in {}: {}: {}",
            netns.name(),
            line.map_or("?", String::as_str),
            said.trim().replace('\n', "; ")
        );
    }
    Ok(())
}

/// Parses an address.
pub(super) fn address(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| format!("the address {text}"))
}
