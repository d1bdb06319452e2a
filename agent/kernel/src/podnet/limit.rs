//! Plans the limit of a pod's bandwidth: programs behind the others at each of Ebbtide's interfaces in the pod, and the
//! queueing discipline that keeps what they delay. Pods without a limit have none of it.

use ebbtide_types::bandwidth::Bandwidth;

use super::PlanError;
use crate::netlink::model::{Direction, FairQueue, Filter, LIMIT_PROGRAMS, NamespacePlan};

/// Returns the limit of an interface: that which the pod has by another one, or that which is requested.
pub(super) fn agreed(
    existing: Option<Bandwidth>,
    requested: Option<Bandwidth>,
) -> Result<Option<Bandwidth>, PlanError> {
    match (existing, requested) {
        (Some(existing), Some(requested)) if existing != requested => Err(PlanError::OtherLimit {
            existing,
            requested,
        }),
        _ => Ok(existing.or(requested)),
    }
}

/// Adds what limits the links of the pod that this number identifies.
pub(super) fn plan<'a>(
    bandwidth: &Bandwidth,
    links: impl Iterator<Item = &'a str>,
    pod: u16,
    plan: &mut NamespacePlan,
) {
    for link in links {
        for (program, direction) in LIMIT_PROGRAMS {
            let rate = match direction {
                Direction::Egress => bandwidth.egress,
                Direction::Ingress => bandwidth.ingress,
            };
            if rate.is_none() {
                continue;
            }
            if direction == Direction::Egress {
                plan.queues.push(FairQueue {
                    link: link.to_owned(),
                });
            }
            plan.filters.push(Filter {
                link: link.to_owned(),
                direction,
                program: program.to_owned(),
                only_from: Some(pod),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use ebbtide_types::bandwidth::Rate;

    use super::*;

    fn limit(egress: u64, ingress: u64) -> Option<Bandwidth> {
        let rate = |rate| Rate::egress(rate, None).unwrap();
        Bandwidth::of(rate(egress), rate(ingress))
    }

    #[test]
    fn a_pod_has_one_limit() {
        let (some, other) = (limit(1_000_000, 0), limit(2_000_000, 0));
        for (existing, requested, expected) in [
            (None, None, Some(None)),
            (some, None, Some(some)),
            (None, some, Some(some)),
            (some, some, Some(some)),
            (some, other, None),
        ] {
            assert_eq!(agreed(existing, requested).ok(), expected);
        }
    }

    #[test]
    fn each_direction_costs_only_what_it_needs() {
        for (egress, ingress, programs, queues) in [
            (1_000_000, 0, &["limit_egress"][..], 1),
            (0, 1_000_000, &["limit_ingress"], 0),
            (1_000_000, 1_000_000, &["limit_egress", "limit_ingress"], 1),
        ] {
            let mut made = NamespacePlan::default();
            let limit = limit(egress, ingress).unwrap();
            plan(&limit, ["eth0", "veth0"].into_iter(), 7, &mut made);
            for link in ["eth0", "veth0"] {
                let at = made.filters.iter().filter(|filter| filter.link == link);
                let names: Vec<&str> = at.map(|filter| filter.program.as_str()).collect();
                assert_eq!(names, programs);
                let at = made.queues.iter().filter(|queue| queue.link == link);
                assert_eq!(at.count(), queues);
            }
            assert!(
                made.filters
                    .iter()
                    .all(|f| f.is_limit() && f.only_from == Some(7))
            );
        }
    }
}
