//! The source of what the node itself sends to its pods, while a link of the node has addresses that are pods', or for them.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};
use ipnet::IpNet;

const NODE: &str = "master";
const PORT: u16 = 8080;
const NICS: [&str; 2] = ["ens5", "ens6"];

fn ip_all(node: &Netns, commands: &[String]) -> Result<()> {
    for command in commands {
        ip(node, &command.split(' ').collect::<Vec<_>>()).with_context(|| command.clone())?;
    }
    Ok(())
}

/// A node with pods on two NICs.
struct Site {
    lab: Lab,
    pods: [Pod; 2],
    _served: Vec<Server>,
}

impl Site {
    fn start() -> Result<Self> {
        let lab = Lab::start(Plan::default())?;
        let pods = [lab.pod(NODE, "ens5", "one")?, lab.pod(NODE, "ens6", "two")?];
        let mut served = Vec::new();
        for pod in &pods {
            served.extend(Server::on_any(&pod.netns, PORT)?);
        }
        Ok(Self {
            lab,
            pods,
            _served: served,
        })
    }

    fn node(&self) -> &Netns {
        self.lab.vpc.node(NODE)
    }

    fn primary(&self, nic: &str, family: Family) -> IpNet {
        self.lab.vpc.nic(NODE, nic).subnet(family).primary
    }

    /// Returns the source of a new connection of the node's, as `ip route get` has it.
    fn told(&self, pod: &Pod, family: Family) -> Result<IpAddr> {
        let to = pod.socket(family, PORT).ip().to_string();
        let way = ip(self.node(), &["route", "get", &to])?;
        let mut words = way.split_whitespace().skip_while(|word| *word != "src");
        Ok(words.nth(1).with_context(|| way.clone())?.parse()?)
    }

    /// Returns the source of a new connection of the node's, as the pod sees it and as `ip route get` has it.
    fn source(&self, pod: &Pod, family: Family) -> Result<IpAddr> {
        let to = pod.socket(family, PORT);
        let told = self.told(pod, family)?;
        for protocol in Protocol::BOTH {
            let answer = Client::new(self.node(), protocol).ask(to);
            let answer = answer.with_context(|| format!("{protocol} {family}, from {told}"))?;
            let seen = answer.seen_as.ip();
            ensure!(
                seen == told,
                "{protocol}: {seen}, but the route says {told}"
            );
        }
        Ok(told)
    }

    /// Returns the sources to each pod, by each family.
    fn each(&self, source: fn(&Self, &Pod, Family) -> Result<IpAddr>) -> Result<Vec<IpAddr>> {
        let all = self.pods.iter();
        let all = all.flat_map(|pod| Family::BOTH.map(|family| (pod, family)));
        all.map(|(pod, family)| source(self, pod, family)).collect()
    }

    fn sources(&self) -> Result<Vec<IpAddr>> {
        self.each(Self::source)
    }

    fn eventually_from(&self, what: &str, expected: &[IpAddr]) -> Result<()> {
        eventually(format!("{what}: the sources are {expected:?}"), || {
            // Before it is so, a connection may begin with an address that is gone, and wait for an answer for ever.
            let told = self.each(Self::told)?;
            ensure!(told == expected, "{told:?}");
            let found = self.sources()?;
            ensure!(found == expected, "{found:?}");
            Ok(())
        })
        .with_context(|| {
            let node = self.node();
            let addresses = ip(node, &["address"]).unwrap_or_default();
            let routes = ip(node, &["route", "show", "table", "7700"]).unwrap_or_default();
            let v6 = ip(node, &["-6", "route", "show", "table", "7700"]).unwrap_or_default();
            format!("{addresses}\n{routes}\n{v6}\n{}", self.lab.logs())
        })
    }

    /// Returns which of the pods' routes name a source.
    fn named(&self) -> Result<String> {
        let mut named = String::new();
        for family in ["-4", "-6"] {
            let all = ip(self.node(), &[family, "route", "show", "table", "7700"])?;
            let with = all.lines().filter(|line| line.contains(" src "));
            named.extend(with.map(|line| format!("{line}\n")));
        }
        Ok(named)
    }

