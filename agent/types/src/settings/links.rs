//! Names of links, as an administrator writes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    IpvlanMode,
    glob::{fits, is_glob},
};

/// Links that are NICs, and links that are none, by name or pattern (`ens*`, `br-[0-9]*`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LinkNames {
    /// NICs, whatever they are.
    pub include: Vec<String>,
    /// No NICs, and their addresses are none of the node's: what is in both lists is excluded.
    pub exclude: Vec<String>,
    /// The ipvlan modes of NICs, by name or pattern. What is not here, networks say.
    pub modes: BTreeMap<String, IpvlanMode>,
}

/// The longest name of a link (`IFNAMSIZ` with its zero, include/uapi/linux/if.h).
const LONGEST: usize = 15;

impl LinkNames {
    /// Whether the link is to be a NIC.
    #[must_use]
    pub fn includes(&self, name: &str) -> bool {
        self.include.iter().any(|pattern| fits(pattern, name))
    }

    /// Whether the link is to be left alone.
    #[must_use]
    pub fn excludes(&self, name: &str) -> bool {
        self.exclude.iter().any(|pattern| fits(pattern, name))
    }

    /// The mode that a NIC is said to be in: by its name, else by the first pattern that fits.
    #[must_use]
    pub fn mode_of(&self, name: &str) -> Option<IpvlanMode> {
        let mut fitting = self.modes.iter().filter(|(pattern, _)| fits(pattern, name));
        let by_name = self.modes.get(name);
        by_name
            .or_else(|| fitting.next().map(|(_, mode)| mode))
            .copied()
    }

    /// Which of them can be no link's name: the field, and why.
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
