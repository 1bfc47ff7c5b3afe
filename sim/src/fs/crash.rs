//! What a power loss leaves: one legal state by chance, or all of them up to a bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use realize::model::{Kind, Name, RelPath};

use serde::{Deserialize, Serialize};

use super::{
    content::{Content, SECTOR_BYTES},
    durable::apply_torn,
    inode::{Body, Change, FileBody, Ino, Inode, Meta},
    tree::{NameOp, ROOT, Tree},
};
use crate::random::Random;

/// Which promises a file system keeps beyond the contract of [`realize::fs`]. Each profile's states are among those of
/// [`PosixWorst`](Profile::PosixWorst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Profile {
    /// ext4 `data=ordered`: the changes of names up to some moment, at least the last successful sync; bytes are on
    /// the device before a size that covers them.
    Ordered,
    /// ext4 `data=writeback`: names as above; a size may be extended without its bytes, which are then zeros.
    Writeback,
    /// Everything up to some moment in one order, and what was synced.
    Cow,
    /// All that the contract allows: any changes of names whose predecessors at the same name are there, any sectors,
    /// any size.
    PosixWorst,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ordered, Self::Writeback, Self::Cow, Self::PosixWorst];
}

/// A node of a tree that was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Which inode: names of one file share it.
    pub ino: Ino,
    /// Mode and times.
    pub meta: Meta,
    /// The bytes of a regular file; empty for others.
    pub content: Content,
    /// The text of a symbolic link; empty for others.
    pub target: Vec<u8>,
}

/// Every node by its path, the root left out.
pub type Nodes = BTreeMap<RelPath, Node>;

/// The state of a disk after a crash.
#[derive(Debug, Clone)]
pub struct Image {
    pub(super) inodes: BTreeMap<Ino, Inode>,
    pub(super) names: BTreeMap<Ino, BTreeMap<Name, Ino>>,
}

impl Image {
    /// What is in it.
    pub fn nodes(&self) -> Nodes {
        nodes(&self.inodes)
    }

    /// A hash of what can be seen of it, times left out.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, node) in self.nodes() {
            (
                path,
                node.kind,
                node.ino,
                node.meta.mode,
                node.content.digest(),
                node.target,
            )
                .hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// How much of a file's pending changes a crash leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// The first so many.
    Prefix(usize),
    /// All up to this number.
    UpTo(u64),
    /// Each sector by chance, one in so many; any of the sizes.
    Torn(u64),
    /// The first so many, then overwritten sectors by chance.
    OrderedTorn(usize),
    /// The size after the first so many, without any of the bytes.
    SizeOnly(usize),
    /// All but the last sector that was written.
    LastSectorMissing,
}

impl Tree {
    /// One legal state by chance.
    pub fn crash_image(&self, profile: Profile, random: &mut Random) -> Image {
        let cut = self.committed + random.below(self.seq - self.committed + 1);
        let names: Vec<bool> = match profile {
            Profile::PosixWorst => self.random_subset(random),
            Profile::Cow => {
                let cut = random.below(self.seq + 1);
                return self.image(&self.up_to(cut), |_, _| Data::UpTo(cut), random);
            }
            Profile::Ordered | Profile::Writeback => self.up_to(cut),
        };
        self.image(
            &names,
            |file, random| {
                let prefix = random.below(file.pending.len() as u64 + 1) as usize;
                match (profile, random.below(5)) {
                    (Profile::Ordered, 0..2) => Data::OrderedTorn(prefix),
                    (Profile::Ordered, _) | (_, 0) => Data::Prefix(prefix),
                    (_, 1) => Data::Prefix(0),
                    (_, 2) => Data::SizeOnly(prefix),
                    _ => Data::Torn(2 + random.below(3)),
                }
            },
            random,
        )
    }

    /// The state in which nothing is lost.
    pub fn whole_image(&self) -> Image {
        let all = vec![true; self.journal.len()];
        self.image(&all, |file, _| Data::Prefix(file.pending.len()), &mut Random::new(0))
    }

