use super::*;

mod model;
mod public_bugs;
mod rules;

pub(super) fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}

pub(super) fn net(text: &str) -> IpNet {
    match text.contains('/') {
        true => text.parse().unwrap(),
        false => text.parse::<IpAddr>().unwrap().into(),
    }
}

fn nets(texts: &str) -> Vec<IpNet> {
    texts.split_whitespace().map(net).collect()
}

/// A NIC that is told to have these secondary addresses.
fn nic(number: u8, addresses: &str) -> CloudNic {
    CloudNic {
        mac: mac(number),
        id: format!("eni-{number}"),
        primary: vec![format!("10.0.{number}.4").parse().unwrap()],
        blocks: [(Kind::V4Addresses, nets(addresses))].into(),
        subnets: vec![net("10.0.0.0/16")],
        gateways: vec![],
    }
}

/// The same with these blocks of another kind as well.
fn with(mut nic: CloudNic, kind: Kind, blocks: &str) -> CloudNic {
    nic.blocks.insert(kind, nets(blocks));
    nic
}

/// The same, where the service does not answer for a kind.
fn without(mut nic: CloudNic, kind: Kind) -> CloudNic {
    nic.blocks.remove(&kind);
    nic
}

fn view(nics: impl IntoIterator<Item = CloudNic>) -> View {
    View {
        nics: nics.into_iter().collect(),
    }
}

/// A ledger with the time and the pods around it.
#[derive(Default)]
struct Lab {
    ledger: Ledger,
    now: u64,
    pods: Vec<IpAddr>,
}

impl Lab {
    /// Reads after this number of seconds, and returns what changed.
    fn read(&mut self, seconds: u64, nics: impl IntoIterator<Item = CloudNic>) -> Vec<Change> {
        self.now += seconds;
        let pods = &self.pods;
        let in_use = |block: &IpNet| pods.iter().any(|pod| block.contains(pod));
        self.ledger.observe(self.now, &view(nics), &in_use)
    }

    fn usable(&self, number: u8) -> String {
        let all = self.ledger.usable(mac(number));
        let all: Vec<String> = all.iter().map(short).collect();
        all.join(" ")
    }

    fn held(&self, number: u8) -> String {
        let all = self.ledger.held(mac(number));
        let all: Vec<String> = all.iter().map(|held| short(&held.block)).collect();
        all.join(" ")
    }

    fn waiting(&self, number: u8) -> String {
        let all = self.ledger.waiting(mac(number));
        let all: Vec<String> = all.iter().map(|one| short(&one.block)).collect();
        all.join(" ")
    }

    fn pod(&mut self, address: &str) {
        self.pods.push(address.parse().unwrap());
    }

    /// A new process reads what the old one saved.
    fn restart(&mut self) {
        let text = serde_json::to_string(&self.ledger).unwrap();
        self.ledger = serde_json::from_str(&text).unwrap();
        assert_eq!(self.ledger.fault(), None);
        // A clock of the process begins anew.
        self.now = 0;
    }
}

fn short(block: &IpNet) -> String {
    match is_single(block) {
        true => block.addr().to_string(),
        false => block.to_string(),
    }
}

/// A ledger with a usable block, after so many further ones were told.
pub(crate) fn example(further: u8) -> Ledger {
    let mut lab = Lab::default();
    for addresses in ["10.0.1.10", "10.0.1.10"] {
        lab.read(30, [nic(1, addresses)]);
    }
    for number in 0..further {
        lab.read(30, [nic(1, &format!("10.0.1.10 10.0.1.{}", number + 11))]);
    }
    lab.ledger
}
