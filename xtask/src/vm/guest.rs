//! The second stage of a guest's init, which is the same in every kernel.
//!
//! The first stage belongs to the kind of machine ([`super::uml`], [`super::qemu`]). It makes a writable root out of
//! this machine's read-only one, and starts this script as process 1.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{OutDir, Request};
use crate::exec::quote;
use crate::workspace::Workspace;

/// The file with the command's exit status, in the guest's `$EBBTIDE_OUT`.
pub(super) const STATUS: &str = "status";
/// The path in the guest of the directory that it can write on this machine.
pub(super) const OUT: &str = "/run/xtask/out";
/// The name of the second stage's file.
pub(super) const SCRIPT: &str = "guest.sh";

/// The properties in which kinds of machines differ.
pub(super) struct Ways<'a> {
    /// The device for the command's output.
    pub(super) output: &'a str,
    /// The command that mounts the writable directory of this machine on its argument.
    pub(super) mount_out: &'a str,
    /// The directory that becomes `/lib/modules/$(uname -r)`.
    pub(super) modules: &'a Path,
}

/// The modules that tests use. Those that a kernel has built in, or does not have, are skipped.
pub(super) const MODULES: &str = "ipvlan veth dummy macvlan bridge tun sch_ingress cls_bpf act_bpf sch_fq \
    nf_conntrack nf_nat iptable_nat ip6table_nat iptable_filter ip6table_filter iptable_mangle \
    ip6table_mangle iptable_raw ip6table_raw xt_conntrack xt_mark xt_connmark xt_comment \
    xt_addrtype xt_MASQUERADE xt_nat xt_REDIRECT xt_statistic xt_tcpudp xt_multiport nf_tables \
    nft_nat nft_ct overlay br_netfilter xt_recent";

/// The variables that guests get, by name and by prefix.
const ENV_NAMES: [&str; 7] = [
    "PATH",
    "TERM",
    "LANG",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
];
const ENV_PREFIXES: [&str; 3] = ["RUST_", "EBBTIDE_", "PROPTEST_"];

/// Writes the second stage for `request` into the guest's output directory.
pub(super) fn write(
    ws: &Workspace,
    request: &Request,
    out: &OutDir,
    ways: &Ways<'_>,
) -> Result<()> {
    let path = out.file(SCRIPT);
    let env: Vec<_> = environment(std::env::vars())
        .into_iter()
        .chain(request.env.iter().cloned())
        .collect();
    fs::write(&path, script(ws, &request.command, &env, ways))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Returns those of the variables `all` that a guest gets.
pub(super) fn environment(all: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    all.filter(|(name, _)| {
        ENV_NAMES.contains(&name.as_str())
            || ENV_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
    .collect()
}

/// Returns the text of the second stage.
fn script(ws: &Workspace, command: &[String], env: &[(String, String)], ways: &Ways<'_>) -> String {
    let path = |path: &Path| quote(&path.to_string_lossy());
    let exports: String = env
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", quote(value)))
        .collect();
    let words: Vec<String> = command.iter().map(|word| quote(word)).collect();
    include_str!("guest.sh")
        .replace("@EXPORTS@", &exports)
        .replace("@WORKSPACE@", &path(&ws.root))
        .replace("@TARGET@", &path(&ws.target))
        .replace("@MODULES_DIR@", &path(ways.modules))
        .replace("@MODULES@", MODULES)
        .replace("@MOUNT_OUT@", ways.mount_out)
        .replace("@OUTPUT@", ways.output)
        .replace("@OUT@", OUT)
        .replace("@COMMAND@", &words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_the_variables_that_configure_programs_and_no_others() {
        let all = [
            ("RUST_LOG", "debug"),
            ("PATH", "/bin"),
            ("SECRET", "x"),
            ("EBBTIDE_X", "1"),
        ];
        let got = environment(all.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())));
        let names: Vec<&str> = got.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["RUST_LOG", "PATH", "EBBTIDE_X"]);
    }

    #[test]
    fn the_script_is_complete_and_a_shell_can_read_it() {
        let ways = Ways {
            output: "/dev/out",
            mount_out: "mount x",
            modules: Path::new("/m/6.1"),
        };
        let env = [("RUST_LOG".to_owned(), "a='b'".to_owned())];
        let command = ["sh", "-c", "echo 'it is' $0"].map(String::from);
        let ws = Workspace {
            root: "/src/tree".into(),
            target: "/src/tree/target".into(),
        };
        let text = script(&ws, &command, &env, &ways);
        assert!(!text.contains('@'), "a placeholder is left: {text}");
        assert!(text.contains(r"export RUST_LOG='a='\''b'\'''"), "{text}");
        assert!(text.contains(r"sh -c 'echo '\''it is'\'' $0'"), "{text}");
        let read = std::process::Command::new("sh")
            .args(["-n", "-c", &text])
            .status();
        assert!(read.expect("sh runs").success());
    }
}
