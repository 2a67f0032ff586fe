//! A limit on how much may be in use at once by tasks of one thread.
//!
//! Invariant: what is in use comes back when its guard is dropped, whatever became of the task.

use super::signal::Signal;
use std::cell::Cell;

/// How much may be in use, and how much of it is not.
pub(crate) struct Limit {
    all: u64,
    left: Cell<u64>,
    freed: Signal,
}

/// What somebody uses; dropping it gives it back.
pub(crate) struct InUse<'a> {
    amount: u64,
    limit: &'a Limit,
}

impl Limit {
    pub(crate) fn of(all: u64) -> Limit {
        Limit {
            all,
            left: Cell::new(all),
            freed: Signal::default(),
        }
    }

    /// Waits until so much may be used. Who wants more than there is gets all of it.
    pub(crate) async fn take(&self, amount: u64) -> InUse<'_> {
        let amount = amount.min(self.all);
        let rest = || self.left.get().checked_sub(amount);
        self.left.set(self.freed.until(rest).await);
        InUse {
            amount,
            limit: self,
        }
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.limit.left.set(self.limit.left.get() + self.amount);
        self.limit.freed.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn who_finds_too_little_waits_until_enough_came_back() {
        let limit = Limit::of(10);
        let first = limit.take(7).now_or_never().expect("there is as much");
        assert!(limit.take(4).now_or_never().is_none());
        let second = limit.take(3).now_or_never().expect("there is as much");
        drop(first);
        drop(second);
        assert!(limit.take(10).now_or_never().is_some());
    }

    #[test]
    fn who_wants_more_than_there_is_has_all_of_it() {
        let limit = Limit::of(10);
        let all = limit.take(11).now_or_never().expect("nobody uses any");
        assert!(limit.take(1).now_or_never().is_none());
        drop(all);
        assert!(limit.take(1).now_or_never().is_some());
    }
}
