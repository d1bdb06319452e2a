//! Makes the pods, has everybody ask, and reads the programs' counters before and after each group.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use ebbtide_agent::{
    probe::{Asking, Exchange, Protocol, Question},
    query::{HookLine, PodLine, TraceLine},
};

use super::{
    super::{
        at_once::some_at_once,
        cluster::{Held, PODS, SERVICES, Which},
    },
    Options,
    judge::{self, Row},
    left_by,
    live::{Live, Started},
    objects::{self, Image},
    plan::{self, Asker, Check, Family, Group, Policy, Target, TestPod, Traced},
    progress,
    report::WrongNic,
    site::{Place, Site, place},
    topology::Topology,
};

/// The number of steps: before the groups, the groups, and the removal.
pub(super) const STEPS: usize = Group::ALL.len() + 3;

/// The pause between two looks at pods that start.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the Service proxies may take until they know the Services.
const PROXIES: Duration = Duration::from_secs(45);

/// The longest that one asker may ask in one group.
const LONGEST: Duration = Duration::from_secs(300);

/// How many exchanges with a Service have to be answered: each may go to another backend, by another way.
const OF_A_SERVICE: u32 = 4;

/// How many questions a client asks at once.
const AT_ONCE: u64 = 8;

/// How long a trace lasts, and how long its client asks: an exec takes a while until it runs.
const TRACE: Duration = Duration::from_secs(12);
const TRACE_ASKED: Duration = Duration::from_secs(16);

/// How often a trace is tried: its client may have begun too late.
const TRACES: usize = 2;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct All {
    pub(super) pods: Vec<Started>,
    pub(super) rows: Vec<Row>,
    pub(super) wrong_nic: BTreeMap<Group, WrongNic>,
    pub(super) notes: Vec<String>,
}

/// Packets at wrong NICs, by node: redirected, and passed; `None` if they could not be read.
type Counted = Vec<Option<(u64, u64)>>;

/// Runs the whole test, except for the removal.
pub(super) fn everything(
    site: &Site,
    topology: &Topology,
    checks: &[Check],
    image: &Image,
    options: &Options,
) -> anyhow::Result<All> {
    progress(1, "pods start");
    let test = Test {
        site,
        topology,
        options,
    };
    let mut live = test.start(image)?;
    let mut all = All::default();
    for started in &live.pods {
        let row = Row::new(Group::PodsStart, started.pod.to_string(), String::new());
        all.rows.push(match started.trouble.is_empty() {
            true => Row {
                detail: format!("{} {:?}", started.name, started.addresses),
                ..row
            },
            false => row.failed(started.trouble.clone()),
        });
    }
    let _servers = test.serve(&mut live, &mut all.notes);
    test.wait_for_proxies(&live);
    let mut before = test.counted();
    for (number, group) in Group::ALL.into_iter().enumerate() {
        let of_group: Vec<&Check> = checks.iter().filter(|check| check.group == group).collect();
        match group {
            Group::ReplyNic if options.no_trace => continue,
            Group::ReplyNic => {
                progress(number + 2, group.title());
                all.rows.extend(test.trace(&live, &mut all.notes));
            }
            _ if of_group.is_empty() => continue,
            _ => {
                progress(number + 2, group.title());
                let (rows, lost) = test.group(&live, &of_group);
                all.rows.extend(rows);
                if lost > 0 {
                    all.notes.push(format!(
                        "{}: {lost} clients on other nodes were seen by another address than their own: the Service proxy counts them as of its cluster, or translates all",
                        group.title()
                    ));
                }
            }
        }
        let after = test.counted();
        all.wrong_nic
            .insert(group, test.difference(&before, &after));
        before = after;
    }
    all.pods = live.pods;
    Ok(all)
}

/// What every step needs.
struct Test<'a> {
    site: &'a Site,
    topology: &'a Topology,
    options: &'a Options,
}

