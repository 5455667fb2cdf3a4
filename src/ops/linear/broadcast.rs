//! Variants for software adapters with subgroups of eight: one lane loads a value and hands it to the others, and the weight is
//! decoded on the way in, see `shaders/linear_broadcast.wgsl`.

use super::contraction::{Contraction, Direction};
use crate::gpu::{Capabilities, Constant, Kernel, Recorder, View, params};
use crate::ops::VariantFamily;
use crate::ops::lib_parts::MASK_TAIL;
use crate::ops::weight::Origin;
use crate::quant::format::{Code4, Float, Format4, Storage};

/// Lanes of a workgroup, which is one subgroup. The shader has the number too.
const LANES: u32 = VariantFamily::LANES;
/// Consecutive weights of a row that are decoded together.
const OCTET: u32 = 8;
/// Rows of a workgroup whose lanes own four columns and whose turns take four contracted values: with more, the text outgrows what
/// a core keeps of decoded instructions.
const MAX_ROWS: u32 = 64;
/// A text of few rows compiles in a fraction of the time, which streams of fewer than `MANY_ROWS` would not win back.
const FEW_ROWS: u32 = 8;
const MANY_ROWS: u32 = 128;
/// Columns of a lane: the factors of LoRA have few.
const WIDTHS: [u32; 3] = [8, 4, 2];
// A workgroup's columns of an input gradient lie in two blocks of a row at most, see `tile_gradient.wgsl`.
const _: () = {
    let mut i = 0;
    while i < Code4::DECODED.len() {
        let widest = if is_narrow(Code4::DECODED[i].block()) { WIDTHS[1] } else { WIDTHS[0] };
        assert!(Code4::DECODED[i].block() >= (LANES * widest) as u64);
        i += 1;
    }
};

/// True for blocks of fewer elements than the widest strip has columns.
const fn is_narrow(block: u64) -> bool {
    block < (LANES * WIDTHS[0]) as u64
}

/// Half of the second-level cache of a common core.
const PART_BYTES: u64 = 512 << 10;
const DECODE_WG_SIZE: u32 = 64;

params! {
    struct Params {
        rows: u32,
        cols: u32,
        begin: u32,
        depth: u32,
        in_features: u32,
        x_ld4: u32,
        x_col4: u32,
        y_ld4: u32,
        y_col4: u32,
        rank: u32,
        product_ld4: u32,
        factor_first: u32,
        scale: f32,
        first_col: u32,
        bias: u32,
        accumulate: u32,
    }

    struct DecodeParams {
        count: u32,
    }
}

/// One text of the kernel.
#[derive(Clone, Copy, Debug)]
struct Variant {
    direction: Direction,
    storage: Storage,
    /// True for so many rows that a long text is worth its compilation.
    many: bool,
    /// Columns of a lane.
    width: u32,
    /// The rank is a multiple of 4.
    whole_rank: bool,
}

impl Variant {
    /// Contracted values of one turn of the loop, in fours: both halves of an octet where unpacking them together saves more than
    /// twice the rows would.
    fn octet_halves(self) -> u32 {
        match (self.direction, self.storage) {
            (Direction::Forward, Storage::Float(Float::F16 | Float::Bf16)) => 2,
            (Direction::Forward, Storage::Quantized { .. }) if !self.many => 2,
            _ => 1,
        }
    }

    /// Rows of a workgroup.
    fn rows(self) -> u32 {
        if self.many { MAX_ROWS / (self.width.div_ceil(4) * self.octet_halves()) } else { FEW_ROWS }
    }

