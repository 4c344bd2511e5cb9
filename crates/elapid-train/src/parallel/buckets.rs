//! Buckets: gradients that are summed over ranks together.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;

/// Consecutive ranges of the array of all gradients, from its end to its beginning, as the backward pass completes them. A
/// bucket is complete when every gradient in it is.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    /// The range of each bucket.
    ranges: Vec<Range<usize>>,
    bucket_of: HashMap<K, usize>,
    /// Gradients in each bucket.
    counts: Vec<usize>,
    /// Gradients in each bucket that are not complete yet.
    left: Vec<usize>,
}

impl<K: Copy + Eq + Hash> Buckets<K> {
    /// Buckets of at most `most` values, or of one gradient if that is larger. `starts` are the gradients with their
    /// offsets, in order; the last ends at `len`.
    pub(super) fn new(starts: &[(K, usize)], len: usize, most: usize) -> Self {
        let mut buckets = Self { ranges: Vec::new(), bucket_of: HashMap::new(), counts: Vec::new(), left: Vec::new() };
        let mut end = len;
        for &(key, start) in starts.iter().rev() {
            match buckets.ranges.last_mut() {
                Some(range) if range.end - start <= most => range.start = start,
                _ => {
                    buckets.ranges.push(start..end);
                    buckets.counts.push(0);
                }
            }
            let bucket = buckets.ranges.len() - 1;
            buckets.counts[bucket] += 1;
            buckets.bucket_of.insert(key, bucket);
            end = start;
        }
        buckets.begin();
        buckets
    }

    /// The range of each bucket.
    pub(super) fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Nothing is complete.
    pub(super) fn begin(&mut self) {
        self.left.clone_from(&self.counts);
    }

    /// Marks a gradient as complete; returns the bucket that this completes, if any.
    pub(super) fn complete(&mut self, key: K) -> Option<usize> {
        let bucket = *self.bucket_of.get(&key)?;
        self.left[bucket] = self.left[bucket].checked_sub(1)?;
        (self.left[bucket] == 0).then_some(bucket)
    }

    /// Buckets that are not complete.
    pub(super) fn incomplete(&self) -> impl Iterator<Item = usize> {
        self.left.iter().enumerate().filter(|(_, left)| **left > 0).map(|(bucket, _)| bucket)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_filled_from_the_end() {
        // An embedding that is larger than a bucket, then small ones.
        let starts = [("embedding", 0), ("a", 100), ("b", 110), ("c", 130), ("d", 140)];
        let mut buckets = Buckets::new(&starts, 150, 40);
        assert_eq!(buckets.ranges(), [110..150, 100..110, 0..100]);
        assert_eq!(buckets.complete("d"), None);
        assert_eq!(buckets.complete("a"), Some(1));
        assert_eq!((buckets.complete("b"), buckets.complete("c")), (None, Some(0)));
        assert_eq!(buckets.incomplete().collect::<Vec<_>>(), [2]);
        assert_eq!(buckets.complete("nothing of ours"), None);
        assert_eq!(buckets.complete("embedding"), Some(2));
        buckets.begin();
        assert_eq!(buckets.incomplete().count(), 3);
    }

    proptest! {
        #[test]
        fn every_number_is_in_one_bucket(sizes in prop::collection::vec(1_usize..50, 1..40), most in 1_usize..120) {
            let mut len = 0;
            let starts: Vec<(usize, usize)> = sizes.iter().enumerate().map(|(i, size)| {
                len += size;
                (i, len - size)
            }).collect();
            let mut buckets = Buckets::new(&starts, len, most);
            let ranges = buckets.ranges().to_vec();
            prop_assert_eq!(ranges.first().unwrap().end, len);
            prop_assert_eq!(ranges.last().unwrap().start, 0);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].start == pair[1].end));
            let gradients = |range: &Range<usize>| starts.iter().filter(|(_, start)| range.contains(start)).count();
            prop_assert!(ranges.iter().all(|range| range.len() <= most || gradients(range) == 1));
            // Gradients complete from last to first, and so do the buckets.
            let order: Vec<usize> = (0..sizes.len()).rev().filter_map(|i| buckets.complete(i)).collect();
            prop_assert_eq!(order, (0..ranges.len()).collect::<Vec<_>>());
            prop_assert_eq!(buckets.incomplete().count(), 0);
        }
    }
}