impl Test<'_> {
    fn networks(&self) -> Vec<String> {
        let networks = self.topology.networks.iter();
        networks.map(|network| network.name.clone()).collect()
    }

    /// Makes everything, and waits until the pods run.
    fn start(&self, image: &Image) -> anyhow::Result<Live> {
        let pods = objects::pod_names(&plan::pods(self.topology));
        let networks = self.networks();
        let (cluster, namespace) = (&self.site.cluster, self.site.namespace.as_str());
        self.site.make(&pods, &networks, image)?;
        let mut live = Live::default();
        let end = Instant::now() + Duration::from_secs(self.options.start_timeout);
        loop {
            live.read_pods(&pods, &cluster.get(PODS, Some(namespace), Which::All)?);
            let are_ready = live.pods.iter().all(|pod| pod.trouble.is_empty());
            if are_ready || Instant::now() >= end {
                break;
            }
            thread::sleep(PAUSE);
        }
        if live.pods.iter().all(|pod| !pod.trouble.is_empty()) {
            let why = live.pods.first().map_or("", |pod| pod.trouble.as_str());
            bail!(
                "no pod of the test runs after {} s: {why}",
                self.options.start_timeout
            );
        }
        let services = cluster.get(SERVICES, Some(namespace), Which::All)?;
        live.read_services(&networks, &services);
        let api_server = cluster.get(SERVICES, Some("default"), Which::Named("kubernetes"))?;
        live.read_api_server(&api_server);
        Ok(live)
    }

    /// Starts a server on each node's own network.
    fn serve(&self, live: &mut Live, notes: &mut Vec<String>) -> Vec<Held> {
        let nodes = &self.topology.nodes;
        let started = some_at_once(nodes, |node| self.site.serve(node));
        let mut servers = Vec::new();
        for (node, started) in nodes.iter().zip(started) {
            match started {
                Ok((server, port)) => {
                    live.node_servers.insert(node.name.clone(), port);
                    servers.push(server);
                }
                Err(e) => notes.push(format!(
                    "{}: no server on its own network: {e:#}",
                    node.name
                )),
            }
        }
        servers
    }

    /// Waits until the nodes' Service proxies know the Services. If they never do, the rows say so.
    fn wait_for_proxies(&self, live: &Live) {
        let nodes = &self.topology.nodes;
        some_at_once(nodes, |node| {
            // One address of each Service is enough: a proxy learns all of it at once.
            let mut servers = BTreeMap::new();
            for target in plan::node_ports(node, &self.topology.networks) {
                if let Target::NodePort {
                    network,
                    policy,
                    address,
                    ..
                } = &target
                    && let Some(server) = live.resolve(&target, Family::of(*address), Protocol::Tcp)
                {
                    let service = (network.clone(), *policy);
                    servers.entry(service).or_insert(server);
                }
            }
            let question = |(id, server): (u32, SocketAddr)| Question {
                id,
                protocol: Protocol::Tcp,
                server,
                times: 1,
            };
            let asking = Asking {
                questions: (0..).zip(servers.into_values()).map(question).collect(),
                tries: u32::MAX,
                timeout: 2000,
                deadline: millis(PROXIES),
                repeat: false,
            };
            self.site.ask(&Place::Agent(node.agent.clone()), &asking)
        });
    }

    /// Has everybody ask the questions of a group. Returns as well how many clients' addresses were not kept that should be.
    fn group(&self, live: &Live, checks: &[&Check]) -> (Vec<Row>, usize) {
        let mut by_asker: BTreeMap<&Asker, Vec<(&Check, SocketAddr)>> = BTreeMap::new();
        let (mut rows, mut lost) = (Vec::new(), 0);
        for check in checks {
            if let Some(why) = self.is_out(live, check) {
                rows.push(Row::of(check, None).skipped(why));
            } else if live.speaks(&check.from, check.family)
                && let Some(server) = live.resolve(&check.to, check.family, check.protocol)
            {
                by_asker
                    .entry(&check.from)
                    .or_default()
                    .push((check, server));
            }
        }
        let askers: Vec<_> = by_asker.into_iter().collect();
        let answers = some_at_once(&askers, |(asker, questions)| {
            let name = |pod: &TestPod| live.pod(pod).map(|pod| pod.name.clone());
            let place = place(asker, &self.topology.nodes, name).context("nobody asks")?;
            self.site.ask(&place, &self.asking(questions))
        });
        for ((_, questions), answers) in askers.iter().zip(answers) {
            let answers: Result<Vec<Exchange>, String> = answers.map_err(|e| format!("{e:#}"));
            for (id, (check, server)) in (0..).zip(questions) {
                let row = Row::of(check, Some(*server));
                let row = match &answers {
                    Err(why) => row.failed(why.clone()),
                    Ok(answers) => match answers.iter().find(|answer| answer.id == id) {
                        Some(answer) => judge::judge(check, *server, answer, live, self.topology),
                        None => row.failed("nothing was told".to_owned()),
                    },
                };
                lost += usize::from(judge::should_keep(check) && row.address_kept == Some(false));
                rows.push(row);
            }
        }
        (rows, lost)
    }

    /// Returns why a check cannot be asked: what it needs does not run.
    fn is_out(&self, live: &Live, check: &Check) -> Option<String> {
        let trouble = |pod: &TestPod| {
            let started = live.pod(pod)?;
            (!started.trouble.is_empty()).then(|| format!("the {pod} does not run"))
        };
        let from = match &check.from {
            Asker::Pod(pod) => trouble(pod),
            Asker::Node(_) => None,
        };
        from.or_else(|| match &check.to {
            Target::Pod(pod) => trouble(pod),
            Target::Node { node, .. }
                if check.protocol != Protocol::Icmp && !live.node_servers.contains_key(node) =>
            {
                Some(format!("no server could be started on {node}"))
            }
            Target::NodePort {
                policy: Policy::Local,
                node,
                network,
                ..
            } => trouble(&TestPod {
                node: node.clone(),
                network: network.clone(),
            }),
            _ => None,
        })
    }

    fn asking(&self, questions: &[(&Check, SocketAddr)]) -> Asking {
        let (tries, timeout) = (self.options.tries, self.options.timeout * 1000);
        let question = |(id, (check, server)): (u32, &(&Check, SocketAddr))| Question {
            id,
            protocol: check.protocol,
            server: *server,
            times: match check.to {
                Target::ClusterIp { .. } | Target::NodePort { .. } => OF_A_SERVICE,
                _ => 1,
            },
        };
        let rounds = u64::try_from(questions.len())
            .unwrap_or(u64::MAX)
            .div_ceil(AT_ONCE);
        // Each has two exchanges, and pauses between tries.
        let worst = rounds * u64::from(tries) * (2 * timeout + 500);
        Asking {
            questions: (0..).zip(questions).map(question).collect(),
            tries,
            timeout,
            deadline: worst.min(millis(LONGEST)),
            repeat: false,
        }
    }

    /// Reads how many packets were at a wrong NIC, of each node.
    fn counted(&self) -> Counted {
        let counted = some_at_once(&self.topology.nodes, |node| {
            let lines: Vec<HookLine> = self.site.cluster.ebbtidectl(&node.agent, &["datapath"])?;
            Ok(lines.iter().fold((0, 0), |(redirected, passed), line| {
                let lost = line.wrong_nic_passed;
                (
                    redirected + line.wrong_nic.saturating_sub(lost),
                    passed + lost,
                )
            }))
        });
        counted.into_iter().map(Result::ok).collect()
    }

    fn difference(&self, before: &Counted, after: &Counted) -> WrongNic {
        let mut wrong = WrongNic::default();
        for ((node, before), after) in self.topology.nodes.iter().zip(before).zip(after) {
            match (before, after) {
                (Some(before), Some(after)) => {
                    wrong.redirected += after.0.saturating_sub(before.0);
                    wrong.passed += after.1.saturating_sub(before.1);
                }
                _ => wrong.unknown.push(node.name.clone()),
            }
        }
        wrong
    }

    /// Traces each pod while another node's pod asks it in every way: on each node one after the other.
    fn trace(&self, live: &Live, notes: &mut Vec<String>) -> Vec<Row> {
        let traces = plan::traces(self.topology);
        if traces.is_empty() {
            notes.push(
                "with one node nobody asks by its NICs: no trace of the NICs that replies leave by"
                    .to_owned(),
            );
        }
        let rows = some_at_once(&self.topology.nodes, |node| {
            let of_node = traces.iter().filter(|traced| traced.pod.node == node.name);
            let pods: Vec<PodLine> = self
                .site
                .cluster
                .ebbtidectl(&node.agent, &["pods"])
                .unwrap_or_default();
            let mut rows = Vec::new();
            for traced in of_node {
                for family in Family::ALL {
                    rows.extend(self.traced(live, traced, &pods, &node.agent, family));
                }
            }
            Ok(rows)
        });
        rows.into_iter().filter_map(Result::ok).flatten().collect()
    }

    fn traced(
        &self,
        live: &Live,
        traced: &Traced,
        pods: &[PodLine],
        agent: &str,
        family: Family,
    ) -> Vec<Row> {
        let address = |pod: &TestPod| -> Option<(String, IpAddr)> {
            let started = live.pod(pod).filter(|pod| pod.trouble.is_empty())?;
            let mut addresses = started.addresses.iter();
            let address = addresses.find(|address| Family::of(**address) == family)?;
            Some((started.name.clone(), *address))
        };
        let (Some((pod, _)), Some((client, peer))) =
            (address(&traced.pod), address(&traced.client))
        else {
            return Vec::new();
        };
        let full_name = format!("{}/{pod}", self.site.namespace);
        let own = pods.iter().find(|line| line.pod == full_name);
        let own = own.map(|line| line.master.as_str());
        let expected = left_by::expected(traced, own, self.topology, live, family);
        let mut rows = Vec::new();
        for _ in 0..TRACES {
            let lines = self.follow(agent, &full_name, &client, peer, &expected);
            let again = match lines {
                Ok(lines) => left_by::judge(traced, peer, &expected, &lines),
                Err(e) => {
                    let row = Row::new(
                        Group::ReplyNic,
                        traced.client.to_string(),
                        traced.pod.to_string(),
                    );
                    vec![Row {
                        family: Some(family),
                        ..row.failed(format!("trace it: {e:#}"))
                    }]
                }
            };
            rows = left_by::once_more(rows, again);
            if rows.iter().all(left_by::is_seen) {
                break;
            }
        }
        rows
    }

    /// Traces a pod while its client asks, and returns the programs' lines.
    fn follow(
        &self,
        agent: &str,
        pod: &str,
        client: &str,
        peer: IpAddr,
        expected: &[left_by::Expected],
    ) -> anyhow::Result<Vec<TraceLine>> {
        let asking = Asking {
            questions: left_by::questions(expected),
            tries: 1,
            timeout: 2000,
            deadline: millis(TRACE_ASKED),
            repeat: true,
        };
        let (peer, seconds) = (peer.to_string(), TRACE.as_secs().to_string());
        let words = [
            "ebbtidectl",
            "-o",
            "json",
            "trace",
            pod,
            "--peer",
            &peer,
            "--duration",
            &seconds,
        ];
        let text = thread::scope(|scope| {
            // What it is answered, the other groups tell.
            scope.spawn(|| self.site.ask(&Place::Pod(client.to_owned()), &asking));
            {
                let cluster = &self.site.cluster;
                cluster.run(cluster.agent(agent), &words, b"", TRACE * 6)
            }
        })?;
        let text = String::from_utf8_lossy(&text);
        let line = |line: &str| serde_json::from_str(line).context("understand the trace");
        text.lines().map(line).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
