use std::ops::Range;

use proptest::prelude::*;

use super::*;

/// A small block, so that small data has several.
const BLOCK: u32 = 512;

fn signature_of(basis: &[u8], block_bytes: u32) -> Signature {
    let mut signature = Signature::new(0, block_bytes, 1).unwrap();
    // In pieces, as it comes: all but the last are whole blocks.
    for piece in basis.chunks(4 * block_bytes as usize) {
        let sums = Signature::sums(block_bytes, piece);
        signature.add(piece.len() as u64, &sums).unwrap();
    }
    signature
}

/// What a delta gives, by our own parser.
fn applied(basis: &[u8], delta: &[u8], len: usize) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::new();
    for op in ops(delta, len)? {
        match op {
            Op::Literal(data) => out.extend_from_slice(data),
            Op::Copy { offset, len } => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.checked_add(len).ok_or(Malformed("outside"))?;
                out.extend_from_slice(basis.get(start..end).ok_or(Malformed("outside"))?);
            }
        }
    }
    Ok(out)
}

fn diff(basis: &[u8], new: &[u8]) -> Vec<u8> {
    let signature = signature_of(basis, BLOCK).index().unwrap();
    signature.diff(new, 0..new.len()).unwrap().bytes
}

/// Bytes without repetitions.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

fn literal_bytes(delta: &[u8], len: usize) -> usize {
    let ops = ops(delta, len).unwrap();
    ops.iter()
        .map(|op| if let Op::Literal(data) = op { data.len() } else { 0 })
        .sum()
}

#[test]
fn a_signature_in_pieces_is_that_of_the_whole() {
    let basis = noise(1, 10_000);
    let options = SignatureOptions {
        block_size: BLOCK,
        crypto_hash_size: HASH_BYTES,
    };
    let whole = fast_rsync::Signature::calculate(&basis, options);
    let signature = signature_of(&basis, BLOCK);
    assert_eq!(signature.serialized, whole.serialized());
    assert_eq!((signature.blocks(), signature.block_bytes()), (20, BLOCK));
}

#[test]
fn what_coarse_blocks_miss_is_found_by_finer_ones() {
    let basis = noise(2, 256 * 1024);
    let mut new = basis.clone();
    (0..256).for_each(|nth| new[nth * 1024 + 100] ^= 1);
    let coarse = signature_of(&basis, 4096).index().unwrap();
    let first = coarse.diff(&new, 1000..201_000).unwrap();
    assert_eq!(first.literal_bytes, 200_000);
    let finer = signature_of(&basis, finer_block_bytes(4096)).index().unwrap();
    let refined = finer.refine(&first, &new, 1000..201_000).unwrap();
    assert!(refined.literal_bytes <= 100_512, "{}", refined.literal_bytes);
    // Each stretch between two changes is a copy and a literal: no more than a delta may have.
    assert!(ops(&refined.bytes, 200_000).is_ok());
}

/// The most operations that a chunk comes to: copies as short as can be, with gaps as short as can be between them, which the second pass cuts.
#[test]
fn a_delta_of_two_passes_has_no_more_operations_than_are_taken() {
    let basis = noise(3, 2 * CHUNK_BYTES as usize);
    // The finer blocks are those of the basis from `start` on.
    let delta_of = |basis: &[u8], start: usize, new: &[u8]| {
        let first = signature_of(basis, 1024).index().unwrap();
        let first = first.diff(new, 0..new.len()).unwrap();
        let mut finer = Signature::new(start as u64, BLOCK, 1).unwrap();
        let rest = &basis[start..];
        finer.add(rest.len() as u64, &Signature::sums(BLOCK, rest)).unwrap();
        let finer = finer.index().unwrap();
        let refined = finer.refine(&first, new, 0..new.len()).unwrap();
        // Held against what is taken of a peer.
        let count = ops(&refined.bytes, new.len()).unwrap().len();
        assert!(applied(basis, &refined.bytes, new.len()).unwrap() == new);
        (refined.literal_bytes, count)
    };
    let len = CHUNK_BYTES as usize;
    // Blocks of 1 KiB and one byte in turn.
    let mut new = Vec::new();
    for block in basis.chunks(1024) {
        new.extend_from_slice(block);
        new.push(!block[0]);
    }
    assert_eq!(delta_of(&basis, 0, &new[..len]).1, 2 * 1023);
    // One block of 1 KiB, then blocks of 512 bytes that no coarse one has, and a byte behind each.
    let mut new = basis[..1024].to_vec();
    for block in basis[512..].chunks(1024).filter(|block| block.len() == 1024) {
        new.extend_from_slice(&block[..512]);
        new.push(!block[0]);
    }
    new.truncate(len);
    let (literal_bytes, count) = delta_of(&basis, 0, &new);
    assert!(count > 4000 && literal_bytes < 3000, "{count} {literal_bytes}");
    // Blocks of 1 KiB and three bytes in turn: of these the first ends a smaller block, and the last begins one.
    let (mut new, mut ending, mut beginning) = (Vec::new(), Vec::new(), Vec::new());
    for block in basis[..len].chunks(1024) {
        beginning.extend_from_slice(b"b");
        beginning.extend_from_slice(&block[..511]);
        ending.extend_from_slice(&block[513..]);
        ending.extend_from_slice(b"e");
        new.extend_from_slice(block);
        new.extend_from_slice(b"e-b");
    }
    let basis = [&basis[..len], &ending, &beginning].concat();
    let (literal_bytes, count) = delta_of(&basis, len, &new[..len]);
    assert!(
        count > 4080 && literal_bytes < 1100,
        "{count} operations, {literal_bytes} bytes"
    );
}

