//! Plans: what is to be moved, and all that goes wrong, as data. A seed makes one; proptest makes a failing one smaller; its text
//! says it again.

mod coverage;
mod generate;
mod run;
mod shrink;

use std::collections::BTreeSet;

use realize::{digest::CHUNK_BYTES, model::RelPath};
use serde::{Deserialize, Serialize};

pub use self::{
    coverage::Coverage,
    generate::{plan_of, plans},
    run::Verdict,
    shrink::shrink,
};
use crate::{
    fs::{Cache, Content, Off, Profile},
    net::LinePlan,
    two_hosts::{Early, Reload},
    world::{Body, FileAt, limits},
};

/// A move and everything that goes wrong with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Latencies, short reads, stalls, which sectors are torn.
    pub seed: u64,
    /// Which hosts take part.
    pub scenario: Scenario,
    /// What is to be moved.
    pub files: Vec<FilePlan>,
    /// What goes wrong.
    pub steps: Vec<Step>,
    /// What a power cut leaves.
    pub profile: Profile,
}

/// Which hosts take part, and how they are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scenario {
    /// One host, both ends on one disk.
    OneDisk,
    /// One host with two disks.
    TwoDisks,
    /// From a mover to a daemon, over TLS.
    Send,
    /// From a daemon to a mover, over TLS.
    Fetch,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OneDisk, Self::TwoDisks, Self::Send, Self::Fetch];

    /// Whether there is a network.
    pub fn is_remote(self) -> bool {
        matches!(self, Self::Send | Self::Fetch)
    }
}

/// One file, by the number of its name in [`NAMES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePlan {
    /// Which name.
    pub name: usize,
    /// What the source has.
    pub new: BodyPlan,
    /// What the target has.
    pub there: There,
}

/// What is in a file or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyPlan {
    /// So many bytes that begin with this one.
    File(Size, u8),
    /// A link whose text has this number.
    Link(u8),
}

/// Sizes that take the mover's different ways; [`limits`] are small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Size {
    /// Nothing in it.
    Empty,
    /// Sent in a batch.
    Small,
    /// Sent by chunks, in one.
    Large,
    /// In two chunks, the first of them a hole.
    Sparse,
    /// As large as is sent in a batch, or a byte less or more.
    AtBatch(u8),
    /// One chunk, or a byte less or more, mostly a hole.
    AtChunk(u8),
    /// Several blocks of a repair, in one chunk.
    Blocks,
    /// More chunks than are tried to learn what pays, mostly holes.
    Long,
}

/// What the target has of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum There {
    /// Nothing.
    Nothing,
    /// The same.
    Equal,
    /// Something else.
    Other(BodyPlan),
    /// As many other bytes, of the same mtime.
    Lookalike,
    /// Much the same.
    Near(Near),
    /// A partial: so many thousandths of it, right or wrong.
    Partial(u16, bool),
}

/// What tells a file of the target from that of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Near {
    /// A byte.
    Changed,
    /// So many bytes less in front.
    Shifted(u8),
    /// The last third is missing.
    Cut,
    /// Some bytes more at the end.
    Longer,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// To a connection: the first of these to the first, and so on.
    Line(LinePlan),
    /// On a host's machine; of one host both ends are on the same.
    Fault {
        /// Which.
        at_target: bool,
        /// At which effect.
        effect: u64,
        /// What.
        kind: FaultPlan,
    },
    /// Somebody else acts.
    Act {
        /// Before which effect on the machine of what is acted on.
        effect: u64,
        /// What they do.
        act: Act,
    },
    /// A file system lacks something.
    Lacks(Lack),
    /// Each side sends at most so many bytes per second. (The first of these counts.)
    Throttled(u64),
    /// The first run of a mover between two hosts is ended before its end.
    Ended(Early),
    /// The daemon reads another configuration for a while. (The first of these counts.)
    Reloaded(Reload),
}

/// What goes wrong on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultPlan {
    /// The power goes; calls hang, or fail first.
    PowerCut(Off),
    /// The process is killed.
    Kill,
    /// The call fails.
    Error(Errno),
    /// A sync fails, once, and what it was to cover counts as clean.
    SyncLost(Cache),
    /// A write is lost by write-back; only the next sync says so.
    WriteBackLost(Cache),
    /// A read or write is short.
    Short(u8),
    /// The disks answer nothing for so many hundredths of a second.
    Stall(u8),
    /// The host does nothing for so many hundredths of a second.
    Pause(u8),
    /// The time of day jumps by so many hours, and from then on gains as many thousandths.
    Clock(i16),
}

/// Errors of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is the error of that name")]
pub enum Errno {
    Io,
    NoSpace,
    Quota,
    Access,
    Interrupted,
}

/// What somebody else does, each by one file of the plan (its place in the list, taken modulo).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Puts a new file in the place of a source, and syncs it.
    ReplaceSource(usize, u8),
    /// Writes to a source in place, and syncs it.
    WriteSource(usize, u8),
    /// Writes to a source through a mapping, which changes no times, and syncs it.
    MapSource(usize, u8),
    /// Removes a source.
    RemoveSource(usize),
    /// Puts a file under the final name just before the move gives it one.
    AppearAtTarget(usize, u8),
    /// Writes in place to the file under the final name, and syncs it: just before the move replaces it, or (an odd number) while it is read.
    WriteTarget(usize, u8),
}

/// What a file system may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lack {
    /// Renames that replace nothing, and that exchange.
    Renames,
    /// Leases at the source.
    Leases,
}

