//! Attaches the programs of the node's NICs by TCX links, if the kernel has TCX (since 6.6: kernel/bpf/tcx.c).
//!
//! TCX programs run before a NIC's tc filters. A foreign one that returns a verdict keeps the packet from all filters
//! (`sch_handle_ingress`, net/core/dev.c); Ebbtide's run first and let others continue. `tc qdisc del` does not remove
//! a link. A link is pinned, so it outlives the agent, and the next agent replaces its program (`BPF_LINK_UPDATE`)
//! without a gap.
//!
//! The programs of pods are tc filters in every kernel: a filter's class says which pod it guards, and a link has none.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{Error, HOST_PROGRAMS, Programs, lock, pins::remove};
use crate::netlink::model::{Direction, Filter};
use aya::{
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};

/// The directory of the pinned links below the bpf directory. It has no layout number: a link stays when its program,
/// and with it the layout of the maps, is replaced.
const DIRECTORY: &str = "links";

/// A NIC's interface index, and the direction.
type Place = (u32, Direction);

/// An error while attaching a program by a TCX link.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The kernel has no TCX.
    #[error("this kernel has no TCX")]
    NoTcx,
    /// No program of this name is loaded.
    #[error("there is no such program")]
    Unknown,
    /// The kernel refused the program at this hook.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel refused the link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The link could not be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// An older pin could not be removed.
    #[error("remove the old pin: {0}")]
    OldPin(#[from] io::Error),
}

/// The TCX links, held open as well as pinned: removing the pins while the agent runs detaches no program.
pub(super) struct NicLinks {
    /// The directory of the pins; `None` if the kernel has no TCX.
    pins: Option<PathBuf>,
    held: Mutex<BTreeMap<Place, FdLink>>,
}

impl fmt::Debug for NicLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NicLinks")
            .field("pins", &self.pins)
            .finish()
    }
}

impl NicLinks {
    /// Opens the directory of pinned links below `bpf_dir`, or creates it.
    pub(super) fn open(bpf_dir: &Path) -> Result<Self, Error> {
        let pins = has_tcx().then(|| bpf_dir.join(DIRECTORY));
        if let Some(pins) = &pins {
            fs::create_dir_all(pins).map_err(Error::io("create", pins))?;
        }
        Ok(Self {
            pins,
            held: Mutex::default(),
        })
    }

    /// Whether this program is to be attached by a link.
    pub(super) fn uses_link(&self, filter: &Filter) -> bool {
        self.pins.is_some() && is_of_a_nic(&filter.program)
    }

    /// Attaches the program to the NIC with this index, or replaces an older one of Ebbtide's.
    pub(super) fn attach(
        &self,
        programs: &Programs,
        filter: &Filter,
        ifindex: u32,
    ) -> Result<(), Trouble> {
        let pins = self.pins.as_ref().ok_or(Trouble::NoTcx)?;
        let program = programs.classifier(&filter.program);
        let mut program = program.ok_or(Trouble::Unknown)?;
        let place = (ifindex, filter.direction);
        let pin = pins.join(file_name(place));
        let mut held = lock(&self.held);
        let there = held.remove(&place).or_else(|| pinned(&pin));
        let link = match there.filter(|link| is_at(link, filter)) {
            Some(link) if link.info()?.program_id() == program.info()?.id() => link,
            Some(link) => {
                let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
                program.take_link(id)?.try_into()?
            }
            None => {
                remove(&pin)?;
                let first = TcAttachOptions::TcxOrder(LinkOrder::first());
                let direction = attach_type(filter.direction);
                let id = program.attach_with_options(&filter.link, direction, first)?;
                program.take_link(id)?.try_into()?
            }
        };
        let link = if pin.exists() {
            link
        } else {
            link.pin(&pin)?.into()
        };
        held.insert(place, link);
        Ok(())
    }

    /// Whether Ebbtide's program is attached to the NIC with this index by a pinned link, which outlives the agent.
    pub(super) fn has(&self, filter: &Filter, ifindex: u32) -> bool {
        let Some(pins) = self.pins.as_ref().filter(|_| self.uses_link(filter)) else {
            return false;
        };
        pinned(&pins.join(file_name((ifindex, filter.direction))))
            .is_some_and(|link| is_at(&link, filter))
    }

