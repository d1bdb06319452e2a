//! The floor: the kernel work of an ADD. It makes the objects of Ebbtide's own plan in one process, without exec,
//! socket, disk or decisions.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use ebbtide_kernel::{
    datapath::{Datapath, SendOptions},
    netlink::{
        Batch, direct::Direct, hooks::TcHooks, model::NamespacePlan, netns::Netns as Namespace,
        sysctl,
    },
    node::{self, Known, Nic, NicNetworks, NodeFacts, PoolNetwork, Rules},
    podnet::{self, Existing, NetworkSpec, PodAddress, PodNet, Sandbox},
};
use ebbtide_types::{Family, IpvlanMode, settings::Settings};
use ebbtide_vpc::netns::Netns;
use ipnet::Ipv4Net;

use super::{
    contender::{Contender, Pod},
    made_before::{INTERFACE, MTU, MadeBefore},
    testbed::{GATEWAY, NIC, SUBNET, Slave},
};

/// The floor on a node. What it pins is removed when it is dropped.
#[derive(Debug)]
pub struct Floor {
    node: Netns,
    slave: Slave,
    facts: NodeFacts,
    settings: Settings,
    master: u32,
    datapath: Datapath,
    before: Option<MadeBefore>,
    pins: PathBuf,
    next: AtomicU32,
    made: Mutex<HashMap<String, PodNet>>,
}

