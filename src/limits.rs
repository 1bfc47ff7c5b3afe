//! Every bound of the core in one value, so that a simulation can run them short.

use std::time::Duration;

/// Sizes, counts and waits. All bytes are plain bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Files up to this size travel whole, in batches. 64 KiB: above it a file fills the pipe alone.
    pub small_file_bytes: u64,
    /// A batch of small files is closed at this much data. 1 MiB: one frame, one group of syncs.
    pub batch_bytes: u64,
    /// A batch of small files is closed at this many files; also the most that one call takes.
    pub batch_files: usize,
    /// How many batches are under way at once: enough that reading, syncing and deleting overlap.
    pub batches_in_flight: usize,
    /// How many small files one job reads, writes, renames or deletes. Names of one directory are changed one at a time
    /// whatever we do, and threads that wait for it spin: one job a batch is faster than several.
    pub job_files: usize,
    /// How many small files one job syncs: those of one batch should wait for the disk together.
    pub job_syncs: usize,
    /// Directories are finished together once so many are done.
    pub dirs_per_batch: usize,
    /// How many large files are under way at once.
    pub files_in_flight: usize,
    /// How much data of large files is in flight at once, read but not yet acknowledged. Beyond it each file has a chunk of its own, so
    /// that none stands still for another.
    pub window_bytes: u64,
    /// How much of `window_bytes` one file may take. Several that are sent at once take equal parts.
    pub file_window_bytes: u64,
    /// Entries in a page of a listing.
    pub page_entries: usize,
    /// Bytes of paths in a page of a listing, and in any batch made of it: a fourth of the longest message.
    pub page_bytes: usize,
    /// Chunk hashes in a page.
    pub page_hashes: usize,
    /// How far ahead of the first missing chunk hash others are kept (32 bytes each).
    pub hashes_ahead: usize,
    /// A partial is synced each time this much has been written, so that finishing is short.
    pub sync_every_bytes: u64,
    /// Open files and links that one session may hold.
    pub open_handles: usize,
    /// Those among them that a large file is written to or compared with: each remembers the hashes of its chunks.
    pub open_targets: usize,
    /// Directories remembered as durable; when full, all are forgotten and synced again.
    pub synced_dirs: usize,
    /// Where no lease can be had, a file must not have changed for this long.
    pub quiet_without_lease: Duration,
    /// How long a `finish` works before it answers that it is still at it.
    pub finish_answer: Duration,
    /// How often in a row a `finish` may answer that it has read back no more before the mover gives up.
    pub finish_answers: usize,
    /// Of sources of fewer chunks no hashes are remembered: they are soon read again.
    pub recalled_chunks: u64,
    /// Partials of one root that are kept open when a move has left them, for the next one.
    pub partials_kept: usize,
    /// How long they are kept open. On the disk they stay.
    pub partials_kept_for: Duration,
    /// Hashes of chunks that all partials of one root remember, and those that its sources do: some 50 bytes each, for a mebibyte of a file.
    pub hashes_remembered: usize,
    /// Partials that nobody wrote to for this long are removed.
    pub orphan_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            small_file_bytes: 64 << 10,
            batch_bytes: 1 << 20,
            batch_files: 128,
            batches_in_flight: 8,
            job_files: 128,
            job_syncs: 16,
            dirs_per_batch: 64,
            files_in_flight: 8,
            window_bytes: 32 << 20,
            file_window_bytes: 32 << 20,
            page_entries: 1024,
            page_bytes: 512 << 10,
            page_hashes: 4096,
            hashes_ahead: 8192,
            sync_every_bytes: 64 << 20,
            open_handles: 4096,
            open_targets: 64,
            synced_dirs: 1 << 16,
            quiet_without_lease: Duration::from_secs(3),
            finish_answer: Duration::from_secs(10),
            finish_answers: 60,
            recalled_chunks: 8,
            partials_kept: 16,
            partials_kept_for: Duration::from_secs(24 * 3600),
            hashes_remembered: 1 << 19,
            orphan_age: Duration::from_secs(7 * 24 * 3600),
        }
    }
}
