//! Accesses of any offset and length, in pieces that a device can do.

use std::iter;
use std::ops::Range;

/// Naturally aligned pieces of 1, 2, 4, … up to `most` bytes, a power of two, that make up `length`
/// bytes at `offset`: where each is, and its part of the data. `offset + length` does not overflow.
pub(crate) fn pieces(
    offset: u64,
    length: usize,
    most: usize,
) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    iter::from_fn(move || {
        let left = length - done;
        if left == 0 {
            return None;
        }
        let at = offset + done as u64;
        let mut size = most;
        while size > left || !at.is_multiple_of(size as u64) {
            size /= 2;
        }
        done += size;
        Some((at, done - size..done))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_are_aligned() {
        let sizes = |offset, length, most| {
            let pieces = pieces(offset, length, most);
            pieces.map(|(_, part)| part.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(0, 16, 8), [8, 8]);
        assert_eq!(sizes(1, 7, 8), [1, 2, 4]);
        assert_eq!(sizes(6, 5, 4), [2, 2, 1]);
        assert_eq!(sizes(3, 0, 4), [0; 0]);
        assert_eq!(sizes(u64::MAX - 4, 4, 8), [1, 2, 1]);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_access(offset in 0..u64::MAX / 2, length in 0..70_usize, bits in 0..4_u32) {
            let most = 1 << bits;
            let mut next = 0;
            for (at, part) in pieces(offset, length, most) {
                prop_assert_eq!(part.start, next);
                prop_assert_eq!(at, offset + part.start as u64);
                prop_assert!(part.len().is_power_of_two() && part.len() <= most);
                prop_assert_eq!(at % part.len() as u64, 0);
                next = part.end;
            }
            prop_assert_eq!(next, length);
        }
    }
}
