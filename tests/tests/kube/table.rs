//! Reads the table of objects (`objects.yaml`).

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use ebbtide_types::yaml;
use serde_json::{Map, Value as Json, json};

const TABLE: &str = include_str!("objects.yaml");

/// The kinds as the table names them, and as the API server does.
pub(crate) const KINDS: [(&str, &str, &str); 4] = [
    ("pool", "SpiderIPPool", "spiderippools"),
    ("network", "SpiderMultusConfig", "spidermultusconfigs"),
    ("reserved", "SpiderReservedIP", "spiderreservedips"),
    ("coordinator", "SpiderCoordinator", "spidercoordinators"),
];

/// An object, and the layers that must refuse it.
pub(crate) struct Row {
    pub(crate) is: String,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) spec: Json,
    pub(crate) was: Option<Json>,
    pub(crate) beside: Option<Json>,
    by: BTreeSet<String>,
}

impl Row {
    pub(crate) fn with_spec(&self, name: &str, spec: &Json) -> Json {
        let mut object = json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": self.kind,
            "metadata": {"name": name}, "spec": spec,
        });
        if self.kind == "SpiderMultusConfig" {
            object["metadata"]["namespace"] = json!("default");
        }
        object
    }

    pub(crate) fn object(&self) -> Json {
        self.with_spec(&self.name, &self.spec)
    }

    /// Whether a layer must refuse it, or report a field without effect.
    pub(crate) fn is_bad(&self) -> bool {
        !self.by.is_empty()
    }

    pub(crate) fn by(&self, who: &str) -> bool {
        self.by.contains(who)
    }
}

/// Returns the rows of the table.
pub(crate) fn rows() -> Result<Vec<Row>> {
    let table: Vec<Map<String, Json>> = serde_json::from_value(yaml::read(TABLE)?)?;
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
