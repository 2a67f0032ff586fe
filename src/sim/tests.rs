//! The simulator's own tests: it is deterministic, it finds what is planted, it replays its corpus.

mod figures;
mod flips;

use super::plan::{HARMS, Harm, Op, Plan, Step};
use super::run::run;
use super::{Campaign, Simulation};
use crate::io::sim::DiskFaults;
use crate::marks::armed::arm;
use crate::{Config, PayloadId};

/// How the plans of seeds are changed before they run, so that what triggers a bug comes often.
#[derive(Clone, Copy)]
enum Press {
    No,
    /// Only syncs fail, and often.
    Syncs,
    /// Only pages of files come to harm, and every change is flushed.
    Pages,
    /// Whole files come to harm.
    Files,
    /// Much is written and nothing flushed, and the power fails.
    Cuts,
    /// Payloads move between shards, and the power fails meanwhile.
    Moves,
    /// Writes are lost in files that have been used before, and openings are many.
    Lost,
    /// Large reads of scattered data, of which parts fail.
    Reads,
    /// What is read stays in memory, is read again, and changes meanwhile.
    Hits,
    /// There is a remote, and machines are lost.
    Remote,
    /// The same with so little room here that much is evicted.
    Evictions,
}

/// Planted bugs, and within how many seeds each must be caught.
const TEETH: [(&str, Press, u64); 26] = [
    ("ack_before_sync", Press::No, 40),
    ("believe_retried_sync", Press::Syncs, 60),
    ("believe_what_is_found", Press::Syncs, 120),
    ("checkpoint_before_log", Press::Cuts, 120),
    ("clone_without_reference", Press::No, 40),
    ("cut_at_first_bad", Press::Pages, 900),
    ("cut_not_lowered", Press::No, 40),
    ("delete_before_checkpoint", Press::Remote, 40),
    ("directory_not_synced", Press::No, 40),
    ("dropped_read_frees_buffer", Press::Reads, 40),
    ("evict_before_upload", Press::Evictions, 40),
    ("fetched_over_newer", Press::Remote, 600),
    ("free_before_checkpoint", Press::No, 120),
    ("free_what_is_moved_to", Press::Remote, 200),
    ("insert_without_looking", Press::Hits, 40),
    ("no_generation_in_checksum", Press::Lost, 240),
    ("old_one_goes_first", Press::Moves, 200),
    ("publish_out_of_order", Press::Remote, 40),
    ("skip_batch_checksum", Press::No, 40),
    ("skip_page_checksum", Press::No, 300),
    ("skip_remote_checksum", Press::Remote, 1500),
    ("sync_covers_later_writes", Press::No, 40),
    ("truncate_keeps_extents", Press::No, 40),
    ("truncate_keeps_hits", Press::Hits, 40),
    ("zeros_for_missing", Press::Files, 120),
    ("zombie_not_fenced", Press::Remote, 40),
];

fn pressed(seed: u64, press: Press) -> Plan {
    let has_remote = matches!(press, Press::Remote | Press::Evictions);
    let mut plan = Plan::with_remote_from_seed(seed, has_remote);
    let mut rng = fastrand::Rng::with_seed(seed);
    match press {
        Press::No | Press::Remote => return plan,
        Press::Evictions => {
            let segments = 5 * plan.settings.shards;
            plan.settings.local_bytes = segments * plan.settings.segment_bytes;
        }
        Press::Moves => {
            plan.settings.shards = 3;
            plan.settings.local_bytes = 0;
        }
        Press::Pages | Press::Files | Press::Reads => {
            plan.settings.local_bytes = 0;
            plan.settings.segment_bytes = 64 << 10;
            plan.settings.read_buffer_bytes = 0;
        }
        Press::Cuts => {
            plan.settings.local_bytes = 0;
            plan.settings.segment_bytes = 64 << 10;
            plan.settings.flush_after_us = 60_000_000;
        }
        Press::Lost => {
            plan.settings.local_bytes = 0;
            plan.settings.segment_bytes = 64 << 10;
            plan.settings.read_buffer_bytes = 0;
            plan.settings.flush_after_us = 1000;
        }
        Press::Hits => {
            plan.settings.read_buffer_bytes = 8 << 20;
            plan.settings.prefetch_bytes = 8 << 20;
        }
        Press::Syncs => {}
    }
    for step in &mut plan.steps {
        press_step(step, press, &mut rng);
    }
    plan
}

