//! The settings of what the agent learns from a cloud's metadata service.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The bounds of `metadataSeconds`: a service refuses who asks too often, and what was read an hour ago says little.
pub(super) const SECONDS: std::ops::RangeInclusive<u64> = 5..=3600;

/// The cloud whose metadata service the agent asks.
///
/// # Examples
///
/// ```
/// use ebbtide_types::settings::CloudSetting;
///
/// assert_eq!(CloudSetting::default(), CloudSetting::Auto);
/// assert_eq!(CloudSetting::Alibaba.to_string(), "alibaba");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloudSetting {
    /// The one that the machine's firmware names.
    #[default]
    Auto,
    /// Amazon Web Services.
    Aws,
    /// Alibaba Cloud.
    Alibaba,
    /// Microsoft Azure.
    Azure,
    /// Google Cloud.
    Gcp,
    /// Tencent Cloud.
    Tencent,
    /// None is asked, whatever the firmware says.
    None,
}

impl CloudSetting {
    /// Returns the text of the configuration file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Aws => "aws",
            Self::Alibaba => "alibaba",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
            Self::Tencent => "tencent",
            Self::None => "none",
        }
    }
}

impl fmt::Display for CloudSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the first of these settings that cannot be used, and why.
pub(super) fn wrong(endpoint: Option<&str>, seconds: u64) -> Option<(&'static str, String)> {
    if let Some(url) = endpoint {
        let rest = url.strip_prefix("http://");
        let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
        let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic() && c != '@');
        if !host.is_some_and(|host| !host.is_empty() && !host.starts_with(':')) || !is_plain(url) {
            let reason = "is not a metadata service's URL; write it as in http://169.254.169.254, without a user";
            return Some(("metadataEndpoint", reason.to_owned()));
        }
    }
    if !SECONDS.contains(&seconds) {
        let (first, last) = (SECONDS.start(), SECONDS.end());
        return Some((
            "metadataSeconds",
            format!("{seconds} is not between {first} and {last} seconds"),
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::settings::Settings;

    use super::*;

    #[test]
    fn a_cloud_is_named_or_found() {
        for cloud in [
            CloudSetting::Auto,
            CloudSetting::Aws,
            CloudSetting::Alibaba,
            CloudSetting::Azure,
            CloudSetting::Gcp,
            CloudSetting::Tencent,
            CloudSetting::None,
        ] {
            let settings = Settings::parse(&format!("cloud: {cloud}\n")).unwrap();
            assert_eq!(settings.cloud, cloud);
        }
        let settings = Settings::parse("metadataEndpoint: 'http://[fd00:ec2::254]'").unwrap();
        assert_eq!(
            settings.metadata_endpoint.as_deref(),
            Some("http://[fd00:ec2::254]")
        );
        let defaults = Settings::parse("cloud:\nmetadataEndpoint: ''\n").unwrap();
        assert_eq!(
            (
                defaults.cloud,
                defaults.metadata_endpoint,
                defaults.metadata_seconds
            ),
            (CloudSetting::Auto, None, 30)
        );
        for seconds in [5, 3600] {
            let text = format!("metadataSeconds: {seconds}");
            assert_eq!(Settings::parse(&text).unwrap().metadata_seconds, seconds);
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_name() {
        for (text, field, said) in [
            ("cloud: openstack", "cloud", "openstack"),
            (
                "metadataSeconds: 4",
                "metadataSeconds",
                "between 5 and 3600",
            ),
            ("metadataSeconds: 3601", "metadataSeconds", "3601"),
            (
                "metadataEndpoint: 169.254.169.254",
                "metadataEndpoint",
                "http://",
            ),
            (
                "metadataEndpoint: 'https://a'",
                "metadataEndpoint",
                "http://",
            ),
            ("metadataEndpoint: 'http://'", "metadataEndpoint", "http://"),
            (
                "metadataEndpoint: 'http://:80/'",
                "metadataEndpoint",
                "http://",
            ),
            (
                "metadataEndpoint: 'http://u:p@a/'",
                "metadataEndpoint",
                "without a user",
            ),
            (
                "metadataEndpoint: 'http://a b'",
                "metadataEndpoint",
                "http://",
            ),
        ] {
            let (found, reason) = Settings::parse(text).unwrap_err();
            assert_eq!(found, field, "{text}: {reason}");
            assert!(reason.contains(said), "{text}: {reason}");
        }
    }
}
