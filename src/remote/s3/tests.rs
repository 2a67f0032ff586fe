//! The bucket of a server, over a socket: the rules, and what comes of each fault.

#[path = "../../../tests/common/s3_server.rs"]
mod server;

use super::S3;
use crate::config::S3Config;
use crate::error::ErrorKind;
use crate::remote::suite::{blocks_on, run};
use crate::remote::{Created, Failure, FailureKind, Remote, creates_conditionally};
use bytes::Bytes;
use hyper::Method;
use server::{BUCKET, Conditions, Fault, KEY_ID, SECRET, Server};

fn config(endpoint: String) -> S3Config {
    let mut config = S3Config::new(BUCKET);
    config.prefix = "a/prefix/".to_owned();
    config.endpoint = Some(endpoint);
    config.region = Some("us-east-1".to_owned());
    config.path_style = true;
    config.access_key_id = Some(KEY_ID.to_owned());
    config.secret_access_key = Some(SECRET.to_owned());
    config
}

/// A test of a server and the bucket on it.
fn with_server(test: impl AsyncFnOnce(Server, S3)) {
    blocks_on(async {
        let server = Server::start();
        let bucket = S3::open(&config(server.endpoint())).await.unwrap();
        test(server, bucket).await;
    });
}

fn two_parts() -> Vec<Bytes> {
    vec![Bytes::from_static(b"hello "), Bytes::from_static(b"world")]
}

#[test]
fn keeps_the_rules() {
    with_server(async |server, bucket| {
        run(&bucket).await;
        assert_eq!(server.keys(), Vec::<String>::new());
    });
}

// scenario 125: signs that mean something in a URL, or none that it knows, mean nothing in a prefix
#[test]
fn prefix_may_be_of_any_signs() {
    blocks_on(async {
        for prefix in [
            "a b+c?d%e/",
            "f%20g&h=i#j/",
            "\u{fc}\u{20ac}\u{1f980}/",
            "k//l/",
        ] {
            let server = Server::start();
            let mut config = config(server.endpoint());
            config.prefix = prefix.to_owned();
            let bucket = S3::open(&config).await.unwrap();
            bucket.create("m-1", two_parts()).await.unwrap();
            assert_eq!(server.keys(), [format!("{prefix}m-1")]);
            bucket.delete(&["m-1".to_owned()]).await.unwrap();
            run(&bucket).await;
        }
    });
}

#[test]
fn objects_are_behind_the_prefix() {
    with_server(async |server, bucket| {
        for key in ["b", "a/prefix/c/d", "a/prefix/UPPER", "a/prefixes", "z"] {
            server.plant(key, b"another's");
        }
        bucket.create("b", two_parts()).await.unwrap();
        assert!(server.keys().contains(&"a/prefix/b".to_owned()));
        let listed = bucket.list("", None, 10).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].name.as_str(), listed[0].len), ("b", 11));
    });
}

/// A request, by what it comes to: `N`ew, `E`xists, or what it has got.
async fn request(bucket: &S3, method: &Method) -> Result<String, Failure> {
    Ok(match method.as_str() {
        "PUT" => match bucket.create("new", two_parts()).await? {
            Created::New => "N".to_owned(),
            Created::Exists => "E".to_owned(),
        },
        "GET" => String::from_utf8(bucket.get("old", 6, 5).await?.to_vec()).unwrap(),
        "HEAD" => bucket.head("old").await?.to_string(),
        "POST" => {
            let failed = bucket.delete(&["old".to_owned()]).await?;
            assert!(failed.is_empty());
            "D".to_owned()
        }
        _ => unreachable!(),
    })
}

// scenario 126: what passes is repeated, what does not is not
#[test]
fn faults() {
    use FailureKind::{Refused, Transient};
    use Fault::{After, Altered, Before, Cut, DropAfter, DropBefore};
    let put = || Method::PUT;
    let get = || Method::GET;
    let rows: Vec<(Method, Fault, usize, Result<&str, FailureKind>)> = vec![
        // Once: the SDK repeats it. A create that was done finds itself.
        (put(), Before(503), 1, Ok("N")),
        (put(), After(500), 1, Ok("E")),
        (put(), DropBefore, 1, Ok("N")),
        (put(), DropAfter, 1, Ok("E")),
        (get(), Before(503), 1, Ok("world")),
        (get(), DropBefore, 1, Ok("world")),
        (Method::HEAD, Before(503), 1, Ok("11")),
        (Method::POST, Before(503), 1, Ok("D")),
        (Method::POST, After(500), 1, Ok("D")),
        // Once, and not for the SDK to repeat.
        (put(), Before(409), 1, Err(Transient)),
        (put(), Before(403), 1, Err(Refused)),
        (put(), Before(412), 1, Ok("E")),
        (put(), Altered, 1, Err(Transient)),
        (put(), Before(429), 9, Err(Transient)),
        (get(), Before(403), 1, Err(Refused)),
        (get(), Before(404), 1, Err(Refused)),
        (get(), Cut, 1, Err(Transient)),
        // Always.
        (put(), Before(503), 9, Err(Transient)),
        (put(), After(500), 9, Err(Transient)),
        (put(), DropAfter, 9, Err(Transient)),
        (get(), Before(503), 9, Err(Transient)),
        (get(), DropBefore, 9, Err(Transient)),
        (Method::HEAD, Before(500), 9, Err(Transient)),
        (Method::POST, DropAfter, 9, Err(Transient)),
    ];
    with_server(async |server, _| {
        for (method, fault, times, expected) in rows {
            // Each with a client of its own: the SDK repeats less when much has failed.
            let bucket = S3::open(&config(server.endpoint())).await.unwrap();
            server.plant("a/prefix/old", b"hello world");
            bucket.delete(&["new".to_owned()]).await.unwrap();
            server.fail(method.clone(), fault, times);
            let row = format!("{method} {fault:?} {times}");
            let got = request(&bucket, &method).await;
            let got = got.map_err(|failure| failure.kind);
            assert_eq!(got.as_deref(), expected.as_ref().map(|text| *text), "{row}");
            let left = server.heal();
            assert_eq!(left > 0, times > 1, "{row}");
        }
    });
}

