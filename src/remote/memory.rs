//! A bucket in this process's memory.

use super::{Created, Failure, Listed, Remote, Request};
use crate::sync::Mutex;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// A bucket; clones share it.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Mutex<BTreeMap<String, Bytes>>>);

impl Memory {
    pub(crate) fn new() -> Memory {
        Memory(Arc::new(Mutex::new(BTreeMap::new())))
    }

    /// The bucket of this name, the same for everybody in this process.
    pub(crate) fn named(name: &str) -> Memory {
        static BUCKETS: OnceLock<Mutex<BTreeMap<String, Memory>>> = OnceLock::new();
        let buckets = BUCKETS.get_or_init(|| Mutex::new(BTreeMap::new()));
        let mut buckets = buckets.lock();
        buckets
            .entry(name.to_owned())
            .or_insert_with(Memory::new)
            .clone()
    }
}

impl Remote for Memory {
    fn create<'a>(&'a self, name: &'a str, body: Vec<Bytes>) -> Request<'a, Created> {
        Box::pin(async move {
            let mut objects = self.0.lock();
            if objects.contains_key(name) {
                return Ok(Created::Exists);
            }
            objects.insert(name.to_owned(), body.concat().into());
            Ok(Created::New)
        })
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u64) -> Request<'a, Bytes> {
        Box::pin(async move {
            let objects = self.0.lock();
            let object = objects.get(name).ok_or_else(Failure::missing)?;
            let end = object.len() as u64;
            let range = offset.min(end) as usize..offset.saturating_add(len).min(end) as usize;
            Ok(object.slice(range))
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> Request<'a, u64> {
        Box::pin(async move {
            let objects = self.0.lock();
            let object = objects.get(name).ok_or_else(Failure::missing)?;
            Ok(object.len() as u64)
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Request<'a, Vec<Listed>> {
        Box::pin(async move {
            let objects = self.0.lock();
            let listed = objects
                .range(prefix.to_owned()..)
                .take_while(|(name, _)| name.starts_with(prefix))
                .filter(|(name, _)| after.is_none_or(|after| name.as_str() > after));
            let listed = listed.map(|(name, object)| Listed {
                name: name.clone(),
                len: object.len() as u64,
            });
            Ok(listed.take(limit).collect())
        })
    }

    fn delete<'a>(&'a self, names: &'a [String]) -> Request<'a, Vec<(String, Failure)>> {
        Box::pin(async move {
            let mut objects = self.0.lock();
            for name in names {
                objects.remove(name);
            }
            Ok(Vec::new())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::suite;

    #[test]
    fn keeps_the_rules() {
        suite::blocks_on(suite::run(&Memory::new()));
    }
}
