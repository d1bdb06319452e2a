//! Takes away what is pinned under a map's name and is not that map.
//!
//! aya takes whatever it finds there for the map. The kernel then refuses the programs, or the agent reads nonsense. The
//! map that was meant lives as long as the programs of running pods; the next ones get a new one, as they do when the
//! layout changes.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use aya::maps::{MapInfo, MapType};
use aya_obj::{Map, Object, generated::bpf_map_type};

use super::{
    Error,
    object::{OBJECT, PINNED},
};

/// What tells maps apart for programs and agent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    /// `None` for one that aya does not know.
    kind: Option<MapType>,
    key: u32,
    value: u32,
    entries: u32,
}

impl Shape {
    fn of(map: &Map) -> Self {
        Self {
            kind: bpf_map_type::try_from(map.map_type())
                .ok()
                .and_then(|kind| kind.try_into().ok()),
            key: map.key_size(),
            value: map.value_size(),
            entries: map.max_entries(),
        }
    }

    /// Returns the shape of what is pinned. Of a program or a link it is one that no map has.
    fn pinned(path: &Path) -> Option<Self> {
        let info = MapInfo::from_pin(path).ok()?;
        Some(Self {
            kind: info.map_type().ok(),
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
        })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            key,
            value,
            entries,
        } = self;
        match kind {
            Some(kind) => write!(f, "{kind:?}")?,
            None => f.write_str("no map")?,
        }
        write!(
            f,
            ", {entries} entries, keys of {key} bytes, values of {value}"
        )
    }
}

/// A pin that was taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damaged {
    pub(super) pin: PathBuf,
    /// What it was, and what it should have been.
    pub(super) what: String,
}

/// Removes everything in `pins` that has the name of a map and is not that map. What cannot be looked at stays: the
/// loader says why.
///
/// # Errors
/// If the object cannot be read, or something cannot be removed.
pub(super) fn remove_damaged(pins: &Path) -> Result<Vec<Damaged>, Error> {
    let object = Object::parse(OBJECT).map_err(aya::EbpfError::from)?;
    let mut removed = Vec::new();
    for (name, file) in PINNED {
        let pin = pins.join(file);
        let Some(map) = object.maps.get(name) else {
            continue;
        };
        if let Some(what) = differs(&pin, Shape::of(map)) {
            remove(&pin).map_err(Error::io("remove what is in the place of the map", &pin))?;
            removed.push(Damaged { pin, what });
        }
    }
    Ok(removed)
}

/// Says what is in the place of a map of this shape, if there is anything else.
fn differs(pin: &Path, wanted: Shape) -> Option<String> {
    let there = fs::symlink_metadata(pin).ok()?.file_type();
    match Shape::pinned(pin) {
        Some(found) if found == wanted => None,
        Some(found) => Some(format!("another object ({found}) than the map ({wanted})")),
        None if there.is_dir() => Some("a directory".to_owned()),
        None if there.is_symlink() => Some("a symbolic link to no map".to_owned()),
        None => None,
    }
}

/// Removes a pin, or what is in its place; nothing there is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?.file_type(),
    };
    match there.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_every_map_that_is_pinned() {
        let object = Object::parse(OBJECT).unwrap();
        for (name, _) in PINNED {
            let shape = Shape::of(&object.maps[name]);
            assert!(shape.entries > 0 && shape.value > 0, "{name}: {shape}");
        }
    }

    #[test]
    fn a_directory_and_a_dead_link_are_taken_away_and_nothing_is_missed_without_them() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(remove_damaged(dir.path()).unwrap(), []);
        fs::create_dir_all(dir.path().join("flows/below")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("host")).unwrap();
        let removed = remove_damaged(dir.path()).unwrap();
        let removed: Vec<_> = removed.iter().map(|it| it.what.as_str()).collect();
        assert_eq!(removed, ["a directory", "a symbolic link to no map"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
