//! The target's side of small files and links: whole batches, step by step.

use std::io;

use bytes::Bytes;

use super::{
    Store,
    hashes::Hashes,
    ignore_missing, names,
    publish::{Ours, remove_ours, set_meta},
};
use crate::{
    digest::digest,
    fs::{Dir, File, Fs, write_all},
    model::{Digest, Kind, Name, Timestamp},
    planted::{Bug, planted},
    service::{Answer, Content, NewFile, ServiceError, Verify},
};

/// A small file or link that is written, but has not its final name.
pub struct Prepared<F: Fs> {
    new: NewFile,
    dir: F::Dir,
    name: Name,
    part: Name,
    ours: Ours,
    /// Held open up to its sync, so that no failed write-back goes unseen, and locked. `None` for a link.
    file: Option<F::File>,
}

impl<F: Fs> Store<F> {
    /// Writes a whole small file or link beside its final name: the first of three steps, each taken for all files of a
    /// batch before the next, so that the disk can bring them out together.
    pub async fn prepare(&self, new: NewFile) -> Answer<Prepared<F>> {
        self.ensure_safe()?;
        let (dir, name) = self.parent_of(&new.path).await?;
        let (part, ours, file) = match &new.content {
            Content::File { data, digest } => {
                let part = names::partial(&name);
                let (file, ours) = self.prepare_file(&dir, &part, &new, data, *digest).await?;
                (part, ours, Some(file))
            }
            Content::Symlink(text) => {
                let part = names::link_partial(&name);
                self.remove_partial(&dir, &name, None).await?;
                prepare_link(&dir, &part, text, new.meta.mtime).await?;
                (part, Ours::Link(text.clone()), None)
            }
        };
        Ok(Prepared {
            new,
            dir,
            name,
            part,
            ours,
            file,
        })
    }

    async fn prepare_file(
        &self,
        dir: &F::Dir,
        part: &Name,
        new: &NewFile,
        data: &Bytes,
        wanted: Digest,
    ) -> Answer<(F::File, Ours)> {
        if data.len() as u64 > self.inner.limits.small_file_bytes {
            return Err(ServiceError::BadRequest("too large to be put whole".into()));
        }
        if digest(data) != wanted && !planted(Bug::SkipDigest) {
            return Err(ServiceError::DigestMismatch);
        }
        let (file, version) = self.take_partial(dir, part, false).await?;
        let ours = Ours::Inode(version);
        let written = async {
            write_all(&file, 0, data)
                .await
                .map_err(|e| ServiceError::io("write", &e))?;
            set_meta(&file, new.meta).await?;
            file.start_writeback().await.map_err(|e| self.sync_failed("write", &e))
        };
        let written = written.await;
        if written.is_err() {
            remove_ours(dir, part, &ours).await;
        }
        written.map(|()| (file, ours))
    }

    /// The second step: its content is durable. (A link's is with its name.)
    pub async fn sync_prepared(&self, prepared: Prepared<F>) -> Answer<Prepared<F>> {
        if let Some(file) = &prepared.file
            && !planted(Bug::DeleteBeforeSync)
        {
            let synced = self.sync_file(file, &prepared.new).await;
            if synced.is_err() {
                remove_ours(&prepared.dir, &prepared.part, &prepared.ours).await;
            }
            synced?;
        }
        Ok(prepared)
    }

    async fn sync_file(&self, file: &F::File, new: &NewFile) -> Answer<()> {
        file.sync().await.map_err(|e| self.sync_failed("sync", &e))?;
        if let (Verify::Disk, Content::File { data, digest }) = (new.verify, &new.content) {
            file.drop_cache()
                .await
                .map_err(|e| ServiceError::io("drop the cache of", &e))?;
            let hashes = Hashes::new(data.len() as u64, 1);
            if hashes.read_whole(file).await? != *digest {
                return Err(ServiceError::DigestMismatch);
            }
        }
        Ok(())
    }

    /// The third step: it has its final name, which is not durable before
    /// [`make_names_durable`](Self::make_names_durable) has covered its directory. What is to be found there then.
    pub async fn publish_prepared(&self, prepared: Prepared<F>) -> Answer<Ours> {
        self.ensure_safe()?;
        let Prepared {
            new,
            dir,
            name,
            part,
            ours,
            file: _held,
        } = prepared;
        if planted(Bug::AcknowledgeBeforeRename) {
            return Ok(ours);
        }
        let published = self.publish(&dir, &part, &name, new.expected, &ours).await;
        if published.is_err() {
            remove_ours(&dir, &part, &ours).await;
        }
        match (published, &new.content) {
            // Put again after the answer to the first time was lost?
            (Err(ServiceError::Changed), Content::File { digest, .. }) => {
                self.settle_if_equal(&dir, &new.path, &name, *digest, new.meta).await
            }
            (published, _) => published.map(|()| ours),
        }
    }
}

/// Makes the link `part`. One of that name is a dead run's, or that of a run which then finds out when it publishes.
async fn prepare_link<D: Dir>(dir: &D, part: &Name, text: &Bytes, mtime: Timestamp) -> Answer<()> {
    let made = match dir.symlink(part, text).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match dir.stat(part).await {
            Ok(found) if found.kind != Kind::Symlink => return Err(ServiceError::Leftover(part.clone())),
            _ => {
                ignore_missing(dir.unlink(part).await).map_err(|e| ServiceError::io("remove", &e))?;
                dir.symlink(part, text).await
            }
        },
        made => made,
    };
    made.map_err(|e| ServiceError::io("make the link", &e))?;
    let timed = dir.set_mtime(part, mtime).await;
    if timed.is_err() {
        remove_ours(dir, part, &Ours::Link(text.clone())).await;
    }
    timed.map_err(|e| ServiceError::io("set times", &e))
}
