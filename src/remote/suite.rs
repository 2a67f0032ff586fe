//! What every remote has to do, whatever stands behind it.

use super::{Created, FailureKind, Listed, NAME_MAX, Remote, creates_conditionally};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

/// More than servers put in one page of a listing.
const MANY: usize = 1005;

/// Runs on a runtime like the uploader's.
pub(crate) fn blocks_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// All of it, on an empty bucket, which is empty again at the end.
pub(crate) async fn run(remote: &dyn Remote) {
    equal_and_once(remote).await;
    missing(remote).await;
    ranges(remote).await;
    names(remote).await;
    listings(remote).await;
    races(remote).await;
    let probe = "probe".to_owned();
    assert!(creates_conditionally(remote, &probe).await.unwrap());
    assert!(remote.delete(&[probe]).await.unwrap().is_empty());
    assert_eq!(remote.list("", None, 10).await.unwrap(), Vec::new());
}

async fn put(remote: &dyn Remote, name: &str, body: &'static [u8]) {
    let created = remote.create(name, vec![Bytes::from_static(body)]).await;
    assert_eq!(created.unwrap(), Created::New, "{name}");
}

pub(crate) async fn delete_all(remote: &dyn Remote, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let failed = remote.delete(&names).await.unwrap();
    assert!(failed.is_empty(), "{failed:?}");
}

// scenario 121: what is put comes back equal, of several parts, too; and it is never replaced
async fn equal_and_once(remote: &dyn Remote) {
    let part = |seed: usize, len: usize| -> Bytes {
        let byte = |index: usize| (index * 7 + (index >> 8) + seed) as u8;
        (0..len).map(byte).collect::<Vec<u8>>().into()
    };
    let parts = vec![part(1, 4096), Bytes::new(), part(2, 300_001), part(3, 1)];
    let whole: Bytes = parts.concat().into();
    let created = remote.create("a", parts).await.unwrap();
    assert_eq!(created, Created::New);
    let len = whole.len() as u64;
    assert_eq!(remote.get("a", 0, len).await.unwrap(), whole);
    assert_eq!(remote.head("a").await.unwrap(), len);
    let again = remote.create("a", vec![part(9, 10)]).await.unwrap();
    assert_eq!(again, Created::Exists);
    assert_eq!(remote.get("a", 0, len).await.unwrap(), whole);
    delete_all(remote, &["a"]).await;
}

// scenario 122: a missing object is missing, deleting it is fine; no bytes are an object, too
async fn missing(remote: &dyn Remote) {
    let is_missing = |kind: FailureKind| assert_eq!(kind, FailureKind::Missing);
    is_missing(remote.get("a", 0, 10).await.unwrap_err().kind);
    is_missing(remote.head("a").await.unwrap_err().kind);
    delete_all(remote, &["a", "b"]).await;
    put(remote, "a", b"").await;
    assert_eq!(remote.head("a").await.unwrap(), 0);
    assert_eq!(remote.get("a", 0, 10).await.unwrap(), Bytes::new());
    let again = remote.create("a", vec![Bytes::from_static(b"x")]).await;
    assert_eq!(again.unwrap(), Created::Exists);
    assert_eq!(remote.head("a").await.unwrap(), 0);
    delete_all(remote, &["a"]).await;
    is_missing(remote.get("a", 0, 10).await.unwrap_err().kind);
    // The name is free again.
    put(remote, "a", b"1").await;
    delete_all(remote, &["a"]).await;
}

// scenario 123: ranges, cut off at the end
async fn ranges(remote: &dyn Remote) {
    put(remote, "a", b"hello world").await;
    let rows: &[(u64, u64, &[u8])] = &[
        (0, 5, b"hello"),
        (6, 5, b"world"),
        (6, 100, b"world"),
        (10, 1, b"d"),
        (0, u64::MAX, b"hello world"),
        (3, u64::MAX, b"lo world"),
        (11, 1, b""),
        (12, 5, b""),
        (u64::MAX, 5, b""),
        (3, 0, b""),
    ];
    for (offset, len, expected) in rows {
        let bytes = remote.get("a", *offset, *len).await.unwrap();
        assert_eq!(bytes, *expected, "{offset} {len}");
    }
    // Also what would be empty of an object that is not there.
    let missing = remote.get("b", 3, 0).await.unwrap_err();
    assert_eq!(missing.kind, FailureKind::Missing);
    delete_all(remote, &["a"]).await;
}

