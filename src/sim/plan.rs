//! A plan: everything that a run does, as data. The same plan always runs the same way.
//!
//! A plan is text, one step a line, so that a failure can be read, shortened by hand and kept in
//! `tests/plans/`. Steps of clients run concurrently up to the next step that has no client.
//!
//! Invariants:
//! 1. `parse(to_string(plan)) == plan`.
//! 2. A step means the same wherever it stands, so that any of them may be taken out.
//!
//! Deliberately not here: where plans come from (`generate`) and what they do (`run`).

use super::bucket::BucketFaults;
use crate::io::sim::{DiskFaults, Tear};
use std::fmt;
use std::str::FromStr;

/// A run of the simulator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) steps: Vec<Step>,
}

/// What the universe and the store are made with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) shards: u64,
    pub(super) payloads: u64,
    pub(super) segment_bytes: u64,
    pub(super) dirty_bytes: u64,
    /// Limit of local bytes; 0 for none.
    pub(super) local_bytes: u64,
    pub(super) flush_after_us: u64,
    pub(super) stall_us: u64,
    pub(super) read_buffer_bytes: u64,
    /// Whether there is a remote, and when open segments are sealed for it.
    pub(super) remote: u64,
    pub(super) seal_after_us: u64,
    pub(super) prefetch_bytes: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            seed: 0,
            shards: 1,
            payloads: 4,
            segment_bytes: 64 << 10,
            dirty_bytes: 1 << 20,
            local_bytes: 0,
            flush_after_us: 200_000,
            stall_us: 1_000_000,
            read_buffer_bytes: 0,
            remote: 0,
            seal_after_us: 2_000_000,
            prefetch_bytes: 0,
        }
    }
}

impl Plan {
    /// Whether anything in it can take bytes away for good.
    pub(super) fn may_damage(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Harm { .. } => true,
            Step::Faults(faults) => {
                faults.lost_write + faults.misdirected_write + faults.bit_rot + faults.unreadable
                    > 0
            }
            _ => false,
        })
    }
}

/// One step: what a client does, or what is done to the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Client {
        client: u64,
        op: Op,
        /// The operation's future is dropped after this many polls.
        drop_after: Option<u64>,
    },
    /// The power fails, after this many more I/Os or when all clients are done.
    Cut { ios: u64 },
    /// The same, but what is kept is decided: each pending decision by one of the mask's six lowest
    /// bits, in turn.
    CutKeeping { ios: u64, mask: u64 },
    /// Kill -9, likewise.
    Kill { ios: u64 },
    /// Close the store and open it again.
    Reopen,
    /// Wait for all clients, and compare everything.
    Check,
    /// The power fails when all clients are done, and a file comes to harm: the `file`th, at
    /// `place` where the harm has one.
    Harm { harm: Harm, file: u64, place: u64 },
    /// From here on, this goes wrong.
    Faults(DiskFaults),
    /// The disk has this many bytes; 0 for no limit.
    Capacity { bytes: u64 },
    /// From here on, this goes wrong with the remote.
    BucketFaults(BucketFaults),
    /// The remote is away, or back.
    Away { away: bool },
    /// The machine is lost with its disk when all clients are done, and another is rebuilt from the
    /// remote. As a zombie, the old one is not dead, and goes on.
    Wipe { zombie: bool },
}

/// What befalls a segment or checkpoint while the machine is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Harm {
    Remove,
    CutShort,
    /// All of it is zeros.
    Zero,
    ZeroPage,
    FlipBit,
    /// A page is unreadable until it is written.
    BreakPage,
    /// It holds what another file does.
    Replace,
}

/// Every harm with its word in a plan.
pub(super) const HARMS: [(&str, Harm); 7] = [
    ("remove", Harm::Remove),
    ("cut_short", Harm::CutShort),
    ("zero", Harm::Zero),
    ("zero_page", Harm::ZeroPage),
    ("flip_bit", Harm::FlipBit),
    ("break_page", Harm::BreakPage),
    ("replace", Harm::Replace),
];

impl Harm {
    /// Whether it takes more than a page.
    pub(super) fn is_whole_file(self) -> bool {
        !matches!(self, Harm::ZeroPage | Harm::FlipBit | Harm::BreakPage)
    }
}

