//! What ringstore does in a second, beside what others do in the next one.
//!
//! Figures of one machine mean little, ratios of one run a lot. So every row has its reference
//! here, on the same file system and in turns with ours; `README.md` says how each was equalised.

mod bench;
mod curves;
mod door;
mod fio;
/// What the command says of the machine, as it is.
#[path = "../../src/cli/machine.rs"]
mod host;
#[cfg(feature = "s3")]
mod link;
mod machine;
mod measure;
#[cfg(feature = "peers")]
mod peers;
#[cfg(feature = "s3")]
mod puts;
mod raw;
mod report;
mod rows;
/// The tests' server, as it is.
#[cfg(feature = "s3")]
#[path = "../../tests/common/s3_server.rs"]
mod s3_server;
#[cfg(feature = "slatedb")]
mod slate;

use bench::Bench;
use clap::{Parser, Subcommand, ValueEnum};
use measure::Case;
use report::Setting;
use rows::Row;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Measures ringstore beside fio, a bare ring and other engines")]
struct Arguments {
    /// Measure this row only; may be given several times
    #[arg(long, value_enum, value_name = "ROW")]
    only: Vec<Row>,
    /// Drivers to compare in read-random and read-hit; the first one is ours everywhere else
    #[arg(long, value_delimiter = ',', default_value = "uring,threads")]
    driver: Vec<String>,
    /// Directory to work in; something is made in it, and removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Tiny sizes: shows that everything runs, and nothing else
    #[arg(long)]
    quick: bool,
    /// Rounds of each side
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of a side in a round, where the clock ends it
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw latency curves
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    #[command(subcommand)]
    child: Option<Child>,
}

/// What the program tells itself to do in a process that is going to be killed.
#[derive(Subcommand)]
enum Child {
    /// Fills a store and waits for its end
    #[command(hide = true)]
    Fill(rows::open::Fill),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ran = match arguments.child {
        Some(Child::Fill(fill)) => rows::open::fill(&fill).map(|()| true),
        None => run(&arguments),
    };
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports. False: a side of ours has failed.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let (rounds, seconds) = match arguments.quick {
        true => (1, 0.2),
        false => (arguments.rounds, arguments.seconds),
    };
    let bench = Bench::new(
        &arguments.dir,
        arguments.quick,
        rounds.max(1),
        Duration::from_secs_f64(seconds),
        arguments.driver.clone(),
    )?;
    let setting = Setting {
        machine: machine::describe(&arguments.dir),
        load_before: host::load(),
        fio: fio_version(),
        is_quick: arguments.quick,
    };
    let rows = match arguments.only.is_empty() {
        true => Row::value_variants().to_vec(),
        false => arguments.only.clone(),
    };
    let mut cases = Vec::new();
    for row in rows {
        match row.run(&bench) {
            Ok(measured) => cases.extend(measured),
            Err(error) => cases.push(Case::failed(row.name(), &error)),
        }
    }
    if arguments.quick {
        // Tiny sizes reach nothing and miss nothing.
        cases.iter_mut().for_each(|case| case.verdicts.clear());
    }
    print!("{}", report::text(&cases, &setting, false));
    if let Some(path) = &arguments.json {
        fs::write(path, format!("{:#}\n", report::json(&cases, &setting)))?;
    }
    if let Some(path) = &arguments.markdown {
        fs::write(path, report::text(&cases, &setting, true))?;
    }
    if let Some(dir) = &arguments.svg {
        curves::draw(&cases, dir)?;
    }
    let mut sides = cases.iter().flat_map(|case| &case.sides);
    Ok(!sides.any(|side| side.is_required && side.error.is_some()))
}

fn fio_version() -> Option<String> {
    let output = Command::new("fio").arg("--version").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
