//! The moments of an agent's life on a crowded node. All traffic is tested at each.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use ebbtide_vpc::{agent::Agent, manifests, pod::Pod, progress::print};

use super::{
    Crowd, Wishes,
    matrix::{Matrix, all_work},
    services::OUR_PODS,
    state::{Allowed, State},
};

/// The allowed changes by an agent without pods: none.
pub const BEFORE_PODS: [Allowed; 0] = [];

/// The allowed changes that remain after the last pod.
pub const AFTERWARDS: [Allowed; 3] = [
    Allowed {
        line: "net/ipv4/ip_forward = ",
        reason: "somebody else may rely on it by then",
    },
    Allowed {
        line: "net/ipv6/conf/all/forwarding = ",
        reason: "as for IPv4",
    },
    Allowed {
        line: "tc qdisc clsact ffff: dev ",
        reason: "somebody else may be about to add a filter to it; where the kernel has TCX there is none of ours",
    },
];

/// Whether the agent is to make pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// A pod on each NIC.
    OnEachNic,
    /// No pods: this kernel has no ipvlan.
    None,
}

/// Tests that an agent does no harm on a crowded node: it starts, has pods, stops, starts again, and is removed. At no
/// moment does foreign traffic change, and nothing of the node stays changed.
///
/// # Errors
/// If anything changed at any moment; the error lists it.
pub fn do_no_harm(wishes: Wishes, pods: Pods) -> Result<()> {
    let clock = Clock(Instant::now());
    let crowd = Crowd::build(wishes)?;
    clock.say("built");
    let mut matrix = Matrix::before(crowd.cells().to_vec(), Arc::clone(crowd.doors()), |_| None)?;
    let before = State::of(crowd.node())?;
    let (cells, kept) = matrix.size();
    clock.say(&format!("{cells} cells, {kept} connections kept"));
    // All failures are collected, not only the first one.
    let mut troubles: Vec<anyhow::Error> = Vec::new();

    let plan = crowd.plan();
    let mut agent = Agent::start(crowd.node(), "master", &manifests::yaml(&plan), "")?;
    agent.wait_ready()?;
    matrix.again("agent");
    clock.say("with an agent");
    troubles.extend(
        before
            .assert_same(
                &State::of(crowd.node())?,
                "with an agent and no pod",
                &BEFORE_PODS,
            )
            .err(),
    );

    if pods == Pods::OnEachNic {
        let made = make_pods(&agent)?;
        matrix.again("pods");
        clock.say("with pods");
        let servers = match wishes.whole_marks {
            // Software that restores whole marks removes ours from replies.
            true => None,
            false => {
                let (cells, servers) = crowd.ours(&made)?;
                troubles.extend(
                    all_work(&cells, crowd.doors())
                        .context("pods of ours beside the crowd")
                        .err(),
                );
                clock.say(&format!("{} cells of our pods", cells.len()));
                Some(servers)
            }
        };
        agent.stop()?;
        matrix.again("pods, agent stopped");
        clock.say("with pods and no agent");
        agent.launch()?;
        agent.wait_ready()?;
        drop(servers);
        made.into_iter().try_for_each(Pod::delete)?;
        matrix.again("pods gone");
        clock.say("the pods gone");
        troubles.extend(
            before
                .assert_same(&State::of(crowd.node())?, "after the last pod", &AFTERWARDS)
                .err(),
        );
    }

    agent.stop()?;
    if pods == Pods::None {
        matrix.again("stopped");
        clock.say("stopped");
    }
    // The command by which a person removes it; `deploy/uninstall.yaml` runs the same.
    agent.uninstall()?;
    matrix.again("removed");
    clock.say("removed");
    troubles.extend(
        before
            .assert_same(&State::of(crowd.node())?, "removed", &AFTERWARDS)
            .err(),
    );
    troubles.extend(matrix.unchanged().err());
    let list: Vec<String> = troubles
        .iter()
        .map(|trouble| format!("{trouble:#}"))
        .collect();
    anyhow::ensure!(list.is_empty(), "{}", list.join("\n\n"));
    Ok(())
}

fn make_pods(agent: &Agent) -> Result<Vec<Pod>> {
    let make = |(name, nic): (&str, &str)| {
        let network = manifests::network(nic);
        Pod::create(&agent.plugin(), "master", nic, &network, name).with_context(|| agent.log())
    };
    OUR_PODS.into_iter().map(make).collect()
}

/// Prints how long each part took.
struct Clock(Instant);

impl Clock {
    fn say(&self, what: &str) {
        print(&format!(
            "{:6.1} s: {what}\n",
            self.0.elapsed().as_secs_f32()
        ));
    }
}
