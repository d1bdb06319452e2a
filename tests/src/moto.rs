//! moto, which acts as EC2: real requests and answers, and no limits. What it does not enforce, no test shows.
//!
//! It accepts `Ipv4PrefixCount` and assigns nothing.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ebbtide_vpc::{
    netns::Netns,
    plan::{Family, Nic},
    process::Process,
    skip::{Need, skip},
};
use tempfile::TempDir;

/// Where `cargo xtask setup` installs it.
const PLACE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/moto/bin/moto_server"
);

/// A running moto, on loopback.
#[derive(Debug)]
pub struct Moto {
    _process: Process,
    port: u16,
    _directory: TempDir,
}

/// A NIC in it.
#[derive(Clone, Debug)]
pub struct Eni {
    /// Its ID, `eni-...`.
    pub id: String,
    /// The ID of its instance, `i-...`.
    pub instance: String,
    /// Its MAC.
    pub mac: String,
}

impl Moto {
    /// Starts it. Returns `None`, after a skip, if it is not installed.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn start() -> Result<Option<Self>> {
        let program = PathBuf::from(PLACE);
        if !program.is_file() {
            skip(
                Need::Moto,
                "no moto, which acts as EC2: `cargo xtask setup` installs it where there is Python",
            );
            return Ok(None);
        }
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let directory = TempDir::new()?;
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let log = directory.path().join("moto.log");
        let process = Process::start(command, &log)?;
        let moto = Self {
            _process: process,
            port,
            _directory: directory,
        };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(
                start.elapsed() < Duration::from_secs(120),
                "moto does not answer"
            );
            thread::sleep(Duration::from_millis(100));
        }
        Ok(Some(moto))
    }

    /// Returns its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns an address by which programs in this network namespace reach it, as long as this process lives.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub fn reached_from(&self, netns: &Netns) -> Result<String> {
        let listener = netns.run(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
        let url = format!("http://{}", listener.local_addr()?);
        let port = self.port;
        thread::spawn(move || {
            for there in listener.incoming() {
                let (Ok(there), Ok(here)) = (there, TcpStream::connect(("127.0.0.1", port))) else {
                    continue;
                };
                if let (Ok(from), Ok(to)) = (there.try_clone(), here.try_clone()) {
                    thread::spawn(move || pass_on(from, to));
                    thread::spawn(move || pass_on(here, there));
                }
            }
        });
        Ok(url)
    }

    /// Sends a request, and returns the answer's XML.
    fn ask(&self, action: &str, fields: &[(&str, &str)]) -> Result<String> {
        let mut body = format!("Action={action}&Version=2016-11-15");
        for (name, value) in fields {
            body.push_str(&format!("&{name}={}", value.replace('/', "%2F")));
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        // It takes the service from the signature's scope, and does not look at the rest.
        write!(
            stream,
            "POST / HTTP/1.0\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             authorization: AWS4-HMAC-SHA256 Credential=A/20260101/eu-west-1/ec2/aws4_request, SignedHeaders=host, \
             Signature=x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(
            answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"),
            "{action}: {answer}"
        );
        Ok(answer)
    }

    /// Makes an instance with a second NIC, in a network of its own.
    ///
    /// # Errors
    /// If moto refuses.
    pub fn instance(&self, kind: &str) -> Result<Eni> {
        self.make(kind, "10.0.0.0/16", "10.0.1.0/24", &[])
    }

    /// Makes an instance with a second NIC that has the subnet and the IPv4 address of this one of the test VPC.
    ///
    /// # Errors
    /// If moto refuses.
    pub fn instance_like(&self, kind: &str, nic: &Nic) -> Result<Eni> {
        let (subnet, own) = (
            nic.subnet(Family::V4).primary.trunc(),
            nic.primary(Family::V4),
        );
        let (subnet, own) = (subnet.to_string(), own.to_string());
        self.make(kind, &subnet, &subnet, &[("PrivateIpAddress", &own)])
    }

    fn make(&self, kind: &str, vpc: &str, subnet: &str, more: &[(&str, &str)]) -> Result<Eni> {
        let vpc = field(&self.ask("CreateVpc", &[("CidrBlock", vpc)])?, "vpcId")?;
        let subnet = [("VpcId", vpc.as_str()), ("CidrBlock", subnet)];
        let subnet = field(&self.ask("CreateSubnet", &subnet)?, "subnetId")?;
        let run = [
            ("ImageId", "ami-12c6146b"),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("InstanceType", kind),
            ("SubnetId", &subnet),
        ];
        let instance = field(&self.ask("RunInstances", &run)?, "instanceId")?;
        let nic = [&[("SubnetId", subnet.as_str())], more].concat();
        let made = self.ask("CreateNetworkInterface", &nic)?;
        let (id, mac) = (
            field(&made, "networkInterfaceId")?,
            field(&made, "macAddress")?,
        );
        let attach = [
            ("NetworkInterfaceId", id.as_str()),
            ("InstanceId", &instance),
            ("DeviceIndex", "1"),
        ];
        self.ask("AttachNetworkInterface", &attach)?;
        Ok(Eni { id, instance, mac })
    }

    /// Assigns so many addresses to a NIC, as a person does by hand.
    ///
    /// # Errors
    /// If moto refuses.
    pub fn assign(&self, nic: &Eni, count: usize) -> Result<()> {
        let count = count.to_string();
        let fields = [
            ("NetworkInterfaceId", nic.id.as_str()),
            ("SecondaryPrivateIpAddressCount", &count),
        ];
        self.ask("AssignPrivateIpAddresses", &fields).map(drop)
    }

    /// Takes an address from a NIC.
    ///
    /// # Errors
    /// If moto refuses.
    pub fn unassign(&self, nic: &Eni, address: &str) -> Result<()> {
        let fields = [
            ("NetworkInterfaceId", nic.id.as_str()),
            ("PrivateIpAddress.1", address),
        ];
        self.ask("UnassignPrivateIpAddresses", &fields).map(drop)
    }

    /// Returns the addresses of a NIC beside its own: what the metadata service would tell a while later.
    ///
    /// # Errors
    /// If moto's answer has none.
    pub fn assigned(&self, nic: &Eni) -> Result<Vec<String>> {
        let ask = [("NetworkInterfaceId.1", nic.id.as_str())];
        let answer = self.ask("DescribeNetworkInterfaces", &ask)?;
        let (_, set) = answer
            .split_once("<privateIpAddressesSet>")
            .context("no addresses")?;
        let (set, _) = set
            .split_once("</privateIpAddressesSet>")
            .context("no end")?;
        let items = set
            .split("<item>")
            .filter(|item| item.contains("<primary>false"));
        items.map(|item| field(item, "privateIpAddress")).collect()
    }

    /// Waits until a NIC has this number of addresses beside its own, and returns them.
    ///
    /// # Errors
    /// If it does not come to that in time.
    pub fn until(&self, nic: &Eni, count: usize) -> Result<Vec<String>> {
        let start = Instant::now();
        loop {
            let assigned = self.assigned(nic)?;
            if assigned.len() == count {
                return Ok(assigned);
            }
            if start.elapsed() > Duration::from_secs(150) {
                bail!("{} has {assigned:?}, and {count} were expected", nic.id);
            }
            thread::sleep(Duration::from_millis(250));
        }
    }
}

/// Passes what one end sends on to the other, until it ends.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    // Whoever is cut off tries again.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Returns what the first element of this name says.
fn field(xml: &str, name: &str) -> Result<String> {
    let (_, rest) = xml
        .split_once(&format!("<{name}>"))
        .with_context(|| format!("no {name}: {xml}"))?;
    let (text, _) = rest.split_once('<').context("no end")?;
    Ok(text.to_owned())
}
