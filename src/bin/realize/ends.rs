//! From what was named on the command line to roots: which directories are opened, and which files of them are meant.
#![expect(
    clippy::disallowed_methods,
    reason = "the edge: looks at host paths before any root is open"
)]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use realize::model::{Escaped, Name, RelPath};

/// A directory that files leave.
#[derive(Debug)]
pub struct SourceRoot {
    /// Where it is.
    pub path: PathBuf,
    /// Only these files, each with its name at the target; everything when `None`.
    pub files: Option<Vec<(RelPath, RelPath)>>,
}

/// The directory where files arrive.
#[derive(Debug)]
pub struct TargetRoot {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it has to be made first.
    pub is_missing: bool,
}

/// Shows a host path so that no byte of it steers the terminal.
pub fn shown(path: &Path) -> String {
    Escaped(path.as_os_str().as_bytes()).to_string()
}

/// Finds out which directories the local `sources` are in, and how they are called at the target.
pub fn source_roots(
    sources: &[(PathBuf, SourceKind)],
    renamed: Option<&Name>,
    target: Option<&TargetRoot>,
) -> Result<Vec<SourceRoot>> {
    let mut dirs: Vec<(PathBuf, (u64, u64))> = Vec::new();
    let mut files: BTreeMap<PathBuf, Vec<(RelPath, RelPath)>> = BTreeMap::new();
    for (path, kind) in sources {
        match kind {
            SourceKind::Dir(inode) => {
                if let Some((other, _)) = dirs.iter().find(|(_, known)| known == inode) {
                    bail!(
                        "{} and {} are the same directory: name it once",
                        shown(other),
                        shown(path)
                    );
                }
                dirs.push((path.clone(), *inode));
            }
            SourceKind::File => {
                let (parent, name) = split(path)?;
                let to = renamed.cloned().unwrap_or_else(|| name.clone());
                files.entry(parent).or_default().push((name.into(), to.into()));
            }
        }
    }
    for (path, inode) in &dirs {
        for (other, _) in dirs.iter().filter(|(_, other)| other != inode) {
            if is_within(other, *inode)? {
                bail!(
                    "the source {} is inside the source {}: name the outer one alone",
                    shown(other),
                    shown(path)
                );
            }
        }
        for file_dir in files.keys() {
            if is_within(file_dir, *inode)? {
                bail!(
                    "{} is moved whole: do not name a file in {} as well",
                    shown(path),
                    shown(file_dir)
                );
            }
        }
        if let Some(target) = target
            && target.is_missing
            && is_within(&parent_of(&target.path), *inode)?
        {
            bail!(
                "the target {} is inside the source {}",
                shown(&target.path),
                shown(path)
            );
        }
    }
    let mut roots: Vec<_> = dirs
        .into_iter()
        .map(|(path, _)| SourceRoot { path, files: None })
        .collect();
    roots.extend(files.into_iter().map(|(path, files)| SourceRoot {
        path,
        files: Some(files),
    }));
    Ok(roots)
}

fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether the directory at `path` is the one that has this inode, or below it.
fn is_within(path: &Path, inode: (u64, u64)) -> Result<bool> {
    let path = fs::canonicalize(path).with_context(|| format!("cannot use {}", shown(path)))?;
    Ok(path
        .ancestors()
        .any(|dir| inode_of(dir).is_ok_and(|other| other == inode)))
}

/// Makes the target directory, whose parent is there.
pub fn make_target(path: &Path) -> Result<()> {
    let doing = || format!("cannot make the directory {}", shown(path));
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.with_context(doing)?,
    }
    Ok(())
}

/// Removes the target directory that was made a moment ago, if it is empty.
pub fn unmake_target(path: &Path) {
    // It does no harm, so what can't be removed stays.
    fs::remove_dir(path).ok();
}

/// Makes the name of the target directory durable, whoever made it: files in it are no safer than that. What can't be opened
/// belongs to somebody else, who answers for it.
pub fn sync_name_of(path: &Path) -> Result<()> {
    let parent = parent_of(path);
    match fs::File::open(&parent) {
        Ok(opened) => match opened.sync_all() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced.with_context(|| format!("cannot sync {}", shown(&parent))),
        },
        Err(_) => Ok(()),
    }
}

