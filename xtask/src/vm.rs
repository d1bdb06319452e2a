//! `vm`: runs a command in a kernel that has ipvlan, with this machine's files as its root.
//!
//! The guest sees the whole machine read-only below an overlay in memory: it may write anywhere,
//! and nothing of it stays but what it puts into `$EBBTIDE_OUT`.
//!
//! * user-mode Linux (default): an ordinary process, 2 s to boot, native speed, one CPU
//! * QEMU without KVM: Debian's stock kernels, slower, two CPUs, JIT, BTF

pub(crate) mod arm64;
mod guest;
mod initramfs;
mod machine;
mod memory;
mod qemu;
mod uml;
mod why;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub(crate) use why::guests_run_on;

use crate::exec;
use crate::setup::{self, debian, kernels, xstate};
use crate::workspace::Workspace;

/// The value of `$EBBTIDE_OUT` in a guest.
pub(crate) const GUEST_OUT: &str = guest::OUT;

/// Which kernel a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// User-mode Linux 6.1
    Uml,
    /// Debian's stock 5.10 under QEMU: the oldest that is to work
    #[value(name = "5.10")]
    Floor,
    /// Debian's stock 6.1 under QEMU
    #[value(name = "6.1", alias = "qemu")]
    Old,
    /// Debian's stock 6.12 under QEMU
    #[value(name = "6.12")]
    Stable,
    /// The newest that Debian has for its stable release, under QEMU
    Newest,
}

impl Kernel {
    /// Returns its name among the pinned kernels; user-mode Linux has none.
    pub(crate) fn pin(self) -> Option<&'static str> {
        match self {
            Self::Uml => None,
            Self::Floor => Some("5.10"),
            Self::Old => Some(kernels::DEFAULT),
            Self::Stable => Some("6.12"),
            Self::Newest => Some("newest"),
        }
    }

    /// Returns the kernel that two options select: a kernel, or only QEMU.
    pub(crate) fn chosen(kernel: Option<Self>, qemu: bool) -> Self {
        kernel.unwrap_or(if qemu { Self::Old } else { Self::Uml })
    }

    /// Gets the kernel, and the programs that run it, if they are missing.
    pub(crate) fn ensure(self, ws: &Workspace) -> Result<()> {
        match self.pin() {
            None => {
                kernels::user_mode(ws)?;
                xstate::ensure(ws)?;
            }
            Some(name) => {
                debian::programs(ws, debian::QEMU)?;
                kernels::stock(ws, name)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pin() {
            None => f.write_str("user-mode Linux"),
            Some(name) => write!(f, "QEMU with Debian's stock kernel, {name}"),
        }
    }
}

/// Options of `vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Debian's stock kernel under QEMU (6.1, unless --kernel says another), instead of user-mode Linux
    #[arg(long)]
    qemu: bool,
    /// Which kernel
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Time out after this many seconds
    #[arg(long, value_name = "SECS", default_value_t = 900)]
    timeout: u64,
    /// MiB of memory of a user-mode Linux; taken as they are used
    #[arg(long, value_name = "MIB", default_value_t = uml::MEMORY)]
    memory: u64,
    /// Give it a NIC at the other end of this tap device (several: vec0, vec1...); user-mode Linux
    /// alone
    #[arg(long, value_name = "TAP")]
    nic: Vec<String>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// A command, and the kernel in which it is run.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) kernel: Kernel,
    /// The time limit of the machine.
    pub(crate) timeout: Duration,
    pub(crate) command: Vec<String>,
    /// Further variables, besides those of ours that all guests get (see [`guest::environment`]).
    pub(crate) env: Vec<(String, String)>,
    pub(crate) hardware: Hardware,
}

/// The hardware of a user-mode Linux that not every run needs.
#[derive(Debug)]
pub(crate) struct Hardware {
    /// Its memory in MiB, which is allocated as it is used.
    pub(crate) memory: u64,
    /// The tap devices of its NICs.
    pub(crate) nics: Vec<String>,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            memory: uml::MEMORY,
            nics: Vec::new(),
        }
    }
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The command's exit status.
    pub(crate) status: u8,
    /// The directory that was `$EBBTIDE_OUT` in the guest; it is removed when this is dropped.
    pub(crate) out: OutDir,
}

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct OutDir(PathBuf);

