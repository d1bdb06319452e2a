//! Names, paths and files that an attacker chose, in this kernel.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_plugin::wire::{self, Query, Request, Response};
use ebbtide_vpc::{
    cni::{Plugin, Sandbox},
    lab::Lab,
    netns::Netns,
    patience::PATIENCE,
    plan::Plan,
    snapshot::{Snapshot, ip},
};
use nix::{libc, sys::stat::Mode, unistd::mkfifo};
use serde_json::json;
use tempfile::TempDir;

/// The agents accept the addresses of [`pod`]'s pods, which no route leads to.
const ALLOWED: &str = "foreignSubnets: [10.88.0.0/24]\n";

/// Creates a pod whose eth0 another plugin made, with this address.
fn pod(name: &str, address: &str) -> Result<(Netns, Sandbox)> {
    let netns = Netns::new(name)?;
    for command in [
        "link add eth0 type veth peer name far",
        "link set far up",
        "link set eth0 up",
        &format!("address add {address}/24 dev eth0"),
    ] {
        ip(&netns, &command.split(' ').collect::<Vec<_>>())?;
    }
    let sandbox = Sandbox::new(&netns, format!("{name}-{}", std::process::id()), name);
    Ok((netns, sandbox))
}

/// Returns a chained configuration for a network of this name.
fn chained(plugin: &Plugin, network: &str, address: &str) -> String {
    json!({
        "cniVersion": "1.0.0", "name": network, "type": "ebbtide", "agentSocket": plugin.socket(),
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": format!("{address}/24")}]},
    })
    .to_string()
}

/// Returns paths that are not network namespaces, each with its kind.
fn not_namespaces(directory: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let at = |name: &str| directory.join(name);
    mkfifo(&at("fifo"), Mode::S_IRWXU)?;
    fs::write(at("file"), "x")?;
    symlink(at("fifo"), at("to-fifo"))?;
    symlink(at("loop"), at("loop"))?;
    symlink("/proc/self/ns/mnt", at("to-mnt"))?;
    Ok(vec![
        ("a FIFO", at("fifo")),
        ("a link to a FIFO", at("to-fifo")),
        ("a file", at("file")),
        ("below a file", at("file/net")),
        ("a directory", directory.to_owned()),
        ("a device", "/dev/ptmx".into()),
        ("a terminal", "/dev/tty".into()),
        ("another kind of namespace", at("to-mnt")),
        ("nothing", at("missing")),
        ("a loop", at("loop")),
        ("too long", at(&"x".repeat(300))),
        ("relative", "run/netns/x".into()),
        ("the agent's own", "/proc/self/ns/net".into()),
        (
            "the agent's own, by its thread",
            "/proc/thread-self/ns/net".into(),
        ),
    ])
}

#[test]
fn what_is_no_pods_namespace_is_answered_at_once_and_keeps_nobody_else_waiting() -> Result<()> {
    let directory = TempDir::with_prefix("ebbtide-paths-")?;
    let mut paths = not_namespaces(directory.path())?;
    let mut lab = Lab::configured(Plan::default(), ALLOWED)?;
    let node = lab.vpc.node("master").clone();
    symlink(node.path(), directory.path().join("to-node"))?;
    paths.push(("the node's, by a link", directory.path().join("to-node")));
    let plugin = lab.agent("master").plugin();
    let before = Snapshot::of(&node)?;
    let add = |plugin: &Plugin, path: &Path, number: usize| -> Result<(u32, String)> {
        let sandbox = Sandbox {
            container_id: format!("paths-{number}-{}", std::process::id()),
            netns: Some(path.to_owned()),
            interface: "eth0".into(),
            pod: "paths".into(),
        };
        let config = plugin.config("default/ipvlan-ens5").to_string();
        let error = plugin.call("ADD", Some(&sandbox), &config)?.error()?;
        plugin.call("DEL", Some(&sandbox), &config)?.success()?;
        Ok((error.code, error.msg))
    };
    for (number, (what, path)) in paths.iter().enumerate() {
        // Nothing ever comes of the waits that these paths invite to. Whom the agent kept waiting is told by the plugin,
        // with another code and without the path.
        let (code, said) = add(&plugin, path, number).with_context(|| *what)?;
        ensure!([3, 4].contains(&code), "{what}: {code}, {said}");
        ensure!(said.contains("CNI_NETNS"), "{what}: {said}");
    }
    // More of them than the agent has threads.
    let fifo = directory.path().join("fifo");
    let all: Vec<_> = (100..140)
        .map(|number| {
            let (plugin, fifo) = (plugin.clone(), fifo.clone());
            thread::spawn(move || add(&plugin, &fifo, number))
        })
        .collect();
    lab.agent("master").control(&["status"])?;
    for one in all {
        let (code, said) = one
            .join()
            .map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        ensure!(
            [3, 4].contains(&code) && said.contains("CNI_NETNS"),
            "{code}, {said}"
        );
    }
    before.assert_same(&Snapshot::of(&node)?)?;
    ensure!(lab.agent("master").addresses_in_use()? == 0);
    Ok(())
}

