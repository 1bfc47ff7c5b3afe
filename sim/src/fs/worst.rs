//! What holds in every state that a crash may leave under [`Profile::PosixWorst`](super::Profile::PosixWorst), found
//! without listing the states.

use std::collections::BTreeSet;

use realize::model::RelPath;

use super::{
    content::Content,
    durable::closure,
    inode::Ino,
    tree::{Key, ROOT, Tree},
};

/// How many combinations of histories [`Tree::survives`] looks at before it gives up.
const COMBINATIONS_MAX: usize = 100_000;

impl Tree {
    /// The directory that `path`'s last name is in, when that directory is where it is after every crash.
    fn guaranteed_parent(&self, path: &RelPath) -> Option<Key> {
        let (parent, name) = path.split()?;
        let mut dir = ROOT;
        for name in parent.names() {
            let now = self.inode(dir).entries()?.get(&name).copied()?;
            let key = (dir, name);
            if self.stable_value(&key) != Some(now)
                || self.journal.iter().any(|op| op.sets.iter().any(|(k, _)| *k == key))
            {
                return None;
            }
            dir = now;
        }
        self.inode(dir).entries()?;
        Some((dir, name))
    }

    fn stable_value(&self, (dir, name): &Key) -> Option<Ino> {
        self.stable.get(dir)?.get(name).copied()
    }

    /// Whether every directory above `path` is where it is after every crash.
    pub fn ancestors_guaranteed(&self, path: &RelPath) -> bool {
        path.is_root() || self.guaranteed_parent(path).is_some()
    }

    /// What a name may stand for after a crash, oldest first.
    fn history(&self, key: &Key) -> Vec<Option<Ino>> {
        let pending = self
            .journal
            .iter()
            .flat_map(|op| &op.sets)
            .filter(|(of, _)| of == key)
            .map(|(_, value)| *value);
        std::iter::once(self.stable_value(key)).chain(pending).collect()
    }

    /// As [`Disk::possible_values`](super::Disk::possible_values).
    pub fn possible_values(&self, path: &RelPath) -> Option<BTreeSet<Option<Ino>>> {
        Some(self.history(&self.guaranteed_parent(path)?).into_iter().collect())
    }

    /// The bytes that every crash leaves in `ino`; `None` when some are in doubt or it is no regular file.
    pub fn content_guaranteed(&self, ino: Ino) -> Option<&Content> {
        let file = self.inodes.get(&ino)?.file()?;
        file.is_settled().then_some(&file.stable)
    }

    fn holds(&self, ino: Option<Ino>, content: &Content) -> bool {
        ino.and_then(|ino| self.content_guaranteed(ino)) == Some(content)
    }

    /// Whether after every crash `path` is a regular file of exactly these bytes.
    pub fn always_holds(&self, path: &RelPath, content: &Content) -> bool {
        self.possible_values(path)
            .is_some_and(|values| values.into_iter().all(|ino| self.holds(ino, content)))
    }

    /// Whether after every crash at least one of `paths` is a regular file of exactly these bytes.
    ///
    /// A crash cuts the history of each name somewhere. The cuts are free but for the changes that touch several of
    /// the names (a rename is there at all of its names or at none), and for what such a change brings along.
    pub fn survives(&self, paths: &[RelPath], content: &Content) -> bool {
        let keys: BTreeSet<Key> = paths.iter().filter_map(|path| self.guaranteed_parent(path)).collect();
        let keys: Vec<Key> = keys.into_iter().collect();
        let holds: Vec<Vec<bool>> = keys
            .iter()
            .map(|key| {
                self.history(key)
                    .into_iter()
                    .map(|ino| self.holds(ino, content))
                    .collect()
            })
            .collect();
        if holds.iter().any(|history| history.iter().all(|holds| *holds)) {
            return true;
        }
        let combinations = holds
            .iter()
            .try_fold(1usize, |all, history| all.checked_mul(history.len()));
        if combinations.is_none_or(|all| all > COMBINATIONS_MAX) {
            return false;
        }
        // For each name: the changes that touch it, in order, each with all that must be there with it.
        let changes: Vec<Vec<(u64, BTreeSet<u64>)>> = keys
            .iter()
            .map(|key| {
                let touching = self.journal.iter().filter(|op| op.sets.iter().any(|(of, _)| of == key));
                touching
                    .map(|op| (op.seq, closure(&self.journal, |other| other.seq == op.seq)))
                    .collect()
            })
            .collect();
        let mut cut = vec![0; keys.len()];
        loop {
            let lost = holds.iter().zip(&cut).all(|(history, cut)| !history[*cut]);
            if lost && is_legal(&changes, &cut) {
                return false;
            }
            let Some(at) = (0..cut.len()).find(|at| cut[*at] + 1 < holds[*at].len()) else {
                return !keys.is_empty();
            };
            cut[at] += 1;
            cut[..at].fill(0);
        }
    }
}

/// Whether keeping the first `cut[i]` changes of each name keeps with each change all that it depends on.
fn is_legal(changes: &[Vec<(u64, BTreeSet<u64>)>], cut: &[usize]) -> bool {
    let kept: BTreeSet<u64> = changes
        .iter()
        .zip(cut)
        .flat_map(|(changes, cut)| changes[..*cut].iter().flat_map(|(_, needs)| needs.iter().copied()))
        .collect();
    // What is needed through any name must be kept at every name that it touches.
    changes
        .iter()
        .zip(cut)
        .all(|(changes, cut)| changes[*cut..].iter().all(|(seq, _)| !kept.contains(seq)))
}
