//! Counter-based random numbers: a value depends only on (seed, stream, item, index), so a resumed run draws the same values.

/// Streams of random numbers. Each use has its own, so that more draws in one stream never change another.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Stream {
    /// Initial values of the LoRA factors.
    LoraInit = 1,
    /// Order of the examples in each epoch.
    Shuffle = 2,
    /// Seeds of dropout, one for each micro-batch.
    Dropout = 3,
    /// Choice of tokens in generation, and weights for measurements.
    Sampling = 4,
    /// Choice of the held-out examples.
    Split = 5,
    /// Initial weights of a model that is trained from scratch.
    WeightInit = 6,
}

/// SplitMix64's finalizer (Steele, Lea, Flood 2014): a bijection of 64 bits that passes as random.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns 64 random bits: draw `index` of `stream`. `item` separates sequences in one stream, such as tensors or epochs.
pub fn bits(seed: u64, stream: Stream, item: u64, index: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(mix(seed.wrapping_add(GOLDEN)) ^ (stream as u64).wrapping_mul(GOLDEN));
    mix(mix(key ^ item.wrapping_mul(GOLDEN)).wrapping_add(index.wrapping_mul(GOLDEN)))
}

/// Returns a uniform number in [0, 1) with 24 random bits.
pub fn uniform(seed: u64, stream: Stream, item: u64, index: u64) -> f32 {
    (bits(seed, stream, item, index) >> 40) as f32 / (1u32 << 24) as f32
}

/// Returns standard normal number `index`, made of the uniform draws `2 index` and `2 index + 1` (Box and Muller 1958).
pub fn normal(uniform: impl Fn(u64) -> f32, index: u64) -> f64 {
    // 1 - u keeps the logarithm's argument above zero.
    let radius = (-2.0 * (1.0 - f64::from(uniform(2 * index))).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * f64::from(uniform(2 * index + 1))).cos()
}

/// Returns a random permutation of `0..len` (Fisher and Yates).
pub fn permutation(seed: u64, stream: Stream, item: u64, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        // The bias of the remainder is under 2^-32 for any data set that fits in memory.
        let j = (bits(seed, stream, item, i as u64) % (i as u64 + 1)) as usize;
        order.swap(i, j);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_hold_every_index_once_and_depend_on_the_seed() {
        let mut a = permutation(1, Stream::Shuffle, 0, 1000);
        assert_ne!(a, permutation(2, Stream::Shuffle, 0, 1000));
        assert_ne!(a, permutation(1, Stream::Shuffle, 1, 1000));
        assert_eq!(a, permutation(1, Stream::Shuffle, 0, 1000));
        a.sort_unstable();
        assert!(a.iter().copied().eq(0..1000));
    }

    #[test]
    fn normal_has_the_mean_and_variance_of_a_normal() {
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|i| normal(|draw| uniform(7, Stream::LoraInit, 3, draw), i)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert!(draws.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn uniform_has_the_mean_and_variance_of_a_uniform() {
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|i| f64::from(uniform(7, Stream::LoraInit, 3, i))).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.002, "{mean} {variance}");
        assert!(draws.iter().all(|x| (0.0..1.0).contains(x)));
    }
}
