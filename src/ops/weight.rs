//! Frozen weight matrices `[out_features, in_features]`, row-major, in the storage they were loaded or quantized to.

use std::sync::OnceLock;

use crate::gpu::{Buffers, Category, Gpu, GpuError, Kernel, MemoryPlan, VIEW_ALIGNMENT, View};
use crate::quant::format::{BlockCode, Code4, Float, Format4, NESTED_SCALES_AT, Storage};
use crate::random::{Stream, bits};

const DECODE_4BIT: &str = shader!("lib/decode_4bit.wgsl");

impl Float {
    pub(super) fn part(self) -> &'static str {
        match self {
            Self::F32 => shader!("lib/float_f32.wgsl"),
            Self::F16 => shader!("lib/float_f16.wgsl"),
            Self::Bf16 => shader!("lib/float_bf16.wgsl"),
        }
    }
}

impl Code4 {
    /// Joins the code's 16 values and `decode`, which takes them by index. They are constants of the text, since a table indexed at
    /// run time leaves the registers.
    pub(super) fn join(self, kernel: Kernel) -> Kernel {
        static VALUES: OnceLock<[String; Code4::DECODED.len()]> = OnceLock::new();
        let texts = VALUES.get_or_init(|| Self::DECODED.map(Self::values_text));
        kernel.part(&texts[self as usize]).part(DECODE_4BIT)
    }

    /// `CODE_0` to `CODE_15` in WGSL.
    fn values_text(self) -> String {
        // Rust writes the shortest decimals that read back as the same f32.
        let line = |(i, value): (usize, &f32)| format!("const CODE_{i}: f32 = {value:?};\n");
        self.spec().values.iter().enumerate().map(line).collect()
    }

    /// Joins the elements that share one absmax, `QUANT_BLOCK`.
    pub(super) fn join_block(self, kernel: Kernel) -> Kernel {
        kernel.constant("QUANT_BLOCK", self.block() as u32)
    }
}

impl BlockCode {
    /// Joins `codes`, which unpacks four codes, and the constants of the layout.
    pub(super) fn join(self, kernel: Kernel) -> Kernel {
        kernel
            .constant("QUANT_BLOCK", self.block() as u32)
            .constant("CODE_BITS", self.bits())
            .constant("BYTES", self.bits() == 8)
            .constant("MINIMUM", self.has_minimum())
            .part(shader!("lib/block_codes.wgsl"))
    }
}

/// The place of a weight in a kernel's bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The beginning of the bindings.
    Fixed,
    /// The place in the shader's variable `origin`.
    Moving,
}

impl Origin {
    /// Joins the part that all parts that read a weight or its scales need.
    pub(super) fn join(self, kernel: Kernel) -> Kernel {
        kernel.constant("MOVING", self == Self::Moving).part(shader!("lib/weight_origin.wgsl"))
    }
}

impl Storage {
    /// Joins the parts that define `weight4` (bindings 1 to 3 of group 0).
    pub(super) fn join(self, kernel: Kernel, in_features: u32) -> Kernel {
        self.join_at(kernel, in_features, Origin::Fixed)
    }

    /// [`Self::join`] for a weight at `origin` in its bindings.
    pub(super) fn join_at(self, kernel: Kernel, in_features: u32, origin: Origin) -> Kernel {
        let kernel = origin.join(kernel);
        // Four neighbors then share a word or two, and one absmax.
        let kernel = kernel.constant("ALIGNED", in_features.is_multiple_of(4));
        match self {
            Self::Float(float) => kernel.part(shader!("lib/weight_float.wgsl")).part(float.part()),
            Self::Quantized(Format4 { code, double }) => {
                let scales = if double { shader!("lib/absmax_nested.wgsl") } else { shader!("lib/absmax_f32.wgsl") };
                let kernel = code.join(code.join_block(kernel));
                kernel.part(shader!("lib/weight_4bit.wgsl")).part(scales)
            }
            Self::Blocks(code) => {
                code.join(kernel.part(shader!("lib/weight_float.wgsl"))).part(shader!("lib/weight_blocks.wgsl"))
            }
        }
    }
}

/// Rows `first_row ..` of a weight in one binding. Scales are absent (None) in float storage, `nested` without double quantization.
#[derive(Clone, Copy, Debug)]
pub struct Panel {
    /// The first row of the panel in the weight.
    pub first_row: u32,
    /// Number of rows in the panel.
    pub rows: u32,
    /// The values, or their codes, row by row.
    pub data: View,
    /// Scale of each block of the panel: f32, or 8-bit codes under double quantization. A block's minimum follows its scale.
    pub absmax: Option<View>,
    /// With double quantization f32 values: the 256 values of the 8-bit code, the offset, and the scale of each 256
    /// codes.
    pub nested: Option<View>,
}

/// One of several matrices that read the same input.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Name of its buffers in reports.
    pub label: &'a str,
    /// Output features, the rows of the matrix.
    pub out_features: u32,
    /// True if the matrix has a bias.
    pub bias: bool,
}

