//! Formats a plan as text for people.

use std::fmt;

use super::{PodNet, metadata};
use crate::netlink::model::NamespacePlan;

impl fmt::Display for PodNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pod {}, network {}", self.pod, self.network)?;
        for pod in &self.addresses {
            write!(f, "  {} from pool {}", pod.address, pod.pool)?;
            match pod.gateway {
                Some(gateway) => writeln!(f, ", gateway {gateway}")?,
                None => writeln!(f, ", no gateway")?,
            }
        }
        writeln!(f, "\nin the pod ({}):", self.netns.display())?;
        match &self.ipvlan {
            Some(ipvlan) => writeln!(
                f,
                "  link {}: ipvlan {} on {}, mtu {}",
                ipvlan.name, ipvlan.mode, ipvlan.master, ipvlan.mtu
            )?,
            None => writeln!(f, "  link {}: made by another plugin", self.interface)?,
        }
        if let Some(veth) = &self.veth {
            writeln!(
                f,
                "  link {}: veth to {} in the host, {}, mtu {}",
                veth.pod_name, veth.host_name, veth.pod_mac, veth.mtu
            )?;
        }
        objects(f, &self.in_pod)?;
        if let Some(metadata) = metadata::text(self.metadata) {
            writeln!(f, "  the cloud's metadata service: {metadata}")?;
        }
        if let Some(bandwidth) = self.bandwidth() {
            writeln!(
                f,
                "  bandwidth, shared by the pod's interfaces: {bandwidth}"
            )?;
        }
        writeln!(f, "\nin the host:")?;
        if let Some(veth) = &self.veth {
            writeln!(
                f,
                "  link {}: veth to {} in the pod, {}, mtu {}",
                veth.host_name, veth.pod_name, veth.host_mac, veth.mtu
            )?;
        }
        objects(f, &self.in_host)
    }
}

fn objects(f: &mut fmt::Formatter<'_>, plan: &NamespacePlan) -> fmt::Result {
    fn lines<T: fmt::Display>(f: &mut fmt::Formatter<'_>, objects: &[T]) -> fmt::Result {
        objects
            .iter()
            .try_for_each(|object| writeln!(f, "  {object}"))
    }
    lines(f, &plan.addresses)?;
    lines(f, &plan.routes)?;
    lines(f, &plan.rules)?;
    lines(f, &plan.neighbours)?;
    lines(f, &plan.filters)?;
    lines(f, &plan.queues)?;
    lines(f, &plan.sysctls)
}