/// What a client does. Payloads are numbers below `Settings::payloads`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Write {
        id: u64,
        offset: u64,
        len: u64,
    },
    Punch {
        id: u64,
        offset: u64,
        len: u64,
    },
    Truncate {
        id: u64,
        size: u64,
    },
    Copy {
        id: u64,
        target: u64,
    },
    Delete {
        id: u64,
    },
    Flush {
        id: u64,
    },
    FlushAll,
    Read {
        id: u64,
        offset: u64,
        len: u64,
    },
    ReadInto {
        id: u64,
        offset: u64,
        len: u64,
    },
    ReadCow {
        id: u64,
        source: u64,
        offset: u64,
        len: u64,
    },
    Size {
        id: u64,
    },
    Exists {
        id: u64,
    },
    List {
        limit: u64,
    },
    Extents {
        id: u64,
        offset: u64,
        len: u64,
    },
    Verify,
    Stats,
    EvictBuffer,
    Sleep {
        us: u64,
    },
    WaitRemote {
        id: u64,
    },
    Drain,
    Evict {
        id: u64,
    },
}

/// The kinds of operation, in the order in which they are counted.
pub(super) const KINDS: [&str; 21] = [
    "write",
    "punch",
    "truncate",
    "copy",
    "delete",
    "flush",
    "flush_all",
    "read",
    "read_into",
    "read_cow",
    "size",
    "exists",
    "list",
    "extents",
    "verify",
    "stats",
    "evict_buffer",
    "sleep",
    "wait_remote",
    "drain",
    "evict",
];

/// How many of them need no remote; those come first.
pub(super) const LOCAL_KINDS: usize = 18;

impl Op {
    /// Its word in a plan, and its numbers.
    fn parts(&self) -> (&'static str, Vec<u64>) {
        match *self {
            Op::Write { id, offset, len } => (KINDS[0], vec![id, offset, len]),
            Op::Punch { id, offset, len } => (KINDS[1], vec![id, offset, len]),
            Op::Truncate { id, size } => (KINDS[2], vec![id, size]),
            Op::Copy { id, target } => (KINDS[3], vec![id, target]),
            Op::Delete { id } => (KINDS[4], vec![id]),
            Op::Flush { id } => (KINDS[5], vec![id]),
            Op::FlushAll => (KINDS[6], vec![]),
            Op::Read { id, offset, len } => (KINDS[7], vec![id, offset, len]),
            Op::ReadInto { id, offset, len } => (KINDS[8], vec![id, offset, len]),
            Op::ReadCow {
                id,
                source,
                offset,
                len,
            } => (KINDS[9], vec![id, source, offset, len]),
            Op::Size { id } => (KINDS[10], vec![id]),
            Op::Exists { id } => (KINDS[11], vec![id]),
            Op::List { limit } => (KINDS[12], vec![limit]),
            Op::Extents { id, offset, len } => (KINDS[13], vec![id, offset, len]),
            Op::Verify => (KINDS[14], vec![]),
            Op::Stats => (KINDS[15], vec![]),
            Op::EvictBuffer => (KINDS[16], vec![]),
            Op::Sleep { us } => (KINDS[17], vec![us]),
            Op::WaitRemote { id } => (KINDS[18], vec![id]),
            Op::Drain => (KINDS[19], vec![]),
            Op::Evict { id } => (KINDS[20], vec![id]),
        }
    }

    /// The inverse of `parts`.
    fn from_parts(kind: &str, numbers: &[u64]) -> Option<Op> {
        let op = match (kind, numbers) {
            ("write", &[id, offset, len]) => Op::Write { id, offset, len },
            ("punch", &[id, offset, len]) => Op::Punch { id, offset, len },
            ("truncate", &[id, size]) => Op::Truncate { id, size },
            ("copy", &[id, target]) => Op::Copy { id, target },
            ("delete", &[id]) => Op::Delete { id },
            ("flush", &[id]) => Op::Flush { id },
            ("flush_all", &[]) => Op::FlushAll,
            ("read", &[id, offset, len]) => Op::Read { id, offset, len },
            ("read_into", &[id, offset, len]) => Op::ReadInto { id, offset, len },
            ("read_cow", &[id, source, offset, len]) => Op::ReadCow {
                id,
                source,
                offset,
                len,
            },
            ("size", &[id]) => Op::Size { id },
            ("exists", &[id]) => Op::Exists { id },
            ("list", &[limit]) => Op::List { limit },
            ("extents", &[id, offset, len]) => Op::Extents { id, offset, len },
            ("verify", &[]) => Op::Verify,
            ("stats", &[]) => Op::Stats,
            ("evict_buffer", &[]) => Op::EvictBuffer,
            ("sleep", &[us]) => Op::Sleep { us },
            ("wait_remote", &[id]) => Op::WaitRemote { id },
            ("drain", &[]) => Op::Drain,
            ("evict", &[id]) => Op::Evict { id },
            _ => return None,
        };
        Some(op)
    }

