//! Limits of a pod's bandwidth, and how people write them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The smallest and the largest rate, in bits per second: 1k and 1P, as the kubelet has them
/// (`validateBandwidthIsReasonable`, pkg/util/bandwidth/utils.go).
pub const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The smallest burst, in bits: the largest packet that the kernel merges, 64 KiB (`GSO_LEGACY_MAX_SIZE`,
/// include/linux/netdevice.h).
const LEAST_BURST: u64 = 64 * 1024 * 8;

/// The largest burst out of a pod is what the rate carries in this part of a second.
const EGRESS_PART: u64 = 10;

/// The same into a pod. Longer than the 200 ms after which TCP at the soonest sends again what was lost as a whole
/// (`TCP_RTO_MIN`, include/net/tcp.h): in a network with short round trips a sender cannot send as slowly as the limit, but
/// only pause, and what the limit allows in the pause must not be lost.
const INGRESS_PART: u64 = 4;

/// Why a limit cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BandwidthError {
    /// The text is not a quantity of Kubernetes'.
    #[error(
        "{0:?} is no quantity: write bits per second as a number with k, M, G, T, P, Ki, Mi, Gi, Ti, Pi or without"
    )]
    NoQuantity(String),
    /// The number is not a whole one, or negative.
    #[error("{0} is no whole number of bits")]
    NoNumber(String),
    /// The rate is outside of [`RATES`].
    #[error("{0} bits per second is not between 1k and 1P")]
    Range(u64),
    /// There is a burst, and no rate that it could belong to.
    #[error("a burst of {0} bits has no rate")]
    BurstAlone(u64),
}

/// The limit of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// Bits per second, within [`RATES`].
    pub bits_per_second: u64,
    /// Bits that may pass at once after a pause.
    pub burst_bits: u64,
}

impl Rate {
    /// Makes a limit of what a pod sends from a request, in bits: none of a rate of zero.
    ///
    /// A burst is at most what the rate carries in 100 ms, as runtimes that know no burst write the largest number that
    /// there is, and at least 64 KiB. Without a burst it is that most.
    ///
    /// # Errors
    /// If the rate is out of range, or there is a burst without a rate.
    ///
    /// # Examples
    ///
    /// ```
    /// use ebbtide_types::bandwidth::Rate;
    ///
    /// let rate = Rate::egress(100_000_000, Some(i32::MAX as u64))?.unwrap();
    /// assert_eq!(rate.burst_bits, 10_000_000);
    /// assert_eq!(Rate::egress(0, None)?, None);
    /// # Ok::<(), ebbtide_types::bandwidth::BandwidthError>(())
    /// ```
    pub fn egress(rate: u64, burst: Option<u64>) -> Result<Option<Self>, BandwidthError> {
        Self::new(rate, burst, EGRESS_PART)
    }

    /// As [`Rate::egress`], of what a pod receives. A burst is at most what the rate carries in 250 ms.
    ///
    /// # Errors
    /// As [`Rate::egress`].
    pub fn ingress(rate: u64, burst: Option<u64>) -> Result<Option<Self>, BandwidthError> {
        Self::new(rate, burst, INGRESS_PART)
    }

    fn new(
        bits_per_second: u64,
        burst_bits: Option<u64>,
        part: u64,
    ) -> Result<Option<Self>, BandwidthError> {
        if bits_per_second == 0 {
            return match burst_bits {
                None | Some(0) => Ok(None),
                Some(burst) => Err(BandwidthError::BurstAlone(burst)),
            };
        }
        if !RATES.contains(&bits_per_second) {
            return Err(BandwidthError::Range(bits_per_second));
        }
        let most = (bits_per_second / part).max(LEAST_BURST);
        let burst = burst_bits.filter(|burst| *burst != 0).unwrap_or(most);
        Ok(Some(Self {
            bits_per_second,
            burst_bits: burst.clamp(LEAST_BURST, most),
        }))
    }

    /// Returns how long the rate takes for the burst, in nanoseconds.
    #[must_use]
    pub const fn burst_nanoseconds(&self) -> u64 {
        let bits = self.burst_bits as u128 * 1_000_000_000;
        match bits.checked_div(self.bits_per_second as u128) {
            Some(nanoseconds) if nanoseconds <= u64::MAX as u128 => nanoseconds as u64,
            _ => 0,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}bit/s", Short(self.bits_per_second))
    }
}

/// A number with the largest prefix that keeps it whole.
struct Short(u64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut number = self.0;
        let mut prefixes = ["", "k", "M", "G", "T", "P"].into_iter();
        let mut prefix = prefixes.next().unwrap_or_default();
        while number != 0 && number.is_multiple_of(1000) {
            let Some(next) = prefixes.next() else { break };
            (number, prefix) = (number / 1000, next);
        }
        write!(f, "{number} {prefix}")
    }
}

/// The limits of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Out of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
    /// Into the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
}

impl Bandwidth {
    /// Returns these limits, if there is one.
    #[must_use]
    pub const fn of(egress: Option<Rate>, ingress: Option<Rate>) -> Option<Self> {
        match (egress, ingress) {
            (None, None) => None,
            _ => Some(Self { egress, ingress }),
        }
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.egress, self.ingress) {
            (Some(egress), Some(ingress)) => write!(f, "egress {egress}, ingress {ingress}"),
            (Some(egress), None) => write!(f, "egress {egress}"),
            (None, Some(ingress)) => write!(f, "ingress {ingress}"),
            (None, None) => f.write_str("none"),
        }
    }
}

