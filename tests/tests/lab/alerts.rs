//! Each alert, by a fault that it is for: a real Prometheus asks a real agent with the shipped rules, and nothing but the
//! fault is made.
//!
//! The rules are those of the chart with their times a sixtieth ([`quickened`]), as nobody waits for half an hour. What an
//! alert's text tells a person to run is run while it fires. `kube::alerts` has those that need an API server.
#![expect(clippy::print_stdout, reason = "what was changed in the rules is told")]

mod faults;
mod stage;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{
    alert_rules::{names, quickened, shipped},
    prometheus::{Prometheus, in_the_end, program},
};

use self::stage::Stage;

/// Where the test's Prometheus answers, in the node's namespace.
const ADDRESS: &str = "127.0.0.1:19090";

/// How long an alert may take to fire, or to end: none takes longer than 40 s at rest.
const LIMIT: Duration = Duration::from_secs(90);

/// How long nothing is wrong, in the beginning: longer than the range of all alerts but one.
const HEALTHY: Duration = Duration::from_secs(12);

/// An alert, and a fault that it is for.
struct Row {
    alert: &'static str,
    /// Whether other faults may come before it fires: it takes its time.
    is_slow: bool,
    /// Makes the fault.
    begin: fn(&mut Stage) -> Result<()>,
    /// Makes it again, for as long as it is to last.
    again: fn(&mut Stage) -> Result<()>,
    /// Looks at what the alert says, and at what the commands that it names say.
    look: fn(&mut Stage) -> Result<()>,
    /// Mends it.
    mend: fn(&mut Stage) -> Result<()>,
}

const ONCE: fn(&mut Stage) -> Result<()> = |_| Ok(());

/// In this order: the last ones end the agent, and with it what it counted.
const ROWS: [Row; 12] = [
    Row {
        alert: "EbbtideWrongNicRedirected",
        is_slow: true,
        begin: ONCE,
        again: faults::send_by_the_main_table,
        look: faults::datapath_counts_the_wrong_nic,
        mend: ONCE,
    },
    Row {
        alert: "EbbtideSpoofing",
        is_slow: false,
        begin: ONCE,
        again: faults::spoof,
        look: faults::datapath_names_the_pod,
        mend: ONCE,
    },
    Row {
        alert: "EbbtideRepairsRepeating",
        is_slow: false,
        begin: ONCE,
        again: faults::remove_a_rule,
        look: faults::log_names_the_rule,
        mend: ONCE,
    },
    Row {
        alert: "EbbtideWrongNic",
        is_slow: false,
        begin: faults::take_the_gateway,
        again: faults::send_without_a_gateway,
        look: faults::doctor_names_the_gateway,
        mend: faults::give_the_gateway,
    },
    Row {
        alert: "EbbtidePoolNearlyEmpty",
        is_slow: false,
        begin: faults::fill_the_pool,
        again: ONCE,
        look: faults::pools_name_who_has_what,
        mend: faults::empty_the_pool,
    },
    Row {
        alert: "EbbtideAddsFailing",
        is_slow: false,
        begin: ONCE,
        again: faults::add_to_no_network,
        look: faults::log_says_why,
        mend: ONCE,
    },
    Row {
        alert: "EbbtideAddressWithdrawn",
        is_slow: false,
        begin: faults::withdraw,
        again: ONCE,
        look: faults::cloud_names_the_withdrawn,
        mend: faults::assign_again,
    },
    Row {
        alert: "EbbtideNotInstalled",
        is_slow: false,
        begin: faults::put_another_configuration,
        again: ONCE,
        look: faults::doctor_names_the_configuration,
        mend: faults::remove_the_configuration,
    },
    Row {
        alert: "EbbtideMetadataSilent",
        is_slow: false,
        begin: faults::end_the_metadata,
        again: ONCE,
        look: faults::cloud_has_the_error,
        mend: faults::begin_the_metadata,
    },
    Row {
        alert: "EbbtideAgentNotReady",
        is_slow: false,
        begin: faults::remove_the_socket,
        again: ONCE,
        look: faults::log_names_the_socket,
        mend: faults::restart,
    },
    Row {
        alert: "EbbtideAgentDown",
        is_slow: false,
        begin: faults::stop,
        again: ONCE,
        look: ONCE,
        mend: faults::start,
    },
    Row {
        alert: "EbbtideRestarting",
        is_slow: false,
        begin: ONCE,
        again: faults::kill_and_start,
        look: ONCE,
        mend: ONCE,
    },
];

/// Those that need an API server (`kube::alerts`), and one whose fault takes the stage with it: a NIC that comes back as
/// something else (`lab::node_changes` shows that it is told). `native::metrics` has it with made-up series.
const ELSEWHERE: [&str; 3] = [
    "EbbtideApiCallsFailing",
    "EbbtideNoController",
    "EbbtideNotReconciled",
];

