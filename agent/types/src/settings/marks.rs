//! The packet mark bits that Ebbtide uses, and their conflicts with other software.

use super::Settings;

/// The packet mark bits that Ebbtide uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// [`Settings::mark`].
    pub reply: u32,
    /// [`Settings::host_bypass_mark`].
    pub host_bypass: u32,
    /// [`Settings::pod_nic_marks`].
    pub pod_nics: u32,
    /// [`Settings::nic_marks`].
    pub nics: u32,
}

impl Settings {
    /// Returns the bits that the programs set and match.
    #[must_use]
    pub const fn marks(&self) -> Marks {
        Marks {
            reply: self.mark,
            host_bypass: self.host_bypass_mark,
            pod_nics: self.pod_nic_marks,
            nics: self.nic_marks,
        }
    }
}

/// Other software that is known to use marks.
struct Known {
    /// Its name in `ignoreMarksOf`.
    name: &'static str,
    /// Its bits.
    bits: u32,
    /// Whether it uses them in pods; otherwise in the host.
    in_pods: bool,
}

/// The defaults of other software, from its documentation or source.
const KNOWN: [Known; 6] = [
    Known {
        name: "kube-proxy",
        bits: 0xc000,
        in_pods: false,
    },
    Known {
        name: "calico",
        bits: 0xffff_0000,
        in_pods: false,
    },
    Known {
        name: "cilium",
        bits: 0x0f00,
        in_pods: false,
    },
    Known {
        name: "aws-vpc-cni",
        bits: 0x80,
        in_pods: false,
    },
    Known {
        name: "terway",
        bits: 0x10,
        in_pods: false,
    },
    // 1337, and 0x111 and 0x539 within 0xfff in ambient mode.
    Known {
        name: "istio",
        bits: 0xfff,
        in_pods: true,
    },
];

/// Returns the first conflict of the configured bits: the field, and why.
pub(super) fn conflict(settings: &Settings) -> Option<(&'static str, String)> {
    let reply = ("mark", settings.mark);
    let host_bypass = ("hostBypassMark", settings.host_bypass_mark);
    let pod_nics = ("podNicMarks", settings.pod_nic_marks);
    let nics = ("nicMarks", settings.nic_marks);
    for ((field, bits), (other, taken)) in [
        (reply, nics),
        (host_bypass, nics),
        (pod_nics, nics),
        (reply, host_bypass),
        (pod_nics, reply),
        (pod_nics, host_bypass),
    ] {
        let both = bits & taken;
        if both != 0 {
            let reason = format!(
                "has bits in common with {other} ({both:#x}): choose others for one of them"
            );
            return Some((field, reason));
        }
    }
    for name in &settings.ignore_marks_of {
        if !KNOWN.iter().any(|known| known.name == name) {
            let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
            return Some((
                "ignoreMarksOf",
                format!("{name:?} is not known; known are {}", names.join(", ")),
            ));
        }
    }
    KNOWN
        .iter()
        .filter(|known| !settings.ignore_marks_of.iter().any(|n| n == known.name))
        .find_map(|known| {
            let own: &[_] = match known.in_pods {
                true => &[reply, host_bypass, pod_nics],
                false => &[nics],
            };
            let (field, taken) = own
                .iter()
                .map(|(field, bits)| (field, bits & known.bits))
                .find(|(_, taken)| *taken != 0)?;
            let reason = format!(
                "has bits that {} uses ({taken:#x}): choose others, or list it in \
                 ignoreMarksOf if it is not on this node",
                known.name
            );
            Some((*field, reason))
        })
}
