//! Every small program, with every crash: what random plans might miss is counted out here.
//!
//! A program is up to three operations on two payloads. It runs once, and before each of its I/Os
//! completes the disk and the model are put aside. Each of these moments is then gone back to: the
//! power fails, the store is opened and compared, once for every subset of six decisions about what
//! was pending. There are two sets of six: the finest grain (sectors, pages, writes) that makes no
//! more than six decisions, or else all writes dealt out to six; and the sectors in six runs, so
//! that pages and records are torn.
//!
//! Programs that are the same but for the payloads' names are run once.
//!
//! Invariants:
//! 1. Every program is run with every crash point; none is left out by chance.
//! 2. A round does not depend on the rounds before it, but for the time of day.
//!
//! Deliberately not here: crashes during openings, and more than one crash; random plans have them.

use super::campaign::{Campaign, Failure};
use super::history::Histories;
use super::plan::{Op, Plan, Settings, Step};
use super::run::{End, Flow, PATIENCE, Run, all, run};
use crate::io::sim::{Disk, DiskImage, Grain, Stop};
use std::pin::pin;

/// Decisions of which a mask takes each on its own.
const DECISIONS_MAX: usize = 6;

/// The bit of a mask that says that it decides about runs of sectors.
const BY_SECTOR: u64 = 1 << DECISIONS_MAX;

/// The operations on one payload that programs are made of.
fn ops_on(id: u64) -> [Op; 7] {
    [
        Op::Write {
            id,
            offset: 0,
            len: 5000,
        },
        Op::Write {
            id,
            offset: 4990,
            len: 4000,
        },
        Op::Truncate { id, size: 4097 },
        Op::Punch {
            id,
            offset: 1,
            len: 4096,
        },
        Op::Copy { id, target: 1 - id },
        Op::Delete { id },
        Op::Flush { id },
    ]
}

/// Every program of `count` operations, but of two with exchanged payloads the first only.
fn programs(count: u32) -> impl Iterator<Item = Vec<Op>> {
    let ops: Vec<Op> = ops_on(0)
        .into_iter()
        .chain(ops_on(1))
        .chain([Op::FlushAll])
        .collect();
    let base = ops.len() as u64;
    let all = (0..base.pow(count)).map(move |number| {
        let digit = |place: u32| ops[(number / base.pow(place) % base) as usize];
        (0..count).map(digit).collect()
    });
    all.filter(|program: &Vec<Op>| {
        let first = program.iter().find_map(|op| op.numbers().first().copied());
        first != Some(1)
    })
}

fn plan_of(program: &[Op]) -> Plan {
    let step = |op: &Op| Step::Client {
        client: 0,
        op: *op,
        drop_after: None,
    };
    let settings = Settings {
        payloads: 2,
        ..Settings::default()
    };
    // What nobody flushed is appended in the end, and power may fail during that, too.
    let us = 2 * settings.flush_after_us;
    let wait = [Op::Sleep { us }];
    Plan {
        settings,
        steps: program.iter().chain(&wait).map(step).collect(),
    }
}

/// What is pending in the finest grain that makes few decisions.
fn few_decisions(disk: &Disk) -> (Grain, usize) {
    let few = |grain: &Grain| disk.pending(*grain) <= DECISIONS_MAX;
    let grains = [Grain::Sector, Grain::Page, Grain::Write];
    let grain = grains.into_iter().find(few).unwrap_or(Grain::Write);
    (grain, disk.pending(grain))
}

/// The masks with which a cut of power differs.
fn masks(disk: &Disk) -> impl Iterator<Item = u64> {
    let subsets = |decisions: usize| 0..1u64 << decisions.min(DECISIONS_MAX);
    let (grain, decisions) = few_decisions(disk);
    let sectors = match grain {
        Grain::Sector => 0,
        _ => disk.pending(Grain::Sector),
    };
    // All and nothing are the same in every grain.
    let torn = subsets(sectors).skip(1).filter(|mask| mask + 1 < BY_SECTOR);
    subsets(decisions).chain(torn.map(|mask| mask | BY_SECTOR))
}

