//! Foreign traffic works exactly as before, on a node with everything that other software may have on it. All of its
//! traffic is tested as a matrix: before there is an agent, with it, with pods, after it stopped, and after it was
//! removed.

use anyhow::Result;
use ebbtide_tests::crowd::{
    Wishes,
    moments::{Pods, do_no_harm},
};

#[test]
fn tunnels_bridges_and_routing_of_others_work_as_before_at_every_moment() -> Result<()> {
    do_no_harm(Wishes::default(), Pods::OnEachNic)
}

#[test]
fn so_they_do_with_a_vrf_strict_filtering_and_whole_marks_of_others() -> Result<()> {
    let wishes = Wishes {
        strict: true,
        whole_marks: true,
        few_kinds: true,
        vrf: true,
    };
    do_no_harm(wishes, Pods::OnEachNic)
}
