//! What must hold of the decoders for any bytes at all; the fuzz target runs it, and so do tests.
//!
//! It returns for every input, or panics because an invariant of the module was broken. Magic
//! numbers keep a fuzzer out, so input without one is tried again with it put in.

use super::*;

/// Any bytes, as options one behind the other and as a stream of requests.
pub(crate) fn decode(data: &[u8]) {
    options(data);
    let mut sealed = data.to_vec();
    requests(&mut BytesMut::from(data), false);
    requests(&mut BytesMut::from(&sealed[..]), true);
    if let Some(magic) = sealed.get_mut(..8) {
        magic.copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        options(&sealed);
    }
    if let Some((flags, _)) = data.split_first_chunk() {
        let _ = wants_zeros(u32::from_be_bytes(*flags));
    }
}

fn options(mut data: &[u8]) {
    while let Some((head, rest)) = data.split_first_chunk() {
        let Ok(OptionHead { option, len }) = OptionHead::parse(head) else {
            return;
        };
        let (body, rest) = rest.split_at(rest.len().min(len as usize));
        if let Ok(asked) = parse_option(option, body) {
            let again = encode_option(&asked);
            match asked {
                Asked::Abort | Asked::Other => {}
                _ => assert_eq!(again, (option, body.to_vec()), "an option has one form"),
            }
        }
        data = rest;
    }
}

fn requests(input: &mut BytesMut, seal: bool) {
    loop {
        if seal && let Some(magic) = input.get_mut(..4) {
            magic.copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        }
        let before = input.clone();
        let Ok(Some(request)) = Request::peek(input) else {
            return;
        };
        assert_eq!(encode_request(&request), before[..REQUEST_HEAD_BYTES]);
        let total = request.total_len();
        assert!(total <= REQUEST_HEAD_BYTES + DATA_BYTES_MAX as usize);
        if input.len() < total {
            return;
        }
        let data = request.take(input);
        assert_eq!(data[..], before[REQUEST_HEAD_BYTES..total]);
        assert_eq!(input[..], before[total..]);
    }
}

/// The bytes of an option's data, as a client sends them.
pub(crate) fn encode_option(asked: &Asked) -> (u32, Vec<u8>) {
    let mut data = Vec::new();
    let put = |data: &mut Vec<u8>, text: &str| {
        data.put_u32(text.len() as u32);
        data.put_slice(text.as_bytes());
    };
    let option = match asked {
        Asked::ExportName(name) => {
            data.put_slice(name.as_bytes());
            1
        }
        Asked::Abort => 2,
        Asked::List => 3,
        Asked::Info { go, name, infos } => {
            put(&mut data, name);
            data.put_u16(infos.len() as u16);
            infos.iter().for_each(|info| data.put_u16(*info));
            if *go { 7 } else { 6 }
        }
        Asked::StructuredReply => 8,
        Asked::Meta { set, name, queries } => {
            put(&mut data, name);
            data.put_u32(queries.len() as u32);
            queries.iter().for_each(|query| put(&mut data, query));
            if *set { 10 } else { 9 }
        }
        Asked::Other => 0,
    };
    (option, data)
}

/// The bytes of a request's head, as a client sends them.
pub(crate) fn encode_request(request: &Request) -> Vec<u8> {
    let mut head = Vec::new();
    head.put_u32(REQUEST_MAGIC);
    head.put_u16(request.flags);
    let known = Command::ALL
        .iter()
        .position(|known| *known == request.command);
    head.put_u16(match request.command {
        Command::Other(number) => number,
        _ => known.expect("it has a number") as u16,
    });
    head.put_u64(request.cookie);
    head.put_u64(request.offset);
    head.put_u32(request.len);
    head
}
