//! Somebody puts another link in the place of one of a pod's: CHECK says what is there, and what to do about it helps.

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::PATIENCE,
    plan::{Family, Plan},
    pod::Pod,
    snapshot::ip,
    traffic::{Client, Protocol, Server},
};

const PORT: u16 = 8080;

/// Where a command is run.
#[derive(Clone, Copy)]
enum In {
    Node,
    Pod,
}
use In::{Node, Pod as InPod};

struct Substitution {
    what: &'static str,
    /// The commands; `POD` is the path of the pod's namespace, `PAIR` the name of the node's end of the pair.
    make: &'static [(In, &'static str)],
    /// What CHECK says.
    called: &'static str,
    /// The commands that the message names.
    undo: &'static [(In, &'static str)],
}

const ALL: [Substitution; 7] = [
    Substitution {
        what: "a dummy",
        make: &[
            (InPod, "link del eth0"),
            (InPod, "link add eth0 type dummy"),
        ],
        called: "link eth0 in the pod is not the ipvlan interface on ens5 any more: it is a link of kind dummy,",
        undo: &[(InPod, "link del eth0")],
    },
    Substitution {
        what: "a veth of the node",
        make: &[
            (InPod, "link del eth0"),
            (
                Node,
                "link add eth0 netns POD type veth peer name substitute",
            ),
        ],
        called: "it is a link of kind veth,",
        undo: &[(InPod, "link del eth0")],
    },
    Substitution {
        what: "ipvlan on another NIC",
        make: &[
            (InPod, "link del eth0"),
            (
                Node,
                "link add eth0 link ens6 netns POD type ipvlan mode l3",
            ),
        ],
        called: "it is a link of kind ipvlan on the node's link number",
        undo: &[(InPod, "link del eth0")],
    },
    Substitution {
        what: "ipvlan on a link of the pod's own",
        make: &[
            (InPod, "link del eth0"),
            (InPod, "link add below type dummy"),
            (InPod, "link add eth0 link below type ipvlan mode l3"),
        ],
        called: "it is a link of kind ipvlan on the pod's own link number",
        undo: &[(InPod, "link del eth0"), (InPod, "link del below")],
    },
    Substitution {
        what: "a dummy in place of the pair",
        make: &[
            (InPod, "link del veth0"),
            (InPod, "link add veth0 type dummy"),
        ],
        called: "link veth0 in the pod is not the end of the pair veth0 and",
        undo: &[(InPod, "link del veth0")],
    },
    Substitution {
        what: "a pair within the pod",
        make: &[
            (InPod, "link del veth0"),
            (InPod, "link add veth0 type veth peer name veth1"),
        ],
        called: "link veth0 in the pod is not the end of the pair veth0 and",
        undo: &[(InPod, "link del veth0")],
    },
    Substitution {
        what: "two pairs in place of one",
        make: &[
            (InPod, "link del veth0"),
            (
                Node,
                "link add veth0 netns POD type veth peer name substitute",
            ),
            (
                Node,
                "link add PAIR type veth peer name substitute netns POD",
            ),
        ],
        called: "are ends of two different pairs",
        undo: &[(InPod, "link del veth0"), (Node, "link del PAIR")],
    },
];

fn run(lab: &Lab, pod: &Pod, commands: &[(In, &str)]) -> Result<()> {
    for (place, command) in commands {
        let netns: &Netns = match place {
            Node => lab.vpc.node("master"),
            InPod => &pod.netns,
        };
        let path = pod.netns.path().display().to_string();
        let command = command
            .replace("POD", &path)
            .replace("PAIR", &pod.host_interface);
        ip(netns, &command.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Checks traffic out by the NIC, and from the node by the pair.
fn has_traffic(lab: &Lab, pod: &Pod) -> Result<()> {
    let web = (Plan::web_server(Family::V4), PORT).into();
    let client = Client::new(&pod.netns, Protocol::Tcp).timeout(PATIENCE);
    client.ask(web).context("to the outside")?;
    let node = Client::new(lab.vpc.node("master"), Protocol::Tcp).timeout(PATIENCE);
    node.ask(pod.socket(Family::V4, PORT))
        .context("from the node")?;
    Ok(())
}

#[test]
fn check_names_what_is_in_place_of_a_pod_s_link_and_its_removal_and_an_add_put_it_right()
-> Result<()> {
    let lab = Lab::start(Plan::default())?;
    let pod = lab.pod("master", "ens5", "a")?;
    let _world = Server::on(&lab.vpc.world, Plan::web_server(Family::V4), PORT)?;
    let _server = Server::on_any(&pod.netns, PORT)?;
    pod.call("CHECK")?;
    for row in ALL {
        run(&lab, &pod, row.make).with_context(|| row.what)?;
        let Err(named) = pod.call("CHECK") else {
            bail!("{}: CHECK finds nothing", row.what);
        };
        let named = format!("{named:#}");
        for part in [row.called, "delete", "`ip link del"] {
            ensure!(named.contains(part), "{}: no {part:?} in {named}", row.what);
        }
        run(&lab, &pod, row.undo).with_context(|| row.what)?;
        ensure!(pod.call("ADD")? == pod.result, "{}", row.what);
        pod.call("CHECK")
            .with_context(|| format!("{}: removed", row.what))?;
        has_traffic(&lab, &pod).with_context(|| row.what)?;
    }
    pod.delete()
}
