//! What this kernel lacks, found without loading anything into it: an inspection must not change the node, and loading
//! `dummy`, for one, makes a link.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use ebbtide_kernel::netlink::{self, direct::Direct, netns::Netns};

use super::{
    Finding, Severity,
    modules::{Need, judge, not_tried},
};

/// The loopback link, which each namespace has.
const LOOPBACK: (&str, u32) = ("lo", 1);

/// The kernel's modules: those that are loaded, built in, or can be loaded.
#[derive(Debug)]
struct Modules(BTreeSet<String>);

impl Modules {
    /// Reads the lists of the kernel `release` below `root`. A kernel that cannot load modules has none.
    fn read(root: &Path, release: &str) -> Result<Self, (PathBuf, io::Error)> {
        let read = |path: PathBuf| fs::read_to_string(&path).map_err(|e| (path, e));
        let mut names = BTreeSet::new();
        match read(root.join("proc/modules")) {
            Ok(loaded) => names.extend(
                loaded
                    .lines()
                    .filter_map(|line| line.split(' ').next())
                    .map(name),
            ),
            Err((_, e)) if e.kind() == io::ErrorKind::NotFound => return Ok(Self(names)),
            Err(e) => return Err(e),
        }
        let dir = root.join("lib/modules").join(release);
        let loadable = read(dir.join("modules.dep"))?;
        names.extend(
            loadable
                .lines()
                .filter_map(|line| line.split(':').next())
                .map(name),
        );
        // Not every distribution has this one: what is built in is tried then, which loads nothing.
        let built_in = read(dir.join("modules.builtin")).unwrap_or_default();
        names.extend(built_in.lines().map(name));
        Ok(Self(names))
    }

    fn has(&self, need: Need) -> bool {
        need.modules().iter().all(|name| self.0.contains(*name))
    }
}

/// Returns the name of the module in this file: `ipvlan` of `kernel/drivers/net/ipvlan/ipvlan.ko.xz`.
fn name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or_default();
    let name = file.split('.').next().unwrap_or_default();
    name.replace('-', "_")
}

/// Reports what this kernel cannot make. What has a module counts as there; the rest is tried, which loads nothing then.
pub(super) async fn missing(release: &str) -> Vec<Finding> {
    let modules = match Modules::read(Path::new("/"), release) {
        Ok(modules) => modules,
        Err((path, e)) => {
            return vec![Finding {
                severity: Severity::Note,
                what: format!(
                    "which modules this kernel has is not known here: {}: {e}",
                    path.display()
                ),
                hint: "run this on the node itself, where /lib/modules is".to_owned(),
            }];
        }
    };
    let trial = tokio::task::spawn_blocking(move || Netns::in_new(|netns| tried(&modules, netns))?);
    let found = trial.await;
    let found = found.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    found.unwrap_or_else(|e| vec![not_tried(&e)])
}

fn tried(modules: &Modules, netns: &Netns) -> Result<Vec<Finding>, netlink::Error> {
    let mut kernel = Direct::open("in a namespace to try things in")?;
    let (name, ifindex) = LOOPBACK;
    let absent = Need::ALL.into_iter().filter(|need| !modules.has(*need));
    let findings = absent.filter_map(|need| {
        // The kernel looks for the kind first. If it refuses the link or the program, it knows the kind.
        let answer = kernel.run(need.batch(name, ifindex, netns, -1));
        judge(need, answer).ok().flatten()
    });
    Ok(findings.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn loaded_loadable_and_built_in_modules_are_there() {
        let root = machine(&[
            ("proc/modules", "veth 45056 0 - Live 0x0000000000000000\n"),
            (
                "lib/modules/6.1/modules.dep",
                "kernel/drivers/net/dummy.ko:\nkernel/drivers/net/ipvlan/ipvlan.ko.xz: kernel/a.ko.xz\nkernel/net/sched/cls_bpf.ko.zst:\n",
            ),
            (
                "lib/modules/6.1/modules.builtin",
                "kernel/net/sched/sch_fq.ko\n",
            ),
        ]);
        let modules = Modules::read(root.path(), "6.1").unwrap();
        let there: Vec<Need> = Need::ALL
            .into_iter()
            .filter(|need| modules.has(*need))
            .collect();
        // Of sch_ingress and cls_bpf one is there: that is not enough.
        assert_eq!(
            there,
            [Need::Veth, Need::Dummy, Need::Ipvlan, Need::FairQueue]
        );
    }

    #[test]
    fn a_kernel_whose_modules_are_elsewhere_is_not_known() {
        let root = machine(&[("proc/modules", "")]);
        let (path, _) = Modules::read(root.path(), "6.1").unwrap_err();
        assert!(path.ends_with("lib/modules/6.1/modules.dep"), "{path:?}");
        // One that loads none can be tried.
        let root = machine(&[]);
        let modules = Modules::read(root.path(), "6.1").unwrap();
        assert!(Need::ALL.into_iter().all(|need| !modules.has(need)));
    }
}
