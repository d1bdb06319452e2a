//! `ebbtidectl doctor`: what is wrong with this node.

use std::process::ExitCode;

use ebbtide_agent::doctor::{Finding, Severity};

/// Returns a failure if a finding is serious.
pub(super) fn health(findings: &[Finding]) -> ExitCode {
    let mut serious = findings.iter().filter(|f| f.severity == Severity::Serious);
    match serious.next() {
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    }
}

pub(super) fn show(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong, as far as can be told from here\n".to_owned();
    }
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Serious => "serious",
        };
        text.push_str(&format!(
            "{severity}: {}\n    {}\n",
            finding.what, finding.hint
        ));
    }
    text
}
