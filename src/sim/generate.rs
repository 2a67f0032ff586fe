//! Plans from a seed, or from any bytes.
//!
//! A run does not have everything in it: which faults exist, how often each operation comes, and
//! how small the store's budgets are is drawn first (a swarm), so that rare combinations get runs
//! of their own. Then come the steps, at the edges where such engines break.
//!
//! Invariants:
//! 1. Every seed and every sequence of bytes gives a plan that can run.
//! 2. Bytes that run out give zeros, and the plan ends soon after.
//!
//! Deliberately not here: whether a plan is interesting. Marks tell, in a campaign.

use super::bucket::BucketFaults;
use super::plan::{HARMS, LOCAL_KINDS, Op, Plan, Settings, Step};
use crate::io::sim::{DiskFaults, Tear};
use fastrand::Rng;

/// Steps of a plan made from a seed.
const STEPS_MIN: u64 = 30;
const STEPS_SPREAD: u64 = 220;

/// Steps of a plan made from bytes at most.
const STEPS_FROM_BYTES_MAX: u64 = 400;

/// Operations that clients repeat after a crash at most.
const RETRIES_MAX: u64 = 6;

/// Payload bytes lie below this, but for the far ones.
const OFFSET_MAX: u64 = 384 << 10;

/// Where numbers come from.
enum Entropy<'a> {
    Seed(Rng),
    Bytes(&'a [u8]),
}

impl Entropy<'_> {
    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        match self {
            Entropy::Seed(rng) => rng.u64(..bound.max(1)),
            Entropy::Bytes(bytes) => {
                let width = match bound {
                    0..=0x100 => 1,
                    0x101..=0x1_0000 => 2,
                    _ => 4,
                };
                let taken = width.min(bytes.len());
                let (head, rest) = bytes.split_at(taken);
                *bytes = rest;
                head.iter()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte))
                    % bound.max(1)
            }
        }
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == count - 1
    }

    fn is_used_up(&self) -> bool {
        matches!(self, Entropy::Bytes([]))
    }
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn from_seed(seed: u64) -> Plan {
        Plan::with_remote_from_seed(seed, false)
    }

    /// The plan of a seed, maybe with a remote in it.
    pub(super) fn with_remote_from_seed(seed: u64, remote: bool) -> Plan {
        let mut entropy = Entropy::Seed(Rng::with_seed(seed ^ 0x05EE_D0FA_91A4));
        let count = STEPS_MIN + entropy.below(STEPS_SPREAD);
        generate(&mut entropy, seed, count, remote)
    }

    /// The plan of any bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Plan {
        let mut entropy = Entropy::Bytes(bytes);
        let seed = entropy.below(u64::from(u16::MAX));
        generate(&mut entropy, seed, STEPS_FROM_BYTES_MAX, false)
    }
}

/// What goes wrong in a run, by its kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Power and processes fail; the disk does what disks do.
    Crashes,
    /// I/Os fail and say so.
    Errors,
    /// The disk lies.
    Damage,
    /// Nothing, but the space is short.
    Tight,
}

struct Generator<'a, 'b> {
    entropy: &'a mut Entropy<'b>,
    settings: Settings,
    class: Class,
    /// Weight of each operation, in the order of `plan::KINDS`.
    weights: Vec<u64>,
    clients: u64,
    /// One step in this many is done to the machine.
    control_every: u64,
    drops: bool,
    far: bool,
    faults: DiskFaults,
    bucket_faults: BucketFaults,
    /// The payloads of the last copy: what is done to a clone or its source is done to them.
    clone: [u64; 2],
    /// About where each payload's bytes begin and end.
    edges: Vec<Vec<u64>>,
    /// Where the last read of each payload ended.
    read_to: Vec<u64>,
}

