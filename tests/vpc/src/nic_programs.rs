//! The eBPF programs on a node's links, attached by TCX links or as tc filters.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType};
use aya_obj::generated::{BPF_F_BEFORE, bpf_attach_type, bpf_cmd, bpf_prog_type};
use nix::libc;

use crate::{
    bpf,
    netns::Netns,
    snapshot::{ip, run},
};

/// The two hooks of a link, as in the names of pins and in `tc`.
const HOOKS: [(&str, TcAttachType); 2] = [
    ("ingress", TcAttachType::Ingress),
    ("egress", TcAttachType::Egress),
];

/// Whether this kernel has TCX (Linux 6.6). An older one does not know the hook and answers EINVAL (`bpf_prog_query` in
/// kernel/bpf/syscall.c; without `CONFIG_NET_XGRESS` include/net/tcx.h).
///
/// # Errors
/// If the kernel answers with another error, which says nothing about TCX and is no reason to skip a test.
pub fn has_tcx() -> Result<bool> {
    let queried = SchedClassifier::query_tcx("lo", TcAttachType::Ingress);
    known(queried).context("whether there is TCX")
}

/// Returns false if the kernel's answer means that it does not know the hook.
fn known<T>(queried: Result<T, ProgramError>) -> Result<bool> {
    match queried {
        Ok(_) => Ok(true),
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::EINVAL) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the IDs of the programs that TCX links attach to a link, at ingress and at egress, each in the order in
/// which they run.
///
/// # Errors
/// If there is no such link, or the kernel has no TCX.
pub fn by_tcx(node: &Netns, link: &str) -> Result<[Vec<u32>; 2]> {
    let ids = |(_, hook)| -> Result<Vec<u32>> {
        let link = link.to_owned();
        let (_, programs) = node.run(|| Ok(SchedClassifier::query_tcx(&link, hook)?))?;
        Ok(programs.iter().map(ProgramInfo::id).collect())
    };
    let [ingress, egress] = HOOKS;
    Ok([ids(ingress)?, ids(egress)?])
}

/// Returns whether the agent's program is attached at a link's ingress and at its egress.
///
/// # Errors
/// If `tc` fails, or there is no such link.
pub fn attached(node: &Netns, link: &str) -> Result<[bool; 2]> {
    let links = if has_tcx()? {
        by_tcx(node, link)?
    } else {
        Default::default()
    };
    let at = |number: usize| -> Result<bool> {
        let (hook, _) = HOOKS[number];
        let filters = run(node, "tc", &["filter", "show", "dev", link, hook])?;
        Ok(!links[number].is_empty() || filters.contains("host_"))
    };
    Ok([at(0)?, at(1)?])
}

/// Detaches the agent's programs from a link of its node, as `tc qdisc del` and `bpftool link detach` do. `bpf` is the
/// agent's directory in the bpf file system.
///
/// # Errors
/// If nothing is attached.
pub fn take_off(node: &Netns, link: &str, bpf: &Path) -> Result<()> {
    let index = node.netlink()?.index(link)?;
    let mut detached = false;
    for (hook, _) in HOOKS {
        let pin = bpf.join(format!("links/{index}-{hook}"));
        if pin.exists() {
            detach(&pin).with_context(|| format!("detaching {}", pin.display()))?;
            detached = true;
        }
    }
    if detached {
        return Ok(());
    }
    node.netlink()?.remove_clsact(link)
}

/// A foreign program, attached by a TCX link until this is dropped. It accepts every packet (`TC_ACT_OK`), so that no
/// program after it sees any.
#[derive(Debug)]
pub struct Decider {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Decider {
    /// Attaches the program at a link's ingress, after all others.
    ///
    /// # Errors
    /// If the kernel has no TCX, or there is no such link.
    pub fn new(node: &Netns, link: &str) -> Result<Self> {
        Self::attach(node, link, 0)
    }

    /// Attaches the program at a link's ingress, before all others.
    ///
    /// # Errors
    /// If the kernel has no TCX, or there is no such link.
    pub fn in_front(node: &Netns, link: &str) -> Result<Self> {
        Self::attach(node, link, BPF_F_BEFORE)
    }

    fn attach(node: &Netns, link: &str, flags: u32) -> Result<Self> {
        let index = node.netlink()?.index(link)?;
        let program = accept().context("loading a program that accepts")?;
        let mut attr = bpf::attribute();
        attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
        attr.link_create.__bindgen_anon_2.target_ifindex = index;
        attr.link_create.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
        attr.link_create.flags = flags;
        let link = node.run(|| Ok(bpf::open(bpf_cmd::BPF_LINK_CREATE, &mut attr)?))?;
        Ok(Self {
            program,
            _link: link,
        })
    }

    /// Returns the program's descriptor.
    #[must_use]
    pub fn program(&self) -> RawFd {
        self.program.as_raw_fd()
    }
}

/// Loads a program that does nothing: `r0 = TC_ACT_OK; exit`.
///
/// # Errors
/// If the kernel refuses it.
pub fn accept() -> io::Result<OwnedFd> {
    const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
    let mut attr = bpf::attribute();
    attr.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    attr.__bindgen_anon_3.insns = INSTRUCTIONS.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = 2;
    attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    bpf::open(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

/// Makes the node's agent compare its plans with the kernel. It does so by removing a rule: the kernel announces that,
/// but not what is done to links.
///
/// # Errors
/// If the kernel refuses the rule.
pub fn make_it_look(node: &Netns) -> Result<()> {
    for change in ["add", "del"] {
        ip(node, &["rule", change, "pref", "31000", "lookup", "main"])?;
    }
    Ok(())
}

/// Detaches the TCX link that is pinned here. Whoever still holds the link holds a detached one.
fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = bpf::attribute();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let link = bpf::open(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    let mut attr = bpf::attribute();
    attr.link_detach.link_fd = link.as_raw_fd().cast_unsigned();
    bpf::bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn only_a_kernel_that_does_not_know_the_hook_has_no_tcx() -> Result<()> {
        let failed = |errno| -> Result<(), ProgramError> {
            let call = "bpf_prog_query";
            let io_error = io::Error::from_raw_os_error(errno);
            Err(SyscallError { call, io_error }.into())
        };
        assert!(known(Ok(()))?);
        assert!(!known(failed(libc::EINVAL))?);
        for errno in [libc::EPERM, libc::ENOMEM, libc::ENODEV, libc::E2BIG] {
            known(failed(errno)).expect_err("an error of another kind");
        }
        Ok(())
    }
}
