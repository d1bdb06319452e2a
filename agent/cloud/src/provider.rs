//! The clouds, and the administrator's choice among them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Detected, Dmi, Endpoint, detect};

/// A cloud whose metadata service tells which addresses each NIC was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Amazon Web Services (EC2).
    Aws,
    /// Alibaba Cloud (ECS).
    Alibaba,
    /// Microsoft Azure.
    Azure,
    /// Google Cloud (Compute Engine).
    Gcp,
    /// Tencent Cloud (CVM).
    Tencent,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Aws,
        Self::Alibaba,
        Self::Azure,
        Self::Gcp,
        Self::Tencent,
    ];

    /// Returns its name in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Alibaba => "alibaba",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
            Self::Tencent => "tencent",
        }
    }

    /// Returns its name for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Aws => "AWS",
            Self::Alibaba => "Alibaba Cloud",
            Self::Azure => "Azure",
            Self::Gcp => "Google Cloud",
            Self::Tencent => "Tencent Cloud",
        }
    }

    /// Returns where its metadata service is: an address, so that no name server is needed. Tencent Cloud documents a
    /// name only (`metadata.tencentyun.com`), which is this address.
    #[must_use]
    pub const fn endpoint(self) -> Endpoint {
        match self {
            Self::Aws | Self::Azure | Self::Gcp => Endpoint::v4([169, 254, 169, 254]),
            Self::Alibaba => Endpoint::v4([100, 100, 100, 200]),
            Self::Tencent => Endpoint::v4([169, 254, 0, 23]),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// A cloud that is recognised, but whose metadata service does not tell which addresses a NIC was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unable {
    /// OpenStack: `network_data.json` has the first address of a family at most, and no allowed address pairs.
    OpenStack,
    /// Huawei Cloud and Open Telekom Cloud, with OpenStack's form.
    Huawei,
    /// Oracle Cloud: one `privateIp` a VNIC in all answers that were seen.
    Oracle,
}

impl fmt::Display for Unable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenStack => "OpenStack",
            Self::Huawei => "Huawei Cloud",
            Self::Oracle => "Oracle Cloud",
        })
    }
}

/// The administrator's choice: `auto`, `none`, or a [`Provider`] by its name.
///
/// # Examples
///
/// ```
/// use ebbtide_cloud::{Choice, Provider};
///
/// assert_eq!("aws".parse(), Ok(Choice::Provider(Provider::Aws)));
/// assert_eq!(Choice::default().to_string(), "auto");
/// let error = "amazon".parse::<Choice>().expect_err("no such cloud");
/// assert!(error.to_string().contains("auto, aws, alibaba"), "{error}");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Choice {
    /// By what the firmware says ([`detect`]).
    #[default]
    Auto,
    /// No metadata service is ever asked.
    None,
    /// This one, whatever the firmware says.
    Provider(Provider),
}

/// A text that is not a [`Choice`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no cloud: one of auto, aws, alibaba, azure, gcp, tencent, none is expected")]
pub struct NoChoice(String);

/// Why there is no cloud to ask. Each says the way that remains.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoProvider {
    /// The administrator wants none.
    #[error(
        "the agent's configuration has `cloud: none`: declare SpiderIPPools, or change that setting"
    )]
    TurnedOff,
    /// The cloud cannot tell.
    #[error(
        "{0}'s metadata service does not tell which addresses a NIC was given: declare SpiderIPPools"
    )]
    Unable(Unable),
    /// The firmware names no cloud that is known.
    #[error(
        "the firmware names no cloud that is known ({0}): set `cloud` in the agent's configuration if this is one, or \
         declare SpiderIPPools"
    )]
    Unknown(String),
}

impl Choice {
    /// Returns the cloud to ask.
    ///
    /// # Errors
    /// If there is none.
    pub fn provider(self, dmi: &Dmi) -> Result<Provider, NoProvider> {
        match self {
            Self::Provider(provider) => Ok(provider),
            Self::None => Err(NoProvider::TurnedOff),
            Self::Auto => match detect(dmi) {
                Detected::Cloud(provider) => Ok(provider),
                Detected::Unable(which) => Err(NoProvider::Unable(which)),
                Detected::Unknown => Err(NoProvider::Unknown(dmi.to_string())),
            },
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Provider(provider) => provider.as_str(),
        })
    }
}

impl FromStr for Choice {
    type Err = NoChoice;

    fn from_str(text: &str) -> Result<Self, NoChoice> {
        let of_provider = |provider: &Provider| provider.as_str() == text;
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => Provider::ALL
                .into_iter()
                .find(of_provider)
                .map(Self::Provider)
                .ok_or_else(|| NoChoice(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Choice {
    type Error = NoChoice;

    fn try_from(text: String) -> Result<Self, NoChoice> {
        text.parse()
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_settings_are_read_as_they_are_written() {
        let all = Provider::ALL.map(Choice::Provider);
        for choice in all.into_iter().chain([Choice::Auto, Choice::None]) {
            assert_eq!(choice.to_string().parse(), Ok(choice));
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(json, format!("\"{choice}\""));
            assert_eq!(serde_json::from_str::<Choice>(&json).unwrap(), choice);
        }
        for provider in Provider::ALL {
            let json = serde_json::to_string(&provider).unwrap();
            assert_eq!(json, format!("\"{}\"", provider.as_str()));
        }
        for text in ["", "AWS", "openstack", "aws "] {
            assert!(text.parse::<Choice>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn where_there_is_nobody_to_ask_the_way_that_remains_is_said() {
        let oracle = Dmi {
            chassis_asset_tag: "OracleCloud.com".into(),
            ..Dmi::default()
        };
        let dell = Dmi {
            sys_vendor: "Dell\u{1b} Inc.".into(),
            ..Dmi::default()
        };
        assert_eq!(
            Choice::Provider(Provider::Gcp).provider(&oracle),
            Ok(Provider::Gcp),
            "declared wins"
        );
        for (choice, dmi, part) in [
            (Choice::None, &oracle, "cloud: none"),
            (Choice::Auto, &oracle, "Oracle Cloud's metadata service"),
            (Choice::Auto, &dell, r"Dell\u{1b} Inc."),
        ] {
            let error = choice.provider(dmi).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(error.contains("declare SpiderIPPools"), "{error}");
        }
    }
}
