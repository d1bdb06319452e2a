//! Whether a controller is the elected one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether this controller does the elected one's work. All clones share it.
#[derive(Clone, Debug, Default)]
pub struct Leading(Arc<AtomicBool>);

impl Leading {
    /// Whether it does.
    #[must_use]
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Does the work, and is the elected one until it ends or is given up.
    pub async fn during<T>(self, work: impl Future<Output = T>) -> T {
        /// The work is dropped where it is when another one is elected.
        struct Ends(Leading);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.0.store(false, Ordering::Relaxed);
            }
        }
        self.0.store(true, Ordering::Relaxed);
        let _ends = Ends(self);
        work.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_not_elected_any_more_says_so() {
        let leading = Leading::default();
        let work = tokio::spawn(leading.clone().during(std::future::pending::<()>()));
        while !leading.is() {
            tokio::task::yield_now().await;
        }
        work.abort();
        let _aborted = work.await;
        assert!(!leading.is());
        leading.clone().during(async {}).await;
        assert!(!leading.is());
    }
}
