//! Moving by a rename, where both roots are on one file system: the same promises without a copy.

use std::io;

use rustix::io::Errno;

use super::{Source, Store, is_any, is_unsupported, names};
use crate::{
    fs::{Dir, Fs, Rename},
    model::Timestamp,
    planted::{Bug, planted},
    service::{Answer, Expected, RenameFile, Renamed, ServiceError},
};

impl<F: Fs> Store<F> {
    /// Renames a source of this root to its final name in `to`. Not durable before both directories are: see
    /// [`make_names_durable`](Self::make_names_durable).
    pub async fn rename_into(&self, to: &Store<F>, file: &RenameFile, wall: Timestamp) -> Answer<Renamed> {
        to.ensure_safe()?;
        if file.expected != Expected::Absent {
            // To replace a file, or to tell two names of one inode apart, takes a look at what is there.
            return Ok(Renamed::Impossible);
        }
        let source = match self.open_source(&file.from, wall).await {
            Ok(source) => source,
            Err(error) => return Ok(Renamed::SourceStays(error)),
        };
        let (from_dir, from_name) = self.parent_of(&file.from.path).await?;
        let (to_dir, to_name) = to.parent_of(&file.to).await?;
        let to_parent = file.to.parent().unwrap_or_default();
        let part = match &source {
            Source::Link { .. } => names::link_partial(&to_name),
            Source::File(_) => names::partial(&to_name),
        };
        match to_dir.stat(&part).await {
            // An earlier run went the ordinary way: this one goes on there, and nothing of it is left over.
            Ok(_) => return Ok(Renamed::Impossible),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(ServiceError::io("stat", &error)),
        }
        let source_file = match &source {
            Source::Link { .. } => None,
            Source::File(source) => Some(source),
        };
        if let Some(source) = source_file {
            source.sync().await.map_err(|e| to.sync_failed("sync", &e))?;
        }
        to.make_dir_durable(to_parent).await?;
        if let Some(source) = source_file
            && let Err(error) = source.prove_untouched().await
        {
            return Ok(Renamed::SourceStays(error));
        }
        let by_partial = planted(Bug::RenameByPartial)
            && from_dir
                .rename(&from_name, &to_dir, &part, Rename::NoReplace)
                .await
                .is_ok();
        let (from, called) = if by_partial {
            (&to_dir, &part)
        } else {
            (&from_dir, &from_name)
        };
        match from.rename(called, &to_dir, &to_name, Rename::NoReplace).await {
            Ok(()) => {}
            Err(error) if is_any(&error, &[Errno::XDEV]) || is_unsupported(&error) => return Ok(Renamed::OtherDevice),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(ServiceError::Changed),
            Err(error) => {
                return Err(ServiceError::io(
                    "rename it from the source's directory into the target's",
                    &error,
                ));
            }
        }
        let arrived = to_dir.stat(&to_name).await.map_err(|e| ServiceError::io("stat", &e))?;
        if arrived.version.is_same_inode(&file.from.version) {
            return Ok(Renamed::Done);
        }
        // Somebody has put another there since, or had put another under the source's name just before, which is whole
        // where it is now: neither is to be moved again.
        Err(ServiceError::Changed)
    }
}
