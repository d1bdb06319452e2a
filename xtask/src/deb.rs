//! `deb`: packs agent, plugin, command line, unit and network configuration for Debian and its kin, without Kubernetes.
//!
//! `dpkg-deb` writes the package. Its times are those of the last commit, so two builds give the same file.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::exec::{self, Output};
use crate::workspace::Workspace;
use crate::{build, build_ebpf, ui};

/// Options of `deb`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the package goes
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Pack what is in target/release, as it is
    #[arg(long)]
    no_build: bool,
}

/// What is at a place in the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// A program of `target/release`.
    Program(&'static str),
    /// A file of the repository.
    File(&'static str),
    /// As [`Content::File`], with the unit's paths: a package's programs are in /usr/bin.
    Unit(&'static str),
    /// A link to this place.
    Link(&'static str),
    /// An empty directory.
    Directory,
}

/// The package, file by file. Nothing is below /etc/cni/net.d: a runtime would use it at once, in place of what it has.
const PLACES: [(&str, Content); 13] = [
    ("usr/bin/ebbtide-agent", Content::Program("ebbtide-agent")),
    ("usr/bin/ebbtidectl", Content::Program("ebbtidectl")),
    ("usr/bin/kubectl-ebbtide", Content::Link("ebbtidectl")),
    // Where Debian's containerd and podman look.
    ("usr/lib/cni/ebbtide", Content::Program("ebbtide")),
    // Where all others look.
    ("opt/cni/bin/ebbtide", Content::Link("/usr/lib/cni/ebbtide")),
    (
        "usr/lib/systemd/system/ebbtide-agent.service",
        Content::Unit("deploy/systemd/ebbtide-agent.service"),
    ),
    (
        "usr/share/ebbtide/10-ebbtide.conflist",
        Content::File("deploy/cni/10-ebbtide.conflist"),
    ),
    (
        "usr/share/doc/ebbtide/README.Debian",
        Content::File("deploy/debian/README.Debian"),
    ),
    (
        "usr/share/doc/ebbtide/README.md",
        Content::File("README.md"),
    ),
    ("usr/share/doc/ebbtide/copyright", Content::File("LICENSE")),
    (
        "usr/share/doc/ebbtide/examples/one-machine.yaml",
        Content::File("deploy/examples/one-machine.yaml"),
    ),
    (
        "usr/share/doc/ebbtide/examples/two-nodes-two-nics.yaml",
        Content::File("deploy/examples/two-nodes-two-nics.yaml"),
    ),
    ("etc/ebbtide/manifests", Content::Directory),
];

/// The scripts that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Builds the programs and packs them.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<()> {
    if !options.no_build {
        build_ebpf::run(ws, Output::Show)?;
        build::agent(ws, Arch::here()?, Output::Show)?;
        build::plugin(ws, Arch::here()?, Output::Show)?;
    }
    let output = options.output.clone().unwrap_or_else(|| default_output(ws));
    pack(ws, &output)?;
    let size = fs::metadata(&output).map_or(0, |found| found.len());
    ui::line(format_args!(
        "{}\n  {:.1} MiB; `apt install ./FILE`, then /usr/share/doc/ebbtide/README.Debian",
        ws.shown(&output),
        size as f64 / f64::from(1 << 20)
    ));
    Ok(())
}

/// Packs what is in `target/release`.
fn pack(ws: &Workspace, output: &Path) -> Result<()> {
    let root = ws.target.join("deb/root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    for (place, content) in PLACES {
        put(ws, &root.join(place), content)
            .with_context(|| format!("cannot put {place} into the package"))?;
    }
    pages(ws, &root)?;
    control(ws, &root.join("DEBIAN"))?;
    // dpkg-deb compresses with as many threads as there are processors, and the result depends on their number.
    let mut command = Command::new("dpkg-deb");
    command
        .args(["--root-owner-group", "--threads-max=1", "-Zxz", "--build"])
        .args([root.as_path(), output])
        .env("SOURCE_DATE_EPOCH", last_commit(ws));
    exec::run(&mut command, Output::OnFailure)
        .context("dpkg-deb packs the files (Debian's package dpkg)")
}

fn put(ws: &Workspace, to: &Path, content: Content) -> Result<()> {
    let parent = to.parent().context("it has no directory")?;
    fs::create_dir_all(parent)?;
    match content {
        Content::Program(name) => {
            let from = ws.release().join(name);
            fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
            set_mode(to, 0o755)
        }
        Content::File(name) => write(to, &read(ws, name)?, 0o644),
        Content::Unit(name) => write(
            to,
            &read(ws, name)?.replace("/usr/local/bin/", "/usr/bin/"),
            0o644,
        ),
        Content::Link(target) => Ok(symlink(target, to)?),
        Content::Directory => Ok(fs::create_dir_all(to)?),
    }
}

/// Adds the manual pages and completions, which the programs write themselves.
fn pages(ws: &Workspace, root: &Path) -> Result<()> {
    let ctl = ws.release().join("ebbtidectl");
    let man = root.join("usr/share/man/man1");
    exec::run(Command::new(&ctl).arg("man").arg(&man), Output::OnFailure)?;
    for page in fs::read_dir(&man).with_context(|| format!("cannot list {}", man.display()))? {
        // Policy 12.1: compressed, and without the time of it.
        let page = page?.path();
        exec::run(
            Command::new("gzip").args(["-9n"]).arg(&page),
            Output::OnFailure,
        )?;
    }
    for (shell, place) in [
        ("bash", "usr/share/bash-completion/completions/ebbtidectl"),
        ("zsh", "usr/share/zsh/vendor-completions/_ebbtidectl"),
        (
            "fish",
            "usr/share/fish/vendor_completions.d/ebbtidectl.fish",
        ),
    ] {
        let text = exec::read(Command::new(&ctl).args(["completions", shell]))?;
        let to = root.join(place);
        fs::create_dir_all(to.parent().context("it has no directory")?)?;
        write(&to, &text, 0o644)?;
    }
    Ok(())
}

/// Writes what dpkg reads.
fn control(ws: &Workspace, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    write(&dir.join("control"), &fields(architecture()), 0o644)?;
    for script in SCRIPTS {
        let text = read(ws, &format!("deploy/debian/{script}"))?;
        write(&dir.join(script), &text, 0o755)?;
    }
    Ok(())
}

/// Returns the package's description of itself (Debian Policy 5.3).
fn fields(architecture: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let home = env!("CARGO_PKG_REPOSITORY");
    format!(
        "Package: ebbtide\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Section: net\n\
         Priority: optional\n\
         Maintainer: Ebbtide's developers <packages@ebbtide.invalid>\n\
         Recommends: containernetworking-plugins\n\
         Homepage: {home}\n\
         Description: CNI plugin and node agent: pods on the machine's own NICs\n \
         It gives containers real addresses of the network that their machine is in,\n \
         by ipvlan interfaces on the machine's own NICs, and makes every reply leave by\n \
         the NIC that its request came in on, by eBPF programs.\n"
    )
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Returns the time of the last commit, in seconds since 1970; outside of a repository that of the epoch.
fn last_commit(ws: &Workspace) -> String {
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"])
        .current_dir(&ws.root);
    exec::read(&mut git).map_or_else(|_| "0".to_owned(), |text| text.trim().to_owned())
}

fn default_output(ws: &Workspace) -> PathBuf {
    let name = format!(
        "ebbtide_{}_{}.deb",
        env!("CARGO_PKG_VERSION"),
        architecture()
    );
    ws.target.join("deb").join(name)
}

fn read(ws: &Workspace, name: &str) -> Result<String> {
    let path = ws.root.join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(to: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))?;
    set_mode(to, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_names_files_that_exist_and_takes_no_runtime_over() {
        let ws = Workspace::find().expect("this repository");
        for (place, content) in PLACES {
            assert!(!place.starts_with("etc/cni"), "{place}");
            if let Content::File(name) | Content::Unit(name) = content {
                assert!(ws.root.join(name).is_file(), "{name}");
            }
        }
        let unit = read(&ws, "deploy/systemd/ebbtide-agent.service").expect("the unit");
        assert!(unit.contains("ExecStart=/usr/local/bin/"), "{unit}");
    }

    #[test]
    fn the_description_has_the_fields_that_dpkg_demands() {
        let text = fields("amd64");
        // dpkg refuses a field without a value, or says nothing at all of it, by its age.
        assert!(
            text.lines().all(|line| !line.trim_end().ends_with(':')),
            "{text}"
        );
        for field in [
            "Package",
            "Version",
            "Architecture",
            "Maintainer",
            "Description",
        ] {
            assert!(
                text.lines()
                    .any(|line| line.starts_with(&format!("{field}: "))),
                "{text}"
            );
        }
        // Policy 5.6.13: the lines below the first one begin with a space.
        let description = text.split("Description: ").nth(1).expect("it is there");
        assert!(
            description
                .lines()
                .skip(1)
                .all(|line| line.starts_with(' ')),
            "{text}"
        );
    }
}
