//! State tracking: the sum of what was read, modulo m.
//!
//! A sequence has tokens uniform in 0 to m - 1. The answer, at the last token, is their sum modulo m: with m = 2 the parity of the
//! ones, with m = 5 addition modulo 5 (Delétang et al. 2023; Mamba-3, section 4.3). With `task.every_position` it is
//! asked for after every token. A scan whose decays are positive cannot keep a parity over any length; an RNN can.
//!
//! Training follows a curriculum: lengths are uniform from `task.shortest` to a longest that grows linearly with the number of the
//! sequence, from `task.first_longest` to `data.length` after `task.curriculum` sequences. The positions after a shorter
//! sequence hold the padding, id m, and have no target. Held-out sequences of a length have that length.

use std::sync::Arc;

use rand::RngExt;

use super::{Kind, Paper, Random, Sequence, Task, Unfit};
use crate::config::TaskConfig;
use crate::data::IGNORE;

pub(super) static KIND: Kind = Kind {
    name: "state-tracking",
    settings: include_str!("../../configs/state-tracking.toml"),
    paper: Paper {
        source: "Mamba-3's table of parity at length 256 has scaled accuracies, (accuracy - chance) / (1 - chance): Mamba-3 100, Mamba-2 \
                 0.9, Gated DeltaNet with negative eigenvalues 100. As shares of right answers, of which guessing has 50 %:",
        models: &[
            ("Mamba-3", &[(256, 100.0)]),
            ("Mamba-2", &[(256, 50.45)]),
            ("Gated DeltaNet, eigenvalues in [-1, 1]", &[(256, 100.0)]),
        ],
    },
    make: |config| Ok(Arc::new(StateTracking::new(config)?)),
};

/// Sums modulo m.
#[derive(Debug, Clone)]
pub struct StateTracking {
    /// m.
    modulus: u32,
    every_position: bool,
    shortest: usize,
    first_longest: usize,
    curriculum: u64,
}

impl StateTracking {
    fn new(config: &TaskConfig) -> Result<Self, Unfit> {
        let &TaskConfig { modulus, every_position, shortest, first_longest, curriculum, .. } = config;
        Unfit::check((2..=1 << 24).contains(&modulus), "task.modulus", "2 to 16777216", modulus)?;
        Unfit::check(shortest >= 1, "task.shortest", "1 or more", shortest)?;
        Ok(Self { modulus: modulus as u32, every_position, shortest, first_longest, curriculum })
    }

    /// The longest length at training sequence `number`, if the last is `length`.
    fn longest(&self, length: usize, number: u64) -> usize {
        let first = self.first_longest.clamp(self.shortest, length.max(self.shortest)).min(length);
        let grown = (length - first) as u128 * u128::from(number.min(self.curriculum));
        first + (grown / u128::from(self.curriculum.max(1))) as usize
    }

    /// A sequence of `tokens` tokens, padded to `length` positions.
    fn padded(&self, tokens: usize, length: usize, mut random: Random) -> Sequence {
        let (m, every) = (self.modulus, self.every_position);
        let mut sum = 0;
        Box::new((0..length).map(move |at| {
            if at >= tokens {
                return (m, IGNORE);
            }
            let token = random.random_range(0..m);
            sum = (sum + token) % m;
            (token, if every || at + 1 == tokens { sum as i32 } else { IGNORE })
        }))
    }
}

impl Task for StateTracking {
    /// The tokens and the padding.
    fn vocab_size(&self) -> usize {
        self.modulus as usize + 1
    }

    fn positions(&self, length: usize) -> Result<usize, Unfit> {
        let possible = (1..=u32::MAX as usize).contains(&length);
        Unfit::check(possible, "data.length", format!("1 to {}", u32::MAX), length)?;
        Ok(length)
    }

    fn sequence(&self, length: usize, random: Random) -> Sequence {
        self.padded(length, length, random)
    }