    /// Changes addresses on the node's NICs.
    fn change(&self, verb: &str, addresses: &[(&str, IpNet)]) -> Result<()> {
        let command = |(nic, address): &(&str, IpNet)| {
            let nodad = match (verb, address) {
                ("add", IpNet::V6(_)) => " nodad",
                _ => "",
            };
            format!("address {verb} {address} dev {nic}{nodad}")
        };
        ip_all(
            self.node(),
            &addresses.iter().map(command).collect::<Vec<_>>(),
        )
    }

    /// Takes each NIC's primary addresses away and gives them back, behind all others; as a network manager does.
    fn configure_again(&self) -> Result<()> {
        for nic in NICS {
            let own = Family::BOTH.map(|family| (nic, self.primary(nic, family)));
            self.change("del", &own)?;
            self.change("add", &own)?;
        }
        Ok(())
    }
}

#[test]
fn it_is_the_primary_address_of_the_pods_nic_while_the_node_has_addresses_of_pods() -> Result<()> {
    let site = Site::start()?;
    let before = site.sources().context("without any")?;
    ensure!(site.named()?.is_empty(), "{}", site.named()?);
    let primaries: Vec<IpAddr> = NICS
        .into_iter()
        .flat_map(|nic| Family::BOTH.map(|family| site.primary(nic, family).addr()))
        .collect();
    let spare = |nic: &'static str, family: Family| -> Result<(&'static str, IpNet)> {
        let all = &site.lab.vpc.nic(NODE, nic).subnet(family).secondary;
        let is_free = |own: &&IpAddr| site.pods.iter().all(|pod| !pod.addresses.contains(own));
        let free = all.iter().find(is_free).context("no spare address")?;
        Ok((nic, IpNet::from(*free)))
    };
    let mut spares = Vec::new();
    for nic in NICS {
        for family in Family::BOTH {
            spares.push(spare(nic, family)?);
        }
    }
    let held: Vec<(&str, IpNet)> = NICS
        .into_iter()
        .zip(&site.pods)
        .flat_map(|(nic, pod)| pod.addresses.iter().map(move |own| (nic, (*own).into())))
        .collect();
    for (what, addresses) in [("spare", &spares), ("held", &held)] {
        site.change("add", addresses)?;
        site.eventually_from(what, &primaries)?;
        site.configure_again()?;
        site.eventually_from(&format!("{what}, configured again"), &primaries)?;
        site.change("del", addresses)?;
        site.configure_again()?;
        eventually("no route names a source", || {
            let named = site.named()?;
            ensure!(named.is_empty(), "{named}");
            Ok(())
        })
        .with_context(|| site.lab.logs())?;
        site.eventually_from(&format!("after {what}"), &before)?;
    }
    Ok(())
}

/// The kernel leaves an IPv4 route with a source that is gone, and takes the source from an IPv6 one.
#[test]
fn it_follows_the_primary_address() -> Result<()> {
    let site = Site::start()?;
    let held: Vec<(&str, IpNet)> = site.pods[0]
        .addresses
        .iter()
        .map(|own| ("ens5", (*own).into()))
        .collect();
    site.change("add", &held)?;
    let of = |nic| Family::BOTH.map(|family| site.primary(nic, family));
    let from = |one: [IpNet; 2], two: [IpNet; 2]| {
        [one, two]
            .concat()
            .iter()
            .map(IpNet::addr)
            .collect::<Vec<_>>()
    };
    site.eventually_from("at first", &from(of("ens5"), of("ens6")))?;
    let primary = of("ens6").map(|own| ("ens6", own));
    site.change("del", &primary)?;
    site.eventually_from("ens6 has none", &from(of("ens5"), of("ens5")))?;
    let others = of("ens6").map(|own| match own {
        IpNet::V4(v4) => IpNet::new((u32::from(v4.addr()) + 90).to_be_bytes().into(), 24),
        IpNet::V6(v6) => IpNet::new((u128::from(v6.addr()) + 90).to_be_bytes().into(), 64),
    });
    let [v4, v6] = others;
    let others = [v4?, v6?];
    site.change("add", &others.map(|own| ("ens6", own)))?;
    site.eventually_from("another one", &from(of("ens5"), others))?;
    site.change("add", &primary)?;
    // What came first is the NIC's.
    site.eventually_from("both", &from(of("ens5"), others))?;
    site.change("del", &others.map(|own| ("ens6", own)))?;
    site.eventually_from("as at first", &from(of("ens5"), of("ens6")))
}
