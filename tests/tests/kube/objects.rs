//! Which object is refused by what: definitions, policy and agent, by one table (`objects.yaml`), without an API
//! server.

use std::{fs, path::Path};

use anyhow::{Result, bail, ensure};
use cel::Value;
use ebbtide_ipam::catalog::{Catalog, Consequence, Problem};
use ebbtide_types::yaml;
use serde_json::{Map, Value as Json, json};

use crate::{
    cel::{evaluate, map, value},
    setup::DEPLOY,
    table::{KINDS, rows},
};

#[test]
fn the_table_has_more_than_seventy_bad_objects_and_only_what_needs_a_look_at_others_is_the_agents_alone()
-> Result<()> {
    let rows = rows()?;
    let bad = rows.iter().filter(|row| row.is_bad()).count();
    ensure!(bad > 70, "{bad}");
    let server = ["crd", "rule", "policy"];
    let alone = rows
        .iter()
        .filter(|row| row.by("agent") && !server.iter().any(|who| row.by(who)));
    let alone: Vec<&str> = alone.map(|row| row.is.as_str()).collect();
    // CEL does not compare IPv6 numbers and ranges, and does not parse JSON.
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
            // As while a pod has one of its addresses.
            refused |= catalog.clone().keeping_used_pools(&before, |_| true) != catalog;
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

/// Whether a rule refuses: by false, or by an error.
fn refuses(expression: &str, variables: &[(&str, Value)]) -> Result<bool> {
    Ok(!matches!(
        evaluate(expression, variables)?,
        Ok(Value::Bool(true))
    ))
}

/// Returns the rules of a schema, and of the schemas below it, that a value breaks.
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

/// Removes null fields, as the API server does.
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
        // Rules never see what patterns and types refuse.
        if row.by("crd") {
            continue;
        }
        let file = format!("crds/spiderpool.spidernet.io_{}.yaml", row.plural);
        let text = fs::read_to_string(Path::new(DEPLOY).join(file))?;
        let definition: Json = yaml::read(&text)?;
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

/// Returns the policy of a kind from the shipped file.
fn policy(plural: &str) -> Result<Json> {
    let text = fs::read_to_string(Path::new(DEPLOY).join("policy.yaml"))?;
    for document in yaml::documents(&text) {
        let object: Json = yaml::read(&document)?;
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
            // Variables are evaluated when a rule uses them, so an error is the rule's.
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
        // The policy never sees what the definition refuses, so its answer does not matter there.
        let seen = row.by("policy") || !row.by("crd");
        if seen && broken.is_empty() == row.by("policy") {
            wrong.push(format!("{}: {broken:?}", row.is));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn the_policy_does_not_see_the_controllers_writes_nor_changes_of_the_metadata_alone() -> Result<()>
{
    for (_, kind, plural) in KINDS {
        let policy = policy(plural)?;
        let spec = json!({"spec": {"subnet": "x"}});
        let other = json!({"spec": {"subnet": "y"}});
        for (was, user, seen) in [
            (json!(null), "admin", true),
            (other.clone(), "admin", true),
            (spec.clone(), "admin", false),
            (
                other.clone(),
                "system:serviceaccount:ebbtide-system:ebbtide",
                true,
            ),
            (
                other,
                "system:serviceaccount:ebbtide-system:ebbtide-controller",
                false,
            ),
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
