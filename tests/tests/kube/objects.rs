//! Who refuses which object: definitions, policy and agent, by one table (`objects.yaml`).

use std::{collections::BTreeSet, fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use cel::Value;
use ebbtide_agent::catalog::{Catalog, Consequence, Problem, check_update};
use ebbtide_tests::cluster::ControlPlane;
use serde_json::{Map, Value as Json, json};

use crate::{
    cel::{evaluate, map, value},
    setup::{DEPLOY, cluster},
};

const TABLE: &str = include_str!("objects.yaml");

/// The table's words for the kinds, and how the API server calls them.
const KINDS: [(&str, &str, &str); 4] = [
    ("pool", "SpiderIPPool", "spiderippools"),
    ("network", "SpiderMultusConfig", "spidermultusconfigs"),
    ("reserved", "SpiderReservedIP", "spiderreservedips"),
    ("coordinator", "SpiderCoordinator", "spidercoordinators"),
];

struct Row {
    is: String,
    name: String,
    kind: &'static str,
    plural: &'static str,
    spec: Json,
    was: Option<Json>,
    beside: Option<Json>,
    by: BTreeSet<String>,
}

impl Row {
    fn with_spec(&self, name: &str, spec: &Json) -> Json {
        let mut object = json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": self.kind,
            "metadata": {"name": name}, "spec": spec,
        });
        if self.kind == "SpiderMultusConfig" {
            object["metadata"]["namespace"] = json!("default");
        }
        object
    }

    fn object(&self) -> Json {
        self.with_spec(&self.name, &self.spec)
    }

    fn by(&self, who: &str) -> bool {
        self.by.contains(who)
    }
}

fn rows() -> Result<Vec<Row>> {
    let table: Vec<Map<String, Json>> = serde_yaml_ng::from_str(TABLE)?;
    let mut rows = Vec::new();
    for (number, mut fields) in table.into_iter().enumerate() {
        let is = fields.remove("is").context("a row has no name")?;
        let is = is.as_str().unwrap_or_default().to_owned();
        let found = KINDS.iter().find(|(word, ..)| fields.contains_key(*word));
        let (word, kind, plural) = *found.with_context(|| is.clone())?;
        let by = fields.remove("by").unwrap_or_else(|| json!([]));
        rows.push(Row {
            name: format!("row-{number}"),
            kind,
            plural,
            spec: fields.remove(word).unwrap_or_default(),
            was: fields.remove("was"),
            beside: fields.remove("beside"),
            by: serde_json::from_value(by).with_context(|| is.clone())?,
            is,
        });
        let row = &rows[number];
        let known = ["crd", "rule", "policy", "agent", "noted"];
        ensure!(fields.is_empty(), "{}: {fields:?}", row.is);
        ensure!(
            row.by.iter().all(|who| known.contains(&who.as_str())),
            "{}: {:?}",
            row.is,
            row.by
        );
    }
    Ok(rows)
}

#[test]
fn the_table_has_more_than_seventy_bad_objects_and_only_what_needs_a_look_at_others_is_the_agents_alone()
-> Result<()> {
    let rows = rows()?;
    let bad = rows.iter().filter(|row| !row.by.is_empty()).count();
    ensure!(bad > 70, "{bad}");
    let server = ["crd", "rule", "policy"];
    let alone = rows
        .iter()
        .filter(|row| row.by("agent") && !server.iter().any(|who| row.by(who)));
    let alone: Vec<&str> = alone.map(|row| row.is.as_str()).collect();
    // Numbers of IPv6 and ranges are not compared in CEL, and JSON is not read there.
    ensure!(alone.len() <= 8, "{alone:#?}");
    Ok(())
}

