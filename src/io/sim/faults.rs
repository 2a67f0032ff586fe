//! What goes wrong, and how it is decided.
//!
//! Invariants:
//! 1. Whether an I/O is faulty is a pure function of (seed, file name, how many I/Os that name has
//!    seen): taking a step out of a plan leaves the faults of all other files where they were.
//! 2. Each kind of fault draws its own number, so that switching one on does not move another.
//! 3. With `DiskFaults::default()` the disk is a perfect one. It still tears and reorders unsynced
//!    writes when the power fails, as every disk does.
//!
//! Deliberately not here: what a fault does to the bytes; see `disk` and `platter`.

use fastrand::Rng;
use std::time::Duration;

/// Sectors that one page consists of: a tear may fall between any two.
pub(super) const SECTORS: usize = 8;

/// A mask of all of a page's sectors.
pub(super) const WHOLE: u8 = 0xFF;

/// How often things go wrong, each in 1,000 I/Os that it could befall.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DiskFaults {
    /// A read fails; the bytes are fine.
    pub(crate) read_error: u16,
    /// A write fails, having been applied wholly, in part, or not at all. No sync covers it.
    pub(crate) write_error: u16,
    /// A sync fails, and what it should have covered is covered by no later sync either.
    pub(crate) sync_error: u16,
    /// An operation on names fails, applied or not. A failed `sync_dir` works as a failed sync.
    pub(crate) metadata_error: u16,
    /// A creation, allocation or growing write finds no space, though there is some.
    pub(crate) no_space: u16,
    /// A write is acknowledged and never applied.
    pub(crate) lost_write: u16,
    /// A write is acknowledged and lands in other pages, of this file or another one.
    pub(crate) misdirected_write: u16,
    /// A read finds one bit of what it covers flipped, for good.
    pub(crate) bit_rot: u16,
    /// A read finds a page of what it covers unreadable until it is written again.
    pub(crate) unreadable: u16,
    /// An I/O takes `slow_for` longer.
    pub(crate) slow: u16,
    pub(crate) slow_for: Duration,
    /// An unsynced write is torn by a crash. Not a fault but what disks do, so on by default.
    pub(crate) torn: u16,
    pub(crate) tear: Tear,
    /// An unsynced write leaves random bytes behind when the power fails.
    pub(crate) garbled: u16,
}

impl Default for DiskFaults {
    fn default() -> DiskFaults {
        DiskFaults {
            read_error: 0,
            write_error: 0,
            sync_error: 0,
            metadata_error: 0,
            no_space: 0,
            lost_write: 0,
            misdirected_write: 0,
            bit_rot: 0,
            unreadable: 0,
            slow: 0,
            slow_for: Duration::from_secs(3),
            torn: 300,
            tear: Tear::Either,
            garbled: 0,
        }
    }
}

/// Where a torn write may tear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tear {
    /// Between sectors of 512 bytes.
    Sector,
    /// Between pages of 4 KiB.
    Page,
    /// Either, decided for each write.
    Either,
}

/// The kinds of fault, as far as they are drawn for an I/O.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    ReadError = 1,
    WriteError,
    SyncError,
    MetadataError,
    NoSpace,
    LostWrite,
    MisdirectedWrite,
    BitRot,
    Unreadable,
    Slow,
}

/// The fortune of one I/O.
#[derive(Clone, Copy)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64, name_hash: u64, nth: u64) -> Draw {
        Draw(mix(seed ^ mix(name_hash ^ mix(nth))))
    }

    /// Whether this I/O suffers `fault`.
    pub(super) fn hit(self, fault: Fault, per_mille: u16) -> bool {
        per_mille > 0 && mix(self.0 ^ fault as u64) % 1000 < u64::from(per_mille)
    }

    /// A number to work out the fault's details with.
    pub(super) fn detail(self, fault: Fault) -> u64 {
        mix(mix(self.0 ^ fault as u64))
    }
}

/// Scrambles a number (the finalizer of splitmix64).
pub(super) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// A number for a name, the same in every build (FNV-1a).
pub(super) fn name_hash(name: &str) -> u64 {
    let fold = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    name.bytes().fold(0xCBF2_9CE4_8422_2325, fold)
}

/// How long I/Os take: `min` to `min + spread`, plus 1 ns a byte, and sometimes much longer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Latency {
    pub(crate) read: Span,
    pub(crate) write: Span,
    pub(crate) sync: Span,
    pub(crate) metadata: Span,
    /// How many I/Os in 1,000 take up to 32 times as long.
    pub(crate) long: u16,
}

/// A range of durations, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) min_ns: u64,
    pub(crate) spread_ns: u64,
}

