//! podman 4.3 with its CNI backend (`network_backend = "cni"`), as Debian 12 has it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    image,
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    snapshot::Snapshot,
    workspace::BINARIES,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{NODE, PAGE, SERVER, asked, root_of_busybox, said, serves};

/// podman on a node, with files of its own. Dropping it removes its containers.
struct Podman {
    node: Netns,
    package: PathBuf,
    directory: TempDir,
}

const IMAGE: &str = "localhost/busybox";

impl Podman {
    fn start(node: &Netns, package: PathBuf) -> Result<Self> {
        let directory = TempDir::with_prefix("podman-")?;
        let podman = Self {
            node: node.clone(),
            package,
            directory,
        };
        let home = podman.path("");
        fs::create_dir_all(home.join("net.d"))?;
        fs::create_dir_all(home.join(".config/containers"))?;
        let policy = json!({"default": [{"type": "insecureAcceptAnything"}]});
        let policy_file = home.join(".config/containers/policy.json");
        fs::write(policy_file, policy.to_string())?;
        // conmon passes no environment on.
        let crun = podman.path("crun");
        let (libraries, package) = (podman.libraries(), podman.package.display());
        let script =
            format!("#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {package}/usr/bin/crun \"$@\"\n");
        fs::write(&crun, script)?;
        fs::set_permissions(&crun, fs::Permissions::from_mode(0o755))?;
        let plugins = BINARIES.file("ebbtide")?;
        let plugins = plugins.parent().context("no directory")?;
        // A guest's control groups may lack controllers.
        let config = format!(
            r#"[containers]
cgroups = "disabled"
default_sysctls = []
[engine]
events_logger = "none"
runtime = "crun"
conmon_path = ["{package}/usr/bin/conmon"]
[engine.runtimes]
crun = ["{}"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["{}", "/usr/lib/cni"]
network_config_dir = "{}"
default_network = "ebbtide"
"#,
            crun.display(),
            plugins.display(),
            podman.path("net.d").display(),
        );
        fs::write(podman.path("containers.conf"), config)?;
        let archive = root_of_busybox(&podman.path(""))?;
        podman.run(&["import", &archive.to_string_lossy(), IMAGE])?;
        Ok(podman)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn libraries(&self) -> String {
        let package = self.package.display();
        format!("{package}/usr/lib/x86_64-linux-gnu:{package}/lib/x86_64-linux-gnu")
    }

    /// Writes a network configuration.
    fn network(&self, name: &str, plugins: &Value) -> Result<()> {
        let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins});
        let file = self.path("net.d").join(format!("{name}.conflist"));
        fs::write(file, list.to_string()).context("a network configuration")
    }

    fn command(&self) -> Command {
        let mut command = self.node.command("timeout");
        command
            .args(["-k", "1", "60"])
            .arg(self.package.join("usr/bin/podman"))
            .args(["--storage-driver", "vfs"]);
        for (option, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(option).arg(self.path(name));
        }
        command
            .env("LD_LIBRARY_PATH", self.libraries())
            .env("HOME", self.path(""))
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env(
                "CONTAINERS_REGISTRIES_CONF",
                self.package.join("etc/containers/registries.conf"),
            );
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command();
        command.args(arguments);
        said(command, self.directory.path())
    }

    /// Starts a container, with podman's own options.
    fn container(&self, name: &str, options: &[&str]) -> Result<()> {
        let mut arguments = vec!["run", "-d", "--name", name];
        arguments.extend(options);
        arguments.push(IMAGE);
        arguments.extend(SERVER);
        self.run(&arguments).map(drop)
    }

    /// Returns the addresses that podman tells of a running container.
    fn addresses(&self, name: &str) -> Result<[IpAddr; 2]> {
        let text = self.run(&["inspect", name])?;
        let all: Value = serde_json::from_str(&text)?;
        let networks = all[0]["NetworkSettings"]["Networks"].as_object();
        let network = networks.and_then(|all| all.values().next());
        let network = network.with_context(|| format!("no network: {text}"))?;
        let address = |field: &str| -> Result<IpAddr> {
            let told = network[field].as_str().unwrap_or_default();
            told.parse().with_context(|| format!("{field}: {text}"))
        };
        Ok([address("IPAddress")?, address("GlobalIPv6Address")?])
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // After a test that succeeded there are none.
        let _ = self.run(&["rm", "-f", "-a", "-t", "0"]);
    }
}

