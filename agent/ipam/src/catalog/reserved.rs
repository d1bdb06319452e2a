//! Addresses that no pool hands out.

use std::net::IpAddr;

use ebbtide_types::Family;
use ebbtide_types::is_name;

use super::{AddressSet, AddressSetError, Invalid, manifest::SpiderReservedIp};

/// A valid `SpiderReservedIP`, excluded from every pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// Its name, unique in a catalog.
    pub name: String,
    /// The addresses that are never handed out.
    pub addresses: AddressSet,
}

impl Reserved {
    /// Validates a manifest.
    ///
    /// # Errors
    /// [`Invalid`] with the first rule that it breaks.
    pub fn from_manifest(manifest: &SpiderReservedIp) -> Result<Self, Invalid> {
        let name = manifest.metadata.name.as_deref().unwrap_or_default();
        if !is_name(name) {
            return Err(Invalid::new(
                "SpiderReservedIP",
                "metadata.name",
                name,
                "is missing or not a name",
                "name it with letters, digits, '-' and '.'",
            ));
        }
        let object = format!("SpiderReservedIP {name}");
        let texts = manifest.spec.ips.as_deref().unwrap_or_default();
        let family = family(&object, manifest.spec.ip_version, texts)?;
        let mut sets = Vec::new();
        for (position, text) in texts.iter().enumerate() {
            let set = AddressSet::parse(text, family).map_err(|error| {
                let remedy = match error {
                    AddressSetError::Malformed => {
                        "write an address or a range as in 172.31.16.4-172.31.16.8"
                    }
                    AddressSetError::Family(_) => {
                        "declare a SpiderReservedIP for each family, with addresses of it alone"
                    }
                    AddressSetError::Backwards => "exchange its ends",
                };
                let field = format!("spec.ips[{position}]");
                Invalid::new(&object, field, text, error.to_string(), remedy)
            })?;
            sets.push(set);
        }
        Ok(Self {
            name: name.to_owned(),
            addresses: AddressSet::union_of(family, &sets),
        })
    }
}

/// Returns the declared family, else that of the first address, as Spiderpool infers it.
fn family(object: &str, version: Option<i64>, texts: &[String]) -> Result<Family, Invalid> {
    let Some(first) = texts.first() else {
        return Err(Invalid::new(
            object,
            "spec.ips",
            "",
            "is missing",
            "list the addresses that are to be kept free",
        ));
    };
    match version {
        Some(4) => Ok(Family::V4),
        Some(6) => Ok(Family::V6),
        Some(other) => Err(Invalid::new(
            object,
            "spec.ipVersion",
            other,
            "is neither 4 nor 6",
            "set 4 or 6 as the addresses have it, or leave it out",
        )),
        None => {
            let start = first.split('-').next().unwrap_or(first).trim();
            // A text that is no address is reported by its position, whichever family is taken.
            Ok(start.parse::<IpAddr>().map_or(Family::V4, Family::of))
        }
    }
}
