//! Folders and names: finding, making, removing, moving.
//!
//! Invariant: a name is one part of a path, so no id that is made here has an empty part, `.` or
//! `..`: the kernel resolves those itself.

use super::Shared;
use super::files::{Answer, errno};
use super::nodes::{Node, Place};
use fuser::{Errno, FileType, RenameFlags};
use ringstore::{PayloadId, Result, Store};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;

/// Payloads of files that were removed while they were open.
const HIDDEN: &str = ".ringstore-unlinked/";

/// Ids that are asked for at once.
const PAGE_IDS: usize = 1000;

/// Longest name of Linux; programs have buffers for it.
const NAME_BYTES_MAX: usize = 255;

/// Removes what a killed mount has left.
pub(crate) async fn remove_leftovers(store: &Store) -> Result<()> {
    let mut after = PayloadId::new(HIDDEN)?;
    loop {
        let page = store.list(Some(&after), PAGE_IDS).await?;
        let Some(last) = page.last().cloned() else {
            return Ok(());
        };
        for id in page {
            if !id.as_str().starts_with(HIDDEN) {
                return Ok(());
            }
            store.delete(&id).await?;
        }
        after = last;
    }
}

/// What is below a folder begins with this.
fn prefix_of(folder: &str) -> String {
    match folder {
        "" => String::new(),
        _ => format!("{folder}/"),
    }
}

fn id_of(path: &str) -> Answer<PayloadId> {
    PayloadId::new(path).map_err(|_| Errno::ENAMETOOLONG)
}

