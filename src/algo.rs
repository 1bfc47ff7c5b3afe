//! [`move_files`]: carries a move out over two services, each in this process or on another host.
//!
//! The sources are listed page by page, merged in path order, and each page is compared with the state
//! of the same paths at the target, so that memory stays the same for any number of files and the work is in
//! proportion to the source, however much the target holds. Work begins with the first page and runs as a
//! bounded number of tasks of one future: small files in batches (`small`), large ones by chunks (`large`),
//! directories once everything in them is done (`dirs`).
//!
//! Nothing here touches a file: the law is kept by what the two services promise and by the order of calls.
//! A source is deleted only in answer to a success of `put`, `settle` or `finish` at the target.

mod calls;
mod claims;
mod deltas;
mod dirs;
mod feed;
mod halt;
mod large;
mod mover;
mod repair;
mod report;
mod small;
mod tries;
mod work;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use tarpc::client::stub::Stub;
use tokio::sync::{Mutex, Notify, Semaphore};

pub use self::{
    calls::no_answer,
    claims::Begun,
    halt::Halt,
    report::{Event, Failure, How, MoveError, MoveReport, Side, Stop, Why, is_unanswered, unanswered},
    tries::{Next, Tries, TryLimits},
};
use self::{
    claims::{Claims, Ground},
    mover::Mover,
    report::Notices,
};
use crate::{
    filter::Filter,
    limits::Limits,
    model::{Entry, RelPath},
    service::{DirId, Expected, RealizeServiceClient, RealizeServiceRequest, RealizeServiceResponse, RunId, Verify},
};

/// A connection to a service, or the service itself.
pub trait ServiceStub: Stub<Req = RealizeServiceRequest, Resp = RealizeServiceResponse> + Clone {}
impl<S: Stub<Req = RealizeServiceRequest, Resp = RealizeServiceResponse> + Clone> ServiceStub for S {}

/// A directory that files leave.
#[derive(Clone)]
pub struct Source<S> {
    /// Who serves it.
    pub service: RealizeServiceClient<S>,
    /// Which directory.
    pub dir: DirId,
    /// Whether it is known to be the target's own service, so that this can rename from one to the other.
    pub beside_target: bool,
    /// Only these of its files, each with the name it gets at the target; all of it when `None`.
    pub files: Option<Vec<(RelPath, RelPath)>>,
}

/// The directory where files arrive.
#[derive(Clone)]
pub struct Target<T> {
    /// Who serves it.
    pub service: RealizeServiceClient<T>,
    /// Which directory; `None` in a dry run when it is still to be made.
    pub dir: Option<DirId>,
}

/// How to move.
#[derive(Debug, Clone, Default)]
pub struct MoveOptions {
    /// Leaves alone what this excludes.
    pub filter: Filter,
    /// Leaves the emptied directories of the source.
    pub keep_dirs: bool,
    /// Only says what would be done; writes nothing anywhere.
    pub dry_run: bool,
    /// Deletes nothing at the source.
    pub copy: bool,
    /// Leaves files of which a copy would lose something.
    pub strict: bool,
    /// How the target proves what it has written.
    pub verify: Verify,
    /// What is known of the move, where it begins again.
    pub begun: Begun,
    /// Ends the move in time.
    pub halt: Halt,
    /// Sizes and counts.
    pub limits: Limits,
}

/// Moves what is in `sources` to the same paths in `target`.
///
/// Each file and directory succeeds or stays by itself: `observer` is told each time, and the report counts.
/// An error means that the move could not begin. One that can't go on tells why in its report.
///
/// Dropping the future stops the move: jobs under way at the services end by themselves, partials stay to be
/// continued.
pub async fn move_files<S: ServiceStub, T: ServiceStub>(
    sources: &[Source<S>],
    target: &Target<T>,
    run: RunId,
    options: &MoveOptions,
    observer: &dyn Fn(Event<'_>),
) -> Result<MoveReport, MoveError> {
    let claims = Claims::take(sources, target, run, options).await;
    let result = match &claims.result {
        Ok(ground) => {
            let all_listed = claims.taken.release_target(target);
            let mover = Mover::new(sources, target, ground, options, observer);
            Ok(mover.run(all_listed).await)
        }
        Err(error) => Err(error.clone()),
    };
    claims.taken.release(sources, target).await;
    result
}

/// What all tasks of a move share.
struct Shared<'a, S, T> {
    sources: &'a [Source<S>],
    target: &'a Target<T>,
    /// Owner and group of new files at the target.
    target_owner: (u32, u32),
    /// For each source, whether renames are tried.
    may_rename: Vec<Cell<bool>>,
    options: &'a MoveOptions,
    observer: &'a dyn Fn(Event<'_>),
    report: RefCell<MoveReport>,
    notices: RefCell<Notices>,
    /// Permits of 1 KiB for data of large files in flight.
    window: Semaphore,
    /// How many large files are being sent: they share the window.
    sending: Cell<u64>,
    /// How many bytes the sums of finer blocks may still take: less what they took, and more what they saved. None within a host, where there is nothing to save.
    finer_left: Cell<i64>,
    /// Held by the file whose basis is loaded at its source.
    loading: Mutex<()>,
    /// Whether directories are being made at the target.
    making: Cell<bool>,
    /// Told when they are made. (Not a `watch` channel: that wakes who waits in an order by chance.)
    made: Notify,
    /// Those that could not be made.
    unmade: RefCell<BTreeSet<RelPath>>,
}

/// One file or link on its way.
#[derive(Debug, Clone)]
struct Item {
    /// Which of the sources it comes from.
    source: usize,
    /// Its state there; its path there is in it.
    entry: Entry,
    /// Its path at the target.
    to: RelPath,
    /// What is there.
    expected: Expected,
    /// Whether a partial of it may be there.
    has_partial: bool,
}

impl Item {
    /// Bytes of its content; none for a link.
    fn bytes(&self) -> u64 {
        report::file_bytes(&self.entry)
    }
}

impl<'a, S, T> Shared<'a, S, T> {
    fn new(
        sources: &'a [Source<S>],
        target: &'a Target<T>,
        ground: &Ground,
        options: &'a MoveOptions,
        observer: &'a dyn Fn(Event<'_>),
    ) -> Self {
        let may_rename = ground.may_rename.iter().copied().map(Cell::new).collect();
        let window = Semaphore::new((options.limits.window_bytes >> 10) as usize);
        let (report, notices) = Default::default();
        Self {
            sources,
            target,
            target_owner: ground.target_owner,
            may_rename,
            options,
            observer,
            report,
            notices,
            window,
            sending: Cell::new(0),
            finer_left: Cell::new(if ground.one_host { 0 } else { deltas::FINER_LOSS_BYTES }),
            loading: Mutex::new(()),
            making: Cell::new(false),
            made: Notify::new(),
            unmade: RefCell::default(),
        }
    }
}
