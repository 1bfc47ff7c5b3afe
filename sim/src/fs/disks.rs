//! Two disks as one file system.

use std::{future::Future, io, path::Path};

use realize::fs::{BootId, Fs, JobLost};

use super::{Disk, SimDir, SimFile, SimFs};

/// The disks of two roots as the one file system that a program sees.
#[derive(Clone)]
pub struct Disks {
    source: SimFs,
    target: SimFs,
}

impl Disks {
    /// What is below `/target` is on the second.
    pub fn of(source: &Disk, target: &Disk) -> Self {
        Self {
            source: source.fs(),
            target: target.fs(),
        }
    }
}

impl Fs for Disks {
    type Dir = SimDir;
    type File = SimFile;

    fn boot(&self) -> BootId {
        self.source.boot()
    }

    async fn open_root(&self, path: &Path) -> io::Result<SimDir> {
        let disk = if path.starts_with("/target") {
            &self.target
        } else {
            &self.source
        };
        disk.open_root(path).await
    }

    async fn offload<T, J>(&self, job: J) -> Result<T, JobLost>
    where
        T: Send + 'static,
        J: Future<Output = T> + Send + 'static,
    {
        self.source.offload(job).await
    }
}
