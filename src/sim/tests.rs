//! The simulator's own tests: it is deterministic, it finds what is planted, it replays its corpus.

use super::plan::{Plan, Step};
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
}

/// Planted bugs, and within how many seeds each must be caught.
const TEETH: [(&str, Press, u64); 12] = [
    ("ack_before_sync", Press::No, 40),
    ("believe_retried_sync", Press::Syncs, 300),
    ("believe_what_is_found", Press::Syncs, 300),
    ("checkpoint_before_log", Press::No, 300),
    ("clone_without_reference", Press::No, 40),
    ("cut_not_lowered", Press::No, 300),
    ("directory_not_synced", Press::No, 40),
    ("free_before_checkpoint", Press::No, 40),
    ("skip_batch_checksum", Press::No, 40),
    ("skip_page_checksum", Press::No, 100),
    ("sync_covers_later_writes", Press::No, 300),
    ("truncate_keeps_extents", Press::No, 40),
];

fn pressed(seed: u64, press: Press) -> Plan {
    let mut plan = Plan::from_seed(seed);
    for step in &mut plan.steps {
        if let Step::Faults(faults) = step {
            match press {
                Press::No => {}
                Press::Syncs => {
                    *faults = DiskFaults {
                        sync_error: 150,
                        ..DiskFaults::default()
                    };
                }
            }
        }
    }
    plan
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
    for (bug, press, seeds_max) in TEETH {
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
