//! Every small program, with every crash: what random plans might miss is counted out here.
//!
//! A program is up to three operations on two payloads. Each is run once to count its I/Os; then,
//! for each of these I/Os, it is run up to there and the power is cut, once for every subset of
//! what was pending, if that is six decisions or fewer, else for a few subsets.
//!
//! Invariants:
//! 1. Every program is run with every crash point; none is left out by chance.

use super::campaign::{Campaign, Failure};
use super::plan::{Op, Plan, Settings, Step};
use super::run::run;

/// The operations that programs are made of.
const OPS: [Op; 11] = [
    Op::Write {
        id: 0,
        offset: 0,
        len: 5000,
    },
    Op::Write {
        id: 0,
        offset: 4000,
        len: 100,
    },
    Op::Write {
        id: 1,
        offset: 1,
        len: 9000,
    },
    Op::Truncate { id: 0, size: 4097 },
    Op::Truncate { id: 1, size: 10 },
    Op::Punch {
        id: 0,
        offset: 1,
        len: 4096,
    },
    Op::Copy { id: 0, target: 1 },
    Op::Copy { id: 1, target: 0 },
    Op::Delete { id: 0 },
    Op::Flush { id: 0 },
    Op::FlushAll,
];

/// Every program of `ops` operations.
fn programs(ops: u32) -> impl Iterator<Item = Vec<Op>> {
    let base = OPS.len() as u64;
    (0..base.pow(ops)).map(move |number| {
        let digit = |place: u32| OPS[(number / base.pow(place) % base) as usize];
        (0..ops).map(digit).collect()
    })
}

fn plan_of(program: &[Op], ios: u64, mask: u64) -> Plan {
    let step = |op: &Op| Step::Client {
        client: 0,
        op: *op,
        drop_after: None,
    };
    let mut steps: Vec<Step> = program.iter().map(step).collect();
    steps.push(Step::CutKeeping { ios, mask });
    let settings = Settings {
        payloads: 2,
        ..Settings::default()
    };
    Plan { settings, steps }
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
        }
        None
    }

    /// One program, with every crash point: the last is the first that the program does not reach.
    fn run_program(&mut self, program: &[Op]) -> Option<Failure> {
        for ios in 1.. {
            let mut mask = 0;
            loop {
                let plan = plan_of(program, ios, mask);
                let outcome = run(&plan);
                let (decisions, reached) = (outcome.decisions, outcome.stopped_at_io);
                if let Some(message) = self.count(outcome) {
                    return Some(Failure {
                        message,
                        plan: plan.to_string(),
                    });
                }
                mask += 1;
                if mask >= 1 << decisions {
                    if !reached {
                        return None;
                    }
                    break;
                }
            }
        }
        None
    }
}
