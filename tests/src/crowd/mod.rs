//! A crowded node: everything that other software may have on a node, at the same time, and all of its traffic as a
//! matrix. The tests prove that foreign traffic works exactly as before.
//!
//! - [`cell`], [`matrix`]: who sends requests to whom, the results at several moments, and what changed;
//! - [`state`]: the node's state besides its traffic;
//! - `kinds`, `overlay`: the kernel's tunnels, each over each NIC, with pods at both ends;
//! - `bridges`, `children`, `vrf`, `esp`, `vpn`, `policy`, `services`: containers, a storage network, VRFs, IPsec, a
//!   VPN in user space, foreign policy routing, and the host itself;
//! - [`moments`]: the agent starts, has pods, and is removed.
//!
//! A part that this kernel lacks is named on standard output and left out.

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

/// The options of a crowded node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Whether every link filters reverse paths strictly, and `src_valid_mark` is set as wg-quick does.
    pub strict: bool,
    /// Whether other software saves and restores whole marks, and not only its own bits.
    pub whole_marks: bool,
    /// Whether only those kinds of tunnels are built that most overlays use.
    pub few_kinds: bool,
    /// Whether there is a VRF, which adds the kernel's own rule of priority 1000.
    pub vrf: bool,
}

/// A crowded node, which exists as long as this value.
#[derive(Debug)]
pub struct Crowd {
    site: Site,
    overlay: Overlay,
    /// The parts that this kernel lacks.
    pub missing: Vec<String>,
}

impl Crowd {
    /// Builds everything, without an agent.
    ///
    /// # Errors
    /// If something cannot be built; the error names it.
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

    /// Returns the node's namespace.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.site.node
    }

    /// Returns the threads in its namespaces.
    #[must_use]
    pub fn doors(&self) -> &Arc<Doors> {
        &self.site.doors
    }

    /// Returns all cells.
    #[must_use]
    pub fn cells(&self) -> &[Cell] {
        &self.site.cells
    }

    /// Returns the cells that must work for Ebbtide's pods, one on each NIC, and their servers.
    fn ours(&self, pods: &[Pod]) -> Result<(Vec<Cell>, Servers)> {
        services::ours(&self.site, &self.overlay, pods)
    }

    /// Returns the plan for the agent, without the addresses that are on no NIC.
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
