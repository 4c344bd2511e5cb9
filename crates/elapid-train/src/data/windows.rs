//! Windows of a token stream: shuffled for training, in order for evaluation.

use super::{Batch, IGNORE, TokenStream};
use crate::{Error, Result};

/// Shuffled windows of `l` inputs and the token after them.
///
/// An epoch starts at a random phase, cuts windows end to end from there, and visits each once in a random order.
/// Neighbouring windows share one token: the last target of one is the first input of the next. The order is computed, not
/// stored, so any step of any epoch costs the same.
#[derive(Debug, Clone)]
pub struct Windows {
    stream: TokenStream,
    b: usize,
    l: usize,
    seed: u64,
    pack: bool,
    /// Windows per epoch.
    count: u64,
}

impl Windows {
    /// Windows of `l` inputs, `b` per batch. With `pack`, state is reset where documents begin, and their first tokens are
    /// not predicted.
    ///
    /// # Errors
    /// If `b` or `l` is 0, or the stream has fewer than `l + 1` tokens.
    pub fn new(stream: TokenStream, b: usize, l: usize, seed: u64, pack: bool) -> Result<Self> {
        check_sizes(b, l)?;
        let tokens = stream.len();
        if tokens <= l as u64 {
            return Err(Error::TooShort {
                what: "the training text",
                tokens,
                wanted: format!("windows of {l} tokens"),
                needed: l as u64 + 1,
                fix: match tokens.saturating_sub(1) {
                    0 => "give more text in data.train (--data)".into(),
                    most => format!(
                        "set data.length (--length) to at most {most}, or give more text in data.train (--data)"
                    ),
                },
            });
        }
        // As many as fit at every phase below `l`, so that all epochs have the same number.
        let count = ((tokens - l as u64) / l as u64).max(1);
        Ok(Self { stream, b, l, seed, pack, count })
    }

    /// Windows per epoch.
    pub fn windows_per_epoch(&self) -> u64 {
        self.count
    }

    /// The batch of a step, counted from 0: always the same for one seed.
    ///
    /// # Errors
    /// As [`TokenStream::copy`].
    pub fn batch(&self, step: u64) -> Result<Batch> {
        let (b, l) = (self.b, self.l);
        let first = step.wrapping_mul(b as u64);
        let mut batch = Batch::empty(b, l, first / self.count, self.pack);
        for row in 0..b {
            let index = first.wrapping_add(row as u64);
            let (epoch, i) = (index / self.count, index % self.count);
            let slack = self.stream.len() - 1 - self.count * l as u64;
            let phase = mix(self.seed, epoch, u64::MAX) % (slack + 1);
            let window = permute(i, self.count, mix(self.seed, epoch, 0));
            batch.fill(row, &self.stream, phase + window * l as u64)?;
        }
        Ok(batch.without_empty_resets())
    }
}

/// Windows in order, covering every prediction of a stream once: for evaluation.
#[derive(Debug, Clone)]
pub struct Sequential {
    stream: TokenStream,
    b: usize,
    l: usize,
    pack: bool,
}

impl Sequential {
    /// Windows of `l` inputs, `b` per batch. The last window is padded with positions that predict nothing; the last batch
    /// has fewer rows.
    ///
    /// # Errors
    /// If `b` or `l` is 0, or the stream has fewer than two tokens.
    pub fn new(stream: TokenStream, b: usize, l: usize, pack: bool) -> Result<Self> {
        check_sizes(b, l)?;
        if stream.len() < 2 {
            return Err(Error::TooShort {
                what: "the held-out text",
                tokens: stream.len(),
                wanted: "one prediction".into(),
                needed: 2,
                fix: "set data.val_fraction higher, or give a text in data.val".into(),
            });
        }
        Ok(Self { stream, b, l, pack })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        self.stream.len()
    }

    /// Number of batches.
    pub fn len(&self) -> u64 {
        self.windows().div_ceil(self.b as u64)
    }

