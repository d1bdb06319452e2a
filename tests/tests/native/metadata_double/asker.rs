//! Who asks the double, and how: requests over a socket of a namespace, with each cloud's headers.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use ebbtide_vpc::{
    metadata::Cloud,
    netns::Netns,
    patience::{IMPATIENCE, PATIENCE},
    plan::Nic,
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

pub(super) const AZURE: &str = "/metadata/instance/network?api-version=2021-08-01";
pub(super) const GCP: &str =
    "/computeMetadata/v1/instance/network-interfaces/?recursive=true&alt=json";
pub(super) const MACS: &str = "/latest/meta-data/network/interfaces/macs/";
pub(super) const LIFE: (&str, &str) = ("X-aws-ec2-metadata-token-ttl-seconds", "60");
pub(super) const TOKEN: &str = "X-aws-ec2-metadata-token";
pub(super) const METADATA: (&str, &str) = ("Metadata", "true");
pub(super) const GOOGLE: (&str, &str) = ("Metadata-Flavor", "Google");
pub(super) const PROXY: (&str, &str) = ("X-Forwarded-For", "10.0.0.1");

/// Who asks: a namespace, an address of it if it matters, and how long it waits.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) netns: &'a Netns,
    pub(super) source: Option<IpAddr>,
    pub(super) patience: Duration,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(super) fn json(&self) -> Value {
        assert_eq!(self.status, 200);
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl<'a> Asker<'a> {
    pub(super) fn of(netns: &'a Netns) -> Self {
        Self {
            netns,
            source: None,
            patience: PATIENCE,
        }
    }

    pub(super) fn from(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    pub(super) fn impatient(self) -> Self {
        Self {
            patience: IMPATIENCE,
            ..self
        }
    }

    pub(super) fn ask(
        self,
        server: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let bytes = self.netns.run(|| {
            let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
            if let Some(source) = self.source {
                socket.bind(&SocketAddr::new(source, 0).into())?;
            }
            socket.connect_timeout(&server.into(), self.patience)?;
            socket.set_read_timeout(Some(self.patience))?;
            let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {server}\r\n");
            for (name, value) in headers {
                request += &format!("{name}: {value}\r\n");
            }
            request += "Connection: close\r\n\r\n";
            socket.send(request.as_bytes())?;
            let mut stream = std::net::TcpStream::from(socket);
            stream.flush()?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            Ok(bytes)
        })?;
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.context("no answer")?;
        let head = String::from_utf8(bytes[..end].to_vec())?;
        let mut lines = head.lines();
        let status = lines.next().context("no status")?;
        Ok(Answer {
            status: status.split(' ').nth(1).context("no status")?.parse()?,
            headers: lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
            body: bytes[end + 4..].to_vec(),
        })
    }

    pub(super) fn get(self, cloud: Cloud, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask(cloud.address(), "GET", path, headers).unwrap()
    }

    pub(super) fn token(self) -> String {
        let path = "/latest/api/token";
        let answer = self.ask(Cloud::Aws.address(), "PUT", path, &[LIFE]);
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers[&LIFE.0.to_lowercase()], LIFE.1);
        answer.text()
    }

    pub(super) fn aws(self, path: &str) -> Answer {
        self.get(Cloud::Aws, path, &[(TOKEN, &self.token())])
    }

    /// A key of a NIC at AWS; empty if it is not found.
    pub(super) fn aws_key(self, nic: &Nic, key: &str) -> String {
        let answer = self.aws(&format!("{MACS}{}/{key}", mac(nic)));
        match answer.status {
            200 => answer.text(),
            404 => String::new(),
            status => panic!("{key}: {status}"),
        }
    }
}

pub(super) fn mac(nic: &Nic) -> String {
    nic.mac.map(|byte| format!("{byte:02x}")).join(":")
}
