//! The setup of the demonstration: pods, servers, Services and load balancers.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use ebbtide_vpc::{
    edge::Listener,
    lab::Lab,
    netns::Netns,
    nic_programs,
    patience::IMPATIENCE,
    plan::{Family, Node, Plan},
    pod::Pod,
    proxy::{self, Backend, ExternalTrafficPolicy, Mode, NodePorts, Service, Settings},
    traffic::{Protocol, Server},
};

use super::{
    check::{Check, Line, paths},
    offers::{HOST_OFFERS, LOCAL_OTHER, OFFERS},
    table,
};

/// Port of the servers in pods.
pub(super) const POD_PORT: u16 = 8080;
/// Port of the servers on nodes and outside.
pub(super) const HOST_PORT: u16 = 9090;
/// The difference between a NodePort and the load balancer's port that leads to the node's second NIC.
pub(super) const BY_ENS6: u16 = 1000;

/// The load balancer's port that leads to the node's own servers on its second NIC.
pub(super) const HOST_BY_ENS6: u16 = 8106;

/// The pods that a load balancer reaches directly, and its port for each.
pub(super) const IP_TARGETS: [(&str, u16); 3] = [("a", 8101), ("c", 8102), ("e", 8103)];

/// The load balancer's port for the pod whose address was assigned while the demonstration ran.
pub(super) const ARRIVED: u16 = 8107;

/// The load balancer's ports for the pod `c`: a NodePort at the NIC that is not its own, and directly.
pub const WAYS_TO_C: [u16; 2] = [LOCAL_OTHER.node_port, IP_TARGETS[1].1];

/// The node port of a Service of policy Local whose pod is on `master`.
pub const LOCAL_AT_MASTER: u16 = LOCAL_OTHER.node_port;

/// Name, node and NIC of each pod.
const PODS: [(&str, &str, &str); 5] = [
    ("a", "master", "ens5"),
    ("b", "master", "ens5"),
    ("c", "master", "ens6"),
    ("d", "worker1", "ens5"),
    ("e", "worker1", "ens6"),
];

/// The setup. It must be dropped before the lab.
#[derive(Debug)]
pub struct Scenario {
    pods: Vec<Pod>,
    /// The families that the pods have.
    pub(super) families: &'static [Family],
    pub(super) master: Netns,
    pub(super) world: Netns,
    pub(super) plan: Plan,
    servers: Vec<Server>,
}

impl Scenario {
    /// Creates pods, servers, Services and load balancers.
    ///
    /// # Errors
    /// If an object cannot be created; the error names it.
    pub fn create(lab: &Lab) -> Result<Self> {
        Self::served_by(lab, Mode::default())
    }

    /// As [`Scenario::create`], with the Service proxy in this mode.
    ///
    /// # Errors
    /// If an object cannot be created; the error names it.
    pub fn served_by(lab: &Lab, mode: Mode) -> Result<Self> {
        let pods = PODS
            .iter()
            .map(|(name, node, nic)| lab.pod(node, nic, name))
            .collect::<Result<Vec<Pod>>>()?;
        let has = |pod: &Pod, family| pod.addresses.iter().any(|ip| Family::of(*ip) == family);
        let families: &[Family] = match pods.iter().all(|pod| has(pod, Family::V6)) {
            true => &Family::BOTH,
            false => &[Family::V4],
        };
        let mut servers = Vec::new();
        for pod in &pods {
            servers.extend(Server::on_any(&pod.netns, POD_PORT)?);
        }
        let plan = lab.vpc.plan.clone();
        let master = lab.vpc.node("master");
        for nic in plan.nics() {
            for family in Family::BOTH {
                let node = lab.vpc.node(&nic.node);
                servers.extend(Server::on(node, nic.primary(family), HOST_PORT)?);
            }
        }
        for family in Family::BOTH {
            let web = Plan::web_server(family);
            servers.extend(Server::on(&lab.vpc.world, web, HOST_PORT)?);
        }
        let scenario = Self {
            pods,
            families,
            master: master.clone(),
            world: lab.vpc.world.clone(),
            plan,
            servers,
        };
        scenario.serve(lab, mode, |_| NodePorts::Everywhere)?;
        lab.vpc.edge.listen(&scenario.listeners())?;
        Ok(scenario)
    }

