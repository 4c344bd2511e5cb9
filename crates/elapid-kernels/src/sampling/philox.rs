//! Random numbers by counting (Salmon et al. 2011, doi 10.1145/2063384.2063405): the number of a place is a function of the
//! seed and the place, whoever asks and in whatever order.

/// Philox4x32-10.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product = |m: u32, c: u32| u64::from(m) * u64::from(c);
        let (p, q) = (product(0xd251_1f53, counter[0]), product(0xcd9e_8d57, counter[2]));
        counter = [(q >> 32) as u32 ^ counter[1] ^ key[0], q as u32, (p >> 32) as u32 ^ counter[3] ^ key[1], p as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// The number in `[0, 1)` that decides which token sample `sample` has after `position` others.
///
/// It depends on nothing else: not on the device, the batch, the row, or what was drawn before.
pub fn uniform(seed: u64, sample: u64, position: u64) -> f64 {
    let counter = [position as u32, (position >> 32) as u32, sample as u32, (sample >> 32) as u32];
    let [high, low, ..] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(high) << 32 | u64::from(low);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
