//! Secret keys on disk: files of this host that nobody else may read.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the edge: a key file is in no root"
)]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use crate::{
    hostfile,
    keys::{BadKey, SecretKey},
    model::Escaped,
};

/// The longest key file: a key takes 119 bytes, the rest is for comments.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Permission bits that let group or others read or write.
const OPEN_TO_OTHERS: u32 = 0o066;

/// Why a key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file could not be read.
    #[error("cannot read the key file {}: {why}", shown(path))]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// The file could not be made; nothing new is left behind.
    #[error("cannot write the key file {}: {why}", shown(path))]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// There is something at that path already, and it stays.
    #[error(
        "{} exists already: a key is never overwritten; choose another name or move it away",
        shown(path)
    )]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// Group or others may read or write the file.
    #[error("others may read or write the key file {}: chmod 600 {}", shown(path), shown(path))]
    OpenToOthers {
        /// Which file.
        path: PathBuf,
    },
    /// The file holds no key.
    #[error("cannot use the key file {}: {why}", shown(path))]
    BadKey {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadKey,
    },
}

/// Makes the file `path` with `key` in it, mode 0600, and makes it durable. Nothing that is there already is overwritten or
/// written through.
pub fn write_new(path: &Path, key: &SecretKey) -> Result<(), KeyFileError> {
    let failed = |why| KeyFileError::Write {
        path: path.to_owned(),
        why,
    };
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(KeyFileError::Exists { path: path.to_owned() });
        }
        opened => opened.map_err(failed)?,
    };
    let written = file
        .write_all(key.to_pem().as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_parent(path));
    written.map_err(|error| {
        // The file is this call's own, and half a key is of no use. The first error is the one to tell.
        fs::remove_file(path).ok();
        failed(error)
    })
}

/// Reads the key in the file `path`, links followed. A file that group or others may read or write is refused.
pub fn read(path: &Path) -> Result<SecretKey, KeyFileError> {
    let (pem, metadata) = hostfile::read(path, FILE_BYTES_MAX).map_err(|why| KeyFileError::Read {
        path: path.to_owned(),
        why,
    })?;
    if metadata.permissions().mode() & OPEN_TO_OTHERS != 0 {
        return Err(KeyFileError::OpenToOthers { path: path.to_owned() });
    }
    SecretKey::from_pem(&pem).map_err(|why| KeyFileError::BadKey {
        path: path.to_owned(),
        why,
    })
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

fn shown(path: &Path) -> String {
    Escaped(path.as_os_str().as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn with_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn written_key_is_private_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = SecretKey::generate().unwrap();
        write_new(&path, &key).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(read(&path).unwrap().public(), key.public());
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(read(&link).unwrap().public(), key.public());
    }

    #[test]
    fn nothing_is_overwritten_or_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("key"), dir.path().join("link"));
        fs::write(&path, "precious").unwrap();
        symlink(dir.path().join("elsewhere"), &link).unwrap();
        let key = SecretKey::generate().unwrap();
        for path in [&path, &link] {
            assert!(matches!(write_new(path, &key), Err(KeyFileError::Exists { .. })));
        }
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(!dir.path().join("elsewhere").exists());
        let nowhere = write_new(&dir.path().join("missing/key"), &key);
        assert!(matches!(nowhere, Err(KeyFileError::Write { .. })));
    }

    #[test]
    fn key_open_to_others_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_new(&path, &SecretKey::generate().unwrap()).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602] {
            with_mode(&path, mode);
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.ends_with(&format!("chmod 600 {}", shown(&path))),
                "{mode:o}: {error}"
            );
        }
        with_mode(&path, 0o400);
        read(&path).unwrap();
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for path in [&fifo, dir.path(), &dir.path().join("missing")] {
            assert!(matches!(read(path), Err(KeyFileError::Read { .. })), "{path:?}");
        }
        let path = dir.path().join("text");
        fs::write(&path, "hello").unwrap();
        with_mode(&path, 0o600);
        assert!(matches!(read(&path), Err(KeyFileError::BadKey { .. })));
    }

    #[test]
    fn file_is_read_up_to_its_limit_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = SecretKey::generate().unwrap();
        write_new(&path, &key).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for (bytes, is_read) in [(FILE_BYTES_MAX, true), (FILE_BYTES_MAX + 1, false), (1 << 40, false)] {
            file.set_len(bytes).unwrap();
            assert_eq!(read(&path).is_ok(), is_read, "{bytes}");
        }
    }
}
