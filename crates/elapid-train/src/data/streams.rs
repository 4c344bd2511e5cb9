//! Parallel cursors through a token stream in order, for training with the state carried from batch to batch.

use super::windows::check_sizes;
use super::{Batch, TokenStream};
use crate::{Error, Result};

/// `b` contiguous parts of a stream, read in parallel, `l` tokens per step (truncated backpropagation through time).
///
/// Row `r` of every batch continues where row `r` of the previous batch ended. At its end a part starts over, marked by a
/// reset in the batch. The very first position has a reset too, so any state may be carried into step 0.
#[derive(Debug, Clone)]
pub struct Streams {
    stream: TokenStream,
    b: usize,
    l: usize,
    pack: bool,
    /// Predictions per part.
    part: u64,
}

impl Streams {
    /// Cursors for `b` rows, `l` tokens per step. With `pack`, state is reset where documents begin, and their first tokens
    /// are not predicted.
    ///
    /// # Errors
    /// If `b` or `l` is 0, or a part has fewer than `l` predictions.
    pub fn new(stream: TokenStream, b: usize, l: usize, pack: bool) -> Result<Self> {
        check_sizes(b, l)?;
        let tokens = stream.len();
        let part = tokens.saturating_sub(1) / b as u64;
        if part < l as u64 {
            return Err(Error::TooShort {
                what: "the training text",
                tokens,
                wanted: format!("{b} streams of at least {l} tokens"),
                needed: (b as u64).saturating_mul(l as u64).saturating_add(1),
                fix: "set train.batch (--batch) or data.length (--length) lower, or give more text in data.train (--data)".into(),
            });
        }
        Ok(Self { stream, b, l, pack, part })
    }

    /// Tokens that a row reads before it starts over.
    pub fn tokens_per_row(&self) -> u64 {
        self.part
    }

    /// The batch of a step, counted from 0: always the same.
    ///
    /// # Errors
    /// As [`TokenStream::copy`].
    pub fn batch(&self, step: u64) -> Result<Batch> {
        let (b, l) = (self.b, self.l);
        let begin = step.wrapping_mul(l as u64);
        let mut batch = Batch::empty(b, l, begin / self.part, true);
        for row in 0..b {
            let part = row as u64 * self.part;
            let mut t = 0;
            while t < l {
                let at = begin.wrapping_add(t as u64) % self.part;
                let n = (self.part - at).min((l - t) as u64) as usize;
                let here = row * l + t..row * l + t + n;
                let resets = batch.resets.as_mut().map(|resets| &mut resets[here.clone()]);
                let tokens = &mut batch.tokens[here.clone()];
                self.stream.row(part + at, tokens, &mut batch.targets[here.clone()], resets.filter(|_| self.pack))?;
                if let Some(resets) = batch.resets.as_mut().filter(|_| at == 0) {
                    resets[here.start] = 1;
                }
                t += n;
            }
        }
        Ok(batch.without_empty_resets())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::IGNORE;
    use super::*;

    fn counting(n: u64) -> TokenStream {
        TokenStream::from_tokens((0..n as u32).collect(), vec![0])
    }

    #[test]
    fn rows_go_on_and_wrap() {
        // 11 tokens are two parts of five predictions.
        let streams = Streams::new(counting(11), 2, 3, false).unwrap();
        let first = streams.batch(0).unwrap();
        assert_eq!(first.tokens, [0, 1, 2, 5, 6, 7]);
        assert_eq!(first.targets, [1, 2, 3, 6, 7, 8]);
        assert_eq!(first.resets.unwrap(), [1, 0, 0, 1, 0, 0]);
        let second = streams.batch(1).unwrap();
        assert_eq!(second.tokens, [3, 4, 0, 8, 9, 5]);
        assert_eq!(second.targets, [4, 5, 1, 9, 10, 6], "the last of a part is predicted too");
        assert_eq!(second.resets.unwrap(), [0, 0, 1, 0, 0, 1]);
        assert_eq!((first.epoch, second.epoch, streams.batch(2).unwrap().epoch), (0, 0, 1));
        assert_eq!(streams.batch(2).unwrap().resets, None);
    }

    #[test]
    fn documents_are_packed() {
        let stream = TokenStream::from_tokens((0..9).collect(), vec![0, 3]);
        let batch = Streams::new(stream, 1, 8, true).unwrap().batch(0).unwrap();
        assert_eq!(batch.resets.unwrap(), [1, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(batch.targets, [1, 2, IGNORE, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn too_short_says_what_to_do() {
        let error = Streams::new(counting(20), 2, 10, false).unwrap_err().to_string();
        assert!(error.contains("takes 21") && error.contains("train.batch"), "{error}");
        assert!(Streams::new(counting(21), 2, 10, false).is_ok());
        assert!(Streams::new(counting(0), 1, 1, false).is_err());
    }

    proptest! {
        #[test]
        fn each_row_reads_its_part_over_and_over(n in 10_u64..200, b in 1_usize..4, l in 1_usize..4) {
            let streams = Streams::new(counting(n), b, l, false).unwrap();
            let part = streams.tokens_per_row();
            for row in 0..b {
                let mut position = 0;
                for step in 0..40 {
                    let batch = streams.batch(step).unwrap();
                    for t in row * l..(row + 1) * l {
                        prop_assert_eq!(u64::from(batch.tokens[t]), row as u64 * part + position % part);
                        prop_assert_eq!(batch.targets[t], batch.tokens[t] as i32 + 1);
                        let reset = batch.resets.as_ref().is_some_and(|resets| resets[t] == 1);
                        prop_assert_eq!(reset, position % part == 0);
                        position += 1;
                    }
                }
            }
        }
    }
}
