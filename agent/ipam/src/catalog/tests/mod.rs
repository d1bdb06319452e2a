use std::path::Path;

use ebbtide_types::{Family, IpvlanMode};

use super::*;

mod address;
mod derived;
mod documents;
mod files;
mod networks;
mod no_effect;
mod pools;
mod reserved;

/// Reads one text as the file `m.yaml`.
fn catalog(text: &str) -> Catalog {
    Catalog::from_texts([(Path::new("m.yaml"), text)])
}

/// A `SpiderIPPool` document with this `spec` (in YAML flow style).
fn pool(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn network(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderMultusConfig\nmetadata: {{{name}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_bad_document_is_reported_with_its_place_and_spoils_no_other() {
    let good = "{subnet: 10.0.0.0/24, ips: [10.0.0.5]}";
    let cases = [
        ("apiVersion: [", None, "is not YAML"),
        (
            "{kind: ConfigMap, apiVersion: v1, metadata: {name: x}}",
            Some("kind"),
            "not read by this agent",
        ),
        (
            "{kind: SpiderReservedIP, apiVersion: x}",
            Some("apiVersion"),
            "v2beta1",
        ),
        ("{foo: bar}", Some("kind"), "is missing"),
        ("just text", Some("kind"), "is missing"),
        (
            "{kind: SpiderIPPool, apiVersion: spiderpool.spidernet.io/v1, spec: {}}",
            Some("apiVersion"),
            "v2beta1",
        ),
        (
            "{kind: SpiderIPPool, apiVersion: spiderpool.spidernet.io/v2beta1, metadata: {name: x}}",
            Some("."),
            "missing field `spec`",
        ),
        (
            "{kind: SpiderIPPool, apiVersion: spiderpool.spidernet.io/v2beta1, metadata: {name: x}, spec: {ips: [10.0.0.1, 5]}}",
            Some("spec.ips[1]"),
            "a text is expected",
        ),
        (
            "{kind: SpiderIPPool, apiVersion: spiderpool.spidernet.io/v2beta1, metadata: {name: x}, spec: {default: maybe}}",
            Some("spec.default"),
            "true or false is expected",
        ),
        (
            "{kind: SpiderIPPool, apiVersion: spiderpool.spidernet.io/v2beta1, metadata: {name: x}, spec: {podAffinity: {matchExpressions: [{key: a, operator: Is}]}}}",
            Some("spec.podAffinity.matchExpressions[0].operator"),
            "unknown variant `Is`",
        ),
    ];
    for (bad, field, message) in cases {
        let text = format!(
            "{}---\n# nothing\n---\n{bad}\n{}",
            pool("first", good),
            pool("last", "{subnet: fd00::/64, ips: ['fd00::5']}")
        );
        let catalog = catalog(&text);
        let names: Vec<&str> = catalog
            .pools()
            .iter()
            .map(|pool| pool.name.as_str())
            .collect();
        assert_eq!(names, ["first", "last"], "{bad}");
        let [problem] = catalog.problems() else {
            panic!("{bad}: {:?}", catalog.problems())
        };
        assert_eq!(
            (problem.document, problem.field.as_deref()),
            (Some(2), field),
            "{bad}: {problem}"
        );
        assert!(problem.message.contains(message), "{bad}: {problem}");
        assert!(
            problem.to_string().starts_with("m.yaml, document 2: "),
            "{problem}"
        );
    }
}

#[test]
fn directives_comments_and_a_byte_order_mark_are_no_documents() {
    let text = format!(
        "\u{feff}%YAML 1.1\n{}---\n# end\n",
        pool("a", "{subnet: 10.0.0.0/24}")
    );
    let catalog = catalog(&text);
    assert_eq!(catalog.problems(), []);
    assert_eq!(catalog.pools().len(), 1);
}

#[test]
fn nulls_are_as_good_as_nothing() {
    let catalog = catalog(&pool(
        "a",
        "{subnet: 10.0.0.0/24, gateway: null, ips: null, podAffinity: null, colour: null}",
    ));
    assert_eq!(catalog.problems(), []);
    assert_eq!(catalog.pools()[0].gateway, None);
}

#[test]
fn changes_name_what_is_different_and_only_new_problems() {
    let older = catalog(
        &[
            pool("a", "{subnet: 10.0.0.0/24}"),
            pool("b", "{subnet: 10.0.1.0/24}"),
            pool("x", "{}"),
        ]
        .concat(),
    );
    let newer = catalog(
        &[
            pool("b", "{subnet: 10.0.1.0/24, default: true}"),
            pool("c", "{subnet: 10.0.2.0/24}"),
            pool("x", "{}"),
            pool("y", "{}"),
        ]
        .concat(),
    );
    let changes = older.changes_to(&newer);
    assert_eq!(changes.pools.added, ["c"]);
    assert_eq!(changes.pools.removed, ["a"]);
    assert_eq!(changes.pools.changed, ["b"]);
    let new: Vec<_> = changes
        .problems
        .iter()
        .map(|problem| problem.object.as_deref())
        .collect();
    assert_eq!(new, [Some("SpiderIPPool y")]);
    assert_eq!(newer.changes_to(&newer), Changes::default());
}
