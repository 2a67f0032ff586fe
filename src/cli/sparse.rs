//! Where a file has nothing: its holes, and its pages of zeros.
//!
//! Invariant: pieces come in ascending order, without overlap, and together with the holes between
//! them they are the file. Deliberately not here: writing any of them.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::ops::Range;

/// Zeros are looked for in units of the store's pages: smaller holes would save nothing.
const PAGE: usize = 4096;

/// The next range of a file that may hold data, at or behind `from`; `None` if there is none.
///
/// A file system without holes answers with everything.
pub(crate) fn next_data(file: &File, from: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if from >= len {
        return Ok(None);
    }
    let start = match lseek(file, from as i64, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL) => return Ok(Some(from..len)),
        Err(error) => return Err(error.into()),
    };
    let end = match lseek(file, start as i64, Whence::SeekHole) {
        Ok(end) => end as u64,
        Err(Errno::ENXIO | Errno::EINVAL) => len,
        Err(error) => return Err(error.into()),
    };
    Ok((start < len).then_some(start..end.min(len)))
}

/// Ranges of `bytes` that are not pages of zeros; pages are counted from `offset` in the payload.
pub(crate) fn data_runs(bytes: &[u8], offset: u64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let to_page = PAGE - ((offset + at as u64) % PAGE as u64) as usize;
        let end = bytes.len().min(at + to_page);
        if bytes[at..end].iter().any(|byte| *byte != 0) {
            match runs.last_mut() {
                Some(run) if run.end == at => run.end = end,
                _ => runs.push(at..end),
            }
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn pages_of_zeros_are_left_out() {
        let mut bytes = vec![0; 5 * PAGE];
        assert!(data_runs(&bytes, 0).is_empty());
        bytes[PAGE] = 1;
        bytes[3 * PAGE - 1] = 1;
        bytes[5 * PAGE - 1] = 1;
        assert_eq!(data_runs(&bytes, 0), [PAGE..3 * PAGE, 4 * PAGE..5 * PAGE]);
        assert_eq!(data_runs(&bytes, 4096), data_runs(&bytes, 0));
    }

    #[test]
    fn pages_are_those_of_the_payload() {
        let mut bytes = vec![0; 2 * PAGE];
        bytes[50] = 1;
        assert_eq!(data_runs(&bytes, 4000), vec![0..96; 1]);
        assert_eq!(data_runs(&bytes, 4096 + 100), vec![0..PAGE - 100; 1]);
        bytes[99] = 1;
        assert_eq!(data_runs(&bytes, 4000), vec![0..96 + PAGE; 1]);
    }

    #[test]
    fn a_hole_is_stepped_over() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(b"data", 4 << 20).unwrap();
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(range) = next_data(&file, at, 8 << 20).unwrap() {
            at = range.end;
            found.push(range);
        }
        // Without holes in the file system the whole file is one range, which is right as well.
        assert!(found.iter().any(|range| range.contains(&(4 << 20))));
        assert!(found.len() <= 2);
    }
}
