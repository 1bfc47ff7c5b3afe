//! What of a tree is durable: syncs, and what they lose.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::{
    content::{Content, SECTOR_BYTES, pieces},
    fault::Cache,
    inode::{Body, Change, Ino},
    tree::{NameOp, Result, Tree},
};
use crate::random::Random;

impl Tree {
    pub fn sync_file(&mut self, ino: Ino) -> Result<()> {
        if let Some(errno) = self.file_mut(ino).error.take() {
            return Err(errno);
        }
        self.settle_file(ino);
        self.committed = self.seq;
        Ok(())
    }

    pub fn sync_dir(&mut self, dir: Ino) -> Result<()> {
        if let Some(errno) = self.refusals.dir_sync {
            return Err(errno);
        }
        for op in self.take_covered(dir) {
            self.persist(&op);
        }
        let inode = self.inode_mut(dir);
        inode.stable_meta = inode.meta;
        self.committed = self.seq;
        Ok(())
    }

    pub fn sync_all(&mut self) {
        for op in std::mem::take(&mut self.journal) {
            self.count_in_journal(&op, -1);
            self.persist(&op);
        }
        let all: Vec<Ino> = self.inodes.keys().copied().collect();
        for ino in all {
            if self.inode(ino).file().is_some() {
                self.settle_file(ino);
            }
            let inode = self.inode_mut(ino);
            inode.stable_meta = inode.meta;
            self.reap(ino);
        }
        self.committed = self.seq;
    }

    /// Makes the tree as it is seen now the durable one, lost syncs and rotten bits mended: for setting up.
    pub fn settle(&mut self) {
        self.sync_all();
        let dirs: Vec<_> = self
            .inodes
            .iter()
            .filter_map(|(i, n)| Some((*i, n.entries()?.clone())))
            .collect();
        for inode in self.inodes.values_mut() {
            inode.stable_names = inode.names.len();
            if let Body::File(file) = &mut inode.body {
                file.stable = file.content.clone();
                (file.diverged, file.error) = (false, None);
            }
        }
        self.stable = dirs.into_iter().collect();
    }

    fn settle_file(&mut self, ino: Ino) {
        let inode = self.inode_mut(ino);
        inode.stable_meta = inode.meta;
        let file = self.file_mut(ino);
        for pending in std::mem::take(&mut file.pending) {
            pending.change.apply(&mut file.stable);
        }
    }

    /// Takes out of the journal what touches `dir`, with every earlier change that one of those depends on.
    fn take_covered(&mut self, dir: Ino) -> Vec<NameOp> {
        let covered = closure(&self.journal, |op| op.sets.iter().any(|((of, _), _)| *of == dir));
        let journal = std::mem::take(&mut self.journal);
        let (taken, left) = journal
            .into_iter()
            .partition::<Vec<_>, _>(|op| covered.contains(&op.seq));
        self.journal = left;
        for op in &taken {
            self.count_in_journal(op, -1);
        }
        taken
    }

    fn persist(&mut self, op: &NameOp) {
        let mut touched = Vec::new();
        for ((dir, name), value) in &op.sets {
            let names = self.stable.entry(*dir).or_default();
            let old = match value {
                Some(ino) => names.insert(name.clone(), *ino),
                None => names.remove(name),
            };
            if let Some(inode) = value.and_then(|ino| self.inodes.get_mut(&ino)) {
                inode.stable_names += 1;
            }
            if let Some(inode) = old.and_then(|ino| self.inodes.get_mut(&ino)) {
                inode.stable_names -= 1;
            }
            touched.extend([Some(*dir), *value, old].into_iter().flatten());
        }
        for ino in touched {
            self.reap(ino);
        }
    }

    /// Write-back of a file failed: a random part of what was dirty has reached the device, the rest never will.
    pub fn lose_file(&mut self, ino: Ino, cache: Cache, random: &mut Random) {
        let file = self.file_mut(ino);
        for pending in std::mem::take(&mut file.pending) {
            apply_torn(&pending.change, &mut file.stable, |_| random.one_in(4));
        }
        file.diverged = true;
        if cache == Cache::Reverted {
            self.drop_cache(ino);
        }
    }

    /// The sync of the whole file system failed.
    pub fn lose_all(&mut self, cache: Cache, random: &mut Random) {
        for op in std::mem::take(&mut self.journal) {
            self.count_in_journal(&op, -1);
        }
        let all: Vec<Ino> = self.inodes.keys().copied().collect();
        for ino in all {
            let dirty = self.inode(ino).file().is_some_and(|file| !file.pending.is_empty());
            if dirty {
                self.lose_file(ino, cache, random);
            }
            self.reap(ino);
        }
    }

    /// The sync of a directory failed: what it should have covered never becomes durable.
    pub fn lose_dir(&mut self, dir: Ino) {
        for op in self.take_covered(dir) {
            for ino in op
                .sets
                .iter()
                .flat_map(|((dir, _), value)| [Some(*dir), *value])
                .flatten()
            {
                self.reap(ino);
            }
        }
    }

    pub fn rot(&mut self, ino: Ino, offset: u64) {
        if self.inode(ino).file().is_some() {
            let file = self.file_mut(ino);
            file.stable.flip(offset, offset as u32);
            file.diverged = true;
        }
    }

    pub fn fail_next_sync(&mut self, ino: Ino, errno: Errno) {
        self.file_mut(ino).error = Some(errno);
    }
}

/// Applies those sectors of a change that `pick` wants (it is asked once for a cut).
pub(super) fn apply_torn(change: &Change, content: &mut Content, mut pick: impl FnMut(u64) -> bool) {
    match change {
        Change::Write { offset, data } => {
            for (sector, _, part) in pieces(*offset, data.len(), SECTOR_BYTES) {
                if pick(sector) {
                    content.write(offset + part.start as u64, &data[part]);
                }
            }
        }
        Change::Punch { offset, len } => {
            for (sector, _, part) in pieces(*offset, *len as usize, SECTOR_BYTES) {
                if pick(sector) {
                    content.punch(offset + part.start as u64, part.len() as u64);
                }
            }
        }
        Change::SetLen(len) if pick(len / SECTOR_BYTES) => content.set_len(*len),
        Change::SetLen(_) | Change::Meta => {}
    }
}

/// The changes that `wanted` wants, and every earlier one that one of them depends on: one that touches the same name.
pub(super) fn closure(journal: &[NameOp], wanted: impl Fn(&NameOp) -> bool) -> BTreeSet<u64> {
    let (mut keys, mut covered) = (BTreeSet::new(), BTreeSet::new());
    for op in journal.iter().rev() {
        if wanted(op) || op.touches(&keys) {
            keys.extend(op.sets.iter().map(|(key, _)| key.clone()));
            covered.insert(op.seq);
        }
    }
    covered
}
