//! `ebbtidectl page`: where the node's page is.

use anyhow::bail;
use clap::Args;
use ebbtide_agent::page::PageLink;

/// The options of the page.
#[derive(Args)]
pub(super) struct Options {
    /// With `kubectl ebbtide`: the port of this machine that leads to the page; 0: a free one.
    #[arg(long, value_name = "PORT")]
    pub(super) port: Option<u16>,
    /// Serve a page of the whole cluster from this machine, with what the API server says: nodes, pools, pods, what was
    /// repaired. `kubectl ebbtide page` does so without it, too, where several nodes have an agent and none is named.
    #[arg(long)]
    pub(super) cluster: bool,
    /// Print what the cluster's page would show, as JSON, and end. Exits with 1 if the API server left something unanswered.
    #[arg(long, requires = "cluster", conflicts_with = "port")]
    pub(super) once: bool,
}

impl Options {
    /// Refuses what has no effect on the node itself.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.port {
            None => Ok(()),
            Some(_) => bail!(
                "--port is for `kubectl ebbtide page`, which forwards a port; here the page is at the agent's own"
            ),
        }
    }
}

/// Says where the page is.
pub(super) fn show(link: &PageLink) -> String {
    let url = link.url();
    let address = link.address;
    let port = address.port();
    format!(
        "{url}\n\
         (on this node alone; from elsewhere: kubectl ebbtide --node NODE page, or ssh -L {port}:{address} NODE)\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_a_line_of_its_own() {
        let link = PageLink {
            address: "127.0.0.1:19464".parse().unwrap(),
            token: "1f".into(),
        };
        let text = show(&link);
        assert_eq!(
            text.lines().next(),
            Some("http://127.0.0.1:19464/#token=1f")
        );
        assert!(text.contains("ssh -L 19464:127.0.0.1:19464 NODE"), "{text}");
    }
}
