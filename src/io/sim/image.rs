//! The bytes of files by page, and writes on their way into them.
//!
//! Invariants:
//! 1. Pages are never changed in place, only replaced, so that copies may share them and two equal
//!    pointers mean the same bytes.
//! 2. No page lies behind its image's length.
//!
//! Deliberately not here: which image of a file is durable; see `platter`.

use super::faults::{Fate, SECTORS, WHOLE, mix};
use crate::types::PAGE;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes of a sector.
pub(super) const SECTOR: usize = PAGE / SECTORS;

/// Bytes of one page. A slice and not an array, because only that is made with a single copy.
pub(super) type Page = Rc<[u8]>;

/// Rounds a length up to whole pages, in bytes.
pub(super) fn charge(len: u64) -> u64 {
    len.div_ceil(PAGE as u64) * PAGE as u64
}

/// The content of a file. Absent pages are zeros; no page lies behind the length.
#[derive(Clone, Default)]
pub(super) struct Image {
    /// Shared with other images until one of them changes.
    pub(super) pages: Rc<BTreeMap<u64, Page>>,
    pub(super) len: u64,
}

impl Image {
    pub(super) fn store(&mut self, write: &Write) {
        let pages = Rc::make_mut(&mut self.pages);
        for (no, page) in (write.first_page..).zip(&write.pages) {
            if let Some(page) = page {
                pages.insert(no, Rc::clone(page));
            }
        }
        self.len = self.len.max(write.end());
    }

    /// Copies `[offset, offset + out.len())`, zeros behind the end.
    pub(super) fn copy_to(&self, offset: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let position = offset + done as u64;
            let (no, skip) = (position / PAGE as u64, (position % PAGE as u64) as usize);
            let step = (PAGE - skip).min(out.len() - done);
            let part = &mut out[done..done + step];
            match self.pages.get(&no) {
                Some(page) => part.copy_from_slice(&page[skip..skip + step]),
                None => part.fill(0),
            }
            done += step;
        }
    }

    /// Overwrites bytes, growing the file if need be.
    pub(super) fn patch(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let position = offset + done as u64;
            let (no, skip) = (position / PAGE as u64, (position % PAGE as u64) as usize);
            let step = (PAGE - skip).min(bytes.len() - done);
            let mut page = page_or_zeros(self.pages.get(&no)).to_vec();
            page[skip..skip + step].copy_from_slice(&bytes[done..done + step]);
            Rc::make_mut(&mut self.pages).insert(no, page.into());
            done += step;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    /// Cuts or grows it to `len`.
    pub(super) fn resize(&mut self, len: u64) {
        if len < self.len {
            let kept_pages = len.div_ceil(PAGE as u64);
            drop(Rc::make_mut(&mut self.pages).split_off(&kept_pages));
            let tail = (charge(len) - len) as usize;
            if tail > 0 && self.pages.contains_key(&(kept_pages - 1)) {
                self.patch(len, &vec![0; tail]);
            }
        }
        self.len = len;
    }
}

pub(super) fn page_or_zeros(page: Option<&Page>) -> &[u8] {
    page.map_or(&[0; PAGE], |page| &page[..])
}

/// Rounds a length down to whole pages, in bytes.
pub(super) fn page_floor(bytes: u64) -> u64 {
    bytes / PAGE as u64 * PAGE as u64
}

/// Puts the sectors of `new` that `mask` names over `out`.
pub(super) fn overlay(out: &mut [u8], new: &[u8], mask: u8) {
    for sector in 0..SECTORS {
        if mask >> sector & 1 == 1 {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            out[range.clone()].copy_from_slice(&new[range]);
        }
    }
}

/// Whole pages on their way into a file; an absent one leaves what is there.
#[derive(Clone)]
pub(super) struct Write {
    pub(super) first_page: u64,
    pub(super) pages: Vec<Option<Page>>,
}

impl Write {
    pub(super) fn new(offset: u64, bytes: &[u8]) -> Write {
        let pages = bytes.chunks_exact(PAGE).map(|page| Some(Rc::from(page)));
        Write {
            first_page: offset / PAGE as u64,
            pages: pages.collect(),
        }
    }

    /// First byte behind it.
    pub(super) fn end(&self) -> u64 {
        (self.first_page + self.pages.len() as u64) * PAGE as u64
    }

    pub(super) fn page(&self, no: u64) -> Option<&Page> {
        let index = no.checked_sub(self.first_page)?;
        self.pages.get(index as usize)?.as_ref()
    }

    pub(super) fn overlaps(&self, first_page: u64, pages: u64) -> bool {
        self.first_page < first_page + pages
            && first_page < self.first_page + self.pages.len() as u64
    }

    /// What is left of it over `base` after `fate`; `None` if nothing is.
    pub(super) fn befall(mut self, fate: &Fate, base: &Image) -> Option<Write> {
        let (masks, seed) = match fate {
            Fate::Kept => return Some(self),
            Fate::Dropped => return None,
            Fate::LengthOnly => {
                self.pages.fill(None);
                return Some(self);
            }
            Fate::Torn(masks) => (masks, None),
            Fate::Garbled(masks, seed) => (masks, Some(*seed)),
        };
        if masks.iter().all(|&mask| mask == 0) {
            return None;
        }
        for ((no, slot), &mask) in (self.first_page..).zip(&mut self.pages).zip(masks) {
            let Some(new) = slot.take() else { continue };
            *slot = match (mask, seed) {
                (0, _) => None,
                (WHOLE, None) => Some(new),
                _ => {
                    let mut page = page_or_zeros(base.pages.get(&no)).to_vec();
                    match seed {
                        None => overlay(&mut page, &new, mask),
                        Some(seed) => overlay(&mut page, &noise(seed ^ no), mask),
                    }
                    Some(page.into())
                }
            };
        }
        Some(self)
    }
}

fn noise(seed: u64) -> Vec<u8> {
    let words = (0..PAGE as u64 / 8).flat_map(|word| mix(seed ^ mix(word)).to_le_bytes());
    words.collect()
}
