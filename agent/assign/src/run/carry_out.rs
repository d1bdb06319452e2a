//! What a plan says, done: each request to the cloud is an Event on its node.

use std::{collections::BTreeSet, time::SystemTime};

use ebbtide_kube::node_cloud::{ASKED, Asked, map_of};
use ebbtide_types::Family;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use tracing::{debug, info, warn};

use super::round::{Round, short};
use crate::{
    Reason,
    ec2::{Amount, Ec2Error},
    plan::{Action, Outcome, Report, may_take},
};

impl Round {
    /// Does one thing. What fails is planned anew.
    pub(super) async fn carry_out(&mut self, action: Action) {
        match action {
            Action::Assign {
                node,
                nic,
                family,
                amount,
                why,
            } => self.assign(&node, &nic, family, amount, &why).await,
            Action::Unassign {
                node,
                nic,
                family,
                blocks,
            } => self.unassign(&node, &nic, family, blocks).await,
            Action::Ask { node, asked } => self.ask_back(&node, &asked).await,
        }
    }

    async fn assign(&mut self, node: &str, nic: &str, family: Family, amount: Amount, why: &str) {
        let (count, pieces) = match amount {
            Amount::Addresses(count) => (count, "addresses"),
            Amount::Prefixes(count) => (count, "prefixes"),
        };
        let what = format!("{count} {family} {pieces}");
        if self.dry_run {
            let note = format!("would assign {what} to {nic}: {why}");
            self.would(node, nic, &note).await;
            return;
        }
        if !self.may_ask().await {
            return;
        }
        let Some(verified) = self.verified() else {
            return;
        };
        let given = self.ec2.assign(nic, family, amount, verified).await;
        match self.answered(given) {
            Ok(given) => {
                let new = self.new_of(nic, given);
                let list = list(&new);
                let note = format!("assigned {what} to {nic}: {list} ({why})");
                self.planner.record(nic, Outcome::Given(new), self.now());
                self.done(node, "Assigned", &format!("Assign {what} {nic}"), &note)
                    .await;
            }
            Err(error) => {
                let doing = format!("assign {what} to {nic}");
                let refused = match error.reason() {
                    Some(Reason::SubnetFull) => Outcome::NoRoom(family, count),
                    _ => Outcome::Refused,
                };
                self.failed(node, nic, &doing, &error, refused).await;
            }
        }
    }

    /// Returns what a NIC was given. Some servers answer with all that it has.
    fn new_of(&self, nic: &str, given: Vec<IpNet>) -> Vec<IpNet> {
        let Some(before) = self.seen.get(nic).and_then(|seen| seen.nic.as_ref()) else {
            return given;
        };
        let own: BTreeSet<IpNet> = before.primary.iter().map(|own| IpNet::from(*own)).collect();
        let is_new = |block: &IpNet| !before.blocks.contains(block) && !own.contains(block);
        given.into_iter().filter(is_new).collect()
    }

    async fn unassign(&mut self, node: &str, nic: &str, family: Family, blocks: Vec<IpNet>) {
        if self.dry_run {
            let note = format!("would take {} from {nic}", list(&blocks));
            self.would(node, nic, &note).await;
            return;
        }
        if !self.may_ask().await {
            return;
        }
        // In this order: the signature must not be younger than what is read.
        let Some(verified) = self.verified() else {
            return;
        };
        let Some(report) = self.read_now(node).await else {
            return;
        };
        let blocks: Vec<IpNet> = blocks
            .into_iter()
            .filter(|block| may_take(&report, nic, block))
            .collect();
        if blocks.is_empty() {
            return;
        }
        let taken = self.ec2.unassign(nic, family, &blocks, verified).await;
        match self.answered(taken) {
            Ok(()) => {
                let what = list(&blocks);
                let note = format!("took {what} from {nic}: nobody needs them");
                self.planner.record(nic, Outcome::Taken(blocks), self.now());
                self.done(node, "Unassigned", &format!("Unassign {nic} {what}"), &note)
                    .await;
            }
            Err(error) => {
                let doing = format!("take {} from {nic}", list(&blocks));
                self.failed(node, nic, &doing, &error, Outcome::Refused)
                    .await;
            }
        }
    }

