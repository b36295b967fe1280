//! How an address range is divided among segments, and where BARs go in their part.

use super::super::GpaRange;

/// What a segment needs of an address range, and what it would like.
#[derive(Clone, Debug, Default)]
pub(super) struct Demand {
    /// Bytes that each BAR takes, powers of two.
    pub sizes: Vec<u64>,
    /// Share of what nobody needs, relative to other segments.
    pub weight: u32,
}

impl Demand {
    /// Bytes of all BARs. They leave no gaps if the largest come first, each is a power of two, and
    /// the first is aligned.
    fn need(&self) -> u64 {
        self.sizes
            .iter()
            .fold(0, |sum: u64, size| sum.saturating_add(*size))
    }

    fn alignment(&self, granule: u64) -> u64 {
        self.sizes.iter().copied().max().unwrap_or(0).max(granule)
    }
}

/// The range is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSmall {
    /// Bytes that all BARs need, from the start of the range, with the gaps that alignment leaves.
    pub needed: u64,
}

/// Divides `range` among segments, in their order: to each what it needs, and its share of the rest.
/// All parts are multiples of `granule`, a power of two; what is over at the end is nobody's.
pub(super) fn divide(
    range: GpaRange,
    granule: u64,
    demands: &[Demand],
) -> Result<Vec<GpaRange>, TooSmall> {
    let parts = lay_out(range.start, granule, demands, |_| 0);
    let end = parts.last().map_or(range.start, GpaRange::end);
    if end > range.end() {
        return Err(TooSmall {
            needed: end - range.start,
        });
    }
    // A part that grows may cost each of those behind it its alignment, and no more: all are made of
    // granules.
    let reserved = demands.iter().fold(0, |sum: u64, demand| {
        sum.saturating_add(demand.need().next_multiple_of(granule))
            .saturating_add(demand.alignment(granule) - granule)
    });
    let spare = range.size.saturating_sub(reserved);
    let weights: u128 = demands.iter().map(|demand| u128::from(demand.weight)).sum();
    let share = |demand: &Demand| {
        let share = u128::from(spare) * u128::from(demand.weight) / weights.max(1);
        share as u64 / granule * granule
    };
    Ok(lay_out(range.start, granule, demands, share))
}

fn lay_out(
    start: u64,
    granule: u64,
    demands: &[Demand],
    share: impl Fn(&Demand) -> u64,
) -> Vec<GpaRange> {
    let mut next = start;
    let mut parts = Vec::new();
    for demand in demands {
        let start = align_up(next, demand.alignment(granule));
        let need = align_up(demand.need(), granule);
        let size = need.saturating_add(share(demand));
        next = start.saturating_add(size);
        parts.push(GpaRange { start, size });
    }
    parts
}

/// Addresses of BARs of these sizes, powers of two, from the start of `part` on, the largest first.
/// The part is one that [`divide`] made for them.
pub(super) fn place(part: GpaRange, sizes: &[u64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(sizes[*at]));
    let mut addresses = vec![0; sizes.len()];
    let mut next = part.start;
    for at in order {
        addresses[at] = next;
        next += sizes[at];
    }
    addresses
}

fn align_up(value: u64, alignment: u64) -> u64 {
    value
        .checked_next_multiple_of(alignment)
        .unwrap_or(u64::MAX / alignment * alignment)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn demand(sizes: &[u64], weight: u32) -> Demand {
        Demand {
            sizes: sizes.to_vec(),
            weight,
        }
    }

    #[test]
    fn what_nobody_needs_is_divided_by_weight() {
        let range = GpaRange {
            start: 4 * GIB,
            size: 100 * GIB,
        };
        let parts = divide(range, GIB, &[demand(&[], 1), demand(&[], 3)]).unwrap();
        assert_eq!((parts[0].start, parts[0].size), (4 * GIB, 25 * GIB));
        assert_eq!((parts[1].start, parts[1].size), (29 * GIB, 75 * GIB));
    }

    #[test]
    fn needs_come_before_weights() {
        let range = GpaRange {
            start: GIB,
            size: 1024 * GIB,
        };
        let demands = [demand(&[], 100), demand(&[256 * GIB, 256 * GIB], 1)];
        let parts = divide(range, GIB, &demands).unwrap();
        assert!(parts[1].start.is_multiple_of(256 * GIB));
        assert!(parts[1].size >= 512 * GIB);
    }

    #[test]
    fn a_range_that_is_too_small_says_what_is_needed() {
        let range = GpaRange {
            start: 6 * GIB,
            size: 10 * GIB,
        };
        let demands = [demand(&[GIB], 1), demand(&[8 * GIB], 1)];
        // 1 GiB, then a gap up to 8 GiB, then 8 GiB.
        assert!(divide(range, GIB, &demands).is_ok());
        let range = GpaRange {
            size: 10 * GIB - 1,
            ..range
        };
        let error = divide(range, GIB, &demands).unwrap_err();
        assert_eq!(error.needed, 10 * GIB);
    }

    proptest! {
        #[test]
        fn parts_and_bars_are_apart_aligned_and_inside(
            start in 0..1_u64 << 40,
            size in 0..1_u64 << 44,
            segments in vec((vec(12_u32..40, 0..6), 1_u32..1000), 1..97),
        ) {
            let range = GpaRange { start: start.next_multiple_of(1 << 20), size };
            let demands: Vec<Demand> = segments
                .iter()
                .map(|(shifts, weight)| Demand {
                    sizes: shifts.iter().map(|shift| 1 << shift).collect(),
                    weight: *weight,
                })
                .collect();
            let Ok(parts) = divide(range, 1 << 20, &demands) else {
                return Ok(());
            };
            let mut next = range.start;
            for (part, demand) in parts.iter().zip(&demands) {
                prop_assert!(part.start >= next);
                next = part.end();
                let mut bars: Vec<_> = place(*part, &demand.sizes).into_iter().zip(&demand.sizes).collect();
                bars.sort();
                let mut free = part.start;
                for (address, size) in bars {
                    prop_assert!(address >= free && address.is_multiple_of(*size));
                    free = address + size;
                }
                prop_assert!(free <= part.end());
            }
            prop_assert!(next <= range.end());
        }
    }
}
