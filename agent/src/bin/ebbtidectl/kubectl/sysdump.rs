//! `kubectl ebbtide sysdump`: the dumps of all nodes, with logs and objects, in one file.
//!
//! Of the API server's objects it has Ebbtide's own, and the names of nodes. It has no Secrets, and no pods but Ebbtide's.

use std::{
    io::{self, Read as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use flate2::read::GzDecoder;
use tar::Archive;

use super::{
    Agent,
    cluster::{CALL, Cluster},
};
use crate::sysdump::{Options, Package, progress, progress_ends};

/// How many lines of each log.
const LINES: &str = "--tail=20000";

/// How long a node's own dump may take.
const DUMP: Duration = Duration::from_secs(600);

/// What is asked of the API server: the file's name, and kubectl's arguments. `NAMESPACE` is the agents'.
const OBJECTS: [(&str, &[&str]); 11] = [
    ("version.txt", &["version"]),
    ("nodes.txt", &["get", "nodes", "-o", "wide"]),
    (
        "pods.txt",
        &["get", "pods", "-n", "NAMESPACE", "-o", "wide"],
    ),
    (
        "workloads.txt",
        &[
            "get",
            "daemonset,deployment",
            "-n",
            "NAMESPACE",
            "-o",
            "wide",
        ],
    ),
    (
        "configmaps.yaml",
        &["get", "configmap", "-n", "NAMESPACE", "-o", "yaml"],
    ),
    ("pools.yaml", &["get", "spiderippools", "-o", "yaml"]),
    (
        "networks.yaml",
        &["get", "spidermultusconfigs", "-A", "-o", "yaml"],
    ),
    (
        "coordinators.yaml",
        &["get", "spidercoordinators,spiderreservedips", "-o", "yaml"],
    ),
    (
        "endpoints.yaml",
        &["get", "spiderendpoints", "-A", "-o", "yaml"],
    ),
    (
        "definitions.yaml",
        &["get", "network-attachment-definitions", "-A", "-o", "yaml"],
    ),
    (
        "events.txt",
        &[
            "get",
            "events",
            "-A",
            "--field-selector=source=ebbtide",
            "-o",
            "wide",
        ],
    ),
];

/// Collects everything. What cannot be had is named in the dump, and on standard error.
pub(super) fn run(
    cluster: &Cluster,
    options: &Options,
    agents: &[Agent],
) -> anyhow::Result<ExitCode> {
    let kubectl = cluster.kubectl()?;
    let file = options.file();
    let mut package = Package::create(&file, "ebbtide-sysdump")?;
    let mut missing: Vec<String> = Vec::new();
    let parts = OBJECTS.len() + 1 + agents.len();
    for (number, (name, arguments)) in OBJECTS.iter().enumerate() {
        progress(number + 1, parts, name);
        let words = arguments.iter().map(|word| match *word {
            "NAMESPACE" => cluster.agents.as_str(),
            word => word,
        });
        match kubectl.call(&words.collect::<Vec<_>>(), b"", CALL) {
            Ok(bytes) => package.add(&format!("cluster/{name}"), &bytes)?,
            Err(why) => missing.push(format!("cluster/{name}: {why:#}")),
        }
    }
    progress(OBJECTS.len() + 1, parts, "the controller's log");
    let log = ["logs", "-n", &cluster.agents, LINES];
    let of_controllers = [
        "-l",
        "app.kubernetes.io/name=ebbtide-controller",
        "--prefix",
    ];
    match kubectl.call(&[&log[..], &of_controllers].concat(), b"", CALL) {
        Ok(bytes) => package.add("cluster/controller.log", &bytes)?,
        Err(why) => missing.push(format!("cluster/controller.log: {why:#}")),
    }
    for (number, agent) in agents.iter().enumerate() {
        progress(OBJECTS.len() + 2 + number, parts, &agent.node);
        if let Err(why) = node(cluster, agent, &mut package) {
            missing.push(format!("nodes/{}: {why:#}", agent.node));
        }
        for (name, more) in [
            ("agent.log", &[][..]),
            ("agent-previous.log", &["--previous"]),
        ] {
            let own = [agent.pod.as_str(), "-c", "agent"];
            let words = [&log[..], &own, more].concat();
            let name = format!("nodes/{}/{name}", agent.node);
            match kubectl.call(&words, b"", CALL) {
                Ok(bytes) => package.add(&name, &bytes)?,
                // Mostly there was none before.
                Err(_) if !more.is_empty() => {}
                Err(why) => missing.push(format!("{name}: {why:#}")),
            }
        }
    }
    progress_ends();
    for each in &missing {
        super::say(&format!("left out: {each}"));
    }
    package.add("left-out.txt", missing.join("\n").as_bytes())?;
    package.finish()?;
    let nodes = agents.len();
    let _closed = writeln!(io::stdout().lock(), "{} ({nodes} nodes)", file.display());
    Ok(ExitCode::SUCCESS)
}

/// Adds a node's own dump.
fn node(cluster: &Cluster, agent: &Agent, package: &mut Package) -> anyhow::Result<()> {
    if !agent.is_running {
        bail!("its agent {} does not run", agent.pod);
    }
    let words = ["ebbtidectl", "sysdump", "--file", "-"];
    let bytes = cluster.run(cluster.agent(&agent.pod), &words, b"", DUMP)?;
    let mut archive = Archive::new(GzDecoder::new(bytes.as_slice()));
    for entry in archive.entries().context("read its dump")? {
        let mut entry = entry.context("read its dump")?;
        let path = entry
            .path()
            .context("read a name in its dump")?
            .into_owned();
        let mut bytes = Vec::new();
        entry
            .read_to_end(&mut bytes)
            .with_context(|| format!("read {} in its dump", path.display()))?;
        // Without the directory of its own. What is left names no place outside: see `tar` on how it is unpacked.
        let below: PathBuf = path.components().skip(1).collect();
        package.add(&format!("nodes/{}/{}", agent.node, below.display()), &bytes)?;
    }
    Ok(())
}