fn press_step(step: &mut Step, press: Press, rng: &mut fastrand::Rng) {
    match (press, &mut *step) {
        (_, Step::Faults(faults)) => {
            *faults = DiskFaults::default();
            match press {
                Press::Syncs => (faults.sync_error, faults.torn) = (150, 0),
                Press::Reads => faults.read_error = 30,
                Press::Lost => faults.lost_write = 120,
                _ => {}
            }
        }
        (Press::Pages | Press::Files, Step::Cut { .. } | Step::Kill { .. } | Step::Harm { .. }) => {
            let of_kind =
                |it: &&(&str, Harm)| it.1.is_whole_file() == matches!(press, Press::Files);
            let harms: Vec<_> = HARMS.iter().filter(of_kind).collect();
            *step = Step::Harm {
                harm: harms[rng.usize(..harms.len())].1,
                file: rng.u64(..64),
                place: rng.u64(..1 << 20),
            };
        }
        (Press::Lost, Step::Cut { .. } | Step::Kill { .. } | Step::Harm { .. }) => {
            *step = Step::Reopen;
        }
        (Press::Moves, Step::Cut { ios } | Step::Kill { ios }) => *ios = rng.u64(1..150),
        (Press::Cuts, Step::Kill { .. } | Step::Harm { .. } | Step::Reopen | Step::Check) => {
            *step = Step::Cut {
                ios: rng.u64(1..150),
            };
        }
        (Press::Hits, Step::Client { client, op, .. }) => {
            // Of several clients, so that reads and changes meet.
            *client = rng.u64(..4);
            *op = hits_op(rng);
        }
        (_, Step::Client { op, .. }) => *op = pressed_op(*op, press, rng),
        _ => {}
    }
}

fn pressed_op(op: Op, press: Press, rng: &mut fastrand::Rng) -> Op {
    let id = op.numbers().first().map_or(0, |id| id % 8);
    match (press, op) {
        // What is only looked at makes room for what matters.
        (
            Press::Pages,
            Op::Read { .. } | Op::ReadInto { .. } | Op::ReadCow { .. } | Op::Size { .. },
        ) => Op::Flush { id },
        (Press::Pages | Press::Files, Op::Copy { .. } | Op::Punch { .. }) => Op::FlushAll,
        (Press::Moves, Op::Copy { .. } | Op::Delete { .. } | Op::Write { .. }) => op,
        (Press::Moves, Op::Flush { .. }) => op,
        (Press::Moves, _) => match rng.u8(..3) {
            0 => Op::Delete { id },
            _ => Op::Copy {
                id,
                target: rng.u64(..8),
            },
        },
        (Press::Reads, Op::Read { .. } | Op::ReadInto { .. } | Op::ReadCow { .. }) => Op::Read {
            id,
            offset: 0,
            len: 1 << 19,
        },
        (Press::Lost, Op::Read { .. } | Op::ReadInto { .. } | Op::ReadCow { .. }) => Op::Read {
            id,
            offset: 0,
            len: 1 << 19,
        },
        (Press::Lost, Op::Copy { .. } | Op::Size { .. } | Op::Exists { .. }) => Op::Write {
            id,
            offset: 4096 * rng.u64(..64),
            len: 4096 * rng.u64(1..4),
        },
        (Press::Lost, Op::Truncate { .. } | Op::Delete { .. }) => Op::Flush { id },
        (Press::Reads, Op::Truncate { .. } | Op::Delete { .. }) => Op::FlushAll,
        // What is in many segments, and none of it dead.
        (Press::Evictions, Op::Punch { .. } | Op::Truncate { .. } | Op::Delete { .. }) => {
            Op::Write {
                id,
                offset: 4096 * rng.u64(..64),
                len: 4096 * rng.u64(1..16),
            }
        }
        (Press::Evictions, Op::Exists { .. } | Op::Size { .. }) => Op::Evict { id },
        (Press::Cuts, Op::Copy { .. } | Op::Delete { .. } | Op::Truncate { .. }) => op,
        (Press::Cuts, _) => Op::Write {
            id,
            offset: 4096 * rng.u64(..64),
            len: 4096 * rng.u64(1..16),
        },
        _ => op,
    }
}

/// Reads and changes of a few pages of two payloads, which now and then are on the device alone.
fn hits_op(rng: &mut fastrand::Rng) -> Op {
    let (id, offset) = (rng.u64(..2), 4096 * rng.u64(..8));
    match rng.u8(..10) {
        0 => Op::EvictBuffer,
        1 | 2 => Op::FlushAll,
        3 => Op::Truncate {
            id,
            size: offset + rng.u64(..4096),
        },
        4 | 5 => Op::Write {
            id,
            offset,
            len: 4096 * rng.u64(1..4),
        },
        _ => Op::Read {
            id,
            offset,
            len: 4096 * rng.u64(1..4),
        },
    }
}

#[test]
fn plans_are_read_as_they_are_written() {
    for seed in 0..50 {
        let plan = Plan::from_seed(seed);
        assert_eq!(plan.to_string().parse(), Ok(plan));
    }
}

