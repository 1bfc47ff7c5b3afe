//! Directories for a test that go when it ends, on a disk and in memory.

use std::{
    fs,
    ops::Deref,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::Path,
};

use tempfile::TempDir;

use super::run_as_root;

/// The user and group of a program that runs without privileges.
pub const NOBODY: u32 = 65534;

/// A directory that goes, with all that is in it, when this value does.
pub struct Scratch(TempDir);

impl Scratch {
    /// On a disk: where temporary files are, or in the build directory when those are kept in memory.
    pub fn on_disk() -> Self {
        let temp = TempDir::with_prefix("realize-test-").unwrap();
        if device(temp.path()) != device(Path::new("/dev/shm")) {
            return Self(temp);
        }
        Self(TempDir::with_prefix_in("realize-test-", env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    /// In memory, which is another file system than [`on_disk`](Self::on_disk).
    pub fn in_memory() -> Self {
        Self(TempDir::with_prefix_in("realize-test-", "/dev/shm").unwrap())
    }

    /// A new directory in this one.
    pub fn dir(&self, name: &str) -> std::path::PathBuf {
        let path = self.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Deref for Scratch {
    type Target = Path;
    fn deref(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !run_as_root() {
            // A directory that nobody may write to can't be emptied; what fails here fails there too.
            make_writable(self.0.path());
        }
    }
}

/// Makes [`NOBODY`] the owner of `path` and all below it, modes unchanged. Without privileges everything is one's own
/// already and stays so.
pub fn give_to_nobody(path: &Path) {
    if !run_as_root() {
        return;
    }
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give_to_nobody(&entry.unwrap().path());
        }
    }
    lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if !metadata.is_symlink() {
        // A change of owner takes the set-ID bits away.
        fs::set_permissions(path, metadata.permissions()).unwrap();
    }
}

fn make_writable(dir: &Path) {
    let writable = fs::Permissions::from_mode(0o700);
    if fs::set_permissions(dir, writable).is_err() {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}

fn device(path: &Path) -> u64 {
    fs::metadata(path).unwrap().dev()
}
