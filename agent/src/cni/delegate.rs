//! Another plugin, executed as the CNI specification's section 4 ("Plugin Delegation") says.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ebbtide_plugin::{cni::code, object::Object};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

use super::Failure;
use crate::podnet::Delegate;

/// How long it may take; the plugin that waits for us gives up a little later.
const PATIENCE: Duration = Duration::from_secs(45);

/// The error of a plugin; many leave `cniVersion` out.
#[derive(Deserialize)]
struct Said {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

/// Runs the plugin with `command`, and gives what it printed.
///
/// # Errors
/// Its own error as it printed it, or why it could not be run.
pub async fn call(delegate: &Delegate, command: &str) -> Result<String, Failure> {
    let program = find(&delegate.kind, &delegate.path)?;
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        Failure::new(
            code::IO_FAILURE,
            format!("{what} the plugin {} for {command}: {e}", program.display()),
            "is it the right program for this machine, and can it be executed?",
        )
    };
    let mut child = Command::new(&program)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &delegate.container_id)
        .env("CNI_NETNS", &delegate.netns)
        .env("CNI_IFNAME", &delegate.interface)
        .env("CNI_ARGS", &delegate.args)
        .env("CNI_PATH", &delegate.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed("start", &e))?;
    let stdin = child.stdin.take();
    let config = delegate.config.clone();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // One that does not read to the end may still answer.
            let _unread = stdin.write_all(config.as_bytes()).await;
        }
    };
    let (output, ()) = timeout(PATIENCE, async {
        tokio::join!(child.wait_with_output(), feed)
    })
    .await
    .map_err(|e| failed("wait for", &e))?;
    let output = output.map_err(|e| failed("wait for", &e))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(match serde_json::from_str::<Object<Said>>(&text) {
        Ok(Object(error)) => Failure::new(
            error.code,
            format!("{} ({command}): {}", delegate.kind, error.msg),
            error.details,
        ),
        Err(_) => failed("understand", &format!("{}: {text}{said}", output.status)),
    })
}

/// The plugin in the directories of `CNI_PATH`.
fn find(kind: &str, path: &str) -> Result<PathBuf, Failure> {
    let plain = !kind.is_empty() && !kind.contains('/') && !matches!(kind, "." | "..");
    let mut candidates = path.split(':').map(|dir| Path::new(dir).join(kind));
    let found = candidates.find(|file| plain && file.is_file());
    found.ok_or_else(|| {
        Failure::new(
            code::INVALID_NETWORK_CONFIG,
            format!("the plugin {kind:?} is not in CNI_PATH ({path})"),
            "install it there (and make the directory visible to the agent, if that runs in a \
             container), or correct `ipam.type`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_looked_for_in_every_directory_and_nowhere_else() {
        let first = tempfile::tempdir().unwrap();
        let second = tempfile::tempdir().unwrap();
        std::fs::write(second.path().join("host-local"), "").unwrap();
        let path = format!("{}:{}", first.path().display(), second.path().display());
        let found = find("host-local", &path).unwrap();
        assert_eq!(found, second.path().join("host-local"));
        for bad in ["static", "", "..", "../host-local"] {
            let failure = find(bad, &path).unwrap_err();
            assert!(failure.message.contains(bad), "{}", failure.message);
        }
    }
}
