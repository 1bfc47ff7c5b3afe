//! What the fuzz targets do with an input, apart from the fuzzer: `tests/programs/corpora.rs` replays the corpora with the same.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use futures::FutureExt;
use realize::{
    delta::{self, BLOCK_BYTES, Indexed, Op, SUM_BYTES, Signature},
    location::Location,
    model::{Escaped, Name, RelPath},
    store::names::{self, NameKind},
    wire::{Encoded, Message, Reader, ToClient, ToServer},
};

const BLOCK: u32 = *BLOCK_BYTES.start();

/// What is done with an input.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const ALL: [(&str, Target); 5] = [
    ("deltas", deltas),
    ("names", names),
    ("requests", requests),
    ("round_trips", round_trips),
    ("signatures", signatures),
];

/// What `ops` make of `basis`.
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

/// Cuts `data` where its first byte says.
fn halves(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (at, rest) = data.split_first()?;
    Some(rest.split_at(usize::from(*at) * 8 % (rest.len() + 1)))
}

/// A hostile delta: refused, or what fast_rsync makes of it.
pub fn deltas(data: &[u8]) {
    let Some((basis, delta)) = halves(data) else { return };
    let mut theirs = Vec::new();
    let is_taken = fast_rsync::apply_limited(basis, delta, &mut theirs, 1 << 20).is_ok();
    if let Ok(ops) = delta::ops(delta, theirs.len()) {
        assert_eq!(applied(basis, &ops), is_taken.then_some(theirs));
    }
    if let Ok(unpacked) = delta::decompress(delta) {
        assert!(unpacked.len() <= delta::DELTA_BYTES_MAX);
    }
}

/// Hostile sums: refused, or a delta that is one, whatever they are of.
pub fn signatures(data: &[u8]) {
    let (Some((sums, new)), Some(shift)) = (halves(data), data.first()) else {
        return;
    };
    let blocks = (sums.len() / SUM_BYTES) as u64;
    // A length that is none is refused, and tells nothing more.
    let sums = if shift % 4 == 0 {
        sums
    } else {
        &sums[..blocks as usize * SUM_BYTES]
    };
    let Ok(mut signature) = Signature::new(u64::from(*shift) << 55, BLOCK << (shift % 12), 1 << (shift / 12 % 5))
    else {
        return;
    };
    let bytes = blocks * u64::from(signature.block_bytes()) * u64::from(signature.stride());
    if signature.add(bytes, sums).is_err() {
        return;
    }
    let indexed = signature.index().unwrap();
    if indexed.is_sampled() {
        assert!(indexed.probe(new, 0..new.len()).unwrap().found_bytes <= new.len());
        return;
    }
    let delta = indexed.diff(new, 0..new.len()).unwrap();
    let ops = delta::ops(&delta.bytes, new.len()).unwrap();
    assert_eq!(ops.iter().map(Op::len).sum::<usize>(), new.len());
    assert!(delta.literal_bytes <= new.len() && delta.bytes.len() <= delta::DELTA_BYTES_MAX);
    for finer in [Some(indexed), finer(new, *shift)].into_iter().flatten() {
        let refined = finer.refine(&delta, new, 0..new.len()).unwrap();
        let ops = delta::ops(&refined.bytes, new.len()).unwrap();
        assert_eq!(ops.iter().map(Op::len).sum::<usize>(), new.len());
        assert!(refined.literal_bytes <= delta.literal_bytes);
    }
}

/// Other sums, of blocks of their own and of another place: what begins `data`.
fn finer(data: &[u8], shift: u8) -> Option<Indexed> {
    let sums = &data[..data.len() / 2 / SUM_BYTES * SUM_BYTES];
    let mut signature = Signature::new(u64::from(shift) << 33, BLOCK << (shift % 3), 1).ok()?;
    let bytes = (sums.len() / SUM_BYTES) as u64 * u64::from(signature.block_bytes());
    signature.add(bytes, sums).ok()?;
    signature.index().ok()
}

