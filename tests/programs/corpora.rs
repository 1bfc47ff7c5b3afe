//! The corpora of the fuzz targets, replayed without the fuzzer.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::{fs, path::Path};

#[test]
fn the_corpora_of_the_fuzz_targets_show_nothing() {
    for (name, target) in targets::ALL {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let inputs = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut count = 0;
        for input in inputs {
            target(&fs::read(input.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 20, "{name}: {count} inputs");
    }
}
