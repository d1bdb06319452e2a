//! Lists, types and other surroundings of objects in what users and kubectl write.

use super::*;

const SPEC: &str = "{subnet: 10.74.0.0/24, ips: [10.74.0.10]}";

fn item(name: &str) -> String {
    format!(
        "{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {{name: {name}, uid: u, \
         resourceVersion: '7', managedFields: [{{manager: kubectl}}]}}, spec: {SPEC}, status: {{totalIPCount: 1}}}}"
    )
}

fn names(catalog: &Catalog) -> Vec<&str> {
    catalog
        .pools()
        .iter()
        .map(|pool| pool.name.as_str())
        .collect()
}

#[test]
fn what_kubectl_get_writes_is_read_whatever_it_is_wrapped_in() {
    let other = "{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: b}, \
                 spec: {subnet: 10.75.0.0/24}}";
    let bare = format!("{{metadata: {{name: a}}, spec: {SPEC}}}");
    for (text, expected) in [
        (
            format!(
                "{{apiVersion: v1, kind: List, metadata: {{resourceVersion: ''}}, items: [{}, {other}]}}",
                item("a")
            ),
            &["a", "b"][..],
        ),
        (
            format!(
                "{{apiVersion: v1, kind: List, items: [{{apiVersion: v1, kind: List, items: [{}]}}, {other}]}}",
                item("a")
            ),
            &["a", "b"],
        ),
        // The API server's own form: its items have no types.
        (
            format!(
                "{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPoolList, items: [{bare}]}}"
            ),
            &["a"],
        ),
        ("{apiVersion: v1, kind: List, items: []}".into(), &[]),
        ("{apiVersion: v1, kind: List, items: null}".into(), &[]),
        (item("a").replace(", ", ",\r\n  "), &["a"]),
    ] {
        let catalog = catalog(&text);
        assert_eq!(catalog.problems(), [], "{text}");
        assert_eq!(names(&catalog), expected, "{text}");
    }
}

#[test]
fn a_bad_item_of_a_list_spoils_no_other() {
    let text = format!(
        "kind: List\napiVersion: v1\nitems:\n- {}\n- {{apiVersion: v1, kind: Secret, metadata: {{name: s}}}}\n- 7\n",
        item("a")
    );
    let found = catalog(&text);
    assert_eq!(names(&found), ["a"]);
    let objects: Vec<_> = found
        .problems()
        .iter()
        .map(|problem| problem.object.as_deref())
        .collect();
    assert_eq!(objects, [Some("Secret s"), Some("object (no name)")]);
    let found = catalog("{kind: List, apiVersion: v1, items: 7}");
    assert_eq!(found.problems()[0].field.as_deref(), Some("items"));
    let mut deep = item("a");
    for _ in 0..100 {
        deep = format!("{{apiVersion: v1, kind: List, items: [{deep}]}}");
    }
    let found = catalog(&deep);
    assert_eq!((names(&found).len(), found.problems().len()), (0, 1));
}

#[test]
fn yaml_is_read_as_kubectl_reads_it() {
    let text = "--- # the pool\r\napiVersion: spiderpool.spidernet.io/v2beta1\r\nkind: SpiderIPPool\r\n\
                metadata: {name: says-yes}\r\nspec: {subnet: 10.75.0.0/24, default: yes, disable: FALSE}\r\n\
                ---\n\
                apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: {name: merged}\nspec:\n  \
                <<: &common {gateway: 10.76.0.1, default: true}\n  subnet: 10.76.0.0/24\n  ips: [10.76.0.10]\n\
                ---\n\
                apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: &meta {name: twice}\nspec:\n  \
                <<: [{gateway: 10.77.0.1}, {gateway: 10.77.0.2, ips: [10.77.0.10]}]\n  subnet: 10.77.0.0/24\n";
    let catalog = catalog(text);
    assert_eq!(catalog.problems(), []);
    let shown: Vec<_> = catalog
        .pools()
        .iter()
        .map(|pool| {
            let gateway = pool.gateway.map(|gateway| gateway.to_string());
            (
                pool.name.as_str(),
                pool.default,
                gateway.unwrap_or_default(),
                pool.ranges.to_string(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("says-yes", true, String::new(), String::new()),
            ("merged", true, "10.76.0.1".into(), "10.76.0.10".into()),
            ("twice", false, "10.77.0.1".into(), "10.77.0.10".into()),
        ]
    );
}

#[test]
fn a_merge_that_is_none_is_named() {
    let catalog = catalog(&pool("a", "{<<: 7, subnet: 10.0.0.0/24}"));
    assert_eq!(catalog.pools(), []);
    let [problem] = catalog.problems() else {
        panic!("{:?}", catalog.problems())
    };
    assert!(problem.message.contains("is not YAML"), "{problem}");
}

#[test]
fn what_the_controller_published_is_not_read_back_and_its_mark_alone_changes_nothing() {
    let object = |name: &str, annotations: &str, owners: &str| {
        let text = format!(
            "{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {{name: {name}, annotations: \
             {annotations}, ownerReferences: {owners}}}, spec: {{subnet: 10.0.0.0/24, ips: [10.0.0.5]}}}}"
        );
        let value: serde_json::Value = ebbtide_types::yaml::read(&text).unwrap();
        (text, value)
    };
    let marked = "{ebbtide.io/derived: AWS eni-6}";
    let node = "[{apiVersion: v1, kind: Node, name: node1, uid: u}]";
    let (text, published) = object("node1-ens6-v4", marked, node);
    let found = Catalog::from_objects([&published]);
    assert_eq!(found, Catalog::default());
    // Somebody who put it into a file is told.
    let found = catalog(&text);
    assert!(found.pools().is_empty());
    let problem = found.problems()[0].to_string();
    assert!(problem.contains("is not read back"), "{problem}");

    for (name, owners) in [("node1-ens6-v4", "[]"), ("mine", node)] {
        let (_, own) = object(name, marked, owners);
        let found = Catalog::from_objects([&own]);
        assert_eq!(found.pools().len(), 1, "{name}");
        let problem = found.problems()[0].to_string();
        assert!(
            problem.contains("metadata.annotations[ebbtide.io/derived]: is the controller's mark"),
            "{problem}"
        );
    }
}
