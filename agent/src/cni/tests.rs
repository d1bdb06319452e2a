//! Tests that no input on standard input, in a plugin's result or in a pod's annotations makes the agent panic.

use ebbtide_ipam::pool::Object;
use ebbtide_kube::networks::{self, DEFAULT_NETWORK, NETWORKS};
use ebbtide_plugin::{
    cni::VERSIONS,
    wire::{Invocation, Request},
};
use ebbtide_types::ObjectName;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    Attachment, NetConf, PodIdentity, chained::with_interfaces, nulls::without_nulls,
    previous::Previous,
};

/// Keys that have a meaning somewhere: random ones would hardly ever match.
const KEYS: [&str; 36] = [
    "cniVersion",
    "name",
    "network",
    "master",
    "mode",
    "mtu",
    "acceptMarks",
    "ipam",
    "type",
    "ipv4Pools",
    "ipv6Pools",
    "default_ipv4_ippool",
    "runtimeConfig",
    "ips",
    "portMappings",
    "hostPort",
    "bandwidth",
    "args",
    "cni",
    "prevResult",
    "interfaces",
    "sandbox",
    "address",
    "gateway",
    "interface",
    "routes",
    "dst",
    "gw",
    "ip4",
    "ip6",
    "ip",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "containerID",
    "ifname",
    "default-route",
];

/// Values that have a meaning somewhere.
const TEXTS: [&str; 16] = [
    "",
    " ",
    "1.0.0",
    "0.2.0",
    "ebbtide",
    "host-local",
    "dhcp",
    "l2",
    "l3",
    "10.0.0.5",
    "10.0.0.5/24",
    "fd00::5/64",
    "0.0.0.0/0",
    "::/0",
    "eth0",
    "\u{0}é/..",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-2i64..3).prop_map(Value::from),
        prop::sample::select(&TEXTS[..]).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop::sample::select(&KEYS[..]).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Runs everything that a request passes before anything is looked up or made.
fn pure_parts(text: &str) {
    let Ok(conf) = NetConf::parse(text) else {
        return;
    };
    let _ = conf.choice();
    let _ = conf.ips();
    let _ = (conf.host_ports(), conf.bandwidth());
    let _ = (conf.is_by_pod(), conf.is_chained(), conf.ipam_plugin());
    let _ = conf.valid_attachments();
    let own = json!({"name": "veth0"});
    let Some(result) = conf.previous() else {
        return;
    };
    // A result that is refused is not used.
    if let Ok(previous) = Previous::parse(result, "the plugin before") {
        let inside = ["10.0.0.5/24".parse().unwrap()];
        let _ = previous.of_interface("eth0", &inside);
        let _ = previous.of_ipam("host-local");
        let _ = previous.in_host("eth0").count();
        let answer = with_interfaces(result, [&own].into_iter(), &conf.cni_version);
        assert_eq!(answer["cniVersion"], conf.cni_version, "{result}");
    }
    let _ = with_interfaces(result, [&own].into_iter(), &conf.cni_version);
}

proptest! {
    #[test]
    fn any_json_in_any_field_of_a_configuration_is_answered(
        key in prop::sample::select(&KEYS[..]),
        version in prop::sample::select(&VERSIONS[..]),
        master in any::<bool>(),
        value in any_json(),
    ) {
        pure_parts(&value.to_string());
        let mut conf = json!({"cniVersion": version, "name": "n"});
        if master {
            conf["master"] = json!("ens5");
        }
        conf[key] = value.clone();
        pure_parts(&conf.to_string());
        for inside in ["ipam", "runtimeConfig", "args", "prevResult"] {
            let text = json!({"cniVersion": version, "name": "n", inside: {key: value}}).to_string();
            pure_parts(&text);
        }
        let _ = without_nulls(value);
    }

    #[test]
    fn any_text_in_any_variable_is_answered(text in any::<String>(), json in any_json()) {
        let invocation = Invocation {
            container_id: text.clone(),
            if_name: text.clone(),
            args: text.clone(),
            ..Invocation::default()
        };
        let _ = Attachment::parse(&invocation);
        let _ = PodIdentity::parse(&text).or_container(&text);
        let _ = serde_json::from_str::<Request>(&json!({"cni": json}).to_string());
    }

    #[test]
    fn any_json_in_a_pod_s_annotations_is_answered(json in any_json(), text in any::<String>()) {
        let pod = ObjectName { namespace: "shop".into(), name: "web".into() };
        let listed = json!([json]).to_string();
        for text in [json.to_string(), listed, text] {
            for key in [DEFAULT_NETWORK, NETWORKS] {
                let object = Object {
                    annotations: [(key.to_owned(), text.clone())].into(),
                    ..Object::named("web")
                };
                let _ = networks::wanted(&pod, &object, "eth0", Some(&"a".parse().unwrap()));
            }
        }
    }
}
