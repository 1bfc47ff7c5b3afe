//! What is said to hold after every crash, against the states that a crash leaves.

use std::{collections::BTreeSet, path::Path};

use proptest::prelude::*;
use realize::{
    fs::{Dir, File, Fs, Rename, write_all},
    model::{Name, RelPath},
};
use realize_sim::{
    fs::{Content, Disk, Ino, Machine, Nodes, Profile, SimDir},
    random::Random,
    world::process,
};

/// More states than the sequences here can have, as a rule; where it is reached only half is checked.
const STATES_MAX: usize = 20_000;
const PATHS: [&str; 4] = ["a", "b", "d/a", "d/b"];

#[derive(Debug, Clone)]
enum Call {
    /// Makes a new file with a content of its own.
    Create(usize),
    /// Overwrites its first bytes, or appends.
    Write(usize, bool),
    SyncFile(usize),
    Unlink(usize),
    Link(usize, usize),
    Rename(usize, usize, Rename),
    SyncRoot,
    SyncDir,
    /// Renames `d` away and back.
    MoveDir,
    SyncAll,
}

fn call() -> impl Strategy<Value = Call> {
    let path = || 0..PATHS.len();
    let how = prop::sample::select(vec![Rename::Replace, Rename::NoReplace, Rename::Exchange]);
    prop_oneof![
        4 => path().prop_map(Call::Create),
        3 => (path(), any::<bool>()).prop_map(|(path, append)| Call::Write(path, append)),
        4 => path().prop_map(Call::SyncFile),
        2 => path().prop_map(Call::Unlink),
        2 => (path(), path()).prop_map(|(path, to)| Call::Link(path, to)),
        5 => (path(), path(), how).prop_map(|(path, to, how)| Call::Rename(path, to, how)),
        1 => Just(Call::SyncRoot),
        1 => Just(Call::SyncDir),
        1 => Just(Call::MoveDir),
        1 => Just(Call::SyncAll),
    ]
}

