//! Induction heads: which token followed the previous occurrence of this one?
//!
//! Random tokens, with one special token among them and again at the end. The answer there is the token that followed the
//! first occurrence (Mamba, section 4.1.2 and appendix E.1, after Olsson et al. 2022). The first special token is uniform
//! from the beginning to four positions before the end, as in `generate_induction_head` of the H3 repository. There, models
//! are trained to predict every next token and tested on the answer alone: `task.next_tokens`. Ids: A - 1 is the special
//! token, all below are ordinary.

use std::sync::Arc;

use rand::RngExt;

use super::{Kind, Paper, Random, Sequence, Task, Unfit};
use crate::config::TaskConfig;
use crate::data::IGNORE;

/// All powers of two from 2^6 to 2^20.
const MAMBA: [(usize, f64); 15] = {
    let mut all = [(64, 100.0); 15];
    let mut i = 0;
    while i < all.len() {
        all[i].0 <<= i;
        i += 1;
    }
    all
};
const H3: [(usize, f64); 3] = [(256, 100.0), (512, 80.9), (1024, 39.5)];
const HYENA: [(usize, f64); 3] = [(256, 100.0), (512, 100.0), (1024, 44.1)];
/// Multi-head attention with absolute positions, rotary ones, and xPos, from 2^8 on.
const ABSOLUTE: [(usize, f64); 7] = from_256([100.0, 58.6, 26.6, 18.8, 9.8, 10.9, 7.8]);
const ROPE: [(usize, f64); 7] = from_256([100.0, 83.6, 31.3, 18.4, 8.6, 9.0, 5.5]);
const XPOS: [(usize, f64); 7] = from_256([100.0, 99.6, 67.6, 25.4, 7.0, 9.0, 7.8]);

const fn from_256(shares: [f64; 7]) -> [(usize, f64); 7] {
    let mut all = [(256, 0.0); 7];
    let mut i = 0;
    while i < all.len() {
        all[i] = (256 << i, shares[i]);
        i += 1;
    }
    all
}

pub(super) static KIND: Kind = Kind {
    name: "induction-heads",
    settings: include_str!("../../configs/induction-heads.toml"),
    paper: Paper {
        source: "Mamba, table 11. H3 and Hyena go on falling at longer lengths.",
        models: &[
            ("Mamba", &MAMBA),
            ("H3", &H3),
            ("Hyena", &HYENA),
            ("MHA-Abs", &ABSOLUTE),
            ("MHA-RoPE", &ROPE),
            ("MHA-xPos", &XPOS),
        ],
    },
    make: |config| Ok(Arc::new(InductionHeads::new(config)?)),
};

/// The induction heads task.
#[derive(Debug, Clone)]
pub struct InductionHeads {
    /// A, the special token included.
    vocab: usize,
}

impl InductionHeads {
    fn new(config: &TaskConfig) -> Result<Self, Unfit> {
        let vocab = config.vocab;
        Unfit::check((2..=1 << 24).contains(&vocab), "task.vocab", "2 (a token, the special one) to 16777216", vocab)?;
        Ok(Self { vocab })
    }

    fn special(&self) -> u32 {
        self.vocab as u32 - 1
    }
}

impl Task for InductionHeads {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn positions(&self, length: usize) -> Result<usize, Unfit> {
        let possible = (4..=u32::MAX as usize).contains(&length);
        Unfit::check(possible, "data.length", format!("4 to {}", u32::MAX), length)?;
        Ok(length)
    }

    fn sequence(&self, length: usize, mut random: Random) -> Sequence {
        let special = self.special();
        let first = random.random_range(0..length - 3);
        let mut answer = 0;
        Box::new((0..length).map(move |at| {
            if at == first {
                return (special, IGNORE);
            }
            if at == length - 1 {
                return (special, answer as i32);
            }
            let token = random.random_range(0..special);
            if at == first + 1 {
                answer = token;
            }
            (token, IGNORE)
        }))
    }

    fn is_data(&self, token: u32) -> bool {
        token == self.special()
    }
}
