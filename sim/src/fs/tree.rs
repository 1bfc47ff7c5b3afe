//! One disk: its inodes and names as they are seen, with Linux's answers, and the journal of what is not durable yet.

use std::collections::{BTreeMap, BTreeSet};

use realize::{
    fs::{Lock, Metadata, Rename},
    model::{Kind, Name, RelPath, Timestamp, Version},
};
use rustix::io::Errno;

use super::{
    content::{Content, PAGE_BYTES, pieces},
    fault::Refusals,
    inode::{Body, Change, FileBody, Ino, Inode, Pending},
};
use crate::random::Random;

/// The root directory's inode number.
pub(super) const ROOT: Ino = 2;

/// How many symbolic links one look-up follows, as Linux.
const LINKS_FOLLOWED_MAX: usize = 40;

pub(super) type Result<T> = std::result::Result<T, Errno>;
pub(super) type HandleId = u64;
/// A name in a directory.
pub(super) type Key = (Ino, Name);

/// A change of names, atomic: all its assignments or none.
#[derive(Debug, Clone)]
pub(super) struct NameOp {
    pub seq: u64,
    pub sets: Vec<(Key, Option<Ino>)>,
}

impl NameOp {
    pub fn touches(&self, keys: &BTreeSet<Key>) -> bool {
        self.sets.iter().any(|(key, _)| keys.contains(key))
    }
}

/// An open file or directory.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub ino: Ino,
    pub write: bool,
    pub lock: Option<Lock>,
    pub lease: bool,
    /// Not of the program under test: survives its death.
    pub foreign: bool,
}

#[derive(Debug)]
pub(super) struct Tree {
    pub device: u64,
    /// Counts crashes and kills: handles of another generation are dead.
    pub generation: u64,
    pub now: Timestamp,
    pub inodes: BTreeMap<Ino, Inode>,
    pub handles: BTreeMap<HandleId, Handle>,
    /// Durable names, per directory.
    pub stable: BTreeMap<Ino, BTreeMap<Name, Ino>>,
    /// Changes of names that are not durable, in order.
    pub journal: Vec<NameOp>,
    /// Number of the last change, of names and of data alike.
    pub seq: u64,
    /// Number of the last change when a sync last succeeded: a journalling file system has committed up to here.
    pub committed: u64,
    pub capacity: Option<u64>,
    /// The most that were open at once.
    pub most_handles: usize,
    pub refusals: Refusals,
    next_ino: Ino,
    free: BTreeSet<Ino>,
    next_handle: HandleId,
}

impl Tree {
    pub fn new(device: u64, now: Timestamp) -> Self {
        Self {
            device,
            generation: 0,
            now,
            inodes: BTreeMap::from([(ROOT, Inode::new(Body::Dir(BTreeMap::new()), 0o755, now))]),
            handles: BTreeMap::new(),
            stable: BTreeMap::new(),
            journal: Vec::new(),
            seq: 0,
            committed: 0,
            capacity: None,
            most_handles: 0,
            refusals: Refusals::default(),
            next_ino: ROOT + 9,
            free: BTreeSet::new(),
            next_handle: 1,
        }
    }

    /// Takes over what a crash left: every inode and name durable, no handles.
    pub fn reset(&mut self, inodes: BTreeMap<Ino, Inode>, stable: BTreeMap<Ino, BTreeMap<Name, Ino>>) {
        self.generation += 1;
        self.next_ino = self.next_ino.max(inodes.keys().next_back().map_or(0, |last| last + 1));
        self.free = (ROOT + 9..self.next_ino)
            .filter(|ino| !inodes.contains_key(ino))
            .collect();
        self.inodes = inodes;
        self.stable = stable;
        self.handles.clear();
        self.journal.clear();
        self.committed = self.seq;
    }

    /// The process died: its handles are gone.
    pub fn kill(&mut self) {
        self.generation += 1;
        let own: Vec<_> = self
            .handles
            .iter()
            .filter(|(_, h)| !h.foreign)
            .map(|(id, _)| *id)
            .collect();
        for id in own {
            self.close(id);
        }
    }

    // ---- handles

    pub fn open_handle(&mut self, ino: Ino, write: bool, foreign: bool) -> HandleId {
        let id = self.next_handle;
        self.next_handle += 1;
        self.most_handles = self.most_handles.max(self.handles.len() + 1);
        self.handles.insert(
            id,
            Handle {
                ino,
                write,
                lock: None,
                lease: false,
                foreign,
            },
        );
        id
    }

