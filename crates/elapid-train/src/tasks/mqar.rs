//! MQAR, multi-query associative recall: keys with values, then the keys again, each to be answered by its value.
//!
//! As in `multiquery_ar.py` of zoology (Arora et al. 2023, "Zoology", section 4), with length L, D pairs and a vocabulary of V ids:
//! D distinct keys of 1 to V/2 - 1 and D distinct values of V/2 to V - 1 make the context k₁ v₁ … k_D v_D, which may be
//! repeated (`task.passes`). What follows has one place for a query in every two positions. The query of key i is at place
//! gᵢ, where the gaps g are distinct and drawn one after another with p(g) ∝ a (g + 1)^(a - 1): with a small a, most queries
//! come soon. The target at a query is the value of its key; no other position has one. Other positions are 0, or random ids
//! (`task.random_noise`).

use std::collections::HashMap;
use std::sync::Arc;

use rand::RngExt;

use super::{Kind, Paper, Random, Sequence, Task, Unfit};
use crate::config::TaskConfig;
use crate::data::IGNORE;

pub(super) static KIND: Kind = Kind {
    name: "mqar",
    settings: include_str!("../../configs/mqar.toml"),
    paper: Paper {
        source: "The papers draw their results and have no table: attention recalls everything at any width, and gated \
                 convolutions need a width that grows with the length.",
        models: &[],
    },
    make: |config| Ok(Arc::new(Mqar::new(config)?)),
};

/// The recall task.
#[derive(Debug, Clone)]
pub struct Mqar {
    /// V.
    vocab: usize,
    /// D.
    pairs: usize,
    passes: usize,
    /// a.
    gap_power: f64,
    random_noise: bool,
}

impl Mqar {
    fn new(config: &TaskConfig) -> Result<Self, Unfit> {
        let &TaskConfig { vocab, pairs, passes, gap_power, random_noise, .. } = config;
        Unfit::check((4..=1 << 24).contains(&vocab), "task.vocab", "4 (0, a key, two values) to 16777216", vocab)?;
        let most = vocab / 2 - 1;
        let wanted = format!("1 to {most}, as there are as many keys");
        Unfit::check((1..=most).contains(&pairs), "task.pairs", wanted, pairs)?;
        Unfit::check((1..=1 << 24).contains(&passes), "task.passes", "1 to 16777216", passes)?;
        if !(gap_power > 0.0 && gap_power <= 100.0) {
            let (setting, wanted) = ("task.gap_power", "above 0, at most 100".into());
            return Err(Unfit { setting, wanted, got: gap_power.to_string() });
        }
        Ok(Self { vocab, pairs, passes, gap_power, random_noise })
    }

    /// Positions of the context.
    fn context(&self) -> usize {
        2 * self.pairs * self.passes
    }

    /// The places of the queries of all keys, in the order of the keys, among `space` places.
    ///
    /// Drawing without replacement by weights w is taking the D smallest of Eᵢ / wᵢ in order, with exponential E (Efraimidis
    /// and Spirakis 2006).
    fn gaps(&self, space: usize, random: &mut Random) -> Vec<usize> {
        let arrival = |gap: usize, random: &mut Random| {
            let exponential = -(1.0 - random.random::<f64>()).ln();
            exponential * ((gap + 1) as f64).powf(1.0 - self.gap_power)
        };
        let mut arrivals: Vec<(f64, usize)> = (0..space).map(|gap| (arrival(gap, random), gap)).collect();
        arrivals.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        arrivals[..self.pairs].iter().map(|arrival| arrival.1).collect()
    }
}

impl Task for Mqar {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn positions(&self, length: usize) -> Result<usize, Unfit> {
        let least = self.context() + 2 * self.pairs;
        let possible = length.is_multiple_of(2) && (least..=1 << 24).contains(&length);
        let wanted = format!("an even number from {least} ({} pairs and their queries) to 16777216", self.pairs);
        Unfit::check(possible, "data.length", wanted, length)?;
        Ok(length)
    }