fn generate(entropy: &mut Entropy<'_>, seed: u64, count: u64, remote: bool) -> Plan {
    let mut generator = Generator::new(entropy, seed, remote);
    let mut steps = vec![Step::Faults(generator.faults.clone())];
    if generator.settings.remote > 0 {
        steps.push(Step::BucketFaults(generator.bucket_faults.clone()));
    }
    while (steps.len() as u64) < count && !generator.entropy.is_used_up() {
        let step = generator.step();
        let crashes = matches!(step, Step::Cut { .. } | Step::Kill { .. });
        steps.push(step);
        if crashes && generator.entropy.one_in(4) {
            let count = 1 + generator.entropy.below(RETRIES_MAX) as usize;
            steps.extend(retries(&steps, count));
        }
    }
    Plan {
        settings: generator.settings,
        steps,
    }
}

/// What clients do again after a crash, since they had no answer: the first of the last few
/// operations before it. What is left of the others must not come back with them.
fn retries(steps: &[Step], count: usize) -> Vec<Step> {
    let is_client = |step: &&Step| matches!(step, Step::Client { .. });
    let before = steps.iter().rev().skip(1).take_while(is_client).count();
    let crash = steps.len() - 1;
    let first = crash - before.min(RETRIES_MAX as usize);
    steps[first..crash].iter().take(count).cloned().collect()
}

impl<'a, 'b> Generator<'a, 'b> {
    fn new(entropy: &'a mut Entropy<'b>, seed: u64, remote: bool) -> Generator<'a, 'b> {
        let classes = [
            Class::Crashes,
            Class::Crashes,
            Class::Crashes,
            Class::Errors,
            Class::Damage,
            Class::Tight,
        ];
        let class = entropy.pick(&classes);
        let shards = entropy.pick(&[1, 1, 1, 2, 3]);
        let segment_bytes = entropy.pick(&[64 << 10, 64 << 10, 64 << 10, 128 << 10, 1 << 20]);
        let local = match class {
            Class::Tight => entropy.pick(&[4, 6, 10]) * segment_bytes * shards,
            _ => entropy.pick(&[0, 0, 0, 60 * segment_bytes * shards]),
        };
        let settings = Settings {
            seed,
            shards,
            payloads: 2 + entropy.below(7),
            segment_bytes,
            dirty_bytes: shards * entropy.pick(&[64 << 10, 128 << 10, 1 << 20, 16 << 20]),
            local_bytes: local,
            flush_after_us: entropy.pick(&[1_000, 20_000, 200_000, 60_000_000]),
            stall_us: entropy.pick(&[50_000, 1_000_000]),
            // What goes wrong with the disk alone is told apart without one.
            remote: u64::from(remote && matches!(class, Class::Crashes | Class::Tight)),
            seal_after_us: [20_000, 300_000, 2_000_000][(seed / 4 % 3) as usize],
            read_buffer_bytes: entropy.pick(&[0, 1 << 20, 64 << 10, 12 << 10, 8 << 20, 1 << 20]),
            // Not drawn, so that a seed's steps stay what they were.
            prefetch_bytes: [0, 16 << 10, 1 << 20, 32 << 20][(seed % 4) as usize],
        };
        let common = [
            10, 3, 4, 4, 2, 5, 1, 10, 2, 3, 2, 1, 1, 2, 1, 1, 1, 2, 2, 1, 3,
        ];
        let kinds = match settings.remote > 0 {
            true => common.len(),
            false => LOCAL_KINDS,
        };
        let weights = common[..kinds]
            .iter()
            .map(|weight| weight * entropy.pick(&[0, 1, 1, 1, 4]))
            .collect();
        let payloads = settings.payloads as usize;
        let faults = faults_of(entropy, class);
        Generator {
            class,
            weights,
            clients: entropy.pick(&[1, 1, 2, 4]),
            control_every: entropy.pick(&[8, 15, 30, 60]),
            drops: entropy.one_in(3),
            far: entropy.one_in(6),
            bucket_faults: match settings.remote > 0 {
                true => bucket_faults_of(entropy),
                false => BucketFaults::default(),
            },
            faults,
            clone: [0, 1],
            edges: vec![vec![0]; payloads],
            read_to: vec![0; payloads],
            settings,
            entropy,
        }
    }

