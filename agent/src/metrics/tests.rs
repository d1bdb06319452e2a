//! The text of a fixed snapshot, and that its table in the documentation is true.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use ebbtide_kernel::datapath::Limited;
use ebbtide_kube::calls::Answer;
use ebbtide_layout::{Counters, Spoofed};
use ebbtide_types::timing::Step;

use ebbtide_ipam::pool::Owner;

use super::{snapshot::*, totals::*, *};

/// Everything that can be told, in different numbers.
fn all() -> Arc<Snapshot> {
    let counters = |first: u64| Counters {
        seen: first,
        marked: first + 1,
        learned: first + 2,
        redirected: first + 3,
        passed: first + 4,
        dropped: first + 5,
    };
    let node = NodeState {
        is_ready: true,
        is_installed: true,
        pools: vec![PoolState {
            name: "a \"b\"\\".into(),
            family: "IPv6",
            capacity: 1 << 64,
            free: (1 << 64) - 3,
            used: 1,
            cooldown: 1,
            withheld: 1,
            is_disabled: false,
        }],
        interfaces: vec![(InterfaceKind::Ipvlan, 2)],
        not_reconciled: 1,
        addresses_on_node: 3,
        problems: Problems {
            left_out: 1,
            field_ignored: 2,
            narrowed: 3,
            other_mode: 4,
        },
        queue: QueueState {
            length: 5,
            oldest: Duration::from_millis(1500),
            node_fails: true,
            failing_containers: 2,
            failing_for: Duration::from_secs(90),
            of_node: [1, 2, 3],
            of_containers: [4, 5, 6],
        },
        nics: vec![OnNic {
            name: "ens5".into(),
            programs: [counters(10), counters(20), counters(30), counters(40)],
            wrong_redirected: 7,
            wrong_passed: 8,
        }],
        pods: Some(InPods {
            programs: BTreeMap::from([(
                "ens5".to_owned(),
                [counters(50), counters(60), counters(70)],
            )]),
            spoofed: Spoofed {
                by_nic: 9,
                by_veth: 11,
            },
            to_metadata: Spoofed {
                by_nic: 12,
                by_veth: 13,
            },
        }),
        limited: Some(Limited {
            egress: 14,
            ingress: 15,
        }),
        flows: Some(FlowTable {
            flows: 14,
            buckets: 6,
        }),
        cloud: Some(CloudState {
            wanted: 2,
            last_read: Some(1_790_000_000),
            failures: 1,
            nics: vec![CloudBlocks {
                nic: "ens6".into(),
                usable: 3,
                held: 1,
                waiting: 2,
            }],
            withdrawn: 1,
        }),
    };
    Arc::new(Snapshot {
        version: "0.1.0".into(),
        process: Process {
            cpu_seconds: 1.25,
            resident_bytes: 20_000_000,
            open_fds: 40,
            max_fds: 1024,
            start_seconds: 1_789_999_000.5,
        },
        node: Some(node),
        leads: Some(true),
        api_calls: vec![("GET", Answer::Code(200), 5), ("WATCH", Answer::Error, 1)],
    })
}

/// The same, with something of each event.
fn counted() -> Metrics {
    let metrics = Metrics::default();
    let took = [("write to disk", 3), ("the agent's part", 7)].map(|(name, took)| Step {
        name,
        start: Duration::ZERO,
        took: Duration::from_millis(took),
    });
    metrics.events.command("ADD", 0, &took);
    metrics.events.command("ADD", 101, &took);
    metrics.events.command("nonsense", 4, &[]);
    metrics
        .events
        .repaired(Place::Node, "route", "a route is missing".into());
    metrics.events.conflicted();
    metrics
}