/// Names of files: some in directories, some odd; what is called `2` is in a second source.
pub const NAMES: [&[u8]; 13] = [
    b"a",
    b"b",
    b"d/a",
    b"d/e/c",
    b"\xff\xfe",
    b"d/.hidden",
    b"new\nline",
    b"other/deep/er/f",
    // No suffix fits behind it.
    b"LLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLLL",
    b"d/z",
    b"2",
    b"d/2",
    b"d/e/2",
];

impl Plan {
    /// Its text, to be read back by [`parse`](Self::parse).
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// The plan that `text` says.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text)
            .map_err(|error| format!("not a plan: {error}; a failure prints one, and so does `show SEED --scenario S`"))
    }

    /// The files, each name once.
    pub(crate) fn files(&self) -> Vec<FileAt> {
        let mut seen = BTreeSet::new();
        let files = self.files.iter().filter(|file| seen.insert(file.name % NAMES.len()));
        files.map(FilePlan::file).collect()
    }
}

impl FilePlan {
    fn path(&self) -> RelPath {
        RelPath::new(NAMES[self.name % NAMES.len()]).expect("written here")
    }

    fn file(&self) -> FileAt {
        let new = self.new.body();
        let (old, partial) = match self.there {
            There::Nothing => (None, None),
            There::Equal => (Some(new.clone()), None),
            There::Other(other) => (Some(other.body()).filter(|other| same_kind(other, &new)), None),
            There::Lookalike => (lookalike(&new), None),
            There::Near(near) => (near.of(&new), None),
            There::Partial(thousandths, is_right) => (None, partial(&new, thousandths, is_right)),
        };
        FileAt {
            path: self.path(),
            new,
            old,
            // What somebody wrote a moment ago and is to be replaced, and a crash takes away, is nobody's loss; what is equal and not on the disk
            // must not be trusted.
            old_is_durable: self.there != There::Equal || matches!(self.new, BodyPlan::Link(_)),
            has_same_mtime: self.there == There::Lookalike,
            partial,
        }
    }
}

/// What is of another kind stays, and the move does not converge.
fn same_kind(one: &Body, other: &Body) -> bool {
    matches!(one, Body::File(_)) == matches!(other, Body::File(_))
}

fn lookalike(new: &Body) -> Option<Body> {
    let Body::File(content) = new else { return None };
    let mut other = content.clone();
    let last = content.size().checked_sub(1)?;
    let mut byte = [0];
    content.read(last, &mut byte);
    other.write(last, &[!byte[0]]);
    Some(Body::File(other))
}

impl Near {
    fn of(self, new: &Body) -> Option<Body> {
        let Body::File(content) = new else { return None };
        let (size, mut other) = (content.size(), content.clone());
        match self {
            Self::Changed => other.write(size / 2, b"~"),
            Self::Shifted(by) => other = without_front(content, by.into()),
            Self::Cut => other.set_len(size - size / 3),
            Self::Longer => other.write(size, b"and more"),
        }
        Some(Body::File(other))
    }
}

fn without_front(content: &Content, by: u64) -> Content {
    let mut rest = Content::default();
    rest.set_len(content.size().saturating_sub(by));
    let (mut offset, mut buf) = (by, [0; 4096]);
    while let Some(data) = content.next_data(offset) {
        let count = content.read(data, &mut buf);
        rest.write(data - by, &buf[..count]);
        offset = data + count as u64;
    }
    rest
}

fn partial(new: &Body, thousandths: u16, is_right: bool) -> Option<Vec<u8>> {
    let Body::File(content) = new else { return None };
    let len = (content.size().min(2 * CHUNK_BYTES) * u64::from(thousandths.min(1000)) / 1000) as usize;
    let mut bytes = content.to_vec();
    bytes.truncate(len);
    if !is_right {
        bytes.iter_mut().step_by(1000).for_each(|byte| *byte ^= 0x55);
    }
    Some(bytes)
}

impl BodyPlan {
    fn body(self) -> Body {
        match self {
            Self::Link(number) => Body::Link(format!("to/{number}").into()),
            Self::File(size, first) => Body::File(content(size, first)),
        }
    }
}

fn content(size: Size, first: u8) -> Content {
    let fill = |count: usize| -> Vec<u8> {
        (0..count)
            .map(|at| first.wrapping_add((at * 7 + at / 256) as u8))
            .collect()
    };
    let mut content = Content::from(
        &fill(match size {
            Size::Empty => 0,
            Size::Small => 10 + usize::from(first % 50),
            Size::Large => 3000 + usize::from(first),
            Size::AtBatch(which) => limits().small_file_bytes as usize - 1 + usize::from(which % 3),
            Size::Blocks => 20_000,
            Size::Sparse | Size::AtChunk(_) | Size::Long => 0,
        })[..],
    );
    let len = match size {
        Size::Sparse => CHUNK_BYTES + 5000,
        Size::AtChunk(which) => CHUNK_BYTES - 1 + u64::from(which % 3),
        Size::Long => 8 * CHUNK_BYTES + 5000,
        _ => return content,
    };
    content.set_len(len);
    for chunk in 0..len / CHUNK_BYTES {
        content.write(chunk * CHUNK_BYTES + 10_000, &chunk.to_le_bytes());
        // Not every chunk ends in a hole.
        content.write((chunk + 1) * CHUNK_BYTES - 1, b"!");
    }
    content.write(len - 1000, &fill(900));
    content.write(len - 1, &[first]);
    content
}