    /// Distinct legal states, at most `bound`; coarse for data. The first one has lost all that could be lost.
    pub fn crash_images(&self, profile: Profile, bound: usize) -> Vec<Image> {
        let (mut seen, mut images) = (BTreeSet::new(), Vec::new());
        let random = &mut Random::new(0);
        let choices = match profile {
            Profile::PosixWorst => self.all_subsets(bound),
            Profile::Cow => Vec::new(),
            Profile::Ordered | Profile::Writeback => {
                let later = self.journal.iter().map(|op| op.seq).filter(|seq| *seq > self.committed);
                std::iter::once(self.committed)
                    .chain(later)
                    .map(|cut| self.up_to(cut))
                    .collect()
            }
        };
        let mut add = |image: Image| {
            if images.len() < bound && seen.insert(image.digest()) {
                images.push(image);
            }
            images.len() < bound
        };
        if profile == Profile::Cow {
            let data = self
                .inodes
                .values()
                .filter_map(Inode::file)
                .flat_map(|file| &file.pending);
            let changes = data
                .map(|pending| pending.seq)
                .chain(self.journal.iter().map(|op| op.seq));
            let cuts: BTreeSet<u64> = changes.chain([0]).collect();
            for cut in cuts {
                if !add(self.image(&self.up_to(cut), |_, _| Data::UpTo(cut), random)) {
                    break;
                }
            }
            return images;
        }
        let dirty: Vec<(Ino, Vec<Data>)> = self
            .inodes
            .iter()
            .filter_map(|(ino, inode)| {
                let file = inode.file().filter(|file| !file.pending.is_empty())?;
                Some((*ino, data_choices(file, profile)))
            })
            .collect();
        for names in &choices {
            let base = self.image(names, |_, _| Data::Prefix(0), random);
            let there: Vec<_> = dirty.iter().filter(|(ino, _)| base.inodes.contains_key(ino)).collect();
            if !add(base) {
                return images;
            }
            let mut turn = vec![0; there.len()];
            while advance(&mut turn, |at| there[at].1.len()) {
                let mut image = self.image(names, |_, _| Data::Prefix(0), random);
                for ((ino, choices), choice) in there.iter().zip(&turn) {
                    let inode = self.after(self.inode(*ino), choices[*choice], random);
                    let before = image.inodes.get_mut(ino).expect("it is there");
                    let (names, stable_names) = (std::mem::take(&mut before.names), before.stable_names);
                    let inode = Inode {
                        names,
                        stable_names,
                        ..inode
                    };
                    image.inodes.insert(*ino, inode);
                }
                if !add(image) {
                    return images;
                }
            }
        }
        images
    }

    fn up_to(&self, cut: u64) -> Vec<bool> {
        self.journal.iter().map(|op| op.seq <= cut).collect()
    }

    fn random_subset(&self, random: &mut Random) -> Vec<bool> {
        // Mostly lost, mostly kept, or half of it: each finds other bugs.
        let (kept_of_8, mut kept) = ([1, 4, 7][random.below(3) as usize], Vec::new());
        for at in 0..self.journal.len() {
            let keep = random.below(8) < kept_of_8 && self.has_predecessors(at, &kept);
            kept.push(keep);
        }
        kept
    }

    /// Whether every earlier change at one of the names of change `at` is kept.
    fn has_predecessors(&self, at: usize, kept: &[bool]) -> bool {
        let keys: BTreeSet<_> = self.journal[at].sets.iter().map(|(key, _)| key.clone()).collect();
        self.journal[..at]
            .iter()
            .zip(kept)
            .all(|(op, kept)| *kept || !op.touches(&keys))
    }

    /// All legal subsets of the journal, those that lose most first; at most `bound`.
    fn all_subsets(&self, bound: usize) -> Vec<Vec<bool>> {
        let mut open = vec![Vec::new()];
        for at in 0..self.journal.len() {
            let with: Vec<_> = open
                .iter()
                .filter(|kept| self.has_predecessors(at, kept))
                .take(bound)
                .map(|kept| extended(kept, true))
                .collect();
            // Keep both ends when there are too many: what loses most, and what keeps most.
            let room = bound.saturating_sub(with.len()).max(bound / 2).max(1);
            open.iter_mut().for_each(|kept| kept.push(false));
            open.truncate(room);
            open.extend(with);
        }
        open
    }