    /// Whether there are none; never true.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn windows(&self) -> u64 {
        (self.stream.len() - 1).div_ceil(self.l as u64)
    }

    /// A batch by number from 0; `None` beyond the last.
    ///
    /// # Errors
    /// As [`TokenStream::copy`].
    pub fn batch(&self, i: u64) -> Result<Option<Batch>> {
        let l = self.l as u64;
        let first = i.saturating_mul(self.b as u64);
        let rows = self.windows().saturating_sub(first).min(self.b as u64) as usize;
        if rows == 0 {
            return Ok(None);
        }
        let mut batch = Batch::empty(rows, self.l, 0, self.pack);
        for row in 0..rows {
            let from = (first + row as u64) * l;
            batch.fill(row, &self.stream, from)?;
        }
        Ok(Some(batch.without_empty_resets()))
    }
}

impl Batch {
    pub(super) fn empty(b: usize, l: usize, epoch: u64, pack: bool) -> Self {
        let resets = pack.then(|| vec![0; b * l]);
        Self { tokens: vec![0; b * l], targets: vec![IGNORE; b * l], resets, b, l, epoch }
    }

    /// Fills a row from a position of the stream, up to its end.
    pub(super) fn fill(&mut self, row: usize, stream: &TokenStream, from: u64) -> Result<()> {
        let n = (stream.len() - 1 - from).min(self.l as u64) as usize;
        let at = row * self.l..row * self.l + n;
        let pack = self.resets.as_mut().map(|resets| &mut resets[at.clone()]);
        stream.row(from, &mut self.tokens[at.clone()], &mut self.targets[at], pack)
    }

    pub(super) fn without_empty_resets(mut self) -> Self {
        self.resets = self.resets.filter(|resets| resets.contains(&1));
        self
    }
}

pub(super) fn check_sizes(b: usize, l: usize) -> Result<()> {
    for (argument, value) in [("batch", b), ("length", l)] {
        if value == 0 {
            return Err(Error::Argument { argument, wanted: "at least 1".into(), got: "0".into() });
        }
    }
    Ok(())
}

/// A pseudo-random number from three numbers (SplitMix64's finaliser, chained).
fn mix(a: u64, b: u64, c: u64) -> u64 {
    [b, c].into_iter().fold(finalise(a), |hash, x| finalise(hash ^ x))
}

