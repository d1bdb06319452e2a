//! The clouds, and which of them is asked.

use std::fmt;

use ebbtide_types::settings::CloudSetting;
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

impl Provider {
    /// Returns the cloud to ask: the one of the agent's configuration, or the one that the firmware names.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(setting: CloudSetting, dmi: &Dmi) -> Result<Self, NoProvider> {
        match setting {
            CloudSetting::Aws => Ok(Self::Aws),
            CloudSetting::Alibaba => Ok(Self::Alibaba),
            CloudSetting::Azure => Ok(Self::Azure),
            CloudSetting::Gcp => Ok(Self::Gcp),
            CloudSetting::Tencent => Ok(Self::Tencent),
            CloudSetting::None => Err(NoProvider::TurnedOff),
            CloudSetting::Auto => match detect(dmi) {
                Detected::Cloud(provider) => Ok(provider),
                Detected::Unable(which) => Err(NoProvider::Unable(which)),
                Detected::Unknown => Err(NoProvider::Unknown(dmi.to_string())),
            },
        }
    }
}

impl From<Provider> for CloudSetting {
    fn from(provider: Provider) -> Self {
        match provider {
            Provider::Aws => Self::Aws,
            Provider::Alibaba => Self::Alibaba,
            Provider::Azure => Self::Azure,
            Provider::Gcp => Self::Gcp,
            Provider::Tencent => Self::Tencent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_that_is_configured_is_asked_whatever_the_firmware_says() {
        let oracle = Dmi {
            chassis_asset_tag: "OracleCloud.com".into(),
            ..Dmi::default()
        };
        for provider in Provider::ALL {
            assert_eq!(Provider::find(provider.into(), &oracle), Ok(provider));
            let name = CloudSetting::from(provider).to_string();
            assert_eq!(serde_json::to_value(provider).unwrap(), name);
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
        for (setting, dmi, part) in [
            (CloudSetting::None, &oracle, "cloud: none"),
            (
                CloudSetting::Auto,
                &oracle,
                "Oracle Cloud's metadata service",
            ),
            (CloudSetting::Auto, &dell, r"Dell\u{1b} Inc."),
        ] {
            let error = Provider::find(setting, dmi).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(error.contains("declare SpiderIPPools"), "{error}");
        }
    }
}
