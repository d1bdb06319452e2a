//! Each round of telling the cluster of the node's addresses from the cloud, and of giving back what is asked for.
//!
//! The order matters: what is asked back is withheld from pods and on disk before it is looked at who has it, and that before
//! it is told to be surrendered.

use std::{collections::BTreeSet, io, path::Path, time::Instant};

use ebbtide_ipam::{catalog::Catalog, pool::Pools};
use ebbtide_kernel::node::NodeFacts;
use ebbtide_kube::{cloud_map::Wish, node_cloud::NodeCloud};
use tracing::{info, warn};

use super::{
    Cloud,
    sets::Sets,
    state::AskedBack,
    surrender::Surrender,
    surrendered::SurrenderFile,
    told::{Known, surrendered, told, wished},
};

/// What the task that tells the cluster keeps from round to round.
#[derive(Debug)]
pub(crate) struct Sharing {
    surrender: Surrender,
    /// None while a thread writes.
    file: Option<SurrenderFile>,
    start: Instant,
    unknown: Option<String>,
}

impl Cloud {
    /// Restores what was asked back before the agent's restart: nobody gets it from now on. Blocks on the disk.
    pub(crate) fn restore_asked_back(&self, state_dir: &Path) {
        let (file, surrender) = SurrenderFile::load(state_dir, 0);
        let surrender = surrender.unwrap_or_else(|why| {
            warn!("{why}");
            Surrender::default()
        });
        let sharing = Sharing {
            surrender,
            file: Some(file),
            start: Instant::now(),
            unknown: None,
        };
        let withheld = sharing.surrender.withheld();
        if !withheld.is_empty() {
            info!("{withheld} had been asked back by the cloud controller: no pod gets them");
        }
        self.set_asked_back(sharing.asked_back(Sets::default()), withheld);
        self.put_sharing(sharing);
    }

    /// Takes over what is asked back now. It is withheld with the next [`crate::agent::Agent::withhold`].
    /// `now` is [`Sharing::now`].
    pub(crate) fn ask_back(
        &self,
        sharing: &mut Sharing,
        now: u64,
        wish: Wish,
        facts: &NodeFacts,
        catalog: &Catalog,
    ) {
        let before = sharing.surrender.withheld();
        match wish {
            Wish::Back(back) => {
                let (wish, offered) = {
                    let state = self.state();
                    wished(&back, &state.ledger, facts, catalog)
                };
                sharing.surrender.ask(now, &wish, &offered);
                sharing.unknown = None;
            }
            // What was asked before stays so.
            Wish::Unknown(why) => {
                if sharing.unknown.as_ref() != Some(&why) && !before.is_empty() {
                    warn!(
                        "what the cloud controller asks back: {why}; what it asked before stays valid"
                    );
                }
                sharing.unknown = Some(why);
            }
        }
        sharing.surrender.expire(now);
        let withheld = sharing.surrender.withheld();
        let (new, over) = (withheld.without(&before), before.without(&withheld));
        if !new.is_empty() {
            info!("the cloud controller asks back {new}: no pod gets them from now on");
        }
        if !over.is_empty() {
            info!("{over} are not asked back any more: pods may have them again");
        }
        let told = self.state().asked_back.surrendered.common(&withheld);
        self.set_asked_back(sharing.asked_back(told), withheld);
    }

    /// Returns what is to be told, after what is asked back is withheld in `pools`; none while nothing is known.
    pub(crate) fn report_of(
        &self,
        sharing: &Sharing,
        node: &str,
        facts: &NodeFacts,
        catalog: &Catalog,
        pools: &Pools,
    ) -> Option<NodeCloud> {
        let state = self.state().clone();
        let links = catalog.metadata_links().into_iter().map(str::to_owned);
        let wanted: BTreeSet<String> = links.chain(state.requested.into_keys()).collect();
        let provider = state.provider?.ok();
        if provider.is_some() && !wanted.is_empty() && state.ledger.nics().next().is_none() {
            return None;
        }
        let kept = sharing.surrender.kept();
        let known = Known {
            node,
            provider,
            ledger: &state.ledger,
            facts,
            catalog,
            wanted: &wanted,
            asked: sharing.surrender.asked(),
            kept: &kept,
        };
        let report = told(
            &known,
            |set| pools.standing(set),
            |link, first| self.waiting(link, first),
        );
        Some(report)
    }

    /// Notes that a report was written. `now` is [`Sharing::now`].
    pub(crate) fn has_told(&self, sharing: &mut Sharing, now: u64, surrendered: Sets) {
        let withheld = sharing.surrender.withheld();
        let asked_back = sharing.asked_back(surrendered.clone());
        sharing.surrender.has_told(now, surrendered);
        self.set_asked_back(asked_back, withheld);
    }
}

impl Sharing {
    fn asked_back(&self, surrendered: Sets) -> AskedBack {
        AskedBack {
            asked: self.surrender.asked().clone(),
            kept: self.surrender.kept(),
            unknown: self.unknown.clone(),
            surrendered,
        }
    }

    /// Returns the seconds since the agent's start.
    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_secs()
    }

    /// Whether it is known what is asked back now.
    pub(crate) const fn is_known(&self) -> bool {
        self.unknown.is_none()
    }

    /// Notes that a report is about to be written, and returns what it names as surrendered.
    pub(crate) fn telling(&mut self, report: &NodeCloud) -> Sets {
        let surrendered = surrendered(report);
        self.surrender.telling(&surrendered);
        surrendered
    }

    /// Writes what is asked back to disk, durably.
    ///
    /// # Errors
    /// If the disk fails: then nothing must be told of it.
    pub(crate) async fn save(&mut self) -> io::Result<()> {
        let Some(mut file) = self.file.take() else {
            return Err(io::Error::other("an earlier write did not end"));
        };
        let state = self.surrender.clone();
        let written = tokio::task::spawn_blocking(move || {
            let stored = file.store(&state);
            (file, stored)
        });
        let (file, stored) = written.await.map_err(io::Error::other)?;
        self.file = Some(file);
        stored
    }
}
