//! The mirror: a copy of the API server's objects that this node needs.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use ebbtide_ipam::catalog::{AddressSet, Catalog, Pool};
use ebbtide_types::{Family, ObjectName};
use kube::core::DynamicObject;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    lease_table::{BadLease, LeaseTable, map_of},
    object::{Kind, by_age, name_of},
};

type Objects = BTreeMap<ObjectName, DynamicObject>;

/// The objects, by kind and name. Saved to disk.
///
/// # Examples
///
/// ```
/// use ebbtide_kube::{mirror::{Change, Mirror}, object::Kind};
/// use serde_json::json;
///
/// let pool = serde_json::from_value(json!({
///     "apiVersion": "spiderpool.spidernet.io/v2beta1",
///     "kind": "SpiderIPPool",
///     "metadata": {"name": "ens5-v4", "resourceVersion": "7"},
///     "spec": {"subnet": "10.0.0.0/24", "ips": ["10.0.0.5"]},
/// }))?;
/// let mut mirror = Mirror::default();
/// // What a watch delivers.
/// assert!(mirror.apply(Kind::Pool, Change::All(vec![pool])));
/// assert_eq!(mirror.catalog("node1").pools()[0].name, "ens5-v4");
/// // As it is on disk: the agent can start while the API server cannot be reached.
/// let restored = Mirror::from_json(&mirror.to_json()?)?;
/// assert!(restored.knows(Kind::Pool));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Mirror {
    kinds: BTreeMap<Kind, Objects>,
    made: Made,
}

/// Catalogs made from the objects, cached until these change.
#[derive(Debug, Default)]
struct Made {
    /// From the pools and SpiderReservedIPs.
    pools: OnceLock<Arc<Catalog>>,
    /// From the networks and the coordinator.
    networks: OnceLock<Arc<Catalog>>,
    /// From both.
    declared: OnceLock<Arc<Catalog>>,
}

/// A change of a kind in the API server.
#[derive(Debug)]
pub enum Change {
    /// The complete list: all other objects were deleted.
    All(Vec<DynamicObject>),
    /// One object was added or changed.
    Set(Box<DynamicObject>),
    /// One object was deleted.
    Remove(ObjectName),
}

/// The mirror in its form on disk: JSON has no maps by name and namespace.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Saved {
    kinds: BTreeMap<Kind, Vec<DynamicObject>>,
}

/// [`Saved`], for writing.
#[derive(Serialize)]
#[serde(transparent)]
struct Saving<'a> {
    kinds: BTreeMap<Kind, Vec<&'a DynamicObject>>,
}

impl Mirror {
    /// Applies a change. True if it changes anything.
    pub fn apply(&mut self, kind: Kind, change: Change) -> bool {
        match change {
            Change::All(objects) => self.replace(kind, objects),
            Change::Set(object) => self.set(kind, *object),
            Change::Remove(name) => self.remove(kind, &name),
        }
    }

    /// Invalidates the cached catalogs that depend on this kind.
    fn forget(&mut self, kind: Kind) {
        match kind {
            Kind::Pool | Kind::Reserved => drop(self.made.pools.take()),
            Kind::Network | Kind::Coordinator => drop(self.made.networks.take()),
            Kind::Attachment
            | Kind::Node
            | Kind::Pod
            | Kind::Namespace
            | Kind::Lease
            | Kind::NodeCloud => return,
        }
        self.made.declared.take();
    }

