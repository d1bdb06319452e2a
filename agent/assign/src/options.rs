//! The command line of `ebbtide-agent cloud-controller`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use ebbtide_types::Family;

use crate::{
    BadAuthorities, BadEndpoint, Endpoint, Transport,
    credentials::{CredentialsError, Provider, Source},
    ec2::Ec2,
    plan::{By, Settings},
};

/// What the controller is to do, and with whom it talks.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The cloud.
    #[arg(long, value_enum, default_value_t = Cloud::Aws)]
    provider: Cloud,
    /// The region, as in eu-central-1.
    #[arg(long, env = "AWS_REGION", value_name = "REGION")]
    region: String,
    /// How many free addresses (or prefixes: --by) of IPv4 each NIC keeps.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warm: u64,
    /// How many free addresses (or prefixes) of IPv6 each NIC keeps.
    #[arg(long, value_name = "N", default_value_t = 0)]
    warm_ipv6: u64,
    /// In which pieces addresses are asked for: a prefix has 16 addresses of IPv4 and counts as one.
    #[arg(long, value_enum, default_value_t = Pieces::Address)]
    by: Pieces,
    /// How many addresses or prefixes of a family a NIC may have beside its own address [default: what its type allows].
    #[arg(long, value_name = "N")]
    max_per_nic: Option<u64>,
    /// How many free addresses (or prefixes) more than the warm ones are not given back.
    #[arg(long, value_name = "N", default_value_t = 4)]
    slack: u64,
    /// For how long a NIC must have more than these before any is given back.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    idle_seconds: u64,
    /// Change nothing: say in the log and in Events what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Say once what would be done, change nothing, and end. Needs no Lease.
    #[arg(long)]
    pub(crate) once: bool,
    /// Where EC2 is [default: https://ec2.REGION.amazonaws.com].
    #[arg(long, value_name = "URL")]
    endpoint: Option<Endpoint>,
    /// Where STS is, which gives credentials for the pod's token [default: https://sts.REGION.amazonaws.com].
    #[arg(long, value_name = "URL")]
    sts_endpoint: Option<Endpoint>,
    /// A PEM file with further authorities that may vouch for the endpoints, beside the public ones.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// A cloud that can be asked for more.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cloud {
    /// Amazon Web Services.
    Aws,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pieces {
    /// Single addresses.
    Address,
    /// /28 of IPv4, /80 of IPv6.
    Prefix,
}

/// Why the controller cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// An endpoint or the region.
    #[error(transparent)]
    Endpoint(#[from] BadEndpoint),
    /// The file of authorities.
    #[error(transparent)]
    Authorities(#[from] BadAuthorities),
    /// The credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl Options {
    /// Returns the cloud's name, as agents have it in what they tell.
    pub(crate) const fn provider(&self) -> &'static str {
        match self.provider {
            Cloud::Aws => "aws",
        }
    }

    /// Returns what people want.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            warm: BTreeMap::from([(Family::V4, self.warm), (Family::V6, self.warm_ipv6)]),
            by: match self.by {
                Pieces::Address => By::Address,
                Pieces::Prefix => By::Prefix,
            },
            max_per_nic: self.max_per_nic,
            slack: self.slack,
            idle: Duration::from_secs(self.idle_seconds),
        }
    }

    /// Returns the client of EC2, and whose rights it has, for people. Sends nothing.
    pub(crate) fn ec2(&self) -> Result<(Ec2, String), OptionsError> {
        let region = self.region.trim().to_owned();
        let place = |given: &Option<Endpoint>, service| match given {
            Some(endpoint) => Ok(endpoint.clone()),
            None => Endpoint::of(service, &region),
        };
        let endpoint = place(&self.endpoint, "ec2")?;
        let sts = place(&self.sts_endpoint, "sts")?;
        let source = Source::choose(|name| std::env::var(name).ok(), &sts)?;
        let transport = Transport::new(self.ca_file.as_deref())?;
        let shown = format!("{endpoint}, with {source}");
        let credentials = Provider::new(source, transport.clone());
        Ok((Ec2::new(transport, endpoint, region, credentials), shown))
    }
}
