//! How fast writers of a store that is nearly full may go: as fast as room comes back.
//!
//! Without it they would go at full speed until the last file is full, and then wait for the next
//! one to be given up: most writes fast, some for seconds. So each is held back a little, the more
//! the less room is left: with half of the last room they go as fast as room came back of late,
//! with more of it faster, so that the pace can grow.
//!
//! Deliberately not here: whether there is room at all, and who waits for it (`space`).

use crate::types::Nanos;
use std::time::Duration;

/// Over which time what came back is averaged.
const MEMORY: Duration = Duration::from_secs(4);

/// Longest time that one write is held back: a store that gets no room back at all says so by
/// filling up, not by going ever slower.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// When nothing has come back for so long, nobody knows how fast it does.
const FORGOTTEN: Duration = Duration::from_secs(12);

/// The pace of one shard's writers.
#[derive(Default)]
pub(super) struct Pace {
    /// Bytes that came back, weighted by how long ago.
    given_back: f64,
    at: Nanos,
    /// When the next write may go.
    next: Nanos,
}

impl Pace {
    /// Room has come back.
    pub(super) fn note_freed(&mut self, bytes: u64, now: Nanos) {
        self.given_back = self.given_back * self.faded(now) + bytes as f64;
        self.at = now;
    }

    /// How long a write of so many bytes is held back. `left`: how much of the last room is left,
    /// from 0 to 1; with more there is no hurry.
    pub(super) fn wait(&mut self, bytes: usize, left: f64, now: Nanos) -> Duration {
        let is_known = self.given_back > 0.0 && now.since(self.at) < FORGOTTEN;
        if left >= 1.0 || !is_known {
            return Duration::ZERO;
        }
        let rate = self.given_back * self.faded(now) / MEMORY.as_secs_f64();
        let span = bytes as f64 / rate * (1.0 - left) / left.max(f64::EPSILON);
        let turn = self.next.max(now);
        self.next = turn.after(Duration::from_secs_f64(span.min(WAIT_MAX.as_secs_f64())));
        turn.since(now)
    }

    /// How much what was noted last still weighs.
    fn faded(&self, now: Nanos) -> f64 {
        (-now.since(self.at).div_duration_f64(MEMORY)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Writes for some seconds while so many bytes a second come back, a file at a time, and says
    /// how many were written in the last of them, and how long the longest write was held back.
    fn written(drain: usize, room: usize, seconds: u64) -> (usize, Duration) {
        let (mut pace, mut now) = (Pace::default(), Nanos(0));
        let (mut left, mut drained, mut count, mut longest) = (room as f64, 0, 0, Duration::ZERO);
        let end = now.after(Duration::from_secs(seconds));
        let last = now.after(Duration::from_secs(seconds - 1));
        while now < end {
            let due = (now.0 as f64 / 1e9 * drain as f64) as usize / (16 * MIB);
            if due > drained {
                left += ((due - drained) * 16 * MIB) as f64;
                pace.note_freed(((due - drained) * 16 * MIB) as u64, now);
                drained = due;
            }
            if left < 4096.0 {
                now = now.after(Duration::from_millis(1));
                continue;
            }
            let wait = pace.wait(4096, left / (64 * MIB) as f64, now);
            now = now.after(wait + Duration::from_micros(10));
            left -= 4096.0;
            if now >= last {
                count += 4096;
                longest = longest.max(wait);
            }
        }
        (count, longest)
    }

    // Contract 30: pressure slows writers by pacing.
    #[test]
    fn writers_settle_at_what_comes_back_without_long_waits() {
        for drain in [24 * MIB, 96 * MIB] {
            let (count, longest) = written(drain, 64 * MIB, 30);
            let share = count as f64 / drain as f64;
            assert!((0.7..1.4).contains(&share), "{share} of {drain}");
            let fair = Duration::from_secs_f64(4096.0 / drain as f64);
            assert!(longest < 5 * fair, "{longest:?}, fair were {fair:?}");
        }
    }

    #[test]
    fn a_store_with_room_or_that_gets_none_back_is_not_slowed() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait(MIB, 0.1, Nanos(5)), Duration::ZERO);
        pace.note_freed(16 << 20, Nanos(5));
        assert_eq!(pace.wait(MIB, 1.0, Nanos(5)), Duration::ZERO);
        assert_eq!(pace.wait(MIB, 0.1, Nanos(5)), Duration::ZERO);
        let held_back = pace.wait(MIB, 0.1, Nanos(5));
        assert_eq!(held_back, WAIT_MAX);
        let later = Nanos(5).after(FORGOTTEN);
        assert_eq!(pace.wait(MIB, 0.1, later), Duration::ZERO);
    }
}