    /// Describes the foreign programs that see packets before this one, which is attached by a link, each by its ID and
    /// name.
    pub(super) fn preceding_programs(&self, filter: &Filter, ifindex: u32) -> Vec<String> {
        let pin = self.pins.as_ref();
        let link = pin.and_then(|pins| pinned(&pins.join(file_name((ifindex, filter.direction)))));
        let Some(info) = link.and_then(|link| link.info().ok()) else {
            return Vec::new();
        };
        let at = attach_type(filter.direction);
        let Ok((_, programs)) = SchedClassifier::query_tcx(&filter.link, at) else {
            return Vec::new();
        };
        let before = programs
            .iter()
            .take_while(|program| program.id() != info.program_id());
        before
            .map(|program| {
                let name = program.name_as_str().unwrap_or("without a name");
                format!("eBPF program {} ({name})", program.id())
            })
            .collect()
    }

    /// Removes the links of all NICs but these. The pin of a removed NIC is only a file; a NIC that was moved into a
    /// pod still has the program.
    pub(super) fn retain(&self, nics: &[u32]) -> Result<(), Error> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        let mut held = lock(&self.held);
        held.retain(|(ifindex, _), _| nics.contains(ifindex));
        for entry in fs::read_dir(pins)
            .map_err(Error::io("list", pins))?
            .flatten()
        {
            if index(&entry.file_name().to_string_lossy()).is_some_and(|nic| !nics.contains(&nic)) {
                let path = entry.path();
                remove(&path).map_err(Error::io("remove the pinned link", &path))?;
            }
        }
        Ok(())
    }
}

/// Whether the kernel has TCX.
#[must_use]
pub fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Lists Ebbtide's programs that TCX links attach to this link, in words. They are known by their names alone, of which
/// the kernel keeps 15 letters (`BPF_OBJ_NAME_LEN`, include/uapi/linux/bpf.h).
#[must_use]
pub fn own_programs_by_link(link: &str) -> Vec<String> {
    const KEPT: usize = 15;
    let at = |direction: Direction| {
        let queried = SchedClassifier::query_tcx(link, attach_type(direction));
        let programs = queried.map(|(_, programs)| programs).unwrap_or_default();
        let own = programs.into_iter().filter_map(move |program| {
            let name = program.name_as_str()?;
            let mut known = HOST_PROGRAMS.iter().filter(|known| known.is_at_nic());
            let known = known.find(|known| known.name.get(..KEPT) == Some(name))?;
            Some(format!(
                "program {} ({}) at {direction} of {link}",
                known.name,
                program.id()
            ))
        });
        own.collect::<Vec<_>>()
    };
    [Direction::Ingress, Direction::Egress]
        .into_iter()
        .flat_map(at)
        .collect()
}

/// Whether the program belongs to the node's NICs.
fn is_of_a_nic(program: &str) -> bool {
    let mut all = HOST_PROGRAMS.iter();
    all.any(|known| known.name == program && known.is_at_nic())
}

/// Returns a pin's file name.
fn file_name((ifindex, direction): Place) -> String {
    format!("{ifindex}-{direction}")
}

/// Parses the NIC's index from a pin's file name.
fn index(file_name: &str) -> Option<u32> {
    file_name.split_once('-')?.0.parse().ok()
}

fn pinned(path: &Path) -> Option<FdLink> {
    PinnedLink::from_pin(path).ok().map(FdLink::from)
}

/// Whether the link's program is attached at the filter's hook: it may have been detached, or the NIC removed.
fn is_at(link: &FdLink, filter: &Filter) -> bool {
    let Ok(info) = link.info() else {
        return false;
    };
    SchedClassifier::query_tcx(&filter.link, attach_type(filter.direction)).is_ok_and(
        |(_, programs)| {
            programs
                .iter()
                .any(|program| program.id() == info.program_id())
        },
    )
}

const fn attach_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_s_name_tells_its_nic() {
        for direction in [Direction::Ingress, Direction::Egress] {
            assert_eq!(index(&file_name((17, direction))), Some(17));
        }
        for other in ["", "ingress", "x-ingress", "-1"] {
            assert_eq!(index(other), None, "{other}");
        }
    }

    #[test]
    fn programs_at_nics_alone_are_attached_by_links() {
        let by_link: Vec<&str> = HOST_PROGRAMS
            .iter()
            .map(|program| program.name)
            .filter(|name| is_of_a_nic(name))
            .collect();
        assert_eq!(by_link, ["host_nic_ingress", "host_nic_egress"]);
        assert!(!is_of_a_nic("nic_ingress"));
    }
}