    fn kernel(self) -> Kernel {
        let tile = match self.direction {
            Direction::Forward => shader!("lib/tile_forward.wgsl"),
            Direction::InputGradient => shader!("lib/tile_gradient.wgsl"),
        };
        let quantized = matches!(self.storage, Storage::Quantized { .. });
        let packed = if self.storage == Storage::Float(Float::F32) { OCTET / 2 } else { OCTET };
        // Rows of lora_A are whole quads, since those of the weight are octets; those of lora_B where the rank is.
        let quads = self.direction == Direction::InputGradient || self.whole_rank;
        let narrow = self.width == 2;
        let kernel = Kernel::new::<Params>("linear_broadcast", shader!("linear_broadcast.wgsl"))
            .part(MASK_TAIL)
            .part(tile)
            .constant("GROUPS", self.rows() / LANES)
            .constant("QUADS", self.width.div_ceil(4))
            .constant("WIDTH", self.width.min(4))
            .constant("NARROW", narrow)
            .constant("Cols", Constant::Type(if narrow { "vec2<f32>" } else { "vec4<f32>" }))
            .constant("Out", Constant::Type(if narrow { "f32" } else { "vec4<f32>" }))
            .constant("OCTET_HALVES", self.octet_halves())
            .constant("OCTETS", self.octet_halves() == 2)
            .constant("PACKED", packed)
            .constant("PAIRS", self.width == 8 && packed == OCTET)
            .constant("SCALED", quantized)
            .constant("WHOLE_RANK", quads)
            .constant("Factor", Constant::Type(if quads { "vec4<f32>" } else { "f32" }));
        match self.storage {
            Storage::Float(float) => kernel.part(shader!("lib/octet_float.wgsl")).part(match float {
                Float::F32 => shader!("lib/octet_f32.wgsl"),
                Float::F16 => shader!("lib/octet_f16.wgsl"),
                Float::Bf16 => shader!("lib/octet_bf16.wgsl"),
            }),
            Storage::Quantized(Format4 { code, .. }) => {
                code.join(code.join_block(kernel)).part(shader!("lib/octet_4bit.wgsl"))
            }
            Storage::Blocks(code) => code
                .join(kernel)
                .constant("Codes", Constant::Type(if code.bits() == 8 { "vec2<u32>" } else { "u32" }))
                .constant("OfBlock", Constant::Type(if code.has_minimum() { "vec2<f32>" } else { "f32" }))
                .part(shader!("lib/octet_blocks.wgsl")),
        }
    }
}

fn decode_kernel() -> Kernel {
    Origin::Fixed
        .join(Kernel::new::<DecodeParams>("absmax_decode", shader!("absmax_decode.wgsl")))
        .part(shader!("lib/absmax_nested.wgsl"))
        .constant("WG_SIZE", DECODE_WG_SIZE)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all = vec![decode_kernel()];
    for direction in [Direction::Forward, Direction::InputGradient] {
        for storage in Storage::ALL {
            for many in [false, true] {
                for &width in widths(direction, storage, many) {
                    for whole_rank in [false, true] {
                        all.push(Variant { direction, storage, many, width, whole_rank }.kernel());
                    }
                }
            }
        }
    }
    all
}

/// Octets of a row begin at whole words.
pub(super) fn applies(capabilities: &Capabilities, in_features: u32) -> bool {
    VariantFamily::of(capabilities) == VariantFamily::Broadcast && in_features.is_multiple_of(OCTET)
}

/// Bytes of the decoded scales (f32) of a weight in `code`.
pub(super) fn scales_bytes(code: Code4, out_features: u32, in_features: u32) -> u64 {
    code.format(false).absmax_bytes(u64::from(out_features) * u64::from(in_features))
}

