//! Packing: several short examples share one slot of a batch. A micro-batch is a stream of rows with segment boundaries, so packed
//! examples never see each other, and a slot only limits the number of rows.

use super::Example;
use super::batches::rows_of;

/// Puts each example, in order, into the first slot with room for its rows (first fit). A slot holds at most `max_rows` rows, so a
/// micro-batch of `n` slots has at most `n * max_rows`. A longer example gets a slot of its own.
pub fn pack(examples: &[Example], max_rows: usize) -> Vec<Vec<usize>> {
    first_fit(examples.iter().map(rows_of), max_rows)
}

fn first_fit(rows: impl ExactSizeIterator<Item = usize>, max_rows: usize) -> Vec<Vec<usize>> {
    let mut room = RoomTree::new(rows.len(), max_rows);
    let mut slots: Vec<Vec<usize>> = Vec::new();
    for (index, rows) in rows.enumerate() {
        let slot = room.take_first(rows.min(max_rows));
        if slot >= slots.len() {
            slots.resize(slot + 1, Vec::new());
        }
        slots[slot].push(index);
    }
    slots
}

/// A tree over the free rows of each slot. Every node holds the largest free room below it, so the first slot with enough room is
/// found in logarithmic time.
struct RoomTree {
    leaves: usize,
    /// Node 1 is the root, the children of `i` are `2i` and `2i + 1`.
    largest: Vec<usize>,
}

impl RoomTree {
    fn new(slots: usize, room: usize) -> Self {
        let leaves = slots.next_power_of_two();
        Self { leaves, largest: vec![room; 2 * leaves] }
    }

    /// Takes `rows`, at most one whole slot, from the first slot with enough room. There is one slot per example, so an empty slot
    /// is always left.
    fn take_first(&mut self, rows: usize) -> usize {
        let mut node = 1;
        while node < self.leaves {
            node *= 2;
            if self.largest[node] < rows {
                node += 1;
            }
        }
        self.largest[node] -= rows;
        let slot = node - self.leaves;
        while node > 1 {
            node /= 2;
            self.largest[node] = self.largest[2 * node].max(self.largest[2 * node + 1]);
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batches::MicroBatch;

    #[test]
    fn each_example_goes_into_the_first_slot_with_room() {
        let pack = |rows: &[usize]| first_fit(rows.iter().copied(), 10);
        assert_eq!(pack(&[6, 5, 4, 5, 10, 1]), [vec![0, 2], vec![1, 3], vec![4], vec![5]]);
        assert_eq!(pack(&[12, 1]), [vec![0], vec![1]]);
        assert_eq!(pack(&[]), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn slots_equal_a_plain_search_and_keep_their_bound() {
        let rows: Vec<usize> = (0..500_usize).map(|i| 1 + (i * 7919) % 97).collect();
        let mut plain: Vec<(usize, Vec<usize>)> = Vec::new();
        for (index, rows) in rows.iter().enumerate() {
            match plain.iter_mut().find(|(used, _)| used + rows <= 100) {
                Some((used, slot)) => {
                    *used += rows;
                    slot.push(index);
                }
                None => plain.push((*rows, vec![index])),
            }
        }
        let plain: Vec<_> = plain.into_iter().map(|(_, slot)| slot).collect();
        assert_eq!(first_fit(rows.iter().copied(), 100), plain);
    }

    #[test]
    fn a_micro_batch_of_slots_has_the_rows_of_its_examples() {
        let example = |length: usize, masked: usize| {
            Example::new(vec![7; length], (0..length).map(|i| i < length - masked).collect())
        };
        let examples = [example(5, 0), example(9, 6), example(3, 0), example(8, 0)];
        let slots = pack(&examples, 8);
        assert_eq!(slots, [vec![0, 1, 2], vec![3]]);
        let rows = |slot: &Vec<usize>| MicroBatch::from_examples(slot.iter().map(|&i| &examples[i])).tokens.len();
        assert_eq!(slots.iter().map(rows).collect::<Vec<_>>(), [8, 7]);
    }
}