/// The folder that a path is in.
fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Shared {
    pub(crate) fn node(&self, number: u64) -> Answer<Arc<Node>> {
        self.nodes.find(number).ok_or(Errno::ESTALE)
    }

    /// The path of a name in a folder.
    async fn path_in(&self, folder: u64, name: &OsStr) -> Answer<String> {
        let node = self.node(folder)?;
        let place = node.place.read().await;
        let Place::Folder(folder) = &*place else {
            return Err(Errno::ENOTDIR);
        };
        let name = name.to_str().ok_or(Errno::EILSEQ)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let path = format!("{}{name}", prefix_of(folder));
        match path.starts_with(HIDDEN) || path == HIDDEN.trim_end_matches('/') {
            true => Err(Errno::EACCES),
            false => Ok(path),
        }
    }

    /// What is at a path, if anything is.
    async fn found(&self, path: &str) -> Answer<Option<Place>> {
        let id = id_of(path)?;
        if self.store.exists(&id).await.map_err(errno)? {
            return Ok(Some(Place::File(id)));
        }
        let folder = || Some(Place::Folder(path.to_owned()));
        if self.nodes.is_kept(path) {
            return Ok(folder());
        }
        Ok(match self.has_below(path).await? {
            true => folder(),
            false => None,
        })
    }

    /// Whether a payload has an id below this folder.
    async fn has_below(&self, folder: &str) -> Answer<bool> {
        let prefix = prefix_of(folder);
        let Ok(after) = PayloadId::new(&prefix) else {
            return Ok(false);
        };
        let next = self.store.list(Some(&after), 1).await.map_err(errno)?;
        Ok(next
            .first()
            .is_some_and(|id| id.as_str().starts_with(&prefix)))
    }

    pub(crate) async fn lookup(&self, folder: u64, name: &OsStr) -> Answer<Arc<Node>> {
        let path = self.path_in(folder, name).await?;
        let place = self.found(&path).await?.ok_or(Errno::ENOENT)?;
        Ok(self.nodes.enter(&path, place))
    }

    /// Makes an empty file, or finds the one that has been made meanwhile.
    pub(crate) async fn create(&self, folder: u64, name: &OsStr, new: bool) -> Answer<Arc<Node>> {
        let path = self.path_in(folder, name).await?;
        let id = id_of(&path)?;
        match self.found(&path).await? {
            Some(_) if new => return Err(Errno::EEXIST),
            Some(Place::Folder(_)) => return Err(Errno::EISDIR),
            Some(_) => {}
            None => self.store.truncate(&id, 0).await.map_err(errno)?,
        }
        Ok(self.nodes.enter(&path, Place::File(id)))
    }

    pub(crate) async fn make_folder(&self, folder: u64, name: &OsStr) -> Answer<Arc<Node>> {
        let path = self.path_in(folder, name).await?;
        if self.found(&path).await?.is_some() || !self.nodes.keep_folder(&path) {
            return Err(Errno::EEXIST);
        }
        Ok(self.nodes.enter(&path, Place::Folder(path.clone())))
    }

    pub(crate) async fn remove_folder(&self, folder: u64, name: &OsStr) -> Answer<()> {
        let path = self.path_in(folder, name).await?;
        match self.found(&path).await?.ok_or(Errno::ENOENT)? {
            Place::Folder(_) => {}
            _ => return Err(Errno::ENOTDIR),
        }
        let has_kept = !self.nodes.kept_below(&prefix_of(&path)).is_empty();
        if has_kept || self.has_below(&path).await? {
            return Err(Errno::ENOTEMPTY);
        }
        self.nodes.keep_folder(parent_of(&path));
        self.nodes.drop_folder(&path);
        self.nodes.detach(&path);
        Ok(())
    }

    pub(crate) async fn unlink(&self, folder: u64, name: &OsStr) -> Answer<()> {
        let path = self.path_in(folder, name).await?;
        let Some(Place::File(id)) = self.found(&path).await? else {
            let is_folder = self.found(&path).await?.is_some();
            return Err(if is_folder {
                Errno::EISDIR
            } else {
                Errno::ENOENT
            });
        };
        let Some(node) = self.nodes.at(&path) else {
            self.store.delete(&id).await.map_err(errno)?;
            self.nodes.keep_folder(parent_of(&path));
            return Ok(());
        };
        let mut place = node.place.write().await;
        let new = self.set_aside(&node, &id).await?;
        self.store.delete(&id).await.map_err(errno)?;
        *place = new;
        self.nodes.detach(&path);
        // A folder does not go with the last of its files.
        self.nodes.keep_folder(parent_of(&path));
        Ok(())
    }

    /// Keeps the bytes of a file that is about to go, if it is open; says where they are then.
    async fn set_aside(&self, node: &Node, id: &PayloadId) -> Answer<Place> {
        if !self.nodes.is_open(node.number) {
            return Ok(Place::Gone);
        }
        let hidden = id_of(&format!("{HIDDEN}{}", node.number))?;
        self.store.copy(id, &hidden).await.map_err(errno)?;
        Ok(Place::File(hidden))
    }

    /// Ends an opening; the last one of a removed file takes its bytes with it.
    pub(crate) async fn release(&self, number: u64) -> Answer<()> {
        if !self.nodes.released(number) {
            return Ok(());
        }
        let Some(node) = self.nodes.find(number) else {
            return Ok(());
        };
        let mut place = node.place.write().await;
        if let Place::File(id) = &*place
            && id.as_str().starts_with(HIDDEN)
            && !self.nodes.is_open(number)
        {
            self.store.delete(id).await.map_err(errno)?;
            *place = Place::Gone;
        }
        Ok(())
    }

    /// Moves a file: a clone takes the new name, then the old one goes. A crash may leave both.
    pub(crate) async fn rename(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: RenameFlags,
    ) -> Answer<()> {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return Err(Errno::EINVAL);
        }
        let from = self.path_in(from.0, from.1).await?;
        let to = self.path_in(to.0, to.1).await?;
        let source = match self.found(&from).await?.ok_or(Errno::ENOENT)? {
            Place::File(id) => id,
            // Its payloads would have to be moved one by one, which the caller does then.
            _ => return Err(Errno::EXDEV),
        };
        match self.found(&to).await? {
            Some(_) if flags.contains(RenameFlags::RENAME_NOREPLACE) => return Err(Errno::EEXIST),
            Some(Place::Folder(_)) => return Err(Errno::EISDIR),
            _ => {}
        }
        if from == to {
            return Ok(());
        }
        let target = id_of(&to)?;
        let source_node = self.nodes.enter(&from, Place::File(source.clone()));
        let result = self.move_payload(&source_node, &source, &target, &to).await;
        if result.is_ok() {
            self.nodes.rename(&from, &to);
            self.nodes.keep_folder(parent_of(&from));
        }
        self.nodes.forget(source_node.number, 1);
        result
    }

    async fn move_payload(
        &self,
        source_node: &Node,
        source: &PayloadId,
        target: &PayloadId,
        to: &str,
    ) -> Answer<()> {
        // Two at a time are locked in the order of their numbers.
        let target_node = self.nodes.at(to);
        let (mut source_place, target_place);
        match &target_node {
            Some(target) if target.number < source_node.number => {
                target_place = Some(target.place.write().await);
                source_place = source_node.place.write().await;
            }
            Some(target) => {
                source_place = source_node.place.write().await;
                target_place = Some(target.place.write().await);
            }
            None => {
                source_place = source_node.place.write().await;
                target_place = None;
            }
        }
        let replaced = match (&target_node, target_place) {
            (Some(node), Some(place)) if *place == Place::File(target.clone()) => {
                Some((place, self.set_aside(node, target).await?))
            }
            _ => None,
        };
        if let Err(error) = self.store.copy(source, target).await {
            // The target is what it was, and so is who has it open.
            if let Some((_, Place::File(hidden))) = &replaced {
                let _ = self.store.delete(hidden).await;
            }
            return Err(errno(error));
        }
        if let Some((mut place, aside)) = replaced {
            *place = aside;
            self.nodes.detach(to);
        }
        self.store.delete(source).await.map_err(errno)?;
        *source_place = Place::File(target.clone());
        Ok(())
    }

    /// All names in a folder, in the order of their bytes.
    pub(crate) async fn listing(&self, folder: u64) -> Answer<Vec<(String, FileType)>> {
        let node = self.node(folder)?;
        let Place::Folder(folder) = node.place.read().await.clone() else {
            return Err(Errno::ENOTDIR);
        };
        let prefix = prefix_of(&folder);
        let mut names: BTreeMap<String, FileType> = BTreeMap::new();
        for path in self.nodes.kept_below(&prefix) {
            if let Some(name) = first_part(&path[prefix.len()..]) {
                names.insert(name.to_owned(), FileType::Directory);
            }
        }
        let mut after = PayloadId::new(&prefix).ok();
        loop {
            let page = self
                .store
                .list(after.as_ref(), PAGE_IDS)
                .await
                .map_err(errno)?;
            let is_last = page.len() < PAGE_IDS;
            let mut skip = None;
            for id in &page {
                let Some(rest) = id.as_str().strip_prefix(&prefix) else {
                    return Ok(names.into_iter().collect());
                };
                let Some(name) = first_part(rest) else {
                    continue;
                };
                if name.len() == rest.len() {
                    names.insert(name.to_owned(), FileType::RegularFile);
                } else {
                    // A file of that name hides what lies below it.
                    names.entry(name.to_owned()).or_insert(FileType::Directory);
                    skip = Some(format!("{prefix}{name}/\u{10ffff}"));
                }
            }
            if is_last {
                break;
            }
            let last = page.last().cloned();
            let skip = skip.and_then(|path| PayloadId::new(path).ok());
            // Whatever is below a folder is stepped over, unless the page has gone beyond it.
            after = last.max(skip);
        }
        names.remove(HIDDEN.trim_end_matches('/'));
        Ok(names.into_iter().collect())
    }
}

/// The first part of what stands behind a folder's prefix, if it can be a name.
fn first_part(rest: &str) -> Option<&str> {
    let name = rest.split('/').next()?;
    let is_path = rest.split('/').all(|part| !["", ".", ".."].contains(&part));
    (is_path && name.len() <= NAME_BYTES_MAX).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_no_paths_have_no_part() {
        for (rest, part) in [
            ("a", Some("a")),
            ("a/b/c", Some("a")),
            ("", None),
            ("/a", None),
            ("a//b", None),
            ("a/", None),
            ("../a", None),
            ("a/..", None),
            ("a/./b", None),
            (".a", Some(".a")),
        ] {
            assert_eq!(first_part(rest), part, "{rest}");
        }
        assert_eq!(first_part(&"x".repeat(256)), None);
        assert_eq!((parent_of("a/b/c"), parent_of("a")), ("a/b", ""));
    }
}
