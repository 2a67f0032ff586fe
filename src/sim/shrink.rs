//! From a plan that fails to a short one that fails in the same way.
//!
//! First steps go, in ever smaller ranges; then clients, drops and shards; then numbers get small.
//! A candidate counts if it fails with a message that begins alike, so that one bug is not traded
//! for another.
//!
//! Invariants:
//! 1. The result fails, and is no longer than what it came from.
//! 2. The work is bounded by a number of runs.

use super::plan::{Plan, Settings, Step};
use super::run::run;

/// Runs that are spent on one plan at most.
const RUNS_MAX: u32 = 1500;

/// Letters of a message that say what kind of failure it is.
const KIND_LEN: usize = 28;

/// What kind of failure a message tells of: its beginning, without the step and the numbers.
fn kind_of(message: &str) -> String {
    let rest = match message.strip_prefix("step") {
        Some(rest) => rest.split_once(": ").map_or(rest, |it| it.1),
        None => message,
    };
    let letters = rest.chars().filter(|letter| !letter.is_ascii_digit());
    letters.take(KIND_LEN).collect()
}

/// Shortens a plan that fails with `message`; returns the plan and how it fails.
pub(super) fn shrink(plan: &Plan, message: &str) -> (Plan, String) {
    let mut shrinker = Shrinker {
        kind: kind_of(message),
        best: plan.clone(),
        message: message.to_owned(),
        runs_left: RUNS_MAX,
    };
    loop {
        let before = shrinker.best.clone();
        shrinker.drop_steps();
        shrinker.simplify_settings();
        shrinker.simplify_steps();
        if shrinker.best == before || shrinker.runs_left == 0 {
            return (shrinker.best, shrinker.message);
        }
    }
}

struct Shrinker {
    kind: String,
    best: Plan,
    message: String,
    runs_left: u32,
}

impl Shrinker {
    /// Takes a candidate over if it fails alike.
    fn accept(&mut self, candidate: Plan) -> bool {
        if self.runs_left == 0 || candidate == self.best {
            return false;
        }
        self.runs_left -= 1;
        match run(&candidate).failure {
            Some(message) if kind_of(&message) == self.kind => {
                self.best = candidate;
                self.message = message;
                true
            }
            _ => false,
        }
    }

    fn drop_steps(&mut self) {
        let mut size = self.best.steps.len().div_ceil(2);
        while size > 0 {
            let mut end = self.best.steps.len();
            while end > 0 {
                let begin = end.saturating_sub(size);
                let mut candidate = self.best.clone();
                candidate.steps.drain(begin..end);
                self.accept(candidate);
                end = begin;
            }
            size /= 2;
        }
    }

    fn simplify_settings(&mut self) {
        let plain = Settings {
            seed: self.best.settings.seed,
            ..Settings::default()
        };
        let count = self.best.settings.clone().fields().len();
        for field in 0..count {
            let mut candidate = self.best.clone();
            let value = *plain.clone().fields()[field].1;
            *candidate.settings.fields()[field].1 = value;
            self.accept(candidate);
        }
    }

    fn simplify_steps(&mut self) {
        for index in 0..self.best.steps.len() {
            match self.best.steps[index].clone() {
                Step::Client { .. } => self.simplify_client(index),
                Step::Cut { .. } | Step::Kill { .. } => self.simplify_crash(index),
                _ => {}
            }
        }
    }

    fn simplify_client(&mut self, index: usize) {
        let change = |plan: &Plan, change: &dyn Fn(&mut Step)| {
            let mut candidate = plan.clone();
            change(&mut candidate.steps[index]);
            candidate
        };
        let to_first = change(&self.best, &|step| {
            if let Step::Client { client, .. } = step {
                *client = 0;
            }
        });
        self.accept(to_first);
        let undropped = change(&self.best, &|step| {
            if let Step::Client { drop_after, .. } = step {
                *drop_after = None;
            }
        });
        self.accept(undropped);
        let Step::Client { op, .. } = &self.best.steps[index] else {
            return;
        };
        for place in 0..op.numbers().len() {
            for smaller in [0, 1, 4096, 65536] {
                let candidate = change(&self.best, &|step| {
                    if let Step::Client { op, .. } = step {
                        *op = op.with_numbers(|numbers| {
                            numbers[place] = numbers[place].min(smaller);
                        });
                    }
                });
                if self.accept(candidate) {
                    break;
                }
            }
        }
    }

    fn simplify_crash(&mut self, index: usize) {
        let mut late = self.best.clone();
        if let Step::Cut { ios } | Step::Kill { ios } = &mut late.steps[index] {
            *ios = 1_000_000;
        }
        self.accept(late);
    }
}