    pub(super) fn kind(&self) -> usize {
        let name = self.parts().0;
        KINDS.iter().position(|kind| *kind == name).expect("listed")
    }

    /// The same with other numbers, as a shrinker tries them.
    pub(super) fn with_numbers(&self, change: impl FnOnce(&mut [u64])) -> Op {
        let (kind, mut numbers) = self.parts();
        change(&mut numbers);
        Op::from_parts(kind, &numbers).expect("as many numbers as before")
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        self.parts().1
    }
}

/// The faults that a plan may set, by name.
pub(super) fn fault_fields(faults: &mut DiskFaults) -> [(&'static str, &mut u16); 12] {
    [
        ("read_error", &mut faults.read_error),
        ("write_error", &mut faults.write_error),
        ("sync_error", &mut faults.sync_error),
        ("metadata_error", &mut faults.metadata_error),
        ("no_space", &mut faults.no_space),
        ("lost_write", &mut faults.lost_write),
        ("misdirected_write", &mut faults.misdirected_write),
        ("bit_rot", &mut faults.bit_rot),
        ("unreadable", &mut faults.unreadable),
        ("slow", &mut faults.slow),
        ("torn", &mut faults.torn),
        ("garbled", &mut faults.garbled),
    ]
}

/// The same for the remote.
pub(super) fn bucket_fields(faults: &mut BucketFaults) -> [(&'static str, &mut u16); 8] {
    [
        ("fails_before", &mut faults.fails_before),
        ("fails_after", &mut faults.fails_after),
        ("late", &mut faults.late),
        ("hangs", &mut faults.hangs),
        ("deaf", &mut faults.deaf),
        ("flips", &mut faults.flips),
        ("cuts", &mut faults.cuts),
        ("stale", &mut faults.stale),
    ]
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut settings = self.clone();
        for (name, value) in settings.fields() {
            writeln!(f, "{name} {value}")?;
        }
        Ok(())
    }
}

impl Settings {
    pub(super) fn fields(&mut self) -> [(&'static str, &mut u64); 12] {
        [
            ("seed", &mut self.seed),
            ("shards", &mut self.shards),
            ("payloads", &mut self.payloads),
            ("segment_bytes", &mut self.segment_bytes),
            ("dirty_bytes", &mut self.dirty_bytes),
            ("local_bytes", &mut self.local_bytes),
            ("flush_after_us", &mut self.flush_after_us),
            ("stall_us", &mut self.stall_us),
            ("read_buffer_bytes", &mut self.read_buffer_bytes),
            ("remote", &mut self.remote),
            ("seal_after_us", &mut self.seal_after_us),
            ("prefetch_bytes", &mut self.prefetch_bytes),
        ]
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Client {
                client,
                op,
                drop_after,
            } => {
                let (kind, numbers) = op.parts();
                write!(f, "client {client} {kind}")?;
                for number in numbers {
                    write!(f, " {number}")?;
                }
                match drop_after {
                    Some(polls) => write!(f, " drop_after {polls}"),
                    None => Ok(()),
                }
            }
            Step::Cut { ios } => write!(f, "cut {ios}"),
            Step::CutKeeping { ios, mask } => write!(f, "cut_keeping {ios} {mask}"),
            Step::Kill { ios } => write!(f, "kill {ios}"),
            Step::Reopen => write!(f, "reopen"),
            Step::Check => write!(f, "check"),
            Step::Harm { harm, file, place } => {
                let is_it = |it: &&(&str, Harm)| it.1 == *harm;
                let word = HARMS.iter().find(is_it).expect("every harm is listed").0;
                write!(f, "harm {word} {file} {place}")
            }
            Step::Faults(faults) => {
                write!(f, "faults tear {}", tear_name(faults.tear))?;
                let mut faults = faults.clone();
                for (name, value) in fault_fields(&mut faults) {
                    if *value > 0 {
                        write!(f, " {name} {value}")?;
                    }
                }
                Ok(())
            }
            Step::Capacity { bytes } => write!(f, "capacity {bytes}"),
            Step::BucketFaults(faults) => {
                write!(f, "bucket_faults")?;
                let mut faults = faults.clone();
                for (name, value) in bucket_fields(&mut faults) {
                    if *value > 0 {
                        write!(f, " {name} {value}")?;
                    }
                }
                Ok(())
            }
            Step::Away { away: true } => write!(f, "away"),
            Step::Away { away: false } => write!(f, "back"),
            Step::Wipe { zombie: true } => write!(f, "wipe zombie"),
            Step::Wipe { zombie: false } => write!(f, "wipe"),
        }
    }
}

fn tear_name(tear: Tear) -> &'static str {
    match tear {
        Tear::Sector => "sector",
        Tear::Page => "page",
        Tear::Either => "either",
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Plan, String> {
        let mut plan = Plan {
            settings: Settings::default(),
            steps: Vec::new(),
        };
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            parse_line(&words, &mut plan)
                .ok_or_else(|| format!("line {} is not understood: {line}", index + 1))?;
        }
        Ok(plan)
    }
}