    pub fn close(&mut self, id: HandleId) {
        if let Some(handle) = self.handles.remove(&id) {
            self.reap(handle.ino);
        }
    }

    pub fn lock(&mut self, id: HandleId, lock: Lock) -> Result<()> {
        let ino = self.handles[&id].ino;
        if self.handles[&id].lock == Some(lock) {
            return Ok(());
        }
        // As Linux: a conversion gives the old lock up before it tries the new one.
        self.handle(id).lock = None;
        let against = |held: Lock| held == Lock::Exclusive || lock == Lock::Exclusive;
        if self
            .handles
            .values()
            .any(|h| h.ino == ino && h.lock.is_some_and(against))
        {
            return Err(Errno::AGAIN);
        }
        self.handle(id).lock = Some(lock);
        Ok(())
    }

    pub fn unlock(&mut self, id: HandleId) {
        self.handle(id).lock = None;
    }

    pub fn is_locked(&self, ino: Ino) -> bool {
        self.handles.values().any(|h| h.ino == ino && h.lock.is_some())
    }

    pub fn lease(&mut self, id: HandleId) -> Result<()> {
        let ino = self.handles[&id].ino;
        if let Some(errno) = self.refusals.lease {
            return Err(errno);
        }
        let is_writer = self.handles[&id].write;
        let mut others = self.handles.iter().filter(|(other, h)| h.ino == ino && **other != id);
        if others.any(|(_, h)| h.write || is_writer) {
            return Err(Errno::AGAIN);
        }
        self.handle(id).lease = true;
        Ok(())
    }

    /// Somebody is about to open it, to `write` or truncate it perhaps.
    pub fn break_leases(&mut self, ino: Ino, write: bool) {
        for handle in self.handles.values_mut().filter(|h| h.ino == ino && (write || h.write)) {
            handle.lease = false;
        }
    }

    fn handle(&mut self, id: HandleId) -> &mut Handle {
        self.handles
            .get_mut(&id)
            .expect("a handle of this generation is in the table")
    }

    // ---- looking up

    pub fn inode(&self, ino: Ino) -> &Inode {
        self.inodes.get(&ino).expect("an open or named inode exists")
    }

    pub fn inode_mut(&mut self, ino: Ino) -> &mut Inode {
        self.inodes.get_mut(&ino).expect("an open or named inode exists")
    }

