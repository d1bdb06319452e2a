//! Whether metrics and probes can be asked for.

use super::{Finding, Severity};

/// Reports `fault`, which keeps them from being served.
pub(super) fn unserved(fault: Option<String>) -> Option<Finding> {
    let fault = fault?;
    Some(Finding {
        severity: Severity::Warning,
        what: format!("metrics and probes are not served at {fault}"),
        hint: "`metrics.address` of the agent's configuration (in the chart: metrics.port) says where they are; pods are served \
               all the same, and it is tried again every few seconds"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_had_is_a_warning() {
        assert_eq!(unserved(None), None);
        let found = unserved(Some("127.0.0.1:19464: in use".into())).unwrap();
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.what.contains("127.0.0.1:19464"), "{found}");
    }
}
