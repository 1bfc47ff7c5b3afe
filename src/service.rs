//! The service between the mover and a root: the calls, what they carry and how they fail.
//!
//! Every call is small and bounded: lists come in pages, data in chunks. Each batch gives each of its items a
//! result of its own. The server checks everything here that a peer could get wrong; the types check
//! paths and names when they are decoded.

mod items;

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tarpc::context::Context;

pub use self::items::{ITEMS_MAX, Items};
use crate::{
    delta,
    digest::ChunkHash,
    fs::Place,
    model::{BadPath, Digest, Entry, Line, Name, RelPath, Timestamp, Uncarried, Version},
};

/// The version of this service. Both sides must have the same.
pub const SERVICE_VERSION: u32 = 9;

/// A configured directory, or one below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DirId {
    /// What the server calls it.
    pub name: String,
    /// Where below it; its own root for all of it.
    pub below: RelPath,
}

impl DirId {
    /// The whole of the configured directory `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            below: RelPath::root(),
        }
    }
}

/// What a peer may do in a directory. By default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rights {
    /// List and read.
    pub read: bool,
    /// Make new files and directories.
    pub write: bool,
    /// Put a file in the place of another; only with `write`.
    pub replace: bool,
    /// Delete files and directories.
    pub delete: bool,
}

/// One run of the mover: random, the same for all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(pub [u8; 16]);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An open file or link of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handle(pub u64);

/// One of the [`Rights`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Right {
    /// To read.
    Read,
    /// To read or to write: to look at what is there.
    Look,
    /// To write.
    Write,
    /// To replace.
    Replace,
    /// To delete.
    Delete,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Look => "read or write",
            Self::Write => "write",
            Self::Replace => "replace",
            Self::Delete => "delete",
        })
    }
}

impl Rights {
    /// Everything.
    pub const ALL: Self = Self {
        read: true,
        write: true,
        replace: true,
        delete: true,
    };

    /// Whether `right` is among them.
    pub fn has(&self, right: Right) -> bool {
        match right {
            Right::Read => self.read,
            Right::Look => self.read || self.write,
            Right::Write => self.write,
            Right::Replace => self.write && self.replace,
            Right::Delete => self.delete,
        }
    }
}

impl fmt::Display for Rights {
    /// As the configuration lists them, without the brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rights = [Right::Read, Right::Write, Right::Replace, Right::Delete];
        let has = |right: &Right| match right {
            Right::Replace => self.replace,
            right => self.has(*right),
        };
        for (index, right) in rights.into_iter().filter(has).enumerate() {
            write!(f, "{}\"{right}\"", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// How a call fails. Callers decide by kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ServiceError {
    /// No such file, directory or configured directory.
    #[error("no such file or directory")]
    NotFound,
    /// It is not what was expected there: another version, or something where nothing should be.
    #[error("changed meanwhile")]
    Changed,
    /// The file system ignores case, and what it has there is spelt differently.
    #[error("the target ignores case and has this under another spelling: rename one of them")]
    OtherSpelling,
    /// At the path of a configured directory is another one than was opened, or none.
    #[error(
        "the directory is not the one that was opened any more: is a disk not mounted? Or was one mounted, or the directory made anew? \
         Then have realized read its configuration anew (SIGHUP)"
    )]
    Replaced,
    /// The bytes written are not those that were sent.
    #[error("the digest differs")]
    DigestMismatch,
    /// Somebody has it open for writing, or another run is at it.
    #[error("in use: {}", Line(.0))]
    Busy(String),
    /// The directory still holds something.
    #[error("directory not empty")]
    NotEmpty,
    /// Something with a name of realize's own is in the way, and may be somebody's file.
    #[error(
        "{0} is in the way, most likely left by an interrupted run, and maybe the only copy: look at it, then rename or remove it"
    )]
    Leftover(Name),
    /// A sync failed earlier, so nothing on this root is confirmed any more by this process.
    #[error("an earlier sync failed: {}", Line(.0))]
    Unsafe(String),
    /// The handle is not of this session, or of the wrong kind.
    #[error("no such open file")]
    BadHandle,
    /// The request breaks a rule of the service.
    #[error("bad request: {}", Line(.0))]
    BadRequest(String),
    /// The peer may not do this.
    #[error("not allowed: that takes the right to {0}")]
    Denied(Right),
    /// The operating system says no.
    #[error("cannot {}: {}", Line(doing), io::Error::from_raw_os_error(*errno))]
    Io {
        /// What was attempted, as a verb.
        doing: String,
        /// The operating system's number (Linux).
        errno: i32,
    },
    /// The work broke off inside the server.
    #[error("the server failed inside")]
    Internal,
    /// What was answered can't be: nothing is believed of it.
    #[error("a wrong answer: {}", Line(.0))]
    BadAnswer(String),
    /// The answer did not come, so nothing is known.
    #[error("no answer: {}", Line(.0))]
    NoAnswer(String),
}

