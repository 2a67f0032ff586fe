//! Two switches of the simulator: marks on rare paths, and planted bugs.
//!
//! A mark is hit where something rare happens; a run of the simulator that never hits one has gone
//! blind. A planted bug is a line of code that is wrong on purpose when its name is armed; a test
//! proves that the simulator catches each. Both are constants that cost nothing without feature
//! `sim`.

/// Notes that a rare path was taken.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub(crate) fn mark(_name: &'static str) {}

/// Whether the planted bug of this name is armed; never, outside the simulator.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub(crate) const fn planted(_name: &'static str) -> bool {
    false
}

#[cfg(feature = "sim")]
pub(crate) use armed::{mark, planted};

#[cfg(feature = "sim")]
pub(crate) mod armed {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    thread_local! {
        static HITS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
        static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Notes that a rare path was taken.
    pub(crate) fn mark(name: &'static str) {
        HITS.with_borrow_mut(|hits| *hits.entry(name).or_default() += 1);
    }

    /// Whether the planted bug of this name is armed on this thread.
    pub(crate) fn planted(name: &'static str) -> bool {
        PLANTED.get() == Some(name)
    }

    /// Takes the hits of this thread since the last call.
    pub(crate) fn take_hits() -> BTreeMap<&'static str, u64> {
        HITS.take()
    }

    /// Arms one planted bug on this thread, or none.
    #[cfg(test)]
    pub(crate) fn arm(name: Option<&'static str>) {
        PLANTED.set(name);
    }
}
