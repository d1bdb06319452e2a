//! Parses texts into objects, one document at a time, so that an invalid one does not affect the others.

use std::{collections::BTreeSet, path::Path};

use ebbtide_types::{DEFAULT_NAMESPACE, ObjectName, yaml};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Catalog, Consequence, Coordinator, Invalid, Network, Pool, Problem, Reserved, admit,
    manifest::{
        API_VERSION, SpiderCoordinator, SpiderIpPool, SpiderMultusConfig, SpiderReservedIp,
    },
    notes::{self, Note},
    published::{DERIVED, OF_NODE, is_marked, published_for},
};

/// The file named in a [`Problem`] of an object from the API server.
const API_SERVER: &str = "Kubernetes API";

/// Collects objects in order; of two conflicting objects the earlier stays.
#[derive(Default)]
pub(super) struct Builder {
    catalog: Catalog,
    coordinator: Option<Coordinator>,
    /// The networks that do not set `hijackCIDR` themselves.
    inheriting: BTreeSet<ObjectName>,
}

/// The maximum depth of lists in lists, as a file of several `kubectl get` may have them.
const NESTED: usize = 8;

/// The place of an object in the manifests.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a Path,
    document: Option<usize>,
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
        for (position, document) in yaml::documents(text).into_iter().enumerate() {
            let place = Place {
                file,
                document: Some(position + 1),
            };
            match parse(&document) {
                Ok(value) => self.add_all(place, value, NESTED),
                Err(fault) => self.add_problem(place, fault),
            }
        }
    }

    /// Adds an object of the API server.
    pub(super) fn add_object(&mut self, object: &impl Serialize) {
        let place = Place {
            file: Path::new(API_SERVER),
            document: None,
        };
        match serde_json::to_value(object) {
            Ok(value) => self.add_one(place, value),
            Err(error) => {
                self.add_problem(place, Fault::of_text(format!("cannot be read: {error}")))
            }
        }
    }

    /// Adds an object, or each of a list: `kubectl get -o yaml` writes one `List`.
    fn add_all(&mut self, place: Place<'_>, value: Value, deeper: usize) {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let of = text("kind").and_then(|kind| kind.strip_suffix("List").map(str::to_owned));
        let Some((of, deeper)) = of.zip(deeper.checked_sub(1)) else {
            return self.add_one(place, value);
        };
        let version = text("apiVersion");
        let items = match value.get("items") {
            Some(Value::Array(items)) => items.clone(),
            None if !of.is_empty() => return self.add_one(place, value),
            None | Some(Value::Null) => Vec::new(),
            Some(_) => {
                let message = "is no list; write the objects as a list, or each as a document";
                return self.add_problem(
                    place,
                    Fault {
                        object: Some(format!("{of}List")),
                        field: Some("items".into()),
                        message: message.into(),
                    },
                );
            }
        };
        for mut item in items {
            // The API server writes them only into the items of a `List`.
            if let Value::Object(fields) = &mut item
                && !of.is_empty()
            {
                fields.entry("kind").or_insert_with(|| of.clone().into());
                if let Some(version) = &version {
                    let version = || version.clone().into();
                    fields.entry("apiVersion").or_insert_with(version);
                }
            }
            self.add_all(place, item, deeper);
        }
    }

    fn add_one(&mut self, place: Place<'_>, value: Value) {
        if let Err(fault) = self.add_value(place, value) {
            self.add_problem(place, fault);
        }
    }

    fn add_problem(&mut self, place: Place<'_>, fault: Fault) {
        self.catalog.problems.push(Problem {
            file: place.file.to_owned(),
            document: place.document,
            object: fault.object,
            field: fault.field,
            message: fault.message,
            consequence: Consequence::LeftOut,
        });
    }

    /// Reports the fields without effect of an object that is in use.
    fn ignored(&mut self, place: Place<'_>, object: &str, notes: Vec<Note>) {
        let problems = notes.into_iter().map(|note| Problem {
            file: place.file.to_owned(),
            document: place.document,
            object: Some(object.to_owned()),
            field: Some(note.field),
            message: note.message,
            consequence: Consequence::FieldIgnored,
        });
        self.catalog.problems.extend(problems);
    }

    /// Completes the catalog after all SpiderReservedIPs are read: those of a later file apply to all pools, too.
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

    fn add_value(&mut self, place: Place<'_>, value: Value) -> Result<(), Fault> {
        let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (field("apiVersion"), field("kind"));
        let metadata = |field: &str| value.get("metadata")?.get(field)?.as_str();
        let name = metadata("name").unwrap_or("(no name)");
        let object = match kind {
            "" => format!("object {name}"),
            // The other kinds have no namespace.
            "SpiderMultusConfig" => {
                let namespace = metadata("namespace").unwrap_or(DEFAULT_NAMESPACE);
                format!("{kind} {namespace}/{name}")
            }
            _ => format!("{kind} {name}"),
        };
        let fault = |field: &str, message: String| Fault {
            object: Some(object.clone()),
            field: Some(field.to_owned()),
            message,
        };
        let spec = value.get("spec").cloned().unwrap_or(Value::Null);
        match kind {
            "SpiderIPPool" | "SpiderMultusConfig" | "SpiderReservedIP" | "SpiderCoordinator" if api_version != API_VERSION => {
                Err(fault("apiVersion", format!("{api_version:?} is not known; write {API_VERSION}")))
            }
            "SpiderIPPool" => {
                // Its `spec` may be edited: it is not looked at.
                let metadata = value.get("metadata").cloned().unwrap_or(Value::Null);
                let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap_or_default();
                if published_for(&metadata).is_some() {
                    return match place.document {
                        None => Ok(()),
                        Some(_) => Err(fault("metadata.annotations", format!(
                            "{DERIVED} says that the controller published it, of what an agent had derived; that is not read back: \
                             remove the object, or the annotation, the label {OF_NODE} and the owner from it"
                        ))),
                    };
                }
                let manifest = read::<SpiderIpPool>(value, &object)?;
                let pool = Pool::from_manifest(&manifest)?;
                admit::pool(&pool, &self.catalog.pools)?;
                self.catalog.pools.push(pool);
                let mut notes = notes::unknown("spec", &spec, &manifest.spec);
                if is_marked(&metadata) {
                    notes.push(Note {
                        field: format!("metadata.annotations[{DERIVED}]"),
                        message: "is the controller's mark of the pools that it publishes for nodes, and this is none of them: the \
                                  pool is used as it is declared; remove the annotation"
                            .into(),
                    });
                }
                self.ignored(place, &object, notes);
                Ok(())
            }
            "SpiderMultusConfig" => {
                let manifest = read::<SpiderMultusConfig>(value, &object)?;
                let mut notes = notes::unknown("spec", &spec, &manifest.spec);
                let network = Network::from_manifest(&manifest)?;
                // To ignore it would give pods addresses of the default pools.
                if let Some(note) = notes.iter().find(|note| note.field.to_lowercase().contains("pool")) {
                    return Err(Fault {
                        object: Some(object.clone()),
                        field: Some(note.field.clone()),
                        message: "seems to name pools, but no such field is known; write ippools: {ipv4: [NAME], ipv6: [NAME]} \
                                  in the ipvlan block, or remove it"
                            .into(),
                    });
                }
                admit::network(&network, &self.catalog.networks)?;
                notes.extend(notes::of_network(&manifest.spec));
                let own = manifest.spec.coordinator.and_then(|own| own.hijack_cidr);
                if own.is_none() {
                    self.inheriting.insert(network.name.clone());
                }
                self.catalog.networks.push(network);
                self.ignored(place, &object, notes);
                Ok(())
            }
            "SpiderReservedIP" => {
                let manifest = read::<SpiderReservedIp>(value, &object)?;
                let reserved = Reserved::from_manifest(&manifest)?;
                admit::reserved(&reserved, &self.catalog.reserved)?;
                self.catalog.reserved.push(reserved);
                self.ignored(place, &object, notes::unknown("spec", &spec, &manifest.spec));
                Ok(())
            }
            "SpiderCoordinator" => {
                let manifest = read::<SpiderCoordinator>(value, &object)?;
                let coordinator = Coordinator::from_manifest(&manifest)?;
                admit::coordinator(&coordinator, self.coordinator.as_ref())?;
                let mut notes = notes::unknown("spec", &spec, &manifest.spec);
                notes.extend(notes::of_coordinator(notes::CLUSTER, &manifest.spec));
                self.coordinator = Some(coordinator);
                self.ignored(place, &object, notes);
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

impl Fault {
    fn of_text(message: String) -> Self {
        Self {
            object: None,
            field: None,
            message,
        }
    }
}

fn parse(document: &str) -> Result<Value, Fault> {
    yaml::read(document).map_err(|error| {
        Fault::of_text(format!(
            "is not YAML: {error}; correct the document (line numbers count from its start)"
        ))
    })
}

fn read<T: DeserializeOwned>(value: Value, object: &str) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| Fault {
        object: Some(object.to_owned()),
        field: Some(error.path().to_string()),
        message: format!(
            "{}; correct the value or its type",
            yaml::of_type(&error.inner().to_string())
        ),
    })
}