    /// The state in which the marked changes of names are durable, and of each file what `data` says.
    fn image(&self, kept: &[bool], mut data: impl FnMut(&FileBody, &mut Random) -> Data, random: &mut Random) -> Image {
        let mut names = self.stable.clone();
        for (op, _) in self.journal.iter().zip(kept).filter(|(_, kept)| **kept) {
            apply(op, &mut names);
        }
        let (mut inodes, mut reached, mut ahead) = (BTreeMap::<Ino, Inode>::new(), BTreeMap::new(), vec![ROOT]);
        let root = self.inode(ROOT);
        inodes.insert(
            ROOT,
            Inode::new(
                Body::Dir(BTreeMap::new()),
                root.stable_meta.mode,
                root.stable_meta.mtime,
            ),
        );
        while let Some(dir) = ahead.pop() {
            let entries = names.remove(&dir).unwrap_or_default();
            for (name, ino) in &entries {
                if !inodes.contains_key(ino) {
                    let inode = self.inode(*ino);
                    let choice = inode.file().map_or(Data::Prefix(0), |file| data(file, random));
                    inodes.insert(*ino, self.after(inode, choice, random));
                    if inode.entries().is_some() {
                        ahead.push(*ino);
                    }
                }
                let inode = inodes.get_mut(ino).expect("just put in");
                inode.names.insert((dir, name.clone()));
                inode.stable_names += 1;
            }
            inodes.get_mut(&dir).expect("reached by a name").body = Body::Dir(entries.clone());
            reached.insert(dir, entries);
        }
        Image { inodes, names: reached }
    }

    /// The inode as a crash leaves it, without names yet.
    fn after(&self, inode: &Inode, choice: Data, random: &mut Random) -> Inode {
        let (body, meta) = match &inode.body {
            Body::File(file) => {
                let (stable, meta) = file_after(file, inode.stable_meta, choice, random);
                let content = stable.clone();
                (
                    Body::File(FileBody {
                        content,
                        stable,
                        ..FileBody::default()
                    }),
                    meta,
                )
            }
            Body::Dir(_) => (
                Body::Dir(BTreeMap::new()),
                if random.one_in(2) {
                    inode.meta
                } else {
                    inode.stable_meta
                },
            ),
            other => (
                other.clone(),
                if random.one_in(2) {
                    inode.meta
                } else {
                    inode.stable_meta
                },
            ),
        };
        let mut after = Inode::new(body, meta.mode, meta.mtime);
        (after.meta, after.stable_meta) = (meta, meta);
        // The number of names is put right when they are.
        after.stable_names = 0;
        after
    }
}

