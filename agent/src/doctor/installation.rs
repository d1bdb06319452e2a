//! Whether the plugin and its configuration are installed on the host.

use super::{Finding, Severity};

/// Reports `fault`, which keeps them from being installed.
pub(super) fn missing(fault: Option<String>) -> Option<Finding> {
    let fault = fault?;
    Some(Finding {
        severity: Severity::Serious,
        what: format!(
            "plugin and network configuration are not on the host as they should be: {fault}"
        ),
        hint: "correct what it names: it is tried again every few seconds. Until then new pods may have no network \
                  of ours; running pods and their removal are served"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hinders_the_installation_is_serious_and_is_named() {
        assert_eq!(missing(None), None);
        let found = missing(Some("read /etc/cni/net.d/x: Is a directory".into())).unwrap();
        assert_eq!(found.severity, Severity::Serious);
        assert!(found.what.contains("/etc/cni/net.d/x"), "{found}");
        assert!(found.hint.contains("tried again"), "{found}");
    }
}
