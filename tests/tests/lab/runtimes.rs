//! Container runtimes that call the plugin without Kubernetes: Debian's packages of them run containers in the test VPC.

mod nerdctl;
mod podman;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_vpc::{
    netns::Netns,
    patience::{PATIENCE, eventually},
};

const NODE: &str = "master";
/// What the containers' server answers.
const PAGE: &str = "a page of a container";
/// The containers' server.
const SERVER: [&str; 6] = ["httpd", "-f", "-h", "/www", "-p", "80"];

/// Writes the tar file of a root file system with busybox and a page.
fn root_of_busybox(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("rootfs");
    for name in ["bin", "www", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox.into_iter().find(|path| path.exists());
    fs::copy(busybox.context("no busybox")?, root.join("bin/busybox"))?;
    for name in ["httpd", "ip", "sh", "sleep", "wget"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    fs::write(root.join("www/index.html"), PAGE)?;
    let archive = directory.join("rootfs.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
    said(tar, directory)?;
    Ok(archive)
}

/// Runs a program to its end and returns what it printed. It writes to files: what it leaves running may keep a pipe open.
fn said(mut command: Command, directory: &Path) -> Result<String> {
    let [out, err] = ["out", "err"].map(|name| directory.join(name));
    let what = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out)?)
        .stderr(fs::File::create(&err)?);
    let status = command.status().with_context(|| what.clone())?;
    let [out, err] = [out, err].map(|path| fs::read_to_string(path).unwrap_or_default());
    ensure!(status.success(), "{what}: {status}: {out}{err}");
    Ok(out)
}

/// Asks a container's server for its page from a namespace.
fn asked(from: &Netns, to: SocketAddr) -> Result<()> {
    let answer = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.with_context(|| format!("{to} from {}", from.name()))?;
    ensure!(answer.ends_with(PAGE), "{answer}");
    Ok(())
}

/// As [`asked`], until the server has started.
fn serves(from: &Netns, to: SocketAddr) -> Result<()> {
    eventually("a container serves", || asked(from, to))
}
