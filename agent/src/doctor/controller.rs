//! Whether a controller is at work, which writes the objects that belong to no node.

use std::time::Duration;

use ebbtide_kube::leader;

use super::{Finding, Severity};
use crate::agent::Agent;

/// A controller whose Lease was not renewed for this long is missing. It is long because nodes' clocks differ.
const SILENCE: Duration = Duration::from_secs(300);

/// Reports that no controller is at work; `None` without an API server, or if it does not answer.
pub(super) async fn absent(agent: &Agent) -> Option<Finding> {
    let cluster = agent.cluster.as_ref()?;
    finding(leader::silent_for(cluster).await?)
}

fn finding(silent: Option<Duration>) -> Option<Finding> {
    let since = match silent {
        Some(silent) if silent < SILENCE => return None,
        Some(silent) => format!("for {} min", silent.as_secs() / 60),
        None => "since there is this cluster".to_owned(),
    };
    Some(Finding {
        severity: Severity::Warning,
        what: format!("no controller has been at work {since}, by this node's clock"),
        hint: "see why no pod of the Deployment ebbtide-controller is (`kubectl get pods -A -o wide -l \
                  app.kubernetes.io/name=ebbtide-controller`); until one is, new pools that nodes share have no leases, and \
                  neither networks' definitions nor pools' status are written"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_is_silent_for_long_or_was_never_there_is_missed_and_one_that_is_late_is_not()
     {
        for (silent, said) in [
            (Some(0), None),
            (Some(299), None),
            (Some(300), Some("for 5 min")),
            (Some(7260), Some("for 121 min")),
            (None, Some("since there is this cluster")),
        ] {
            let found = finding(silent.map(Duration::from_secs));
            match (&found, said) {
                (None, None) => {}
                (Some(found), Some(said)) => assert!(found.what.contains(said), "{found}"),
                (found, said) => panic!("{silent:?}: {found:?}, not {said:?}"),
            }
        }
    }
}
