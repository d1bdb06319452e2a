//! Removes the pinned maps of older layouts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Error;

/// Returns the number of a layout from the name of its directory.
fn number(dir: &Path) -> Option<u32> {
    dir.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

/// Removes the directories of older layouts beside `current`, and returns them. Newer ones stay: this agent may be a
/// rollback that will be upgraded again.
pub(super) fn forget_older(current: &Path) -> Result<Vec<PathBuf>, Error> {
    let (Some(all), Some(own)) = (current.parent(), number(current)) else {
        return Ok(Vec::new());
    };
    let mut removed = Vec::new();
    for entry in fs::read_dir(all).map_err(Error::io("list", all))?.flatten() {
        let dir = entry.path();
        if number(&dir).is_some_and(|number| number < own) {
            fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
            removed.push(dir);
        }
    }
    removed.sort();
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_layouts_alone_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["v1", "v9", "v10", "v11", "links", "v", "vx"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("flows"), "").unwrap();
        }
        let removed = forget_older(&dir.path().join("v10")).unwrap();
        assert_eq!(removed, ["v1", "v9"].map(|name| dir.path().join(name)));
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["links", "v", "v10", "v11", "vx"]);
    }
}