impl OutDir {
    /// Returns the path of the file `name` in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for OutDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the task, and returns the command's status.
pub(crate) fn run(ws: &Workspace, options: &Options) -> Result<ExitCode> {
    let mut command = Vec::new();
    for word in &options.command {
        let word = word
            .to_str()
            .with_context(|| format!("{} is not UTF-8", word.display()))?;
        command.push(word.to_owned());
    }
    let request = Request {
        kernel: Kernel::chosen(options.kernel, options.qemu),
        timeout: Duration::from_secs(options.timeout),
        command,
        env: Vec::new(),
        hardware: Hardware {
            memory: options.memory,
            nics: options.nic.clone(),
        },
    };
    Ok(ExitCode::from(start(ws, &request)?.status))
}

/// Boots a machine, runs the command in it, prints its output, and waits for its end.
pub(crate) fn start(ws: &Workspace, request: &Request) -> Result<Outcome> {
    boot(ws, request, exec::pass_on)
}

/// As [`start`], but `each` gets the lines of the command's output instead of stdout.
pub(crate) fn start_and(
    ws: &Workspace,
    request: &Request,
    each: impl FnMut(&str) + Send,
) -> Result<Outcome> {
    boot(ws, request, |output| exec::each_line(output, each))
}

fn boot(
    ws: &Workspace,
    request: &Request,
    read: impl FnOnce(&mut dyn Read) + Send,
) -> Result<Outcome> {
    if ws.root.to_string_lossy().contains([' ', '\t', '"', ',']) {
        bail!(
            "a guest cannot be started from {}: a kernel's command line has no way to name a \
             directory with a space, a quote or a comma",
            ws.root.display()
        );
    }
    guests_run_on(std::env::consts::ARCH)?;
    setup::check_guest(ws, request.kernel)?;
    let out = out_dir(ws)?;
    let machine = match request.kernel.pin() {
        None => uml::machine(ws, request, &out)?,
        Some(_) if !request.hardware.nics.is_empty() => {
            bail!(
                "only a user-mode Linux can be given NICs (--nic): leave --kernel and --qemu away"
            )
        }
        Some(kernel) => qemu::machine(ws, kernel, request, &out)?,
    };
    let said = machine::run(machine, request.timeout, read)?;
    let status = fs::read_to_string(out.file(guest::STATUS)).unwrap_or_default();
    let Ok(status) = status.trim().parse() else {
        bail!(why::it_died(request, &out, &said));
    };
    Ok(Outcome { status, out })
}

/// Creates an ipvlan interface, in a namespace that ends with the shell. `name` is written before each name: a name
/// alone may be an abbreviation of one of ip's own words (`a` of `address`).
const TRY_IPVLAN: &str = "ip link add name veth0 type veth peer name veth1 \
    && ip link add link veth0 name ipvlan0 type ipvlan mode l3";

/// Whether no guest is needed: the user is root, and the running kernel has ipvlan.
pub(crate) fn this_kernel_will_do() -> Result<bool> {
    Ok(exec::is_root()? && exec::succeeds(&mut try_ipvlan()))
}

fn try_ipvlan() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", TRY_IPVLAN]);
    command
}

fn out_dir(ws: &Workspace) -> Result<OutDir> {
    let all = ws.target.join("vm");
    for entry in fs::read_dir(&all)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        // Directories of killed runs are called KIND-PID-NUMBER.
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .split(['-', '.'])
            .nth(1)
            .filter(|pid| pid.parse::<u32>().is_ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let path = entry.path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
    // One run may have several machines, one after the other.
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = all.join(format!("out-{}-{number}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(OutDir(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_decides_whether_it_will_do() {
        if exec::find("ip").is_none() || !exec::is_root().expect("id runs") {
            println!("skipped: not root, or no ip");
            return;
        }
        let ran = try_ipvlan().output().expect("unshare runs");
        let said = String::from_utf8_lossy(&ran.stderr);
        let kernel_refused = ["RTNETLINK answers", "Unknown device type", "unshare failed"];
        assert!(
            ran.status.success() || kernel_refused.iter().any(|words| said.contains(words)),
            "ip did not even ask the kernel: {said}"
        );
    }
}
