//! What a test needs and a machine may lack, by the names that people and programs use for it.
//!
//! A test that is skipped says which of these it missed, and `cargo xtask test --require` takes the
//! same names.

use std::fmt;

/// Something that a test needs and a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Need {
    /// An API server's programs: etcd, kube-apiserver, kubectl.
    Kube,
    /// An API server that has admission policies: those of accounts (Kubernetes 1.30), and those that know addresses (1.31).
    Policies,
    /// The programs of a cluster's node: kubelet, containerd and what they call.
    Node,
    /// A machine that can hold guests, which a guest itself cannot.
    Host,
    /// The rights of root.
    Root,
    /// A kernel with ipvlan: this one, or a guest's.
    Ipvlan,
    /// A kernel with TCX (Linux 6.6).
    Tcx,
    /// `nft`, and a kernel that takes what it says.
    Nft,
    /// A kernel with SCTP.
    Sctp,
    /// A sandbox in which a process may trace its child.
    Ptrace,
    /// A CPU and a kernel with registers besides those of SSE.
    Xsave,
    /// A kernel whose BPF_PROG_TEST_RUN takes the interface by which a packet came in.
    Ingress,
}

impl Need {
    /// Its name for programs, which stays as it is: one word, in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kube => "kube",
            Self::Policies => "policies",
            Self::Node => "node",
            Self::Host => "host",
            Self::Root => "root",
            Self::Ipvlan => "ipvlan",
            Self::Tcx => "tcx",
            Self::Nft => "nft",
            Self::Sctp => "sctp",
            Self::Ptrace => "ptrace",
            Self::Xsave => "xsave",
            Self::Ingress => "ingress",
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_command_line_and_the_tests_use_the_same_names() {
        for need in Need::value_variants() {
            assert_eq!(Need::from_str(need.name(), false), Ok(*need), "{need}");
        }
    }
}