    /// Reads a node's ConfigMap from the API server itself, not from what a watch told.
    async fn read_now(&self, node: &str) -> Option<Report> {
        let api: Api<ConfigMap> = Api::default_namespaced(self.cluster.client.clone());
        let map = match api.get_opt(&map_of(node)).await {
            Ok(map) => map?,
            Err(e) => {
                warn!(node, "what its agent tells cannot be read: {e}");
                return None;
            }
        };
        Report::read(node, self.nodes.provider(), map.data.as_ref()).ok()
    }

    async fn ask_back(&mut self, node: &str, asked: &Asked) {
        let text = match serde_json::to_string(asked) {
            Ok(text) => text,
            Err(e) => return warn!(node, "what is asked back cannot be written: {e}"),
        };
        if self.dry_run {
            if self.said.get(node) != Some(&text) {
                let note = format!("would ask its agent for {}", wishes(asked));
                info!(node, "{note}");
                self.said.insert(node.to_owned(), text);
            }
            return;
        }
        let Some(mut map) = self.nodes.map(node).cloned() else {
            return;
        };
        if self.verified().is_none() {
            return;
        }
        let data = map.data.get_or_insert_default();
        data.insert(ASKED.to_owned(), text);
        map.metadata.managed_fields = None;
        let api: Api<ConfigMap> = Api::default_namespaced(self.cluster.client.clone());
        // It contains the resourceVersion: if the agent, or another controller, wrote meanwhile, this is refused.
        match api
            .replace(&map_of(node), &PostParams::default(), &map)
            .await
        {
            Ok(written) => {
                self.nodes.set(written);
                let note = format!("asked its agent for {}", wishes(asked));
                self.done(node, "AskedBack", &note, &note).await;
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!(node, "its ConfigMap changed meanwhile");
            }
            Err(e) => warn!(node, "what is asked back cannot be written: {e}"),
        }
    }

    /// Returns when this controller last knew that it is the leader, if it is.
    fn verified(&self) -> Option<SystemTime> {
        let (verified, times) = self.proof.as_ref()?;
        let time = verified.time(times);
        if time.is_none() {
            warn!("nothing is changed: the Lease could not be renewed in time");
        }
        time
    }

    async fn done(&self, node: &str, reason: &str, action: &str, note: &str) {
        info!(node, "{note}");
        let about = self.nodes.reference(node);
        let events = &self.cluster.events;
        events.tell(&about, reason, &short(action), note).await;
    }

    /// Says what would be done, and waits as if it had been.
    async fn would(&mut self, node: &str, nic: &str, note: &str) {
        self.planner.record(nic, Outcome::Unknown, self.now());
        self.done(node, "DryRun", note, note).await;
    }

    /// Says what did not succeed, and records it: as `refused`, if the cloud refused it for a reason of its own.
    async fn failed(
        &mut self,
        node: &str,
        nic: &str,
        doing: &str,
        error: &Ec2Error,
        refused: Outcome,
    ) {
        let next = match refused.next() {
            Some(count) => format!("; it is asked for {count} next"),
            None => String::new(),
        };
        let outcome = match (error.is_without_effect(), error.is_general()) {
            (false, _) => Some(Outcome::Unknown),
            (true, false) => Some(refused),
            // All requests wait: the NIC has no part in it.
            (true, true) => None,
        };
        if let Some(outcome) = outcome {
            self.planner.record(nic, outcome, self.now());
        }
        let note = format!("{doing}: {error}{next}");
        warn!(node, "{note}");
        let about = self.nodes.reference(node);
        let events = &self.cluster.events;
        events
            .warn(&about, "CloudRefused", &short(&note), &note)
            .await;
    }
}

fn list(blocks: &[IpNet]) -> String {
    let shown = |block: &IpNet| match block.prefix_len() == block.max_prefix_len() {
        true => block.addr().to_string(),
        false => block.to_string(),
    };
    blocks.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn wishes(asked: &Asked) -> String {
    let wishes: Vec<String> = asked
        .back
        .iter()
        .flat_map(|(nic, back)| back.values().map(move |set| format!("{set} of {nic}")))
        .collect();
    match wishes.is_empty() {
        true => "nothing".to_owned(),
        false => wishes.join(", "),
    }
}
