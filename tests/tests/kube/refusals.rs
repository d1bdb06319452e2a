//! What a real API server refuses, by the table of objects (`objects.yaml`): by the definitions, and by the policy if
//! it supports policies.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use ebbtide_cluster::{Binaries, ControlPlane, Options, Release};
use ebbtide_types::yaml;
use ebbtide_vpc::skip::{Need, skip};
use serde_json::{Map, Value as Json, json};

use crate::{
    setup::{DEPLOY, cluster},
    table::{KINDS, Row, rows},
};

/// The first release whose CEL knows addresses, which the policy needs.
const POLICY: Release = Release::new(31);
/// The maximum number of ranges of a pool.
const RANGES: u32 = 4096;

/// Returns the layers of the definitions that an API server of this release has.
fn layers(release: Release) -> Vec<&'static str> {
    let all = [("crd", 16), ("rule", 25)];
    let there = all
        .into_iter()
        .filter(|(_, since)| release >= Release::new(*since));
    there.map(|(who, _)| who).collect()
}

/// Removes empty texts, which Debian's build of 1.20 treats as null, whatever the pattern says.
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

fn documents(objects: impl IntoIterator<Item = Json>) -> Result<String> {
    let texts = objects.into_iter().map(|object| yaml::write(&object));
    let texts = texts.collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(texts.join("---\n"))
}

