//! The frequencies of rotary positions, and how they are changed for texts longer than those of training.

use std::f64::consts::TAU;

/// How the frequencies of rotary positions are changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All are divided by a factor (position interpolation, Chen et al. 2023).
    Linear(f64),
    /// The base is multiplied by factor^(r / (r - 2)), so that the lowest frequency is divided by the factor and the highest
    /// stays (NTK-aware).
    Ntk(f64),
    /// Wavelengths over `original / low` are divided by the factor, those under `original / high` stay, and those between
    /// are interpolated (Llama 3.1).
    Llama3 {
        /// What long wavelengths are divided by.
        factor: f64,
        /// Turns over the training length up to which a wavelength is long.
        low: f64,
        /// Turns from which it is short.
        high: f64,
        /// Positions in training.
        original: f64,
    },
    /// Columns that turn less than `slow` times over the training length are divided by the factor, those that turn more than
    /// `fast` times stay, with a ramp over the columns between (YaRN, Peng et al. 2023).
    Yarn {
        /// What slow columns are divided by.
        factor: f64,
        /// Turns from which a column is fast.
        fast: f64,
        /// Turns up to which it is slow.
        slow: f64,
        /// Positions in training.
        original: f64,
        /// Whether the ramp begins and ends at whole columns.
        truncate: bool,
    },
}

impl Scaling {
    /// Radians per position of each pair of `columns` columns.
    pub fn frequencies(self, columns: usize, base: f64) -> Vec<f64> {
        let r = columns as f64;
        let base = match self {
            Self::Ntk(factor) => base * factor.powf(r / (r - 2.0)),
            _ => base,
        };
        let plain = (0..columns / 2).map(|i| base.powf(-2.0 * i as f64 / r));
        match self {
            Self::None | Self::Ntk(_) => plain.collect(),
            Self::Linear(factor) => plain.map(|frequency| frequency / factor).collect(),
            Self::Llama3 { factor, low, high, original } => plain
                .map(|frequency| {
                    let turns = original * frequency / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    mix(frequency / factor, frequency, kept)
                })
                .collect(),
            Self::Yarn { factor, fast, slow, original, truncate } => {
                let column = |turns: f64| r * (original / (turns * TAU)).ln() / (2.0 * base.ln());
                let (from, to) = (column(fast), column(slow));
                let (from, to) = if truncate { (from.floor(), to.ceil()) } else { (from, to) };
                let (from, to) = (from.max(0.0), to.min(r - 1.0));
                let to = if from == to { to + 0.001 } else { to };
                let slowed = |(i, frequency): (usize, f64)| {
                    let ramp = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                    mix(frequency, frequency / factor, ramp)
                };
                plain.enumerate().map(slowed).collect()
            }
        }
    }

    /// What YaRN multiplies queries and keys by unless told otherwise: 0.1 ln(factor) + 1.
    pub fn attention_factor(self) -> f64 {
        match self {
            Self::Yarn { factor, .. } if factor > 1.0 => 0.1 * factor.ln() + 1.0,
            _ => 1.0,
        }
    }
}

