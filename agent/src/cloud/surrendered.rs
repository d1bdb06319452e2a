//! What is asked back, on disk: an agent that starts while the API server does not answer must give it to nobody.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use ebbtide_types::{Family, replace::atomic_replace};
use serde::{Deserialize, Serialize};

use super::{sets::Sets, surrender::Surrender};

/// The file's name in the state directory.
pub(crate) const FILE: &str = "cloud-asked.json";

/// The version of the format.
pub(crate) const VERSION: u64 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    version: u64,
    asked: BTreeMap<Family, String>,
    kept: BTreeMap<Family, String>,
}

/// The file, which is written only if it changes.
#[derive(Debug, Default)]
pub(crate) struct SurrenderFile {
    path: PathBuf,
    written: Option<Vec<u8>>,
}

impl SurrenderFile {
    /// Reads what the agent before this one kept: nothing if there was none. Blocks on the disk.
    ///
    /// The error says why there is a file that cannot be used.
    pub(crate) fn load(state_dir: &Path, now: u64) -> (Self, Result<Surrender, String>) {
        let path = state_dir.join(FILE);
        let (written, state) = match fs::read(&path) {
            Ok(text) => match parse(&text, now) {
                Ok(state) => (Some(text), Ok(state)),
                Err(why) => (None, Err(format!("{} {why}; {WITHOUT}", path.display()))),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => (None, Ok(Surrender::default())),
            Err(e) => (
                None,
                Err(format!("read {}: {e}; {WITHOUT}", path.display())),
            ),
        };
        (Self { path, written }, state)
    }

    /// Writes the state, durably, if it changed. Blocks on the disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn store(&mut self, state: &Surrender) -> io::Result<()> {
        let content = Content {
            version: VERSION,
            asked: state.asked().to_texts(),
            kept: state.kept().to_texts(),
        };
        // Nodes of whom nothing was ever asked have no file.
        if self.written.is_none() && state.withheld().is_empty() && !self.path.exists() {
            return Ok(());
        }
        let text = serde_json::to_vec(&content).map_err(io::Error::other)?;
        if self.written.as_ref() == Some(&text) {
            return Ok(());
        }
        // After a failure the file's content is unknown.
        self.written = None;
        atomic_replace(&self.path, &text, 0o600)?;
        self.written = Some(text);
        Ok(())
    }
}

/// What happens without the file.
const WITHOUT: &str = "the agent does not know what the cloud controller had asked back before it asks again: a pod may get such \
                       an address, and lose it";

fn parse(text: &[u8], now: u64) -> Result<Surrender, String> {
    let content: Content =
        serde_json::from_slice(text).map_err(|e| format!("cannot be read: {e}"))?;
    if content.version != VERSION {
        return Err(format!("has version {}, not {VERSION}", content.version));
    }
    let sets = |texts| Sets::parse(texts).map_err(|e| format!("has addresses that it {e}"));
    Ok(Surrender::restored(
        now,
        sets(&content.asked)?,
        sets(&content.kept)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(text: &str) -> Sets {
        Sets::parse(&[(Family::V4, text.to_owned())].into()).unwrap()
    }

    #[test]
    fn what_was_asked_back_is_so_after_a_restart_and_the_time_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, state) = SurrenderFile::load(dir.path(), 0);
        let mut state = state.unwrap();
        file.store(&state).unwrap();
        assert!(!dir.path().join(FILE).exists());
        let all = sets("10.0.0.5-10.0.0.8");
        state.ask(0, &sets("10.0.0.5-10.0.0.6"), &all);
        state.ask(10, &sets("10.0.0.6"), &all);
        file.store(&state).unwrap();
        let (mut file, again) = SurrenderFile::load(dir.path(), 700);
        let mut again = again.unwrap();
        assert_eq!(again.asked(), &sets("10.0.0.6"));
        assert_eq!(again.kept(), sets("10.0.0.5"));
        again.has_told(700, Sets::default());
        again.expire(1899);
        assert_eq!(again.kept(), sets("10.0.0.5"));
        again.expire(1900);
        assert!(again.kept().is_empty());
        file.store(&again).unwrap();
        let (_, last) = SurrenderFile::load(dir.path(), 0);
        assert!(last.unwrap().kept().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_said_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for (text, said) in [
            ("{", "cannot be read"),
            (r#"{"version":2,"asked":{},"kept":{}}"#, "has version 2"),
            (
                r#"{"version":1,"asked":{"v4":"fd00::5"},"kept":{}}"#,
                "is not IPv4",
            ),
        ] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let (mut file, state) = SurrenderFile::load(dir.path(), 0);
            let why = state.unwrap_err();
            assert!(why.contains(said) && why.contains("lose it"), "{why}");
            file.store(&Surrender::default()).unwrap();
            assert!(SurrenderFile::load(dir.path(), 0).1.is_ok());
        }
    }
}
