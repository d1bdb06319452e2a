//! The programs that the plans attach in the host.

use crate::{
    datapath::HOST_PROGRAMS,
    netlink::model::{Direction, Filter},
};

/// Returns the programs on the host's end of a pod's veth; `only_from` guards what comes from the pod. `several_nics`: the
/// pod must be told by which NIC a request came ([`NodeFacts::may_have_several_nics`](super::NodeFacts)).
#[must_use]
pub fn veth_filters(link: &str, only_from: Option<u16>, several_nics: bool) -> Vec<Filter> {
    let filters = filters(link, "host_veth_").into_iter();
    let wanted = filters.filter(|filter| several_nics || filter.direction == Direction::Ingress);
    wanted
        .map(|filter| Filter {
            only_from: only_from.filter(|_| filter.direction == Direction::Ingress),
            ..filter
        })
        .collect()
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
