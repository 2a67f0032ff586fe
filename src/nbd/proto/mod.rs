//! NBD's messages, from bytes and to bytes: the fixed newstyle handshake and structured replies.
//!
//! Invariants:
//! 1. Pure: no I/O, no clock, no store. Nothing here waits, so all of it can be fuzzed.
//! 2. Nothing is allocated by a length that a client sent: every length is compared with what is
//!    there, or with a limit of ours, before it is used.
//! 3. What decodes has one form: it encodes to the bytes that it came from.
//!
//! Deliberately not here: what a request means for a payload (`export`), and in which order
//! messages may come (`handshake`, `session`). This file names nothing of the rest of the program,
//! so that the fuzz target can be built of it alone.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What the server says first: `NBDMAGIC`, `IHAVEOPT`, and what it can do.
pub(crate) const GREETING_BYTES: usize = 18;
const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, of both sides: `FIXED_NEWSTYLE` and `NO_ZEROES`.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

/// Bytes of an option's head and of a request's head.
pub(crate) const OPTION_HEAD_BYTES: usize = 16;
pub(crate) const REQUEST_HEAD_BYTES: usize = 28;

/// Longest option that is looked at: a name of 4,096 bytes and as much again for queries.
pub(crate) const OPTION_BYTES_MAX: u32 = 16 << 10;

/// Longest option that is skipped; after a longer one the connection is closed.
pub(crate) const OPTION_SKIPPED_BYTES_MAX: u32 = 1 << 20;

/// Longest data of one request. Clients take this for granted where a server says nothing.
pub(crate) const DATA_BYTES_MAX: u32 = 32 << 20;

/// Block size that is advised: the engine's page.
pub(crate) const BLOCK_PREFERRED: u32 = 4096;

/// Longest string of the protocol.
const STRING_BYTES_MAX: usize = 4096;

/// Most queries of one option; there are two contexts to ask for.
const QUERIES_MAX: usize = 64;

/// A breach of the protocol after which its bytes mean nothing: the connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Violation(pub(crate) &'static str);

/// The contexts of `BLOCK_STATUS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Context {
    /// `base:allocation`: data, or a hole that reads zero.
    Allocation = 1,
    /// `ringstore:residency`: where the data is.
    Residency = 2,
}

impl Context {
    pub(crate) const ALL: [Context; 2] = [Context::Allocation, Context::Residency];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::Residency => "ringstore:residency",
        }
    }

    /// The contexts that a query asks for: one, or with a bare namespace all of it.
    pub(crate) fn matching(query: &str) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| {
            let name = context.name();
            name == query || (query.ends_with(':') && name.starts_with(query))
        })
    }
}

/// Error codes of replies to options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum OptionError {
    Unsupported = 0x8000_0001,
    Invalid = 0x8000_0003,
    Unknown = 0x8000_0006,
    Shutdown = 0x8000_0007,
    TooBig = 0x8000_0009,
}

/// Error codes of replies to requests: those of Linux.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RequestError {
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    NotSupported = 95,
    Shutdown = 108,
}

/// Writes the greeting.
pub(crate) fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    let mut out = &mut bytes[..];
    out.put_u64(NBD_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(FIXED_NEWSTYLE | NO_ZEROES);
    bytes
}

/// Reads the client's flags; returns whether it wants the 124 zeros of old.
pub(crate) fn wants_zeros(flags: u32) -> Result<bool, Violation> {
    let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
    match flags & !known == 0 && flags & u32::from(FIXED_NEWSTYLE) != 0 {
        true => Ok(flags & u32::from(NO_ZEROES) == 0),
        false => Err(Violation("unknown handshake flags")),
    }
}

/// The head of an option: which one, and how many bytes it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OptionHead {
    pub(crate) option: u32,
    pub(crate) len: u32,
}

impl OptionHead {
    pub(crate) fn parse(bytes: &[u8; OPTION_HEAD_BYTES]) -> Result<OptionHead, Violation> {
        let mut bytes = &bytes[..];
        if bytes.get_u64() != OPTION_MAGIC {
            return Err(Violation("not an option"));
        }
        let (option, len) = (bytes.get_u32(), bytes.get_u32());
        Ok(OptionHead { option, len })
    }
}

/// What a client asks for before it has an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// Go on with this export, the old way: no answer but success or a closed connection.
    ExportName(String),
    Abort,
    List,
    /// About an export; with `go`, go on with it if it is there.
    Info {
        go: bool,
        name: String,
        infos: Vec<u16>,
    },
    StructuredReply,
    /// Which contexts there are, or which the client will ask for.
    Meta {
        set: bool,
        name: String,
        queries: Vec<String>,
    },
    /// Something that this server does not know, which is allowed.
    Other,
}

