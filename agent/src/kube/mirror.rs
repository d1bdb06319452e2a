//! What the API server has, as far as this node needs it.

use std::collections::BTreeMap;

use kube::core::DynamicObject;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    BadLease, Book, lease_map, leases,
    object::{Kind, by_age, name_of},
};
use crate::catalog::{AddressSet, Catalog, Family, ObjectName, Pool};

type Objects = BTreeMap<ObjectName, DynamicObject>;

/// The objects, by kind and name. Kept on disk as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mirror {
    kinds: BTreeMap<Kind, Objects>,
}

/// The same for the disk: JSON has no maps by name and namespace.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Saved {
    kinds: BTreeMap<Kind, Vec<DynamicObject>>,
}

impl Mirror {
    /// Takes the whole of a kind: what is not in it is gone. True if that changes anything.
    pub fn replace(
        &mut self,
        kind: Kind,
        objects: impl IntoIterator<Item = DynamicObject>,
    ) -> bool {
        let objects: Objects = objects
            .into_iter()
            .map(|object| (name_of(&object.metadata), object))
            .collect();
        let old = self.kinds.insert(kind, objects);
        old.as_ref() != self.kinds.get(&kind)
    }

    /// Takes one object. True if that changes anything.
    pub fn set(&mut self, kind: Kind, object: DynamicObject) -> bool {
        let objects = self.kinds.entry(kind).or_default();
        let name = name_of(&object.metadata);
        if let Some(known) = objects.get(&name)
            && (*known == object || version(known) >= version(&object).max(Some(1)))
        {
            return false;
        }
        objects.insert(name, object);
        true
    }

    /// Drops one object. True if it was there.
    pub fn remove(&mut self, kind: Kind, name: &ObjectName) -> bool {
        let objects = self.kinds.entry(kind).or_default();
        objects.remove(name).is_some()
    }

    /// One object.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &ObjectName) -> Option<&DynamicObject> {
        self.kinds.get(&kind)?.get(name)
    }

    /// All objects of a kind, by name.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &DynamicObject> {
        self.kinds.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether the whole of a kind was seen, be it none.
    #[must_use]
    pub fn knows(&self, kind: Kind) -> bool {
        self.kinds.contains_key(&kind)
    }

    /// The catalog as this node may use it: of pools that nodes share, what is leased to it.
    #[must_use]
    pub fn catalog(&self, node: &str) -> Catalog {
        let mut catalog = self.declared_catalog();
        catalog.limit(|pool| {
            leases::is_shared(pool).then(|| {
                let book = self.book(&pool.name, pool.family);
                book.map_or_else(|_| AddressSet::empty(pool.family), |book| book.of(node))
            })
        });
        catalog
    }

    /// The leases of a pool, as far as they are known here: this node's, and who waits for one.
    ///
    /// # Errors
    /// [`BadLease`].
    pub fn book(&self, pool: &str, family: Family) -> Result<Book, BadLease> {
        let name = lease_map::map_of(pool);
        let mut maps = self.all(Kind::Lease);
        let map = maps.find(|map| map.metadata.name.as_deref() == Some(&name));
        let data = map.and_then(|map| map.data.get("data")).cloned();
        let data = data.and_then(|data| serde_json::from_value(data).ok());
        Book::parse(&data.unwrap_or_default(), family)
    }

    /// Takes addresses out of a node's lease, before anybody else is told.
    pub fn shrink_lease(&mut self, pool: &Pool, node: &str, given: &AddressSet) {
        let Ok(mut book) = self.book(&pool.name, pool.family) else {
            return;
        };
        book.give_back(node, given);
        let name = lease_map::map_of(&pool.name);
        let maps = self.kinds.entry(Kind::Lease).or_default().values_mut();
        for map in maps.filter(|map| map.metadata.name.as_deref() == Some(&name)) {
            map.data = json!({ "data": book.to_data() });
        }
    }

    /// The catalog: of two objects that exclude one another the older stays.
    #[must_use]
    pub fn declared_catalog(&self) -> Catalog {
        let mut objects: Vec<&DynamicObject> = Kind::DECLARED
            .into_iter()
            .flat_map(|kind| self.all(kind))
            .collect();
        objects.sort_by(|a, b| by_age(a, b));
        Catalog::from_objects(objects)
    }

    /// As text.
    ///
    /// # Errors
    /// When an object cannot be written as JSON: a defect.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let kinds = self.kinds.iter();
        serde_json::to_vec(&Saved {
            kinds: kinds
                .map(|(kind, objects)| (*kind, objects.values().cloned().collect()))
                .collect(),
        })
    }

    /// Of that text.
    ///
    /// # Errors
    /// When it is not what [`Mirror::to_json`] makes.
    pub fn from_json(text: &[u8]) -> serde_json::Result<Self> {
        let saved: Saved = serde_json::from_slice(text)?;
        let mut mirror = Self::default();
        for (kind, objects) in saved.kinds {
            mirror.replace(kind, objects);
        }
        Ok(mirror)
    }
}

/// The age of a state, where it is kept. The API server counts (KEP-5504 says that one may compare).
fn version(object: &DynamicObject) -> Option<u64> {
    object.metadata.resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, created: &str, ips: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool",
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"subnet": "10.0.0.0/24", "ips": [ips]},
        }))
        .unwrap()
    }

    #[test]
    fn of_two_pools_that_exclude_one_another_the_older_stays_and_the_other_is_reported() {
        let mut mirror = Mirror::default();
        assert!(mirror.set(Kind::Pool, pool("a", "2026-01-02T00:00:00Z", "10.0.0.5")));
        assert!(mirror.set(Kind::Pool, pool("b", "2026-01-01T00:00:00Z", "10.0.0.5")));
        assert!(!mirror.set(Kind::Pool, pool("b", "2026-01-01T00:00:00Z", "10.0.0.5")));
        let catalog = mirror.declared_catalog();
        let names: Vec<_> = catalog.pools().iter().map(|pool| &pool.name).collect();
        assert_eq!(names, ["b"]);
        let [problem] = catalog.problems() else {
            panic!("{:?}", catalog.problems())
        };
        assert_eq!(
            problem.to_string(),
            "Kubernetes API: SpiderIPPool a: spec.ips: \"10.0.0.5\": 10.0.0.5-10.0.0.5 belong to the \
             earlier pool b too; take them out of one of the two (spec.ips, spec.excludeIPs)"
        );
    }

    #[test]
    fn what_is_saved_comes_back_as_it_was() {
        let mut mirror = Mirror::default();
        mirror.set(Kind::Pool, pool("a", "2026-01-02T00:00:00Z", "10.0.0.5"));
        mirror.replace(Kind::Pod, []);
        let again = Mirror::from_json(&mirror.to_json().unwrap()).unwrap();
        assert_eq!(again, mirror);
        assert!(Mirror::from_json(b"{\"Pool\": 1}").is_err());
    }
}
