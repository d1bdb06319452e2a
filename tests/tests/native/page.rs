//! The page of a node: who gets its data, that it says what `ebbtidectl` says, and what Debian's chromium makes of it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use ebbtide_agent::page::PageLink;
use ebbtide_tests::{browser::Browser, chained::ChainedInterface};
use ebbtide_vpc::{
    lab::Lab,
    netns::Netns,
    patience::eventually,
    plan::{Family, Plan},
    scrape::{ADDRESS, Answer, Scrape, ask, get},
};
use serde_json::Value;

use crate::metrics::{REPAIRED, remove_a_rule};

const NODE: &str = "master";

/// How long a page may take to draw itself, in milliseconds of its own clock.
const TIME: &str = "--virtual-time-budget=9000";

fn link(lab: &mut Lab) -> Result<PageLink> {
    let said = lab.agent(NODE).control_json(&["page"])?;
    serde_json::from_value(said).context("ebbtidectl page")
}

/// Asks for the data.
fn data(node: &Netns, link: &PageLink) -> Result<Value> {
    let answer = asked(node, "/node.json", &address(link), &bearer(link))?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(
        answer.head.contains("cache-control: no-store"),
        "{answer:?}"
    );
    Ok(serde_json::from_str(&answer.body)?)
}

fn address(link: &PageLink) -> String {
    link.address.to_string()
}

fn bearer(link: &PageLink) -> String {
    format!("\r\nAuthorization: Bearer {}", link.token)
}

fn asked(node: &Netns, path: &str, host: &str, more: &str) -> Result<Answer> {
    ask(
        node,
        ADDRESS,
        &format!("GET {path} HTTP/1.0\r\nHost: {host}{more}"),
    )
}

#[test]
fn the_data_is_what_ebbtidectl_says_and_for_who_brings_the_token() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let _pod = ChainedInterface::on(&mut lab, NODE)?;
    let node = lab.vpc.node(NODE).clone();
    let link = link(&mut lab)?;
    ensure!(address(&link) == ADDRESS, "{link:?}");
    let said = lab.agent(NODE).control(&["page"])?;
    ensure!(said.lines().next() == Some(&*link.url()), "{said}");

    let page = asked(&node, "/", ADDRESS, "")?;
    ensure!(page.status == 200, "{page:?}");
    for header in [
        "content-security-policy: default-src 'none'",
        "referrer-policy: no-referrer",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
    ] {
        ensure!(page.head.contains(header), "{header}: {}", page.head);
    }
    ensure!(!page.body.contains("default/guest") && !page.body.contains(&link.token));

    for (host, more, status) in [
        (ADDRESS, bearer(&link), 200),
        ("localhost:40123", bearer(&link), 200),
        (ADDRESS, String::new(), 403),
        (ADDRESS, "\r\nAuthorization: Bearer 00".to_owned(), 403),
        // A name of somebody's that leads here.
        ("evil.example:19464", bearer(&link), 403),
    ] {
        let answer = asked(&node, "/node.json", host, &more)?;
        ensure!(answer.status == status, "{host} {more}: {answer:?}");
        ensure!(status == 200 || !answer.body.contains("default/guest"));
    }
    let by_query = format!("/node.json?token={}", link.token);
    ensure!(asked(&node, &by_query, ADDRESS, "")?.status == 403);
    let posted = format!(
        "POST /node.json HTTP/1.0\r\nHost: {ADDRESS}{}",
        bearer(&link)
    );
    ensure!(ask(&node, ADDRESS, &posted)?.status == 405);

    remove_a_rule(&node)?;
    eventually("the repair is shown", || {
        let shown = data(&node, &link)?;
        let repairs = &shown["repairs"];
        ensure!(repairs["recent"][0]["object"] == "rule", "{repairs}");
        let what = repairs["recent"][0]["what"].as_str().unwrap_or_default();
        ensure!(what.ends_with("is missing"), "{repairs}");
        let counts = repairs["counts"].as_array().context("no counts")?;
        let all = counts.iter().filter_map(|kind| kind["count"].as_u64());
        let told = Scrape::of(&node)?.sum("ebbtide_repairs_total", &REPAIRED);
        ensure!(all.sum::<u64>() == 1 && told == 1.0, "{repairs} {told}");
        for part in ["nics", "pods", "pools"] {
            let said = lab.agent(NODE).control_json(&[part])?;
            ensure!(shown[part] == said, "{part}: {} {said}", shown[part]);
        }
        let said = lab.agent(NODE).control_json(&["status"])?;
        for field in ["node", "version", "interfaces"] {
            ensure!(shown["status"][field] == said[field], "{shown} {said}");
        }
        let said = lab.agent(NODE).control_json(&["datapath"])?;
        ensure!(hooks(&shown["datapath"]) == hooks(&said), "{shown} {said}");
        ensure!(shown["flows"]["total"].is_u64(), "{shown}");
        Ok(())
    })
}

