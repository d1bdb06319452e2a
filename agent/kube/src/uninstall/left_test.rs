//! What `helm test` leaves: its pod, for the log; and after a test that failed also the account, its rights and the namespace,
//! since Helm deletes what a test made only if it passes (`execHook`, pkg/action/hooks.go).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, GroupVersionKind};

/// The name of all of it but the namespace, and the value of its label.
const NAME: &str = "ebbtide-connectivity";
const LABEL: &str = "app.kubernetes.io/name";

/// What the namespace of the test's pods has behind the name of the agents'.
const SUFFIX: &str = "-connectivity";

/// The length of a label: no namespace has a longer name.
const LONGEST: usize = 63;

/// Returns the kinds, each with its namespace, for agents in `namespace`; that of the cluster's own objects is empty. What
/// gives rights comes first.
pub(super) fn kinds(namespace: &str) -> [(ApiResource, String); 7] {
    const RIGHTS: &str = "rbac.authorization.k8s.io";
    [
        (RIGHTS, "ClusterRoleBinding", ""),
        (RIGHTS, "RoleBinding", namespace),
        (RIGHTS, "ClusterRole", ""),
        (RIGHTS, "Role", namespace),
        ("", "ServiceAccount", namespace),
        ("", "Pod", namespace),
        // With its Role, its RoleBinding, and the test's pods.
        ("", "Namespace", ""),
    ]
    .map(|(group, kind, namespace)| {
        let types = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        (types, namespace.to_owned())
    })
}

/// Returns the name of the object of this kind.
pub(super) fn name(types: &ApiResource, namespace: &str) -> String {
    match types.kind.as_str() {
        "Namespace" if namespace.len() + SUFFIX.len() <= LONGEST => format!("{namespace}{SUFFIX}"),
        // What is cut off may be the agents' own namespace.
        _ => NAME.to_owned(),
    }
}

/// Whether the chart made it, as others may have an object of this name, and nobody has deleted it yet.
pub(super) fn is_left(meta: &ObjectMeta) -> bool {
    let labels = meta.labels.as_ref();
    let labels = labels.filter(|_| meta.deletion_timestamp.is_none());
    labels
        .and_then(|labels| labels.get(LABEL))
        .map(String::as_str)
        == Some(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_the_chart_s_names() {
        // The longest name that has room behind it, and those that have not.
        let [longest, longer, label] = [50, 51, 63].map(|length| "n".repeat(length));
        for (namespace, expected) in [
            ("ebbtide-system", "ebbtide-system-connectivity"),
            (&longest, &format!("{longest}-connectivity")),
            (&longer, NAME),
            (&label, NAME),
        ] {
            for (types, _) in kinds(namespace) {
                let name = name(&types, namespace);
                match types.kind.as_str() {
                    "Namespace" => assert_eq!(name, expected),
                    _ => assert_eq!(name, NAME),
                }
            }
        }
    }

    #[test]
    fn what_has_another_s_label_or_none_is_left() {
        for (label, expected) in [(Some(NAME), true), (Some("theirs"), false), (None, false)] {
            let meta = ObjectMeta {
                labels: label.map(|label| [(LABEL.to_owned(), label.to_owned())].into()),
                ..ObjectMeta::default()
            };
            assert_eq!(is_left(&meta), expected, "{label:?}");
        }
    }
}
