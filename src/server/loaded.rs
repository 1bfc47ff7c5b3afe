//! What a session knows of the basis of a file that it reads.

use std::sync::{Arc, OnceLock};

use crate::{
    delta::{FINE_BLOCK_BYTES, Indexed, Malformed, Signature},
    digest::CHUNK_BYTES,
    service::{Answer, Handle, SIGNATURE_CHUNKS_MAX, ServiceError, Sums},
};

/// The signature of the basis of one file. Cheap to clone.
#[derive(Clone)]
pub(super) struct Loaded {
    /// The file.
    pub handle: Handle,
    signature: Arc<Signature>,
    /// Made by who first looks something up.
    index: Arc<OnceLock<Result<Indexed, Malformed>>>,
}

impl Loaded {
    /// Adds the next sums to what is known of the basis of `handle`; those that begin at 0 begin anew.
    pub fn add(loaded: &mut Option<Self>, handle: Handle, sums: &Sums) -> Answer<()> {
        let before = loaded.take().filter(|before| sums.start > 0 && before.handle == handle);
        let mut signature = match before {
            None => Arc::new(Signature::new(0, sums.block_bytes, sums.stride)?),
            Some(before) => before.signature,
        };
        let next = (signature.end(), signature.block_bytes(), signature.stride());
        if (sums.start, sums.block_bytes, sums.stride) != next {
            return Err(ServiceError::BadRequest("sums of other blocks than the next".into()));
        }
        Arc::make_mut(&mut signature).add(sums.bytes, &sums.sums)?;
        *loaded = Some(Self {
            handle,
            signature,
            index: Arc::default(),
        });
        Ok(())
    }

    /// To be looked up in. The first call takes its time.
    pub fn index(&self) -> Answer<&Indexed> {
        let index = self.index.get_or_init(|| Signature::clone(&self.signature).index());
        index.as_ref().map_err(|error| (*error).into())
    }
}

/// As [`index_of`], of blocks that are no larger than fine ones.
pub(super) fn finer_index_of(sums: &Sums) -> Answer<Indexed> {
    // Each stretch that was not found is looked through anew, with fast_rsync's own bound for each.
    if sums.block_bytes > FINE_BLOCK_BYTES || sums.stride > 1 {
        return Err(ServiceError::BadRequest("sums that are none of finer blocks".into()));
    }
    index_of(sums)
}

/// What `sums` alone tell, which may be those of one call.
pub(super) fn index_of(sums: &Sums) -> Answer<Indexed> {
    if sums.bytes > SIGNATURE_CHUNKS_MAX * CHUNK_BYTES {
        return Err(ServiceError::BadRequest("sums of too much for one call".into()));
    }
    let mut signature = Signature::new(sums.start, sums.block_bytes, sums.stride)?;
    signature.add(sums.bytes, &sums.sums)?;
    Ok(signature.index()?)
}
