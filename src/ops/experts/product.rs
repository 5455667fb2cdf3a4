//! The products of slots with the weights of their experts, which lie in few bindings one behind the other.

use super::choice::{Choice, NONE, TILE, Tables};
use crate::gpu::{Constant, Kernel, Matrix, Recorder, View, params};
use crate::ops::VariantFamily;
use crate::ops::lib_parts::MASK_TAIL;
use crate::ops::weight::{Origin, Weight};
use crate::quant::format::Storage;

params! {
    struct Params {
        tiles: u32,
        strips: u32,
        cols: u32,
        depth: u32,
        in_features: u32,
        x_ld4: u32,
        y_ld: u32,
        top: u32,
        first_col: u32,
        first: u32,
        experts: u32,
        weight: u32,
        absmax: u32,
        nested: u32,
        outputs: u32,
    }
}

/// The rows that slots read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The row of the slot's pair.
    Rows,
    /// The slot's own row.
    Slots,
}

/// The variant of a product beside the storage of its weights.
#[derive(Clone, Copy)]
struct Variant {
    cpu: bool,
    tile: u32,
    source: Source,
    direction: Direction,
    biased: bool,
}

fn kernel(storage: Storage, in_features: u32, variant: Variant) -> Kernel {
    let Variant { cpu, tile, source, direction, biased } = variant;
    let kernel = Kernel::new::<Params>("expert_product", shader!("expert_product.wgsl"))
        .part(MASK_TAIL)
        .constant("WG_SIZE", lanes(cpu))
        .constant("ROWS", tile)
        .constant("NONE", NONE)
        .constant("GATHER", source == Source::Rows)
        .constant("FORWARD", direction == Direction::Forward)
        .constant("Out", Constant::Type(if direction == Direction::Forward { "f32" } else { "vec4<f32>" }))
        .constant("WIDTH", direction.width())
        .constant("BIASED", biased)
        .constant("ACCUMULATE", direction == Direction::AddInputGradient);
    storage.join_at(kernel, in_features, Origin::Moving)
}

