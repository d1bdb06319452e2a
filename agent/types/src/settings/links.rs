//! Matches links against the names and patterns of an administrator.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    IpvlanMode,
    glob::{fits, is_glob},
};

/// Links that are NICs, and links that are not, by name or pattern (`ens*`, `br-[0-9]*`).
///
/// # Examples
///
/// ```
/// use ebbtide_types::{IpvlanMode, settings::LinkNames};
///
/// let names = LinkNames {
///     include: vec!["ens*".into()],
///     exclude: vec!["ens9".into()],
///     modes: [("ens6".to_owned(), IpvlanMode::L2)].into(),
/// };
/// assert!(names.includes("ens5") && names.excludes("ens9"));
/// assert_eq!(names.mode_of("ens6"), Some(IpvlanMode::L2));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LinkNames {
    /// Links that are NICs, whatever their kind.
    pub include: Vec<String>,
    /// Links that are not NICs, and whose addresses are not the node's. A link in both lists is excluded.
    pub exclude: Vec<String>,
    /// The ipvlan modes of NICs, by name or pattern. For other NICs the networks decide.
    pub modes: BTreeMap<String, IpvlanMode>,
}

/// The longest name of a link (`IFNAMSIZ` with its zero, include/uapi/linux/if.h).
const LONGEST: usize = 15;

impl LinkNames {
    /// Whether the link is included as a NIC.
    #[must_use]
    pub fn includes(&self, name: &str) -> bool {
        self.include.iter().any(|pattern| fits(pattern, name))
    }

    /// Whether the link is excluded.
    #[must_use]
    pub fn excludes(&self, name: &str) -> bool {
        self.exclude.iter().any(|pattern| fits(pattern, name))
    }

    /// Returns the configured mode of a NIC: by its name, else by the first pattern that matches.
    #[must_use]
    pub fn mode_of(&self, name: &str) -> Option<IpvlanMode> {
        let mut fitting = self.modes.iter().filter(|(pattern, _)| fits(pattern, name));
        let by_name = self.modes.get(name);
        by_name
            .or_else(|| fitting.next().map(|(_, mode)| mode))
            .copied()
    }

    /// Returns the first name that no link can have: the field, and why.
    pub(super) fn wrong(&self) -> Option<(String, String)> {
        let lists = [("include", &self.include), ("exclude", &self.exclude)];
        let all = lists.into_iter().flat_map(|(list, names)| {
            let names = names.iter().enumerate();
            names.map(move |(number, name)| (format!("nics.{list}[{number}]"), name))
        });
        let modes = self.modes.keys();
        let all = all.chain(modes.map(|name| (format!("nics.modes.{name}"), name)));
        let mut wrong = all.filter_map(|(field, name)| {
            let is_open = name.matches('[').count() != name.matches(']').count();
            let too_long = !is_glob(name) && name.len() > LONGEST;
            let reason = match () {
                () if name.is_empty() => "a name is missing".to_owned(),
                () if too_long => {
                    format!("{name:?} is longer than a link's name can be ({LONGEST})")
                }
                () if is_open => format!("{name:?} has a bracket without its other half"),
                () => return None,
            };
            Some((field, reason))
        });
        wrong.next()
    }
}