pub(super) fn record(rec: &mut Recorder, contraction: Contraction) {
    let Contraction { direction, x, weight, panel, low_rank, y, accumulate } = contraction;
    let (cols, depth) = (contraction.cols(), contraction.depth());
    let [x_col4, y_col4] = contraction.first_quads();
    let [data, absmax, nested] = contraction.weight_views(rec);
    let absmax = match weight.storage {
        Storage::Quantized(Format4 { code, double: true }) => {
            let bytes = scales_bytes(code, panel.rows, weight.in_features);
            decode_scales(rec, bytes, absmax, nested)
        }
        _ => absmax,
    };
    let [bias, product, factor] = contraction.term_views(rec);
    let views = [x.view, data, absmax, rec.unused, bias, product, factor, y.view];
    let whole_rank = low_rank.is_none_or(|term| term.product.cols.is_multiple_of(4));
    let part = part_depth(weight.storage);
    let many = x.rows >= MANY_ROWS;
    let widths = widths(direction, weight.storage, many);
    for (begin, strips) in
        (0..depth).step_by(part as usize).flat_map(|begin| strips(widths, many, cols).map(move |s| (begin, s)))
    {
        let Strips { first_col, count, width } = strips;
        let variant = Variant { direction, storage: weight.storage, many, width, whole_rank };
        let groups = [x.rows.div_ceil(variant.rows()), count, 1];
        let end = depth.min(begin + part);
        // Later parts of the contraction add to what the first has written, which took the LoRA term and the bias.
        let first = begin == 0;
        let params = Params {
            rows: x.rows,
            cols,
            begin,
            depth: end,
            in_features: weight.in_features,
            x_ld4: x.ld / 4,
            x_col4,
            y_ld4: y.ld / 4,
            y_col4,
            rank: if first { contraction.rank() } else { 0 },
            product_ld4: contraction.product_ld4(),
            factor_first: panel.first_row,
            scale: contraction.scale(),
            first_col,
            bias: u32::from(first && contraction.bias().is_some()),
            accumulate: u32::from(accumulate || !first),
        };
        let covered = (count * width * LANES).min(cols - first_col);
        let work = u64::from(x.rows) * u64::from(covered) * u64::from(end - begin + params.rank);
        rec.dispatch(contraction.op_name(), variant.kernel(), &views, &params, groups, work);
    }
}

/// The widths of a contraction's strips, the widest first.
fn widths(direction: Direction, storage: Storage, many: bool) -> &'static [u32] {
    // Decoding of 4 bits along rows is shared by more rows where a lane owns fewer columns.
    match (direction, storage) {
        (Direction::Forward, Storage::Quantized { .. }) if many => &WIDTHS[1..],
        (Direction::InputGradient, Storage::Quantized(format)) if is_narrow(format.code.block()) => &WIDTHS[1..],
        _ => &WIDTHS,
    }
}

/// Neighboring workgroups, from `first_col` on.
struct Strips {
    first_col: u32,
    count: u32,
    /// Columns of a lane.
    width: u32,
}

/// Wide strips, then narrower ones over what is left if they cover it with fewer idle lanes; of few rows, for which no second text
/// pays, all in one width.
fn strips(widths: &[u32], many: bool, cols: u32) -> impl Iterator<Item = Strips> + '_ {
    let mut first_col = 0;
    widths.iter().filter_map(move |&width| {
        let strip = width * LANES;
        let left = cols.saturating_sub(first_col);
        let (whole, rest) = (left / strip, left % strip);
        let narrower = if many {
            rest.next_multiple_of(WIDTHS[2] * LANES) < strip
        } else {
            whole == 0 && rest <= strip / 2 && width > WIDTHS[2]
        };
        let count = if narrower { whole } else { left.div_ceil(strip) };
        let strips = Strips { first_col, count, width };
        first_col += count * strip;
        (count > 0).then_some(strips)
    })
}

/// The depth at which the weights of a workgroup's columns fill `PART_BYTES`, so that all blocks of rows find them in the cache.
fn part_depth(storage: Storage) -> u32 {
    let half_bytes = match storage {
        Storage::Float(float) => 2 * float.bytes(),
        Storage::Quantized { .. } => 1,
        Storage::Blocks(code) => u64::from(code.bits() / 4),
    };
    (2 * PART_BYTES / (half_bytes * u64::from(8 * LANES))) as u32
}

/// Records the decoding of double quantized scales into `bytes` of scratch.
fn decode_scales(rec: &mut Recorder, bytes: u64, absmax: View, nested: View) -> View {
    let scratch = rec.scratch.weight_panel;
    assert!(bytes <= scratch.bytes, "scratch for the scales of a weight");
    let scales = View { bytes, ..scratch };
    let count = (bytes / 4) as u32;
    let groups = rec.fold(u64::from(count.div_ceil(DECODE_WG_SIZE)));
    rec.dispatch(
        "absmax_decode",
        decode_kernel(),
        &[scales, absmax, nested],
        &DecodeParams { count },
        groups,
        u64::from(count),
    );
    scales
}