/// Parses a quantity of Kubernetes' (`ParseQuantity`, apimachinery/pkg/api/resource), and rounds it up.
///
/// # Errors
/// If it is none, is negative, or has more digits than anybody writes.
///
/// # Examples
///
/// ```
/// use ebbtide_types::bandwidth::quantity;
///
/// assert_eq!(quantity("10M"), Ok(10_000_000));
/// assert_eq!(quantity("1.5Ki"), Ok(1536));
/// assert!(quantity("10 Mbit").is_err());
/// ```
pub fn quantity(text: &str) -> Result<u64, BandwidthError> {
    parse(text).ok_or_else(|| BandwidthError::NoQuantity(text.to_owned()))
}

fn parse(text: &str) -> Option<u64> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let digits = [whole, part.trim_end_matches('0')].concat();
    let places = digits.len() - whole.len();
    let digits: u128 = match digits.as_str() {
        "" => 0,
        digits => digits.parse().ok()?,
    };
    let (times, over) = scale(suffix)?;
    let over = over.checked_mul(10_u128.checked_pow(places.try_into().ok()?)?)?;
    let value = digits.checked_mul(times)?.div_ceil(over);
    value.try_into().ok()
}

/// Returns the factor and the divisor of a suffix.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let decimal = |power| Some((10_u128.checked_pow(power)?, 1));
    let binary = |power| Some((1_u128 << (10 * power), 1));
    match suffix {
        "" => decimal(0),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        other => {
            let exponent = other.strip_prefix(['e', 'E'])?;
            match exponent.strip_prefix('-') {
                Some(power) => Some((1, decimal(unsigned(power)?)?.0)),
                None => decimal(unsigned(exponent.strip_prefix('+').unwrap_or(exponent))?),
            }
        }
    }
}

/// Parses digits alone: `parse` accepts a sign.
fn unsigned(digits: &str) -> Option<u32> {
    let all = digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1k", Some(1_000)),
            ("10M", Some(10_000_000)),
            ("+10M", Some(10_000_000)),
            ("1.5G", Some(1_500_000_000)),
            (".5M", Some(500_000)),
            ("5.M", Some(5_000_000)),
            ("1Ki", Some(1024)),
            ("2Gi", Some(2 << 30)),
            ("1e3", Some(1_000)),
            ("1E3", Some(1_000)),
            ("1E+3", Some(1_000)),
            ("15e-1", Some(2)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1P", Some(1_000_000_000_000_000)),
            ("100m", Some(1)),
            ("1000000u", Some(1)),
            ("1.0000000000000000000000000000000000000000000000", Some(1)),
            ("", None),
            (".", None),
            ("-1", None),
            ("M", None),
            ("10K", None),
            ("10Mb", None),
            ("10 M", None),
            (" 10M", None),
            ("1.2.3", None),
            ("1e", None),
            ("1e+-3", None),
            ("1e99", None),
            ("1e-99", None),
            ("20E", None),
            ("0x10", None),
            ("١", None),
            ("10Mé", None),
        ] {
            assert_eq!(quantity(text).ok(), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic_and_what_is_read_is_read_again(
            text in r"[-+]?[0-9]{0,22}(\.[0-9]{0,22})?[-+eEkKMGTPimnu é\x00]{0,3}[0-9]{0,3}",
            burst in any::<u64>(),
        ) {
            if let Ok(number) = quantity(&text) {
                prop_assert_eq!(quantity(&number.to_string()), Ok(number));
                if let Ok(Some(rate)) = Rate::egress(number, Some(burst)) {
                    prop_assert!(rate.burst_nanoseconds() > 0 && RATES.contains(&number));
                }
            }
        }
    }

    #[test]
    fn a_burst_is_between_a_packet_and_what_the_rate_carries_in_a_moment() {
        const UNLIMITED: u64 = i32::MAX as u64;
        for (rate, burst, expected) in [
            (100_000_000, None, 10_000_000),
            (100_000_000, Some(0), 10_000_000),
            (100_000_000, Some(UNLIMITED), 10_000_000),
            (100_000_000, Some(u64::MAX), 10_000_000),
            (100_000_000, Some(1_000_000), 1_000_000),
            (100_000_000, Some(1), LEAST_BURST),
            (1_000_000, Some(UNLIMITED), LEAST_BURST),
            (1_000, None, LEAST_BURST),
        ] {
            let made = Rate::egress(rate, burst).unwrap().unwrap();
            assert_eq!(made.burst_bits, expected, "{rate} {burst:?}");
            let into = Rate::ingress(rate, burst).unwrap().unwrap();
            let longer = if expected == 10_000_000 {
                25_000_000
            } else {
                expected
            };
            assert_eq!(into.burst_bits, longer, "{rate} {burst:?}");
        }
        assert_eq!(Rate::egress(0, Some(0)), Ok(None));
        for (rate, burst, error) in [
            (999, None, BandwidthError::Range(999)),
            (0, Some(5), BandwidthError::BurstAlone(5)),
            (
                1_000_000_000_000_001,
                None,
                BandwidthError::Range(1_000_000_000_000_001),
            ),
        ] {
            assert_eq!(Rate::egress(rate, burst), Err(error));
        }
    }

    #[test]
    fn limits_read_as_people_write_them() {
        let rate = |rate| Rate::egress(rate, None).unwrap();
        for (egress, ingress, text) in [
            (10_000_000, 0, "egress 10 Mbit/s"),
            (0, 1_500_000, "ingress 1500 kbit/s"),
            (1_000_000_000, 1_024, "egress 1 Gbit/s, ingress 1024 bit/s"),
        ] {
            let limits = Bandwidth::of(rate(egress), rate(ingress)).unwrap();
            assert_eq!(limits.to_string(), text);
        }
        assert_eq!(Bandwidth::of(rate(0), rate(0)), None);
    }
}
