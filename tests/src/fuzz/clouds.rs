//! The parsers of metadata services' answers.

use ebbtide_cloud::{Reading, Tree, Unreadable, alibaba, aws, azure, gcp, tencent};

use super::readers::Scratch;

fn understood(reading: Result<Reading, Unreadable>) -> bool {
    match reading {
        Ok(reading) => {
            for left_out in &reading.left_out {
                let _ = left_out.to_string();
            }
            let macs = || reading.view.nics.iter().map(|nic| nic.mac);
            assert!(macs().is_sorted_by(|one, two| one < two), "each NIC once");
            reading.view.nics.iter().any(|nic| !nic.blocks.is_empty())
        }
        Err(error) => {
            let _ = error.to_string();
            false
        }
    }
}

/// Reads a text tree from one text: a line that begins with `@` is a path below the list of MACs, and what follows is its
/// answer.
fn tree(bytes: &[u8]) -> Tree {
    let text = String::from_utf8_lossy(bytes);
    let leaves = text.split('@').skip(1);
    leaves
        .map(|leaf| leaf.split_once('\n').unwrap_or((leaf, "")))
        .collect()
}

pub(super) fn aws(_: Scratch<'_>, bytes: &[u8]) -> bool {
    understood(aws::parse(&tree(bytes)))
}

pub(super) fn alibaba(_: Scratch<'_>, bytes: &[u8]) -> bool {
    understood(alibaba::parse(&tree(bytes)))
}

pub(super) fn tencent(_: Scratch<'_>, bytes: &[u8]) -> bool {
    understood(tencent::parse(&tree(bytes)))
}

pub(super) fn azure(_: Scratch<'_>, bytes: &[u8]) -> bool {
    understood(azure::parse(&String::from_utf8_lossy(bytes)))
}

pub(super) fn gcp(_: Scratch<'_>, bytes: &[u8]) -> bool {
    understood(gcp::parse(&String::from_utf8_lossy(bytes)))
}
