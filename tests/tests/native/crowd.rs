//! Foreign traffic works exactly as before, in any kernel: the part of `lab::crowd` that needs no ipvlan.

use anyhow::Result;
use ebbtide_tests::crowd::{
    Wishes,
    moments::{Pods, do_no_harm},
};

#[test]
fn others_traffic_is_as_before_with_an_agent_that_has_no_pods() -> Result<()> {
    do_no_harm(Wishes::default(), Pods::None)
}