    /// Adds a pod that came later, as a target of the load balancer, and returns its rows.
    pub(super) fn add(&mut self, lab: &Lab, pod: Pod) -> Result<[Check; 2]> {
        self.servers.extend(Server::on_any(&pod.netns, POD_PORT)?);
        let mut listeners = Vec::new();
        for family in self.families.iter().copied() {
            let target = pod.socket(family, POD_PORT);
            listeners.extend(Protocol::BOTH.map(|protocol| Listener {
                protocol,
                port: ARRIVED,
                target,
            }));
        }
        lab.vpc.edge.listen(&listeners)?;
        let name = pod.name.clone();
        self.pods.push(pod);
        Ok(table::arrived(self, &name))
    }

    /// Installs the Service proxy on all nodes, in this mode and with node ports at these addresses of each node.
    ///
    /// # Errors
    /// If iptables or nft fails; the error has its output.
    pub fn serve(
        &self,
        lab: &Lab,
        mode: Mode,
        node_ports: impl Fn(&Node) -> NodePorts,
    ) -> Result<()> {
        let services = self.services();
        for node in &self.plan.nodes {
            // Pods have addresses of the VPC, which are outside of any cluster CIDR, so kube-proxy masquerades what
            // they send to a ClusterIP.
            let settings = Settings {
                mode,
                cluster_cidr: vec!["10.244.0.0/16".parse()?, "fd00:10:244::/56".parse()?],
                service_cidr: vec!["10.96.0.0/16".parse()?, "fd00:10:96::/112".parse()?],
                node_ports: node_ports(node),
            };
            proxy::install(lab.vpc.node(&node.name), &node.name, &settings, &services)
                .with_context(|| format!("installing the Service proxy on {}", node.name))?;
        }
        Ok(())
    }

    fn services(&self) -> Vec<Service> {
        let mut services = Vec::new();
        for family in self.families.iter().copied() {
            let letter = match family {
                Family::V4 => "4",
                Family::V6 => "6",
            };
            for protocol in Protocol::BOTH {
                for offer in &OFFERS {
                    let pod = self.pod(offer.pod);
                    services.push(Service {
                        name: format!("{}-{protocol}{letter}", offer.name),
                        protocol,
                        cluster: offer.cluster(family),
                        node_port: Some(offer.node_port),
                        policy: offer.policy,
                        masquerade: offer.masquerade,
                        backends: vec![Backend {
                            address: pod.socket(family, POD_PORT),
                            node: pod.node.clone(),
                        }],
                    });
                }
                for offer in &HOST_OFFERS {
                    let address = self.nic(offer.node, offer.nic, family);
                    services.push(Service {
                        name: format!("{}-{protocol}{letter}", offer.name),
                        protocol,
                        cluster: offer.cluster(family),
                        node_port: None,
                        policy: ExternalTrafficPolicy::Cluster,
                        masquerade: offer.masquerade,
                        backends: vec![Backend {
                            address: SocketAddr::new(address, HOST_PORT),
                            node: offer.node.into(),
                        }],
                    });
                }
            }
        }
        services
    }

    /// Returns the listeners of the load balancer.
    fn listeners(&self) -> Vec<Listener> {
        let mut listeners = Vec::new();
        for family in self.families.iter().copied() {
            for protocol in Protocol::BOTH {
                let mut lead = |port, target| {
                    listeners.push(Listener {
                        protocol,
                        port,
                        target,
                    });
                };
                let second = self.nic("master", "ens6", family);
                for offer in &OFFERS {
                    for (nic, further) in [("ens5", 0), ("ens6", BY_ENS6)] {
                        let node = self.nic("master", nic, family);
                        let target = SocketAddr::new(node, offer.node_port);
                        lead(offer.node_port + further, target);
                    }
                }
                lead(HOST_BY_ENS6, SocketAddr::new(second, HOST_PORT));
                for (pod, port) in IP_TARGETS {
                    lead(port, self.pod(pod).socket(family, POD_PORT));
                }
            }
        }
        listeners
    }