/// Checks that the container is reached by its addresses: from its own node, another one, and outside.
fn is_reached(lab: &Lab, addresses: [IpAddr; 2]) -> Result<()> {
    for address in addresses {
        let to = SocketAddr::new(address, 80);
        serves(lab.vpc.edge.netns(), to)?;
        for node in [NODE, "worker1"] {
            asked(lab.vpc.node(node), to)?;
        }
    }
    Ok(())
}

#[test]
fn podmans_containers_have_addresses_of_the_vpc_and_give_them_back() -> Result<()> {
    let Some(package) = image::unpacked("podman", "usr/bin/podman") else {
        return Ok(());
    };
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let before = Snapshot::of(&node)?;
    let podman = Podman::start(&node, package)?;
    lives(&mut lab, &podman).with_context(|| lab.logs())?;
    before.comes_back(&node)?;
    let used = lab.agent(NODE).addresses_in_use()?;
    ensure!(used == 0, "{used} addresses are left");
    lab.vpc.assert_no_violations()
}

fn lives(lab: &mut Lab, podman: &Podman) -> Result<()> {
    let socket = lab.agent(NODE).plugin().socket().to_owned();
    let on = |nic: &str| json!({"type": "ebbtide", "network": format!("default/ipvlan-{nic}"), "agentSocket": socket});
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    podman.network("ebbtide", &json!([on("ens5")]))?;
    podman.network("mapped", &json!([on("ens6"), portmap]))?;
    let listed = podman.run(&["network", "ls", "--format", "{{.Name}}"])?;
    ensure!(
        listed.contains("ebbtide") && listed.contains("mapped"),
        "{listed}"
    );

    let pool = &lab.vpc.nic(NODE, "ens5").subnet(Family::V4).secondary;
    let wanted = pool
        .iter()
        .rfind(|address| Family::of(**address) == Family::V4);
    let wanted = *wanted.context("no address")?;
    podman.container("a", &["--ip", &wanted.to_string()])?;
    podman.container("b", &["--network", "mapped", "-p", "8080:80"])?;
    let [a, b] = ["a", "b"].map(|name| podman.addresses(name));
    let (a, b) = (a?, b?);
    ensure!(a[0] == wanted, "{a:?}: {wanted} was asked for");
    is_reached(lab, a)?;
    is_reached(lab, b)?;
    let url = format!("http://{}/", b[0]);
    let page = podman.run(&["exec", "a", "wget", "-q", "-O", "-", &url])?;
    ensure!(page == PAGE, "{page}");
    let pods = lab.agent(NODE).control(&["pods"])?;
    for name in [" a ", " b "] {
        ensure!(pods.contains(name), "{pods}");
    }

    // The port of the node leads to a container on the other NIC, and the answer leaves by the NIC that was asked.
    for nic in ["ens5", "ens6"] {
        let at_nic = lab.vpc.nic(NODE, nic).primary(Family::V4);
        let port = SocketAddr::new(at_nic, 8080);
        asked(lab.vpc.edge.netns(), port).with_context(|| format!("a port at {nic}"))?;
        asked(lab.vpc.node("worker1"), port).with_context(|| format!("a port at {nic}"))?;
    }

    // A container that is started again has its addresses again, asked for or not.
    podman.run(&["restart", "-t", "0", "a", "b"])?;
    for (name, had) in [("a", a), ("b", b)] {
        let has = podman.addresses(name)?;
        ensure!(has == had, "{name} had {had:?}, and has {has:?}");
        is_reached(lab, has)?;
    }
    let fails = podman.container("c", &["--ip", &wanted.to_string()]);
    let fails = format!("{:#}", fails.err().context("an address of two containers")?);
    ensure!(fails.contains("it is in use"), "{fails}");

    // What is removed while no agent runs is found when one starts.
    podman.run(&["rm", "-f", "-t", "0", "a", "c"])?;
    lab.agent(NODE).kill()?;
    let removed = podman.run(&["rm", "-f", "-t", "0", "b"]);
    lab.agent(NODE).launch()?;
    lab.agent(NODE).wait_ready()?;
    eventually("all addresses are free", || {
        let used = lab.agent(NODE).addresses_in_use()?;
        ensure!(used == 0, "{used} in use; {removed:?}");
        Ok(())
    })
}
