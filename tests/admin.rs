//! Commands on a store that a server has: they are run by the server, and nobody notices.

#![cfg(feature = "nbd")]

#[path = "common/door.rs"]
#[allow(dead_code, reason = "every test file uses a part of it")]
mod door;
#[path = "common/prometheus.rs"]
mod prometheus;

use door::{Holder, Place, noise, tool, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What a command prints, what it says, and how it exits.
fn outcome(place: &Place, args: &[&str]) -> (String, String, Option<i32>) {
    let output = place.ringstore(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        text(output.stdout),
        text(output.stderr),
        output.status.code(),
    )
}

// S-22
#[test]
fn commands_reach_a_store_that_is_served() {
    let place = Place::new();
    let _server = place.serve(&["--create", "1m"]);
    let socket = std::fs::metadata(place.path("store/admin.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let write = ["-f", "raw", "-c", "write -P 7 64k 8k", &place.uri("disk")];
    tool("qemu-io", &write);
    assert_eq!(place.run(&["ls"]), "disk\n");
    let stat: Value = serde_json::from_str(&place.run(&["stat", "disk", "--json"])).unwrap();
    assert_eq!(stat["schema"], "ringstore.stats/1");
    assert_eq!(stat["local_bytes"], 8192);
    place.run(&["cp", "disk", "clone"]);
    place.run(&["flush", "clone"]);
    place.run(&["truncate", "clone", "68k"]);
    place.run(&["punch", "clone", "64k", "1k"]);
    assert!(place.run(&["verify"]).contains("2 payloads"));
    assert!(place.run(&["health"]).starts_with("healthy"));
    assert!(place.run(&["segments", "ls"]).contains("open"));
    let stats: Value = serde_json::from_str(&place.run(&["stats", "--json"])).unwrap();
    assert_eq!(stats["file_count"], 2);
    let read = ["-f", "raw", "-c", "read -P 7 65k 3k", &place.uri("clone")];
    assert!(!tool("qemu-io", &read).contains("failed"));
    place.run(&["rm", "clone", "missing"]);
    assert_eq!(place.run(&["ls", "-l"]).trim(), "1048576  disk");

    // The same words and the same codes as without a server.
    let (_, said, code) = outcome(&place, &["stat", "missing"]);
    assert_eq!(
        (said.as_str(), code),
        ("ringstore: not found: no such payload\n", Some(3))
    );
    assert_eq!(outcome(&place, &["segments", "dump", "999"]).2, Some(3));
    assert_eq!(outcome(&place, &["stat", "x", "--wrong"]).2, Some(2));
    assert_eq!(
        outcome(&place, &["-q", "flush", "--all"]),
        (String::new(), String::new(), Some(0))
    );
}

// S-22
#[test]
fn what_cannot_be_sent_is_told_who_has_the_store() {
    let place = Place::new();
    let server = place.serve(&["--create", "1m"]);
    std::fs::write(place.path("file"), b"bytes").unwrap();
    for args in [
        &["put", "file", "payload"][..],
        &["get", "payload", "file"],
        &["init"],
    ] {
        let (out, said, code) = outcome(&place, args);
        assert_eq!((out.as_str(), code), ("", Some(4)), "{args:?} {said}");
        assert!(said.contains(&format!("pid={}", server.0.id())), "{said}");
    }
    std::fs::remove_file(place.path("store/admin.sock")).unwrap();
    assert_eq!(outcome(&place, &["ls"]).2, Some(4), "nobody answers");
}

#[test]
fn figures_are_watched_through_a_server() {
    let place = Place::new();
    let _server = place.serve(&["--create", "1m"]);
    let mut child = place
        .ringstore(&["stats", "--watch", "200ms", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut seen = String::new();
    let mut part = [0; 4096];
    while seen.matches("ringstore.stats/1").count() < 3 {
        let count = out.read(&mut part).unwrap();
        assert!(count > 0, "{seen}");
        seen += std::str::from_utf8(&part[..count]).unwrap();
    }
    tool("kill", &["-s", "INT", &child.id().to_string()]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

// S-20
#[test]
fn a_socket_that_was_left_behind_is_no_obstacle() {
    let place = Place::new();
    let server = place.serve(&["--create", "1m"]);
    tool("nbdinfo", &[place.uri("disk")]);
    place.run(&["flush"]);
    server.stop("KILL");
    assert!(place.path("store/admin.sock").exists());
    assert_eq!(place.run(&["ls"]), "disk\n");
    let server = place.serve(&[]);
    assert_eq!(place.run(&["ls"]), "disk\n");
    server.stop("INT");
    assert!(!place.path("store/admin.sock").exists());
    assert_eq!(place.run(&["ls"]), "disk\n");
}

#[test]
fn noise_at_the_door_changes_nothing() {
    let place = Place::new();
    let server = place.serve(&["--create", "1m"]);
    let connect = || {
        let stream = UnixStream::connect(place.path("store/admin.sock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    };
    let framed = |text: &[u8]| [&(text.len() as u32).to_le_bytes()[..], text].concat();
    let before = server.memory();
    for bytes in [
        u32::MAX.to_le_bytes().to_vec(),
        (64u32 << 20).to_le_bytes().to_vec(),
        framed(b"{"),
        framed(b"[1, 2]"),
        framed(&b"[".repeat(100_000)),
        framed(&noise(5000, 3)),
    ] {
        let mut stream = connect();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        let is_refusal = String::from_utf8_lossy(&rest).contains("error");
        assert!(rest.is_empty() || is_refusal, "{rest:?}");
    }
    for words in [
        r#"["ringstore", "put", "/etc/passwd", "x"]"#,
        r#"["ringstore", "get", "x", "/tmp/x"]"#,
        r#"["ringstore", "serve", "--nbd", "unix:/tmp/x"]"#,
        r#"["ringstore", "bench"]"#,
        r#"["ringstore", "--help"]"#,
        "[]",
        "[7]",
    ] {
        let mut stream = connect();
        let request = format!("{{\"arguments\": {words}}}");
        stream.write_all(&framed(request.as_bytes())).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        let reply: Value = serde_json::from_slice(&reply[4..]).unwrap();
        assert!(
            reply["error"].is_string() && reply["code"] != 0,
            "{words} {reply}"
        );
    }
    // Those who only sit there do not keep others out for ever.
    let silent: Vec<UnixStream> = (0..16).map(|_| connect()).collect();
    assert_eq!(place.run(&["ls"]), "");
    drop(silent);
    wait_for("the memory", || server.memory() < before + (50 << 20));
}

/// What curl gets: the answer with its head.
fn curl(args: &[&str]) -> String {
    tool("curl", &[&["-sS", "-i", "--max-time", "20"], args].concat())
}

/// Starts a server that only serves figures.
fn serve_figures(place: &Place, door: &str) -> Holder {
    if !place.path("store").exists() {
        place.run(&["init", "--shards", "2", "--segment-size", "1m"]);
    }
    let mut command = place.ringstore(&["serve", "-q", "--admin", door]);
    let holder = Holder(command.spawn().unwrap());
    wait_for("the admin socket", || {
        place.path("store/admin.sock").exists()
    });
    holder
}

#[test]
fn figures_are_there_for_prometheus() {
    let place = Place::new();
    let socket = place.path("figures.sock");
    let socket = socket.to_str().unwrap();
    let _server = serve_figures(&place, &format!("unix:{socket}"));
    wait_for("the socket", || UnixStream::connect(socket).is_ok());
    let mode = std::fs::metadata(socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    place.run(&["truncate", "secret-name", "1m"]);
    place.run(&["flush", "secret-name"]);
    assert_eq!(outcome(&place, &["stat", "missing"]).2, Some(3));

    let answer = curl(&["--unix-socket", socket, "http://localhost/metrics"]);
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(head.to_ascii_lowercase().contains(kind), "{head}");
    assert!(!text.contains("secret-name"), "{text}");
    let families = prometheus::parse(text);
    let names: Vec<&str> = families.keys().map(String::as_str).collect();
    let expected: Vec<&str> = include_str!("cli/metrics-names.txt").lines().collect();
    // Names are only ever added.
    assert_eq!(names, expected);

    let value = |family: &str, name: &str, labels: &[(&str, &str)]| {
        families[family].value(name, labels).unwrap()
    };
    let single = |name: &str| value(name, name, &[]);
    assert_eq!(single("ringstore_payloads"), 1.0);
    assert_eq!(single("ringstore_logical_bytes"), 1048576.0);
    assert!(single("ringstore_local_bytes") > 0.0);
    let operations = "ringstore_operations_total";
    let truncates = value(
        operations,
        operations,
        &[("op", "truncate"), ("result", "ok")],
    );
    assert_eq!(truncates, 1.0);
    let failed = [("op", "meta"), ("result", "error")];
    assert!(value(operations, operations, &failed) >= 1.0);
    let durations = "ringstore_operation_duration_seconds";
    let count = format!("{durations}_count");
    assert_eq!(value(durations, &count, &[("op", "truncate")]), 1.0);
    let stages = "ringstore_operation_stage_duration_seconds";
    let count = format!("{stages}_count");
    for stage in ["queue_wait", "group_commit_wait", "device_write"] {
        let count = value(stages, &count, &[("stage", stage)]);
        assert!((1.0..100.0).contains(&count), "{stage} {count}");
    }
    assert_eq!(value(stages, &count, &[("stage", "fetch")]), 0.0);
    let sum = value(
        stages,
        &format!("{stages}_sum"),
        &[("stage", "device_write")],
    );
    assert!(sum > 0.0 && sum < 600.0, "{sum}");
    // There is no remote, so nothing is asked of it.
    let requests = "ringstore_remote_requests_total";
    let failed = [("verb", "get"), ("result", "error")];
    assert_eq!(value(requests, requests, &failed), 0.0);
    assert_eq!(families[requests].samples.len(), 12);
    assert_eq!(families["ringstore_shard_stalls_total"].samples.len(), 2);
    let busy = &families["ringstore_shard_busy_seconds_total"].samples;
    assert_eq!(busy.len(), 2);
    // Both have opened their part of the store; the server has not been there for long.
    let in_reason = |seconds: f64| seconds > 0.0 && seconds < 600.0;
    assert!(
        busy.iter().all(|sample| in_reason(sample.value)),
        "{busy:?}"
    );
    assert_eq!(single("ringstore_oldest_unsynced_seconds"), 0.0);
    let slow = "ringstore_slow_operations_total";
    let labels = [("op", "truncate"), ("cause", "group_commit_wait")];
    assert_eq!(value(slow, slow, &labels), 0.0);
    let failures = "ringstore_checksum_failures_total";
    assert_eq!(value(failures, failures, &[("tier", "remote")]), 0.0);
}

#[test]
fn nothing_else_is_answered() {
    let place = Place::new();
    let socket = place.path("figures.sock");
    let socket = socket.to_str().unwrap();
    let server = serve_figures(&place, &format!("unix:{socket}"));
    wait_for("the socket", || UnixStream::connect(socket).is_ok());
    let status = |args: &[&str]| {
        let answer = curl(&[&["--unix-socket", socket], args].concat());
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let url = "http://localhost/metrics";
    assert_eq!(status(&["-X", "POST", "-d", "x", url]), "405");
    assert_eq!(status(&["http://localhost/"]), "404");
    assert_eq!(status(&["-I", url]), "200");
    let long = format!("x-long: {}", "x".repeat(20_000));
    assert_eq!(status(&["-H", &long, url]), "431");

    // Those who only sit there are sent away, and keep others waiting for no longer than that.
    let silent: Vec<UnixStream> = (0..16)
        .map(|_| UnixStream::connect(socket).unwrap())
        .collect();
    assert_eq!(status(&[url]), "200");
    drop(silent);
    let mut garbage = UnixStream::connect(socket).unwrap();
    garbage.write_all(&noise(5000, 3)).unwrap();
    let mut rest = Vec::new();
    let _ = garbage.read_to_end(&mut rest);
    assert_eq!(status(&[url]), "200");
    server.stop("TERM");
    assert!(!place.path("figures.sock").exists());
}

#[test]
fn figures_come_through_the_loopback_interface_and_no_other() {
    let place = Place::new();
    place.run(&["init", "--shards", "1", "--segment-size", "1m"]);
    for door in ["0.0.0.0:0", "192.0.2.1:9000", "[::]:0", "9000", "unix:"] {
        let (_, said, code) = outcome(&place, &["serve", "--admin", door]);
        assert_eq!(code, Some(2), "{door} {said}");
    }
    assert_eq!(outcome(&place, &["serve"]).2, Some(2));
    let mut command = place.ringstore(&["serve", "--admin", "127.0.0.1:0"]);
    let mut server = Holder(
        command
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut said = String::new();
    let stderr = server.0.stderr.take().unwrap();
    BufReader::new(stderr).read_line(&mut said).unwrap();
    let url = said.trim().rsplit("url=").next().unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{said}");
    let answer = curl(&[url]);
    prometheus::parse(answer.split_once("\r\n\r\n").unwrap().1);
}