fn finalise(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The image of `i` under a random permutation of `0..n`: a Feistel network on the next even number of bits, repeated while
/// the result is not below `n` (at most four times on average).
fn permute(i: u64, n: u64, key: u64) -> u64 {
    let half = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2);
    let mask = (1_u64 << half) - 1;
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..6 {
            (left, right) = (right, left ^ (mix(key, round, right) & mask));
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn counting(n: u64) -> TokenStream {
        TokenStream::from_tokens((0..n as u32).collect(), vec![0])
    }

    proptest! {
        #[test]
        fn permute_is_a_permutation(n in 1_u64..2000, key: u64) {
            let images: HashSet<u64> = (0..n).map(|i| permute(i, n, key)).collect();
            prop_assert_eq!(images.len() as u64, n);
            prop_assert!(images.iter().all(|&x| x < n));
        }

        #[test]
        fn an_epoch_reads_every_window_once(n in 8_u64..500, b in 1_usize..5, l in 1_usize..8, seed: u64) {
            let windows = Windows::new(counting(n), b, l, seed, false).unwrap();
            let per_epoch = windows.windows_per_epoch();
            prop_assert!(per_epoch * l as u64 + l as u64 + 1 > n - l as u64, "little is left out");
            let mut seen: Vec<HashSet<u32>> = vec![HashSet::new(); 2];
            for index in 0..2 * per_epoch {
                let batch = windows.batch(index / b as u64).unwrap();
                let row = (index % b as u64) as usize * l;
                let inputs = &batch.tokens[row..row + l];
                prop_assert!(inputs.windows(2).all(|w| w[1] == w[0] + 1));
                prop_assert!(batch.targets[row..row + l].iter().zip(inputs).all(|(&y, &x)| y == x as i32 + 1));
                for &x in inputs {
                    prop_assert!(seen[(index / per_epoch) as usize].insert(x), "read twice");
                }
            }
        }

        #[test]
        fn sequential_predicts_every_token_once(n in 2_u64..200, b in 1_usize..5, l in 1_usize..9) {
            let all = Sequential::new(counting(n), b, l, false).unwrap();
            let batches: Vec<Batch> = (0..all.len()).map(|i| all.batch(i).unwrap().unwrap()).collect();
            prop_assert!(all.batch(all.len()).unwrap().is_none() && all.batch(u64::MAX).unwrap().is_none());
            let targets: Vec<i32> =
                batches.iter().flat_map(|batch| &batch.targets).copied().filter(|&y| y != IGNORE).collect();
            prop_assert_eq!(targets, (1..n as i32).collect::<Vec<_>>());
            prop_assert_eq!(batches.iter().map(Batch::predictions).sum::<usize>() as u64, n - 1);
        }
    }

    #[test]
    fn a_step_is_a_pure_function() {
        let windows = |seed| Windows::new(counting(1000), 4, 16, seed, false).unwrap();
        assert_eq!(windows(1).batch(77).unwrap(), windows(1).batch(77).unwrap());
        assert_ne!(windows(1).batch(77).unwrap(), windows(2).batch(77).unwrap());
        let (first, second) = (windows(1).batch(0).unwrap(), windows(1).batch(1).unwrap());
        assert_ne!(first.tokens, second.tokens);
        assert_eq!(windows(1).batch(16).unwrap().epoch, 1, "61 windows are 15.25 batches");
        assert_eq!(windows(1).batch(u64::MAX / 8).unwrap().b, 4, "far away is as good as near");
    }

    #[test]
    fn epochs_differ_in_phase() {
        let windows = Windows::new(counting(1000), 1, 100, 5, false).unwrap();
        let phases: HashSet<u32> =
            (0..20).map(|epoch| windows.batch(epoch * windows.windows_per_epoch()).unwrap().tokens[0] % 100).collect();
        assert!(phases.len() > 10, "{phases:?}");
    }

    #[test]
    fn documents_are_packed() {
        let stream = TokenStream::from_tokens((0..9).collect(), vec![0, 3, 8]);
        let batch = Windows::new(stream.clone(), 1, 8, 0, true).unwrap().batch(0).unwrap();
        assert_eq!(batch.tokens, (0..8).collect::<Vec<_>>());
        assert_eq!(batch.resets.unwrap(), [1, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(batch.targets, [1, 2, IGNORE, 4, 5, 6, 7, IGNORE]);
        let batch = Windows::new(stream, 1, 8, 0, false).unwrap().batch(0).unwrap();
        assert_eq!((batch.resets, batch.targets[2]), (None, 3));
    }

    #[test]
    fn too_short_says_what_to_do() {
        let error = Windows::new(counting(10), 1, 10, 0, false).unwrap_err().to_string();
        assert_eq!(
            error,
            "the training text of 10 tokens is too short for windows of 10 tokens: it takes 11; set data.length \
             (--length) to at most 9, or give more text in data.train (--data)"
        );
        assert_eq!(Windows::new(counting(11), 1, 10, 0, false).unwrap().windows_per_epoch(), 1);
        assert!(Sequential::new(counting(1), 1, 10, false).unwrap_err().to_string().contains("data.val_fraction"));
        assert!(Windows::new(counting(11), 0, 10, 0, false).unwrap_err().to_string().contains("batch"));
        assert!(Windows::new(counting(11), 1, 0, 0, false).unwrap_err().to_string().contains("length"));
    }
}
