//! Where the next operation goes: which of a job's payloads, at which offset, read or write.
//!
//! Invariants: the sequence is a function of the options and the seed alone; every operation lies
//! whole in one payload. Random blocks are drawn with replacement, unlike fio's, which keeps a map
//! of the blocks that it has been to.

use super::args::{BenchArgs, Rw, Spread};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// What one operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shot {
    pub(crate) is_read: bool,
    pub(crate) payload: usize,
    pub(crate) offset: u64,
}

/// Draws the operations of one job.
pub(crate) struct Aim {
    rng: SmallRng,
    rw: Rw,
    rwmixread: u32,
    zipf: Option<Zipf<f64>>,
    block_bytes: u64,
    blocks_per_payload: u64,
    payloads: u64,
    next_block: u64,
}

impl Aim {
    pub(crate) fn new(args: &BenchArgs, rw: Rw, job: u32) -> Aim {
        let payloads = u64::from(args.payloads);
        let blocks_per_payload = (args.size / payloads / args.bs).max(1);
        let blocks = (blocks_per_payload * payloads) as f64;
        let zipf = match args.random_distribution {
            Spread::Uniform => None,
            Spread::Zipf(theta) => Some(Zipf::new(blocks, theta).expect("theta was checked")),
        };
        Aim {
            rng: SmallRng::seed_from_u64(args.seed ^ u64::from(job).wrapping_mul(0x9E37_79B9)),
            rw,
            rwmixread: args.rwmixread,
            zipf,
            block_bytes: args.bs,
            blocks_per_payload,
            payloads,
            next_block: 0,
        }
    }

    /// Bytes of one payload.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.blocks_per_payload * self.block_bytes
    }

    /// The next operation.
    pub(crate) fn next(&mut self) -> Shot {
        let blocks = self.blocks_per_payload * self.payloads;
        let block = match (self.rw.is_random(), &self.zipf) {
            (false, _) => {
                let block = self.next_block;
                self.next_block = (block + 1) % blocks;
                block
            }
            (true, None) => self.rng.random_range(0..blocks),
            // The favourites are scattered, as fio does: neighbours in rank are none on the disk.
            (true, Some(zipf)) => scatter(zipf.sample(&mut self.rng) as u64) % blocks,
        };
        let is_read = match self.rw {
            Rw::Read | Rw::RandRead => true,
            Rw::Write | Rw::RandWrite => false,
            Rw::RandRw => self.rng.random_range(0..100) < self.rwmixread,
        };
        Shot {
            is_read,
            payload: (block / self.blocks_per_payload) as usize,
            offset: block % self.blocks_per_payload * self.block_bytes,
        }
    }

    /// A place in a buffer of `len` bytes of noise where `need` of them begin.
    pub(crate) fn noise_offset(&mut self, len: usize, need: usize) -> usize {
        self.rng.random_range(0..=(len - need) / 64) * 64
    }
}

/// Spreads ranks over 64 bits (the finalizer of splitmix64).
fn scatter(rank: u64) -> u64 {
    let mut bits = rank.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}
