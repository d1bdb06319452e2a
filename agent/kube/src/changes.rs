//! Notifies waiters of changes, by kind.

use futures::future::select_all;
use tokio::sync::watch;

use super::object::Kind;

/// Counts the changes of each kind.
#[derive(Debug)]
pub(super) struct Versions([watch::Sender<u64>; Kind::ALL.len()]);

impl Default for Versions {
    fn default() -> Self {
        Self([const { 0 }; Kind::ALL.len()].map(watch::Sender::new))
    }
}

impl Versions {
    /// Notifies the subscribers of `kind`.
    pub(super) fn bump(&self, kind: Kind) {
        self.0[kind as usize].send_modify(|version| *version += 1);
    }

    /// Subscribes to later changes of these kinds.
    pub(super) fn subscribe(&self, kinds: &[Kind]) -> Changes {
        Changes(
            kinds
                .iter()
                .map(|kind| self.0[*kind as usize].subscribe())
                .collect(),
        )
    }
}

/// Changes of some kinds.
#[derive(Debug)]
pub struct Changes(Vec<watch::Receiver<u64>>);

impl Changes {
    /// Waits for the next change that was not reported yet; several at once count as one.
    ///
    /// # Errors
    /// If no further change can happen.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        let each = self
            .0
            .iter_mut()
            .map(|receiver| Box::pin(receiver.changed()));
        select_all(each).await.0?;
        self.mark_unchanged();
        Ok(())
    }

    /// Marks all changes until now as reported.
    pub fn mark_unchanged(&mut self) {
        self.0.iter_mut().for_each(watch::Receiver::mark_unchanged);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_is_woken_by_its_own_kinds_and_once_by_many_changes() {
        let versions = Versions::default();
        let mut leases = versions.subscribe(&[Kind::Pool, Kind::Lease]);
        for kind in Kind::ALL {
            versions.bump(kind);
            versions.bump(kind);
            let is_told = leases.changed().now_or_never().is_some();
            assert_eq!(
                is_told,
                matches!(kind, Kind::Pool | Kind::Lease),
                "{kind:?}"
            );
            assert!(leases.changed().now_or_never().is_none(), "{kind:?}, again");
        }
        drop(versions);
        assert!(leases.changed().await.is_err());
    }
}
