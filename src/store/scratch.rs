//! Memory to read a chunk into that is to be looked at and no more.

use std::{
    cell::Cell,
    ops::{Deref, DerefMut},
};

thread_local! {
    /// What the last one of this thread was, still in its caches.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes of whatever content, which a thread uses again.
pub(super) struct Scratch(Vec<u8>);

impl Scratch {
    /// `len` bytes, at most a chunk.
    pub fn new(len: usize) -> Self {
        let mut bytes = SPARE.take();
        bytes.resize(len, 0);
        Self(bytes)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SPARE.set(std::mem::take(&mut self.0));
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
