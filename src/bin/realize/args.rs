//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use realize::{
    deadline::{MaxDuration, RetryFor, StopAt},
    filter::Rule,
    service::Verify,
    throttle::Rate,
};

/// Moves files and directories, and never loses one.
///
/// What is in the directory SRC goes to the same paths in the directory DST. A file leaves the source only after the
/// target holds the same bytes under the final name, verified and on the disk. Whatever stops a move, the
/// same command goes on from there.
///
/// SRC and DST are local paths, or HOST::DIR[/SUB] for a directory that realized serves on another host (HOST:PORT::DIR, [ADDRESS]:PORT::DIR,
/// realize://HOST:PORT/DIR/SUB).
#[derive(Debug, Parser)]
#[command(name = "realize", version, max_term_width = 100, after_long_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Directories whose contents are moved, or single files
    #[arg(value_name = "SRC", required = true, num_args = 1..)]
    pub sources: Vec<OsString>,

    /// Where they go: a directory, made if only its last component is missing; for one file also its new name
    #[arg(value_name = "DST", required = true)]
    pub target: Option<OsString>,

    /// Say what would be moved; write nothing anywhere. Opens no file, so what shows only then (no right to read it, in use, too
    /// large for the target's disk) is not foreseen
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Copy and verify; delete nothing at the source
    #[arg(long)]
    pub copy: bool,

    /// Leave emptied directories at the source
    #[arg(long)]
    pub keep_dirs: bool,

    /// Leave alone what matches, in the manner of gitignore (a path that begins with / is one from SRC on); the last --exclude or --include that matches decides
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,

    /// Take what matches; without any --exclude nothing else is taken
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,

    /// Leave files of which a copy would lose something: hard links, extended attributes, ACLs, set-ID bits, owner
    #[arg(long)]
    pub strict: bool,

    /// Which bytes the target holds against the source's digest before a source goes. (What is renamed on one file system is not read.)
    #[arg(long, value_name = "BYTES", default_value = "written")]
    pub verify: Bytes,

    /// Move even where the target's file system cannot make names durable (some network file systems): a power cut just
    /// after the move may then lose files
    #[arg(long)]
    pub accept_unsynced: bool,

    /// Send and receive at most so many bytes per second: 800k, 1M, 1.5G (powers of 1024)
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    pub throttle: Option<Rate>,

    /// Send at most so many
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    pub throttle_up: Option<Rate>,

    /// Receive at most so many
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    pub throttle_down: Option<Rate>,

    /// End after this time, counted from the start of the program: 1h30m, of d, h, m and s, or seconds. What has not been moved is gone on
    /// with by the next run
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub max_duration: Option<MaxDuration>,

    /// End at this time of day on this host, the next time it is so late: 06:30
    #[arg(long, value_name = "HH:MM", allow_hyphen_values = true)]
    pub stop_at: Option<StopAt>,

    /// Try for so long to reach a host again whose connection was lost, which shows after 60 s where nothing is said (0: not at all); in
    /// between the waits grow from 1 s to 5 min
    #[arg(long, value_name = "TIME", default_value = "30m", allow_hyphen_values = true)]
    pub retry_for: RetryFor,

    /// Try for so long to reach a host that can't be reached at the start [default: once]
    #[arg(
        long,
        value_name = "TIME",
        default_value = "0",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub connect_for: RetryFor,

    /// Name each file on standard output as it is moved
    #[arg(short, long)]
    pub verbose: bool,

    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub known: Known,
}

/// What is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bytes {
    /// As they are written
    Written,
    /// As they are read back from the disk once they are synced: shows what it has done to them, and takes the time of reading all
    Disk,
}

impl From<Bytes> for Verify {
    fn from(bytes: Bytes) -> Self {
        match bytes {
            Bytes::Written => Self::Written,
            Bytes::Disk => Self::Disk,
        }
    }
}

/// Who this host is, and whom it knows.
#[derive(Debug, clap::Args)]
pub struct Known {
    /// This host's secret key; by default "key" in ~/.config/realize or /etc/realize
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// The keys of other hosts; by default "hosts.toml" in ~/.config/realize or /etc/realize
    #[arg(long, value_name = "FILE")]
    pub hosts: Option<PathBuf>,
}

/// What else there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the key of this host, or take the one that is there, and print the lines to paste on others. (For a directory of this name write ./keygen.)
    Keygen {
        /// The file to make; by default "key" in ~/.config/realize
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Try to reach a host, and say what is in the way and what to do about it
    Check {
        /// HOST, or HOST::DIR for a directory on it
        #[arg(value_name = "HOST[::DIR]")]
        host: OsString,

        #[command(flatten)]
        known: Known,
    },
}

const AFTER_HELP: &str = "\
Examples:
  realize /srv/downloads /mnt/archive        empty one directory into another
  realize -n /srv/downloads /mnt/archive     only say what would be moved
  realize film.mkv series/ /mnt/archive/     a file and what is in a directory, into a directory
  realize --exclude '*.tmp' build/ /backup   leave temporary files where they are
  realize /srv/downloads nas::archive        empty it into the directory that realized on nas calls archive
  realize keygen                             make this host's key; realize check nas::archive tells what is missing

Exit status:
   0  everything was moved; nothing was left behind but by option
   1  something was left behind: each is named, with the reason
   2  the command line can't be carried out: nothing was touched
  11  the time was over (--max-duration, --stop-at): run the same command again to go on
  12  this host or the other could not prove who it is
  13  another run is moving the same source
 130  ended by Ctrl-C: run the same command again to go on; 143 by SIGTERM, 129 by SIGHUP";

impl Args {
    /// What is sent at most. One way's own limit counts, whatever is said of both.
    pub fn up(&self) -> Option<Rate> {
        self.throttle_up.or(self.throttle)
    }

    /// What is received at most.
    pub fn down(&self) -> Option<Rate> {
        self.throttle_down.or(self.throttle)
    }

    /// Reads the command line; ends the program on --help and on errors.
    pub fn read() -> (Self, Vec<Rule>) {
        let matches = Self::command().get_matches();
        match Self::from_arg_matches(&matches) {
            Ok(args) => {
                let rules = rules(&args, &matches);
                (args, rules)
            }
            Err(error) => error.exit(),
        }
    }
}

/// The patterns in the order in which they were given.
fn rules(args: &Args, matches: &ArgMatches) -> Vec<Rule> {
    let placed = |id: &str| matches.indices_of(id).into_iter().flatten().collect::<Vec<_>>();
    let excludes = args.exclude.iter().cloned().map(Rule::Exclude);
    let includes = args.include.iter().cloned().map(Rule::Include);
    let mut rules: Vec<_> = placed("exclude")
        .into_iter()
        .zip(excludes)
        .chain(placed("include").into_iter().zip(includes))
        .collect();
    rules.sort_by_key(|(index, _)| *index);
    rules.into_iter().map(|(_, rule)| rule).collect()
}
