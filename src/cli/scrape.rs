//! `serve --admin`: `GET /metrics` over HTTP, for Prometheus and for people with curl.
//!
//! Invariants:
//! 1. Only this machine is answered: a socket of mode 0600, or the loopback interface.
//! 2. A client gets one answer, takes `PATIENCE` at most, and `HEAD_BYTES_MAX` of memory before it
//!    has said what it wants; there are `CLIENTS_MAX` of them at a time. No body is read.
//! 3. Nothing that is asked here changes anything.

use super::args::Door;
use super::metrics;
use super::socket::{self, SocketFile};
use anyhow::Context;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ringstore::Store;
use std::convert::Infallible;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Longest request that is taken.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// Clients that are served at a time; others wait to be accepted.
const CLIENTS_MAX: usize = 16;

/// How long a client may take to say what it wants, and then to hear the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where clients are accepted.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A client, however it came.
trait Client: AsyncRead + AsyncWrite + Send + Unpin {}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> Client for C {}

impl Listener {
    /// Where it can be reached, for people.
    pub(crate) fn at(&self) -> String {
        match self {
            Listener::Unix(listener) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.map_or(String::new(), |path| format!("socket={}", path.display()))
            }
            Listener::Tcp(listener) => {
                let address = listener.local_addr();
                address.map_or(String::new(), |address| {
                    format!("url=http://{address}/metrics")
                })
            }
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Client>> {
        Ok(match self {
            Listener::Unix(listener) => Box::new(listener.accept().await?.0),
            Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Makes the door and listens at it.
pub(crate) async fn listen(door: &Door) -> anyhow::Result<(Listener, Option<SocketFile>)> {
    match door {
        Door::Unix(path) => {
            let (listener, file) = socket::listen(path)?;
            Ok((Listener::Unix(listener), Some(file)))
        }
        Door::Loopback(address) => {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("cannot listen: address={address}"))?;
            Ok((Listener::Tcp(listener), None))
        }
    }
}

/// Answers until `stop` says so.
pub(crate) async fn serve(listener: Listener, store: Store, mut stop: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if clients.len() < CLIENTS_MAX => match accepted {
                Ok(client) => {
                    clients.spawn(answer(client, store.clone()));
                }
                Err(error) => {
                    tracing::warn!("a client could not be accepted: error={error}");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = clients.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("an answer ended in a defect: error={error}");
                }
            }
            () = async { drop(stop.wait_for(|stop| *stop).await) } => break,
        }
    }
    clients.shutdown().await;
}

/// One request, one answer.
async fn answer(client: Box<dyn Client>, store: Store) {
    let service = service_fn(async |request| Ok::<_, Infallible>(respond(&store, &request).await));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(client), service);
    match timeout(2 * PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a client was not served: error={error}"),
        Err(_) => tracing::debug!("a client was too slow"),
    }
}

async fn respond(store: &Store, request: &Request<Incoming>) -> Response<String> {
    let mut response = Response::new(String::new());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = "there is /metrics\n".to_owned();
        return response;
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        let methods = hyper::header::HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, methods);
        return response;
    }
    match metrics::text(store).await {
        Ok(text) => {
            let kind = hyper::header::HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            *response.body_mut() = text;
        }
        Err(error) => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            *response.body_mut() = format!("{error:#}\n");
        }
    }
    response
}