    fn step(&mut self) -> Step {
        if self.entropy.one_in(self.control_every) {
            return self.control();
        }
        let op = self.op();
        let may_drop = self.drops && self.entropy.one_in(8);
        Step::Client {
            client: self.entropy.below(self.clients),
            op,
            drop_after: may_drop.then(|| self.entropy.below(5)),
        }
    }

    fn control(&mut self) -> Step {
        // Short counts fall within one operation, long ones behind all of them.
        let ios = match self.entropy.below(4) {
            0 => 1_000_000,
            1 => 1 + self.entropy.below(6),
            _ => 1 + self.entropy.below(60),
        };
        let no_faults = DiskFaults {
            torn: self.faults.torn,
            tear: self.faults.tear,
            garbled: self.faults.garbled,
            ..DiskFaults::default()
        };
        if self.settings.remote > 0 && self.entropy.one_in(2) {
            return self.remote_control();
        }
        match self.entropy.below(16) {
            0..=3 if self.class == Class::Damage => self.harm(),
            0..=5 => Step::Cut { ios },
            6..=8 => Step::Kill { ios },
            9..=11 => Step::Reopen,
            12 => Step::Check,
            13 if self.class == Class::Errors || self.class == Class::Tight => Step::Capacity {
                bytes: self.entropy.pick(&[0, 1, 20 << 12, 40 << 16, 80 << 16]),
            },
            14 => Step::Faults(no_faults),
            15 => Step::Faults(self.faults.clone()),
            _ => Step::Cut { ios },
        }
    }

    fn remote_control(&mut self) -> Step {
        match self.entropy.below(8) {
            0 => Step::Wipe { zombie: true },
            1..=3 => Step::Wipe { zombie: false },
            4 => Step::Away { away: true },
            5 => Step::Away { away: false },
            6 => Step::BucketFaults(BucketFaults::default()),
            _ => Step::BucketFaults(self.bucket_faults.clone()),
        }
    }

    /// More often to a page than to a whole file: what is left then shows more.
    fn harm(&mut self) -> Step {
        let harms = HARMS.map(|it| it.1);
        let first = self.entropy.pick(&harms);
        let harm = match first.is_whole_file() {
            true => self.entropy.pick(&harms),
            false => first,
        };
        Step::Harm {
            harm,
            file: self.entropy.below(64),
            place: self.entropy.below(1 << 20),
        }
    }

    fn payload(&mut self) -> u64 {
        match self.entropy.one_in(4) {
            true => self.entropy.pick(&self.clone.clone()),
            false => self.entropy.below(self.settings.payloads),
        }
    }

    fn offset(&mut self, id: u64) -> u64 {
        let base = match self.entropy.below(8) {
            0 => 0,
            1 => self.entropy.below(OFFSET_MAX),
            2 => self.entropy.below(OFFSET_MAX >> 12) << 12,
            3 => self.entropy.below(OFFSET_MAX >> 16) << 16,
            4 => self.entropy.below(16) << 9,
            5 if self.far => self
                .entropy
                .pick(&[1 << 32, (1 << 40) + 4096, (1 << 62) - 8192]),
            _ => {
                let edges = &self.edges[id as usize];
                edges[self.entropy.below(edges.len() as u64) as usize]
            }
        };
        match self.entropy.below(6) {
            0 => base.saturating_sub(1),
            1 => base + 1,
            _ => base,
        }
    }

    fn len(&mut self) -> u64 {
        let plain = [
            1, 2, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 12288,
        ];
        match self.entropy.below(20) {
            0 => 0,
            1..=11 => self.entropy.pick(&plain),
            12..=15 => 1 + self.entropy.below(6000),
            16..=17 => 1 + self.entropy.below(40_000),
            18 => self.entropy.pick(&[45_055, 45_056, 45_057, 65_536, 49_152]),
            _ => 1 + self.entropy.below(200_000),
        }
    }

