//! The agent's netlink layer against the running kernel.

use anyhow::{Context as _, Result, ensure};
use ebbtide_agent::netlink::Netlink;
use ebbtide_tests::{netns::Netns, snapshot::ip};

/// So many that the kernel cannot answer a dump with one message: then, and only then, a second dump
/// finds the first one under way.
const LINKS: usize = 150;

#[test]
fn many_questions_at_once_are_all_answered_in_full() -> Result<()> {
    let netns = Netns::new("crowded")?;
    for number in 0..LINKS {
        ip(
            &netns,
            &["link", "add", &format!("b{number}"), "type", "bridge"],
        )?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let netlink = netns.run(|| {
        let _entered = runtime.enter();
        Ok(Netlink::open("in the test")?)
    })?;
    let answers = runtime.block_on(futures::future::join_all((0..32).map(|_| netlink.links())));
    for answer in answers {
        let links = answer.context("one of many")?;
        ensure!(links.len() == LINKS + 1, "{} links", links.len());
    }
    Ok(())
}
