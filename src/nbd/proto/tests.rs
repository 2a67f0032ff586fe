//! The messages of the protocol, byte by byte, and what fuzzing has found.

use super::check::{decode, encode_option, encode_request};
use super::*;
use std::path::Path;

#[test]
fn options_survive_both_ways() {
    let name = || "disk-7/ü".to_owned();
    let queries = vec!["base:allocation".to_owned(), "ringstore:".to_owned()];
    for asked in [
        Asked::ExportName(name()),
        Asked::Abort,
        Asked::List,
        Asked::Info {
            go: true,
            name: name(),
            infos: vec![3, 1],
        },
        Asked::Info {
            go: false,
            name: String::new(),
            infos: vec![],
        },
        Asked::StructuredReply,
        Asked::Meta {
            set: true,
            name: name(),
            queries,
        },
    ] {
        let (option, data) = encode_option(&asked);
        assert_eq!(parse_option(option, &data), Ok(asked.clone()));
        for cut in 0..data.len() {
            // A name by itself is a shorter name, unless a letter is cut in two.
            if option != 1 {
                assert!(
                    parse_option(option, &data[..cut]).is_err(),
                    "{asked:?} {cut}"
                );
            }
        }
        let longer = [&data[..], &[0]].concat();
        if !matches!(asked, Asked::ExportName(_) | Asked::Abort) {
            assert!(parse_option(option, &longer).is_err(), "{asked:?}");
        }
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    let mut data = Vec::new();
    data.put_u32(u32::MAX);
    data.put_slice(b"short");
    assert!(parse_option(7, &data).is_err());
    let mut data = Vec::new();
    data.put_u32(0);
    data.put_u32(u32::MAX);
    assert_eq!(parse_option(10, &data), Err("too many queries"));
    let name = vec![b'x'; STRING_BYTES_MAX + 1];
    assert!(parse_option(1, &name).is_err());
    assert!(parse_option(1, &name[1..]).is_ok());
}

#[test]
fn a_request_is_taken_when_it_is_all_there() {
    let request = Request {
        flags: FUA,
        command: Command::Write,
        cookie: 0x0102_0304_0506_0708,
        offset: 1 << 40,
        len: 3,
    };
    let mut input = BytesMut::from(&encode_request(&request)[..]);
    assert_eq!(input[..4], [0x25, 0x60, 0x95, 0x13]);
    assert_eq!(Request::peek(&input[..27]), Ok(None));
    input.put_slice(b"abcnext");
    assert_eq!(Request::peek(&input), Ok(Some(request)));
    assert_eq!(request.take(&mut input)[..], *b"abc");
    assert_eq!(input[..], *b"next");
}

#[test]
fn a_write_that_is_too_long_ends_the_connection() {
    let request = |command, len| Request {
        flags: 0,
        command,
        cookie: 0,
        offset: 0,
        len,
    };
    for (command, len, is_fine) in [
        (Command::Write, DATA_BYTES_MAX, true),
        (Command::Write, DATA_BYTES_MAX + 1, false),
        (Command::WriteZeroes, u32::MAX, true),
        (Command::Other(99), u32::MAX, true),
    ] {
        let bytes = encode_request(&request(command, len));
        assert_eq!(Request::peek(&bytes).is_ok(), is_fine, "{command:?} {len}");
    }
    assert!(Request::peek(&[0; REQUEST_HEAD_BYTES]).is_err());
}

#[test]
fn queries_name_a_context_or_a_namespace() {
    let found = |query| Context::matching(query).collect::<Vec<_>>();
    assert_eq!(found("base:allocation"), [Context::Allocation]);
    assert_eq!(found("base:"), [Context::Allocation]);
    assert_eq!(found("ringstore:"), [Context::Residency]);
    for other in ["", "base", "base:alloc", "qemu:dirty-bitmap:x", ":"] {
        assert_eq!(found(other), [], "{other}");
    }
}

#[test]
fn chunks_say_how_long_they_are() {
    let extents = [(4096, 0), (8192, 3)];
    for (chunk, follows) in [
        (Chunk::Done, 0),
        (Chunk::Data(7, 5), 5),
        (Chunk::Hole(7, 5), 0),
        (Chunk::Status(Context::Residency, &extents), 0),
        (Chunk::Error(RequestError::Io, "disk"), 0),
    ] {
        let mut out = BytesMut::new();
        chunk.put(42, true, &mut out);
        let len = u32::from_be_bytes(out[16..20].try_into().unwrap());
        assert_eq!(out.len() + follows, 20 + len as usize);
        assert_eq!(out[4..6], [0, 1]);
    }
}

#[test]
fn corpus_of_nbd() {
    decode(&[]);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/nbd");
    if !corpus.is_dir() {
        // The published package is without it.
        return;
    }
    let mut count = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        // Shown only when the test fails, and then it is what one wants to know.
        println!("{}", path.display());
        decode(&std::fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 0, "a corpus has something in it");
}

/// Writes the seeds of the fuzz target. Run by hand, with `--ignored`.
#[test]
#[ignore = "it writes into the source tree"]
fn write_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/nbd");
    std::fs::create_dir_all(&corpus).unwrap();
    let queries = vec!["base:allocation".to_owned(), "ringstore:".to_owned()];
    let mut options = Vec::new();
    for asked in [
        Asked::StructuredReply,
        Asked::Meta {
            set: true,
            name: "a".to_owned(),
            queries,
        },
        Asked::Info {
            go: true,
            name: "a".to_owned(),
            infos: vec![1, 3],
        },
        Asked::ExportName("disk".to_owned()),
    ] {
        let (option, data) = encode_option(&asked);
        options.put_u64(OPTION_MAGIC);
        options.put_u32(option);
        options.put_u32(data.len() as u32);
        options.put_slice(&data);
    }
    std::fs::write(corpus.join("seed-options"), options).unwrap();
    let mut requests = Vec::new();
    for command in Command::ALL.into_iter().chain([Command::Other(77)]) {
        let request = Request {
            flags: FUA,
            command,
            cookie: 7,
            offset: 4096,
            len: 16,
        };
        requests.extend(encode_request(&request));
        if command == Command::Write {
            requests.extend([1; 16]);
        }
    }
    std::fs::write(corpus.join("seed-requests"), requests).unwrap();
}
