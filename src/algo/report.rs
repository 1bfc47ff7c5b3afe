//! What a move tells: events as it goes, a report at its end.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;

use super::{Item, Shared};
use crate::{
    model::{Entry, Kind, Line, RelPath, Uncarried},
    plan::{Loss, Nesting, Reason},
    service::{Expected, Held, ServiceError},
};

/// One end of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where files come from: which of the sources.
    Source(usize),
    /// Where they go.
    Target,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source(_) => "source",
            Self::Target => "target",
        })
    }
}

/// Why something stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It was so decided.
    #[error("{0}")]
    Reason(#[from] Reason),
    /// The source failed.
    #[error("at the source: {0}")]
    Source(#[source] ServiceError),
    /// The target failed.
    #[error("at the target: {0}")]
    Target(#[source] ServiceError),
    /// See [`Halt`](super::Halt).
    #[error("the time is over")]
    TimeOver,
}

/// Something that stays at the source though nobody asked for that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} stays: {why}")]
pub struct Failure {
    /// Its path at the target.
    pub path: RelPath,
    /// Why.
    pub why: Why,
}

/// How something got to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Its bytes were sent.
    Copied,
    /// Its bytes were sent, and took the place of something else.
    Replaced,
    /// It was there already and was verified.
    Verified,
    /// It was renamed.
    Renamed,
}

/// What happens while a move goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file or link was found that is to be moved.
    Found {
        /// Its size in bytes.
        bytes: u64,
    },
    /// The content of a large file that the target has some of is being compared.
    Checking(&'a RelPath),
    /// So many bytes have been dealt with: copied, or found there.
    Advanced {
        /// How many more than before.
        bytes: u64,
    },
    /// A file or link is safe at the target and gone from the source (still there with `copy`).
    Moved {
        /// Its path at the target.
        path: &'a RelPath,
        /// How it got there.
        how: How,
    },
    /// A dry run: this would be moved, or compared first where `compare`.
    WouldMove {
        /// Its path at the target.
        path: &'a RelPath,
        /// Its size in bytes.
        bytes: u64,
        /// Whether the target may have it already.
        compare: bool,
        /// Whether something else at the target would be replaced.
        replace: bool,
    },
    /// Something stays.
    Stays(&'a Failure),
    /// The first file that loses something; said before its source is deleted.
    Loses {
        /// Which file.
        path: &'a RelPath,
        /// What.
        loss: Loss,
    },
    /// No lease protects the sources, so quiet files alone are moved. Said once.
    NoLeases {
        /// The first such file.
        path: &'a RelPath,
    },
}

/// What a move did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MoveReport {
    /// Files and links whose bytes were sent.
    pub copied: u64,
    /// Those among the copied that took the place of something else.
    pub replaced: u64,
    /// Files that the target had already.
    pub verified: u64,
    /// Files and links that were renamed.
    pub renamed: u64,
    /// Bytes of the files of these three.
    pub bytes: u64,
    /// Bytes of content that were sent.
    pub bytes_sent: u64,
    /// Directories removed from the source.
    pub dirs_removed: u64,
    /// Entries left alone because they were excluded; what is below an excluded directory is not counted.
    pub excluded: u64,
    /// Entries that stay though nobody asked for that.
    pub stays: u64,
    /// Files of which something was not carried, by what.
    pub losses: BTreeMap<Loss, u64>,
    /// Partials of others that nobody continued, removed at the target.
    pub orphans_removed: u64,
    /// Files and links that a dry run would move.
    pub would_move: u64,
    /// Why the move ended before its end.
    pub stopped: Option<Stop>,
}

impl MoveReport {
    /// Whether anything was moved: a file, or an emptied directory.
    pub fn did_something(&self) -> bool {
        self.copied + self.verified + self.renamed + self.dirs_removed > 0
    }

    /// Takes in the report of the same move begun again: what was done adds up, what stays is what stays now.
    pub fn add(&mut self, later: &Self) {
        self.copied += later.copied;
        self.replaced += later.replaced;
        self.verified += later.verified;
        self.renamed += later.renamed;
        self.bytes = self.bytes.saturating_add(later.bytes);
        self.bytes_sent = self.bytes_sent.saturating_add(later.bytes_sent);
        self.dirs_removed += later.dirs_removed;
        self.orphans_removed += later.orphans_removed;
        for (loss, files) in &later.losses {
            *self.losses.entry(*loss).or_default() += files;
        }
        self.excluded = later.excluded;
        self.stays = later.stays;
        self.would_move = later.would_move;
        self.stopped = later.stopped.clone();
    }

    /// Whether nothing was left behind but by option.
    pub fn is_complete(&self) -> bool {
        self.stays == 0 && self.stopped.is_none()
    }
}

/// Why a move ended before its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// What stopped one file would stop all others.
    #[error("{0}")]
    File(#[source] Why),
    /// The move as a whole could not go on.
    #[error("{0}")]
    Move(#[source] MoveError),
    /// See [`Halt`](super::Halt): something was not begun, or left where it was.
    #[error("the time is over")]
    TimeOver,
}

impl Stop {
    /// The call that has no answer, where it is for that.
    fn unanswered(&self) -> Option<&ServiceError> {
        let error = match self {
            Self::File(Why::Source(error) | Why::Target(error)) | Self::Move(MoveError::Side(_, error)) => error,
            _ => return None,
        };
        Some(error).filter(|error| is_unanswered_call(error))
    }
}

fn is_unanswered_call(error: &ServiceError) -> bool {
    matches!(error, ServiceError::NoAnswer(_) | ServiceError::BadHandle)
}

/// Why a move could not begin or go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// Another run is moving the source; which one, and who that is.
    #[error("the source is being moved by {}", Line(.1))]
    Locked(usize, String),
    /// One root is inside the other; which source, where that is known.
    #[error("{}", nested_text(*.1))]
    Nested(Option<usize>, Nesting),
    /// One of several sources is inside another.
    #[error("one source is inside another: name the outer one alone")]
    NestedSources,
    /// This source is another directory than it was when the move began.
    #[error("the source is another directory than when the move began")]
    Another(usize),
    /// A call that everything depends on failed.
    #[error("at the {0}: {1}")]
    Side(Side, #[source] ServiceError),
}

impl MoveError {
    /// Which of the sources it is about, where it is about one.
    pub fn source_index(&self) -> Option<usize> {
        match self {
            Self::Locked(source, _) | Self::Another(source) | Self::Side(Side::Source(source), _) => Some(*source),
            Self::Nested(source, _) => *source,
            Self::NestedSources | Self::Side(Side::Target, _) => None,
        }
    }
}

fn nested_text(nesting: Nesting) -> &'static str {
    match nesting {
        Nesting::Same => "source and target are the same directory",
        Nesting::SourceInside => "the source is inside the target",
        Nesting::TargetInside => "the target is inside the source",
        Nesting::Apart => "source and target are apart",
    }
}

/// Whether a move ended because a service gave no answer, or has lost what was open there. Where that service is on another host,
/// the move is to begin again.
pub fn is_unanswered(moved: &Result<MoveReport, MoveError>) -> bool {
    unanswered(moved).is_some()
}

/// The call on which such a move ended.
pub fn unanswered(moved: &Result<MoveReport, MoveError>) -> Option<&ServiceError> {
    match moved {
        Err(MoveError::Side(_, error)) => Some(error).filter(|error| is_unanswered_call(error)),
        Err(_) => None,
        Ok(report) => report.stopped.as_ref()?.unanswered(),
    }
}

/// What has been said once and is not said again.
#[derive(Debug, Default)]
pub struct Notices {
    losses: BTreeSet<Loss>,
    no_leases: bool,
}

impl<S, T> Shared<'_, S, T> {
    pub(super) fn found(&self, entry: &Entry) {
        (self.observer)(Event::Found {
            bytes: file_bytes(entry),
        });
    }

    pub(super) fn advanced(&self, bytes: u64) {
        (self.observer)(Event::Advanced { bytes });
    }

    /// So many bytes of content were sent.
    pub(super) fn sent(&self, bytes: u64) {
        let mut report = self.report.borrow_mut();
        report.bytes_sent = report.bytes_sent.saturating_add(bytes);
    }

    pub(super) fn would_move(&self, item: &Item, compare: bool) {
        self.report.borrow_mut().would_move += 1;
        (self.observer)(Event::WouldMove {
            path: &item.to,
            bytes: file_bytes(&item.entry),
            compare,
            replace: item.expected != Expected::Absent,
        });
    }

    pub(super) fn moved(&self, item: &Item, how: How) {
        let bytes = file_bytes(&item.entry);
        let how = match (how, item.expected) {
            (How::Copied, Expected::Version(_)) => How::Replaced,
            (how, _) => how,
        };
        let mut report = self.report.borrow_mut();
        match how {
            How::Copied => report.copied += 1,
            How::Replaced => {
                report.copied += 1;
                report.replaced += 1;
            }
            How::Verified => report.verified += 1,
            How::Renamed => report.renamed += 1,
        }
        report.bytes = report.bytes.saturating_add(bytes);
        drop(report);
        (self.observer)(Event::Moved { path: &item.to, how });
    }

    /// Notes that `path` stays, and says so; a failure that all others would share stops the move.
    pub(super) fn leave(&self, path: &RelPath, why: Why) {
        if why == Why::TimeOver {
            // Told once, by why the move stopped.
            self.time_is_over();
            return;
        }
        {
            let mut report = self.report.borrow_mut();
            report.stays += 1;
            if report.stopped.is_none() && stops_all(&why) {
                report.stopped = Some(Stop::File(why.clone()));
            }
        }
        if self
            .report
            .borrow()
            .stopped
            .as_ref()
            .is_some_and(|stop| stop.unanswered().is_some())
        {
            // Told once, by why the move stopped. It may begin again, and then nothing of this stays.
            return;
        }
        (self.observer)(Event::Stays(&Failure {
            path: path.clone(),
            why,
        }));
    }

    /// Whether what waits is not to be begun. To be asked only where something does: that there was no time for it is told then.
    pub(super) fn is_stopped(&self) -> bool {
        if !self.options.halt.may_begin() {
            self.time_is_over();
        }
        self.has_stopped()
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.report.borrow().stopped.is_some()
    }

    fn time_is_over(&self) {
        self.report.borrow_mut().stopped.get_or_insert(Stop::TimeOver);
    }

    /// Says what of the file or link `item`, which is now `held`, is not carried; the reason to leave it when nothing may be lost.
    pub(super) fn check_held(&self, item: &Item, held: &Held) -> Result<(), Reason> {
        let owner = self.is_anothers(&item.entry);
        self.check_losses(
            &item.to,
            &Uncarried {
                owner,
                ..held.uncarried
            },
        )?;
        let mut notices = self.notices.borrow_mut();
        if !held.leased && item.entry.kind == Kind::File && !std::mem::replace(&mut notices.no_leases, true) {
            (self.observer)(Event::NoLeases { path: &item.to });
        }
        Ok(())
    }

    /// Whether `entry` has another owner than what is made at the target.
    pub(super) fn is_anothers(&self, entry: &Entry) -> bool {
        (entry.uid, entry.gid) != self.target_owner
    }

    /// Says what of the source of `path` is not carried; the reason to leave it when nothing may be lost.
    pub(super) fn check_losses(&self, path: &RelPath, uncarried: &Uncarried) -> Result<(), Reason> {
        let losses = [
            (uncarried.hard_links, Loss::HardLinks),
            (uncarried.xattrs, Loss::Xattrs),
            (uncarried.acl, Loss::Acls),
            (uncarried.special_bits, Loss::SpecialBits),
            (uncarried.owner, Loss::Owner),
        ];
        let mut notices = self.notices.borrow_mut();
        for (_, loss) in losses.into_iter().filter(|(lost, _)| *lost) {
            if self.options.strict {
                return Err(Reason::WouldLose(loss));
            }
            *self.report.borrow_mut().losses.entry(loss).or_default() += 1;
            if notices.losses.insert(loss) {
                (self.observer)(Event::Loses { path, loss });
            }
        }
        Ok(())
    }
}

/// Whether no other file would fare better.
pub(super) fn stops_all(why: &Why) -> bool {
    match why {
        Why::Target(ServiceError::Unsafe(_)) => true,
        Why::Source(ServiceError::NoAnswer(_) | ServiceError::BadAnswer(_)) => true,
        Why::Target(ServiceError::NoAnswer(_) | ServiceError::BadAnswer(_)) => true,
        Why::Target(error) => {
            let full = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS].map(Errno::raw_os_error);
            error.errno().is_some_and(|errno| full.contains(&errno))
        }
        _ => false,
    }
}

pub(super) fn file_bytes(entry: &Entry) -> u64 {
    if entry.kind == Kind::File {
        entry.version.size
    } else {
        0
    }
}