/// A weight matrix on the device.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Format of the values.
    pub storage: Storage,
    /// Output features, the rows of the matrix.
    pub out_features: u32,
    /// Input features, the columns of the matrix.
    pub in_features: u32,
    /// The matrix in panels of whole rows.
    pub panels: Vec<Panel>,
    /// The bias, f32 `[out_features]`.
    pub bias: Option<View>,
}

impl Weight {
    /// Plans the buffers of a weight. A matrix over `max_binding_bytes` becomes several panels of whole rows. The panels of a 4-bit
    /// weight are quantized separately.
    pub fn plan(
        plan: &mut MemoryPlan,
        label: &str,
        storage: Storage,
        [out_features, in_features]: [u32; 2],
        bias: bool,
        max_binding_bytes: u64,
    ) -> Self {
        // Whole columns of 64 keep every panel's first output aligned for its neighbors' views.
        let bytes = storage.bytes(64 * u64::from(in_features)).0;
        let fitting = u32::try_from(max_binding_bytes / bytes).unwrap_or(u32::MAX).max(1);
        let per_panel = 64 * fitting.min(out_features.div_ceil(64));
        let mut panels = Vec::new();
        let mut first_row = 0;
        while first_row < out_features {
            let rows = per_panel.min(out_features - first_row);
            let elements = u64::from(rows) * u64::from(in_features);
            let data = plan.alloc(Category::Weights, label, storage.bytes(elements).0);
            let [absmax, nested] = storage.scale_bytes(elements);
            let absmax = absmax.map(|bytes| plan.alloc(Category::QuantScales, absmax_label(label), bytes));
            let nested = nested.map(|bytes| plan.alloc(Category::QuantScales, nested_label(label), bytes));
            panels.push(Panel { first_row, rows, data, absmax, nested });
            first_row += rows;
        }
        Self { storage, out_features, in_features, panels, bias: plan_bias(plan, label, out_features, bias) }
    }

    /// The matrix alone.
    pub fn without_bias(&self) -> Self {
        Self { bias: None, ..self.clone() }
    }

    /// Plans contiguous matrices that read the same input, so that one contraction can compute the gradient of that input.
    pub fn plan_contiguous<const N: usize>(
        plan: &mut MemoryPlan,
        matrices: [Rows; N],
        storage: Storage,
        in_features: u32,
        max_binding_bytes: u64,
    ) -> [Self; N] {
        let elements = matrices.map(|matrix| u64::from(matrix.out_features) * u64::from(in_features));
        let values = elements.map(|elements| storage.bytes(elements).0);
        if values.iter().any(|bytes| *bytes > max_binding_bytes) {
            let in_panels = |Rows { label, out_features, bias }| {
                Self::plan(plan, label, storage, [out_features, in_features], bias, max_binding_bytes)
            };
            return matrices.map(in_panels);
        }
        let label = matrices.map(|matrix| matrix.label).join(", ");
        let data = plan.alloc_contiguous(Category::Weights, &label, values);
        let scales = elements.map(|elements| storage.scale_bytes(elements));
        let mut contiguous_scales = |label: String, which: usize| {
            let bytes = scales.map(|scales| scales[which]);
            bytes[0].map(|_| plan.alloc_contiguous(Category::QuantScales, &label, bytes.map(Option::unwrap_or_default)))
        };
        let absmax = contiguous_scales(absmax_label(&label), 0);
        let nested = contiguous_scales(nested_label(&label), 1);
        std::array::from_fn(|i| {
            let Rows { label, out_features, bias } = matrices[i];
            let [absmax, nested] = [absmax, nested].map(|views| views.map(|views| views[i]));
            let panels = vec![Panel { first_row: 0, rows: out_features, data: data[i], absmax, nested }];
            Self { storage, out_features, in_features, panels, bias: plan_bias(plan, label, out_features, bias) }
        })
    }