/// Checks that exactly those rows are refused that one of these layers must refuse.
fn the_table_is_right(cluster: &ControlPlane, release: Release, layers: &[&str]) -> Result<()> {
    let rows = rows()?;
    let sent = |row: &Row| match release < Release::new(21) && !row.by("crd") {
        true => row.with_spec(&row.name, &without_empty(&row.spec)),
        false => row.object(),
    };
    let mut wrong = Vec::new();
    for (verb, changes) in [("create", false), ("replace", true)] {
        let some: Vec<&Row> = rows
            .iter()
            .filter(|row| row.was.is_some() == changes)
            .collect();
        let arguments = [verb, "--dry-run=server", "--validate=false", "-f", "-"];
        let objects = documents(some.iter().map(|row| sent(row)))?;
        let output = cluster.kubectl_output(&arguments, &objects)?;
        let (said, errors) = (
            String::from_utf8(output.stdout)?,
            String::from_utf8(output.stderr)?,
        );
        for row in some {
            let accepted = said
                .lines()
                .any(|line| line.contains(&format!("/{} ", row.name)));
            let refused = layers.iter().any(|who| row.by(who));
            let of_row = |line: &&str| line.contains(&format!("\"{}\"", row.name));
            let errors: Vec<&str> = errors.lines().filter(of_row).collect();
            // An expression that cannot be evaluated refuses as well, but without a useful message.
            let broken = errors.iter().any(|line| line.contains("resulted in error"));
            if accepted == refused || broken {
                wrong.push(format!("{}: accepted: {accepted}: {errors:?}", row.is));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Creates the objects that rows change.
fn before(cluster: &ControlPlane) -> Result<()> {
    let rows = rows()?;
    let was = |row: &Row| Some(row.with_spec(&row.name, row.was.as_ref()?));
    let objects = documents(rows.iter().filter_map(was))?;
    cluster.apply(&objects).map(drop)
}

#[test]
fn a_real_api_server_refuses_what_the_definitions_of_its_age_do() -> Result<()> {
    let Some(cluster) = cluster()? else {
        return Ok(());
    };
    let release = cluster.release()?;
    before(&cluster)?;
    the_table_is_right(&cluster, release, &layers(release))
}

fn pool(name: &str, spec: Json) -> Json {
    json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// Waits until the policy is enforced, which takes a moment after its creation.
fn is_enforced(cluster: &ControlPlane) -> Result<()> {
    let outside = pool(
        "probe",
        json!({"subnet": "10.0.0.0/24", "ips": ["10.0.1.5"]}),
    );
    let arguments = ["create", "--dry-run=server", "-f", "-"];
    for _ in 0..120 {
        if cluster
            .kubectl_with(&arguments, &outside.to_string())
            .is_err()
        {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(500));
    }
    anyhow::bail!("the policy is never enforced")
}

/// Checks the maximum number of the longest possible ranges, in each list that has ranges.
fn the_longest_lists_are_accepted(cluster: &ControlPlane) -> Result<()> {
    let v4: Vec<String> = (0..RANGES)
        .map(|n| {
            let (third, fourth) = (n / 32, n % 32 * 8);
            format!("10.100.{third}.{fourth} - 10.100.{third}.{}", fourth + 3)
        })
        .collect();
    let excluded: Vec<String> = (0..RANGES)
        .map(|n| {
            let (third, fourth) = (n / 32, n % 32 * 8);
            format!(
                "10.100.{third}.{} - 10.100.{third}.{}",
                fourth + 1,
                fourth + 2
            )
        })
        .collect();
    let v6: Vec<String> = (0..RANGES)
        .map(|n| format!("fd00:1111:2222:3333:4444:5555:{n:x}:1000 - fd00:1111:2222:3333:4444:5555:{n:x}:1fff"))
        .collect();
    let routes: Vec<Json> = (0..64)
        .map(|n| json!({"dst": format!("10.200.{n}.0/24"), "gw": "10.100.255.254"}))
        .collect();
    let whole = pool(
        "whole",
        json!({"subnet": "10.100.0.0/16", "ips": v4, "excludeIPs": excluded, "gateway": "10.100.255.254", "routes": routes}),
    );
    let wide = pool(
        "wide",
        json!({"subnet": "fd00:1111:2222:3333::/64", "ips": v6, "excludeIPs": v6}),
    );
    let mut reserved = pool("reserved", json!({"ips": v4}));
    reserved["kind"] = json!("SpiderReservedIP");
    for object in [whole, wide, reserved] {
        let name = object["metadata"]["name"].clone();
        let created = cluster.kubectl_with(&["create", "-f", "-"], &object.to_string());
        created.with_context(|| format!("{name}"))?;
        // A change is compared with the object before it.
        let mut changed = object;
        if let Some(ips) = changed["spec"]["ips"].as_array_mut() {
            ips.swap(0, 1);
        }
        let replaced = cluster.kubectl_with(&["replace", "-f", "-"], &changed.to_string());
        replaced.with_context(|| format!("{name}, changed"))?;
    }
    Ok(())
}

/// A policy with a type error: a controller that finds nothing wrong with it does not check.
const MISTYPED: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: mistyped}
spec:
  matchConstraints:
    resourceRules:
      - apiGroups: [spiderpool.spidernet.io]
        apiVersions: [v2beta1]
        operations: [CREATE]
        resources: [spiderippools]
  validations: [{expression: object.spec.subnet == 3}]
";

/// Checks that the API server's controller reports no type errors in the expressions.
fn expressions_are_of_the_right_types(cluster: &ControlPlane) -> Result<()> {
    cluster.apply(MISTYPED)?;
    cluster.wait_until(&["validatingadmissionpolicy", "mistyped"], |policy| {
        policy["status"]["typeChecking"]["expressionWarnings"][0].is_object()
    })?;
    for (.., plural) in KINDS {
        let policy = ["validatingadmissionpolicy", &format!("ebbtide-{plural}")];
        let policy = cluster.wait_until(&policy, |policy| {
            policy["status"]["observedGeneration"] == policy["metadata"]["generation"]
        })?;
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        ensure!(warnings.is_null(), "{plural}: {warnings:#}");
    }
    Ok(())
}

#[test]
fn a_real_api_server_takes_the_policy_refuses_what_it_must_by_it_and_has_the_budget_for_the_longest_lists()
-> Result<()> {
    let Some(binaries) = Binaries::find() else {
        return Ok(());
    };
    let release = binaries.release("kube-apiserver")?;
    if release < POLICY {
        skip(
            Need::Policies,
            format_args!(
                "the API server is of {release}: policies with addresses are since {POLICY}"
            ),
        );
        return Ok(());
    }
    let options = Options {
        controllers: true,
        ..Options::default()
    };
    let Some(cluster) = ControlPlane::start(options)? else {
        return Ok(());
    };
    let deploy = Path::new(DEPLOY);
    cluster.install_crds(&deploy.join("crds"))?;
    before(&cluster)?;
    let policy = deploy.join("policy.yaml").display().to_string();
    cluster.kubectl(&["apply", "-f", &policy])?;
    is_enforced(&cluster)?;
    let all = [&layers(release)[..], &["policy"]].concat();
    the_table_is_right(&cluster, release, &all)?;
    the_longest_lists_are_accepted(&cluster)?;
    expressions_are_of_the_right_types(&cluster)
}
