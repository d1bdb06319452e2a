//! Pods that could not be reconciled.

use super::{Finding, Severity};
use crate::reconcile::{Item, Key};

/// Returns a finding for each container that is not in the desired state. The node's failures have findings of their
/// own.
pub(super) fn failing(items: Vec<Item>) -> impl Iterator<Item = Finding> {
    let of_pods = items.into_iter().filter(|item| item.key != Key::Node);
    of_pods.map(|Item { key, failing, .. }| {
        let failure = &failing.failure;
        let whose = match &failure.interface {
            Some(interface) => format!("{} of pod {}", interface.name, interface.pod),
            None => key.to_string(),
        };
        Finding {
            severity: Severity::Serious,
            what: format!(
                "{whose} is not as it should be, after {} attempt(s): {failure}",
                failing.attempts
            ),
            hint: "it is tried again, and at once when the node or a manifest changes: see what the error names, or \
                      delete the pod"
                .to_owned(),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::reconcile::{Failing, Failure};

    #[test]
    fn a_pod_s_interface_is_named_with_its_last_error_and_the_node_is_not() {
        let item = |key, failure| Item {
            key,
            failing: Failing {
                failure,
                since: Instant::now(),
                attempts: 3,
            },
            next: None,
        };
        let of_pod = Failure::of_interface("default/web", "net1", "the kernel says no");
        let items = vec![
            item(Key::Node, Failure::new("refused")),
            item(Key::container("c"), of_pod),
        ];
        let said: Vec<String> = failing(items).map(|finding| finding.what).collect();
        assert_eq!(
            said,
            [
                "net1 of pod default/web is not as it should be, after 3 attempt(s): the kernel says no"
            ]
        );
    }
}