#[test]
fn a_second_network_of_an_interface_is_refused_and_costs_the_first_nothing() -> Result<()> {
    const ADDRESS: &str = "10.88.0.71";
    let mut lab = Lab::configured(Plan::default(), ALLOWED)?;
    let node = lab.vpc.node("master").clone();
    let plugin = lab.agent("master").plugin();
    let (netns, sandbox) = pod("records", ADDRESS)?;
    let before = Snapshot::of(&netns)?;
    let [first, second] = ["first", "second"].map(|name| chained(&plugin, name, ADDRESS));
    plugin.call("ADD", Some(&sandbox), &first)?.success()?;
    // It is the same interface, whichever plugin gives its addresses.
    let delegated = json!({
        "cniVersion": "1.0.0", "name": "third", "type": "ebbtide", "agentSocket": plugin.socket(), "master": "ens5",
        "ipam": {"type": "static", "addresses": [{"address": "172.31.16.77/20"}]},
    });
    for config in [&second, &delegated.to_string()] {
        let error = plugin.call("ADD", Some(&sandbox), config)?.error()?;
        ensure!(
            error.code == 7 && error.msg.contains("network first already"),
            "{error}"
        );
        plugin.call("DEL", Some(&sandbox), config)?.success()?;
    }
    plugin.call("CHECK", Some(&sandbox), &first)?.success()?;
    let agent = lab.agent("master");
    agent.kill()?;
    agent.launch()?;
    agent.wait_ready()?;
    ensure!(
        Snapshot::of(&node)?.mentions(ADDRESS),
        "a restart took the way to the pod"
    );
    plugin.call("CHECK", Some(&sandbox), &first)?.success()?;
    plugin.call("DEL", Some(&sandbox), &first)?.success()?;
    before.assert_same(&Snapshot::of(&netns)?)?;
    let left = fs::read_dir(lab.agent("master").state().join("chained"))?.count();
    ensure!(left == 0, "{left} records are left");
    Ok(())
}

#[test]
fn a_container_may_be_called_as_long_as_its_runtime_likes() -> Result<()> {
    const ADDRESS: &str = "10.88.0.73";
    let mut lab = Lab::configured(Plan::default(), ALLOWED)?;
    let plugin = lab.agent("master").plugin();
    let (netns, mut sandbox) = pod("long", ADDRESS)?;
    let before = Snapshot::of(&netns)?;
    let config = chained(&plugin, "long", ADDRESS);
    for length in [64, 245, 246, 300, 4000] {
        sandbox.container_id = "c".repeat(length);
        plugin
            .call("ADD", Some(&sandbox), &config)?
            .success()
            .with_context(|| format!("{length}"))?;
        plugin.call("CHECK", Some(&sandbox), &config)?.success()?;
        plugin.call("DEL", Some(&sandbox), &config)?.success()?;
        before.assert_same(&Snapshot::of(&netns)?)?;
        let left = fs::read_dir(lab.agent("master").state().join("chained"))?.count();
        ensure!(left == 0, "{length}: {left} records are left");
    }
    Ok(())
}

#[test]
fn names_do_not_write_into_the_log_or_onto_the_terminal() -> Result<()> {
    const ADDRESS: &str = "10.88.0.74";
    const NAME: &str = "web\x1b[2J\n2026-01-01T00:00:00Z ERROR forged\r\u{9b}1m\u{202e}";
    let mut lab = Lab::configured(Plan::default(), ALLOWED)?;
    let plugin = lab.agent("master").plugin();
    let (_netns, mut sandbox) = pod("names", ADDRESS)?;
    sandbox.pod = NAME.into();
    let config = chained(&plugin, NAME, ADDRESS);
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    let agent = lab.agent("master");
    let is_bad = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    for arguments in [
        &["pods"][..],
        &["explain", &sandbox.container_id],
        &["pods", "-o", "json"],
    ] {
        let shown = agent.control(arguments)?;
        ensure!(!shown.contains(is_bad), "{arguments:?}: {shown:?}");
        let forged = shown.lines().any(|line| line.starts_with("2026-01-01"));
        ensure!(!forged, "{arguments:?}: {shown}");
        ensure!(shown.contains("forged"), "{arguments:?}: {shown}");
    }
    let nobody = format!("nobody/{NAME}");
    let unknown = agent.control(&["explain", &nobody]);
    let unknown = unknown.err().context("there is no such pod")?.to_string();
    // After the text of the request.
    let (_, said) = unknown
        .rsplit_once("ebbtidectl: ")
        .context("it says nothing")?;
    ensure!(!said.contains(|c| c == '\n' || is_bad(c)), "{said:?}");
    plugin.call("DEL", Some(&sandbox), &config)?.success()?;
    // Refused, with a message.
    sandbox.netns = Some(format!("/nowhere/{NAME}").into());
    plugin.call("ADD", Some(&sandbox), &config)?.error()?;
    let log = lab.agent("master").log();
    ensure!(log.contains("forged"), "{log}");
    ensure!(!log.contains(is_bad), "{log:?}");
    let forged = log.lines().find(|line| line.starts_with("2026-01-01"));
    ensure!(forged.is_none(), "{log}");
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    let found = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(found.permissions().mode() & 0o777)
}

