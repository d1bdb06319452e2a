//! The rules between objects: unique names, and no address in two pools.

use super::{Coordinator, Invalid, Network, Pool, Reserved};

/// Checks `pool` against the earlier pools.
///
/// Pools of the same subnet are allowed: that is how one subnet is split by node. Their addresses must be
/// disjoint. Different subnets must not overlap at all, since then one address would have two prefix lengths.
pub(super) fn pool(pool: &Pool, earlier: &[Pool]) -> Result<(), Invalid> {
    let object = format!("SpiderIPPool {}", pool.name);
    for other in earlier {
        if other.name == pool.name {
            let reason = "an earlier pool has this name";
            return Err(Invalid::new(
                &object,
                "metadata.name",
                &pool.name,
                reason,
                "rename one of them",
            ));
        }
        let is_same = other.subnet == pool.subnet;
        if !is_same && (other.subnet.contains(&pool.subnet) || pool.subnet.contains(&other.subnet))
        {
            let reason = format!(
                "overlaps the subnet {} of the earlier pool {}",
                other.subnet, other.name
            );
            let remedy = "give both pools the same subnet, or subnets that do not overlap";
            return Err(Invalid::new(
                &object,
                "spec.subnet",
                pool.subnet,
                reason,
                remedy,
            ));
        }
        // Addresses are inside their subnet: those of disjoint subnets need no check, and there may be thousands.
        let common = is_same.then(|| pool.ranges.intersection(&other.ranges));
        if let Some((first, last)) = common.flatten() {
            let reason = format!(
                "{first}-{last} belong to the earlier pool {} too",
                other.name
            );
            let remedy = "take them out of one of the two (spec.ips, spec.excludeIPs)";
            return Err(Invalid::new(
                &object,
                "spec.ips",
                &pool.ranges,
                reason,
                remedy,
            ));
        }
    }
    Ok(())
}

/// Checks `network` against the earlier networks.
pub(super) fn network(network: &Network, earlier: &[Network]) -> Result<(), Invalid> {
    if earlier.iter().any(|other| other.name == network.name) {
        let object = format!("SpiderMultusConfig {}", network.name);
        let reason = "an earlier network has this name";
        return Err(Invalid::new(
            &object,
            "metadata.name",
            &network.name,
            reason,
            "rename one of them",
        ));
    }
    Ok(())
}

/// Checks `reserved` against the earlier ones. Their addresses may overlap.
pub(super) fn reserved(reserved: &Reserved, earlier: &[Reserved]) -> Result<(), Invalid> {
    if earlier.iter().any(|other| other.name == reserved.name) {
        let object = format!("SpiderReservedIP {}", reserved.name);
        let reason = "an earlier reservation has this name";
        return Err(Invalid::new(
            &object,
            "metadata.name",
            &reserved.name,
            reason,
            "rename one of them",
        ));
    }
    Ok(())
}

/// Refuses a second `coordinator`: it applies to all networks.
pub(super) fn coordinator(
    coordinator: &Coordinator,
    earlier: Option<&Coordinator>,
) -> Result<(), Invalid> {
    match earlier {
        None => Ok(()),
        Some(earlier) => Err(Invalid::new(
            &format!("SpiderCoordinator {}", coordinator.name),
            "metadata.name",
            &coordinator.name,
            format!("there is the SpiderCoordinator {} already", earlier.name),
            "keep one of them",
        )),
    }
}

/// Checks that `new` may replace `old`. Its addresses may change: that is how a range is given back.
///
/// # Errors
/// [`Invalid`] if the subnet or the IP version changes.
pub(super) fn update(old: &Pool, new: &Pool) -> Result<(), Invalid> {
    if old.subnet == new.subnet {
        return Ok(());
    }
    let field = if old.family == new.family {
        "spec.subnet"
    } else {
        "spec.ipVersion"
    };
    let reason = format!(
        "cannot be changed while pods have its addresses, it stays {} with subnet {}",
        old.family, old.subnet
    );
    let remedy = "declare another pool, and disable this one until it is empty";
    let object = format!("SpiderIPPool {}", new.name);
    Err(Invalid::new(&object, field, new.subnet, reason, remedy))
}
