//! What a disk keeps of one file, directory or link: what is seen now, what is durable, and what lies between.

use std::collections::{BTreeMap, BTreeSet};

use realize::model::{Kind, Name, Timestamp};
use rustix::io::Errno;

use super::content::Content;

/// Inode number.
pub type Ino = u64;

/// Mode and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Meta {
    /// Permission bits.
    pub mode: u32,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

/// A change of a file that no sync has covered.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub seq: u64,
    pub change: Change,
    /// Mode and times after it.
    pub meta: Meta,
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { offset: u64, data: Vec<u8> },
    Punch { offset: u64, len: u64 },
    SetLen(u64),
    Meta,
}

impl Change {
    pub fn apply(&self, content: &mut Content) {
        match self {
            Change::Write { offset, data } => content.write(*offset, data),
            Change::Punch { offset, len } => content.punch(*offset, *len),
            Change::SetLen(len) => content.set_len(*len),
            Change::Meta => {}
        }
    }
}

/// What an inode is.
#[derive(Debug, Clone)]
pub(super) enum Body {
    File(FileBody),
    Dir(BTreeMap<Name, Ino>),
    Symlink(Vec<u8>),
    Special,
}

/// A regular file's bytes: in the cache, on the device, and the changes on their way there.
#[derive(Debug, Clone, Default)]
pub(super) struct FileBody {
    pub content: Content,
    pub stable: Content,
    pub pending: Vec<Pending>,
    /// Cached content is not what device and pending changes make: a sync failed, or a bit rotted.
    pub diverged: bool,
    /// A failure of write-back that the next sync tells.
    pub error: Option<Errno>,
}

#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub body: Body,
    pub meta: Meta,
    pub stable_meta: Meta,
    /// Its names now.
    pub names: BTreeSet<(Ino, Name)>,
    /// How many durable names it has.
    pub stable_names: usize,
    /// In how many pending changes of names it occurs, as what is named or as the directory.
    pub in_journal: usize,
}

impl Inode {
    pub fn new(body: Body, mode: u32, now: Timestamp) -> Self {
        let meta = Meta {
            mode,
            mtime: now,
            ctime: now,
        };
        Self {
            body,
            meta,
            stable_meta: meta,
            names: BTreeSet::new(),
            stable_names: 0,
            in_journal: 0,
        }
    }

    pub fn kind(&self) -> Kind {
        match self.body {
            Body::File(_) => Kind::File,
            Body::Dir(_) => Kind::Dir,
            Body::Symlink(_) => Kind::Symlink,
            Body::Special => Kind::Special,
        }
    }

    pub fn size(&self) -> u64 {
        match &self.body {
            Body::File(file) => file.content.size(),
            Body::Symlink(text) => text.len() as u64,
            Body::Dir(_) | Body::Special => 0,
        }
    }

    pub fn file(&self) -> Option<&FileBody> {
        match &self.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    pub fn entries(&self) -> Option<&BTreeMap<Name, Ino>> {
        match &self.body {
            Body::Dir(entries) => Some(entries),
            _ => None,
        }
    }
}

impl FileBody {
    /// What the device and the pending changes make.
    pub fn replayed(&self) -> Content {
        let mut content = self.stable.clone();
        for pending in &self.pending {
            pending.change.apply(&mut content);
        }
        content
    }

    /// Whether every crash leaves the same bytes.
    pub fn is_settled(&self) -> bool {
        self.pending
            .iter()
            .all(|pending| matches!(pending.change, Change::Meta))
    }
}
