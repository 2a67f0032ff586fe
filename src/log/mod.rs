//! The log: from mutations and bytes to pages, and back. It says what to write and writes nothing.
//!
//! `record` is the codec of one mutation, `segment` the layout of a segment file, `writer` the open
//! end of the log, `checkpoint` the map as a file. None of them knows the map's types or does I/O.

pub(crate) mod checkpoint;
pub(crate) mod checksum;
pub(crate) mod kept;
pub(crate) mod objects;
pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod writer;

/// Bytes as the golden tests have them.
#[cfg(test)]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every prefix and every single flipped bit of good bytes is refused or makes no difference.
/// Returns how many made none.
#[cfg(test)]
pub(crate) fn cuts_and_flips<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Option<T>,
) -> usize {
    let good = parse(bytes);
    assert!(good.is_some(), "they are good");
    let cuts = (0..bytes.len()).map(|cut| bytes[..cut].to_vec());
    let flips = (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    });
    let survived = cuts.chain(flips).filter_map(|bytes| parse(&bytes));
    survived
        .inspect(|parsed| assert_eq!(Some(parsed), good.as_ref()))
        .count()
}
