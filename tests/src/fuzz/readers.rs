//! The readers of data from outside.

use std::{
    fs,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::clouds;
use ebbtide_agent::cni::NetConf;
use ebbtide_ipam::{
    catalog::Catalog,
    pool::{Object, Options, Owner, Pools, Request, Subject},
};
use ebbtide_kernel::{
    netfilter::{Packet, Protocol, Ruleset},
    netlink::lenient,
};
use ebbtide_kube::networks;
use ebbtide_plugin::wire;
use ebbtide_types::{Family, NetworkRef, ObjectName, settings::Settings};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// A directory that a reader may write in.
pub(super) type Scratch<'s> = &'s Path;

/// A reader.
#[derive(Debug)]
pub struct Reader {
    /// Its name, which is also that of its directory in `tests/corpus`.
    pub name: &'static str,
    /// Who writes the data that it reads.
    pub from: &'static str,
    /// Reads an input; returns whether anything was understood.
    pub(super) read: fn(Scratch<'_>, &[u8]) -> bool,
}

/// All readers.
pub const ALL: [Reader; 14] = [
    Reader {
        name: "manifests",
        from: "who may write objects, or files on the node",
        read: manifests,
    },
    Reader {
        name: "annotations",
        from: "who may make pods",
        read: annotations,
    },
    Reader {
        name: "configurations",
        from: "the runtime, Multus, and who may write NetworkAttachmentDefinitions",
        read: configurations,
    },
    Reader {
        name: "frames",
        from: "who may open the socket",
        read: frames,
    },
    Reader {
        name: "settings",
        from: "the administrator",
        read: settings,
    },
    Reader {
        name: "netlink",
        from: "the kernel, of links and routes that anybody made",
        read: netlink,
    },
    Reader {
        name: "journals",
        from: "the disk",
        read: journals,
    },
    Reader {
        name: "iptables",
        from: "the node's firewall",
        read: iptables,
    },
    Reader {
        name: "nft",
        from: "the node's firewall",
        read: nft,
    },
    Reader {
        name: "aws",
        from: METADATA,
        read: clouds::aws,
    },
    Reader {
        name: "alibaba",
        from: METADATA,
        read: clouds::alibaba,
    },
    Reader {
        name: "azure",
        from: METADATA,
        read: clouds::azure,
    },
    Reader {
        name: "gcp",
        from: METADATA,
        read: clouds::gcp,
    },
    Reader {
        name: "tencent",
        from: METADATA,
        read: clouds::tencent,
    },
];

const METADATA: &str = "the cloud's metadata service, or who answers in its place";

impl Reader {
    /// Returns the files of its corpus directory, in the order of their names.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn corpus(&self) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(self.name);
        let entries: Result<Vec<_>, _> = fs::read_dir(directory)?.collect();
        let mut paths: Vec<_> = entries?.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        let read = |path: PathBuf| fs::read(&path).map(|bytes| (path, bytes));
        paths.into_iter().map(read).collect()
    }
}

const POOLS: &str = "\
---
{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: vpc-a},
  spec: {subnet: 172.31.16.0/20, ips: [172.31.16.10-172.31.16.200], gateway: 172.31.16.1, default: true}}
---
{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {name: six},
  spec: {subnet: 'fd00:1::/64', ips: ['fd00:1::10-fd00:1::4f'], gateway: 'fd00:1::1'}}
";

fn manifests(_: Scratch<'_>, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let catalog = Catalog::from_texts([(Path::new("m.yaml"), text.as_ref())]);
    for problem in catalog.problems() {
        let _ = problem.to_string();
    }
    let _ = Catalog::default().changes_to(&catalog);
    for network in catalog.networks() {
        let _ = catalog.network(&network.name.to_string());
    }
    !catalog.pools().is_empty() || !catalog.networks().is_empty()
}

