//! What was removed, what was not, and why.

use std::{fmt, io::Write};

use serde::Serialize;
use tracing::{error, info, warn};

/// How a removal ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Nothing of Ebbtide's is left (of a dry run: would be).
    #[default]
    Nothing,
    /// Pods are left, and everything that they need.
    Pods,
    /// An agent runs, and would put back what is removed.
    Agent,
    /// Something could not be removed.
    Failed,
}

impl Outcome {
    /// Returns the exit code of `ebbtide-agent uninstall`.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Failed => 1,
            // 2 is that of a wrong command line.
            Self::Pods => 3,
            Self::Agent => 4,
        }
    }
}

/// Something that is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its kind, one word.
    pub kind: &'static str,
    /// What it is.
    pub what: String,
}

impl Item {
    /// Makes an item of what is printed of an object.
    pub fn new(kind: &'static str, what: impl fmt::Display) -> Self {
        let what = what.to_string();
        Self { kind, what }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, what } = self;
        match what.starts_with(kind) {
            true => f.write_str(what),
            false => write!(f, "{kind} {what}"),
        }
    }
}

/// Something of Ebbtide's that stays, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// What it is.
    pub what: String,
    /// The reason.
    pub why: String,
}

/// An interface of a pod that is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodLeft {
    /// The pod, as in `namespace/name`; empty where no record names it.
    pub pod: String,
    /// Its interface.
    pub interface: String,
    /// Its network namespace.
    pub netns: String,
    /// Why it counts as left, if that is not plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl fmt::Display for PodLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = Some(self.pod.as_str()).filter(|pod| !pod.is_empty());
        write!(
            f,
            "{} of {}",
            self.interface,
            pod.unwrap_or("an unknown pod")
        )?;
        if !self.netns.is_empty() {
            write!(f, " in {}", self.netns)?;
        }
        match &self.why {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

/// The result of a removal or of a dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether nothing was removed, on request.
    pub dry_run: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// What was removed, in this order; of a dry run what would be.
    pub removed: Vec<Item>,
    /// What stays.
    pub kept: Vec<Kept>,
    /// The interfaces of pods that are left.
    pub pods: Vec<PodLeft>,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

impl Report {
    pub(super) fn plan(&mut self, items: impl Iterator<Item = Item>) {
        self.removed.extend(items);
    }

    pub(super) fn removed(&mut self, item: Item) {
        info!("removed {item}");
        self.removed.push(item);
    }

    pub(super) fn keep(&mut self, what: impl fmt::Display, why: impl Into<String>) {
        let (what, why) = (what.to_string(), why.into());
        self.kept.push(Kept { what, why });
    }

    pub(super) fn failed(&mut self, failure: impl fmt::Display) {
        let failure = failure.to_string();
        error!("{failure}");
        self.failures.push(failure);
    }

    /// Logs what is left, and what the person can do.
    pub(super) fn log(&self) {
        for Kept { what, why } in &self.kept {
            info!("{what} stays: {why}");
        }
        match self.outcome {
            Outcome::Nothing => {}
            Outcome::Failed => warn!("not all could be removed: uninstall again"),
            Outcome::Agent => warn!(
                "an agent still runs here, and would put back what is removed: end it (its DaemonSet or its unit), then \
                 uninstall again"
            ),
            Outcome::Pods => {
                for pod in &self.pods {
                    warn!("still there: {pod}");
                }
                warn!(
                    "{} pod interface(s) are still there and keep what they need in the host's network: delete \
                     these pods (`kubectl drain` of the node does) while an agent runs, which answers for them; then end \
                     it and uninstall again",
                    self.pods.len()
                );
            }
        }
    }

    /// Writes it for people: a dry run's list; of a removal nothing, since each step was logged.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn print(&self, to: &mut impl Write) -> std::io::Result<()> {
        if !self.dry_run {
            return Ok(());
        }
        for item in &self.removed {
            writeln!(to, "would remove {item}")?;
        }
        for Kept { what, why } in &self.kept {
            writeln!(to, "would leave {what}: {why}")?;
        }
        if self.removed.is_empty() {
            writeln!(to, "nothing of Ebbtide's is on this node")?;
        }
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_an_exit_code_of_its_own() {
        let all = [
            Outcome::Nothing,
            Outcome::Failed,
            Outcome::Pods,
            Outcome::Agent,
        ];
        assert_eq!(all.map(Outcome::exit_code), [0, 1, 3, 4]);
    }

    #[test]
    fn a_dry_run_is_printed_and_a_removal_was_logged() {
        let mut report = Report {
            dry_run: true,
            removed: vec![
                Item::new("file", "/etc/cni/net.d/00-ebbtide.conflist"),
                Item::new("rule", "rule from all lookup 7700"),
            ],
            ..Report::default()
        };
        report.keep("forwarding", "cali1 may need it");
        let mut text = Vec::new();
        report.print(&mut text).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "would remove file /etc/cni/net.d/00-ebbtide.conflist\n\
             would remove rule from all lookup 7700\n\
             would leave forwarding: cali1 may need it\n"
        );
        report.dry_run = false;
        let mut text = Vec::new();
        report.print(&mut text).unwrap();
        assert!(text.is_empty());
    }

    #[test]
    fn a_pod_is_named_where_its_record_names_it() {
        let mut pod = PodLeft {
            pod: "default/web".into(),
            interface: "eth0".into(),
            netns: "/run/netns/x".into(),
            why: None,
        };
        assert_eq!(pod.to_string(), "eth0 of default/web in /run/netns/x");
        pod = PodLeft {
            pod: String::new(),
            interface: "eb1".into(),
            netns: String::new(),
            why: Some("it has no record".into()),
        };
        assert_eq!(pod.to_string(), "eb1 of an unknown pod (it has no record)");
    }
}