/// Reads an option's data.
pub(crate) fn parse_option(option: u32, data: &[u8]) -> Result<Asked, &'static str> {
    let mut data = data;
    let asked = match option {
        1 => {
            let name = string(data)?;
            data = &[];
            Asked::ExportName(name)
        }
        2 => Asked::Abort,
        3 => Asked::List,
        6 | 7 => {
            let name = counted_string(&mut data)?;
            let count = data.try_get_u16().map_err(|_| "no count of infos")?;
            let mut infos = Vec::new();
            for _ in 0..count {
                infos.push(data.try_get_u16().map_err(|_| "too few infos")?);
            }
            let go = option == 7;
            Asked::Info { go, name, infos }
        }
        8 => Asked::StructuredReply,
        9 | 10 => {
            let name = counted_string(&mut data)?;
            let count = data.try_get_u32().map_err(|_| "no count of queries")?;
            if count as usize > QUERIES_MAX {
                return Err("too many queries");
            }
            let mut queries = Vec::new();
            for _ in 0..count {
                queries.push(counted_string(&mut data)?);
            }
            let set = option == 10;
            Asked::Meta { set, name, queries }
        }
        _ => return Ok(Asked::Other),
    };
    match data {
        [] => Ok(asked),
        // Who wants to leave may leave, whatever else it says.
        _ if asked == Asked::Abort => Ok(asked),
        _ => Err("bytes behind the option"),
    }
}

fn string(bytes: &[u8]) -> Result<String, &'static str> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err("a string is longer than 4096 bytes");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?;
    Ok(text.to_owned())
}

fn counted_string(data: &mut &[u8]) -> Result<String, &'static str> {
    let len = data.try_get_u32().map_err(|_| "no length of a string")? as usize;
    let Some((text, rest)) = data.split_at_checked(len) else {
        return Err("a string is cut short");
    };
    *data = rest;
    string(text)
}

/// What an export can do, in the flags of the protocol.
pub(crate) fn export_flags(structured: bool) -> u16 {
    const HAS_FLAGS: u16 = 1;
    const SEND_FLUSH: u16 = 1 << 2;
    const SEND_FUA: u16 = 1 << 3;
    const SEND_TRIM: u16 = 1 << 5;
    const SEND_WRITE_ZEROES: u16 = 1 << 6;
    const SEND_DF: u16 = 1 << 7;
    const CAN_MULTI_CONN: u16 = 1 << 8;
    const SEND_CACHE: u16 = 1 << 10;
    const SEND_FAST_ZERO: u16 = 1 << 11;
    let flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES;
    let flags = flags | CAN_MULTI_CONN | SEND_CACHE | SEND_FAST_ZERO;
    flags | if structured { SEND_DF } else { 0 }
}

/// Appends the old way's answer to an export's name.
pub(crate) fn put_old_export(out: &mut BytesMut, size: u64, flags: u16, zeros: bool) {
    out.put_u64(size);
    out.put_u16(flags);
    if zeros {
        out.put_bytes(0, 124);
    }
}

