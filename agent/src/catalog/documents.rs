//! From text to objects: one document at a time, so that a bad one spoils no other.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;

use super::{
    Catalog, Invalid, Network, Pool, Problem, Reserved, admit,
    manifest::{API_VERSION, SpiderIpPool, SpiderMultusConfig, SpiderReservedIp},
};

/// Collects objects in order; the earlier of two that exclude one another stays.
#[derive(Default)]
pub(super) struct Builder {
    catalog: Catalog,
}

/// A problem without its place.
struct Fault {
    object: Option<String>,
    field: Option<String>,
    message: String,
}

impl From<Invalid> for Fault {
    fn from(invalid: Invalid) -> Self {
        Self {
            message: invalid.message(),
            object: Some(invalid.object),
            field: Some(invalid.field),
        }
    }
}

impl Builder {
    pub(super) fn add(&mut self, file: &Path, text: &str) {
        for (position, document) in split(text).into_iter().enumerate() {
            if let Err(fault) = self.add_document(&document) {
                self.catalog.problems.push(Problem {
                    file: file.to_owned(),
                    document: Some(position + 1),
                    object: fault.object,
                    field: fault.field,
                    message: fault.message,
                });
            }
        }
    }

    pub(super) fn add_problem(&mut self, problem: Problem) {
        self.catalog.problems.push(problem);
    }

    /// The catalog, once every reservation is known: those of a later file count for all pools, too.
    pub(super) fn finish(mut self) -> Catalog {
        for pool in &mut self.catalog.pools {
            pool.keep_free(&self.catalog.reserved);
        }
        self.catalog
    }

    fn add_document(&mut self, text: &str) -> Result<(), Fault> {
        let value: Value = serde_yaml_ng::from_str(text).map_err(|error| Fault {
            object: None,
            field: None,
            message: format!(
                "is not YAML: {error}; correct the document (line numbers count from its start)"
            ),
        })?;
        let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (field("apiVersion"), field("kind"));
        let name = value
            .get("metadata")
            .and_then(|metadata| metadata.get("name"))
            .and_then(Value::as_str);
        let object = format!(
            "{} {}",
            if kind.is_empty() { "object" } else { kind },
            name.unwrap_or("(no name)")
        );
        let fault = |field: &str, message: String| Fault {
            object: Some(object.clone()),
            field: Some(field.to_owned()),
            message,
        };
        match kind {
            "SpiderIPPool" | "SpiderMultusConfig" | "SpiderReservedIP" if api_version != API_VERSION => {
                Err(fault("apiVersion", format!("{api_version:?} is not known; write {API_VERSION}")))
            }
            "SpiderIPPool" => {
                let pool = Pool::from_manifest(&read::<SpiderIpPool>(value, &object)?)?;
                admit::pool(&pool, &self.catalog.pools)?;
                self.catalog.pools.push(pool);
                Ok(())
            }
            "SpiderMultusConfig" => {
                let network = Network::from_manifest(&read::<SpiderMultusConfig>(value, &object)?)?;
                admit::network(&network, &self.catalog.networks)?;
                self.catalog.networks.push(network);
                Ok(())
            }
            "SpiderReservedIP" => {
                let reserved = Reserved::from_manifest(&read::<SpiderReservedIp>(value, &object)?)?;
                admit::reserved(&reserved, &self.catalog.reserved)?;
                self.catalog.reserved.push(reserved);
                Ok(())
            }
            "" => Err(fault("kind", "is missing; write SpiderIPPool, SpiderMultusConfig or SpiderReservedIP".into())),
            _ => Err(fault(
                "kind",
                "is not read by this agent; it reads SpiderIPPool, SpiderMultusConfig and SpiderReservedIP, keep others elsewhere".into(),
            )),
        }
    }
}

fn read<T: DeserializeOwned>(value: Value, object: &str) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| Fault {
        object: Some(object.to_owned()),
        field: Some(error.path().to_string()),
        message: format!("{}; correct the value or its type", error.inner()),
    })
}

/// The documents of a text, without those that have no content.
///
/// `---` at the start of a line ends a document whatever it is in the middle of (YAML 1.2, 9.1.2), so
/// splitting first is exact, and a syntax error stays in its own document.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
        let rest = match line.strip_prefix("---") {
            Some(rest) if rest.is_empty() || rest.starts_with([' ', '\t']) => {
                documents.push(String::new());
                rest
            }
            _ => line,
        };
        if let Some(document) = documents.last_mut() {
            document.push_str(rest);
            document.push('\n');
        }
    }
    let has_content = |document: &String| {
        document.lines().any(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with(['#', '%'])
        })
    };
    documents.retain(has_content);
    documents
}