/// Returns what the lines are about, without their counters, which grow.
fn hooks(lines: &Value) -> Vec<String> {
    let lines = lines.as_array().into_iter().flatten();
    lines
        .map(|line| format!("{} {} {}", line["pod"], line["interface"], line["program"]))
        .collect()
}

#[test]
fn with_metrics_at_the_nodes_address_the_page_is_at_the_loopback_one() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    let node = lab.vpc.node(NODE).clone();
    let before = link(&mut lab)?;
    let own = lab.vpc.nic(NODE, "ens5").primary(Family::V4);
    let own = format!("{own}:19464");
    restart(&mut lab, &format!("metrics: {{address: '{own}'}}\n"))?;
    eventually("metrics are served", || {
        let (status, _) = get(&node, &own, "/metrics")?;
        ensure!(status == 200, "{status}");
        Ok(())
    })?;
    let link = link(&mut lab)?;
    ensure!(address(&link) == ADDRESS, "{link:?}");
    ensure!(link.token != before.token, "a token outlived its agent");
    let shown = data(&node, &link)?;
    ensure!(shown["status"]["node"] == NODE, "{shown}");
    ensure!(asked(&node, "/", ADDRESS, "")?.status == 200);
    let old = asked(&node, "/node.json", ADDRESS, &bearer(&before))?;
    ensure!(old.status == 403, "{old:?}");
    for path in ["/", "/node.json"] {
        for host in [&*own, ADDRESS] {
            let head = format!("GET {path} HTTP/1.0\r\nHost: {host}{}", bearer(&link));
            let answer = ask(&node, &own, &head)?;
            ensure!(answer.status == 404, "{path} {host}: {answer:?}");
        }
    }
    // At all addresses: who comes by another one than the loopback one is refused.
    restart(&mut lab, "metrics: {address: '0.0.0.0:19464'}\n")?;
    let link = self::link(&mut lab)?;
    eventually("it is served", || data(&node, &link).map(drop))?;
    let head = format!(
        "GET /node.json HTTP/1.0\r\nHost: {ADDRESS}{}",
        bearer(&link)
    );
    let answer = ask(&node, &own, &head)?;
    ensure!(answer.status == 403, "{answer:?}");
    Ok(())
}

#[test]
fn without_a_listener_the_setting_is_named() -> Result<()> {
    let mut lab = Lab::start(Plan::default())?;
    restart(&mut lab, "metrics: {address: off}\n")?;
    let refused = lab.agent(NODE).control(&["page"]).err();
    let refused = format!("{:#}", refused.context("there is a page")?);
    ensure!(refused.contains("metrics.address"), "{refused}");
    // A port that another process has is named, too.
    let node = lab.vpc.node(NODE).clone();
    let other = node.run(|| Ok(std::net::TcpListener::bind(ADDRESS)?))?;
    restart(&mut lab, "")?;
    eventually("it is told", || {
        let refused = lab.agent(NODE).control(&["page"]).err();
        let refused = format!("{:#}", refused.context("there is a page")?);
        ensure!(refused.contains("another process has it"), "{refused}");
        Ok(())
    })?;
    drop(other);
    eventually("there is a page", || link(&mut lab).map(drop))
}