/// One reply to an option.
pub(crate) enum OptionReply<'a> {
    Ack,
    /// A name in a list.
    Server(&'a str),
    /// Size and flags of an export.
    Export(u64, u16),
    /// The export's name.
    Name(&'a str),
    /// Smallest, advised and largest block.
    BlockSize,
    /// A context, with its number where it was set.
    MetaContext(u32, &'a str),
    Error(OptionError, &'a str),
}

impl OptionReply<'_> {
    /// Appends the reply to an option of this number.
    pub(crate) fn put(&self, option: u32, out: &mut BytesMut) {
        const INFO: u32 = 3;
        let mut data = BytesMut::new();
        let kind = match self {
            OptionReply::Ack => 1,
            OptionReply::Server(name) => {
                data.put_u32(name.len() as u32);
                data.put_slice(name.as_bytes());
                2
            }
            OptionReply::Export(size, flags) => {
                data.put_u16(0);
                data.put_u64(*size);
                data.put_u16(*flags);
                INFO
            }
            OptionReply::Name(name) => {
                data.put_u16(1);
                data.put_slice(name.as_bytes());
                INFO
            }
            OptionReply::BlockSize => {
                data.put_u16(3);
                data.put_u32(1);
                data.put_u32(BLOCK_PREFERRED);
                data.put_u32(DATA_BYTES_MAX);
                INFO
            }
            OptionReply::MetaContext(number, name) => {
                data.put_u32(*number);
                data.put_slice(name.as_bytes());
                4
            }
            OptionReply::Error(error, message) => {
                data.put_slice(message.as_bytes());
                *error as u32
            }
        };
        out.put_u64(OPTION_REPLY_MAGIC);
        out.put_u32(option);
        out.put_u32(kind);
        out.put_u32(data.len() as u32);
        out.put_slice(&data);
    }
}

/// Flags of a request.
pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

/// What a request wants to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    /// None of those above, by its number.
    Other(u16),
}

impl Command {
    const ALL: [Command; 8] = [
        Command::Read,
        Command::Write,
        Command::Disconnect,
        Command::Flush,
        Command::Trim,
        Command::Cache,
        Command::WriteZeroes,
        Command::BlockStatus,
    ];

    fn from_number(number: u16) -> Command {
        let known = Command::ALL.get(usize::from(number)).copied();
        known.unwrap_or(Command::Other(number))
    }

    /// The flags that may stand beside it.
    pub(crate) fn flags(self) -> u16 {
        match self {
            Command::Read => FUA | DF,
            Command::Write | Command::Trim => FUA,
            Command::WriteZeroes => FUA | NO_HOLE | FAST_ZERO,
            Command::BlockStatus => FUA | REQ_ONE,
            Command::Flush | Command::Cache => FUA,
            Command::Disconnect | Command::Other(_) => u16::MAX,
        }
    }
}

/// The head of a request. Only `Write` has data behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: Command,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    /// Reads a request's head, if there is all of it.
    pub(crate) fn peek(input: &[u8]) -> Result<Option<Request>, Violation> {
        let Some(mut head) = input.get(..REQUEST_HEAD_BYTES) else {
            return Ok(None);
        };
        if head.get_u32() != REQUEST_MAGIC {
            return Err(Violation("not a request"));
        }
        let request = Request {
            flags: head.get_u16(),
            command: Command::from_number(head.get_u16()),
            cookie: head.get_u64(),
            offset: head.get_u64(),
            len: head.get_u32(),
        };
        if request.command == Command::Write && request.len > DATA_BYTES_MAX {
            // Its data is not worth skipping: the client was told the limit.
            return Err(Violation("a write of more than 32 MiB"));
        }
        Ok(Some(request))
    }

    /// Bytes of the request, with its data.
    pub(crate) fn total_len(&self) -> usize {
        let data = match self.command {
            Command::Write => self.len as usize,
            _ => 0,
        };
        REQUEST_HEAD_BYTES + data
    }

    /// Takes the request off the input, which has all of it; returns its data.
    pub(crate) fn take(&self, input: &mut BytesMut) -> Bytes {
        let mut bytes = input.split_to(self.total_len());
        bytes.advance(REQUEST_HEAD_BYTES);
        bytes.freeze()
    }
}

/// Appends a reply without chunks; a read's data follows it.
pub(crate) fn put_simple(out: &mut BytesMut, cookie: u64, error: Option<RequestError>) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error.map_or(0, |error| error as u32));
    out.put_u64(cookie);
}

/// One chunk of a structured reply.
pub(crate) enum Chunk<'a> {
    /// Nothing more, and all is well.
    Done,
    /// Data of this length, which follows, at an offset.
    Data(u64, u32),
    /// Zeros of this length at an offset.
    Hole(u64, u32),
    /// A context's extents: length and flags of each.
    Status(Context, &'a [(u32, u32)]),
    Error(RequestError, &'a str),
}

impl Chunk<'_> {
    /// Appends the chunk; `last` ends the reply.
    pub(crate) fn put(&self, cookie: u64, last: bool, out: &mut BytesMut) {
        let (kind, len) = match self {
            Chunk::Done => (0, 0),
            Chunk::Data(_, len) => (1, 8 + len),
            Chunk::Hole(..) => (2, 12),
            Chunk::Status(_, extents) => (5, 4 + 8 * extents.len() as u32),
            Chunk::Error(_, message) => (0x8001, 6 + message.len() as u32),
        };
        out.put_u32(CHUNK_MAGIC);
        out.put_u16(u16::from(last));
        out.put_u16(kind);
        out.put_u64(cookie);
        out.put_u32(len);
        match self {
            Chunk::Done => {}
            Chunk::Data(offset, _) => out.put_u64(*offset),
            Chunk::Hole(offset, len) => {
                out.put_u64(*offset);
                out.put_u32(*len);
            }
            Chunk::Status(context, extents) => {
                out.put_u32(*context as u32);
                for (len, flags) in *extents {
                    out.put_u32(*len);
                    out.put_u32(*flags);
                }
            }
            Chunk::Error(error, message) => {
                out.put_u32(*error as u32);
                out.put_u16(message.len() as u16);
                out.put_slice(message.as_bytes());
            }
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod check;

#[cfg(test)]
mod tests;
