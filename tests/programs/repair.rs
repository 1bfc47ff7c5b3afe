//! What the target has of a large file is used, whatever became of it: the file arrives whole, and what crosses the wire is about
//! what differs.

use std::{fs, path::Path};

use crate::support::*;

const MIB: usize = 1 << 20;

/// Size of the file that is moved.
const SIZE: usize = 12 * MIB + 12_345;

/// What a move of one file takes beside its content: handshake, listing, hashes, signatures.
const TALK: usize = 40_000;

/// Bytes without repetitions.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// What the target has, and how many bytes may cross the wire then, both ways added.
struct Case {
    what: &'static str,
    old: Option<Vec<u8>>,
    partial: Option<Vec<u8>>,
    bytes_max: usize,
}

fn cases(new: &[u8]) -> Vec<Case> {
    let flipped = |data: &[u8], count: usize| {
        let mut data = data.to_vec();
        let len = data.len();
        (0..count).for_each(|nth| data[(nth * 2 + 1) * len / (2 * count)] ^= 1);
        data
    };
    let case = |what, old: Option<&[u8]>, partial: Option<&[u8]>, bytes_max| Case {
        what,
        old: old.map(<[u8]>::to_vec),
        partial: partial.map(<[u8]>::to_vec),
        bytes_max,
    };
    let mut with_hole = new.to_vec();
    with_hole[3 * MIB..5 * MIB].fill(0);
    let mut older = new.to_vec();
    older[6 * MIB..7 * MIB].copy_from_slice(&noise(2, MIB));
    let shifted_partial = &new[1..SIZE / 2];
    vec![
        case("nothing", None, None, SIZE + TALK),
        case(
            "interrupted",
            None,
            Some(&new[..SIZE / 2]),
            SIZE - SIZE / 2 + MIB + TALK,
        ),
        case(
            "interrupted at a chunk",
            None,
            Some(&new[..6 * MIB]),
            SIZE - 6 * MIB + TALK,
        ),
        case("corrupted", Some(&flipped(new, 5)), None, 5 * 7000 + TALK),
        case("a corrupted partial", None, Some(&flipped(new, 5)), 5 * 7000 + TALK),
        case("truncated", Some(&new[..9 * MIB]), None, SIZE - 9 * MIB + TALK),
        case("too long", Some(&[new, &noise(3, MIB)].concat()), None, TALK),
        case("a partial that is too long", None, Some(&[new, b"more"].concat()), TALK),
        case("partially copied", None, Some(&with_hole), 2 * MIB + TALK),
        case("shifted", Some(&new[1..]), None, SIZE / 100 + TALK),
        case(
            "shifted the other way",
            Some(&[b"in front", new].concat()),
            None,
            SIZE / 100 + TALK,
        ),
        case(
            "a shifted partial",
            None,
            Some(shifted_partial),
            SIZE - SIZE / 2 + 2 * MIB + TALK,
        ),
        case("emptied", Some(b""), None, SIZE + TALK),
        case("of other content", Some(&noise(4, SIZE)), None, SIZE + SIZE / 50 + TALK),
        case(
            "a corrupted partial beside an older final",
            Some(&older),
            Some(&flipped(&new[..8 * MIB], 3)),
            20_000 + MIB + TALK,
        ),
    ]
}

