//! What the chart makes for Prometheus and Grafana, and what it refuses to make.

use anyhow::{Result, bail};

use super::render;
use crate::workspace::Workspace;

/// Checks what the values of `metrics` make.
pub(super) fn check(ws: &Workspace) -> Result<()> {
    let on = r#"{"metrics": {"listen": "node", "podMonitor": {"enabled": true, "labels": {"release": "kps"}},
        "prometheusRule": {"enabled": true}, "dashboard": {"enabled": true}}, "controller": {"replicas": 1}}"#;
    let by_services = r#"{"metrics": {"listen": "node", "controllerPort": 29465,
        "serviceMonitor": {"enabled": true, "interval": "7s", "labels": {"release": "kps"}}}}"#;
    let off = r#"{"metrics": {"enabled": false}}"#;
    for (values, file, words) in [
        (
            on,
            "monitoring",
            &[
                "\nkind: PodMonitor\n",
                "replacement: \"${1}:19464\"",
                "replacement: \"[${1}]:19465\"",
                "\n    release: kps\n",
                "\n        - alert: EbbtideWrongNic\n",
                "\n    grafana_dashboard: \"1\"\n",
                "\n    {\n     \"title\": \"Ebbtide\",",
            ][..],
        ),
        (
            by_services,
            "monitoring",
            &[
                "\nkind: ServiceMonitor\n",
                "\n  clusterIP: None\n",
                "\n  selector:\n    app.kubernetes.io/name: ebbtide\n",
                "\n  selector:\n    app.kubernetes.io/name: ebbtide-controller\n",
                "\n    - name: metrics\n      port: 19464\n      targetPort: 19464\n",
                "\n    - name: metrics\n      port: 29465\n      targetPort: 29465\n",
                "\n      interval: 7s\n",
                "\n    release: kps\n",
            ],
        ),
        (
            on,
            "daemonset",
            &["--metrics-address=[$(NODE_IP)]:19464", "port: 19464\n"],
        ),
        (on, "controller", &["path: /readyz", "port: 19465\n"]),
        (
            off,
            "daemonset",
            &["--metrics-address=off", "command: [ebbtidectl, status]"],
        ),
        (off, "controller", &["--metrics-address=off"]),
    ] {
        let files = render(ws, values)?;
        let text = files.get(&format!("ebbtide/templates/{file}.yaml"));
        let text = text.map_or("", String::as_str);
        if let Some(word) = words.iter().find(|word| !text.contains(**word)) {
            bail!("with {values} the chart's {file}.yaml does not say {word:?}: {text}");
        }
    }
    for (values, says) in [
        (
            r#"{"metrics": {"podMonitor": {"enabled": true}}}"#,
            "metrics.podMonitor needs",
        ),
        (
            r#"{"metrics": {"serviceMonitor": {"enabled": true}}}"#,
            "metrics.serviceMonitor needs",
        ),
        (
            r#"{"metrics": {"listen": "node", "podMonitor": {"enabled": true}, "serviceMonitor": {"enabled": true}}}"#,
            "scraped twice",
        ),
    ] {
        match render(ws, values) {
            Ok(_) => bail!("the chart takes {values}"),
            Err(e) if format!("{e:#}").contains(says) => {}
            Err(e) => return Err(e.context(format!("the chart is to say {says:?} of {values}"))),
        }
    }
    Ok(())
}