fn n(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn p(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

struct World {
    root: SimDir,
    dir: SimDir,
    written: u8,
}

impl World {
    async fn new(disk: &Disk, durable_dir: bool) -> Self {
        let root = disk.fs().open_root(Path::new("/")).await.unwrap();
        disk.mkdir_all("d").unwrap();
        if durable_dir {
            disk.settle();
        }
        let dir = root.open_dir(&p("d")).await.unwrap();
        Self { root, dir, written: 0 }
    }

    fn at(&self, path: usize) -> (&SimDir, Name) {
        match PATHS[path].strip_prefix("d/") {
            Some(name) => (&self.dir, n(name)),
            None => (&self.root, n(PATHS[path])),
        }
    }

    /// Calls that make no sense just now fail, which is as good as any.
    async fn call(&mut self, call: &Call) -> std::io::Result<()> {
        self.written += 1;
        let data = [self.written; 700];
        match call {
            Call::Create(path) => {
                let (dir, name) = self.at(*path);
                write_all(&dir.create(&name).await?, 0, &data).await
            }
            Call::Write(path, append) => {
                let (dir, name) = self.at(*path);
                let file = dir.open_write(&name).await?;
                let offset = if *append {
                    file.metadata().await?.version.size
                } else {
                    0
                };
                write_all(&file, offset, &data).await
            }
            Call::SyncFile(path) => {
                let (dir, name) = self.at(*path);
                dir.open(&name).await?.sync().await
            }
            Call::Unlink(path) => {
                let (dir, name) = self.at(*path);
                dir.unlink(&name).await
            }
            Call::Link(path, to) => {
                let ((dir, name), (to_dir, to)) = (self.at(*path), self.at(*to));
                dir.link(&name, to_dir, &to).await
            }
            Call::Rename(path, to, how) => {
                let ((dir, name), (to_dir, to)) = (self.at(*path), self.at(*to));
                dir.rename(&name, to_dir, &to, *how).await
            }
            Call::SyncRoot => self.root.sync().await,
            Call::SyncDir => self.dir.sync().await,
            Call::MoveDir => {
                self.root
                    .rename(&n("d"), &self.root, &n("e"), Rename::NoReplace)
                    .await?;
                self.root.rename(&n("e"), &self.root, &n("d"), Rename::NoReplace).await
            }
            Call::SyncAll => self.root.sync_fs().await,
        }
    }
}

fn holds(nodes: &Nodes, path: &RelPath, content: &Content) -> bool {
    nodes.get(path).is_some_and(|node| node.content == *content)
}

/// Checks what is said of the disk against its states.
fn check(disk: &Disk) -> Result<(), TestCaseError> {
    let mut states: Vec<Nodes> = Vec::new();
    let listed = disk.crash_states(Profile::PosixWorst, STATES_MAX);
    let complete = listed.len() < STATES_MAX;
    states.extend(listed.iter().map(|image| image.nodes()));
    let mut random = Random::new(1);
    for profile in Profile::ALL {
        states.extend((0..20).map(|_| disk.crash_state(profile, &mut random).nodes()));
        states.extend(disk.crash_states(profile, 200).iter().map(|image| image.nodes()));
    }
    let paths = PATHS.map(p);
    // What is there now, and what was there before.
    let somewhere = disk.nodes().into_values().chain(states[0].values().cloned());
    let files = somewhere.map(|node| node.content).filter(|content| content.size() > 0);
    let contents: BTreeSet<_> = files.map(|content| content.to_vec()).collect();
    for content in contents.iter().map(|bytes| Content::from(&bytes[..])) {
        for path in &paths {
            let said = disk.always_holds(path, &content);
            let is = states.iter().all(|nodes| holds(nodes, path, &content));
            prop_assert!(is || !said, "{path} does not always hold {content:?}");
            prop_assert!(said || !is || !complete, "{path} always holds {content:?}");
        }
        for mask in 1..1usize << paths.len() {
            let some: Vec<_> = (0..paths.len())
                .filter(|at| mask >> at & 1 == 1)
                .map(|at| paths[at].clone())
                .collect();
            let said = disk.survives(&some, &content);
            let is = states
                .iter()
                .all(|nodes| some.iter().any(|path| holds(nodes, path, &content)));
            prop_assert!(is || !said, "{some:?} may lose {content:?}");
            let certain = complete && some.iter().all(|path| disk.ancestors_guaranteed(path));
            prop_assert!(said || !is || !certain, "{some:?} never lose {content:?}");
        }
    }
    for path in &paths {
        let seen: BTreeSet<Option<Ino>> = states.iter().map(|nodes| Some(nodes.get(path)?.ino)).collect();
        if let Some(said) = disk.possible_values(path) {
            prop_assert!(
                seen.is_subset(&said) && (!complete || seen == said),
                "{path}: {said:?}, seen {seen:?}"
            );
        } else {
            prop_assert!(seen.contains(&None) || !complete, "{path} is always reached");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_of_every_crash_is_true_of_each_and_no_more_careful_than_it_must_be(
        calls in prop::collection::vec(call(), 1..12),
        durable_dir in prop::bool::weighted(0.8),
    ) {
        process(async {
            let disk = Machine::new(1).disk(1);
            let mut world = World::new(&disk, durable_dir).await;
            for call in &calls {
                let _: Option<()> = world.call(call).await.ok();
            }
            check(&disk)
        })?;
    }

    #[test]
    fn nothing_is_in_doubt_after_a_crash(
        calls in prop::collection::vec(call(), 1..20),
        seed in any::<u64>(),
        profile in prop::sample::select(Profile::ALL.to_vec()),
    ) {
        process(async {
            let machine = Machine::new(seed);
            let disk = machine.disk(1);
            let mut world = World::new(&disk, true).await;
            for call in &calls {
                let _: Option<()> = world.call(call).await.ok();
            }
            machine.crash(profile, &mut Random::new(seed));
            let nodes = disk.nodes();
            prop_assert_eq!(disk.crash_states(Profile::PosixWorst, 10).len(), 1);
            for (path, node) in nodes.iter().filter(|(_, node)| node.kind == realize::model::Kind::File) {
                prop_assert!(disk.always_holds(path, &node.content), "{}", path);
            }
            // The disk works on as before; what is written now is new again.
            let mut world = World::new(&disk, false).await;
            world.written = 100;
            for call in &calls {
                let _: Option<()> = world.call(call).await.ok();
            }
            check(&disk)
        })?;
    }
}