/// Moves `new` to where the target is as `case` says; how many bytes crossed the wire.
fn repair(new: &[u8], case: &Case, push: bool) -> usize {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (local, served) = (disk.dir("local"), memory.dir("served"));
    let (source, target) = if push { (&local, &served) } else { (&served, &local) };
    fs::write(source.join("file"), new).unwrap();
    let put = |name: &str, data: &Option<Vec<u8>>| {
        if let Some(data) = data {
            fs::write(target.join(name), data).unwrap();
        }
    };
    put("file", &case.old);
    put(".file.realize-part", &case.partial);
    let mut hosts = Hosts::serving(&[("a", &served, ALL)]);
    let line = Line::to(hosts.port());
    hosts.know("nas", &hosts.public("daemon"), &format!("127.0.0.1:{}", line.port));
    let local = local.to_str().unwrap();
    let ends = if push { [local, "nas::a"] } else { ["nas::a", local] };
    let outcome = hosts.realize().args(ends).run().expect_code(0);
    hosts.end(rustix::process::Signal::TERM);
    // What was spared is told.
    assert_eq!(
        outcome.stdout().contains("B of it sent"),
        case.bytes_max < new.len(),
        "{}: {outcome}",
        case.what
    );
    assert!(
        fs::read(target.join("file")).unwrap() == new,
        "{}: what arrived",
        case.what
    );
    assert_eq!(names(target), ["file"], "{}", case.what);
    assert_eq!(names(source), [""; 0], "{}", case.what);
    line.bytes() as usize
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_there_is_used_whatever_became_of_it() {
    let new = noise(1, SIZE);
    for push in [true, false] {
        for case in cases(&new) {
            let bytes = repair(&new, &case, push);
            println!("{}: {bytes} bytes of {}", case.what, case.bytes_max);
            assert!(
                bytes <= case.bytes_max,
                "{} (push: {push}): {bytes} bytes, not {}",
                case.what,
                case.bytes_max
            );
        }
    }
}

#[test]
fn what_has_moved_within_a_file_is_found_by_its_hashes() {
    let new = noise(1, 64 * MIB);
    let mut cut_out = new.clone();
    for at in [50, 30, 10] {
        cut_out.drain(at * MIB + 777..at * MIB + 2000);
    }
    let shifted_too = [&noise(2, 100), &cut_out[..]].concat();
    // Of the last, most chunks that are looked at first are missing.
    for (old, bytes_max) in [
        (cut_out, 150_000),
        (shifted_too, 150_000),
        (new[5 * MIB..].to_vec(), 5 * MIB + 150_000),
    ] {
        let case = Case {
            what: "moved within",
            old: Some(old),
            partial: None,
            bytes_max: 0,
        };
        for push in [true, false] {
            let bytes = repair(&new, &case, push);
            assert!(bytes < bytes_max, "{bytes} bytes, not {bytes_max}");
        }
    }
}

/// A byte here and there, of what is in its place and of what has moved.
#[test]
fn many_small_changes_cost_little_more_than_themselves() {
    let old = noise(7, 24 * MIB);
    let changed = |old: &[u8]| {
        let mut new = old.to_vec();
        (0..new.len() / 8192).for_each(|nth| new[nth * 8192 + nth % 4000] ^= 1);
        new
    };
    for (what, new) in [
        ("in place", changed(&old)),
        ("moved", changed(&[&noise(8, 12_345), &old[..]].concat())),
    ] {
        let case = Case {
            what,
            old: Some(old.clone()),
            partial: None,
            bytes_max: 0,
        };
        for push in [true, false] {
            let bytes = repair(&new, &case, push);
            println!("{what}: {bytes} bytes");
            // Of 3,072 changes each a block of 512 bytes, and sums.
            assert!(bytes < 3_000_000, "{what}: {bytes} bytes");
        }
    }
}

/// More turns out to be there than the page that was hashed meanwhile was cut to.
#[test]
fn a_file_that_grew_in_front_arrives_whole() {
    let new = noise(6, 22 * MIB);
    let case = Case {
        what: "grown in front",
        old: Some(new[2 * MIB..].to_vec()),
        partial: None,
        bytes_max: 2 * MIB + 150_000,
    };
    for push in [true, false] {
        let bytes = repair(&new, &case, push);
        assert!(bytes < case.bytes_max, "{bytes} bytes");
    }
}

/// An archive in which members have changed their places.
#[test]
fn what_has_moved_far_is_found() {
    let members: Vec<_> = (0..5)
        .map(|nth| noise(10 + nth, 12 * MIB + nth as usize * 777))
        .collect();
    let in_order = |order: &[usize]| order.iter().flat_map(|nth| members[*nth].clone()).collect::<Vec<_>>();
    let case = Case {
        what: "moved far",
        old: Some(in_order(&[0, 1, 2, 3])),
        partial: None,
        bytes_max: 0,
    };
    for (order, members_sent) in [
        (&[3, 0, 1, 2][..], 0),
        (&[2, 3], 0),
        (&[4, 0, 1, 2], 1),
        (&[4, 2, 1, 0], 1),
    ] {
        let new = in_order(order);
        for push in [true, false] {
            let bytes = repair(&new, &case, push);
            println!("{order:?}: {bytes} bytes");
            // The chunk in which two members meet is sent whole where most around it is new.
            let bytes_max = members_sent * 13 * MIB + 250_000;
            assert!(bytes < bytes_max, "{order:?}: {bytes} bytes, not {bytes_max}");
        }
    }
}

/// Where nothing is found little is looked at, and what is right all the same counts as soon as it comes.
#[test]
fn what_is_right_behind_much_that_is_not_is_not_sent() {
    let new = noise(1, 160 * MIB);
    let case = Case {
        what: "right from the middle on",
        old: Some([&noise(2, 80 * MIB), &new[80 * MIB..]].concat()),
        partial: None,
        bytes_max: 81 * MIB,
    };
    for push in [true, false] {
        let bytes = repair(&new, &case, push);
        println!("{bytes} bytes");
        assert!(bytes < case.bytes_max, "{bytes} bytes");
    }
}

#[test]
fn what_is_added_to_a_log_is_packed() {
    let lines = |numbers: std::ops::Range<usize>| -> Vec<u8> {
        let line = |number| format!("2026-11-26T12:00:00 host program[{number}]: nothing in particular happened\n");
        numbers.flat_map(|number| line(number).into_bytes()).collect()
    };
    let new = lines(0..60_000);
    let case = Case {
        what: "a log",
        old: Some(lines(0..20_000)),
        partial: None,
        bytes_max: 0,
    };
    for push in [true, false] {
        let bytes = repair(&new, &case, push);
        assert!(bytes < new.len() / 4, "{bytes} bytes of {}", new.len());
    }
}

/// A failed repair leaves the older final as it was.
#[test]
fn a_repair_that_is_killed_leaves_the_older_final_and_goes_on() {
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, served) = (disk.dir("local"), memory.dir("served"));
    let new = noise(1, 64 * MIB);
    let mut old = new.clone();
    (0..64).for_each(|nth| old[nth * MIB + 5000..][..300_000].fill(0));
    fs::write(source.join("file"), &new).unwrap();
    fs::write(served.join("file"), &old).unwrap();
    let hosts = Hosts::serving(&[("a", &served, ALL)]);
    let partial = served.join(".file.realize-part");
    for millis in [0, 30, 60, 90] {
        let running = hosts.realize().arg(&source).arg("nas::a").start();
        while !partial.exists() && running.is_running() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(millis));
        running.signal(rustix::process::Signal::KILL);
        drop(running.wait_or_kill());
        let there = fs::read(served.join("file")).unwrap();
        assert!(there == old || there == new, "after {millis} ms");
        assert!(
            millis > 0 || (there == old && partial.exists()),
            "it was killed before or after"
        );
        assert!(there == new || source.join("file").exists(), "after {millis} ms");
    }
    if source.join("file").exists() {
        hosts.realize().arg(&source).arg("nas::a").run().expect_code(0);
    }
    assert!(fs::read(served.join("file")).unwrap() == new);
    assert_eq!((names(&served).len(), names(&source).len()), (1, 0));
}

