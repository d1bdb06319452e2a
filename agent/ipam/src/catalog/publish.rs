//! Publishes a new snapshot to all receivers of the catalog.

use std::sync::Arc;

use tokio::sync::watch::Sender;

use super::{Catalog, Consequence};

/// Replaces the snapshot if it differs, and logs what changed and each new problem.
pub fn publish(sender: &Sender<Arc<Catalog>>, catalog: Catalog) {
    let changes = sender.borrow().changes_to(&catalog);
    for (what, difference) in [
        ("pool", &changes.pools),
        ("network", &changes.networks),
        ("reservation", &changes.reserved),
    ] {
        for (how, names) in [
            ("added", &difference.added),
            ("removed", &difference.removed),
            ("changed", &difference.changed),
        ] {
            for name in names {
                tracing::info!(%name, "{what} {how}");
            }
        }
    }
    for problem in &changes.problems {
        match problem.consequence {
            Consequence::LeftOut => tracing::warn!(%problem, "left out"),
            Consequence::Narrowed => tracing::warn!(%problem, "addresses are left out"),
            Consequence::FieldIgnored => tracing::warn!(%problem, "a field has no effect"),
        }
    }
    sender.send_if_modified(|current| {
        let different = **current != catalog;
        if different {
            *current = Arc::new(catalog);
        }
        different
    });
}