#[test]
fn any_bytes_are_a_plan() {
    let mut rng = fastrand::Rng::with_seed(1);
    for len in 0..40 {
        let bytes: Vec<u8> = (0..len * 7).map(|_| rng.u8(..)).collect();
        let plan = Plan::from_bytes(&bytes);
        assert_eq!(plan.to_string().parse(), Ok(plan));
    }
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..8 {
        assert_eq!(Campaign::hash_of_seed(seed), Campaign::hash_of_seed(seed));
    }
    assert_ne!(Campaign::hash_of_seed(1), Campaign::hash_of_seed(2));
}

#[test]
fn fresh_seeds_are_clean() {
    let mut campaign = Campaign::new();
    for seed in 1_000_000..1_000_040 {
        if let Some(failure) = campaign.run_seed(seed) {
            panic!("seed {seed}: {failure}");
        }
    }
}

#[test]
fn fresh_seeds_with_a_remote_are_clean() {
    let mut campaign = Campaign::with_remote();
    for seed in 1_000_000..1_000_040 {
        if let Some(failure) = campaign.run_seed(seed) {
            panic!("seed {seed}: {failure}");
        }
    }
}

#[test]
fn the_corpus_is_clean() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plans");
    let mut plans: Vec<_> = std::fs::read_dir(dir)
        .expect("the corpus is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|it| it == "plan"))
        .collect();
    plans.sort();
    for path in plans {
        let text = std::fs::read_to_string(&path).expect("readable");
        let plan: Plan = text.parse().expect("a plan");
        let failure = run(&plan).failure;
        assert_eq!(failure, None, "{}", path.display());
    }
}

/// Runs seeds until one fails with a bug planted.
fn seeds_to_catch(bug: &'static str, press: Press, seeds_max: u64) -> Option<u64> {
    let fails = |seed: &u64, bug| {
        arm(bug);
        let run = std::panic::AssertUnwindSafe(|| run(&pressed(*seed, press)).failure.is_some());
        // A panic of the engine counts: nothing is hidden by it.
        std::panic::catch_unwind(run).unwrap_or(true)
    };
    // A seed that fails anyway has caught nothing.
    let caught = |seed: &u64| fails(seed, Some(bug)) && !fails(seed, None);
    let caught = (0..seeds_max).find(caught);
    arm(None);
    caught
}

#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    // Which to look at, for who works on one of them.
    let only = std::env::var("TOOTH").ok();
    let teeth = TEETH.into_iter();
    for (bug, press, seeds_max) in teeth.filter(|it| only.as_ref().is_none_or(|bug| bug == it.0)) {
        match seeds_to_catch(bug, press, seeds_max) {
            Some(seed) => println!("{bug}: caught by seed {seed}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn small_programs_are_clean() {
    let mut campaign = Campaign::new();
    if let Some(failure) = campaign.run_exhaustively(1, || true) {
        panic!("{failure}");
    }
    assert!(campaign.crashes() > 100, "there were crash points");
}

#[test]
fn small_programs_catch_planted_bugs() {
    for (bug, ops) in [
        ("ack_before_sync", 2),
        ("directory_not_synced", 2),
        ("skip_batch_checksum", 1),
        ("truncate_keeps_extents", 3),
    ] {
        arm(Some(bug));
        let failure = Campaign::new().run_exhaustively(ops, || true);
        arm(None);
        assert!(failure.is_some(), "not caught: {bug}");
    }
}

#[test]
fn steps_may_be_taken_out() {
    let mut plan = Plan::from_seed(3);
    plan.steps
        .retain(|step| !matches!(step, Step::Client { .. }));
    assert_eq!(run(&plan).failure, None);
}

#[test]
fn an_embedders_store_survives_its_machine() {
    let machine = Simulation::new(11);
    let mut config = Config::new("store");
    config.shards = Some(2);
    let id = PayloadId::new("a").expect("valid");
    for round in 0u8..20 {
        let store = machine
            .run(machine.open(config.clone()))
            .expect("it opens")
            .expect("it is well");
        let work = async {
            let before = match round {
                0 => Vec::new(),
                _ => store.read_at(&id, 0, 100).await?.into_bytes().to_vec(),
            };
            store.write_at(&id, 0, vec![round; 100].into()).await?;
            store.flush(&id).await?;
            Ok::<_, crate::Error>(before)
        };
        let before = machine.run(work).expect("it ends").expect("it is well");
        assert!(round == 0 || before == vec![round - 1; 100]);
        drop(store);
        match round % 2 {
            0 => machine.cut_power(),
            _ => machine.kill(),
        }
    }
}
