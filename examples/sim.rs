//! Runs the simulator: random plans against a model, with crashes, from a seed.
//!
//! `cargo run --release --features sim --example sim -- --seconds 60`
//!
//! `--seeds N` runs so many, `--start-seed S` begins there, `--seed S` replays one, `--plan FILE`
//! replays a plan, `--keep-going` does not stop at the first failure, `--json` prints figures for
//! machines, `--print-plan S` shows the plan of a seed. `--exhaustive N` runs every program of up
//! to N operations with every crash instead. `--remote` gives the stores remotes, and loses
//! machines with their disks.

use ringstore::sim::Campaign;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs without `--seconds` and `--seeds` take this long.
const SECONDS_DEFAULT: u64 = 60;

#[derive(Default)]
struct Options {
    seconds: Option<u64>,
    seeds: Option<u64>,
    start: u64,
    seed: Option<u64>,
    plan: Option<String>,
    print_plan: Option<u64>,
    exhaustive: Option<u32>,
    keep_going: bool,
    json: bool,
    remote: bool,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(arg) = args.next() {
        let mut word = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        let number = |word: String| word.parse().map_err(|_| format!("{word} is no number"));
        match arg.as_str() {
            "--seconds" => options.seconds = Some(number(word()?)?),
            "--seeds" => options.seeds = Some(number(word()?)?),
            "--start-seed" => options.start = number(word()?)?,
            "--seed" => options.seed = Some(number(word()?)?),
            "--plan" => options.plan = Some(word()?),
            "--exhaustive" => options.exhaustive = Some(number(word()?)? as u32),
            "--print-plan" => options.print_plan = Some(number(word()?)?),
            "--keep-going" => options.keep_going = true,
            "--json" => options.json = true,
            "--remote" => options.remote = true,
            _ => return Err(format!("unknown option: {arg}")),
        }
    }
    Ok(options)
}

/// False if something was wrong.
fn run(options: &Options) -> bool {
    if let Some(seed) = options.print_plan {
        print!("{}", Campaign::plan_of_seed(seed));
        return true;
    }
    let mut campaign = match options.remote {
        true => Campaign::with_remote(),
        false => Campaign::new(),
    };
    if let Some(path) = &options.plan {
        return run_plan(&mut campaign, path);
    }
    let (first, count) = match options.seed {
        Some(seed) => (seed, Some(1)),
        None => (options.start, options.seeds),
    };
    let endless = options.exhaustive.is_none() && count.is_none();
    let unlimited = endless && options.seconds.is_none();
    let seconds = options.seconds.or(unlimited.then_some(SECONDS_DEFAULT));
    #[expect(
        clippy::disallowed_methods,
        reason = "how long to go on is told by a real clock"
    )]
    let began = Instant::now();
    if let Some(ops) = options.exhaustive {
        let more = || seconds.is_none_or(|seconds| began.elapsed().as_secs() < seconds);
        let failure = campaign.run_exhaustively(ops, more);
        failure.iter().for_each(|failure| println!("{failure}"));
        return report(&campaign, options, failure.is_some().into());
    }
    let mut failures = 0;
    let mut seed = first;
    while count.is_none_or(|count| seed - first < count) {
        if seconds.is_some_and(|seconds| began.elapsed() >= Duration::from_secs(seconds)) {
            break;
        }
        if let Some(failure) = campaign.run_seed(seed) {
            println!("seed {seed} fails: {failure}");
            failures += 1;
            if !options.keep_going {
                break;
            }
        }
        seed += 1;
    }
    report(&campaign, options, failures)
}

fn run_plan(campaign: &mut Campaign, path: &str) -> bool {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{path} cannot be read: {error}");
            return false;
        }
    };
    match campaign.run_plan(&text) {
        Ok(failure) => {
            failure.iter().for_each(|failure| println!("{failure}"));
            println!("{campaign}");
            failure.is_none()
        }
        Err(why) => {
            eprintln!("{path}: {why}");
            false
        }
    }
}

fn report(campaign: &Campaign, options: &Options, failures: u64) -> bool {
    let blind = campaign.blind_spots();
    let cpu = cpu_seconds();
    let per_second = |count: u64| (count as f64 / cpu) as u64;
    let mut figures = campaign.figures();
    let rates = [
        ("failures", failures),
        (
            "operations per cpu second",
            per_second(campaign.operations()),
        ),
        ("crashes per cpu second", per_second(campaign.crashes())),
    ];
    figures.extend(rates.map(|(name, count)| (name.to_owned(), count)));
    match options.json {
        true => {
            let fields = figures.iter().map(|it| format!("\"{}\":{}", it.0, it.1));
            println!("{{{}}}", fields.collect::<Vec<_>>().join(","));
        }
        false => figures
            .iter()
            .for_each(|(name, count)| println!("{count:>10}  {name}")),
    }
    for spot in &blind {
        println!("never seen, or too rarely: {spot}");
    }
    failures == 0 && blind.is_empty()
}

/// Processor time that this process has used.
fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return f64::NAN;
    };
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    (seconds(usage.user_time()) + seconds(usage.system_time())).max(1e-6)
}
