//! Which fault met which step of a move: what was never tried proves nothing.

use std::collections::BTreeMap;

use realize::{
    model::RelPath,
    store::names::{self, NameKind},
};

use crate::{
    fs::{Call, Kind, Op},
    world::is_in_source,
};

/// How often each fault met each step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<(&'static str, String), u64>);

/// Faults of a machine that may meet any of [`STEPS`].
const ANYWHERE: &[&str] = &["PowerCut", "Kill", "Error", "DiskStall", "Pause", "Clock", "Act"];

/// What a move does to a disk.
const STEPS: &[&str] = &[
    "begin",
    "make directory",
    "write partial",
    "sync file",
    "publish",
    "swap",
    "sync directory",
    "set aside",
    "delete",
    "tidy",
    "remove directory",
    "finish directory",
];

/// Faults that meet one kind of call only.
const SOMEWHERE: &[(&str, &str)] = &[
    ("SyncLost", "sync file"),
    ("SyncLost", "sync directory"),
    ("WriteBackLost", "write partial"),
    ("Short", "write partial"),
    ("Short", "read"),
];

/// Troubles of a line, which may meet any of [`CALLS`].
const TROUBLES: &[&str] = &["Reset", "Close", "Stall", "Swallow", "Flip"];

/// What is asked over a line.
const CALLS: &[&str] = &[
    "connecting",
    "hello",
    "claim",
    "list",
    "stat",
    "digests",
    "get",
    "open",
    "read",
    "hashes",
    "compare",
    "calculate_signature",
    "diff",
    "apply_delta",
    "put",
    "settle",
    "send",
    "finish",
    "close",
    "sweep",
    "make_dirs",
    "finish_dirs",
    "remove_dirs",
    "delete",
    "release",
];

/// What few moves ask: any of [`TROUBLES`] has to meet each.
const RARE_CALLS: &[&str] = &["load_signature", "remove_orphans"];

impl Coverage {
    /// A fault of a machine met a call.
    pub(super) fn add_struck(&mut self, kind: &Kind, call: &Call) {
        if let Some(step) = step(call) {
            *self.0.entry((name(kind), step.into())).or_default() += 1;
        }
    }

    /// A trouble of a line met a call that was under way.
    pub(super) fn add_met(&mut self, trouble: &'static str, call: &str) {
        *self.0.entry((trouble, call.into())).or_default() += 1;
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (cell, count) in &other.0 {
            *self.0.entry(cell.clone()).or_default() += count;
        }
    }

    /// How often each fault met each step.
    pub fn cells(&self) -> impl Iterator<Item = (&'static str, &str, u64)> {
        self.0.iter().map(|((fault, step), count)| (*fault, &**step, *count))
    }

    /// What plans of all scenarios have never tried.
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        let all = |faults: &'static [&'static str], steps: &'static [&'static str]| {
            let pairs = faults
                .iter()
                .flat_map(move |fault| steps.iter().map(move |step| (*fault, *step)));
            pairs.collect::<Vec<_>>()
        };
        let mut expected = [all(ANYWHERE, STEPS), SOMEWHERE.to_vec()].concat();
        expected.extend(all(TROUBLES, CALLS));
        expected.extend(["Hangs", "Refused", "Slow"].map(|line| (line, "connecting")));
        let is_met = |fault, step: &str| self.0.contains_key(&(fault, step.to_owned()));
        expected.retain(|(fault, step)| !is_met(fault, step));
        let unmet = RARE_CALLS
            .iter()
            .filter(|call| !TROUBLES.iter().any(|trouble| is_met(trouble, call)));
        expected.extend(unmet.map(|call| ("any trouble", *call)));
        expected
    }
}

fn name(kind: &Kind) -> &'static str {
    match kind {
        Kind::PowerCut(_) => "PowerCut",
        Kind::Kill(_) => "Kill",
        Kind::Error(_) => "Error",
        Kind::SyncLost(..) => "SyncLost",
        Kind::WriteBackLost(..) => "WriteBackLost",
        Kind::Short(_) => "Short",
        Kind::BitRot { .. } => "BitRot",
        Kind::Stall(_) => "DiskStall",
        Kind::Pause(_) => "Pause",
        Kind::Clock(..) => "Clock",
        Kind::Act(_) => "Act",
    }
}

/// What the move was at.
fn step(call: &Call) -> Option<&'static str> {
    let kind = |path: &Option<RelPath>| {
        let name = path.as_ref()?.split()?.1;
        Some(names::classify(&name))
    };
    let is_source = call.path.as_ref().is_some_and(is_in_source);
    let (from, to) = (kind(&call.path), kind(&call.to));
    Some(match call.op {
        Op::Mkdir => "make directory",
        Op::FileSync => "sync file",
        Op::DirSync | Op::SyncFs => "sync directory",
        Op::DirSetMeta | Op::SetMtime => "finish directory",
        Op::Rmdir => "remove directory",
        Op::Create if matches!(from, Some(NameKind::Token | NameKind::Unsynced)) => "begin",
        Op::Create | Op::Symlink | Op::Write | Op::Punch | Op::Reflink | Op::SetLen | Op::FileSetMeta => {
            "write partial"
        }
        Op::Rename | Op::Link if is_source => "set aside",
        Op::Rename | Op::Link
            if matches!(
                (&from, &to),
                (Some(NameKind::Swap(_)), _) | (_, Some(NameKind::Swap(_)))
            ) =>
        {
            "swap"
        }
        Op::Rename | Op::Link => "publish",
        Op::Unlink if is_source && !matches!(from, Some(NameKind::Token)) => "delete",
        Op::Unlink => "tidy",
        Op::Read => "read",
        _ => return None,
    })
}