impl ServiceError {
    /// From an error of the operating system while `doing` something.
    pub fn io(doing: &str, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) if error.kind() == io::ErrorKind::NotFound && errno != 0 => Self::NotFound,
            Some(errno) => Self::Io {
                doing: doing.into(),
                errno,
            },
            None if error.kind() == io::ErrorKind::WriteZero => Self::Io {
                doing: doing.into(),
                errno: rustix::io::Errno::NOSPC.raw_os_error(),
            },
            None => Self::Io {
                doing: doing.into(),
                errno: rustix::io::Errno::IO.raw_os_error(),
            },
        }
    }

    /// The operating system's number, when this is its error.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the program may not do this with that file, by its owner and mode (`EACCES`).
    pub fn is_no_access(&self) -> bool {
        self.errno() == Some(rustix::io::Errno::ACCESS.raw_os_error())
    }
}

impl From<BadPath> for ServiceError {
    fn from(error: BadPath) -> Self {
        Self::BadRequest(error.to_string())
    }
}

/// The context of a call. Its deadline is a year away: limits are kept on our own clock, and a deadline
/// on tarpc's would be one more way to fail.
pub fn context() -> Context {
    let mut context = tarpc::context::current();
    #[expect(clippy::disallowed_methods, reason = "tarpc wants one; nothing waits for it")]
    let now = Instant::now();
    context.deadline = now + Duration::from_secs(365 * 24 * 3600);
    context
}

/// A result on the wire.
pub type Answer<T> = Result<T, ServiceError>;

/// What the server says first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// Its [`SERVICE_VERSION`].
    pub version: u32,
    /// Random, the same for every session of one server process: two roots of one server may be
    /// on one file system.
    pub server: [u8; 16],
    /// Owner of the files it makes.
    pub uid: u32,
    /// Group of the files it makes.
    pub gid: u32,
    /// The directories in which the caller may do anything, and what.
    pub rights: Vec<(String, Rights)>,
}

/// What a root is to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Files leave it. One run at a time.
    Source,
    /// Single files leave it, which others may do at the same time.
    SourceOfFiles,
    /// Files arrive. Shared by any number of runs.
    Target,
    /// Nothing is done to it: a dry run. Neither lock nor token.
    Looked,
}

/// A root that is claimed for a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claim {
    /// The name of the file that marks the root for this run; `None` where none could be made
    /// (the root can't be written to).
    pub token: Option<Name>,
    /// Where the root lies: see [`crate::fs::Dir::places`].
    pub places: Vec<Place>,
    /// Device and inode of the root.
    pub version: Version,
    /// What a look through the root of a target found; nothing for another role, or where it could not be looked through.
    pub swept: Swept,
}

/// A page of a listing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Page {
    /// Entries in path order.
    pub entries: Vec<Entry>,
    /// Names that are realize's own and no move takes, among them leftovers that could not be put back.
    pub reserved: Vec<RelPath>,
    /// Tokens met, with the directory that holds each. A directory's tokens come no later than its
    /// first entry.
    pub tokens: Vec<(RelPath, Name)>,
    /// What could not be read: a directory, or the metadata of an entry.
    pub failed: Vec<(RelPath, ServiceError)>,
    /// What would be lost of directories among the entries; only those that would lose anything.
    pub uncarried: Vec<(RelPath, Uncarried)>,
    /// Directories that hold an entry whose path is too long, once for each.
    pub too_long: Vec<RelPath>,
    /// Where the next page begins; `None` when this was the last.
    pub next: Option<Cursor>,
}

/// A position in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The last path dealt with.
    pub after: RelPath,
    /// Whether what is below `after` is passed over.
    pub skip_below: bool,
}

/// A file or link at the source, and which state of it is meant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileRef {
    /// Where it is.
    pub path: RelPath,
    /// What it must be.
    pub version: Version,
}

/// A source file or link that is now open, with a lease where one could be had.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Held {
    /// To name it by; ends with `delete` or `close`.
    pub handle: Handle,
    /// What a move would lose.
    pub uncarried: Uncarried,
    /// Whether a lease protects it.
    pub leased: bool,
}

/// A source file or link, read whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Got {
    /// The open file or link.
    pub held: Held,
    /// What is in it; a file's data is empty when only digests were asked for.
    pub content: Content,
}

