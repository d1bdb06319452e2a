//! The kernel's boot, by which a record knows that what it describes ended.

use std::fs;

/// Returns the boot's ID; empty where the kernel tells none.
pub(super) fn id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}