fn annotations(scratch: Scratch<'_>, bytes: &[u8]) -> bool {
    let value = String::from_utf8_lossy(bytes).into_owned();
    let pod = ObjectName {
        namespace: "shop".into(),
        name: "web".into(),
    };
    let object = |key: &str| Object {
        annotations: [(key.to_owned(), value.clone())].into(),
        ..Object::named("web")
    };
    let default: Option<NetworkRef> = "kube-system/ipvlan-ens5".parse().ok();
    let mut understood = false;
    for key in [
        networks::NETWORKS,
        networks::DEFAULT_NETWORK,
        networks::DEFAULT_ROUTE_NIC,
    ] {
        let wanted = networks::wanted(&pod, &object(key), "eth0", default.as_ref());
        understood |= wanted.is_ok_and(|wanted| wanted.interfaces.len() > 1);
    }
    // Nothing is committed, so the disk is not written.
    let Ok(pools) = Pools::open(&scratch.join("pools"), Options::default()) else {
        return false;
    };
    let catalog = Catalog::from_texts([(Path::new("m.yaml"), POOLS)]);
    let owner = Owner {
        network: "n".into(),
        container_id: "c".into(),
        interface: "eth0".into(),
    };
    for key in [
        "ipam.spidernet.io/ippools",
        "ipam.spidernet.io/ippool",
        "ipam.spidernet.io/routes",
        "ipam.spidernet.io/default-ipv4-ippool",
        "ipam.spidernet.io/default-ipv6-ippool",
    ] {
        let subject = Subject {
            pod: object(key),
            namespace: object(key),
            ..Subject::UNKNOWN
        };
        let request = Request {
            subject: &subject,
            ..Request::new(&owner, "node", &catalog)
        };
        match pools.reserve(&request) {
            Ok(_) => understood = true,
            Err(error) => drop(error.to_string()),
        }
    }
    understood
}

fn configurations(_: Scratch<'_>, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match NetConf::parse(&text) {
        Ok(conf) => {
            let _ = conf.choice();
            let _ = conf.valid_attachments();
            let _ = (
                conf.previous(),
                conf.network(),
                conf.ipam_plugin(),
                conf.is_chained(),
            );
            true
        }
        Err(failure) => {
            let _ = failure.to_json("1.1.0");
            false
        }
    }
}

fn frames(_: Scratch<'_>, bytes: &[u8]) -> bool {
    // First as it is, then as a message with the right length.
    let _: Result<wire::Request, _> = wire::receive(&mut &bytes[..]);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    wire::receive::<wire::Request>(&mut length.chain(bytes)).is_ok()
}

fn settings(scratch: Scratch<'_>, bytes: &[u8]) -> bool {
    let path = scratch.join("config.yaml");
    if fs::write(&path, bytes).is_err() {
        return false;
    }
    match Settings::load(&path) {
        Ok(_) => true,
        Err(error) => {
            let _ = error.to_string();
            false
        }
    }
}

fn netlink(_: Scratch<'_>, bytes: &[u8]) -> bool {
    lenient::decode::<RouteNetlinkMessage>(bytes).is_ok()
}

/// Repairs the checksum of each batch after the mutation: a wrong sum is refused before the rest is read.
fn journals(scratch: Scratch<'_>, bytes: &[u8]) -> bool {
    let directory = scratch.join("journal");
    let mut sealed = Vec::new();
    let mut begun = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let number = line
            .strip_prefix(b"= ")
            .and_then(|rest| rest.split(|byte| *byte == b' ').next());
        match number {
            Some(number) => {
                sealed.extend_from_slice(&[b"= ", number, b" "].concat());
                let sum = crc32fast::hash(&sealed[begun..]);
                sealed.extend_from_slice(format!("{sum:08x}\n").as_bytes());
                begun = sealed.len();
            }
            None => sealed.extend_from_slice(line),
        }
    }
    let mut understood = false;
    for journal in [&sealed[..], bytes] {
        let _ = fs::remove_dir_all(&directory);
        let written = fs::create_dir_all(&directory)
            .and_then(|()| fs::write(directory.join("pool.journal"), journal));
        if written.is_err() {
            return false;
        }
        match Pools::open(&directory, Options::default()) {
            Ok(pools) => understood |= !pools.list().is_empty() || !pools.reservations().is_empty(),
            Err(error) => drop(error.to_string()),
        }
    }
    understood
}

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 31, 16, 4));

fn followed(rules: &Ruleset) -> bool {
    let packets = [
        Packet::sent(POD, "ens5", "NEW"),
        Packet::sent(POD, "ens5", "INVALID"),
        Packet::to_pod(POD, "ens5", "veth1", Protocol::Tcp),
        Packet::from_pod(POD, "veth1", "ens5", Protocol::Udp),
        Packet::to_node(POD, "veth1", Protocol::Tcp, 10250),
    ];
    packets.iter().any(|packet| {
        let found = [
            rules.masquerades(packet),
            rules.drops(packet),
            rules.blocks(packet),
        ];
        found.iter().any(|found| !found.is_empty())
    })
}

fn iptables(_: Scratch<'_>, bytes: &[u8]) -> bool {
    followed(&Ruleset::parse(&String::from_utf8_lossy(bytes)))
}

fn nft(_: Scratch<'_>, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let of = |family, others| {
        Ruleset::parse_nft(&text, family, others).is_ok_and(|rules| followed(&rules))
    };
    of(Family::V4, false) | of(Family::V6, true)
}
