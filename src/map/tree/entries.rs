//! The entries of a leaf, each in as few bytes as the leaf's entries together need.
//!
//! It alone knows how entries look in memory. The map is the largest structure that a store keeps
//! there. An entry is four numbers of 64 bits, but those of a leaf are much alike: they start near
//! each other, most lie at whole pages and are of one length, and segments have small numbers. So a
//! leaf has a [`Frame`], and of each number an entry has only the distance to the frame's, in the
//! frame's units, in as many whole bytes as the largest distance of the leaf takes. A page that was
//! written at random takes four to six bytes, an extent at any byte ten or eleven.
//!
//! Invariants:
//! 1. Every entry can be stored: a frame of no unit and eight bytes holds any number.
//! 2. All entries of a leaf are stored alike, so that the place of one is its index times their
//!    size, and a search is the same as in a list.
//! 3. An entry that fits the frame is put in by moving bytes. Only one that does not makes all be
//!    stored anew; how often that happens is bounded by what [`Frame::around`] leaves to spare.
//!
//! Deliberately not here: what the numbers mean (`extent`), and how many entries a leaf should have
//! (`node`).

use super::Entry;
use std::marker::PhantomData;
use std::ops::Range;

/// What an entry is: where it starts, how long it is, and what else there is to it.
pub(crate) type Numbers = [u64; 4];

const NUMBERS: usize = size_of::<Numbers>() / WORD;

/// Bytes of a number.
const WORD: usize = size_of::<u64>();

/// Coarsest unit, as a power of two: a page. One that is coarser by chance would not last.
const SHIFT_MAX: u32 = crate::types::PAGE.trailing_zeros();

/// Largest number in so many bytes.
const LARGEST: [u64; WORD + 1] = [
    0,
    0xff,
    0xffff,
    0xff_ffff,
    0xffff_ffff,
    0xff_ffff_ffff,
    0xffff_ffff_ffff,
    0xff_ffff_ffff_ffff,
    u64::MAX,
];

/// By how many entries the memory grows: doubling would leave a quarter of it unused, and single
/// steps would move the entries at every insertion.
const GROWTH: usize = 4;

/// A list of entries in order of their starts.
#[derive(Clone)]
pub(super) struct Entries<E> {
    frame: Frame,
    count: u32,
    /// The entries, one after the other, and a word of zeros: whatever the size of a number, it is
    /// read as a word.
    bytes: Vec<u8>,
    kind: PhantomData<E>,
}

impl<E: Entry> Entries<E> {
    /// Stores entries in as few bytes as they take.
    pub(super) fn new(entries: &[E]) -> Entries<E> {
        let frame = Frame::around(entries.iter().map(Entry::numbers));
        let mut new = Entries {
            frame,
            count: 0,
            bytes: Vec::with_capacity(entries.len() * frame.size() + WORD),
            kind: PhantomData,
        };
        new.bytes.resize(WORD, 0);
        new.put(0..0, entries.iter().copied());
        new
    }