    fn sequence(&self, length: usize, mut random: Random) -> Sequence {
        let (context, half) = (self.context(), self.vocab / 2);
        let keys: Vec<usize> = distinct(self.pairs, half - 1, &mut random).into_iter().map(|key| key + 1).collect();
        let values = distinct(self.pairs, self.vocab - half, &mut random).into_iter().map(|value| value + half);
        let pairs: Vec<(usize, usize)> = keys.into_iter().zip(values).collect();
        let gaps = self.gaps((length - context) / 2, &mut random);
        let queries: HashMap<usize, usize> = gaps.into_iter().enumerate().map(|(pair, gap)| (gap, pair)).collect();
        let (noise, vocab) = (self.random_noise, self.vocab as u32);
        Box::new((0..length).map(move |at| {
            if at < context {
                let (key, value) = pairs[at / 2 % pairs.len()];
                return (if at % 2 == 0 { key } else { value } as u32, IGNORE);
            }
            let place = at - context;
            match queries.get(&(place / 2)).filter(|_| place % 2 == 0) {
                Some(&pair) => (pairs[pair].0 as u32, pairs[pair].1 as i32),
                None if noise => (random.random_range(0..vocab), IGNORE),
                None => (0, IGNORE),
            }
        }))
    }

    fn is_data(&self, token: u32) -> bool {
        token != 0
    }
}

