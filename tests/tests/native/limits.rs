//! The programs that limit a pod's bandwidth, alone: verdict, time of departure, what is used of the limit, counters.

use std::time::Duration;

use ebbtide_layout::{HORIZON, Limit, Limits};
use ebbtide_programs::{Bench, CLIENT, DROP, Given, PASS, POD, packets::udp};
use nix::time::{ClockId, clock_gettime};

/// Bits per second, of which 1000 bytes take 100 ms: so long that no pause of the machine matters.
const RATE: u64 = 80_000;
const MS: u64 = 1_000_000;
const COST: u64 = 100 * MS;

const EGRESS: &str = "limit_egress";
const INGRESS: &str = "limit_ingress";

/// A packet of 1000 bytes on the wire.
const LARGE: Given = Given {
    wire_len: 1000,
    segments: 0,
    departs: 0,
};

fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    let now = now.map_or(0, |now| Duration::from(now).as_nanos());
    now as u64
}

fn limit(burst: u64, next: u64) -> Limit {
    Limit {
        rate: RATE,
        burst,
        next,
        ..Limit::default()
    }
}

fn out(limit: Limit) -> Option<Limits> {
    Some(Limits {
        egress: limit,
        ..Limits::default()
    })
}

fn into(limit: Limit) -> Option<Limits> {
    Some(Limits {
        ingress: limit,
        ..Limits::default()
    })
}

#[test]
fn a_pod_without_a_limit_and_the_other_direction_are_left_alone() {
    let mut bench = Bench::lent();
    let packet = udp((POD, 53), (CLIENT, 5000));
    for limits in [None, into(limit(0, u64::MAX))] {
        if limits.is_some() {
            bench.limit(limits);
        }
        assert_eq!(bench.run_limited(EGRESS, &packet, LARGE), (PASS, 0));
    }
    bench.limit(out(limit(0, u64::MAX)));
    assert_eq!(bench.run_limited(INGRESS, &packet, LARGE), (PASS, 0));
    let untouched = bench.limits();
    assert_eq!(untouched.egress, limit(0, u64::MAX));
    bench.limit(None);
    assert_eq!(bench.run_limited(INGRESS, &packet, LARGE), (PASS, 0));
    assert_eq!(bench.limited(), [0, 0]);
}

#[test]
fn packets_leave_one_after_the_other_and_what_would_wait_too_long_is_dropped() {
    let mut bench = Bench::lent();
    let packet = udp((POD, 53), (CLIENT, 5000));
    let start = now();
    // The first one uses a time that is past.
    bench.limit(out(limit(0, start + COST)));
    let mut departures = Vec::new();
    let mut dropped = 0;
    for _ in 0..40 {
        match bench.run_limited(EGRESS, &packet, LARGE) {
            (PASS, departs) => {
                assert_eq!(dropped, 0, "none passes behind one that was dropped");
                departures.push(departs);
            }
            (DROP, _) => dropped += 1,
            other => panic!("{other:?}"),
        }
    }
    let took = now() - start;
    for (at, departs) in (1..).zip(&departures) {
        assert_eq!(*departs, start + at * COST, "{departures:?}");
    }
    let passed = departures.len() as u64;
    let horizon = (HORIZON + took) / COST;
    assert!(
        (HORIZON / COST..=horizon).contains(&passed),
        "{passed} passed, {horizon}"
    );
    let limits = bench.limits();
    assert_eq!(
        (limits.egress.passed, limits.egress.dropped),
        (passed, dropped)
    );
    assert_eq!(limits.egress.next, start + (passed + 1) * COST);
    assert_eq!(bench.limited(), [dropped, 0]);
}

#[test]
fn a_burst_leaves_at_once_and_a_time_of_its_own_is_kept() {
    let mut bench = Bench::lent();
    let packet = udp((POD, 53), (CLIENT, 5000));
    // Long unused, so that ten packets may leave at once, whatever the machine does meanwhile.
    bench.limit(out(limit(10 * COST, 0)));
    for _ in 0..10 {
        assert_eq!(bench.run_limited(EGRESS, &packet, LARGE), (PASS, 0));
    }
    // A socket's own pacing, later than the limit's, and earlier.
    let start = now();
    for (own, expected) in [
        (start + 10 * COST, start + 10 * COST),
        (start + 1, start + 5 * COST),
    ] {
        bench.limit(out(limit(0, start + 5 * COST)));
        let given = Given {
            departs: own,
            ..LARGE
        };
        assert_eq!(bench.run_limited(EGRESS, &packet, given), (PASS, expected));
        // It holds back no others.
        assert_eq!(bench.limits().egress.next, start + 6 * COST);
    }
}

#[test]
fn what_comes_in_passes_until_the_burst_is_used_up_and_merged_segments_count_with_their_headers() {
    let mut bench = Bench::lent();
    let packet = udp((CLIENT, 5000), (POD, 53));
    let cost = |bytes: u64| bytes * 8 * 1_000_000_000 / RATE;
    let alone = cost(packet.len() as u64);
    for segments in [0, 1, 11] {
        let begins = now() - COST;
        bench.limit(into(limit(100 * COST, begins)));
        let given = Given {
            segments,
            ..Given::default()
        };
        assert_eq!(bench.run_limited(INGRESS, &packet, given), (PASS, 0));
        let headers = u64::from(segments.saturating_sub(1)) * 66;
        let found = bench.limits().ingress.next - begins;
        let expected = cost(packet.len() as u64 + headers);
        // Each is rounded by itself.
        assert!(
            found.abs_diff(expected) < 2,
            "{segments}: {found}, not {expected}"
        );
    }
    // After a long pause: the burst, and the packet that uses it up.
    bench.limit(into(limit(10 * alone, 0)));
    let before = now();
    let mut passed = 0;
    while bench.run_limited(INGRESS, &packet, Given::default()).0 == PASS {
        passed += 1;
    }
    let most = 12 + (now() - before) / alone;
    assert!((11..=most).contains(&passed), "{passed} of {most}");
    let limits = bench.limits();
    assert_eq!((limits.ingress.passed, limits.ingress.dropped), (passed, 1));
    assert_eq!(bench.limited(), [0, 1]);
    // Used up for long.
    bench.limit(into(limit(COST, now() + 1000 * MS)));
    assert_eq!(
        bench.run_limited(INGRESS, &packet, Given::default()).0,
        DROP
    );
}