impl Floor {
    /// Loads the programs and reads the node's facts.
    ///
    /// # Errors
    /// If the kernel refuses the programs.
    pub fn new(node: &Netns, slave: Slave) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let pins = PathBuf::from(format!("/sys/fs/bpf/ebbtide-floor-{process}-{number}"));
        let settings = Settings::default();
        let (datapath, master) = node.run(|| {
            let datapath = Datapath::open(&pins, settings.marks(), settings.node_port_range)?;
            let links = Direct::open("in the node")?.links(&[NIC])?;
            let master = links.get(NIC).context("the node has no NIC")?.clone();
            Ok((datapath, master))
        })?;
        Ok(Self {
            node: node.clone(),
            slave,
            facts: NodeFacts {
                nics: vec![Nic {
                    mac: master.mac,
                    mtu: master.mtu,
                    addresses: vec!["10.77.0.2/16".parse()?, "2001:db8:77::2/64".parse()?],
                    ..Nic::named(NIC, master.ifindex)
                }],
                ..NodeFacts::default()
            },
            settings,
            master: master.ifindex,
            datapath,
            before: None,
            pins,
            next: AtomicU32::new(0),
            made: Mutex::default(),
        })
    }

    /// As [`Floor::new`], but behind an interface that another plugin has made, which is not part of the work.
    ///
    /// # Errors
    /// As [`Floor::new`].
    pub fn behind(before: MadeBefore, node: &Netns) -> Result<Self> {
        let mut floor = Self::new(node, Slave::Macvlan)?;
        floor.before = Some(before);
        Ok(floor)
    }

    pub(super) fn plan(&self, pod: &Pod) -> Result<PodNet> {
        let address = match self.before {
            Some(_) => MadeBefore::address(pod),
            None => {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                Ipv4Net::new_assert(Ipv4Addr::from(0x0a4d_c001 + number), 16)
            }
        };
        let netns = pod.netns.path();
        Ok(podnet::plan(
            &Sandbox {
                container_id: pod.container_id.clone(),
                interface: INTERFACE.to_owned(),
                netns_inode: Namespace::open(&netns)?.inode(),
                pid_namespace: None,
                netns,
                pod: "default/floor".to_owned(),
            },
            &Existing::default(),
            &NetworkSpec {
                master: NIC.to_owned(),
                mode: IpvlanMode::L3,
                made_before: self.before.as_ref().map(|_| MTU),
                ..NetworkSpec::named("floor")
            },
            &[PodAddress {
                address: address.into(),
                pool: "v4".to_owned(),
                gateway: Some(GATEWAY.parse()?),
                routes: Vec::new(),
            }],
            &self.facts,
            &self.settings,
        )?)
    }

    /// Applies the plan, on one thread that begins in the node and ends in the pod.
    pub(super) fn apply(&self, net: &PodNet) -> Result<()> {
        let veth = net.veth.as_ref().context("the plan has no veth")?;
        let namespace = Namespace::open(&net.netns)?;
        self.node.run(|| {
            let mut host = Direct::open("in the node")?;
            let mut batch = Batch::default();
            if let Some(ipvlan) = &net.ipvlan {
                self.slave
                    .add(&mut batch, ipvlan, self.master, namespace.raw_fd());
            }
            batch.add_veth(veth, namespace.raw_fd());
            host.run(batch)?;
            self.datapath
                .register(&net.ips(), net.number(), net.is_l3())?;
            let owned: Vec<(IpAddr, bool)> = net.ips().into_iter().map(|ip| (ip, true)).collect();
            self.datapath
                .host
                .register_pod(&owned, net.registered(), Some(self.master))?;
            self.half(&net.in_host, &[&veth.host_name], &net.alias, &mut host)?;
            Ok(())
        })?;
        namespace.run(|| {
            let mut pod = Direct::open("in the pod")?;
            let links = [veth.pod_name.as_str(), INTERFACE];
            self.half(&net.in_pod, &links, &net.alias, &mut pod)?;
            let found = pod.links(&[&veth.pod_name])?;
            let veth = found.get(&veth.pod_name).map(|link| link.ifindex);
            let how = SendOptions {
                veth,
                host_bypass: net.host_bypass,
                follows_tcp: false,
                metadata: 0,
                mac: None,
            };
            Ok(self.datapath.set_send_options(&net.ips(), how)?)
        })?
    }

    /// Applies the node's own part, which an agent makes when it starts: routes, rules and, if wanted, the programs on
    /// the NIC.
    pub(super) fn prepare(&self, programs: bool) -> Result<()> {
        let nic = self.facts.nic(NIC).context("the node has no NIC")?;
        let gateway: IpAddr = GATEWAY.parse()?;
        let behind = NicNetworks {
            pools: vec![PoolNetwork {
                subnet: SUBNET.parse()?,
                gateway: Some(gateway),
                routes: Vec::new(),
            }],
            defaults: vec![(Family::V4, Some(gateway))],
            ..NicNetworks::default()
        };
        let rules = Rules {
            settings: &self.settings,
            base: self.settings.rule_priority,
            foreign: &[],
        };
        let mut routing = node::nic_plan(nic, &behind, rules);
        routing.rules.extend(node::pods_rules(&self.facts, rules));
        let marks = self.datapath.host.marks();
        let known = Known {
            masters: [NIC.to_owned()].into(),
            ..Known::default()
        };
        let behind = |_: &Nic| behind.clone();
        let host = node::host_plan(
            &self.facts,
            &known,
            behind,
            &marks,
            None,
            |_| node::StrictRpFilter::default(),
            rules,
        );
        self.node.run(|| {
            let mut netlink = Direct::open("in the node")?;
            self.half(&routing, &[NIC], "", &mut netlink)?;
            if programs {
                self.datapath.host.set(&host.nics, None)?;
                self.half(&host.plan, &[NIC], "", &mut netlink)?;
            }
            Ok(())
        })
    }

    fn half(
        &self,
        plan: &NamespacePlan,
        links: &[&str],
        alias: &str,
        netlink: &mut Direct,
    ) -> Result<()> {
        sysctl::write_all(&plan.sysctls)?;
        let found = netlink.links(links)?;
        let index = |name: &String| {
            let link = found.get(name).with_context(|| format!("{name} is gone"));
            link.map(|link| link.ifindex)
        };
        let mut batch = Batch::default();
        for name in links {
            batch.set_up(name, index(&(*name).to_owned())?, Some(alias));
        }
        for object in &plan.addresses {
            batch.add_address(object, index(&object.link)?);
        }
        for object in &plan.neighbours {
            batch.add_neighbour(object, index(&object.link)?);
        }
        for object in &plan.routes {
            batch.add_route(object, index(&object.link)?);
        }
        for object in &plan.rules {
            batch.add_rule(object);
        }
        // As the agent: at the NIC by TCX, where the kernel has it.
        let (hooks, programs) = (TcHooks::default(), self.datapath.programs());
        for object in &plan.filters {
            let link = index(&object.link)?;
            let attached = self
                .datapath
                .attach_in_host(&mut batch, &hooks, &programs, object, link);
            attached.with_context(|| format!("attaching {object}"))?;
        }
        Ok(netlink.run(batch)?)
    }

    fn remove(&self, net: &PodNet) -> Result<()> {
        let veth = net.veth.as_ref().context("the plan has no veth")?;
        let namespace = Namespace::open(&net.netns)?;
        std::thread::scope(|scope| {
            let slave = scope.spawn(|| {
                let Some(ipvlan) = &net.ipvlan else {
                    return Ok(());
                };
                namespace.run(|| delete(&ipvlan.name, Direct::open("in the pod")?))?
            });
            let pair = self
                .node
                .run(|| delete(&veth.host_name, Direct::open("in the node")?));
            match slave.join() {
                Ok(slave) => pair.and(slave),
                Err(_) => bail!("the thread that removes the slave panicked"),
            }
        })?;
        Ok(self.datapath.unregister(&net.ips(), net.number())?)
    }
}

fn delete(name: &str, mut netlink: Direct) -> Result<()> {
    let found = netlink.links(&[name])?;
    let link = found.get(name).with_context(|| format!("{name} is gone"))?;
    let mut batch = Batch::default();
    batch.delete_link(name, link.ifindex);
    Ok(netlink.run(batch)?)
}

impl Contender for Floor {
    fn name(&self) -> String {
        match self.before {
            Some(_) => "floor, behind a macvlan: the kernel's work alone".to_owned(),
            None => "floor: the kernel's work alone".to_owned(),
        }
    }

    fn prepare(&self, pod: &Pod) -> Result<()> {
        self.before
            .as_ref()
            .map_or(Ok(()), |before| before.make(pod))
    }

    fn add(&self, pod: &Pod) -> Result<()> {
        let net = self.plan(pod)?;
        self.apply(&net)?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(pod.container_id.clone(), net);
        Ok(())
    }

    fn del(&self, pod: &Pod) -> Result<()> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let net = made.remove(&pod.container_id);
        drop(made);
        self.remove(&net.context("it was never added")?)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Nobody could handle the error.
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}
