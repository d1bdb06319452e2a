//! Clients that ask a pod without a pause while something happens to its node's agent.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use ebbtide_vpc::{
    edge::Listener,
    lab::Lab,
    netns::Netns,
    plan::{Family, Plan},
    pod::Pod,
    proxy::{self, Backend, ExternalTrafficPolicy, Service, Settings},
    traffic::{Client, Protocol, Server},
};

const POD_PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;

/// Clients of a pod from outside the VPC, one for each protocol.
///
/// Their requests come in by the NIC ens5, through a Service's NodePort with policy Local. With a pod on another NIC
/// their replies need marks and flow tables.
#[derive(Debug)]
pub struct SteadyClients {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<u32>>>,
    _servers: Vec<Server>,
}

impl SteadyClients {
    /// Starts a server in the pod, adds the Service, and starts the clients.
    ///
    /// # Errors
    /// If one of these fails.
    pub fn of(lab: &Lab, pod: &Pod) -> Result<Self> {
        let servers = Server::on_any(&pod.netns, POD_PORT)?;
        expose(lab, pod)?;
        let stop = Arc::new(AtomicBool::new(false));
        let clients = Protocol::BOTH
            .map(|protocol| ask_until(lab.vpc.world.clone(), protocol, Arc::clone(&stop)));
        Ok(Self {
            stop,
            clients: clients.into(),
            _servers: servers,
        })
    }

    /// Ends the clients, and asserts that every question was answered.
    ///
    /// # Errors
    /// If one was not.
    pub fn all_were_answered(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            let answered = client.join().map_err(|_| anyhow!("a client panicked"))??;
            ensure!(answered > 10, "only {answered} questions were asked");
        }
        Ok(())
    }
}

/// Adds a Service with policy Local for a pod on another NIC than the one that requests come in by.
fn expose(lab: &Lab, pod: &Pod) -> Result<()> {
    let mut services = Vec::new();
    let mut listeners = Vec::new();
    let nic = lab.vpc.nic("master", "ens5");
    for protocol in Protocol::BOTH {
        services.push(Service {
            name: format!("S-{protocol}"),
            protocol,
            cluster: "10.96.0.50:80".parse()?,
            node_port: Some(NODE_PORT),
            policy: ExternalTrafficPolicy::Local,
            masquerade: true,
            backends: vec![Backend {
                address: pod.socket(Family::V4, POD_PORT),
                node: pod.node.clone(),
            }],
        });
        listeners.push(Listener {
            protocol,
            port: NODE_PORT,
            target: SocketAddr::new(nic.primary(Family::V4), NODE_PORT),
        });
    }
    let settings = Settings {
        cluster_cidr: vec!["10.244.0.0/16".parse()?],
        ..Settings::default()
    };
    proxy::install(lab.vpc.node("master"), "master", &settings, &services)?;
    lab.vpc.edge.listen(&listeners)
}

/// Sends requests until it is told to stop; all must be answered.
fn ask_until(world: Netns, protocol: Protocol, stop: Arc<AtomicBool>) -> JoinHandle<Result<u32>> {
    let server = SocketAddr::new(Plan::load_balancer(Family::V4), NODE_PORT);
    thread::spawn(move || {
        let client = Client::new(&world, protocol).from_ip(Plan::client(Family::V4));
        let mut connection = client.connect(server)?;
        let mut answered = 0;
        while !stop.load(Ordering::Relaxed) {
            connection
                .ask()
                .with_context(|| format!("{protocol}, after {answered} answers"))?;
            answered += 1;
            // New connections as well: they need marks and flow tables anew.
            if answered % 10 == 0 {
                client.ask(server).context("a new connection")?;
            }
        }
        Ok(answered)
    })
}