/// The directory where hashes are remembered from one run to the next, made if it is missing; `None` where this user has none, or it would itself
/// be moved.
pub fn state_dir(sources: &[SourceRoot]) -> Option<PathBuf> {
    let named = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let is_absolute = |dir: &PathBuf| dir.is_absolute();
    let (base, below) = match named.filter(is_absolute) {
        Some(dir) => (dir, "realize/hashes"),
        None => {
            let home = PathBuf::from(std::env::var_os("HOME")?);
            (Some(home).filter(is_absolute)?, ".local/state/realize/hashes")
        }
    };
    // As root with the environment of another user, what is there is that user's to change, and what were made root's.
    if fs::metadata(&base).ok()?.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let is_moved = |dir: &Path| {
        let mut whole = sources.iter().filter(|source| source.files.is_none());
        whole.any(|source| inode_of(&source.path).map_or(true, |inode| is_within(dir, inode).unwrap_or(true)))
    };
    // Nothing is made in a source.
    if is_moved(&base) {
        return None;
    }
    let dir = base.join(below);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).ok()?;
    (!is_moved(&dir)).then_some(dir)
}

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory, by device and inode.
    Dir((u64, u64)),
    /// A file or link.
    File,
}

/// What the local source at `path` is.
pub fn source_kind(path: &Path) -> Result<SourceKind> {
    match fs::metadata(path) {
        // A link to a directory names the directory, with and without a trailing slash.
        Ok(metadata) if metadata.is_dir() => return Ok(SourceKind::Dir((metadata.dev(), metadata.ino()))),
        Ok(_) if ends_in_slash(path) => bail!("{} is not a directory", shown(path)),
        _ => {}
    }
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(SourceKind::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound && was_set_aside(path) => Ok(SourceKind::File),
        Err(error) => Err(error).with_context(|| format!("cannot move {}", shown(path))),
    }
}

/// Whether an interrupted run left the file just before it was deleted.
fn was_set_aside(path: &Path) -> bool {
    let gone = split(path).ok().map(|(parent, name)| {
        let (dir, gone) = match realize::store::names::gone(&name) {
            Some(gone) => (parent, gone),
            None => (
                parent.join(OsStr::from_bytes(realize::store::names::gone_dir().as_bytes())),
                name,
            ),
        };
        dir.join(OsStr::from_bytes(gone.as_bytes()))
    });
    gone.is_some_and(|gone| fs::symlink_metadata(gone).is_ok())
}

/// The root of a local target, and the name that a single file gets in it if not its own.
pub fn target_root(target: &Path, single_file: bool) -> Result<(TargetRoot, Option<Name>)> {
    let root = |path: &Path, is_missing| TargetRoot {
        path: path.to_owned(),
        is_missing,
    };
    match fs::metadata(target) {
        Ok(metadata) if metadata.is_dir() => return Ok((root(target, false), None)),
        Ok(_) if single_file && !ends_in_slash(target) => {}
        Ok(_) => bail!("{} is not a directory", shown(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot use {}", shown(target))),
    }
    let parent = parent_of(target);
    match fs::metadata(&parent) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => bail!("{} is not a directory", shown(&parent)),
        Err(error) => {
            let way_out =
                "only the last component of DST is made (is a disk not mounted?); make the others with mkdir -p";
            return Err(error).with_context(|| format!("cannot use {}: {way_out}", shown(&parent)));
        }
    }
    if single_file && !ends_in_slash(target) {
        let (parent, name) = split(target)?;
        return Ok((root(&parent, false), Some(name)));
    }
    if fs::symlink_metadata(target).is_ok() {
        bail!("{} is a symbolic link that leads nowhere", shown(target));
    }
    Ok((root(target, true), None))
}

pub fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) => ".".into(),
        None => "/".into(),
    }
}

fn split(path: &Path) -> Result<(PathBuf, Name)> {
    let Some(name) = path.file_name() else {
        bail!("{} names no file", shown(path))
    };
    let name = Name::new(name.as_bytes()).with_context(|| format!("cannot use {}", shown(path)))?;
    Ok((parent_of(path), name))
}
