//! Files on the host: plugin and configuration, the agent's socket, its persistent data.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ebbtide_types::private::is_own_file;

use super::{Item, Options, Report};
use crate::install::Installation;

/// The agent's files in its directory of run-time data.
const RUN_FILES: [&str; 2] = ["cni.sock", "cni.draft"];

/// Removes the configuration, and without pods the plugin: pods that are left are deleted by it.
pub(super) fn remove_installation(
    installation: &Installation,
    has_pods: bool,
    report: &mut Report,
) {
    let removed = match has_pods {
        true => installation.remove_configuration(),
        false => installation.uninstall(),
    };
    match removed {
        Ok(removed) => {
            for path in removed {
                report.removed(Item::new("file", path.display()));
            }
            if let Some(path) = installation.kept() {
                report.keep(path.display(), "it has plugins of other installers");
            }
        }
        Err(e) => report.failed(e),
    }
}

/// Lists the files that [`remove_own`] would remove.
pub(super) fn own(options: &Options) -> Vec<Item> {
    let all = paths(options).into_iter();
    all.map(|path| Item::new("file", path.display())).collect()
}

/// Removes the agent's other files, and the directories that are empty then.
pub(super) fn remove_own(options: &Options, report: &mut Report) {
    for path in paths(options) {
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(e) => Err(e),
        };
        match removed {
            Ok(()) => report.removed(Item::new("file", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => report.failed(format_args!("remove {}: {e}", path.display())),
        }
    }
    remove_if_empty(&options.run_dir, report);
    if options.purge {
        remove_if_empty(&options.state_dir, report);
    } else if options.state_dir.exists() {
        report.keep(
            options.state_dir.display(),
            "it says which addresses are used and rest, for a later installation; --purge removes it",
        );
    }
}

fn paths(options: &Options) -> Vec<PathBuf> {
    let run = RUN_FILES.map(|name| options.run_dir.join(name));
    let mut paths: Vec<PathBuf> = run.into_iter().filter(|path| is_there(path)).collect();
    if options.purge {
        let entries = fs::read_dir(&options.state_dir).into_iter().flatten();
        let own = entries.flatten().filter(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(is_own_file)
        });
        let mut own: Vec<PathBuf> = own.map(|entry| entry.path()).collect();
        own.sort();
        paths.extend(own);
    }
    paths
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn remove_if_empty(path: &Path, report: &mut Report) {
    match fs::remove_dir(path) {
        Ok(()) => report.removed(Item::new("directory", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        // A mount, in a container: the host's directory stays, empty.
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            report.keep(path.display(), "it is mounted here; it is empty");
        }
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            report.keep(path.display(), "not all in it is the agent's");
        }
        Err(e) => report.failed(format_args!("remove {}: {e}", path.display())),
    }
}
