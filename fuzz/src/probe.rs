//! Superblocks: damage is never absence, and what is called valid has its magic, its checksum and sane figures.

use holdfast::fs::probe::{Found, HEAD, Superblock, ext4, xfs};

const EXT4: usize = 1024;

/// The bytes as they are; then with the magics in place; then with checksums that fit, so that what lies behind is met.
pub fn run(data: &[u8]) {
    looked_at(data);
    let mut head = vec![0; HEAD];
    let length = data.len().min(HEAD);
    head[..length].copy_from_slice(&data[..length]);
    head[..4].copy_from_slice(b"XFSB");
    head[EXT4 + 0x38..EXT4 + 0x3a].copy_from_slice(&[0x53, 0xef]);
    assert_ne!(ext4(&head), Found::Absent, "ext4's magic is there");
    assert_ne!(xfs(&head), Found::Absent, "XFS's magic is there");
    looked_at(&head);
    let sector = usize::from(u16::from_be_bytes([head[102], head[103]])).clamp(512, HEAD);
    head[224..228].fill(0);
    let sum = crc32c::crc32c(&head[..sector]);
    head[224..228].copy_from_slice(&sum.to_le_bytes());
    if sector > EXT4 {
        // Both checksums cover the same bytes: one of the two has to do.
        return looked_at(&head);
    }
    let sum = !crc32c::crc32c(&head[EXT4..EXT4 + 0x3fc]);
    head[EXT4 + 0x3fc..EXT4 + 0x400].copy_from_slice(&sum.to_le_bytes());
    looked_at(&head);
    flipped(&mut head, data, sector);
}

fn looked_at(head: &[u8]) {
    if let Found::Valid(found) = ext4(head) {
        assert_eq!(head[EXT4 + 0x38..EXT4 + 0x3a], [0x53, 0xef]);
        sane(&found);
    }
    if let Found::Valid(found) = xfs(head) {
        assert_eq!(head[..4], *b"XFSB");
        sane(&found);
    }
}

fn sane(found: &Superblock) {
    assert!(found.blocks > 0 && found.block_size.is_power_of_two() && (512..=65536).contains(&found.block_size));
    assert!(found.bytes() >= u64::from(found.block_size) && found.slack <= u64::from(u32::MAX));
    assert!(!found.to_string().is_empty());
}

/// One bit of a checksummed superblock flips: it is not valid any more, unless the bit says that there is no checksum.
fn flipped(head: &mut [u8], data: &[u8], sector: usize) {
    let choice = data.iter().rev().take(4).fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    let summed = u32::from_le_bytes([head[EXT4 + 0x64], head[EXT4 + 0x65], head[EXT4 + 0x66], head[EXT4 + 0x67]]);
    if matches!(ext4(head), Found::Valid(_)) && summed & 0x400 != 0 {
        let bit = choice % (1024 * 8);
        head[EXT4 + bit / 8] ^= 1 << (bit % 8);
        let says_unsummed = bit / 8 == 0x65 && bit % 8 == 2;
        assert!(says_unsummed || !matches!(ext4(head), Found::Valid(_)), "bit {bit} of ext4");
        head[EXT4 + bit / 8] ^= 1 << (bit % 8);
    }
    if matches!(xfs(head), Found::Valid(_)) && head[101] & 0xf == 5 {
        let bit = choice % (sector * 8);
        head[bit / 8] ^= 1 << (bit % 8);
        // Version 4 has no checksum, and a bit of the sector's size moves the end of what is summed.
        let elsewhere = matches!(bit / 8, 100..=103);
        assert!(elsewhere || !matches!(xfs(head), Found::Valid(_)), "bit {bit} of XFS");
    }
}
