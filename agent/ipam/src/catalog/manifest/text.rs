//! The formats of texts in manifests: the patterns of the CRDs, and YAML 1.1's words for true and false.
//!
//! Patterns are in OpenAPI's syntax, so that every API server from 1.20 on refuses what cannot be
//! an address. They check the form of a text, not whether its parts fit each other: the policy
//! (`deploy/policy.yaml`) and the agent check that.

use std::fmt;

use serde::{Deserializer, de};

macro_rules! ipv4 {
    () => {
        r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    };
}

// Groups and colons: the number of groups is left to the policy and the agent.
macro_rules! ipv6 {
    () => {
        concat!("([0-9A-Fa-f]{0,4}:){2,8}(", ipv4!(), "|[0-9A-Fa-f]{0,4})")
    };
}

macro_rules! prefix {
    () => {
        concat!(
            "(",
            ipv4!(),
            "/(3[0-2]|[12]?[0-9])|",
            ipv6!(),
            "/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))"
        )
    };
}

macro_rules! address {
    () => {
        concat!("(", ipv4!(), "|", ipv6!(), ")")
    };
}

/// An address.
pub(super) const ADDRESS: &str = concat!("^", address!(), "$");
/// An address, or nothing: an empty text counts as absent.
pub(super) const ADDRESS_OR_NONE: &str = concat!("^(|", address!(), ")$");
/// A prefix.
pub(super) const PREFIX: &str = concat!("^", prefix!(), "$");
/// A prefix or an address.
pub(super) const DESTINATION: &str = concat!("^(", prefix!(), "|", address!(), ")$");
/// An address, or two with `-` between.
pub(super) const RANGE: &str = concat!("^ *", address!(), "( *- *", address!(), ")? *$");
/// A name that the kernel accepts for an interface.
pub(super) const INTERFACE: &str = r"^[^/:\s]{1,15}$";
/// The same, or nothing.
pub(super) const INTERFACE_OR_NONE: &str = r"^[^/:\s]{0,15}$";
/// A network, with or without its namespace.
pub(super) const NETWORK: &str =
    r"^([A-Za-z0-9][-A-Za-z0-9_.]*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
/// A pool's name, or a pattern.
pub(super) const POOL: &str = r"^[-A-Za-z0-9_.*?\[\]^]{1,253}$";
/// The JSON of a CNI plugin's configuration, as far as a pattern can tell.
pub(super) const JSON_OBJECT: &str = r"^\s*\{[\s\S]*\}\s*$";
/// The same, or nothing.
pub(super) const JSON_OBJECT_OR_NONE: &str = r"^\s*(\{[\s\S]*\}\s*)?$";
/// The first two bytes of a unicast MAC address, or nothing.
pub(super) const MAC_PREFIX: &str = "^([0-9A-Fa-f][02468ACEace]:[0-9A-Fa-f]{2})?$";

/// Parses true or false, also in YAML 1.1's words (`yes`, `on`), which kubectl reads.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    struct Flag;
    impl<'de> de::Visitor<'de> for Flag {
        type Value = Option<bool>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a boolean")
        }

        fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
            Ok(Some(value))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "True" | "TRUE" => {
                    Ok(Some(true))
                }
                "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "False" | "FALSE" => {
                    Ok(Some(false))
                }
                _ => Err(E::invalid_type(de::Unexpected::Str(text), &self)),
            }
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
            inner.deserialize_any(Self)
        }
    }
    deserializer.deserialize_option(Flag)
}
