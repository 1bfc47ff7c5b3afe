//! Sums of what the target has are those of the bytes in their places.

use realize::{delta::Signature, digest::CHUNK_BYTES, model::RelPath, service::Blocks};
use realize_sim::world::process;

use super::kept::{Bench, CHUNKS};

/// Several blocks are summed up at a time: each is still that of its own place, the short one at the end too.
#[test]
fn sums_of_samples_are_those_of_each_block() {
    process(async {
        let bench = Bench::new().await;
        let block = u64::from(Blocks::Sampled.of(2 * CHUNK_BYTES).0);
        let steps = 2 * CHUNK_BYTES / (block * 8);
        let len = (steps + 5) * block * 8 + 100;
        let content: Vec<u8> = (0..len).map(|at| (at * at / 7 + at / 251) as u8).collect();
        bench.disk.create("new", content.clone()).unwrap();
        let version = bench.disk.stat("new").unwrap().version;
        let path = RelPath::new("new").unwrap();
        let partial = bench.store.open_partial(&path, len, Some(&version)).await.unwrap();
        let sums = partial.signature(0, CHUNKS, Blocks::Sampled).await.unwrap();
        assert_eq!((sums.bytes, u64::from(sums.block_bytes), sums.stride), (len, block, 8));
        let ends = |at: usize| content.len().min(at + block as usize);
        let blocks = (0..content.len())
            .step_by(8 * block as usize)
            .map(|at| &content[at..ends(at)]);
        let each: Vec<u8> = blocks
            .flat_map(|data| Signature::sums(sums.block_bytes, data))
            .collect();
        assert!(sums.sums == each);
    });
}
