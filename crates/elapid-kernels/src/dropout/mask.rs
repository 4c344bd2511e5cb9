//! What is dropped, and the keys of draws.

use crate::sampling::philox::philox4x32_10;

/// What is kept together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Every element is drawn alone: dropout.
    Element,
    /// A sample is kept or dropped as a whole: stochastic depth.
    Sample,
}

/// Which elements are dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask {
    /// What the draws of this place in the model follow from: see [`key`].
    pub key: u64,
    /// The probability of being dropped, at least 0 and less than 1.
    pub rate: f32,
    /// Rows of a sample.
    pub l: usize,
    /// What is drawn.
    pub unit: Unit,
}

impl Mask {
    /// Words below it are dropped.
    pub(super) fn threshold(&self) -> u32 {
        (f64::from(self.rate) * 4_294_967_296.0) as u32
    }

    /// What kept elements are multiplied by.
    pub(super) fn factor(&self) -> f32 {
        1.0 / (1.0 - self.rate)
    }
}

/// The key of a place in a model: another one for every place and every seed.
pub fn key(seed: u64, place: u64) -> u64 {
    // Apart from the counters of draws, so that no key is a draw.
    let counter = [place as u32, (place >> 32) as u32, 0x6472_6f70, 0x6f75_7400];
    let [low, high, ..] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}
