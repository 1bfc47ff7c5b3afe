//! `kill -9` at any moment loses nothing, tears nothing, and the same command goes on from there.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::*;
use rustix::process::Signal;

/// What the moments of the kills are drawn from; a failure names it.
const SEED: u64 = 20_260_801;

/// A file that was at the target before, where the source has a newer one.
const OLD: &str = "the older content, which is to be replaced";

/// A move that is killed again and again.
struct Killed<'a> {
    source: &'a Path,
    target: &'a Path,
    /// What the source held.
    truth: Manifest,
    /// What the target held.
    before: Manifest,
}

impl<'a> Killed<'a> {
    /// A tree to move from `source` to `target`, which are empty.
    fn new(source: &'a Path, target: &'a Path, small_files: usize) -> Self {
        make_source(source, small_files);
        make_target(source, target);
        let (truth, before) = (Manifest::of(source), Manifest::of(target));
        Self {
            source,
            target,
            truth,
            before,
        }
    }

    /// Moves the source and kills the program on the way, `kills` times if the tree lasts so long. How often it was.
    #[track_caller]
    fn run(&self, random: &mut u64, kills: u32) -> u32 {
        let files = count_files(self.source) as f64;
        let mut limit = Duration::from_millis(20);
        for number in 1..=kills {
            let running = realize().arg(self.source).arg(self.target).start();
            let moment = limit.mul_f64(next(random));
            let begin = Instant::now();
            while begin.elapsed() < moment && running.is_running() {
                std::thread::yield_now();
            }
            running.signal(Signal::KILL);
            let outcome = running.wait();
            self.assert_nothing_lost_or_torn(number);
            if outcome.status.code().is_some() {
                outcome.expect_code(0);
                self.assert_arrived();
                return number - 1;
            }
            // Kills are spread over the whole move, whatever the speed of this machine.
            let done = 1.0 - count_files(self.source) as f64 / files;
            let is_ahead = done > f64::from(number) / f64::from(kills + 1);
            limit = limit.mul_f64(if is_ahead { 0.6 } else { 1.3 });
        }
        realize().arg(self.source).arg(self.target).run().expect_code(0);
        self.assert_arrived();
        kills
    }

    fn assert_nothing_lost_or_torn(&self, kills: u32) {
        let what = format!("seed {SEED}, kill {kills}");
        let source = files(Manifest::of(self.source).without_reserved());
        let target = files(Manifest::of(self.target).without_reserved());
        for (path, entry) in self.truth.entries().iter().filter(|(_, entry)| entry.kind != Kind::Dir) {
            let shown = String::from_utf8_lossy(path);
            let (here, there) = (source.get(path), target.get(path));
            assert!(
                here.is_none_or(|here| here == entry),
                "{what}: source changed: {shown}: {here:?}"
            );
            let is_whole = there == Some(entry);
            let was_there = there.is_some() && there == self.before.get(path);
            assert!(
                there.is_none() || is_whole || was_there,
                "{what}: torn: {shown}: {there:?}"
            );
            assert!(here.is_some() || is_whole, "{what}: lost: {shown}");
        }
        for (manifest, known) in [(&source, None), (&target, Some(&self.before))] {
            let is_known = |path| self.truth.get(path).or_else(|| known?.get(path)).is_some();
            for path in manifest.entries().keys() {
                assert!(is_known(path), "{what}: nobody made {}", String::from_utf8_lossy(path));
            }
        }
    }

    /// That everything came, what else was there is as before, and nothing of ours is left.
    #[track_caller]
    fn assert_arrived(&self) {
        let is_sent = |path: &[u8]| self.truth.get(path).is_some();
        let target = files(Manifest::of(self.target));
        files(self.truth.clone()).assert_same(&target.clone().retain(|path, _| is_sent(path)), "sent and arrived");
        files(self.before.clone())
            .retain(|path, _| !is_sent(path))
            .assert_same(&target.retain(|path, _| !is_sent(path)), "what else was there");
        let source = Manifest::of(self.source);
        assert!(source.is_empty(), "left at the source: {source:?}");
    }
}

/// A number from 0 to 1.
fn next(random: &mut u64) -> f64 {
    // Xorshift: any full-period generator will do.
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 11) as f64 / (1u64 << 53) as f64
}

fn files(manifest: Manifest) -> Manifest {
    manifest.retain(|_, entry| entry.kind != Kind::Dir)
}

/// Files and links below `dir`, whatever their names.
fn count_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => count_files(&entry.path()),
            false => 1,
        })
        .sum()
}

/// Small, large and odd files.
fn make_source(dir: &Path, small_files: usize) {
    let new = |name: &str| {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    plain_tree(&new("a small"), small_files, 20_000, SEED);
    plain_tree(&new("b large"), 4, 6 << 20, SEED + 1);
    odd_names(&new("c names"));
    odd_links(&new("d links"));
    odd_times(&new("e times"));
    plain_tree(&new("f large"), 3, 5 << 20, SEED + 2);
    let replaced = new("g replaced");
    fs::write(replaced.join("small"), "new").unwrap();
    fs::write(replaced.join("large"), vec![7; 3 << 20]).unwrap();
    fs::write(replaced.join("equal"), vec![8; 2 << 20]).unwrap();
    symlink("new", replaced.join("link")).unwrap();
    plain_tree(&new("h small"), small_files / 2, 100_000, SEED + 3);
}

/// What is to be replaced, what is equal, and what is none of our business.
fn make_target(source: &Path, dir: &Path) {
    let replaced = dir.join("g replaced");
    fs::create_dir(&replaced).unwrap();
    for name in ["small", "large"] {
        fs::write(replaced.join(name), OLD).unwrap();
    }
    symlink("old", replaced.join("link")).unwrap();
    let equal = "g replaced/equal";
    Run::program("cp")
        .arg("-a")
        .args([source.join(equal), dir.join(equal)])
        .run()
        .expect_code(0);
    fs::write(dir.join("bystander"), "stays as it is").unwrap();
}

/// Moves trees from below `from` to below `to` until a move was killed `kills_min` times.
#[track_caller]
fn kill_often(from: &Scratch, to: &Scratch, small_files: usize, kills_min: u32) {
    let mut random = SEED;
    let mut kills = 0;
    for round in 0..kills_min {
        let (source, target) = (from.dir(&format!("source {round}")), to.dir(&format!("target {round}")));
        kills += Killed::new(&source, &target, small_files).run(&mut random, kills_min - kills);
        if kills == kills_min {
            return;
        }
    }
    panic!("seed {SEED}: killed {kills} times only: the moves are too short");
}

#[test]
fn killed_again_and_again_between_two_file_systems_nothing_is_lost_or_torn() {
    kill_often(&Scratch::on_disk(), &Scratch::in_memory(), 600, blows(25) as u32);
}

#[test]
fn killed_again_and_again_on_its_way_to_a_disk_nothing_is_lost_or_torn() {
    kill_often(&Scratch::in_memory(), &Scratch::on_disk(), 300, blows(25) as u32);
}

#[test]
fn killed_again_and_again_within_a_file_system_nothing_is_lost_or_torn() {
    let disk = Scratch::on_disk();
    kill_often(&disk, &disk, 900, blows(12) as u32);
}
