//! The simulator.
fn main() {
    let args: Vec<u64> = std::env::args()
        .skip(1)
        .map(|a| a.parse().unwrap())
        .collect();
    ringstore::sim::try_seeds(args[0], args[1]);
}