/// Returns all paths below a directory, and the directory.
fn all(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_owned()];
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(all(&path)?),
            false => found.push(path),
        }
    }
    Ok(found)
}

#[test]
fn what_the_agent_keeps_is_the_owners_alone_also_where_an_older_one_let_others_read_it()
-> Result<()> {
    const ADDRESS: &str = "10.88.0.75";
    let mut lab = Lab::configured(Plan::default(), ALLOWED)?;
    let plugin = lab.agent("master").plugin();
    let (_netns, sandbox) = pod("modes", ADDRESS)?;
    let config = chained(&plugin, "modes", ADDRESS);
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    let agent = lab.agent("master");
    let is_private = |state: &Path| -> Result<usize> {
        let paths = all(state)?;
        for path in &paths {
            ensure!(
                mode(path)? & 0o077 == 0,
                "{}: {:o}",
                path.display(),
                mode(path)?
            );
        }
        Ok(paths.len())
    };
    let state = agent.state();
    agent.kill()?;
    fs::write(state.join("kubernetes.json"), "{}")?;
    for path in all(&state)? {
        let wide = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(wide))?;
    }
    agent.launch()?;
    agent.wait_ready()?;
    let count = is_private(&state)?;
    ensure!(count > 4, "only {count} files");
    plugin.call("ADD", Some(&sandbox), &config)?.success()?;
    is_private(&state)?;
    let socket = fs::metadata(agent.socket())?;
    ensure!(socket.file_type().is_socket() && mode(&agent.socket())? == 0o600);
    ensure!(socket.uid() == 0, "the socket is user {}'s", socket.uid());
    plugin
        .call("DEL", Some(&sandbox), &config)?
        .success()
        .map(drop)
}

/// Sends a request from a thread that changes its user to nobody and then ends.
fn ask_as_nobody(socket: PathBuf) -> Result<std::io::Result<Response>> {
    const NOBODY: libc::c_long = 65_534;
    let asking = thread::spawn(move || -> Result<_> {
        // SAFETY: the system call takes three numbers, and without the library's wrapper it affects this thread alone.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        ensure!(
            done == 0,
            "cannot be nobody: {}",
            std::io::Error::last_os_error()
        );
        Ok(wire::ask(&socket, &Request::Query(Query::Status), PATIENCE))
    });
    asking
        .join()
        .map_err(|_| anyhow::anyhow!("who asks panicked"))?
}

#[test]
fn whoever_is_not_root_gets_no_answer_though_somebody_opened_the_way() -> Result<()> {
    let mut lab = Lab::configured(Plan::default(), ALLOWED)?;
    let socket = lab.agent("master").socket();
    let run = socket.parent().context("a directory")?.to_owned();
    let above = run.parent().context("a directory")?.to_owned();
    for (path, mode) in [(&above, 0o711), (&run, 0o711), (&socket, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let refused = ask_as_nobody(socket.clone())?;
    let refused = refused.err().context("nobody was answered")?;
    // The connection was accepted, and the request refused.
    ensure!(
        refused.kind() != std::io::ErrorKind::PermissionDenied,
        "{refused}"
    );
    wire::ask(&socket, &Request::Query(Query::Status), PATIENCE)?;
    // Others who can write there could put a socket of their own in its place.
    let agent = lab.agent("master");
    agent.stop()?;
    fs::set_permissions(&run, fs::Permissions::from_mode(0o777))?;
    agent.launch()?;
    let refused = agent
        .wait_ready()
        .err()
        .context("it answers there")?
        .to_string();
    ensure!(refused.contains("chmod go-w"), "{refused}");
    Ok(())
}
