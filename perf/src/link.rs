//! A link to a remote: so long a way, so much a second for each stream, and for all together.
//!
//! It stands between the engine and the server as a proxy for TCP. The latency is paid once for
//! each answer, when its first bytes arrive after bytes of a request have gone the other way; rates
//! are kept by a schedule, so that a timer that is late costs nothing over the time.
//!
//! Deliberately not here: loss, jitter, and the setting up of a connection, which is free.

use crate::measure::Sample;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

/// Bytes that are passed on at once: a millisecond of a stream of 64 MB/s.
const PIECE: usize = 64 << 10;

/// How far a schedule may lie behind without being given up: the timer ticks in milliseconds.
const BURST: Duration = Duration::from_millis(5);

/// What the link says of a sample: bytes of answers for each that was asked for, and answers.
pub const FETCHED: &str = "fetched-B/B";
pub const REQUESTS: &str = "requests";

/// How the link is. Rates are bytes a second; none: as fast as it goes.
#[derive(Clone, Copy, Default)]
pub struct Shape {
    pub latency: Duration,
    pub stream_rate: Option<f64>,
    pub total_rate: Option<f64>,
}

/// A running link; it ends with this.
pub struct Link {
    pub port: u16,
    state: Arc<State>,
    _stop: oneshot::Sender<Infallible>,
}

struct State {
    shape: Mutex<Shape>,
    total: Mutex<Schedule>,
    answers: AtomicU64,
    answered_bytes: AtomicU64,
}

impl Link {
    pub fn to(port: u16, shape: Shape) -> io::Result<Link> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let state = Arc::new(State {
            shape: Mutex::new(shape),
            total: Mutex::new(Schedule::new()),
            answers: AtomicU64::new(0),
            answered_bytes: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let link = Link {
            port: listener.local_addr()?.port(),
            state: state.clone(),
            _stop: stop,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let live = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => Ok(()),
                    failed = accept(listener, port, state) => failed,
                }
            })
        };
        std::thread::Builder::new()
            .name("link".to_owned())
            .spawn(live)?;
        Ok(link)
    }

    /// Makes it another one, for what is passed on from now on.
    pub fn reshape(&self, shape: Shape) {
        *lock(&self.state.shape) = shape;
    }

    /// Bytes of answers that have come over it, heads and all.
    pub fn answered_bytes(&self) -> u64 {
        self.state.answered_bytes.load(Ordering::Relaxed)
    }

    /// Adds to a sample what has come over the link meanwhile.
    pub fn counted(&self, work: impl FnOnce() -> anyhow::Result<Sample>) -> anyhow::Result<Sample> {
        let answers = &self.state.answers;
        let (before, bytes) = (answers.load(Ordering::Relaxed), self.answered_bytes());
        let sample = work()?;
        let each = (self.answered_bytes() - bytes) as f64 / sample.bytes as f64;
        let requests = (answers.load(Ordering::Relaxed) - before) as f64;
        Ok(sample.with(FETCHED, each).with(REQUESTS, requests))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: std::net::TcpListener, port: u16, state: Arc<State>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        let state = state.clone();
        // A connection that breaks is the client's to notice.
        tokio::spawn(async move {
            let server = TcpStream::connect(("127.0.0.1", port)).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let asked = AtomicBool::new(false);
            let there = pump(from_client, to_server, &state, |_, _| {
                asked.store(true, Ordering::Relaxed);
                false
            });
            let back = pump(from_server, to_client, &state, |state, len| {
                state
                    .answered_bytes
                    .fetch_add(len as u64, Ordering::Relaxed);
                let is_first = asked.swap(false, Ordering::Relaxed);
                state.answers.fetch_add(is_first.into(), Ordering::Relaxed);
                is_first
            });
            tokio::try_join!(there, back).map(drop)
        });
    }
}

/// Passes everything on. `turns`: whether a piece, of so many bytes, is the first of an answer.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    state: &State,
    turns: impl Fn(&State, usize) -> bool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut schedule = Schedule::new();
    loop {
        let len = from.read(&mut piece).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        let shape = *lock(&state.shape);
        if turns(state, len) {
            sleep(shape.latency).await;
        }
        let own = schedule.after(len, shape.stream_rate);
        let all = lock(&state.total).after(len, shape.total_rate);
        if let Some(until) = own.max(all) {
            sleep_until(until).await;
        }
        to.write_all(&piece[..len]).await?;
    }
}

/// When the next bytes are due.
struct Schedule(Instant);

impl Schedule {
    fn new() -> Schedule {
        Schedule(Instant::now())
    }

    /// When `len` bytes more are through, at a rate.
    fn after(&mut self, len: usize, rate: Option<f64>) -> Option<Instant> {
        let rate = rate?;
        let earliest = Instant::now() - BURST;
        self.0 = self.0.max(earliest) + Duration::from_secs_f64(len as f64 / rate);
        Some(self.0)
    }
}