/// What is in a small file, or in a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A regular file.
    File {
        /// All of it.
        data: Bytes,
        /// The digest of all of it.
        digest: Digest,
    },
    /// The text of a symbolic link.
    Symlink(Bytes),
}

/// What must be under a final name before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// Exactly this.
    Version(Version),
}

/// Mode and mtime for a final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits; what is beyond 0777 is dropped.
    pub mode: u32,
    /// Modification time.
    pub mtime: Timestamp,
}

/// How the target proves what it has written before it says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verify {
    /// By the bytes that it wrote: what the device does to them afterwards is not seen.
    #[default]
    Written,
    /// By the bytes that it reads back once they are synced and dropped from the cache.
    Disk,
}

/// A whole small file or link to write.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewFile {
    /// Its final name.
    pub path: RelPath,
    /// What is in it.
    pub content: Content,
    /// Its mode and mtime.
    pub meta: Meta,
    /// What is there now.
    pub expected: Expected,
    /// How it is proven.
    pub verify: Verify,
}

/// A small file that the target seems to have already.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Same {
    /// Its final name and the state that was seen there.
    pub file: FileRef,
    /// The source's digest.
    pub digest: Digest,
    /// The source's mode and mtime.
    pub meta: Meta,
    /// Whether a partial of it may be there, which goes then.
    pub has_partial: bool,
}

/// What a file is opened for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum OpenFor {
    /// To be read and deleted: the source's side.
    Read(Version),
    /// To be confirmed as it is: a final that may be equal. Nothing is written but mode and mtime.
    Confirm(Version),
    /// To be written: the partial of a file of `size` bytes, made or continued.
    Write {
        /// Bytes of the whole file.
        size: u64,
        /// The final that is there, to be read alone: what it has of the file need not be sent.
        basis: Option<Version>,
    },
}

/// An opened large file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opened {
    /// The open file.
    pub held: Held,
    /// How many bytes are there already.
    pub len: u64,
    /// How many bytes the basis has, where one is open beside it.
    pub basis_len: u64,
}

/// A chunk as it was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunk {
    /// All of its bytes.
    pub data: Bytes,
    /// Whether holes are among them: then blocks of zeros need not be written.
    pub sparse: bool,
    /// Its hash.
    pub hash: ChunkHash,
}

/// How large the blocks of a signature are: the server knows how many bytes that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blocks {
    /// For a basis as a whole.
    Coarse,
    /// For a chunk that is held against the one in its own place.
    Fine,
    /// For what coarse ones did not find, beside what they found.
    FinerThanCoarse,
    /// For what fine ones did not find.
    FinerThanFine,
    /// Some of the coarse ones, to learn whether a basis has anything of a file.
    Sampled,
}

impl Blocks {
    /// Bytes of a block of a basis of so many bytes, and of how many blocks one is summed up.
    pub fn of(self, basis_bytes: u64) -> (u32, u32) {
        let coarse = delta::block_bytes(basis_bytes);
        match self {
            Self::Coarse => (coarse, 1),
            Self::Fine => (delta::FINE_BLOCK_BYTES, 1),
            Self::FinerThanCoarse => (delta::finer_block_bytes(coarse), 1),
            Self::FinerThanFine => (delta::finer_block_bytes(delta::FINE_BLOCK_BYTES), 1),
            Self::Sampled => (coarse, delta::stride(coarse)),
        }
    }
}

/// The sums of blocks of a basis that follow each other, or of one of each so many: see [`crate::delta`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Where in the basis they begin, in bytes.
    pub start: u64,
    /// How many bytes of it they cover.
    pub bytes: u64,
    /// Bytes of a block; only the last of the basis may have less.
    pub block_bytes: u32,
    /// Of how many blocks one is summed up: the first.
    pub stride: u32,
    /// For each block a checksum and part of a hash.
    pub sums: Bytes,
}

/// What a chunk is held against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Against {
    /// Nothing: it is only made smaller.
    Nothing,
    /// These blocks.
    Sums(Sums),
    /// The blocks that were loaded.
    Loaded,
}

/// What makes a chunk of what the target has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delta {
    /// The delta; never longer than the chunk, and empty where it is held back.
    pub data: Bytes,
    /// How it is written down.
    pub form: Form,
    /// How many bytes of the chunk are in it, and were not found in the basis.
    pub literal_bytes: u64,
    /// How many bytes further on in the basis than in the file what was found last is; `None` where too little was to tell.
    pub shift: Option<i64>,
    /// Whether holes are among the chunk's bytes: then blocks of zeros need not be written.
    pub sparse: bool,
    /// The hash of the chunk.
    pub hash: ChunkHash,
}

