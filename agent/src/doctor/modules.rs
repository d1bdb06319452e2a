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

/// Kernel modules, and what is missing without them.
struct Need {
    severity: Severity,
    modules: &'static str,
    without: &'static str,
}

const VETH: Need = Need {
    severity: Severity::Serious,
    modules: "veth",
    without: "no pod gets a network",
};
const IPVLAN: Need = Need {
    severity: Severity::Serious,
    modules: "ipvlan",
    without: "no pod gets an interface on a NIC",
};
const DUMMY: Need = Need {
    severity: Severity::Warning,
    modules: "dummy",
    without: "pods reach Services only where the Service proxy masquerades",
};
const FILTERS: Need = Need {
    severity: Severity::Serious,
    modules: "sch_ingress and cls_bpf",
    without: "no program can be attached, and no pod gets a network",
};
const FAIR_QUEUE: Need = Need {
    severity: Severity::Note,
    modules: "sch_fq",
    without: "no pod with a limit of what it sends (kubernetes.io/egress-bandwidth) gets a network",
};

/// Reports what this kernel cannot make; one of `programs` serves as the filter.
pub(super) async fn missing(programs: Programs) -> Vec<Finding> {
    let trial = tokio::task::spawn_blocking(move || {
        let program = programs.fd(PROGRAM).unwrap_or(-1);
        Netns::in_new(|netns| trials(netns, program))?
    });
    let tried = trial.await;
    let tried = tried.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    tried.unwrap_or_else(|e| {
        vec![Finding {
            severity: Severity::Note,
            what: format!("what this kernel can make could not be tried: {e}"),
            hint: "run the agent as root of the machine".to_owned(),
        }]
    })
}

fn trials(netns: &Netns, program: RawFd) -> Result<Vec<Finding>, netlink::Error> {
    let mac = |last| Mac([2, 0, 0, 0, 0, last]);
    let mut kernel = Direct::open("in a namespace to try things in")?;
    let mut findings = Vec::new();
    let veth = Veth {
        host_name: BELOW.to_owned(),
        host_mac: mac(1),
        pod_name: "other".to_owned(),
        pod_mac: mac(2),
        mtu: MTU,
    };
    let mut batch = Batch::default();
    batch.add_veth(&veth, netns.raw_fd());
    findings.extend(judge(&VETH, kernel.run(batch))?);
    let mut batch = Batch::default();
    batch.add_dummy("dummy", mac(3));
    findings.extend(judge(&DUMMY, kernel.run(batch))?);
    // Whichever of the two could be made.
    let there = kernel.links(&[BELOW, "dummy"])?;
    let Some(below) = there.values().next() else {
        return Ok(findings);
    };
    let ipvlan = Ipvlan {
        name: "child".to_owned(),
        master: below.name.clone(),
        mode: IpvlanMode::L3,
        mtu: MTU,
    };
    let mut batch = Batch::default();
    batch.add_ipvlan(&ipvlan, below.ifindex, netns.raw_fd(), false);
    findings.extend(judge(&IPVLAN, kernel.run(batch))?);
    let filter = Filter {
        link: below.name.clone(),
        direction: Direction::Ingress,
        program: PROGRAM.to_owned(),
        only_from: None,
    };
    let mut batch = Batch::default();
    batch.add_filter(&filter, below.ifindex, program);
    findings.extend(judge(&FILTERS, kernel.run(batch))?);
    let queue = FairQueue {
        link: below.name.clone(),
    };
    let mut batch = Batch::default();
    batch.add_queue(&queue, below.ifindex);
    findings.extend(judge(&FAIR_QUEUE, kernel.run(batch))?);
    Ok(findings)
}

/// Tells a missing module from other errors. For unknown kinds of links the kernel returns `EOPNOTSUPP`
/// (`__rtnl_newlink`, net/core/rtnetlink.c), for unknown queueing disciplines and classifiers `ENOENT`
/// (`qdisc_create`, `tcf_proto_lookup_ops`, net/sched).
fn judge(
    need: &Need,
    tried: Result<(), netlink::Error>,
) -> Result<Option<Finding>, netlink::Error> {
    const UNKNOWN: [Errno; 2] = [Errno::EOPNOTSUPP, Errno::ENOENT];
    match tried {
        Ok(()) => Ok(None),
        Err(e)
            if e.errno()
                .is_some_and(|errno| UNKNOWN.map(|e| e as i32).contains(&errno)) =>
        {
            let Need {
                severity,
                modules,
                without,
            } = need;
            Ok(Some(Finding {
                severity: *severity,
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
        assert_eq!(judge(&IPVLAN, Ok(())).unwrap(), None);
        let found = judge(&IPVLAN, refused(Errno::EOPNOTSUPP)).unwrap().unwrap();
        assert!(found.what.contains("lacks ipvlan"), "{found}");
        assert!(found.hint.contains("modprobe"), "{found}");
        assert!(judge(&FILTERS, refused(Errno::ENOENT)).unwrap().is_some());
        assert!(judge(&VETH, refused(Errno::EPERM)).is_err());
    }
}
