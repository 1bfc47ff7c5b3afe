//! How much a run may send again, and how much of it may be open or under way at once.

use realize::{digest::CHUNK_BYTES, limits::Limits};

use super::Outcome;
use crate::check::{Property, Violation};

/// What was to be sent, and what went wrong with it.
#[derive(Debug, Clone, Copy)]
pub struct Owed {
    /// How many files.
    pub files: u64,
    /// Bytes of all versions that the source had of them.
    pub bytes: u64,
    /// How many faults struck, slow lines among them.
    pub faults: u64,
    /// How many of these may take back what had arrived: crashes, failed syncs, and what somebody else does.
    pub undone: u64,
}

impl Outcome {
    /// What was sent more often than the faults account for.
    pub fn check_resent(&self, owed: Owed, limits: &Limits) -> Vec<Violation> {
        // A file that fills the window and what is not synced yet. (The files of plans are smaller.)
        let at_once = limits.window_bytes + limits.sync_every_bytes + CHUNK_BYTES;
        let again = owed.bytes.min(at_once);
        // What was answered is there: a lost line and a program that died take nothing of it back, so there is no margin.
        let content = owed.bytes + owed.undone * again;
        // On the line is also what had no answer, and beside the content paths, versions, hashes and signatures, each time anew: a signature takes
        // a hundredth of what it is of, all else of a file half a KiB, and a connection begins with 2 KiB of certificates and hellos. More than twice
        // that is allowed.
        const FILE_BYTES: u64 = 2 << 10;
        const CONNECTION_BYTES: u64 = 4 << 10;
        let once = owed.bytes + owed.bytes / 32 + owed.files * FILE_BYTES;
        let wire = once + owed.faults * (once - owed.bytes + again) + self.connections * CONNECTION_BYTES;
        let checked = [
            ("bytes of content", self.bytes_sent, content),
            ("bytes over lines", self.up + self.down, wire),
        ];
        exceeded(Property::Resent, &checked)
    }

    /// What there was more of at once than `limits` say.
    pub fn check_bounded(&self, limits: &Limits) -> Vec<Violation> {
        // Roots, the listing, the claim, marks, and jobs on directories; 16 is what all has come to in plans.
        const OTHERS_OPEN: usize = 16;
        let (batches, files) = (limits.batches_in_flight, limits.files_in_flight);
        // Of a small file itself and its directory; of a large one also its partial and what it is made of.
        let open = OTHERS_OPEN + 2 * batches * limits.batch_files + 4 * files;
        // One call of each batch, and one to delete what the one before brought over; of each large file its own, and two pages ahead; the chunks of the
        // window; directories.
        const OTHER_CALLS: usize = 4;
        let window = (limits.window_bytes / CHUNK_BYTES) as usize;
        let calls = OTHER_CALLS + 2 * batches + 4 * files + window;
        let checked = [
            ("handles at the mover", self.most_open[0] as u64, open as u64),
            ("handles at the daemon", self.most_open[1] as u64, open as u64),
            ("calls under way", self.calls.most as u64, calls as u64),
        ];
        exceeded(Property::Bounded, &checked)
    }
}

/// Each of what is called so, with how much there was and may be.
fn exceeded(property: Property, checked: &[(&str, u64, u64)]) -> Vec<Violation> {
    let exceeded = checked.iter().filter(|(_, count, most)| count > most);
    let violations =
        exceeded.map(|(what, count, most)| Violation::of_run(property, &format!("{count} {what}, at most {most}")));
    violations.collect()
}
