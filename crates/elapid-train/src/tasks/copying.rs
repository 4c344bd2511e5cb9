//! Copying and selective copying: tokens to be repeated, in order, after a long time.
//!
//! As in `copying.py` of the S4 repository, with length L, M tokens to copy and an alphabet of A: the tokens are uniform in
//! 1 to A - 2, 0 is noise, A - 1 is the marker that asks for the next token. A sequence has L + 2M positions: L + M with the
//! tokens among noise, then M markers, whose targets are the tokens. In the plain task the tokens are at the first M
//! positions, so position alone distinguishes them from noise. In the selective task they are at M distinct random positions
//! (Mamba, section 4.1.1, after Jing et al. 2019).

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::RngExt;

use super::{Kind, Paper, Random, Sequence, Task, Unfit};
use crate::config::TaskConfig;
use crate::data::IGNORE;

const NOISE: u32 = 0;

pub(super) static PLAIN: Kind = Kind {
    name: "copying",
    settings: include_str!("../../configs/copying.toml"),
    paper: Paper { source: "The paper has no figure for it.", models: &[] },
    make: |config| Ok(Arc::new(Copying::new(config, false)?)),
};

pub(super) static SELECTIVE: Kind = Kind {
    name: "selective-copying",
    settings: include_str!("../../configs/selective-copying.toml"),
    paper: Paper {
        source: "Mamba, table 1: blocks of three architectures around three layers. Guessing is 1 in 14, 7.1 %.",
        models: &[
            ("S6 in the Mamba block", &[(4096, 99.8)]),
            ("S6 without a gate", &[(4096, 97.0)]),
            ("S6 in the H3 block", &[(4096, 99.7)]),
            ("S4 in the Mamba block", &[(4096, 56.4)]),
            ("S4 without a gate", &[(4096, 18.3)]),
            ("S4 in the H3 block", &[(4096, 57.0)]),
            ("Hyena in the Mamba block", &[(4096, 28.4)]),
            ("Hyena in the H3 block", &[(4096, 30.1)]),
        ],
    },
    make: |config| Ok(Arc::new(Copying::new(config, true)?)),
};

/// The two copying tasks.
#[derive(Debug, Clone)]
pub struct Copying {
    /// M.
    tokens: usize,
    /// A.
    vocab: usize,
    selective: bool,
}

impl Copying {
    fn new(config: &TaskConfig, selective: bool) -> Result<Self, Unfit> {
        let &TaskConfig { tokens, vocab, .. } = config;
        Unfit::check(tokens >= 1, "task.tokens", "1 or more", tokens)?;
        Unfit::check((3..=1 << 24).contains(&vocab), "task.vocab", "3 (noise, one token, marker) to 16777216", vocab)?;
        Ok(Self { tokens, vocab, selective })
    }

    fn marker(&self) -> u32 {
        self.vocab as u32 - 1
    }
}

impl Task for Copying {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn positions(&self, length: usize) -> Result<usize, Unfit> {
        let positions = self.tokens.checked_mul(2).and_then(|answers| length.checked_add(answers));
        let fits = positions.filter(|&positions| positions <= u32::MAX as usize);
        fits.ok_or_else(|| Unfit {
            setting: "data.length",
            wanted: format!("at most {} positions in all", u32::MAX),
            got: length.to_string(),
        })
    }

    fn sequence(&self, length: usize, mut random: Random) -> Sequence {
        let (m, before) = (self.tokens, length + self.tokens);
        let data: Vec<u32> = (0..m).map(|_| random.random_range(1..self.marker())).collect();
        let places: Vec<usize> =
            if self.selective { distinct(m, before, &mut random).into_iter().collect() } else { (0..m).collect() };
        let marker = self.marker();
        let mut read = 0;
        Box::new((0..before + m).map(move |at| {
            if at >= before {
                return (marker, data[at - before] as i32);
            }
            if places.get(read) != Some(&at) {
                return (NOISE, IGNORE);
            }
            read += 1;
            (data[read - 1], IGNORE)
        }))
    }

    fn is_data(&self, token: u32) -> bool {
        token != NOISE && token != self.marker()
    }
}

/// `m` distinct numbers below `n`, all sets equally likely (Floyd's algorithm, without a list of all n).
fn distinct(m: usize, n: usize, random: &mut Random) -> BTreeSet<usize> {
    let mut chosen = BTreeSet::new();
    for last in n - m..n {
        let one = random.random_range(0..=last);
        if !chosen.insert(one) {
            chosen.insert(last);
        }
    }
    chosen
}
