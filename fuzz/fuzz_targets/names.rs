//! Bytes that a peer or a disk may hold as names: whatever is taken stays below its root, and no name of a user is mistaken
//! for one of realize's own that stands for another.
#![no_main]

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use libfuzzer_sys::fuzz_target;
use realize::{
    location::Location,
    model::{Escaped, Name, RelPath},
    store::names::{self, NameKind},
};

fuzz_target!(|data: &[u8]| {
    if let Ok(path) = RelPath::new(data) {
        assert!(path.names().all(|name| !matches!(name.as_bytes(), b"" | b"." | b"..")));
        let joined = path.names().try_fold(RelPath::root(), |path, name| path.join(&name));
        assert_eq!(joined, Ok(path));
    }
    if let Ok(name) = Name::new(data) {
        assert_eq!(names::classify(&names::partial(&name)), NameKind::Partial);
        if let Some(gone) = names::gone(&name) {
            assert_eq!(names::classify(&gone), NameKind::Gone(name));
        }
    }
    assert!(Escaped(data).to_string().chars().all(|c| !c.is_control()));
    let _parsed_or_refused = Location::parse(OsStr::from_bytes(data));
});