#[test]
fn where_the_last_of_what_was_found_lay_is_told() {
    let basis = noise(2, 64 * 1024);
    let signature = signature_of(&basis, BLOCK).index().unwrap();
    let shift = |new: &[u8], piece| signature.diff(new, piece).unwrap().shift;
    let all = |new: &[u8]| shift(new, 0..new.len());
    assert_eq!(all(&basis), Some(0));
    assert_eq!(all(&[b"in front", &basis[..]].concat()), Some(-8));
    assert_eq!(all(&basis[10_000..]), Some(10_000));
    assert_eq!(shift(&[b"in front", &basis[..]].concat(), 1000..9000), Some(1000 - 8));
    assert_eq!(
        all(&[&basis[..8192], &noise(3, 1000), &basis[20_480..]].concat()),
        Some(20_480 - 9192)
    );
    // One block may be found anywhere.
    assert_eq!(all(&[&noise(4, 1000), &basis[..512], &noise(5, 1000)].concat()), None);
    assert_eq!(all(&noise(4, 4000)), None);
}

#[test]
fn what_is_shifted_is_copied_across_the_ends_of_pieces() {
    let basis = noise(2, 64 * 1024);
    let new = [b"a byte or two in front".as_slice(), &basis].concat();
    let pieces: Vec<_> = (0..new.len())
        .step_by(16 * 1024)
        .map(|start| start..(start + 16 * 1024).min(new.len()))
        .collect();
    let signature = signature_of(&basis, BLOCK);
    let signature = signature.index().unwrap();
    let deltas: Vec<_> = pieces
        .iter()
        .map(|piece| {
            // Each alone, with a block on both sides.
            let start = piece.start.saturating_sub(BLOCK as usize);
            let end = (piece.end + BLOCK as usize).min(new.len());
            let within = piece.start - start..piece.end - start;
            signature.diff(&new[start..end], within).unwrap().bytes
        })
        .collect();
    for (nth, (delta, piece)) in deltas.iter().zip(&pieces).enumerate() {
        assert_eq!(applied(&basis, delta, piece.len()).unwrap(), new[piece.clone()]);
        let expected = if nth == 0 { 22 } else { 0 };
        assert_eq!(literal_bytes(delta, piece.len()), expected, "piece {nth}");
    }
}

#[test]
fn a_signature_of_a_part_tells_where_in_the_whole() {
    let basis = noise(5, 16 * 1024);
    let mut signature = Signature::new(8192, BLOCK, 1).unwrap();
    signature.add(8192, &Signature::sums(BLOCK, &basis[8192..])).unwrap();
    assert_eq!(signature.end(), 16 * 1024);
    let new = &basis[9000..15000];
    let delta = signature.index().unwrap().diff(new, 0..new.len()).unwrap();
    assert_eq!(applied(&basis, &delta.bytes, new.len()).unwrap(), new);
    assert!(delta.literal_bytes < 2 * BLOCK as usize);
}

