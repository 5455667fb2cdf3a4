//! bitsandbytes' 8-bit dynamic maps, and the second quantization, of the block scales, which takes one in blocks of 256.

use std::sync::OnceLock;

use crate::quant::format::NESTED_BLOCK;

/// The absmax of each block of a quantized matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// The absmax values themselves, in f32.
    Plain(Vec<f32>),
    /// Double quantization: 8-bit codes of the absmax values less their mean `offset`, and the absmax of each block of codes.
    Nested {
        /// Index into [`dynamic_map`] for each block of the matrix.
        codes: Vec<u8>,
        /// Scale of each 256 codes.
        absmax: Vec<f32>,
        /// Mean of the absmax values, added back after decoding.
        offset: f32,
    },
}

impl Scales {
    /// The absmax of each block.
    pub fn absmax(&self) -> Vec<f32> {
        match self {
            Self::Plain(absmax) => absmax.clone(),
            Self::Nested { codes, absmax, offset } => {
                let map = dynamic_map();
                let scale = |i: usize| absmax[i / NESTED_BLOCK as usize];
                codes.iter().enumerate().map(|(i, code)| map[usize::from(*code)] * scale(i) + offset).collect()
            }
        }
    }
}

/// The 256 values of bitsandbytes' signed dynamic map, ascending: seven decades, each with twice the steps of the one below.
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: OnceLock<[f32; 256]> = OnceLock::new();
    MAP.get_or_init(|| dynamic_values(true))
}

/// The 256 values of bitsandbytes' unsigned dynamic map: no negative values, and twice the steps.
pub fn unsigned_dynamic_map() -> &'static [f32; 256] {
    static MAP: OnceLock<[f32; 256]> = OnceLock::new();
    MAP.get_or_init(|| dynamic_values(false))
}

fn dynamic_values(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7 {
        let count = (if signed { 1usize } else { 2 } << decade) + 1;
        let step = (1.0f32 - 0.1) / (count - 1) as f32;
        // torch's linspace counts from both ends; each point is rounded once, as a fused multiply-add is.
        let point = |k: usize| {
            let from_low = f64::from(step) * k as f64 + f64::from(0.1f32);
            let from_high = 1.0 - f64::from(step) * (count - 1 - k) as f64;
            (if k < count / 2 { from_low } else { from_high }) as f32
        };
        let power = 10f64.powi(decade - 6) as f32;
        for k in 0..count - 1 {
            let value = power * ((point(k) + point(k + 1)) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|i| values[i])
}

/// bitsandbytes looks codes up through 65536 steps of [-1, 1]: entry `j` is the first step whose code exceeds `j`.
/// The code of step `k` is the count of entries that are at most `k`.
pub fn first_steps() -> &'static [u32; 255] {
    static STEPS: OnceLock<[u32; 255]> = OnceLock::new();
    STEPS.get_or_init(|| {
        let map = dynamic_map();
        let value = |k: u32| (k + k) as f32 / 65535.0 - 1.0;
        let mut k = 0;
        std::array::from_fn(|j| {
            let middle = (map[j] + map[j + 1]) * 0.5;
            while k < 65536 && value(k) <= middle {
                k += 1;
            }
            k
        })
    })
}

/// The f32 mean with torch's order of additions (eight lanes, four rows of them at a time, sums cascaded in sixteens),
/// so that the offset has the bits that bitsandbytes stores.
pub fn mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    let lanes = if values.len() < LANES { 1 } else { LANES };
    let vectors = values.len() / lanes;
    let mut total = 0.0f32;
    for value in &values[vectors * lanes..] {
        total += value;
    }
    for lane in 0..lanes {
        total += lane_sum(vectors, |row| values[row * lanes + lane]);
    }
    total / values.len() as f32
}

/// The sum of one lane over `rows` vectors.
fn lane_sum(rows: usize, value: impl Fn(usize) -> f32) -> f32 {
    const STREAMS: usize = 4;
    let per_stream = rows / STREAMS;
    let mut sums: [f32; STREAMS] = std::array::from_fn(|s| cascade_sum(per_stream, |i| value(STREAMS * i + s)));
    for row in STREAMS * per_stream..rows {
        sums[0] += value(row);
    }
    sums[0] + sums[1] + sums[2] + sums[3]
}

fn cascade_sum(count: usize, value: impl Fn(usize) -> f32) -> f32 {
    const LEVELS: usize = 4;
    let log2 = if count <= 1 { 0 } else { usize::BITS - (count - 1).leading_zeros() } as usize;
    let power = (log2 / LEVELS).max(4);
    let (step, mask) = (1usize << power, (1usize << power) - 1);
    let mut levels = [0.0f32; LEVELS];
    let mut i = 0;
    while i + step <= count {
        for _ in 0..step {
            levels[0] += value(i);
            i += 1;
        }
        for level in 1..LEVELS {
            levels[level] += levels[level - 1];
            levels[level - 1] = 0.0;
            if i & (mask << (level * power)) != 0 {
                break;
            }
        }
    }
    while i < count {
        levels[0] += value(i);
        i += 1;
    }
    levels[0] + levels[1] + levels[2] + levels[3]
}

pub(super) fn quantize(absmax: &[f32]) -> Scales {
    let offset = mean(absmax);
    let steps = first_steps();
    let mut codes = Vec::with_capacity(absmax.len());
    let mut scales = Vec::new();
    for block in absmax.chunks(NESTED_BLOCK as usize) {
        let shifted: Vec<f32> = block.iter().map(|v| v - offset).collect();
        let largest = shifted.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        scales.push(largest);
        let inverse = 1.0 / largest;
        for value in shifted {
            if largest == 0.0 {
                codes.push(0);
                continue;
            }
            let unit = ((value * inverse).clamp(-1.0, 1.0) + 1.0) * 0.5;
            let step = unit.mul_add(65535.0, 0.5) as u32;
            codes.push(steps.partition_point(|first| *first <= step) as u8);
        }
    }
    Scales::Nested { codes, absmax: scales, offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_ascends_through_zero_to_one() {
        let map = dynamic_map();
        assert!(map.windows(2).all(|w| w[0] < w[1]));
        assert_eq!((map[127], map[255]), (0.0, 1.0));
        assert_eq!(map[0], -0.99296874);
    }

    #[test]
    fn the_mean_is_a_mean() {
        for count in [1, 7, 8, 31, 64, 172, 1000, 70_000] {
            let values: Vec<f32> = (0..count).map(|i| 1.0 + (i as f32 * 0.7).sin()).collect();
            let exact = values.iter().map(|v| f64::from(*v)).sum::<f64>() / f64::from(count);
            assert!((f64::from(mean(&values)) - exact).abs() < 1e-6 * exact, "{count}");
        }
    }
}
