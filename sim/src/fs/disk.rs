//! A disk as everybody but the program under test sees it: sets up, looks, acts as a third party, asks what survives.

use std::{collections::BTreeSet, io};

use realize::{
    fs::{Metadata, Rename},
    model::{Name, RelPath, Timestamp},
};
use rustix::io::Errno;

use super::{
    Machine, SimFs,
    content::Content,
    crash::{Image, Node, Nodes, Profile, node, nodes},
    fault::Refusals,
    inode::{Body, FileBody, Ino},
    tree::{HandleId, ROOT, Tree},
};
use crate::random::Random;

/// One disk of a machine. Cheap to clone; clones are the same one.
///
/// Nothing here counts as an effect, meets a fault, or waits. Paths are from the disk's root, no symbolic link is
/// followed. Changes are as volatile as the program's until [`settle`](Self::settle).
#[derive(Debug, Clone)]
pub struct Disk {
    machine: Machine,
    device: u64,
}

/// Somebody else's file, open for writing. It outlives the death of the program, not a crash.
#[derive(Debug)]
pub struct Writer {
    disk: Disk,
    id: HandleId,
    ino: Ino,
}

/// Somebody else's shared mapping of a file: writing through it changes no times, and no lease is to be had while it
/// lasts.
#[derive(Debug)]
pub struct Mapping(Writer);

type Answer<T> = Result<T, Errno>;

impl Disk {
    pub(super) fn new(machine: Machine, device: u64) -> Self {
        Self { machine, device }
    }

    /// Its machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Its device number.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// The file system for the program's current life.
    pub fn fs(&self) -> SimFs {
        SimFs {
            disk: self.clone(),
            generation: self.with(|tree| tree.generation),
        }
    }

    // ---- what it can do

    /// Takes away abilities.
    pub fn refuse(&self, refusals: Refusals) {
        self.with(|tree| tree.refusals = refusals);
    }