/// (1 - t) a + t b.
fn mix(a: f64, b: f64, t: f64) -> f64 {
    (1.0 - t) * a + t * b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64) {
        assert!((got / want - 1.0).abs() < 1e-9, "{got} {want}");
    }

    #[test]
    fn linear_and_ntk_divide_the_lowest_frequency() {
        let plain = Scaling::None.frequencies(8, 1e4);
        let linear = Scaling::Linear(4.0).frequencies(8, 1e4);
        linear.iter().zip(&plain).for_each(|(linear, plain)| close(*linear, plain / 4.0));
        let ntk = Scaling::Ntk(4.0).frequencies(8, 1e4);
        close(ntk[0], plain[0]);
        close(ntk[3], plain[3] / 4.0);
    }

    /// Llama 3.1 8B: 64 pairs of base 500000, 8192 positions in training.
    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let (plain, got) = (Scaling::None.frequencies(128, 5e5), scaling.frequencies(128, 5e5));
        for (plain, got) in plain.iter().zip(&got) {
            let wave = TAU / plain;
            match wave {
                _ if wave < 2048.0 => close(*got, *plain),
                _ if wave > 8192.0 => close(*got, plain / 8.0),
                _ => {
                    let smooth = (8192.0 / wave - 1.0) / 3.0;
                    close(*got, (1.0 - smooth) * plain / 8.0 + smooth * plain);
                }
            }
        }
        assert!(got.windows(2).all(|pair| pair[1] < pair[0]));
    }

    /// The ramp of 64 columns, base 10000, over 4096 positions: 32 turns at column 20.9, one at 45.03.
    #[test]
    fn yarn_has_a_ramp_over_columns() {
        let scaling = Scaling::Yarn { factor: 16.0, fast: 32.0, slow: 1.0, original: 4096.0, truncate: true };
        let (plain, got) = (Scaling::None.frequencies(128, 1e4), scaling.frequencies(128, 1e4));
        let (from, to) = (20.0, 46.0);
        for (i, (plain, got)) in plain.iter().zip(&got).enumerate() {
            let ramp = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
            close(*got, plain * (1.0 - ramp) + plain / 16.0 * ramp);
        }
        close(scaling.attention_factor(), 0.1 * 16f64.ln() + 1.0);
    }

    /// golden/positions.json: frequencies and factors as transformers computes them, in f32.
    #[test]
    fn scalings_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/positions.json");
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let all = golden["scalings"].as_array().unwrap();
        for one in all {
            let get =
                |name: &str, otherwise: f64| one.get(name).and_then(serde_json::Value::as_f64).unwrap_or(otherwise);
            let (factor, original) = (get("factor", 1.0), get("original_max_position_embeddings", 4096.0));
            let scaling = match one["kind"].as_str().unwrap() {
                "linear" => Scaling::Linear(factor),
                // Of a text of `length` where `original` was trained on.
                "dynamic" => Scaling::Ntk(factor * get("length", 0.0) / original - (factor - 1.0)),
                "llama3" => Scaling::Llama3 {
                    factor,
                    low: get("low_freq_factor", 1.0),
                    high: get("high_freq_factor", 4.0),
                    original,
                },
                _ => {
                    let (fast, slow) = (get("beta_fast", 32.0), get("beta_slow", 1.0));
                    let truncate = one.get("truncate").is_none_or(|truncate| truncate.as_bool().unwrap());
                    Scaling::Yarn { factor, fast, slow, original, truncate }
                }
            };
            let got = scaling.frequencies(one["dim"].as_u64().unwrap() as usize, get("base", 1e4));
            let want: Vec<f64> = one["frequencies"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert!((got / want - 1.0).abs() < 2e-6, "{one}: {got} {want}");
            }
            assert!((scaling.attention_factor() - get("attention_factor", 0.0)).abs() < 1e-6, "{one}");
        }
        assert_eq!(all.len(), 9);
    }

    /// The same values as ours; transformers has all sines before all cosines.
    #[test]
    fn sinusoids_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/positions.json");
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for table in golden["sinusoids"].as_array().unwrap() {
            let d = table["dim"].as_u64().unwrap() as usize;
            let numbers = |x: &serde_json::Value| -> Vec<f64> {
                x.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
            };
            let positions: Vec<u64> = numbers(&table["positions"]).iter().map(|&at| at as u64).collect();
            let got = crate::ops::sinusoids(&positions, d);
            for (row, want) in table["values"].as_array().unwrap().iter().enumerate() {
                for (column, want) in numbers(want).into_iter().enumerate() {
                    let ours = if column < d / 2 { 2 * column } else { 2 * (column - d / 2) + 1 };
                    assert!((f64::from(got[row * d + ours]) - want).abs() < 1e-6, "row {row}, column {column} of {d}");
                }
            }
        }
    }
}
