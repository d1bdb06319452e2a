//! An invalid configuration is refused at start, with the reason and the remedy, in this kernel.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{agent::BPFFS, netns::Netns, snapshot::ip, workspace};
use tempfile::TempDir;

/// An invalid configuration: commands that prepare it, its files, and the agent's message.
struct Wrong {
    commands: &'static [&'static str],
    config: &'static str,
    manifest: &'static str,
    bpf: bool,
    says: &'static [&'static str],
}

const NETWORK_ON_A_CHILD: &str = "\
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: nested, namespace: default}
spec: {cniType: ipvlan, ipvlan: {master: [child]}}
";

const WRONGS: [Wrong; 6] = [
    Wrong {
        commands: &[],
        config: "mark: 0x2\n",
        manifest: "",
        bpf: false,
        says: &["mark", "nicMarks", "choose others"],
    },
    Wrong {
        commands: &[],
        config: "nicMarks: 0xc006\n",
        manifest: "",
        bpf: false,
        says: &["nicMarks", "kube-proxy", "0xc000"],
    },
    Wrong {
        commands: &[],
        config: "",
        manifest: "",
        bpf: false,
        says: &["bpf file system", "mount -t bpf"],
    },
    Wrong {
        commands: &["route add 192.0.2.0/24 dev nic table 7700"],
        config: "",
        manifest: "",
        bpf: true,
        says: &["table 7700", "192.0.2.0/24", "hostTable"],
    },
    Wrong {
        commands: &[],
        config: "nics: {exclude: [eth*, \"ens[\"]}\n",
        manifest: "",
        bpf: true,
        says: &["nics.exclude[1]", "bracket"],
    },
    Wrong {
        commands: &["link add child link nic type macvlan mode bridge"],
        config: "",
        manifest: NETWORK_ON_A_CHILD,
        bpf: true,
        says: &["child", "default/nested", "macvlan", "the NIC below it"],
    },
];

/// Runs the agent until it ends and returns its output. An agent that keeps running is ended here.
fn said(netns: &Netns, directory: &Path, wrong: &Wrong, bpf: &Path) -> Result<String> {
    std::fs::create_dir(directory.join("manifests"))?;
    std::fs::write(directory.join("manifests/network.yaml"), wrong.manifest)?;
    std::fs::write(directory.join("config.yaml"), wrong.config)?;
    let mut command: Command = netns.command(workspace::BINARIES.file("ebbtide-agent")?);
    let mut child = command
        .args(["run", "--node-name", "node", "--config"])
        .arg(directory.join("config.yaml"))
        .arg("--manifests")
        .arg(directory.join("manifests"))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .arg("--run-dir")
        .arg(directory.join("run"))
        .arg("--bpf-dir")
        .arg(bpf)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ebbtide-agent")?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > Duration::from_secs(30) {
            child.kill()?;
            let output = child.wait_with_output()?;
            bail!("it goes on: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{}: {text}", output.status);
    Ok(text)
}

#[test]
fn a_wrong_configuration_is_refused_with_the_reason_and_the_way_out() -> Result<()> {
    for wrong in &WRONGS {
        let netns = Netns::new("refused")?;
        for arguments in [
            "link add nic type veth peer name wire",
            "address add 192.0.2.10/24 dev nic",
            "link set nic up",
        ]
        .iter()
        .chain(wrong.commands)
        {
            ip(&netns, &arguments.split(' ').collect::<Vec<_>>())?;
        }
        let before = ip(&netns, &["rule"])?;
        let directory = TempDir::with_prefix("ebbtide-refused-")?;
        let bpf = match wrong.bpf {
            true => Path::new(BPFFS).join(format!("ebbtide-refused-{}", std::process::id())),
            false => directory.path().join("no-bpffs"),
        };
        let said = said(&netns, directory.path(), wrong, &bpf);
        // A configuration that is refused before the kernel is touched has made no directory.
        if bpf.exists() {
            std::fs::remove_dir_all(&bpf)?;
        }
        let said = said.with_context(|| format!("{:?}", wrong.says))?;
        for text in wrong.says {
            ensure!(said.contains(text), "no {text:?} in {said}");
        }
        ensure!(
            ip(&netns, &["rule"])? == before,
            "something was left behind"
        );
    }
    Ok(())
}
