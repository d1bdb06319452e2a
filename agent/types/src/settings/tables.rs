//! Checks the numbers of routing tables and rule priorities against the kernel's own.

use super::Settings;

/// The highest index that the kernel gives a link (`int ifindex`, include/linux/netdevice.h).
const HIGHEST_IFINDEX: u32 = i32::MAX.cast_unsigned();

/// The distance between the tables of pools whose routes differ from the node's; there are [`POD_TABLES`] at most.
pub const POD_TABLES_OFFSET: u32 = 100_000;
/// The number of such tables at most; see [`POD_TABLES_OFFSET`].
pub const POD_TABLES: u32 = 9999;

/// The lowest `hostTable`. A NIC's table is this plus its index, whatever that is: below, it may be one of the kernel's
/// own. The table before `hostTable` is in use as well ([`Settings::held_table`]).
const LOWEST_HOST_TABLE: u32 = 257;
/// The highest `hostTable`: above, the sum may not fit.
const HIGHEST_HOST_TABLE: u32 = u32::MAX - HIGHEST_IFINDEX - POD_TABLES * POD_TABLES_OFFSET;

/// The highest `replyTable`. Tables in pods are counted up from it: above, those of a pod with many interfaces may not
/// fit.
const HIGHEST_REPLY_TABLE: u32 = u32::MAX - 1000;

/// The highest `rulePriority`: with the rules after the first one, the last before the main table's rule (32766). Rules
/// after that would never be evaluated.
const HIGHEST_PRIORITY: u32 = 32_758;

impl Settings {
    /// The table with the routes to pods whose address the node has as well: on a link, or by a route of somebody else's
    /// in the table `local`.
    #[must_use]
    pub const fn held_table(&self) -> u32 {
        self.host_table - 1
    }
}

/// Whether the table is the kernel's own: unspecified, default, main, local (include/uapi/linux/rtnetlink.h).
#[must_use]
pub const fn is_kernel_table(table: u32) -> bool {
    matches!(table, 0 | 253..=255)
}

/// Returns the first number that cannot be used: the field, why, and what can be set.
pub(super) fn wrong(settings: &Settings) -> Option<(&'static str, String)> {
    let (host, reply) = (settings.host_table, settings.reply_table);
    if !(LOWEST_HOST_TABLE..=HIGHEST_HOST_TABLE).contains(&host) {
        let reason = format!(
            "{host} cannot be used, since the table of a NIC is this number plus the NIC's interface index: the sum could \
             be one of the kernel's own tables (0, 253, 254, 255) or no table's number at all. Set a number from \
             {LOWEST_HOST_TABLE} to {HIGHEST_HOST_TABLE}, or leave it out for {}",
            Settings::default().host_table
        );
        return Some(("hostTable", reason));
    }
    if is_kernel_table(reply) {
        let reason = format!(
            "{reply} is one of the kernel's own tables (0, 253, 254, 255). Set another number, or leave it out for {}",
            Settings::default().reply_table
        );
        return Some(("replyTable", reason));
    }
    if reply > HIGHEST_REPLY_TABLE {
        let reason = format!(
            "{reply} leaves no room for the tables of pods with several interfaces, which come after it. Set a number \
             up to {HIGHEST_REPLY_TABLE}"
        );
        return Some(("replyTable", reason));
    }
    let priority = settings.rule_priority;
    if !(1..=HIGHEST_PRIORITY).contains(&priority) {
        let reason = format!(
            "{priority} is not between 1 and {HIGHEST_PRIORITY}: rules behind the main table's (32766) are never looked at"
        );
        return Some(("rulePriority", reason));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_accepted_up_to_its_border_and_refused_beyond_it() {
        for (field, value, is_good) in [
            ("hostTable", 0, false),
            ("hostTable", 1, false),
            // With interface index 4 the main table.
            ("hostTable", 250, false),
            ("hostTable", 252, false),
            ("hostTable", 253, false),
            ("hostTable", 254, false),
            ("hostTable", 255, false),
            ("hostTable", 256, false),
            ("hostTable", 257, true),
            ("hostTable", 7700, true),
            ("hostTable", 1_147_583_648, true),
            ("hostTable", 1_147_583_649, false),
            ("hostTable", 4_294_967_295, false),
            ("hostTable", 4_294_967_296, false),
            ("replyTable", 0, false),
            ("replyTable", 1, true),
            ("replyTable", 252, true),
            ("replyTable", 253, false),
            ("replyTable", 255, false),
            ("replyTable", 256, true),
            ("replyTable", 4_294_966_295, true),
            ("replyTable", 4_294_966_296, false),
            ("rulePriority", 0, false),
            ("rulePriority", 1, true),
            ("rulePriority", 32_758, true),
            ("rulePriority", 32_759, false),
            ("rulePriority", 4_294_967_295, false),
            ("mark", 0, false),
            ("mark", 0x8000_0000_u64, true),
            ("mark", 0x1_0000_0000, false),
            ("hostBypassMark", 0, false),
            ("hostBypassMark", 0x8000_0000, true),
            ("hostBypassMark", 0x1_0000_0000, false),
            ("podNicMarks", 0, false),
            ("podNicMarks", 0x0100_0000, true),
            ("podNicMarks", 0xff00_0000_u64, true),
            ("podNicMarks", 0x0300_0001, false),
            ("podNicMarks", 0x1_0000_0000, false),
            // Two bits serve no NIC.
            ("nicMarks", 0x60, false),
            ("nicMarks", 0x62, true),
            ("nicMarks", 0x1_0000_0000, false),
            ("cooldownSeconds", 0, true),
            ("cooldownSeconds", u64::MAX, true),
        ] {
            let parsed = Settings::parse(&format!("{field}: {value}"));
            match parsed {
                Ok(_) => assert!(is_good, "{field}: {value} is accepted"),
                Err((found, reason)) => {
                    assert!(!is_good && found == field, "{field}: {value}: {reason}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_says_what_to_set() {
        let (_, reason) = Settings::parse("hostTable: 250").unwrap_err();
        assert!(reason.contains("a number from 257 to"), "{reason}");
    }

    #[test]
    fn no_interface_index_makes_a_nic_s_table_one_of_the_kernels_or_none() {
        for host in [LOWEST_HOST_TABLE, HIGHEST_HOST_TABLE] {
            for ifindex in [1, 4, HIGHEST_IFINDEX] {
                let own = host.checked_add(ifindex).unwrap();
                let way = own.checked_add(POD_TABLES * POD_TABLES_OFFSET).unwrap();
                assert!(!is_kernel_table(own) && !is_kernel_table(way));
            }
        }
    }
}
