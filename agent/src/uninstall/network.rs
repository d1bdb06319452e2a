//! The host's network: programs and their pins, tc filters, queueing disciplines, rules, routes, the redirect device, and
//! the kernel's settings.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use ebbtide_kernel::{
    netlink::{self, Netlink, model::Sysctl},
    node::{Leftovers, is_on_bpffs},
};
use tokio::time::sleep;

use super::{Error, Forwarding, Item, Options, Report};
use crate::agent::{forwarding_backup, qdiscs_made, sysctl_backup::SysctlBackup};

/// How long the kernel may take to detach programs after their pins are removed: it does so after an RCU grace period.
const DETACHED: Duration = Duration::from_secs(10);

/// What is there.
pub(super) type Found = Leftovers;

pub(super) async fn find(options: &Options, host: &Netlink) -> Result<Found, netlink::Error> {
    Leftovers::find(host, &qdiscs_made::load(&options.state_dir)).await
}

/// Lists what [`remove`] would remove.
pub(super) fn plan(options: &Options, found: &Found, report: &mut Report) {
    report.plan(found.by_link.iter().map(|what| Item::new("program", what)));
    if options.bpf_dir.exists() {
        let pins = Item::new("pins", options.bpf_dir.display());
        report.plan(std::iter::once(pins));
    }
    let objects = found.objects.iter();
    report.plan(objects.map(|object| Item::new(object.kind(), object)));
    let mut settings = SysctlBackup::open(&options.state_dir).to_restore();
    match keeps_forwarding(options, found) {
        Some(why) => report.keep("forwarding", why),
        None => settings.extend(forwarding_backup::to_restore(&options.state_dir)),
    }
    report.plan(settings.iter().map(setting));
}

/// Removes everything. What cannot be removed is in the report.
pub(super) async fn remove(
    options: &Options,
    host: &Netlink,
    report: &mut Report,
) -> Result<(), Error> {
    let found = find(options, host).await?;
    remove_pins(options, &found, report).await;
    for object in &found.objects {
        match object.remove(host).await {
            Ok(()) => report.removed(Item::new(object.kind(), object)),
            Err(e) => report.failed(e),
        }
    }
    // Filters that went made room for what could not go before: a queueing discipline, a second rule.
    let mut left = find(options, host).await?;
    for object in std::mem::take(&mut left.objects) {
        match object.remove(host).await {
            Ok(()) => report.removed(Item::new(object.kind(), &object)),
            Err(e) => report.failed(e),
        }
    }
    let left = find(options, host).await?;
    for object in &left.objects {
        report.failed(format_args!("{object} is still there"));
    }
    if left.objects.is_empty()
        && let Err(e) = qdiscs_made::forget(&options.state_dir)
    {
        report.failed(format_args!("remove the record of qdiscs: {e}"));
    }
    restore_settings(options, &left, report);
    Ok(())
}

/// Removes the pins, and with them the programs that TCX links attach.
async fn remove_pins(options: &Options, found: &Found, report: &mut Report) {
    let path = &options.bpf_dir;
    match fs::remove_dir_all(path) {
        Ok(()) => report.removed(Item::new("pins", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => report.failed(format_args!("remove {}: {e}", path.display())),
    }
    if found.by_link.is_empty() {
        return;
    }
    // By netlink: /sys/class/net shows the links of the namespace in which it was mounted.
    let links = &found.links;
    let is_left = || {
        let mut all = links.iter();
        all.any(|link| !ebbtide_kernel::datapath::own_programs_by_link(link).is_empty())
    };
    let end = Instant::now() + DETACHED;
    while is_left() && Instant::now() < end {
        sleep(Duration::from_millis(20)).await;
    }
    let left: Vec<String> = links
        .iter()
        .flat_map(|link| ebbtide_kernel::datapath::own_programs_by_link(link))
        .collect();
    for program in found.by_link.iter().filter(|own| !left.contains(own)) {
        report.removed(Item::new("program", program));
    }
    for program in left {
        let why = match is_on_bpffs(path) {
            true => "somebody else holds its link (`bpftool link`), or has pinned it elsewhere",
            false => {
                "no bpf file system is mounted here, where its link is pinned: mount the host's \
                 (`mount -t bpf bpf /sys/fs/bpf`), or give --bpf-dir"
            }
        };
        report.failed(format_args!("{program} is still there: {why}"));
    }
}

fn restore_settings(options: &Options, found: &Found, report: &mut Report) {
    let backup = SysctlBackup::open(&options.state_dir);
    let settings = backup.to_restore();
    backup.restore();
    for one in &settings {
        report.removed(setting(one));
    }
    if forwarding_backup::path_of_record(&options.state_dir).is_none() {
        return;
    }
    if let Some(why) = keeps_forwarding(options, found) {
        if !forwarding_backup::to_restore(&options.state_dir).is_empty() {
            report.keep("forwarding", why);
        }
        if let Err(e) = forwarding_backup::forget(&options.state_dir) {
            report.failed(format_args!("remove the record of forwarding: {e}"));
        }
        return;
    }
    match forwarding_backup::restore(&options.state_dir) {
        Ok(settings) => {
            for one in &settings {
                report.removed(setting(one));
            }
        }
        Err(e) => report.failed(format_args!("restore how the node forwarded: {e}")),
    }
}

/// Returns why the node forwards as now afterwards; `None` if as before.
fn keeps_forwarding(options: &Options, found: &Found) -> Option<String> {
    match options.forwarding {
        Forwarding::Restore => None,
        Forwarding::Keep => Some("--forwarding keep".to_owned()),
        Forwarding::Auto if found.forwarding_links.is_empty() => None,
        Forwarding::Auto => Some(format!(
            "the node forwards by {} for others; --forwarding restore gives it back as it was",
            found.forwarding_links.join(", ")
        )),
    }
}

fn setting(setting: &Sysctl) -> Item {
    Item::new("sysctl", format_args!("{setting} is as it was"))
}