    /// A range that fits a payload, remembered as edges.
    fn range(&mut self, id: u64, is_change: bool) -> (u64, u64) {
        let (mut offset, len) = (self.offset(id), self.len());
        if !is_change {
            // Under one budget, a third goes on where the last one ended: to find streams, too.
            let read_to = &mut self.read_to[id as usize];
            let may_go_on = self.settings.prefetch_bytes == 1 << 20 && offset < OFFSET_MAX;
            if may_go_on && (offset ^ len).is_multiple_of(3) {
                offset = *read_to;
            }
            *read_to = (offset + len) % OFFSET_MAX;
        }
        let len = len.min((1 << 62) - offset.min(1 << 62));
        if is_change {
            let edges = &mut self.edges[id as usize];
            edges.extend([offset, offset + len]);
            if edges.len() > 12 {
                edges.drain(..2);
            }
        }
        (offset, len)
    }

    fn op(&mut self) -> Op {
        let total: u64 = self.weights.iter().sum::<u64>().max(1);
        let mut roll = self.entropy.below(total);
        let kind = self.weights.iter().position(|weight| {
            let found = roll < *weight;
            roll = roll.saturating_sub(*weight);
            found
        });
        let id = self.payload();
        let other = self.payload();
        match kind.unwrap_or(0) {
            0 => {
                let (offset, len) = self.range(id, true);
                Op::Write { id, offset, len }
            }
            1 => {
                let (offset, len) = self.range(id, true);
                Op::Punch { id, offset, len }
            }
            2 => Op::Truncate {
                id,
                size: self.offset(id),
            },
            3 => {
                self.clone = [id, other];
                // A clone's bytes begin and end where its source's do.
                self.edges[other as usize] = self.edges[id as usize].clone();
                Op::Copy { id, target: other }
            }
            4 => Op::Delete { id },
            5 => Op::Flush { id },
            6 => Op::FlushAll,
            kind @ 7..=9 => {
                let (offset, len) = self.range(id, false);
                match kind {
                    7 => Op::Read { id, offset, len },
                    8 => Op::ReadInto { id, offset, len },
                    _ => Op::ReadCow {
                        id,
                        source: other,
                        offset,
                        len,
                    },
                }
            }
            10 => Op::Size { id },
            11 => Op::Exists { id },
            12 => Op::List {
                limit: self.entropy.below(10),
            },
            13 => {
                let (offset, len) = self.range(id, false);
                Op::Extents { id, offset, len }
            }
            14 => Op::Verify,
            15 => Op::Stats,
            16 => Op::EvictBuffer,
            18 => Op::WaitRemote { id },
            19 => Op::Drain,
            20 => Op::Evict { id },
            _ => Op::Sleep {
                us: self.entropy.pick(&[10, 1_000, 30_000, 1_000_000]),
            },
        }
    }
}

fn bucket_faults_of(entropy: &mut Entropy<'_>) -> BucketFaults {
    let mut some = || entropy.pick(&[0, 0, 10, 50, 200]);
    BucketFaults {
        fails_before: some(),
        fails_after: some(),
        late: some() / 4,
        hangs: some() / 20,
        flips: some() / 4,
        cuts: some() / 2,
        stale: some(),
        ..BucketFaults::default()
    }
}

fn faults_of(entropy: &mut Entropy<'_>, class: Class) -> DiskFaults {
    let mut faults = DiskFaults {
        torn: entropy.pick(&[0, 100, 300, 900]),
        tear: entropy.pick(&[Tear::Sector, Tear::Page, Tear::Either]),
        garbled: entropy.pick(&[0, 0, 100]),
        slow: entropy.pick(&[0, 0, 0, 20]),
        ..DiskFaults::default()
    };
    let some = |entropy: &mut Entropy<'_>| entropy.pick(&[0, 0, 1, 5, 30]);
    match class {
        Class::Crashes | Class::Tight => {}
        Class::Errors => {
            faults.read_error = some(entropy);
            faults.write_error = some(entropy);
            faults.sync_error = some(entropy);
            faults.metadata_error = some(entropy);
            faults.no_space = entropy.pick(&[0, 5, 100]);
        }
        Class::Damage => {
            faults.lost_write = some(entropy);
            faults.misdirected_write = some(entropy);
            faults.bit_rot = some(entropy);
            faults.unreadable = some(entropy);
        }
    }
    faults
}
