//! A small client of EC2: what the controller asks for, and no more.
//!
//! The query protocol, version 2016-11-15. Neither Assign action has a `ClientToken`, so nothing is repeated here: whoever
//! does not know whether a request was carried out asks what the NIC has, and begins anew.

use std::time::SystemTime;

use ebbtide_types::Family;
use ipnet::IpNet;

use crate::{
    Endpoint, Transport, TransportError,
    credentials::{CredentialsError, Provider},
    form::Form,
    refusal::{Reason, Refusal, refusal},
    sign::{self, SignError},
    xml::BadAnswer,
};

mod answer;

pub use answer::{Described, Limits};

const VERSION: &str = "2016-11-15";

/// How many NICs are asked about at once: EC2 accepts 200 values of a filter.
pub const PAGE: usize = 100;

/// How many pages are read: EC2 says when it was the last one.
const PAGES: usize = 50;

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many addresses.
    Addresses(u32),
    /// So many prefixes: /28 or /80.
    Prefixes(u32),
}

/// A request that was not carried out, or may not have been.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {problem}")]
pub struct Ec2Error {
    /// The action, as in `AssignPrivateIpAddresses`.
    pub action: &'static str,
    /// What happened.
    pub problem: Problem,
}

/// What happened to a request.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// EC2 refuses.
    #[error("{0}; {advice}", advice = .0.advice())]
    Refused(Refusal),
    /// There is no answer.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// There are no credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// It cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The answer cannot be read.
    #[error("the answer {0}")]
    Answer(#[from] BadAnswer),
}

impl Ec2Error {
    /// Returns why EC2 refuses, if it does.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match &self.problem {
            Problem::Refused(refusal) => Some(refusal.reason()),
            _ => None,
        }
    }

    /// Whether all requests should wait: EC2 says so, or does not answer.
    #[must_use]
    pub fn is_general(&self) -> bool {
        match &self.problem {
            Problem::Refused(refusal) => {
                matches!(
                    refusal.reason(),
                    Reason::Throttled | Reason::Forbidden | Reason::Late
                )
            }
            Problem::Transport(_) | Problem::Credentials(_) | Problem::Sign(_) => true,
            Problem::Answer(_) => false,
        }
    }

    /// Whether it is certain that nothing was changed.
    #[must_use]
    pub fn is_without_effect(&self) -> bool {
        match &self.problem {
            Problem::Refused(refusal) => refusal.is_without_effect(),
            Problem::Transport(error) => error.is_unsent(),
            Problem::Credentials(_) | Problem::Sign(_) => true,
            Problem::Answer(_) => false,
        }
    }
}

/// A client of one region.
#[derive(Debug)]
pub struct Ec2 {
    transport: Transport,
    endpoint: Endpoint,
    region: String,
    credentials: Provider,
}

impl Ec2 {
    /// Returns a client; nothing is sent yet.
    #[must_use]
    pub const fn new(
        transport: Transport,
        endpoint: Endpoint,
        region: String,
        credentials: Provider,
    ) -> Self {
        Self {
            transport,
            endpoint,
            region,
            credentials,
        }
    }

    /// Assigns more to a NIC, and returns what it was given (a moto tells everything that the NIC has). `verified` is when
    /// this controller last knew that it is the leader.
    ///
    /// # Errors
    /// If EC2 refuses or does not answer.
    pub async fn assign(
        &self,
        nic: &str,
        family: Family,
        amount: Amount,
        verified: SystemTime,
    ) -> Result<Vec<IpNet>, Ec2Error> {
        let action = match family {
            Family::V4 => "AssignPrivateIpAddresses",
            Family::V6 => "AssignIpv6Addresses",
        };
        let (field, count) = match (family, amount) {
            (Family::V4, Amount::Addresses(count)) => ("SecondaryPrivateIpAddressCount", count),
            (Family::V6, Amount::Addresses(count)) => ("Ipv6AddressCount", count),
            (Family::V4, Amount::Prefixes(count)) => ("Ipv4PrefixCount", count),
            (Family::V6, Amount::Prefixes(count)) => ("Ipv6PrefixCount", count),
        };
        let form = Form::new(action, VERSION)
            .with("NetworkInterfaceId", nic)
            .with(field, &count.to_string());
        let text = self.ask(action, form, Some(verified)).await?;
        answer::assigned(&text).map_err(|e| fault(action, e))
    }

