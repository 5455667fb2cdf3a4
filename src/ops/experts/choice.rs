//! The sizes of a mixture of experts, and the tables of a pass.

use crate::gpu::View;

/// The index of no pair and of no expert.
pub(super) const NONE: u32 = u32::MAX;
/// Parts of the list of pairs that are sorted side by side.
pub(super) const PARTS: u32 = 32;
/// Slots of a tile where experts have many rows. With more, the accumulators leave the registers.
pub(super) const TILE: u32 = 8;

/// The scores of experts, as a function of the router's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// The softmax over all experts.
    Softmax,
    /// The sigmoid of each logit by itself.
    Sigmoid,
}

/// The choice of experts in a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Number of experts.
    pub experts: u32,
    /// Experts of a row.
    pub top: u32,
    /// The scores that experts are chosen by, and that become their weights.
    pub scores: Scores,
    /// True if the weights of a row's experts are divided by their sum.
    pub normalized: bool,
    /// The factor on the weights, above 0.
    pub scale: f32,
}

impl Choice {
    pub(super) fn pairs(&self, rows: u32) -> u32 {
        rows * self.top
    }

    /// Slots of a tile, for a pass of this many rows.
    pub(super) fn tile(&self, rows: u32) -> u32 {
        if self.pairs(rows) < self.experts { 1 } else { TILE }
    }

    /// The most slots that this many rows take.
    pub fn slots(&self, rows: u32) -> u32 {
        let (pairs, tile) = (self.pairs(rows), self.tile(rows));
        (pairs + (tile - 1) * pairs.min(self.experts)) / tile * tile
    }

    pub(super) fn tiles(&self, rows: u32) -> u32 {
        self.slots(rows) / self.tile(rows)
    }

    /// Bytes of the scratch for sorting.
    pub fn count_bytes(&self) -> u64 {
        4 * u64::from(self.experts * PARTS)
    }
}

/// The experts of a pass's rows, and the slots of its pairs.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Expert of each pair, u32.
    pub chosen: View,
    /// Weight of each pair, f32.
    pub weights: View,
    /// Slot of each pair, u32.
    pub slots: View,
    /// Pair of each slot, u32.
    pub pairs: View,
    /// Expert of each tile of slots, u32.
    pub tiles: View,
}

impl Tables {
    /// Bytes of the fields in their order, for passes of up to `rows` rows.
    pub fn bytes(choice: Choice, rows: u32) -> [u64; 5] {
        let (pairs, slots) = (choice.pairs(rows), choice.slots(rows));
        // Fewer rows take smaller tiles, of which there may be more.
        let tiles = choice.tiles(rows).max(choice.experts);
        [pairs, pairs, pairs, slots, tiles].map(|words| 4 * u64::from(words))
    }
}