    /// Plans matrices of one shape one behind the other, at equal distances, in as few buffers as one binding each allows.
    pub fn plan_stack(
        plan: &mut MemoryPlan,
        label: &str,
        storage: Storage,
        [out_features, in_features]: [u32; 2],
        count: usize,
        max_binding_bytes: u64,
    ) -> Vec<Self> {
        let elements = u64::from(out_features) * u64::from(in_features);
        let values = storage.bytes(elements).0;
        let [absmax, nested] = storage.scale_bytes(elements);
        let distance = |bytes: u64| bytes.max(4).next_multiple_of(VIEW_ALIGNMENT);
        let fitting = usize::try_from(max_binding_bytes / distance(values)).unwrap_or(usize::MAX).clamp(1, count);
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let matrices = fitting.min(count - all.len());
            let mut places = |category, label: String, bytes: u64| {
                let whole = plan.alloc(category, label, distance(bytes) * matrices as u64);
                move |i: usize| whole.slice(distance(bytes) * i as u64, bytes.max(4).next_multiple_of(16))
            };
            let data = places(Category::Weights, label.to_owned(), values);
            let absmax = absmax.map(|bytes| places(Category::QuantScales, absmax_label(label), bytes));
            let nested = nested.map(|bytes| places(Category::QuantScales, nested_label(label), bytes));
            all.extend((0..matrices).map(|i| {
                let [absmax, nested] = [&absmax, &nested].map(|place| place.as_ref().map(|place| place(i)));
                let panels = vec![Panel { first_row: 0, rows: out_features, data: data(i), absmax, nested }];
                Self { storage, out_features, in_features, panels, bias: None }
            }));
        }
        all
    }

    /// Writes values of a trained model's size, for measurements: uniform within a tenth, repeated every MiB.
    ///
    /// # Errors
    /// A failing device.
    pub async fn fill_randomly(&self, gpu: &Gpu, buffers: &Buffers, seed: u64) -> Result<(), GpuError> {
        const TENTH: f32 = 0.1;
        let words: Vec<u64> = (0..1u64 << 17).map(|i| bits(seed, Stream::Sampling, 2, i)).collect();
        let random: &[u8] = bytemuck::cast_slice(&words);
        let value = |i: usize| TENTH * (words[i % words.len()] as i64 as f64 / i64::MAX as f64) as f32;
        for panel in &self.panels {
            match self.storage {
                Storage::Quantized(Format4 { double, .. }) => {
                    fill(gpu, buffers, panel.data, random).await?;
                    if let Some(absmax) = panel.absmax {
                        let plain = vec![TENTH; 1 << 16];
                        let pattern = if double { random } else { bytemuck::cast_slice(&plain) };
                        fill(gpu, buffers, absmax, pattern).await?;
                    }
                    if let Some(nested) = panel.nested {
                        let scales = (nested.bytes / 4 - NESTED_SCALES_AT) as usize;
                        let codes = (0..NESTED_SCALES_AT - 1).map(|i| i as f32 / 127.5 - 1.0).chain([TENTH]);
                        let values: Vec<f32> = codes.chain(std::iter::repeat_n(0.5 * TENTH, scales)).collect();
                        fill(gpu, buffers, nested, bytemuck::cast_slice(&values)).await?;
                    }
                }
                Storage::Blocks(code) => {
                    fill(gpu, buffers, panel.data, random).await?;
                    if let Some(scales) = panel.absmax {
                        let of_block = [TENTH / (1u32 << (code.bits() - 1)) as f32, TENTH];
                        let pattern = of_block[..code.of_block() as usize].repeat(1 << 16);
                        fill(gpu, buffers, scales, bytemuck::cast_slice(&pattern)).await?;
                    }
                }
                Storage::Float(float) => {
                    let values = (0..1 << 16).map(value);
                    let pattern: Vec<u8> = match float {
                        Float::F32 => values.flat_map(f32::to_le_bytes).collect(),
                        Float::F16 => values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
                        Float::Bf16 => values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
                    };
                    fill(gpu, buffers, panel.data, &pattern).await?;
                }
            }
        }
        Ok(())
    }
}

fn absmax_label(label: &str) -> String {
    format!("{label} absmax")
}

fn nested_label(label: &str) -> String {
    format!("{label} nested absmax")
}

fn plan_bias(plan: &mut MemoryPlan, label: &str, out_features: u32, bias: bool) -> Option<View> {
    bias.then(|| plan.alloc(Category::Weights, format!("{label} bias"), 4 * u64::from(out_features)))
}

/// Repeats `pattern` over all of `view`. Its length must be a multiple of the alignment of views.
async fn fill(gpu: &Gpu, buffers: &Buffers, view: View, pattern: &[u8]) -> Result<(), GpuError> {
    /// Pending writes stay in host memory until a flush, so that their bytes are bounded.
    const FLUSH_BYTES: usize = 16 << 20;
    let mut waiting = 0;
    for offset in (0..view.bytes).step_by(pattern.len()) {
        let part = view.slice(offset, (view.bytes - offset).min(pattern.len() as u64));
        gpu.write(buffers, part, &pattern[..part.bytes as usize]);
        waiting += pattern.len();
        if waiting >= FLUSH_BYTES {
            gpu.flush().await?;
            waiting = 0;
        }
    }
    Ok(())
}

/// Values as the device stores them, and what is left of them after rounding.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    use half::{bf16, f16};

    use super::Float;

    /// The words of a table; the last one is padded with zero.
    pub(crate) fn words(storage: Float, values: &[f64]) -> Vec<u32> {
        let halves = |bits: fn(f32) -> u16| {
            let bits: Vec<u16> = values.iter().map(|v| bits(*v as f32)).collect();
            bits.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16).collect()
        };
        match storage {
            Float::F32 => values.iter().map(|v| (*v as f32).to_bits()).collect(),
            Float::F16 => halves(|v| f16::from_f32(v).to_bits()),
            Float::Bf16 => halves(|v| bf16::from_f32(v).to_bits()),
        }
    }

    pub(crate) fn rounded(storage: Float, value: f64) -> f64 {
        match storage {
            Float::F32 => f64::from(value as f32),
            Float::F16 => f16::from_f32(value as f32).to_f64(),
            Float::Bf16 => bf16::from_f32(value as f32).to_f64(),
        }
    }
}