/// Starts the agent anew, with these lines in its configuration.
fn restart(lab: &mut Lab, lines: &str) -> Result<()> {
    let agent = lab.agent(NODE);
    agent.stop()?;
    agent.configure(lines)?;
    agent.launch()?;
    agent.wait_ready()
}

#[test]
fn a_browser_draws_the_node_and_asks_nobody_else() -> Result<()> {
    let Some(browser) = Browser::find()? else {
        return Ok(());
    };
    let mut lab = Lab::start(Plan::default())?;
    let _pod = ChainedInterface::on(&mut lab, NODE)?;
    let node = lab.vpc.node(NODE).clone();
    remove_a_rule(&node)?;
    let link = link(&mut lab)?;
    eventually("the repair is shown", || {
        let shown = data(&node, &link)?;
        ensure!(shown["repairs"]["recent"][0].is_object());
        Ok(())
    })?;
    let log = browser.home().join("requests.json");
    let dump = |url: &str| -> Result<String> {
        let mut command = browser.command(|program| node.command(program));
        command
            .arg(TIME)
            .arg(format!("--log-net-log={}", log.display()))
            .args(["--dump-dom", url]);
        let output = command.output().context("run chromium")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    };
    let drawn = dump(&link.url())?;
    let nics = lab.agent(NODE).control_json(&["nics"])?;
    let nics = nics.as_array().context("no NICs")?;
    let nics = nics.iter().filter(|nic| nic["takenFor"] == "nic");
    let names: Vec<&str> = nics.filter_map(|nic| nic["name"].as_str()).collect();
    ensure!(names.len() > 1, "{names:?}");
    let texts = ["default/guest", "is missing", "Ebbtide <span id=\"node\""];
    for text in texts.iter().chain(&names) {
        ensure!(drawn.contains(text), "{text}: {drawn}");
    }
    ensure!(
        drawn.contains(&format!("class=\"soft\">{NODE}<")),
        "{drawn}"
    );
    ensure!(!drawn.contains(&link.token), "the token is in the page");
    let asked = fs::read_to_string(&log)?;
    // What the browser asks for itself is not the page's doing, and has no origin.
    let urls: Vec<&str> = asked
        .lines()
        .filter(|event| !event.contains(r#""initiator":"not an origin""#))
        .filter(|event| event.contains(r#""initiator":""#))
        .filter_map(|event| event.split(r#""url":""#).nth(1)?.split('"').next())
        .collect();
    let page = format!("http://{ADDRESS}/");
    ensure!(
        urls.iter().any(|url| url.ends_with("/node.json")),
        "{urls:?}"
    );
    let elsewhere = urls.iter().find(|url| !url.starts_with(&page));
    ensure!(elsewhere.is_none(), "{elsewhere:?}");

    let without = dump(&format!("http://{ADDRESS}/"))?;
    ensure!(without.contains("no token"), "{without}");
    ensure!(!without.contains("default/guest"), "{without}");
    match Browser::pictures() {
        Some(directory) => pictures(&browser, &node, &link, &directory),
        None => Ok(()),
    }
}

/// Takes pictures for a person, in light and in dark.
fn pictures(browser: &Browser, node: &Netns, link: &PageLink, directory: &Path) -> Result<()> {
    for (name, option) in [
        ("light", None),
        ("dark", Some("--blink-settings=preferredColorScheme=0")),
    ] {
        let file = directory.join(format!("{name}.png"));
        let mut command = browser.command(|program| node.command(program));
        command.arg(TIME).args(option);
        command.arg(format!("--screenshot={}", file.display()));
        let output = command.arg(link.url()).output().context("run chromium")?;
        ensure!(output.status.success() && file.is_file(), "{output:?}");
    }
    Ok(())
}