/// `m` distinct numbers below `n` in random order: the beginning of a shuffle, of which only what moved is stored.
fn distinct(m: usize, n: usize, random: &mut Random) -> Vec<usize> {
    let mut moved: HashMap<usize, usize> = HashMap::with_capacity(2 * m);
    (0..m)
        .map(|at| {
            let other = random.random_range(at..n);
            let here = moved.get(&at).copied().unwrap_or(at);
            moved.insert(other, here).unwrap_or(other)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    fn task(pairs: usize, vocab: usize) -> Mqar {
        Mqar::new(&TaskConfig { pairs, vocab, ..TaskConfig::default() }).unwrap()
    }

    fn one(task: &Mqar, length: usize, seed: u64) -> (Vec<u32>, Vec<i32>) {
        task.sequence(length, Random::seed_from_u64(seed)).unzip()
    }

    /// The definition, naively: the pairs as a table, then every later position looked up.
    fn check(task: &Mqar, length: usize, seed: u64) {
        let (tokens, targets) = one(task, length, seed);
        assert_eq!((tokens.len(), targets.len()), (length, length));
        let (context, half) = (task.context(), task.vocab as u32 / 2);
        let mut table: HashMap<u32, u32> = HashMap::new();
        for pair in tokens[..2 * task.pairs].chunks_exact(2) {
            assert!((1..half).contains(&pair[0]) && (half..task.vocab as u32).contains(&pair[1]), "{pair:?}");
            assert!(table.insert(pair[0], pair[1]).is_none(), "key {} twice", pair[0]);
        }
        assert_eq!(table.values().collect::<HashSet<_>>().len(), task.pairs, "a value twice");
        for pass in tokens[..context].chunks_exact(2 * task.pairs) {
            assert_eq!(pass, &tokens[..2 * task.pairs]);
        }
        assert!(targets[..context].iter().all(|&target| target == IGNORE));
        let mut asked = HashSet::new();
        for at in context..length {
            if targets[at] == IGNORE {
                assert!(task.random_noise || tokens[at] == 0, "position {at}");
                continue;
            }
            assert!((at - context).is_multiple_of(2), "position {at}");
            assert_eq!(table[&tokens[at]] as i32, targets[at], "position {at}");
            assert!(asked.insert(tokens[at]), "key {} asked twice", tokens[at]);
        }
        assert_eq!(asked.len(), task.pairs, "every key is asked");
    }

    #[test]
    fn sequences_are_as_defined() {
        for seed in 0..20 {
            check(&task(64, 8192), 256, seed);
            check(&task(4, 16), 64, seed);
            check(&task(7, 16), 28, seed);
            check(&task(1, 4), 4, seed);
            check(&Mqar { passes: 3, ..task(5, 32) }, 44, seed);
            check(&Mqar { random_noise: true, ..task(5, 33) }, 44, seed);
        }
    }

    #[test]
    fn noise_is_of_all_ids() {
        let noisy = Mqar { random_noise: true, ..task(1, 6) };
        let (tokens, targets) = one(&noisy, 400, 3);
        let noise = tokens.iter().zip(&targets).skip(2).filter(|(_, target)| **target == IGNORE);
        assert_eq!(noise.map(|(token, _)| token).collect::<HashSet<_>>().len(), 6);
    }

    /// Shares of the first key's gap, and of its places among the second's, against the definition summed over all draws.
    #[test]
    fn gaps_follow_the_power_law_without_replacement() {
        for gap_power in [0.01, 1.0, 2.5] {
            let (space, draws) = (6_usize, 40_000_u32);
            let task = Mqar { gap_power, ..task(2, 8) };
            let mut counts = [[0_u32; 6]; 2];
            for seed in 0..draws {
                let gaps = task.gaps(space, &mut Random::seed_from_u64(seed.into()));
                assert!(gaps.len() == 2 && gaps[0] != gaps[1]);
                counts[0][gaps[0]] += 1;
                counts[1][gaps[1]] += 1;
            }
            let weights: Vec<f64> = (0..space).map(|g| gap_power * ((g + 1) as f64).powf(gap_power - 1.0)).collect();
            let sum: f64 = weights.iter().sum();
            for gap in 0..space {
                let first = weights[gap] / sum;
                let others = (0..space).filter(|&other| other != gap);
                let second: f64 =
                    others.map(|other| weights[other] / sum * weights[gap] / (sum - weights[other])).sum();
                for (share, count) in [(first, counts[0][gap]), (second, counts[1][gap])] {
                    let deviation = (share * (1.0 - share) / f64::from(draws)).sqrt();
                    let got = f64::from(count) / f64::from(draws);
                    assert!((got - share).abs() < 5.0 * deviation, "{gap_power} {gap}: {got} for {share}");
                }
            }
        }
    }

    #[test]
    fn distinct_numbers_are_uniform_in_every_place() {
        let mut counts = [[0_u32; 5]; 3];
        let draws = 20_000;
        for seed in 0..draws {
            let drawn = distinct(3, 5, &mut Random::seed_from_u64(seed));
            assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), 3, "{drawn:?}");
            drawn.iter().zip(&mut counts).for_each(|(&number, counts)| counts[number] += 1);
        }
        // 4,000 are expected, the standard deviation is 57.
        assert!(counts.iter().flatten().all(|count| (3717..4283).contains(count)), "{counts:?}");
        assert_eq!(distinct(0, 0, &mut Random::seed_from_u64(1)), [0; 0]);
        let mut all = distinct(9, 9, &mut Random::seed_from_u64(1));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn sizes_that_cannot_be() {
        let wrong = |config: TaskConfig| Mqar::new(&config).unwrap_err().setting;
        let base = TaskConfig { vocab: 16, pairs: 4, ..TaskConfig::default() };
        assert_eq!(wrong(TaskConfig { vocab: 3, ..base.clone() }), "task.vocab");
        assert_eq!(wrong(TaskConfig { pairs: 8, ..base.clone() }), "task.pairs");
        assert_eq!(wrong(TaskConfig { pairs: 0, ..base.clone() }), "task.pairs");
        assert_eq!(wrong(TaskConfig { passes: 0, ..base.clone() }), "task.passes");
        for gap_power in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(wrong(TaskConfig { gap_power, ..base.clone() }), "task.gap_power");
        }
        let task = task(4, 16);
        for length in [0, 15, 17, (1 << 24) + 2, usize::MAX] {
            assert_eq!(task.positions(length).unwrap_err().setting, "data.length", "{length}");
        }
        assert_eq!((task.positions(16).unwrap(), task.positions(18).unwrap()), (16, 18));
    }
}
