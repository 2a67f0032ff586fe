//! `bench`: measurements with fio's words, and without any options the tour.
//!
//! The only place beside the engine's `stats` that names `hdrhistogram`: three digits here, since a
//! benchmark is read more closely than a running store is watched.

mod aim;
pub(crate) mod args;
mod fio;
mod load;
mod place;
mod show;
pub(crate) mod tally;
mod tour;

use super::args::Global;
use super::outcome::Report;
use super::{clock, machine, progress};
use args::{BenchArgs, OutputFormat, Rw};
use load::{Job, Outcome};
use place::Place;
use ringstore::{Config, Stats, Store};
use serde_json::Value;
use show::{Footer, Row};

/// Runs what the options ask for.
pub(crate) async fn run(global: &Global, args: BenchArgs) -> anyhow::Result<Report> {
    let Some(rw) = args.rw else {
        return tour::run(global, &args).await;
    };
    let load = machine::load();
    let place = match &global.dir {
        Some(dir) => Place::given(dir),
        None => Place::temporary()?,
    };
    let store = super::open(configured(&place, global, &args)?, global).await?;
    let result = measure(&store, global, &args, rw).await;
    let closed = store.close().await;
    let (outcome, stats) = result?;
    closed?;
    let footer = Footer::new(place.dir(), &stats, args.seed, load);
    let mut fields = fio::result(&args, rw, &outcome);
    fields["environment"] = footer.json();
    let report = Report::answer(normal(&args, &outcome, &footer), fields);
    Ok(match args.output_format {
        OutputFormat::Normal => report,
        OutputFormat::JsonPlus => report.always_json(),
    })
}

fn configured(place: &Place, global: &Global, args: &BenchArgs) -> anyhow::Result<Config> {
    let mut config = place.config(global)?;
    config.shards = args.shards;
    config.idle_spin = args.idle_spin.unwrap_or(config.idle_spin);
    Ok(config)
}

async fn measure(
    store: &Store,
    global: &Global,
    args: &BenchArgs,
    rw: Rw,
) -> anyhow::Result<(Outcome, Stats)> {
    let mut jobs = Vec::new();
    for job in 0..args.numjobs {
        jobs.push(Job::new(store, args, rw, job)?);
    }
    if rw.reads() {
        let total = args.size.saturating_mul(u64::from(args.numjobs));
        let bar = progress::bytes(global, "layout", Some(total));
        for job in &jobs {
            job.lay_out(&bar).await?;
        }
        store.flush_all().await?;
        bar.finish_and_clear();
    }
    let waiting = progress::spinner(global);
    waiting.set_message(format!("{} under way", rw.name()));
    waiting.enable_steady_tick(std::time::Duration::from_millis(200));
    let start = clock::now();
    let running: Vec<_> = jobs
        .into_iter()
        .map(|mut job| tokio::spawn(async move { (job.run(start).await, job) }))
        .collect();
    let mut outcome = Outcome::default();
    let mut done = Vec::new();
    for running in running {
        let (result, job) = running.await?;
        outcome.merge(&result?);
        done.push(job);
    }
    waiting.finish_and_clear();
    let stats = store.stats().await?;
    for job in &done {
        job.clean_up().await?;
    }
    Ok((outcome, stats))
}

fn normal(args: &BenchArgs, outcome: &Outcome, footer: &Footer) -> String {
    let mut rows = Vec::new();
    for (name, tally) in outcome.kinds() {
        let row = |name: String, is_total: bool| Row {
            name,
            tally,
            span: outcome.span,
            is_total,
        };
        match args.rate_iops {
            None => rows.push(row(name.to_owned(), false)),
            Some(_) => {
                rows.push(row(format!("{name} lat"), true));
                rows.push(row(format!("{name} clat"), false));
            }
        }
    }
    let note = match args.rate_iops {
        Some(_) => "lat counts from the intended beginning, clat from the actual one\n",
        None => "",
    };
    format!("{}\n\n{note}{}", show::table(&rows), footer.text())
}

/// Puts an object's fields into another one.
fn extend(fields: &mut Value, with: Value) {
    if let (Value::Object(fields), Value::Object(with)) = (fields, with) {
        fields.extend(with);
    }
}