#[test]
fn listing_that_breaks_off_is_none() {
    with_server(async |server, bucket| {
        bucket.create("a", two_parts()).await.unwrap();
        server.fail(Method::GET, Fault::Cut, 9);
        let failure = bucket.list("", None, 10).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Transient, "{failure}");
    });
}

#[test]
fn server_that_ignores_conditions_is_noticed() {
    with_server(async |server, bucket| {
        assert!(creates_conditionally(&bucket, "one").await.unwrap());
        server.treat_conditions(Conditions::Ignored);
        assert!(!creates_conditionally(&bucket, "other").await.unwrap());
    });
}

#[test]
fn server_that_knows_no_conditions_is_noticed() {
    with_server(async |server, bucket| {
        server.treat_conditions(Conditions::NotImplemented);
        assert!(!creates_conditionally(&bucket, "one").await.unwrap());
        let failure = bucket.create("a", two_parts()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unsupported, "{failure}");
        assert_eq!(server.keys(), Vec::<String>::new());
    });
}

#[test]
fn unfenced_bucket_does_without_conditions_that_the_server_does_not_know() {
    with_server(async |server, bucket| {
        server.treat_conditions(Conditions::NotImplemented);
        let bucket = S3 {
            unfenced: true,
            ..bucket
        };
        assert!(!creates_conditionally(&bucket, "one").await.unwrap());
        assert_eq!(bucket.create("a", two_parts()).await.unwrap(), Created::New);
        assert_eq!(server.keys(), ["a/prefix/a", "a/prefix/one"]);
    });
}

#[test]
fn probe_survives_a_lost_answer() {
    with_server(async |server, bucket| {
        server.fail(Method::PUT, Fault::After(500), 1);
        assert!(creates_conditionally(&bucket, "one").await.unwrap());
        server.treat_conditions(Conditions::Ignored);
        server.fail(Method::PUT, Fault::DropAfter, 1);
        assert!(!creates_conditionally(&bucket, "other").await.unwrap());
    });
}

/// Every request fails so.
async fn all_fail(bucket: &S3, kind: FailureKind) {
    let failures = [
        bucket.create("a", two_parts()).await.unwrap_err(),
        bucket.get("a", 0, 1).await.unwrap_err(),
        bucket.get("a", 0, 0).await.unwrap_err(),
        bucket.head("a").await.unwrap_err(),
        bucket.list("", None, 1).await.unwrap_err(),
        bucket.delete(&["a".to_owned()]).await.unwrap_err(),
    ];
    for failure in failures {
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(!failure.message.contains(SECRET));
    }
}

#[test]
fn missing_bucket_is_no_empty_one() {
    blocks_on(async {
        let server = Server::start();
        let mut config = config(server.endpoint());
        config.bucket = "another".to_owned();
        let bucket = S3::open(&config).await.unwrap();
        all_fail(&bucket, FailureKind::Refused).await;
    });
}

#[test]
fn wrong_credentials_are_refused() {
    blocks_on(async {
        let server = Server::start();
        let mut config = config(server.endpoint());
        config.secret_access_key = Some("a guess".to_owned());
        let bucket = S3::open(&config).await.unwrap();
        all_fail(&bucket, FailureKind::Refused).await;
    });
}

#[test]
fn server_that_is_away_may_come_back() {
    blocks_on(async {
        // A port that nobody listens on.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let bucket = S3::open(&config(endpoint)).await.unwrap();
        all_fail(&bucket, FailureKind::Transient).await;
    });
}

#[test]
fn half_of_the_credentials_are_none() {
    blocks_on(async {
        let mut config = config("http://127.0.0.1:1".to_owned());
        config.secret_access_key = None;
        let error = S3::open(&config).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        (config.access_key_id, config.session_token) = (None, Some("x".to_owned()));
        let error = S3::open(&config).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn configuration_shows_no_credentials() {
    let mut config = config("http://127.0.0.1:1".to_owned());
    config.session_token = Some("a token".to_owned());
    let shown = format!("{config:?}");
    for part in [KEY_ID, SECRET, "a token"] {
        assert!(!shown.contains(part), "{shown}");
    }
    assert!(shown.contains("given"), "{shown}");
}