/// How a delta is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// It is the chunk itself.
    Whole,
    /// As librsync does.
    Plain,
    /// That, compressed by zstd.
    Packed,
    /// Held back: too little was found.
    Left,
}

/// How far a `finish` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finished {
    /// The file is durable under its final name.
    Done,
    /// Still at it: ask again.
    Working {
        /// How many chunks have been read back for it by now.
        read_back: u64,
    },
}

/// What makes a partial final.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finish {
    /// The digest of the whole file, computed at the source.
    pub digest: Digest,
    /// Its mode and mtime.
    pub meta: Meta,
    /// What is under the final name now.
    pub expected: Expected,
    /// How it is proven.
    pub verify: Verify,
}

/// A directory and what becomes of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DirMeta {
    /// Where it is.
    pub path: RelPath,
    /// Its final mode and mtime.
    pub meta: Meta,
    /// Whether nothing more will come into it; otherwise what its owner needs stays added to its mode.
    pub is_complete: bool,
}

/// A source file to be deleted, its content being safe at the target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delete {
    /// The open file or link.
    pub handle: Handle,
    /// The digest that the target confirmed; `None` for a symbolic link.
    pub digest: Option<Digest>,
}

/// A file or link to be moved by a rename from one root of this server to another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenameFile {
    /// What is moved.
    pub from: FileRef,
    /// Its final name in the other root.
    pub to: RelPath,
    /// What is there now.
    pub expected: Expected,
}

/// What became of a file to be renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renamed {
    /// It is durable under its final name and gone from the source.
    Done,
    /// A rename can't do it (something is to be replaced, or a partial to be continued): move it the ordinary way.
    Impossible,
    /// The two are on different file systems after all, so no other file can be renamed either.
    OtherDevice,
    /// The source can't be moved, for this reason. (An error of the call is the target's.)
    SourceStays(ServiceError),
}

/// What a look at a directory of the target found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Swept {
    /// Tokens of runs.
    pub tokens: Vec<Name>,
    /// Swapped-out files that may be somebody's: left alone.
    pub leftovers: Vec<Name>,
    /// How many partials there are, at most.
    pub partials: u64,
    /// Whether it is sure to hold nothing but names that are realize's own.
    pub is_empty: bool,
}

impl Swept {
    /// Of a directory that could not be looked through: it may hold a partial.
    pub fn unknown() -> Self {
        Self {
            partials: 1,
            ..Self::default()
        }
    }
}

/// Chunks of one `calculate_signature` at most: in the smallest blocks the answer has 224 KiB.
pub const SIGNATURE_CHUNKS_MAX: u64 = 16;

/// The service. `D` is the directory that a path is below; rights are named in brackets.
#[tarpc::service]
pub trait RealizeService {
    /// Says who calls. \[no right\]
    async fn hello(version: u32, run: RunId) -> Answer<Hello>;

    /// Sets how many bytes per second the server may send on this connection at most, `None`
    /// for no limit. Without a connection there is nothing to limit: `BadRequest`. \[no right\]
    async fn configure(bytes_per_second: Option<u64>) -> Answer<()>;

    /// Claims a root for this run: locks a source (`Busy` names the holder), marks it with a token, then sweeps a target.
    /// \[read, or write for a target\]
    async fn claim(dir: DirId, role: Role) -> Answer<Claim>;

    /// Ends the claim: token and lock go.
    async fn release(dir: DirId) -> Answer<()>;

    /// A page of entries in path order from a cursor, all of them from `None` on. With `restore`,
    /// sources that a crash left set aside for deletion get their names back first. \[read\]
    async fn list(dir: DirId, from: Option<Cursor>, restore: bool) -> Answer<Page>;

    /// The state of each path, `None` where there is nothing; `restore` as for `list`. \[read or write\]
    async fn stat(dir: DirId, paths: Items<RelPath>, restore: bool) -> Answer<Vec<Answer<Option<Entry>>>>;

    /// Opens small files and links and gives their digests. \[read\]
    async fn digests(dir: DirId, files: Items<FileRef>) -> Answer<Vec<Answer<Got>>>;

    /// Opens small files and links and gives what is in them. \[read\]
    async fn get(dir: DirId, files: Items<FileRef>) -> Answer<Vec<Answer<Got>>>;

    /// Opens a large file. `Busy` when another still writes to the same partial after some seconds. A basis is opened only for who may read, too. \[read, or write\]
    async fn open(dir: DirId, path: RelPath, open_for: OpenFor) -> Answer<Opened>;