    /// Replaces all objects of a kind. True if that changes anything.
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
        let is_change = old.as_ref() != self.kinds.get(&kind);
        if is_change {
            self.forget(kind);
        }
        is_change
    }

    /// Adds or replaces one object. True if that changes anything.
    pub fn set(&mut self, kind: Kind, object: DynamicObject) -> bool {
        let objects = self.kinds.entry(kind).or_default();
        let name = name_of(&object.metadata);
        if let Some(known) = objects.get(&name)
            && (*known == object || version(known) >= version(&object).max(Some(1)))
        {
            return false;
        }
        objects.insert(name, object);
        self.forget(kind);
        true
    }

    /// Removes one object. True if it existed.
    pub fn remove(&mut self, kind: Kind, name: &ObjectName) -> bool {
        let objects = self.kinds.entry(kind).or_default();
        let is_change = objects.remove(name).is_some();
        if is_change {
            self.forget(kind);
        }
        is_change
    }

    /// Returns one object.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &ObjectName) -> Option<&DynamicObject> {
        self.kinds.get(&kind)?.get(name)
    }

    /// Iterates over all objects of a kind, by name.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &DynamicObject> {
        self.kinds.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether the complete list of the kind was seen, even an empty one.
    #[must_use]
    pub fn knows(&self, kind: Kind) -> bool {
        self.kinds.contains_key(&kind)
    }

    /// Returns the catalog for this node: shared pools are limited to what is leased to it.
    #[must_use]
    pub fn catalog(&self, node: &str) -> Catalog {
        let mut catalog = Catalog::clone(&self.declared_catalog());
        catalog.limit(|pool| {
            pool.is_shared().then(|| {
                let lease_table = self.lease_table(&pool.name, pool.family);
                lease_table.map_or_else(
                    |_| AddressSet::empty(pool.family),
                    |lease_table| lease_table.of(node),
                )
            })
        });
        catalog
    }

    /// Returns the leases of a pool, as far as they are kept here: this node's, and who waits for one.
    ///
    /// # Errors
    /// [`BadLease`] if a lease is unreadable.
    pub fn lease_table(&self, pool: &str, family: Family) -> Result<LeaseTable, BadLease> {
        let name = map_of(pool);
        let mut maps = self.all(Kind::Lease);
        let map = maps.find(|map| map.metadata.name.as_deref() == Some(&name));
        let data = map.and_then(|map| map.data.get("data")).cloned();
        let data = data.and_then(|data| serde_json::from_value(data).ok());
        LeaseTable::parse(&data.unwrap_or_default(), family)
    }

    /// Removes addresses from a node's lease, before the API server is updated.
    pub fn shrink_lease(&mut self, pool: &Pool, node: &str, given: &AddressSet) {
        let Ok(mut lease_table) = self.lease_table(&pool.name, pool.family) else {
            return;
        };
        lease_table.release(node, given);
        let name = map_of(&pool.name);
        let maps = self.kinds.entry(Kind::Lease).or_default().values_mut();
        for map in maps.filter(|map| map.metadata.name.as_deref() == Some(&name)) {
            map.data = json!({ "data": lease_table.to_data() });
        }
    }

    /// Returns the catalog: of two conflicting objects the older is used. Cached until one of its objects changes.
    #[must_use]
    pub fn declared_catalog(&self) -> Arc<Catalog> {
        let join = || Arc::new(self.pools().with_networks_of(self.networks()));
        Arc::clone(self.made.declared.get_or_init(join))
    }

    fn pools(&self) -> &Arc<Catalog> {
        let make = || self.read([Kind::Pool, Kind::Reserved]);
        self.made.pools.get_or_init(make)
    }

    fn networks(&self) -> &Arc<Catalog> {
        let make = || self.read([Kind::Network, Kind::Coordinator]);
        self.made.networks.get_or_init(make)
    }

    fn read(&self, kinds: [Kind; 2]) -> Arc<Catalog> {
        let objects = kinds.into_iter().flat_map(|kind| self.all(kind));
        let mut objects: Vec<&DynamicObject> = objects.collect();
        objects.sort_by(|a, b| by_age(a, b));
        Arc::new(Catalog::from_objects(objects))
    }

    /// Serializes the mirror.
    ///
    /// # Errors
    /// If an object cannot be written as JSON: a defect.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let kinds = self.kinds.iter().filter(|(kind, _)| kind.is_saved());
        serde_json::to_vec(&Saving {
            kinds: kinds
                .map(|(kind, objects)| (*kind, objects.values().collect()))
                .collect(),
        })
    }

    /// Parses a serialized mirror.
    ///
    /// # Errors
    /// If the text is not in the format of [`Mirror::to_json`].
    pub fn from_json(text: &[u8]) -> serde_json::Result<Self> {
        let saved: Saved = serde_json::from_slice(text)?;
        let mut mirror = Self::default();
        for (kind, objects) in saved.kinds {
            mirror.replace(kind, objects);
        }
        Ok(mirror)
    }
}

/// Returns the resource version, where it is kept. It is a counter (KEP-5504 permits comparing).
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

    fn network(name: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderMultusConfig",
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"cniType": "ipvlan", "ipvlan": {"master": ["ens5"]}},
        }))
        .unwrap()
    }

    #[test]
    fn of_a_change_only_what_it_is_about_is_read_anew() {
        let created = "2026-01-02T00:00:00Z";
        let mut mirror = Mirror::default();
        mirror.set(Kind::Pool, pool("a", created, "10.0.0.5"));
        mirror.set(Kind::Network, network("n"));
        for (kind, change, pools_stay, networks_stay) in [
            (
                Kind::Pod,
                Change::Set(Box::new(pool("web", created, ""))),
                true,
                true,
            ),
            (
                Kind::Namespace,
                Change::All(vec![pool("shop", created, "")]),
                true,
                true,
            ),
            (
                Kind::Lease,
                Change::Set(Box::new(pool("ebbtide-leases.a", created, ""))),
                true,
                true,
            ),
            // Unchanged.
            (
                Kind::Pool,
                Change::Set(Box::new(pool("a", created, "10.0.0.5"))),
                true,
                true,
            ),
            (
                Kind::Pool,
                Change::Set(Box::new(pool("a", created, "10.0.0.6"))),
                false,
                true,
            ),
            (
                Kind::Network,
                Change::Set(Box::new(network("m"))),
                true,
                false,
            ),
            (
                Kind::Network,
                Change::Remove(name_of(&network("m").metadata)),
                true,
                false,
            ),
        ] {
            let before = (
                mirror.declared_catalog(),
                Arc::clone(mirror.pools()),
                Arc::clone(mirror.networks()),
            );
            let what = format!("{kind:?} {change:?}");
            mirror.apply(kind, change);
            let all_stay = pools_stay && networks_stay;
            let same = Arc::ptr_eq(&before.0, &mirror.declared_catalog());
            assert_eq!(same, all_stay, "{what}");
            assert_eq!(Arc::ptr_eq(&before.1, mirror.pools()), pools_stay, "{what}");
            assert_eq!(
                Arc::ptr_eq(&before.2, mirror.networks()),
                networks_stay,
                "{what}"
            );
        }
        let catalog = mirror.declared_catalog();
        assert_eq!([catalog.pools().len(), catalog.networks().len()], [1, 1]);
    }

    #[test]
    fn what_is_saved_comes_back_as_it_was() {
        let mut mirror = Mirror::default();
        mirror.set(Kind::Pool, pool("a", "2026-01-02T00:00:00Z", "10.0.0.5"));
        mirror.replace(Kind::Pod, []);
        let saved = mirror.to_json().unwrap();
        let again = Mirror::from_json(&saved).unwrap();
        assert_eq!(again.kinds, mirror.kinds);
        // An older agent would not know this kind, and could not read the file.
        mirror.replace(Kind::NodeCloud, []);
        assert_eq!(mirror.to_json().unwrap(), saved);
        assert!(Mirror::from_json(b"{\"Pool\": 1}").is_err());
    }
}
