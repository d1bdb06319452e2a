//! Which requests came.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Cloud;

/// A request, as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// The moment at which it came.
    pub at: Instant,
    /// The node that sent it.
    pub node: String,
    /// The address that it came from.
    pub source: SocketAddr,
    /// The cloud whose dialect it is in; `None` if it is of none.
    pub cloud: Option<Cloud>,
    /// The method.
    pub method: String,
    /// The path, and the query after it.
    pub path: String,
    /// The status of the answer; `None` as long as there is none.
    pub status: Option<u16>,
}

/// All requests.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    requests: Vec<Request>,
    /// How many were forgotten.
    forgotten: usize,
}

impl Log {
    /// Notes a request. Returns its number in all, and how many came from its node before.
    pub(super) fn add(&self, request: Request) -> (usize, usize) {
        let mut state = self.lock();
        let before = state
            .requests
            .iter()
            .filter(|other| other.node == request.node);
        let before = before.count();
        state.requests.push(request);
        (state.forgotten + state.requests.len() - 1, before)
    }

    /// Notes the status of a request's answer.
    pub(super) fn answered(&self, number: usize, status: u16) {
        let mut state = self.lock();
        let index = number.checked_sub(state.forgotten);
        if let Some(request) = index.and_then(|index| state.requests.get_mut(index)) {
            request.status = Some(status);
        }
    }

    pub(super) fn all(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    pub(super) fn forget(&self) {
        let mut state = self.lock();
        state.forgotten += state.requests.len();
        state.requests.clear();
    }

    /// Returns how many requests of a node to a cloud came in the last second.
    pub(super) fn in_the_last_second(&self, node: &str, cloud: Cloud) -> usize {
        let state = self.lock();
        state
            .requests
            .iter()
            .rev()
            .take_while(|request| request.at.elapsed() < SECOND)
            .filter(|request| request.node == node && request.cloud == Some(cloud))
            .count()
    }

    pub(super) fn busiest_second(&self, node: &str) -> usize {
        let moments: Vec<Instant> = self
            .lock()
            .requests
            .iter()
            .filter(|request| request.node == node)
            .map(|request| request.at)
            .collect();
        busiest_second(&moments)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Returns the largest number of moments, which are in order, within one second.
fn busiest_second(moments: &[Instant]) -> usize {
    let within = |first: usize| {
        let rest = moments[first..].iter();
        rest.take_while(|moment| **moment - moments[first] < SECOND)
            .count()
    };
    (0..moments.len()).map(within).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_second_begins_anywhere() {
        let start = Instant::now();
        let moments: Vec<Instant> = [0, 900, 1000, 1800, 1950, 5000]
            .map(|milliseconds| start + Duration::from_millis(milliseconds))
            .to_vec();
        assert_eq!(busiest_second(&moments), 3);
        assert_eq!(busiest_second(&[]), 0);
    }
}
