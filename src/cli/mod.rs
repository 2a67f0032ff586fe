//! The command line: arguments in, the library's public API, a report and an exit code out.
//!
//! Invariants:
//! 1. Results go to standard output, logs, progress and errors to standard error.
//! 2. What a command reports as done is durable: the store was closed before.
//! 3. Nothing here is known to the library, and nothing of the library's inside is known here.

mod admin;
mod args;
mod bench;
mod clock;
mod copying;
mod doctor;
mod holder;
mod machine;
mod metrics;
#[cfg(feature = "fuse")]
mod mount;
mod outcome;
mod payloads;
mod progress;
mod remote;
mod report;
mod scrape;
mod segments;
mod serve;
mod settings;
mod socket;
mod sparse;
mod units;

use anyhow::Context;
use args::{Arguments, Command, Global};
use outcome::{Code, Interrupted, Report, UsageError, code_of, is_broken_pipe, message};
use ringstore::{Config, DriverKind, ErrorKind, RemoteConfig, Store};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long an interrupted command may take to clean up before it is cut off.
const GRACE: Duration = Duration::from_secs(3);

/// Runs the command that was typed.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    start_logging(&arguments.global);
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("threads cannot be started")
        .and_then(|runtime| {
            let result = runtime.block_on(interruptible(arguments));
            // A read of a terminal that never ends must not keep the process.
            runtime.shutdown_background();
            result
        });
    let code = match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => Code::Failed,
        Err(error) => {
            let code = code_of(&error);
            eprintln!("ringstore: {}", message(&error));
            code
        }
    };
    ExitCode::from(code as u8)
}

fn start_logging(global: &Global) {
    use tracing::level_filters::LevelFilter;
    let level = match (global.quiet, global.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
}

async fn interruptible(arguments: Arguments) -> anyhow::Result<Code> {
    let Arguments { global, command } = arguments;
    if let Command::Serve(args) = command {
        // It has its own way with signals.
        let report = serve::run(&global, args).await?;
        return report.print(global.json, global.quiet);
    }
    #[cfg(feature = "fuse")]
    if let Command::Mount(args) = command {
        let report = mount::run(&global, args).await?;
        return report.print(global.json, global.quiet);
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let interrupted = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async {
            tokio::time::sleep(GRACE).await;
            std::process::exit(Code::Interrupted as i32);
        });
    };
    tokio::select! {
        result = run(&global, command) => result?.print(global.json, global.quiet),
        () = interrupted => Err(Interrupted.into()),
    }
}

async fn run(global: &Global, command: Command) -> anyhow::Result<Report> {
    match command {
        Command::Bench(args) => return bench::run(global, *args).await,
        Command::Doctor => return doctor::run(global).await,
        Command::Init(init) => return settings::init(global, &init).await,
        Command::Rebuild => return remote::rebuild(global).await,
        _ => {}
    }
    let store = match open(settings::load(global)?, global).await {
        Ok(store) => store,
        Err(error) => return admin::instead(global, &command, error).await,
    };
    let result = on_store(&store, global, command).await;
    let closed = store.close().await;
    let mut report = result?;
    match closed {
        // Everything is on this machine, and goes on to the remote at the next opening.
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            tracing::warn!("{error}");
            if report.code == Code::Ok {
                report.code = Code::Degraded;
            }
        }
        closed => closed.context("the store could not be closed")?,
    }
    Ok(report)
}

async fn on_store(store: &Store, global: &Global, command: Command) -> anyhow::Result<Report> {
    match command {
        Command::Put(put) => copying::put(store, &put, global).await,
        Command::Get(get) => copying::get(store, &get, global).await,
        Command::Cp { source, target } => payloads::copy(store, &source, &target).await,
        Command::Rm { ids } => payloads::remove(store, &ids).await,
        Command::Truncate { id, size } => payloads::truncate(store, &id, size).await,
        Command::Punch { id, offset, len } => payloads::punch(store, &id, offset, len).await,
        Command::Ls { prefix, long } => payloads::list(store, prefix.as_deref(), long).await,
        Command::Stat { id, extents } => payloads::stat(store, &id, extents).await,
        Command::Flush { id, .. } => {
            payloads::flush(store, id.as_ref(), global.waits_for_remote()).await
        }
        Command::Evict { id, .. } => remote::evict(store, id.as_ref()).await,
        Command::Drain => remote::drain(store, global).await,
        Command::Stats { per_shard, watch } => {
            report::stats(store, per_shard, watch, global.json).await
        }
        Command::Health => report::health(store).await,
        Command::Verify { .. } => report::verify(store, global).await,
        Command::Segments { command } => segments::run(store, &command).await,
        #[cfg(feature = "fuse")]
        Command::Mount(_) => unreachable!("it opens its own store"),
        Command::Serve(_) => unreachable!("it opens its own store"),
        Command::Bench(_) | Command::Doctor | Command::Init(_) => {
            unreachable!("these open no store, or their own")
        }
        Command::Rebuild => unreachable!("it opens the store in its own way"),
    }
}

/// The configuration that the global options ask for.
fn config(global: &Global) -> anyhow::Result<Config> {
    let Some(dir) = &global.dir else {
        return Err(UsageError("give the store's directory with -d or RINGSTORE_DIR").into());
    };
    let mut config = Config::new(dir);
    config.driver = global.driver;
    if let Some(url) = global.remote_url() {
        config.remote = Some(RemoteConfig::from_url(&url)?);
    }
    Ok(config)
}

/// Whether no driver will do but one that works through io_uring.
fn insists_on_ring(global: &Global) -> bool {
    !matches!(global.driver, DriverKind::Auto | DriverKind::Threads)
}

/// Opens a store, and tells an unsupported machine from other failures.
async fn open(config: Config, global: &Global) -> anyhow::Result<Store> {
    match Store::open(config).await {
        Ok(store) => Ok(store),
        // Whether the ring was to blame is found out where nothing else can be.
        Err(error) if insists_on_ring(global) && !doctor::has_ring().await => {
            Err(anyhow::Error::new(outcome::Unsupported(error)))
        }
        Err(error) => Err(error.into()),
    }
}
