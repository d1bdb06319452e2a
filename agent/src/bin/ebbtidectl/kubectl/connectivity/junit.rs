//! The report as JUnit's XML, which CI systems show.

use std::fmt::Write as _;

use ebbtide_agent::probe::Protocol;
use ebbtide_types::printable::is_unprintable;

use super::{
    judge::{Row, Verdict},
    plan::{Family, Group},
    report::Report,
};

/// Returns the XML: a suite for each group, a case for each row, and one for the packets that left by a wrong NIC.
pub(super) fn xml(report: &Report) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for group in Group::ALL {
        let rows: Vec<&Row> = report
            .rows
            .iter()
            .filter(|row| row.group == group)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let lost = report.wrong_nic.get(&group).map_or(0, |wrong| wrong.passed);
        let of = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
        let _infallible = writeln!(
            text,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">",
            escaped(group.title()),
            rows.len() + 1,
            of(Verdict::Failed) + usize::from(lost > 0),
            of(Verdict::Skipped)
        );
        for row in &rows {
            case(&mut text, row);
        }
        let name = "no packet leaves by a wrong NIC";
        let _infallible = match lost {
            0 => writeln!(text, "    <testcase name=\"{name}\"/>"),
            lost => writeln!(
                text,
                "    <testcase name=\"{name}\"><failure message=\"{lost} packets\"/></testcase>"
            ),
        };
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn case(text: &mut String, row: &Row) {
    let protocol = row.protocol.map_or("", Protocol::name);
    let family = row.family.map_or("", Family::name);
    let name = format!("{family} {protocol}: {} → {}", row.from, row.to);
    let detail = escaped(&row.detail);
    let inside = match row.verdict {
        Verdict::Ok => format!("<system-out>{detail}</system-out>"),
        Verdict::Failed => format!("<failure message=\"{detail}\"/>"),
        Verdict::Skipped => format!("<skipped message=\"{detail}\"/>"),
    };
    let (name, seconds) = (escaped(name.trim()), row.millis / 1000);
    let rest = row.millis % 1000;
    let _infallible = writeln!(
        text,
        "    <testcase name=\"{name}\" time=\"{seconds}.{rest:03}\">{inside}</testcase>"
    );
}

/// Escapes text for XML; what XML cannot have is left out as a question mark.
fn escaped(text: &str) -> String {
    let mut whole = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => whole.push_str("&amp;"),
            '<' => whole.push_str("&lt;"),
            '>' => whole.push_str("&gt;"),
            '"' => whole.push_str("&quot;"),
            '\'' => whole.push_str("&apos;"),
            c if is_unprintable(c) => whole.push('?'),
            c => whole.push(c),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::report, *};

    #[test]
    fn every_row_is_a_case_and_names_are_escaped() {
        let mut report = report();
        report.rows[1].detail.push('\u{1b}');
        let xml = xml(&report);
        assert!(
            xml.contains("tests=\"4\" failures=\"1\" skipped=\"1\""),
            "{xml}"
        );
        assert!(xml.contains("pod &lt;b&gt;"), "{xml}");
        assert!(
            xml.contains("<failure message=\"timed out &amp; &quot;gone&quot;?\"/>"),
            "{xml}"
        );
        assert_eq!(
            xml.matches("<testsuite ").count(),
            xml.matches("</testsuite>").count()
        );
    }
}
