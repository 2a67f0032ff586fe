//! Many runs, and what they add up to.
//!
//! Invariants:
//! 1. A campaign of enough seeds fails when a rare path was never taken or a kind of operation
//!    never succeeded: a generator that has gone blind finds nothing.
//!
//! Deliberately not here: how long to go on, and where to print.

use super::plan::{KINDS, LOCAL_KINDS, Plan};
use super::run::{Outcome, run};
use super::shrink::shrink;
use std::collections::BTreeMap;
use std::fmt;

/// Seeds after which every mark must have been hit.
pub const SEEDS_FOR_MARKS: u64 = 400;

/// Rare paths, and how often each is taken in so many seeds at least: about a quarter of what was
/// measured, so that luck does not decide, and a generator that goes blind shows.
const MARKS: [(&str, u64); 25] = [
    ("aged batch appended", 5000),
    ("bad checkpoint passed over", 15),
    ("checkpoint", 1000),
    ("cleaning", 250),
    ("commit taken by damage", 2),
    ("copy between shards", 30),
    ("corrupt bytes not moved", 25),
    ("evicted from the read buffer", 350),
    ("file harmed by hand", 25),
    ("full after stall", 80),
    ("hit served", 240),
    ("invalidated in the read buffer", 750),
    ("large write", 150),
    ("listed segment was freed", 200),
    ("not kept, as it changed meanwhile", 7),
    ("page failed its checksum", 200),
    ("record without its payload", 1),
    ("recycled file reused", 300),
    ("reserve given up for a checkpoint", 1),
    ("segment replayed from its footer", 90),
    ("segments behind a tear dropped", 3),
    ("sums taken from batches", 30),
    ("torn tail cut", 12),
    ("unproven batches written again", 200),
    ("used what was read ahead", 20),
];

/// The same where there are remotes.
const REMOTE_MARKS: [(&str, u64); 6] = [
    ("checkpoint uploaded", 100),
    ("fetched from the remote", 100),
    ("machine lost", 100),
    ("objects deleted", 100),
    ("segment evicted", 100),
    ("zombie fenced", 5),
];

/// Successes of each kind of operation in a seed, at least: less than half of what was measured.
const SUCCESSES_MIN: u64 = 1;

/// Runs of the library's own simulator: random plans against a model, with crashes.
///
/// # Example
///
/// ```
/// let mut campaign = ringstore::sim::Campaign::new();
/// for seed in 0..3 {
///     assert!(campaign.run_seed(seed).is_none());
/// }
/// println!("{campaign}");
/// ```
#[derive(Default)]
pub struct Campaign {
    seeds: u64,
    remote: bool,
    /// Programs that were run with every crash.
    pub(super) programs: u64,
    total: Outcome,
    marks: BTreeMap<&'static str, u64>,
}

/// A run in which the store broke its contract.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was wrong, with the bytes that differ.
    pub message: String,
    /// The plan, shortened; [`Campaign::run_plan`] runs it again.
    pub plan: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n\n{}", self.message, self.plan)
    }
}

impl Campaign {
    /// A campaign without runs.
    pub fn new() -> Campaign {
        Campaign::default()
    }

    /// A campaign without runs, whose stores have remotes: machines are lost with their disks, and
    /// rebuilt.
    pub fn with_remote() -> Campaign {
        Campaign {
            remote: true,
            ..Campaign::default()
        }
    }

    /// Runs the plan of a seed. A failure comes with a shortened plan.
    pub fn run_seed(&mut self, seed: u64) -> Option<Failure> {
        self.seeds += 1;
        self.take(&Plan::with_remote_from_seed(seed, self.remote))
    }

    /// Runs the plan of any bytes, as a fuzzer makes them.
    pub fn run_bytes(&mut self, bytes: &[u8]) -> Option<Failure> {
        self.take(&Plan::from_bytes(bytes))
    }

    /// Runs a plan that is given as text.
    ///
    /// # Errors
    ///
    /// The line that is not understood.
    pub fn run_plan(&mut self, text: &str) -> Result<Option<Failure>, String> {
        let plan: Plan = text.parse()?;
        Ok(self.take(&plan))
    }

    fn take(&mut self, plan: &Plan) -> Option<Failure> {
        let message = self.count(run(plan))?;
        let (plan, message) = shrink(plan, &message);
        Some(Failure {
            message,
            plan: plan.to_string(),
        })
    }

    /// Adds a run up; returns what was wrong with it.
    pub(super) fn count(&mut self, outcome: Outcome) -> Option<String> {
        let total = &mut self.total;
        for (sum, count) in total.successes.iter_mut().zip(outcome.successes) {
            *sum += count;
        }
        total.operations += outcome.operations;
        total.dropped += outcome.dropped;
        total.crashes += outcome.crashes;
        total.reopens += outcome.reopens;
        total.given_up += outcome.given_up;
        for (mark, hits) in outcome.marks {
            *self.marks.entry(mark).or_default() += hits;
        }
        outcome.failure
    }

    /// The plan of a seed as text.
    pub fn plan_of_seed(seed: u64) -> String {
        Plan::from_seed(seed).to_string()
    }

    /// A number that two runs of one seed have in common if the runs do.
    pub fn hash_of_seed(seed: u64) -> u64 {
        run(&Plan::from_seed(seed)).hash
    }

    /// Operations that succeeded so far.
    pub fn operations(&self) -> u64 {
        self.total.operations
    }

    /// Crashes so far, each with a recovery and a comparison of everything.
    pub fn crashes(&self) -> u64 {
        self.total.crashes
    }

    /// What should have happened by now and has not: operations and rare paths.
    pub fn blind_spots(&self) -> Vec<&'static str> {
        if self.seeds < SEEDS_FOR_MARKS {
            return Vec::new();
        }
        let kinds = match self.remote {
            true => KINDS.len(),
            false => LOCAL_KINDS,
        };
        let successes = KINDS[..kinds].iter().zip(self.total.successes);
        let failing = successes.filter(|it| it.1 < self.seeds * SUCCESSES_MIN);
        let hits = |mark: &str| self.marks.get(mark).copied().unwrap_or(0);
        let with_remote: &[(&str, u64)] = if self.remote { &REMOTE_MARKS } else { &[] };
        let unseen = MARKS
            .iter()
            .chain(with_remote)
            .filter(|mark| hits(mark.0) * SEEDS_FOR_MARKS < mark.1 * self.seeds);
        let failing = failing.map(|it| *it.0);
        failing.chain(unseen.map(|mark| mark.0)).collect()
    }

    /// Everything that is counted, by name.
    pub fn figures(&self) -> Vec<(String, u64)> {
        let total = &self.total;
        let mut figures = vec![
            ("seeds".to_owned(), self.seeds),
            ("programs".to_owned(), self.programs),
            ("operations".to_owned(), total.operations),
            ("dropped".to_owned(), total.dropped),
            ("crashes".to_owned(), total.crashes),
            ("reopens".to_owned(), total.reopens),
            ("given_up".to_owned(), total.given_up),
        ];
        let successes = KINDS.iter().zip(total.successes);
        figures.extend(successes.map(|it| (format!("op {}", it.0), it.1)));
        figures.extend(
            self.marks
                .iter()
                .map(|it| (format!("mark {}", it.0), *it.1)),
        );
        figures
    }
}

impl fmt::Display for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in self.figures() {
            writeln!(f, "{count:>10}  {name}")?;
        }
        Ok(())
    }
}