/// About what a cloud volume does.
impl Default for Latency {
    fn default() -> Latency {
        let span = |min_us: u64, spread_us: u64| Span {
            min_ns: min_us * 1000,
            spread_ns: spread_us * 1000,
        };
        Latency {
            read: span(50, 100),
            write: span(20, 100),
            sync: span(100, 900),
            metadata: span(10, 200),
            long: 20,
        }
    }
}

impl Latency {
    pub(super) fn draw(&self, span: Span, bytes: u64, rng: &mut Rng) -> u64 {
        let plain = span.min_ns + rng.u64(..=span.spread_ns) + bytes;
        if rng.u16(..1000) < self.long {
            return plain * rng.u64(2..=32);
        }
        plain
    }
}

/// What becomes of one write when power or process fails; a mask has one bit for each sector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Kept,
    Dropped,
    /// The file has grown, the bytes are not there.
    LengthOnly,
    /// One mask for each page.
    Torn(Vec<u8>),
    /// Random bytes, from this seed, where the masks say so.
    Garbled(Vec<u8>, u64),
}

/// The unit in which a test decides what a crash keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Grain {
    Write,
    Page,
    Sector,
}

/// Decides fates: by chance, or as a test says.
pub(super) enum Fates<'a> {
    Chance(Chance),
    Mask {
        grain: Grain,
        mask: &'a [bool],
        used: usize,
    },
}

/// Fates by chance.
pub(super) struct Chance {
    rng: Rng,
    /// How many writes in 256 survive, of those that are neither torn nor garbled. Drawn once for
    /// each crash, so that "all but one" and "none but one" are as likely as "about half".
    kept_in_256: u16,
    torn: u16,
    tear: Tear,
    garbled: u16,
}

impl Chance {
    /// The fates of one crash.
    pub(super) fn new(seed: u64, faults: &DiskFaults) -> Chance {
        let mut rng = Rng::with_seed(seed);
        let kept_in_256 = [0, 32, 128, 128, 224, 256][rng.usize(..6)];
        Chance {
            rng,
            kept_in_256,
            torn: faults.torn,
            tear: faults.tear,
            garbled: faults.garbled,
        }
    }

    /// The same without garbling: a process that dies writes nothing that it did not mean.
    pub(super) fn without_garbling(mut self) -> Chance {
        self.garbled = 0;
        self
    }

    fn keeps(&mut self) -> bool {
        self.rng.u16(..256) < self.kept_in_256
    }

    fn write(&mut self, pages: usize) -> Fate {
        let roll = self.rng.u16(..1000);
        if roll < self.torn {
            return Fate::Torn(self.masks(pages));
        }
        if roll < self.torn.saturating_add(self.garbled) {
            return Fate::Garbled(self.masks(pages), self.rng.u64(..));
        }
        match (self.keeps(), self.rng.u8(..8)) {
            (true, _) => Fate::Kept,
            (false, 0) => Fate::LengthOnly,
            (false, _) => Fate::Dropped,
        }
    }

    /// A prefix of the write's units, or any of them.
    fn masks(&mut self, pages: usize) -> Vec<u8> {
        let by_sector = match self.tear {
            Tear::Sector => true,
            Tear::Page => false,
            Tear::Either => self.rng.bool(),
        };
        let per_page = if by_sector { SECTORS } else { 1 };
        let is_prefix = self.rng.bool();
        let prefix = self.rng.usize(..=pages * per_page);
        let mut kept = |unit: usize| match is_prefix {
            true => unit < prefix,
            false => self.rng.bool(),
        };
        let page_mask = |page: usize| match by_sector {
            true => (0..SECTORS).fold(0, |mask, sector| {
                mask | u8::from(kept(page * SECTORS + sector)) << sector
            }),
            false => u8::from(kept(page)) * WHOLE,
        };
        (0..pages).map(page_mask).collect()
    }
}

impl Fates<'_> {
    /// The fate of something that cannot be torn.
    pub(super) fn keeps(&mut self) -> bool {
        match self {
            Fates::Chance(chance) => chance.keeps(),
            Fates::Mask { mask, used, .. } => {
                *used += 1;
                mask[*used - 1]
            }
        }
    }

    /// The fate of a write; `present` says which of its pages later writes have not replaced.
    pub(super) fn write(&mut self, present: &[bool]) -> Fate {
        let grain = match self {
            Fates::Chance(chance) => return chance.write(present.len()),
            Fates::Mask { grain, .. } => *grain,
        };
        if grain == Grain::Write {
            return if self.keeps() {
                Fate::Kept
            } else {
                Fate::Dropped
            };
        }
        let masks = present.iter().map(|&present| match present {
            true => self.page_mask(grain),
            false => 0,
        });
        Fate::Torn(masks.collect())
    }

    fn page_mask(&mut self, grain: Grain) -> u8 {
        if grain == Grain::Page {
            return u8::from(self.keeps()) * WHOLE;
        }
        (0..SECTORS).fold(0, |mask, sector| mask | u8::from(self.keeps()) << sector)
    }
}
