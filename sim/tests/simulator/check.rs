//! That the checker sees what it should, where no mover does it.

use std::{path::Path, sync::Arc};

use realize::{
    fs::{Dir, Fs},
    model::{Name, RelPath},
};
use realize_sim::{
    check::{Checker, Property},
    fs::{Call, Moment, Op},
    world::{Body, Large, World, process},
};

/// What the target had is excused from being whole after a crash. What gets its number later is not.
#[test]
fn another_file_with_the_number_of_the_old_one_is_not_excused() {
    let body = |text: &str| Body::File(text.as_bytes().into());
    let files = vec![("a", body("the new one"), Some(body("the old one")))];
    let (world, checker) = (World::of(1, false, files), Arc::new(Checker::default()));
    let (target, at) = (&world.target, RelPath::new("target/a").unwrap());
    let call = Call {
        index: 0,
        device: target.device(),
        op: Op::Create,
        path: Some(at.clone()),
        to: None,
    };
    let number = || target.node(&at).unwrap().ino;
    let old = number();
    checker.check(&world, Moment::After, &call);
    assert_eq!(checker.violations(), vec![]);
    target.remove(at.as_bytes()).unwrap();
    target.settle();
    target.create(at.as_bytes(), b"the new one").unwrap();
    assert_eq!(number(), old);
    checker.check(&world, Moment::After, &call);
    let properties: Vec<_> = checker.violations().iter().map(|found| found.property).collect();
    assert_eq!(properties, vec![Property::WholeFinals], "its content is not synced");
}

#[test]
fn a_change_outside_of_the_roots_is_seen() {
    for (root, is_outside) in [("/target", false), ("/", true)] {
        let (world, checker) = (World::small(1, false, Large::OneChunk), Arc::new(Checker::default()));
        world.watch(&checker);
        process(async {
            let dir = world.target.fs().open_root(Path::new(root)).await.unwrap();
            dir.create(&Name::new("new").unwrap()).await.unwrap();
        });
        let properties: Vec<_> = checker.violations().iter().map(|found| found.property).collect();
        let expected = if is_outside {
            vec![Property::NothingElse]
        } else {
            vec![]
        };
        assert_eq!(properties, expected, "a file in {root}");
    }
}
