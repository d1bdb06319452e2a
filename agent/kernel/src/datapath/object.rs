//! The eBPF object: the parameters that it is loaded with, and the maps that outlive the agent.

use std::path::PathBuf;

use aya::{EbpfLoader, include_bytes_aligned};
use ebbtide_types::settings::Marks;

/// The eBPF object built by `cargo xtask build-ebpf`.
pub(super) static OBJECT: &[u8] = include_bytes_aligned!(env!("EBBTIDE_EBPF_OBJECT"));

/// Directory of the pinned maps below the bpf directory. Its number is increased when a map's layout changes: programs
/// of one layout never see the maps of another.
pub(super) const LAYOUT: &str = "v9";

/// The maps that outlive the agent, and the file names of their pins.
pub(super) const PINNED: [(&str, &str); 14] = [
    ("FLOWS", "flows"),
    ("COUNTERS", "counters"),
    ("HAS_FLOWS", "has_flows"),
    ("SPARES", "spares"),
    ("ADDRESSES", "addresses"),
    ("NICS", "nics"),
    ("MARKS", "marks"),
    ("NIC_COUNTERS", "nic_counters"),
    ("HOST", "host"),
    ("ANSWERS", "answers"),
    ("SPOOFED", "spoofed"),
    ("RECENT", "recent"),
    ("LIMITS", "limits"),
    ("LIMITED", "limited"),
];

/// The parameters that objects are loaded with.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) pins: PathBuf,
    pub(super) marks: Marks,
    pub(super) nic_reply: u32,
    pub(super) pod_nics_shift: u32,
    pub(super) node_ports: u32,
}

impl Setup {
    /// Returns a loader with the pinned maps and the configured marks.
    pub(super) fn loader(&self) -> EbpfLoader<'_> {
        let mut loader = EbpfLoader::new();
        loader
            .override_global("MARK", &self.marks.reply, true)
            .override_global("HOST_BYPASS_MARK", &self.marks.host_bypass, true)
            .override_global("POD_NICS", &self.marks.pod_nics, true)
            .override_global("POD_NICS_SHIFT", &self.pod_nics_shift, true)
            .override_global("NIC_MARKS", &self.marks.nics, true)
            .override_global("NIC_REPLY", &self.nic_reply, true)
            .override_global("NODE_PORTS", &self.node_ports, true);
        for (map, file) in PINNED {
            loader.map_pin_path(map, self.pins.join(file));
        }
        loader
    }
}
