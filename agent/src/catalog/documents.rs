//! From text to objects: one document at a time, so that a bad one spoils no other.

use std::{collections::BTreeSet, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use serde_yaml_ng::Value;

use super::{
    Catalog, Coordinator, Invalid, Network, ObjectName, Pool, Problem, Reserved, admit,
    manifest::{
        API_VERSION, SpiderCoordinator, SpiderIpPool, SpiderMultusConfig, SpiderReservedIp,
    },
};

/// What stands in a [`Problem`] for the file, where objects come from the API server.
const API_SERVER: &str = "Kubernetes API";

/// Collects objects in order; the earlier of two that exclude one another stays.
#[derive(Default)]
pub(super) struct Builder {
    catalog: Catalog,
    coordinator: Option<Coordinator>,
    /// The networks that say nothing of `hijackCIDR` themselves.
    inheriting: BTreeSet<ObjectName>,
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
            let value = serde_yaml_ng::from_str(&document).map_err(|error| Fault {
                object: None,
                field: None,
                message: format!(
                    "is not YAML: {error}; correct the document (line numbers count from its start)"
                ),
            });
            if let Err(fault) = value.and_then(|value| self.add_value(value)) {
                self.note(file, Some(position + 1), fault);
            }
        }
    }

    /// Adds an object of the API server's.
    pub(super) fn add_object(&mut self, object: &impl Serialize) {
        let value = serde_yaml_ng::to_value(object).map_err(|error| Fault {
            object: None,
            field: None,
            message: format!("cannot be read: {error}"),
        });
        if let Err(fault) = value.and_then(|value| self.add_value(value)) {
            self.note(Path::new(API_SERVER), None, fault);
        }
    }

    fn note(&mut self, file: &Path, document: Option<usize>, fault: Fault) {
        self.catalog.problems.push(Problem {
            file: file.to_owned(),
            document,
            object: fault.object,
            field: fault.field,
            message: fault.message,
        });
    }

    pub(super) fn add_problem(&mut self, problem: Problem) {
        self.catalog.problems.push(problem);
    }

    /// The catalog, once every reservation is known: those of a later file count for all pools, too.
    pub(super) fn finish(mut self) -> Catalog {
        for pool in &mut self.catalog.pools {
            pool.keep_free(&self.catalog.reserved);
        }
        if let Some(coordinator) = &self.coordinator {
            self.catalog
                .service_cidrs
                .clone_from(&coordinator.service_cidrs);
            for network in &mut self.catalog.networks {
                network.inherit(coordinator, self.inheriting.contains(&network.name));
            }
        }
        self.catalog
    }

    fn add_value(&mut self, value: Value) -> Result<(), Fault> {
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
            "SpiderIPPool" | "SpiderMultusConfig" | "SpiderReservedIP" | "SpiderCoordinator" if api_version != API_VERSION => {
                Err(fault("apiVersion", format!("{api_version:?} is not known; write {API_VERSION}")))
            }
            "SpiderIPPool" => {
                let pool = Pool::from_manifest(&read::<SpiderIpPool>(value, &object)?)?;
                admit::pool(&pool, &self.catalog.pools)?;
                self.catalog.pools.push(pool);
                Ok(())
            }
            "SpiderMultusConfig" => {
                let manifest = read::<SpiderMultusConfig>(value, &object)?;
                let network = Network::from_manifest(&manifest)?;
                admit::network(&network, &self.catalog.networks)?;
                let own = manifest.spec.coordinator.and_then(|own| own.hijack_cidr);
                if own.is_none() {
                    self.inheriting.insert(network.name.clone());
                }
                self.catalog.networks.push(network);
                Ok(())
            }
            "SpiderReservedIP" => {
                let reserved = Reserved::from_manifest(&read::<SpiderReservedIp>(value, &object)?)?;
                admit::reserved(&reserved, &self.catalog.reserved)?;
                self.catalog.reserved.push(reserved);
                Ok(())
            }
            "SpiderCoordinator" => {
                let coordinator = Coordinator::from_manifest(&read::<SpiderCoordinator>(value, &object)?)?;
                admit::coordinator(&coordinator, self.coordinator.as_ref())?;
                self.coordinator = Some(coordinator);
                Ok(())
            }
            "" => Err(fault("kind", "is missing; write SpiderIPPool, SpiderMultusConfig or SpiderReservedIP".into())),
            _ => Err(fault(
                "kind",
                "is not read by this agent; it reads SpiderIPPool, SpiderMultusConfig, SpiderCoordinator and SpiderReservedIP, keep others elsewhere".into(),
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