fn file_after(file: &FileBody, stable_meta: Meta, choice: Data, random: &mut Random) -> (Content, Meta) {
    let mut content = file.stable.clone();
    let prefix = match choice {
        Data::Prefix(count) | Data::OrderedTorn(count) => count,
        Data::UpTo(seq) => file.pending.iter().take_while(|pending| pending.seq <= seq).count(),
        Data::Torn(_) | Data::SizeOnly(_) | Data::LastSectorMissing => 0,
    };
    for pending in &file.pending[..prefix] {
        pending.change.apply(&mut content);
    }
    let metas = || file.pending.iter().map(|pending| pending.meta);
    let mut meta = match prefix.checked_sub(1) {
        Some(last) => file.pending[last].meta,
        None => stable_meta,
    };
    match choice {
        Data::Prefix(_) | Data::UpTo(_) => {}
        Data::OrderedTorn(_) => {
            let size = content.size();
            for pending in &file.pending[prefix..] {
                match &pending.change {
                    Change::Write { offset, .. } => {
                        let before = content.clone();
                        apply_torn(&pending.change, &mut content, |sector| {
                            let at = sector * SECTOR_BYTES;
                            at >= *offset / SECTOR_BYTES * SECTOR_BYTES
                                && at + SECTOR_BYTES <= size
                                && !before.is_hole(at)
                                && random.one_in(2)
                        });
                    }
                    Change::SetLen(_) => break,
                    Change::Punch { .. } | Change::Meta => {}
                }
            }
        }
        Data::Torn(one_in) => {
            let mut sizes = vec![content.size()];
            let mut whole = content.clone();
            for pending in &file.pending {
                apply_torn(&pending.change, &mut content, |_| random.one_in(one_in));
                pending.change.apply(&mut whole);
                sizes.push(whole.size());
            }
            content.set_len(sizes[random.below(sizes.len() as u64) as usize]);
            meta = metas()
                .nth(random.below(file.pending.len() as u64 + 1) as usize)
                .unwrap_or(stable_meta);
        }
        Data::SizeOnly(count) => {
            let mut whole = content.clone();
            file.pending[..count]
                .iter()
                .for_each(|pending| pending.change.apply(&mut whole));
            content.set_len(whole.size());
            meta = metas().next_back().unwrap_or(stable_meta);
        }
        Data::LastSectorMissing => {
            let last = file
                .pending
                .iter()
                .rposition(|pending| matches!(pending.change, Change::Write { .. }));
            let mut size = content.size();
            for (at, pending) in file.pending.iter().enumerate() {
                match &pending.change {
                    Change::Write { offset, data } if Some(at) == last => {
                        size = content.size().max(offset + data.len() as u64);
                        let end = (offset + data.len() as u64 - 1) / SECTOR_BYTES;
                        apply_torn(&pending.change, &mut content, |sector| sector != end);
                        content.set_len(size);
                    }
                    Change::SetLen(len) => {
                        size = *len;
                        content.set_len(size);
                    }
                    change => change.apply(&mut content),
                }
            }
            let size = size.max(content.size());
            content.set_len(size);
            meta = metas().next_back().unwrap_or(stable_meta);
        }
    }
    (content, meta)
}

/// What an enumeration tries of a file's data.
fn data_choices(file: &FileBody, profile: Profile) -> Vec<Data> {
    let count = file.pending.len();
    let mut choices: Vec<_> = [0, count].into_iter().chain(1..count).map(Data::Prefix).collect();
    if matches!(profile, Profile::Writeback | Profile::PosixWorst) {
        choices.extend([Data::SizeOnly(count), Data::LastSectorMissing]);
    }
    choices
}

/// Counts `turn` on, each place up to its own length; false once all have been through.
fn advance(turn: &mut [usize], len: impl Fn(usize) -> usize) -> bool {
    for (at, digit) in turn.iter_mut().enumerate() {
        *digit += 1;
        if *digit < len(at) {
            return true;
        }
        *digit = 0;
    }
    false
}

fn extended(kept: &[bool], last: bool) -> Vec<bool> {
    kept.iter().copied().chain([last]).collect()
}

fn apply(op: &NameOp, names: &mut BTreeMap<Ino, BTreeMap<Name, Ino>>) {
    for ((dir, name), value) in &op.sets {
        let entries = names.entry(*dir).or_default();
        match value {
            Some(ino) => entries.insert(name.clone(), *ino),
            None => entries.remove(name),
        };
    }
}

/// Everything that the names reach from the root.
pub(super) fn nodes(inodes: &BTreeMap<Ino, Inode>) -> Nodes {
    let (mut nodes, mut ahead) = (Nodes::new(), vec![(RelPath::root(), ROOT)]);
    while let Some((path, dir)) = ahead.pop() {
        for (name, ino) in inodes[&dir].entries().into_iter().flatten() {
            let (inode, Ok(path)) = (&inodes[ino], path.join(name)) else {
                continue;
            };
            if let Body::Dir(_) = inode.body {
                ahead.push((path.clone(), *ino));
            }
            nodes.insert(path, node(*ino, inode));
        }
    }
    nodes
}

/// What is seen of one inode.
pub(super) fn node(ino: Ino, inode: &Inode) -> Node {
    let (content, target) = match &inode.body {
        Body::File(file) => (file.content.clone(), Vec::new()),
        Body::Symlink(text) => (Content::default(), text.clone()),
        Body::Dir(_) | Body::Special => Default::default(),
    };
    Node {
        kind: inode.kind(),
        ino,
        meta: inode.meta,
        content,
        target,
    }
}
