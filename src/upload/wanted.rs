//! Whether an object is to be made still: who has asked for it may say that it is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set until it is cleared; clones share it.
#[derive(Clone)]
pub(crate) struct Wanted(Arc<AtomicBool>);

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted(Arc::new(AtomicBool::new(true)))
    }
}

impl Wanted {
    /// It is not wanted any more. A try that is under way ends first.
    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