#[test]
fn a_scrape_has_what_was_counted_and_what_is_known() {
    let text = counted().text(&all(), Format::Prometheus).unwrap();
    for line in [
        "ebbtide_build_info{version=\"0.1.0\"} 1",
        "ebbtide_ready 1.0",
        "ebbtide_controller_leader 1.0",
        "ebbtide_pool_addresses{pool=\"a \\\"b\\\"\\\\\",family=\"IPv6\",state=\"used\"} 1.0",
        "ebbtide_interfaces{kind=\"ipvlan\"} 2.0",
        "ebbtide_interfaces{kind=\"chained\"} 0.0",
        "ebbtide_cni_requests_total{command=\"ADD\",result=\"success\",code=\"0\"} 1",
        "ebbtide_cni_requests_total{command=\"ADD\",result=\"failure\",code=\"101\"} 1",
        "ebbtide_cni_requests_total{command=\"ADD\",result=\"failure\",code=\"7\"} 0",
        "ebbtide_cni_requests_total{command=\"other\",result=\"failure\",code=\"4\"} 1",
        "ebbtide_cni_request_duration_seconds_bucket{command=\"ADD\",le=\"0.01\"} 2",
        "ebbtide_cni_step_duration_seconds_count{command=\"ADD\",step=\"write to disk\"} 2",
        "ebbtide_repairs_total{place=\"node\",object=\"route\"} 1",
        "ebbtide_repairs_total{place=\"pod\",object=\"address\"} 0",
        "ebbtide_reconcile_queue_oldest_seconds 1.5",
        "ebbtide_reconciliations_total{kind=\"container\",result=\"failed\"} 6",
        "ebbtide_program_packets_total{program=\"nic_egress\",nic=\"ens5\"} 60",
        "ebbtide_program_results_total{program=\"host_nic_egress\",nic=\"ens5\",result=\"redirected\"} 23",
        "ebbtide_wrong_nic_packets_total{nic=\"ens5\",result=\"passed\"} 8",
        "ebbtide_bandwidth_dropped_packets_total{direction=\"ingress\"} 15",
        "ebbtide_spoofed_packets_total{by=\"veth\"} 11",
        "ebbtide_kube_requests_total{verb=\"WATCH\",code=\"error\"} 1",
        "ebbtide_cloud_blocks{nic=\"ens6\",state=\"held\"} 1.0",
        "# TYPE process_cpu_seconds_total counter",
        "process_cpu_seconds_total 1.25",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn open_metrics_ends_as_it_must_and_has_units() {
    let text = counted().text(&all(), Format::OpenMetrics).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("# UNIT ebbtide_cni_request_duration_seconds seconds\n"));
    assert!(text.contains("# TYPE ebbtide_build info\n"), "{text}");
}

#[test]
fn a_format_is_given_to_who_names_it() {
    for (accept, format) in [
        ("", Format::Prometheus),
        ("*/*", Format::Prometheus),
        ("text/plain;version=0.0.4", Format::Prometheus),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format::OpenMetrics,
        ),
    ] {
        assert_eq!(Format::accepted(accept), format, "{accept}");
    }
}

#[test]
fn a_controller_tells_nothing_of_a_node() {
    let snapshot = Snapshot {
        node: None,
        ..Snapshot::clone(&all())
    };
    let text = counted()
        .text(&Arc::new(snapshot), Format::Prometheus)
        .unwrap();
    assert!(!text.contains("ebbtide_cni") && !text.contains("ebbtide_pool"));
    assert!(text.contains("ebbtide_controller_leader 1"), "{text}");
}

/// A row of the table in the documentation.
#[derive(Debug, Default)]
struct Row {
    kind: String,
    help: String,
    labels: Vec<String>,
}

/// Reads the text as its readers do.
fn rows(text: &str) -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            rows.entry(name.into()).or_default().help = help.into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            rows.entry(name.into()).or_default().kind = kind.into();
        } else if let Some((name, rest)) = line.split_once('{') {
            let parts = ["_bucket", "_sum", "_count"];
            let whole = parts.iter().find_map(|part| name.strip_suffix(part));
            let name = whole
                .filter(|name| rows.contains_key(*name))
                .unwrap_or(name);
            let labels = rest.rsplit_once('}').unwrap().0;
            let row = rows.get_mut(name).unwrap();
            for label in labels.split("\",") {
                let key = label.split_once('=').unwrap().0.to_owned();
                if key != "le" && !row.labels.contains(&key) {
                    row.labels.push(key);
                }
            }
        }
    }
    rows
}