    /// Limits the bytes that files take, in whole pages: writes then are short or fail with `ENOSPC`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.with(|tree| tree.capacity = bytes);
    }

    /// The kernel writes back by itself: all that is pending becomes durable, but no one is told, and what a failed sync
    /// has lost stays lost.
    pub fn write_back(&self) {
        self.with(Tree::sync_all);
    }

    /// Makes all that is seen now durable, whatever was lost before: the state to start from.
    pub fn settle(&self) {
        self.with(Tree::settle);
    }

    // ---- setting up and acting as a third party

    /// Makes the directory `path` and those above it, unless they are there.
    pub fn mkdir_all(&self, path: impl AsRef<[u8]>) -> io::Result<()> {
        self.act(|tree| {
            rel(&path)?
                .names()
                .try_fold(ROOT, |dir, name| match tree.lookup(dir, &name) {
                    Ok(ino) if tree.inode(ino).entries().is_some() => Ok(ino),
                    Ok(_) => Err(Errno::NOTDIR),
                    Err(_) => tree.make(dir, &name, Body::Dir(Default::default()), 0o755),
                })?;
            Ok(())
        })
    }

    /// Makes a new file (mode 0644); `EEXIST` when the name is taken.
    pub fn create(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        self.act(|tree| {
            let (dir, name) = at(tree, &path)?;
            let ino = tree.make(dir, &name, Body::File(FileBody::default()), 0o644)?;
            tree.write(ino, 0, content.as_ref())?;
            Ok(())
        })
    }

    /// Makes `path` a file of these bytes: overwrites the one that is there in place, or makes a new one.
    pub fn write(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        match self.open_writer(&path) {
            Ok(writer) => {
                writer.set_len(0)?;
                writer.write(0, content.as_ref())
            }
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => self.create(path, content),
            Err(error) => Err(error),
        }
    }

    /// Writes in place, at `offset`.
    pub fn write_at(&self, path: impl AsRef<[u8]>, offset: u64, data: &[u8]) -> io::Result<()> {
        self.open_writer(path)?.write(offset, data)
    }

    /// Cuts or extends a file.
    pub fn truncate(&self, path: impl AsRef<[u8]>, len: u64) -> io::Result<()> {
        self.open_writer(path)?.set_len(len)
    }

    /// Puts a new file of these bytes in the place of whatever is at `path`, by a rename.
    pub fn replace(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        let mut beside = path.as_ref().to_vec();
        beside.extend_from_slice(b".new-by-somebody-else");
        self.create(&beside, content)?;
        self.rename(&beside, path)
    }

    /// Renames, replacing.
    pub fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> io::Result<()> {
        self.act(|tree| {
            let ((dir, name), (to_dir, to)) = (at(tree, &from)?, at(tree, &to)?);
            tree.rename(dir, &name, to_dir, &to, Rename::Replace)
        })
    }

    /// Gives a file a further name.
    pub fn link(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> io::Result<()> {
        self.act(|tree| {
            let ((dir, name), (to_dir, to)) = (at(tree, &from)?, at(tree, &to)?);
            tree.link(dir, &name, to_dir, &to)
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, path: impl AsRef<[u8]>, text: &[u8]) -> io::Result<()> {
        self.act(|tree| {
            let (dir, name) = at(tree, &path)?;
            tree.make(dir, &name, Body::Symlink(text.to_vec()), 0o777).map(drop)
        })
    }

    /// Makes a FIFO.
    pub fn fifo(&self, path: impl AsRef<[u8]>) -> io::Result<()> {
        self.act(|tree| {
            let (dir, name) = at(tree, &path)?;
            tree.make(dir, &name, Body::Special, 0o644).map(drop)
        })
    }

    /// Removes a file, or an empty directory.
    pub fn remove(&self, path: impl AsRef<[u8]>) -> io::Result<()> {
        self.act(|tree| {
            let (dir, name) = at(tree, &path)?;
            match tree.unlink(dir, &name) {
                Err(Errno::ISDIR) => tree.rmdir(dir, &name),
                result => result,
            }
        })
    }

    /// Sets mode and mtime.
    pub fn set_meta(&self, path: impl AsRef<[u8]>, mode: u32, mtime: Timestamp) -> io::Result<()> {
        self.act(|tree| {
            let ino = find(tree, &path)?;
            tree.set_meta(ino, Some(mode), mtime);
            Ok(())
        })
    }

    /// Opens a file for writing and keeps it open: leases on it break.
    pub fn open_writer(&self, path: impl AsRef<[u8]>) -> io::Result<Writer> {
        let disk = self.clone();
        let (id, ino) = self.act(|tree| {
            let (dir, name) = at(tree, &path)?;
            tree.open(dir, &name, true, true)
        })?;
        Ok(Writer { disk, id, ino })
    }

    /// Turns a bit over on the device; what is cached stays until it is dropped.
    pub fn rot(&self, path: impl AsRef<[u8]>, offset: u64) -> io::Result<()> {
        self.act(|tree| {
            let ino = find(tree, &path)?;
            tree.rot(ino, offset);
            Ok(())
        })
    }

    /// Somebody else makes the file or link at `path` durable, and its name and those of the directories above it.
    pub fn sync(&self, path: impl AsRef<[u8]>) -> io::Result<()> {
        self.act(|tree| {
            let ino = find(tree, &path)?;
            if tree.inode(ino).file().is_some() {
                tree.sync_file(ino)?;
            }
            for above in std::iter::successors(rel(&path)?.parent(), RelPath::parent) {
                tree.sync_dir(find(tree, &above.as_bytes())?)?;
            }
            Ok(())
        })
    }

    // ---- looking

    /// Everything as it is seen now.
    pub fn nodes(&self) -> Nodes {
        self.with(|tree| nodes(&tree.inodes))
    }

    /// What is at `path` now, if anything.
    pub fn node(&self, path: &RelPath) -> Option<Node> {
        self.with(|tree| {
            let ino = find(tree, &path.as_bytes()).ok()?;
            Some(node(ino, tree.inode(ino)))
        })
    }

    /// What has this number now, under any name or none.
    pub fn node_of(&self, ino: Ino) -> Option<Node> {
        self.with(|tree| Some(node(ino, tree.inodes.get(&ino)?)))
    }

    /// What a stat tells.
    pub fn stat(&self, path: impl AsRef<[u8]>) -> io::Result<Metadata> {
        self.act(|tree| Ok(tree.metadata(find(tree, &path)?)))
    }

    /// A regular file's bytes as they are seen now.
    pub fn content(&self, path: impl AsRef<[u8]>) -> io::Result<Content> {
        self.act(|tree| {
            let ino = find(tree, &path)?;
            tree.content(ino).cloned().ok_or(Errno::INVAL)
        })
    }

    /// The same as a vector.
    pub fn read(&self, path: impl AsRef<[u8]>) -> io::Result<Vec<u8>> {
        Ok(self.content(path)?.to_vec())
    }

    /// How many handles are open, those of third parties too.
    pub fn open_handles(&self) -> usize {
        self.with(|tree| tree.handles.len())
    }

    /// The most handles that were open at once.
    pub fn most_open_handles(&self) -> usize {
        self.with(|tree| tree.most_handles)
    }

    // ---- crashing

    /// This disk alone loses its power and gets it back; see [`Machine::crash`].
    pub fn crash(&self, profile: Profile, random: &mut Random) {
        self.reset(self.crash_state(profile, random));
    }

    /// The disk becomes `image`, all of it durable; handles of before are dead.
    pub fn reset(&self, image: Image) {
        self.with(|tree| tree.reset(image.inodes, image.names));
    }

    /// One state that a crash now may leave; nothing changes.
    pub fn crash_state(&self, profile: Profile, random: &mut Random) -> Image {
        self.with(|tree| tree.crash_image(profile, random))
    }

    /// Distinct states that a crash now may leave, at most `bound`. Data is coarse: of each file nothing, all, each
    /// prefix of what is pending, and (where the profile allows) the size alone or all but the last sector.
    pub fn crash_states(&self, profile: Profile, bound: usize) -> Vec<Image> {
        self.with(|tree| tree.crash_images(profile, bound))
    }

    /// The state in which nothing is lost that a sync could still save.
    pub fn whole_state(&self) -> Image {
        self.with(|tree| tree.whole_image())
    }

    // ---- what every crash leaves, under `PosixWorst`

    /// Whether every directory above `path` is where it is after every crash.
    pub fn ancestors_guaranteed(&self, path: &RelPath) -> bool {
        self.with(|tree| tree.ancestors_guaranteed(path))
    }

    /// What `path` may stand for after a crash, `None` for nothing. No answer when its ancestors are not guaranteed.
    pub fn possible_values(&self, path: &RelPath) -> Option<BTreeSet<Option<Ino>>> {
        self.with(|tree| tree.possible_values(path))
    }

    /// The bytes that every crash leaves in a file; `None` when some are in doubt.
    pub fn content_guaranteed(&self, ino: Ino) -> Option<Content> {
        self.with(|tree| tree.content_guaranteed(ino).cloned())
    }

    /// Whether after every crash `path` is a regular file of exactly these bytes. (Pending writes count as doubt even
    /// when they write what is there.)
    pub fn always_holds(&self, path: &RelPath, content: &Content) -> bool {
        self.with(|tree| tree.always_holds(path, content))
    }

    /// Whether after every crash at least one of `paths` is a regular file of exactly these bytes. A path below a
    /// directory that is itself in doubt never counts. Says no when names have too long a history.
    pub fn survives(&self, paths: &[RelPath], content: &Content) -> bool {
        self.with(|tree| tree.survives(paths, content))
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Tree) -> T) -> T {
        let mut state = self.machine.lock();
        work(state.trees.get_mut(&self.device).expect("disks are never taken away"))
    }

    fn act<T>(&self, work: impl FnOnce(&mut Tree) -> Answer<T>) -> io::Result<T> {
        let mut state = self.machine.lock();
        let now = state.tick();
        let tree = state.trees.get_mut(&self.device).expect("disks are never taken away");
        tree.now = now;
        Ok(work(tree)?)
    }
}

impl Writer {
    /// Writes at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.act(|tree, ino| tree.write(ino, offset, data).map(drop))
    }

    /// Cuts or extends.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.act(|tree, ino| {
            tree.set_len(ino, len);
            Ok(())
        })
    }

    /// Maps the file for writing; the descriptor is closed, as programs do.
    pub fn map(self) -> Mapping {
        Mapping(self)
    }

    /// `EIO` after a crash.
    fn act(&self, work: impl FnOnce(&mut Tree, Ino) -> Answer<()>) -> io::Result<()> {
        self.disk.act(|tree| match tree.handles.contains_key(&self.id) {
            true => work(tree, self.ino),
            false => Err(Errno::IO),
        })
    }
}

impl Mapping {
    /// Stores at `offset`, which must be below the file's size.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.act(|tree, ino| {
            if data.is_empty() || offset + data.len() as u64 > tree.file(ino).content.size() {
                return Err(Errno::INVAL);
            }
            tree.write_unseen(ino, offset, data, tree.refusals.maps_tell);
            Ok(())
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.disk.with(|tree| tree.close(self.id));
    }
}

fn rel(path: &impl AsRef<[u8]>) -> Answer<RelPath> {
    RelPath::new(path.as_ref()).map_err(|_| Errno::INVAL)
}

/// The directory of `path`, and the name in it.
fn at(tree: &Tree, path: &impl AsRef<[u8]>) -> Answer<(Ino, Name)> {
    let (dir, name) = rel(path)?.split().ok_or(Errno::INVAL)?;
    Ok((tree.walk(ROOT, &dir)?, name))
}

fn find(tree: &Tree, path: &impl AsRef<[u8]>) -> Answer<Ino> {
    if path.as_ref().is_empty() {
        return Ok(ROOT);
    }
    let (dir, name) = at(tree, path)?;
    tree.lookup(dir, &name)
}
