//! The programs that the plans attach in the host.

use crate::{
    datapath::HOST_PROGRAMS,
    netlink::model::{Direction, Filter},
};

/// Returns the programs on the host's end of a pod's veth; `only_from` guards what comes from the pod.
#[must_use]
pub fn veth_filters(link: &str, only_from: Option<u16>) -> Vec<Filter> {
    let filters = filters(link, "host_veth_")
        .into_iter()
        .map(|filter| Filter {
            only_from: only_from.filter(|_| filter.direction == Direction::Ingress),
            ..filter
        });
    filters.collect()
}

pub(super) fn filters(link: &str, prefix: &str) -> Vec<Filter> {
    HOST_PROGRAMS
        .iter()
        .filter(|program| program.name.starts_with(prefix))
        .map(|program| Filter {
            link: link.to_owned(),
            direction: program.direction,
            program: program.name.to_owned(),
            only_from: None,
        })
        .collect()
}
