//! Signatures and deltas that a peer may send: refused or taken, and what is taken gives what fast_rsync gives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use realize::delta::{self, BLOCK_BYTES, Op, SUM_BYTES, Signature};

const BLOCK: u32 = *BLOCK_BYTES.start();

fn applied(basis: &[u8], ops: &[Op<'_>]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for op in ops {
        match op {
            Op::Literal(data) => out.extend_from_slice(data),
            Op::Copy { offset, len } => {
                let start = usize::try_from(*offset).ok()?;
                out.extend_from_slice(basis.get(start..start.checked_add(*len)?)?);
            }
        }
    }
    Some(out)
}

fuzz_target!(|data: &[u8]| {
    let Some((&[kind, at], rest)) = data.split_first_chunk() else {
        return;
    };
    let (basis, other) = rest.split_at(usize::from(at) * 8 % (rest.len() + 1));
    match kind % 3 {
        // A hostile delta, against what fast_rsync makes of it.
        0 => {
            let mut theirs = Vec::new();
            let is_taken = fast_rsync::apply_limited(basis, other, &mut theirs, 1 << 20).is_ok();
            if let Ok(ops) = delta::ops(other, theirs.len()) {
                assert_eq!(applied(basis, &ops), is_taken.then_some(theirs));
            }
            let _refused_or_taken = delta::decompress(other);
        }
        // Hostile sums.
        1 => {
            let blocks = basis.len() / SUM_BYTES;
            let mut signature = Signature::new(u64::from(at) << 55, BLOCK).ok();
            if let Some(mut signature) = signature.take()
                && signature.add(blocks as u64 * u64::from(BLOCK), basis).is_ok()
            {
                let delta = signature.index().unwrap().diff(other, 0..other.len()).unwrap();
                assert!(delta::ops(&delta.bytes, other.len()).is_ok());
            }
        }
        // There and back.
        _ => {
            let mut signature = Signature::new(0, BLOCK).unwrap();
            signature.add(basis.len() as u64, &Signature::sums(BLOCK, basis)).unwrap();
            let indexed = signature.index().unwrap();
            let new = [other, basis].concat();
            let cut = usize::from(kind) * 16 % (new.len() + 1);
            let pieces = [0..cut, cut..new.len()].map(|piece| {
                let delta = indexed.diff(&new, piece.clone()).unwrap();
                let packed = delta::compress(&delta.bytes).unwrap();
                if let Some(packed) = packed {
                    assert_eq!(delta::decompress(&packed).unwrap(), delta.bytes);
                }
                applied(basis, &delta::ops(&delta.bytes, piece.len()).unwrap()).unwrap()
            });
            assert_eq!(pieces.concat(), new);
        }
    }
});
