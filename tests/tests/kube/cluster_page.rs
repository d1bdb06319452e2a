//! The page of a cluster: a real API server with a few hundred objects, asked by `kubectl ebbtide page --cluster`, and drawn
//! and driven by keys in Debian's chromium.

mod objects;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_agent::page::PageLink;
use ebbtide_cluster::ControlPlane;
use ebbtide_tests::browser::{Browser, Session};
use ebbtide_vpc::workspace;
use serde_json::{Value, json};

use crate::setup::cluster;
use objects::{ADDRESS, fill};

/// The command, while it serves.
struct Served {
    child: Child,
    link: PageLink,
}

impl Served {
    fn start(cluster: &ControlPlane, words: &[&str]) -> Result<Self> {
        let mut child = command(cluster)?
            .args(["-o", "json", "page"])
            .args(words)
            .stdout(Stdio::piped())
            .spawn()
            .context("run kubectl ebbtide page")?;
        let stdout = child.stdout.take().context("its output")?;
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let link = serde_json::from_str(&line);
        let served = Self {
            child,
            link: link.with_context(|| format!("{read:?} {line:?}"))?,
        };
        Ok(served)
    }

    /// Asks for a path. Returns the head and the body.
    fn ask(&self, path: &str, host: &str, token: &str) -> Result<(String, String)> {
        let mut stream = TcpStream::connect(self.link.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        Ok((head.to_ascii_lowercase(), body.to_owned()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a call of the plugin, which is `ebbtidectl` under its other name.
fn command(cluster: &ControlPlane) -> Result<Command> {
    let link: PathBuf = cluster.directory().join("kubectl-ebbtide");
    if !link.is_symlink() {
        let program = fs::canonicalize(workspace::BINARIES.file("ebbtidectl")?)?;
        symlink(program, &link).with_context(|| format!("making {}", link.display()))?;
    }
    cluster.client_command(&link)
}

fn once(cluster: &ControlPlane) -> Result<Value> {
    let output = command(cluster)?
        .args(["page", "--cluster", "--once"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn texts(view: &Value) -> Vec<&str> {
    let troubles = view["troubles"].as_array().into_iter().flatten();
    troubles.filter_map(|it| it["text"].as_str()).collect()
}

#[test]
fn a_cluster_is_seen_as_its_api_server_has_it() -> Result<()> {
    let Some(mut cluster) = cluster()? else {
        return Ok(());
    };
    fill(&cluster)?;
    let begin = Instant::now();
    let view = once(&cluster)?;
    println!(
        "the view has {} bytes, after {:?}",
        view.to_string().len(),
        begin.elapsed()
    );
    judge(&view)?;
    // Of several nodes none is named: it is about all of them.
    let served = Served::start(&cluster, &[])?;
    guard(&served)?;
    look(&served, &mut cluster)
}

/// Checks what is said of the objects.
fn judge(view: &Value) -> Result<()> {
    let doubles = view["doubles"].as_array().context("no doubles")?;
    ensure!(
        doubles.len() == 1 && doubles[0]["address"] == ADDRESS,
        "{doubles:?}"
    );
    let holders = doubles[0]["holders"].as_array().context("no holders")?;
    let pods: Vec<&Value> = holders.iter().map(|it| &it["pod"]).collect();
    ensure!(pods == ["default/twin-a", "default/twin-b"], "{holders:?}");
    for (field, expected) in [
        ("nodes", 40),
        ("readyNodes", 39),
        ("readyAgents", 37),
        // With the twins, and without the one that is gone.
        ("pods", 402),
    ] {
        ensure!(
            view["totals"][field] == expected,
            "{field}: {}",
            view["totals"]
        );
    }
    for text in [
        "the agent is not ready: node-07 (CrashLoopBackOff)",
        "no agent, but pods with its addresses: node-08",
        "no agent runs on these nodes, and no pod there can have an address: node-39",
        "the node is not ready: node-09",
        "pools without a free address: full-v4 (0 of 20 free)",
        "pools nearly empty: nearly-v4 (1 of 40 free)",
    ] {
        ensure!(texts(view).contains(&text), "{text}: {:?}", texts(view));
    }
    let events = view["events"].as_array().context("no events")?;
    ensure!(
        events.iter().all(|it| it["reason"] != "Pulled"),
        "{events:?}"
    );
    ensure!(events[0]["reason"] == "Repaired", "{events:?}");
    let pools = view["pools"].as_array().context("no pools")?;
    let fast = pools.iter().find(|it| it["name"] == "fast-v4");
    ensure!(
        fast.is_some_and(|it| it["nic"] == "ens6" && it["total"] == 900),
        "{fast:?}"
    );
    Ok(())
}

/// Checks who gets the data: as of a node's page.
fn guard(served: &Served) -> Result<()> {
    let (address, token) = (served.link.address.to_string(), &served.link.token);
    ensure!(address.starts_with("127.0.0.1:"), "{address}");
    let (head, page) = served.ask("/", &address, "")?;
    for header in [
        "http/1.0 200",
        "content-security-policy: default-src 'none'",
        "cache-control: no-store",
    ] {
        ensure!(head.contains(header), "{header}: {head}");
    }
    ensure!(!page.contains("node-07") && !page.contains(token));
    for (host, token, status) in [
        (&*address, &**token, 200),
        ("localhost:40123", token, 200),
        (&address, "", 403),
        (&address, "00", 403),
        ("evil.example", token, 403),
    ] {
        let (head, body) = served.ask("/cluster.json", host, token)?;
        ensure!(
            head.starts_with(&format!("http/1.0 {status}")),
            "{host}: {head}"
        );
        ensure!((status == 200) == body.contains("node-07"), "{host}");
    }
    // Several pages share one answer.
    let age = |answer: &str| -> Result<f64> {
        let answer: Value = serde_json::from_str(answer)?;
        answer["age"].as_f64().context("no age")
    };
    let ages = (
        age(&served.ask("/cluster.json", &address, token)?.1)?,
        age(&served.ask("/cluster.json", &address, token)?.1)?,
    );
    ensure!(ages.0 > 0.0 && ages.1 > ages.0, "{ages:?}");
    Ok(())
}

/// Looks at the page, and uses it by keys alone.
fn look(served: &Served, cluster: &mut ControlPlane) -> Result<()> {
    let Some(browser) = Browser::find()? else {
        return Ok(());
    };
    let mut page = Session::open(browser, &served.link.url())?;
    page.wait("document.querySelectorAll('.node').length === 40")?;
    page.set_dark(false)?;
    page.picture("cluster-light")?;
    page.set_dark(true)?;
    page.picture("cluster-dark")?;
    page.wait("document.documentElement.scrollWidth <= innerWidth")?;
    page.wait("!find('doubles').hidden && find('doubles').innerText.includes('twin-b')")?;
    page.wait("find('state').className.includes('bad') && location.hash === ''")?;
    page.wait("document.querySelectorAll('#pods mark').length === 2")?;

    page.press("/")?;
    for key in "twin".chars() {
        page.press(&key.to_string())?;
    }
    page.wait("document.querySelectorAll('#pods tr').length === 3")?;
    page.value("find('filter').value = ''; find('filter').dispatchEvent(new Event('input'))")?;
    page.value("document.querySelector('.node').focus()")?;
    for key in [
        "ArrowRight",
        "ArrowRight",
        "ArrowRight",
        "ArrowLeft",
        "Enter",
    ] {
        page.press(key)?;
    }
    page.wait("!find('chosen').hidden && find('chosen-command').innerText.startsWith('kubectl ebbtide --node ')")?;
    page.wait("document.activeElement.getAttribute('aria-pressed') === 'true'")?;
    page.wait("chosen && [...document.querySelectorAll('#pods tr')].every(row => [chosen, ''].includes(row.cells[1].innerText))")?;
    page.wait("find('chosen').getBoundingClientRect().top >= document.querySelector('header').getBoundingClientRect().bottom")?;
    page.wait("find('chosen').getBoundingClientRect().bottom <= innerHeight")?;
    // News leave the focus where it is.
    let before = page.value("last.age + newest")?;
    page.wait(&format!("last.age + newest !== {before}"))?;
    page.wait("document.activeElement.dataset.key === 'node ' + chosen")?;
    page.picture("cluster-chosen")?;
    page.press("Escape")?;
    page.wait("find('chosen').hidden")?;
    page.press("t")?;
    page.wait("document.documentElement.dataset.theme === 'light'")?;
    page.press("p")?;
    page.wait("find('pause').getAttribute('aria-pressed') === 'true'")?;
    page.press("p")?;

    // What is known is shown on, with its age.
    cluster.stop_api_server()?;
    page.wait("!find('faults').hidden && find('faults').innerText.includes('old')")?;
    page.wait("document.querySelectorAll('.node').length === 40")?;
    page.wait("find('state').innerText.includes('old data')")?;
    page.wait("document.querySelectorAll('#fault-list li').length === 1")?;
    // What was seen of a pod holds: the one that is gone is not taken for one that lives.
    page.wait("document.querySelectorAll('#pods mark').length === 2")?;
    page.picture("cluster-old")?;
    cluster.start_api_server()?;
    page.wait("find('faults').hidden")
}

#[test]
fn an_api_server_that_does_not_answer_is_told() -> Result<()> {
    let Some(mut cluster) = cluster()? else {
        return Ok(());
    };
    cluster.stop_api_server()?;
    let output = command(&cluster)?
        .args(["page", "--cluster", "--once"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    for kind in ["nodes", "spiderendpoints", "spiderippools"] {
        ensure!(said.contains(&format!("{kind}: ")), "{said}");
    }
    let view: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(texts(&view).is_empty(), "{view}");
    let served = Served::start(&cluster, &["--cluster"])?;
    let address = served.link.address.to_string();
    let (_, body) = served.ask("/cluster.json", &address, &served.link.token)?;
    let answer: Value = serde_json::from_str(&body)?;
    let faults = answer["faults"].as_array().context("no faults")?;
    ensure!(faults.len() == 6, "{answer}");
    ensure!(answer["faults"][0]["age"] == json!(null), "{answer}");
    ensure!(answer["view"] == json!(null), "{answer}");
    Ok(())
}