fn parse_line(words: &[&str], plan: &mut Plan) -> Option<()> {
    let number = |word: &str| word.parse::<u64>().ok();
    let step = match *words {
        ["cut", ios] => Step::Cut { ios: number(ios)? },
        ["cut_keeping", ios, mask] => Step::CutKeeping {
            ios: number(ios)?,
            mask: number(mask)?,
        },
        ["kill", ios] => Step::Kill { ios: number(ios)? },
        ["reopen"] => Step::Reopen,
        ["check"] => Step::Check,
        ["away"] => Step::Away { away: true },
        ["back"] => Step::Away { away: false },
        ["wipe"] => Step::Wipe { zombie: false },
        ["wipe", "zombie"] => Step::Wipe { zombie: true },
        ["bucket_faults", ref rest @ ..] => {
            let mut faults = BucketFaults::default();
            fill_fields(rest, |name, value| {
                let mut fields = bucket_fields(&mut faults);
                let field = fields.iter_mut().find(|field| field.0 == name)?;
                *field.1 = value;
                Some(())
            })?;
            Step::BucketFaults(faults)
        }
        ["harm", harm, file, place] => Step::Harm {
            harm: HARMS.iter().find(|it| it.0 == harm)?.1,
            file: number(file)?,
            place: number(place)?,
        },
        ["capacity", bytes] => Step::Capacity {
            bytes: number(bytes)?,
        },
        ["faults", "tear", tear, ref rest @ ..] => Step::Faults(parse_faults(tear, rest)?),
        ["client", client, kind, ref rest @ ..] => {
            let (rest, drop_after) = match *rest {
                [ref rest @ .., "drop_after", polls] => (rest, Some(number(polls)?)),
                _ => (rest, None),
            };
            let numbers: Option<Vec<u64>> = rest.iter().map(|word| number(word)).collect();
            Step::Client {
                client: number(client)?,
                op: Op::from_parts(kind, &numbers?)?,
                drop_after,
            }
        }
        [name, value] => {
            let mut fields = plan.settings.fields();
            let field = fields.iter_mut().find(|field| field.0 == name)?;
            *field.1 = number(value)?;
            return Some(());
        }
        _ => return None,
    };
    plan.steps.push(step);
    Some(())
}

fn parse_faults(tear: &str, rest: &[&str]) -> Option<DiskFaults> {
    let mut faults = DiskFaults {
        torn: 0,
        tear: [Tear::Sector, Tear::Page, Tear::Either]
            .into_iter()
            .find(|kind| tear_name(*kind) == tear)?,
        ..DiskFaults::default()
    };
    fill_fields(rest, |name, value| {
        let mut fields = fault_fields(&mut faults);
        let field = fields.iter_mut().find(|field| field.0 == name)?;
        *field.1 = value;
        Some(())
    })?;
    Some(faults)
}

/// Sets fields by pairs of name and value.
fn fill_fields(rest: &[&str], mut set: impl FnMut(&str, u16) -> Option<()>) -> Option<()> {
    for pair in rest.chunks(2) {
        let [name, value] = *pair else { return None };
        set(name, value.parse().ok()?)?;
    }
    Some(())
}
