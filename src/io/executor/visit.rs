//! The executor as a guest: it lives in a task of another runtime, which polls it and has its turn
//! between two visits.
//!
//! Invariants:
//! 1. No wake-up is lost: the executor counts as parked from a visit that found nothing more on, so
//!    that a post kicks; after one that left something ready the host visits again unasked.
//! 2. The seat is held during a visit only, so that what wakes between two visits is posted, and
//!    kicks, whichever thread it is on.
//! 3. A visit that left something ready is not the end of its pass: the host's turn counts to it.

use super::{Executor, SEAT, Seated};
use crate::types::Nanos;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How a visit by the runtime that an executor lives in ended.
pub(crate) enum Visit {
    /// Something is ready still.
    Ready,
    /// Nothing is, until a kick or until then.
    Idle(Option<Nanos>),
    /// The main task is over.
    Over,
}

impl Executor {
    /// Runs tasks for `rounds_max` rounds, or until none is ready or `main` is over.
    ///
    /// For an executor that lives in another runtime, which has its turn between two visits. From
    /// one that found nothing more on, a kick asks for the next; what wakes meanwhile on this
    /// thread is posted, as from any other.
    pub(crate) fn visit(&self, rounds_max: u32, idle_spin: Duration, done: &Cell<bool>) -> Visit {
        let _seated = Seated::new(self.0.shared.id);
        let parked = &self.0.shared.parked;
        parked.store(false, Ordering::SeqCst);
        for _ in 0..rounds_max {
            self.begin_pass();
            self.fire_timers();
            self.run_ready();
            if done.get() {
                return Visit::Over;
            }
            if self.take_mail() {
                continue;
            }
            self.begin_rest();
            if self.spin_for_mail(idle_spin) {
                continue;
            }
            parked.store(true, Ordering::SeqCst);
            // As in `idle`: only the lock orders this look after the store above.
            if self.0.shared.inbox().queue.is_empty() {
                let timers = self.0.timers.borrow();
                let first = timers.by_deadline.first_key_value();
                return Visit::Idle(first.map(|((deadline, _), _)| *deadline));
            }
            parked.store(false, Ordering::SeqCst);
        }
        self.stash();
        Visit::Ready
    }

    /// Keeps what is ready for the next visit, as the seat goes.
    fn stash(&self) {
        let mut ready = SEAT.with(|seat| seat.ready.take());
        let mut inbox = self.0.shared.inbox();
        ready.append(&mut inbox.queue);
        inbox.queue = ready;
        self.0.shared.posted.store(true, Ordering::Release);
    }

    /// Looks for what other threads post, or for a timer, for `span`; whether there is something.
    fn spin_for_mail(&self, span: Duration) -> bool {
        if span.is_zero() {
            return false;
        }
        let until = self.now().after(span);
        loop {
            if self.take_mail() || self.until_timer().is_some_and(|left| left.is_zero()) {
                return true;
            }
            if self.now() >= until {
                return false;
            }
            std::hint::spin_loop();
        }
    }
}
