//! Requests that a node cannot fulfil, or only just: a list, and random ones.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::Result;
use ebbtide_types::digest::fnv;
use ebbtide_vpc::{cni::Plugin, foreign};
use serde_json::{Value, json};
use tempfile::TempDir;

/// An IPAM plugin with answers that the test sets.
pub(super) struct Ipam(TempDir);

impl Ipam {
    pub(super) const NAME: &'static str = "mock-ipam";

    pub(super) fn new() -> Result<Self> {
        let directory = TempDir::with_prefix("ebbtide-ipam-")?;
        let path = directory.path();
        let script = format!(
            "#!/bin/sh\ncat > /dev/null\nif [ -e {0}/slow ]; then sleep 1; fi\nif [ $CNI_COMMAND = ADD ]; then cat {0}/answer; fi\n",
            path.display()
        );
        let program = path.join(Self::NAME);
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(Self(directory))
    }

    pub(super) fn answer(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.0.path().join("answer"), text)?)
    }

    /// Makes it slow from now on.
    pub(super) fn slow(&self) -> Result<()> {
        Ok(fs::write(self.0.path().join("slow"), "")?)
    }

    /// Returns the `CNI_PATH` with it.
    pub(super) fn path(&self) -> String {
        format!("{}:{}", self.0.path().display(), foreign::path().display())
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) config: Value,
    pub(super) interface: String,
    pub(super) answer: String,
}

impl Request {
    pub(super) fn static_on(
        plugin: &Plugin,
        master: &str,
        address: &str,
        gateway: Option<&str>,
    ) -> Self {
        let result =
            json!({"cniVersion": "1.0.0", "ips": [{"address": address, "gateway": gateway}]});
        Self::new(plugin, json!({"master": master, "mode": "l3"}), result)
    }

    pub(super) fn new(plugin: &Plugin, fields: Value, result: Value) -> Self {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "failed", "type": "ebbtide", "agentSocket": plugin.socket(),
            "ipam": {"type": Ipam::NAME},
        });
        for (key, value) in fields.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        Self {
            config,
            interface: "eth0".into(),
            answer: result.to_string(),
        }
    }

    pub(super) fn named(self, interface: &str) -> Self {
        Self {
            interface: interface.into(),
            ..self
        }
    }

    pub(super) fn random(plugin: &Plugin, number: u64) -> Self {
        let mut dice = Dice(number);
        let masters = [
            "ens5", "ens6", "ens5", "ens6", "lo", "nobody", "veth0", "ebbtide0",
        ];
        let modes = ["l3", "l2", "l3s", "l3"];
        let mut fields = json!({"master": dice.of(&masters), "mode": dice.of(&modes)});
        if dice.up_to(4) == 0 {
            fields["mtu"] = json!(dice.of(&[1, 68, 576, 1280, 1500, 9001, 65_535, 100_000]));
        }
        let count = 1 + dice.up_to(3);
        let ips: Vec<Value> = (0..count)
            .map(|_| {
                let mut ip = json!({"address": dice.network()});
                if dice.up_to(3) > 0 {
                    ip["gateway"] = json!(dice.address());
                }
                ip
            })
            .collect();
        let routes: Vec<Value> = (0..dice.up_to(4))
            .map(|_| {
                let mut route = json!({"dst": dice.network()});
                if dice.up_to(2) > 0 {
                    route["gw"] = json!(dice.address());
                }
                route
            })
            .collect();
        let names = [
            "eth0", "net1", "veth0", "ebbtide0", "tunl0", "ens5", "a\u{a0}b", "x\u{7f}y",
        ];
        let name = *dice.of(&names);
        Self::new(
            plugin,
            fields,
            json!({"cniVersion": "1.0.0", "ips": ips, "routes": routes}),
        )
        .named(name)
    }
}

/// A random number generator that repeats for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn throw(&mut self) -> u64 {
        self.0 = fnv(self.0.to_le_bytes().into_iter().chain(*b"dice"));
        self.0 >> 16
    }

    pub(super) fn up_to(&mut self, end: u64) -> u64 {
        self.throw() % end
    }

    pub(super) fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.up_to(list.len() as u64) as usize]
    }

    pub(super) fn address(&mut self) -> String {
        let known = [
            "172.31.16.1",
            "172.31.16.77",
            "172.31.32.1",
            "10.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "fd00:16::77",
            "fe80::1",
            "::",
            "::1",
            "ff02::1",
        ];
        match self.up_to(4) {
            0 => std::net::Ipv4Addr::from(self.throw() as u32).to_string(),
            1 => {
                std::net::Ipv6Addr::from(u128::from(self.throw()) << 64 | u128::from(self.throw()))
                    .to_string()
            }
            _ => (*self.of(&known)).to_owned(),
        }
    }

    pub(super) fn network(&mut self) -> String {
        let address = self.address();
        let longest = if address.contains(':') { 129 } else { 33 };
        format!("{address}/{}", self.up_to(longest))
    }
}

/// Returns requests that must fail.
pub(super) fn bad(plugin: &Plugin) -> Vec<Request> {
    let on =
        |master: &str, address: &str, gateway| Request::static_on(plugin, master, address, gateway);
    vec![
        on("ens6", "1.2.3.4/1", None),
        on("ens6", "1.2.3.4/1", Some("1.2.3.1")),
        on("ens6", "172.31.32.77/0", None),
        on("ens6", "172.31.32.77/20", Some("255.255.255.255")),
        on("ens5", "127.0.0.9/8", None),
        on("ens5", "224.0.0.5/24", None),
        on("ens5", "fd00:16::77/0", Some("ff02::1")),
        on("ens5", "172.31.16.77/20", Some("172.31.16.1")).named("veth0"),
        on("ens5", "172.31.16.77/20", Some("172.31.16.1")).named("lo"),
        Request {
            answer: "nothing that is JSON".into(),
            ..on("ens5", "172.31.16.77/20", None)
        },
        Request::new(
            plugin,
            json!({"master": "ens5"}),
            json!({"ips": [{"address": "172.31.16.77/20", "gateway": "172.31.16.1"}],
                "routes": [{"dst": "10.0.0.0/8", "gw": "0.0.0.0"}]}),
        ),
    ]
}

/// The default number of random requests.
const REQUESTS: u64 = 8;

pub(super) fn random_requests() -> u64 {
    let asked = std::env::var("EBBTIDE_RANDOM_ADDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(REQUESTS)
}