/// `EBBTIDE_WRITE_DOCS=1` writes the table; otherwise it is compared.
#[test]
fn the_table_in_the_documentation_has_every_metric() {
    const BEGIN: &str = "<!-- all metrics: begin (written by the test of agent/src/metrics) -->\n";
    const END: &str = "<!-- all metrics: end -->";
    let rows = rows(&counted().text(&all(), Format::Prometheus).unwrap());
    let mut table = "| metric | type | labels | what it says |\n|---|---|---|---|\n".to_owned();
    for (name, row) in &rows {
        let labels: Vec<String> = row
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let (labels, help) = (labels.join(", "), row.help.replace('|', "\\|"));
        writeln!(table, "| `{name}` | {} | {labels} | {help} |", row.kind).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the table's begin");
    let (found, after) = rest.split_once(END).expect("the table's end");
    if std::env::var_os("EBBTIDE_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        found, table,
        "EBBTIDE_WRITE_DOCS=1 cargo test -p ebbtide-agent --lib metrics writes it"
    );
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let text = counted().text(&all(), Format::Prometheus).unwrap();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/ebbtide/files");
    let mut asked = 0;
    for file in ["alerts.yaml", "dashboard.json"] {
        let found = fs::read_to_string(files.join(file)).unwrap();
        let words = found.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in
            words.filter(|word| word.starts_with("ebbtide_") || word.starts_with("process_"))
        {
            let is_there = |line: &str| {
                let rest = line.strip_prefix(word);
                rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            assert!(text.lines().any(is_there), "{file}: {word}");
            asked += 1;
        }
    }
    assert!(asked > 40, "{asked}");
}

#[test]
fn names_are_as_prometheus_wants_them_and_no_label_is_a_pods() {
    let rows = rows(&counted().text(&all(), Format::Prometheus).unwrap());
    assert!(rows.len() > 30);
    for (name, row) in rows {
        let is_ours = name.starts_with("ebbtide_") || name.starts_with("process_");
        assert!(is_ours, "{name}");
        assert_eq!(
            row.kind == "counter",
            name.ends_with("_total"),
            "{name} {row:?}"
        );
        assert!(row.help.ends_with('.'), "{name}: {}", row.help);
        let of_pods = [
            "pod",
            "namespace",
            "container",
            "container_id",
            "address",
            "netns",
        ];
        assert!(
            row.labels
                .iter()
                .all(|label| !of_pods.contains(&label.as_str())),
            "{name} {row:?}"
        );
    }
}

#[test]
fn sums_over_pods_never_decrease_and_tell_nothing_twice() {
    let owner = |name: &str| Owner {
        container_id: name.into(),
        interface: "eth0".into(),
        network: "n".into(),
    };
    let counted = |seen: u64, spoofed: u64| {
        let mut counted = Counted::default();
        counted.programs[1].seen = seen;
        counted.spoofed.by_nic = spoofed;
        counted
    };
    let mut totals = Totals::default();
    // An older agent told of these.
    totals.begin(owner("old"), counted(1000, 50));
    let seen = |totals: &Totals| {
        let sum = totals.sum();
        let seen: u64 = sum.programs.values().map(|of| of[1].seen).sum();
        (seen, sum.spoofed.by_nic)
    };
    for (name, now, expected) in [
        ("old", counted(1000, 50), (0, 0)),
        ("new", counted(3, 1), (3, 1)),
        ("old", counted(1010, 51), (13, 2)),
        ("new", counted(5, 1), (15, 2)),
    ] {
        totals.look(&owner(name), "ens5", now);
        assert_eq!(seen(&totals), expected, "{name}");
    }
    totals.keep(|there| *there == owner("new"));
    assert_eq!(seen(&totals), (15, 2));
    // Its counters were made anew.
    totals.look(&owner("new"), "ens6", counted(2, 0));
    assert_eq!(seen(&totals), (17, 2));
    // Another pod by the same name.
    totals.look(&owner("old"), "ens5", counted(1, 0));
    assert_eq!(seen(&totals), (18, 2));
}