    fn training_sequence(&self, length: usize, number: u64, mut random: Random) -> Sequence {
        let longest = self.longest(length, number);
        let tokens = random.random_range(self.shortest.min(longest)..=longest);
        self.padded(tokens, length, random)
    }

    fn is_data(&self, token: u32) -> bool {
        token < self.modulus
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    fn task(modulus: usize) -> StateTracking {
        StateTracking::new(&TaskConfig { modulus, curriculum: 1000, ..TaskConfig::default() }).unwrap()
    }

    fn random(seed: u64) -> Random {
        Random::seed_from_u64(seed)
    }

    #[test]
    fn answers_are_sums() {
        for modulus in [2, 5] {
            let mut answers = HashSet::new();
            for seed in 0..200 {
                let (tokens, targets): (Vec<u32>, Vec<i32>) = task(modulus).sequence(37, random(seed)).unzip();
                assert!(tokens.iter().all(|&token| (token as usize) < modulus));
                let sum = tokens.iter().sum::<u32>() % modulus as u32;
                assert_eq!(targets[36], sum as i32);
                assert!(targets[..36].iter().all(|&target| target == IGNORE));
                answers.insert(sum);
                let every = StateTracking { every_position: true, ..task(modulus) };
                let (same, states): (Vec<u32>, Vec<i32>) = every.sequence(37, random(seed)).unzip();
                assert_eq!(same, tokens);
                let sums = (1..=37).map(|count| (tokens[..count].iter().sum::<u32>() % modulus as u32) as i32);
                assert_eq!(states, sums.collect::<Vec<_>>());
            }
            assert_eq!(answers.len(), modulus, "every answer comes up");
        }
    }

    #[test]
    fn training_lengths_grow_with_the_number() {
        let task = task(2);
        let lengths = |number: u64| -> Vec<usize> {
            let one = |seed| -> usize {
                let all: Vec<(u32, i32)> = task.training_sequence(160, number, random(seed)).collect();
                assert_eq!(all.len(), 160);
                let tokens = all.iter().take_while(|(token, _)| *token < 2).count();
                assert!(all[tokens..].iter().all(|&one| one == (2, IGNORE)), "padding after the tokens");
                let targets: Vec<usize> = (0..160).filter(|&at| all[at].1 != IGNORE).collect();
                assert_eq!(targets, [tokens - 1]);
                let sum: u32 = all[..tokens].iter().map(|one| one.0).sum();
                assert_eq!(all[tokens - 1].1, (sum % 2) as i32);
                tokens
            };
            (0..3000).map(one).collect()
        };
        for (number, longest) in [(0, 40), (1, 40), (500, 100), (999, 159), (1000, 160), (u64::MAX, 160)] {
            assert_eq!(task.longest(160, number), longest);
            let drawn = lengths(number);
            let seen: HashSet<usize> = drawn.iter().copied().collect();
            assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&3), Some(&longest)), "{number}");
            assert_eq!(seen.len(), longest - 2, "every length comes up");
        }
    }

    #[test]
    fn a_curriculum_fits_any_length() {
        for length in [1, 2, 3, 7, 40, 41] {
            for number in [0, 3, 5000] {
                let longest = task(5).longest(length, number);
                assert!(longest >= 1 && longest <= length, "{length} {number}: {longest}");
                assert_eq!(task(5).training_sequence(length, number, random(1)).count(), length);
            }
        }
        let none = StateTracking { curriculum: 0, ..task(2) };
        assert_eq!(none.longest(160, 0), 40);
        let wrong = |config: TaskConfig| StateTracking::new(&config).unwrap_err().setting;
        assert_eq!(wrong(TaskConfig { modulus: 1, ..TaskConfig::default() }), "task.modulus");
        assert_eq!(wrong(TaskConfig { shortest: 0, ..TaskConfig::default() }), "task.shortest");
        assert!(task(2).positions(0).is_err());
    }
}
