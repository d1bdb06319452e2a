//! The pools that a network names.

use ebbtide_types::glob::is_name_or_glob;

use super::{
    Invalid,
    manifest::{IpvlanSpec, OldPoolNames, PoolNames},
};

/// Returns the network's own pools, from either name of the field.
pub(super) fn pool_names(object: &str, ipvlan: &IpvlanSpec) -> Result<PoolNames, Invalid> {
    let pools = ipvlan.ippools.clone().unwrap_or_default();
    if pools.match_master_subnet == Some(true) {
        let field = "spec.ipvlan.ippools.matchMasterSubnet";
        return Err(Invalid::new(
            object,
            field,
            true,
            "is for SR-IOV only",
            "remove it",
        ));
    }
    check_pool_names(
        object,
        "spec.ipvlan.ippools",
        [("ipv4", &pools.ipv4), ("ipv6", &pools.ipv6)],
    )?;
    let field = "spec.ipvlan.spiderpoolConfigPools";
    let old = ipvlan.spiderpool_config_pools.clone().unwrap_or_default();
    check_pool_names(
        object,
        field,
        [("IPv4IPPool", &old.ipv4), ("IPv6IPPool", &old.ipv6)],
    )?;
    let named = |names: &Option<Vec<String>>| names.as_ref().is_some_and(|all| !all.is_empty());
    if old == OldPoolNames::default() {
        return Ok(pools);
    }
    if !named(&pools.ipv4) && !named(&pools.ipv6) {
        return Ok(PoolNames {
            ipv4: old.ipv4,
            ipv6: old.ipv6,
            ..pools
        });
    }
    if (&pools.ipv4, &pools.ipv6) == (&old.ipv4, &old.ipv6) {
        return Ok(pools);
    }
    Err(Invalid::new(
        object,
        field,
        "",
        "names pools, and so does spec.ipvlan.ippools",
        "keep spec.ipvlan.ippools alone",
    ))
}

fn check_pool_names(
    object: &str,
    place: &str,
    names: [(&str, &Option<Vec<String>>); 2],
) -> Result<(), Invalid> {
    for (family, names) in names {
        let bad = names
            .iter()
            .flatten()
            .enumerate()
            .find(|(_, name)| !is_name_or_glob(name));
        if let Some((position, name)) = bad {
            let field = format!("{place}.{family}[{position}]");
            return Err(Invalid::new(
                object,
                field,
                name,
                "is not a pool's name",
                "name a SpiderIPPool, or several by a pattern as in \"worker1-*\"",
            ));
        }
    }
    Ok(())
}
