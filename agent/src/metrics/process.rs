//! What every process tells of itself, by the names that all client libraries use.

use std::{fs, sync::OnceLock, time::SystemTime};

use nix::unistd::{SysconfVar, sysconf};

/// The resources of this process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// CPU time, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The largest number of them.
    pub max_fds: u64,
    /// When it started, in seconds since 1970.
    pub start_seconds: f64,
}

/// Computed once: from two clocks it would be another number each time, and whoever looks for changes would see a new
/// process.
static START: OnceLock<f64> = OnceLock::new();

impl Process {
    /// Reads them from `/proc` (proc(5)). What cannot be read is zero.
    #[must_use]
    pub fn read() -> Self {
        let file =
            |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let ticks = number(SysconfVar::CLK_TCK, 100);
        let page = number(SysconfVar::PAGE_SIZE, 4096);
        let stat = file("stat");
        let fields = after_name(&stat);
        let resident = file("statm");
        let resident = resident
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<u64>().ok());
        let since_boot = field(&fields, 19) / ticks as f64;
        Self {
            cpu_seconds: (field(&fields, 11) + field(&fields, 12)) / ticks as f64,
            resident_bytes: resident.unwrap_or(0) * page,
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64),
            max_fds: soft_limit(&file("limits")),
            start_seconds: *START.get_or_init(|| boot_time() + since_boot),
        }
    }
}

fn number(variable: SysconfVar, otherwise: u64) -> u64 {
    let known = sysconf(variable).ok().flatten();
    known
        .and_then(|known| u64::try_from(known).ok())
        .unwrap_or(otherwise)
}

/// Returns the fields of `/proc/PID/stat` after the name, which may have blanks and parentheses: the first is the state.
fn after_name(stat: &str) -> Vec<&str> {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().collect()
}

fn field(fields: &[&str], at: usize) -> f64 {
    fields
        .get(at)
        .and_then(|field| field.parse().ok())
        .unwrap_or(0.0)
}

fn soft_limit(limits: &str) -> u64 {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.and_then(|soft| soft.parse().ok()).unwrap_or(0)
}

/// Returns when the machine started, in seconds since 1970.
fn boot_time() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let up = ebbtide_kernel::datapath::uptime();
    now.map_or(0.0, |now| now.saturating_sub(up).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_of_itself() {
        let process = Process::read();
        assert!(process.resident_bytes > 100_000, "{process:?}");
        assert!(
            process.open_fds >= 3 && process.max_fds >= process.open_fds,
            "{process:?}"
        );
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let ran = now.as_secs_f64() - process.start_seconds;
        assert!((-2.0..100_000.0).contains(&ran), "{ran}");
        let later = Process::read().start_seconds;
        assert_eq!(later.to_bits(), process.start_seconds.to_bits());
    }

    #[test]
    fn a_name_may_have_anything_in_it() {
        let fields = after_name("7 (a) b (c) S 1 2 3");
        assert_eq!(fields, ["S", "1", "2", "3"]);
        assert_eq!(field(&fields, 2), 2.0);
        assert_eq!(field(&fields, 9), 0.0);
        assert_eq!(
            soft_limit("x\nMax open files            1024   4096   files\n"),
            1024
        );
        assert_eq!(soft_limit("Max open files unlimited"), 0);
    }
}