    fn entries(&self, dir: Ino) -> &BTreeMap<Name, Ino> {
        self.inode(dir).entries().expect("directory handles are of directories")
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> &mut FileBody {
        match &mut self.inode_mut(ino).body {
            Body::File(file) => file,
            _ => unreachable!("file handles are of regular files"),
        }
    }

    pub fn file(&self, ino: Ino) -> &FileBody {
        self.inode(ino).file().expect("file handles are of regular files")
    }

    pub fn lookup(&self, dir: Ino, name: &Name) -> Result<Ino> {
        let entries = self.entries(dir);
        entries.get(&self.as_spelt(dir, name)).copied().ok_or(Errno::NOENT)
    }

    /// How `name` is spelt where it is, on a file system that knows one name under several spellings.
    fn as_spelt(&self, dir: Ino, name: &Name) -> Name {
        let folded = |name: &Name| {
            let mut bytes = name.as_bytes().to_ascii_lowercase();
            while bytes.len() > 1 && bytes.ends_with(b".") {
                bytes.pop();
            }
            bytes
        };
        let entries = self.entries(dir);
        if !self.refusals.folds || entries.contains_key(name) {
            return name.clone();
        }
        let known = entries.keys().find(|known| folded(known) == folded(name));
        known.unwrap_or(name).clone()
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.inode(ino).kind() == Kind::Dir
    }

    /// A directory that was removed and is only held open.
    fn is_dead(&self, dir: Ino) -> bool {
        dir != ROOT && self.inode(dir).names.is_empty()
    }

    /// The directory at `path` below `dir`, no symbolic link followed.
    pub fn walk(&self, dir: Ino, path: &RelPath) -> Result<Ino> {
        path.names().try_fold(dir, |dir, name| {
            let ino = self.lookup(dir, &name)?;
            match self.inode(ino).kind() {
                Kind::Dir => Ok(ino),
                Kind::Symlink => Err(Errno::LOOP),
                Kind::File | Kind::Special => Err(Errno::NOTDIR),
            }
        })
    }

    /// The directory at a host path, symbolic links followed.
    pub fn walk_host(&self, path: &[u8]) -> Result<Ino> {
        let mut ahead: Vec<Vec<u8>> = components(path);
        let (mut at, mut followed) = (ROOT, 0);
        while let Some(component) = ahead.pop() {
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = self.inode(at).names.first().map_or(ROOT, |(parent, _)| *parent);
                    continue;
                }
                _ => {}
            }
            let name = Name::new(component).map_err(|_| Errno::NAMETOOLONG)?;
            let ino = self.lookup(at, &name)?;
            match &self.inode(ino).body {
                Body::Dir(_) => at = ino,
                Body::Symlink(text) => {
                    followed += 1;
                    if followed > LINKS_FOLLOWED_MAX {
                        return Err(Errno::LOOP);
                    }
                    if text.starts_with(b"/") {
                        at = ROOT;
                    }
                    ahead.extend(components(text));
                }
                Body::File(_) | Body::Special => return Err(Errno::NOTDIR),
            }
        }
        Ok(at)
    }

    /// One path of an inode; `None` when it has no name any more.
    pub fn path_of(&self, ino: Ino) -> Option<RelPath> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let (dir, name) = self.inode(at).names.first()?;
            names.push(name);
            at = *dir;
        }
        let path = names
            .iter()
            .rev()
            .map(|name| name.as_bytes())
            .collect::<Vec<_>>()
            .join(&b'/');
        RelPath::new(path).ok()
    }

    pub fn metadata(&self, ino: Ino) -> Metadata {
        let inode = self.inode(ino);
        let links = match inode.entries() {
            Some(_) if self.is_dead(ino) => 0,
            Some(entries) => 2 + entries.values().filter(|ino| self.is_dir(**ino)).count(),
            None => inode.names.len(),
        };
        Metadata {
            kind: inode.kind(),
            version: Version {
                dev: self.device,
                ino,
                size: inode.size(),
                mtime: inode.meta.mtime,
                ctime: inode.meta.ctime,
            },
            mode: inode.meta.mode,
            links: links as u64,
            uid: 0,
            gid: 0,
        }
    }

    pub fn names(&self, dir: Ino) -> Result<Vec<Name>> {
        if self.is_dead(dir) {
            return Err(Errno::NOENT);
        }
        Ok(self.entries(dir).keys().cloned().collect())
    }

    pub fn open(&mut self, dir: Ino, name: &Name, write: bool, foreign: bool) -> Result<(HandleId, Ino)> {
        let ino = self.lookup(dir, name)?;
        match self.inode(ino).kind() {
            Kind::File => {}
            Kind::Dir => return Err(Errno::ISDIR),
            Kind::Symlink => return Err(Errno::LOOP),
            Kind::Special => return Err(Errno::INVAL),
        }
        self.break_leases(ino, write);
        Ok((self.open_handle(ino, write, foreign), ino))
    }

    // ---- changing names

    /// Makes `name`.
    pub fn make(&mut self, dir: Ino, name: &Name, body: Body, mode: u32) -> Result<Ino> {
        self.may_create(dir, name)?;
        let ino = match self.free.pop_first() {
            Some(ino) => ino,
            None => {
                self.next_ino += 1;
                self.next_ino - 1
            }
        };
        // As Linux: what is made in a set-group-ID directory is of its group, and a directory passes the bit on.
        let inherited = match body {
            Body::Dir(_) => self.inode(dir).meta.mode & 0o2000,
            _ => 0,
        };
        self.inodes.insert(ino, Inode::new(body, mode | inherited, self.now));
        self.assign(vec![((dir, name.clone()), Some(ino))]);
        Ok(ino)
    }

    fn may_create(&self, dir: Ino, name: &Name) -> Result<()> {
        match self.lookup(dir, name).is_ok() {
            true => Err(Errno::EXIST),
            false if self.is_dead(dir) => Err(Errno::NOENT),
            false => Ok(()),
        }
    }

    pub fn link(&mut self, dir: Ino, name: &Name, to_dir: Ino, to: &Name) -> Result<()> {
        let ino = self.lookup(dir, name)?;
        self.may_create(to_dir, to)?;
        if self.is_dir(ino) {
            return Err(Errno::PERM);
        }
        if let Some(errno) = self.refusals.link {
            return Err(errno);
        }
        self.assign(vec![((to_dir, to.clone()), Some(ino))]);
        Ok(())
    }

    pub fn unlink(&mut self, dir: Ino, name: &Name) -> Result<()> {
        if self.is_dir(self.lookup(dir, name)?) {
            return Err(Errno::ISDIR);
        }
        self.assign(vec![((dir, name.clone()), None)]);
        Ok(())
    }

    pub fn rmdir(&mut self, dir: Ino, name: &Name) -> Result<()> {
        match self.inode(self.lookup(dir, name)?).entries() {
            None => return Err(Errno::NOTDIR),
            Some(entries) if !entries.is_empty() => return Err(Errno::NOTEMPTY),
            Some(_) => {}
        }
        self.assign(vec![((dir, name.clone()), None)]);
        Ok(())
    }

    pub fn rename(&mut self, dir: Ino, name: &Name, to_dir: Ino, to: &Name, how: Rename) -> Result<()> {
        match (how, self.refusals) {
            (
                Rename::NoReplace,
                Refusals {
                    no_replace: Some(e), ..
                },
            )
            | (Rename::Exchange, Refusals { exchange: Some(e), .. }) => return Err(e),
            _ => {}
        }
        let old = self.lookup(dir, name)?;
        let new = self.lookup(to_dir, to).ok();
        match (how, new) {
            (Rename::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Rename::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if dir != to_dir && self.is_above(old, to_dir) {
            return Err(Errno::INVAL);
        }
        if dir != to_dir && new.is_some_and(|new| self.is_above(new, dir)) {
            return Err(if how == Rename::Exchange {
                Errno::INVAL
            } else {
                Errno::NOTEMPTY
            });
        }
        if new == Some(old) {
            return Ok(());
        }
        if how != Rename::Exchange {
            self.may_replace(old, new)?;
        }
        if self.is_dead(to_dir) {
            return Err(Errno::NOENT);
        }
        let back = if how == Rename::Exchange { new } else { None };
        self.assign(vec![((dir, name.clone()), back), ((to_dir, to.clone()), Some(old))]);
        Ok(())
    }

    fn may_replace(&self, old: Ino, new: Option<Ino>) -> Result<()> {
        let Some(new) = new else { return Ok(()) };
        match (self.is_dir(old), self.inode(new).entries()) {
            (true, None) => Err(Errno::NOTDIR),
            (false, Some(_)) => Err(Errno::ISDIR),
            (true, Some(entries)) if !entries.is_empty() => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Whether `ino` is `dir` or a directory above it.
    fn is_above(&self, ino: Ino, dir: Ino) -> bool {
        let mut at = dir;
        loop {
            if at == ino {
                return true;
            }
            match self.inode(at).names.first() {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
    }

    /// The only place where names change: all of `sets` at once, noted in the journal.
    fn assign(&mut self, mut sets: Vec<(Key, Option<Ino>)>) {
        for ((dir, name), _) in &mut sets {
            *name = self.as_spelt(*dir, name);
        }
        let now = self.now;
        let mut touched = BTreeSet::new();
        for ((dir, name), _) in &sets {
            if let Some(old) = self.entries_mut(*dir).remove(name) {
                self.inode_mut(old).names.remove(&(*dir, name.clone()));
                touched.insert(old);
            }
            let meta = &mut self.inode_mut(*dir).meta;
            (meta.mtime, meta.ctime) = (now, now);
        }
        for ((dir, name), value) in &sets {
            if let Some(ino) = value {
                self.entries_mut(*dir).insert(name.clone(), *ino);
                self.inode_mut(*ino).names.insert((*dir, name.clone()));
                touched.insert(*ino);
            }
        }
        for ino in &touched {
            self.inode_mut(*ino).meta.ctime = now;
        }
        self.seq += 1;
        let op = NameOp { seq: self.seq, sets };
        self.count_in_journal(&op, 1);
        self.journal.push(op);
        for ino in touched {
            self.reap(ino);
        }
    }

    fn entries_mut(&mut self, dir: Ino) -> &mut BTreeMap<Name, Ino> {
        match &mut self.inode_mut(dir).body {
            Body::Dir(entries) => entries,
            _ => unreachable!("directory handles are of directories"),
        }
    }

    pub(super) fn count_in_journal(&mut self, op: &NameOp, by: isize) {
        for ino in op
            .sets
            .iter()
            .flat_map(|((dir, _), value)| [Some(*dir), *value])
            .flatten()
        {
            let count = &mut self.inode_mut(ino).in_journal;
            *count = count.checked_add_signed(by).expect("counted in as often as out");
        }
    }

    /// Frees the inode once neither a name, a handle, the device nor the journal knows it. Its number is used again
    /// soon, as on ext4.
    pub(super) fn reap(&mut self, ino: Ino) {
        let Some(inode) = self.inodes.get(&ino) else { return };
        let known = ino == ROOT || !inode.names.is_empty() || inode.stable_names > 0 || inode.in_journal > 0;
        let holds = self.stable.get(&ino).is_some_and(|names| !names.is_empty());
        if !known && !holds && !self.handles.values().any(|h| h.ino == ino) {
            self.inodes.remove(&ino);
            self.free.insert(ino);
        }
    }

    // ---- changing files

    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        let count = self.room_for(ino, offset, data.len())?;
        self.write_unseen(ino, offset, &data[..count], true);
        Ok(count)
    }

    /// A write through a mapping when not `timed`: the times do not tell.
    pub fn write_unseen(&mut self, ino: Ino, offset: u64, data: &[u8], timed: bool) {
        let data = data.to_vec();
        self.change(ino, Change::Write { offset, data }, timed);
    }

    /// How many of `len` bytes at `offset` the disk still takes.
    fn room_for(&self, ino: Ino, offset: u64, len: usize) -> Result<usize> {
        let Some(capacity) = self.capacity else { return Ok(len) };
        let content = &self.file(ino).content;
        let mut free = (capacity / PAGE_BYTES).saturating_sub(self.used_pages());
        let mut count = 0;
        for (_, _, part) in pieces(offset, len, PAGE_BYTES) {
            let wanted = content.new_pages(offset + part.start as u64, part.len());
            if wanted > free {
                break;
            }
            free -= wanted;
            count = part.end;
        }
        if count == 0 { Err(Errno::NOSPC) } else { Ok(count) }
    }

    fn used_pages(&self) -> u64 {
        self.inodes
            .values()
            .filter_map(Inode::file)
            .map(|file| file.content.pages())
            .sum()
    }

    pub fn punch(&mut self, ino: Ino, offset: u64, len: u64) {
        let end = (offset + len).min(self.file(ino).content.size());
        if offset < end {
            self.change(
                ino,
                Change::Punch {
                    offset,
                    len: end - offset,
                },
                true,
            );
        }
    }

    /// What the device has of the first `len` bytes of `from`, once what is dirty has gone there, becomes this file's. Where it is cut short, the caller
    /// is told or not, as by real file systems.
    pub fn reflink(&mut self, ino: Ino, from: Ino, len: u64, short: Option<(usize, &mut Random)>) -> Result<()> {
        let mut shared = self.file(from).replayed();
        if len > shared.size() || (len < shared.size() && !len.is_multiple_of(PAGE_BYTES)) {
            return Err(Errno::INVAL);
        }
        shared.set_len(short.as_ref().map_or(len, |(max, _)| len.min(*max as u64)));
        let free = self
            .capacity
            .map(|capacity| (capacity / PAGE_BYTES).saturating_sub(self.used_pages()));
        if free.is_some_and(|free| shared.pages() > free) {
            return Err(Errno::NOSPC);
        }
        self.set_len(ino, shared.size());
        for (offset, data) in shared.runs() {
            self.change(ino, Change::Write { offset, data }, true);
        }
        let told = [Ok(()), Err(Errno::INVAL), Err(Errno::INTR), Err(Errno::IO)];
        short.map_or(Ok(()), |(_, random)| told[random.below(told.len() as u64) as usize])
    }

    pub fn set_len(&mut self, ino: Ino, len: u64) {
        self.change(ino, Change::SetLen(len), true);
    }

    fn change(&mut self, ino: Ino, change: Change, timed: bool) {
        let (now, seq) = (self.now, self.seq + 1);
        self.seq = seq;
        let inode = self.inode_mut(ino);
        if timed {
            (inode.meta.mtime, inode.meta.ctime) = (now, now);
        }
        let meta = inode.meta;
        let file = self.file_mut(ino);
        change.apply(&mut file.content);
        file.pending.push(Pending { seq, change, meta });
    }

    pub fn set_meta(&mut self, ino: Ino, mode: Option<u32>, mtime: Timestamp) {
        let now = self.now;
        let inode = self.inode_mut(ino);
        inode.meta.mode = mode.map_or(inode.meta.mode, |mode| mode & 0o7777);
        (inode.meta.mtime, inode.meta.ctime) = (mtime, now);
        if inode.file().is_some() {
            self.change(ino, Change::Meta, false);
        }
    }

    pub fn drop_cache(&mut self, ino: Ino) {
        let file = self.file_mut(ino);
        if file.diverged {
            file.content = file.replayed();
            file.diverged = false;
        }
    }

    pub fn content(&self, ino: Ino) -> Option<&Content> {
        Some(&self.inode(ino).file()?.content)
    }
}

/// The components of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect()
}
