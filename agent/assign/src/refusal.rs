//! What AWS says when it refuses, and what a person can do then.

use std::fmt;

use crate::xml;

/// A refusal, as AWS tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// AWS' code, as in `RequestLimitExceeded`; empty if there is none.
    pub code: String,
    /// Its text.
    pub text: String,
    /// The request's ID, by which AWS' support finds it.
    pub request: String,
}

/// What kind of refusal it is: what the controller does then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Too many requests, or the service is in trouble: everything waits.
    Throttled,
    /// The NIC has as many addresses as its instance may.
    NicFull,
    /// The subnet has no address, or no whole prefix, left.
    SubnetFull,
    /// The identity may not, or is none.
    Forbidden,
    /// The NIC is not there.
    NoNic,
    /// The signature is too old: this controller was away, and is perhaps no longer the leader.
    Late,
    /// Anything else.
    Other,
}

impl Refusal {
    /// Returns its kind.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self.code.as_str() {
            "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "RequestThrottled"
            | "SlowDown"
            | "Unavailable"
            | "ServiceUnavailable"
            | "InternalError"
            | "InternalFailure" => Reason::Throttled,
            "PrivateIpAddressLimitExceeded" | "Ipv6AddressLimitExceeded" => Reason::NicFull,
            "InsufficientFreeAddressesInSubnet" | "InsufficientCidrBlocks" => Reason::SubnetFull,
            "UnauthorizedOperation"
            | "AuthFailure"
            | "AccessDenied"
            | "AccessDeniedException"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidIdentityToken"
            | "OptInRequired" => Reason::Forbidden,
            "InvalidNetworkInterfaceID.NotFound" | "InvalidNetworkInterfaceId.Malformed" => {
                Reason::NoNic
            }
            "RequestExpired" => Reason::Late,
            _ if self.status == 429 || self.status >= 500 => Reason::Throttled,
            _ => Reason::Other,
        }
    }

    /// Whether it is certain that nothing was done: EC2 refuses too many requests with a status of the 500s, but at once.
    #[must_use]
    pub fn is_without_effect(&self) -> bool {
        self.status < 500 || matches!(self.code.as_str(), "RequestLimitExceeded" | "SlowDown")
    }

    /// Returns what a person can do.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match (self.reason(), self.code.as_str()) {
            (Reason::Throttled, _) => {
                "the account makes more requests to EC2 than it may: the controller waits and tries again"
            }
            (Reason::NicFull, _) => {
                "the instance type allows no more on this NIC: use prefixes (by: prefix), a larger type, or another NIC"
            }
            (Reason::SubnetFull, "InsufficientCidrBlocks") => {
                "the subnet has no contiguous block left: reserve one (a subnet CIDR reservation of type prefix), or use by: address"
            }
            (Reason::SubnetFull, _) => "the subnet has no free address: use a larger one",
            (Reason::Forbidden, _) => {
                "give the controller's role the rights in docs/cloud-controller.md"
            }
            (Reason::NoNic, _) => {
                "the NIC is gone, or in another account or region: check `region`"
            }
            (Reason::Late, _) => {
                "this machine's clock is wrong by more than five minutes, or the controller was paused: check its time"
            }
            (Reason::Other, _) => "see EC2's documentation of this code",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code.is_empty() {
            true => write!(f, "status {}", self.status)?,
            false => write!(f, "{}", self.code)?,
        }
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        if !self.request.is_empty() {
            write!(f, " (request {})", self.request)?;
        }
        Ok(())
    }
}

/// Reads a refusal: EC2's form, STS' form, or anything else, of which the status is kept.
pub(crate) fn refusal(status: u16, text: &str) -> Refusal {
    let mut refusal = Refusal {
        status,
        code: String::new(),
        text: String::new(),
        request: String::new(),
    };
    let Ok(document) = xml::parse(text) else {
        return refusal;
    };
    let short = |text: &str| text.chars().take(500).collect::<String>();
    if let Some(error) = xml::find(document.root(), "Error") {
        refusal.code = xml::text(error, "Code").map(short).unwrap_or_default();
        refusal.text = xml::text(error, "Message").map(short).unwrap_or_default();
    }
    let request = ["RequestID", "RequestId"]
        .into_iter()
        .find_map(|name| xml::find(document.root(), name)?.text());
    refusal.request = request.map(short).unwrap_or_default();
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_understood_and_has_an_advice() {
        let ec2 = |code: &str| {
            format!(
                "<?xml version=\"1.0\"?><Response><Errors><Error><Code>{code}</Code><Message>no</Message></Error>\
                 </Errors><RequestID>r-1</RequestID></Response>"
            )
        };
        for (status, code, reason, word) in [
            (503, "RequestLimitExceeded", Reason::Throttled, "waits"),
            (
                400,
                "PrivateIpAddressLimitExceeded",
                Reason::NicFull,
                "prefix",
            ),
            (
                400,
                "InsufficientFreeAddressesInSubnet",
                Reason::SubnetFull,
                "larger",
            ),
            (
                400,
                "InsufficientCidrBlocks",
                Reason::SubnetFull,
                "reservation",
            ),
            (403, "UnauthorizedOperation", Reason::Forbidden, "rights"),
            (
                400,
                "InvalidNetworkInterfaceID.NotFound",
                Reason::NoNic,
                "region",
            ),
            (400, "RequestExpired", Reason::Late, "clock"),
            (500, "", Reason::Throttled, "waits"),
            (400, "Strange", Reason::Other, "documentation"),
        ] {
            let read = refusal(status, &ec2(code));
            assert_eq!((read.code.as_str(), read.reason()), (code, reason));
            assert!(read.advice().contains(word), "{code}");
            assert!(read.to_string().ends_with(": no (request r-1)"), "{read}");
        }
    }

    #[test]
    fn what_is_no_refusal_of_aws_keeps_its_status() {
        for text in [
            "",
            "<html><body>502",
            "<!DOCTYPE x [<!ENTITY a \"b\">]><x>&a;</x>",
        ] {
            assert_eq!(refusal(502, text).to_string(), "status 502", "{text}");
        }
        let sts = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
                   <Code>AccessDenied</Code><Message>Not authorized</Message></Error><RequestId>7</RequestId></ErrorResponse>";
        let read = refusal(403, sts);
        assert_eq!(read.to_string(), "AccessDenied: Not authorized (request 7)");
        assert_eq!(read.reason(), Reason::Forbidden);
    }
}