/// The delta between any two data, in two pieces, gives the second of the first.
pub fn round_trips(data: &[u8]) {
    let Some((basis, other)) = halves(data) else { return };
    let mut signature = Signature::new(0, BLOCK, 1).unwrap();
    signature
        .add(basis.len() as u64, &Signature::sums(BLOCK, basis))
        .unwrap();
    let indexed = signature.index().unwrap();
    let mut coarse = Signature::new(0, 4 * BLOCK, 1).unwrap();
    coarse
        .add(basis.len() as u64, &Signature::sums(4 * BLOCK, basis))
        .unwrap();
    let coarse = coarse.index().unwrap();
    for new in [[other, basis].concat(), [basis, other].concat(), other.to_vec()] {
        let cut = usize::from(data[0]) * 16 % (new.len() + 1);
        let pieces = [0..cut, cut..new.len()].map(|piece| {
            let delta = indexed.diff(&new, piece.clone()).unwrap();
            if let Some(packed) = delta::compress(&delta.bytes).unwrap() {
                assert_eq!(delta::decompress(&packed).unwrap(), delta.bytes);
            }
            let first = coarse.diff(&new, piece.clone()).unwrap();
            let refined = indexed.refine(&first, &new, piece.clone()).unwrap();
            [delta, refined].map(|delta| applied(basis, &delta::ops(&delta.bytes, piece.len()).unwrap()).unwrap())
        });
        for way in [0, 1] {
            assert_eq!(pieces.each_ref().map(|made| &made[way][..]).concat(), new);
        }
    }
}

/// What a peer sends, whichever side it is: refused, or messages that are read again as they are written.
pub fn requests(data: &[u8]) {
    for stream in [data.to_vec(), framed(data)] {
        messages::<ToServer>(&stream);
        messages::<ToClient>(&stream);
    }
}

/// A frame of a message whose head and data these are: without it hardly anything gets past the lengths.
fn framed(data: &[u8]) -> Vec<u8> {
    let (lane, (data, head)) = (data.len() as u8 % 3, halves(data).unwrap_or_default());
    let len = |len: usize| u32::to_be_bytes(len as u32);
    let mut frame = len(8 + head.len() + data.len());
    frame[0] = lane;
    [&frame, &len(head.len()), &len(data.len()), head, data].concat()
}

fn messages<M: Message + std::fmt::Debug>(data: &[u8]) {
    let mut reader = Reader::new(data);
    while let Some(Ok(Some(message))) = reader.next::<M>().now_or_never() {
        let told = format!("{message:?}");
        let Ok(encoded) = Encoded::new(message) else { continue };
        let mut written = Vec::new();
        encoded.write(&mut written).now_or_never().unwrap().unwrap();
        let again = Reader::new(&written[..]).next::<M>().now_or_never().unwrap();
        assert_eq!(format!("{:?}", again.unwrap().unwrap()), told);
    }
}

/// Bytes that a peer or a disk may hold as names: whatever is taken stays below its root, and no name of a user is mistaken
/// for one of realize's own that stands for another.
pub fn names(data: &[u8]) {
    if let Ok(path) = RelPath::new(data) {
        assert!(path.names().all(|name| !matches!(name.as_bytes(), b"" | b"." | b"..")));
        let joined = path.names().try_fold(RelPath::root(), |path, name| path.join(&name));
        assert_eq!(joined, Ok(path));
    }
    if let Ok(name) = Name::new(data) {
        assert_eq!(names::classify(&names::partial(&name)), NameKind::Partial);
        assert_eq!(names::classify(&names::probe(&names::partial(&name))), NameKind::Probe);
        if let Some(gone) = names::gone(&name) {
            assert_eq!(names::classify(&gone), NameKind::Gone(name));
        }
    }
    assert!(Escaped(data).to_string().chars().all(|c| !c.is_control()));
    let _parsed_or_refused = Location::parse(OsStr::from_bytes(data));
}