/// What happens on the node, and what Prometheus makes of it.
struct Watched {
    stage: Stage,
    prometheus: Prometheus,
    /// The rows whose faults go on.
    ongoing: Vec<&'static Row>,
    /// The alerts that may fire, since their faults were made.
    expected: BTreeSet<&'static str>,
    /// What was not as it should be.
    wrong: BTreeSet<String>,
}

impl Watched {
    /// Lets what goes on go on, and checks that nothing fires but what may.
    fn look(&mut self) -> Result<Vec<String>> {
        for row in &self.ongoing {
            (row.again)(&mut self.stage).context(row.alert)?;
        }
        let alerts = self.prometheus.alerts()?;
        let firing = alerts.iter().filter(|alert| alert.is_firing);
        for alert in firing.clone() {
            if !self.expected.contains(&*alert.name) {
                let during = self.ongoing.iter().map(|row| row.alert);
                let during: Vec<&str> = during.collect();
                self.wrong.insert(format!(
                    "during {during:?}: {} ({})",
                    alert.summary, alert.labels
                ));
            }
        }
        Ok(firing.map(|alert| alert.name.clone()).collect())
    }

    /// Waits until the fault of a row that goes on is told, looks at that, and mends it.
    fn see(&mut self, row: &'static Row) -> Result<()> {
        let seen = self.fires(row).and_then(|()| (row.look)(&mut self.stage));
        if let Err(e) = seen {
            self.wrong.insert(format!("{}: {e:#}", row.alert));
        }
        self.ongoing.retain(|other| other.alert != row.alert);
        (row.mend)(&mut self.stage)
    }

    fn fires(&mut self, row: &'static Row) -> Result<()> {
        let start = Instant::now();
        in_the_end(LIMIT, || {
            let firing = self.look()?;
            ensure!(firing.iter().any(|name| name == row.alert), "{firing:?}");
            Ok(())
        })?;
        println!("{} fires after {:?}", row.alert, start.elapsed());
        Ok(())
    }
}

#[test]
fn each_alert_fires_at_its_fault_and_ends_with_it_and_none_fires_at_a_healthy_node() -> Result<()> {
    let Some(program) = program("prometheus") else {
        return Ok(());
    };
    let rules = shipped()?;
    let covered: BTreeSet<&str> = ROWS.iter().map(|row| row.alert).chain(ELSEWHERE).collect();
    ensure!(covered == names(&rules).into_iter().collect::<BTreeSet<_>>());
    let (rules, changes) = quickened(&rules)?;
    println!("the rules, but {}", changes.join(", "));

    let stage = Stage::build()?;
    let target = ("ebbtide", ebbtide_vpc::scrape::ADDRESS);
    let node = stage.node();
    let prometheus = Prometheus::start(&program, Some(&node), ADDRESS, &[target], &rules)?;
    prometheus.wait()?;
    let mut watched = Watched {
        stage,
        prometheus,
        ongoing: Vec::new(),
        expected: BTreeSet::new(),
        wrong: BTreeSet::new(),
    };

    let start = Instant::now();
    // Once is no reason for an alert.
    faults::flush_the_rules(&watched.stage)?;
    while start.elapsed() < HEALTHY {
        in_the_end(LIMIT, || watched.stage.talk())?;
        watched.look()?;
    }
    // In the end: one scrape that a busy machine misses is no fault.
    in_the_end(LIMIT, || {
        let alerts = watched.prometheus.alerts()?;
        ensure!(alerts.is_empty(), "about to fire: {alerts:#?}");
        Ok(())
    })?;

    let mut slow = Vec::new();
    for row in &ROWS {
        // Those that end the agent come after all that it counts.
        if row.alert == "EbbtideAgentNotReady" {
            for row in slow.drain(..) {
                watched.see(row).with_context(|| row.alert)?;
            }
        }
        watched.expected.insert(row.alert);
        (row.begin)(&mut watched.stage).with_context(|| row.alert)?;
        watched.ongoing.push(row);
        match row.is_slow {
            true => slow.push(row),
            false => watched.see(row).with_context(|| row.alert)?,
        }
    }

    let start = Instant::now();
    let ended = in_the_end(LIMIT, || {
        let alerts = watched.prometheus.alerts()?;
        ensure!(
            alerts.is_empty(),
            "after the end of all faults: {alerts:#?}"
        );
        Ok(())
    });
    println!("all have ended after {:?}", start.elapsed());
    let mut wrong = watched.wrong;
    wrong.extend(ended.err().map(|e| format!("{e:#}")));
    // Told and not asserted: one scrape that a busy machine misses ends an alert for a moment.
    for (labels, times) in watched.prometheus.began()? {
        if times > 1 {
            println!("began {times} times: {labels}");
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}{}", watched.stage.lab.logs());
    watched.stage.talk()?;
    watched.stage.end()
}