/// Lanes of a workgroup: one vector of a software adapter.
fn lanes(cpu: bool) -> u32 {
    if cpu { VariantFamily::LANES } else { 64 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    InputGradient,
    AddInputGradient,
}

impl Direction {
    /// Columns of a lane.
    fn width(self) -> u32 {
        if self == Self::Forward { 1 } else { 4 }
    }
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all = Vec::new();
    for cpu in [false, true] {
        for storage in Storage::ALL {
            for in_features in [64, 63] {
                for tile in [1, TILE] {
                    for (source, direction, biased) in [
                        (Source::Rows, Direction::Forward, false),
                        (Source::Slots, Direction::Forward, false),
                        (Source::Rows, Direction::Forward, true),
                        (Source::Slots, Direction::Forward, true),
                        (Source::Rows, Direction::InputGradient, false),
                        (Source::Slots, Direction::InputGradient, false),
                        (Source::Slots, Direction::AddInputGradient, false),
                    ] {
                        let variant = Variant { cpu, tile, source, direction, biased };
                        all.push(kernel(storage, in_features, variant));
                    }
                }
            }
        }
    }
    all
}

/// Experts whose weights one binding covers, at equal distances.
struct Stack {
    first: u32,
    experts: u32,
    /// Values, scales, nested scales.
    views: [Option<View>; 3],
    /// Words from one expert to the next.
    strides: [u32; 3],
}

fn views(weight: &Weight) -> [Option<View>; 3] {
    let panel = &weight.panels[0];
    [Some(panel.data), panel.absmax, panel.nested]
}

/// The experts in as few stacks as their places allow.
fn stacks(weights: &[Weight], max_binding_bytes: u64) -> Vec<Stack> {
    let mut all: Vec<Stack> = Vec::new();
    for (expert, weight) in weights.iter().enumerate() {
        assert_eq!(weight.panels.len(), 1, "an expert's weight lies in one binding");
        let own = views(weight);
        match all.last_mut().filter(|stack| joins(stack, own, max_binding_bytes)) {
            Some(stack) => {
                for (i, view) in own.into_iter().enumerate() {
                    let (Some(whole), Some(view)) = (stack.views[i], view) else { continue };
                    if stack.experts == 1 {
                        stack.strides[i] = view.words_from(whole);
                    }
                    stack.views[i] = View::span(&[whole, view]);
                }
                stack.experts += 1;
            }
            None => all.push(Stack { first: expert as u32, experts: 1, views: own, strides: [0; 3] }),
        }
    }
    all
}

fn joins(stack: &Stack, own: [Option<View>; 3], max_binding_bytes: u64) -> bool {
    stack.views.into_iter().zip(own).zip(stack.strides).all(|((whole, view), stride)| match (whole, view) {
        (None, None) => true,
        (Some(whole), Some(view)) => {
            let behind = whole.buffer == view.buffer && view.offset > whole.offset;
            let bytes = view.offset + view.bytes;
            behind
                && bytes - whole.offset <= max_binding_bytes
                && (stack.experts == 1 || view.words_from(whole) == stride * stack.experts)
        }
        _ => false,
    })
}

/// `y = x W_e^T + b_e` for every slot, of which y `[slots, up to out]` takes the columns from `first_col` on, a multiple of 4; x is
/// `[rows, in]` or `[slots, in]`, and the biases of all experts f32 `[experts][out]`, where there are any.
pub fn forward(
    rec: &mut Recorder,
    x: (Source, Matrix),
    (weights, biases): (&[Weight], Option<View>),
    (choice, rows): (Choice, u32),
    tables: &Tables,
    (y, first_col): (Matrix, u32),
) {
    record(rec, Direction::Forward, x, (weights, biases), (choice, rows), tables, (y, first_col));
}

/// `dx = dy W_e` for every slot, added to `dx` when `accumulate`; dy is `[rows, out]` or `[slots, out]`. dx `[slots, up to in]` takes the
/// columns from `first_col` on, a multiple of 4.
pub fn input_gradient(
    rec: &mut Recorder,
    dy: (Source, Matrix),
    weights: &[Weight],
    of: (Choice, u32),
    tables: &Tables,
    (dx, first_col): (Matrix, u32),
    accumulate: bool,
) {
    let direction = if accumulate { Direction::AddInputGradient } else { Direction::InputGradient };
    record(rec, direction, dy, (weights, None), of, tables, (dx, first_col));
}

fn record(
    rec: &mut Recorder,
    direction: Direction,
    (source, x): (Source, Matrix),
    (weights, biases): (&[Weight], Option<View>),
    (choice, rows): (Choice, u32),
    tables: &Tables,
    (y, first_col): (Matrix, u32),
) {
    let Weight { storage, in_features, out_features, .. } = weights[0];
    let (depth, all) =
        if direction == Direction::Forward { (in_features, out_features) } else { (out_features, in_features) };
    let read = if source == Source::Rows { rows } else { choice.slots(rows) };
    let cols = y.cols;
    assert_eq!((x.rows, x.cols, y.rows), (read, depth, choice.slots(rows)), "experts' product");
    assert!(first_col.is_multiple_of(4) && first_col + cols <= all, "columns {first_col} + {cols} of {all}");
    assert_eq!(weights.len(), choice.experts as usize, "weights of the experts");
    let bias_bytes = 4 * u64::from(choice.experts) * u64::from(out_features);
    assert!(biases.is_none_or(|biases| biases.bytes >= bias_bytes), "biases of the experts: {biases:?}");
    let tiles = choice.tiles(rows);
    let strips = cols.div_ceil(lanes(rec.capabilities.cpu) * direction.width());
    let groups = rec.fold(u64::from(tiles) * u64::from(strips));
    let op = match (direction, storage) {
        (Direction::Forward, Storage::Float(_)) => "expert_forward",
        (Direction::Forward, Storage::Quantized { .. }) => "expert_forward_4bit",
        (Direction::Forward, Storage::Blocks(_)) => "expert_forward_blocks",
        (_, Storage::Float(_)) => "expert_input_gradient",
        (_, Storage::Quantized { .. }) => "expert_input_gradient_4bit",
        (_, Storage::Blocks(_)) => "expert_input_gradient_blocks",
    };
    let max_binding_bytes = rec.capabilities.max_binding_bytes;
    for stack in stacks(weights, max_binding_bytes) {
        let [weight, absmax, nested] = stack.strides;
        let params = Params {
            tiles,
            strips,
            cols,
            depth,
            in_features,
            x_ld4: x.ld / 4,
            y_ld: y.ld,
            top: choice.top,
            first_col,
            first: stack.first,
            experts: stack.experts,
            weight,
            absmax,
            nested,
            outputs: out_features,
        };
        let [data, absmax, nested] = stack.views.map(|view| view.unwrap_or(rec.unused));
        let (cpu, tile) = (rec.capabilities.cpu, choice.tile(rows));
        let kernel = kernel(storage, in_features, Variant { cpu, tile, source, direction, biased: biases.is_some() });
        let bias = biases.unwrap_or(rec.unused);
        let views = [x.view, data, absmax, nested, tables.tiles, tables.pairs, y.view, bias];
        let share = u64::from(stack.experts) * u64::from(choice.pairs(rows)) / u64::from(choice.experts);
        rec.dispatch(op, kernel, &views, &params, groups, share * u64::from(depth) * u64::from(cols));
    }
}