// scenario 125: names of every allowed sign, and as long as they may be
async fn names(remote: &dyn Remote) {
    let long = "x".repeat(NAME_MAX);
    let all = ["0123456789-abcdefghijklmnopqrstuvwxyz", "-", long.as_str()];
    for name in all {
        put(remote, name, b"1").await;
        assert_eq!(remote.head(name).await.unwrap(), 1, "{name}");
        let listed = remote.list(name, None, 2).await.unwrap();
        assert_eq!(listed.len(), 1, "{name}");
    }
    delete_all(remote, &all).await;
}

// scenario 124: listings by prefix and in pages, in byte order; deletes in batches
async fn listings(remote: &dyn Remote) {
    let name = |index: usize| format!("m-{index:04}");
    let mut under_way = FuturesUnordered::new();
    for index in 0..MANY {
        if under_way.len() == 32 {
            under_way.next().await;
        }
        under_way.push(async move {
            let body = vec![Bytes::from(vec![1; index % 3])];
            remote.create(&name(index), body).await.unwrap();
        });
    }
    while under_way.next().await.is_some() {}
    drop(under_way);
    put(remote, "a", b"").await;
    put(remote, "m", b"").await;
    put(remote, "n", b"").await;
    let expected = |index: usize| Listed {
        name: name(index),
        len: (index % 3) as u64,
    };
    let all: Vec<Listed> = (0..MANY).map(expected).collect();
    assert_eq!(remote.list("m-", None, 5000).await.unwrap(), all);
    assert_eq!(remote.list("", None, 5000).await.unwrap().len(), MANY + 3);
    assert_eq!(remote.list("", None, 1).await.unwrap()[0].name, "a");
    assert_eq!(remote.list("m-00", None, 5000).await.unwrap(), all[..100]);
    assert_eq!(remote.list("b", None, 5000).await.unwrap(), Vec::new());
    let mut pages: Vec<Listed> = Vec::new();
    loop {
        let after = pages.last().map(|last| last.name.clone());
        let page = remote.list("m-", after.as_deref(), 400).await.unwrap();
        assert!(page.len() <= 400);
        if page.is_empty() {
            break;
        }
        pages.extend(page);
    }
    assert_eq!(pages, all);
    // One who is not there any more is as good to go on after as any.
    delete_all(remote, &["m-0500"]).await;
    let page = remote.list("m-", Some("m-0500"), 1).await.unwrap();
    assert_eq!(page[0].name, "m-0501");
    let names: Vec<String> = (0..MANY).map(name).collect();
    assert!(remote.delete(&names).await.unwrap().is_empty());
    delete_all(remote, &["a", "m", "n"]).await;
    assert!(remote.delete(&[]).await.unwrap().is_empty());
    assert_eq!(remote.list("", None, 5000).await.unwrap(), Vec::new());
}

// scenario 126: of several that race for a name one wins, with a whole value
async fn races(remote: &dyn Remote) {
    for round in 0..10 {
        let name = format!("race-{round}");
        let create = |writer: u8| {
            let parts = vec![Bytes::from(vec![writer; 50_000]); 2];
            remote.create(&name, parts)
        };
        let created = join_all((0..8).map(create)).await;
        let winners: Vec<usize> = created
            .into_iter()
            .enumerate()
            .filter(|(_, created)| *created.as_ref().unwrap() == Created::New)
            .map(|(writer, _)| writer)
            .collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        let value = remote.get(&name, 0, u64::MAX).await.unwrap();
        assert_eq!(value, vec![winners[0] as u8; 100_000]);
        delete_all(remote, &[&name]).await;
    }
}
