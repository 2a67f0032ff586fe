//! Clients that do to an NBD server what no client should: lies, noise, silence and greed.
//!
//! After each of them the server is the same process, with little memory, and serves the next one.

#![cfg(feature = "nbd")]

#[path = "common/door.rs"]
#[allow(dead_code, reason = "every test file uses a part of it")]
mod door;

use door::{Holder, Place, noise, wait_for};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Far above what a server needs with a few clients, and far below what greedy ones ask for.
const MEMORY_MAX: u64 = 200 << 20;

const OPTION: u64 = 0x4948_4156_454f_5054;
const REQUEST: u32 = 0x2560_9513;
const READ: u16 = 0;
const WRITE: u16 = 1;

/// A client that sends any bytes it likes.
struct Client(UnixStream);

impl Client {
    fn connect(place: &Place) -> Client {
        let stream = UnixStream::connect(place.path("nbd.sock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Client(stream)
    }

    /// Past the greeting, with these flags.
    fn greeted(place: &Place) -> Client {
        let mut client = Client::connect(place);
        let greeting: [u8; 18] = client.receive();
        assert_eq!(greeting[..8], *b"NBDMAGIC");
        client.send(&3u32.to_be_bytes());
        client
    }

    /// In possession of an export, without structured replies.
    fn chosen(place: &Place, export: &str) -> Client {
        let mut client = Client::greeted(place);
        client.option(1, export.as_bytes(), export.len() as u32);
        let _: [u8; 10] = client.receive();
        client
    }

    /// Sends, unless the server has hung up already.
    fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn option(&mut self, option: u32, data: &[u8], len: u32) -> bool {
        let head = [
            &OPTION.to_be_bytes()[..],
            &option.to_be_bytes(),
            &len.to_be_bytes(),
            data,
        ];
        self.send(&head.concat())
    }

    /// The code of the reply to an option, past its data.
    fn option_reply(&mut self) -> u32 {
        let head: [u8; 20] = self.receive();
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let mut data = vec![0; number(16) as usize];
        self.0.read_exact(&mut data).unwrap();
        number(12)
    }

    fn request(&mut self, kind: u16, cookie: u64, offset: u64, len: u32) -> bool {
        self.send(&request(0, kind, cookie, offset, len))
    }

    /// The error of a reply without data, and whom it is for.
    fn reply(&mut self) -> (u32, u64) {
        let head: [u8; 16] = self.receive();
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(head[8..].try_into().unwrap()))
    }

    /// Whether the server has hung up; it has 20 s to do so.
    fn is_let_go(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let parts = [
        &REQUEST.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    parts.concat()
}

/// The server still serves, as the same process, and has not grown.
#[track_caller]
fn assert_well(place: &Place, server: &mut Holder) {
    let mut client = Client::chosen(place, "well");
    client.send(&[request(1, WRITE, 1, 4096, 4), b"well".to_vec()].concat());
    assert_eq!(client.reply(), (0, 1));
    client.request(READ, 2, 4096, 4);
    assert_eq!(client.reply(), (0, 2));
    assert_eq!(client.receive(), *b"well");
    assert_eq!(server.0.try_wait().unwrap(), None, "the server has ended");
    let memory = server.memory();
    assert!(memory < MEMORY_MAX, "{memory} bytes");
}

#[test]
fn lies_in_the_handshake() {
    let place = Place::new();
    let mut server = place.serve(&["--create", "1m"]);
    let mut client = Client::connect(&place);
    let _: [u8; 18] = client.receive();
    client.send(&u32::MAX.to_be_bytes());
    assert!(client.is_let_go(), "unknown flags");

    let mut client = Client::greeted(&place);
    client.send(&[0x55; 16]);
    assert!(client.is_let_go(), "not an option");

    let mut client = Client::greeted(&place);
    client.option(7, &[], u32::MAX);
    assert!(client.is_let_go(), "an option of 4 GiB");

    let (invalid, too_big) = (0x8000_0003, 0x8000_0009);
    let (unknown, unsupported) = (0x8000_0006, 0x8000_0001);
    let mut client = Client::greeted(&place);
    let long_name = [&2000u32.to_be_bytes()[..], &[b'n'; 2000], &[0, 0]].concat();
    for (option, data, expected) in [
        (7, vec![0xff; 10], invalid),
        (7, vec![], invalid),
        (7, long_name, unknown),
        (7, vec![0; 6], unknown),
        (7, [&[0, 0, 0, 1][..], &[0xff, 0, 0]].concat(), invalid),
        (7, vec![0; 100_000], too_big),
        (10, vec![0; 8], invalid),
        (8, b"x".to_vec(), invalid),
        (5, vec![], unsupported),
        (77, vec![1; 16 << 10], unsupported),
    ] {
        client.option(option, &data, data.len() as u32);
        assert_eq!(
            client.option_reply(),
            expected,
            "option={option} {data:.8?}"
        );
    }
    client.option(8, &[], 0);
    assert_eq!(client.option_reply(), 1, "it is still listened to");
    client.option(1, &[0xff], 1);
    assert!(client.is_let_go(), "a name that is none");
    assert_well(&place, &mut server);
}

#[test]
fn requests_that_are_wrong_get_errors() {
    let place = Place::new();
    let mut server = place.serve(&["--create", "1m"]);
    let mut client = Client::chosen(&place, "disk");
    let (einval, enospc, enotsup) = (22, 28, 95);
    for (flags, kind, offset, len, expected) in [
        (0, READ, 1 << 20, 1, einval),
        (0, READ, u64::MAX, 1, einval),
        (0, READ, 0, u32::MAX, einval),
        (0, READ, 0, (32 << 20) + 1, einval),
        (0x8000, READ, 0, 1, einval),
        (0, 3, 1, 0, einval),
        (0, 4, 1, u32::MAX, einval),
        (0, 5, 1 << 20, 1, einval),
        (0, 6, u64::MAX, u32::MAX, enospc),
        (0, 7, 0, 4096, einval),
        (0, 99, 0, 0, enotsup),
        (0, u16::MAX, 0, 0, enotsup),
        (0, READ, 0, 0, 0),
        (0, 6, 0, 0, 0),
    ] {
        client.send(&request(flags, kind, 7, offset, len));
        assert_eq!(client.reply(), (expected, 7), "kind={kind} {offset} {len}");
    }
    // The data of a write that is refused is not taken for requests.
    let beyond = request(0, WRITE, 8, (1 << 20) - 10, 70_000);
    client.send(&[beyond, request(0, READ, 1, 0, 1).repeat(2500)].concat());
    assert_eq!(client.reply(), (enospc, 8));
    client.request(READ, 9, 0, 4);
    assert_eq!(client.reply(), (0, 9));
    assert_eq!(client.receive(), [0; 4]);
    assert_well(&place, &mut server);
}

#[test]
fn bytes_that_are_no_request_end_the_connection() {
    let place = Place::new();
    let mut server = place.serve(&["--create", "1m"]);
    let mut client = Client::chosen(&place, "disk");
    // What came before is answered.
    client.send(&[request(0, READ, 5, 0, 1), vec![0xaa; 28]].concat());
    assert_eq!(client.reply(), (0, 5));
    assert!(client.is_let_go());

    let mut client = Client::chosen(&place, "disk");
    client.request(WRITE, 1, 0, (32 << 20) + 1);
    assert!(client.is_let_go(), "a write that is too long");

    for cut in [1, 27, 28, 100] {
        let mut client = Client::chosen(&place, "disk");
        let whole = [request(0, WRITE, 1, 0, 4096), vec![1; 4096]].concat();
        client.send(&whole[..cut]);
        client.0.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.is_let_go(), "cut={cut}");
    }
    let mut client = Client::chosen(&place, "disk");
    client.request(READ, 1, 0, 100);
    assert_eq!(client.reply(), (0, 1));
    assert_eq!(client.receive(), [0; 100], "half a write is none");
    assert_well(&place, &mut server);
}

#[test]
fn noise_of_all_kinds() {
    let place = Place::new();
    let mut server = place.serve(&["--create", "1m"]);
    for seed in 0..300u64 {
        let bytes = noise(1 + (seed as usize * 7919) % 5000, seed * 2 + 1);
        let mut client = match seed % 3 {
            0 => Client::connect(&place),
            1 => Client::greeted(&place),
            _ => Client::chosen(&place, "disk"),
        };
        // Requests with a right beginning and noise behind it.
        let bytes = match seed % 6 {
            5 => bytes
                .chunks(24)
                .flat_map(|part| [&REQUEST.to_be_bytes()[..], &[0, 0, 0], part].concat())
                .collect(),
            _ => bytes,
        };
        client.send(&bytes);
    }
    assert_well(&place, &mut server);
}

#[test]
fn a_client_that_does_not_listen_costs_little() {
    let place = Place::new();
    let mut server = place.serve(&["--create", "64m"]);
    // Data, not holes: those would be told in a few bytes.
    let mut writer = Client::chosen(&place, "disk");
    for part in 0..64u64 {
        let data = noise(1 << 20, part + 1);
        writer.send(&[request(0, WRITE, part, part << 20, 1 << 20), data].concat());
        assert_eq!(writer.reply(), (0, part));
    }
    let before = server.memory();
    let mut greedy = Vec::new();
    for _ in 0..3 {
        let mut client = Client::chosen(&place, "disk");
        client
            .0
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        // 16 GiB of answers, if they were all made.
        for cookie in 0..16_384 {
            if !client.request(READ, cookie, (cookie % 64) << 20, 1 << 20) {
                break;
            }
        }
        greedy.push(client);
    }
    std::thread::sleep(Duration::from_secs(1));
    let grown = server.memory().saturating_sub(before);
    // 32 MiB for each, and as much again for what the allocator keeps.
    assert!(grown < 3 * (64 << 20), "{grown} bytes");
    // And they come to their right when they do listen.
    let client = &mut greedy[0];
    for cookie in 0..40u64 {
        let (error, found) = client.reply();
        assert_eq!(error, 0);
        let mut data = vec![0; 1 << 20];
        client.0.read_exact(&mut data).unwrap();
        assert!(data == noise(1 << 20, found % 64 + 1), "cookie={cookie}");
    }
    drop(greedy);
    wait_for("the memory of greedy clients", || {
        server.memory() < MEMORY_MAX
    });
    assert_well(&place, &mut server);
}

#[test]
fn a_client_too_many_is_let_go() {
    let place = Place::new();
    let mut server = place.serve(&["--create", "1m", "--max-clients", "3"]);
    // The one that waited for the socket may still be there.
    wait_for("the first to leave", || {
        let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(&place)).collect();
        clients
            .iter_mut()
            .all(|client| client.0.read(&mut [0; 18]).unwrap() == 18)
    });
    std::thread::sleep(Duration::from_millis(200));
    let mut clients: Vec<Client> = (0..3).map(|_| Client::chosen(&place, "disk")).collect();
    assert!(Client::connect(&place).is_let_go());
    clients.pop();
    wait_for("room for another", || {
        Client::connect(&place).0.read(&mut [0; 18]).unwrap_or(0) == 18
    });
    std::thread::sleep(Duration::from_millis(200));
    drop(clients);
    std::thread::sleep(Duration::from_millis(200));
    assert_well(&place, &mut server);
}

// S-15, S-20
#[test]
fn what_is_under_way_is_finished_when_the_server_stops() {
    let place = Place::new();
    let server = place.serve(&["--create", "64m"]);
    let mut client = Client::chosen(&place, "disk");
    let mut sent = Vec::new();
    for part in 0..32u64 {
        let data = noise(256 << 10, part + 1);
        sent.extend([request(0, WRITE, part, part << 18, 256 << 10), data].concat());
    }
    client.send(&sent);
    assert_eq!(client.reply().0, 0);
    server.stop("TERM");
    let mut answered = 1;
    let mut head = [0; 16];
    while client.0.read_exact(&mut head).is_ok() {
        assert_eq!(head[4..8], [0; 4], "no error");
        answered += 1;
    }
    // Writes are taken in order here, one page of the socket after the other.
    let output = place.ringstore(&["get", "disk", "-"]).output().unwrap();
    let whole = (0..32u64).filter(|part| {
        let at = (part << 18) as usize;
        output.stdout[at..at + (256 << 10)] == noise(256 << 10, part + 1)[..]
    });
    let whole = whole.count();
    assert!(whole >= answered, "{answered} answered, {whole} there");
    assert!(!place.path("nbd.sock").exists());
}
