//! The content of simulated files, held by its pages.

use realize_sim::fs::Content;

#[test]
fn a_huge_sparse_file_takes_few_pages() {
    let mut content = Content::default();
    content.write(4 << 40, b"end");
    content.write(10, b"start");
    assert_eq!((content.pages(), content.size()), (2, (4 << 40) + 3));
    assert_eq!(content.next_data(0), Some(0));
    assert_eq!(content.next_data(5000), Some(4 << 40));
    assert_eq!(content.next_data((4 << 40) + 3), None);
}

#[test]
fn what_a_cut_took_reads_as_zeros_when_extended_again() {
    let mut content = Content::from(&[7; 10_000][..]);
    content.set_len(5000);
    content.set_len(10_000);
    let bytes = content.to_vec();
    assert!(bytes[..5000].iter().all(|b| *b == 7) && bytes[5000..].iter().all(|b| *b == 0));
}

#[test]
fn holes_equal_zeros() {
    let mut hole = Content::default();
    hole.set_len(9000);
    assert_eq!(hole, Content::from(&[0; 9000][..]));
    assert_ne!(hole, Content::from(&[0; 9001][..]));
}
