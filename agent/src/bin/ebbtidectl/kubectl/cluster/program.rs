//! kubectl, as it is called for the cluster that the plugin's options name.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use ebbtide_agent::program;
use serde_json::{Value, json};

use super::{super::Cli, CALL, Container, Kind, MOST, Which};

/// kubectl, with the options that name the cluster.
#[derive(Clone, Debug)]
pub(in super::super) struct Kubectl {
    options: Vec<String>,
    /// The context, if the options name one.
    context: Option<String>,
}

impl Kubectl {
    /// Returns it with the plugin's options.
    pub(super) fn of(cli: &Cli) -> Self {
        let options = [
            ("--context", &cli.context),
            ("--kubeconfig", &cli.kubeconfig),
        ];
        let options = options
            .into_iter()
            .filter_map(|(option, value)| Some(format!("{option}={}", value.as_ref()?)));
        Self {
            options: options.collect(),
            context: cli.context.clone(),
        }
    }

    /// Returns the context; none without one, as where all is told by variables.
    pub(super) fn context(&self) -> Option<String> {
        if self.context.is_some() {
            return self.context.clone();
        }
        let told = self.call(&["config", "current-context"], b"", CALL).ok()?;
        let name = String::from_utf8(told).ok()?;
        Some(name.trim().to_owned()).filter(|name| !name.is_empty())
    }

    /// Whether kubectl is in the search path.
    pub(super) fn is_installed() -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join("kubectl").is_file())
    }

    /// Returns a call, for who reads its output while it runs.
    pub(in super::super) fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.options);
        command
    }

    /// Runs kubectl with `input` on its standard input, for no longer than `most`, and returns what it prints.
    pub(in super::super) fn call(
        &self,
        words: &[&str],
        input: &[u8],
        most: Duration,
    ) -> anyhow::Result<Vec<u8>> {
        let mut command = self.command();
        command.args(words);
        let first = words.first().copied().unwrap_or_default();
        let output = program::output(&mut command, input, most, MOST)
            .with_context(|| format!("run kubectl {first} (is it in the search path?)"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let mut lines = said.trim().lines().rev();
            // kubectl adds a line about the exit status of what it ran.
            let told = lines.find(|line| !line.starts_with("command terminated with"));
            let told = told.filter(|line| !line.is_empty());
            bail!(
                "kubectl {first}: {}",
                told.unwrap_or("it failed, and says nothing")
            );
        }
        Ok(output.stdout)
    }

    fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let words = [words, &["-o", "json"]].concat();
        let text = self.call(&words, b"", CALL)?;
        serde_json::from_slice(&text)
            .with_context(|| format!("read what kubectl {} printed", words.join(" ")))
    }

    pub(super) fn get(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        which: Which<'_>,
    ) -> anyhow::Result<Value> {
        self.json(&words(kind, namespace, which))
    }

    pub(super) fn create(&self, objects: &[Value]) -> anyhow::Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let text = list.to_string();
        self.call(&["create", "-f", "-"], text.as_bytes(), CALL)
            .map(drop)
    }

    pub(super) fn delete(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        name: &str,
        does_wait: bool,
    ) -> anyhow::Result<()> {
        let wait = format!("--wait={does_wait}");
        let mut words = vec!["delete", kind.plural, name, "--ignore-not-found", &wait];
        if let Some(namespace) = namespace {
            words.extend(["-n", namespace]);
        }
        self.call(&words, b"", CALL * 2).map(drop)
    }

    pub(super) fn version(&self) -> anyhow::Result<Value> {
        let version = self.json(&["version"])?;
        Ok(version["serverVersion"]["gitVersion"].clone())
    }

    pub(super) fn run(
        &self,
        container: Container<'_>,
        words: &[&str],
        input: &[u8],
        most: Duration,
    ) -> anyhow::Result<Vec<u8>> {
        self.call(&[&exec(container)[..], words].concat(), input, most)
    }

    pub(super) fn hold(
        &self,
        container: Container<'_>,
        words: &[&str],
        most: Duration,
    ) -> anyhow::Result<(Held, String)> {
        let mut child = self
            .command()
            .args(exec(container))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("run kubectl exec (is it in the search path?)")?;
        let stdout = child.stdout.take();
        let held = Held(child);
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            if let Some(stdout) = stdout {
                // Without a line the program did not start.
                let _read = BufReader::new(stdout).read_line(&mut line);
            }
            // The receiver may have stopped waiting.
            let _ = sender.send(line);
        });
        Ok((held, receiver.recv_timeout(most).unwrap_or_default()))
    }
}

/// Returns the words by which kubectl gets objects.
fn words<'a>(kind: Kind, namespace: Option<&'a str>, which: Which<'a>) -> Vec<&'a str> {
    let mut words = vec!["get", kind.plural];
    match which {
        Which::All => {}
        Which::Labelled(label) => words.extend(["-l", label]),
        Which::Having(field) => words.extend(["--field-selector", field]),
        Which::Named(name) => words.push(name),
    }
    match namespace {
        Some(namespace) => words.extend(["-n", namespace]),
        // kubectl takes it for kinds without namespaces, too.
        None if !matches!(which, Which::Named(_)) => words.push("--all-namespaces"),
        None => {}
    }
    words
}

/// Returns the words by which kubectl runs something in a container, with its standard input.
fn exec(container: Container<'_>) -> [&str; 8] {
    let Container {
        namespace,
        pod,
        name,
    } = container;
    ["exec", "-i", "-n", namespace, pod, "-c", name, "--"]
}

/// kubectl, for as long as what it started is wanted.
#[derive(Debug)]
pub(super) struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        // The end of its input tells the program to end, and then kubectl ends as well.
        drop(self.0.stdin.take());
        for _ in 0..100 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        // It may have ended meanwhile.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{NETWORKS, NODES, PODS},
        *,
    };

    #[test]
    fn objects_are_asked_for_in_kubectls_words() {
        for (kind, namespace, which, expected) in [
            (NODES, None, Which::All, "get nodes --all-namespaces"),
            (
                NETWORKS,
                None,
                Which::All,
                "get spidermultusconfigs --all-namespaces",
            ),
            (
                PODS,
                Some("n"),
                Which::Labelled("a=b"),
                "get pods -l a=b -n n",
            ),
            (
                PODS,
                Some("n"),
                Which::Having("metadata.name=p"),
                "get pods --field-selector metadata.name=p -n n",
            ),
            (PODS, Some("n"), Which::Named("p"), "get pods p -n n"),
            (PODS, None, Which::Named("p"), "get pods p"),
        ] {
            assert_eq!(words(kind, namespace, which).join(" "), expected);
        }
    }
}
