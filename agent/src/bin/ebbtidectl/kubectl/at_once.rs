//! Several calls at once, but not as many as there are nodes.

use std::thread;

/// How many calls run at once.
pub(super) const AT_ONCE: usize = 8;

/// Runs work for each item, some at once, and returns the results in the order of the items.
pub(super) fn some_at_once<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> Vec<anyhow::Result<R>> {
    let mut results = Vec::with_capacity(items.len());
    for some in items.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> = some
                .iter()
                .map(|item| scope.spawn(move || work(item)))
                .collect();
            results.extend(running.into_iter().map(|one| {
                one.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of this program ended")))
            }));
        });
    }
    results
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_more_than_some_run_at_once_and_one_failure_is_one_result() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let items: Vec<usize> = (0..3 * AT_ONCE).collect();
        let results = some_at_once(&items, |item| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            assert_ne!(*item, 3, "a panic");
            anyhow::ensure!(*item != 5, "an error");
            Ok(2 * item)
        });
        assert!(most.into_inner() <= AT_ONCE);
        for (item, result) in items.iter().zip(&results) {
            match item {
                3 | 5 => assert!(result.is_err(), "{item}"),
                _ => assert_eq!(*result.as_ref().unwrap(), 2 * item),
            }
        }
        assert_eq!(results.len(), items.len());
    }
}