    /// Returns the title of the step that runs the rows.
    pub(super) fn title(&self) -> String {
        let families: Vec<String> = self.families.iter().map(ToString::to_string).collect();
        format!("sending traffic of every kind, {}", families.join(" and "))
    }

    /// Returns every row of the table.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        table::checks(self)
    }

    /// Returns the rows that only source-NIC enforcement makes work, by redirecting to the right NIC: a server of the
    /// node itself on its second NIC, and a pod whose programs were detached.
    ///
    /// # Errors
    /// If the pod's programs cannot be detached.
    pub fn by_enforcement(&self) -> Result<[Check; 2]> {
        let pod = self.pod(LOCAL_OTHER.pod);
        pod.detach_programs()?;
        // Strict filtering would drop the unmarked request before there could be a wrong reply.
        pod.netns.sysctls(&[
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/veth0/rp_filter", "0"),
        ])?;
        Ok(table::by_enforcement(self))
    }

    /// Returns the row of a NodePort at the other NIC, without Ebbtide's programs: it must fail, and the VPC must have
    /// counted the wrong reply.
    ///
    /// # Errors
    /// If the programs cannot be detached, or the VPC's counters cannot be read.
    pub fn detached(&self, lab: &mut Lab) -> Result<Line> {
        // An agent would attach them again.
        lab.agent("master").stop()?;
        let line = self.without_programs(lab)?;
        lab.agent("master").launch()?;
        lab.agent("master").wait_ready()?;
        Ok(line)
    }

    fn without_programs(&self, lab: &Lab) -> Result<Line> {
        let pod = self.pod(LOCAL_OTHER.pod);
        pod.detach_programs()?;
        let bpf = lab.agents().find(|agent| agent.node() == "master");
        let bpf = bpf.context("there is no agent on master")?.bpf();
        for link in ["ens5", "ens6", &pod.host_interface] {
            nic_programs::take_off(&self.master, link, bpf)?;
        }
        let before = lab.vpc.dropped_at("master", "ens6")?;
        let check = Check {
            patience: IMPATIENCE,
            ..table::node_port_local(self, &LOCAL_OTHER, "ens5")
        };
        let mut line = check.run(lab, false);
        let dropped = lab.vpc.dropped_at("master", "ens6")? - before;
        let answered: Vec<String> = line
            .exchanges
            .iter()
            .filter(|exchange| exchange.latency_us.is_some())
            .map(|exchange| format!("{} {}", exchange.family, exchange.transport))
            .collect();
        line.traffic = "… programs detached".into();
        line.expected_failure = true;
        line.path = paths(&line.exchanges);
        line.ok = answered.is_empty() && dropped > 0;
        line.note = if line.ok {
            format!("{dropped} frames dropped by the VPC at master/ens6")
        } else {
            format!("answered: {answered:?}, {dropped} frames dropped by the VPC at master/ens6")
        };
        Ok(line)
    }

    /// Returns the namespace of a pod.
    #[must_use]
    pub fn netns_of(&self, pod: &str) -> &Netns {
        &self.pod(pod).netns
    }

    /// Returns the address of a pod's server.
    #[must_use]
    pub fn address_of(&self, pod: &str, family: Family) -> SocketAddr {
        self.pod(pod).socket(family, POD_PORT)
    }

    /// Returns a pod.
    pub(super) fn pod(&self, name: &str) -> &Pod {
        match self.pods.iter().find(|pod| pod.name == name) {
            Some(pod) => pod,
            None => panic!("the demonstration has no pod {name}"),
        }
    }

    /// Returns an address of a node.
    pub(super) fn nic(&self, node: &str, nic: &str, family: Family) -> IpAddr {
        match self.plan.node(node).and_then(|node| node.nic(nic)) {
            Some(nic) => nic.primary(family),
            None => panic!("the plan has no NIC {node}/{nic}"),
        }
    }

    /// Deletes all pods through the plugin.
    ///
    /// # Errors
    /// If the plugin fails; the error is the plugin's.
    pub fn delete(self) -> Result<()> {
        let mut failed = Vec::new();
        for pod in self.pods {
            if let Err(error) = pod.delete() {
                failed.push(format!("{error:#}"));
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.join("; "));
        }
        Ok(())
    }
}
