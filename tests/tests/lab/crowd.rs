//! What is not ours works exactly as before: a node with everything at once that other people have on theirs, with all
//! of its traffic as a matrix, before there is an agent, with it, with pods, after it stopped and after it is removed.

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
