//! Small files and links, in batches: one call to read them, one to write, one to delete.

use super::{
    How, Item, ServiceStub, Shared, Source, Why,
    calls::{self, flat},
};
use crate::{
    model::{Digest, Kind, RelPath},
    plan::{self, Outcome},
    planted::{Bug, planted},
    service::{
        Answer, Content, Delete, Expected, FileRef, Got, Handle, NewFile, RenameFile, Renamed, Same, ServiceError,
    },
};

impl Item {
    fn file_ref(&self) -> FileRef {
        FileRef {
            path: self.entry.path.clone(),
            version: self.entry.version,
        }
    }

    /// Whether a rename can do: nothing is there.
    pub(super) fn may_be_renamed(&self) -> bool {
        self.expected == Expected::Absent
    }

    /// Whether the target has a file of its size.
    pub(super) fn seems_equal(&self) -> bool {
        let same_size = |there: crate::model::Version| there.size == self.entry.version.size;
        self.entry.kind == Kind::File && matches!(self.expected, Expected::Version(there) if same_size(there))
    }
}

/// An item that the target has, and what its source is open as.
struct Safe {
    item: Item,
    handle: Handle,
    digest: Option<Digest>,
    how: How,
}

impl<S: ServiceStub, T: ServiceStub> Shared<'_, S, T> {
    /// Copies files and links.
    pub(super) async fn copy_small(&self, source: usize, items: Vec<Item>) -> Vec<(RelPath, Outcome)> {
        let mut outcomes = Vec::with_capacity(items.len());
        let refs = items.iter().map(Item::file_ref).collect();
        let Source { service, dir, .. } = &self.sources[source];
        let got = flat(service.get(calls::context(), dir.clone(), refs)).await;
        let mut held = Vec::new();
        let mut files = Vec::new();
        let mut refused = Vec::new();
        let count = items.len();
        for (item, got) in items.into_iter().zip(calls::for_each(got, count)) {
            match self.accept(&item, got) {
                Ok(got) => {
                    let meta = plan::meta(&item.entry);
                    let digest = match &got.content {
                        Content::File { digest, .. } => Some(*digest),
                        Content::Symlink(_) => None,
                    };
                    files.push(NewFile {
                        verify: self.options.verify,
                        path: item.to.clone(),
                        content: got.content,
                        meta,
                        expected: item.expected,
                    });
                    held.push(Safe {
                        item,
                        handle: got.held.handle,
                        digest,
                        how: How::Copied,
                    });
                }
                Err((why, handle)) => {
                    refused.extend(handle);
                    outcomes.push(self.stays(&item, why));
                }
            }
        }
        self.close(source, refused).await;
        let mut put = self.put(files).await;
        if planted(Bug::NoAnswerIsSuccess) && matches!(put, Err(ServiceError::NoAnswer(_))) {
            put = Ok(vec![Ok(()); held.len()]);
        }
        let mut safe = Vec::new();
        let mut failed = Vec::new();
        let count = held.len();
        for (file, put) in held.into_iter().zip(calls::for_each(put, count)) {
            match put {
                Ok(()) => {
                    self.sent(file.item.bytes());
                    safe.push(file);
                }
                Err(error) => {
                    failed.push(file.handle);
                    let why = self.refused_at_target(&file.item.to, error);
                    outcomes.push(self.stays(&file.item, why));
                }
            }
        }
        self.close(source, failed).await;
        outcomes.extend(self.delete(source, safe).await);
        outcomes
    }

    /// Verifies files that the target seems to have, and copies those that it has not.
    pub(super) async fn compare_small(&self, source: usize, items: Vec<Item>) -> Vec<(RelPath, Outcome)> {
        let mut outcomes = Vec::with_capacity(items.len());
        let refs = items.iter().map(Item::file_ref).collect();
        let Source { service, dir, .. } = &self.sources[source];
        let got = flat(service.digests(calls::context(), dir.clone(), refs)).await;
        let mut held = Vec::new();
        let mut files = Vec::new();
        let mut closed = Vec::new();
        let mut differ = Vec::new();
        let count = items.len();
        for (item, got) in items.into_iter().zip(calls::for_each(got, count)) {
            match self.accept(&item, got) {
                Ok(Got {
                    held: opened,
                    content: Content::File { digest, .. },
                }) => {
                    let Expected::Version(version) = item.expected else {
                        continue;
                    };
                    let file = FileRef {
                        path: item.to.clone(),
                        version,
                    };
                    files.push(Same {
                        file,
                        digest,
                        meta: plan::meta(&item.entry),
                        has_partial: item.has_partial,
                    });
                    held.push(Safe {
                        item,
                        handle: opened.handle,
                        digest: Some(digest),
                        how: How::Verified,
                    });
                }
                Ok(got) => {
                    closed.push(got.held.handle);
                    outcomes.push(self.stays(&item, Why::Source(ServiceError::Changed)));
                }
                Err((why, handle)) => {
                    closed.extend(handle);
                    outcomes.push(self.stays(&item, why));
                }
            }
        }
        let settled = match self.target.dir.clone() {
            Some(dir) => flat(self.target.service.settle(calls::context(), dir, files.into())).await,
            None => Err(ServiceError::NotFound),
        };
        let mut safe = Vec::new();
        let count = held.len();
        for (file, settled) in held.into_iter().zip(calls::for_each(settled, count)) {
            match settled {
                Ok(()) => safe.push(file),
                Err(ServiceError::DigestMismatch) => {
                    closed.push(file.handle);
                    differ.push(file.item);
                }
                Err(error) => {
                    closed.push(file.handle);
                    outcomes.push(self.stays(&file.item, Why::Target(error)));
                }
            }
        }
        self.close(source, closed).await;
        outcomes.extend(self.delete(source, safe).await);
        if !differ.is_empty() {
            outcomes.extend(self.copy_small(source, differ).await);
        }
        outcomes
    }

    /// Renames files and links from one root of the server to the other; those that must go the ordinary way.
    pub(super) async fn rename(&self, source: usize, items: Vec<Item>) -> (Vec<(RelPath, Outcome)>, Vec<Item>) {
        let mut outcomes = Vec::with_capacity(items.len());
        let mut not_by_rename = Vec::new();
        let Some(to) = self.target.dir.clone() else {
            return (outcomes, items);
        };
        self.dirs_made().await;
        let rename = |item: &Item| RenameFile {
            from: item.file_ref(),
            to: item.to.clone(),
            expected: item.expected,
        };
        let files = items.iter().map(rename).collect();
        let from = self.sources[source].dir.clone();
        let renamed = flat(self.target.service.rename(calls::context(), from, to, files)).await;
        let count = items.len();
        for (item, renamed) in items.into_iter().zip(calls::for_each(renamed, count)) {
            match renamed {
                Ok(Renamed::Done) => {
                    self.advanced(item.bytes());
                    self.moved(&item, How::Renamed);
                    outcomes.push((item.to, Outcome::Gone));
                }
                Ok(Renamed::Impossible) => not_by_rename.push(item),
                Ok(Renamed::OtherDevice) => {
                    self.may_rename[source].set(false);
                    not_by_rename.push(item);
                }
                Ok(Renamed::SourceStays(error)) => outcomes.push(self.stays(&item, Why::Source(error))),
                Err(error) => {
                    let why = self.refused_at_target(&item.to, error);
                    outcomes.push(self.stays(&item, why));
                }
            }
        }
        (outcomes, not_by_rename)
    }

    /// What was read of a source, if it may be moved; else why not, and what is to be closed.
    fn accept(&self, item: &Item, got: Answer<Got>) -> Result<Got, (Why, Option<Handle>)> {
        let got = got.map_err(|error| (Why::Source(error), None))?;
        let kind = match &got.content {
            Content::File { .. } => Kind::File,
            Content::Symlink(_) => Kind::Symlink,
        };
        // What is to be done at the target was decided for what was listed.
        if kind != item.entry.kind {
            return Err((Why::Source(ServiceError::Changed), Some(got.held.handle)));
        }
        match self.check_held(item, &got.held) {
            Ok(()) => Ok(got),
            Err(reason) => Err((reason.into(), Some(got.held.handle))),
        }
    }

    /// Puts files right behind the directories they belong in: the service makes these first, as a rule.
    async fn put(&self, files: Vec<NewFile>) -> Answer<Vec<Answer<()>>> {
        let Some(dir) = self.target.dir.clone() else {
            return Err(ServiceError::NotFound);
        };
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let kept = if self.making.get() { files.clone() } else { Vec::new() };
        let mut put = flat(self.target.service.put(calls::context(), dir.clone(), files.into())).await?;
        self.dirs_made().await;
        let is_early = |(file, put): &(NewFile, &mut Answer<()>)| {
            **put == Err(ServiceError::NotFound) && !self.is_below_unmade(&file.path)
        };
        let (early, slots): (Vec<_>, Vec<_>) = kept.into_iter().zip(&mut put).filter(is_early).unzip();
        if !early.is_empty() {
            let count = early.len();
            let again = flat(self.target.service.put(calls::context(), dir, early.into())).await;
            for (slot, again) in slots.into_iter().zip(calls::for_each(again, count)) {
                *slot = again;
            }
        }
        Ok(put)
    }

    /// Deletes sources that the target has; in a copy closes them.
    async fn delete(&self, source: usize, safe: Vec<Safe>) -> Vec<(RelPath, Outcome)> {
        if safe.is_empty() {
            return Vec::new();
        }
        if self.options.copy {
            self.close(source, safe.iter().map(|file| file.handle).collect()).await;
        }
        let files = safe
            .iter()
            .map(|file| Delete {
                handle: file.handle,
                digest: file.digest,
            })
            .collect();
        let deleted = if self.options.copy {
            Ok(vec![Ok(()); safe.len()])
        } else {
            self.delete_files(source, files).await
        };
        let mut outcomes = Vec::with_capacity(safe.len());
        let count = safe.len();
        for (file, deleted) in safe.into_iter().zip(calls::for_each(deleted, count)) {
            outcomes.push(self.deleted(&file.item, file.how, deleted));
        }
        outcomes
    }

    pub(super) async fn delete_files(&self, source: usize, files: Vec<Delete>) -> Answer<Vec<Answer<()>>> {
        let Source { service, dir, .. } = &self.sources[source];
        flat(service.delete(calls::context(), dir.clone(), files.into())).await
    }

    /// Tells how an item that the target has fared at the source.
    pub(super) fn deleted(&self, item: &Item, how: How, deleted: Answer<()>) -> (RelPath, Outcome) {
        match deleted {
            Ok(()) => {
                if item.entry.version.size <= self.options.limits.small_file_bytes {
                    self.advanced(item.bytes());
                }
                self.moved(item, how);
                let outcome = if self.options.copy {
                    Outcome::Kept
                } else {
                    Outcome::Gone
                };
                (item.to.clone(), outcome)
            }
            Err(error) => self.stays(item, Why::Source(error)),
        }
    }

    pub(super) fn stays(&self, item: &Item, why: Why) -> (RelPath, Outcome) {
        self.leave(&item.to, why);
        (item.to.clone(), Outcome::Stays)
    }

    pub(super) async fn close(&self, source: usize, handles: Vec<Handle>) {
        if !handles.is_empty() {
            // Whatever comes of it, the session's end closes them too.
            flat(self.sources[source].service.close(calls::context(), handles.into()))
                .await
                .ok();
        }
    }
}
