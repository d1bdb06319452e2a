//! The alerts about controllers and the API server, by the faults that they are for: a real API server ends, and a real
//! controller. `lab::alerts` has all others.
#![expect(clippy::print_stdout, reason = "what was changed in the rules is told")]

use std::{
    collections::BTreeSet,
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebbtide_tests::{
    alert_rules::{quickened, shipped},
    prometheus::{Prometheus, in_the_end, program},
};

use crate::{
    metrics::Real,
    setup::{LONG, cluster},
};

const NO_ANSWER: [&str; 2] = ["EbbtideApiCallsFailing", "EbbtideNoController"];
const DOWN: [&str; 1] = ["EbbtideAgentDown"];

/// How long nothing is wrong, in the beginning: longer than any range and any `for:` of these alerts.
const HEALTHY: Duration = Duration::from_secs(21);

/// Waits until all of these fire, and checks that no other does.
fn fire(prometheus: &Prometheus, expected: &[&str]) -> Result<()> {
    let start = Instant::now();
    let fired = in_the_end(LONG, || {
        let alerts = prometheus.alerts()?;
        let firing = alerts.iter().filter(|alert| alert.is_firing);
        let firing: BTreeSet<&str> = firing.map(|alert| &*alert.name).collect();
        let known = |name: &&str| expected.contains(name);
        assert!(firing.iter().all(known), "{alerts:#?}");
        ensure!(firing.len() == expected.len(), "{firing:?}");
        Ok(())
    });
    println!("{expected:?} after {:?}", start.elapsed());
    fired.with_context(|| format!("{:?}", prometheus.query("{__name__=~\"ebbtide.*\"}")))
}

/// Waits until nothing fires any more, nor is about to.
fn end(prometheus: &Prometheus) -> Result<()> {
    in_the_end(LONG, || {
        let alerts = prometheus.alerts()?;
        ensure!(alerts.is_empty(), "{alerts:#?}");
        Ok(())
    })
}

#[test]
fn alerts_about_controllers_fire_at_their_faults_and_end_with_them() -> Result<()> {
    let Some(program) = program("prometheus") else {
        return Ok(());
    };
    let Some(mut cluster) = cluster()? else {
        return Ok(());
    };
    let (rules, changes) = quickened(&shipped()?)?;
    println!("the rules, but {}", changes.join(", "));
    let logs = tempfile::tempdir()?;
    let kubeconfig = cluster.kubeconfig();
    let controller = Real::start(&kubeconfig, "only", logs.path())?;
    in_the_end(LONG, || {
        ensure!(controller.leads()? == 1.0);
        Ok(())
    })?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let targets = [("ebbtide-controller", controller.address())];
    let prometheus = Prometheus::start(&program, None, &address, &targets, &rules)?;
    prometheus.wait()?;
    let start = Instant::now();
    while start.elapsed() < HEALTHY {
        let firing = prometheus.firing()?;
        ensure!(firing.is_empty(), "{firing:?}");
        std::thread::sleep(Duration::from_millis(500));
    }

    cluster.stop_api_server()?;
    fire(&prometheus, &NO_ANSWER)?;
    cluster.start_api_server()?;
    end(&prometheus).context("the API server is back")?;

    drop(controller);
    // That it leads nobody tells any more. No agent is there who would ask the API server, so nobody misses it.
    fire(&prometheus, &DOWN)?;
    Ok(())
}
