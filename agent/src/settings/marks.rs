//! Bits of packets' marks: whose they are, and that ours are nobody else's.

use super::Settings;

/// What else on a node is known to use marks.
struct Known {
    /// As it is written in `ignoreMarksOf`.
    name: &'static str,
    /// Its bits.
    bits: u32,
    /// Whether it uses them inside of pods; in the host otherwise.
    in_pods: bool,
}

/// Their defaults, from their documentation or source.
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

/// What is wrong with the bits that are chosen: the field and why.
pub(super) fn conflict(settings: &Settings) -> Option<(&'static str, String)> {
    let both = settings.mark & settings.nic_marks;
    if both != 0 {
        return Some((
            "mark",
            format!("has bits in common with nicMarks ({both:#x}): choose others for one of them"),
        ));
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
            let (field, own) = match known.in_pods {
                true => ("mark", settings.mark),
                false => ("nicMarks", settings.nic_marks),
            };
            let taken = own & known.bits;
            (taken != 0).then(|| {
                let reason = format!(
                    "has bits that {} uses ({taken:#x}): choose others, or list it in \
                     ignoreMarksOf if it is not on this node",
                    known.name
                );
                (field, reason)
            })
        })
}
