//! A store and the S3 server that it keeps everything on: ours in memory, or the one that
//! `RINGSTORE_S3_URL` names, with the credentials of the environment.

mod common;
#[path = "common/s3_server.rs"]
mod s3_server;

use bytes::Bytes;
use common::{assert_kind, id, open, run};
use hyper::Method;
use ringstore::{Config, ErrorKind, PayloadId, RemoteConfig, Store};
use s3_server::{BUCKET, Conditions, Fault, KEY_ID, SECRET, Server};
use std::path::Path;
use std::time::Duration;

/// Name of the variable with the URL of a server that is not ours.
const URL: &str = "RINGSTORE_S3_URL";

/// The remote that a test has for itself.
fn remote(server: &Server, prefix: &str) -> RemoteConfig {
    let url = match std::env::var(URL) {
        Ok(url) => {
            let (path, query) = url.split_once('?').unwrap_or((&url, ""));
            let run = std::process::id();
            format!("{}/{prefix}-{run}?{query}", path.trim_end_matches('/'))
        }
        Err(_) => {
            let query = format!("endpoint={}&region=us-east-1", server.endpoint());
            format!("s3://{BUCKET}/{prefix}?{query}&path_style=true")
        }
    };
    let mut remote = RemoteConfig::from_url(&url).unwrap();
    if std::env::var(URL).is_err()
        && let RemoteConfig::S3(s3) = &mut remote
    {
        s3.access_key_id = Some(KEY_ID.to_owned());
        s3.secret_access_key = Some(SECRET.to_owned());
    }
    remote
}

fn config(dir: &Path, remote: &RemoteConfig) -> Config {
    let mut config = Config::new(dir);
    config.shards = Some(2);
    config.pin_threads = false;
    config.segment_bytes = 64 << 10;
    config.seal_after = Duration::from_millis(200);
    config.remote = Some(remote.clone());
    config
}

fn bytes(seed: u8, len: usize) -> Bytes {
    let byte = |index: usize| (index as u8).wrapping_mul(31) ^ (index >> 8) as u8 ^ seed;
    (0..len).map(byte).collect::<Vec<u8>>().into()
}

async fn read(store: &Store, id: &PayloadId) -> Bytes {
    let size = store.size(id).await.unwrap();
    let read = store.read_at(id, 0, size as usize).await.unwrap();
    read.into_bytes()
}

/// Writes, drains, and says what a reader must find.
async fn fill(store: &Store) -> Vec<(PayloadId, Bytes)> {
    for index in 0..20u8 {
        let name = id(&format!("p-{index}"));
        let offset = u64::from(index) * 500;
        let data = bytes(index, 30_000 + usize::from(index) * 1111);
        store.write_at(&name, offset, data).await.unwrap();
    }
    store.copy(&id("p-3"), &id("clone")).await.unwrap();
    let data = bytes(99, 5000);
    store.write_at(&id("p-3"), 700, data).await.unwrap();
    store.truncate(&id("p-5"), 100).await.unwrap();
    store.delete(&id("p-7")).await.unwrap();
    store.drain_uploads().await.unwrap();
    let mut expected = Vec::new();
    for name in store.list(None, 100).await.unwrap() {
        expected.push((name.clone(), read(store, &name).await));
    }
    assert_eq!(expected.len(), 20);
    expected
}

/// Rebuilds a store from the remote alone, and compares.
async fn rebuild(remote: &RemoteConfig, expected: &[(PayloadId, Bytes)]) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::rebuild(config(dir.path(), remote)).await.unwrap();
    let names = store.list(None, 100).await.unwrap();
    let known: Vec<PayloadId> = expected.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, known);
    for (name, content) in expected {
        assert_eq!(&read(&store, name).await, content, "{name}");
    }
    assert!(store.verify().await.unwrap().corrupt.is_empty());
    store.close().await.unwrap();
}

// scenario 110: an empty node has the same list, sizes, contents and clones, from a real protocol
#[test]
fn bucket_alone_is_a_store() {
    let server = Server::start();
    let remote = remote(&server, "alone");
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(config(dir.path(), &remote)).await.unwrap();
        let expected = fill(&store).await;
        drop(store);
        rebuild(&remote, &expected).await;
    });
    if std::env::var(URL).is_err() {
        let keys = server.keys();
        assert!(!keys.is_empty());
        assert!(keys.iter().all(|key| key.starts_with("alone/")), "{keys:?}");
    }
}

#[test]
fn evicted_bytes_come_back() {
    let server = Server::start();
    let remote = remote(&server, "evicted");
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(config(dir.path(), &remote)).await.unwrap();
        let data = bytes(7, 300_000);
        store.write_at(&id("a"), 0, data.clone()).await.unwrap();
        assert!(store.evict(&id("a")).await.unwrap() >= 300_000);
        assert_eq!(read(&store, &id("a")).await, data);
        store.close().await.unwrap();
    });
}

#[test]
fn server_with_hiccups_loses_nothing() {
    let server = Server::start();
    if std::env::var(URL).is_ok() {
        println!("SKIPPED: the server of {URL} has no hiccups to order");
        return;
    }
    let remote = remote(&server, "hiccups");
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let store = Store::open(config(dir.path(), &remote)).await.unwrap();
        for fault in [
            Fault::Before(503),
            Fault::After(500),
            Fault::Before(409),
            Fault::DropAfter,
            Fault::DropBefore,
        ] {
            server.fail(Method::PUT, fault, 2);
        }
        let expected = fill(&store).await;
        assert_eq!(server.heal(), 0);
        drop(store);
        server.fail(Method::GET, Fault::Cut, 1);
        server.fail(Method::GET, Fault::Before(503), 2);
        rebuild(&remote, &expected).await;
    });
}

// S-24: a server that lets two engines write is written to by who says that there is one
#[test]
fn server_that_cannot_fence_needs_a_word_for_it() {
    if std::env::var(URL).is_ok() {
        return;
    }
    for (prefix, conditions) in [
        ("ignored", Conditions::Ignored),
        ("unknown", Conditions::NotImplemented),
    ] {
        let server = Server::start();
        server.treat_conditions(conditions);
        let fenced = remote(&server, prefix);
        let mut unfenced = fenced.clone();
        if let RemoteConfig::S3(s3) = &mut unfenced {
            s3.unfenced = true;
        }
        let [dir, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        run(async {
            let store = Store::open(config(dir.path(), &fenced)).await.unwrap();
            let first = id("p-0");
            store.write_at(&first, 0, bytes(1, 5000)).await.unwrap();
            assert_kind(store.wait_remote(&first).await, ErrorKind::InvalidInput);
            drop(store);
            let store = open(config(dir.path(), &unfenced)).await.unwrap();
            let expected = fill(&store).await;
            let before = server.keys();
            let rebuilt = Store::rebuild(config(other.path(), &fenced)).await;
            assert_kind(rebuilt, ErrorKind::InvalidInput);
            let manifests = |keys: Vec<String>| {
                let is_manifest = |key: &String| key.contains("/m-");
                keys.into_iter().filter(is_manifest).collect::<Vec<_>>()
            };
            assert_eq!(
                manifests(server.keys()),
                manifests(before),
                "nothing is claimed"
            );
            drop(store);
            rebuild(&unfenced, &expected).await;
        });
    }
}
