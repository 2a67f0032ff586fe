//! What a client looks at: reads, sizes, lists, extents and figures, each judged by the model.
//!
//! Invariants:
//! 1. A look that raced with nothing must be explained by one state; one that raced with changes,
//!    page by page, by any state of that time.
//!
//! Deliberately not here: what changes something; see `client`.

use super::client::{Client, END_MAX, poll_times};
use super::content::{State, cow_matches, read_len};
use super::history::Watch;
use super::plan::Op;
use crate::chunks::Chunks;
use crate::error::{Error, ErrorKind};
use crate::payload_id::PayloadId;
use crate::types::PAGE;
use bytes::Bytes;
use std::rc::Rc;

/// Bytes of a read that raced that are looked at together first.
const MIXED_RUN: usize = 256;

impl Client {
    pub(super) async fn read(&self, index: usize, op: Op, drop_after: Option<u64>) {
        let (Op::Read { id, offset, len } | Op::ReadInto { id, offset, len }) = op else {
            return;
        };
        let (offset, len) = (offset.min(END_MAX - len), len);
        let payload = id as usize;
        let watch = self.shared.model.borrow_mut().watch(payload);
        let answer = if matches!(op, Op::Read { .. }) {
            let read = self.store.read_at(self.id(id), offset, len as usize);
            poll_times(drop_after, read)
                .await
                .map(|answer| answer.map(Chunks::into_bytes))
        } else {
            let mut target = vec![0xEE; len as usize];
            let read = self.store.read_into(self.id(id), offset, &mut target);
            let answer = poll_times(drop_after, read).await;
            answer.map(|answer| {
                answer.map(|count| {
                    if target[count..].iter().any(|byte| *byte != 0xEE) {
                        self.fail(index, format!("{op:?} wrote behind what it read"));
                    }
                    target.truncate(count);
                    Bytes::from(target)
                })
            })
        };
        let alone = self.shared.model.borrow().was_alone(watch);
        let states = self.shared.model.borrow_mut().seen(watch);
        let Some(answer) = answer else { return };
        match answer {
            Ok(_) if len == 0 => self.shared.succeed(op),
            Ok(bytes) => {
                let fits = |state: &State| is_read(state, offset, len, &bytes);
                let any = states.iter().any(|state| fits(state));
                if any && alone {
                    self.shared.model.borrow_mut().narrow(payload, fits);
                }
                let racing = !alone || states.len() > 1;
                let torn = racing && pages_fit(&states, offset, len, &bytes);
                if !any && !torn {
                    let what = self.shared.explain(&states, offset, &bytes);
                    self.fail(index, format!("{op:?} read wrong bytes: {what}"));
                }
                self.shared.succeed(op);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if states.iter().all(|state| state.is_some()) {
                    self.fail(index, format!("{op:?} does not find what exists"));
                } else if alone {
                    let mut model = self.shared.model.borrow_mut();
                    model.narrow(payload, |state| state.is_none());
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable) => {
                self.tolerate(index, op, &error);
            }
            Err(error) => self.unexpected(index, op, &error),
        }
    }

    pub(super) async fn read_cow(&self, index: usize, op: Op) {
        let Op::ReadCow {
            id,
            source,
            offset,
            len,
        } = op
        else {
            return;
        };
        let offset = offset.min(END_MAX - len);
        let (upper, lower) = (id as usize, source as usize);
        let (above, below) = {
            let mut model = self.shared.model.borrow_mut();
            (model.watch(upper), model.watch(lower))
        };
        let read =
            self.store
                .read_with_cow_source(self.id(id), self.id(source), offset, len as usize);
        let answer = read.await.map(Chunks::into_bytes);
        let mut model = self.shared.model.borrow_mut();
        let (uppers, lowers) = (model.seen(above), model.seen(below));
        drop(model);
        let pairs: Vec<(&State, &State)> = uppers
            .iter()
            .flat_map(|upper| lowers.iter().map(move |lower| (&**upper, &**lower)))
            .collect();
        let size = |state: &State| state.as_ref().map_or(0, |content| content.size);
        match answer {
            Ok(_) if len == 0 => self.shared.succeed(op),
            Ok(bytes) => {
                let got = bytes.len() as u64;
                let sized = |pair: &&(&State, &State)| {
                    read_len(size(pair.0).max(size(pair.1)), offset, len) == got
                };
                let fits = pairs
                    .iter()
                    .filter(sized)
                    .any(|pair| cow_matches(pair.0, pair.1, offset, &bytes));
                let mixed = || {
                    let fits = |at: usize, bytes: &[u8]| {
                        let at = offset + at as u64;
                        let mut pairs = pairs.iter();
                        pairs.any(|pair| cow_matches(pair.0, pair.1, at, bytes))
                    };
                    // Byte by byte only where a run of them is of several states.
                    let mut runs = (0..).step_by(MIXED_RUN).zip(bytes.chunks(MIXED_RUN));
                    let run = |(at, run): (usize, &[u8])| {
                        let byte = |no: usize| fits(at + no, &run[no..=no]);
                        fits(at, run) || (0..run.len()).all(byte)
                    };
                    pairs.iter().any(|pair| sized(&pair)) && runs.all(run)
                };
                let torn = pairs.len() > 1 && mixed();
                if !fits && !torn {
                    self.fail(index, {
                        let above = self.shared.explain(&uppers, offset, &bytes);
                        let below = self.shared.explain(&lowers, offset, &bytes);
                        format!(
                            "{op:?} read wrong {got} bytes:\n    {above}\n  source:\n    {below}"
                        )
                    });
                }
                self.shared.succeed(op);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let missing = |pair: &(&State, &State)| pair.0.is_none() && pair.1.is_none();
                if !pairs.iter().any(missing) {
                    self.fail(index, format!("{op:?} does not find what exists"));
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable) => {
                self.tolerate(index, op, &error);
            }
            Err(error) => self.unexpected(index, op, &error),
        }
    }

    pub(super) async fn size(&self, index: usize, op: Op) {
        let (Op::Size { id } | Op::Exists { id }) = op else {
            return;
        };
        let watch = self.shared.model.borrow_mut().watch(id as usize);
        let (answer, with_size) = match op {
            Op::Size { .. } => (self.store.size(self.id(id)).await, true),
            _ => match self.store.exists(self.id(id)).await {
                Ok(true) => (Ok(0), false),
                Ok(false) => (Err(Error::not_found()), false),
                Err(error) => (Err(error), false),
            },
        };
        let alone = self.shared.model.borrow().was_alone(watch);
        let states = self.shared.model.borrow_mut().seen(watch);
        let found = match answer {
            Ok(size) => Some(size),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return self.unexpected(index, op, &error),
        };
        let fits = |state: &State| match (state, found) {
            (Some(content), Some(size)) => !with_size || content.size == size,
            (None, None) => true,
            _ => false,
        };
        match states.iter().any(|state| fits(state)) {
            true if alone => self.shared.model.borrow_mut().narrow(id as usize, fits),
            true => {}
            false => {
                let sizes: Vec<Option<u64>> = states
                    .iter()
                    .map(|state| (**state).as_ref().map(|content| content.size))
                    .collect();
                self.fail(
                    index,
                    format!("{op:?}: found {found:?}, possible {sizes:?}"),
                );
            }
        }
        self.shared.succeed(op);
    }

    pub(super) async fn list(&self, index: usize, limit: usize) {
        let op = Op::List {
            limit: limit as u64,
        };
        let watches: Vec<Watch> = {
            let mut model = self.shared.model.borrow_mut();
            (0..self.shared.ids.len())
                .map(|payload| model.watch(payload))
                .collect()
        };
        let answer = self.store.list(None, limit).await;
        let mut model = self.shared.model.borrow_mut();
        let states: Vec<Vec<Rc<State>>> =
            watches.into_iter().map(|watch| model.seen(watch)).collect();
        drop(model);
        let names = match answer {
            Ok(names) => names,
            Err(error) => return self.unexpected(index, op, &error),
        };
        let possible = |name: &PayloadId| {
            let payload = self.shared.ids.iter().position(|id| id == name);
            payload.is_some_and(|payload| states[payload].iter().any(|state| state.is_some()))
        };
        let sorted = names.is_sorted() && names.len() <= limit;
        if !sorted || !names.iter().all(possible) {
            self.fail(index, format!("{op:?}: impossible names {names:?}"));
        }
        for (id, states) in self.shared.ids.iter().zip(&states) {
            let within = names.len() < limit || names.last().is_some_and(|last| id <= last);
            let surely = states.iter().all(|state| state.is_some());
            if surely && within && !names.contains(id) {
                self.fail(index, format!("{op:?}: {id} is missing from {names:?}"));
            }
        }
        self.shared.succeed(op);
    }

    pub(super) async fn extents(&self, index: usize, op: Op) {
        let Op::Extents { id, offset, len } = op else {
            return;
        };
        let offset = offset.min(END_MAX - len);
        let watch = self.shared.model.borrow_mut().watch(id as usize);
        let answer = self.store.extents(self.id(id), offset, len).await;
        let states = self.shared.model.borrow_mut().seen(watch);
        match answer {
            Ok(extents) => {
                if !states
                    .iter()
                    .any(|state| super::observe::extents_fit(state, offset, len, &extents))
                {
                    self.fail(index, format!("{op:?}: impossible extents {extents:?}"));
                }
                self.shared.succeed(op);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if states.iter().all(|state| state.is_some()) {
                    self.fail(index, format!("{op:?} does not find what exists"));
                }
            }
            Err(error) => self.unexpected(index, op, &error),
        }
    }

    fn may_be_corrupt(&self) -> bool {
        self.shared.explains(ErrorKind::Corrupt, self.began.get())
    }

    pub(super) async fn verify(&self, index: usize) {
        match self.store.verify().await {
            Ok(report) if report.corrupt.is_empty() || self.may_be_corrupt() => {
                self.shared.succeed(Op::Verify);
            }
            Ok(report) => self.fail(index, format!("verify finds bad bytes: {report:?}")),
            // Without the remote not everything can be looked at.
            Err(error) => self.tolerate(index, Op::Verify, &error),
        }
    }

    pub(super) async fn stats(&self, index: usize) {
        match self.store.stats().await {
            Ok(stats) => {
                // One batch per shard may be open whatever the budget.
                let slack = self.shared.settings.shards * (257 << 12);
                if stats.local_mem_used > stats.local_mem_max + slack {
                    let (used, max) = (stats.local_mem_used, stats.local_mem_max);
                    self.fail(
                        index,
                        format!("dirty memory {used} is above its limit {max}"),
                    );
                }
                self.shared.succeed(Op::Stats);
            }
            Err(error) => self.unexpected(index, Op::Stats, &error),
        }
    }
}

/// Whether a state explains what a read of `[offset, offset + len)` gave.
fn is_read(state: &State, offset: u64, len: u64, bytes: &[u8]) -> bool {
    let Some(content) = state else { return false };
    read_len(content.size, offset, len) == bytes.len() as u64 && content.matches(offset, bytes)
}

/// Whether each page is one of the states', as a read that raced with writes may have it.
fn pages_fit(states: &[Rc<State>], offset: u64, len: u64, bytes: &[u8]) -> bool {
    let contents = || states.iter().filter_map(|state| (**state).as_ref());
    let sized = contents().any(|content| read_len(content.size, offset, len) == bytes.len() as u64);
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let to_edge = PAGE - (at % PAGE as u64) as usize;
        let (page, tail) = rest.split_at(to_edge.min(rest.len()));
        if !contents().any(|content| content.matches(at, page)) {
            return false;
        }
        at += page.len() as u64;
        rest = tail;
    }
    sized
}
