//! Tests of the bench itself: a reset bench is like a new one, so tests can reuse it instead of loading all programs
//! again.

use ebbtide_programs::{
    Bench, CLIENT, CLIENT6, NODE, Outcome, POD, POD6, REPLY, THAT, THAT_MARK, THAT_NIC, THIS_NIC,
    names,
    packets::{flow, fragments, tcp, udp},
};

/// Runs every program with several kinds of packets, one after the other, and returns the outcomes.
fn outcomes(bench: &Bench) -> Vec<Outcome> {
    let mut packets = vec![
        tcp((CLIENT, 5000), (POD, 80)),
        tcp((POD, 80), (CLIENT, 5000)),
        udp((CLIENT, 5000), (POD, 53)),
        udp((POD, 53), (CLIENT, 5000)),
        udp((CLIENT6, 5000), (POD6, 53)),
        udp((POD6, 53), (CLIENT6, 5000)),
        udp((CLIENT, 5000), (NODE, 53)),
        udp((NODE, 53), (CLIENT, 5000)),
    ];
    packets.extend(fragments(&udp((POD, 53), (CLIENT, 5000)), 7));
    let mut outcomes = Vec::new();
    for program in names() {
        for packet in &packets {
            for mark in [0, REPLY, THAT_MARK] {
                outcomes.push(bench.run(program, packet, mark));
            }
        }
    }
    outcomes
}

#[test]
fn one_that_was_used_and_is_reset_is_as_a_new_one() {
    let fresh = Bench::new();
    let contents = fresh.contents();
    let expected = outcomes(&fresh);
    let mut bench = Bench::new();
    assert_eq!(bench.contents(), contents, "two new ones");

    // As tests use it.
    bench.is_l3(false);
    bench.exempt();
    bench.remember(flow((POD, 53), (CLIENT, 5000), 17), THAT_NIC);
    bench.remember_of_other(flow((POD, 53), (CLIENT, 5000), 17), THIS_NIC);
    bench.answer_for(POD, THAT, [2; 6]);
    let used = outcomes(&bench);
    assert_ne!(used, expected, "what was done to it shows");
    bench.reset();
    assert_eq!(bench.contents(), contents);
    assert_eq!(outcomes(&bench), expected);

    // With an invalid entry in every map.
    bench.soil();
    for (map, soiled) in bench.contents() {
        assert_ne!(soiled, contents[&map], "{map}");
    }
    bench.reset();
    assert_eq!(bench.contents(), contents);
    assert_eq!(outcomes(&bench), expected);
}
