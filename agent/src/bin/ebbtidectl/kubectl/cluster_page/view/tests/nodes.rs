//! Nodes, and their agents.

use super::*;

#[test]
fn nodes_and_agents_that_do_not_work_are_told() {
    let web = || json!([endpoint("web", "n1", &json!([v4("eth0", "10.0.0.5", "a")]))]);
    let mut crashed = agent("n1", false);
    crashed["status"]["containerStatuses"][0]["state"] =
        json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let mut older = agent("n2", true);
    older["spec"]["containers"][0]["image"] = json!("ebbtide:v0.1.0");
    let mut ending = agent("n1", true);
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for (nodes, agents, endpoints, expected) in [
        (
            json!([node("n1", "True")]),
            json!([agent("n1", true)]),
            web(),
            vec![],
        ),
        (
            json!([node("n1", "True")]),
            json!([ending, agent("n1", true)]),
            web(),
            vec![],
        ),
        (
            json!([node("n1", "True")]),
            json!([ending]),
            web(),
            vec!["the agent is not ready: n1 (ending)"],
        ),
        (
            json!([node("n1", "True")]),
            json!([crashed]),
            web(),
            vec!["the agent is not ready: n1 (CrashLoopBackOff)"],
        ),
        (
            json!([node("n1", "True")]),
            json!([agent("n1", false)]),
            web(),
            vec!["the agent is not ready: n1 (not ready)"],
        ),
        (
            json!([node("n1", "True")]),
            json!([]),
            web(),
            vec!["no agent, but pods with its addresses: n1"],
        ),
        (
            json!([node("n1", "Unknown"), node("n2", "True")]),
            json!([agent("n1", true)]),
            web(),
            vec![
                "no agent runs on these nodes, and no pod there can have an address: n2",
                "the node is not ready: n1",
            ],
        ),
        (
            json!([node("n2", "True")]),
            json!([agent("n2", true)]),
            web(),
            vec![
                "no agent, but pods with its addresses: n1",
                "there is no such Node, but something of it is left: n1",
            ],
        ),
        (
            json!([node("n1", "True"), node("n2", "True")]),
            json!([agent("n1", true), older]),
            web(),
            vec!["the agents are of several versions: v0.1.0 on 1, v0.2.0 on 1"],
        ),
    ] {
        let rows = read([nodes, agents, json!([pool("a", 20, 1)]), endpoints]);
        assert_eq!(texts(&view(&rows)), expected, "{rows:?}");
    }
}

#[test]
fn many_nodes_with_one_trouble_are_one_line() {
    let nodes: Vec<Value> = (0..500)
        .map(|it| node(&format!("n{it:03}"), "True"))
        .collect();
    let view = view(&read([json!(nodes), json!([]), json!([]), json!([])]));
    let expected = "no agent runs on these nodes, and no pod there can have an address: n000, n001, n002, n003, n004 and 495 more";
    assert_eq!(texts(&view), [expected]);
    assert!(view.nodes.iter().all(|it| it.level == Level::Well));
}

#[test]
fn images_have_tags() {
    for (image, version) in [
        ("ebbtide", ""),
        ("ebbtide:v1", "v1"),
        ("r.example:5000/a/ebbtide", ""),
        ("r.example:5000/a/ebbtide:v1", "v1"),
        ("r.example/ebbtide@sha256:0123456789abcdef", "0123456789ab"),
    ] {
        let mut pod = agent("n1", true);
        pod["spec"]["containers"][0]["image"] = json!(image);
        assert_eq!(rows::agent(&pod).version, version, "{image}");
    }
}