/// Cuts the power; the mask's bits say what is kept.
pub(super) fn cut_keeping(disk: &Disk, mask: u64) {
    let (grain, decisions) = match mask & BY_SECTOR {
        0 => few_decisions(disk),
        _ => (Grain::Sector, disk.pending(Grain::Sector)),
    };
    let bit = |decision: usize| match grain {
        Grain::Sector => decision * DECISIONS_MAX.min(decisions) / decisions,
        _ => decision % DECISIONS_MAX,
    };
    let kept: Vec<bool> = (0..decisions)
        .map(|decision| mask >> bit(decision) & 1 == 1)
        .collect();
    disk.power_cut_keeping(grain, &kept);
}

/// A moment at which the power may fail: just before an I/O completes, or when all is done.
struct Moment {
    image: DiskImage,
    model: Histories,
}

impl Run {
    fn moment(&self) -> Moment {
        Moment {
            image: self.disk.clone_image(),
            model: self.shared.model.borrow().clone(),
        }
    }

    /// Carries a program out, and puts every moment aside.
    fn walk(&mut self, plan: &Plan) -> Flow<Vec<Moment>> {
        self.open()?;
        let mut running = pin!(all(self.start_clients(0, &plan.steps)));
        let mut moments = Vec::new();
        let mut next = self.universe.ios() + 1;
        loop {
            self.universe.stop_at_io(Some(next));
            let result = self.universe.run_until_within(PATIENCE, running.as_mut());
            self.universe.stop_at_io(None);
            let result = self.judge(result)?;
            moments.push(self.moment());
            match result {
                Ok(()) => return Ok(moments),
                Err(Stop::AtIo) => next += 1,
                Err(stop) => return Err(End::Failed(format!("no answer: {stop:?}"))),
            }
        }
    }

    /// Goes back to a moment.
    fn go_back(&mut self, moment: &Moment) {
        self.store = None;
        self.disk.restore(&moment.image);
        *self.shared.model.borrow_mut() = moment.model.clone();
    }

    /// Every crash of a program. A failure comes with the moment's number, from 1, and the mask.
    fn crash_everywhere(&mut self, plan: &Plan) -> Result<(), (End, u64, u64)> {
        let moments = self.walk(plan).map_err(|end| (end, u64::MAX, 0))?;
        for (moment, ios) in moments.iter().zip(1..) {
            self.go_back(moment);
            let masks: Vec<u64> = masks(&self.disk).collect();
            for mask in masks {
                self.go_back(moment);
                cut_keeping(&self.disk, mask);
                self.come_back().map_err(|end| (end, ios, mask))?;
            }
        }
        Ok(())
    }
}

impl Campaign {
    /// Runs every program of up to `ops` operations with every crash point; `more` is asked before
    /// each program whether to go on.
    pub fn run_exhaustively(
        &mut self,
        ops: u32,
        mut more: impl FnMut() -> bool,
    ) -> Option<Failure> {
        for program in (1..=ops).flat_map(programs) {
            if !more() {
                return None;
            }
            if let Some(failure) = self.run_program(&program) {
                return Some(failure);
            }
            self.programs += 1;
        }
        None
    }

    /// One program, with every crash.
    fn run_program(&mut self, program: &[Op]) -> Option<Failure> {
        let mut plan = plan_of(program);
        let mut crashing = Run::new(&plan.settings, false);
        let failed = crashing.crash_everywhere(&plan).err();
        let (message, ios, mask) = match failed {
            None => (None, 0, 0),
            Some((End::Failed(message), ios, mask)) => (Some(message), ios, mask),
            Some((End::GivenUp, ios, mask)) => (Some("nothing opens".to_owned()), ios, mask),
        };
        let message = self.count(crashing.end(message))?;
        plan.steps.push(Step::CutKeeping { ios, mask });
        // Told from the start, as a plan is; the time of day is another then.
        let again = run(&plan).failure;
        let note = match again {
            Some(_) => "",
            None => "\n(the plan alone does not fail)",
        };
        Some(Failure {
            message: message + note,
            plan: plan.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_differ_in_names_only_are_run_once() {
        assert_eq!(programs(1).count(), 8);
        // Half of those that name a payload, and those that name none.
        assert_eq!(programs(2).count(), (15 * 15 - 1) / 2 + 1);
        assert_eq!(programs(3).count(), (15 * 15 * 15 - 1) / 2 + 1);
    }
}