#[test]
fn samples_tell_what_has_moved_and_how_far() {
    const STRIDE: u32 = 8;
    let basis = noise(6, 64 * BLOCK as usize);
    let sampled = || {
        let mut signature = Signature::new(0, BLOCK, STRIDE).unwrap();
        let blocks = basis
            .chunks((STRIDE * BLOCK) as usize)
            .map(|step| &step[..BLOCK as usize]);
        let sums: Vec<u8> = blocks.flat_map(|block| Signature::sums(BLOCK, block)).collect();
        signature.add(basis.len() as u64, &sums).unwrap();
        assert_eq!(signature.end(), basis.len() as u64);
        signature.index().unwrap()
    };
    let probe = |new: &[u8], piece: Range<usize>| sampled().probe(new, piece).unwrap();
    let block = BLOCK as usize;
    let moved = &basis[20 * block + 5..60 * block];
    let expected = Probed {
        found_bytes: 5 * block,
        shift: Some(20 * i64::from(BLOCK) + 5),
    };
    assert_eq!(probe(moved, 0..moved.len()), expected);
    // A piece within it has a shift of its own, and one block alone tells none.
    let piece = 3 * block..25 * block;
    assert_eq!(probe(moved, piece).shift, Some(23 * i64::from(BLOCK) + 5));
    let alone = &basis[24 * block..25 * block];
    let expected = Probed {
        found_bytes: block,
        shift: None,
    };
    assert_eq!(probe(alone, 0..block), expected);
    // Not in the basis, nor samples of it.
    let other = [&noise(7, 8 * block)[..], &basis[33 * block..40 * block]].concat();
    assert_eq!(probe(&other, 0..other.len()).found_bytes, 0);
    assert!(sampled().diff(moved, 0..moved.len()).is_err());
}

#[test]
fn one_changed_byte_costs_one_block() {
    let basis = noise(3, 32 * 1024);
    let mut new = basis.clone();
    new[10_000] ^= 1;
    let delta = diff(&basis, &new);
    assert_eq!(literal_bytes(&delta, new.len()), BLOCK as usize);
    assert!(delta.len() < BLOCK as usize + 30, "{} bytes", delta.len());
}

#[test]
fn blocks_are_about_the_square_root_and_never_too_many() {
    for (basis, block) in [
        (0, 1024),
        (1 << 20, 1024),
        (10 << 20, 2048),
        (122 << 20, 8192),
        (1 << 30, 1 << 15),
        (1 << 34, 1 << 17),
        (1 << 36, 1 << 18),
        (1 << 38, 1 << 18),
        (u64::MAX, 1 << 18),
    ] {
        assert_eq!(block_bytes(basis), block, "{basis}");
        assert!(Signature::new(0, block_bytes(basis), 1).is_ok());
    }
    for basis in [1 << 30, 1 << 36, 1 << 40, u64::MAX] {
        let block = block_bytes(basis);
        assert!(covered_bytes(basis, block).div_ceil(block.into()) <= BLOCKS_MAX as u64);
    }
    assert_eq!(covered_bytes(1 << 36, 1 << 18), 1 << 36);
    assert_eq!(covered_bytes(1 << 40, 1 << 18), 1 << 36);
}

#[test]
fn signatures_that_cannot_be_are_refused() {
    for block_bytes in [0, 1, 511, 513, 1 << 21, u32::MAX] {
        assert!(Signature::new(0, block_bytes, 1).is_err(), "{block_bytes}");
    }
    for stride in [0, 3, 16, u32::MAX] {
        assert!(Signature::new(0, BLOCK, stride).is_err(), "{stride}");
    }
    let mut signature = Signature::new(0, BLOCK, 1).unwrap();
    for (bytes, sums) in [(1000, 1), (1000, 3), (0, 1), (u64::MAX, 2)] {
        assert!(
            signature.add(bytes, &vec![0; sums * SUM_BYTES]).is_err(),
            "{bytes} {sums}"
        );
    }
    assert!(signature.add(1000, &[0; 2 * SUM_BYTES + 1]).is_err());
    let most = BLOCKS_MAX as u64 * u64::from(BLOCK);
    signature.add(most, &vec![0; BLOCKS_MAX * SUM_BYTES]).unwrap();
    assert!(signature.add(1, &[0; SUM_BYTES]).is_err(), "one block too many");
}

#[test]
fn deltas_of_too_many_operations_are_refused() {
    let ops_of = |count: usize| vec![Op::Copy { offset: 7, len: 1 }; count];
    assert!(ops(&encode(&ops_of(OPS_MAX)), OPS_MAX).is_ok());
    assert!(ops(&encode(&ops_of(OPS_MAX + 1)), OPS_MAX + 1).is_err());
}

#[test]
fn what_does_not_shrink_is_not_compressed() {
    assert_eq!(compress(&noise(4, 10_000)).unwrap(), None);
    let zeros = vec![0; 10_000];
    let packed = compress(&zeros).unwrap().unwrap();
    assert!(packed.len() < 100);
    assert_eq!(decompress(&packed).unwrap(), zeros);
    let bomb = zstd::bulk::compress(&vec![0; DELTA_BYTES_MAX + 1], 1).unwrap();
    assert!(decompress(&bomb).is_err());
}

