//! The simulator.

mod client;
mod content;
mod generate;
mod history;
mod observe;
mod plan;
mod run;
mod world;

/// Temporary.
pub fn try_seeds(from: u64, to: u64) {
    let mut total = [0; plan::KINDS.len()];
    let (mut crashes, mut given_up) = (0, 0);
    for seed in from..to {
        let plan = plan::Plan::from_seed(seed);
        let outcome = run::run(&plan);
        for (sum, count) in total.iter_mut().zip(outcome.successes) {
            *sum += count;
        }
        crashes += outcome.crashes;
        given_up += outcome.given_up;
        if let Some(failure) = outcome.failure {
            println!("SEED {seed}: {failure}");
        }
    }
    println!("{total:?} crashes {crashes} given up {given_up}");
}
