//! How the double lies, delays and fails.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Cloud;

/// The settings of one node's metadata. The default is a service at its best.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// The clouds whose dialects it speaks; the paths of others are not found.
    pub speaks: Vec<Cloud>,
    /// The time until each answer.
    pub delay: Duration,
    /// The time after which it tells of an assignment, although the VPC delivers at once.
    pub lag: Duration,
    /// The time for which it still tells of what was withdrawn.
    pub ghost: Duration,
    /// Answers from two moments in one reading.
    pub torn: Option<Torn>,
    /// What happens to some requests. The first one that fits counts.
    pub faults: Vec<Fault>,
    /// TTL of the answers, in all dialects; AWS' hop limit is that of the token's alone, without which there is nothing.
    pub hop_limit: Option<u8>,
    /// The longest life of a token, whatever was requested.
    pub token_life: Duration,
    /// Whether Alibaba Cloud's service demands tokens.
    pub hardened: bool,
    /// Whether lists of NICs are in the reverse order; no service guarantees one.
    pub reversed: bool,
    /// How much is told of a NIC, by its name, if not all.
    pub nics: BTreeMap<String, Listing>,
    /// AWS' IDs of NICs, by their names, where another service has given them.
    pub ids: BTreeMap<String, String>,
    /// Whether Azure's service tells IPv6 subnets. In the one capture of a real one it does not; cloud-init fails on two
    /// IPv6 addresses of a NIC without.
    pub azure_v6_subnets: bool,
    /// How many requests a second Azure's service answers before it says 429.
    pub azure_rate: usize,
}

/// How much is told of a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// It is not listed: not yet, or it is detached.
    Hidden,
    /// Its MAC is listed, but all its keys are missing, as for minutes after a NIC of AWS was detached. In dialects of
    /// JSON it has no addresses.
    Bare,
}

/// A reading that is torn: its answers are not of one moment.
#[derive(Clone, Debug)]
pub enum Torn {
    /// The state of `at` is told until a request with `path` in its path was answered, then the present.
    Until {
        /// The moment whose state is told.
        at: Instant,
        /// A part of a path.
        path: String,
    },
    /// Every other answer is of the state of this moment.
    Alternating(Instant),
}

impl Torn {
    /// Tells the present state until a request with this in its path was answered, whatever changes meanwhile.
    #[must_use]
    pub fn until(path: impl Into<String>) -> Self {
        Self::Until {
            at: Instant::now(),
            path: path.into(),
        }
    }

    /// Tells the present state in every other answer, whatever changes meanwhile.
    #[must_use]
    pub fn alternating() -> Self {
        Self::Alternating(Instant::now())
    }
}

/// What happens to requests with something in their paths, besides or instead of the true answer.
#[derive(Clone, Debug)]
pub struct Fault {
    /// A part of the path or query; empty for all.
    pub path: String,
    /// What happens.
    pub does: Does,
    /// How many more times it happens; always without.
    pub times: Option<usize>,
}

impl Fault {
    /// A fault that happens to each such request.
    #[must_use]
    pub fn always(path: impl Into<String>, does: Does) -> Self {
        Self {
            path: path.into(),
            does,
            times: None,
        }
    }

    /// A fault that happens so many times.
    #[must_use]
    pub fn times(path: impl Into<String>, does: Does, times: usize) -> Self {
        Self {
            times: Some(times),
            ..Self::always(path, does)
        }
    }

    /// Whether it happens to a request with this path. If so, it is one time less from now on.
    fn strikes(&mut self, path: &str) -> bool {
        if !path.contains(&self.path) || self.times == Some(0) {
            return false;
        }
        self.times = self.times.map(|times| times - 1);
        true
    }
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// It answers with this status.
    Status(u16),
    /// It never answers.
    Hang,
    /// It answers 200 with nothing.
    Empty,
    /// It answers 200 with bytes that are no text.
    Garbage,
    /// It answers with the first half of the true body, as if it were all.
    Half,
    /// It answers with the true body and a megabyte after it.
    Endless,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            speaks: Cloud::ALL.to_vec(),
            delay: Duration::ZERO,
            lag: Duration::ZERO,
            ghost: Duration::ZERO,
            torn: None,
            faults: Vec::new(),
            hop_limit: None,
            token_life: Duration::from_secs(21_600),
            hardened: false,
            reversed: false,
            nics: BTreeMap::new(),
            ids: BTreeMap::new(),
            azure_v6_subnets: false,
            // Microsoft documents it.
            azure_rate: 5,
        }
    }
}

impl Knobs {
    /// Returns what happens to a request with this path, and counts it.
    pub(super) fn strike(&mut self, path: &str) -> Option<Does> {
        let mut faults = self.faults.iter_mut();
        faults.find_map(|fault| fault.strikes(path).then_some(fault.does))
    }

    /// Returns the moment whose state a request is told, the `number`th of its node.
    pub(super) fn moment(&self, number: usize) -> Instant {
        match &self.torn {
            Some(Torn::Until { at, .. }) => *at,
            Some(Torn::Alternating(at)) if number.is_multiple_of(2) => *at,
            _ => Instant::now(),
        }
    }

    /// Notes that a request with this path was answered.
    pub(super) fn answered(&mut self, path: &str) {
        if let Some(Torn::Until { path: end, .. }) = &self.torn
            && path.contains(end.as_str())
        {
            self.torn = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_as_often_as_it_should_and_the_next_one_then() {
        let mut knobs = Knobs {
            faults: vec![
                Fault::times("macs", Does::Status(404), 2),
                Fault::always("", Does::Hang),
            ],
            ..Knobs::default()
        };
        let seen = ["/macs/", "/mac", "/macs/", "/macs/"].map(|path| knobs.strike(path));
        assert_eq!(
            seen,
            [Does::Status(404), Does::Hang, Does::Status(404), Does::Hang].map(Some)
        );
    }

    #[test]
    fn a_torn_reading_is_of_the_past_until_its_path_was_answered() {
        let mut knobs = Knobs {
            torn: Some(Torn::until("local-ipv4s")),
            ..Knobs::default()
        };
        let past = knobs.moment(0);
        knobs.answered("/macs/");
        assert_eq!(knobs.moment(1), past);
        knobs.answered("/macs/x/local-ipv4s");
        assert!(knobs.moment(2) > past);

        knobs.torn = Some(Torn::alternating());
        let past = knobs.moment(0);
        assert!(knobs.moment(1) > past);
        assert_eq!(knobs.moment(2), past);
    }
}