/// A basis, and something made of parts of it and of other bytes.
fn pairs() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let part = prop_oneof![
        3 => (0..20_000_usize, 1..6000_usize).prop_map(|(start, len)| (true, start, len)),
        1 => (any::<usize>(), 1..700_usize).prop_map(|(seed, len)| (false, seed, len)),
    ];
    (any::<u64>(), 0..20_000_usize, prop::collection::vec(part, 0..8)).prop_map(|(seed, len, parts)| {
        let basis = noise(seed, len);
        let mut new = Vec::new();
        for (is_of_basis, at, len) in parts {
            if is_of_basis {
                let start = at.min(basis.len());
                new.extend_from_slice(&basis[start..(start + len).min(basis.len())]);
            } else {
                new.extend(noise(at as u64, len));
            }
        }
        (basis, new)
    })
}

proptest! {
    #[test]
    fn a_delta_gives_the_new_data_whatever_the_pair((basis, new) in pairs(), split in any::<prop::sample::Index>()) {
        let signature = signature_of(&basis, BLOCK).index().unwrap();
        let split = split.index(new.len() + 1);
        let mut out = Vec::new();
        for piece in [0..split, split..new.len()] {
            let delta = signature.diff(&new, piece.clone()).unwrap();
            prop_assert_eq!(delta.literal_bytes, literal_bytes(&delta.bytes, piece.len()));
            let ours = applied(&basis, &delta.bytes, piece.len()).unwrap();
            let mut theirs = Vec::new();
            fast_rsync::apply(&basis, &delta.bytes, &mut theirs).unwrap();
            prop_assert_eq!(&ours, &theirs);
            out.extend(ours);
        }
        prop_assert_eq!(out, new);
    }

    #[test]
    fn what_is_looked_for_once_more_gives_the_new_data_and_never_more(
        (basis, new) in pairs(), start in any::<prop::sample::Index>(), piece in any::<[prop::sample::Index; 2]>(),
    ) {
        let coarse = signature_of(&basis, 4 * BLOCK).index().unwrap();
        // Of a part of the basis.
        let start = start.index(basis.len() + 1);
        let mut finer = Signature::new(start as u64, BLOCK, 1).unwrap();
        finer.add((basis.len() - start) as u64, &Signature::sums(BLOCK, &basis[start..])).unwrap();
        let [a, b] = piece.map(|at| at.index(new.len() + 1));
        let piece = a.min(b)..a.max(b);
        let first = coarse.diff(&new, piece.clone()).unwrap();
        let refined = finer.index().unwrap().refine(&first, &new, piece.clone()).unwrap();
        prop_assert_eq!(applied(&basis, &refined.bytes, piece.len()).unwrap(), &new[piece.clone()]);
        prop_assert!(refined.literal_bytes <= first.literal_bytes);
        prop_assert_eq!(refined.literal_bytes, literal_bytes(&refined.bytes, piece.len()));
        prop_assert_eq!(refined.shift, first.shift);
    }

    /// Where one of the two parsers takes a delta, the other does too, and both give the same.
    #[test]
    fn mutated_deltas_are_taken_as_fast_rsync_takes_them(
        (basis, new) in pairs(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut delta = diff(&basis, &new);
        for (at, byte) in mutations {
            let at = at.index(delta.len());
            delta[at] = byte;
        }
        if cut.index(4) == 0 {
            delta.truncate(cut.index(delta.len()));
        }
        let mut theirs = Vec::new();
        let taken = fast_rsync::apply_limited(&basis, &delta, &mut theirs, 1 << 20).is_ok();
        // Ours wants to be told the length, and takes nothing that does nothing.
        match applied(&basis, &delta, theirs.len()) {
            Ok(ours) => prop_assert!(taken && ours == theirs),
            Err(error) => prop_assert!(!taken || error == Malformed("an operation that does nothing"), "{error}"),
        }
    }

    #[test]
    fn any_bytes_are_refused_or_taken(delta in prop::collection::vec(any::<u8>(), 0..200), len in 0..300_usize) {
        let delta = [&DELTA_MAGIC.to_be_bytes()[..], &delta].concat();
        if let Ok(ops) = ops(&delta, len) {
            prop_assert_eq!(ops.iter().map(Op::len).sum::<usize>(), len);
        }
        let _refused_or_taken = decompress(&delta);
    }

    #[test]
    fn any_sums_give_a_delta_that_is_one(sums in prop::collection::vec(any::<u8>(), 4 * SUM_BYTES), new in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut signature = Signature::new(0, BLOCK, 1).unwrap();
        signature.add(4 * u64::from(BLOCK), &sums).unwrap();
        let delta = signature.index().unwrap().diff(&new, 0..new.len()).unwrap();
        prop_assert!(ops(&delta.bytes, new.len()).is_ok());
    }
}