/// Where files can share blocks, a repair takes room for what differs alone: here there is none for the whole file.
#[test]
fn a_repair_shares_what_is_equal_where_the_file_system_can() {
    if !disk_images_allowed() {
        return;
    }
    let (disk, memory) = (Scratch::on_disk(), Scratch::in_memory());
    let (source, mounted) = (disk.dir("local"), disk.dir("mounted"));
    let (old, new) = (disk.join("old"), disk.join("new"));
    let mut data = noise(1, 180 * MIB);
    for file in [&new, &source.join("file")] {
        fs::write(file, &data).unwrap();
    }
    (0..5).for_each(|nth| data[nth * 30 * MIB + 5000] ^= 1);
    fs::write(&old, &data).unwrap();
    let script = r#"
        truncate -s 300M "$1"
        mkfs.xfs -q "$1"
        mount -o loop "$1" "$2"
        cp "$3" "$2/file"
        "$4" "$5" "$2" >&2
        cmp "$2/file" "$6"
        ls -A "$2"
    "#;
    let outcome = Run::program("unshare")
        .args(["-m", "sh", "-ec", script, "sh"])
        .args([&memory.join("image"), &mounted, &old])
        .arg(env!("CARGO_BIN_EXE_realize"))
        .args([&source, &new])
        .run()
        .expect_code(0);
    assert_eq!(outcome.stdout(), "file\n", "{outcome}");
    assert_eq!(names(&source), [""; 0]);
}
