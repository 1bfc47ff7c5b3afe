//! What people see: bars on a terminal, plain lines otherwise; results on standard output, everything else on standard
//! error.

use std::{
    cell::{Cell, RefCell},
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use realize::{
    algo::{Event, How, MoveReport, Stop, Why},
    clock::Clock,
    service::ServiceError,
};

/// How often a plain line tells the progress where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows a move as it goes.
pub struct Ui<C> {
    clock: C,
    bar: ProgressBar,
    /// Whether files are named on standard output.
    names: bool,
    copy: bool,
    /// Plain lines instead of a bar, and when the last one was.
    plain: Option<Cell<Duration>>,
    total: Cell<(u64, u64)>,
    done: Cell<(u64, u64)>,
    output: RefCell<std::io::BufWriter<std::io::Stdout>>,
}

impl<C: Clock> Ui<C> {
    /// A display; `names` names each file, `quiet` shows no progress, `copy` says copied for moved.
    pub fn new(clock: C, names: bool, quiet: bool, copy: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal && !quiet {
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5))
        } else {
            ProgressBar::hidden()
        };
        let style =
            "{msg:8} {bytes:>10} of {total_bytes:10} [{wide_bar}] {binary_bytes_per_sec:>12}, {eta} left, {prefix}";
        // A template that indicatif does not take shows the default bar.
        bar.set_style(
            ProgressStyle::with_template(style)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
        );
        bar.set_message(if copy { "copying" } else { "moving" });
        let plain = (!terminal && !quiet).then(|| Cell::new(clock.now()));
        let (total, done) = Default::default();
        Self {
            clock,
            bar,
            names,
            copy,
            plain,
            total,
            done,
            output: RefCell::new(std::io::BufWriter::new(std::io::stdout())),
        }
    }

    /// The move begins again: what was `moved` is done, and what is left will be found once more.
    pub fn begin_again(&self, moved: &MoveReport) {
        let files = moved.copied + moved.verified + moved.renamed;
        self.total.set((files, moved.bytes));
        self.done.set((files, moved.bytes));
        self.bar.set_length(moved.bytes);
        self.bar.set_position(moved.bytes);
    }

    /// Says lines on standard error from other tasks.
    pub fn teller(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let bar = self.bar.clone();
        move |line| {
            bar.suspend(|| writeln!(std::io::stderr(), "realize: {line}").ok());
        }
    }

    /// Takes in what happened.
    pub fn show(&self, event: Event<'_>) {
        match event {
            Event::Found { bytes } => {
                let (files, total_bytes) = self.total.get();
                self.total.set((files + 1, total_bytes.saturating_add(bytes)));
                self.bar.inc_length(bytes);
            }
            Event::Checking(_) => self.bar.set_message("checking"),
            Event::Advanced { bytes } => {
                let (files, done_bytes) = self.done.get();
                self.done.set((files, done_bytes.saturating_add(bytes)));
                self.bar.inc(bytes);
            }
            Event::Moved { path, how } => {
                let (files, bytes) = self.done.get();
                self.done.set((files + 1, bytes));
                self.bar.set_prefix(count(files + 1, "file"));
                self.bar.set_message(if self.copy { "copying" } else { "moving" });
                if self.names {
                    let how = match how {
                        How::Copied => "",
                        How::Replaced => " (replaced what was there)",
                        How::Verified => " (was there)",
                        How::Renamed => " (renamed)",
                    };
                    self.print(&format!("{path}{how}"));
                }
            }
            Event::WouldMove {
                path,
                bytes,
                compare,
                replace,
            } => {
                let what = match (compare, replace) {
                    (true, _) => "compare, then move",
                    (false, true) => "move, replacing what is there",
                    (false, false) => "move",
                };
                self.print(&format!("would {what}: {path} ({})", BinaryBytes(bytes)));
            }
            Event::Stays(failure) => {
                let way_out = way_out(&failure.why)
                    .map(|way_out| format!(" ({way_out})"))
                    .unwrap_or_default();
                self.say(&format!("{failure}{way_out}"));
            }
            Event::Loses { path, loss } => {
                self.say(&format!("note: {loss} are not carried over; first of {path}"));
            }
            Event::NoLeases { path } => {
                self.say(&format!(
                    "note: no lease can be had on {path} (not its owner, or a file system without): files changed within \
                     the last seconds stay"
                ));
            }
        }
        self.plain_progress();
    }

    /// Ends the display with a summary.
    pub fn finish(&self, report: &MoveReport) {
        self.bar.finish_and_clear();
        match &report.stopped {
            None => {}
            Some(Stop::File(why)) => {
                let way_out = way_out(why).map(|way_out| format!("; {way_out}")).unwrap_or_default();
                self.say(&format!("stopped: {why}{way_out}; run the same command again to go on"));
            }
            Some(Stop::Move(error)) => self.say(&format!("stopped: {error}")),
            Some(Stop::TimeOver) => self.say("stopped: the time is over; run the same command again to go on"),
        }
        for (loss, items) in &report.losses {
            self.say(&format!("not carried over: {loss}, of {}", count(*items, "item")));
        }
        self.print(&summary(report, self.copy));
        // Standard output gone is no reason to call the move failed.
        self.output.borrow_mut().flush().ok();
    }

    /// How many files were moved so far.
    pub fn files(&self) -> u64 {
        self.done.get().0
    }

    /// Ends the display before the move has ended, for this reason.
    pub fn cut_short(&self, why: &str) {
        self.bar.finish_and_clear();
        self.output.borrow_mut().flush().ok();
        let verb = if self.copy { "copied" } else { "moved" };
        let files = count(self.files(), "file");
        self.say(&format!(
            "{why}; {verb} {files} so far; run the same command again to go on"
        ));
    }

    /// A line on standard error.
    pub fn say(&self, line: &str) {
        // Nobody to tell is no reason to stop.
        self.bar.suspend(|| writeln!(std::io::stderr(), "realize: {line}").ok());
    }

    fn print(&self, line: &str) {
        // What is buffered would come in the midst of the bar. (Asked first: while suspended the bar is locked.)
        let has_bar = !self.bar.is_hidden();
        let write = || {
            let mut output = self.output.borrow_mut();
            writeln!(output, "{line}").ok();
            if has_bar {
                output.flush().ok();
            }
        };
        self.bar.suspend(write);
    }

    fn plain_progress(&self) {
        let Some(last) = &self.plain else { return };
        let now = self.clock.now();
        if now.saturating_sub(last.get()) >= PLAIN_EVERY {
            last.set(now);
            let ((found, total), (files, bytes)) = (self.total.get(), self.done.get());
            let (bytes, total) = (BinaryBytes(bytes), BinaryBytes(total));
            self.say(&format!("{files} of {found} files found so far, {bytes} of {total}"));
        }
    }
}

fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", HumanCount(number))
}

fn summary(report: &MoveReport, copy: bool) -> String {
    let files = report.copied + report.verified + report.renamed;
    if report.would_move > 0 || (files == 0 && report.is_complete() && report.dirs_removed == 0) {
        return if report.would_move > 0 {
            format!("would move {}; nothing was written", count(report.would_move, "file"))
        } else {
            "nothing to move".to_owned()
        };
    }
    let verb = if copy { "copied" } else { "moved" };
    let mut text = format!("{verb} {}, {}", count(files, "file"), BinaryBytes(report.bytes));
    // The rest was there. (More than all of it is sent where a file is begun again.)
    if report.copied > 0 && report.bytes_sent < report.bytes {
        text += &format!(", {} of it sent", BinaryBytes(report.bytes_sent));
    }
    let ways = [
        (report.copied, "copied"),
        (report.verified, "verified in place"),
        (report.renamed, "renamed"),
    ];
    let ways: Vec<_> = ways
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, way)| format!("{} {way}", HumanCount(*n)))
        .collect();
    if !ways.is_empty() {
        text += &format!(" ({})", ways.join(", "));
    }
    if report.replaced > 0 {
        text += &format!("; {} at the target replaced", count(report.replaced, "file"));
    }
    if report.dirs_removed > 0 {
        let dirs = if report.dirs_removed == 1 {
            "directory"
        } else {
            "directories"
        };
        text += &format!("; {} {dirs} removed", HumanCount(report.dirs_removed));
    }
    if report.excluded > 0 {
        text += &format!("; {} excluded", HumanCount(report.excluded));
    }
    if report.orphans_removed > 0 {
        text += &format!(
            "; {} of earlier runs removed",
            count(report.orphans_removed, "abandoned partial")
        );
    }
    if report.stays > 0 {
        text += &format!("; {} left behind", HumanCount(report.stays));
    }
    text
}

/// What can be done about it.
pub fn way_out(why: &Why) -> Option<&'static str> {
    use rustix::io::Errno;
    let (error, at_source) = match why {
        Why::Reason(_) | Why::TimeOver => return None,
        Why::Source(error) => (error, true),
        Why::Target(error) => (error, false),
    };
    match error {
        ServiceError::Changed if at_source => Some("it was written to meanwhile; run again once it is at rest"),
        ServiceError::Changed => Some("something else is at the target by now; look at it, then run again"),
        ServiceError::DigestMismatch => {
            Some("the bytes were damaged on their way or on the disk; run again, and test memory and disk")
        }
        ServiceError::NotEmpty => Some("something came into it meanwhile; run again"),
        ServiceError::NotFound if at_source => Some("it went away meanwhile"),
        ServiceError::NotFound => Some("its directory went away; is a disk not mounted?"),
        ServiceError::Io { doing, errno } if !at_source && doing.starts_with("sync") => {
            match Errno::from_raw_os_error(*errno) {
                Errno::NOSPC | Errno::DQUOT => {
                    Some("free some space at the target, and restart realized if that is on another host")
                }
                _ => Some(
                    "what was written may not be on the disk: look at the kernel's log, check the disk, and restart realized if that is on \
                     another host",
                ),
            }
        }
        ServiceError::Denied(_) => Some(
            "add it to the rights of this host in the configuration of realized there, and have it read that anew (SIGHUP)",
        ),
        _ => {
            let errno = Errno::from_raw_os_error(error.errno()?);
            let at = |here: &'static str, there: &'static str| Some(if at_source { here } else { there });
            match errno {
                Errno::ACCESS | Errno::PERM => at(
                    "run as its owner or as root, or make it readable and its directory writable with chmod",
                    "make the directory writable for the user that runs realize, by chmod or chown",
                ),
                Errno::NOSPC | Errno::DQUOT => {
                    Some("free some space at the target; what has arrived of a large file waits there for the next run")
                }
                Errno::ROFS => Some("remount it for writing"),
                Errno::IO => Some("the disk failed; look at the kernel's log"),
                Errno::NAMETOOLONG => Some("the target's file system takes only shorter names; rename it"),
                Errno::LOOP | Errno::NOTDIR => Some("a symbolic link or file is where a directory should be"),
                Errno::MFILE | Errno::NFILE => Some("raise the limit of open files: ulimit -n"),
                _ => None,
            }
        }
    }
}