    /// Takes addresses and prefixes of one family away from a NIC.
    ///
    /// # Errors
    /// If EC2 refuses or does not answer.
    pub async fn unassign(
        &self,
        nic: &str,
        family: Family,
        blocks: &[IpNet],
        verified: SystemTime,
    ) -> Result<(), Ec2Error> {
        let (action, address, prefix) = match family {
            Family::V4 => (
                "UnassignPrivateIpAddresses",
                "PrivateIpAddress",
                "Ipv4Prefix",
            ),
            Family::V6 => ("UnassignIpv6Addresses", "Ipv6Addresses", "Ipv6Prefix"),
        };
        let (single, whole): (Vec<&IpNet>, Vec<&IpNet>) = blocks
            .iter()
            .partition(|block| block.prefix_len() == block.max_prefix_len());
        let form = Form::new(action, VERSION)
            .with("NetworkInterfaceId", nic)
            .with_list(address, single.iter().map(|block| block.addr().to_string()))
            .with_list(prefix, whole.iter().map(ToString::to_string));
        self.ask(action, form, Some(verified)).await.map(drop)
    }

    /// Returns what these NICs have; those that EC2 does not know are missing.
    ///
    /// # Errors
    /// If EC2 refuses or does not answer.
    pub async fn describe(&self, nics: &[String]) -> Result<Vec<Described>, Ec2Error> {
        const ACTION: &str = "DescribeNetworkInterfaces";
        let mut all = Vec::new();
        for some in nics.chunks(PAGE) {
            let mut next: Option<String> = None;
            for _ in 0..PAGES {
                // By a filter: an ID that does not exist would make EC2 refuse them all.
                let mut form = Form::new(ACTION, VERSION)
                    .with("Filter.1.Name", "network-interface-id")
                    .with_list("Filter.1.Value", some.iter().cloned())
                    .with("MaxResults", &PAGE.to_string());
                if let Some(token) = &next {
                    form = form.with("NextToken", token);
                }
                let text = self.ask(ACTION, form, None).await?;
                let (page, more) = answer::described(&text).map_err(|e| fault(ACTION, e))?;
                all.extend(page);
                next = more;
                if next.is_none() {
                    break;
                }
            }
        }
        Ok(all)
    }

    /// Returns how many addresses a NIC of this instance type may have; `None` if EC2 does not know the type.
    ///
    /// # Errors
    /// If EC2 refuses or does not answer.
    pub async fn limits(&self, instance_type: &str) -> Result<Option<Limits>, Ec2Error> {
        const ACTION: &str = "DescribeInstanceTypes";
        let form = Form::new(ACTION, VERSION)
            .with("Filter.1.Name", "instance-type")
            .with("Filter.1.Value.1", instance_type);
        let text = self.ask(ACTION, form, None).await?;
        answer::limits(&text, instance_type).map_err(|e| fault(ACTION, e))
    }

    /// Sends a request, signed with `verified`, or with the time of now where nothing is changed.
    async fn ask(
        &self,
        action: &'static str,
        form: Form,
        verified: Option<SystemTime>,
    ) -> Result<String, Ec2Error> {
        let exchange = async {
            let now = SystemTime::now();
            let keys = self.credentials.current(now).await?;
            let time = verified.map_or(now, |verified| verified.min(now));
            let request = sign::signed(form, &self.endpoint, &self.region, &keys, time)?;
            let answer = self.transport.send(&self.endpoint, request).await?;
            match answer.status {
                200 => Ok(answer.text),
                status => Err(Problem::Refused(refusal(status, &answer.text))),
            }
        };
        exchange
            .await
            .map_err(|problem: Problem| Ec2Error { action, problem })
    }
}

fn fault(action: &'static str, error: BadAnswer) -> Ec2Error {
    Ec2Error {
        action,
        problem: Problem::Answer(error),
    }
}

#[cfg(test)]
mod tests;
