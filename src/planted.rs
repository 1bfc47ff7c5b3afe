//! Bugs on purpose, to prove that the tests would find them.
//!
//! They exist only in a build with `--cfg realize_planted`, which must also have debug assertions; anywhere else
//! [`planted`] is the constant `false`. At most one is on, for the thread that asked for it.

#[cfg(all(realize_planted, not(debug_assertions)))]
compile_error!("planted bugs lose files: they are for tests with debug assertions, never for a release");

/// Is in every program that bugs can be planted in, and in no other: `tests/planted` looks for it.
#[cfg(realize_planted)]
#[used]
static MARKER: [u8; 36] = *b"realize was built with planted bugs\n";

/// A way of breaking the law.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The partial is not synced before the source goes.
    DeleteBeforeSync,
    /// The directory is not synced after the rename.
    NoDirectorySync,
    /// The answer comes before the rename.
    AcknowledgeBeforeRename,
    /// The digest of what was written is not compared.
    SkipDigest,
    /// The source is deleted without a look at whether it is still what was read.
    NoSourceCheck,
    /// What was set aside is not looked at once more before it goes.
    NoLookAside,
    /// An equal file is not synced before the source goes.
    EqualUnsynced,
    /// A directory is synced, those above it are not.
    AncestorUnsynced,
    /// A failed sync is forgotten, and may be tried again.
    FailedSyncForgotten,
    /// A later process is not told of a directory whose sync failed.
    FailedSyncUntold,
    /// What appeared under the final name is overwritten.
    OverwriteAppeared,
    /// The chunks of a partial that is found are taken for right.
    ResumeUnchecked,
    /// A write that found no space is called a success.
    NoSpaceIsSuccess,
    /// A move whose other side is lost begins again without end.
    UnboundedTries,
    /// A file of the same size and mtime is taken for equal.
    TrustSizeAndMtime,
    /// Files count as arrived when there is no answer.
    NoAnswerIsSuccess,
    /// A daemon keeps a connection on which nothing is heard.
    HalfOpenKept,
    /// A mover keeps a connection on which nothing is heard.
    SilenceKept,
    /// Nobody asks whether somebody has the source open for writing.
    WriterIgnored,
    /// What is cached of a partial is trusted, whether or not its sync has failed.
    ResumeFromCache,
    /// What a partial has not got of a chunk counts as right.
    ResumePastHole,
    /// A call of a dead connection writes to what is final by now.
    LateWrite,
    /// What a delta gives is not held against the hash of its chunk.
    DeltaUnhashed,
    /// What is copied from the older final is not hashed.
    BasisUnhashed,
    /// What is left out as a hole counts as zeros, whatever was there before.
    HolesAssumed,
    /// Nobody asks whether somebody else has written to a partial.
    PartialShared,
    /// Whatever is found in a directory of the target counts as left by an earlier run.
    SweepUnknown,
    /// What a process remembers of a partial is believed, whoever has written to it since.
    KeptUnchecked,
    /// What is remembered of a source is believed, whoever has written to it since.
    RecallUnchecked,
    /// A file that is renamed from the source to the target gets the partial's name in between.
    RenameByPartial,
    /// What a partial has got is sent again.
    ResumeForgotten,
    /// A source that was deleted stays open until the session ends.
    HandlesKept,
    /// A connection begins with as much as may go at once.
    RateRefilled,
    /// Rates go by the time of day.
    RateByWallClock,
    /// A daemon forgets with the connection what a run has asked for.
    RateForgotten,
    /// A session keeps the rights that it had at first.
    RightsRemembered,
    /// A peer that is taken out of the configuration is still served.
    RemovedPeerServed,
    /// A file whose end takes too long counts as moved: it will be.
    LateIsSuccess,
}

impl Bug {
    /// The one of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    }

    /// All of them.
    pub const ALL: [Bug; 38] = [
        Bug::DeleteBeforeSync,
        Bug::NoDirectorySync,
        Bug::AcknowledgeBeforeRename,
        Bug::SkipDigest,
        Bug::NoSourceCheck,
        Bug::NoLookAside,
        Bug::EqualUnsynced,
        Bug::AncestorUnsynced,
        Bug::FailedSyncForgotten,
        Bug::FailedSyncUntold,
        Bug::OverwriteAppeared,
        Bug::ResumeUnchecked,
        Bug::NoSpaceIsSuccess,
        Bug::UnboundedTries,
        Bug::TrustSizeAndMtime,
        Bug::NoAnswerIsSuccess,
        Bug::HalfOpenKept,
        Bug::SilenceKept,
        Bug::WriterIgnored,
        Bug::ResumeFromCache,
        Bug::ResumePastHole,
        Bug::LateWrite,
        Bug::DeltaUnhashed,
        Bug::BasisUnhashed,
        Bug::HolesAssumed,
        Bug::PartialShared,
        Bug::SweepUnknown,
        Bug::KeptUnchecked,
        Bug::RecallUnchecked,
        Bug::RenameByPartial,
        Bug::ResumeForgotten,
        Bug::HandlesKept,
        Bug::RateRefilled,
        Bug::RateByWallClock,
        Bug::RateForgotten,
        Bug::RightsRemembered,
        Bug::RemovedPeerServed,
        Bug::LateIsSuccess,
    ];
}

#[cfg(realize_planted)]
thread_local! {
    static ON: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

#[cfg(realize_planted)]
static ON_EVERYWHERE: std::sync::OnceLock<Bug> = std::sync::OnceLock::new();

/// Whether `bug` is on.
#[cfg(realize_planted)]
pub fn planted(bug: Bug) -> bool {
    ON.get() == Some(bug) || ON_EVERYWHERE.get() == Some(&bug)
}

/// Turns `bug` on for all threads, for good.
#[cfg(realize_planted)]
pub fn plant_everywhere(bug: Option<Bug>) {
    if let Some(bug) = bug {
        ON_EVERYWHERE.get_or_init(|| bug);
    }
}

/// Which is on for all threads.
#[cfg(realize_planted)]
pub fn planted_everywhere() -> Option<Bug> {
    ON_EVERYWHERE.get().copied()
}

/// Whether `bug` is on.
#[cfg(not(realize_planted))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

/// Turns `bug` on for this thread, or all off.
#[cfg(realize_planted)]
pub fn plant(bug: Option<Bug>) {
    ON.set(bug);
}
