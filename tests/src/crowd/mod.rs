//! A node with a crowd on it: everything at once that other people have on theirs, and all of its traffic as a matrix,
//! to prove that what is not ours works exactly as before.
//!
//! - [`cell`], [`matrix`]: who asks whom, at one moment after the other, and what changed;
//! - [`state`]: what the node has besides its traffic;
//! - `kinds`, `overlay`: the kernel's tunnels, each over each NIC, with pods at both ends;
//! - `bridges`, `children`, `vrf`, `esp`, `vpn`, `policy`, `services`: containers, a storage network, VRFs, IPsec, a VPN
//!   in user space, routing by others and the host itself;
//! - [`moments`]: the agent comes, has pods, goes.
//!
//! A part that this kernel lacks is said on standard output and left out.

pub mod cell;
pub mod door;
pub mod matrix;
pub mod moments;
pub mod state;

mod bridges;
mod children;
mod esp;
mod kinds;
mod overlay;
mod policy;
mod servers;
mod services;
mod site;
mod vpn;
mod vrf;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use ebbtide_vpc::{netns::Netns, plan::Plan, pod::Pod, progress::print, vpc::Vpc};

use cell::Cell;
use door::Doors;
use overlay::Overlay;
use servers::Servers;
use site::Site;

/// What differs between one crowd and another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Strict reverse path filtering on every link, and `src_valid_mark` as wg-quick sets it.
    pub strict: bool,
    /// Others save and restore the whole mark, and not only bits of theirs.
    pub whole_marks: bool,
    /// Only the kinds of tunnels that most overlays are made of.
    pub few_kinds: bool,
    /// A VRF, with which the kernel's own rule of priority 1000 comes.
    pub vrf: bool,
}

/// The node with its crowd, as long as this value lives.
#[derive(Debug)]
pub struct Crowd {
    site: Site,
    overlay: Overlay,
    /// What this kernel lacks.
    pub missing: Vec<String>,
}

impl Crowd {
    /// Builds all of it. There is no agent yet.
    ///
    /// # Errors
    /// Says what could not be built.
    pub fn build(wishes: Wishes) -> Result<Self> {
        let plan = Plan {
            strict_rp_filter: wishes.strict,
            ..Plan::default()
        };
        let vpc = Vpc::build(plan).context("building the VPC")?;
        let mut site = Site::new(vpc);
        if wishes.strict {
            site.node.sysctls(&[
                ("net/ipv4/conf/all/rp_filter", "1"),
                ("net/ipv4/conf/all/src_valid_mark", "1"),
            ])?;
        }
        let (overlay, mut missing) = overlay::set_up(&mut site, wishes).context("the overlays")?;
        bridges::set_up(&mut site).context("the bridges")?;
        children::set_up(&mut site).context("the storage network")?;
        policy::set_up(&mut site, &overlay, wishes).context("routing by others")?;
        missing.extend(esp::set_up(&mut site).context("ESP in transport mode")?);
        missing.extend(vpn::set_up(&mut site).context("a VPN in user space")?);
        if wishes.vrf {
            missing.extend(vrf::set_up(&mut site).context("the VRF")?);
        }
        services::set_up(&mut site, &overlay).context("Services")?;
        site.finish().context("building what was planned")?;
        for lack in &missing {
            print(&format!("left out: {lack}\n"));
        }
        Ok(Self {
            site,
            overlay,
            missing,
        })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.site.node
    }

    /// Into its namespaces.
    #[must_use]
    pub fn doors(&self) -> &Arc<Doors> {
        &self.site.doors
    }

    /// All there is to be asked.
    #[must_use]
    pub fn cells(&self) -> &[Cell] {
        &self.site.cells
    }

    /// What our pods, one on each NIC, are to be able to, and their servers.
    fn ours(&self, pods: &[Pod]) -> Result<(Vec<Cell>, Servers)> {
        services::ours(&self.site, &self.overlay, pods)
    }

    /// What the agent is to know: the plan, without the addresses that are on no NIC.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut plan = self.site.vpc.plan.clone();
        for node in &mut plan.nodes {
            for nic in &mut node.nics {
                nic.v4.secondary.pop();
            }
        }
        plan
    }
}
