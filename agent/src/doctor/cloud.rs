//! Whether the cloud's metadata can be read, and whether pods have what it does not tell any more.

use super::{Finding, Severity};
use crate::cloud::{BlockState, CloudNicLine, CloudReport};

/// The number of failures on end after which the service is taken to be out of reach.
const FAILURES: u32 = 3;

/// Reports what is wrong with the addresses from the cloud; nothing where no network wants them.
pub(super) fn cloud(report: &CloudReport) -> Vec<Finding> {
    if report.wanted.is_empty() {
        return Vec::new();
    }
    let mut findings: Vec<Finding> = report.nics.iter().flat_map(withdrawn).collect();
    let links = report.wanted.join(", ");
    if let Some(why) = &report.why_none {
        findings.push(Finding {
            severity: Severity::Serious,
            what: format!(
                "networks on {links} want the addresses that the cloud assigned, and there is no cloud to ask"
            ),
            hint: why.clone(),
        });
    }
    if let Some(error) = &report.error
        && (report.failures >= FAILURES || report.last_read.is_none())
    {
        let (severity, what) = match report.last_read {
            None if report.nics.is_empty() => (
                Severity::Serious,
                "the cloud's metadata has never been read, so pods of networks with `ebbtide.io/addresses` get no address",
            ),
            _ => (
                Severity::Warning,
                "the cloud's metadata cannot be read; what was told before stays valid",
            ),
        };
        findings.push(Finding {
            severity,
            what: format!("{what} ({} failures in a row)", report.failures),
            hint: error.clone(),
        });
    }
    let links = report.nics.iter().filter_map(|nic| nic.link.as_deref());
    let links: Vec<&str> = links.collect();
    if report.last_read.is_some() {
        let missing = report.wanted.iter();
        let missing = missing.filter(|wanted| !links.contains(&wanted.as_str()));
        findings.extend(missing.map(|link| Finding {
            severity: Severity::Serious,
            what: format!("a network wants the addresses of {link}, which is no NIC that the cloud tells of"),
            hint: "correct the network's master (`ebbtidectl cloud` lists the cloud's NICs and their links), or attach the NIC"
                .to_owned(),
        }));
    }
    findings
}

/// Reports addresses of pods that the cloud does not tell any more.
fn withdrawn(nic: &CloudNicLine) -> impl Iterator<Item = Finding> {
    let held = nic.blocks.iter();
    let held = held.filter(|block| block.state == BlockState::Held && !block.pods.is_empty());
    held.map(|block| Finding {
        severity: Severity::Serious,
        what: format!(
            "the cloud does not tell {} of NIC {} any more, and pods have addresses of it: {}",
            block.block,
            if nic.id.is_empty() { nic.mac.to_string() } else { nic.id.clone() },
            block.pods.join(", ")
        ),
        hint: "if the cloud took it away, nobody reaches these pods: delete them, or assign it to the NIC again; no other \
                  pod gets it"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::BlockLine;

    fn report() -> CloudReport {
        CloudReport {
            cloud: Some("AWS".into()),
            why_none: None,
            endpoint: None,
            wanted: vec!["ens6".into()],
            last_read: Some(1),
            error: None,
            failures: 0,
            nics: vec![CloudNicLine {
                id: "eni-6".into(),
                mac: "02:00:00:00:00:06".to_owned().try_into().unwrap(),
                link: Some("ens6".into()),
                is_gone: false,
                primary: Vec::new(),
                subnets: Vec::new(),
                gateways: Vec::new(),
                blocks: Vec::new(),
            }],
            left_out: Vec::new(),
            asked_back: None,
        }
    }

    #[test]
    fn what_keeps_pods_from_their_addresses_is_told_and_what_does_not_is_not() {
        let held = |pods: &[&str]| BlockLine {
            block: "10.0.1.5/32".parse().unwrap(),
            state: BlockState::Held,
            why: String::new(),
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
        };
        type Change = fn(&mut CloudReport);
        let fails: Change = |report| report.error = Some("timed out".into());
        let rows: [(&str, Change, Option<Severity>); 8] = [
            ("all is well", |_| {}, None),
            ("one failure", fails, None),
            (
                "failures",
                |report| (report.error, report.failures) = (Some("timed out".into()), 3),
                Some(Severity::Warning),
            ),
            (
                "never read",
                |report| {
                    (report.error, report.failures) = (Some("timed out".into()), 1);
                    report.last_read = None;
                    report.nics.clear();
                },
                Some(Severity::Serious),
            ),
            (
                "nobody wants it",
                |report| {
                    report.why_none = Some("no cloud".into());
                    report.wanted.clear();
                },
                None,
            ),
            (
                "no cloud",
                |report| {
                    report.why_none = Some("no cloud".into());
                    report.last_read = None;
                    report.nics.clear();
                },
                Some(Severity::Serious),
            ),
            (
                "another link",
                |report| report.wanted = vec!["ens7".into()],
                Some(Severity::Serious),
            ),
            (
                "not attached",
                |report| report.nics[0].link = None,
                Some(Severity::Serious),
            ),
        ];
        for (name, change, expected) in rows {
            let mut report = report();
            change(&mut report);
            let worst = cloud(&report).iter().map(|finding| finding.severity).max();
            assert_eq!(worst, expected, "{name}");
        }
        let mut report = report();
        report.nics[0].blocks = vec![held(&[]), held(&["default/web (10.0.1.5)"])];
        let findings = cloud(&report);
        let [finding] = findings.as_slice() else {
            panic!("{findings:?}")
        };
        assert!(finding.what.contains("default/web"), "{finding}");
    }
}