    /// Reads one chunk of a file open for reading. \[read\]
    async fn read(handle: Handle, chunk: u64) -> Answer<Chunk>;

    /// The hashes of up to a page of chunks of a file open for reading. \[read\]
    async fn hashes(handle: Handle, first: u64, count: u64) -> Answer<Vec<ChunkHash>>;

    /// Compares chunks of a partial or of a final with the source's hashes; those that are equal count as
    /// sent. Only whole chunks are equal. Of the basis of a partial is looked at what is `shift` bytes further on. \[write\]
    async fn compare(handle: Handle, first: u64, hashes: Items<ChunkHash>, shift: i64) -> Answer<Vec<bool>>;

    /// Writes whole small files and links, each durable when the answer comes. One whose final holds
    /// that very content already succeeds. \[write; replace where something is expected\]
    async fn put(dir: DirId, files: Items<NewFile>) -> Answer<Vec<Answer<()>>>;

    /// Makes durable what is equal already: `DigestMismatch` where it is not. \[write\]
    async fn settle(dir: DirId, files: Items<Same>) -> Answer<Vec<Answer<()>>>;

    /// Writes one whole chunk of a partial. `sparse`: blocks of zeros may become holes. \[write\]
    async fn send(handle: Handle, chunk: u64, data: Bytes, sparse: bool) -> Answer<()>;

    /// Makes a partial final, or confirms a final: synced, its digest compared, renamed, its directories
    /// synced; then it is closed. `Working` after a while: ask again with the same arguments. \[write; replace\]
    async fn finish(handle: Handle, finish: Finish) -> Answer<Finished>;

    /// The sums of the blocks of up to [`SIGNATURE_CHUNKS_MAX`] chunks of what the target has of a file open for writing: of its basis, else
    /// of its partial. They end where that ends. \[write and read\]
    async fn calculate_signature(handle: Handle, first: u64, count: u64, blocks: Blocks) -> Answer<Sums>;

    /// Gives a file open for reading the sums of the next blocks of a basis, the first of which begin at 0. One file of a session at a time
    /// has any: those of another go. \[read\]
    async fn load_signature(handle: Handle, sums: Sums) -> Answer<()>;

    /// What makes one chunk of a file open for reading of what is at the target, if no more than `literal_max` bytes of it are not found there; else,
    /// and where there is no such number or only samples are loaded, how much is found. What is not found `against` the first is looked for in `finer`,
    /// blocks of [`delta::FINE_BLOCK_BYTES`] at most. \[read\]
    async fn diff(
        handle: Handle,
        chunk: u64,
        against: Against,
        finer: Option<Sums>,
        literal_max: Option<u64>,
    ) -> Answer<Delta>;

    /// Writes one whole chunk of a partial, made of the basis and a delta. `DigestMismatch`, and nothing written, where it does not have
    /// the hash that the delta tells. \[write; read where it copies from the basis\]
    async fn apply_delta(handle: Handle, chunk: u64, delta: Delta) -> Answer<()>;

    /// Closes open files and links; a partial stays to be continued.
    async fn close(handles: Items<Handle>) -> Answer<()>;

    /// Looks through one directory of the target before files arrive in it: puts right what interrupted
    /// runs left, finds tokens. `NotFound` when there is none. \[write\]
    async fn sweep(dir: DirId, path: RelPath) -> Answer<Swept>;

    /// Removes the partials in one directory that nobody wrote to for long; how many went. \[write\]
    async fn remove_orphans(dir: DirId, path: RelPath) -> Answer<u64>;

    /// Makes directories, with what their owner needs added to the mode for the time of the move; one that is there already
    /// is fine. \[write\]
    async fn make_dirs(dir: DirId, dirs: Items<DirMeta>) -> Answer<Vec<Answer<()>>>;

    /// Gives directories their mtime and makes them durable, and their mode where `make_dirs` made them. \[write\]
    async fn finish_dirs(dir: DirId, dirs: Items<DirMeta>) -> Answer<Vec<Answer<()>>>;

    /// Removes empty directories, never the root; one that is gone is fine. \[delete\]
    async fn remove_dirs(dir: DirId, paths: Items<RelPath>) -> Answer<Vec<Answer<()>>>;

    /// Deletes open source files, each only if it is still what was read; then closes them. One that is
    /// gone is fine. \[delete\]
    async fn delete(dir: DirId, files: Items<Delete>) -> Answer<Vec<Answer<()>>>;

    /// Moves files by renaming them from a root of this server to another. \[delete there, write here\]
    async fn rename(from: DirId, to: DirId, files: Items<RenameFile>) -> Answer<Vec<Answer<Renamed>>>;
}
