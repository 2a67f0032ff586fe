//! Upkeep: when to write a checkpoint, evict, clean, and give files back.
//!
//! Three tasks, each of which does one thing after the other.

use super::{Shard, State};
use crate::error::Result;
use crate::io::Driver;
use crate::marks::mark;
use std::time::Duration;

/// Tree nodes that are lost between two looks at other work: about 50 us.
const NODES_PER_STEP: usize = 32;

/// Pause after upkeep that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

fn is_checkpoint_due(state: &State) -> bool {
    state.checkpoint_due() || state.freeing_due()
}

impl<D: Driver> Shard<D> {
    /// Starts the tasks of upkeep. What costs moving bytes, perhaps from far away, must not
    /// keep what costs a checkpoint or nothing from giving room to those who wait.
    pub(super) fn spawn_upkeep(&self) {
        self.repeat(Self::is_room_due, async |shard| shard.give_room().await);
        self.repeat(Self::is_tidying_due, async |shard| shard.tidy().await);
        let has_discarded = |_: &Self, state: &State| state.map.live.has_discarded();
        self.repeat(has_discarded, async |shard| {
            shard.lose_discarded().await;
            Ok(())
        });
    }

    fn repeat(
        &self,
        due: fn(&Self, &State) -> bool,
        work: impl AsyncFn(&Shard<D>) -> Result<()> + 'static,
    ) {
        let shard = self.clone();
        self.0.driver.spawn(async move {
            loop {
                let due = || {
                    let state = shard.0.state.borrow();
                    let stop = state.closing || state.commit.poison.is_some();
                    (!stop && due(&shard, &state)).then_some(())
                };
                shard.0.upkeep_due.until(due).await;
                if let Err(error) = work(&shard).await {
                    tracing::warn!(shard = shard.0.params.shard.0, %error, "upkeep failed");
                    // A full disk, most likely: nothing is lost, and it is tried again.
                    shard.0.driver.sleep(RETRY_PAUSE).await;
                }
                // What it held may be what the other task waits for.
                shard.0.upkeep_due.notify();
            }
        });
    }

    fn is_room_due(&self, state: &State) -> bool {
        is_checkpoint_due(state) || self.evicting_due(state)
    }

    async fn give_room(&self) -> Result<()> {
        let checkpointing = is_checkpoint_due(&self.0.state.borrow());
        if checkpointing {
            self.checkpoint().await?;
        }
        let evicting = self.evicting_due(&self.0.state.borrow());
        match evicting {
            true => self.evict_coldest().await,
            false => Ok(()),
        }
    }

    fn is_tidying_due(&self, state: &State) -> bool {
        self.is_cleaning_due(state) || self.trimming_due(state)
    }

    /// What is dead already costs a checkpoint, and what was given up nothing; what is half dead
    /// costs moving, and room to move to. So the former come first.
    fn is_cleaning_due(&self, state: &State) -> bool {
        let due = self.cleaning_due(state) || !state.upkeep.heals.is_empty();
        due && !state.freeing_due() && !state.map.live.has_discarded()
    }

    /// Loses what large payloads have given up, letting others run in between.
    pub(super) async fn lose_discarded(&self) {
        while self.0.state.borrow().map.live.has_discarded() {
            mark("lost in steps");
            self.state().map.live.lose_discarded(NODES_PER_STEP);
            self.yield_now().await;
        }
    }

    async fn tidy(&self) -> Result<()> {
        let cleaning = self.is_cleaning_due(&self.0.state.borrow());
        let healing = !self.0.state.borrow().upkeep.heals.is_empty();
        match (cleaning, healing) {
            (true, true) => self.heal().await?,
            (true, false) => self.clean().await?,
            (false, _) => {}
        }
        self.trim().await;
        Ok(())
    }
}