    pub(super) fn len(&self) -> usize {
        self.count as usize
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn get(&self, index: usize) -> Option<E> {
        (index < self.len()).then(|| E::from_numbers(self.numbers(index)))
    }

    /// Where the first entry starts; there is one.
    pub(super) fn first(&self) -> u64 {
        assert!(!self.is_empty(), "a leaf has entries");
        self.numbers(0)[0]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = E> {
        self.iter_from(0)
    }

    pub(super) fn iter_from(&self, index: usize) -> impl Iterator<Item = E> {
        (index..self.len()).map(|index| E::from_numbers(self.numbers(index)))
    }

    /// The index of the first entry that ends behind position `at`.
    pub(super) fn first_behind(&self, at: u64) -> usize {
        let index = self.started(at);
        match index.checked_sub(1) {
            Some(before) if E::from_numbers(self.numbers(before)).end() > at => before,
            _ => index,
        }
    }

    /// Puts `new` in the place of the entries of a range.
    pub(super) fn replace(&mut self, range: Range<usize>, new: impl Iterator<Item = E> + Clone) {
        if new.clone().all(|entry| self.frame.fits(&entry.numbers())) {
            self.put(range, new);
        } else {
            let mut entries: Vec<E> = self.iter().collect();
            entries.splice(range, new);
            *self = Entries::new(&entries);
        }
    }

    /// Bytes of memory that it takes beside its own.
    pub(super) fn capacity_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// How many entries start at or before position `at`.
    fn started(&self, at: u64) -> usize {
        let Some(distance) = at.checked_sub(self.frame.base[0]) else {
            return 0;
        };
        let units = distance >> self.frame.shift[0];
        let (size, largest) = (self.frame.size(), LARGEST[usize::from(self.frame.width[0])]);
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.word(middle * size) & largest <= units {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }

    fn numbers(&self, index: usize) -> Numbers {
        let mut place = index * self.frame.size();
        std::array::from_fn(|which| {
            let width = usize::from(self.frame.width[which]);
            let units = self.word(place) & LARGEST[width];
            place += width;
            self.frame.base[which] + (units << self.frame.shift[which])
        })
    }

    fn word(&self, place: usize) -> u64 {
        let word = self.bytes[place..place + WORD].first_chunk();
        u64::from_le_bytes(*word.expect("a word"))
    }

    /// Puts entries that fit the frame in the place of those of a range.
    fn put(&mut self, range: Range<usize>, new: impl Iterator<Item = E> + Clone) {
        let size = self.frame.size();
        let count = new.clone().count();
        let (start, end) = (range.start * size, range.end * size);
        let (old_len, new_end) = (self.bytes.len(), start + count * size);
        let new_len = old_len - end + new_end;
        if new_len > self.bytes.capacity() {
            let more = (new_len - old_len).max(GROWTH * size);
            self.bytes.reserve_exact(more);
        }
        self.bytes.resize(new_len.max(old_len), 0);
        self.bytes.copy_within(end..old_len, new_end);
        self.bytes.truncate(new_len);
        if self.bytes.capacity() - new_len > 2 * GROWTH * size {
            self.bytes.shrink_to(new_len + GROWTH * size);
        }
        for (entry, place) in new.zip(self.bytes[start..].chunks_exact_mut(size)) {
            self.frame.store(&entry.numbers(), place);
        }
        let count = self.len() - range.len() + count;
        self.count = u32::try_from(count).expect("a leaf that memory holds");
    }
}

/// How the entries of a leaf are stored: of each of their numbers, from where on it is counted, in
/// which units, as a power of two, and in how many bytes.
#[derive(Clone, Copy)]
struct Frame {
    base: Numbers,
    shift: [u8; NUMBERS],
    width: [u8; NUMBERS],
}

impl Frame {
    /// The frame of the fewest bytes for such entries.
    ///
    /// What its bytes could hold beyond that is left half below the smallest number and half above
    /// the largest, so that the entries that follow are likely to fit, wherever they go.
    fn around(all: impl Iterator<Item = Numbers> + Clone) -> Frame {
        let first = all.clone().next().expect("a leaf has entries");
        let (mut low, mut high, mut unlike) = (first, first, [0; NUMBERS]);
        for numbers in all {
            for (which, &number) in numbers.iter().enumerate() {
                low[which] = low[which].min(number);
                high[which] = high[which].max(number);
                unlike[which] |= number ^ first[which];
            }
        }
        let mut frame = Frame {
            base: low,
            shift: [0; NUMBERS],
            width: [0; NUMBERS],
        };
        for which in 0..NUMBERS {
            let shift = unlike[which].trailing_zeros().min(SHIFT_MAX);
            let units = (high[which] - low[which]) >> shift;
            let bytes = (u64::BITS - units.leading_zeros()).div_ceil(u8::BITS);
            // An entry takes a byte at least, so that it has a place.
            let width = bytes.max(u32::from(which == 0));
            let spare = LARGEST[width as usize] - units;
            let below = (low[which] >> shift).min(spare / 2);
            frame.base[which] -= below << shift;
            frame.shift[which] = shift as u8;
            frame.width[which] = width as u8;
        }
        frame
    }

    /// Bytes of an entry.
    fn size(&self) -> usize {
        self.width.iter().map(|&width| usize::from(width)).sum()
    }

    fn fits(&self, numbers: &Numbers) -> bool {
        (0..NUMBERS).all(|which| {
            let Some(distance) = numbers[which].checked_sub(self.base[which]) else {
                return false;
            };
            let units = distance >> self.shift[which];
            units << self.shift[which] == distance
                && units <= LARGEST[usize::from(self.width[which])]
        })
    }

    fn store(&self, numbers: &Numbers, place: &mut [u8]) {
        let mut words = [0; NUMBERS * WORD];
        let mut at = 0;
        for (which, &number) in numbers.iter().enumerate() {
            let units = (number - self.base[which]) >> self.shift[which];
            // What is too much of one word, zeros, the next one writes over.
            words[at..at + WORD].copy_from_slice(&units.to_le_bytes());
            at += usize::from(self.width[which]);
        }
        place.copy_from_slice(&words[..at]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry of any numbers.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Any(Numbers);

    impl Entry for Any {
        fn start(&self) -> u64 {
            self.0[0]
        }

        fn end(&self) -> u64 {
            self.0[0].saturating_add(self.0[1])
        }

        fn slice(&self, _start: u64, _end: u64) -> Any {
            *self
        }

        fn join(&self, _next: &Any) -> Option<Any> {
            None
        }

        fn numbers(&self) -> Numbers {
            self.0
        }

        fn from_numbers(numbers: Numbers) -> Any {
            Any(numbers)
        }
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => (0..200u64).prop_map(|page| page << SHIFT_MAX),
            2 => (0..1u64 << 20).prop_map(|page| (1 << 50) + (page << SHIFT_MAX)),
            1 => 0..300u64,
            1 => (0..64u32).prop_map(|bits| u64::MAX >> bits),
            1 => any::<u64>(),
        ]
    }

    fn entry() -> impl Strategy<Value = Any> {
        let numbers = [number(), number(), number(), number()];
        let alike = number().prop_map(|start| [start, 4096, start / 2, 9]);
        prop_oneof![3 => alike, 1 => numbers].prop_map(Any)
    }

    fn sorted(mut entries: Vec<Any>) -> Vec<Any> {
        entries.sort_by_key(Entry::start);
        entries.dedup_by_key(|entry| entry.start());
        entries
    }

    fn check(entries: &Entries<Any>, model: &[Any]) {
        assert_eq!(entries.len(), model.len());
        assert!(entries.iter().eq(model.iter().copied()));
        assert_eq!(entries.get(model.len()), None);
        let positions = model.iter().flat_map(|entry| [entry.start(), entry.end()]);
        for at in positions.flat_map(|at| [at.saturating_sub(1), at, at.saturating_add(1)]) {
            let index = model.partition_point(|entry| entry.start() <= at);
            let before = index
                .checked_sub(1)
                .filter(|&before| model[before].end() > at);
            assert_eq!(entries.first_behind(at), before.unwrap_or(index), "{at}");
        }
    }

    proptest! {
        /// Whatever is put in the place of whatever: no number is too large, nor too unlike.
        #[test]
        fn entries_are_a_list(
            first in prop::collection::vec(entry(), 1..100),
            steps in prop::collection::vec(
                (any::<prop::sample::Index>(), 0..4usize, prop::collection::vec(entry(), 0..3)),
                0..40,
            ),
        ) {
            let mut model = sorted(first);
            let mut entries = Entries::new(&model);
            check(&entries, &model);
            for (index, count, new) in steps {
                let low = index.index(model.len() + 1);
                let high = model.len().min(low + count);
                let above = low.checked_sub(1).map(|before| model[before].start());
                let below = model.get(high).map(Entry::start);
                let fits = |entry: &Any| {
                    above.is_none_or(|above| above < entry.start())
                        && below.is_none_or(|below| entry.start() < below)
                };
                let new = sorted(new.into_iter().filter(fits).collect());
                entries.replace(low..high, new.iter().copied());
                model.splice(low..high, new);
                check(&entries, &model);
            }
        }
    }

    #[test]
    fn entries_take_what_their_differences_take() {
        let page = |n: u64| Any([(1 << 61) + n * 4096, 4096, n * 7919 % 16_000 * 4096, 600]);
        let mut pages: Vec<Any> = (0..90).map(|n| page(n * 100)).collect();
        let mut entries = Entries::new(&pages);
        assert_eq!(
            entries.capacity_bytes(),
            90 * 4 + WORD,
            "two bytes of start, two of place"
        );
        // What is like the others is put among them.
        pages[7] = page(750);
        entries.replace(7..8, [page(750)].into_iter());
        assert_eq!(entries.frame.size(), 4);
        // A single byte is not, and all pay for it.
        pages[9] = Any([pages[9].0[0] + 1, 1, 77, (1 << 36) - 1]);
        entries.replace(9..10, [pages[9]].into_iter());
        assert_eq!(entries.frame.size(), 4 + 2 + 4 + 5);
        check(&entries, &pages);
        // What cannot be less: three numbers that are nowhere near.
        let far = [
            Any([0; 4]),
            Any([u64::MAX - 1, u64::MAX, u64::MAX, u64::MAX]),
        ];
        assert_eq!(Entries::new(&far).frame.size(), 4 * WORD);
    }

    #[test]
    fn what_follows_rarely_makes_all_be_stored_anew() {
        let mut entries = Entries::new(&[Any([0, 4096, 0, 1])]);
        let mut anew = 0;
        for n in 1..2000 {
            let frame = entries.frame;
            let next = Any([n * 8192, 4096, n * 4096, 1 + n / 100]);
            entries.replace(entries.len()..entries.len(), [next].into_iter());
            anew +=
                u32::from(frame.base != entries.frame.base || frame.size() != entries.frame.size());
        }
        assert!(anew <= 12, "{anew}");
    }
}