#[test]
fn the_agent_leaves_out_what_it_must_and_names_what_has_no_effect() -> Result<()> {
    let mut wrong = Vec::new();
    for row in rows()? {
        let beside = row.beside.iter().map(|spec| row.with_spec("a-first", spec));
        let objects: Vec<Json> = beside.chain([row.object()]).collect();
        let catalog = Catalog::from_objects(&objects);
        let about = |problem: &&Problem| {
            let object = problem.object.as_deref().unwrap_or_default();
            object.ends_with(&row.name)
        };
        let problems: Vec<&Problem> = catalog.problems().iter().filter(about).collect();
        if problems.len() != catalog.problems().len() {
            let all = catalog.problems();
            wrong.push(format!("{}: one is about no object: {all:?}", row.is));
        }
        let mut refused = problems
            .iter()
            .any(|problem| problem.consequence == Consequence::LeftOut);
        if let Some(was) = row.was.as_ref().filter(|_| row.kind == "SpiderIPPool") {
            let before = Catalog::from_objects([&row.with_spec(&row.name, was)]);
            if let (Some(old), Some(new)) = (before.pools().first(), catalog.pools().first()) {
                refused |= check_update(old, new, []).is_err();
            }
        }
        let noted = problems
            .iter()
            .any(|problem| problem.consequence == Consequence::FieldIgnored);
        if (refused, noted) != (row.by("agent"), row.by("noted")) {
            wrong.push(format!("{}: {refused} {noted}: {problems:?}", row.is));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// What this API server has been released as: 1.x.
fn minor(cluster: &ControlPlane) -> Result<u32> {
    let version: Json = serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/version"])?)?;
    let minor = version["minor"].as_str().unwrap_or_default();
    Ok(minor.trim_end_matches('+').parse()?)
}

/// Which of the layers an API server of this age has.
fn layers(minor: u32) -> Vec<&'static str> {
    let all = [("crd", 16), ("rule", 25), ("policy", 31)];
    let there = all.into_iter().filter(|(_, since)| minor >= *since);
    there.map(|(who, _)| who).collect()
}

/// Without empty texts: Debian's build of 1.20 takes one for null, whatever the pattern says of it.
fn without_empty(spec: &Json) -> Json {
    match spec {
        Json::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| *value != "");
            let kept = kept.map(|(name, value)| (name.clone(), without_empty(value)));
            kept.collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

#[test]
fn a_real_api_server_refuses_what_one_of_its_age_can() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let minor = minor(&cluster)?;
    let layers = layers(minor);
    if layers.contains(&"policy") {
        let policy = Path::new(DEPLOY).join("policy.yaml").display().to_string();
        cluster.kubectl(&["apply", "-f", &policy])?;
        // It is enforced a moment later.
        thread::sleep(Duration::from_secs(10));
    }
    let rows = rows()?;
    let documents = |objects: Vec<Json>| -> Result<String> {
        let texts = objects.iter().map(serde_yaml_ng::to_string);
        Ok(texts
            .collect::<std::result::Result<Vec<_>, _>>()?
            .join("---\n"))
    };
    let before = rows
        .iter()
        .filter_map(|row| Some(row.with_spec(&row.name, row.was.as_ref()?)));
    cluster.apply(&documents(before.collect())?)?;
    let sent = |row: &Row| match minor {
        ..21 if !row.by("crd") => row.with_spec(&row.name, &without_empty(&row.spec)),
        _ => row.object(),
    };
    let mut wrong = Vec::new();
    for (verb, changes) in [("create", false), ("replace", true)] {
        let some: Vec<&Row> = rows
            .iter()
            .filter(|row| row.was.is_some() == changes)
            .collect();
        let arguments = [verb, "--dry-run=server", "--validate=false", "-f", "-"];
        let output = cluster.kubectl_output(
            &arguments,
            &documents(some.iter().map(|row| sent(row)).collect())?,
        )?;
        let (said, errors) = (
            String::from_utf8(output.stdout)?,
            String::from_utf8(output.stderr)?,
        );
        for row in some {
            let accepted = said
                .lines()
                .any(|line| line.contains(&format!("/{} ", row.name)));
            let refused = layers.iter().any(|who| row.by(who));
            if accepted == refused {
                let errors = errors
                    .lines()
                    .filter(|line| line.contains(&format!("\"{}\"", row.name)));
                wrong.push(format!(
                    "{}: accepted: {accepted}: {:?}",
                    row.is,
                    errors.collect::<Vec<_>>()
                ));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Whether the answer of a rule is a refusal: false, or an error.
fn refuses(expression: &str, variables: &[(&str, Value)]) -> Result<bool> {
    Ok(!matches!(
        evaluate(expression, variables)?,
        Ok(Value::Bool(true))
    ))
}

/// The rules of a schema, and of what is below, for a value.
fn broken_rules(
    schema: &Json,
    now: &Json,
    was: Option<&Json>,
    broken: &mut Vec<String>,
) -> Result<()> {
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let rule = rule["rule"].as_str().unwrap_or_default();
        let mut variables = vec![("self", value(now))];
        match was {
            Some(was) => variables.push(("oldSelf", value(was))),
            None if rule.contains("oldSelf") => continue,
            None => {}
        }
        if refuses(rule, &variables)? {
            broken.push(rule.to_owned());
        }
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(now) = now.get(name) {
            broken_rules(schema, now, was.and_then(|was| was.get(name)), broken)?;
        }
    }
    Ok(())
}

/// A null is no field, as the API server prunes it.
fn without_nulls(spec: &Json) -> Json {
    match spec {
        Json::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            kept.map(|(name, value)| (name.clone(), without_nulls(value)))
                .collect::<Map<_, _>>()
                .into()
        }
        other => other.clone(),
    }
}

#[test]
fn the_definitions_rules_refuse_what_they_must_as_the_crate_cel_evaluates_them() -> Result<()> {
    let mut wrong = Vec::new();
    for row in rows()? {
        // What the patterns refuse, or what is of another type, is never seen by a rule.
        if row.by("crd") {
            continue;
        }
        let file = format!("crds/spiderpool.spidernet.io_{}.yaml", row.plural);
        let text = fs::read_to_string(Path::new(DEPLOY).join(file))?;
        let definition: Json = serde_yaml_ng::from_str(&text)?;
        let schema =
            &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        ensure!(schema.is_object(), "{}", row.plural);
        let mut broken = Vec::new();
        broken_rules(
            schema,
            &without_nulls(&row.spec),
            row.was.as_ref(),
            &mut broken,
        )?;
        if broken.is_empty() == row.by("rule") {
            wrong.push(format!("{}: {broken:?}", row.is));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// The policy of a kind, of the file as it is shipped.
fn policy(plural: &str) -> Result<Json> {
    let text = fs::read_to_string(Path::new(DEPLOY).join("policy.yaml"))?;
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let object: Json = serde::Deserialize::deserialize(document)?;
        let rules = &object["spec"]["matchConstraints"]["resourceRules"][0]["resources"];
        if rules == &json!([plural]) {
            return Ok(object["spec"].clone());
        }
    }
    bail!("no policy is about {plural}")
}

fn texts<'a>(list: &'a Json, field: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let text = |item: &'a Json, field: &str| item[field].as_str().unwrap_or_default();
    let items = list.as_array().into_iter().flatten();
    items.map(move |item| (text(item, field), text(item, "expression")))
}

#[test]
fn the_policy_refuses_what_it_must_as_the_crate_cel_evaluates_it_with_stand_ins_for_kubernetes_functions()
-> Result<()> {
    let mut wrong = Vec::new();
    for row in rows()? {
        let policy = policy(row.plural)?;
        let object = |spec: &Json| value(&row.with_spec(&row.name, &without_nulls(spec)));
        let user = |name: &str| value(&json!({"userInfo": {"username": name}}));
        let old = row.was.as_ref().map_or(Value::Null, object);
        let base = vec![("object", object(&row.spec)), ("oldObject", old)];
        for (name, condition) in texts(&policy["matchConditions"], "name") {
            let admin = [&base[..], &[("request", user("admin"))]].concat();
            ensure!(!refuses(condition, &admin)?, "{}: {name}", row.is);
        }
        let mut variables = Vec::new();
        for (name, expression) in texts(&policy["variables"], "name") {
            // As there, one is evaluated when a rule looks at it: an error is the rule's.
            if let Ok(found) = evaluate(expression, &base)? {
                variables.push((name, found));
            }
        }
        let all = [&base[..], &[("variables", map(variables))]].concat();
        let mut broken = Vec::new();
        for (message, expression) in texts(&policy["validations"], "message") {
            ensure!(!message.is_empty(), "{expression} has no message");
            if refuses(expression, &all)? {
                broken.push(message);
            }
        }
        // What the definition refuses is not seen by the policy: there it may think what it likes.
        let seen = row.by("policy") || !row.by("crd");
        if seen && broken.is_empty() == row.by("policy") {
            wrong.push(format!("{}: {broken:?}", row.is));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn the_policy_does_not_see_the_agents_writes_nor_changes_of_the_metadata_alone() -> Result<()> {
    for (_, kind, plural) in KINDS {
        let policy = policy(plural)?;
        let spec = json!({"spec": {"subnet": "x"}});
        let other = json!({"spec": {"subnet": "y"}});
        for (was, user, seen) in [
            (json!(null), "admin", true),
            (other.clone(), "admin", true),
            (spec.clone(), "admin", false),
            (other, "system:serviceaccount:ebbtide-system:ebbtide", false),
        ] {
            let variables = [
                ("object", value(&spec)),
                ("oldObject", value(&was)),
                ("request", value(&json!({"userInfo": {"username": user}}))),
            ];
            let mut met = true;
            for (_, condition) in texts(&policy["matchConditions"], "name") {
                met &= !refuses(condition, &variables)?;
            }
            ensure!(met == seen, "{kind}: {was} by {user}");
        }
    }
    Ok(())
}
