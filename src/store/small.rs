//! The target's side of small files and links: whole batches, step by step.

use bytes::Bytes;

use super::{
    Store, names,
    publish::{Ours, is_link_to, remove_ours, set_meta},
};
use crate::{
    digest::digest,
    fs::{Dir, File, Fs, write_all},
    model::{Digest, Name},
    planted::{Bug, planted},
    service::{Answer, Content, NewFile, ServiceError},
};

/// A small file or link that is written, but has not its final name.
pub struct Prepared<F: Fs> {
    new: NewFile,
    dir: F::Dir,
    name: Name,
    part: Name,
    state: PreparedState<F>,
}

enum PreparedState<F: Fs> {
    /// Held open up to its sync, so that no failed write-back goes unseen, and locked.
    File(F::File),
    Link,
    /// A link that is there already.
    WasThere,
}

impl<F: Fs> Store<F> {
    /// Writes a whole small file or link beside its final name: the first of three steps, each taken for all files of a
    /// batch before the next, so that the disk can bring them out together.
    pub async fn prepare(&self, new: NewFile) -> Answer<Prepared<F>> {
        self.ensure_safe()?;
        let (dir, name) = self.parent_of(&new.path).await?;
        let part = names::partial(&name);
        let state = match &new.content {
            Content::File { data, digest } => {
                PreparedState::File(self.prepare_file(&dir, &part, &new, data, *digest).await?)
            }
            Content::Symlink(text) => self.prepare_link(&dir, &name, &part, &new, text).await?,
        };
        Ok(Prepared {
            new,
            dir,
            name,
            part,
            state,
        })
    }

    async fn prepare_file(
        &self,
        dir: &F::Dir,
        part: &Name,
        new: &NewFile,
        data: &Bytes,
        wanted: Digest,
    ) -> Answer<F::File> {
        if data.len() as u64 > self.inner.limits.small_file_bytes {
            return Err(ServiceError::BadRequest("too large to be put whole".into()));
        }
        if digest(data) != wanted && !planted(Bug::SkipDigest) {
            return Err(ServiceError::DigestMismatch);
        }
        let (file, _) = self.take_partial(dir, part, false).await?;
        let written = async {
            write_all(&file, 0, data)
                .await
                .map_err(|e| ServiceError::io("write", &e))?;
            set_meta(&file, new.meta).await?;
            file.start_writeback().await.map_err(|e| self.sync_failed("write", &e))
        };
        let written = written.await;
        if written.is_err() {
            remove_ours(dir, part, &inode(&file).await?).await;
        }
        written.map(|()| file)
    }

    async fn prepare_link(
        &self,
        dir: &F::Dir,
        name: &Name,
        part: &Name,
        new: &NewFile,
        text: &Bytes,
    ) -> Answer<PreparedState<F>> {
        let mtime = new.meta.mtime;
        if is_link_to(dir, name, text).await? {
            self.remove_partial(dir, name).await?;
            dir.set_mtime(name, mtime)
                .await
                .map_err(|e| ServiceError::io("set times", &e))?;
            return Ok(PreparedState::WasThere);
        }
        self.remove_partial(dir, name).await?;
        dir.symlink(part, text)
            .await
            .map_err(|e| ServiceError::io("make the link", &e))?;
        let timed = dir
            .set_mtime(part, mtime)
            .await
            .map_err(|e| ServiceError::io("set times", &e));
        if timed.is_err() {
            remove_ours(dir, part, &Ours::Link(text.clone())).await;
        }
        timed.map(|()| PreparedState::Link)
    }

    /// The second step: its content is durable. (A link's is with its name.)
    pub async fn sync_prepared(&self, prepared: Prepared<F>) -> Answer<Prepared<F>> {
        if let PreparedState::File(file) = &prepared.state
            && !planted(Bug::DeleteBeforeSync)
        {
            let synced = file.sync().await.map_err(|e| self.sync_failed("sync", &e));
            if synced.is_err() {
                remove_ours(&prepared.dir, &prepared.part, &inode(file).await?).await;
            }
            synced?;
        }
        Ok(prepared)
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
            state,
        } = &prepared;
        let ours = match (state, &new.content) {
            (PreparedState::File(file), _) => inode(file).await?,
            (_, Content::Symlink(text)) => Ours::Link(text.clone()),
            (_, Content::File { .. }) => return Err(ServiceError::Internal),
        };
        if matches!(state, PreparedState::WasThere) || planted(Bug::AcknowledgeBeforeRename) {
            return Ok(ours);
        }
        let published = self.publish(dir, part, name, new.expected, &ours).await;
        if published.is_err() {
            remove_ours(dir, part, &ours).await;
        }
        match (published, &new.content) {
            // Put again after the answer to the first time was lost?
            (Err(ServiceError::Changed), Content::File { digest, .. }) => {
                self.settle_if_equal(dir, &new.path, name, *digest, new.meta).await?;
                let found = dir.stat(name).await.map_err(|e| ServiceError::io("stat", &e))?;
                Ok(Ours::Inode(found.version))
            }
            (published, _) => published.map(|()| ours),
        }
    }
}

async fn inode(file: &impl File) -> Answer<Ours> {
    let metadata = file.metadata().await.map_err(|e| ServiceError::io("stat", &e))?;
    Ok(Ours::Inode(metadata.version))
}
