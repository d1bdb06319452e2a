//! Whether this kernel can make what pods need, by trying it in a temporary namespace. Only the kernel knows whether a
//! module is available: it may be built in, or be on a disk that the agent's container does not see.

use std::os::fd::RawFd;

use ebbtide_kernel::{
    datapath::Programs,
    netlink::{
        self, Batch,
        direct::Direct,
        link::{Ipvlan, Veth},
        model::{Direction, FairQueue, Filter},
        netns::Netns,
    },
};
use ebbtide_types::{IpvlanMode, Mac};
use nix::errno::Errno;

use super::{Finding, Severity};

/// One of Ebbtide's programs.
const PROGRAM: &str = "veth_ingress";
/// The link that everything is tried on.
const BELOW: &str = "below";
/// An MTU that the kernel accepts.
const MTU: u32 = 1500;

/// What pods need of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Veth,
    Dummy,
    Ipvlan,
    Filters,
    FairQueue,
}

impl Need {
    pub(super) const ALL: [Self; 5] = [
        Self::Veth,
        Self::Dummy,
        Self::Ipvlan,
        Self::Filters,
        Self::FairQueue,
    ];

    /// Returns the names of the kernel modules that it is in.
    pub(super) const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Veth => &["veth"],
            Self::Dummy => &["dummy"],
            Self::Ipvlan => &["ipvlan"],
            Self::Filters => &["sch_ingress", "cls_bpf"],
            Self::FairQueue => &["sch_fq"],
        }
    }

    /// Returns what is not possible without it, and how bad that is.
    const fn without(self) -> (Severity, &'static str) {
        match self {
            Self::Veth => (Severity::Serious, "no pod gets a network"),
            Self::Dummy => (
                Severity::Warning,
                "pods reach Services only where the Service proxy masquerades",
            ),
            Self::Ipvlan => (Severity::Serious, "no pod gets an interface on a NIC"),
            Self::Filters => (
                Severity::Serious,
                "no program can be attached, and no pod gets a network",
            ),
            Self::FairQueue => (
                Severity::Note,
                "no pod with a limit of what it sends (kubernetes.io/egress-bandwidth) gets a network",
            ),
        }
    }

    /// Returns the messages that try it, on the link `name` where one is needed.
    pub(super) fn batch(self, name: &str, ifindex: u32, netns: &Netns, program: RawFd) -> Batch {
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let mut batch = Batch::default();
        match self {
            Self::Veth => {
                let veth = Veth {
                    host_name: BELOW.to_owned(),
                    host_mac: mac(1),
                    pod_name: "other".to_owned(),
                    pod_mac: mac(2),
                    mtu: MTU,
                };
                batch.add_veth(&veth, netns.raw_fd());
            }
            Self::Dummy => batch.add_dummy("dummy", mac(3)),
            Self::Ipvlan => {
                let ipvlan = Ipvlan {
                    name: "child".to_owned(),
                    master: name.to_owned(),
                    mode: IpvlanMode::L3,
                    mtu: MTU,
                };
                batch.add_ipvlan(&ipvlan, ifindex, netns.raw_fd(), false);
            }
            Self::Filters => {
                let filter = Filter {
                    link: name.to_owned(),
                    direction: Direction::Ingress,
                    program: PROGRAM.to_owned(),
                    only_from: None,
                };
                batch.add_filter(&filter, ifindex, program);
            }
            Self::FairQueue => {
                let link = name.to_owned();
                batch.add_queue(&FairQueue { link }, ifindex);
            }
        }
        batch
    }
}

/// Reports what this kernel cannot make; one of `programs` serves as the filter.
pub(super) async fn missing(programs: Programs) -> Vec<Finding> {
    let trial = tokio::task::spawn_blocking(move || {
        let program = programs.fd(PROGRAM).unwrap_or(-1);
        Netns::in_new(|netns| trials(netns, program))?
    });
    let tried = trial.await;
    let tried = tried.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    tried.unwrap_or_else(|e| vec![not_tried(&e)])
}

/// Says that nothing is known.
pub(super) fn not_tried(error: &netlink::Error) -> Finding {
    Finding {
        severity: Severity::Note,
        what: format!("what this kernel can make could not be tried: {error}"),
        hint: "run this as root of the machine".to_owned(),
    }
}

fn trials(netns: &Netns, program: RawFd) -> Result<Vec<Finding>, netlink::Error> {
    let mut kernel = Direct::open("in a namespace to try things in")?;
    let mut findings = Vec::new();
    for need in [Need::Veth, Need::Dummy] {
        let tried = kernel.run(need.batch("", 0, netns, program));
        findings.extend(judge(need, tried)?);
    }
    // Whichever of the two could be made.
    let there = kernel.links(&[BELOW, "dummy"])?;
    let Some(below) = there.values().next() else {
        return Ok(findings);
    };
    for need in [Need::Ipvlan, Need::Filters, Need::FairQueue] {
        let tried = kernel.run(need.batch(&below.name, below.ifindex, netns, program));
        findings.extend(judge(need, tried)?);
    }
    Ok(findings)
}

/// Tells a missing module from other errors. For unknown kinds of links the kernel returns `EOPNOTSUPP`
/// (`__rtnl_newlink`, net/core/rtnetlink.c), for unknown queueing disciplines and classifiers `ENOENT`
/// (`qdisc_create`, `tcf_proto_lookup_ops`, net/sched).
pub(super) fn judge(
    need: Need,
    tried: Result<(), netlink::Error>,
) -> Result<Option<Finding>, netlink::Error> {
    const UNKNOWN: [Errno; 2] = [Errno::EOPNOTSUPP, Errno::ENOENT];
    match tried {
        Ok(()) => Ok(None),
        Err(e)
            if e.errno()
                .is_some_and(|errno| UNKNOWN.map(|e| e as i32).contains(&errno)) =>
        {
            let modules = need.modules().join(" and ");
            let (severity, without) = need.without();
            Ok(Some(Finding {
                severity,
                what: format!("this kernel lacks {modules}: {without}"),
                hint: format!(
                    "`modprobe` {modules}; where there is no such module, it is in another package of the \
                     distribution's (as linux-modules-extra) or the kernel was built without it"
                ),
            }))
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_the_kernel_does_not_know_is_a_finding_and_other_trouble_is_none() {
        let refused = |errno: Errno| {
            let error = io::Error::from_raw_os_error(errno as i32);
            Err(netlink::Error::new("make it", error))
        };
        assert_eq!(judge(Need::Ipvlan, Ok(())).unwrap(), None);
        let found = judge(Need::Ipvlan, refused(Errno::EOPNOTSUPP))
            .unwrap()
            .unwrap();
        assert!(found.what.contains("lacks ipvlan"), "{found}");
        assert!(found.hint.contains("modprobe"), "{found}");
        assert!(
            judge(Need::Filters, refused(Errno::ENOENT))
                .unwrap()
                .is_some()
        );
        assert!(judge(Need::Veth, refused(Errno::EPERM)).is_err());
    }
}
